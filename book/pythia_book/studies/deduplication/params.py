"""Parameters of the study of deduplication, the runs it trains and what it reads of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pythia_book.studies.task_scores import LIMIT
from pythia_book.study import StudyParams

STUDY = "deduplication"
INDICES = (3, 13, 33, 53, 73, 93, 113, 133, 143)
"""Evenly spaced checkpoints at which twins are compared; 93 is the paper's second column."""
CONTEXT = 32
"""Tokens given, and tokens asked for, in extraction (paper section 3.2)."""


@dataclass(frozen=True)
class DeduplicationParams(StudyParams):
    """Parameters of the study."""

    seed: int = 1234
    bootstrap: int = 2000
    limit: int = LIMIT
    """Items of a benchmark task."""

    WHOLE: ClassVar = {
        "seed": (0, 2**32 - 1),
        "bootstrap": (100, 1_000_000),
        "limit": (5, 100_000),
    }


Params = DeduplicationParams
"""Under this name a study's parameters are checked before its notebook runs."""
