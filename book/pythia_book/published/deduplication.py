"""Computes the accuracy of released deduplicated models minus that of their standard twins.

Each model was trained once, and standard errors were released for single models only. Because twins
answer the same items, the standard error of their difference is at most what it would be if they
were independent. This bound is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.means import mean_over_tasks
from pythia_book.published.tables import SEVEN, in_order

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published

FIRST, BEFORE = 13_000, 93_000
"""FIRST is the first checkpoint used. BEFORE is the last checkpoint in the paper's Table 9
(appendix G) at which the deduplicated text has not yet been read once.
"""
EPOCH_STEP = 98_700
"""The update after which 207B tokens, the size of the deduplicated Pile, have been read."""
COLUMNS = ["model", "shots", "step", "value", "stderr"]


def twin_differences(published: Published) -> pd.DataFrame:
    """Compute the accuracy of each deduplicated model minus that of its standard twin.

    The accuracy is averaged over the tasks SEVEN. A row is a model, a number of shots, and a step
    (FIRST or later) at which both twins have scores on all tasks. Columns: `model`, `shots`,
    `step`, and, in percentage points, `value` and `stderr` (an upper bound).
    """
    import pandas as pd

    rows = published.benchmarks
    rows = rows[(rows.metric == "acc") & rows.task.isin(SEVEN) & (rows.step >= FIRST)]
    if rows.empty:
        return pd.DataFrame(columns=COLUMNS)
    keys = ["model", "shots", "step"]
    deduplicated, standard = rows[rows.deduped], rows[~rows.deduped]
    both = deduplicated.merge(standard, on=[*keys, "task"], suffixes=("", "_standard"))
    both = both.assign(
        value=100 * (both.value - both.value_standard),
        stderr=100 * np.hypot(both.stderr, both.stderr_standard),
    )
    mean = mean_over_tasks(both, keys, len(SEVEN))
    return in_order(mean, ["shots", "step", "model"])[COLUMNS]
