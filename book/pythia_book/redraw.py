"""Updates the verdicts, values, figures and prose of finished runs without training or measuring.

A redraw executes the current notebook of a study with the parameters and measurements of a record.
An unchanged result is not written; a changed one replaces the old folder as a whole. The new record
keeps the origin of the old record, and states when and by which code it was redrawn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pythia_book import notebooks, records
from pythia_book.recording import refresh_costs
from pythia_book.verdicts import SIDES
from pythia_core.errors import ConfigError, DataError, PythiaError, count_of, one_of, raise_all
from pythia_core.suite import SCALES
from pythia_core.util.files import project_root, results_dir
from pythia_core.util.workers import parallel_map

UNCHANGED_BY = ("library_hash", "published_numbers", "record", "cells")
"""Keys of a stamp that are ignored when the notebooks before and after a redraw are compared."""


NAMED = 8
"""Maximum number of names of tables or values in one line about changes."""


@dataclass(frozen=True)
class Redrawn:
    """The outcome of redrawing one run."""

    name: str
    """The run, e.g. "recorded/suite/laptop" or "results/suite/smoke"."""
    changes: list[str] = field(default_factory=list)
    """One line per change. If there are no changes, or there is a problem, nothing was written."""
    problem: str = ""
    """Why the run could not be redrawn; empty after a success."""


def redraw(
    studies: Sequence[str] = (), scale: str | None = None, progress: bool = True
) -> list[Redrawn]:
    """Redraw finished runs in book/recorded and in the results folder, in parallel.

    Args:
        studies: names of studies; empty: all.
        scale: redraw only the runs of this scale.

    Raises:
        ConfigError: a study or the scale is unknown.
        DataError: there is no run to redraw.
    """
    known = sorted(path.stem for path in notebooks.notebooks_dir().glob("*.ipynb"))
    problems = [one_of(study, known, "study") for study in studies if study not in known]
    problems += (
        [one_of(scale, SCALES, "scale")] if scale is not None and scale not in SCALES else []
    )
    raise_all(ConfigError, problems, "redraw")
    folders = runs_of(studies or known, list(SCALES) if scale is None else [scale])
    if not folders:
        raise DataError(
            "there is no run to redraw; run a study first with `python -m pythia_core study STUDY`"
        )
    names = [name_of(folder) for folder in folders]
    done = parallel_map(
        redraw_one, folders, progress=progress, desc="redrawing", unit="run", names=names
    )
    if any(each.changes and each.name.startswith("recorded/") for each in done):
        refresh_costs()
    return done


def runs_of(studies: Sequence[str], scales: Sequence[str]) -> list[Path]:
    """Return the folders with a record of these studies and scales, book/recorded first."""
    roots = (project_root() / "book" / "recorded", results_dir())
    folders = [root / study / scale for root in roots for study in studies for scale in scales]
    return [folder for folder in folders if (folder / "record.json").is_file()]


def name_of(folder: Path) -> str:
    """Return the last three parts of a run's folder, e.g. "results/suite/smoke"."""
    return "/".join(folder.absolute().parts[-3:])


def redraw_one(folder: Path) -> Redrawn:
    """Redraw the run in a folder. No error is raised: `problem` in the result says what failed."""
    name = name_of(folder)
    try:
        records.tidy(folder)
        if problems := records.check_whole(folder):
            raise DataError("; ".join(problems))
        with records.staging(folder) as new:
            _execute(folder, new)
            changes = differences(folder, new)
            if changes:
                records.swap_in(new, folder)
        return Redrawn(name, changes)
    except Exception as error:  # of one damaged record; the others are redrawn
        kind = "" if isinstance(error, PythiaError) else f"{type(error).__name__}: "
        return Redrawn(name, problem=kind + str(error).replace(f"{folder}/", ""))


def _execute(folder: Path, new: Path) -> None:
    """Run the study's notebook on the measurements in `folder`, and write a record to `new`."""
    from pythia_book.papermill_engine import environment, execute

    source = notebooks.notebook_path(records.read_record(folder)["study"])
    with environment(records.REDRAW_FROM, str(folder.absolute())):
        execute(
            source,
            None,
            died="Run the redraw again",
            parameters=_parameters(folder, source),
            progress_bar=False,
            record_to=new,
        )


def _parameters(folder: Path, source: Path) -> dict[str, Any]:
    """Return the recorded parameters to inject into the current notebook `source`, by name.

    A parameter is injected if it was injected in the recorded run, or if its recorded value differs
    from the current default.
    """
    accepted = notebooks.parameters_of(notebooks.read_notebook(source))
    recorded = records.read_record(folder)["parameters"]
    executed = notebooks.read_notebook(folder / notebooks.NOTEBOOK)
    injected = executed.metadata.get("papermill", {}).get("parameters", {})
    defaults = {name: json.loads(json.dumps(p.default)) for name, p in accepted.items()}
    return {
        name: recorded[name]
        for name in dict.fromkeys([*injected, *recorded])
        if name in recorded
        and (name in injected or (name in defaults and defaults[name] != recorded[name]))
    }


# --- comparing -------------------------------------------------------------------------------


def differences(old: Path, new: Path) -> list[str]:
    """Describe the changes between the folders of two runs, one line each.

    The date and commit of a redraw do not count as changes, with one exception: if nothing else has
    changed, a line reports that code which was not committed at the last redraw is committed now.
    """
    before, after = records.read_record(old), records.read_record(new)
    lines = verdict_changes(before["claims"], after["claims"])
    values = _changed(before["values"], after["values"])
    lines += _counted(values, "value", named=True)
    tables = _changed(before["files"], after["files"])
    lines += _counted([name for name in tables if name != records.MEASURED], "table", named=True)
    lines += _cell_changes(*(notebooks.read_notebook(f / notebooks.NOTEBOOK) for f in (old, new)))
    described = {"claims", "values", "files", "notebook_sha256", "redrawn"}
    others = [key for key in _changed(before, after) if key not in described]
    lines += [f"{key} in record.json changed" for key in others]
    mark = before.get("redrawn", {}).get("commit") or {}
    if not lines and mark.get("dirty") and after["redrawn"]["commit"]["dirty"] is False:
        lines.append("the code is committed now, but was not committed at the last redraw")
    return lines


def verdict_changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Describe the changes between two versions of a study's claims, one line each.

    Each new, removed or changed verdict gets a line. Other changes are only counted.
    """

    def tests(claims: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Map (claim, "released" or "ours") to the test of the claim."""
        return {(c["claim"], side): c[side] for c in claims for side in SIDES if c[side]}

    def words(claims: list[dict[str, Any]]) -> dict[str, Any]:
        """Map each claim to its kind, source and quote."""
        return {c["claim"]: [c["kind"], c["source"], c["quote"]] for c in claims}

    old, new = tests(before), tests(after)
    lines = []
    for key in dict.fromkeys([*old, *new]):
        then, now = (of[key]["verdict"] if key in of else "(no such claim)" for of in (old, new))
        if then != now:
            lines.append(f"{key[0]} [{key[1]}]: {then} -> {now}")
    same = [key for key in old if key in new and old[key]["verdict"] == new[key]["verdict"]]
    lines += _counted([key for key in same if old[key] != new[key]], "test")
    sources = [name for name in _changed(words(before), words(after)) if name in words(before)]
    lines += _counted([name for name in sources if name in words(after)], "claim description")
    return lines or (["claims changed, but no verdict"] if before != after else [])


def _cell_changes(old: notebooks.Notebook, new: notebooks.Notebook) -> list[str]:
    """Describe how two notebooks differ in cells and outputs, one line per kind of change.

    Differences in metadata get a line only if there are no other differences.
    """
    stamps = [
        {k: v for k, v in notebook.metadata[notebooks.STAMP].items() if k not in UNCHANGED_BY}
        for notebook in (old, new)
    ]
    pairs = list(zip(old.cells, new.cells, strict=False))
    figures = [b for a, b in pairs if _outputs(a, "image/svg+xml") != _outputs(b, "image/svg+xml")]
    outputs = [b for a, b in pairs if a.get("outputs") != b.get("outputs") and b not in figures]
    code = [b for a, b in pairs if a.source != b.source and b.cell_type == "code"]
    prose = [b for a, b in pairs if a.source != b.source and b.cell_type == "markdown"]
    lines = _counted(figures, "figure") + _counted(outputs, "other output")
    lines += _counted(code, "code cell") + _counted(prose, "paragraph")
    if len(old.cells) != len(new.cells):
        lines.append(f"number of cells: {len(old.cells)} -> {len(new.cells)}")
    if stamps[0] != stamps[1] and not lines:
        lines.append("stamp of the notebook changed")
    if not lines and _without_stamp(old) != _without_stamp(new):
        lines.append("metadata of the notebook changed")
    return lines


def _without_stamp(notebook: notebooks.Notebook) -> dict[str, Any]:
    """Return a copy of a notebook without the stamp in its metadata."""
    metadata = {k: v for k, v in notebook.metadata.items() if k != notebooks.STAMP}
    return {**notebook, "metadata": metadata}


def _outputs(cell: Any, kind: str) -> list[str]:
    """Return the outputs of a cell that have the MIME type `kind`."""
    return [o.data[kind] for o in cell.get("outputs", []) if kind in o.get("data", {})]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the keys whose values differ, or that only one dict has."""
    missing = object()
    keys = dict.fromkeys([*before, *after])
    return [key for key in keys if before.get(key, missing) != after.get(key, missing)]


def _counted(changed: Sequence[Any], name: str, named: bool = False) -> list[str]:
    """Return a line such as "2 tables changed", plus the names if `named`; [] without changes."""
    if not changed:
        return []
    text = f"{count_of(len(changed), name)} changed"
    names = ", ".join(map(str, changed[:NAMED])) + ", ..." * (len(changed) > NAMED)
    return [f"{text}: {names}" if named else text]
