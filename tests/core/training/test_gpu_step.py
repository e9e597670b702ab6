"""The training step on a GPU: every mode compared with transformers and the others, and resumed.

Tests that need a CUDA device are skipped without one. Where a mode exists on CPUs, the same test
also runs there, so a failure on the GPU alone points to the GPU. Not yet run on a GPU.
"""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import peer_of
from torch import Tensor

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import TrainingError
from pythia_core.training import train as loop
from pythia_core.training.checkpoint import sha256_tensors, step_folder
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.metrics import read_metrics
from pythia_core.training.optimizer import is_decayed
from pythia_core.training.train import train
from pythia_core.training.trainer import Trainer, update_lr

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])
ON_CUDA = pytest.mark.parametrize("device", [CUDA])
VOCAB, STEPS = 256, 50
SEQ_LEN = 32
LENGTHS = pytest.mark.parametrize("seq_len", [512, 2048])
"""The row lengths of scale `gpu` and of Pythia. Attention then has several tiles of keys. Its
backward pass sums over tiles, and with one tile there is only one order of summation."""


def config(precision: str = "fp32", seq_len: int = SEQ_LEN, **changes) -> RunConfig:
    settings = {"steps": STEPS, "batch_size": 4, "lr_max": 2e-3, "warmup_fraction": 0.1}
    shape = {"n_layers": 2, "d_model": 64, "n_heads": 2, "vocab_size": VOCAB}
    return RunConfig(
        model=ModelConfig(**shape, max_seq_len=seq_len),
        data=DataConfig(seq_len=seq_len),
        train=TrainConfig(**{**settings, "precision": precision, **changes}),
    )


def batch_at(step: int, seq_len: int = SEQ_LEN) -> np.ndarray:
    """Rows that can be learned: they count up from a random number, sometimes by two."""
    random = np.random.default_rng(step)
    ways = random.choice([1, 2], p=[0.9, 0.1], size=(4, seq_len + 1))
    return ((random.integers(VOCAB, size=(4, 1)) + ways.cumsum(1)) % VOCAB).astype(np.uint16)


def ours(run: RunConfig, device: str, execution: Execution = EAGER) -> tuple[list[float], Trainer]:
    trainer = Trainer(run, torch.device(device), execution)
    steps = STEPS if device == "cuda" or run.data.seq_len == SEQ_LEN else 2
    pending = [trainer.launch(batch_at(step, run.data.seq_len)) for step in range(steps)]
    return [p.result()[0] for p in pending], trainer


@functools.cache
def theirs(device: str) -> list[float]:
    """Losses of transformers' GPT-NeoX with torch's AdamW, in fp32, from the same weights."""
    run = config()
    model = peer_of(Trainer(run, torch.device("cpu")).model).to(device)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if is_decayed(n)], "weight_decay": 0.1},
        {"params": [p for n, p in named.items() if not is_decayed(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(STEPS):
        rows = torch.from_numpy(batch_at(step).astype(np.int64)).to(device)
        optimizer.zero_grad()
        logits = model(input_ids=rows[:, :-1]).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = update_lr(run, step)
        optimizer.step()
        losses.append(loss.item())
    return losses


def check_near_transformers(run: RunConfig, device: str, execution: Execution) -> None:
    losses, expected = ours(run, device, execution)[0], theirs(device)
    assert expected[-1] < expected[0] - 1, "transformers' loss did not fall"
    near = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}[run.train.precision]
    assert losses == pytest.approx(expected, abs=near)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@DEVICES
def test_eager_is_near_transformers(device: str, precision: str) -> None:
    check_near_transformers(config(precision), device, EAGER)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["graph", "compile"])
@ON_CUDA
def test_other_modes_are_near_transformers(device: str, mode: str, precision: str) -> None:
    check_near_transformers(config(precision), device, Execution(mode))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("recompute", [False, True])
@LENGTHS
@DEVICES
def test_graphs_and_recomputation_change_no_bit(
    device: str, seq_len: int, recompute: bool, precision: str
) -> None:
    run = config(precision, seq_len, micro_batch=2)
    losses, trainer = ours(run, device)
    mode = "graph" if device == "cuda" else "eager"
    recorded, twin = ours(run, device, Execution(mode, recompute))
    assert losses == recorded and torch.equal(trainer.flat.flat, twin.flat.flat)


@pytest.mark.parametrize("heads", [1, 2, 4])
@LENGTHS
@ON_CUDA
def test_a_repeated_run_has_the_same_bits(device: str, seq_len: int, heads: int) -> None:
    """Head dims of 128, 64 and 32, for which libraries use different kernels."""
    run = config("bf16", seq_len)
    run = replace(run, model=replace(run.model, d_model=128, n_heads=heads))
    (losses, trainer), (again, twin) = (ours(run, device) for _ in range(2))
    assert losses == again and torch.equal(trainer.flat.flat, twin.flat.flat)
    assert not torch.are_deterministic_algorithms_enabled(), "still on after the update"


def whole_state(trainer: Trainer) -> dict[str, Tensor]:
    return {k: t for tensors in trainer.state().values() for k, t in tensors.items()}


def check_resumption(
    folder: Path,
    device: str,
    execution: Execution,
    precision: str,
    seq_len: int,
    steps: int = STEPS,
) -> None:
    run = config(precision, seq_len, micro_batch=2, steps=steps)
    batches = functools.partial(batch_at, seq_len=seq_len)
    common = {"progress": False, "device": torch.device(device), "execution": execution}
    straight = train(run, batches, folder / "a", **common)
    for stop in (steps // 3, 2 * steps // 3):
        train(run, batches, folder / "b", stop_at=stop, **common)
    assert train(run, batches, folder / "b", **common) == straight
    a, b = (step_folder(folder / x / "states", steps) for x in "ab")
    for file in a.glob("*.safetensors"):
        assert file.read_bytes() == (b / file.name).read_bytes()
    rows = [read_metrics(folder / x / "metrics.jsonl") for x in "ab"]
    assert [{**r, "tokens_per_s": 0} for r in rows[0]] == [
        {**r, "tokens_per_s": 0} for r in rows[1]
    ]


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@LENGTHS
@ON_CUDA
def test_resumption_is_exact(
    tmp_path: Path, device: str, seq_len: int, precision: str, mode: str
) -> None:
    check_resumption(tmp_path, device, Execution(mode), precision, seq_len)


@LENGTHS
def test_resumption_is_exact_on_a_cpu(tmp_path: Path, seq_len: int) -> None:
    check_resumption(tmp_path, "cpu", EAGER, "fp32", seq_len, steps=6)


@ON_CUDA
def test_a_failure_that_is_read_late_changes_no_weights(device: str) -> None:
    trainer, twin = (Trainer(config("bf16"), torch.device(device)) for _ in range(2))
    for step in range(2):
        trainer.update(batch_at(step))
        twin.update(batch_at(step))
    norm = trainer.flat.norm

    def norm_with_nan() -> Tensor:
        if trainer.step == 2:
            trainer.flat.grad[0] = float("nan")
        return norm()

    trainer.flat.norm = norm_with_nan
    pending = [trainer.launch(batch_at(step)) for step in range(2, 6)]
    with pytest.raises(TrainingError, match="the weights are those of step 2"):
        pending[0].result()
    assert trainer.step == 2
    assert sha256_tensors(whole_state(trainer)) == sha256_tensors(whole_state(twin))


@ON_CUDA
def test_updates_do_not_wait_for_the_device(device: str) -> None:
    """torch raises an error at every operation that synchronizes."""
    trainer = Trainer(config("bf16", micro_batch=2), torch.device(device))
    trainer.update(batch_at(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = [trainer.launch(batch_at(step)) for step in range(1, 4)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(np.isfinite(p.result()[0]) for p in pending)


@pytest.mark.slow
@ON_CUDA
def test_checkpoints_take_little_time(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a state every two seconds, they take less than 3 % of the time."""
    run = RunConfig(
        model=ModelConfig(n_layers=12, d_model=768, n_heads=12, vocab_size=50304, max_seq_len=1024),
        data=DataConfig(seq_len=1024),
        train=TrainConfig(steps=150, batch_size=32, lr_max=1e-4, precision="bf16"),
    )
    rows = np.random.default_rng(0).integers(0, 50304, (32, 1025)).astype(np.uint16)
    seconds = {}
    for name, every in (("warm-up", 1e9), ("none", 1e9), ("states", 2.0)):
        monkeypatch.setattr(loop, "STATE_EVERY_SECONDS", every)
        monkeypatch.setattr(loop, "STATE_SHARE", 1e9)
        times: list[float] = []

        def batch(step: int, times: list[float] = times) -> np.ndarray:
            times.append(time.perf_counter())
            return rows

        folder = tmp_path / name
        no_weights = loop.Saving(weights=frozenset())
        train(run, batch, folder, saving=no_weights, progress=False, device=torch.device(device))
        seconds[name] = times[-1] - times[10]
    assert seconds["states"] < 1.03 * seconds["none"], seconds
