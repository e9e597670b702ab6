"""Paired bootstrap intervals, and the rules that turn an interval into a verdict.

Two arms are scored on the same items, so what is resampled is the per-item *difference*: both arms
see the same resample by construction. With several seeds, seeds are resampled too, independently
of the items; with one seed an interval speaks about the items only, not about training again.
Percentile intervals at 95 %. The resampling is seeded: the same data give the same interval.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pythia_core.errors import ConfigError, DataError

LEVEL = 0.95
Verdict = str | Callable[[float, float], str]
"""A verdict, or the rule that gives it from the low and the high end of an interval."""
NOT_TESTABLE = "not testable here"
"""The verdict on a claim for which something is missing, or an interval too wide to tell."""
Z_95 = 1.96
"""Standard errors on either side of the mean, in a 95 % interval of a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean over items (and seeds) with its interval."""

    value: float
    low: float
    high: float
    n_items: int
    n_seeds: int

    def interval(self) -> dict[str, float]:
        """As a record stores it."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def times(self, factor: float) -> Estimate:
        """The same in another unit, e.g. 100 for percent."""
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
        strata: group of each item; groups whose sizes the benchmark fixes are resampled apart.
        change: whether `values` are differences.
        exact: for choices, 0 or 1: where all items agree (all right, none changed) a bootstrap
            interval has no width; the exact binomial bound is given instead.

    Raises:
        DataError: no items, the wrong shape, or a value that is not finite.
        ConfigError: fewer than 100 draws.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise DataError(
            f"values of shape {values.shape}: give (seeds, items), at least one of each"
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"{(~np.isfinite(values)).sum()} of {values.size} measured values are not finite"
        )
    if draws < 100:
        raise ConfigError(f"bootstrap={draws} draws are too few for an interval; use at least 100")
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


def wilson(k: int, n: int) -> Estimate:
    """The share k / n of independent trials and its Wilson interval."""
    from scipy.stats import binomtest

    test = binomtest(k, n)
    low, high = test.proportion_ci(LEVEL, method="wilson")
    return Estimate(float(test.statistic), float(low), float(high), n, 1)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of two independent estimates, its interval from theirs (Newcombe's square-and-add)."""
    value = a.value - b.value
    low = value - ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    high = value + ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    return Estimate(value, low, high, a.n_items + b.n_items, min(a.n_seeds, b.n_seeds))


@functools.lru_cache(maxsize=16)
def _counts(items: int, draws: int, seed: int, strata: bytes | None) -> np.ndarray:
    """float64[draws, items]: how often each item is drawn; the same draws for every measure."""
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
    """A claim as a record holds it, `e` times `factor`; without an estimate it is not testable.

    A rule for the verdict sees the ends of the interval as they are recorded.
    """
    row: dict[str, str | float | None] = {"claim": claim, "paper": paper, "published": published}
    if e is None:
        return row | {"ours": None, "low": None, "high": None, "verdict": NOT_TESTABLE}
    low, high = factor * e.low, factor * e.high
    verdict = verdict(low, high) if callable(verdict) else verdict
    return row | {"ours": factor * e.value, "low": low, "high": high, "verdict": verdict}


def directional_verdict(low: float, high: float, direction: int) -> str:
    """Verdict on "the difference has this sign" (+1 or -1).

    The interval excludes 0 on the claimed side: "reproduced"; on the other: "not reproduced";
    it includes 0: "no effect", meaning that none was seen, not that there is none.
    """
    if direction not in (-1, 1):
        raise ConfigError(f"direction must be +1 or -1, got {direction}")
    if low <= 0 <= high:
        return "no effect"
    return "reproduced" if (low > 0) == (direction > 0) else "not reproduced"


def premise_verdict(low: float, high: float, direction: int) -> str:
    """`directional_verdict` on something that the paper presupposes and did not measure."""
    return as_premise(directional_verdict(low, high, direction))


def as_premise(verdict: str) -> str:
    """A verdict in the words for what the paper presupposes and did not measure."""
    return {"reproduced": "holds", "not reproduced": "does not hold"}.get(verdict, verdict)


def close_verdict(low: float, high: float, expected: float, margin: float) -> str:
    """Verdict on "it is within `margin` of what was expected": the whole interval is, "reproduced";
    wholly outside, "not reproduced"; across the bound, "not testable here", too wide to tell.
    """
    if expected - margin < low and high < expected + margin:
        return "reproduced"
    outside = high < expected - margin or low > expected + margin
    return "not reproduced" if outside else NOT_TESTABLE


def small_cost_verdict(low: float, high: float, bound: float) -> str:
    """Verdict on "the cost is marginal", a cost being positive and marginal below `bound`.

    The whole interval lies below the bound: "reproduced"; above it: "not reproduced"; across it:
    "not testable here", too wide to tell.
    """
    if bound <= 0:
        raise ConfigError(f"bound must be positive, got {bound}")
    if high < bound:
        return "reproduced"
    return "not reproduced" if low > bound else NOT_TESTABLE
