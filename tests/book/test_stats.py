"""Estimates with intervals: coverage, pairing, units of resampling, and refusals."""

from __future__ import annotations

import numpy as np
import pytest
from pythia_book.stats import estimate, mean_over, ratio_of_means, slope

from pythia_core.errors import ConfigError, DataError


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(300):
        e = estimate(0.1 + rng.normal(size=(1, 120)), draws=400)
        inside += e.low <= 0.1 <= e.high
    assert 0.91 <= inside / 300 <= 0.98


def test_pairing_finds_a_small_shift_that_unpaired_levels_would_hide():
    rng = np.random.default_rng(1)
    control = rng.normal(0, 3, (1, 100))
    arm = control + 0.05 + rng.normal(0, 0.1, (1, 100))
    change = estimate(arm - control, 1000)
    assert change.low > 0
    assert estimate(arm, 1000).low < control.mean() < estimate(arm, 1000).high


def test_seeds_are_resampled_when_there_are_several():
    rng = np.random.default_rng(3)
    items = rng.normal(0, 0.01, (1, 400))
    by_seed = np.array([[-1.0], [0.0], [1.0], [2.0]])
    spread = estimate(items + by_seed, 1000)
    assert spread.high - spread.low > 1  # seeds differ far more than items do
    same = estimate(np.repeat(items, 4, axis=0), 1000)
    assert same.high - same.low < 0.01
    assert (spread.n_items, spread.n_seeds) == (400, 4)


def test_estimates_are_deterministic():
    values = np.random.default_rng(0).normal(size=(2, 50))
    assert estimate(values, 500) == estimate(values.copy(), 500)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: estimate(np.zeros((1, 0)), 500), DataError),
        (lambda: estimate(np.zeros(5), 500), DataError),
        (lambda: estimate(np.array([[1.0, np.nan]]), 500), DataError),
        (lambda: estimate(np.zeros((1, 5)), 50), ConfigError),
    ],
)
def test_bad_statistics_input(make, error):
    with pytest.raises(error):
        make()


def test_if_all_items_are_equal_the_bound_is_exact():
    for value, low, high in ((1.0, 0.99, 1.0), (0.0, 0.0, 0.01)):
        e = estimate(np.full((1, 384), value), 200, exact=True)
        assert e.value == value
        assert e.low == pytest.approx(low, abs=2e-3)
        assert e.high == pytest.approx(high, abs=2e-3)
    none = estimate(np.zeros((1, 384)), 200, change=True, exact=True)
    assert -0.011 < none.low < 0 < none.high < 0.011
    loss = estimate(np.zeros((1, 384)), 200, change=True)
    assert (loss.low, loss.high) == (0, 0)


def test_strata_of_fixed_size_are_resampled_separately():
    half = np.arange(400) % 2
    values = np.where(half, 0.95, -0.93)[None] + np.random.default_rng(0).normal(0, 0.1, (1, 400))
    mixed, stratified = estimate(values, 500), estimate(values, 500, strata=half)
    assert stratified.value == mixed.value
    assert stratified.high - stratified.low < 0.2 * (mixed.high - mixed.low)


def test_a_slope_is_that_of_scipy_with_a_t_interval():
    from scipy.stats import linregress, t

    rng = np.random.default_rng(6)
    x, y = rng.normal(size=7), rng.normal(size=7)
    ours, theirs = slope(x, y), linregress(x, y)
    half = t.ppf(0.975, 5) * theirs.stderr
    expected = (theirs.slope, theirs.slope - half, theirs.slope + half)
    assert (ours.value, ours.low, ours.high) == pytest.approx(expected)
    assert ours.p_value() == pytest.approx(theirs.pvalue)
    assert slope([1, 2], [1, 2]) is None


def test_a_ratio_of_means_covers_where_a_bootstrap_over_few_units_does_not():
    rng, n, trials = np.random.default_rng(12), 6, 400
    inside = {"ratio": 0, "bootstrap": 0}
    for _ in range(trials):
        below = np.clip(rng.normal(1, 0.3, n), 0.1, None)
        above = 0.5 * below + rng.normal(0, 0.1, n)
        values = ratio_of_means(above, below)
        assert values.mean() == pytest.approx(above.mean() / below.mean())
        e = mean_over(values)
        inside["ratio"] += e.low <= 0.5 <= e.high
        pick = rng.integers(n, size=(300, n))
        drawn = above[pick].mean(1) / below[pick].mean(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        inside["bootstrap"] += low <= 0.5 <= high
    assert 0.92 <= inside["ratio"] / trials <= 0.98
    assert inside["bootstrap"] / trials < 0.9
