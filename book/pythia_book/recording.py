"""Copies finished runs into book/recorded, and lists what recorded runs cost."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pythia_book import records
from pythia_book.notebooks import (
    NOTEBOOK,
    machine_traces,
    notebook_path,
    read_notebook,
    source_hash,
)
from pythia_book.records import device_text, duration_text, read_record
from pythia_core.errors import DataError, raise_all
from pythia_core.util.files import atomic_file, project_root, require_checkout, results_dir


def record_run(study: str, scale: str, force: bool = False) -> Path:
    """Copy a finished local run into book/recorded/<study>/<scale>/, and return that folder.

    The table of costs is updated too.

    Args:
        force: record the run even if it was made by code that is not committed.

    Raises:
        DataError: the run is incomplete or damaged, the notebook's code has changed since, the code
            of the run is not committed, or a file names this machine. The message lists every
            reason.
    """
    require_checkout("recording a run")
    source = results_dir() / study / scale
    records.tidy(source)
    record = read_record(source)
    problems = records.check_whole(source)
    names = [NOTEBOOK, "record.json", *record["files"]]
    if not problems:
        code = source_hash(read_notebook(notebook_path(study)))
        if source_hash(read_notebook(source / NOTEBOOK)) != code:
            problems.append("the notebook's code has changed since the run; run the study again")
        for name in names:
            traces = machine_traces(_text_of(source / name))
            problems += [
                f"{name} contains {trace!r}, which identifies this machine, so the run cannot be "
                "recorded"
                for trace in traces
            ]
    for step, origin in (("measured", record), ("redrawn", record.get("redrawn"))):
        state = (origin or {}).get("commit") or {}
        if origin and not force and (not state.get("id") or state.get("dirty")):
            why = "that is not committed; commit the code"
            if not state.get("id"):
                why = "whose commit is unknown; see whether `git log` works in the checkout"
            problems.append(
                f"the run was {step} by code {why}, and run the study again, or pass --force"
            )
    raise_all(DataError, problems, f"results of {study} at scale {scale}")
    target = project_root() / "book" / "recorded" / study / scale
    with records.staging(target) as new:
        for name in names:
            shutil.copyfile(source / name, new / name)
        records.swap_in(new, target)
    refresh_costs()
    return target


def _text_of(path: Path) -> str:
    """Return the text of a record's file: all of it, the strings in an .npz file's arrays, or the
    header of a .safetensors file."""
    if path.suffix == ".safetensors":
        content = path.read_bytes()
        return content[8 : 8 + int.from_bytes(content[:8], "little")].decode("utf-8")
    if path.suffix != ".npz":
        return path.read_text(encoding="utf-8")
    with np.load(path, allow_pickle=False) as arrays:
        texts = [array.ravel().tolist() for array in arrays.values() if array.dtype.kind == "U"]
    return "\n".join(map(str, texts))


def all_records(root: Path) -> list[dict[str, Any]]:
    """Read all records under book/recorded, sorted by study and scale.

    Raises:
        DataError: some records are damaged; the message names each such record.
    """
    found, problems = [], []
    for path in sorted((root / "book" / "recorded").glob("*/*/record.json")):
        if damage := records.check_whole(path.parent):
            problems.append(f"{path.parent}: {'; '.join(damage)}")
        else:
            found.append(read_record(path))
    raise_all(DataError, problems, "book/recorded")
    return found


def fill_block(path: Path, name: str, content: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->` in a file.

    Raises:
        DataError: the file has no such block.
    """
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
    if not pattern.search(text):
        raise DataError(f"{path.name} has no block <!-- {name} --> ... <!-- /{name} -->")
    filled = pattern.sub(lambda m: f"{m.group(1)}{content.strip()}\n{m.group(2)}", text)
    if filled != text:
        with atomic_file(path) as temporary:
            temporary.write_text(filled, encoding="utf-8")


COSTS_FILE = "book/recorded/costs.csv"

COSTS = ("study", "scale", "machine", "notebook", "training, one thread", "memory", "disk")
"""Columns of the cost table. The duration "notebook" excludes training done before."""


def costs_of(record: dict[str, Any]) -> tuple[str, ...]:
    """Return a record's row of the cost table."""
    return (
        record["study"],
        record["scale"],
        device_text(record),
        duration_text(record.get("duration_s") or 0),
        duration_text(record.get("training_s") or 0),
        f"{(record.get('peak_memory_mb') or 0) / 1000:.1f} GB",
        f"{record.get('disk_mb') or 0} MB",
    )


def all_costs(root: Path) -> list[tuple[str, ...]]:
    """Return the rows of the cost table: one per study, scale and processor.

    They are those of the records and, from book/recorded/costs.csv, of earlier records that were
    made on another processor. The row of a record replaces an earlier one with other threads.

    Raises:
        DataError: some records cannot be read.
    """
    path = root / COSTS_FILE
    kept = csv.reader(path.read_text(encoding="utf-8").splitlines()[1:]) if path.exists() else ()
    rows = [*map(tuple, kept), *map(costs_of, all_records(root))]
    return sorted({(*row[:2], row[2].partition(", ")[0]): row for row in rows}.values())


def costs_table(rows: list[tuple[str, ...]]) -> str:
    """Return the cost table in Markdown."""
    lines = [COSTS, ("---",) * len(COSTS), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def refresh_costs() -> None:
    """Write the cost table into book/recorded/costs.csv and into the README's block `costs`.

    If a committed record cannot be read, warn on stderr and keep both.
    """
    root = project_root()
    try:
        rows = all_costs(root)
    except DataError as error:
        print(f"the costs in README.md were not updated: {error}", file=sys.stderr)
        return
    with atomic_file(root / COSTS_FILE) as path, path.open("w", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COSTS, *rows])
    fill_block(root / "README.md", "costs", costs_table(rows))
