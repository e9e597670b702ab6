"""Rows of measurements in a file, one JSON object per line, each written as soon as it is known.

A kill or a full disk can cut the last line. Whoever adds to the file ends that line first, and
readers pass over it. Measured training throughput is kept in such a file. Every row of it says
which run it belongs to and whether that was a dry run, whose numbers mean nothing and are not read
by a page. Kinds of rows:

    machine   device, versions, where the tokens come from
    ceiling   a measured rate: matrix products (short, sustained), copy
    train     one contender at one shape: a speed, or why there is none (`error`)
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pythia_core.util.files import results_dir

Row = dict[str, Any]
log = logging.getLogger(__name__)
COMMAND = "python -m pythia_core bench train --device cuda"
"""What makes the rows."""
SKIPPED = "skipped: the time budget was used up"
"""What a row says of something that was not begun."""
DRY_RUN = "[dry run: not a result] "
"""What a line of text says whose numbers mean nothing."""


def rows_file() -> Path:
    """Where measurements on a GPU are kept unless another file is named."""
    return results_dir() / "bench" / "train_gpu.jsonl"


def write_rows(rows: Iterable[Row], path: Path | None, show: Callable[[Row], None]) -> None:
    """Append rows to `path` one by one as they come, and show each."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_cut_line(path)
    for row in rows:
        if path is not None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        show(row)


def _end_cut_line(path: Path) -> None:
    """Otherwise the next row would be appended to a truncated one, and lost with it."""
    if path.is_file() and path.stat().st_size:
        with open(path, "rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.write(b"\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none if there is no file; lines that are not a row are left out."""
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
        _warn(f"{path}: skipped damaged line{plural} {', '.join(map(str, unreadable))}")
    return rows


@functools.cache
def _warn(message: str) -> None:
    """Once: files are read again while they grow."""
    log.warning(message)


def line(row: Row) -> str:
    """A row in words, for a terminal."""
    mark = DRY_RUN if row["dry_run"] else ""
    if row["kind"] == "machine":
        return f"{mark}{row['device']}, torch {row['torch']}; text: {row['text']}"
    if row["kind"] == "ceiling":
        return f"{mark}{row['what']}: {row['value']:.4g}"
    shape = f"{row['rows']} x {row['seq_len']} tokens"
    if row["micro_batches"] > 1:
        shape = f"{row['micro_batches']} x {shape}"
    where = f"{mark}{row['size']:>5} {row['contender']:<26} {shape}: "
    if "error" in row:
        return where + row["error"]
    share = row["mfu_causal"]
    mfu = f", MFU {share:.1%} causal, {row['mfu_full']:.1%} full" if share is not None else ""
    memory = row["peak_bytes"]
    held = f", {memory / 2**30:.1f} GiB" if memory is not None else ""
    low, high = row["tokens_per_s_low"], row["tokens_per_s_high"]
    return f"{where}{row['tokens_per_s']:,.0f} tokens/s ({low:,.0f} to {high:,.0f}){mfu}{held}"


def measured_rows(path: Path | None = None) -> list[Row]:
    """The rows that count: of every size those of the newest run that has it, and that run's
    machine and ceilings; none of a dry run. Empty without a file.
    """
    rows = [row for row in read_rows(path or rows_file()) if row["dry_run"] is False]
    newest: dict[str, str] = {}
    for row in rows:
        if row["kind"] == "train" and "tokens_per_s" in row:
            newest[row["size"]] = max(row["run"], newest.get(row["size"], ""))
    runs = set(newest.values())
    return [
        row
        for row in rows
        if (newest.get(row["size"]) == row["run"] if row["kind"] == "train" else row["run"] in runs)
    ]
