"""Defines the parameters of the study of the suite, and the runs that it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams
from pythia_core.config import RunConfig
from pythia_core.suite import suite_configs
from pythia_core.training.retention import Keep

STUDY = "suite"
MEASURING = MeasuringCost()


@dataclass(frozen=True)
class Params(StudyParams):
    """The notebook parameters of the study `suite`."""

    seed: int = 1234
    resume_steps: int = 24
    """Number of updates of the run that is interrupted in the middle and compared with one that is
    not interrupted."""

    WHOLE: ClassVar = {"resume_steps": (2, 10_000)}


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of the training runs that the study measures."""
    return list(suite_configs(params.scale, params.size_list, seed=params.seed).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """Return a Keep without checkpoints, because this study reads none.

    It reads only hashes and logs, which are never deleted.
    """
    return Keep()
