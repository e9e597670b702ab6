"""Computes how much values vary over training seeds: spreads, their ratios, and intervals.

Values over seeds are assumed to be normally distributed. Standard deviations have chi-square
intervals, and ratios of standard deviations F intervals. The interval for the distance between one
run and the mean of the others uses the noncentral t distribution.

All intervals are 95 % intervals. With few seeds they are wide: with three runs, the upper end for a
standard deviation is twelve times the lower end.
"""

from __future__ import annotations

import math

import numpy as np

from pythia_book.stats import LEVEL, Estimate, jackknife
from pythia_core.errors import DataError, count_of

LOW, HIGH = (1 - LEVEL) / 2, (1 + LEVEL) / 2
_QUANTILES = 1000


def _checked(values: np.ndarray, ndim: int, name: str) -> np.ndarray:
    """Check `values`, and return them minus the first value, as float64.

    Raises:
        DataError: there are not `ndim` axes of length 2 or more, or a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != ndim or min(values.shape, default=0) < 2:
        raise DataError(
            f"{name}: expected an array with {count_of(ndim, 'dimension')}, each of length 2 or "
            f"more, got the shape {values.shape}"
        )
    if not np.isfinite(values).all():
        n_bad = (~np.isfinite(values)).sum()
        raise DataError(f"{name}: {n_bad} of {values.size} values are not finite")
    # A common shift changes no spread, and without it equal values differ by exactly 0.
    return values - values.flat[0]


def spread(*groups: np.ndarray) -> Estimate:
    """Return the standard deviation of a group, float[seeds], with its chi-square interval.

    Of several groups, it is pooled: sqrt(mean variance), weighted by degrees of freedom.
    """
    checked = [_checked(values, 1, "values over seeds") for values in groups]
    df = sum(len(values) - 1 for values in checked)
    squares = sum(float(values.var(ddof=1)) * (len(values) - 1) for values in checked)
    return _root(squares / df, df, df + 1)


def _root(mean_square: float, df: int, n: int, divisor: int = 1) -> Estimate:
    """Return the square root of `mean_square / divisor`, with its chi-square interval.

    The mean square has `df` degrees of freedom, and `n` is the number of runs.
    """
    from scipy.stats import chi2

    ends = (mean_square, *(mean_square * df / chi2.ppf([HIGH, LOW], df)))
    return Estimate(*(float(math.sqrt(end / divisor)) for end in ends), 1, n, df)


def _mean_squares(grid: np.ndarray) -> tuple[float, float, float]:
    """Return the mean squares of a two-way layout: of rows, of columns, and of residuals."""
    rows, columns = grid.shape
    by_row, by_column = grid.mean(1), grid.mean(0)
    rest = grid - by_row[:, None] - by_column + grid.mean()
    # A mean square that should be 0 is rounding error, about the square of the last digit.
    noise = (4 * np.finfo(float).eps * np.abs(grid).max()) ** 2
    squares = [
        columns * by_row.var(ddof=1),
        rows * by_column.var(ddof=1),
        (rest**2).sum() / ((rows - 1) * (columns - 1)),
    ]
    return tuple(0.0 if square <= noise * grid.size else float(square) for square in squares)


def spread_ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """Return the standard deviation of `above` divided by that of `below`, with its F interval.

    The two are float[seeds] of independent runs. One run in common, such as the center of two lines
    of seeds, correlates the two variances so little that the interval keeps its coverage.

    Raises:
        DataError: fewer than two values, a value is not finite, or `below` does not vary.
    """
    one, other = _checked(above, 1, "values over seeds"), _checked(below, 1, "values over seeds")
    if not other.any():
        raise DataError(f"all {len(other)} values are equal, so nothing can be divided by their sd")
    n = len(one) + len(other)
    return _ratio(one.var(ddof=1) / other.var(ddof=1), len(one) - 1, len(other) - 1, n)


def added_ratio(both: np.ndarray, order: np.ndarray, weights: np.ndarray) -> Estimate:
    """Return the sd of runs in which both seeds vary, divided by what adding up would give.

    If order and weights contributed independently of each other, the variance with both seeds
    varied would be the sum of the variances with one varied, and the ratio 1. The ratio is
    the square root of 1/2 if changing either seed alone has the full effect of changing both. The
    F interval has Satterthwaite's degrees of freedom for the sum. Arguments: float[seeds] each.
    """
    groups = [_checked(each, 1, "values over seeds") for each in (both, order, weights)]
    top, *parts = (float(each.var(ddof=1)) for each in groups)
    df, *dfs = (len(each) - 1 for each in groups)
    below = sum(part**2 / each for part, each in zip(parts, dfs, strict=True))
    return _ratio(top / sum(parts), df, sum(parts) ** 2 / below, sum(map(len, groups)))


def largest_difference(sd: float, df: int) -> float:
    """Return the most by which two new runs with different seeds differ, in 95 % of cases.

    The difference of two runs, divided by sqrt(2) and a standard deviation `sd` with `df`
    degrees of freedom, has Student's t distribution.
    """
    from scipy.stats import t

    return float(t.ppf(HIGH, df) * math.sqrt(2) * sd)


def excess_over_item_noise(values: np.ndarray) -> Estimate | None:
    """Return the spread of mean scores over runs divided by the spread due to sampling of items.

    Both spreads are standard deviations, and `values` are float[seeds, items]. The ratio is 1 if
    another seed only changes single items at random. The F interval assumes independent items.
    Items that are harder for all seeds have no influence. Return None if the spread from sampling
    is 0.
    """
    values = _checked(values, 2, "values of seeds and items")
    by_seed, _, rest = _mean_squares(values)
    seeds, items = values.shape
    return _ratio(by_seed / rest, seeds - 1, (seeds - 1) * (items - 1), seeds) if rest else None


def _ratio(ratio: float, df: int, df_below: float, n: int) -> Estimate:
    """Return the square root of a ratio of two mean squares, with its F interval.

    The mean squares have `df` and `df_below` degrees of freedom, and `n` is the number of runs.
    """
    from scipy.stats import f

    def p_value(root: float) -> float:
        if root <= 0:
            return 0.0
        tails = f.cdf(ratio / root**2, df, df_below), f.sf(ratio / root**2, df, df_below)
        return float(2 * min(tails))

    ends = (ratio, *(ratio / f.ppf([HIGH, LOW], df, df_below)))
    return Estimate(*(float(math.sqrt(end)) for end in ends), 1, n, df, p_value)


def items_error(values: np.ndarray) -> Estimate:
    """Return the standard deviation of a run's mean that is due to the choice of items alone.

    What all runs have in common, e.g. that an item is hard, does not count. `values` are
    float[runs, items].
    """
    values = _checked(values, 2, "values of runs and items")
    runs, items = values.shape
    return _root(_mean_squares(values)[2], (runs - 1) * (items - 1), runs, items)


def distance_in_sds(values: np.ndarray, other: float, sd: float, df: int) -> Estimate | None:
    """Return the mean of values minus `other`, in standard deviations over seeds.

    `sd` is the standard deviation, with `df` degrees of freedom. The interval is exact, by the
    noncentral t. Return None if `sd` is 0. The value `other` of another run is assumed to vary over
    seeds as much as `values`.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm

    shifted = _checked(values, 1, "values over seeds")
    n = len(shifted)
    if not sd:
        return None
    distance = float(values[0] + shifted.mean() - other) / sd
    unit = math.sqrt(1 + 1 / n)
    t = distance / unit
    # P(T < t) as a mean over quantiles of chi: scipy's nct gives NaN for some arguments needed.
    chi = np.sqrt(chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, df) / df)
    bound = 9 + 5 * abs(t)

    def below(shift: float) -> float:
        """Return P(T < t) for a true distance of `shift * unit` standard deviations."""
        return float(norm.cdf(t * chi - shift).mean())

    def p_value(true: float) -> float:
        tail = below(true / unit)
        return 2 * min(tail, 1 - tail)

    low, high = (brentq(lambda shift, q=q: below(shift) - q, -bound, bound) for q in (HIGH, LOW))
    return Estimate(distance, low * unit, high * unit, 1, n, df, p_value)


def agreement(states: np.ndarray) -> Estimate:
    """Return the fraction of checkpoints at which two runs are in the same state.

    The fraction is a mean over all pairs of runs. The t-interval over runs comes from jackknife
    pseudo-values, and has no width if all runs agree. `states` is an array [runs, checkpoints].

    Raises:
        DataError: there are fewer than 3 runs, or the shape is wrong.
    """
    states = np.asarray(states)
    if states.ndim != 2 or len(states) < 3:
        raise DataError(
            "states must be an array [runs, checkpoints] with at least 3 runs, got the shape "
            f"{states.shape}"
        )
    same = (states[:, None] == states[None]).mean(2)
    n = len(same)
    others = (same.sum() - np.trace(same)) - 2 * (same.sum(1) - np.diag(same))
    whole = (same.sum() - np.trace(same)) / (n * (n - 1))
    without = others / ((n - 1) * (n - 2))
    return jackknife(whole, without)
