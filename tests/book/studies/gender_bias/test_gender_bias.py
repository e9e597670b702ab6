"""The gender-bias study: parameters, statistics, verdict rules, and the whole on fake runs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from gender_fakes import JOBS, fake_data, fake_find_or_train, fake_items
from pythia_book.stats import directional_verdict, estimate, noninferiority_verdict, premise_verdict
from pythia_book.studies.gender_bias import claims as gender_claims
from pythia_book.studies.gender_bias import study as gender_bias
from pythia_book.studies.gender_bias.measures import TRACKED_MEASURES, TokenizedItems
from pythia_book.studies.gender_bias.study import ARMS, Params

from pythia_core.errors import ConfigError, DataError

# --- statistics ------------------------------------------------------------------------------


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
    assert directional_verdict(change.low, change.high, +1) == "reproduced"
    assert directional_verdict(change.low, change.high, -1) == "not reproduced"


def test_no_effect_is_mostly_not_found():
    rng = np.random.default_rng(2)
    verdicts = []
    for _ in range(200):
        control, arm = rng.integers(0, 2, (2, 1, 200))
        e = estimate(arm - control, 400)
        verdicts.append(directional_verdict(e.low, e.high, -1))
    assert verdicts.count("no effect") / 200 > 0.88


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
    ("low", "high", "direction", "verdict"),
    [
        (0.1, 0.2, 1, "reproduced"),
        (-0.2, -0.1, 1, "not reproduced"),
        (-0.2, -0.1, -1, "reproduced"),
        (0.1, 0.2, -1, "not reproduced"),
        (-0.1, 0.1, 1, "no effect"),
        (0.0, 0.1, 1, "no effect"),
    ],
)
def test_verdict_rule(low, high, direction, verdict):
    assert directional_verdict(low, high, direction) == verdict


def test_small_cost_rule():
    assert noninferiority_verdict(-1.0, 1.9, 2.0) == "reproduced"
    assert premise_verdict(0.1, 0.2, 1) == "holds"
    assert premise_verdict(0.1, 0.2, -1) == "does not hold"
    assert premise_verdict(-0.1, 0.2, 1) == "no effect"
    assert noninferiority_verdict(2.1, 5.0, 2.0) == "not reproduced"
    assert noninferiority_verdict(1.0, 3.0, 2.0) == "not testable here"


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: estimate(np.zeros((1, 0)), 500), DataError),
        (lambda: estimate(np.zeros(5), 500), DataError),
        (lambda: estimate(np.array([[1.0, np.nan]]), 500), DataError),
        (lambda: estimate(np.zeros((1, 5)), 50), ConfigError),
        (lambda: directional_verdict(0, 1, 0), ConfigError),
        (lambda: noninferiority_verdict(0, 1, 0), ConfigError),
    ],
)
def test_bad_statistics_input(make, error):
    with pytest.raises(error):
        make()


# --- parameters ------------------------------------------------------------------------------


def test_defaults_and_order_of_sizes():
    assert Params().size_list == ("25k", "150k", "600k")
    assert Params(scale="smoke").size_list == ("7k",)
    assert Params(sizes=" 600k, 25k ").size_list == ("25k", "600k")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scale": "huge"}, "accepted: smoke"),
        ({"sizes": "310k,9q"}, "unknown size '9q'"),
        ({"sizes": "310k,310k"}, "more than once"),
        ({"sizes": ","}, "no sizes"),
        ({"swap": "he_to_she"}, "masculine_to_feminine"),
        ({"seeds": 0}, "1..100"),
        ({"seeds": "two"}, "'two'"),
        ({"seeds": True}, "whole number"),
        ({"bootstrap": 3}, "100..1000000"),
        ({"bootstrap": 200.5}, "200.5"),
        ({"sizes": 3}, "must be text"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        Params(**params)


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError, match="2 problems"):
        Params(seeds=0, bootstrap=1)


def test_arms_fork_where_the_paper_did_and_share_everything_else():
    params = Params(sizes="310k")
    control = params.arm("310k", 2, "control")
    assert (control.data.order_seed, control.train.weight_seed) == (1236, 1236)
    for arm, start in (("swap_7", 532), ("swap_21", 452)):
        fork = params.arm("310k", 2, arm)
        assert (fork.intervention.start, fork.intervention.stop) == (start, 572)
        assert fork.parent == control
        assert min(params.steps(arm)) > start
        assert max(params.steps(arm)) == 572
    assert {0, 452, 532, 572} <= set(params.steps("control"))
    assert set(params.steps("swap_21")) < set(params.steps("control"))


# --- the whole, on fakes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    train = fake_find_or_train(folder)
    params = Params(sizes="85k,310k", seeds=2, bootstrap=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_WORKERS", "1")
        result = gender_bias.run(params, False, items=fake_items(), find_or_train=train)
    return params, folder, train, result


def test_tables_contain_every_arm_size_and_measure(study):
    params, _, train, result = study
    assert len(train.made) == 2 * 2 * 3
    levels = result.tables["levels"]
    assert set(levels.measure) >= {
        *TRACKED_MEASURES,
        "winobias",
        "stereoset",
        "last_word",
        "winobias_feminine",
    }
    assert len(levels) == 2 * 3 * levels.measure.nunique()
    assert (levels.low <= levels.value).all()
    assert (levels.value <= levels.high).all()
    assert set(levels.seeds) == {2}
    branch = result.tables["branch"]
    early = branch[branch.percent < 100 * 113 / 143 - 1]
    assert set(early.measure) == set(TRACKED_MEASURES)
    assert set(branch.measure) == set(levels.measure)
    changes = result.tables["branch_effects"]
    assert set(changes.arm) == {"swap_7", "swap_21"}
    for arm, index in ARMS.items():
        steps = sorted(set(branch[branch.arm == arm].step))
        expected = set(params.steps(arm)) | ({round(index * 4)} if index else set())
        assert steps == sorted(expected)
    occupations = result.tables["occupations"]
    assert set(occupations.occupation) == set(JOBS)
    assert set(occupations.n) == {3}
    assert result.tables["ledger"].tokens_changed.tolist() == [280, 280, 840, 840] * 2
    assert result.values["n_winobias"] == 20
    assert result.values["tokens_changed_swap_21"] == 840


def test_a_planted_shift_is_found_and_its_size_is_right(study):
    params, _, train, result = study
    effects = result.tables["effects"]
    share = effects[effects.measure == "feminine_share"].set_index(["size", "arm"])
    for size in params.size_list:
        assert share.low[size, "swap_7"] > 0
        assert share.value[size, "swap_21"] > share.value[size, "swap_7"]
    # From the definition, for one size and arm: the mean over seeds and occupations.
    tokenized = TokenizedItems(fake_items(), fake_data(64), 128)
    by_hand = []
    for run in train.made:
        if run.config.model.d_model == 48 and run.config.intervention is None:
            by_hand.append(tokenized.measure(run.model(572), full=False)["feminine_share"].mean())
    levels = result.tables["levels"].set_index(["size", "arm", "measure"]).value
    assert levels["85k", "control", "feminine_share"] == pytest.approx(np.mean(by_hand))


def test_a_forks_first_point_is_its_parents(study):
    branch = study[3].tables["branch"].set_index(["size", "arm", "measure", "step"]).value
    for arm, fork in (("swap_7", 532), ("swap_21", 452)):
        key = ("85k", arm, "feminine_share", fork)
        assert branch[key] == branch["85k", "control", "feminine_share", fork]


def test_results_are_cached_with_the_runs(study):
    params, folder, _, result = study
    again = fake_find_or_train(folder)
    second = gender_bias.run(params, progress=False, items=fake_items(), find_or_train=again)
    assert all(run.calls == [] for run in again.made)  # no model was even loaded
    for name, table in result.tables.items():
        assert table.equals(second.tables[name])
    assert json.dumps(result.claims) == json.dumps(second.claims)


def test_pairs_that_are_too_long_are_left_out_and_counted():
    items = fake_items()
    items.crows[0] = SimpleNamespace(more=items.crows[0].more * 20, less="He was.")
    tokenized = TokenizedItems(items, fake_data(64), 64)
    assert tokenized.too_long["CrowS-Pairs"] == 1
    assert len(tokenized.crows) == 2 * (len(items.crows) - 1)


def test_choices_follow_from_the_scores_by_hand():
    from pythia_book.studies.gender_bias.measures import _choices

    from pythia_core.evaluation.scoring import Scores

    scores = Scores(
        np.array([-4.0, -3.0, -2.0, -2.0, -6.0, -5.0]), np.array([4, 2, 2, 2, 6, 4]), None
    )
    choices = _choices("x", scores)
    assert choices["x"].tolist() == [0, 0, 0]  # a tie does not count as a stereotype
    assert choices["x_per_token"].tolist() == [1, 0, 1]
    assert choices["x_margin"].tolist() == [-1, 0, -1]


# --- claims ----------------------------------------------------------------------------------


def final_with(changes: dict[str, dict[str, float]], sizes=("85k", "310k")) -> dict:
    """Final arrays of 200 items: controls around .5 (WinoBias .6), arms shifted by `changes`."""
    rng = np.random.default_rng(0)
    final = {}
    for size in sizes:
        base = {m: rng.uniform(0, 1, (1, 200)) for m in ("feminine_share", "crows", "last_word")}
        base["winobias"] = rng.uniform(0.4, 0.8, (1, 200))
        for arm in ARMS:
            shifts = changes.get(arm, {})
            noise = rng.normal(0, 0.01, (1, 200))
            final[size, arm] = {
                m: v + shifts.get(m, 0) + noise * (arm != "control") for m, v in base.items()
            }
    return final


def claims(final, params=None, released=None) -> dict[str, dict]:
    params = params or Params(sizes="85k,310k", bootstrap=300)
    return {c["claim"]: c for c in gender_claims.claims(params, final, released)}


def the_claim(claims_by_text: dict[str, dict], *words: str) -> dict:
    """The only claim whose text contains all of these words."""
    (claim,) = [c for text, c in claims_by_text.items() if all(word in text for word in words)]
    return claim


def test_claims_follow_the_rules():
    moved = {"feminine_share": 0.2, "winobias": -0.1, "crows": 0.05, "last_word": -0.01}
    more = {"feminine_share": 0.5, "winobias": -0.2, "crows": 0.0, "last_word": -0.1}
    rows = claims(final_with({"swap_7": moved, "swap_21": more}))
    assert the_claim(rows, "moves the feminine share")["verdict"] == "holds"
    assert the_claim(rows, "moves it further")["ours"] == pytest.approx(30, abs=1)
    assert the_claim(rows, "last 7 %", "WinoBias")["verdict"] == "reproduced"
    # the controls show no stereotype on CrowS-Pairs, so there is none to lower
    assert the_claim(rows, "last 7 %", "lowers CrowS-Pairs")["verdict"] == "not testable here"
    assert the_claim(rows, "turns from pro-")["verdict"] == "no effect"  # .6 - .1 = .5
    assert the_claim(rows, "last 7 %", "last words")["verdict"] == "reproduced"
    assert the_claim(rows, "last 21 %", "last words")["verdict"] == "not reproduced"
    for claim in rows.values():
        assert set(claim) == {"claim", "paper", "published", "ours", "low", "high", "verdict"}
        assert claim["low"] <= claim["ours"] <= claim["high"]
        assert claim["published"] in (gender_claims.UNAVAILABLE, gender_claims.NOT_RELEASED)


def test_claims_whose_premise_fails_are_not_testable():
    nothing = final_with({})
    for arrays in nothing.values():
        arrays["winobias"] = np.tile([[0.0, 1.0]], 100)  # at chance
        arrays["last_word"] = np.zeros((1, 200))  # nothing to lose
    rows = claims(nothing)
    assert the_claim(rows, "turns from pro-")["verdict"] == "not testable here"
    assert the_claim(rows, "last 7 %", "last words")["verdict"] == "not testable here"
    single = claims(final_with({}, ("85k",)), Params(sizes="85k", bootstrap=300))
    assert the_claim(single, "larger in larger")["ours"] is None
    mirror = Params(sizes="85k,310k", swap="feminine_to_masculine", bootstrap=300)
    rows = claims(final_with({"swap_7": {"feminine_share": -0.2, "winobias": -0.1}}), mirror)
    assert the_claim(rows, "moves the feminine share")["verdict"] == "holds"
    assert the_claim(rows, "last 7 %", "WinoBias")["verdict"] == "not testable here"


def test_released_numbers_are_compared_like_with_like(tmp_path):
    from pythia_book.published.results import load
    from score_files import as_folder, harness

    v1 = "evals/pythia-v1/pythia-410m-deduped"
    tree = {
        f"{v1}/baseline/baseline-410m-deduped_step134000.json": harness(0.60, None),
        f"{v1}/baseline/baseline-410m-deduped_step143000.json": harness(0.62, 0.52),
        f"{v1}/intervention/intervention-410m-deduped_step134000.json": harness(0.63, 0.40),
        f"{v1}/intervention/intervention-410m-deduped_step143000.json": harness(0.65, 0.51),
    }
    rows = claims(final_with({}), released=load(as_folder(tmp_path, tree)))
    assert the_claim(rows, "last 7 %", "lowers CrowS-Pairs")["published"] == "410m 61.0 → 64.0"
    assert the_claim(rows, "larger in larger")["published"] == "410m 61.0"
    # the control has a LAMBADA score at the last step only; the swap's mean must use no other
    assert the_claim(rows, "last 7 %", "last words")["published"] == "410m 52.0 → 51.0"
    assert (
        the_claim(rows, "last 21 %", "lowers CrowS-Pairs")["published"]
        == gender_claims.NOT_RELEASED
    )


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
