"""Spreads over seeds: planted values are recovered, and intervals have nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest
from pythia_book.studies.seeds.variance import (
    added_ratio,
    agreement,
    distance_in_sds,
    excess_over_item_noise,
    items_error,
    largest_difference,
    spread,
    spread_ratio,
)

from pythia_core.errors import DataError


def lines(
    n: int, order: float, weights: float, rest: float, draws: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Scores of runs along two lines of seeds that share a run, and along the diagonal.

    A run is the sum of an effect of its order seed, one of its weight seed, and one of the pair.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(draws):
        by_order, by_weights = order * rng.normal(size=n), weights * rng.normal(size=n)
        grid = 5 + by_order[:, None] + by_weights + rest * rng.normal(size=(n, n))
        found.append((grid[:, 0], grid[0], np.diag(grid)))
    return found


def coverage(intervals: list, truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in intervals]))


@pytest.mark.parametrize("planted", [(0.1, 0.05, 0.0), (0.1, 0.05, 0.03), (0.0, 0.0, 0.1)])
@pytest.mark.parametrize("n", [3, 10])
def test_the_ratio_of_two_lines_covers_what_was_planted(n: int, planted: tuple) -> None:
    order, weights, rest = planted
    true = ((order**2 + rest**2) / (weights**2 + rest**2)) ** 0.5
    found = [spread_ratio(one, other) for one, other, _ in lines(n, *planted, draws=600)]
    assert 0.925 < coverage(found, true) < 0.975
    if n == 10:
        assert np.median([e.value for e in found]) == pytest.approx(true, rel=0.06)


def test_no_difference_is_found_where_there_is_none() -> None:
    found = [spread_ratio(one, other) for one, other, _ in lines(6, 0, 0, 1, draws=600)]
    assert 0.025 < np.mean([e.low > 1 or e.high < 1 for e in found]) < 0.075


def test_contributions_that_add_up_are_told_from_those_that_do_not() -> None:
    """Additive effects have the ratio 1; if any change has the whole effect, it is root 1/2."""
    for planted, true in (((1, 1, 0), 1.0), ((0, 0, 1), 0.5**0.5)):
        drawn = lines(10, *planted, draws=600)
        found = [added_ratio(both, one, other) for one, other, both in drawn]
        assert np.median([e.value for e in found]) == pytest.approx(true, rel=0.05)
        assert coverage(found, true) > 0.92


def test_equal_runs_have_no_spread_and_give_no_ratio() -> None:
    assert spread(np.full(3, 0.1)).high == 0
    assert spread_ratio(np.full(3, 0.1), np.array([1, 2, 4.0])).value == 0
    with pytest.raises(DataError, match="nothing can be divided"):
        spread_ratio(np.array([1, 2, 4.0]), np.full(3, 0.1))
    assert distance_in_sds(np.full(3, 0.1), 0.2, 0.0, 2) is None


def test_intervals_over_seeds_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    draws = 2 + 0.3 * rng.normal(size=(600, 4))
    assert 0.92 < coverage([spread(d) for d in draws], 0.3) < 0.975


def test_pooling_groups_takes_no_account_of_their_means_and_covers_the_truth() -> None:
    draws = 0.3 * np.random.default_rng(7).normal(size=(600, 3, 4)) + np.arange(3)[:, None]
    found = [spread(*d) for d in draws]
    assert 0.92 < coverage(found, 0.3) < 0.975
    assert found[0].df == 9 and found[0].value < spread(draws[0].ravel()).value


@pytest.mark.parametrize("n", [3, 10])
def test_two_further_runs_differ_by_at_most_what_is_said(n: int) -> None:
    draws = np.random.default_rng(5).normal(size=(2000, n + 2))
    within = [abs(d[-1] - d[-2]) <= largest_difference(d[:n].std(ddof=1), n - 1) for d in draws]
    assert 0.935 < np.mean(within) < 0.965


@pytest.mark.parametrize(("n", "distance"), [(2, 3.0), (3, 0.0), (5, 12.0)])
def test_a_distance_in_standard_deviations_is_covered(n: int, distance: float) -> None:
    rng = np.random.default_rng(2)
    draws = 0.2 * rng.normal(size=(250, n + 1))
    found = [
        distance_in_sds(d[:n] + 0.2 * distance, d[n], float(d[:n].std(ddof=1)), n - 1)
        for d in draws
    ]
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
