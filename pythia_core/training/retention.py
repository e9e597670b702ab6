"""Which checkpoints of a finished run keep their weights where all 154 would fill the disk.

154 checkpoints of an 85-million-parameter model are 30 GB in bf16, and a suite has sixteen models.
So a run that a study trains and whose checkpoints take more than WHOLE_BYTES gives up, as it goes
on, the weights that no study asks for. What is left of such a checkpoint is its manifest with the
hash of its weights: that all 154 were there, and that no two are equal, stays provable, and
training again gives them back bit by bit. Optimizer states stay only where interventions fork
(paper section 3.1: on the deduplicated text).

Runs of the laptop scale are never large enough; those of `train` are left whole, and so are all
with PYTHIA_KEEP_ALL=1. Not here: the format (pythia_core.training.checkpoint).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pythia_core.config import RunConfig
from pythia_core.training.checkpoint import drop_weights, saved_steps, step_folder, weighted_steps
from pythia_core.training.schedule import N_CHECKPOINTS, checkpoint_steps, linear_step

BatchAt = Callable[[int], np.ndarray]

WHOLE_BYTES = 1e9
"""Runs up to this size keep everything."""
EARLY = (0, 1, 4, 16, 64)
"""Steps that are kept besides the evenly spaced ones below."""
EVERY_RUN = (1, 2, 3, 4, 5, 8, 13, 18, 23, 33, 43, 53, 63, 73, 83, 93, 103, 113, 123, 133, 143)
"""Evenly spaced checkpoints, of 143, that studies of a whole suite ask for."""
DEDUPLICATED = (39, 65, 91, 117, 118, 128, 135, 138, 140)
"""Those that only studies of the deduplicated half ask for, besides."""
REPEATED = (18, 36, 54, 72, 89, 107, 125, 143)
"""Those of runs that read some rows several times."""


def checkpoint_bytes(config: RunConfig) -> int:
    """Bytes of the weights of one checkpoint (LayerNorms, which stay fp32, not counted apart)."""
    return config.model.n_params * (4 if config.train.precision == "fp32" else 2)


def is_large(config: RunConfig) -> bool:
    """Whether a run gives up weights."""
    return N_CHECKPOINTS * checkpoint_bytes(config) > WHOLE_BYTES


def kept_steps(config: RunConfig) -> set[int]:
    """Steps whose weights a large run keeps."""
    indices = {*EVERY_RUN}
    if config.data.epoch_policy == "rows":
        indices = {*REPEATED}
    elif config.data.dedup != "none":
        indices |= {*DEDUPLICATED}
    return {linear_step(i, config.train.steps) for i in indices} | {*EARLY}


def thin_weights(folder: Path, config: RunConfig) -> None:
    """Drop the weights, so far, that a large run in `folder` need not keep."""
    kept = kept_steps(config)
    for step in weighted_steps(folder / "checkpoints"):
        if step not in kept:
            drop_weights(step_folder(folder / "checkpoints", step))


def thinning(batch_at: BatchAt, folder: Path, config: RunConfig) -> BatchAt:
    """`batch_at`, which thins a large run as it goes on: training asks for every batch once."""
    if not is_large(config):
        return batch_at
    written = set(checkpoint_steps(config.train.steps)) - kept_steps(config)

    def batch(step: int) -> np.ndarray:
        if step in written:  # it was saved before its batch is asked for
            thin_weights(folder, config)
        return batch_at(step)

    return batch


def thin(folder: Path, config: RunConfig) -> None:
    """Drop what a finished large run in `folder` need not keep; a small one is left alone."""
    if not is_large(config):
        return
    thin_weights(folder, config)
    states = folder / "states"
    forked = config.data.dedup != "none" and config.data.epoch_policy != "rows"
    for step in saved_steps(states):
        if not forked or config.intervention or step == config.train.steps:
            shutil.rmtree(step_folder(states, step))
