"""A sweep measures every checkpoint once, can resume, and returns a table like the released one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pythia_book.published.tables import BENCHMARKS
from pythia_book.tasks import metrics
from pythia_book.tasks.benchmarks import ALL_TASKS
from pythia_book.tasks.sweep import COLUMNS, steps_of, sweep, write_table
from task_items import fake_items

from pythia_core.__main__ import main
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import CheckpointError, ConfigError, DataError
from pythia_core.training.checkpoint import drop_weights
from pythia_core.training.runs import Run, find_or_train

LENGTH = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up items of every task."""
    folder = tmp_path_factory.mktemp("items")
    for task in ALL_TASKS:
        lines = "".join(json.dumps(item) + "\n" for item in fake_items(task, 24))
        (folder / f"{task}.jsonl").write_text(lines, "utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Run:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus.jsonl"
    texts = [path.read_text("utf-8") for path in sorted(folder.iterdir())]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = RunConfig(
        model=ModelConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=384, max_seq_len=LENGTH),
        data=DataConfig(corpus=str(corpus), tokenizer="bpe-384", seq_len=16, heldout_fraction=0),
        train=TrainConfig(steps=6, batch_size=4, lr_max=1e-2),
    )
    return find_or_train(config, progress=False)


def test_the_table_has_the_released_columns(run: Run, folder: Path) -> None:
    table = sweep(run, list(ALL_TASKS), run.steps, None, 5, str(folder), progress=False)
    assert list(table.columns) == COLUMNS and COLUMNS[: len(BENCHMARKS)] == BENCHMARKS
    assert set(table.task) == set(ALL_TASKS) and set(table.step) == set(run.steps)
    assert set(table.model) == {run.id} and not table.deduped.any()
    metrics = table.groupby("task").metric.agg(set)
    assert metrics["piqa"] == {"acc", "acc_norm"}
    assert metrics["winogrande"] == {"acc"}
    assert metrics["lambada_openai"] == {"acc", "ppl"}
    assert {"pct_stereotype", "likelihood_difference"} < metrics["crows_pairs_english"]
    assert metrics["winobias_em"] == {"em", "em_pro", "em_anti", "net"}
    assert metrics["arithmetic"] == {"acc"}
    full = table[table.metric != ""]
    assert full.value.notna().all() and (full.n <= 5).all() and (full.n > 0).all()
    assert set(table[table.task == "triviaqa"].shots) == {4}
    zero, one = (table[table.step == step].drop(columns="step") for step in (0, 1))
    assert zero.reset_index(drop=True).equals(one.reset_index(drop=True)), "weights 0 and 1 agree"


def test_only_new_tasks_and_steps_are_measured(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(run, ["piqa", "arithmetic"], [0, 6], 0, 5, str(folder), progress=False)
    loaded: list[int] = []
    load = Run.model
    monkeypatch.setattr(Run, "model", lambda self, step: loaded.append(step) or load(self, step))
    again = sweep(run, ["arithmetic", "piqa"], [0, 6], 0, 5, str(folder), progress=False)
    assert not loaded
    order = ["task", "step", "metric"]
    assert again.sort_values(order, ignore_index=True).equals(
        first.sort_values(order, ignore_index=True)
    )
    sweep(run, ["piqa", "sciq"], [0, 3, 6], 0, 5, str(folder), progress=False)
    assert sorted(loaded) == [0, 3, 6], "once each: for piqa at 3, and for sciq at all three"
    files = {path.name.rsplit("-", 1)[0] for path in (run.folder / "evaluations").iterdir()}
    steps = {"piqa": (0, 3, 6), "sciq": (0, 3, 6), "arithmetic": (0, 6)}
    assert files == {f"{task}-{step:06d}" for task in steps for step in steps[task]}


def test_tasks_are_tokenized_once(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    build = metrics.build
    monkeypatch.setattr(
        metrics, "build", lambda name, *rest: built.append(name) or build(name, *rest)
    )
    sweep(run, ["piqa", "triviaqa", "piqa"], run.steps, 0, 5, str(folder), progress=False)
    assert built == ["piqa", "triviaqa"]


def test_missing_values_have_a_note(run: Run, folder: Path) -> None:
    (run.checkpoints / "step-000003" / "model.safetensors").write_bytes(b"damaged")
    table = sweep(run, ["piqa", "sciq"], [3, 6], 10, 5, str(folder), progress=False)
    by_task_and_step = table.set_index(["task", "step"])
    assert "no prompt fits" in by_task_and_step.loc[("piqa", 6), "note"]
    table = sweep(run, ["piqa"], [3, 6], 0, 5, str(folder), progress=False)
    assert "corrupt" in table[table.step == 3].note.item()
    assert np.isnan(table[table.step == 3].value.item()) and (table[table.step == 3].n == 0).all()
    assert (table[table.step == 6].note == "").all()


def test_all_steps_include_lost_checkpoints_but_not_deleted_ones(run: Run, folder: Path) -> None:
    everything = run.steps
    drop_weights(run.checkpoints / "step-000004")
    shutil.rmtree(run.checkpoints / "step-000003")
    shutil.rmtree(run.checkpoints / "step-000006")
    assert steps_of(run, "all") == [step for step in everything if step != 4]
    table = sweep(run, ["piqa"], steps_of(run, "all"), 0, 5, str(folder), progress=False)
    assert set(table[table.note != ""].step) == set(table[table.value.isna()].step) == {3, 6}
    with pytest.raises(CheckpointError, match="no checkpoint of step 6"):
        steps_of(run, "last")
    (run.folder / "done.json").unlink()
    assert steps_of(run, "all") == [0, 1, 2, 3, 5], "later ones are not due yet"
    assert steps_of(run, "last") == [5]


def test_standard_errors(run: Run, folder: Path) -> None:
    table = sweep(run, ["piqa", "lambada_openai"], [6], 0, 8, str(folder), progress=False)
    acc = table[(table.task == "piqa") & (table.metric == "acc")].iloc[0]
    expected = (acc.value * (1 - acc.value) / (acc.n - 1)) ** 0.5  # of ones and zeros
    assert acc.stderr == pytest.approx(expected)
    ppl = table[table.metric == "ppl"].iloc[0]
    assert ppl.value > 1 and ppl.stderr > 0


def test_steps_of_a_text(run: Run) -> None:
    assert steps_of(run, "all") == run.steps
    assert steps_of(run, "last, 0,2,2") == [0, 2, 6]
    assert steps_of(run, "first") == [0]
    for text in ("", "late", "-1", "2.0", "²"):
        with pytest.raises(ConfigError, match='expected "all"'):
            steps_of(run, text)
    with pytest.raises(
        CheckpointError, match=r"no checkpoint of step 9; .* 7 checkpoints, .* steps 3, 4, 5, 6"
    ):
        steps_of(run, "9")


def test_bad_input_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown task 'scip'.*Did you mean 'sciq'"):
        sweep(run, ["piqa", "scip"], [0], folder=str(folder), progress=False)
    assert not (run.folder / "evaluations").exists(), "found out before anything is measured"
    with pytest.raises(ConfigError, match="limit must be at least 1 item per task, got 0"):
        sweep(run, ["piqa"], [0], limit=0, progress=False)
    with pytest.raises(
        ConfigError,
        match=r"shots must be in 0\.\.16, the number of few-shot examples of piqa; got 17",
    ):
        sweep(run, ["piqa"], [0], 17, folder=str(folder), progress=False)
    with pytest.raises(
        ConfigError,
        match=r"shots must be in 0\.\.0, the number of few-shot examples of crows_pairs_english",
    ):
        sweep(run, ["crows_pairs_english"], [0], 1, folder=str(folder), progress=False)
    with pytest.raises(ConfigError, match=r"t\.xls.*\.csv or \.parquet"):
        write_table(None, tmp_path / "t.xls")


def test_the_evaluate_command_writes_the_table(
    run: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import pandas as pd

    for name, read in (("t.csv", pd.read_csv), ("t.parquet", pd.read_parquet)):
        out = tmp_path / name
        arguments = ["evaluate", run.id, "--tasks", "piqa,arithmetic", "--steps", "0,last"]
        assert main([*arguments, "--limit", "4", "--items", str(folder), "--out", str(out)]) == 0
        assert list(read(out).columns) == COLUMNS and len(read(out)) == 6
    assert "acc_norm" in capsys.readouterr().out
    assert main(["evaluate", run.id, "--tasks", "piqa", "--items", str(tmp_path)]) == 1
    assert "piqa.jsonl does not exist" in capsys.readouterr().err


def test_the_generate_command_continues_prompts(run: Run, capsys: pytest.CaptureFixture) -> None:
    command = ["generate", run.id, "--prompt", "Question: Boil", "--prompt", "", "--tokens", "5"]
    assert main([*command, "--step", "3", "--temperature", "1"]) == 0
    first = capsys.readouterr().out
    assert first.startswith("Question: Boil[")
    assert main([*command, "--step", "3", "--temperature", "1"]) == 0
    assert capsys.readouterr().out == first
    assert main(["generate", run.id, "--prompt", "a " * 80]) == 1
    assert "tokens, but may have at most" in capsys.readouterr().err
