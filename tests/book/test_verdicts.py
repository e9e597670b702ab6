"""The rule of verdicts: each path, its error rates by simulation, and its refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pythia_book import verdicts
from pythia_book.stats import Estimate, estimate, exact_share, mean_over
from pythia_book.studies.seeds.variance import (
    distance_in_sds,
    excess_over_item_noise,
    spread_ratio,
)
from pythia_book.verdicts import (
    Claim,
    Test,
    falls,
    holm,
    judge,
    passes,
    rises,
    smallest_margin,
    smallest_seen,
    untestable,
    within,
)

from pythia_core.errors import ConfigError

TRIALS, UNITS = 500, 8


def claim(test: Test, kind: str = "claim", side: str = "ours") -> Claim:
    return Claim("It rises.", "section 1", kind=kind, **{side: test})


def verdict(*tests: Test, kind: str = "claim", side: str = "ours") -> str:
    return judge([claim(test, kind, side) for test in tests])[0][side]["verdict"]


def e(value: float, half: float, df: float = math.inf) -> Estimate:
    return Estimate(value, value - half, value + half, 100, 1, df)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        (rises(e(2, 1), "points", "seeds"), "reproduced"),
        (rises(e(-2, 1), "points", "seeds"), "contradicted"),
        (rises(e(0.5, 1), "points", "seeds"), "not resolved"),
        (rises(None, "points", "seeds"), "not testable here"),
        (falls(e(-2, 1), "points", "seeds"), "reproduced"),
        (falls(e(0.5, 1), "points", "seeds", bound=2), "reproduced"),  # a marginal cost
        (falls(e(4, 1), "points", "seeds", bound=2), "contradicted"),
        (within(e(0.1, 0.5), "points", "seeds", 1), "reproduced"),
        (within(e(3, 0.5), "points", "seeds", 1), "contradicted"),
        (within(e(-3, 0.5), "points", "seeds", 1), "contradicted"),
        (within(e(0.1, 2), "points", "seeds", 1), "not resolved"),  # never a null by default
        (within(e(0.8, 0.5), "points", "seeds", 1), "not resolved"),
        (untestable("at chance", e(2, 1)), "not testable here"),
        (rises(mean_over([2.0]), "points", "one seed"), "not testable here"),
        (rises(mean_over([2.0, 2.0, 2.0]), "points", "seeds"), "not testable here"),  # no width
        (rises(Estimate(2, math.nan, 3, 5, 1), "points", "seeds"), "not testable here"),
        (rises(Estimate(4, 2, 3, 5, 1), "points", "seeds"), "not testable here"),  # outside
        (rises(estimate(np.array([[1.0, 2.0]]), 100), "points", "items"), "not testable here"),
    ],
)
def test_paths(test, expected):
    assert verdict(test) == expected


def test_words_by_kind_and_side():
    effect = rises(e(2, 1), "points", "seeds")
    opposite = rises(e(-2, 1), "points", "seeds")
    assert verdict(effect, side="released") == "confirmed on released numbers"
    assert verdict(opposite, side="released") == "contradicted by released numbers"
    assert verdict(effect, kind="premise") == verdict(effect, kind="check") == "holds"
    assert verdict(opposite, kind="premise", side="released") == "does not hold"
    assert verdict(passes(True), kind="check") == "holds"
    assert verdict(passes(False), kind="check") == "does not hold"


def test_open_intervals_say_what_would_have_been_seen():
    row = judge([claim(rises(e(0.5, 1.0), "points", "seeds"))])[0]["ours"]
    assert row["reason"] == (
        "the interval includes 0; an effect of 1.4 points would be detected with 80 % power"
    )
    many = [claim(rises(e(0.5, 1.0), "points", "seeds")) for _ in range(10)]
    assert "1.9 points" in judge(many)[0]["ours"]["reason"]  # ten tests need a larger effect
    row = judge([claim(within(e(0.5, 0.3), "points", "seeds", 0.6))])[0]["ours"]
    assert row["reason"] == (
        "the interval extends beyond ±0.6 points; with 80 % power, equivalence could be shown only "
        "within ±0.5 points"
    )
    row = judge([claim(falls(e(90.5, 2), "%", "items", 91))])[0]["ours"]
    assert row["reason"] == (
        "the interval includes 91 %; an effect of 2.9 points away from 91 would be detected with "
        "80 % power"
    )
    row = judge([claim(rises(e(0.5, 1.0), "% of the loss", "seeds"))])[0]["ours"]
    assert "an effect of 1.4 % of the loss would be detected" in row["reason"]
    row = judge([claim(rises(e(0.5, 3), "points", "items", -1))])[0]["ours"]
    assert row["reason"].startswith("the interval includes \N{MINUS SIGN}1 point; an effect of")
    scaled = judge([claim(rises(e(0.005, 0.03).times(100), "points", "items", -1))])[0]["ours"]
    assert scaled["reason"] == row["reason"], "another unit changes nothing"
    row = judge([claim(rises(e(0.5, 80), "points", "items"))])[0]["ours"]
    assert "no possible effect would be detected" in row["reason"]
    row = judge([claim(rises(mean_over([1.0]), "points", "one seed"))])[0]["ours"]
    assert row["reason"] == "a single unit has no interval"


def test_one_clear_effect_among_many_is_kept_and_a_weak_one_is_not():
    """Holm: 0.05 alone is not 0.05 among ten."""
    weak = [rises(e(1.0, 0.95), "points", "seeds") for _ in range(10)]
    assert verdict(weak[0]) == "reproduced"
    rows = judge([claim(test) for test in weak])
    assert {row["ours"]["verdict"] for row in rows} == {"not resolved"}
    reason = rows[0]["ours"]["reason"]
    assert "Holm" in reason and "an effect of 1.8 points would be detected" in reason
    strong = judge([claim(rises(e(1.0, 0.3), "points", "seeds")), *map(claim, weak)])
    assert strong[0]["ours"]["verdict"] == "reproduced"
    checks = judge([claim(weak[0]), *(claim(test, "check") for test in weak)])
    assert checks[0]["ours"]["verdict"] == "reproduced"  # a family of its own


def test_holm_known_values():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({}) == {}


@given(st.floats(-5, 5), st.floats(0.01, 5), st.floats(0.01, 5), st.sampled_from([2, 9, math.inf]))
def test_p_value_agrees_with_the_interval(value, below, above, df):
    interval = Estimate(value, value - below, value + above, 10, 1, df)
    excluded = not interval.low <= 0 <= interval.high
    if min(abs(interval.low), abs(interval.high)) > 1e-9:
        assert (interval.p_value() < 0.05) == excluded


def rate(make, draw, wanted: str, kind: str = "claim") -> float:
    """How often simulated units get a verdict."""
    rng = np.random.default_rng(0)
    return np.mean([verdict(make(draw(rng)), kind=kind) == wanted for _ in range(TRIALS)])


@pytest.mark.parametrize("interval", ["t over units", "bootstrap over items"])
def test_error_rates_of_directions(interval):
    """A wrong verdict at most 5 % + 3 under the null; right at least 80 % at the stated effect."""

    def make(units):
        if interval == "t over units":
            return rises(mean_over(units), "points", "seeds")
        return rises(estimate(units[None], 1000), "points", "items")

    n = UNITS if interval == "t over units" else 100

    def null(rng):
        return rng.normal(0, 1, n)

    assert rate(make, null, "reproduced") <= 0.055  # one side of 5 %, plus 3
    assert rate(make, null, "contradicted") <= 0.055
    assert rate(make, null, "not resolved") >= 0.92
    # what an interval of the true width states; the standard error of 500 trials is 2 %
    drawn = make(np.random.default_rng(0).normal(size=n)).estimate
    half = drawn.quantile(0.975) / n**0.5
    stated = smallest_seen(Estimate(0, -half, half, n, 1, drawn.df))
    assert rate(make, lambda rng: rng.normal(stated, 1, n), "reproduced") >= 0.77
    assert rate(make, lambda rng: rng.normal(-stated, 1, n), "contradicted") >= 0.77


def f_ratio(rng: np.random.Generator, sd: float, runs: int = 4, items: int = 50) -> Estimate:
    """How much more runs differ than their items would make them; `sd`: between runs."""
    scores = rng.normal(0, 1, (runs, items)) + rng.normal(0, sd, (runs, 1))
    return excess_over_item_noise(scores)


def distance(rng: np.random.Generator) -> Estimate:
    values = rng.normal(0, 1, 5)
    return distance_in_sds(values, rng.normal(-2, 1), float(values.std(ddof=1)), 4)


def log_ratio(rng: np.random.Generator) -> Estimate:
    ratio = spread_ratio(rng.normal(size=3), rng.normal(size=3))
    return ratio.mapped(math.log, math.exp)


@pytest.mark.parametrize(
    ("bound", "draw"),
    [
        (0.3, lambda rng: exact_share(int(rng.binomial(30, 0.3)), 30)),
        (30, lambda rng: exact_share(int(rng.binomial(30, 0.3)), 30).times(100)),
        (1, lambda rng: f_ratio(rng, 0)),
        (0, log_ratio),
        (2, distance),
    ],
)
@pytest.mark.parametrize("n_tests", [1, 5])
def test_error_rates_of_skewed_intervals(bound, draw, n_tests):
    """No wrong verdict more often than 5 % + 3, with one test and as one of five."""
    rng = np.random.default_rng(3)
    others = [claim(rises(e(0, 1), "", "")) for _ in range(n_tests - 1)]
    wrong = [
        judge([claim(rises(draw(rng), "", "", bound)), *others])[0]["ours"]["verdict"]
        for _ in range(TRIALS)
    ]
    assert np.mean([v not in ("not resolved", "not testable here") for v in wrong]) <= 0.08
    for _ in range(50):  # p-value and interval agree
        x = draw(rng)
        assert (x.p_value(bound) < 0.05) == (not x.low <= bound <= x.high)


def test_skewed_intervals_find_what_is_there():
    rng = np.random.default_rng(4)
    strong = [rises(f_ratio(rng, 1), "", "", 1) for _ in range(TRIALS)]
    others = [claim(rises(e(0, 1), "", "")) for _ in range(5)]
    rows = [judge([claim(test), *others])[0]["ours"]["verdict"] for test in strong]
    assert np.mean([row == "reproduced" for row in rows]) >= 0.8


def share_reproduced(make, df: float, true: float, n_tests: int, seed: int) -> float:
    """How often one of `n_tests` tests is reproduced, with estimates of standard error 1."""
    half = standard(df).high
    others = [rises(standard(df), "", "") for _ in range(n_tests - 1)]
    rng, reproduced = np.random.default_rng(seed), 0
    for _ in range(TRIALS):
        error = 1.0 if math.isinf(df) else (rng.chisquare(df) / df) ** 0.5
        seen = rng.normal(true, 1)
        interval = Estimate(seen, seen - half * error, seen + half * error, 1, 1, df)
        reproduced += verdict(make(interval), *others) == "reproduced"
    return reproduced / TRIALS


def standard(df: float) -> Estimate:
    """An interval of standard error 1 around zero."""
    half = Estimate(0, 0, 0, 1, 1, df).quantile(0.975)
    return Estimate(0, -half, half, 1, 1, df)


@pytest.mark.parametrize("df", [3, 7, math.inf])
def test_the_stated_margin_shows_that_there_is_no_effect(df):
    stated = smallest_margin(standard(df), n_tests=4)
    share = share_reproduced(lambda i: within(i, "", "", stated), df, 0, n_tests=4, seed=5)
    assert 0.75 <= share <= 0.86


def test_error_rates_of_equivalence():
    """An effect as large as the margin is called none at most 2.5 % + 1.5; a true null mostly."""

    def make(units):
        return within(mean_over(units), "points", "seeds", margin=1.5)

    def at(effect):
        return lambda rng: rng.normal(effect, 1, UNITS)

    assert rate(make, at(1.5), "reproduced") <= 0.055
    assert rate(make, at(1.5), "contradicted") <= 0.055
    assert rate(make, at(0), "reproduced") >= 0.8
    assert rate(make, at(3.5), "contradicted") >= 0.8


@pytest.mark.parametrize("df", [3, 7, math.inf])
def test_the_stated_effect_is_seen_in_a_family(df):
    """With ten tests, the effect of one is found as often as stated, whatever the others show."""
    stated = smallest_seen(standard(df), n_tests=10)
    share = share_reproduced(lambda i: rises(i, "", ""), df, stated, n_tests=10, seed=2)
    assert 0.75 <= share <= 0.86


def test_family_wise_error():
    """Among ten true nulls, any wrong verdict at most 5 % + 3."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        rows = judge([claim(rises(mean_over(rng.normal(size=UNITS)), "", "")) for _ in range(10)])
        wrong += any(row["ours"]["verdict"] != "not resolved" for row in rows)
    assert wrong / 400 <= 0.08


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: within(e(0, 1), "", "", margin=0), "margin must be positive"),
        (lambda: Test(), "without a form"),
        (lambda: Test(form="about"), "form"),
        (lambda: Claim("x", "section 1"), "no test"),
        (lambda: Claim("x", "", ours=passes(True)), "names no source"),
        (lambda: Claim("x", "section 1", ours=passes(True), kind="guess"), "kind of claim"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_recorded_form_is_plain():
    """Rows hold numbers, texts and null only, and name their verdicts."""
    rows = judge(
        [claim(rises(e(2, 1), "points", "seeds", note="from 1 to 3")), claim(passes(True))]
    )
    json.dumps(rows, allow_nan=False)
    assert set(rows[0]["ours"]) == verdicts.TEST_KEYS
    assert rows[0]["ours"]["p"] < 0.05 and rows[0]["released"] is None
    assert verdicts.verdicts_of(rows[0]) == ["reproduced"]
    assert all(v in verdicts.VERDICTS for row in rows for v in verdicts.verdicts_of(row))
