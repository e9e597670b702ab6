"""The released tables of the scaling study: what is selected, averaged and left out."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pythia_book.published import figures, results
from pythia_book.published.deduplication import twin_differences
from pythia_book.published.scaling import (
    COLUMNS,
    PHENOMENA,
    released_tables,
)
from pythia_book.published.tables import MODELS, TASKS, blimp_table, first_suite_table, mmlu_table
from pythia_book.records import as_recorded
from pythia_book.studies.scaling.released import batch_table
from score_files import TREE, as_folder

FOLDER = os.environ.get(results.VARIABLE, "")
DRAWINGS = ("benchmarks_over_training", "benchmarks_by_size", "late_change", "batch_size",
            "mmlu", "blimp")  # fmt: skip
needs_tables = pytest.mark.skipif(
    not (Path(FOLDER) / "evals_zero_shot.csv").is_file(),
    reason=f"{results.VARIABLE} names no folder with the tables",
)


def made(gain: float = 0.0) -> SimpleNamespace:
    """Released numbers of every kind; deduplicated models are better by `gain`."""
    rows = [
        (model, deduped, shots, task, step, "acc", 0.2 + 0.05 * i + gain * deduped, 0.005)
        for i, model in enumerate(MODELS)
        for deduped in (False, True)
        for shots in (0, 5)
        for task in TASKS
        for step in (0, 1000, 93_000, 143_000)
    ]
    names = ["model", "deduped", "shots", "task", "step", "metric", "value", "stderr"]
    others = ["family", "model", "n_params", "task", "metric", "value", "stderr"]
    batch = [
        ("70m", 2**18, 5, task, step, step * 2**18, "acc", 0.25, 0.005)
        for task in TASKS
        for step in (1, 143_000 * 8)
    ]
    columns = ["model", "batch_tokens", "shots", "task", "step", "tokens", "metric", "value"]
    return SimpleNamespace(
        benchmarks=pd.DataFrame(rows, columns=names),
        baselines=pd.DataFrame(columns=others),
        batch_size=pd.DataFrame(batch, columns=[*columns, "stderr"]),
        path=None,
    )


def shown(tables: dict[str, pd.DataFrame]) -> SimpleNamespace:
    """A result with only released numbers."""
    batch = tables.get("batch", pd.DataFrame(columns=COLUMNS["batch"]))
    return SimpleNamespace(
        study="scaling", scale="laptop", parameters={"scale": "laptop"}, released=tables,
        tables={"batch_difference": batch_table(batch)},
    )  # fmt: skip


def test_selected_rows_have_the_declared_columns() -> None:
    tables = released_tables(made())
    assert {name: list(table.columns) for name, table in tables.items()} == COLUMNS
    assert set(tables["curves"].step) == {1000, 93_000, 143_000}  # step 0 has no place on the axis
    assert len(tables["final"]) == 8 * 2 * 8
    assert len(tables["batch"]) == 7 * (2 + 4)  # seven tasks; only sizes with small batches
    assert tables["mmlu"].empty and tables["blimp"].empty
    for name, table in as_recorded(tables).items():
        pd.testing.assert_frame_equal(table, tables[name], check_dtype=False)


def test_the_difference_of_twins_by_hand() -> None:
    numbers = made(gain=0.02)
    frame = twin_differences(numbers)
    assert len(frame) == 8 * 2 * 2
    np.testing.assert_allclose(frame.value, 2)
    np.testing.assert_allclose(frame.stderr, 100 * np.sqrt(2 * 0.005**2 / 7))
    rows = numbers.benchmarks
    gone = (rows.model == "1b") & ~rows.deduped & (rows.task == "piqa") & (rows.shots == 0)
    numbers.benchmarks = rows[~gone]
    assert len(twin_differences(numbers)) == 8 * 2 * 2 - 2  # a mean needs every task
    assert twin_differences(SimpleNamespace(benchmarks=rows[:0])).empty


@pytest.mark.parametrize("tables", [{}, released_tables(made())], ids=["none", "made"])
def test_every_figure_draws_what_there_is(tables: dict[str, pd.DataFrame]) -> None:
    for name in DRAWINGS:
        draw = getattr(figures, name)
        drawing = draw(shown(tables))
        assert drawing.svg == draw(shown(tables)).svg
        if not tables or name in ("mmlu", "blimp"):
            assert "no released" in drawing.svg


def test_the_public_tree_has_mmlu_and_blimp(tmp_path: Path) -> None:
    def scores(task: str, value: float) -> dict:
        return {"results": {task: {"acc": value, "acc_stderr": 0.01, "acc_norm": 0.9}}}

    v0 = "evals/pythia-v0/pythia-160m/zero-shot/pythia-160m-0shot-global_step"
    anatomy = "hendrycksTest-anatomy"
    tree = TREE | {
        "evals/pythia-v1/pythia-70m/five-shot/70m_step3000.json": scores(anatomy, 0.3),
        "evals/pythia-v1/pythia-2.8b/zero-shot/2.8b_step512.json": scores(anatomy, 0.4),
        f"{v0}1500_eval_results_01-01-2023-00-00-00.json": scores("blimp_passive_1", 0.7),
        f"{v0}1500_eval_results_02-01-2023-00-00-00.json": scores("blimp_passive_1", 0.7),
    }
    folder = as_folder(tmp_path / "clone", tree)
    # a row that is another model's is left out; step 1,500 was of four million tokens each
    assert mmlu_table(folder).values.tolist() == [["70m", False, 5, "anatomy", 3000, 0.3]]
    assert blimp_table(folder).values.tolist() == [["160m", False, "passive_1", 3000, 0.7, 0.01]]
    other = as_folder(tmp_path / "v0", {f"{v0}2000_eval_results.json": scores("piqa", 0.6)})
    rows = first_suite_table(other).set_index("metric")
    assert rows.loc["acc"].tolist() == ["160m", False, "piqa", 4000, 0.6, 0.01]
    assert mmlu_table(None).empty and blimp_table(None).empty


@needs_tables
def test_the_released_tables() -> None:
    numbers = results.load(FOLDER)
    tables = released_tables(numbers)
    final = tables["final"].set_index(["name", "task"]).value
    assert final["70m", "lambada_openai"] == pytest.approx(0.184553, abs=1e-5)
    assert final["12b-deduped", "sciq"] == pytest.approx(0.929, abs=5e-4)
    assert final["opt-6.7b", "piqa"] == pytest.approx(0.763, abs=5e-4)
    assert final["12b", "logiqa_acc_norm"] == pytest.approx(0.306, abs=5e-4)
    mmlu = tables["mmlu"].set_index(["model", "shots", "step"])
    assert mmlu.value["12b", 5, 143_000] == pytest.approx(0.298, abs=5e-4)
    assert mmlu.high["small", 5, 143_000] < 0.27
    paradigms = tables["paradigms"]
    assert paradigms.phenomenon.value_counts()[list(PHENOMENA)].tolist() == [
        2, 8, 6, 2, 9, 7, 5, 2, 7, 8, 7, 4,
    ]  # fmt: skip
    assert len(tables["blimp"]) == 13 * 8 * 15
    size = sum(len(table.to_csv(index=False, float_format="%.8g")) for table in tables.values())
    assert size < 300_000
    twins = twin_differences(numbers).set_index(["shots", "step", "model"]).value
    expected = [-0.06, -0.19, 0.01, 0.55, 0.57, -0.10, 0.73, 1.06]
    np.testing.assert_allclose(twins[0, 143_000].loc[list(MODELS)], expected, atol=0.006)


@pytest.mark.skipif(
    not (Path(FOLDER) / "evals_raw.tar.xz").is_file(),
    reason=f"{results.VARIABLE} names no folder with the tables and evals_raw.tar.xz",
)
@pytest.mark.parametrize("read", [mmlu_table, blimp_table])
def test_mmlu_and_blimp_are_the_same_in_tables_and_tree(read) -> None:
    one, other = (read(Path(FOLDER) / name) for name in (".", "evals_raw.tar.xz"))
    keys = [column for column in one.columns if column not in ("acc", "stderr")]
    one, other = (table.set_index(keys).sort_index() for table in (one, other))
    assert len(one) > 10_000
    pd.testing.assert_frame_equal(one, other, rtol=1e-5, check_dtype=False)


@needs_tables
def test_released_sums_and_log_probabilities() -> None:
    tables = released_tables(results.find())
    sums, operands, lambada = (tables[name] for name in ("sums", "operands", "lambada"))
    assert len(sums) == 7 * 2 * 5 * 6 and set(sums.model) == set(MODELS[1:])
    last = sums[(sums.operation == "addition") & (sums.shots == 16) & (sums.step == 143_000)]
    means = operands.groupby("model").value.mean()
    assert means[last.model].to_numpy() == pytest.approx(last.value.to_numpy())
    best = lambada[(lambada.model == "12b") & (lambada.step == 143_000) & ~lambada.deduped]
    assert np.exp(best.nats.iloc[0]) == pytest.approx(3.92364)  # its released perplexity
    assert lambada.nats.notna().all()
