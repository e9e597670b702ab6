"""Defines the parameters of the repetition study, its runs, and the checkpoints it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at, whole_numbers
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import DEDUP, scale_named
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep

STUDY = "repetition"
MEASURING = MeasuringCost(heldout=8, rows=1.0)
DEFAULTS = {
    "smoke": ("7k", 16),
    "laptop": ("85k", 384),
    "gpu-short": ("1.2m", 640),
    "gpu": ("2.7m", 640),
}
"""Default size and number of updates by scale. Except at the scale `smoke`, that many updates read
the deduplicated text about once. `gpu-short` has the smallest size, to keep the second bundle
short."""
INDICES = (18, 36, 54, 72, 89, 107, 125, 143)
"""Indices of the checkpoints to measure, those nearest to each eighth of training."""
MOST_EPOCHS = 256

Cell = tuple[str, int]
"""A pair (size, epochs)."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The notebook parameters of the study `repetition`."""

    epochs: str = "1,2,4,8,16"
    """Comma-separated numbers of passes over the same rows, one for each arm. They include 1."""
    steps: int = 0
    """Number of updates of every arm; 0: the default of the scale."""
    seed: int = 1234
    bootstrap: int = 2000

    WHOLE: ClassVar = {"steps": (0, 10_000_000)}

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
    def size_list(self) -> tuple[str, ...]:
        """The sizes, smallest first; if `sizes` is empty, only the default size of the scale."""
        scale = scale_named(self.scale)
        return scale.size_list(self.sizes, scale.default_in(DEFAULTS, (scale.sizes[-1], 0))[0])

    @property
    def epoch_list(self) -> tuple[int, ...]:
        """The numbers of epochs of the arms, ascending. The first is 1: its arm reads no row twice.

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
        """The number of updates of every arm."""
        scale = scale_named(self.scale)
        return self.steps or scale.default_in(DEFAULTS, ("", scale.steps))[1]

    def rows(self, epochs: int = 1) -> int:
        """Return the number of different rows that an arm of `epochs` epochs reads."""
        return self.n_steps * scale_named(self.scale).batch_size // epochs


def repetition_configs(
    params: Params,
) -> tuple[dict[Cell, RunConfig], dict[Cell, RunConfig]]:
    """Return two maps from (size, epochs) to configs: of the arms, and of their single-pass runs.

    An arm passes over the same rows `epochs` times. Its single-pass run reads these rows once and
    stops. The learning-rate schedule of each run fits the length of that run.
    """
    scale, arms, once = scale_named(params.scale), {}, {}
    for size in params.size_list:
        base = scale.run(
            size, params.seed, params.seed, steps=params.n_steps, precision=best_precision()
        )
        for epochs in params.epoch_list:
            rows = {"epochs": epochs, "unique_rows": params.rows(epochs)}
            data = replace(base.data, dedup=DEDUP, epoch_policy="rows", **rows)
            arms[size, epochs] = replace(base, data=data)
            train = replace(base.train, steps=params.n_steps // epochs)
            once[size, epochs] = replace(arms[size, 1], train=train)
    return arms, once


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of the training runs that the study measures."""
    arms, once = repetition_configs(params)
    return [*arms.values(), *once.values()]


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints that this study reads from `run`, whichever study trains it."""
    return kept_at(run, repeated=INDICES)
