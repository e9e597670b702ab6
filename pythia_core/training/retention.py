"""Which checkpoints of a run stay where all 154 would fill the disk.

154 checkpoints of an 85-million-parameter model are 30 GB in bf16, and a suite has sixteen models.
So a run may be given a `Keep`; if its checkpoints take more than WHOLE_BYTES, it gives up all other
weights as it goes on. What is left of such a checkpoint is its manifest with the hash of its
weights: that all 154 were there, and that no two are equal, stays provable, and training again
gives them back bit by bit.

Smaller runs keep everything, and so does every run without a Keep or with PYTHIA_KEEP_ALL=1.
Not here: the format (pythia_core.training.checkpoint).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pythia_core.config import RunConfig
from pythia_core.training.checkpoint import drop_weights, saved_steps, step_folder, weighted_steps
from pythia_core.training.schedule import N_CHECKPOINTS, checkpoint_steps

BatchAt = Callable[[int], np.ndarray]

WHOLE_BYTES = 1e9
"""Runs up to this size keep everything."""


@dataclass(frozen=True)
class Keep:
    """What stays of a large run; `a | b` keeps what either does."""

    weights: frozenset[int] = frozenset()
    """Steps whose weights stay; the last step's always do."""
    states: frozenset[int] = frozenset()
    """Steps whose full state, from which a fork can start exactly, stays."""

    def __or__(self, other: Keep) -> Keep:
        return Keep(self.weights | other.weights, self.states | other.states)


def checkpoint_bytes(config: RunConfig) -> int:
    """Bytes of the weights of one checkpoint (LayerNorms, which stay fp32, not counted apart)."""
    return config.model.n_params * (4 if config.train.precision == "fp32" else 2)


def is_large(config: RunConfig) -> bool:
    """Whether a run gives up weights."""
    return N_CHECKPOINTS * checkpoint_bytes(config) > WHOLE_BYTES


def _kept(config: RunConfig, keep: Keep | None) -> Keep | None:
    """`keep` with the last step; None for a run that keeps everything."""
    if keep is None or not is_large(config) or os.environ.get("PYTHIA_KEEP_ALL") == "1":
        return None
    return keep | Keep(frozenset({config.train.steps}))


def _thin_weights(folder: Path, kept: frozenset[int]) -> None:
    """Drop the weights, so far, of all other steps."""
    for step in weighted_steps(folder / "checkpoints"):
        if step not in kept:
            drop_weights(step_folder(folder / "checkpoints", step))


def thinning(batch_at: BatchAt, folder: Path, config: RunConfig, keep: Keep | None) -> BatchAt:
    """`batch_at`, which thins a large run as it goes on: training asks for every batch once."""
    kept = _kept(config, keep)
    if kept is None:
        return batch_at
    written = set(checkpoint_steps(config.train.steps)) - kept.weights

    def batch(step: int) -> np.ndarray:
        if step in written:  # it was saved before its batch is asked for
            _thin_weights(folder, kept.weights)
        return batch_at(step)

    return batch


def thin(folder: Path, config: RunConfig, keep: Keep | None) -> None:
    """Drop what a finished large run in `folder` need not keep, of weights and of states."""
    kept = _kept(config, keep)
    if kept is None:
        return
    _thin_weights(folder, kept.weights)
    for step in saved_steps(folder / "states"):
        if step not in kept.states:
            shutil.rmtree(step_folder(folder / "states", step))
