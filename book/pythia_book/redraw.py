"""Draws recorded runs again from their measurements: verdicts, values, figures, prose; no training.

A record has everything that its study analyses. A redraw executes the study's current notebook in
a kernel with the record's parameters, where `conduct` reads the measurements instead of measuring,
and compares the result with the record. If nothing has changed no byte is written; else the new
folder replaces the old one as a whole. The record keeps its origin, and says when and by which code
it was redrawn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pythia_book import notebooks, records, site_runs
from pythia_book.verdicts import SIDES
from pythia_core.errors import ConfigError, DataError, PythiaError, one_of, raise_all
from pythia_core.suite import SCALES
from pythia_core.util.files import project_root, results_dir
from pythia_core.util.workers import parallel_map

UNCHANGED_BY = ("library_hash", "published_numbers", "record")
"""Keys of a notebook's stamp that say nothing about what it shows."""


NAMED = 8
"""How many tables and values a line names."""


@dataclass(frozen=True)
class Redrawn:
    """What a redraw did to a record."""

    name: str
    """E.g. "recorded/suite/laptop" or "results/suite/smoke"."""
    changes: list[str] = field(default_factory=list)
    """One line each; none: every byte is as it was."""
    problem: str = ""
    """Why it could not be redrawn."""


def redraw(
    studies: Sequence[str] = (), scale: str | None = None, progress: bool = True
) -> list[Redrawn]:
    """Redraw the recorded runs and the reader's own, two or more at once.

    Args:
        studies: names of notebooks; default: all. scale: only runs of this scale.

    Raises:
        ConfigError: unknown study or scale. DataError: there is nothing to redraw.
    """
    known = sorted(path.stem for path in notebooks.notebooks_dir().glob("*.ipynb"))
    problems = [one_of(study, known, "study") for study in studies if study not in known]
    problems += [one_of(scale, SCALES, "scale")] if scale and scale not in SCALES else []
    raise_all(ConfigError, problems, "redraw")
    folders = runs_of(studies or known, [scale] if scale else list(SCALES))
    if not folders:
        raise DataError("there is no run to redraw: `python -m pythia_core study` makes one")
    names = [name_of(folder) for folder in folders]
    done = parallel_map(
        redraw_one, folders, progress=progress, desc="redrawing", unit="run", names=names
    )
    if any(each.changes and each.name.startswith("recorded/") for each in done):
        site_runs.refresh_readme()
    return done


def runs_of(studies: Sequence[str], scales: Sequence[str]) -> list[Path]:
    """The folders with a record, recorded runs first."""
    roots = (project_root() / "book" / "recorded", results_dir())
    folders = [root / study / scale for root in roots for study in studies for scale in scales]
    return [folder for folder in folders if (folder / "record.json").is_file()]


def name_of(folder: Path) -> str:
    """The last three parts of a run's folder."""
    return "/".join(folder.absolute().parts[-3:])


def redraw_one(folder: Path) -> Redrawn:
    """Redraw one run."""
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
    except PythiaError as error:
        return Redrawn(name, problem=str(error).replace(f"{folder}/", ""))


def _execute(folder: Path, new: Path) -> None:
    """Execute the current notebook of a run's study into the folder `new`.

    Raises:
        PythiaError: a parameter is no longer accepted, or a cell failed.
    """
    import click
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines

    from pythia_book.papermill_engine import PythiaEngine

    papermill_engines.register("pythia", PythiaEngine)  # an entry point, but only if installed
    source = notebooks.notebook_path(records.read_record(folder)["study"])
    os.environ[records.REDRAW_FROM] = str(folder.absolute())
    try:
        papermill.execute_notebook(
            str(source).replace("{", "{{").replace("}", "}}"),
            None,
            parameters=_parameters(folder, source),
            engine_name="pythia",
            progress_bar=False,
            cwd=str(project_root()),
            record_to=new,
        )
    except papermill.PapermillExecutionError as error:
        raise PythiaError(f"a cell failed with {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise PythiaError("the kernel died; was there enough memory?") from error
    except click.ClickException as error:
        raise PythiaError(error.message) from error
    finally:
        del os.environ[records.REDRAW_FROM]


def _parameters(folder: Path, source: Path) -> dict[str, Any]:
    """What papermill injects: what it injected before, and what the defaults do not say."""
    accepted = notebooks.parameters_of(notebooks.read_notebook(source))
    recorded = records.read_record(folder)["parameters"]
    executed = notebooks.read_notebook(folder / records.NOTEBOOK)
    given = [*executed.metadata.get("papermill", {}).get("parameters", {})]
    defaults = {name: p.default for name, p in accepted.items()}
    given += [name for name in recorded if name not in given and name in defaults]
    changed = {
        name
        for name, value in recorded.items()
        if name not in defaults or json.loads(json.dumps(defaults[name])) != value
    }
    before = set(executed.metadata.get("papermill", {}).get("parameters", {}))
    return {name: recorded[name] for name in given if name in recorded and name in changed | before}


# --- comparing -------------------------------------------------------------------------------


def differences(old: Path, new: Path) -> list[str]:
    """What differs between two runs' folders, one line each, apart from when they were redrawn."""
    before, after = records.read_record(old), records.read_record(new)
    lines = verdict_changes(before["claims"], after["claims"])
    values = _changed(before["values"], after["values"])
    lines += _counted(values, "value", named=True)
    tables = _changed(before["files"], after["files"])
    lines += _counted([name for name in tables if name != records.MEASURED], "table", named=True)
    lines += _cell_changes(*(notebooks.read_notebook(f / records.NOTEBOOK) for f in (old, new)))
    said = {"claims", "values", "files", "notebook_sha256", "redrawn"}
    lines += [f"record: {key}" for key in _changed(before, after) if key not in said]
    mark = before.get("redrawn", {}).get("commit") or {}
    if not lines and mark.get("dirty") and after["redrawn"]["commit"]["dirty"] is False:
        lines.append("the code of the last redraw is committed now")
    return lines


def verdict_changes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Lines about claims that are new, gone, or have another verdict; other changes are counted."""

    def tests(claims: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(c["claim"], side): c[side] for c in claims for side in SIDES if c[side]}

    def words(claims: list[dict[str, Any]]) -> dict[str, Any]:
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
    lines += _counted([name for name in sources if name in words(after)], "source or quote")
    return lines or (["claims, but no verdict"] if before != after else [])


def _cell_changes(old: notebooks.Notebook, new: notebooks.Notebook) -> list[str]:
    """Lines about cells and outputs that differ."""
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
    lines += _counted(code, "code cell") + _counted(prose, "paragraph of prose")
    if len(old.cells) != len(new.cells):
        lines.append(f"{len(old.cells)} cells -> {len(new.cells)}")
    if stamps[0] != stamps[1] and not lines:
        lines.append("stamp")
    if not lines and _without_stamp(old) != _without_stamp(new):
        lines.append("metadata of the notebook")
    return lines


def _without_stamp(notebook: notebooks.Notebook) -> dict[str, Any]:
    metadata = {k: v for k, v in notebook.metadata.items() if k != notebooks.STAMP}
    return {**notebook, "metadata": metadata}


def _outputs(cell: Any, kind: str) -> list[str]:
    return [o.data[kind] for o in cell.get("outputs", []) if kind in o.get("data", {})]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The keys that one of two dicts lacks, or whose values differ."""
    missing = object()
    keys = dict.fromkeys([*before, *after])
    return [key for key in keys if before.get(key, missing) != after.get(key, missing)]


def _counted(things: Sequence[Any], name: str, named: bool = False) -> list[str]:
    """["2 tables changed: rates, levels"], or nothing."""
    if not things:
        return []
    text = f"{len(things)} {name}{'s' * (len(things) > 1)} changed"
    names = ", ".join(map(str, things[:NAMED])) + ", ..." * (len(things) > NAMED)
    return [f"{text}: {names}" if named else text]
