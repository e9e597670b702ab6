"""Sums over training and size: jumps without and with a planted one, links, verdicts, tables."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from pythia_book.studies.scaling import emergence, released_sums, sum_claims
from pythia_book.studies.scaling.jumps import critical_over, find_jumps
from pythia_book.studies.scaling.links import (
    LINKS,
    Curves,
    chance_of_choice,
    fit_link,
    left_out,
)
from pythia_book.studies.scaling.params import Params, sum_steps
from pythia_book.study import Measurements
from pythia_book.verdicts import Claim, judge

from pythia_core.suite import DATA_ARMS, suite_configs
from pythia_core.training.schedule import checkpoint_steps

STEPS = np.array(checkpoint_steps(572))
OPERANDS, PER_OPERAND = 100, 10
SIZES = ("13k", "85k", "310k", "600k")


def late_rise(steps: np.ndarray, low: float, high: float) -> np.ndarray:
    """A smooth curve that rises over the last two doublings."""
    return low + (high - low) / (1 + np.exp(-2.5 * (np.log2(np.maximum(steps, 1)) - 8)))


def noisy_curves(seed: int, mean: np.ndarray, phi: float = 0.5, sd: float = 0.012) -> np.ndarray:
    """Shares of right answers per operand, with persistent items and noise of checkpoints."""
    rng = np.random.default_rng(seed)
    noise, _ = sd * rng.standard_normal((2, len(mean)))
    for i in range(1, len(mean)):
        noise[i] = phi * noise[i - 1] + (1 - phi**2) ** 0.5 * noise[i]
    difficulty = rng.normal(0, 0.1, OPERANDS)
    p = np.clip((mean + noise)[:, None] + difficulty, 0.01, 0.99)
    return rng.binomial(PER_OPERAND, p) / PER_OPERAND


# --- jumps -----------------------------------------------------------------------------------


def test_a_smooth_curve_with_noise_rarely_seems_to_jump() -> None:
    found = [
        find_jumps(STEPS, noisy_curves(seed, late_rise(STEPS, 0.25, 0.42)), seed)
        for seed in range(80)
    ]
    false = [each.largest().low > 0 for each in found]
    assert np.mean(false) <= 0.05
    assert np.mean([each.rise.low > 0 for each in found]) > 0.9


def test_slow_wavering_of_all_sums_together_is_no_jump() -> None:
    """Noise that white noise hides, so that neighboring checkpoints look little alike."""
    mean = late_rise(STEPS, 0.25, 0.42)
    found = [find_jumps(STEPS, noisy_curves(s, mean, 0.8, 0.02), s) for s in range(40)]
    assert np.mean([each.largest().low > 0 for each in found]) <= 0.1  # of 40; in 100 others, 5 %
    assert np.mean([each.noise[0] > 0 for each in found]) > 0.6


def test_rises_have_intervals_of_the_right_level() -> None:
    flat = [find_jumps(STEPS, noisy_curves(s, np.full(len(STEPS), 0.25)), s) for s in range(40)]
    outside = [not each.rise.low <= 0 <= each.rise.high for each in flat]
    assert np.mean(outside) <= 0.11


@pytest.mark.parametrize("at", [200, 320, 480])
def test_a_planted_jump_is_found_where_it_is(at: int) -> None:
    mean = late_rise(STEPS, 0.25, 0.35) + 0.1 * (at <= STEPS)
    found = [find_jumps(STEPS, noisy_curves(seed, mean), seed) for seed in range(12)]
    places = np.array([each.steps[each.place] for each in found])
    assert (np.abs(places - at) <= 8).sum() >= 10
    estimates = [each.largest() for each in found]
    assert sum(e.low > 0 for e in estimates) >= 10
    assert sum(e.low <= 0.1 <= e.high for e in estimates) >= 11
    assert np.mean([e.value for e in estimates]) == pytest.approx(0.1, abs=0.025)


def test_several_curves_need_a_larger_jump_and_repeats_are_equal() -> None:
    curves = [noisy_curves(seed, late_rise(STEPS, 0.25, 0.4)) for seed in range(4)]
    found = [find_jumps(STEPS, each, seed) for seed, each in enumerate(curves)]
    assert critical_over(found) > critical_over(found[:1]) > 1.96
    again = find_jumps(STEPS, curves[0], 0)
    for name in ("heights", "errors", "smooth", "suprema"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found[0], name))


def test_few_checkpoints_or_equal_scores_have_no_jumps() -> None:
    assert find_jumps(np.arange(17), np.random.default_rng(0).random((17, 20))) is None
    assert find_jumps(STEPS, np.zeros((len(STEPS), 20))) is None


def test_a_rise_before_jumps_are_sought_is_not_counted() -> None:
    early = 0.25 + 0.2 / (1 + np.exp(-6 * (np.log2(np.maximum(STEPS, 1)) - 6)))
    rises = [find_jumps(STEPS, noisy_curves(seed, early), seed).rise for seed in range(10)]
    assert np.mean([rise.value for rise in rises]) == pytest.approx(0, abs=0.03)
    given = measured({size: 8 * (early - 0.25) for size in SIZES})
    assert "no run rises so much" in pick(verdicts(given), "no run jumps in the margin")["reason"]


def test_shares_of_the_rise_cover_a_planted_one_and_able_runs_see_it() -> None:
    """A jump of half of the rise, as large as runs that are able should see in 80 % of cases."""
    mean = late_rise(STEPS, 0.25, 0.37)
    before = mean[np.flatnonzero(STEPS >= 143)[0] - 1]
    jump = mean[-1] - before
    shares, seen = [], []
    for seed in range(40):
        own = find_jumps(STEPS, noisy_curves(seed, mean + jump * (STEPS >= 300), sd=0.006), seed)
        (_, low, high), least, critical = emergence._share(own, [own])
        shares.append(low <= 50 <= high)
        if emergence._able(own, least, critical):
            seen.append(own.largest(critical).low > 0)
    assert np.mean(shares) >= 0.93
    assert len(seen) >= 20 and np.mean(seen) >= 0.8


# --- links -----------------------------------------------------------------------------------


def scored(seed: int, margin: np.ndarray, scatter: float = 1.0) -> dict[str, np.ndarray]:
    """Choices, margins and log-probabilities of sums whose margin has this mean at each step."""
    rng = np.random.default_rng(seed)
    n = OPERANDS * PER_OPERAND
    wrong = rng.normal(0, scatter, (len(margin), n, 3))
    right = rng.normal(margin[:, None], scatter, (len(margin), n))
    shape = (len(margin), OPERANDS, PER_OPERAND)
    logprob = right - 6
    return {
        "choice": (right > wrong.max(2)).reshape(shape).sum(2).astype(np.uint8),
        "exact": (rng.random(right.shape) < np.exp(logprob)).reshape(shape).sum(2).astype(np.uint8),
        "logprob": logprob.reshape(shape).mean(2).astype(np.float16),
        "margin": (right - wrong.mean(2)).reshape(shape).mean(2).astype(np.float16),
        "product": np.exp(logprob).reshape(shape).mean(2).astype(np.float32),
    }


def test_without_a_margin_a_choice_is_a_guess_and_a_large_one_is_right() -> None:
    values = chance_of_choice(np.array([-9.0, 0.0, 1.0, 9.0]))
    assert values == pytest.approx([0, 0.25, 0.5516, 1], abs=2e-3)  # d' = 1: tables of 4AFC
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, 1, (200_000, 4))
    drawn[:, 0] += 0.7
    assert chance_of_choice(np.array([0.7]))[0] == pytest.approx(
        (drawn.argmax(1) == 0).mean(), abs=3e-3
    )


@pytest.mark.parametrize("pair", list(LINKS))
def test_links_are_recovered(pair: tuple[str, str]) -> None:
    link, start = LINKS[pair]
    x = np.linspace(-0.2, 2, 60) if pair[1] == "margin" else np.linspace(-9, -2.5, 60)
    true = np.array(start) + 0.4
    assert fit_link(link, start, x, link(true, x)) == pytest.approx(true, abs=1e-3)


def test_a_smooth_margin_predicts_a_late_rise_of_a_size_left_out() -> None:
    runs = {}
    for i, size in enumerate(SIZES):
        margin = late_rise(STEPS, 0.0, 0.3 * (i + 1))
        s = scored(i, margin)
        accuracy = s["choice"].sum(1) / OPERANDS / PER_OPERAND
        runs[size, "standard"] = Curves(STEPS, accuracy, s["margin"].astype(float).mean(1))
    link, start = LINKS["choice", "margin"]
    for run, (by_link, same_step) in left_out(link, start, runs).items():
        late = 2 * STEPS > STEPS[-1]
        errors = [np.abs(p - runs[run].accuracy)[late].mean() for p in (by_link, same_step)]
        assert errors[0] < 0.02
        if run[0] in (SIZES[0], SIZES[-1]):
            assert errors[1] > 2 * errors[0]


# --- tables and verdicts ---------------------------------------------------------------------


def measured(
    margins: dict[str, np.ndarray], scatters: dict[str, float] | None = None
) -> Measurements:
    """The arrays of `sums.measure_sums` for sizes with these mean margins over training.

    The margins are the same on both texts.
    """
    arrays = {"sums/count": np.full(OPERANDS, PER_OPERAND, np.uint8)}
    for i, (size, margin) in enumerate(margins.items()):
        scatter = (scatters or {}).get(size, 1.0)
        for j, arm in enumerate(DATA_ARMS):
            arrays[f"sums/steps/{size}/{arm}"] = STEPS.astype(np.int32)
            for name, table in scored(2 * i + j, margin, scatter).items():
                arrays[f"sums/{name}/{size}/{arm}"] = table
    n_params = {size: 10 ** (4 + i / 2) for i, size in enumerate(margins)}
    return Measurements(arrays, {"steps": 572, "n_params": n_params})


def test_limits_over_eight_runs_hold_at_once() -> None:
    """Of eight curves without a jump, through `all_jumps`, one seems to jump in 5 % of cases."""
    params = Params(sizes="7k,13k,25k,38k")
    mean, false = late_rise(STEPS, 0.25, 0.42), []
    constant = np.zeros((len(STEPS), OPERANDS), np.uint8)
    arrays = {"sums/count": np.full(OPERANDS, PER_OPERAND, np.uint8)}
    cells = [f"{size}/{arm}" for size in params.size_list for arm in DATA_ARMS]
    for cell in cells:
        arrays |= {f"sums/{m}/{cell}": constant for m in ("exact", "logprob", "margin")}
        arrays[f"sums/steps/{cell}"] = STEPS.astype(np.int32)
    for seed in range(12):
        for i, cell in enumerate(cells):
            right = PER_OPERAND * noisy_curves(1000 + 100 * seed + i, mean)
            arrays[f"sums/choice/{cell}"] = np.round(right).astype(np.uint8)
        runs = list(emergence.all_jumps(params, Measurements(arrays, {})).values())
        critical = critical_over(runs)
        false.append(any(each.largest(critical).low > 0 for each in runs))
    assert len(runs) == 8 and critical > critical_over(runs[:1]) + 0.3
    assert np.mean(false) <= 0.05
    suprema = np.array([each.suprema for each in runs])
    assert np.abs(np.corrcoef(suprema) - np.eye(len(suprema))).max() < 0.15


def test_each_run_is_judged_by_its_own_rise() -> None:
    """A jump that is small beside the largest rise of all is large beside its run's own."""
    margins = {size: late_rise(STEPS, 0, 4.0) for size in SIZES}
    margins["310k"] = 0.6 * (STEPS >= 340)
    given = measured(margins)
    params = Params(sizes=",".join(SIZES))
    table = emergence.jumps_table(params, emergence.all_jumps(params, given))
    own = table[(table["size"] == "310k") & (table.measure == "margin")].iloc[0]
    assert own.able and own.share_low > 50 and own.jump < 0.5 * table.rise.max()
    assert sum_claims.largest_jump(table, "margin").estimate.low > 50


@pytest.mark.parametrize(("doublings", "verdict"), [(0, "reproduced"), (2, "contradicted")])
def test_the_product_of_probabilities_predicts_exact_answers_or_not(
    doublings: int, verdict: str
) -> None:
    """Log-probabilities scatter by 2 nats; the smallest size answers next to nothing exactly."""
    rng = np.random.default_rng(3)
    arrays = {"sums/count": np.full(OPERANDS, PER_OPERAND, np.uint8)}
    naive = []
    for i, size in enumerate(SIZES):
        shape = (len(STEPS), OPERANDS, PER_OPERAND)
        logprob = np.minimum(rng.normal(-9 + 1.5 * i, 2, shape), -1.5)
        exact = rng.random(shape) < np.exp(logprob) * 2**doublings
        for arm in DATA_ARMS:
            arrays[f"sums/steps/{size}/{arm}"] = STEPS.astype(np.int32)
            arrays[f"sums/exact/{size}/{arm}"] = exact.sum(2).astype(np.uint8)
            arrays[f"sums/product/{size}/{arm}"] = np.exp(logprob).mean(2).astype(np.float32)
        naive.append(np.log2(exact.mean() / np.exp(logprob.mean())))
    test = emergence.product(Params(sizes=",".join(SIZES)), Measurements(arrays, {}))
    assert test.estimate.low < doublings < test.estimate.high
    assert judge([Claim("It predicts.", "here", test)])[0]["ours"]["verdict"] == verdict
    assert np.mean(naive) > doublings + 1  # what the mean log-probability would say


def test_choices_must_rise_with_size() -> None:
    def verdict(ends: list[float]) -> str:
        table = pd.concat([
            pd.DataFrame({"measure": "choice", "arm": arm, "value": ends,
                          "n_params": 10.0 ** np.arange(4, 4 + len(ends))}) for arm in DATA_ARMS
        ])  # fmt: skip
        premise = Claim("They rise.", "here", sum_claims.over_size(table), kind="premise")
        return judge([premise])[0]["ours"]["verdict"]

    assert verdict([0.25, 0.3, 0.36, 0.4]) == "holds"
    assert verdict([0.25, 0.26, 0.24, 0.255]) == "not resolved"
    assert verdict([0.25, 0.4]) == "not testable here"


def verdicts(given: Measurements) -> dict[str, dict]:
    params = Params(sizes=",".join(SIZES), bootstrap=200)
    tables = emergence.tables_of(params, given)
    rows = judge(sum_claims.emergence_claims(params, given, tables, {}))
    numbers = emergence.values(params, given, tables)
    assert numbers["sums_asked"] == OPERANDS * PER_OPERAND
    return {row["claim"]: row["ours"] or row["released"] for row in rows}


def pick(rows: dict[str, dict], words: str) -> dict:
    (one,) = [row for claim, row in rows.items() if words in claim]
    return one


def test_smooth_margins_are_no_jump_and_predict_choices() -> None:
    rows = verdicts(measured({s: late_rise(STEPS, 0, 1 + 0.3 * i) for i, s in enumerate(SIZES)}))
    assert pick(rows, "no run jumps in choices")["verdict"] == "holds"
    assert pick(rows, "no run jumps in the margin")["verdict"] == "holds"
    assert pick(rows, "from the margin at sizes left out")["verdict"] == "holds"
    assert pick(rows, "from the margin to choices")["verdict"] in ("holds", "not resolved")
    assert pick(rows, "rises with size")["verdict"] == "holds"
    assert pick(rows, "abruptly with size")["verdict"] == "not testable here"


def test_a_jump_of_margins_is_seen_in_every_measure() -> None:
    margins = {size: late_rise(STEPS, 0, 0.1) for size in SIZES}
    margins["310k"] = margins["310k"] + 1.2 * (STEPS >= 340)
    rows = verdicts(measured(margins))
    for words in ("in choices", "in the margin", "in the log-probability"):
        row = pick(rows, f"no run jumps {words}")
        assert row["verdict"] == "does not hold", words
        assert re.search(r"310k \w+ at step 3[34]", row["note"]), row["note"]


def test_sizes_with_links_of_their_own_are_not_predicted() -> None:
    margins = {size: late_rise(STEPS, 0, 1.5) for size in SIZES}
    scatters = dict(zip(SIZES, (0.3, 0.6, 3.0, 6.0), strict=True))
    rows = verdicts(measured(margins, scatters))
    assert pick(rows, "from the margin at sizes left out")["verdict"] == "does not hold"


def test_a_link_can_beat_the_other_sizes_and_a_constant() -> None:
    tops = dict(zip(SIZES, (0.3, 0.3, 2.0, 2.0), strict=True))
    given = measured({size: late_rise(STEPS, 0, top) for size, top in tops.items()})
    links = emergence.links_table(Params(sizes=",".join(SIZES)), given)
    gain = sum_claims.link_gain(links, "choice", "margin")
    claim = Claim("It predicts better.", "here", gain, kind="hypothesis")
    assert judge([claim])[0]["ours"]["verdict"] == "holds"


def test_a_bound_that_a_constant_keeps_tests_no_link() -> None:
    """One size alone is far from the others, so the best constant errs little on average."""
    margins = {size: np.zeros(len(STEPS)) for size in SIZES}
    margins["600k"] = np.full(len(STEPS), 0.25)
    row = pick(verdicts(measured(margins)), "choices among four from the margin at sizes left out")
    assert row["verdict"] == "not testable here"
    assert "the best constant for each text errs by" in row["reason"]


def test_scores_that_never_rise_are_not_testable() -> None:
    rows = verdicts(measured({size: np.zeros(len(STEPS)) for size in SIZES}))
    reason = pick(rows, "no run jumps in choices")["reason"]
    assert "no run rises so much" in reason
    for words in ("from the margin at sizes left out", "from the margin to choices"):
        assert "a constant would predict them, too" in pick(rows, words)["reason"]


def test_steepness() -> None:
    share, place = released_sums.steepness(np.array([0.0, 0.01, 0.02, 0.72, 0.7, 0.9]))
    assert (share, place) == (pytest.approx(0.7 / 0.9), 3)
    assert released_sums.steepness(np.array([3.0, 2.0, 1.0])) == (pytest.approx(0.5), 1)  # a fall
    assert np.isnan(released_sums.steepness(np.zeros(4))[0])


def test_lambada_counts_only_sizes_that_were_asked_sums() -> None:
    nats = {"70m": 9.0, "160m": 4.0, "410m": 3.0, "1b": 2.0}
    lambada = pd.DataFrame({"model": nats.keys(), "step": 143_000, "nats": nats.values()})
    lambada["value"] = -lambada.nats
    sums = pd.DataFrame({"model": list(nats)[1:], "step": 143_000, "value": [0.1, 0.1, 0.9],
                         "operation": "subtraction", "shots": 0})  # fmt: skip
    numbers = released_sums._shares({"sums": sums, "lambada": lambada})
    assert numbers["released_lambada_share"] == pytest.approx(50)
    assert numbers["released_lambada_nats_share"] == pytest.approx(50)
    assert numbers["released_lambada_all_share"] == pytest.approx(500 / 7)
    assert numbers["released_lambada_factor"] == pytest.approx(302_311_424 / 85_056_000)
    assert numbers["released_sums_factor"] is None
    assert numbers["released_sums_most"] == pytest.approx(100)


def test_what_two_sizes_make_of_released_sums_is_no_test() -> None:
    rng = np.random.default_rng(0)
    means = {"160m": 0.02, "410m": 0.02, "1b": 0.03, "1.4b": 0.05, "2.8b": 0.7, "12b": 0.8}
    rows = [(model, number, rng.binomial(50, mean) / 50)
            for model, mean in means.items() for number in range(100)]  # fmt: skip
    operands = pd.DataFrame(rows, columns=["model", "number", "value"])
    (row,) = judge([released_sums.claim({"operands": operands}, 200)])
    test = row["released"]
    assert test["verdict"] == "not testable here"
    assert test["low"] < 100 * 0.65 / 0.78 < test["high"]
    assert "between 1.4b and 2.8b" in test["note"]


def test_large_runs_are_asked_at_the_checkpoints_they_keep() -> None:
    small = next(iter(suite_configs("laptop", ["7k"]).values()))
    assert sum_steps(small) == list(checkpoint_steps(572))
    large = next(iter(suite_configs("gpu", ["19m"]).values()))
    steps = sum_steps(large)
    assert len(steps) == 16 and steps[-1] == large.train.steps
