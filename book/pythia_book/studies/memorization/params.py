"""The parameters of the memorization study, its runs, and the checkpoints it reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import nominal_parameters, scale_named, suite_configs
from pythia_core.training.retention import Keep
from pythia_core.training.schedule import N_LINEAR

STUDY = "memorization"
AFTER = ("suite",)
"""Studies to run first; they train runs that this study uses."""
MEASURING = MeasuringCost(rows=3.5)
CHECKPOINTS = (23, 43, 63, 83, 103, 123, 143)
"""Which of the 143 checkpoints to measure on the standard text: the paper's steps, in thousands."""
DEDUPLICATED_AT = (63, 103, 143)
"""Which of the 143 checkpoints to measure on the deduplicated text."""
EARLY = (23, 63)
"""Two of the 143 checkpoints, which predict what the last one has memorized. They are at 16 %
and 44 % of training, like the first and the third checkpoint of Biderman et al. 2023b."""
WINDOWS = (32, 64, 128, 512)
"""Rows per window in tests of dispersion. Our batches have 32 rows; the paper uses 512."""
COHORTS = (13, 33, 53, 73, 93, 113, 133)
"""At which of the 143 checkpoints cohorts begin. A cohort is read up to the next of the 143
checkpoints. Its loss is followed over the checkpoints around all cohorts, most of which are kept by
large runs for other studies, too."""
FIRST_LOOK = 10
"""Number of checkpoints from the beginning of a cohort to the first look at it."""
PERSISTENT_AFTER = 2
"""A persistent trace is what is left when the second cohort after its own begins."""
BASE, FLOOR = 8, 116
"""Two of the 143 checkpoints, from which the traces at the end are measured. From FLOOR on, the
learning rate is at its minimum."""
TRACED = (*sorted({i + k for i in COHORTS for k in (0, 1, FIRST_LOOK)}), BASE, FLOOR)
"""At which of the 143 checkpoints the loss of rows is measured."""
INTERVAL = ["value", "low", "high"]
"""The columns of an estimate with its interval."""
TREND = 5.0
"""The smallest change of a trace, or of the rate of memorized rows, that counts as an effect of
order, in % of the mean per tenth of training. Over all of training, a smaller change is less than
half of the mean."""
SEEDED = {"smoke": "7k", "laptop": "25k", "gpu": "1.2m"}
"""The size that is trained with further seeds, by scale: that of the study `seeds`, whose runs have
the same seeds."""


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the memorization study."""

    context: int = 32
    continuation: int = 32
    window: int = 128
    """Rows per window in the Q-Q plot. The paper uses 512 rows, of 146 million in all."""
    simulations: int = 2000
    seed: int = 1234
    bootstrap: int = 2000
    seeds: int = 1
    """Number of seeds of the size in SEEDED: `seed`, then 1, 2, ..."""

    WHOLE: ClassVar = {
        "context": (1, 4096),
        "continuation": (1, 4096),
        "window": (8, 1_000_000),
        "simulations": (200, 20_000),
        "seeds": (1, 50),
    }

    def check(self) -> None:
        length = scale_named(self.scale).data.seq_len
        if self.context + self.continuation > length:
            raise ConfigError(
                f"context={self.context} and continuation={self.continuation} must add up to at "
                f"most the {length} tokens that a model reads; lower context or continuation"
            )
        n_rows = scale_named(self.scale).steps * scale_named(self.scale).batch_size
        if self.window > n_rows:
            raise ConfigError(
                f"window={self.window} is more than the {n_rows} rows of training at the scale "
                f"{self.scale}; lower window"
            )
        if 0 < self.seed < self.seeds:
            raise ConfigError(
                f"seed={self.seed} is also one of the further seeds 1..{self.seeds - 1} that "
                f"seeds={self.seeds} adds; choose a seed of at least {self.seeds}"
            )

    def steps(self, arm: str) -> list[int]:
        """Return the steps at which models of an arm (a training text) are measured, ascending."""
        scale = scale_named(self.scale)
        indices = CHECKPOINTS if arm == "standard" else DEDUPLICATED_AT
        return sorted({scale.fork_step(i) for i in indices} - {0})

    @property
    def cohorts(self) -> list[tuple[int, int]]:
        """The updates [start, stop) that read each cohort. Steps `start` and `stop` are saved."""
        scale = scale_named(self.scale)
        starts = [scale.fork_step(i) for i in COHORTS]
        ends = [scale.fork_step(i + 1) for i in COHORTS]
        return [(a, max(a + 1, b)) for a, b in zip(starts, ends, strict=True)]

    @property
    def cohort_steps(self) -> list[int]:
        """The steps at which the loss of the cohorts is measured, ascending."""
        scale = scale_named(self.scale)
        looks = [self.first_look(number) for number in range(len(COHORTS))]
        return sorted({step for window in self.cohorts for step in window} | {*looks, scale.steps})

    def first_look(self, cohort: int) -> int:
        """Return the step of the first look at a cohort, given by its number."""
        step = scale_named(self.scale).fork_step(COHORTS[cohort] + FIRST_LOOK)
        return max(self.cohorts[cohort][1], step)

    @property
    def final_steps(self) -> tuple[int, int, int]:
        """The steps between which the loss of rows from all of training falls.

        These are an early one, the first at the minimum learning rate, and the last.
        """
        scale = scale_named(self.scale)
        return scale.fork_step(BASE), scale.fork_step(FLOOR), scale.steps

    @property
    def too_late(self) -> int:
        """The step from which texts are read too late to be measured at the end of training.

        As at the first look, Adam's momentum must have applied what was read.
        """
        return scale_named(self.scale).fork_step(N_LINEAR - FIRST_LOOK)

    @property
    def canary_steps(self) -> list[int]:
        """The steps at which the loss of canaries is measured, ascending."""
        return self.steps("standard")

    @property
    def seeded_size(self) -> str:
        """The size that is trained with further seeds; if it is not studied, the smallest one."""
        size = scale_named(self.scale).default_in(SEEDED, "")
        return size if size in self.size_list else self.size_list[0]

    @property
    def members(self) -> list[tuple[str, int]]:
        """The (size, seed) of the runs on the standard text whose traces are estimated."""
        further = [(self.seeded_size, seed) for seed in range(1, self.seeds)]
        return list(dict.fromkeys([*((size, self.seed) for size in self.size_list), *further]))

    @property
    def early_steps(self) -> list[int]:
        """The steps of the checkpoints in EARLY."""
        return [scale_named(self.scale).fork_step(i) for i in EARLY]

    @property
    def early_percent(self) -> list[int]:
        """The progress of training at each of `early_steps`, in percent, rounded."""
        return [round(100 * i / N_LINEAR) for i in EARLY]

    @property
    def windows(self) -> tuple[int, ...]:
        """Window sizes in rows: WINDOWS and the size for the Q-Q plot, without duplicates."""
        return tuple(dict.fromkeys((*WINDOWS, self.window)))

    @property
    def tenth(self) -> str:
        """The smaller size that is nearest to a tenth of the largest size, or the only size."""
        largest = nominal_parameters(self.size_list[-1])
        smaller = self.size_list[:-1] or self.size_list
        return min(smaller, key=lambda s: abs(math.log(10 * nominal_parameters(s) / largest)))


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses."""
    return list(configs(params).values())


def configs(params: Params) -> dict[tuple[str, str, int], RunConfig]:
    """Map (size, arm, seed) to the config of each run: the suite, and further seeds of one size."""
    suite = suite_configs(params.scale, params.size_list, seed=params.seed)
    named = {(*cell, params.seed): config for cell, config in suite.items()}
    for size, seed in params.members:
        (config,) = suite_configs(params.scale, [size], ["standard"], seed).values()
        named.setdefault((size, "standard", seed), config)
    return named


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints of `run` that this study reads, whichever study trains the run."""
    return kept_at(run, standard=(*CHECKPOINTS, *TRACED), deduplicated=DEDUPLICATED_AT)
