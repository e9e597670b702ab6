"""The page on throughput: predictions alone without measurements, and what it makes of some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pythia_book import records, style
from pythia_book.bench import cost_model
from pythia_book.bench import rows as throughput_rows
from pythia_book.studies.throughput import figures as draw
from pythia_book.studies.throughput import study
from pythia_book.studies.throughput.params import ThroughputParams

from pythia_core.errors import ConfigError
from pythia_core.suite import OFFICIAL_SIZES

FIGURES = (draw.rates, draw.memory, draw.scaling)
TABLES = (draw.summary, draw.ways_table, style.claims_table)
RUN = "2030-01-02T03:04:05Z"


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    return tmp_path


def train_row(who: str, mode: str, rate: float, size: str = "160m", **more: Any) -> dict:
    model = OFFICIAL_SIZES[size].model()
    shares = {
        f"{kind}_{name}": cost_model.mfu(model, rate, peak, name == "causal")
        for name in ("causal", "full")
        for kind, peak in (("mfu", 989.4), ("tflops", 1.0))
    }
    row = {
        "run": RUN, "dry_run": False, "kind": "train", "size": size, "purpose": "compare",
        "contender": f"{who} {mode}", "who": who, "mode": mode, "rows": 16, "seq_len": 2048,
        "micro_batches": 1, "tokens_per_update": 2**15, "products_tflops": 700.0,
        "tokens_per_s": rate, "tokens_per_s_low": 0.99 * rate, "tokens_per_s_high": 1.01 * rate,
        "peak_bytes": 30 * 2**30,
    }  # fmt: skip
    return row | shares | more


def measured(ratio: float = 1.3, dry_run: bool = False) -> list[dict]:
    rival = 400e3
    rows = [
        {"run": RUN, "kind": "machine", "device": "a GPU <b>", "torch": "9.9"},
        {"run": RUN, "kind": "ceiling", "what": "products, best, TFLOP/s", "value": 712.0},
        train_row("plain", "compile", rival),
        train_row("plain", "eager", 1.2 * rival),  # the rival is the compiled one all the same
        train_row("transformers", "eager", 0.5 * rival),
        train_row("ours", "eager", 0.9 * rival),
        train_row("ours", "graph", ratio * rival, said=["a kernel fails here"]),
        train_row("ours", "graph", 9 * rival, purpose="rows", rows=32),
        train_row("ours", "graph", 8 * rival, purpose="rows", rows=8),
        train_row("ours", "graph", 2 * rival, purpose="seq_len", seq_len=512),
    ]
    failed = train_row("transformers", "compile", 1.0, error="out of memory: 80 GB")
    del failed["tokens_per_s"]
    return [row | {"dry_run": dry_run} for row in [*rows, failed]]


def run_with(rows: list[dict]) -> Any:
    throughput_rows.write_rows(rows, throughput_rows.rows_file(), lambda _: None)
    return study.run(ThroughputParams())


def everything(result: Any) -> str:
    drawn = [f(result).svg for f in FIGURES]
    return "\n".join(drawn + [f(result)._repr_html_() for f in TABLES])


def test_without_measurements_it_predicts_and_says_so() -> None:
    result = study.run(ThroughputParams())
    assert result.tables["measured"].empty and result.tables["compared"].ratio.isna().all()
    assert result.values["status"] == study.NOT_MEASURED
    assert {c["verdict"] for c in result.claims} == {"not testable here"}
    text = everything(result)
    assert "not yet measured" in text and throughput_rows.COMMAND in text
    assert "<td>520</td>" in text and "Measured: not yet." in text


def test_the_numbers_of_a_dry_run_are_never_shown() -> None:
    nothing = everything(study.run(ThroughputParams()))
    assert everything(run_with(measured(dry_run=True))) == nothing


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.3, "holds"), (1.0, "does not hold"), (1.15, "not testable here")]
)
def test_our_fastest_is_compared_with_the_compiled_plain_model(ratio: float, verdict: str) -> None:
    result = run_with(measured(ratio))
    row = result.tables["compared"].set_index("size").loc["160m"]
    assert row.ratio == pytest.approx(ratio) and row.contender == "ours graph"
    assert row.low == pytest.approx(ratio * 0.99 / 1.01) and row.library == 200e3
    assert result.claims[0]["verdict"] == verdict
    assert result.values["sizes_measured"] == 1
    assert result.values["sizes_at_goal"] == int(ratio >= cost_model.GOAL)


def test_a_measurement_stands_beside_the_prediction_for_its_update() -> None:
    frame = run_with(measured()).tables["measured"]
    ours = frame[(frame.contender == "ours graph") & (frame.purpose == "compare")].iloc[0]
    model = OFFICIAL_SIZES["160m"].model()
    assert ours.predicted == cost_model.predicted_tokens_per_s(model, "ours", 2**15)
    best = cost_model.predicted_tokens_per_s(model, "ideal", 2**15)
    assert ours.attainable_share == pytest.approx(520e3 / (best * 700 / 798))
    assert ours.products_share == pytest.approx(ours.mfu_causal * 989.4 / 700)
    other = frame[frame.purpose == "seq_len"].iloc[0]
    assert other.predicted != other.predicted, "rates of other lengths are not predicted"


def test_the_page_shows_what_was_measured_and_escapes_it() -> None:
    text = everything(run_with(measured()))
    assert "a GPU &lt;b&gt;" in text and "<b>" not in text
    assert "out of memory: 80 GB" in text and "1.30" in text and "a kernel fails here" in text
    assert "predictions only" not in text


def test_predictions_that_miss_are_told(results: Path) -> None:
    claim = run_with([train_row("ours", "graph", 520e3), *measured()[:1]]).claims[1]
    assert claim["verdict"] == "holds" and claim["ours"] < 5
    throughput_rows.rows_file().unlink()
    assert run_with(measured(0.5)).claims[1]["verdict"] == "does not hold"


def test_it_can_be_recorded(results: Path) -> None:
    result = run_with(measured())
    assert records.read_record(records.write_record(result))["values"]["sizes_measured"] == 1


def test_goals_follow_from_published_costs() -> None:
    goals = study.goals_table(("14m", "70m", "1.4b")).set_index("size")
    assert goals.loc["70m"].paper_tokens_per_s == pytest.approx(163_340, abs=5)
    assert goals.loc["1.4b"].paper_mfu == pytest.approx(0.318, abs=0.001)
    assert goals.loc["1.4b"].hours == pytest.approx(1_141, abs=1)
    assert goals.loc["14m"].paper_hours != goals.loc["14m"].paper_hours


def test_the_page_predicts_without_a_run() -> None:
    rates, parts = draw.predicted().frame.set_index("size"), draw.parts().frame.set_index("size")
    assert rates.loc["160m", "ours"] == "520" and rates.loc["160m", "A100"] == "80.9"
    assert rates.loc["14m", "A100-hours"] == draw.DASH
    assert parts.loc["160m", "attention"] == "492 / 457"
    values = draw.values()
    assert (values["goal"], values["gain_least"]) == ("1.15", "1.11")
    assert values["mfu_most"] == "62.6"


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown size '6\.9b'"):
        ThroughputParams(sizes="70m,6.9b")
    assert ThroughputParams(sizes="1b, 70m").size_list == ("70m", "1b")
