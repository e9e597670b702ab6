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
MEASURING = MeasuringCost(rows=3.0)
CHECKPOINTS = (23, 43, 63, 83, 103, 123, 143)
"""Evenly spaced checkpoints to measure on the standard text: the paper's steps, in thousands."""
DEDUPLICATED_AT = (63, 103, 143)
"""Evenly spaced checkpoints to measure on the deduplicated text."""
EARLY = (23, 63)
"""Evenly spaced checkpoints that predict what the last checkpoint has memorized. They are at 16 %
and 44 % of training, like the first and the third checkpoint of Biderman et al. 2023b."""
WINDOWS = (32, 64, 128, 512)
"""Rows per window in tests of dispersion. Our batches have 32 rows; the paper uses 512."""


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

    WHOLE: ClassVar = {
        "context": (1, 4096),
        "continuation": (1, 4096),
        "window": (1, 1_000_000),
        "simulations": (200, 100_000),
    }

    def check(self) -> None:
        width = scale_named(self.scale).data.seq_len + 1
        if self.context + self.continuation > width:
            raise ConfigError(
                f"context={self.context} and continuation={self.continuation} add up to more than "
                f"the {width} tokens of a row; lower context or continuation"
            )

    def steps(self, arm: str) -> list[int]:
        """Return the steps at which models of an arm (a training text) are measured, ascending."""
        scale = scale_named(self.scale)
        indices = CHECKPOINTS if arm == "standard" else DEDUPLICATED_AT
        return sorted({scale.fork_step(i) for i in indices} - {0})

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
    return list(suite_configs(params.scale, params.size_list, seed=params.seed).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints of `run` that this study reads, whichever study trains the run."""
    return kept_at(run, standard=CHECKPOINTS, deduplicated=DEDUPLICATED_AT)
