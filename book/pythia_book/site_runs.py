"""Selects the run of a study that the site shows, and records runs under book/recorded.

The site shows the reader's own run of a study if there is one, else the run committed under
book/recorded/<study>/<scale>/, else the notebook with the command to run it. Prose takes its
numbers from the selected run as `{{ substitutions }}`; the README takes its costs from the recorded
runs. pythia_book.records writes and reads single records.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_book.notebooks import (
    is_finished,
    machine_traces,
    notebook_path,
    read_notebook,
    source_hash,
)
from pythia_book.records import (
    command,
    device_text,
    duration_text,
    number_text,
    read_record,
    value_text,
)
from pythia_core.errors import DataError, raise_all
from pythia_core.suite import SCALES
from pythia_core.util.files import (
    atomic_dir,
    atomic_file,
    file_sha256,
    project_root,
    require_checkout,
    results_dir,
)

NOT_RUN = "not run yet"


# --- selecting -------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelectedRun:
    """A run of a study that the site can show."""

    study: str
    kind: str
    """"yours" (a local run), "recorded" (committed) or "unrun"."""
    scale: str | None = None
    folder: Path | None = None
    record: dict[str, Any] | None = None
    current: bool = True
    """Whether the run executed the notebook's current code."""

    @property
    def notebook(self) -> Path | None:
        return self.folder / "notebook.ipynb" if self.folder else None


def _finished_runs(root: Path, kind: str, study: str, source: str) -> list[SelectedRun]:
    """Finished runs of one kind, largest scale first; unreadable ones are skipped."""
    runs = []
    for scale in reversed(SCALES):
        folder = root / study / scale
        try:
            notebook, record = read_notebook(folder / "notebook.ipynb"), read_record(folder)
        except DataError:
            continue
        if is_finished(notebook):
            current = source_hash(notebook) == source
            runs.append(SelectedRun(study, kind, scale, folder, record, current))
    return runs


def select_runs(root: Path, results: Path | None, study: str) -> list[SelectedRun]:
    """All finished runs of a study, yours before the recorded ones; the site shows the first.

    Args:
        root: the checkout. results: its results folder; None: recorded runs only.
    """
    source = source_hash(read_notebook(root / "notebooks" / f"{study}.ipynb"))
    yours = _finished_runs(results, "yours", study, source) if results else []
    recorded = _finished_runs(root / "book" / "recorded", "recorded", study, source)
    return yours + recorded or [SelectedRun(study, "unrun")]


def _escaped(text: str) -> str:
    """The text with every character escaped that Markdown could interpret."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text.replace("\n", " "))


def substitutions(run: SelectedRun) -> dict[str, str]:
    """`{{ <study>_<name> }}` for every value of a record, and for scale, device, cost and date.

    A value with an interval is also available as `<name>_value`, `<name>_low` and `<name>_high`.
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
    return {f"{run.study}_{name}": _escaped(text) for name, text in texts.items()}


# --- recording -------------------------------------------------------------------------------


def record_run(study: str, scale: str) -> Path:
    """Copy a finished local run into book/recorded/<study>/<scale>/, to be committed.

    Raises:
        DataError: the run is unfinished or outdated, has an error, does not match its tables, or
            names the machine it ran on; lists every reason.
    """
    require_checkout("recording a run")
    source, root = results_dir() / study / scale, project_root()
    notebook, record = read_notebook(source / "notebook.ipynb"), read_record(source)
    problems = []
    if not is_finished(notebook):
        problems.append("the notebook did not run to the end without errors")
    elif source_hash(notebook) != source_hash(read_notebook(notebook_path(study))):
        problems.append("the notebook's code has changed since; run it again")
    names = ["notebook.ipynb", "record.json", *record.get("tables", {})]
    for name in names:
        file = source / name
        if not file.is_file():
            problems.append(f"{name} is missing")
            continue
        if name in record["tables"] and file_sha256(file) != record["tables"][name]["sha256"]:
            problems.append(f"{name} does not match the hash in the record")
        text = file.read_text(encoding="utf-8")
        problems += [f"{name} names {trace!r} of this machine" for trace in machine_traces(text)]
    raise_all(DataError, problems, f"results of {study} at scale {scale}")
    target = root / "book" / "recorded" / study / scale
    if target.exists():
        shutil.rmtree(target)
    with atomic_dir(target) as temporary:
        for name in names:
            shutil.copyfile(source / name, temporary / name)
    refresh_readme()
    return target


def all_records(root: Path) -> list[dict[str, Any]]:
    """All records under book/recorded, sorted by study, then scale."""
    return [
        read_record(path) for path in sorted((root / "book" / "recorded").glob("*/*/record.json"))
    ]


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


COSTS = ("study", "scale", "machine", "notebook", "training, one thread", "memory", "disk")
"""Columns of the cost table. A notebook's time excludes models that were already trained."""


def costs_of(record: dict[str, Any]) -> tuple[str, ...]:
    """The row of a recorded run in the cost table, with the columns COSTS."""
    return (
        record["study"],
        record["scale"],
        device_text(record),
        duration_text(record.get("duration_s") or 0),
        duration_text(record.get("training_s") or 0),
        f"{(record.get('peak_memory_mb') or 0) / 1000:.1f} GB",
        f"{record.get('disk_mb') or 0} MB",
    )


def costs_table(records: list[dict[str, Any]]) -> str:
    """The cost of each recorded run, as a Markdown table."""
    rows = ["| " + " | ".join(COSTS) + " |", "|" + "---|" * len(COSTS)]
    for r in records:
        rows.append("| " + " | ".join(c.replace("|", "\\|") for c in costs_of(r)) + " |")
    return "\n".join(rows) if records else "No run has been recorded yet."


def refresh_readme() -> Path:
    """Write the cost table into the README's block `costs`."""
    path = project_root() / "README.md"
    fill_block(path, "costs", costs_table(all_records(project_root())))
    return path
