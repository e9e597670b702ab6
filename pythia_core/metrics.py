"""What a run reports: one JSON object per update, FLOP counts by stated conventions, the machine.

`metrics.jsonl` is the source of truth for curves: append-only, flushed row by row, readable by
anything. A torn last line (a kill in the middle of a write) is dropped by the reader.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pythia_core.config import ModelConfig
from pythia_core.errors import DataError
from pythia_core.machine import cpu_has_bf16, cpu_name
from pythia_core.paths import atomic_file


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a torn last line is dropped.

    Raises:
        DataError: a malformed line that is not the last one, with its number.
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline after it: the write was cut
                break
            raise DataError(f"{path}:{number} is not JSON ({error}); delete the run") from error
    return rows


class MetricsLog:
    """Appends rows to a metrics.jsonl, after dropping the rows of steps past `last_step`."""

    def __init__(self, path: Path, last_step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= last_step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = open(path, "a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def flops_per_token(model: ModelConfig, seq_len: int, causal: bool = True) -> float:
    """Training FLOP per token, forward and backward, without recomputation.

    6 * (matrix parameters incl. the unembedding, without the embedding look-up) for the products,
    plus attention: 6 d (S+1) L if `causal` (half of the score matrix), else 12 d S L.
    """
    d, n_layers = model.d_model, model.n_layers
    products = 6 * (12 * d * d * n_layers + model.vocab_size * d)
    return products + (6 * d * (seq_len + 1) if causal else 12 * d * seq_len) * n_layers


def best_precision() -> str:
    """ "bf16" where the machine multiplies it in hardware, else "fp32"."""
    return "bf16" if torch.cuda.is_available() or cpu_has_bf16() else "fp32"


def device_info() -> dict[str, Any]:
    """The machine as a record states it: device, threads, versions; no host name, no paths."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "kind": "cuda" if cuda else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def on_device(model: torch.nn.Module) -> torch.nn.Module:
    """A model on the GPU if there is one, else as it is, in fp32 both times.

    On a GPU its matrix products round their factors to TF32: three more bits than the bf16 that it
    was trained with, and several times as fast as fp32.
    """
    if not torch.cuda.is_available():
        return model
    torch.set_float32_matmul_precision("high")
    return model.to("cuda")


def keep_freed_memory() -> None:
    """Ask glibc to reuse freed blocks instead of returning them to the system.

    Every training step allocates the same tensors; giving them back and page-faulting them in
    again costs a third of a small model's step. Silently does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 1 << 30)
    mallopt(top_pad, 64 << 20)
