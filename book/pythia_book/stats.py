"""Paired bootstrap intervals, and the rules that turn an interval into a verdict.

Two arms are scored on the same items, so the per-item *difference* is resampled: both arms see the
same resample by construction. With several seeds, seeds are resampled too, independently of the
items; with one seed, the interval covers the choice of items but no variation between trainings.
Intervals are 95 % percentile intervals. The resampling is seeded: the same data give the same
interval.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pythia_core.errors import ConfigError, DataError

LEVEL = 0.95
Verdict = str | Callable[[float, float], str]
"""A verdict, or a rule that derives it from the ends of an interval: rule(low, high)."""
NOT_TESTABLE = "not testable here"
"""Verdict on a claim without data, or with an interval too wide to decide it."""
Z_95 = 1.959963984540054
"""Half the width of a normal 95 % interval, in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """A mean over items (and seeds) with its interval."""

    value: float
    low: float
    high: float
    n_items: int
    n_seeds: int
    df: float = math.inf
    """Degrees of freedom of the interval; infinite for a bootstrap over many items."""

    def quantile(self, probability: float) -> float:
        """Quantile of Student's t with `df` degrees of freedom; normal if they are infinite."""
        from scipy.special import ndtri, stdtrit

        return float(ndtri(probability) if self.df == math.inf else stdtrit(self.df, probability))

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of a null value, by inverting the interval.

        The side of the interval that faces the null gives the standard error, so the p-value is
        below 1 - LEVEL exactly if the interval excludes the null.
        """
        from scipy.special import ndtr, stdtr

        half = self.value - self.low if null < self.value else self.high - self.value
        if null == self.value:
            return 1.0
        if half <= 0:  # the estimate lies outside its own interval, or on its end
            return 0.0
        ratio = abs(self.value - null) / half * self.quantile((1 + LEVEL) / 2)
        return float(2 * (ndtr(-ratio) if self.df == math.inf else stdtr(self.df, -ratio)))

    def interval(self) -> dict[str, float]:
        """The estimate as a record stores it."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def times(self, factor: float) -> Estimate:
        """The estimate in another unit, e.g. `factor` 100 for percent."""
        scaled = {key: factor * number for key, number in self.interval().items()}
        return replace(self, **scaled)


def estimate(
    values: np.ndarray,
    draws: int,
    seed: int = 0,
    strata: np.ndarray | None = None,
    change: bool = False,
    exact: bool = False,
) -> Estimate:
    """Mean of values float[seeds, items] and its bootstrap interval; pass differences for effects.

    Args:
        strata: group of each item; each group is resampled separately (its size is fixed).
        change: whether `values` are differences.
        exact: for values 0 or 1: if all items agree (all right, none changed), a bootstrap
            interval has no width, and the exact binomial bound replaces it.

    Raises:
        DataError: no items, the wrong shape, or a value that is not finite.
        ConfigError: fewer than 100 draws.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"expected values of shape (seeds, items), at least one of each, got {values.shape}"
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{(~np.isfinite(values)).sum()} of {values.size} measured values are not finite"
        )
    if draws < 100:
        raise ConfigError(f"bootstrap={draws}: an interval needs at least 100 draws")
    seeds, items = values.shape
    groups = None if strata is None else np.asarray(strata, np.uint8).tobytes()
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
    """Mean over independent units (seeds, models, clusters) and its t-interval.

    A single unit has no interval: its ends are NaN.

    Raises:
        DataError: no unit, or a value that is not finite.
    """
    values = np.asarray(units, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(f"expected a list of finite values, one per unit, got {units!r}")
    n, middle = len(values), float(values.mean())
    if n == 1:
        return Estimate(middle, math.nan, math.nan, 1, 1, 0)
    e = Estimate(middle, middle, middle, n, n, n - 1)
    half = e.quantile((1 + LEVEL) / 2) * float(values.std(ddof=1)) / n**0.5
    return replace(e, low=middle - half, high=middle + half)


def exact_share(k: int, n: int) -> Estimate:
    """The share k / n of independent trials and its exact (Clopper-Pearson) interval."""
    from scipy.stats import binomtest

    low, high = binomtest(k, n).proportion_ci(LEVEL, method="exact")
    return Estimate(k / n, float(low), float(high), n, 1)


def wilson(k: int, n: int) -> Estimate:
    """The share k / n of independent trials and its Wilson interval."""
    from scipy.stats import binomtest

    test = binomtest(k, n)
    low, high = test.proportion_ci(LEVEL, method="wilson")
    return Estimate(float(test.statistic), float(low), float(high), n, 1)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of two independent estimates, with Newcombe's square-and-add interval."""
    value = a.value - b.value
    low = value - ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    high = value + ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    return Estimate(value, low, high, a.n_items + b.n_items, min(a.n_seeds, b.n_seeds))


@functools.lru_cache(maxsize=16)
def _counts(items: int, draws: int, seed: int, strata: bytes | None) -> np.ndarray:
    """float64[draws, items]: how often each item is drawn; the same for every measure."""
    rng = np.random.default_rng(seed)
    groups = np.zeros(items, np.uint8) if strata is None else np.frombuffer(strata, np.uint8)
    counts = np.empty((draws, items))
    for group in np.unique(groups):
        (members,) = np.nonzero(groups == group)
        n = len(members)
        counts[:, members] = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    return counts


def claim_row(
    claim: str,
    paper: str,
    e: Estimate | None,
    verdict: Verdict,
    published: str | None = None,
    factor: float = 1,
) -> dict[str, str | float | None]:
    """A claim as a record stores it, with the estimate `e` multiplied by `factor`.

    Without an estimate it is not testable. A rule for the verdict gets the multiplied ends.
    """
    row: dict[str, str | float | None] = {"claim": claim, "paper": paper, "published": published}
    if e is None:
        return row | {"ours": None, "low": None, "high": None, "verdict": NOT_TESTABLE}
    low, high = factor * e.low, factor * e.high
    verdict = verdict(low, high) if callable(verdict) else verdict
    return row | {"ours": factor * e.value, "low": low, "high": high, "verdict": verdict}


def directional_verdict(low: float, high: float, direction: int) -> str:
    """Verdict on "the difference has this sign" (+1 or -1).

    "reproduced" if the interval excludes 0 on the claimed side, "not reproduced" on the other, "no
    effect" if it includes 0: no effect was seen, which does not prove that there is none.
    """
    if direction not in (-1, 1):
        raise ConfigError(f"direction must be +1 or -1, got {direction}")
    if low <= 0 <= high:
        return "no effect"
    return "reproduced" if (low > 0) == (direction > 0) else "not reproduced"


def premise_verdict(low: float, high: float, direction: int) -> str:
    """`directional_verdict`, in the words for a premise that the paper did not measure."""
    return as_premise(directional_verdict(low, high, direction))


def as_premise(verdict: str) -> str:
    """Put a verdict in the words for a premise that the paper did not measure."""
    return {"reproduced": "holds", "not reproduced": "does not hold"}.get(verdict, verdict)


def equivalence_verdict(low: float, high: float, expected: float, margin: float) -> str:
    """Verdict on "the value is within `margin` of `expected`".

    "reproduced" if the whole interval is within, "not reproduced" if all of it is outside,
    NOT_TESTABLE if it crosses a bound.
    """
    if expected - margin < low and high < expected + margin:
        return "reproduced"
    outside = high < expected - margin or low > expected + margin
    return "not reproduced" if outside else NOT_TESTABLE


def noninferiority_verdict(low: float, high: float, bound: float) -> str:
    """Verdict on "the cost is marginal", which means below `bound`; a cost is positive.

    "reproduced" if the whole interval is below the bound, "not reproduced" if it is above,
    NOT_TESTABLE if it crosses the bound.
    """
    if bound <= 0:
        raise ConfigError(f"bound must be positive, got {bound}")
    if high < bound:
        return "reproduced"
    return "not reproduced" if low > bound else NOT_TESTABLE
