"""The gender-bias study: arms, slopes, what is retained, verdict rules, and released numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gender_fakes import RETAINED, SHIFTS, fake_data, fake_items, measurements
from pythia_book import records
from pythia_book.corpora import occupations
from pythia_book.published.results import load
from pythia_book.stats import Z_95, estimate, mean_over
from pythia_book.studies.gender_bias import associations, evidence
from pythia_book.studies.gender_bias import params as gender
from pythia_book.studies.gender_bias import released_numbers as numbers
from pythia_book.studies.gender_bias import study as gender_bias
from pythia_book.studies.gender_bias.estimates import Sentences, units_of
from pythia_book.studies.gender_bias.measures import TokenizedItems
from pythia_book.studies.gender_bias.params import ARMS, CONTROL, Params
from pythia_book.verdicts import judge
from score_files import as_folder, harness

from pythia_core.data.interventions import make_ledger
from pythia_core.data.order import batch_hash
from pythia_core.data.prepare import prepare
from pythia_core.errors import ConfigError
from pythia_core.suite import size_named

# --- parameters and arms ---------------------------------------------------------------------


def test_defaults_and_order_of_sizes():
    assert Params().size_list == ("25k", "85k")
    assert Params(scale="smoke").size_list == ("7k",)
    assert Params(sizes=" 600k, 25k ").size_list == ("25k", "600k")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scale": "huge"}, "accepted: smoke"),
        ({"sizes": "310k,9q"}, "unknown size '9q'"),
        ({"sizes": "310k,310k"}, "more than once"),
        ({"sizes": ","}, "no sizes"),
        ({"seeds": 0}, "1..100"),
        ({"seeds": "two"}, "'two'"),
        ({"seeds": True}, "whole number"),
        ({"flat_seeds": -1}, "0..100"),
        ({"crossed_seeds": 2.5}, "2.5"),
        ({"sizes": 3}, "must be text"),
        ({"sizes": "25k,85k", "crossed_seeds": 1}, "needs at least three sizes.*got 25k, 85k"),
        ({"scale": "paper", "flat_seeds": 1}, "flat_seeds must be 0 at the scale 'paper'"),
    ],
)
def test_bad_parameters_are_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        Params(**params)


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError, match="2 problems"):
        Params(seeds=0, flat_seeds=-1)


def test_arms_fork_where_the_paper_did_and_share_everything_else():
    params = Params(sizes="310k", seeds=3)
    control = params.config("310k", 2, CONTROL)
    assert (control.data.order_seed, control.train.weight_seed) == (1236, 1236)
    for arm, made in ARMS.items():
        fork = params.config("310k", 2, arm)
        start = {7: 532, 21: 452}[made.window]
        stop = 532 if arm == "restored" else 572
        assert (fork.intervention.start, fork.intervention.stop) == (start, stop)
        assert fork.parent == control
        assert params.steps(arm) == ((532, 572) if arm == "swap_21" else (572,))
    assert params.steps(CONTROL) == (452, 532, 572)
    only, prose = (params.config("310k", 0, f"{a}_21").intervention for a in ("only", "complement"))
    assert only.domains == ("occupations",) and "occupations" not in prose.domains
    assert {"books", "canaries"} < set(prose.domains)
    assert Params("paper").arms == ("swap_7", "swap_21")


def test_control_experiments_have_models_of_their_own():
    params = Params(sizes="25k,310k,600k", seeds=2, crossed_seeds=3, flat_seeds=4)
    crossed, flat = "600k at the rate of 310k", "25k without association"
    assert list(params.models)[3:] == ["25k at the rate of 310k", crossed, flat]
    assert params.config(crossed, 0, CONTROL).train.lr_max == size_named("310k").lr_max
    four = Params(sizes="25k,85k,310k,600k", crossed_seeds=1)
    assert list(four.models)[4:] == ["25k at the rate of 85k", "600k at the rate of 85k"]
    assert params.config("600k", 0, CONTROL).train.lr_max == size_named("600k").lr_max
    only = params.config(flat, 3, "only_21")
    assert only.intervention.domains == ("occupations_flat",)
    assert "occupations_flat" in only.data.domains and "occupations" not in only.data.domains
    assert len(list(params.cells())) == 3 * 2 * 11 + 2 * 3 * 3 + 4 * 11
    assert len(gender.runs(params)) == len(list(params.cells()))


# --- slopes and what is retained -------------------------------------------------------------


def found(params, measured):
    tables = associations.analyze_associations(params, measured)
    return tables, associations.Slopes(params, tables["associations"])


def test_known_associations_and_shifts_are_found():
    params = Params(sizes="25k,310k", seeds=8)
    tables, slopes = found(params, measurements(params, np.random.default_rng(0)))
    table = tables["retained"]
    table = table[(table.group == "invented") & (table.frames == "unseen")]
    for row in table.itertuples():
        assert row.value == pytest.approx(RETAINED[row.arm], abs=0.06)
        assert row.shift == pytest.approx(SHIFTS.get(row.arm, 0), abs=0.3)
    assert slopes.of("25k", CONTROL).mean() == pytest.approx(0.3, abs=0.03)
    own = mean_over(slopes.difference("25k", "swap_21", "absent_21"))
    assert own.value == pytest.approx(0.3 * (0.4 - 0.7), abs=0.02) and own.high < 0
    assert set(tables["contrasts"].against) == {"fork", CONTROL, "absent_21"}


def test_slopes_are_those_of_a_regression_on_what_the_seed_has_read():
    params = Params(sizes="25k", seeds=2)
    measured = measurements(params, np.random.default_rng(1))
    tables, _ = found(params, measured)
    row = (
        tables["associations"]
        .query(
            "seed == 1 and arm == 'swap_21' and step == 572 and frames == 'natural'"
            " and group == 'occupations'"
        )
        .iloc[0]
    )
    jobs = [n["group"] == "occupations" for n in measured.facts["nouns"]]
    y = measured.arrays["log_odds/25k/1/swap_21/572"][2][jobs]
    by_hand = np.polyfit(measured.arrays["read/1"][jobs], y, 1)
    assert row.slope == pytest.approx(by_hand[0], rel=1e-4)
    assert row.prior == pytest.approx(y.mean(), rel=1e-5)


def test_nothing_is_retained_of_an_association_that_was_not_learned():
    params = Params(sizes="25k", seeds=5)
    tables, slopes = found(params, measurements(params, np.random.default_rng(2), association=0))
    primary = tables["retained"].query("group == 'invented' and frames == 'unseen'")
    assert primary.value.isna().all() and not primary["shift"].isna().any()
    assert slopes.retained("25k", "swap_21") is None


@pytest.mark.parametrize("reference", associations.REFERENCES)
@pytest.mark.parametrize("shift", [-4.0, -0.5, 0.5, 4.0])
def test_references_shift_the_mean_and_lose_room_for_differences(reference, shift):
    odds, read = np.linspace(-2, 2, 9)[None], np.linspace(-3, 3, 9)
    moved = associations.moved(odds, shift, reference)
    assert (moved - odds).mean() == pytest.approx(shift)
    slope = associations.reference_slope(odds, read, shift, reference)
    assert slope == pytest.approx(np.polyfit(read, moved[0], 1)[0])
    assert (
        0 < slope < 2 / 3 == pytest.approx(associations.reference_slope(odds, read, 0, reference))
    )
    # the other direction is the same thing, seen from the other side
    mirrored = associations.moved(-odds[:, ::-1], -shift, reference)
    assert np.allclose(mirrored, -moved[:, ::-1])


def test_references_are_what_they_are_said_to_be():
    odds = np.linspace(-2, 2, 9)
    mixed = associations.moved(odds, 1.0, associations.MIXTURE)
    p, q = (1 / (1 + np.exp(-x)) for x in (odds, mixed))
    assert np.ptp((q - p) / (1 - p)) < 1e-9  # the same fraction of the way to 1
    climbed, time = odds.copy(), 0.0
    while (climbed - odds).mean() < 1.0:  # small steps along the gradient of log P
        climbed += 1e-4 / (1 + np.exp(climbed))
        time += 1e-4
    assert np.allclose(associations.moved(odds, 1.0, associations.GRADIENT), climbed, atol=1e-3)
    strict, loose = (
        associations.reference_slope(odds[None], odds, 4.0, r) for r in associations.REFERENCES
    )
    assert strict > loose


# --- verdicts --------------------------------------------------------------------------------

PLANTED = {
    "complement_21": {"winobias_feminine": 0.4, "winobias_masculine": -0.4, "crows": -0.03},
    "swap_21": {"loss_rest": 0.01},
    "swap_7": {"loss_rest": 0.05},
}
SIZES = "25k,310k"
MORE = {"310k": {"swap_21": 0.8, "swap_7": 0.8}}


def verdicts(measured, params, released=None, side="ours") -> dict[str, dict]:
    """Text of each claim -> its judged test on one side."""
    _, _, rows = gender_bias.analyze(params, measured, released or {})
    return {row["claim"]: row[side] for row in judge(rows) if row[side]}


def the(tests: dict[str, dict], *words: str) -> dict:
    """The only test whose claim contains all of these words."""
    (test,) = [test for text, test in tests.items() if all(word in text for word in words)]
    return test


def test_planted_effects_get_the_right_verdicts():
    params = Params(sizes=SIZES, seeds=8, flat_seeds=4)
    measured = measurements(params, np.random.default_rng(3), MORE, scores=PLANTED)
    tests = verdicts(measured, params)
    larger = the(tests, "Under the swap in the last 21 %")
    assert larger["verdict"] == "holds" and larger["value"] == pytest.approx(0.4, abs=0.07)
    assert "beyond the reference" in the(tests, "planted frames")["note"]
    for words in (
        ("planted frames",), ("same fraction",), ("The shuffle, which",), ("alone leaves less",),
        ("everything but", "leaves the association"), ("placebo",), ("text returns",),
        ("CrowS-Pairs score for gender",),
        ("controls of 25k",), ("The mirror",), ("last 21 %", "raises the prior"),
        ("The shuffle leaves the prior",),
    ):  # fmt: skip
        assert the(tests, *words)["verdict"] == "holds", words
    assert the(tests, "none in any arm")["verdict"] == "holds"
    assert the(tests, "last 7 %", "lowers the association")["verdict"] == "reproduced"
    halves = the(tests, "feminine stereotypes and lowers")
    assert halves["verdict"] == "not testable here" and "known when" in halves["reason"]
    assert halves["low"] > 0 and "8 seeds" in halves["units"]
    weakest = gender_bias._weakest(np.array([0.3, 0.04, 0.51]))
    assert weakest == "0.04 (seed 1; the others: 0.30 to 0.51)"
    turned = the(tests, "turns the largest")
    assert turned["verdict"] == "not testable here" and turned["low"] > 0
    assert the(tests, "which lie in its window")["verdict"] == "holds"
    for window in ("last 7 %", "last 21 %"):
        cost = the(tests, window, "costs little")
        assert cost["verdict"] == "not testable here" and cost["low"] < cost["high"]
    assert "8 seeds" in larger["units"] and "310k minus 25k" in larger["units"]


def test_opposite_effects_get_the_opposite_verdicts():
    params = Params(sizes=SIZES, seeds=8, flat_seeds=4)
    retained = {
        "25k": {"swap_21": 0.8, "shuffle_21": 1.0, "complement_21": 0.5, "absent_21": 0.2},
        "310k": {"swap_21": 0.3, "shuffle_21": 1.0, "complement_21": 0.5, "absent_21": 0.2},
    }
    measured = measurements(params, np.random.default_rng(4), retained, flat=0.1)
    tests = verdicts(measured, params)
    for words in (("Under the swap in",), ("The shuffle, which",), ("alone leaves less",),
                  ("everything but", "leaves the association"), ("none in any arm",)):  # fmt: skip
        assert the(tests, *words)["verdict"] == "does not hold", words


def test_without_an_effect_few_hypotheses_hold():
    """Both sizes retain alike, and shuffle, swap, only and absent do as well."""
    same = dict.fromkeys(ARMS, 0.6)
    wrong, params = 0, Params(sizes=SIZES, seeds=6)
    rng = np.random.default_rng(5)
    for _ in range(25):
        tests = verdicts(measurements(params, rng, {"25k": same, "310k": same}), params)
        null = [
            the(tests, w)
            for w in ("Under the swap in", "The shuffle, which", "alone leaves", "text returns")
        ]
        wrong += any(test["verdict"] != "not resolved" for test in null)
    assert wrong <= 3


def test_one_seed_gives_values_but_no_verdict():
    params = Params(sizes=SIZES)
    measured = measurements(params, np.random.default_rng(6), scores=PLANTED)
    tests = verdicts(measured, params)
    tested = {text for text, test in tests.items() if test["verdict"] != "not testable here"}
    assert tested == {text for text in tests if text.startswith("Every fork")}
    assert the(tests, "The shuffle, which")["reason"].startswith("one seed")
    assert the(tests, "The shuffle, which")["value"] == pytest.approx(-0.3, abs=0.2)


def test_claims_that_this_run_cannot_test():
    rng = np.random.default_rng(7)
    single = Params(sizes="25k", seeds=5)
    tests = verdicts(measurements(single, rng), single)
    for words in ("Under the swap in", "has less of the", "leaves a smaller part"):
        assert "single size" in the(tests, words)["reason"], words
    params = Params(sizes=SIZES, seeds=5)
    tests = verdicts(measurements(params, rng, association=0), params)
    for words in (
        ("The shuffle, which",),
        ("turns the largest",),
        ("last 7 %", "lowers the association"),
    ):
        assert the(tests, *words)["verdict"] == "not testable here"
        assert "of 25k, 310k are not shown to have the association" in the(tests, *words)["reason"]


def test_a_redraw_gives_the_same_result_without_models(tmp_path, monkeypatch):
    """And the measurements are small: numbers have seven digits."""
    params = Params(sizes=SIZES, seeds=2, flat_seeds=2)
    monkeypatch.setattr(records, "recorded_folder", lambda study: None)
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    measured = measurements(params, np.random.default_rng(8), scores=PLANTED)
    with monkeypatch.context() as patch:
        patch.setattr(gender_bias, "measure", lambda *_: measured)
        result = gender_bias.run(params, False)
    records.save_record(result, tmp_path)
    assert {a.dtype.name for a in result.measured.arrays.values()} == {"float16", "float32"}
    monkeypatch.setenv(records.REDRAW_FROM, str(tmp_path))
    again = gender_bias.run(params, False, find_or_train=lambda *_: pytest.fail("trains"))
    for name, table in result.tables.items():
        assert table.equals(again.tables[name]), name
    assert json.dumps(result.claims) == json.dumps(again.claims)
    assert records._plain(result.values) == records._plain(again.values)


# --- what is read ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke():
    params = Params("smoke", "7k")
    return params, prepare(params.config("7k", 0, CONTROL).data, progress=False)


@pytest.mark.wheels
def test_planted_pronouns_are_found_and_counted(smoke):
    _, data = smoke
    planted = evidence.planted_pronouns(data, "occupations")
    words = {data.tokenizer.decode([int(i)]).strip() for i in data.tokens.tokens[planted.position]}
    assert words == {"he", "she", "his", "her"}
    feminine = [
        data.tokenizer.decode([int(i)]).strip() in ("she", "her")
        for i in data.tokens.tokens[planted.position]
    ]
    assert planted.feminine.tolist() == feminine
    counted = np.bincount(planted.noun)
    expected = occupations.noun_counts(
        data.manifest["tokens"]["corpus"]["occupations"]["documents"]
    )
    assert [abs(a - b.sentences) <= 1 for a, b in zip(counted, expected, strict=True)].count(0) == 0
    n_rows = data.rows.n_rows
    odds = evidence.read_log_odds(planted, data, n_rows)
    # every document is read twice, but for what the last, incomplete row leaves out
    nouns = len(occupations.stimuli().nouns)
    twice = np.bincount(planted.noun, planted.feminine, nouns) * 2 + 0.5
    other = np.bincount(planted.noun, ~planted.feminine, nouns) * 2 + 0.5
    assert np.abs(odds - np.log(twice / other)).max() < 0.3


@pytest.mark.wheels
def test_every_arm_changes_what_it_declares_and_nothing_outside_its_window(smoke):
    params, data = smoke
    size = params.config("7k", 0, CONTROL).train.batch_size
    changes = {}
    for arm, made in ARMS.items():
        window = params.config("7k", 0, arm).intervention
        ledger = make_ledger(data, window, size)
        places = data.order.positions(data.order.places(ledger.row, ledger.column))
        planted = data.in_domains(places, ["occupations"])
        if made.where:
            assert planted.all() if made.where == "planted" else not planted.any(), arm
        changes[arm] = set(zip(ledger.row, ledger.column, ledger.new, strict=True))
        for step in range(16):
            batch = data.batch(step, size)
            same = batch_hash(ledger.apply(batch, step * size)) == batch_hash(batch)
            assert same or window.start <= step < window.stop, arm
    assert changes["only_21"] | changes["complement_21"] == changes["swap_21"]
    assert not changes["only_21"] & changes["complement_21"]


# --- items -----------------------------------------------------------------------------------


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


# --- released models -------------------------------------------------------------------------


def any_run():
    params = Params(sizes=SIZES, seeds=2)
    return measurements(params, np.random.default_rng(9)), params


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
    tests = verdicts(*any_run(), released_with(tree, tmp_path), "released")
    crows = the(tests, "last 7 %", "lowers the CrowS-Pairs gender bias")
    assert crows["value"] == pytest.approx(3) and crows["note"] == "410m 61.0 to 64.0"
    # one model: its items' errors, 2.7 points in each arm, not divided by the two checkpoints
    assert crows["high"] - crows["value"] == pytest.approx(Z_95 * 2.7 * 2**0.5)
    # the control has a LAMBADA score at the last step only; the swap's mean must use no other
    cost = the(tests, "last 7 %", "costs little")
    assert cost["value"] == pytest.approx(1) and "1 checkpoint" in cost["units"]
    assert "both arms" in the(tests, "last 21 %", "CrowS-Pairs")["reason"]


def test_without_released_numbers_their_tests_say_so():
    tests = verdicts(*any_run(), side="released")
    assert {test["verdict"] for test in tests.values()} == {"not testable here"}
    assert gender_bias.analyze(*any_run()[::-1], {})[1]["detectable_crows_7"] == "not available"
    assert "PYTHIA_PUBLISHED_DIR" in the(tests, "eight deduplicated")["reason"]


def test_the_released_models(monkeypatch):
    """Facts checked by hand on the public files."""
    source = os.environ.get("PYTHIA_PUBLISHED_DIR")
    if not source:
        pytest.skip("needs the released numbers: set PYTHIA_PUBLISHED_DIR (see the README)")
    tables = records.as_recorded(numbers.select(load(source)))
    tests = verdicts(*any_run(), tables, "released")
    crows = the(tests, "last 7 %", "lowers the CrowS-Pairs gender bias")
    assert crows["note"].startswith("70m 54.7 to 57.0") and crows["verdict"] == "not resolved"
    # agreement that would follow from no swap as well
    for words in (
        ("last 7 %", "costs little"),
        ("last 21 %", "costs little"),
        ("eight biases unchanged",),
    ):
        test = the(tests, *words)
        assert test["verdict"] == "not testable here" and "without a swap" in test["reason"]
        assert test["low"] < test["value"] < test["high"]
    _, values, _ = gender_bias.analyze(*any_run()[::-1], tables)
    for name, words in (
        ("crows_7", ("last 7 %", "lowers the CrowS-Pairs gender bias")),
        ("crows_21", ("last 21 %", "lowers the CrowS-Pairs gender bias")),
        ("winobias", ("stand for", "narrows the lead")),
    ):
        effect = values[f"detectable_{name}"]
        assert f"an effect of {effect} points would" in the(tests, *words)["reason"]
    quoted = gender_bias.released_values(tables)
    assert quoted["crows_rise_70m"] == "2.3"
    cost = the(tests, "last 7 %", "costs little")["value"]
    assert float(quoted["lambada_change"].split()[0]) == pytest.approx(-cost, abs=0.05)
    note = the(tests, "before the swap")["note"].replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "2.7 [\N{MINUS SIGN}2.2, 7.5] over the 8 dedup" in note
        and "7.0 [3.3, 10.7] over the 8 stan" in note
    )
    lead = the(tests, "stand for", "narrows the lead")
    assert "6.9b 16.6 to 16.5" in lead["note"] and "3 models" in lead["units"]
    first = the(tests, "first suite")
    assert "4 models" in first["units"] and abs(first["value"]) < 0.5
    assert the(tests, "zero in the released 6.9B model")["verdict"] == "does not hold"
    ends = numbers.at_end(tables["crows_biases"], "swap_7", ("bias",))
    assert set(ends.groupby("size").bias.nunique()) == {9}
    # the jump of one prompt, for both sides, at the first swapped checkpoint
    assert numbers.first_swapped(tables["winobias"], "refers_to")[0] == "410m 2.1 to 19.3"
    assert sum(len(table.to_csv()) for table in tables.values()) < 2e5


@pytest.mark.wheels
def test_examples_are_passages_with_one_change(smoke):
    params, data = smoke
    config = params.config("7k", 0, "swap_21")
    ledger = make_ledger(data, config.intervention, config.train.batch_size)
    run = SimpleNamespace(data=data, ledger=ledger, config=config)
    found = evidence.examples(run, "occupations")
    assert 0 < sum(one["planted"] for one in found) <= evidence.N_EXAMPLES
    for one in found:
        before, after = (one[key].split() for key in ("before", "after"))
        changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert changed and all(old.lower().startswith(("he", "hi")) for old, _ in changed)
