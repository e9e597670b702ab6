"""The tests of order have the stated level on true nulls and detect the alternatives."""

from __future__ import annotations

import numpy as np
import pytest
from pythia_book.studies.memorization import order_tests
from pythia_book.studies.memorization.order_tests import (
    ALTERNATIVES,
    Design,
    NullDistribution,
    batch_rates,
    clusters,
    linear_trend,
    random_subsets,
    rejections,
    statistics,
    textbook_rejections,
)

from pythia_core.errors import ConfigError, DataError

N, WINDOWS, RUNS = 6000, (32, 128), 600


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


def test_the_textbook_tests_reject_true_nulls() -> None:
    design = Design(np.ones(N, bool), 1200, WINDOWS)
    rejected = textbook_rejections(design, 32, 300)
    assert rejected["exponential gaps"] > 0.9 * 300
    assert rejected["Poisson dispersion"] > 0.15 * 300


def test_every_alternative_can_be_drawn() -> None:
    design = Design(np.ones(900, bool), 90, (32,))
    for name, (test, draw) in ALTERNATIVES.items():
        assert test in dict(design.test_columns)
        ranks = draw(design, 3, np.random.default_rng(0))
        assert ranks.shape == (3, 90), name
        assert (np.diff(ranks, axis=1) > 0).all(), name
        assert ranks.min() >= 0, name
        assert ranks.max() < 900, name


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
