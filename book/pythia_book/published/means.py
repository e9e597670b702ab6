"""Averages released scores over tasks and over pairs of models, with errors or intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.records import number_text
from pythia_book.stats import Estimate, mean_over, t_interval

if TYPE_CHECKING:
    import pandas as pd


def mean_over_tasks(
    frame: pd.DataFrame, keys: list[str], n: int | None = None, error: str = "stderr"
) -> pd.DataFrame:
    """Average the scores of each group over tasks, with standard errors for independent tasks.

    Args:
        frame: one row per group and task, with the columns `keys`, value, and `error` (a standard
            error). No two tasks may share items.
        keys: the columns that define a group.
        n: number of tasks per group; groups with a different number are left out. None: any number.
    """
    groups = frame.assign(variance=frame[error] ** 2).groupby(keys, sort=False, observed=True)
    mean = groups.agg(
        value=("value", "mean"), variance=("variance", "sum"), n=("variance", "count")
    ).reset_index()
    mean[error] = mean.variance**0.5 / mean.n
    mean = mean if n is None else mean[mean.n == n]
    return mean[[*keys, "value", error]].reset_index(drop=True)


def mean_over_pairs(values: np.ndarray, stderr: np.ndarray) -> Estimate:
    """Estimate the mean, over pairs of models, of the differences `values`, float[pairs].

    The random-effects interval is a t interval with len(values) - 1 degrees of freedom. Its
    variance is the variance between pairs, but at least the mean square of the standard errors
    `stderr`, float[pairs] (the method of moments). Pairs scored on the same items share an error
    that the variance between pairs cannot show. This minimum makes up for a part of that error.
    """
    e = mean_over(values)
    if e.df < 1:
        return e
    variance = max(float(np.var(values, ddof=1)), float(np.mean(np.square(stderr))))
    return t_interval(e.value, (variance / len(values)) ** 0.5, e.df, e.n_items, e.n_seeds)


def signed(value: float, decimals: int = 1) -> str:
    """Format a difference with a sign and thousands separators, e.g. "+0.5"."""
    text = number_text(float(value), decimals)
    return f"+{text}" if value > 0 and text.strip("0.,") else text
