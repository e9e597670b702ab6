"""Spreads over seeds: planted values are recovered, and intervals have nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest
from pythia_book.studies.seeds.variance import (
    agreement,
    components,
    distance_in_sds,
    excess_over_item_noise,
    items_error,
    one_more,
    order_to_weights,
    spread,
)

from pythia_core.errors import DataError


def grids(n: int, order: float, weights: float, rest: float, draws: int) -> np.ndarray:
    """float[draws, n, n] of values around 5 with planted standard deviations."""
    rng = np.random.default_rng(0)
    normal = rng.normal
    return (
        5
        + order * normal(size=(draws, n, 1))
        + weights * normal(size=(draws, 1, n))
        + rest * normal(size=(draws, n, n))
    )


def coverage(intervals: list, truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in intervals]))


@pytest.mark.parametrize("n", [2, 3, 6])
def test_components_cover_what_was_planted(n: int) -> None:
    planted = {"order": 0.1, "weights": 0.05, "rest": 0.03}
    found = [components(grid) for grid in grids(n, *planted.values(), draws=500)]
    for kind, sd in planted.items():
        assert 0.92 < coverage([each[kind] for each in found], sd) <= 0.985, kind
    ratios = [order_to_weights(grid) for grid in grids(n, *planted.values(), draws=500)]
    true = ((n * 0.1**2 + 0.03**2) / (n * 0.05**2 + 0.03**2)) ** 0.5
    assert 0.92 < coverage(ratios, true) < 0.975


def test_components_of_a_large_grid_are_the_planted_ones() -> None:
    (grid,) = grids(200, 0.1, 0.05, 0.03, draws=1)
    found = components(grid)
    assert found["order"].value == pytest.approx(0.1, rel=0.15)
    assert found["weights"].value == pytest.approx(0.05, rel=0.15)
    assert found["rest"].value == pytest.approx(0.03, rel=0.02)


def test_without_an_effect_of_order_none_is_found() -> None:
    found = [components(grid)["order"] for grid in grids(4, 0, 0.05, 0.03, draws=400)]
    assert 0.95 < np.mean([e.low == 0 for e in found]) < 1
    assert 0.4 < np.mean([e.value == 0 for e in found]) < 0.75


def test_additive_grids_have_no_rest_and_equal_runs_no_spread() -> None:
    exact = components(np.add.outer([0.1, 0.7, 0.3], [5.3, 5.35, 5.1]))
    assert exact["rest"].interval() == {"value": 0, "low": 0, "high": 0}
    assert exact["order"].value == pytest.approx(np.std([0.1, 0.7, 0.3], ddof=1))
    assert spread(np.full(3, 0.1)).high == 0
    one_kind = np.tile([0.1, 0.2, 0.4], (3, 1))
    assert components(one_kind)["order"].high == 0
    assert order_to_weights(one_kind) is None
    assert distance_in_sds(np.full(3, 0.1), 0.2) is None


def test_intervals_over_seeds_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    draws = 2 + 0.3 * rng.normal(size=(600, 4))
    predictions = [one_more(d[:3]) for d in draws]
    inside = [e.low <= d[3] <= e.high for e, d in zip(predictions, draws, strict=True)]
    assert 0.92 < np.mean(inside) < 0.975
    assert 0.92 < coverage([spread(d) for d in draws], 0.3) < 0.975


@pytest.mark.parametrize(("n", "distance"), [(2, 3.0), (3, 0.0), (5, 12.0)])
def test_a_distance_in_standard_deviations_is_covered(n: int, distance: float) -> None:
    rng = np.random.default_rng(2)
    draws = 0.2 * rng.normal(size=(250, n + 1))
    found = [distance_in_sds(d[:n] + 0.2 * distance, d[n]) for d in draws]
    assert 0.91 < coverage(found, distance) < 0.985


def test_seeds_exceed_item_noise_only_if_they_differ() -> None:
    rng = np.random.default_rng(3)
    items = rng.normal(size=50)

    def runs(sd: float) -> np.ndarray:
        return items + sd * rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(3, 50))

    alone = [excess_over_item_noise(runs(0)) for _ in range(300)]
    assert 0.92 < coverage(alone, 1) < 0.975
    assert all(excess_over_item_noise(runs(2)).low > 1 for _ in range(20))
    assert items_error(runs(2)).value == pytest.approx(0.1 / 50**0.5, rel=0.3)
    assert excess_over_item_noise(np.zeros((3, 5))) is None


@pytest.mark.parametrize("values", [np.zeros(1), np.zeros((2, 2)), np.array([1.0, np.nan])])
def test_too_few_or_missing_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"2 or more|not finite"):
        spread(values)


@pytest.mark.parametrize("flips", [0.05, 0.3])
def test_agreement_of_runs_is_covered(flips: float) -> None:
    rng = np.random.default_rng(4)
    states = np.arange(14) // 4
    found = [
        agreement(np.where(rng.random((8, 14)) < flips, 9 + rng.integers(2, size=(8, 14)), states))
        for _ in range(400)
    ]
    true = (1 - flips) ** 2 + flips**2 / 2
    assert np.mean([e.value for e in found]) == pytest.approx(true, abs=0.01)
    known = [e for e in found if e.low < e.high]
    assert 0.88 < coverage(known, true) < 0.99


def test_agreement_by_hand() -> None:
    states = np.array([[0, 0], [0, 0], [0, 1]])
    assert agreement(states).value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert agreement(np.zeros((4, 3))).value == 1
    with pytest.raises(DataError, match="at least 3 runs"):
        agreement(np.zeros((2, 3)))
