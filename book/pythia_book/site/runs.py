"""Selects the run of a study that the site shows.

The site shows the reader's own run, else the run in book/recorded/<study>/<scale>/, else the
notebook without results. A damaged run is never shown: the page says so if the run is the reader's
own, and the build fails if the run is committed. Prose uses numbers of the selected run as
`{{ substitutions }}`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pythia_book import records
from pythia_book.notebooks import (
    Notebook,
    read_notebook,
    source_hash,
)
from pythia_book.records import (
    NOTEBOOK,
    command,
    device_text,
    duration_text,
    number_text,
    read_record,
    value_text,
)
from pythia_core.errors import DataError, raise_all
from pythia_core.suite import SCALES

NOT_RUN = "not run yet"


# --- selecting -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelectedRun:
    """A run of a study that the site can show, or a placeholder if there is no run."""

    study: str
    kind: str
    """"yours" (a local run), "recorded" (a committed run) or "unrun" (there is no run)."""
    scale: str | None = None
    folder: Path | None = None
    record: dict[str, Any] | None = None
    current: bool = True
    """Whether the run executed the notebook's current code."""
    damaged: tuple[str, ...] = ()
    """For each local run of the study that cannot be shown, the reason. Only the first run that
    `select_runs` returns has these texts."""

    @property
    def notebook(self) -> Path | None:
        """The path of the executed notebook; None if there is no run."""
        return self.folder / NOTEBOOK if self.folder else None


def _finished_runs(
    root: Path, kind: str, study: str, source: str
) -> tuple[list[SelectedRun], list[str]]:
    """Return complete runs under `root`, largest scale first, and a text per damaged run."""
    runs, damaged = [], []
    for scale in reversed(SCALES):
        folder = root / study / scale
        if kind == "yours":
            records.tidy(folder)
        if not any((folder / name).exists() for name in (NOTEBOOK, "record.json")):
            continue
        if problems := records.check_whole(folder):
            # a page must not name the folders of this machine
            reasons = "; ".join(problems).replace(f"{folder}/", "").replace(str(folder), "it")
            damaged.append(f"{root.name}/{study}/{scale} cannot be shown: {reasons}")
            continue
        current = source_hash(read_notebook(folder / NOTEBOOK)) == source
        runs.append(SelectedRun(study, kind, scale, folder, read_record(folder), current))
    return runs, damaged


def select_runs(root: Path, results: Path | None, study: str) -> list[SelectedRun]:
    """Return all complete runs of a study, local runs first; a placeholder if there are none.

    Args:
        root: the checkout.
        results: the folder of local runs; None: return only recorded runs.

    Raises:
        DataError: a committed run is damaged or has an older schema.
    """
    source = source_hash(read_notebook(root / "notebooks" / f"{study}.ipynb"))
    recorded, problems = _finished_runs(root / "book" / "recorded", "recorded", study, source)
    raise_all(DataError, problems, "book/recorded")
    yours, damaged = _finished_runs(results, "yours", study, source) if results else ([], [])
    first, *others = yours + recorded or [SelectedRun(study, "unrun")]
    return [replace(first, damaged=tuple(damaged)), *others]


def with_prose_of(source: Notebook, executed: Notebook) -> Notebook:
    """Combine the prose of a notebook with the outputs of a run of the same code.

    Args:
        executed: the notebook of the run, which is changed in place and returned.
    """
    injected = {"injected-parameters"}
    ran, added = [], []
    for cell in executed.cells:
        if cell.cell_type == "code":
            (added if injected & set(cell.metadata.get("tags", [])) else ran).append(cell)
    cells = []
    for cell in source.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            before = ran.pop(0)
            cell["outputs"], cell["execution_count"] = before.outputs, before.execution_count
            if "parameters" in cell.metadata.get("tags", []):
                cells += added
    executed.cells = cells
    return executed


def escaped(text: str) -> str:
    """Escape every character that Markdown could interpret, and join all lines."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text.replace("\n", " "))


def substitutions(run: SelectedRun) -> dict[str, str]:
    """Map each name that prose can use as `{{ name }}` to its text; empty without a run.

    The names are:
    `<study>_<value>`: a value of the record
    `<study>_<value>_value`, `_low`, `_high`: the parts of a value with an interval
    `<study>_scale`, `_device`, `_date`, `_duration`, `_memory`, `_runs`, `_command`: the run
    """
    record = run.record
    if record is None:
        return {}
    texts = {
        "scale": record["scale"],
        "device": device_text(record),
        "date": record["created"],
        "duration": duration_text(record.get("duration_s") or 0),
        "memory": f"{(record.get('peak_memory_mb') or 0) / 1000:.1f} GB",
        "runs": number_text(len(record.get("runs", []))),
        "command": command(record),
    }
    for name, value in record["values"].items():
        texts[name] = value_text(value)
        if isinstance(value, dict):
            texts |= {
                f"{name}_{part}": number_text(value.get(part)) for part in ("value", "low", "high")
            }
    return {f"{run.study}_{name}": escaped(text) for name, text in texts.items()}
