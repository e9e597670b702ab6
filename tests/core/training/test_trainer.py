"""All modes of execution agree; results may be read late; non-finite updates are skipped."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import batch_at, config

from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError, TrainingError
from pythia_core.model import GPTNeoX
from pythia_core.training import train as loop
from pythia_core.training.checkpoint import saved_steps, sha256_tensors
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.metrics import read_metrics
from pythia_core.training.optimizer import FlatParameters
from pythia_core.training.runs import code_identity
from pythia_core.training.train import train
from pythia_core.training.trainer import WARM_UP, MicroStep, Trainer, recording_error
from pythia_core.util.machine import deterministic

CPU = torch.device("cpu")


def test_modes_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"unknown execution mode 'grpah'.*Did you mean 'graph'"):
        Execution("grpah")
    with pytest.raises(ConfigError, match="the device is 'cpu'; choose 'eager' or 'compile'"):
        Trainer(config(), CPU, Execution("graph"))
    Execution("graph").check("cuda")


def test_the_environment_variable_applies_to_every_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHIA_EXECUTION", raising=False)
    for cuda, mode in ((False, "eager"), (True, "graph")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert Execution.from_environment() == Execution(mode)
    monkeypatch.setenv("PYTHIA_EXECUTION", "compile+recompute")
    assert Execution.from_environment() == Execution("compile", recompute=True)
    for wrong in ("compile+", "eager+graph", "fast"):
        with pytest.raises(ConfigError, match=r"only 'recompute' may follow|unknown execution"):
            Execution.parse(wrong)


def test_settings_that_change_results_are_in_the_identity() -> None:
    ways = [Execution(m, r) for m in ("eager", "graph") for r in (False, True)]
    assert {e.backend("triton", "cuda") for e in ways} == {"triton"}
    assert Execution("compile").backend("triton", "cuda") == "triton+compiled"
    free = Execution(deterministic=False)
    assert free.backend("triton", "cuda") == "triton+nondeterministic"
    assert free.backend("native", "cpu") == "native"
    if not torch.cuda.is_available():
        assert code_identity() == code_identity(Execution(recompute=True))
        assert code_identity(Execution("compile"))["kernels"].endswith("+compiled")
        with pytest.raises(ConfigError, match="needs a CUDA device"):
            code_identity(Execution("graph"))


@pytest.mark.parametrize("fails", [False, True])
def test_only_an_update_is_strictly_deterministic(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deterministic algorithms are only on during an update; tests the GPU's switch on a CPU."""
    trainer, seen = Trainer(config(), CPU), []
    trainer._kernels = partial(deterministic, True)
    run = trainer._micro._run

    def watched(rows: torch.Tensor) -> None:
        strict = not torch.is_deterministic_algorithms_warn_only_enabled()
        seen.append(torch.are_deterministic_algorithms_enabled() and strict)
        if fails:
            raise torch.OutOfMemoryError("full")
        run(rows)

    monkeypatch.setattr(trainer._micro, "_run", watched)
    monkeypatch.setattr(trainer, "_out_of_memory", lambda micro_batch: "out of memory")
    with pytest.raises(TrainingError, match="out of memory") if fails else nullcontext():
        trainer.update(batch_at(0))
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_recomputation_changes_no_bit(precision: str) -> None:
    run = config(precision=precision, micro_batch=2)
    kept, again = (Trainer(run, CPU, Execution(recompute=r)) for r in (False, True))
    for step in range(2):
        assert kept.update(batch_at(step)) == again.update(batch_at(step))
        assert torch.equal(kept.flat.grad, again.flat.grad)
    assert torch.equal(kept.flat.flat, again.flat.flat)


def test_recomputation_saves_fewer_activations() -> None:
    sizes = []
    for recompute in (False, True):
        trainer, kept = Trainer(config(), CPU, Execution(recompute=recompute)), {}

        def keep(t: torch.Tensor, kept: dict = kept) -> torch.Tensor:
            kept[t.data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            trainer.model.hidden(torch.from_numpy(batch_at(0).astype(np.int64))[:, :-1])
        sizes.append(sum(t.numel() for t in kept.values()))
    assert sizes[1] < sizes[0] / 2


def capture_on_cpu(function: Callable[[], object]) -> Callable[[], object]:
    """Like capture_cuda, but the replay runs the function itself, on the same memory."""
    for _ in range(WARM_UP):
        function()
    return function


@pytest.mark.parametrize("micro_batch", [0, 2, 3])
def test_a_recorded_step_equals_the_eager_one(micro_batch: int) -> None:
    """The part of graph mode that needs no GPU; for the rest, see kernels/test_dispatch.py."""
    results = []
    for execution in (EAGER, Execution("graph")):
        model = GPTNeoX(config().model)
        model.init_weights(1)
        flat = FlatParameters(model, torch.float32)
        total, scale = torch.zeros((), dtype=torch.float64), torch.tensor(2.0)
        micro = MicroStep(model, execution, total, scale, capture=capture_on_cpu)
        for step in (0, 1, 0):
            rows = torch.from_numpy(batch_at(step).astype(np.int64))
            parts = rows.split(micro_batch or len(rows))
            scale.fill_(2.0**step)
            micro.prepare(parts)
            flat.grad.zero_()
            total.zero_()
            for part in parts:
                micro(part, len(rows))
            results.append((execution.mode, step, total.item(), flat.grad.clone()))
    eager, graph = results[:3], results[3:]
    for a, b in zip(eager, graph, strict=True):
        assert a[2] == b[2] and torch.equal(a[3], b[3])
    assert not torch.equal(eager[0][3], eager[1][3]) and torch.equal(eager[0][3], eager[2][3])


def test_the_error_of_a_recording_says_what_to_do() -> None:
    """After a failed recording, torch's allocator may work no more, so training cannot go on."""
    error = recording_error(RuntimeError("operation not permitted when stream is capturing\nmore"))
    assert isinstance(error, TrainingError)
    assert "is capturing). Run again with PYTHIA_EXECUTION=eager" in str(error)
    for full in (
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ):
        assert isinstance(recording_error(full), torch.OutOfMemoryError)


def test_one_recording_serves_batches_of_all_sizes() -> None:
    """Otherwise, a second recording would keep a second set of activations in memory."""
    recordings = []

    def capture(function: Callable[[], object]) -> Callable[[], object]:
        recordings.append(function)
        return capture_on_cpu(function)

    model = GPTNeoX(config().model)
    model.init_weights(1)
    total = torch.zeros((), dtype=torch.float64)
    micro = MicroStep(model, Execution("graph"), total, capture=capture)
    rows = torch.from_numpy(batch_at(0).astype(np.int64))
    losses = []
    for n_parts in (1, 4):
        micro.prepare([rows] * n_parts)
        total.zero_()
        for part in [rows] * n_parts:
            micro(part, n_parts * len(rows))
        losses.append(total.item())
    assert len(recordings) == 1 and losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_compiled_results_are_close_to_eager_ones() -> None:
    small = replace(config(), model=replace(config().model, n_layers=1))
    eager, compiled = (Trainer(small, CPU, Execution(m)) for m in ("eager", "compile"))
    for step in range(3):
        ours, plain = compiled.update(batch_at(step)), eager.update(batch_at(step))
        assert ours == pytest.approx(plain, rel=1e-5)


# --- results that are read late --------------------------------------------------------------


def make_gradient_nan(trainer: Trainer, at: int) -> None:
    """Make the gradient of update `at` NaN."""
    norm = trainer.flat.norm

    def norm_with_nan() -> torch.Tensor:
        if trainer.step == at:
            trainer.flat.grad[0] = float("nan")
        return norm()

    trainer.flat.norm = norm_with_nan


def hashed(trainer: Trainer) -> str:
    return sha256_tensors({**trainer.state()["model"], **trainer.state()["optimizer"]})


def test_updates_launched_after_a_failure_change_nothing() -> None:
    trainer, twin = Trainer(config(), CPU), Trainer(config(), CPU)
    make_gradient_nan(trainer, 2)
    pending = [trainer.launch(batch_at(step)) for step in range(5)]
    done = [twin.update(batch_at(step)) for step in range(2)]
    assert [p.result() for p in pending[:2]] == done
    with pytest.raises(TrainingError, match=r"update 2 .*the weights are those of step 2"):
        pending[2].result()
    assert trainer.step == 2 and hashed(trainer) == hashed(twin)
    with pytest.raises(TrainingError):
        pending[4].result()
    assert trainer.step == 2, "reading a later result does not change the step"
    del trainer.flat.norm
    assert trainer.update(batch_at(2)) == twin.update(batch_at(2)), "training continues from there"
    assert hashed(trainer) == hashed(twin)


class FailingTrainer(Trainer):
    def __init__(self, run: RunConfig, device: torch.device, execution: Execution, **named) -> None:
        super().__init__(run, device, execution, **named)
        make_gradient_nan(self, 6)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_the_lag_does_not_change_results(
    tmp_path: Path, lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train(config(), batch_at, tmp_path / "a", progress=False)
    monkeypatch.setitem(loop.LAG, "cpu", lag)
    with pytest.raises(TrainingError, match="the weights are those of step 6"):
        train(config(), batch_at, tmp_path / "b", make_trainer=FailingTrainer, progress=False)
    logged = [row["step"] for row in read_metrics(tmp_path / "b" / "metrics.jsonl")]
    assert logged == list(range(1, 7))
    assert max(saved_steps(tmp_path / "b" / "checkpoints")) <= 6
    assert max(saved_steps(tmp_path / "b" / "states"), default=0) <= 6
    assert train(config(), batch_at, tmp_path / "b", progress=False) == straight
    a, b = (read_metrics(tmp_path / x / "metrics.jsonl") for x in "ab")
    assert [{**row, "tokens_per_s": 0} for row in a] == [{**row, "tokens_per_s": 0} for row in b]
    assert all(row["tokens_per_s"] > 0 for row in b)


def test_the_log_is_never_behind_a_saved_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loop.LAG, "cpu", 5)
    save = loop.CheckpointWriter.save

    def watched(self, parent: Path, step: int, *rest) -> object:
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == step
        return save(self, parent, step, *rest)

    monkeypatch.setattr(loop.CheckpointWriter, "save", watched)
    saving = loop.Saving(states=frozenset({3, 7}))
    train(config(), batch_at, tmp_path, saving=saving, progress=False)
    assert saved_steps(tmp_path / "states") == [3, 7, 12]


def test_out_of_memory_recommends_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config(), CPU)

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    card = SimpleNamespace(
        mem_get_info=lambda device: (2**31, 2**35), memory_reserved=lambda device: 2**24
    )
    monkeypatch.setattr(trainer, "_micro", SimpleNamespace(prepare=full))
    monkeypatch.setattr("pythia_core.training.trainer.torch.cuda", card)
    with pytest.raises(
        TrainingError, match=r"4 rows of 16 .*micro_batch=\d+ should fit\. recompute"
    ):
        trainer.update(batch_at(0))
    card.mem_get_info = lambda device: (0, 2**35)
    with pytest.raises(TrainingError, match="Not even one row is expected to fit"):
        trainer.update(batch_at(0))
    assert trainer.step == 0
