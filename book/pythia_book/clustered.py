"""Estimates with intervals for items that are not independent: clustered, or shared by models.

Rows of the same text are a *unit*. If a share is over thousands of units, its interval comes from
resampling them (`ratio`). If a few units decide a result, it has a t-interval (`over_units`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pythia_book.stats import Estimate, exact_share, mean_over, t_interval


def resampled(columns: np.ndarray, text: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of `columns` [n, k] over all rows, [k], and over each resample, [draws, k].

    Whole texts are resampled; `text` has the number of each row's text. Texts with equal sums are
    drawn together, which saves time without changing the distribution.
    """
    _, text = np.unique(text, return_inverse=True)
    n_texts = int(text.max()) + 1 if len(text) else 0
    sums = np.stack([np.bincount(text, c, minlength=n_texts) for c in columns.T], 1)
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    rng = np.random.default_rng(0)
    times = rng.multinomial(n_texts, counts / n_texts, size=draws)
    return columns.sum(0), times @ kinds


def over_units(
    columns: np.ndarray, unit: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
) -> Estimate:
    """Estimate a function of sums over rows, with a t-interval for independent units of rows.

    The standard error is the jackknife's. The degrees of freedom are Satterthwaite's: the number of
    units minus one, or less if a few units determine the result. For a single unit the interval is
    NaN to NaN, and `df` is 0.

    Args:
        columns: float[n, k], the summands.
        unit: int[n], a number that rows of the same unit share.
        statistic: maps sums of the columns, float[..., k], to float[...].
    """
    _, index = np.unique(unit, return_inverse=True)
    n = int(index.max(initial=-1)) + 1
    sums = np.stack([np.bincount(index, column, minlength=n) for column in columns.T], 1)
    value = float(statistic(sums.sum(0)))
    if n < 2:
        return Estimate(value, math.nan, math.nan, len(columns), 1, 0)
    squares = (statistic(sums.sum(0) - sums) - value) ** 2
    df = float(n - 1)
    if squares.any():
        df = min(df, float(2 * squares.sum() ** 2 / (squares**2).sum()))
    return t_interval(value, float((n - 1) / n * squares.sum()) ** 0.5, df, len(columns), 1)


def share_over_units(part: np.ndarray, whole: np.ndarray, unit: np.ndarray) -> Estimate:
    """Estimate the share of the rows in `whole` that are in `part`; NaN if `whole` is empty.

    `part` and `whole` are bool[n]. The interval is that of `over_units` for the logit of the share.
    For a share of 0 or 1, the interval is the exact binomial interval with units as trials.
    """
    n, k = int(whole.sum()), int((part & whole).sum())
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0, 1)
    if k in (0, n):
        units = len(np.unique(unit[whole]))
        return replace(exact_share(units if k else 0, units), n_items=n)
    columns = np.stack([part, whole], 1)[whole].astype(float)
    e = over_units(columns, unit[whole], lambda sums: sums[..., 0] / sums[..., 1])
    middle, half = _logit(e.value), (e.high - e.value) / e.value / (1 - e.value)
    return replace(e, value=middle, low=middle - half, high=middle + half).mapped(_share, _logit)


def _logit(share: float) -> float:
    return math.log(share / (1 - share)) if 0 < share < 1 else math.copysign(math.inf, share - 0.5)


def _share(logit: float) -> float:
    return 0.0 if logit < -700 else 1 / (1 + math.exp(-logit))


def ratio(part: np.ndarray, whole: np.ndarray, text: np.ndarray, draws: int) -> Estimate:
    """Estimate the share of the rows in `whole` that are in `part`; NaN if `whole` is empty.

    `part` and `whole` are bool[n]. The interval comes from resampling units. All rows with the
    same number in `text` are one unit. For a share of 0 or 1, the interval is the exact binomial
    interval with units as trials.
    """
    n, k = int(whole.sum()), int((part & whole).sum())
    if k in (0, n):
        return share_over_units(part, whole, text)
    _, drawn = resampled(np.stack([part, whole], 1)[whole].astype(int), text[whole], draws)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Estimate(k / n, float(low), float(high), n, 1)


def crossed_mean(values: np.ndarray) -> Estimate:
    """Return the mean of `values` (float[models, items]) with an interval over models and items.

    All models answer the same items, so more models do not average an item's effect away. The
    variance of the mean is a part from models plus a part from items, both computed from mean
    squares. A negative part from items counts as 0. The t interval has Satterthwaite's degrees of
    freedom. With a single model or item, low and high are NaN.
    """
    values = np.asarray(values, np.float64)
    models, items = values.shape
    e = replace(mean_over(values.mean(1)), n_items=items)
    if models < 2 or items < 2:
        return replace(e, low=math.nan, high=math.nan, df=0)
    by_model, by_item = values.mean(1), values.mean(0)
    rest = values - by_model[:, None] - by_item + values.mean()
    df_models, df_items = models - 1, items - 1
    df_rest = df_models * df_items
    from_models = items * by_model.var(ddof=1) / values.size
    from_items = models * by_item.var(ddof=1) / values.size
    from_both = (rest**2).sum() / df_rest / values.size
    if from_items <= from_both:
        from_items = from_both = 0.0
    variance = from_models + from_items - from_both
    if not variance:
        return replace(e, low=e.value, high=e.value)
    parts = ((from_models, df_models), (from_items, df_items), (from_both, df_rest))
    df = variance**2 / sum(part**2 / n for part, n in parts)
    error = float(variance) ** 0.5
    return t_interval(e.value, error, max(1.0, float(df)), e.n_items, e.n_seeds)
