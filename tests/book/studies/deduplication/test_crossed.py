"""Means over models and shared items: intervals cover what was planted, with and without parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pythia_book.published.means import mean_over_pairs
from pythia_book.stats import Estimate
from pythia_book.studies.deduplication.crossed import crossed_mean


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
