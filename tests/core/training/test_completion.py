"""done.json covers every file of a finished run; runs of older versions still load."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import control, remove_hashes

from pythia_core.config import RunConfig, stable_hash
from pythia_core.data import manifest as module
from pythia_core.errors import CheckpointError, DataError
from pythia_core.training.checkpoint import (
    drop_weights,
    saved_steps,
    sha256_tensors,
    step_folder,
)
from pythia_core.training.completion import has_hashes, read_done
from pythia_core.training.runs import Run, find_or_train, find_or_train_all, find_run, verify
from pythia_core.util.files import write_digest


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
    states = len(saved_steps(fork.states))
    assert report[0].endswith(
        f"the hashes of 9 checkpoints, 8 batches and {states} training states match"
    )
    assert report[1] == "identity, log, ledger and manifests match the hashes in done.json"
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
        ours.rename(aside := fork.folder / "aside")
        read = {"checkpoints": fork.model, "states": fork.state}[kind]
        for put, remove in ((shutil.copytree, shutil.rmtree), (os.symlink, os.unlink)):
            put(theirs, ours)
            for use in (lambda: verify(fork), lambda r=read, s=step: r(s)):
                with pytest.raises(CheckpointError, match=rf"step {step} in .*{kind} was changed"):
                    use()
            remove(ours)
        aside.rename(ours)
        read(step)
    verify(fork)


def swap(ours: Run, theirs: Run, kind: str, step: int) -> None:
    """Replace a checkpoint or state of a run by that of another run."""
    shutil.rmtree(step_folder(ours.folder / kind, step))
    shutil.copytree(step_folder(theirs.folder / kind, step), step_folder(ours.folder / kind, step))


def test_damage_is_not_sealed_by_finishing_the_run_again(config: RunConfig, fork: Run) -> None:
    """A done.json is deleted, as a user would do if it is damaged."""
    other = find_or_train(config, progress=False)
    (fork.folder / "done.json").unlink()
    shutil.copytree(fork.folder, whole := fork.folder.with_name("whole"))

    def refused(match: str) -> None:
        """Check that the run can be neither finished nor verified; then restore its folder."""
        for use in (lambda: verify(fork), lambda: find_or_train(fork.config, progress=False)):
            with pytest.raises((CheckpointError, DataError), match=match):
                use()
        assert not fork.finished
        shutil.rmtree(fork.folder)
        shutil.copytree(whole, fork.folder)

    swap(fork, other, "checkpoints", 14)
    refused(r"step 14 in .*checkpoints is not the one that training saved: .* or delete it and")
    shutil.rmtree(step_folder(fork.checkpoints, 14))
    refused("step 14 in .*checkpoints is not the one that training saved")
    (fork.folder / "metrics.jsonl").unlink()
    refused(r"metrics\.jsonl has changed")
    swap(fork, other, "states", 20)
    refused(r"metrics\.jsonl has changed")
    swap(fork, other, "states", 20)
    shutil.copy(other.folder / "metrics.jsonl", fork.folder)
    refused("step 3 in|step 0 in|is not the one that training saved")
    assert find_or_train(fork.config, progress=False).finished


def test_a_checkpoint_after_the_newest_state_is_compared_with_what_training_gives(
    config: RunConfig, fork: Run
) -> None:
    other = find_or_train(config, progress=False)
    sha256, weights = fork.final_sha256, sha256_tensors(fork.model(14).state_dict())
    (fork.folder / "done.json").unlink()
    shutil.rmtree(fork.states)
    swap(fork, other, "checkpoints", 14)
    with pytest.warns(UserWarning, match=r"step-000014\.corrupt: training has now produced"):
        again = find_or_train(fork.config, progress=False)
    assert again.final_sha256 == sha256
    assert sha256_tensors(again.model(14).state_dict()) == weights
    assert (
        verify(again)[-1] == "not part of the run, and not checked: checkpoints/step-000014.corrupt"
    )


def test_a_state_of_an_older_version_has_no_hashes_of_checkpoints(fork: Run) -> None:
    (fork.folder / "done.json").unlink()
    for step in saved_steps(fork.states):
        path = step_folder(fork.states, step) / "manifest.json"
        manifest = json.loads(path.read_text())
        del manifest["meta"]["checkpoints"], manifest["manifest_sha256"]
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(manifest | {"manifest_sha256": digest}))
    verify(find_or_train(fork.config, progress=False))


def test_the_done_json_of_another_run_is_refused(config: RunConfig, fork: Run) -> None:
    other = find_or_train(config, progress=False)
    shutil.copy(other.folder / "done.json", fork.folder)
    for find in (
        lambda: find_or_train(fork.config, progress=False),
        lambda: find_or_train_all({"fork": fork.config}, progress=False),
        lambda: fork.model(14),
    ):
        with pytest.raises(CheckpointError, match=r"(since|after) the run was"):
            find()


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "", "[" * 100_000, "\xff"])
def test_json_files_that_are_no_objects_are_named(fork: Run, text: str) -> None:
    for name in ("identity.json", "done.json"):
        good = (fork.folder / name).read_text()
        (fork.folder / name).write_text(text, "latin-1")
        for use in (
            lambda: verify(find_run(str(fork.folder))),
            lambda: find_or_train(fork.config, progress=False),
            lambda: verify(fork),
        ):
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                use()
        (fork.folder / name).write_text(good)
    verify(fork)


def test_replays_are_verified_and_other_files_named(config: RunConfig, fork: Run) -> None:
    """The control kept no states of the steps 9 and 12, so forks from there replay it."""
    find_or_train(config.fork("masculine_to_feminine", 9, 12), progress=False)
    parent = find_or_train(config, progress=False)
    assert "the replays to the steps 9, 12 match their hashes and the data" in verify(parent)
    replay = parent.folder / "replays" / "9"
    for path in [p for p in sorted(replay.rglob("*")) if p.is_file() and p.name != ".lock"]:
        good = path.read_bytes()
        path.write_bytes(good[:-9] + bytes([good[-9] ^ 1]) + good[-8:])
        with pytest.raises((CheckpointError, DataError)):
            verify(parent)
        path.write_bytes(good)
    (replay / "metrics.jsonl").rename(replay / "moved.jsonl")
    with pytest.raises(DataError, match=r"replays/9/metrics\.jsonl has changed"):
        verify(parent)
    (replay / "moved.jsonl").rename(replay / "metrics.jsonl")
    for name in ("notes.txt", "states/old", "replays/9/x", "replays/y", "with.txt"):
        (parent.folder / name).write_text("x")
    write_digest(parent.folder / "with.txt")
    report = verify(parent)
    assert (
        "not part of the run, and not checked: notes.txt, replays/9/x, replays/y, states/old"
        in report
    )
    (parent.folder / "with.txt").write_text("y")
    with pytest.raises(CheckpointError, match=r"with\.txt does not have the sha256 in"):
        verify(parent)


def test_verify_hashes_held_out_text_however_large(
    fork: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FULL_CHECK_BYTES", 0)
    path = fork.data.tokens_folder / "heldout.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    found = find_run(str(fork.folder))
    with pytest.raises(DataError, match=r"the sha256 of heldout\.bin is not"):
        verify(found)


def test_states_and_weights_may_be_deleted_but_not_added(fork: Run) -> None:
    drop_weights(step_folder(fork.checkpoints, 14))
    first, *_, last = saved_steps(fork.states)
    shutil.copytree(step_folder(fork.states, last), extra := fork.folder / "extra")
    shutil.rmtree(step_folder(fork.states, first))
    shutil.rmtree(step_folder(fork.states, last))
    assert "the hashes of 8 checkpoints, " in verify(fork)[0]
    manifest = json.loads((extra / "manifest.json").read_text()) | {"step": 99}
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (extra / "manifest.json").write_text(json.dumps(body | {"manifest_sha256": digest}))
    extra.rename(step_folder(fork.states, 99))
    with pytest.raises(CheckpointError, match=r"step 99 in .*states was changed or added after"):
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
