"""Compute the intervals of the gender-bias study, over seeds or over clusters of items.

With several seeds, a unit is a seed. Its value is the mean over all items, and the interval is
Student's t interval over seeds. With one seed the units are items, resampled by the bootstrap, and
the interval says nothing about training again. The sentences of WinoBias share 40 occupations, so
for WinoBias a unit is an occupation, and its value is the mean over its sentences. Occupations with
a feminine and with a masculine stereotype are resampled apart, because their numbers are fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pythia_book.stats import Estimate, estimate, mean_over

BY_OCCUPATION = "winobias"
"""Measures that begin with this have sentences of occupations as items."""
HALVES = {"winobias_feminine": True, "winobias_masculine": False}
"""Part of WinoBias -> whether the stereotype of its occupations is feminine."""


def is_choice(measure: str) -> bool:
    """Whether the values of the measure are 0 or 1."""
    return measure not in ("loss", "feminine_share") and not measure.endswith("_margin")


@dataclass(frozen=True)
class Sentences:
    """The occupation and the stereotype of every WinoBias sentence.

    Attributes:
        occupation: its index, int[sentences].
        feminine: whether the stereotype of the occupation is feminine, bool[sentences].
    """

    occupation: np.ndarray
    feminine: np.ndarray

    def by_occupation(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means float64[seeds, occupations] of values [seeds, sentences], and their stereotypes."""
        _, first, index = np.unique(self.occupation, return_index=True, return_inverse=True)
        counts = np.bincount(index)
        sums = [np.bincount(index, row.astype(np.float64)) for row in values]
        return np.array(sums) / counts, self.feminine[first]


@dataclass(frozen=True)
class Units:
    """The values of a measure by unit of resampling, float64[seeds, units]."""

    measure: str
    values: np.ndarray
    strata: np.ndarray | None = None

    def interval(self, draws: int, change: bool = False, exact: bool = True) -> Estimate:
        """The mean and its interval, over seeds if there are several, otherwise over units.

        Args:
            change: whether the values are differences between two models.
            exact: use the binomial bound where all of one seed's choices agree.
        """
        if len(self.values) > 1:
            return mean_over(self.values.mean(1))
        exact = exact and is_choice(self.measure)
        return estimate(self.values, draws, 0, self.strata, change, exact)

    def minus(self, other: Units) -> Units:
        """Return the differences of the values, unit by unit: these units minus `other`."""
        return Units(self.measure, self.values - other.values, self.strata)


def units_of(measure: str, values: np.ndarray, sentences: Sentences) -> Iterator[Units]:
    """Yield the units of a measure, and for WinoBias also those of each of its HALVES.

    Args:
        values: [seeds, items].
    """
    if measure in HALVES:  # of older evaluations; the halves follow from the whole
        return
    if not measure.startswith(BY_OCCUPATION):
        yield Units(measure, values.astype(np.float64))
        return
    means, feminine = sentences.by_occupation(values)
    yield Units(measure, means, feminine)
    if measure == BY_OCCUPATION:
        for half, stereotype in HALVES.items():
            if (feminine == stereotype).any():
                yield Units(half, means[:, feminine == stereotype])
