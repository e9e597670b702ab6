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
from pythia_book.site.runs import (
    NOT_RUN,
    SelectedRun,
    select_runs,
    substitutions,
    with_prose_of,
)
from pythia_core.config import stable_hash
from pythia_core.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
_SUBSTITUTION = re.compile(r"\{\{\s*(\w+)\s*\}\}")
RUNS: dict[str, list[SelectedRun]] = {}
"""Maps each study to its complete runs, the run to show first; `choose_runs` fills it per build."""


def choose_runs(app: Sphinx, config: Config) -> None:
    """Select the run to show for each study; if the choice changes, Sphinx reads every page again.

    Raises:
        ExtensionError: committed runs are damaged; the message names all of them.
    """
    local = os.environ.get("PYTHIA_BOOK_RUNS") != "recorded"
    results = Path(os.environ.get("PYTHIA_RESULTS") or ROOT / "results") if local else None
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


def unshown(shown: SelectedRun) -> list[str]:
    """Explain in one sentence per damaged local run what is shown instead of the run."""
    instead = {"yours": "another of your runs is shown", "recorded": "the recorded run is shown"}
    then = instead.get(shown.kind, "the notebook is shown without results")
    return [f"Your run in {text}; {then}." for text in shown.damaged]


def stage_notebooks(app: Sphinx, config: Config) -> None:
    """For each study, write a notebook with a banner into book/studies/, which git ignores."""
    target = ROOT / "book" / "studies"
    for study, runs in RUNS.items():
        source = ROOT / "notebooks" / f"{study}.ipynb"
        notebook = notebooks.read_notebook(source)
        if runs[0].notebook is None:
            add_placeholders(notebook)
        else:
            executed = notebooks.read_notebook(runs[0].notebook)
            current = runs[0].current
            notebook = with_prose_of(notebook, executed) if current else executed
        notebooks.write_notebook(with_banner(notebook, study, len(runs) > 1), target / source.name)
    for stale in target.glob("*.ipynb"):
        if stale.stem not in RUNS:
            stale.unlink()


def add_placeholders(notebook: notebooks.Notebook) -> None:
    """Give the figure cells of an unexecuted notebook an output, so that references resolve."""
    import nbformat

    for cell in notebook.cells:
        if "figure" in cell.metadata.get("mystnb", {}):
            data = {"text/markdown": f"*{NOT_RUN}*", "text/plain": NOT_RUN}
            cell["outputs"] = [nbformat.v4.new_output("display_data", data=data)]


def with_banner(notebook: notebooks.Notebook, study: str, several: bool) -> notebooks.Notebook:
    """Prepare a notebook for its page, in place: banner, alternative texts, hidden parameters.

    Args:
        several: whether to compare several runs at the end of the page.
    """
    import nbformat

    def cell(name: str, text: str) -> Any:
        return nbformat.v4.new_markdown_cell(text, id=name)

    first = notebook.cells[0] if notebook.cells else cell("title", f"# {study}")
    title, _, rest = first.source.partition("\n")
    head = [cell("title", title), cell("run", f":::{{pythia-run}} {study}\n:::")]
    if rest.strip():
        head.append(cell("opening", rest.strip()))
    tail = [cell("runs", f"## Your run and ours\n\n:::{{pythia-compare}} {study}\n:::")]
    notebook.cells = [*head, *notebook.cells[1:], *(tail if several else [])]
    for each in notebook.cells:
        tags, display = each.metadata.get("tags", []), each.metadata.get("mystnb", {})
        images = [o.data for o in each.get("outputs", []) if "image/svg+xml" in o.get("data", {})]
        if images and "figure" in display:
            alt = "".join(images[0].get("text/plain", "")).strip()
            each.metadata["mystnb"] = {**display, "image": {"alt": alt}}
        if "injected-parameters" in tags:  # they are in the banner's command
            each.metadata["tags"] = sorted({*tags, "remove-input"})
        elif "parameters" in tags:
            each.metadata["tags"] = sorted({*tags, "hide-input"})
            each.metadata["mystnb"] = {"code_prompt_show": "Parameters"}
    return notebook


def fill_numbers(app: Sphinx, config: Config) -> None:
    """Give Sphinx the numbers for `{{ name }}` in prose.

    Numbers of a study without a run are NOT_RUN. A number that a local run lacks is "not in this
    run": no number is taken from another run.
    """
    numbers: dict[str, str] = {}
    for runs in RUNS.values():
        numbers |= substitutions(runs[0])
    unrun = tuple(f"{study}_" for study, runs in RUNS.items() if runs[0].record is None)
    yours = tuple(f"{study}_" for study, runs in RUNS.items() if runs[0].kind == "yours")
    for page in [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        for name in _SUBSTITUTION.findall(page.read_text(encoding="utf-8")):
            if unrun and name.startswith(unrun):
                numbers[name] = f"*{NOT_RUN}*"
            elif yours and name.startswith(yours):
                numbers.setdefault(name, "*not in this run*")
    config.myst_substitutions = {**(config.myst_substitutions or {}), **numbers}
