"""The term-frequency study: planted effects are found, none where there is none; gaps."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pythia_book import records
from pythia_book.corpora import equations
from pythia_book.published.results import load
from pythia_book.published.tables import arithmetic_table
from pythia_book.stats import mean_over
from pythia_book.studies.term_frequency import claims as c
from pythia_book.studies.term_frequency import figures as draw
from pythia_book.studies.term_frequency import study
from pythia_book.studies.term_frequency.params import WORD_BINS
from pythia_book.studies.term_frequency.tables import NumberScores, tenths, welch
from pythia_book.study import Measurements, Result
from pythia_book.tasks.arithmetic import ArithmeticMeasurement, Question, questions
from pythia_book.verdicts import judge

from pythia_core.errors import ConfigError
from pythia_core.suite import scale_named

NATURAL = {n: 4000 // (n + 1) for n in equations.FIRST}
STEPS = [100, 300, 572]
PARAMS = study.Params(sizes="7k,25k,150k,600k")
FIRST = np.array([q.first for q in questions() if q.held_out])
N_WORDS = 150


def measurements(effect: float, seed: int = 0, words: float = 0.0) -> Measurements:
    """Answers whose probability of being right rises by `effect` per tenfold frequency.

    `words`: the same per bin of word frequency, for definitions.
    """
    rng = np.random.default_rng(seed)
    weight = equations.weights(NATURAL)
    per_number = np.array([weight[n] for n in equations.FIRST])
    arrays: dict[str, np.ndarray] = {
        "first": FIRST.astype(np.int8),
        "natural": np.array([NATURAL[n] for n in equations.FIRST], np.int32),
        "definition_read": np.repeat([True, False], N_WORDS * len(WORD_BINS)),
        "word_read/572": np.tile(np.repeat(WORD_BINS, N_WORDS), 2).astype(np.int32),
    }
    easy = rng.normal(0, 0.3, 100)  # some numbers are easier than others
    for step in STEPS:
        arrays[f"in_sums/{step}"] = (per_number * step / 572).astype(np.int32)
        for i, size in enumerate(PARAMS.size_list):
            slope = effect * i / 3 * step / 572
            p = np.clip(0.4 + slope * (np.log10(per_number[FIRST]) - 3), 0.02, 0.98)
            for shots in (0, 4):
                arrays[f"exact/{size}/{step}/{shots}"] = rng.random(len(p)) < p
                logprob = np.log(p) + 0.3 * easy[FIRST] + rng.normal(0, 0.1, len(p))
                arrays[f"logprob/{size}/{step}/{shots}"] = logprob.astype(np.float32)
            arrays[f"choice/{size}/{step}/0"] = rng.random(len(p)) < p
        if step == STEPS[-1]:
            for size in PARAMS.size_list:
                arrays[f"margin/{size}/{step}/0"] = arrays[f"logprob/{size}/{step}/0"] + 3
    for size in PARAMS.size_list:
        group = np.searchsorted(WORD_BINS, arrays["word_read/572"], side="right") - 1
        arrays[f"definition/{size}/572"] = rng.random(len(group)) < 0.4 + words * (group - 2)
    return Measurements(arrays, {"steps": STEPS, "gaps": 0})


def released(late: float = 0.8, small: float = 0.03) -> dict[str, pd.DataFrame]:
    """Released accuracies that rise to `late` in the models from 2.8B on, and to `small` below."""
    rng = np.random.default_rng(0)
    ends = {13_000: 0.02, 65_000: 0.1, 143_000: late}
    operands = [
        {"model": model, "step": step, "number": number,
         "value": (end if model in c.LARGE else min(end, small)) + rng.normal(0, 0.01)}
        for model in (*c.BELOW_2_8B, *c.LARGE) for step, end in ends.items()
        for number in range(100)
    ]  # fmt: skip
    means = [
        {"model": model, "operation": operation, "shots": shots, "step": step, "mean": 0.1,
         "sd": 0.05, "n": 100}
        for model in (*c.BELOW_2_8B, *c.LARGE) for operation in ("addition", "multiplication")
        for shots in (0, 16) for step in ends
    ]  # fmt: skip
    return {"operands": pd.DataFrame(operands), "arithmetic": pd.DataFrame(means)}


def judged(measured: Measurements, published: dict[str, pd.DataFrame] | None = None) -> list[dict]:
    return judge(study.analyze(PARAMS, measured, published or {})[2])


def verdicts(rows: list[dict], start: str, side: str = "ours") -> list[str]:
    return [row[side]["verdict"] for row in rows if row["claim"].startswith(start)]


def but_the_choice(verdict: str) -> list[str]:
    """Return the verdicts on the coin; the choice has none, as its result was known."""
    return [verdict, "not testable here", verdict, verdict]


def test_planted_effects_of_frequency_are_found() -> None:
    rows = judged(measurements(0.2, words=0.1))
    one_run = ("Sums are", "The right sum", "Given a definition")
    gaps = [row["ours"] for row in rows if row["claim"].startswith(one_run)]
    *widens, wider = (row["ours"] for row in rows if row["claim"].startswith("The gap"))
    assert len(gaps) == 4 and widens
    for gap in (*gaps, *widens):
        assert gap["low"] > 0 and gap["units"].endswith("; one run of 600k")
        assert gap["verdict"] == "not testable here" and "trained once" in gap["reason"]
    assert wider["value"] > 0 and wider["units"] == "4 sizes; one run of each"  # all heads alike
    assert verdicts(rows, "The right answer is") == but_the_choice("reproduced")
    assert verdicts(rows, "Under the placebo")[1] == "holds"
    assert set(verdicts(rows, "The gap", "released")) == {"not testable here"}


def test_effects_of_the_other_sign_contradict() -> None:
    rows = judged(measurements(-0.2, words=-0.1))
    assert verdicts(rows, "The gap between frequent and rare operands is") == ["contradicted"]
    assert verdicts(rows, "The right answer is") == but_the_choice("contradicted")


def test_without_an_effect_nothing_is_resolved() -> None:
    rows = judged(measurements(0.0))
    assert verdicts(rows, "The gap between frequent and rare operands is") == ["not resolved"]
    assert verdicts(rows, "The right answer is") == but_the_choice("not resolved")


def test_wrong_answers_that_gain_as_much_leave_the_margin_as_it_is() -> None:
    measured, none = measurements(0.2), measurements(0.0)
    for size in PARAMS.size_list:
        measured.arrays[f"margin/{size}/572/0"] = none.arrays[f"margin/{size}/572/0"]
    _, values, claims = study.analyze(PARAMS, measured, {})
    assert verdicts(judge(claims), "The right answer is given") == ["not resolved", "reproduced"]
    assert values["boost_margin"]["low"] < 0 < values["boost_zero_shot"]["low"]


def test_the_margin_is_that_over_the_mean_of_the_wrong_answers() -> None:
    """Zero-shot, at the last step, of sums that were never planted."""
    asked = (Question(1, 2, True), Question(3, 4, False))
    measurement = ArithmeticMeasurement(asked, (), 0, 64)
    scores = {"exact": np.array([True, False]), "logprob": np.array([-2, -1], np.float32),
              "wrong": np.array([[-3, -4, -8], [-1, -1, -1]], np.float32)}  # fmt: skip
    at_last = dict(study._recorded(measurement, scores, True))
    assert at_last.pop("margin").tolist() == [3] and [*at_last] == ["exact", "logprob"]
    assert "margin" not in dict(study._recorded(measurement, scores, False))
    few = dict(study._recorded(replace(measurement, shots=4), scores, True))
    assert [*few] == ["exact", "logprob"]


def test_the_page_says_how_much_less_often_frequent_words_are_found() -> None:
    measured = measurements(0.0, words=-0.1)
    _, values, claims = study.analyze(PARAMS, measured, {})
    assert values["words_below"] == values["words_below_unread"] == values["n_sizes"] == 4
    row = next(r["ours"] for r in judge(claims) if r["claim"].startswith("Given a definition"))
    assert values["words_gap"] == {end: row[end] for end in ("value", "low", "high")}
    assert f"{values['words_most']} frequent words" in row["units"]


def test_a_model_that_guesses_is_said_to_guess_at_words() -> None:
    measured = measurements(0.2)
    for size in PARAMS.size_list:
        right = measured.arrays[f"definition/{size}/572"]
        right[:] = np.random.default_rng(1).random(len(right)) < 0.25
    rows = [row["ours"] for row in judged(measured) if row["claim"].startswith("Given a def")]
    assert {row["reason"] for row in rows} == {"the model guesses"}
    measured.arrays["definition_read"] = np.zeros(0, bool)  # no dictionary in the corpus
    measured.arrays["word_read/572"] = np.zeros(0, np.int32)
    for size in PARAMS.size_list:
        measured.arrays[f"definition/{size}/572"] = np.zeros(0, bool)
    assert set(verdicts(judged(measured), "Given a definition")) == {"not testable here"}


# --- intervals -------------------------------------------------------------------------------


def test_intervals_over_ten_numbers_cover_95_percent() -> None:
    """A percentile bootstrap over ten numbers covers less; t-intervals do not."""
    rng = np.random.default_rng(0)
    covered = apart = bootstrapped = 0
    n = 2000
    for _ in range(n):
        one, other = (rng.binomial(10, rng.beta(2, 2, 10)) / 10 for _ in range(2))
        e, difference = mean_over(one), welch(one, other)
        covered += e.low <= 0.5 <= e.high
        apart += difference.low <= 0 <= difference.high
        draws = one[rng.integers(10, size=(300, 10))].mean(1)
        low, high = np.quantile(draws, [0.025, 0.975])
        bootstrapped += low <= 0.5 <= high
    assert covered / n == pytest.approx(0.95, abs=0.02)
    assert apart / n == pytest.approx(0.95, abs=0.02)
    assert bootstrapped / n < 0.925


def test_welch_by_hand() -> None:
    from scipy.stats import t, ttest_ind

    rng = np.random.default_rng(0)
    one, other = rng.normal(1, 1, 10), rng.normal(0, 4, 15)
    squares = [one.var(ddof=1) / 10, other.var(ddof=1) / 15]
    df = sum(squares) ** 2 / (squares[0] ** 2 / 9 + squares[1] ** 2 / 14)
    half = t.ppf(0.975, df) * sum(squares) ** 0.5
    e = welch(one, other)
    assert (e.value - e.low, e.high - e.value, e.df) == pytest.approx((half, half, df))
    assert welch(one, other).p_value() == pytest.approx(ttest_ind(one, other, equal_var=False)[1])
    assert np.isnan(welch(one[:1], other).low)
    assert welch(np.zeros(3), np.ones(3)).low == -1  # no variation: no width


def test_without_an_effect_the_alarms_are_at_the_nominal_rate() -> None:
    """Coins, gaps and changes of gaps; 5 % of 300, plus three standard errors."""
    alarms, n = Counter[str](), 300
    for seed in range(n):
        scores = NumberScores(measurements(0.0, seed))
        found = scores.coins(c.larger_half(PARAMS.size_list), 4, "logprob")
        found["gap"] = scores.gap("600k", 572, 4, "exact")
        found["change"] = scores.gap_change((("25k", 572), ("600k", 572)), 0, "choice")
        for name, e in found.items():
            alarms[name] += not e.low <= 0 <= e.high
    assert set(alarms) == {"boost", "placebo", "gap", "change"}
    assert max(alarms.values()) / n <= 0.05 + 3 * 0.0126


def test_the_t_interval_of_the_boost_agrees_with_flipping_signs() -> None:
    """The coin was tossed for each couple, so flipping the signs is the exact test."""
    rng = np.random.default_rng(0)
    changes = rng.normal(0.12, 0.4, 50)
    flips = rng.choice([-1, 1], size=(20_000, 50))
    exact = np.mean(np.abs((flips * changes).mean(1)) >= abs(changes.mean()) - 1e-12)
    assert mean_over(changes).p_value() == pytest.approx(exact, abs=0.01)


def test_the_coins_differ_on_half_of_the_couples_of_numbers() -> None:
    scores = NumberScores(measurements(0.2))
    found = scores.coins(("600k",), 4, "logprob")
    assert found["boost"].n_items == found["placebo"].n_items == 50
    assert {frozenset(p) for p in equations.pairs(NATURAL)} == {
        frozenset(p) for p in equations.pairs(NATURAL, "placebo")
    }


def test_groups_with_one_answer_have_an_exact_bound() -> None:
    scores = NumberScores(measurements(0.0))
    zero = scores.group(np.zeros(100), range(10))
    assert zero is not None and zero.low == 0 < zero.high < 0.1
    tie = np.array([3, 3, *[0] * 98])
    assert tenths(tie)[0][:3] == [0, 1, 2]


def test_a_gap_between_groups_that_are_all_wrong_has_a_bound() -> None:
    measured = measurements(0.0)
    measured.arrays["exact/600k/572/4"][:] = False
    gap = NumberScores(measured).gap("600k", 572, 4, "exact")
    assert gap is not None and gap.value == 0 and -0.1 < gap.low < 0 < gap.high < 0.1


# --- gaps ------------------------------------------------------------------------------------


def test_a_checkpoint_that_was_not_measured_is_a_gap() -> None:
    measured = measurements(0.2)
    for measure in ("exact", "logprob"):
        del measured.arrays[f"{measure}/600k/572/4"]
    tables, values, claims = study.analyze(PARAMS, measured, {})
    present = tables["gaps"].groupby(["size", "step", "shots"]).size()
    assert ("600k", 572, 4) not in present and ("600k", 572, 0) in present
    rows = judge(claims)
    assert next(row for row in rows if row["claim"].startswith("Sums"))["ours"]["value"] is None
    written, chosen, margin, likely = verdicts(rows, "The right answer")
    assert written == likely == chosen == "not testable here" and margin == "reproduced"
    assert values["exact"] is None and values["boost"] is None and values["boost_choice"]
    result = as_result(measured, {})
    assert "not measured" in draw.gaps_table(result)._repr_html_()
    for make in FIGURES:
        assert "<svg" in make(result).svg


def test_sizes_are_compared_only_if_their_heads_are_as_wide() -> None:
    laptop = scale_named("laptop").sizes
    assert c.comparable_sizes(laptop) == list(laptop)  # its heads all have 16 dims
    assert c.comparable_sizes(("2.7m", "4.7m", "7.4m", "85m")) == ["7.4m", "85m"]  # 32, 64 dims
    assert c.comparable_sizes(("600k",)) == ["600k"]
    assert c.larger_half(("7k", "13k", "25k", "600k")) == ("25k", "600k")
    assert c.larger_half(("7k",)) == ("7k",)


FIGURES = (
    draw.by_frequency, draw.over_training, draw.measures, draw.experiment, draw.definitions,
    draw.released,
)  # fmt: skip


def as_result(measured: Measurements, published: dict[str, pd.DataFrame]) -> Result:
    tables, values, claims = study.analyze(PARAMS, measured, published)
    return Result("term_frequency", PARAMS, tables, values, judge(claims), measured, published, 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arm": "both"}, "unknown arm 'both'.*standard, deduplicated"),
        ({"shots": "0,x"}, "shots must be a comma-separated list of numbers in 0..64.*got '0,x'"),
        ({"shots": "-1"}, "shots must be .*got '-1'"),
        ({"sizes": "9q"}, "unknown size '9q'"),
    ],
)
def test_bad_parameters_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study.Params(**given)


def test_zero_shot_is_always_asked() -> None:
    assert study.Params(shots="4").shot_list == (0, 4)
    assert study.Params("smoke").shot_list == (0, 2)


# --- end to end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Result:
    params = study.Params("smoke", "7k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_RESULTS", str(tmp_path_factory.mktemp("results")))
        return study.run(params, progress=False)


@pytest.mark.wheels
def test_counts_match_the_rows_that_were_read(smoke: Result) -> None:
    (run,) = smoke.measured.runs
    rows = run.data.rows.rows(0, run.config.train.steps * run.config.train.batch_size)[:, :-1]
    text = [run.data.tokenizer.decode(row.tolist()) for row in rows]
    table = smoke.tables["frequency"]
    last = table[table.step == table.step.max()].set_index("number")
    for number in (2, 7, 10):
        assert last.in_sums[number] == sum(t.count(f"What is {number} plus") for t in text)
    assert last.in_sums.sum() > 20
    assert (run.folder / "evaluations" / "terms.parquet").is_file()


@pytest.mark.wheels
def test_the_numbers_written_agree_with_the_answers_scored(smoke: Result) -> None:
    arrays = smoke.measured.arrays
    (name,) = [name for name in arrays if name.startswith("answer/7k")]
    right = arrays[name] == arrays["first"].astype(int) + arrays["second"]
    np.testing.assert_array_equal(right, arrays[name.replace("answer", "exact")])


@pytest.mark.wheels
def test_shots_that_do_not_fit_are_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"shots=16: .* the model reads 64; set shots to at most"):
        study.run(study.Params("smoke", "7k", shots="16"), progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.wheels
def test_a_record_can_be_redrawn_without_a_model(
    smoke: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.save_record(smoke, tmp_path)
    assert (tmp_path / "measured.npz").stat().st_size < 1e6
    monkeypatch.setenv(records.REDRAW_FROM, str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    again = study.run(smoke.params, progress=False)
    assert again.claims == smoke.claims
    for name, table in smoke.tables.items():
        pd.testing.assert_frame_equal(
            records.as_recorded({name: table})[name], records.as_recorded(again.tables)[name]
        )
    for make in FIGURES:
        assert make(again).svg == make(smoke).svg


@pytest.mark.wheels
def test_every_figure_can_be_drawn(smoke: Result) -> None:
    for make in FIGURES:
        assert "<svg" in make(smoke).svg
    assert "no dictionary" in draw.definitions(smoke).svg
    without = replace(smoke, tables=smoke.tables | {"arithmetic": study.released_table(None)})
    assert "no released numbers" in draw.released(replace(without, released={})).svg


# --- the released numbers --------------------------------------------------------------------


def test_claims_on_released_accuracies() -> None:
    starts = ("Models below a billion", "In training", "After 65,000")
    found = judged(measurements(0.0), released())
    assert [verdicts(found, s, "released")[0] for s in starts] == [
        "not testable here", "confirmed on released numbers", "not testable here",
    ]  # fmt: skip
    assert found[0]["released"]["value"] == pytest.approx(3, abs=0.5)
    equal = judged(measurements(0.0), released(late=0.5, small=0.5))
    assert verdicts(equal, "In training", "released") == ["not resolved"]
    uneven = released()
    large = uneven["operands"].model.isin(["2.8b"]) & (uneven["operands"].step == 143_000)
    uneven["operands"].loc[large, "value"] = 0.0
    (in_training,) = (
        row["released"]
        for row in judged(measurements(0.0), uneven)
        if row["claim"].startswith("In training")
    )
    assert in_training["verdict"] == "not testable here"
    assert "no possible effect" in in_training["reason"]
    none = judged(measurements(0.0))
    assert {verdicts(none, s, "released")[0] for s in starts} == {"not testable here"}
    assert "<svg" in draw.released(as_result(measurements(0.0), released())).svg


def test_released_accuracies_match_their_source() -> None:
    if not os.environ.get("PYTHIA_PUBLISHED_DIR"):
        pytest.skip("needs the released numbers: set PYTHIA_PUBLISHED_DIR (see the README)")
    published_dir = Path(os.environ["PYTHIA_PUBLISHED_DIR"])
    table = arithmetic_table(load(published_dir).path)
    assert len(table) == 42_000 and set(table.shots) == {0, 2, 4, 8, 16}
    mean = table[(table.operation == "addition") & (table.shots == 16)]
    mean = mean.groupby(["model", "step"]).value.mean()
    assert mean["12b", 143_000] == pytest.approx(0.8738, abs=1e-4)
    assert mean["6.9b", 143_000] < mean["2.8b", 143_000]  # as released
    chosen = study.released(load(published_dir))
    assert {name: len(t) for name, t in chosen.items()} == {"arithmetic": 420, "operands": 2100}
    values = study.released_values(chosen["operands"])
    assert values["released_unable"] == pytest.approx(2.64)
    assert values["released_large_after"] == pytest.approx(49.29, abs=0.01)
    archive = published_dir / "evals_raw.tar.xz"
    if archive.is_file():
        again = arithmetic_table(load(archive).path)
        keys = ["model", "operation", "shots", "step", "number"]
        one, two = (t.sort_values(keys, ignore_index=True) for t in (table, again))
        pd.testing.assert_frame_equal(one, two, check_dtype=False)


def test_without_released_numbers_there_is_an_empty_table() -> None:
    assert arithmetic_table(None).empty
    assert "no released numbers" in draw.released(as_result(measurements(0.1), {})).svg


def test_claims_on_coins_that_were_not_measured_say_so() -> None:
    scores: Any = SimpleNamespace(coins=lambda *_: {})
    for claim in judge(c._on_coins(study.Params("smoke"), scores)):
        note = claim["ours"]["note"]
        assert "; no coin was measured" in note and not note.rstrip().endswith(":"), note
