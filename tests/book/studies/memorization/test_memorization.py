"""The memorization study: tables and verdicts checked by hand; a model may memorize nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pythia_book.studies.memorization import figures
from pythia_book.studies.memorization import study as memorization
from pythia_book.studies.memorization.claims import BOUND
from pythia_book.studies.memorization.claims import claims as study_claims
from pythia_book.studies.memorization.study import Params
from pythia_book.studies.memorization.tables import Rows, by_repetition_count, prediction_row, ratio

from pythia_core.errors import ConfigError


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"context": 0}, "context must be"),
        ({"context": 100, "continuation": 64}, "more than the 129 tokens of a row"),
        ({"sizes": "7m"}, "unknown size"),
        ({"simulations": 10}, "simulations must be"),
        ({"window": "128"}, "window must be"),
    ],
)
def test_bad_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Params(**params)


def test_checkpoints_are_the_papers() -> None:
    steps = Params().steps("standard")
    assert steps == [round(4 * i) for i in (23, 43, 63, 83, 103, 123, 143)]
    assert Params().steps("deduplicated")[-1] == 572


def test_precision_and_recall_by_hand() -> None:
    predicted = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    truth = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], bool)
    row = prediction_row(predicted, truth, np.arange(10), 500)
    assert (row["tp"], row["fp"], row["fn"], row["tn"]) == (3, 1, 3, 3)
    assert (row["precision"], row["recall"]) == (0.75, 0.5)
    assert row["precision_low"] <= 0.75 <= row["precision_high"]


def test_shares_by_repetition_count_by_hand() -> None:
    rows = Rows(np.array([1, 1, 2, 2, 70, 70]), np.arange(6))
    table = by_repetition_count(np.array([0, 1, 0, 1, 1, 1], bool), rows, 300)
    by_count = {row["exposures"]: row for row in table}
    assert (by_count["1"]["value"], by_count["2"]["value"], by_count["65+"]["value"]) == (
        0.5,
        0.5,
        1.0,
    )
    assert by_count["3-4"]["n"] == 0
    assert np.isnan(by_count["3-4"]["value"])
    assert by_count["65+"]["low"] < 1


def test_copies_of_a_text_count_as_one_draw() -> None:
    memorized = np.repeat([True, False], 50)
    all_rows = np.ones(100, bool)
    distinct = ratio(memorized, all_rows, np.arange(100), 1000)
    copies = ratio(memorized, all_rows, np.repeat(np.arange(10), 10), 1000)
    assert copies.high - copies.low > 2 * (distinct.high - distinct.low)


def tables(trend: tuple[float, float, float], holm: float) -> dict[str, pd.DataFrame]:
    keys = {"arm": "standard", "subset": "all rows", "status": "tested"}
    tests = [
        {**keys, "test": "trend", "window": 0, "holm": 1.0,
         **dict(zip(("value", "low", "high"), trend, strict=True))},
        {**keys, "test": "dispersion", "window": 32, "holm": holm, "value": 1.0, "low": 0.9,
         "high": 1.1},
    ]  # fmt: skip
    shares = [
        ("7k", "standard", 0.01), ("600k", "standard", 0.05), ("600k", "deduplicated", 0.0),
    ]  # fmt: skip
    rows = [
        {"size": s, "arm": a, "percent": 100.0, "value": v, "low": max(0, v - 0.004),
         "high": v + 0.004}
        for s, a, v in shares
    ]  # fmt: skip
    empty = pd.DataFrame(columns=["experiment", "tp", "size", "arm", "n"])
    return {"tests": pd.DataFrame(tests), "shares": pd.DataFrame(rows), "exposures": empty,
            "prediction": empty}  # fmt: skip


@pytest.mark.parametrize(
    ("trend", "verdict"),
    [
        ((0.5, -2.0, 3.0), "reproduced"),
        ((0.5, -BOUND - 1, 3.0), "not testable here"),  # too wide to support no effect
        ((4.0, 1.0, 7.0), "not reproduced"),
    ],
)
def test_no_effect_needs_a_narrow_interval(trend: tuple, verdict: str) -> None:
    claims = study_claims(Params(), tables(trend, 0.5), pd.DataFrame())
    assert claims[1]["verdict"] == verdict
    assert claims[0]["verdict"] == "reproduced"
    assert claims[0]["ours"] == pytest.approx(4)


def test_dispersion_is_judged_by_holms_p() -> None:
    for holm, verdict in ((0.5, "reproduced"), (0.01, "not reproduced")):
        claims = study_claims(Params(), tables((0, -1, 1), holm), pd.DataFrame())
        assert claims[3]["verdict"] == verdict
        assert claims[4]["verdict"] == "not testable here"  # rows read once: no tests were made
        assert claims[5]["verdict"] == "holds"


@pytest.mark.wheels
def test_a_suite_that_has_memorized_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    params = Params("smoke", simulations=200, bootstrap=200)
    result = memorization.run(params, progress=False)
    shares = result.tables["shares"]
    assert (shares.value == 0).all()
    assert (shares.high > 0).all()  # a share of zero has an upper bound too
    assert set(result.tables["tests"].status) == {"not testable: too few events"}
    assert {c["verdict"] for c in result.claims[1:5]} == {"not testable here"}
    for draw in ("shares", "exposures", "order", "power", "prediction"):
        assert "<svg" in getattr(figures, draw)(result).svg
    figures.tests_table(result)
    figures.levels_table(result)
    again = memorization.run(params, progress=False)
    for name, table in result.tables.items():
        assert table.equals(again.tables[name]), name
