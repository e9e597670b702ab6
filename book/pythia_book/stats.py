"""Estimates with 95 % intervals; pythia_book.verdicts turns an interval into a verdict.

The arms of a study, e.g. a model and its control, are scored on the same items, so `estimate`
resamples the *difference* between two arms on each item. Several seeds are resampled too,
independently of the items. With one seed, the interval does not cover the variation between
training runs. Bootstrap intervals are percentile intervals. The resampling is seeded, so the same
data give the same interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pythia_core.errors import ConfigError, DataError

LEVEL = 0.95
Z_95 = 1.959963984540054
"""Half the width of a 95 % interval of a normal distribution, in standard errors."""
FEWEST_ITEMS = 5
"""A bootstrap over fewer items gets no interval, because the interval would be too narrow."""


@dataclass(frozen=True)
class Estimate:
    """A value, usually a mean over items and seeds, with a 95 % interval from `low` to `high`."""

    value: float
    low: float
    high: float
    n_items: int
    n_seeds: int
    df: float = math.inf
    """Degrees of freedom of the interval; infinite for a bootstrap over many items."""
    exact_p: Callable[[float], float] | None = field(default=None, compare=False, repr=False)
    """Maps a hypothetical true value to its two-sided p-value; None: `p_value` uses Student's t."""

    def quantile(self, probability: float) -> float:
        """Return a quantile of Student's t or, if `df` is infinite, of the normal distribution."""
        from scipy.special import ndtri, stdtrit

        return float(ndtri(probability) if self.df == math.inf else stdtrit(self.df, probability))

    def p_value(self, null: float = 0.0) -> float:
        """Return the two-sided p-value of the hypothesis that the true value is `null`.

        Without `exact_p`, Student's t is used. The standard error is then derived from the distance
        between the value and the end of the interval that faces `null`. The p-value is below
        1 - LEVEL if, and only if, the interval excludes `null`.
        """
        from scipy.special import ndtr, stdtr

        if self.exact_p:
            return self.exact_p(null)
        half = self.value - self.low if null < self.value else self.high - self.value
        if null == self.value:
            return 1.0
        if half <= 0:  # the estimate lies outside its own interval, or on its end
            return 0.0
        ratio = abs(self.value - null) / half * self.quantile((1 + LEVEL) / 2)
        return float(2 * (ndtr(-ratio) if self.df == math.inf else stdtr(self.df, -ratio)))

    def interval(self) -> dict[str, float]:
        """Return the dict that a record stores for an estimate."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def times(self, factor: float) -> Estimate:
        """Return the estimate in another unit, multiplied by the positive `factor`."""
        scaled = self.mapped(lambda number: factor * number, lambda number: number / factor)
        return scaled if self.exact_p else replace(scaled, exact_p=None)  # it stays a t-interval

    def mapped(
        self, function: Callable[[float], float], inverse: Callable[[float], float]
    ) -> Estimate:
        """Apply an increasing `function`, e.g. the logarithm, to the value and its interval.

        Args:
            inverse: the inverse of `function`, because p-values are computed in the old unit.
        """
        numbers = {key: function(number) for key, number in self.interval().items()}
        return replace(self, **numbers, exact_p=lambda null: self.p_value(inverse(null)))


def quoted(e: Estimate | None) -> dict[str, float] | float | None:
    """Return an estimate as prose quotes it: with its interval, or the value alone.

    The mean of a single unit, or of units with the same value, has no interval to quote.
    """
    if e is None:
        return None
    return e.interval() if e.low < e.high else e.value


def estimate(
    values: np.ndarray,
    draws: int,
    seed: int = 0,
    strata: np.ndarray | None = None,
    change: bool = False,
    exact: bool = False,
) -> Estimate:
    """Return the mean of `values` with a bootstrap interval.

    For the effect of an intervention, pass the differences between two models, item by item.

    Args:
        values: float[seeds, items].
        draws: number of bootstrap resamples. With fewer than FEWEST_ITEMS items, the ends of the
            interval are NaN.
        strata: group of each item. Each group is resampled separately and keeps its size.
        change: whether `values` are differences, so that the mean may be negative.
        exact: whether every value is 0 or 1, or a difference of two such values. If all values are
            equal, the exact binomial bound then replaces a bootstrap interval without width.

    Raises:
        DataError: there are no items, the shape is wrong, or a value is not finite.
        ConfigError: there are fewer than 100 draws.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(
            "expected values of shape (seeds, items) with at least one seed and one item, got "
            f"the shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{(~np.isfinite(values)).sum()} of {values.size} measured values are not finite"
        )
    if draws < 100:
        raise ConfigError(f"bootstrap must be at least 100 draws, got {draws}")
    seeds, items = values.shape
    groups = None if strata is None else np.asarray(strata, np.uint8).tobytes()
    if items < FEWEST_ITEMS:
        return Estimate(float(values.mean()), math.nan, math.nan, items, seeds)
    means = _counts(items, draws, seed, groups) @ values.T / items  # (draws, seeds)
    if seeds > 1:
        picks = np.random.default_rng([seed, 1]).integers(seeds, size=(draws, seeds))
        means = np.take_along_axis(means, picks, axis=1)
    low, high = np.quantile(means.mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    middle = float(values.mean())
    if exact and values.min() == values.max():
        margin = 1 - ((1 - LEVEL) / 2) ** (1 / items)
        low = middle - margin if change or middle > 0 else middle
        high = middle + margin if change or middle < 1 else middle
    return Estimate(middle, float(low), float(high), items, seeds)


def mean_over(units: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean over independent units (seeds, models, clusters) with a t-interval.

    Args:
        units: float[units]. For a single unit, the interval is NaN to NaN.

    Raises:
        DataError: there is no unit, or a value is not finite.
    """
    values = np.asarray(units, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(f"expected a list of finite values, one per unit, got {units!r}")
    n, middle = len(values), float(values.mean())
    if n == 1:
        return Estimate(middle, math.nan, math.nan, 1, 1, 0)
    return t_interval(middle, float(values.std(ddof=1)) / n**0.5, n - 1, n, n)


def mean_over_known(units: Sequence[float] | np.ndarray) -> Estimate | None:
    """Return `mean_over` of the units whose value is finite; None if there are none."""
    values = np.asarray(units, np.float64)
    known = values[np.isfinite(values)]
    return mean_over(known) if len(known) else None


def t_interval(value: float, error: float, df: float, n_items: int, n_seeds: int) -> Estimate:
    """Return a value with a t-interval, from its standard error and the degrees of freedom."""
    e = Estimate(value, value, value, n_items, n_seeds, df)
    half = e.quantile((1 + LEVEL) / 2) * error
    return replace(e, low=value - half, high=value + half)


def jackknife(value: float, without: Sequence[float] | np.ndarray) -> Estimate:
    """Return a value with a t-interval, from values that omit each of two or more units in turn."""
    n = len(without)
    e = mean_over(n * value - (n - 1) * np.asarray(without, np.float64))
    return replace(e, value=value, low=value + e.low - e.value, high=value + e.high - e.value)


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return values, one per unit, whose mean is the ratio of two means over these units.

    `mean_over` of the values gives the interval of the ratio (the delta method). Values of two
    ratios over the same units can be subtracted. Means are divided, because one unit with
    a small denominator would dominate a mean of ratios.

    Args:
        numerator: float[units]. denominator: float[units], whose mean is well above 0.
    """
    above, below = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    ratio = above.mean() / below.mean()
    return ratio + (above - ratio * below) / below.mean()


def exact_share(k: int, n: int) -> Estimate:
    """Return the share k / n of independent successes, with the exact Clopper-Pearson interval."""
    from scipy.stats import binom, binomtest

    def p_value(share: float) -> float:
        if not 0 <= share <= 1:
            return 0.0
        return float(min(1, 2 * min(binom.cdf(k, n, share), binom.sf(k - 1, n, share))))

    low, high = binomtest(k, n).proportion_ci(LEVEL, method="exact")
    return Estimate(k / n, float(low), float(high), n, 1, exact_p=p_value)


def slope(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    errors: Sequence[float] | np.ndarray | None = None,
) -> Estimate | None:
    """Return the slope of the least-squares line through float[n] points, with a t-interval.

    With fewer than three points there is no interval, and the result is None.

    Args:
        errors: the standard errors of `y`, float[n]; points are weighted by the inverse of their
            squares. Errors need to be right only up to a common factor, as the scatter about the
            line is estimated. None: all points weigh the same.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if (n := len(a)) < 3:
        return None
    weights = np.ones(n) if errors is None else np.asarray(errors, np.float64) ** -2
    a, b = a - np.average(a, weights=weights), b - np.average(b, weights=weights)
    spread = float(weights @ a**2)
    value = float(weights @ (a * b)) / spread
    scatter = float(weights @ (b - value * a) ** 2) / (n - 2)
    return t_interval(value, (scatter / spread) ** 0.5, n - 2, n, n)


PERMUTATIONS = 20_000


def permutation_p(x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    """Return a one-sided p-value for a positive slope of `y` on `x`, by permuting `x`.

    If the values of `x` were assigned to the units at random, the test is exact whatever the
    distribution of `y`: under the null hypothesis, every assignment is as likely as the actual one.
    If there are more than PERMUTATIONS assignments, a random sample of this size is drawn. The
    result is NaN if a value is not finite.

    Args:
        x: float[n]. y: float[n].
    """
    from scipy.stats import permutation_test

    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    centered = np.asarray(y, np.float64) - np.mean(y)
    test = permutation_test(
        (np.asarray(x, np.float64),),
        lambda drawn, axis: (drawn * centered).sum(axis),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=PERMUTATIONS,
        vectorized=True,
        rng=seed,
    )
    return float(test.pvalue)


def wilson(k: int, n: int) -> Estimate:
    """Return the share k / n of independent successes, with the Wilson interval."""
    from scipy.stats import binomtest

    test = binomtest(k, n)
    low, high = test.proportion_ci(LEVEL, method="wilson")
    return Estimate(float(test.statistic), float(low), float(high), n, 1)


def negated(interval: dict[str, float]) -> dict[str, float]:
    """Return minus a value with its interval, in the form of `Estimate.interval`."""
    return {
        "value": -interval["value"],
        "low": -interval["high"],
        "high": -interval["low"],
    }


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Estimate a - b from two independent estimates, with Newcombe's square-and-add interval."""
    value = a.value - b.value
    low = value - ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    high = value + ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    return Estimate(value, low, high, a.n_items + b.n_items, min(a.n_seeds, b.n_seeds))


@functools.lru_cache(maxsize=16)
def _counts(items: int, draws: int, seed: int, strata: bytes | None) -> np.ndarray:
    """Return float64[draws, items]: how often each bootstrap draw contains each item.

    Args:
        strata: the bytes of uint8[items] with the group of each item; None: one group.
    """
    rng = np.random.default_rng(seed)
    groups = np.zeros(items, np.uint8) if strata is None else np.frombuffer(strata, np.uint8)
    counts = np.empty((draws, items))
    for group in np.unique(groups):
        (members,) = np.nonzero(groups == group)
        n = len(members)
        counts[:, members] = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    return counts
