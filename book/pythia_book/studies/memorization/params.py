"""Parameters of the memorization study, the runs it trains and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError
from pythia_core.suite import scale_named, suite_configs
from pythia_core.training.retention import Keep

STUDY = "memorization"
AFTER = ("suite",)
"""Studies to run first: they train runs that this one uses."""
MEASURING = MeasuringCost(rows=3.0)
CHECKPOINTS = (23, 43, 63, 83, 103, 123, 143)
"""Evenly spaced checkpoints of the standard models: the paper's 23,000, 43,000, ..."""
DEDUPLICATED_AT = (63, 103, 143)
"""Evenly spaced checkpoints of the deduplicated models."""


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the study."""

    context: int = 32
    continuation: int = 32
    window: int = 128
    """Rows per window in the Q-Q plot (in the paper 512, of 146 million rows)."""
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
                f"context={self.context} and continuation={self.continuation} together are more "
                f"than the {width} tokens of a row"
            )

    def steps(self, arm: str) -> list[int]:
        """Steps at which an arm is measured."""
        scale = scale_named(self.scale)
        indices = CHECKPOINTS if arm == "standard" else DEDUPLICATED_AT
        return sorted({scale.fork_step(i) for i in indices} - {0})


def runs(params: Params) -> list[RunConfig]:
    """Configs of all runs that the study uses."""
    return list(suite_configs(params.scale, params.size_list, seed=params.seed).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """The checkpoints of a run that the study reads, whichever study trains the run."""
    return kept_at(run, standard=CHECKPOINTS, deduplicated=DEDUPLICATED_AT)
