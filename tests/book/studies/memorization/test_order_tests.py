"""The tests of order have the stated level on true nulls and detect the alternatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pythia_book.studies.memorization import order_tests
from pythia_book.studies.memorization.order_tests import (
    Design,
    NullDistribution,
    random_subsets,
    ranks_of_smallest,
    statistics,
)

from pythia_core.errors import ConfigError, DataError

N, WINDOWS, RUNS = 6000, (32, 128), 600


# --- alternatives

Draw = Callable[[Design, int, np.random.Generator], np.ndarray]
"""A function (design, draws, rng) that draws the `ranks` of events, int64[draws, events]."""
BATCH = 0
"""Index in `Design.windows` of the window that is one batch."""


def weighted(weights: Callable[[Design, int, np.random.Generator], np.ndarray]) -> Draw:
    """Return a Draw in which some rows are more likely than others to be events.

    `weights` returns the relative rate of each row, float[draws, n], or float[1, n] if the rates
    are the same in all draws.
    """

    def draw(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        def times(k: int) -> np.ndarray:  # exponential with the weights as rates
            return rng.exponential(size=(k, design.n)) / weights(design, k, rng)

        return ranks_of_smallest(design, draws, times)

    return draw


def linear_trend(total: float) -> Draw:
    """Return a Draw in which the rate rises linearly over training by `total` times its mean."""

    def weights(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return the relative rate of each eligible row, float[1, n]."""
        return (1 + total * (design.position - 0.5))[None]

    return weighted(weights)


def batch_rates(variation: float) -> Draw:
    """Return a Draw in which each batch has its own gamma-distributed rate of events.

    `variation` is the coefficient of variation of the rates.
    """

    def weights(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return the relative rate of each eligible row, float[draws, n]."""
        index, sizes = design.window_of(design.windows[BATCH])
        shape = 1 / variation**2
        return rng.gamma(shape, 1 / shape, (draws, len(sizes) + 1))[:, index] + 1e-9

    return weighted(weights)


def clusters(share: float, size: int, within: int) -> Draw:
    """Return a Draw in which a `share` of the events comes in clusters of `size` events.

    A cluster lies within `within` adjacent eligible rows.
    """

    def draw(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        ranks = np.empty((draws, design.events), np.int64)
        groups = round(share * design.events / size)
        for i in range(draws):
            starts = rng.choice(design.n // within, groups, replace=False) * within
            offsets = rng.permuted(np.tile(np.arange(within), (groups, 1)), axis=1)[:, :size]
            is_event = np.zeros(design.n, bool)
            is_event[(starts[:, None] + offsets).ravel()] = True
            (free,) = np.nonzero(~is_event)
            is_event[rng.choice(free, design.events - is_event.sum(), replace=False)] = True
            ranks[i] = np.nonzero(is_event)[0]
        return ranks

    return draw


def rejections(null: NullDistribution, draw: Draw, draws: int, seed: int = 1) -> np.ndarray:
    """Count in how many of `draws` simulated runs each test rejects at 5 %, int64[tests]."""
    ranks = draw(null.design, draws, np.random.default_rng(seed))
    return (null.p_values(statistics(null.design, ranks)) <= 0.05).sum(0)


def null(events: int, n: int = N) -> NullDistribution:
    return NullDistribution.simulate(Design(np.ones(n, bool), events, WINDOWS), 3000)


@pytest.mark.parametrize("events", [180, 300, 1200])
def test_true_nulls_are_rejected_at_the_nominal_level(events: int) -> None:
    """At a nominal 5 %, 3 to 8 % are rejected, at event rates of 3, 5 and 20 %."""
    rejected = rejections(null(events), random_subsets, RUNS, seed=11) / RUNS
    assert (rejected >= 0.03).all(), rejected
    assert (rejected <= 0.08).all(), rejected


def test_with_few_events_no_test_rejects_too_often() -> None:
    """One event in three windows: counts take few values, so p-values are conservative."""
    assert (rejections(null(60), random_subsets, RUNS, seed=11) / RUNS <= 0.08).all()


def test_the_level_holds_where_only_some_rows_are_eligible() -> None:
    eligible = np.random.default_rng(3).random(N) < np.linspace(0.2, 0.9, N)
    simulated = NullDistribution.simulate(Design(eligible, 200, WINDOWS), 3000)
    rejected = rejections(simulated, random_subsets, RUNS, seed=12) / RUNS
    assert (rejected >= 0.03).all(), rejected
    assert (rejected <= 0.08).all(), rejected


@pytest.mark.parametrize(
    ("draw", "test", "least"),
    [
        (linear_trend(0.6), "trend", 0.8),
        (linear_trend(0.6), "positions", 0.7),
        (batch_rates(0.6), "dispersion", 0.9),
        (clusters(0.3, 2, 2), "gaps", 0.9),
    ],
)
def test_alternatives_are_found(draw, test: str, least: float) -> None:
    simulated = null(600)
    rejected = rejections(simulated, draw, 200, seed=5) / 200
    names = [name for name, _ in simulated.design.test_columns]
    assert rejected[names.index(test)] >= least


def test_the_trend_is_estimated_without_bias() -> None:
    design = Design(np.ones(N, bool), 600, WINDOWS)
    ranks = linear_trend(0.5)(design, 200, np.random.default_rng(1))
    effects = [order_tests.trend_effect(design, row) for row in ranks]
    assert np.mean([e.value for e in effects]) == pytest.approx(5.0, abs=0.5)  # % per tenth
    assert 0.9 <= np.mean([e.low <= 5 <= e.high for e in effects]) <= 0.99


def test_dispersion_by_hand() -> None:
    design = Design(np.ones(80, bool), 20, (4,))
    ranks = np.arange(0, 80, 4)[None]  # one event in every window
    assert order_tests.dispersion(design, ranks, 4)[0] == pytest.approx(0)
    clumped = np.arange(20)[None]  # five full windows, fifteen empty ones
    spread = (5 * (4 - 1) ** 2 + 15) / (0.25 * 0.75 * 4) / 19
    assert order_tests.dispersion(design, clumped, 4)[0] == pytest.approx(spread)


def test_too_few_events_are_not_testable() -> None:
    assert not Design(np.ones(500, bool), 5, WINDOWS).testable
    assert not Design(np.ones(500, bool), 495, WINDOWS).testable
    assert Design(np.ones(500, bool), 50, WINDOWS).testable_windows == ()
    with pytest.raises(DataError, match="number of events must be 0 to 5"):
        Design(np.ones(5, bool), 6, WINDOWS)
    with pytest.raises(ConfigError, match="at least 1 row"):
        Design(np.ones(5, bool), 1, (0,))


def test_the_same_data_give_the_same_p() -> None:
    first, again = null(100), null(100)
    observed = statistics(first.design, random_subsets(first.design, 5, np.random.default_rng(2)))
    np.testing.assert_array_equal(first.p_values(observed), again.p_values(observed))


def test_the_qq_band_holds_95_percent() -> None:
    design = Design(np.ones(3200, bool), 160, (64,))
    inside = []
    for seed in range(60):
        ranks = random_subsets(design, 1, np.random.default_rng(100 + seed))[0]
        points = order_tests.poisson_qq(design, ranks, 64, 400)
        between = (points["observed"] >= points["low"]) & (points["observed"] <= points["high"])
        inside.append(between.all())
    assert np.mean(inside) >= 0.85
