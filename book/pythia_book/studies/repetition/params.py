"""Defines the parameters of the repetition study, its runs, and the checkpoints it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at, whole_numbers
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import DEDUP, SUITE_SEED, scale_named, size_named
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep
from pythia_core.training.schedule import N_LINEAR, linear_step

STUDY = "repetition"
STEPS = {"smoke": 16, "laptop": 512, "gpu-short": 640, "gpu": 640}
"""Default number of updates of the longest runs, by scale."""
SMALLER = 4
"""Batches are smaller by this factor than those of the scale, and peak learning rates by its square
root. With whole batches, the shortest runs would make too few updates to follow a law."""
N_CHECKPOINTS = 16
INDICES = tuple(round(k * N_LINEAR / N_CHECKPOINTS) for k in range(1, N_CHECKPOINTS + 1))
"""Indices of the checkpoints of an arm to measure, those nearest to each sixteenth of training."""
MEASURING = MeasuringCost(heldout=6)  # of fifteen runs, five are measured at all INDICES
MOST_EPOCHS = 256

Cell = tuple[str, int, int, int]
"""(size, seed, part, epochs): a run that reads 1/`part` of all rows `epochs` times."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The notebook parameters of the study `repetition`."""

    epochs: str = "1,2,4,8,16"
    """Comma-separated numbers of passes over the same rows, which include 1."""
    steps: int = 0
    """Number of updates of the longest runs; 0: the default of the scale."""
    seeds: int = 1

    WHOLE: ClassVar = {"steps": (0, 10_000_000), "seeds": (1, 100)}
    DEFAULT_SIZES: ClassVar = {
        "smoke": "7k",
        "laptop": "13k,38k,150k",
        "gpu-short": "1.2m",  # to keep the second bundle short
        "gpu": "1.2m,2.7m,4.7m",
    }

    def check(self) -> None:
        """Raise ConfigError if `epochs` is invalid, or a number in it does not divide `n_steps`."""
        passes, steps = self.epoch_list, self.n_steps
        if bad := [r for r in passes if steps % r]:
            every = math.lcm(*passes)
            divisors = [r for r in range(1, min(steps, MOST_EPOCHS) + 1) if steps % r == 0]
            raise ConfigError(
                f"every number in epochs={self.epochs!r} must divide the number of steps, {steps}, "
                f"but {', '.join(map(str, bad))} cannot. Set steps to a multiple of {every}, e.g. "
                f"{max(1, steps // every) * every}, or choose the numbers in epochs from "
                f"{', '.join(map(str, divisors))}"
            )

    @property
    def epoch_list(self) -> tuple[int, ...]:
        """The numbers of epochs, ascending. The first is 1: no row is read twice.

        Raises:
            ConfigError: `epochs` does not list 1 and a larger number, or a number is above
                MOST_EPOCHS.
        """
        passes = whole_numbers(self.epochs)
        if passes[:1] != [1] or len(passes) < 2 or passes[-1] > MOST_EPOCHS:
            raise ConfigError(
                "epochs must be a comma-separated list with 1 and at least one other whole number "
                f'up to {MOST_EPOCHS}, e.g. "1,2,4", got {self.epochs!r}'
            )
        return tuple(passes)

    @property
    def n_steps(self) -> int:
        """The number of updates of the longest runs."""
        return self.steps or scale_named(self.scale).default_in(STEPS, STEPS["laptop"])

    @property
    def checkpoints(self) -> list[int]:
        """The steps at which arms are measured, ascending; the last is `n_steps`."""
        return sorted({linear_step(index, self.n_steps) for index in INDICES} - {0})

    @property
    def batch_size(self) -> int:
        """The number of rows of an update."""
        return scale_named(self.scale).batch_size // SMALLER

    def rows(self, part: int = 1) -> int:
        """Return the number of rows in 1/`part` of the data; with `part` 1, of all rows."""
        return self.n_steps * self.batch_size // part

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """All (part, epochs), arms first. For each, there is an equally long run on fresh data.

        In an arm, `epochs` is `part`: all arms are as long as the run that reads all rows once.
        """
        passes = self.epoch_list
        shorter = [(p, e) for p in passes for e in passes if p % e == 0 and p // e in passes]
        return (*((p, p) for p in passes), *(pair for pair in shorter if pair[0] != pair[1]))

    def cells(self) -> Iterator[Cell]:
        """Yield all cells of the study."""
        for size in self.size_list:
            for seed in range(self.seeds):
                for part, epochs in self.pairs:
                    yield size, seed, part, epochs

    def config(self, size: str, seed: int, part: int, epochs: int) -> RunConfig:
        """Return the config of a run; its schedule of learning rates fits its own length."""
        train = {
            "steps": self.n_steps * epochs // part,
            "batch_size": self.batch_size,
            "lr_max": size_named(size).lr_max / SMALLER**0.5,
            "precision": best_precision(),
        }
        at = SUITE_SEED + seed
        base = scale_named(self.scale).run(size, at, at, **train)
        rows = {"epochs": epochs, "unique_rows": self.rows(part)}
        return replace(base, data=replace(base.data, dedup=DEDUP, epoch_policy="rows", **rows))


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of the training runs that the study measures."""
    return [params.config(*cell) for cell in params.cells()]


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints that this study reads from `run`, whichever study trains it.

    Its own runs keep no other checkpoints, because all would take 30 GB at scale laptop.
    """
    arm = run.train.steps == params.n_steps
    kept = kept_at(run, repeated=INDICES if arm else INDICES[-1:])
    return replace(kept, prune_small=run.data.epoch_policy == "rows")
