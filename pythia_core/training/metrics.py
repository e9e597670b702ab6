"""Write and read the log of a run, and count the FLOP of training.

The log is `metrics.jsonl`, with one JSON object (row) per update, flushed after every row.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pythia_core.config import ModelConfig
from pythia_core.errors import DataError
from pythia_core.util.files import atomic_file


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, without a partial last line; [] if there is no file.

    Raises:
        DataError: a complete line is malformed.
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
            if number == len(lines):  # without a newline: an interrupted write
                break
            raise DataError(
                f"line {number} of {path} is not JSON ({error}); delete the run's folder and "
                "train the run again"
            ) from error
    return rows


class MetricsLog:
    """A metrics.jsonl that is open for appending rows; rows after `last_step` are deleted first."""

    def __init__(self, path: Path, last_step: int) -> None:
        rows = [row for row in read_metrics(path) if row["step"] <= last_step]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._file = open(path, "a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, and flush the file."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all written rows are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def flops_per_token(model: ModelConfig, seq_len: int, causal: bool = True) -> float:
    """Return the FLOP of training per token, forward and backward, without recomputation.

    Matrix products, including the unembedding, take 6 FLOP per parameter, and the embedding none.
    Attention adds 6 d (S+1) L if `causal` (half of the score matrix), else 12 d S L, for width d,
    rows of S tokens and L layers.
    """
    d, n_layers = model.d_model, model.n_layers
    products = 6 * (12 * d * d * n_layers + model.vocab_size * d)
    return products + (6 * d * (seq_len + 1) if causal else 12 * d * seq_len) * n_layers
