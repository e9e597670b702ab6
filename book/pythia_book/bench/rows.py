"""Reads and writes files of measurements. Every line (row) is a JSON object.

Rows are written as soon as they are measured. If a crash leaves a partial line, readers skip it,
and the next row starts on a new line. If `dry_run` is true, a row has meaningless numbers; no page
uses them. If a measurement failed, the column `failed` says why. The kinds of rows are:

    machine    device, versions, measured rates of copying memory and of matrix products
    train      one implementation of a training step at one size; `partial` until its last round
    operation  one implementation of one operation
    attention  one attention library at one shape
    check      whether a kernel or a training step is correct
    step       outcome of one step of the command gpu-check
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError, PythiaError
from pythia_core.util.files import FULL_DISK, results_dir

Row = dict[str, Any]
log = logging.getLogger(__name__)
SKIPPED = "skipped: the time budget was used up"
"""The reason that is stored in the row of a measurement that was not started for lack of time."""
COMPILED = "torch.compile (inductor)"
"""The name of the implementation of an operation that torch.compile makes on a GPU."""
DRY_RUN = "[dry run: not a result] "
"""Prefix of printed lines whose numbers are meaningless."""


def require_cuda(command: str) -> None:
    """Raise ConfigError with the name of the command if torch finds no CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{command} needs a GPU, but torch finds no CUDA device; to try the command at a tiny "
            "size on the CPU, add --dry-run"
        )


def gpu_folder() -> Path:
    """Return the default results folder of the command gpu-check."""
    return results_dir() / "gpu-check"


def append(path: Path, text: str) -> None:
    """Append a text to a file.

    Raises:
        PythiaError: no space is left.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise PythiaError(
            f"no space left to write {path} ({error.strerror}); the lines that are already in the "
            "file are kept. Free some space, or name a file or folder on another disk, and run the "
            "command again: it adds to the file"
        ) from error


def write_rows(rows: Iterable[Row], path: Path | None, show: Callable[[Row], None]) -> None:
    """Append each row to the file `path`, if given, as soon as it arrives, and `show` it.

    Raises:
        PythiaError: no space is left.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _terminate_last_line(path)
    for row in rows:
        if path is not None:
            append(path, json.dumps(row) + "\n")
        show(row)


def _terminate_last_line(path: Path) -> None:
    """End a partial last line, so that the next row gets a line of its own."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file, skipping damaged lines with a warning; [] if there is no file."""
    rows, unreadable = [], []
    for number, text in enumerate(path.read_bytes().split(b"\n") if path.is_file() else (), 1):
        try:
            row = json.loads(text or b"null")
        except ValueError:
            row = text
        if isinstance(row, dict):
            rows.append(row)
        elif row:
            unreadable.append(number)
    if unreadable:
        plural = "s" if len(unreadable) > 1 else ""
        lines = ", ".join(map(str, unreadable))
        _warn(f"{path} has damaged lines, which were skipped: line{plural} {lines}")
    return rows


@functools.cache
def _warn(message: str) -> None:
    """Log a warning once per message, because a growing file is read again and again."""
    log.warning(message)


KEYS = {
    "train": ("size", "implementation", "micro_rows"),
    "operation": ("size", "kernel", "implementation"),
    "attention": ("library", "seq_len", "head_dim", "deterministic"),
}
"""Maps a kind of rows to the columns that identify a measurement."""


def measured_rows(path: Path, kind: str) -> list[Row]:
    """Read the measurements of one kind, without dry runs, on the device that was used last.

    If a measurement was repeated, the newest row that has a speed is returned; if no row has a
    speed, the newest row. `kind` is a kind in KEYS.

    Returns:
        The row of the machine, then the measurements. Empty if no measurement has a speed.
    """
    rows = [row for row in read_rows(path) if row.get("dry_run") is False]
    machines = [row for row in rows if row["kind"] == "machine"]
    device, measured = None, []
    for row in rows:
        if row["kind"] == "machine":
            device = row["device"]
        elif row["kind"] == kind and machines and device == machines[-1]["device"]:
            measured.append(row)
    newest = _newest(measured, kind)
    return [machines[-1], *newest] if any("ms" in row for row in newest) else []


def fastest_steps(rows: Sequence[Row]) -> list[Row]:
    """Of rows of the kind "train", return the fastest micro-batch of each implementation and size.

    If a measurement was repeated, its newest row counts. An implementation that was never measured
    is represented by a row that says why.
    """
    fastest: dict[tuple[str, str], Row] = {}
    for row in _newest(rows, "train"):
        key = row["size"], row["implementation"]
        if row.get("tokens_per_s", 0.0) > fastest.get(key, {}).get("tokens_per_s", -1.0):
            fastest[key] = row
    return list(fastest.values())


def _newest(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return, of the rows with the same values in the columns KEYS[kind], the one that counts.

    That is the newest row with a speed or, if none has one, the newest row. But a `partial` row
    does not replace a complete one.
    """
    newest: dict[tuple, Row] = {}
    for row in rows:
        key = tuple(row.get(name) for name in KEYS[kind])
        old = newest.get(key, {})
        complete = not row.get("partial") or old.get("partial")
        if "ms" not in old or ("ms" in row and complete):
            newest[key] = row
    return list(newest.values())


def speed_range(row: Row) -> tuple[float, float]:
    """Return the slowest and the fastest speed of a row of the kind "train", in tokens/s."""
    low, high = (1e3 * row["tokens_per_update"] / row[ms] for ms in ("ms_high", "ms_low"))
    return low, high


def format_row(row: Row) -> str:
    """Format a row of the kind "train" or "machine" as one line for a terminal."""
    mark = DRY_RUN if row["dry_run"] else ""
    if row["kind"] == "machine":
        rates = ", ".join(f"{v:.3g} {name}" for name, v in row["matmul_tflop_per_s"].items())
        return (
            f"{mark}{row['device']}, torch {row['torch']}; matrix products, TFLOP/s: {rates}; "
            f"copy: {row['copy_gb_per_s']:.3g} GB/s"
        )
    start = f"{mark}{row['size']:>5} {row['implementation']:<34} "
    if "failed" in row:
        return start + row["failed"]
    mfu = f", MFU {row['mfu']:.1%}" if row["mfu"] is not None else ""
    peak = f", {row['peak_bytes'] / 2**30:.1f} GiB" if row["peak_bytes"] is not None else ""
    low, high = speed_range(row)
    at_a_time = f", {row['micro_rows']} rows at a time" if "micro_rows" in row else ""
    shape = f"{row['rows']} x {row['seq_len']} tokens{at_a_time}: "
    speed = f"{row['tokens_per_s']:,.0f} tokens/s ({low:,.0f} to {high:,.0f})"
    partial = " (not all rounds)" if row.get("partial") else ""
    return start + shape + speed + mfu + peak + partial
