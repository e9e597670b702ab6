"""The mean value of several models on the same items, with an interval over models and items."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from pythia_book.stats import Estimate, mean_over, t_interval


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
