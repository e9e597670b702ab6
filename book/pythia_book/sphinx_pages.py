"""Sphinx extension of this book: what `jupyter-book build book/` does beyond its own.

At the start of a build it takes the table of contents from the top of the checkout, stages one
notebook a study into book/studies/ (a reader's own run, else the recorded one, else the source) and
fills `{{ numbers }}` in prose from records. Its directives draw claim tables and run banners as
docutils nodes, so that no text of a record can become markup. MathJax is copied from an installed
package: no page asks another host for anything.

`PYTHIA_BOOK_RUNS=recorded` ignores local runs, so that a public site depends on commits only.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from pythia_book import notebooks, records
from pythia_book import site_runs as shows
from pythia_core.config import stable_hash
from pythia_core.suite import SCALES

ROOT = Path(__file__).resolve().parents[2]
MATHJAX = ("tex-chtml.js", "output/chtml/fonts")
_SUBSTITUTION = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_RUNS: dict[str, list[shows.Shown]] = {}
"""Per study its finished runs, the shown one first; filled once a build by `choose_runs`."""


# --- before reading --------------------------------------------------------------------------


def use_top_toc(app: Sphinx, config: Config) -> None:
    """The stub in book/ only lets jupyter-book start."""
    config.external_toc_path = str(ROOT / "_toc.yml")


def choose_runs(app: Sphinx, config: Config) -> None:
    """Decide what is shown for each study; a change of it makes every page be read again."""
    local = os.environ.get("PYTHIA_BOOK_RUNS") != "recorded"
    results = Path(os.environ.get("PYTHIA_RESULTS") or ROOT / "results") if local else None
    _RUNS.clear()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _RUNS[path.stem] = shows.runs_to_show(ROOT, results, path.stem)
    config.pythia_shown = stable_hash(
        [[s.study, s.kind, s.scale, s.current, s.record] for runs in _RUNS.values() for s in runs]
    )


def stage_notebooks(app: Sphinx, config: Config) -> None:
    """Copy what is shown into book/studies/ (git-ignored), with a banner under the title."""
    target = ROOT / "book" / "studies"
    for study, runs in _RUNS.items():
        source = ROOT / "notebooks" / f"{study}.ipynb"
        notebook = notebooks.read_notebook(runs[0].notebook or source)
        if runs[0].notebook is None:
            hold_places(notebook)
        notebooks.write_notebook(with_banner(notebook, study, len(runs) > 1), target / source.name)
    for stale in target.glob("*.ipynb"):
        if stale.stem not in _RUNS:
            stale.unlink()


def hold_places(notebook: notebooks.Notebook) -> None:
    """Give the figures of a notebook without a run an output, so that references to them hold."""
    import nbformat

    for cell in notebook.cells:
        if "figure" in cell.metadata.get("mystnb", {}):
            words = {"text/markdown": f"*{shows.NOT_RUN}*", "text/plain": shows.NOT_RUN}
            cell["outputs"] = [nbformat.v4.new_output("display_data", data=words)]


def with_banner(notebook: notebooks.Notebook, study: str, several: bool) -> notebooks.Notebook:
    """The notebook with a cell that says which run it is, and of several runs one to compare."""
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
        tags = each.metadata.get("tags", [])
        drawn = [o["data"] for o in each.get("outputs", []) if "image/svg+xml" in o.get("data", {})]
        if drawn and "figure" in each.metadata.get("mystnb", {}):
            words = "".join(drawn[0].get("text/plain", "")).strip()
            each.metadata["mystnb"] = {**each.metadata["mystnb"], "image": {"alt": words}}
        if "injected-parameters" in tags:  # the banner's command says them
            each.metadata["tags"] = sorted({*tags, "remove-input"})
        elif "parameters" in tags:
            each.metadata["tags"] = sorted({*tags, "hide-input"})
            each.metadata["mystnb"] = {"code_prompt_show": "Parameters"}
    return notebook


def fill_numbers(app: Sphinx, config: Config) -> None:
    """Numbers in prose come from the shown records; those of a study without one say so."""
    numbers: dict[str, str] = {}
    for runs in _RUNS.values():
        numbers |= shows.substitutions(runs[0])
    unrun = tuple(f"{study}_" for study, runs in _RUNS.items() if runs[0].record is None)
    for page in [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        for name in _SUBSTITUTION.findall(page.read_text(encoding="utf-8")):
            if unrun and name.startswith(unrun):
                numbers[name] = f"*{shows.NOT_RUN}*"
    config.myst_substitutions = {**(config.myst_substitutions or {}), **numbers}


def local_mathjax(app: Sphinx, config: Config) -> None:
    config.mathjax_path = "mathjax/tex-chtml.js"


def copy_mathjax(app: Sphinx) -> None:
    """The parts of MathJax that pages load, out of the installed package (1.6 of its 24 MB)."""
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if found is None or not found.submodule_search_locations:
        raise ExtensionError("the book needs the package sphinx-mathjax-offline; pip install it")
    package = Path(found.submodule_search_locations[0]) / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX:
        if (package / part).is_dir():
            shutil.copytree(package / part, target / part, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / part, target / part)


def point_at_sources(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Buttons that open or edit a study lead to notebooks/, not to the staged copy."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []) or [group]:
            if "url" in button:
                button["url"] = button["url"].replace("/book/studies/", "/notebooks/")


# --- directives ------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[nodes.Node | str]], name: str) -> nodes.table:
    """A docutils table; texts become text nodes, never markup."""
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]

    def row(cells: list[nodes.Node | str]) -> nodes.row:
        made = nodes.row()
        for content in cells:
            if isinstance(content, str):  # a number and its unit stay on one line
                content = nodes.paragraph("", content.replace(" %", "\N{NO-BREAK SPACE}%"))
            made += nodes.entry("", content)
        return made

    group += nodes.thead("", row(list(header)))
    group += nodes.tbody("", *[row(cells) for cells in rows])
    return nodes.table("", group, classes=[name])


def badge(verdict: str) -> nodes.paragraph:
    kind = "verdict-" + verdict.replace(" ", "-")
    return nodes.paragraph("", "", nodes.inline("", verdict, classes=["verdict", kind]))


def verdict_counts(claims: list[dict[str, Any]]) -> nodes.paragraph:
    """How often each verdict was given."""
    counts = Counter(claim["verdict"] for claim in claims)
    line = nodes.paragraph(classes=["verdict-counts"])
    for verdict, count in counts.most_common():
        kind = "verdict-" + verdict.replace(" ", "-")
        line += [nodes.inline("", f"{count} {verdict}", classes=["verdict", kind]), nodes.Text(" ")]
    return line


def shell(command: str) -> nodes.literal_block:
    return nodes.literal_block(command, command, language="bash", classes=["command"])


def finding(claim: dict[str, Any]) -> str:
    """What was measured for a claim, with its interval where it has one."""
    if claim["ours"] is None:
        return "\N{EN DASH}"
    if claim["low"] is None:
        return records.number_text(claim["ours"])
    return records.value_text({"value": claim["ours"], "low": claim["low"], "high": claim["high"]})


def plain_number(value: Any) -> str:
    return "\N{EN DASH}" if value is None else records.number_text(value)


class _OfStudy(SphinxDirective):
    """A directive whose argument is the name of a study."""

    required_arguments = 1
    has_content = False
    option_spec: ClassVar[dict[str, Any]] = {"class": directives.class_option}

    @property
    def runs(self) -> list[shows.Shown]:
        study = self.arguments[0]
        if study not in _RUNS:
            raise self.error(f"unknown study {study!r}; known: {', '.join(_RUNS)}")
        return _RUNS[study]


class RunBanner(_OfStudy):
    """Which run a page shows: yours, the recorded one or none, and the command."""

    def run(self) -> list[nodes.Node]:
        shown = self.runs[0]
        box = nodes.container(classes=["run-banner", f"run-{shown.kind}"])
        if shown.record is None:
            box += nodes.paragraph(
                "",
                "",
                nodes.strong("", "Not run yet. "),
                nodes.Text("This is the notebook as it stands; to run it and fill this page:"),
            )
            box += shell(f"papermill notebooks/{shown.study}.ipynb\njupyter-book build book/")
            return [box]
        title = "Your run. " if shown.kind == "yours" else "Recorded run. "
        text = (
            f"Scale {shown.scale}; {records.device_text(shown.record)}; "
            f"{records.duration_text(shown.record.get('duration_s') or 0)}; "
            f"{shown.record['created']}."
        )
        if shown.scale == "smoke":
            text += " A smoke run only checks that everything works; its numbers mean nothing."
        if not shown.current:
            text += " The notebook's code has changed since: run it again to see what it gives now."
        if shown.kind == "recorded":
            text += " Run it yourself and build the book again, and this page shows your run:"
        else:
            text += " To run it again:"
        box += nodes.paragraph("", "", nodes.strong("", title), nodes.Text(text))
        box += shell(records.command(shown.record))
        return [box]


class CompareRuns(_OfStudy):
    """One table of the claims in every finished run of a study: yours and the recorded ones."""

    def run(self) -> list[nodes.Node]:
        runs = [shown for shown in self.runs if shown.record]
        names = {"yours": "your run", "recorded": "recorded"}
        header = ["Claim", *(f"{names[s.kind]}, {s.scale}" for s in runs)]
        # the words in brackets name units and sizes, which differ between runs
        found = [
            {re.sub(r"\s*\([^)]*\)", "", c["claim"]): c for c in s.record["claims"]} for s in runs
        ]
        rows: list[list[nodes.Node | str]] = []
        for claim in dict.fromkeys(name for claims in found for name in claims):
            cells = [finding(claims[claim]) if claim in claims else "" for claims in found]
            rows.append([claim, *cells])
        return [table(header, rows, "compare")]


class Claims(SphinxDirective):
    """For the front page: every study with its verdicts, and its claims for those who open them."""

    def run(self) -> list[nodes.Node]:
        made: list[nodes.Node] = []
        contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
        self.env.note_dependency(str(ROOT / "_toc.yml"))
        for study, runs in sorted(_RUNS.items(), key=lambda r: contents.find(f"studies/{r[0]}\n")):
            shown = runs[0]
            title = notebooks.read_notebook(ROOT / "notebooks" / f"{study}.ipynb").cells[0].source
            name = title.partition("\n")[0].lstrip("# ").strip() or study
            head = nodes.paragraph(classes=["study-head"])
            link = nodes.reference("", "", nodes.strong("", name), internal=True)
            link["refuri"] = self.env.app.builder.get_relative_uri(
                self.env.docname, f"studies/{study}"
            )
            head += [link, nodes.Text(" \N{EM DASH} " + self.status(shown))]
            made.append(head)
            if shown.record is None:
                made.append(shell(f"papermill notebooks/{study}.ipynb"))
                continue
            rows: list[list[nodes.Node | str]] = [
                [
                    c["claim"],
                    str(c["paper"] or ""),
                    plain_number(c["published"]),
                    finding(c),
                    badge(c["verdict"]),
                ]
                for c in shown.record["claims"]
            ]
            header = [
                "Claim",
                "In the paper",
                "Published numbers",
                "Ours [95\N{NO-BREAK SPACE}%]",
                "Verdict",
            ]
            made.append(verdict_counts(shown.record["claims"]))
            words = f"<details class='claims-of'><summary>All {len(rows)} claims</summary>"
            made += [nodes.raw("", words, format="html"), table(header, rows, "claims")]
            made += [
                nodes.paragraph("", records.provenance(shown.record), classes=["provenance"]),
                nodes.raw("", "</details>", format="html"),
            ]
        return made

    @staticmethod
    def status(shown: shows.Shown) -> str:
        if shown.record is None:
            return f"{shows.NOT_RUN}; to run it:"
        whose = "your run" if shown.kind == "yours" else "recorded run"
        smoke = " (numbers of a smoke run mean nothing)" if shown.scale == "smoke" else ""
        return f"{whose} at scale {shown.scale}{smoke}"


class Costs(SphinxDirective):
    """What each recorded run cost, and which scales have one."""

    def run(self) -> list[nodes.Node]:
        known = shows.recorded(ROOT)
        if not known:
            return [nodes.paragraph("", "No run has been recorded yet.")]
        header = [name[:1].upper() + name[1:] for name in shows.COSTS]
        return [table(header, [list(shows.costs_of(r)) for r in known], "costs")]


class Scales(SphinxDirective):
    """The scales that can be run, from the library's own table."""

    def run(self) -> list[nodes.Node]:
        rows: list[list[nodes.Node | str]] = [
            [
                s.name,
                s.machine,
                f"{s.steps:,}",
                f"{s.batch_size:,} \N{MULTIPLICATION SIGN} {s.data.seq_len:,}",
                s.data.tokenizer,
                ", ".join(s.sizes),
            ]
            for s in SCALES.values()
        ]
        header = ["Scale", "Meant for", "Updates", "Rows \N{MULTIPLICATION SIGN} tokens"]
        return [table([*header, "Tokenizer", "Sizes"], rows, "scales")]


def setup(app: Sphinx) -> dict[str, Any]:
    app.setup_extension("pythia_book.sphinx_drawings")
    app.add_config_value("pythia_shown", "", "env")
    # the toc extension reads its file at priority 900; everything here comes before
    for order, hook in enumerate(
        (use_top_toc, choose_runs, stage_notebooks, fill_numbers, local_mathjax)
    ):
        app.connect("config-inited", hook, priority=100 + order)
    app.connect("builder-inited", copy_mathjax)
    app.connect("html-page-context", point_at_sources, priority=900)
    app.add_directive("pythia-run", RunBanner)
    app.add_directive("pythia-compare", CompareRuns)
    app.add_directive("pythia-claims", Claims)
    app.add_directive("pythia-costs", Costs)
    app.add_directive("pythia-scales", Scales)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
