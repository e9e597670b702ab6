"""Copies finished runs into book/recorded, and lists what recorded runs cost."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

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
from pythia_core.suite import scale_named
from pythia_core.util.files import atomic_file, project_root, require_checkout, results_dir


def record_run(study: str, scale: str, force: bool = False) -> Path:
    """Copy a finished local run into book/recorded/<study>/<scale>/, and return that folder.

    The table of costs is updated too.

    Args:
        force: record the run even if it was made by code that is not committed.

    Raises:
        ConfigError: the study or the scale is unknown.
        DataError: the run is incomplete or damaged, the notebook's code has changed since, the code
            of the run is not committed, or a file names this machine. The message lists every
            reason.
    """
    require_checkout("recording a run")
    notebook = notebook_path(study)
    scale_named(scale)  # both names become parts of paths
    source = results_dir() / study / scale
    records.tidy(source)
    record = read_record(source)
    problems = records.check_whole(source)
    names = [NOTEBOOK, "record.json", *record["files"]]
    if not problems:
        code = source_hash(read_notebook(notebook))
        if source_hash(read_notebook(source / NOTEBOOK)) != code:
            problems.append("the notebook's code has changed since the run; run the study again")
        for name in names:
            try:
                traces = machine_traces(_text_of(source / name))
            except DataError as error:
                problems.append(str(error))
                continue
            problems += [
                f"{name} contains {trace!r}, which identifies this machine, so the run cannot be "
                "recorded"
                for trace in traces
            ]
    for step, origin in (("measured", record), ("redrawn", record.get("redrawn"))):
        state = (origin or {}).get("commit") or {}
        if origin and not force and (not state.get("id") or state.get("dirty")):
            reason = "that is not committed; commit the code"
            if not state.get("id"):
                reason = "whose commit is unknown; see whether `git log` works in the checkout"
            problems.append(
                f"the run was {step} by code {reason}, and run the study again, or pass --force"
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
    header of a .safetensors file.

    Raises:
        DataError: the file cannot be read, or its text is not UTF-8.
    """
    if path.suffix == ".npz":
        arrays = records.read_arrays(path).values()
        return "\n".join(str(array.ravel().tolist()) for array in arrays if array.dtype.kind == "U")
    try:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; run the study again") from error


def all_records(root: Path) -> list[dict[str, Any]]:
    """Read all records under book/recorded, sorted by study and scale.

    Raises:
        DataError: some records are damaged; the message names each such record.
    """
    listed, problems = [], []
    for path in sorted((root / "book" / "recorded").glob("*/*/record.json")):
        if damage := records.check_whole(path.parent):
            problems.append(f"{path.parent}: {'; '.join(damage)}")
        else:
            listed.append(read_record(path))
    raise_all(DataError, problems, "book/recorded")
    return listed


def _block(name: str) -> re.Pattern[str]:
    """Return a regex that matches a block of a file, with a group for each of its two marks."""
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)


def fill_block(path: Path, name: str, content: str) -> None:
    """Replace the text between `<!-- name -->` and `<!-- /name -->` in a file.

    Raises:
        DataError: the file has no such block.
    """
    text = path.read_text(encoding="utf-8")
    if not _block(name).search(text):
        raise DataError(
            f"{path.name} has no block <!-- {name} --> ... <!-- /{name} -->; restore the file "
            "with git"
        )
    filled = _block(name).sub(lambda m: f"{m.group(1)}{content.strip()}\n{m.group(2)}", text)
    if filled != text:
        with atomic_file(path) as temporary:
            temporary.write_text(filled, encoding="utf-8")


COSTS_FILE = "book/recorded/costs.csv"
COSTS_BLOCK = "costs"
"""The name of the README's block with the rows of COSTS_FILE."""
COSTS = (
    "study",
    "scale",
    "machine",
    "notebook",
    "training, one thread",
    "memory",
    "disk",
    "record",
)
"""Columns of the cost table. The duration "notebook" excludes training done before; "record" is
CURRENT or EARLIER."""
CURRENT, EARLIER = "current", "earlier"


def costs_of(record: dict[str, Any]) -> tuple[str, ...]:
    """Return a committed record's row of the cost table."""
    return (
        record["study"],
        record["scale"],
        device_text(record),
        duration_text(record.get("duration_s") or 0),
        duration_text(record.get("training_s") or 0),
        f"{(record.get('peak_memory_mb') or 0) / 1000:.1f} GB",
        f"{record.get('disk_mb') or 0} MB",
        CURRENT,
    )


def all_costs(root: Path) -> list[tuple[str, ...]]:
    """Return the rows of the cost table: one per study, scale and processor.

    There is a row for each record, and one for each earlier record in book/recorded/costs.csv that
    was made on another processor. A record's row replaces an earlier row with a different number
    of threads.

    Raises:
        DataError: some records or rows cannot be read, or costs.csv and README differ on earlier
            records.
    """
    recorded = {_cost_key(row): row for row in map(costs_of, all_records(root))}
    kept, shown = (
        {row for row in rows if _cost_key(row) not in recorded}
        for rows in (_read_costs(root / COSTS_FILE), _shown_costs(root / "README.md"))
    )
    if differing := sorted(kept ^ shown):
        raise DataError(
            f"the rows of earlier runs in {COSTS_FILE} are not those in the table of costs in "
            f"README.md: {'; '.join(map(', '.join, differing[:3]))} "
            f"{'is' if len(differing) == 1 else 'are'} only in one of them; restore both with git"
        )
    return sorted({*((*row[:-1], EARLIER) for row in kept), *recorded.values()})


def _cost_key(row: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a row of the cost table is about: the study, the scale and the processor."""
    return (*row[:2], *(machine.partition(", ")[0] for machine in row[2:3]))


def _read_costs(path: Path) -> list[tuple[str, ...]]:
    """Read the rows of costs.csv; [] if there is no such file. Raise DataError if it is damaged."""
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode("utf-8")
        rows = [tuple(row) for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}; restore the file with git") from error
    if rows[:1] != [COSTS]:
        raise DataError(f"{path}, line 1: expected {COSTS}, got {rows[:1]}; restore it with git")
    for line, row in enumerate(rows, 1):
        if len(row) != len(COSTS) or not all(row):
            raise DataError(
                f"{path}, line {line}: expected a value for each of {', '.join(COSTS)}; got {row}; "
                "restore the file with git"
            )
    return rows[1:]


def _shown_costs(readme: Path) -> list[tuple[str, ...]]:
    """Return the rows of the cost table in the README; [] without a README or a table."""
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    block = _block(COSTS_BLOCK).search(text)
    lines = block[0].splitlines() if block else []
    rows = (line[2:-2].split(" | ") for line in lines[3:-1])
    return [tuple(cell.replace("\\|", "|") for cell in row) for row in rows]


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
    fill_block(root / "README.md", COSTS_BLOCK, costs_table(rows))
