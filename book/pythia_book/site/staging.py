"""Selects the run of each study that the site shows, and stages its notebook for Sphinx.

A build copies one notebook per study into book/studies/: the reader's own run, else the recorded
run, else the source without results. `{{ name }}` in prose is filled in from records. With
`PYTHIA_BOOK_RUNS=recorded`, the reader's runs are ignored, so a public site depends only on
commits.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

from pythia_book import notebooks
from pythia_book.site.citation import citation, repository
from pythia_book.site.figures import with_inline_figures
from pythia_book.site.runs import (
    NOT_RUN,
    SelectedRun,
    select_runs,
    substitutions,
    with_prose_of,
)
from pythia_book.style import TABLE_TYPE
from pythia_core.config import stable_hash
from pythia_core.errors import DataError
from pythia_core.util.files import RESULTS, folder_in

ROOT = Path(__file__).resolve().parents[3]
_SUBSTITUTION = re.compile(r"\{\{\s*(\w+)\s*\}\}")
RUNS: dict[str, list[SelectedRun]] = {}
"""Maps each study to its complete runs, beginning with the one to show; `choose_runs` fills it."""
TABLES: dict[str, dict[str, Any]] = {}
"""Maps "<study>/<cell id>" to the content of a `style.Table`; `as_page` fills it."""


def choose_runs(app: Sphinx, config: Config) -> None:
    """Select the run to show for each study; if the choice changes, Sphinx reads every page again.

    Raises:
        ExtensionError: committed runs are damaged; the message names all of them.
    """
    local = os.environ.get("PYTHIA_BOOK_RUNS") != "recorded"
    results = (folder_in(RESULTS) or ROOT / "results") if local else None
    RUNS.clear()
    problems = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        try:
            runs = RUNS[path.stem] = select_runs(ROOT, results, path.stem)
        except DataError as error:
            problems.append(str(error))
            continue
        for text in unshown(runs[0]):
            print(f"note: {text}", file=sys.stderr)
    if problems:
        raise ExtensionError("\n".join(problems))
    config.pythia_shown = stable_hash(
        [
            [r.study, r.kind, r.scale, r.current, list(r.damaged), r.record]
            for runs in RUNS.values()
            for r in runs
        ]
    )


def recorded_run(study: str) -> SelectedRun:
    """Return the recorded run of a study at the largest scale; without one, a placeholder."""
    recorded = (run for run in RUNS.get(study, []) if run.kind == "recorded")
    return next(recorded, SelectedRun(study, "unrun"))


def unshown(shown: SelectedRun) -> list[str]:
    """Explain in one sentence per damaged local run what is shown instead of the run."""
    instead = {"yours": "another of your runs is shown", "recorded": "the recorded run is shown"}
    then = instead.get(shown.kind, "the notebook is shown without results")
    return [f"Your run in {text}; {then}." for text in shown.damaged]


def stage_notebooks(app: Sphinx, config: Config) -> None:
    """For each study, write a notebook with a banner into book/studies/, which git ignores."""
    target = Path(app.srcdir) / "studies"
    TABLES.clear()
    for study, runs in RUNS.items():
        source = ROOT / "notebooks" / f"{study}.ipynb"
        notebook = notebooks.read_notebook(source)
        if runs[0].notebook is None:
            add_placeholders(notebook)
        else:
            executed = notebooks.read_notebook(runs[0].notebook)
            current = runs[0].current
            notebook = with_prose_of(notebook, executed) if current else executed
        reported = runs[0].kind == "yours" and recorded_run(study).record is not None
        page = as_page(notebook, study, reported)
        notebooks.write_notebook(with_inline_figures(page, runs[0]), target / source.name)
    for stale in target.glob("*.ipynb"):
        if stale.stem not in RUNS:
            stale.unlink()


def add_placeholders(notebook: notebooks.Notebook) -> None:
    """Give outputs to figures and tables of an unexecuted notebook, so that references resolve."""
    import nbformat

    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        data: dict[str, Any] = {"text/markdown": f"*{NOT_RUN}*", "text/plain": NOT_RUN}
        if re.search(r"_table\(", cell.source) and "claims_table" not in cell.source:
            data[TABLE_TYPE] = {"caption": "", "columns": [NOT_RUN], "rows": [], "code": []}
        elif "figure" not in cell.metadata.get("mystnb", {}):
            continue
        cell["outputs"] = [nbformat.v4.new_output("display_data", data=data)]


_ACTIVE = re.compile(
    r"<\s*/?\s*(script|iframe|object|embed|form|base|link|meta)\b|<[^>]*[\s/\"']on\w+\s*=|javascript:",
    re.IGNORECASE,
)
_SHOWN = ("text/", "image/", "application/vnd.pythia.")


def sanitize_outputs(cell: Any) -> None:
    """Reduce those outputs of a cell that could run code in the page to their plain text."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        for kind in [*data]:
            active = kind in ("text/html", "text/markdown") and _ACTIVE.search("".join(data[kind]))
            if active or not kind.startswith(_SHOWN):
                del data[kind]


def as_page(notebook: notebooks.Notebook, study: str, reported: bool) -> notebooks.Notebook:
    """Turn a notebook into its page, in place: results in the text, code elsewhere.

    - The banner that names the run follows the abstract (the first cell up to a heading).
    - A table becomes a numbered one, with the label `tab-<study>-<cell id>`. Where prose refers
      to a table that the run lacks, it says so.
    - The page keeps no code; `{pythia-code}` shows it in a fold at the end. No output can run
      code in the page.

    Args:
        reported: whether to compare the run with the recorded one at the end of the page.
    """
    import nbformat

    def markdown(name: str, text: str) -> Any:
        return nbformat.v4.new_markdown_cell(text, id=name)

    def directive(name: str, argument: str, *options: str) -> Any:
        lines = [f":::{{{name}}} {argument}", *options, ":::"]
        return markdown(f"{name}-{argument.replace('/', '-')}", "\n".join(lines))

    cells, labels = [], set()
    for each in notebook.cells:
        shown = [output.get("data", {}) for output in each.get("outputs", [])]
        if content := next((data[TABLE_TYPE] for data in shown if TABLE_TYPE in data), None):
            name = f"{study}/{each.id}"
            TABLES[name] = content
            label = f"tab-{study}-{each.id}"
            labels.add(label)
            each = directive("pythia-table", name, f":name: {label}")
        elif each.cell_type == "code":
            sanitize_outputs(each)
            tags = {*each.metadata.get("tags", [])} - {"hide-input"}
            each.metadata["tags"] = sorted(tags | {"remove-input"})
        cells.append(each)
    for each in cells:
        if each.cell_type == "markdown":
            each.source = re.sub(
                rf"{{numref}}`(tab-{study}-[\w-]+)`",
                lambda found: found[0] if found[1] in labels else "*a table that this run lacks*",
                each.source,
            )
    cells = cells or [markdown("title", f"# {study}")]
    tail = [directive("pythia-code", study)]
    if reported:
        tail.insert(0, markdown("report", "## Your run and ours"))
        tail.insert(1, directive("pythia-report", study))
    opening, heading, section = cells[0].source.partition("\n## ")
    cells[0].source = opening.rstrip()
    if heading:
        cells.insert(1, markdown("section", heading.lstrip("\n") + section))
    notebook.cells = [cells[0], directive("pythia-run", study), *cells[1:], *tail]
    return notebook


def fill_numbers(app: Sphinx, config: Config) -> None:
    """Give Sphinx the numbers for `{{ name }}` in prose.

    Numbers of a study without a run are NOT_RUN. A number that a local run lacks is "not in this
    run": no number is taken from another run. With the prefix `recorded_`, a number is taken from
    the recorded run, even where the page shows the reader's run.
    """
    numbers: dict[str, str] = {}
    for study, runs in RUNS.items():
        numbers |= substitutions(runs[0])
        recorded = substitutions(recorded_run(study))
        numbers |= {f"recorded_{name}": text for name, text in recorded.items()}
    unrun = tuple(
        f"{mark}{study}_"
        for study, runs in RUNS.items()
        for mark, run in (("", runs[0]), ("recorded_", recorded_run(study)))
        if run.record is None
    )
    yours = tuple(f"{study}_" for study, runs in RUNS.items() if runs[0].kind == "yours")
    for page in [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        for name in _SUBSTITUTION.findall(page.read_text(encoding="utf-8")):
            if unrun and name.startswith(unrun):
                numbers[name] = f"*{NOT_RUN}*"
            elif yours and name.startswith(yours):
                numbers.setdefault(name, "*not in this run*")
    about = about_the_book()
    config.myst_substitutions = {**(config.myst_substitutions or {}), **numbers, **about}


def about_the_book() -> dict[str, str]:
    """Return `book_authors`, `_license`, `_version` and `_repository` (a link or "") for prose.

    The repository comes from the setting `repository: {url: ...}`, the others from CITATION.cff.
    """
    book, url = citation(ROOT), repository(ROOT).get("url")
    return {
        "book_authors": ", ".join(book.authors),
        "book_license": book.license,
        "book_version": book.version,
        "book_repository": f" · [source]({url})" if url else "",
    }
