"""Asynchronous checkpoints equal synchronous ones, and no write is left unfinished."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from places import HELPERS
from tiny_training import batch_at, config, wait_for_rows

from pythia_core.errors import TrainingError
from pythia_core.training import async_writer
from pythia_core.training import train as loop
from pythia_core.training.async_writer import CheckpointWriter
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder
from pythia_core.training.metrics import read_metrics
from pythia_core.training.train import Saving, train

ASYNCHRONOUS = Saving(asynchronous=True)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("checkpoint")]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Slow down writes; the list gets the largest number of writes at the same time."""
    save, running, seen = async_writer.save_checkpoint, [0], [0]

    def slowly(*arguments) -> Path:
        running[0] += 1
        seen[0] = max(seen[0], running[0])
        time.sleep(0.03)
        try:
            return save(*arguments)
        finally:
            running[0] -= 1

    monkeypatch.setattr(async_writer, "save_checkpoint", slowly)
    monkeypatch.setattr(loop, "STATE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(loop, "STATE_SHARE", 1e9)
    return seen


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_asynchronous_equals_synchronous(tmp_path: Path, precision: str, slow: list[int]) -> None:
    run = config(precision=precision)
    kept = frozenset({3, 5, 6})
    hashes = [
        train(
            run, batch_at, tmp_path / str(asynchronous), progress=False,
            saving=Saving(states=kept, asynchronous=asynchronous),
        )
        for asynchronous in (False, True)
    ]  # fmt: skip
    assert hashes[0] == hashes[1] and slow == [1] and not threads()
    for kind in ("checkpoints", "states"):
        once, later = (tmp_path / str(b) / kind for b in (False, True))
        common = sorted(set(saved_steps(once)) & set(saved_steps(later)))
        assert set(common) >= ({3, 5, 6, 12} if kind == "states" else set(saved_steps(once)))
        for step in common:
            for file in step_folder(once, step).glob("*.safetensors"):  # manifests name the log
                assert file.read_bytes() == (step_folder(later, step) / file.name).read_bytes()


@pytest.mark.parametrize("failing", [1, 4])
def test_an_error_in_the_thread_ends_training(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = async_writer.save_checkpoint, [0]

    def full(*arguments) -> Path:
        calls[0] += 1
        if calls[0] == failing:
            raise TrainingError("no space left")
        return save(*arguments)

    monkeypatch.setattr(async_writer, "save_checkpoint", full)
    with pytest.raises(TrainingError, match="no space left"):
        train(config(), batch_at, tmp_path, progress=False, saving=ASYNCHRONOUS)
    assert not threads()
    whole = train(config(), batch_at, tmp_path, progress=False, saving=ASYNCHRONOUS)
    assert whole == train(config(), batch_at, tmp_path / "other", progress=False)


def test_the_first_error_is_raised_and_the_thread_joined(tmp_path: Path, slow: list[int]) -> None:
    def broken(step: int) -> np.ndarray:
        if step == 5:
            raise OSError("the data are gone")
        return batch_at(step)

    with pytest.raises(OSError, match="the data are gone"):
        train(config(), broken, tmp_path, progress=False, saving=ASYNCHRONOUS)
    assert not threads()
    assert not list(tmp_path.glob("*/.*.tmp-*")), "the last write was not finished"
    for step in saved_steps(tmp_path / "states"):
        load_checkpoint(step_folder(tmp_path / "states", step))
    assert train(config(), batch_at, tmp_path, progress=False) == train(
        config(), batch_at, tmp_path / "other", progress=False
    )


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_training import batch_at, config
import pythia_core.training.train as t
t.STATE_EVERY_SECONDS, t.STATE_SHARE = 0.0, 1e9
def slow(step):
    time.sleep(0.01)
    return batch_at(step)
saving = t.Saving(asynchronous=True)
print(t.train(config(steps=40), slow, Path(sys.argv[1]), progress=False, saving=saving))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_during_a_write_lets_it_finish(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "run"), str(HELPERS)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_rows(tmp_path / "run", 9)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    states = tmp_path / "run" / "states"
    for step in saved_steps(states):
        load_checkpoint(step_folder(states, step))
    if number == signal.SIGTERM:
        assert "stopped after saving step" in err
        last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
        assert saved_steps(states)[-1] == last
    resumed = train(config(steps=40), batch_at, tmp_path / "run", progress=False)
    assert resumed == train(config(steps=40), batch_at, tmp_path / "other", progress=False)


def test_a_snapshot_is_taken_when_save_is_called(tmp_path: Path, slow: list[int]) -> None:
    tensor = torch.zeros(3)
    with CheckpointWriter(asynchronous=True) as writer:
        writer.save(tmp_path, 1, {"model": {"x": tensor}}, {})
        tensor.fill_(7)
        assert writer.busy
    assert load_checkpoint(step_folder(tmp_path, 1))[0]["model"]["x"].tolist() == [0, 0, 0]
    assert writer.seconds >= 0.03
