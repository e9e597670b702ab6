"""Choose the precision in which this machine trains fastest, by measuring a training step.

A processor's flags do not say whether bf16 or fp32 is faster. Of two processors with AVX512-BF16
and without AMX, one was almost twice as fast in bf16 as in fp32; the other was slower in bf16. So
the first process that needs the answer times both precisions, which takes about a second.

The precision is part of a run's identity, so a changed answer would make every model train again.
It is therefore stored in the user's cache folder, for each processor and version of torch.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig, stable_hash
from pythia_core.errors import ConfigError, one_of
from pythia_core.util.files import cache_dir, write_json
from pythia_core.util.leases import leased
from pythia_core.util.machine import cpu_flags, cpu_name, keep_freed_memory
from pythia_core.util.progress import print_line
from pythia_core.util.workers import one_thread

VARIABLE = "PYTHIA_PRECISION"
CHOICES = ("fp32", "bf16")
MODEL = ModelConfig(n_layers=3, d_model=64, n_heads=4, vocab_size=4096, max_seq_len=128)
"""The measured model, which is the size 150k of the scale `laptop`."""
ROWS = 32
"""Rows per update, as at the scale `laptop`."""
ROUNDS = 5
MARGIN = 1.05
"""bf16 is chosen only if it is at least this many times as fast as fp32."""
VERSION = 1
"""Raise this number to measure again on every machine."""

log = logging.getLogger(__name__)


def best_precision() -> str:
    """Return the precision for training on this machine, "fp32" or "bf16".

    The environment variable PYTHIA_PRECISION decides, if it is set. Otherwise, a CUDA device uses
    "bf16", and a CPU the precision that was measured to be faster.

    Raises:
        ConfigError: PYTHIA_PRECISION is neither "fp32" nor "bf16".
    """
    if choice := os.environ.get(VARIABLE):
        if choice not in CHOICES:
            raise ConfigError(one_of(choice, CHOICES, f"value of {VARIABLE}"))
        return choice
    import torch

    return "bf16" if torch.cuda.is_available() else _cpu_precision(torch.__version__)


def _cpu_precision(torch_version: str) -> str:
    """Return the stored choice for this processor; if there is none, measure and store it."""
    from pythia_core.kernels import native

    flags = sorted(f for f in cpu_flags().split() if f.startswith(("avx", "amx")))
    machine: dict[str, Any] = {"cpu": cpu_name(), "flags": flags, "torch": torch_version}
    machine |= {"native": native.library() is not None, "version": VERSION}
    file = cache_dir() / "precision" / f"{stable_hash(machine)[:16]}.json"
    if stored := _stored(file, machine):
        return stored
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with leased(file.with_suffix(".lease"), job="measuring the speed of fp32 and bf16"):
            return _stored(file, machine) or _choose(machine, file)
    except OSError as error:
        choice = _choose(machine)  # again, if only the writing failed
        log.warning(
            "the choice of precision could not be stored in %s (%s), and may differ next time; set "
            "%s=%s to keep it",
            file.parent, error, VARIABLE, choice,
        )  # fmt: skip
        return choice


def _choose(machine: dict[str, Any], file: Path | None = None) -> str:
    """Measure both precisions, print and return the choice; store it in `file`, if given."""
    speeds = measure()
    choice = "bf16" if speeds["bf16"] >= MARGIN * speeds["fp32"] else "fp32"
    if file:
        write_json(file, {"machine": machine, "precision": choice, "tokens_per_s": speeds})
    other = CHOICES[choice == "fp32"]
    print_line(
        f"precision {choice}: {speeds[choice]:,.0f} tokens/s against {speeds[other]:,.0f} in "
        f"{other} (150k parameters, one thread); {VARIABLE} overrides this choice"
    )
    return choice


def _stored(file: Path, machine: dict[str, Any]) -> str | None:
    """Return the choice that `file` holds for `machine`; None if there is no valid choice."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        choice = stored["precision"] if stored["machine"] == machine else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if choice in CHOICES else None


def measure() -> dict[str, float]:
    """Map each precision to the speed of its training step, in tokens per second of one thread.

    The precisions take turns. The fastest step of each precision counts. The clock is the processor
    time of this thread, because the wall time depends on other processes.
    """
    import numpy as np
    import torch

    from pythia_core.training.trainer import Trainer

    keep_freed_memory()
    data = DataConfig(seq_len=MODEL.max_seq_len)
    rows = np.random.default_rng(0).integers(0, MODEL.vocab_size, (ROWS, data.seq_len + 1))
    with one_thread():
        trainers = {}
        for precision in CHOICES:
            train = TrainConfig(steps=1000, batch_size=ROWS, lr_max=1e-3, precision=precision)
            trainers[precision] = Trainer(RunConfig(MODEL, data, train), torch.device("cpu"))
            trainers[precision].update(rows)  # compiles native.c, and allocates
        fastest = dict.fromkeys(CHOICES, float("inf"))
        for _ in range(ROUNDS):
            for precision, trainer in trainers.items():
                started = time.thread_time()
                trainer.update(rows)
                seconds = time.thread_time() - started
                fastest[precision] = min(fastest[precision], seconds)
    return {precision: ROWS * data.seq_len / s for precision, s in fastest.items()}
