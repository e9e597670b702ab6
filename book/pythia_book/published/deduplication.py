"""Computes the accuracy of released deduplicated models minus that of their standard twins.

There is one pair of models per size, and each model was trained once. The released standard errors
are those of single models. Both models of a pair answer the same items, so the standard error of
their difference is at most as large as if the models were independent. The standard error for
independent models is used here, as an upper bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.tables import SEVEN, in_order
from pythia_book.stats import LEVEL, Estimate, mean_over

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published

FIRST, BEFORE = 13_000, 93_000
"""The first checkpoint that is used, and the last one in the paper's Table 9 (appendix G) before
the deduplicated text has been read once."""
EPOCH_STEP = 98_700
"""The update after which 207B tokens, the size of the deduplicated Pile, have been read."""
COLUMNS = ["model", "shots", "step", "value", "stderr"]


def twin_differences(published: Published) -> pd.DataFrame:
    """Compute the accuracy of each deduplicated model minus the accuracy of its standard twin.

    Twins have the same size. The accuracy is averaged over the tasks SEVEN, and the difference is
    in percentage points. There is one row for each checkpoint from step FIRST at which both models
    have scores on all tasks. The columns are model, shots, step, value and stderr (an upper bound).
    """
    import pandas as pd

    rows = published.benchmarks
    rows = rows[(rows.metric == "acc") & rows.task.isin(SEVEN) & (rows.step >= FIRST)]
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    keys = ["model", "shots", "step", "task"]
    deduplicated, standard = rows[rows.deduped], rows[~rows.deduped]
    both = deduplicated.merge(standard, on=keys, suffixes=("", "_standard"))
    both["difference"] = 100 * (both.value - both.value_standard)
    both["variance"] = 100**2 * (both.stderr**2 + both.stderr_standard**2)
    grouped = both.groupby(keys[:3])
    frame = grouped.agg(value=("difference", "mean"), variance=("variance", "sum"),
                        n=("difference", "size")).reset_index()  # fmt: skip
    frame = frame[frame.n == len(SEVEN)]
    frame["stderr"] = frame.variance**0.5 / len(SEVEN)
    return in_order(frame, ["shots", "step", "model"])[COLUMNS]


def mean_over_pairs(values: np.ndarray, stderr: np.ndarray) -> Estimate:
    """Estimate the mean difference between the models of a pair, with a random-effects interval.

    The variance per pair is the observed variance between pairs, but at least the mean square of
    the standard errors (the method of moments for independent pairs of equal weight). The interval
    is a t interval with len(values) - 1 degrees of freedom.

    Args:
        values: float[pairs], the difference of each pair.
        stderr: float[pairs], the standard error of each difference.
    """
    e = mean_over(values)
    if e.df < 1:
        return e
    variance = max(float(np.var(values, ddof=1)), float(np.mean(np.square(stderr))))
    half = e.quantile((1 + LEVEL) / 2) * (variance / len(values)) ** 0.5
    return replace(e, low=e.value - half, high=e.value + half)
