"""done.json covers every file of a finished run; runs of older versions still load."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import control, remove_hashes

from pythia_core.config import RunConfig, stable_hash
from pythia_core.errors import CheckpointError, DataError
from pythia_core.training.checkpoint import drop_weights, saved_steps, step_folder
from pythia_core.training.completion import has_hashes, read_done
from pythia_core.training.runs import Run, find_or_train, find_run, verify


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    return control(tmp_path)


@pytest.fixture
def fork(config: RunConfig) -> Run:
    return find_or_train(config.fork("masculine_to_feminine", 12, 17), progress=False)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_clean_run_is_reported_with_all_that_was_checked(fork: Run) -> None:
    report = verify(find_run(str(fork.folder)))
    assert report[0].endswith("9 checkpoints match their hashes, 8 batches match the log")
    assert report[1:3] == [
        f"{len(saved_steps(fork.states))} training states match their hashes",
        "identity, log, ledger and manifests match the hashes in done.json",
    ]
    assert sorted(read_done(fork.folder)["files"]) == [
        "identity.json", "ledger.safetensors", "metrics.jsonl",
    ]  # fmt: skip


def test_a_changed_log_is_neither_read_nor_verified(fork: Run) -> None:
    rate = fork.metrics()[0]["tokens_per_s"]
    edit(fork.folder / "metrics.jsonl", str(rate), str(rate + 1))
    for read in (fork.metrics, lambda: fork.seconds, lambda: verify(fork)):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl has changed since"):
            read()


@pytest.mark.parametrize("name", ["metrics.jsonl", "identity.json", "ledger.safetensors"])
def test_a_missing_file_is_named(fork: Run, name: str) -> None:
    (fork.folder / name).unlink()
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        verify(find_run(str(fork.folder)))


def test_an_identity_that_changed_is_refused(fork: Run) -> None:
    edit(fork.folder / "identity.json", '"trajectory": ', '"trajectory": 1')
    with pytest.raises(CheckpointError, match=r"identity\.json has changed since"):
        find_run(str(fork.folder))


@pytest.mark.parametrize("name", ["final_sha256", "machine", "files", "states", "sha256"])
def test_every_entry_of_done_is_hashed(fork: Run, name: str) -> None:
    path = fork.folder / "done.json"
    for change in (lambda d: d | {name: "x"}, lambda d: {k: d[k] for k in d if k != name}):
        good = path.read_text()
        path.write_text(json.dumps(change(json.loads(good))))
        for read in (fork.metrics, lambda: fork.final_sha256, lambda: verify(fork)):
            with pytest.raises(CheckpointError, match=r"done\.json is damaged"):
                read()
        path.write_text(good)
    verify(fork)


def test_a_checkpoint_of_another_run_is_found(config: RunConfig, fork: Run) -> None:
    """Each of them is whole: only done.json tells that they belong to another run."""
    other = find_or_train(config, progress=False)
    for kind, step in (("checkpoints", 14), ("states", 20)):
        ours, theirs = (step_folder(run.folder / kind, step) for run in (fork, other))
        shutil.copytree(ours, aside := fork.folder / "aside")
        shutil.rmtree(ours)
        shutil.copytree(theirs, ours)
        with pytest.raises(CheckpointError, match=rf"step {step} in .*{kind} is not the one with"):
            verify(fork)
        shutil.rmtree(ours)
        aside.rename(ours)
    verify(fork)


def test_states_and_weights_may_be_deleted_but_not_added(fork: Run) -> None:
    drop_weights(step_folder(fork.checkpoints, 14))
    first, *_, last = saved_steps(fork.states)
    shutil.copytree(step_folder(fork.states, last), extra := fork.folder / "extra")
    shutil.rmtree(step_folder(fork.states, first))
    shutil.rmtree(step_folder(fork.states, last))
    assert "8 checkpoints match" in verify(fork)[0]
    manifest = json.loads((extra / "manifest.json").read_text()) | {"step": 99}
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (extra / "manifest.json").write_text(json.dumps(body | {"manifest_sha256": digest}))
    extra.rename(step_folder(fork.states, 99))
    with pytest.raises(CheckpointError, match=r"step 99 in .*states is not the one with which"):
        verify(fork)


def test_a_run_of_an_older_version_loads_and_is_checked_as_far_as_possible(fork: Run) -> None:
    remove_hashes(fork)
    assert not has_hashes(read_done(fork.folder))
    found = find_run(str(fork.folder))
    assert found.finished and found.metrics() and found.final_sha256
    report = "\n".join(verify(found))
    assert "not covered by a hash: losses and rates in the log (an older version" in report
    edit(fork.folder / "done.json", found.final_sha256[:8], "0" * 8)
    with pytest.raises(CheckpointError, match=r"do not have the hash in done\.json"):
        verify(found)


def test_an_older_run_with_a_damaged_identity_or_log_is_refused_by_name(fork: Run) -> None:
    remove_hashes(fork)
    identity, log = fork.folder / "identity.json", fork.folder / "metrics.jsonl"
    good = identity.read_text(), log.read_text()
    edit(identity, '"trajectory": ', '"trajectory": 1')
    with pytest.raises(CheckpointError, match=r"identity\.json was changed or damaged: its hash"):
        verify(find_run(str(fork.folder)))
    identity.write_text(good[0].replace('"data": "', '"date": "'))
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        find_run(str(fork.folder))
    identity.write_text(good[0])
    for key in ("step", "batch_hash", "tokens_per_s", "loss"):
        log.write_text(good[1].replace(f'"{key}"', f'"{key}x"', 1))
        with pytest.raises(DataError, match=f"line 1 of .* is not a row of the log .*no {key}"):
            fork.metrics()
    log.write_text("[1]\n" + good[1])
    with pytest.raises(DataError, match="it is not an object"):
        verify(fork)


def test_an_unfinished_run_says_what_is_not_covered(config: RunConfig, fork: Run) -> None:
    (fork.folder / "done.json").unlink()
    assert "(the run is unfinished)" in "\n".join(verify(fork))
    again = find_or_train(replace(fork.config), progress=False)
    assert has_hashes(read_done(again.folder)), "a call finishes it, without training again"
    assert read_done(again.folder)["sha256"] != stable_hash({})
