"""Measured training throughput as rows of a file: where it is, who writes it, what a page reads.

One JSON object a line, written as it is measured, so that nothing is lost in a crash. Every row
says which run it belongs to and whether that was a dry run; numbers of a dry run mean nothing and
no reader here returns them. Kinds of rows:

    machine   device, versions, where the tokens come from
    ceiling   a measured rate: matrix products (short, sustained), copy
    train     one contender at one shape: a speed, or why there is none (`error`)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pythia_core.training.metrics import read_metrics
from pythia_core.util.files import results_dir

Row = dict[str, Any]
COMMAND = "python -m pythia_core bench train --device cuda"
"""What makes the rows."""
SKIPPED = "skipped: the budget of seconds was spent"
"""What a row says that was not begun."""


def rows_file() -> Path:
    """Where measurements on a GPU are kept unless another file is named."""
    return results_dir() / "bench" / "train_gpu.jsonl"


def write_rows(rows: Iterable[Row], path: Path | None, show: Callable[[Row], None]) -> None:
    """Append rows to `path` one by one as they come, and show each."""
    for row in rows:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        show(row)


def line(row: Row) -> str:
    """A row in words, for a terminal."""
    mark = "[dry run: not a result] " if row["dry_run"] else ""
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

    Raises:
        DataError: a malformed line.
    """
    rows = [row for row in read_metrics(path or rows_file()) if row["dry_run"] is False]
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
