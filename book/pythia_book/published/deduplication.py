"""The released twins: accuracy of the deduplicated models minus that of the standard ones.

There is one pair of models per size, each trained once. The released standard errors are those of
single models. The two models of a pair answer the same items, which makes their difference more
certain than these errors say, so taking them as independent gives an upper bound.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.tables import MODELS, TASKS
from pythia_book.stats import LEVEL, Estimate, mean_over

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published

SEVEN = tuple(task for task in TASKS if task != "wsc")
"""The paper's eight tasks without WSC. In a third of all zero-shot rows and nearly all five-shot
rows, its score is exactly the share of the more frequent answer."""
FIRST, BEFORE, LAST = 13_000, 93_000, 143_000
"""First evenly spaced checkpoint; the paper's last one before the deduplicated text has been read
once (appendix G, Table 9); the end."""
EPOCH_STEP = 98_700
"""The update by which 207B tokens have been read, the size of the deduplicated Pile."""
COLUMNS = ["model", "shots", "step", "value", "stderr"]


def twin_differences(published: Published) -> pd.DataFrame:
    """Deduplicated minus standard accuracy, mean over `SEVEN` tasks, in points.

    Columns: model, shots, step, value, stderr (an upper bound). One row for each evenly spaced
    checkpoint at which both models have scores on all tasks.
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
    rank = {model: i for i, model in enumerate(MODELS)}
    order = {"key": lambda column: column.map(rank) if column.name == "model" else column}
    return frame.sort_values(["shots", "step", "model"], ignore_index=True, **order)[COLUMNS]


def mean_over_pairs(values: np.ndarray, stderr: np.ndarray) -> Estimate:
    """Mean of independent pairs with errors of their own: a random-effects estimate.

    The variance of a pair is the observed one between pairs, but at least the mean square of the
    standard errors (the method of moments for pairs of equal weight). t interval with one degree of
    freedom less than pairs.

    Args:
        values: differences, float[pairs].
        stderr: their standard errors, float[pairs].
    """
    e = mean_over(values)
    if e.df < 1:
        return e
    variance = max(float(np.var(values, ddof=1)), float(np.mean(np.square(stderr))))
    half = e.quantile((1 + LEVEL) / 2) * (variance / len(values)) ** 0.5
    return replace(e, low=e.value - half, high=e.value + half)
