"""Compute the intervals of the gender-bias study, over seeds or by resampling items.

With several seeds, each seed has one value, its mean over all items, and the interval is Student's
t interval over the seeds. With one seed, the items are resampled by the bootstrap. Such an interval
does not show how much models trained with other seeds would differ.

The sentences of WinoBias share 40 occupations, so with one seed, occupations are resampled instead
of sentences. The value of an occupation is the mean over its sentences. Occupations with a feminine
stereotype are resampled separately from those with a masculine one, because the number of each is
fixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pythia_book.stats import Estimate, estimate, mean_over

BY_OCCUPATION = "winobias"
"""The items of measures that begin with this are sentences, each about an occupation."""
HALVES = {"winobias_feminine": True, "winobias_masculine": False}
"""Maps each half of WinoBias to whether the stereotype of its occupations is feminine."""


def is_choice(measure: str) -> bool:
    """Return whether the measure scores every item 0 or 1."""
    return measure not in ("loss", "feminine_share") and not measure.endswith("_margin")


@dataclass(frozen=True)
class Sentences:
    """The occupation and the stereotype of every WinoBias sentence.

    Attributes:
        occupation: the index of the occupation, int[sentences].
        feminine: whether the stereotype of the occupation is feminine, bool[sentences].
    """

    occupation: np.ndarray
    feminine: np.ndarray

    def by_occupation(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average `values`, [seeds, sentences], over the sentences of each occupation.

        Returns:
            The means, float64[seeds, occupations], and whether the stereotype of each occupation is
            feminine, bool[occupations].
        """
        _, first, index = np.unique(self.occupation, return_index=True, return_inverse=True)
        counts = np.bincount(index)
        sums = [np.bincount(index, row.astype(np.float64)) for row in values]
        return np.array(sums) / counts, self.feminine[first]


@dataclass(frozen=True)
class Units:
    """The values of one measure by unit of resampling: an item or, for WinoBias, an occupation.

    Attributes:
        values: float64[seeds, units].
        strata: the group of each unit; every group is resampled separately. None: one group.
    """

    measure: str
    values: np.ndarray
    strata: np.ndarray | None = None

    def interval(self, draws: int, change: bool = False, exact: bool = True) -> Estimate:
        """Return the mean of all values, with an interval over seeds or, for one seed, over units.

        Args:
            draws: the number of bootstrap resamples of the units.
            change: whether the values are differences between two models.
            exact: whether to use the exact binomial bound where a bootstrap interval would have no
                width, i.e. if the measure is a choice (see `is_choice`) and all values are equal.
        """
        if len(self.values) > 1:
            return mean_over(self.values.mean(1))
        exact = exact and is_choice(self.measure)
        return estimate(self.values, draws, 0, self.strata, change, exact)

    def minus(self, other: Units) -> Units:
        """Return the values of these units minus those of `other`, unit by unit."""
        return Units(self.measure, self.values - other.values, self.strata)


def units_of(measure: str, values: np.ndarray, sentences: Sentences) -> Iterator[Units]:
    """Yield the `Units` of a measure. For "winobias", also yield the `Units` of its two HALVES.

    Args:
        values: the value of every item, [seeds, items].
    """
    if not measure.startswith(BY_OCCUPATION):
        yield Units(measure, values.astype(np.float64))
        return
    means, feminine = sentences.by_occupation(values)
    yield Units(measure, means, feminine)
    if measure == BY_OCCUPATION:
        for half, stereotype in HALVES.items():
            if (feminine == stereotype).any():
                yield Units(half, means[:, feminine == stereotype])
