"""The gender-bias study: parameters, units, verdict rules, and the whole on fake runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gender_fakes import JOBS, fake_data, fake_find_or_train, fake_items
from pythia_book import records
from pythia_book.published.results import load
from pythia_book.stats import Z_95, estimate
from pythia_book.studies.gender_bias import claims as gender_claims
from pythia_book.studies.gender_bias import released_numbers as numbers
from pythia_book.studies.gender_bias import study as gender_bias
from pythia_book.studies.gender_bias.estimates import Sentences, Units, units_of
from pythia_book.studies.gender_bias.measures import TokenizedItems
from pythia_book.studies.gender_bias.study import ARMS, OVER_BRANCH, OVER_TRAINING, Params
from pythia_book.verdicts import judge
from score_files import as_folder, harness

from pythia_core.errors import ConfigError

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
    params = Params(sizes="85k,310k", seeds=3, bootstrap=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_WORKERS", "1")
        patch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
        patch.setattr(records, "recorded_folder", lambda study: None)
        result = gender_bias.run(params, False, items=fake_items(), find_or_train=train)
    return params, folder, train, result


def test_tables_contain_every_arm_size_and_measure(study):
    params, _, train, result = study
    placebos = 2 * 2 * 2
    assert len(train.made) == 2 * 3 * 3 + placebos
    levels = result.tables["levels"]
    assert set(levels.measure) >= {
        "crows_margin",
        "winobias",
        "stereoset",
        "last_word",
        "winobias_feminine",
    }
    assert len(levels) == 2 * 3 * levels.measure.nunique()
    assert (levels.low <= levels.value).all()
    assert (levels.value <= levels.high).all()
    assert set(levels.seeds) == {3}
    branch = result.tables["branch"]
    early = branch[branch.percent < 100 * 113 / 143 - 1]
    assert set(early.measure) == set(OVER_TRAINING)
    late = branch[(branch.percent >= 100 * 113 / 143 - 1) & (branch.percent < 100)]
    assert set(late.measure) == {*OVER_BRANCH, "winobias_feminine", "winobias_masculine"}
    changes = result.tables["branch_effects"]
    assert set(changes.arm) == {"swap_7", "swap_21"}
    for arm, index in ARMS.items():
        steps = sorted(set(branch[branch.arm == arm].step))
        expected = set(params.steps(arm)) | ({round(index * 4)} if index else set())
        assert steps == sorted(expected)
    occupations = result.tables["occupations"]
    assert set(occupations.occupation) == set(JOBS)
    assert set(occupations.n) == {3}
    assert result.tables["ledger"].tokens_changed.tolist() == ([280] * 3 + [840] * 3) * 2
    assert result.values["n_winobias"] == 20
    assert result.values["tokens_changed_swap_21"] == 840


def test_a_planted_shift_is_found_and_its_size_is_right(study):
    params, _, train, result = study
    effects = result.tables["effects"]
    share = effects[effects.measure == "feminine_share"].set_index(["size", "arm"])
    for size in params.size_list:
        assert share.value[size, "swap_7"] > 0
        assert share.value[size, "swap_21"] > share.value[size, "swap_7"]
    # From the definition, for one size and arm: the mean over seeds and occupations.
    tokenized = TokenizedItems(fake_items(), fake_data(64), 128)
    by_hand = []
    for run in train.made:
        if run.config.model.d_model == 48 and run.config.intervention is None:
            by_hand.append(tokenized.measure(run.model(572), full=False)["feminine_share"].mean())
    levels = result.tables["levels"].set_index(["size", "arm", "measure"])
    row = levels.loc[("85k", "control", "feminine_share")]
    assert row.value == pytest.approx(np.mean(by_hand))
    # seeds are the units: Student's t with two degrees of freedom
    assert row.high - row.value == pytest.approx(4.303 * np.std(by_hand, ddof=1) / 3**0.5, rel=1e-3)


def test_a_forks_first_point_is_its_parents(study):
    branch = study[3].tables["branch"].set_index(["size", "arm", "measure", "step"]).value
    for arm, fork in (("swap_7", 532), ("swap_21", 452)):
        key = ("85k", arm, "feminine_share", fork)
        assert branch[key] == branch["85k", "control", "feminine_share", fork]


def test_results_are_cached_with_the_runs(study, monkeypatch):
    params, folder, _, result = study
    again = fake_find_or_train(folder)
    measured = gender_bias.measure(params, False, fake_items(), again)
    assert all(run.calls == [] for run in again.made)  # no model was even loaded
    assert measured.facts == result.measured.facts
    for name, array in measured.arrays.items():
        assert np.array_equal(array, result.measured.arrays[name])


def test_a_redraw_gives_the_same_result_without_models(study, tmp_path, monkeypatch):
    """And the measurements are small: choices are bits, numbers have seven digits."""
    params, _, _, result = study
    records.save_record(result, tmp_path)
    assert {a.dtype.name for a in result.measured.arrays.values()} == {"bool", "float32", "uint8"}
    monkeypatch.setenv(records.REDRAW_FROM, str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    again = gender_bias.run(params, False, find_or_train=lambda *_: pytest.fail("trains"))
    for name, table in result.tables.items():
        assert table.equals(again.tables[name])
    assert json.dumps(result.claims) == json.dumps(again.claims)
    assert records._plain(result.values) == records._plain(again.values)


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


# --- units of resampling ---------------------------------------------------------------------


def sentences(occupations: int = 40, each: int = 19) -> Sentences:
    index = np.repeat(np.arange(occupations), each)
    return Sentences(index, index % 2 == 0)


@pytest.mark.parametrize("shift", [0.0, 0.3], ids=["null", "planted"])
def test_winobias_intervals_cover_when_sentences_share_an_occupation(shift):
    """Resampling sentences, as if they were independent, would cover far less often."""
    rng, which, inside, naive = np.random.default_rng(4), sentences(), 0, 0
    for _ in range(200):
        of_occupation = rng.normal(shift, 1, 40)
        values = (of_occupation[which.occupation] + rng.normal(0, 0.5, 760))[None]
        units = next(iter(units_of("winobias_margin", values, which)))
        assert units.values.shape == (1, 40)
        e = units.interval(300, change=True)
        inside += e.low <= shift <= e.high
        e = estimate(values, 300)
        naive += e.low <= shift <= e.high
    assert 0.9 <= inside / 200 <= 0.99
    assert naive / 200 < 0.5


def test_winobias_has_its_halves_and_other_measures_keep_their_items():
    which = sentences(4, 5)
    values = np.where(which.feminine, 1.0, 0.0)[None]
    whole, feminine, masculine = units_of("winobias", values, which)
    assert whole.values.tolist() == [[1, 0, 1, 0]]
    assert (feminine.measure, feminine.values.mean()) == ("winobias_feminine", 1)
    assert (masculine.measure, masculine.values.mean()) == ("winobias_masculine", 0)
    (crows,) = units_of("crows", values.astype(bool), which)
    assert crows.values.shape == (1, 20)


def test_a_slope_over_sizes_is_per_tenfold_nominal_size():
    sizes, slope = ["70m", "700m", "7b"], 5.0
    found = numbers.per_tenfold(sizes, [0, slope, 2 * slope])
    assert found.value == pytest.approx(slope) and found.df == 1
    assert numbers.per_tenfold(sizes[:2], [0, slope]) is None  # no test


def test_the_standard_models_are_read_from_either_source(tmp_path):
    v1 = "evals/pythia-v1/pythia"
    tree = {
        f"{v1}-1b-bf16/zero-shot/1b-5shot_step143000.json": harness(0.7, None),
        f"{v1}-70m/zero-shot/70m_step143000.json": harness(0.5, None),
        f"{v1}-70m/zero-shot/70m_step13000.json": harness(0.1, None),
        f"{v1}-70m-deduped/zero-shot/70m-deduped_step143000.json": harness(0.2, None),
        f"{v1}-160m-1MtokBS/zero-shot/160m_step143000.json": harness(0.3, None),
    }
    found = numbers.crows_standard(as_folder(tmp_path / "tree", tree))
    assert found[["size", "value"]].values.tolist() == [["70m", 0.5], ["1b", 0.7]]
    assert numbers.crows_standard(None).empty
    if source := os.environ.get("PYTHIA_PUBLISHED_DIR"):
        assert len(numbers.crows_standard(Path(source))) == 8


# --- claims ----------------------------------------------------------------------------------

FEMININE = np.arange(200) % 2
"""Stereotype of the made-up occupations."""


def final_with(
    changes: dict[str, dict[str, float]],
    sizes=("85k", "310k"),
    seeds=5,
    association=0.2,
    rng=None,
    spread=0.01,
) -> dict:
    """Units at the end: controls with a stereotype, arms shifted by `changes`, seeds that vary."""
    rng = rng or np.random.default_rng(0)
    final = {}
    for size in sizes:
        base = {m: rng.uniform(0.4, 0.8, (1, 200)) for m in ("winobias", "crows", "last_word")}
        base["feminine_share"] = rng.uniform(0.3, 0.5, (1, 200)) + association * FEMININE
        for arm in ARMS:
            shifts = changes.get(arm, {})
            noise = rng.normal(0, spread, (seeds, 1)) * (arm != "control")
            final[size, arm] = {
                m: Units(m, np.repeat(v, seeds, 0) + shifts.get(m, 0) + noise)
                for m, v in base.items()
            }
    return final


def verdicts(final, params=None, released=None, side="ours") -> dict[str, dict]:
    """Text of each claim -> its judged test on one side."""
    params = params or Params(sizes="85k,310k", seeds=5, bootstrap=300)
    rows = judge(gender_claims.claims(params, final, released or {}, FEMININE))
    return {row["claim"]: row[side] for row in rows if row[side]}


def the(tests: dict[str, dict], *words: str) -> dict:
    """The only test whose claim contains all of these words."""
    (found,) = [test for text, test in tests.items() if all(word in text for word in words)]
    return found


PLANTED = {
    "swap_7": {"feminine_share": 0.2, "winobias": -0.15, "crows": 0.1, "last_word": -0.001},
    "swap_21": {"feminine_share": 0.4, "winobias": -0.2, "crows": -0.1, "last_word": -0.1},
}


def test_planted_effects_get_the_right_verdicts():
    tests = verdicts(final_with(PLANTED))
    assert the(tests, "last 7 % of training", "feminine share")["verdict"] == "holds"
    assert the(tests, "last 21 %", "more than")["value"] == pytest.approx(20, abs=2)
    assert the(tests, "last 7 %", "WinoBias")["verdict"] == "reproduced"
    assert the(tests, "last 21 %", "CrowS-Pairs")["verdict"] == "reproduced"
    assert the(tests, "last 7 %", "CrowS-Pairs")["verdict"] == "contradicted"
    assert the(tests, "last 7 %", "LAMBADA")["verdict"] == "reproduced"
    assert the(tests, "last 21 %", "LAMBADA")["verdict"] == "contradicted"
    assert the(tests, "controls expect more feminine")["verdict"] == "holds"
    assert "5 seeds" in the(tests, "last 7 %", "WinoBias")["units"]


def test_without_an_effect_few_claims_are_reproduced():
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(60):
        tests = verdicts(final_with({}, rng=rng, spread=0.03))
        swap = [t for text, t in tests.items() if "CrowS" in text and "last" in text]
        wrong += any(test["verdict"] in ("reproduced", "contradicted") for test in swap)
    assert wrong / 60 <= 0.1


def test_one_seed_gives_no_verdict_on_the_swap():
    tests = verdicts(final_with(PLANTED, seeds=1), Params(sizes="85k,310k", bootstrap=300))
    for words in (("feminine share",), ("WinoBias", "lowers"), ("LAMBADA",)):
        test = the(tests, "last 7 % of training", *words)
        assert test["verdict"] == "not testable here" and test["reason"].startswith("one seed")
        assert "2 sizes" in test["units"] and test["low"] < test["value"] < test["high"]
    # what the controls have is about these controls, so items are its units
    assert the(tests, "controls expect more feminine")["verdict"] == "holds"


@pytest.mark.parametrize(
    ("association", "level", "missing"),
    [(0.0, 0.0, "an occupational stereotype"), (0.2, -0.1, "above chance on WinoBias")],
)
def test_claims_whose_premise_fails_are_not_testable(association, level, missing):
    final = final_with(PLANTED, association=association)
    for arrays in final.values():
        units = arrays["winobias"]
        arrays["winobias"] = Units("winobias", units.values + level)
    tests = verdicts(final)
    for words in (("last 7 %", "lowers"), ("last 21 %", "lowers"), ("turns",)):
        test = the(tests, "WinoBias", *words)
        assert test["verdict"] == "not testable here" and missing in test["reason"]
    by_size = the(tests, "before the swap")  # about CrowS-Pairs, whose premise holds
    assert "controls" not in (by_size["reason"] or "")


def test_claims_that_this_run_cannot_test():
    single = verdicts(final_with({}, ("85k",)), Params(sizes="85k", seeds=5, bootstrap=300))
    for words in (("before the swap",), ("less pro-stereotypical",), ("WinoBias most",)):
        assert "single size" in the(single, *words)["reason"]
    mirror = Params(sizes="85k,310k", seeds=5, swap="feminine_to_masculine", bootstrap=300)
    moved = final_with({"swap_7": {"feminine_share": -0.2, "winobias": -0.1}})
    tests = verdicts(moved, mirror)
    assert the(tests, "last 7 % of training", "lowers the feminine share")["verdict"] == "holds"
    assert "paper replaced" in the(tests, "last 7 %", "accuracy on WinoBias")["reason"]


def released_with(tree: dict, path) -> dict:
    return records.as_recorded(numbers.select(load(as_folder(path, tree))))


def test_released_numbers_are_compared_like_with_like(tmp_path):
    v1 = "evals/pythia-v1/pythia-410m-deduped"
    tree = {
        f"{v1}/baseline/baseline-410m-deduped_step134000.json": harness(0.60, None),
        f"{v1}/baseline/baseline-410m-deduped_step143000.json": harness(0.62, 0.52),
        f"{v1}/intervention/intervention-410m-deduped_step134000.json": harness(0.63, 0.40),
        f"{v1}/intervention/intervention-410m-deduped_step143000.json": harness(0.65, 0.51),
    }
    tests = verdicts(final_with({}), released=released_with(tree, tmp_path), side="released")
    crows = the(tests, "last 7 %", "lowers the CrowS-Pairs gender bias")
    assert crows["value"] == pytest.approx(3) and crows["note"] == "410m 61.0 to 64.0"
    # one model: its items' errors, 2.7 points in each arm, not divided by the two checkpoints
    assert crows["high"] - crows["value"] == pytest.approx(Z_95 * 2.7 * 2**0.5)
    # the control has a LAMBADA score at the last step only; the swap's mean must use no other
    cost = the(tests, "last 7 %", "LAMBADA")
    assert cost["value"] == pytest.approx(1) and "1 checkpoint" in cost["units"]
    assert "both arms" in the(tests, "last 21 %", "CrowS-Pairs")["reason"]


def test_without_released_numbers_their_tests_say_so():
    tests = verdicts(final_with({}), side="released")
    assert {test["verdict"] for test in tests.values()} == {"not testable here"}
    assert "PYTHIA_PUBLISHED_DIR" in the(tests, "eight deduplicated")["reason"]


def test_the_released_models(monkeypatch):
    """Facts checked by hand on the public files."""
    source = os.environ.get("PYTHIA_PUBLISHED_DIR")
    if not source:
        pytest.skip("needs the released numbers: set PYTHIA_PUBLISHED_DIR (see the README)")
    tables = records.as_recorded(numbers.select(load(source)))
    tests = verdicts(final_with({}), released=tables, side="released")
    crows = the(tests, "last 7 %", "lowers the CrowS-Pairs gender bias")
    assert crows["note"].startswith("70m 54.7 to 57.0") and crows["verdict"] == "not resolved"
    # agreement that would follow from no swap as well
    for words in (("last 7 %", "LAMBADA"), ("last 21 %", "LAMBADA"), ("eight biases unchanged",)):
        test = the(tests, *words)
        assert test["verdict"] == "not testable here" and "without a swap" in test["reason"]
        assert test["low"] < test["value"] < test["high"]
    assert gender_bias.released_values(tables)["crows_rise_70m"] == "2.3"
    note = the(tests, "before the swap")["note"].replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "2.7 [\N{MINUS SIGN}2.2, 7.5] over the 8 dedup" in note
        and "7.0 [3.3, 10.7] over the 8 stan" in note
    )
    lead = the(tests, "stand for", "narrows the lead")
    assert "6.9b 16.6 to 16.5" in lead["note"] and "3 models" in lead["units"]
    first = the(tests, "first suite")
    assert "4 models" in first["units"] and abs(first["value"]) < 0.5
    assert the(tests, "6.9B model answers")["verdict"] == "does not hold"
    ends = numbers.at_end(tables["crows_biases"], "swap_7", ("bias",))
    assert set(ends.groupby("size").bias.nunique()) == {9}
    # the jump of one prompt, for both sides, at the first swapped checkpoint
    assert numbers.first_swapped(tables["winobias"], "refers_to")[0] == "410m 2.1 to 19.3"
    assert sum(len(table.to_csv()) for table in tables.values()) < 2e5
