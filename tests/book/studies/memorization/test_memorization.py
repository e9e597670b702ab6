"""The memorization study: tables and verdicts checked by hand; a model may memorize nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pythia_book import records, verdicts
from pythia_book.published import results
from pythia_book.studies.memorization import figures, study, trace_claims
from pythia_book.studies.memorization.params import Params
from pythia_book.studies.memorization.tables import (
    Prediction,
    Rows,
    equal_compute,
    prediction_row,
    released_table,
    repetition_slope,
)
from pythia_book.study import Measurements, Result

from pythia_core.errors import ConfigError
from pythia_core.suite import DATA_ARMS

PARAMS = Params(simulations=400, bootstrap=300)
DRAWINGS = (
    "profiles", "trace_sizes", "recency", "canaries", "shares", "exposures", "order", "prediction",
    "released",
)  # fmt: skip


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"context": 0}, "context must be"),
        ({"context": 100, "continuation": 64}, "must add up to at most the 128 tokens"),
        ({"sizes": "7m"}, "unknown size"),
        ({"simulations": 10}, "simulations must be"),
        ({"window": "128"}, "window must be"),
    ],
)
def test_bad_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Params(**params)


def test_checkpoints_and_the_smaller_size_are_fixed_beforehand() -> None:
    params = Params()
    assert params.steps("standard") == [round(4 * i) for i in (23, 43, 63, 83, 103, 123, 143)]
    assert params.steps("deduplicated")[-1] == 572
    assert params.early_steps == [92, 252] and params.early_percent == [16, 44]
    assert params.tenth == "85k"
    assert Params(sizes="600k").tenth == "600k"  # nothing smaller


# --- tables ----------------------------------------------------------------------------------


def rows_of(text: np.ndarray, planted: np.ndarray | None = None, times: int = 1) -> Rows:
    """Rows with the given texts, none of them planted unless `planted` says so."""
    same = np.full(len(text), times)
    return Rows(same, text, same, np.full(len(text), -1) if planted is None else planted)


def test_precision_and_recall_count_each_text_once() -> None:
    predicted = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    truth = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], bool)
    row = prediction_row(Prediction.of(predicted, truth, rows_of(np.arange(10))))
    assert (row["tp"], row["fp"], row["fn"], row["tn"]) == (3, 1, 3, 3)
    assert (row["precision"], row["recall"]) == (0.75, 0.5)
    assert (row["precision_units"], row["recall_units"]) == (4, 6)
    assert row["precision_low"] <= 0.75 <= row["precision_high"]
    text = np.array([0, 0, 0, 1, 2, 2, 2, 3, 3, 3])
    copies = prediction_row(Prediction.of(predicted, truth, rows_of(text)))
    assert (copies["tp"], copies["fp"], copies["fn"], copies["tn"]) == (1, 1, 1, 1)


def test_a_perfect_prediction_has_an_exact_lower_bound() -> None:
    """The bound is over planted texts, if the rows are pieces of a few."""
    hits, truth = np.arange(200) < 38, np.arange(200) < 190
    row = prediction_row(Prediction.of(hits, truth, rows_of(np.arange(200))))
    assert (row["precision"], row["precision_high"]) == (1, 1)
    assert row["precision_low"] == pytest.approx(0.025 ** (1 / 38))
    planted = np.where(np.arange(200) < 190, np.arange(200) % 3, -1)
    few = Prediction.of(hits, truth, rows_of(np.arange(200), planted))
    assert few.count("precision") == (38, 38) and few.units("precision") == 3
    assert few.share("precision").low == pytest.approx(0.025 ** (1 / 3))
    assert few.share("precision").p_value(0.292) > 0.05 / 1.1
    nothing = prediction_row(Prediction.of(np.zeros(200, bool), hits, rows_of(np.arange(200))))
    assert np.isnan(nothing["precision"]) and nothing["recall"] == 0


# --- units -----------------------------------------------------------------------------------


def test_rows_of_a_planted_text_are_one_unit() -> None:
    rows = rows_of(np.array([0, 1, 2, 2, 3]), np.array([4, 4, -1, -1, 5], np.int16))
    a, b, c, d, e = rows.unit
    assert a == b and c == d and len({a, c, e}) == 3


# --- released --------------------------------------------------------------------------------


def confusion() -> pd.DataFrame:
    """Released tables with recall that rises with size and training."""
    lines = []
    for i, model in enumerate(("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")):
        for step in (23_000, 63_000, 143_000):
            for experiment in ("early_checkpoint_predicts_last", "small_model_predicts_12b"):
                early = experiment.startswith("early")
                tp = 0.3 + 0.1 * i + (step / 1e6 if early else 0)
                fp, fn = 0.03, 0.5 - 0.05 * i
                if (early and step == 143_000) or (not early and model == "12b"):
                    fp = fn = 0.0
                rates = {"precision": tp / (tp + fp), "recall": tp / (tp + fn)}
                counts = {"tp": tp, "fp": fp, "fn": fn, "tn": 100 - tp - fp - fn}
                lines.append(
                    {"experiment": experiment, "model": model, "step": step, **counts, **rates}
                )
    return pd.DataFrame(lines)


def test_released_tables_are_read_and_compared_at_equal_compute() -> None:
    table = released_table(confusion())
    assert len(table) == 48
    row = table.query("experiment == 'smaller model' and model == '1.4b' and step == 143000")
    assert row.compute.iloc[0] == pytest.approx(1.4 / 12)
    assert row.share.iloc[0] == pytest.approx(0.73)
    assert row.precision.iloc[0] == pytest.approx(0.7 / 0.73)
    assert table.query("percent == 100 and experiment == 'earlier checkpoint'").recall.isna().all()
    numbers = equal_compute(table)
    assert {"recall_12b_at_16", "recall_small_at_16"} < set(numbers)
    for name in ("recall", "precision"):
        assert 0 <= numbers[f"released_{name}_least"] <= numbers[f"released_{name}_most"] <= 100
    between = table.query("experiment == 'smaller model' and model in ('1.4b', '2.8b')")
    ends = 100 * between[between.step == 143_000].recall
    assert ends.min() < numbers["recall_small_at_16"] < ends.max()
    assert equal_compute(released_table(None)) == {}


# --- verdicts --------------------------------------------------------------------------------


def suite(
    once: float = 0.0,
    rise: float = 0.0,
    early: bool = True,
    seed: int = 0,
    texts: int = 60,
) -> Measurements:
    """Rows of which a fifth are copies that larger models memorize more of.

    Args:
        once: share of the rows read once that the largest model memorizes; `rise` over training.
        early: whether copies are memorized before the end of training.
        texts: the number of planted texts; there are 60 distinct continuations.
    """
    rng, n = np.random.default_rng(seed), 7 * 572
    arrays: dict[str, np.ndarray] = {"copies": np.full(texts, 64, np.int16)}
    for arm in DATA_ARMS:
        copy = (rng.random(n) < 0.2) & (arm == "standard")
        text = np.where(copy, rng.integers(0, 60, n), 60 + np.arange(n))
        arrays[f"times/{arm}"] = np.where(copy, 64, 1).astype(np.int32)
        arrays[f"beginnings/{arm}"] = np.where(copy & (np.arange(n) % 2 == 0), 64, 1)
        arrays[f"text/{arm}"] = pd.factorize(text)[0].astype(np.int32)
        arrays[f"planted/{arm}"] = np.where(copy, text % texts, -1).astype(np.int16)
        known = rng.permutation(60)
        chance = np.clip(once * (1 + rise * (np.arange(n) / n - 0.5)), 0, 1)
        own = (rng.random(n) < chance) & ~copy & (arm == "standard")
        for i, size in enumerate(PARAMS.size_list):
            for step in PARAMS.steps(arm):
                share = step / 572 if early else float(step == 572)
                learned = np.append(known < 7 * i * share, np.zeros(n, bool))[text] & copy
                if size == PARAMS.size_list[-1] and step == 572:
                    learned = learned | own
                arrays[f"memorized/{size}/{arm}/{step}"] = learned[: n * step // 572]
    facts = {"batch_size": 7, "gaps": 0, "generated": 9, "disagreements": 0}
    return Measurements(arrays, facts)


def result_of(measured: Measurements, released: dict[str, pd.DataFrame] | None = None) -> Result:
    tables, values, claims = study.analyze(PARAMS, measured, released or {})
    judged = verdicts.judge(claims)
    return Result("memorization", PARAMS, tables, values, judged, measured, released or {}, 0.0)


POISSON = ("The positions of memorized rows", "other sizes, too", "deduplicated text, too")
"""Words of the claims that memorized rows are scattered by chance."""


def verdict(result: Result, text: str, side: str = "ours") -> str:
    (claim,) = [c for c in result.claims if text in c["claim"]]
    return claim[side]["verdict"]


def test_order_is_not_testable_where_only_copies_are_memorized() -> None:
    result = result_of(suite())
    for text in ("does not depend on when", *POISSON):
        assert verdict(result, text) == verdicts.NOT_TESTABLE
    (claim,) = [c for c in result.claims if "does not depend on when" in c["claim"]]
    assert (
        "would hold by design" in claim["ours"]["reason"] and "0 of 3,1" in claim["ours"]["reason"]
    )
    assert result.values["once_memorized_standard"] == 0
    assert result.values["beginning_once_read_more_standard"] > 100  # wrongly "read once"
    assert verdict(result, "read more often") == verdicts.NOT_TESTABLE
    for text in ("Larger models", "The smaller a model"):  # learning rates differ, too
        assert verdict(result, text) == verdicts.NOT_TESTABLE
        (claim,) = [c for c in result.claims if text in c["claim"]]
        assert claim["ours"]["low"] > 0 and "learning rates" in claim["ours"]["reason"]


def test_order_is_tested_on_rows_read_once() -> None:
    """No trend among many memorized rows is within the margin; a strong one is outside."""
    assert verdict(result_of(suite(once=0.5)), "depend on when") == verdicts.REPRODUCED
    assert verdict(result_of(suite(once=0.3, rise=1.6)), "depend on when") == verdicts.CONTRADICTED
    few = result_of(suite(once=0.02))
    assert verdict(few, "depend on when") == verdicts.NOT_RESOLVED
    for text in POISSON[:2]:
        assert verdict(few, text) == verdicts.NOT_RESOLVED
    (claim,) = [c for c in few.claims if "other sizes" in c["claim"]]
    assert "rows per window" in claim["ours"]["note"]


def test_rows_of_few_planted_texts_are_counted() -> None:
    """The continuations are the same 60 as elsewhere, but pieces of 6 texts."""
    few, many = result_of(suite(texts=6)), result_of(suite())
    values = few.values
    assert values["planted_texts"] == 6 and values["planted_copies"] == "6 planted 64 times"
    assert values["planted_rows"] == values["memorized_standard"]
    assert values["fewest_readings"] == 64
    (claim,) = [c for c in few.claims if "read more often" in c["claim"]]
    assert "with memorized rows in 6" in claim["ours"]["units"]
    wide, narrow = (
        result.tables["exposures"].query("size == '600k' and times == '33-64'").iloc[0]
        for result in (few, many)
    )
    assert wide.value == narrow.value
    assert wide.high - wide.low > narrow.high - narrow.low
    recall = values["recall_at_44"]
    assert recall["low"] < recall["value"] < recall["high"]


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_repetition_is_seen_only_where_it_matters(effect: float) -> None:
    """Rows of a text are memorized together, so texts are the units."""
    rng, seen = np.random.default_rng(3), 0
    for _ in range(100):
        times = np.repeat(2 ** rng.integers(0, 6, 100), 4)
        chance = 0.2 + effect * np.log2(times[::4])
        memorized = np.repeat(rng.random(100) < chance, 4)
        text = np.repeat(np.arange(100), 4)
        e = repetition_slope(memorized, Rows(times, text, times, np.full(400, -1)))
        seen += not e.low <= 0 <= e.high
    assert seen < 13 if not effect else seen > 90


def test_the_slope_of_repetition_by_hand() -> None:
    times, memorized = np.array([1, 2, 4, 8]), np.array([False, False, True, True])
    e = repetition_slope(memorized, Rows(times, np.arange(4), times, np.full(4, -1)))
    assert e.value == pytest.approx(np.polyfit(np.log2(times), memorized, 1)[0])
    assert np.isnan(repetition_slope(memorized, rows_of(np.arange(4))).value)
    planted = repetition_slope(
        memorized, Rows(times, np.arange(4), times, np.array([-1, -1, 0, 0]))
    )
    assert planted.value == e.value and planted.df < e.df


def test_released_claims_take_models_as_units() -> None:
    result = result_of(suite(), {"memorization": confusion()})
    for text in ("Larger models", "The smaller a model"):
        assert verdict(result, text, "released") == verdicts.CONFIRMED
    (claim,) = [c for c in result.claims if "Larger models" in c["claim"]]
    assert claim["released"]["units"] == "8 sizes, one run each"
    (claim,) = [c for c in result.claims if "The smaller a model" in c["claim"]]
    assert claim["released"]["units"] == "7 sizes, one run each"
    assert len(result.tables["released"]) == 48
    flat = confusion().assign(tp=0.5)
    level = result_of(suite(), {"memorization": flat})
    assert verdict(level, "Larger models", "released") == verdicts.NOT_RESOLVED


def test_every_claim_names_its_paper_and_quotes_it() -> None:
    claims = [c for c in result_of(suite()).claims if c["kind"] == "claim"]
    assert all(claim["quote"] for claim in claims)
    own = [c for c in claims if c["source"].startswith("section 3.2")]
    assert len(own) == 4  # the paper says nothing about size or prediction
    assert all(" et al. 202" in c["source"] for c in claims if c not in own)


def test_a_lost_checkpoint_is_a_gap() -> None:
    measured = suite()
    for name in list(measured.arrays):
        if name.startswith("memorized/600k"):
            del measured.arrays[name]
    result = result_of(measured)
    assert verdict(result, "depend on when") == verdicts.NOT_TESTABLE
    for draw in DRAWINGS:
        assert "<svg" in getattr(figures, draw)(result).svg


def test_figures_draw_what_there_is() -> None:
    result = result_of(suite(once=0.1), {"memorization": confusion()})
    for draw in DRAWINGS:
        drawing = getattr(figures, draw)(result)
        assert drawing.svg == getattr(figures, draw)(result).svg
    assert "12b 1.00 % memorized" in figures.released(result).description
    tested = figures.tests_table(result)
    assert "trend" in {*tested.frame.Test} and "p" in tested.frame and "binomial" in tested.caption


@pytest.mark.wheels
def test_a_suite_that_has_memorized_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    monkeypatch.setattr(records, "recorded_folder", lambda study: None)
    params = Params("smoke", simulations=200, bootstrap=200)
    result = study.run(params, progress=False)
    shares = result.tables["shares"]
    assert (shares.value == 0).all()
    assert (shares.high > 0).all()  # a share of zero has an upper bound too
    assert set(result.tables["tests"].status) == {"not testable: too few events"}
    assert set(result.tables["traces"]["size"]) == set(params.size_list), "losses are found"
    verbatim = result.claims[len(trace_claims.claims(params, {})) :]
    assert {c["ours"]["verdict"] for c in verbatim} == {verdicts.NOT_TESTABLE}
    for draw in DRAWINGS:
        assert "<svg" in getattr(figures, draw)(result).svg
    untested = figures.tests_table(result)
    assert {*untested.frame.Test} == {"none"} and "p" not in untested.frame
    assert [e["kind"] for e in result.measured.facts["examples"]][-1] == "typical, read once"
    assert {"0", "1"} < set(result.tables["recited"].times) and "once" in repr(
        figures.examples_table(result)
    )
    assert sum(a.nbytes for a in result.measured.arrays.values()) < 1e6
    tables, _, _ = study.analyze(params, result.measured, result.released)
    for name, table in tables.items():
        assert table.equals(result.tables[name]), name


def test_the_released_file_is_read(tmp_path) -> None:
    table = confusion().rename(columns={n: f"{n}_pct" for n in ("tp", "fp", "fn", "tn")})
    table.to_csv(tmp_path / "memorization_confusion.csv", index=False)
    (tmp_path / "bias_evals.csv").write_text("")
    published = results.Published(pd.DataFrame(), tmp_path)
    numbers = study.released(published)
    assert list(numbers) == ["memorization"] and len(numbers["memorization"]) == 48
