"""Write and read the log of a run, and count the FLOP of training.

The log is `metrics.jsonl`, with one JSON object (row) per update, flushed after every row.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pythia_core.config import ModelConfig
from pythia_core.errors import DataError, TrainingError
from pythia_core.util.files import FULL_DISK, atomic_file, json_object

_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "loss": (*_NUMBER, type(None)),  # None: in fp16, not finite
    "lr": _NUMBER,
    "grad_norm": (*_NUMBER, type(None)),
    "batch_hash": (str,),
    "tokens_per_s": _NUMBER,
    "processes": (int,),  # only if there are several
    "tokens_changed": (int,),
}
"""The types of the values in the rows of logs; a `bool` counts as none of them."""


def read_metrics(path: Path, keys: tuple[str, ...] = ("step",)) -> list[dict[str, Any]]:
    """Return the rows of a metrics.jsonl, without a partial last line; [] if there is no file.

    Raises:
        DataError: a complete line is malformed, lacks one of the `keys`, or has a value of a wrong
            type.
    """
    if not path.exists():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json_object(line)
            if missing := [key for key in keys if key not in row]:
                raise ValueError(f"it has no {', '.join(missing)}")
            for key in _TYPES.keys() & row.keys():
                if type(row[key]) not in _TYPES[key]:
                    raise ValueError(f"its {key} is {row[key]!r}")
        except ValueError as error:
            if number == len(lines):  # without a newline: an interrupted write
                break
            raise DataError(
                f"line {number} of {path} is not a row of the log ({error}); delete the run's "
                "folder and train the run again"
            ) from error
        rows.append(row)
    return rows


def _lines(path: Path, last_step: int) -> bytes:
    """Return the lines of a log up to a step; raise DataError if one is malformed."""
    rows = [row for row in read_metrics(path) if row["step"] <= last_step]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def check_log(path: Path, last_step: int, sha256: str) -> None:
    """Check that a log's lines up to a step are those that it had when the state was saved.

    Args:
        sha256: the hash of these lines, from the state.

    Raises:
        DataError: the lines are malformed, or do not have this hash.
    """
    if hashlib.sha256(_lines(path, last_step)).hexdigest() != sha256:
        raise DataError(
            f"{path} has changed: its rows up to step {last_step} do not have the sha256 that "
            "was saved with the state of that step. Restore the file, or delete the run's "
            "folder and train the run again"
        )


class MetricsLog:
    """A metrics.jsonl that is open for appending rows; rows after `last_step` are deleted first.

    Attributes:
        sha256: the sha256 of all rows, in hex.

    Raises:
        DataError: the rows up to `last_step` are malformed.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        text = _lines(path, last_step)
        self._digest = hashlib.sha256(text)
        with atomic_file(path) as temporary:
            temporary.write_bytes(text)
        self._path = path
        self._file = open(path, "ab", buffering=0)

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row to the file.

        Raises:
            TrainingError: the row cannot be written, e.g. for lack of space.
        """
        line = (json.dumps(row) + "\n").encode()
        try:
            if self._file.write(line) != len(line):  # a partial line is dropped when it is read
                raise OSError(errno.ENOSPC, "no space left")
        except OSError as error:
            advice = "Free some space" if error.errno in FULL_DISK else "Make the file writable"
            raise TrainingError(
                f"could not write to {self._path}: {error.strerror}. Checkpoints are intact. "
                f"{advice}, then repeat the command; training resumes from the last state"
            ) from error
        self._digest.update(line)

    def sync(self) -> None:
        """Wait until all written rows are on the disk.

        Raises:
            TrainingError: the file was moved, deleted or replaced since it was opened.
        """
        os.fsync(self._file.fileno())
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                return
        raise TrainingError(
            f"{self._path} was moved, deleted or replaced during training, so nothing more was "
            "saved. Put the run's folder back, then repeat the command; training resumes from the "
            "last state"
        )

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
