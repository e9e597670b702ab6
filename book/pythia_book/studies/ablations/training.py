"""Builds, trains and times the models of the arms.

All arms run on torch's own operations, so that none profits from a kernel of this book that another
lacks. The one exception is the loss: all arms use the book's kernel for it, because in plain torch
the loss takes two thirds of the time of a small model's update.

A job trains one model and measures its held-out loss during training. Its result is kept in a file,
so that a study that was stopped repeats only the jobs that were running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pythia_book.measurements import N_ROWS, Arrays, load_cached, save_cached
from pythia_book.studies.ablations.params import ARMS, STUDY, WINDOWS
from pythia_core.config import ModelConfig, RunConfig, config_dict, stable_hash
from pythia_core.data.prepare import PreparedData
from pythia_core.evaluation import scoring
from pythia_core.kernels import FAST, PLAIN
from pythia_core.kernels.rotary import rotary_reference
from pythia_core.model import GPTNeoX, init_deviations
from pythia_core.suite import size_name
from pythia_core.training.runs import SHORT, code_identity, run_flops
from pythia_core.training.trainer import Trainer
from pythia_core.util.files import results_dir
from pythia_core.util.leases import is_free, leased, marker_of
from pythia_core.util.machine import device_info, keep_freed_memory
from pythia_core.util.progress import bar
from pythia_core.util.workers import one_thread, parallel_map

VERSION = 2
"""Part of the cache key: raise it when a change to this module alters results."""
OPS = replace(PLAIN, linear_cross_entropy=FAST.linear_cross_entropy)
ROUNDS, UPDATES = 7, 2
"""Rounds in which every arm is timed, and number of updates that are timed in each."""


# --- models ----------------------------------------------------------------------------------


def windowed_attention(qkv: Tensor, cos: Tensor, sin: Tensor, window: int) -> Tensor:
    """Compute causal attention to the last `window` tokens, each token itself included.

    Arguments and result are those of kernels.attention.attention_torch.
    """
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(3))
    q, k = rotary_reference(q, cos, sin), rotary_reference(k, cos, sin)
    at = torch.arange(q.shape[2], device=qkv.device)
    back = at[:, None] - at
    mask = (back >= 0) & (back < window)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def make_model(arm: str, config: ModelConfig) -> GPTNeoX:
    """Make the model of an arm, for rows of `max_seq_len` tokens; `config` has the arm's fields."""
    ops = OPS
    if ARMS[arm].windowed:
        window = config.max_seq_len // WINDOWS
        ops = replace(ops, attention=partial(windowed_attention, window=window))
    model = GPTNeoX(config, ops)
    model.layers[0].parallel |= ARMS[arm].first_parallel
    if ARMS[arm].tied:
        model.embed_out.weight = model.embed_in.weight
    return model


def n_parameters(arm: str, config: ModelConfig) -> int:
    """Return the number of parameters of an arm's model; tied matrices count once."""
    with torch.device("meta"):
        return sum(p.numel() for p in make_model(arm, config).parameters())


def init_factors(config: ModelConfig) -> tuple[float, float]:
    """Return how many times as large Pythia's initial weights are as GPT-NeoX's default.

    The first factor is for most matrices, the second for the output maps of attention and MLP.
    """
    shape = config.d_model, config.n_layers
    ours, default = (init_deviations(rule, *shape) for rule in ("small_wang", "normal_scaled"))
    return ours[0] / default[0], ours[1] / default[1]


def _trainer(arm: str, config: RunConfig) -> Trainer:
    """Return a trainer of an arm's model at step 0, on the GPU if there is one."""
    device = torch.device(device_info()["kind"])
    return Trainer(config, device, make_model=partial(make_model, arm))


# --- training --------------------------------------------------------------------------------


def heldout_rows(data: PreparedData) -> np.ndarray:
    """Return the held-out rows on which every arm is measured, int64[rows, S + 1]."""
    return scoring.sample_windows(data.heldout.tokens, data.config.seq_len, N_ROWS)


@dataclass(frozen=True)
class Job:
    """A model to train, and the steps at which to measure it."""

    arm: str
    config: RunConfig
    steps: tuple[int, ...]
    data: PreparedData

    @property
    def name(self) -> str:
        """The size, arm and seed, e.g. "25k-tied-1234"."""
        seed = self.config.train.weight_seed
        return f"{size_name(self.config.model)}-{self.arm}-{seed}"

    @property
    def key(self) -> dict[str, Any]:
        """Everything that determines the result."""
        return {
            "arm": {name: x for name, x in asdict(ARMS[self.arm]).items() if name != "title"},
            "config": config_dict(self.config),
            "steps": list(self.steps),
            "data": self.data.fingerprint,
            "rows": [N_ROWS, scoring.VERSION],
            "code": code_identity() | {"torch": torch.__version__, "ablations": VERSION},
        }

    @property
    def file(self) -> Path:
        """The file with the result."""
        short = stable_hash(self.key)[:12]
        return results_dir() / STUDY / "jobs" / f"{self.name}-{short}.safetensors"


def train(job: Job) -> Arrays:
    """Train the model of a job and save the result.

    Returns:
        "loss", float32[steps, rows]: the loss of each held-out row, nats per token;
        "seconds", float64[1]: what training and measuring took.

    Raises:
        TrainingError: the loss or the gradient is not finite.
        TakenElsewhere: another process is training the model.
    """
    with leased(marker_of(job.file), wait=False):
        result = load_cached(job.file, job.key)  # another process may have trained it
        return _train(job) if result is None else result


def _train(job: Job) -> Arrays:
    keep_freed_memory()
    start = time.perf_counter()
    trainer, rows = _trainer(job.arm, job.config), heldout_rows(job.data)
    losses = []
    for step in bar(iterable=range(job.config.train.steps), desc="training", unit="step"):
        trainer.update(job.data.batch(step, job.config.train.batch_size))
        if step + 1 in job.steps:
            losses.append(scoring.score_rows(trainer.model, rows).losses)
    seconds = np.array([time.perf_counter() - start])
    arrays = {"loss": np.array(losses, np.float32), "seconds": seconds}
    save_cached(job.file, job.key, arrays)
    return arrays


def train_all(jobs: Sequence[Job], progress: bool = True) -> list[Arrays]:
    """Return the result of `train` for each job; jobs whose result is saved are not trained."""
    results = [load_cached(job.file, job.key) for job in jobs]
    missing = [job for job, arrays in zip(jobs, results, strict=True) if arrays is None]
    work = [run_flops(job.config) for job in missing]
    trained = iter(
        parallel_map(
            train,
            missing,
            progress=progress,
            desc="training",
            unit="model",
            names=[job.name for job in missing],
            work=work,
            in_process=sum(work) < SHORT or torch.cuda.is_available(),
            may_retry=lambda job: is_free(marker_of(job.file)),
        )
    )
    return [next(trained) if arrays is None else arrays for arrays in results]


# --- timing ----------------------------------------------------------------------------------


def seconds_per_update(
    jobs: Sequence[Job], progress: bool = True, clock: Callable[[], float] | None = None
) -> np.ndarray:
    """Time updates of several models in turn, on one thread; return float64[jobs, ROUNDS].

    Every round times all models, so that a change in the machine's speed affects all of them.

    Args:
        clock: default: the processor time of this process, which other processes hardly change;
            with a GPU, wall-clock time.
    """
    if clock is None:
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    seconds = np.empty((len(jobs), ROUNDS))
    with one_thread():
        keep_freed_memory()
        trainers = [_trainer(job.arm, job.config) for job in jobs]
        batches = [job.data.batch(0, job.config.train.batch_size) for job in jobs]
        for trainer, batch in zip(trainers, batches, strict=True):
            trainer.update(batch)  # warm up
        for at in bar(progress, iterable=range(ROUNDS), desc="timing", unit="round"):
            for number, (trainer, batch) in enumerate(zip(trainers, batches, strict=True)):
                start = clock()
                for _ in range(UPDATES):
                    trainer.update(batch)
                seconds[number, at] = (clock() - start) / UPDATES
    return seconds
