"""Groups scores by unit (item or, in WinoBias, occupation), with bootstrap intervals.

Sentences of WinoBias share 40 occupations, so occupations are resampled. The numbers of occupations
with a feminine and with a masculine stereotype are fixed, so each group is resampled separately.
Where models have several seeds, the study averages over these units and makes each seed a unit
instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pythia_book.stats import Estimate, estimate

BY_OCCUPATION = "winobias"
"""In measures whose name begins with this, each item is a sentence about an occupation."""
HALVES = {"winobias_feminine": True, "winobias_masculine": False}
"""Maps each half of WinoBias to whether its stereotypes are feminine."""


def is_choice(measure: str) -> bool:
    """Return whether the measure scores every item 0 or 1."""
    return measure not in ("loss", "feminine_share") and not measure.endswith("_margin")


@dataclass(frozen=True)
class Sentences:
    """The occupation and the stereotype of every WinoBias sentence.

    Attributes:
        occupation: int[sentences], the index of the occupation.
        feminine: bool[sentences], whether the occupation's stereotype is feminine.
    """

    occupation: np.ndarray
    feminine: np.ndarray

    def by_occupation(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average `values`, [seeds, sentences], by occupation: float64[seeds, occupations].

        Also return whether each stereotype is feminine, bool[occupations].
        """
        _, first, index = np.unique(self.occupation, return_index=True, return_inverse=True)
        counts = np.bincount(index)
        sums = [np.bincount(index, row.astype(np.float64)) for row in values]
        return np.array(sums) / counts, self.feminine[first]


@dataclass(frozen=True)
class Units:
    """One measure's values for each unit of resampling, an item or, for WinoBias, an occupation.

    Attributes:
        values: float64[seeds, units].
        strata: the group of each unit. Each group is resampled separately. None means one group.
    """

    measure: str
    values: np.ndarray
    strata: np.ndarray | None = None

    def interval(self, draws: int, change: bool = False) -> Estimate:
        """Return the mean of all values with a bootstrap interval over units (see `estimate`).

        Args:
            change: whether the values are differences between two models.
        """
        return estimate(self.values, draws, 0, self.strata, change, exact=is_choice(self.measure))

    def minus(self, other: Units) -> Units:
        """Subtract the values of `other` unit by unit."""
        return Units(self.measure, self.values - other.values, self.strata)


def units_of(measure: str, values: np.ndarray, sentences: Sentences) -> Iterator[Units]:
    """Yield the `Units` of `values`, [seeds, items]; for "winobias", also those of its HALVES."""
    if not measure.startswith(BY_OCCUPATION):
        yield Units(measure, values.astype(np.float64))
        return
    means, feminine = sentences.by_occupation(values)
    yield Units(measure, means, feminine)
    if measure in (BY_OCCUPATION, f"{BY_OCCUPATION}_margin"):
        for half, stereotype in HALVES.items():
            if (feminine == stereotype).any():
                name = measure.replace(BY_OCCUPATION, half)
                yield Units(name, means[:, feminine == stereotype])
