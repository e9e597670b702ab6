"""Shares over units, means over models and shared items: intervals cover what was planted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pythia_book.clustered import crossed_mean, ratio, share_over_units
from pythia_book.published.means import mean_over_pairs
from pythia_book.stats import Estimate

# --- units -----------------------------------------------------------------------------------


def clusters(rng: np.random.Generator, n: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw n units of 20 rows, with a mean share of 0.5; return which rows are in it, and units."""
    share = np.clip(0.5 + spread * rng.uniform(-1, 1, n), 0, 1)
    return (rng.random((n, 20)) < share[:, None]).ravel(), np.repeat(np.arange(n), 20)


@pytest.mark.parametrize("n", [6, 40])
def test_intervals_over_units_cover_the_share(n: int) -> None:
    """They do so although rows of a unit agree; an interval over rows would not."""
    rng, missed, naive = np.random.default_rng(1), 0, 0
    for _ in range(300):
        part, unit = clusters(rng, n, 0.5)
        e = share_over_units(part, np.ones(len(part), bool), unit)
        rows = share_over_units(part, np.ones(len(part), bool), np.arange(len(part)))
        missed += not e.low <= 0.5 <= e.high
        naive += not rows.low <= 0.5 <= rows.high
        assert 0 <= e.low <= e.value <= e.high <= 1
        assert (e.p_value(0.5) < 0.05) == (not e.low <= 0.5 <= e.high)
    assert missed < 26 < 60 < naive


def test_a_different_share_is_seen_over_units() -> None:
    rng, seen = np.random.default_rng(2), 0
    for _ in range(100):
        part, unit = clusters(rng, 12, 0.2)
        seen += share_over_units(part, np.ones(len(part), bool), unit).p_value(0.75) < 0.05
    assert seen > 90


def test_few_units_that_decide_count_as_few() -> None:
    """With 6 of 5,000 units in part, the interval is about as wide as those 6 make it."""
    unit = np.append(np.repeat(np.arange(6), 50), 6 + np.arange(4994))
    part = unit < 6
    e = share_over_units(part, np.ones(len(unit), bool), unit)
    assert e.df < 30
    assert e.low < 0.6 * e.value and e.high > 1.6 * e.value
    alone = share_over_units(part, part, np.zeros(len(unit), int))
    assert alone.value == 1 and alone.low == pytest.approx(0.025)
    single = share_over_units(np.arange(10) < 5, np.ones(10, bool), np.zeros(10, int))
    assert single.value == 0.5 and np.isnan(single.low)


def test_copies_of_a_text_count_as_one_draw() -> None:
    memorized = np.repeat([True, False], 50)
    all_rows = np.ones(100, bool)
    distinct = ratio(memorized, all_rows, np.arange(100), 1000)
    copies = ratio(memorized, all_rows, np.repeat(np.arange(10), 10), 1000)
    assert copies.high - copies.low > 2 * (distinct.high - distinct.low)


# --- models and items ------------------------------------------------------------------------


def planted(models: float, items: float, both: float, mean: float = 0.3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        mean
        + models * rng.normal(size=(8, 1))
        + items * rng.normal(size=(1, 40))
        + both * rng.normal(size=(8, 40))
        for _ in range(600)
    ]


def share(intervals: list[Estimate], truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in intervals]))


@pytest.mark.parametrize(
    ("models", "items", "both"), [(1, 3, 1), (0.1, 3, 1), (1, 0, 1), (0, 0, 1), (0, 1, 0.5)]
)
def test_intervals_cover_the_planted_mean(models: float, items: float, both: float) -> None:
    assert 0.92 < share([crossed_mean(v) for v in planted(models, items, both)], 0.3) <= 0.99


def test_shared_items_widen_the_interval() -> None:
    apart, shared = (crossed_mean(planted(0.1, items, 1)[0]) for items in (0, 3))
    assert shared.high - shared.low > 3 * (apart.high - apart.low)
    assert apart.df >= 7


def test_intervals_without_width_or_without_units() -> None:
    equal = crossed_mean(np.ones((3, 5)))
    assert (equal.low, equal.high) == (1, 1)
    one = crossed_mean(np.arange(5.0)[None])
    assert math.isnan(one.low) and one.df == 0 and one.value == 2


@pytest.mark.parametrize(("between", "stderr"), [(0.5, 0.0), (0.0, 0.6), (0.5, 0.6)])
def test_pairs_with_their_own_errors_are_covered(between: float, stderr: float) -> None:
    rng = np.random.default_rng(1)
    errors = np.full(8, stderr)
    draws = 0.4 + (between**2 + stderr**2) ** 0.5 * rng.normal(size=(800, 8))
    assert 0.92 < share([mean_over_pairs(d, errors) for d in draws], 0.4) <= 0.995
