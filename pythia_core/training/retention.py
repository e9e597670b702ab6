"""Delete the checkpoints that a large run need not keep, so that they do not fill the disk.

The 154 checkpoints of a model of 85 million parameters take 30 GB in bf16, and a suite has sixteen
models. A study says in a `Keep` which steps it needs. If all checkpoints of the run would take more
than KEEP_ALL_BYTES, or if the study asks for it, the weights of all other steps are deleted during
training. If the environment variable PYTHIA_KEEP_ALL is 1, nothing is deleted.

Manifests remain, and their hashes show which checkpoints had equal weights. Training the run again
gives the deleted weights again, bit for bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pythia_core.config import RunConfig
from pythia_core.training.schedule import N_CHECKPOINTS, checkpoint_steps

BatchAt = Callable[[int], np.ndarray]

KEEP_ALL_BYTES = 1e9
"""A run keeps everything if its checkpoints take at most this many bytes (unless `prune_small`)."""


@dataclass(frozen=True)
class Keep:
    """The steps whose checkpoints a large run keeps; `a | b` keeps what either does."""

    weights: frozenset[int] = frozenset()
    """Steps whose weights are kept, in addition to the last step of the run."""
    states: frozenset[int] = frozenset()
    """Steps whose full training state is kept, so that a fork can start from exactly that state."""
    prune_small: bool = False
    """Whether small runs are pruned, too: for studies of a great many small runs."""

    def __or__(self, other: Keep) -> Keep:
        return Keep(
            self.weights | other.weights,
            self.states | other.states,
            self.prune_small or other.prune_small,
        )


def checkpoint_bytes(config: RunConfig) -> int:
    """Return the approximate bytes of one checkpoint's weights (LayerNorms are always in fp32)."""
    return config.model.n_params * (4 if config.train.precision == "fp32" else 2)


def saved_state_bytes(config: RunConfig) -> int:
    """Return the bytes of one saved training state: weights and two moments in fp32."""
    return 12 * config.model.n_params


def is_large(config: RunConfig) -> bool:
    """Return whether all checkpoints of a run would together take more than KEEP_ALL_BYTES."""
    return N_CHECKPOINTS * checkpoint_bytes(config) > KEEP_ALL_BYTES


def effective_keep(config: RunConfig, keep: Keep | None) -> Keep | None:
    """Return `keep`, extended by the last step's weights; None if the run keeps everything."""
    if keep is None or os.environ.get("PYTHIA_KEEP_ALL") == "1":
        return None
    if not (keep.prune_small or is_large(config)):
        return None
    return keep | Keep(frozenset({config.train.steps}))


def _prune_weights(folder: Path, kept: frozenset[int]) -> None:
    """Delete the saved weights of the run in `folder`, except those of the steps in `kept`."""
    # imported here so that studies can declare what they keep without importing torch
    from pythia_core.training.checkpoint import drop_weights, step_folder, steps_with_weights

    for step in steps_with_weights(folder / "checkpoints"):
        if step not in kept:
            drop_weights(step_folder(folder / "checkpoints", step))


def prune_during_training(
    batch_at: BatchAt, folder: Path, config: RunConfig, keep: Keep | None
) -> BatchAt:
    """Wrap `batch_at` so that fetching a batch also deletes weights that the run need not keep."""
    kept = effective_keep(config, keep)
    if kept is None:
        return batch_at
    dropped = set(checkpoint_steps(config.train.steps)) - kept.weights

    def batch(step: int) -> np.ndarray:
        """Return the batch of a step; first delete weights that the run need not keep."""
        if step in dropped:  # its weights have been saved by now
            _prune_weights(folder, kept.weights)
        return batch_at(step)

    return batch


def prune_run(folder: Path, config: RunConfig, keep: Keep | None) -> None:
    """Delete weights and states that a finished run need not keep; nothing if `keep` is None."""
    from pythia_core.training.checkpoint import saved_steps, step_folder

    kept = effective_keep(config, keep)
    if kept is None:
        return
    _prune_weights(folder, kept.weights)
    for step in saved_steps(folder / "states"):
        if step not in kept.states:
            shutil.rmtree(step_folder(folder / "states", step))
