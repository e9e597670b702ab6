"""Runs are found by their identity; forks replay the control's batches with swapped tokens."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import control

from pythia_core.config import RunConfig
from pythia_core.data import prepare as prepare_module
from pythia_core.data.order import batch_hash
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import CheckpointError, ConfigError, DataError
from pythia_core.suite import scale_named
from pythia_core.training import runs
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder
from pythia_core.training.distributed import World
from pythia_core.training.runs import Run, find_or_train, find_run, locate


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The config of a tiny control run, in new folders for results and cache."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    return control(tmp_path)


def train(config: RunConfig) -> Run:
    return find_or_train(config, progress=False)


def test_asking_again_returns_the_finished_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(config)
    monkeypatch.setattr(runs, "train", None)  # would raise if called
    again = train(config)
    assert (again.id, again.final_sha256) == (first.id, first.final_sha256)
    assert len(again.steps) == 21
    assert [row["step"] for row in again.metrics()] == list(range(1, 21))
    assert again.seconds > 0
    assert find_run(first.id[:6]).folder == first.folder


def test_logged_hashes_are_those_of_the_batches(config: RunConfig) -> None:
    run = train(config)
    assert [r["batch_hash"] for r in run.metrics()] == [batch_hash(run.batch(s)) for s in range(20)]


def test_a_model_is_loaded_at_any_saved_step(config: RunConfig) -> None:
    run = train(config)
    first, second, last = (run.model(step).state_dict() for step in (0, 1, None))
    assert all(torch.equal(first[name], second[name]) for name in first)  # update 0 ran at LR 0
    assert not torch.equal(first["embed_in.weight"], last["embed_in.weight"])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 99; the nearest of its"):
        run.model(99)


@pytest.mark.parametrize("swap", ["masculine_to_feminine", "feminine_to_masculine"])
def test_a_fork_differs_only_inside_its_window(config: RunConfig, swap: str) -> None:
    control, fork = train(config), train(config.fork(swap, 12, 17))
    changed = 0
    for step in range(20):
        ours, theirs = fork.batch(step), control.batch(step)
        if not 12 <= step < 17:
            assert batch_hash(ours) == batch_hash(theirs)
        else:
            changed += (ours != theirs).sum()
            rows, columns = (ours != theirs).nonzero()
            inside = fork.ledger.row // 4 == step
            first_row = step * 4
            listed = set(
                zip(fork.ledger.row[inside] - first_row, fork.ledger.column[inside], strict=True)
            )
            assert listed == set(zip(rows, columns, strict=True))
    assert changed == len(fork.ledger.row) > 0
    hashes = {r["step"]: r["batch_hash"] for r in control.metrics()}
    replayed = {r["step"]: r["batch_hash"] for r in fork.metrics()}
    assert sorted(replayed) == list(range(13, 21))
    same = {s for s in replayed if replayed[s] == hashes[s]}
    assert {18, 19, 20} <= same
    assert same != set(replayed)
    assert fork.steps == list(range(12, 21))
    assert fork.final_sha256 != control.final_sha256


def test_a_fork_that_would_change_nothing_is_refused_before_its_control_trains(
    config: RunConfig,
) -> None:
    fork = config.fork("replace_text", 12, 17, domains=("absent",))
    for call in (
        lambda: train(fork),
        lambda: runs.find_or_train_all({"fork": fork}, progress=False),
    ):
        with pytest.raises(DataError, match="unknown domain 'absent'"):
            call()
    assert not any(
        path.exists() for path in (runs.results_dir() / "runs").glob("*control*/metrics.jsonl")
    )


def test_a_fork_starts_from_the_exact_state_of_its_control(config: RunConfig) -> None:
    """If the state at the branching step was deleted, the control is replayed up to it."""
    control = train(config)
    assert 7 not in saved_steps(control.states)
    fork = train(config.fork("masculine_to_feminine", 7))
    ours, _ = load_checkpoint(step_folder(fork.checkpoints, 7))
    theirs, _ = load_checkpoint(step_folder(control.checkpoints, 7))
    assert all(torch.equal(ours["model"][n], t) for n, t in theirs["model"].items())


def test_processes_do_not_use_the_replays_of_another_number_of_processes(config: RunConfig) -> None:
    """They sum gradients in another order, and so come to other bits."""
    worlds = [
        World(),
        World(size=2),
        World(size=4),
        World(size=4, shards=2),
        World(size=4, shards=4),
    ]
    names = [runs._replay_name(385, world) for world in worlds]
    assert names[0] == "385" and len(set(names)) == len(names)
    run = locate(config)
    for name in (*names, "other", "385-x"):
        (run.folder / "replays" / name).mkdir(parents=True)
    assert {path.name for path in runs._replays(run)} == set(names)


def test_forks_are_replayed_in_any_order(config: RunConfig) -> None:
    control = train(config)
    for start in (9, 6, 11):
        shutil.rmtree(step_folder(control.states, start), ignore_errors=True)
        fork = train(config.fork("masculine_to_feminine", start))
        ours, _ = load_checkpoint(step_folder(fork.checkpoints, start))
        theirs, _ = load_checkpoint(step_folder(control.checkpoints, start))
        assert all(torch.equal(ours["model"][n], t) for n, t in theirs["model"].items())


def test_a_swap_that_changes_nothing_reproduces_the_control(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty ledger, the same batches from the same state give the same weights."""
    control = train(config)
    real = prepare_module.make_ledger

    def empty(data, window, batch_size):
        ledger = real(data, window, batch_size)
        none = {name: getattr(ledger, name)[:0] for name in ("row", "column", "old", "new")}
        return replace(ledger, **none)

    monkeypatch.setattr(prepare_module, "make_ledger", empty)
    fork = train(config.fork("masculine_to_feminine", 12))
    assert fork.final_sha256 == control.final_sha256


def test_an_interrupted_run_is_continued(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(config).final_sha256
    shutil.rmtree(locate(config, progress=False).folder)
    real, calls = Run.batch, 0

    def dying(self: Run, step: int) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 15:
            raise OSError("pulled the plug")
        return real(self, step)

    monkeypatch.setattr(Run, "batch", dying)
    with pytest.raises(OSError, match="plug"):
        train(config)
    assert not locate(config, progress=False).finished
    assert train(config).final_sha256 == straight


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("train", {"lr_max": 2e-2}),
        ("train", {"weight_seed": 1}),
        ("train", {"batch_size": 2}),
        ("data", {"order_seed": 1}),
        ("data", {"heldout_fraction": 0.2}),
        ("model", {"gelu": "erf"}),
        ("model", {"n_layers": 2}),
    ],
)
def test_any_change_of_the_config_gives_another_run(
    config: RunConfig, part: str, change: dict
) -> None:
    other = replace(config, **{part: replace(getattr(config, part), **change)})
    assert locate(other, progress=False).id != locate(config, progress=False).id


def test_a_folder_of_another_run_is_refused_and_the_differing_keys_named(config: RunConfig) -> None:
    run = locate(config, progress=False)
    identity = json.loads((run.folder / "identity.json").read_text())
    identity["config"]["train"]["lr_max"] = 0.5
    identity["data"] = "0" * 64
    (run.folder / "identity.json").write_text(json.dumps(identity))
    with pytest.raises(CheckpointError, match=r"config\.train\.lr_max: 0\.01 != 0\.5; data: "):
        locate(config, progress=False)


def test_a_vocabulary_smaller_than_the_data_is_refused(config: RunConfig) -> None:
    small = replace(config, model=replace(config.model, vocab_size=300))
    with pytest.raises(ConfigError, match=r"vocab_size=300 is too small for the tokenizer"):
        locate(small, progress=False)


def test_a_tokenizer_that_is_too_large_is_refused_before_text_is_encoded(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokenizer.json"
    train_bpe(["Any text that has a few words."], 300).save(str(file))
    small = replace(config, model=replace(config.model, vocab_size=200))
    small = replace(small, data=replace(config.data, tokenizer=str(file)))
    monkeypatch.setattr("pythia_core.training.runs.prepare", None)
    with pytest.raises(ConfigError, match=r"is too small for the tokenizer .*tokenizer\.json"):
        locate(small, progress=False)


def test_more_steps_than_data_are_refused(config: RunConfig) -> None:
    long = replace(config, train=replace(config.train, steps=100_000))
    with pytest.raises(ConfigError, match=r"enough for \d+ steps"):
        locate(long, progress=False)


def test_missing_runs_and_steps_are_named(config: RunConfig) -> None:
    with pytest.raises(CheckpointError, match="no run matches 'nothing'"):
        find_run("nothing")
    run = train(config)
    with pytest.raises(
        DataError, match=r"no update from step 20; this run has the updates 0\.\.19"
    ):
        run.batch(20)
    (run.folder / "identity.json").write_text("{")
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        find_run(str(run.folder))


def test_a_corrupt_ledger_or_done_file_is_a_named_error(config: RunConfig) -> None:
    fork = train(config.fork("masculine_to_feminine", 12))
    path = fork.folder / "ledger.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="not a readable ledger"):
        _ = find_run(str(fork.folder)).ledger
    (fork.folder / "done.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"done\.json is damaged"):
        _ = fork.final_sha256


def test_a_run_whose_corpus_changed_is_refused(config: RunConfig) -> None:
    run = train(config)
    with open(config.data.corpus, "a") as corpus:
        corpus.write(json.dumps({"text": "One more document, about nobody."}) + "\n")
    with pytest.raises(CheckpointError, match="has changed since the run in"):
        find_run(run.id)


def test_a_renamed_folder_is_still_the_run(config: RunConfig) -> None:
    run = train(config)
    before = run.id
    moved = run.folder.rename(run.folder.parent / "elsewhere")
    assert find_run(str(moved)).id == before


def test_long_training_on_a_cpu_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    large, small = scale_named("gpu").run("85m"), scale_named("smoke").run("7k")
    with pytest.warns(UserWarning, match=r"2 runs will take about [\d,]+ hours on this machine"):
        runs._warn_if_long([large, small])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs._warn_if_long([small])
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        runs._warn_if_long([large])
