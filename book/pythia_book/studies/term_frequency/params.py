"""Defines the parameters of the term-frequency study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass

from pythia_book.study import MeasuringCost, StudyParams, kept_at, shot_counts
from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import DATA_ARMS, suite_configs
from pythia_core.training.retention import Keep

STUDY = "term_frequency"
AFTER = ("suite",)
"""Studies that should run before this one, because they train the models that it reads."""
MEASURING = MeasuringCost(heldout=10)
INDICES = (13, 39, 65, 91, 117, 143)
"""Indices of the checkpoints to measure, as in the paper (steps 13,000, 39,000, ..., 143,000)."""
DEFAULT_SHOTS = {"smoke": "0,2"}
CHOICES = 4
"""Words to choose from: a definition has one right word and three wrong ones."""
WORD_BINS = (1, 4, 16, 64, 256)
"""Lower ends of the bins of word frequency; the same number of items is taken from each."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The notebook parameters of the study `term_frequency`."""

    arm: str = "deduplicated"
    """Text of the models to use, "standard" or "deduplicated"; the paper used the latter."""
    shots: str = ""
    """Comma-separated numbers of solved examples before a sum; empty means the scale's default."""
    seed: int = 1234

    def check(self) -> None:
        """Raise ConfigError if `arm` is unknown or `shots` is not a list of numbers up to 64."""
        if self.arm not in DATA_ARMS:
            raise ConfigError(one_of(self.arm, DATA_ARMS, "arm"))
        _ = self.shot_list

    @property
    def shot_list(self) -> tuple[int, ...]:
        """The shot counts (how many solved examples precede a sum), ascending, starting with 0."""
        text = self.shots or DEFAULT_SHOTS.get(self.scale, "0,4")
        return tuple(sorted({0, *shot_counts(text, 64)}))


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of the training runs that the study measures."""
    sizes = params.size_list
    return list(suite_configs(params.scale, sizes, (params.arm,), params.seed).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints that this study reads from `run`, whichever study trains it."""
    return kept_at(run, **{params.arm: INDICES})
