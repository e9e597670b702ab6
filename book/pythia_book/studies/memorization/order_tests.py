"""Exact tests of whether a row's position in training affects memorization.

An event is a memorized row. Null hypothesis: the events are a uniformly random subset of the
eligible rows. P-values come from drawing such subsets, so tests have exactly their nominal level.

    trend        mean position of the events; effect in % change of the rate per 10 % of training
    dispersion   variance of the counts per window / binomial variance, for several window sizes
    positions    Kolmogorov-Smirnov distance between positions and a uniform distribution
    gaps         Kolmogorov-Smirnov distance between gaps and a geometric distribution

Arguments: `ranks`, int[draws, events], has one row per draw: the indices of its events among the
eligible rows, in ascending order. `window` is in rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pythia_book.stats import LEVEL, Z_95, Estimate
from pythia_core.errors import ConfigError, DataError

MIN_EVENTS = 20
"""A test needs at least this many rows with an event, and this many without."""
MIN_WINDOWS = 20
"""A window size is tested for dispersion only if it gives at least this many windows."""
_CHUNK = 1 << 21  # array elements at a time, to bound memory


@dataclass(frozen=True)
class Design:
    """The eligible rows, and how many of them have an event (are memorized)."""

    eligible: np.ndarray
    """bool[rows in training order]."""
    events: int
    windows: tuple[int, ...]
    """Window sizes in rows; those that give fewer than MIN_WINDOWS windows are skipped."""

    def __post_init__(self) -> None:
        if not 0 <= self.events <= self.n:
            raise DataError(
                f"the number of events must be 0 to {self.n} (eligible rows), got {self.events}"
            )
        if any(w < 1 for w in self.windows):
            raise ConfigError(f"windows must have at least 1 row each, got sizes {self.windows}")

    @property
    def n(self) -> int:
        """The number of eligible rows."""
        return int(self.eligible.sum())

    @property
    def testable(self) -> bool:
        """Whether there are enough rows with and without an event."""
        return min(self.events, self.n - self.events) >= MIN_EVENTS

    @cached_property
    def testable_windows(self) -> tuple[int, ...]:
        """The sizes in `windows` that give at least MIN_WINDOWS windows."""
        return tuple(w for w in self.windows if len(self.eligible) // w >= MIN_WINDOWS)

    @property
    def test_columns(self) -> tuple[tuple[str, int], ...]:
        """The (test, window size) of each column of `statistics`; size 0 means no windows."""
        dispersion = tuple(("dispersion", w) for w in self.testable_windows)
        return (("trend", 0), *dispersion, ("positions", 0), ("gaps", 0))

    @cached_property
    def position(self) -> np.ndarray:
        """Position of each eligible row in training, from 0 to 1, float64[n]."""
        return (np.nonzero(self.eligible)[0] + 0.5) / len(self.eligible)

    def window_of(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Divide training into windows of `window` rows.

        Return the window index of each eligible row, int[n], and the eligible rows per whole
        window, int[windows]. Rows after the last whole window get one further index, and are not
        counted.
        """
        whole = len(self.eligible) // window
        index = np.minimum(np.nonzero(self.eligible)[0] // window, whole)
        return index, np.bincount(index, minlength=whole + 1)[:whole]


def random_subsets(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the ranks of events as if order did not matter, int64[draws, events]."""
    return ranks_of_smallest(design, draws, lambda k: rng.random((k, design.n)))


def ranks_of_smallest(design: Design, draws: int, keys: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return the ranks of the rows with the smallest keys, int64[draws, events].

    `keys(k)` draws random keys, float[k, n].
    """
    ranks = np.empty((draws, design.events), np.int64)
    step = max(1, _CHUNK // max(1, design.n))
    for start in range(0, draws, step):
        k = min(step, draws - start)
        chosen = np.argpartition(keys(k), design.events - 1, axis=1)[:, : design.events]
        ranks[start : start + k] = np.sort(chosen, axis=1)
    return ranks


def counts_per_window(design: Design, ranks: np.ndarray, window: int) -> np.ndarray:
    """Count the events in each whole window of training, int64[draws, windows]."""
    index, sizes = design.window_of(window)
    n_indices = len(sizes) + 1
    flat = index[ranks] + n_indices * np.arange(len(ranks))[:, None]
    return np.bincount(flat.ravel(), minlength=n_indices * len(ranks)).reshape(-1, n_indices)[
        :, :-1
    ]


def statistics(design: Design, ranks: np.ndarray) -> np.ndarray:
    """Compute the statistics of all tests, float64[draws, tests]; `test_columns` names them."""
    columns = [trend_slope(design, ranks)]
    columns += [dispersion(design, ranks, window) for window in design.testable_windows]
    columns += [_positions(design, ranks), _gaps(design, ranks)]
    return np.stack(columns, 1)


def trend_slope(design: Design, ranks: np.ndarray) -> np.ndarray:
    """Estimate how the rate of events changes over training, float64[draws].

    The result is the slope b of a rate proportional to 1 + b * (position - mean position), with
    positions from 0 to 1. The estimate is Laplace's score divided by its information at b = 0.
    """
    centered = design.position - design.position.mean()
    return centered[ranks].mean(1) / (centered**2).mean()


def dispersion(design: Design, ranks: np.ndarray, window: int) -> np.ndarray:
    """Measure how unevenly events are spread over windows, float64[draws].

    The result is Pearson's chi-square of the counts per window, divided by its degrees of freedom.
    The mean of the result is 1 for binomial counts. Clusters of events make the result larger.
    """
    _, sizes = design.window_of(window)
    used = sizes > 0
    p = design.events / design.n
    spread = (counts_per_window(design, ranks, window)[:, used] - p * sizes[used]) ** 2
    return (spread / (p * (1 - p) * sizes[used])).sum(1) / (used.sum() - 1)


def _positions(design: Design, ranks: np.ndarray) -> np.ndarray:
    """Return the Kolmogorov-Smirnov distance of `ranks` from uniform ranks, float64[draws]."""
    m, n = ranks.shape[1], design.n
    i = np.arange(m)
    above = np.abs((i + 1) / m - (ranks + 1) / n)
    below = np.abs(i / m - ranks / n)
    return np.maximum(above, below).max(1)


def _gaps(design: Design, ranks: np.ndarray) -> np.ndarray:
    """Return the Kolmogorov-Smirnov distance of gaps from geometric gaps, float64[draws]."""
    m = ranks.shape[1]
    gaps = np.sort(np.diff(ranks, prepend=-1, axis=1), axis=1)
    miss = 1 - design.events / design.n
    i = np.arange(m)
    change = np.diff(gaps, axis=1) > 0
    edge = np.ones((len(gaps), 1), bool)
    last, first = np.hstack([change, edge]), np.hstack([edge, change])  # among equal gaps
    above = np.where(last, np.abs((i + 1) / m - (1 - miss**gaps)), 0)
    below = np.where(first, np.abs(i / m - (1 - miss ** (gaps - 1))), 0)
    return np.maximum(above, below).max(1)


# --- the null --------------------------------------------------------------------------------


@dataclass(frozen=True)
class NullDistribution:
    """The simulated distribution of all test statistics if order does not matter."""

    design: Design
    table: np.ndarray
    """float64[draws, tests]: the statistics of each simulated run."""

    @classmethod
    def simulate(cls, design: Design, draws: int) -> NullDistribution:
        """Compute the statistics of `draws` random subsets of the eligible rows.

        Raises:
            DataError: there are too few events, or too few rows without an event.
            ConfigError: `draws` is less than 99.
        """
        if not design.testable:
            raise DataError(
                f"cannot test {design.events} events in {design.n} rows: at least {MIN_EVENTS} "
                "rows with an event and as many without an event are needed"
            )
        if draws < 99:
            raise ConfigError(f"at least 99 simulations are needed for a p-value, got {draws}")
        rng = np.random.default_rng(0)
        step = max(1, _CHUNK // design.events)
        parts = [
            statistics(design, random_subsets(design, min(step, draws - start), rng))
            for start in range(0, draws, step)
        ]
        return cls(design, np.concatenate(parts))

    def p_values(self, observed: np.ndarray) -> np.ndarray:
        """Return the p-values of `observed`, the `statistics` of k runs, float64[k, tests].

        Trend and dispersion are two-sided; positions and gaps are distances and one-sided. The
        observation counts as one of the draws, so no p-value is 0 and the level is exact.
        """
        draws = len(self.table)
        result = np.empty(observed.shape)
        for t, (name, _) in enumerate(self.design.test_columns):
            null, column = np.sort(self.table[:, t]), observed[:, t]
            slack = 1e-9 * max(
                1.0, float(np.abs(null).max())
            )  # equal up to rounding counts as equal
            upper = draws - np.searchsorted(null, column - slack, "left")
            lower = np.searchsorted(null, column + slack, "right")
            upper, lower = (1 + upper) / (draws + 1), (1 + lower) / (draws + 1)
            both = np.minimum(1, 2 * np.minimum(upper, lower))
            result[:, t] = both if name in ("trend", "dispersion") else upper
        return result

    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bounds of the central 95 % of each statistic: low and high, float64[tests]."""
        low, high = np.quantile(self.table, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return low, high


# --- effects ---------------------------------------------------------------------------------


def trend_effect(design: Design, ranks: np.ndarray) -> Estimate:
    """Estimate how the rate of events changes per 10 % of training, in % of the mean rate.

    `ranks` is int[events] or int[1, events]. Clustered events carry less information, so a
    dispersion above 1 in the smallest windows multiplies the variance (quasi-likelihood).
    """
    ranks = ranks[None] if ranks.ndim == 1 else ranks
    slope = float(trend_slope(design, ranks)[0])
    centered = design.position - design.position.mean()
    variance = (centered**2).mean()
    # the variance of the events' positions, with the finite-population correction
    spread = (centered[ranks[0]] - centered[ranks[0]].mean()).var(ddof=1)
    finite = (design.n - design.events) / (design.n - 1)
    inflation = 1.0
    if design.testable_windows:
        inflation = max(1.0, float(dispersion(design, ranks, min(design.testable_windows))[0]))
    half = Z_95 * (spread * finite * inflation / design.events) ** 0.5 / variance
    return Estimate(10 * slope, 10 * (slope - half), 10 * (slope + half), design.n, 1)


# --- the paper's plot ------------------------------------------------------------------------


def poisson_qq(design: Design, ranks: np.ndarray, window: int, draws: int) -> dict[str, np.ndarray]:
    """Compute the Q-Q plot of counts per window against a Poisson distribution of the same mean.

    `ranks` is int[events]. The arrays have one entry per window:

    - `theoretical`: Poisson quantiles.
    - `observed`: sorted counts.
    - `low`, `high`: a band that holds all counts of 95 % of the random subsets.
    """
    from scipy.stats import poisson

    observed = np.sort(counts_per_window(design, ranks[None], window)[0])
    rng = np.random.default_rng([0, 2])
    null = np.sort(counts_per_window(design, random_subsets(design, draws, rng), window), axis=1)
    in_order = np.sort(null, axis=0)
    levels = (np.arange(len(observed)) + 0.5) / len(observed)
    theoretical = poisson.ppf(levels, observed.mean())
    cut = 0  # the band excludes this many draws on either side of every point
    for trial in range(1, draws // 2):
        inside = (null >= in_order[trial]) & (null <= in_order[-1 - trial])
        if inside.all(1).mean() < LEVEL:
            break
        cut = trial
    low, high = in_order[cut], in_order[-1 - cut]
    return {"theoretical": theoretical, "observed": observed, "low": low, "high": high}
