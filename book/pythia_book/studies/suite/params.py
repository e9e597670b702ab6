"""Parameters of the study of the suite, and the runs it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pythia_book.study import StudyParams

STUDY = "suite"


@dataclass(frozen=True)
class SuiteParams(StudyParams):
    """Parameters of the study."""

    seed: int = 1234
    resume_steps: int = 24
    """Updates of the run that is interrupted in the middle and compared."""

    WHOLE: ClassVar = {"seed": (0, 2**32 - 1), "resume_steps": (2, 10_000)}


Params = SuiteParams
"""Under this name a study's parameters are checked before its notebook runs."""
