"""Dynamic loss scaling equals DeepSpeed's; fp16 training with it survives overflows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import batch_at, config

from pythia_core.errors import TrainingError
from pythia_core.training import loss_scale
from pythia_core.training.checkpoint import sha256_tensors, step_folder
from pythia_core.training.loss_scale import HYSTERESIS, INITIAL, MINIMUM, WINDOW, LossScale
from pythia_core.training.metrics import read_metrics
from pythia_core.training.train import train
from pythia_core.training.trainer import Trainer, update_lr

CPU = torch.device("cpu")


def test_the_defaults_are_pythias() -> None:
    assert (INITIAL, WINDOW, HYSTERESIS, MINIMUM) == (4096, 1000, 2, 1)


def test_the_second_overflow_halves_and_a_window_doubles() -> None:
    scale = LossScale()
    scale.update(True)
    assert scale.scale == INITIAL, "the first overflow does not change the scale"
    scale.update(True)
    scale.update(True)
    assert scale.scale == INITIAL / 4 and scale.skipped == 3
    for _ in range(WINDOW - 1):
        scale.update(False)
    assert scale.scale == INITIAL / 4
    scale.update(False)
    assert scale.scale == INITIAL / 2 and scale.hysteresis == HYSTERESIS
    for _ in range(WINDOW):
        scale.update(False)
    assert scale.scale == INITIAL


@given(st.lists(st.booleans(), max_size=80))
def test_equals_deepspeeds_rule_by_iteration_numbers(overflows: list[bool]) -> None:
    window, scale = 5, LossScale(scale=2.0**40)
    expected, patience, last = 2.0**40, HYSTERESIS, -1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "WINDOW", window)
        for iteration, overflow in enumerate(overflows):
            scale.update(overflow)
            if overflow:
                patience, halved = max(patience - 1, 1), patience == 1
                expected, last = expected / 2 if halved else expected, iteration
            elif (iteration - last) % window == 0:
                expected, patience = expected * 2, HYSTERESIS
            assert (scale.scale, scale.hysteresis) == (expected, patience)
        assert scale.skipped == sum(overflows)


def test_an_overflow_at_the_minimum_scale_is_an_error() -> None:
    scale = LossScale(scale=MINIMUM, hysteresis=1)
    with pytest.raises(TrainingError, match="overflows fp16 even at the minimum loss scale, 1,"):
        scale.update(True)


def make_gradient_infinite(trainer: Trainer, at: set[int]) -> None:
    """Make the gradient infinite in the updates `at`."""
    norm = trainer.flat.norm

    def infinite_norm() -> torch.Tensor:
        if trainer.step in at:
            trainer.flat.grad[3] = float("inf")
        return norm()

    trainer.flat.norm = infinite_norm


class OverflowingTrainer(Trainer):
    def __init__(self, *arguments, **named) -> None:
        super().__init__(*arguments, **named)
        make_gradient_infinite(self, {2, 3, 7})


def test_an_overflow_changes_nothing_but_the_scale() -> None:
    trainer = OverflowingTrainer(config(precision="fp16"), CPU)
    for step in range(2):
        trainer.update(batch_at(step))
    before = sha256_tensors({**trainer.state()["model"], **trainer.state()["optimizer"]})
    for step, scale in ((2, INITIAL), (3, INITIAL / 2)):
        _, lr, norm = trainer.update(batch_at(step))
        assert lr == update_lr(trainer.config, 2) and norm == float("inf")
        assert trainer.scaler.scale == scale
    after = sha256_tensors({**trainer.state()["model"], **trainer.state()["optimizer"]})
    assert after == before and trainer.step == 4
    assert trainer.update(batch_at(4))[1] == update_lr(trainer.config, 2)
    assert trainer.moments_age == 3


def test_fp16_is_close_to_fp32_at_any_scale() -> None:
    exact = Trainer(config(), CPU)
    half, other = (Trainer(config(precision="fp16"), CPU) for _ in range(2))
    other.scaler.scale = 64.0
    for step in range(3):
        results = [t.update(batch_at(step)) for t in (exact, half, other)]
        for loss, _, norm in results[1:]:
            assert loss == pytest.approx(results[0][0], rel=2e-3)
            assert norm == pytest.approx(results[0][2], rel=2e-2)


@pytest.mark.parametrize("cut", [3, 4, 9])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "WINDOW", 3)
    run = config(precision="fp16")
    straight = train(run, batch_at, tmp_path / "a", make_trainer=OverflowingTrainer, progress=False)
    train(
        run, batch_at, tmp_path / "b", make_trainer=OverflowingTrainer, stop_at=cut, progress=False
    )
    resumed = train(run, batch_at, tmp_path / "b", make_trainer=OverflowingTrainer, progress=False)
    assert resumed == straight
    for name in ("model", "optimizer", "scaler"):
        files = [step_folder(tmp_path / x / "states", 12) / f"{name}.safetensors" for x in "ab"]
        assert files[0].read_bytes() == files[1].read_bytes()
    a, b = (read_metrics(tmp_path / x / "metrics.jsonl") for x in "ab")
    assert [{**row, "tokens_per_s": 0} for row in a] == [{**row, "tokens_per_s": 0} for row in b]
    assert [row["step"] for row in a if row["skipped"]] == [3, 4, 8]
    assert [row["grad_norm"] for row in a if row["skipped"]] == [None] * 3
    scales = [row["loss_scale"] for row in a]
    assert scales == [4096, 4096, 4096, 4096, 2048, 2048, 2048, 4096, 4096, 4096, 4096, 8192]


def test_a_batch_that_overflows_at_every_scale(tmp_path: Path) -> None:
    trainer = Trainer(config(precision="fp16"), CPU)
    make_gradient_infinite(trainer, set(range(100)))
    before = sha256_tensors(trainer.state()["model"])
    with pytest.raises(TrainingError, match="even at the minimum loss scale, 1"):
        for step in range(100):
            trainer.update(np.asarray(batch_at(step)))
    assert trainer.step == 13 and sha256_tensors(trainer.state()["model"]) == before
