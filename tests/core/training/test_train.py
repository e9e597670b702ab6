"""The loop: exact resumption after crashes, no update on NaN, micro-batches, precision."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from places import HELPERS
from tiny_training import batch_at, config, wait_for_rows

from pythia_core.errors import CheckpointError, DataError, TakenElsewhere, TrainingError
from pythia_core.training.checkpoint import saved_steps, sha256_tensors, step_folder
from pythia_core.training.metrics import read_metrics
from pythia_core.training.train import train
from pythia_core.training.trainer import Trainer, update_lr
from pythia_core.util import leases

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cut", [1, 5, 11])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, precision: str, cut: int, micro_batch: int
) -> None:
    run = config(precision=precision, micro_batch=micro_batch)
    straight = train(run, batch_at, tmp_path / "a", progress=False)
    train(run, batch_at, tmp_path / "b", stop_at=cut, progress=False)
    assert train(run, batch_at, tmp_path / "b", progress=False) == straight
    for name in ("checkpoints", "states"):
        assert saved_steps(tmp_path / "a" / name)[-1] == 12
    for step in saved_steps(tmp_path / "a" / "checkpoints"):
        a, b = (step_folder(tmp_path / x / "checkpoints", step) for x in "ab")
        assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    final = [step_folder(tmp_path / x / "states", 12) / "optimizer.safetensors" for x in "ab"]
    assert final[0].read_bytes() == final[1].read_bytes()
    rows = [read_metrics(tmp_path / x / "metrics.jsonl") for x in "ab"]
    for a, b in zip(*rows, strict=True):
        assert {**a, "tokens_per_s": 0} == {**b, "tokens_per_s": 0}
    assert [row["step"] for row in rows[0]] == list(range(1, 13))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = train(config(), batch_at, tmp_path, progress=False)

    def forbidden(step: int) -> np.ndarray:
        raise AssertionError("a finished run asked for a batch")

    assert train(config(), forbidden, tmp_path, progress=False) == first


CHILD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_training import batch_at, config
import pythia_core.training.train as t
t.STATE_EVERY_SECONDS = 0.05
def slow(step):
    time.sleep(0.02)
    return batch_at(step)
exec(sys.argv[3])
print(t.train(config(steps=40), slow, Path(sys.argv[1]), progress=False))
"""


def child(folder: Path, setting: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", CHILD, str(folder), str(HELPERS), setting]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    straight = train(config(steps=40), batch_at, tmp_path / "straight", progress=False)
    random = np.random.default_rng(3)
    for rows in (3, 11, 24):
        killed = child(tmp_path / "killed")
        wait_for_rows(tmp_path / "killed", rows)
        time.sleep(random.uniform(0, 0.05))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    survivor = child(tmp_path / "killed")
    out, err = survivor.communicate(timeout=120)
    assert survivor.returncode == 0, err
    assert out.strip() == straight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_then_stops(tmp_path: Path, number: signal.Signals) -> None:
    process = child(tmp_path)
    wait_for_rows(tmp_path, 4)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "stopped after saving step" in err
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]["step"]
    assert saved_steps(tmp_path / "states")[-1] == last


def test_nan_never_reaches_the_weights(tmp_path: Path) -> None:
    trainer = Trainer(config(), CPU)
    trainer.update(batch_at(0))
    with torch.no_grad():
        trainer.model.layers[0].mlp.dense_4h_to_h.bias[0] = float("nan")
        trainer.flat.refresh_copies()
    before = sha256_tensors(trainer.state()["model"])
    moments = sha256_tensors(trainer.state()["optimizer"])
    with pytest.raises(TrainingError, match="The update was not applied"):
        trainer.update(batch_at(1))
    assert sha256_tensors(trainer.state()["model"]) == before
    assert sha256_tensors(trainer.state()["optimizer"]) == moments
    assert trainer.step == 1


def test_step_0_equals_step_1_unless_the_first_lr_is_above_zero(tmp_path: Path) -> None:
    for as_released, equal in ((True, True), (False, False)):
        trainer = Trainer(config(first_update_at_lr_zero=as_released), CPU)
        before = sha256_tensors(trainer.state()["model"])
        trainer.update(batch_at(0))
        assert (sha256_tensors(trainer.state()["model"]) == before) is equal
    assert update_lr(config(), 0) == 0
    assert update_lr(config(first_update_at_lr_zero=False), 0) > 0


def test_micro_batches_only_change_rounding() -> None:
    whole, split = Trainer(config(), CPU), Trainer(config(micro_batch=1), CPU)
    for step in range(3):
        a, b = whole.update(batch_at(step)), split.update(batch_at(step))
        assert a == pytest.approx(b, rel=1e-5)


def test_training_learns() -> None:
    trainer = Trainer(config(steps=40), CPU)
    losses = [trainer.update(batch_at(0))[0] for _ in range(40)]
    assert losses[-1] < losses[0] - 1


def test_saved_weights_are_those_of_the_bf16_forward_pass(tmp_path: Path) -> None:
    trainer = Trainer(config(precision="bf16"), CPU)
    for step in range(4):
        trainer.update(batch_at(step))
    twin = Trainer(config(precision="bf16"), CPU)
    with torch.no_grad():
        for name, p in twin.model.named_parameters():
            p.copy_(trainer.weights()[name])
    twin.flat.refresh_copies()
    rows = torch.from_numpy(batch_at(9).astype(np.int64))
    assert twin.model.loss(rows).item() == trainer.model.loss(rows).item()


def test_a_state_of_another_architecture_is_refused(tmp_path: Path) -> None:
    train(config(), batch_at, tmp_path, stop_at=2, progress=False)
    other = replace(config(), model=replace(config().model, n_layers=1))
    with pytest.raises(CheckpointError, match="a different architecture"):
        train(other, batch_at, tmp_path, progress=False)


def test_a_second_process_waits_for_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = child(tmp_path)
    try:
        wait_for_rows(tmp_path, 2)
        with pytest.raises(TakenElsewhere, match=f"process {process.pid} on"):
            train(config(steps=40), batch_at, tmp_path, progress=False, wait=False)
        finished = train(config(steps=40), batch_at, tmp_path, progress=False, label="tiny")
        assert f"waiting for process {process.pid} on" in capsys.readouterr().err
        out, err = process.communicate(timeout=60)
        assert out.strip() == finished, err
    finally:
        process.kill()
        process.communicate()


def test_a_stopped_process_leaves_the_run_to_the_one_that_took_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("LEASE_SECONDS", 1), ("CHECK_SECONDS", 0.1), ("POLL_SECONDS", 0.1)):
        monkeypatch.setattr(leases, name, seconds)
    straight = train(config(steps=40), batch_at, tmp_path / "straight", progress=False)
    run = tmp_path / "shared"
    setting = "from pythia_core.util import leases as c; c.LEASE_SECONDS, c.CHECK_SECONDS = 1, 0.1"
    process = child(run, setting)
    try:
        wait_for_rows(run, 6)
        process.send_signal(signal.SIGSTOP)
        assert train(config(steps=40), batch_at, run, progress=False) == straight
        before = {path: path.stat() for path in run.rglob("*")}
        process.send_signal(signal.SIGCONT)
        _, err = process.communicate(timeout=60)
        assert "TakenElsewhere" in err and "nothing more was written" in err
        assert {path: path.stat().st_ino for path in run.rglob("*")} == {
            path: stat.st_ino for path, stat in before.items()
        }
        rows = read_metrics(run / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, 41))
    finally:
        process.kill()
        process.communicate()


def test_a_partial_metrics_line_is_dropped(tmp_path: Path) -> None:
    train(config(), batch_at, tmp_path, stop_at=5, progress=False)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 6, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    train(config(), batch_at, tmp_path, progress=False)
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize("bad", [97, 60_000])
@pytest.mark.parametrize("column", [0, 16])
def test_an_id_outside_the_vocabulary_is_refused(bad: int, column: int) -> None:
    trainer = Trainer(config(), CPU)
    batch = batch_at(0)
    batch[1, column] = bad
    with pytest.raises(DataError, match=r"the model's vocabulary is 0\.\.96"):
        trainer.update(batch)
    with pytest.raises(DataError, match="no rows"):
        trainer.update(batch[:0])


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    wild = config(steps=2, lr_max=3e38, warmup_fraction=0.0, lr_form="paper")
    with pytest.raises(TrainingError, match="not finite"):
        train(wild, batch_at, tmp_path, progress=False)
    assert saved_steps(tmp_path / "checkpoints") == [0]
    assert saved_steps(tmp_path / "states") == []
