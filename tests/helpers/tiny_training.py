"""A tiny run and its batches, for tests of the loop itself; also imported by child processes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig


def config(**changes) -> RunConfig:
    """Return the config of a tiny run of twelve updates, with some training settings replaced."""
    train_settings = {"steps": 12, "batch_size": 4, "lr_max": 1e-2, "warmup_fraction": 0.1}
    return RunConfig(
        model=ModelConfig(n_layers=2, d_model=32, n_heads=2, vocab_size=97, max_seq_len=16),
        data=DataConfig(seq_len=16),
        train=TrainConfig(**{**train_settings, **changes}),
    )


def batch_at(step: int) -> np.ndarray:
    """Return random token ids as the batch of an update, uint16[4, 17], the same in every call."""
    return np.random.default_rng(step).integers(0, 97, (4, 17)).astype(np.uint16)


def wait_for_rows(folder: Path, n: int) -> None:
    """Wait until a run has logged `n` updates in its folder; fail after 150 seconds.

    The run is trained by a child process.
    """
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        path = folder / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.005)
    raise AssertionError("the child never got that far")
