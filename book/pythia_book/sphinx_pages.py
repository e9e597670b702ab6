"""The book's Sphinx extension, which `jupyter-book build book/` loads.

A build copies one notebook per study into book/studies/: the reader's own run, else the recorded
run, else the source without results. `{{ name }}` in prose is filled in from records. With
`PYTHIA_BOOK_RUNS=recorded`, the reader's runs are ignored, so a public site depends only on
commits. Texts in a record never become markup. No page makes a request to another host.

Explanatory pages have three kinds of markup: `{drawing}` and `{value}` show what functions of
pythia_book.pages.<page> return, and `{source}` links to a line of code. An unknown name fails the
strict build. _static/<page>.js and _static/<page>.css are loaded on that page only.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective, SphinxRole

from pythia_book import claim_tables, notebooks, records, site_runs
from pythia_book.site_runs import NOT_RUN, SelectedRun
from pythia_book.style import Table
from pythia_book.verdicts import HOLDS, SIDES, verdicts_of
from pythia_core.config import stable_hash
from pythia_core.errors import DataError
from pythia_core.suite import SCALES

ROOT = Path(__file__).resolve().parents[2]
MATHJAX = ("tex-chtml.js", "output/chtml/fonts")
_SUBSTITUTION = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_RUNS: dict[str, list[SelectedRun]] = {}
"""Maps each study to its complete runs, the run to show first; `choose_runs` fills it per build."""


# --- before reading --------------------------------------------------------------------------


def configure(app: Sphinx, config: Config) -> None:
    """Tell Sphinx to use the copied MathJax and the root's _toc.yml, not the stub book/_toc.yml."""
    config.external_toc_path = str(ROOT / "_toc.yml")
    config.mathjax_path = "mathjax/tex-chtml.js"


def choose_runs(app: Sphinx, config: Config) -> None:
    """Select the run to show for each study; if the choice changes, Sphinx reads every page again.

    Raises:
        ExtensionError: committed runs are damaged; the message names all of them.
    """
    local = os.environ.get("PYTHIA_BOOK_RUNS") != "recorded"
    results = Path(os.environ.get("PYTHIA_RESULTS") or ROOT / "results") if local else None
    _RUNS.clear()
    problems = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        try:
            runs = _RUNS[path.stem] = site_runs.select_runs(ROOT, results, path.stem)
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
            for runs in _RUNS.values()
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
    for study, runs in _RUNS.items():
        source = ROOT / "notebooks" / f"{study}.ipynb"
        notebook = notebooks.read_notebook(source)
        if runs[0].notebook is None:
            add_placeholders(notebook)
        else:
            executed = notebooks.read_notebook(runs[0].notebook)
            current = runs[0].current
            notebook = site_runs.with_prose_of(notebook, executed) if current else executed
        notebooks.write_notebook(with_banner(notebook, study, len(runs) > 1), target / source.name)
    for stale in target.glob("*.ipynb"):
        if stale.stem not in _RUNS:
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
    for runs in _RUNS.values():
        numbers |= site_runs.substitutions(runs[0])
    unrun = tuple(f"{study}_" for study, runs in _RUNS.items() if runs[0].record is None)
    yours = tuple(f"{study}_" for study, runs in _RUNS.items() if runs[0].kind == "yours")
    for page in [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        for name in _SUBSTITUTION.findall(page.read_text(encoding="utf-8")):
            if unrun and name.startswith(unrun):
                numbers[name] = f"*{NOT_RUN}*"
            elif yours and name.startswith(yours):
                numbers.setdefault(name, "*not in this run*")
    config.myst_substitutions = {**(config.myst_substitutions or {}), **numbers}


def copy_mathjax(app: Sphinx) -> None:
    """Copy the parts of MathJax that pages load (1.6 of 24 MB) from the installed package.

    Raises:
        ExtensionError: the package is not installed.
    """
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise ExtensionError("the site needs MathJax; run pip install sphinx-mathjax-offline")
    package = Path(spec.submodule_search_locations[0]) / "static" / "mathjax"
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
    """Let the buttons that open or edit a study point to notebooks/ instead of book/studies/."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []) or [group]:
            if "url" in button:
                button["url"] = button["url"].replace("/book/studies/", "/notebooks/")


# --- directives ------------------------------------------------------------------------------


def table(header: list[str], rows: list[list[nodes.Node | str]], name: str) -> nodes.table:
    """Return a docutils table with the CSS class `name`; cell texts are never read as markup."""
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=1) for _ in header]

    def row(cells: list[nodes.Node | str]) -> nodes.row:
        entries = nodes.row()
        for content in cells:
            if isinstance(content, str):  # a number and its unit stay on one line
                content = nodes.paragraph("", content.replace(" %", "\N{NO-BREAK SPACE}%"))
            entries += nodes.entry("", content)
        return entries

    group += nodes.thead("", row(list(header)))
    group += nodes.tbody("", *[row(cells) for cells in rows])
    return nodes.table("", group, classes=[name])


def badge(verdict: str, text: str = "") -> nodes.inline:
    """Return `text`, by default the verdict itself, in the colour of the verdict."""
    return nodes.inline("", text or verdict, classes=["verdict", claim_tables.slug(verdict)])


def verdict_counts(claims: list[dict[str, Any]]) -> nodes.paragraph:
    """Return a line of counts: claims per side and verdict, and how many other statements hold."""
    line = nodes.paragraph(classes=["verdict-counts"])
    hypotheses, papers, others = claim_tables.parts(claims)
    for side in SIDES:
        counts = Counter(row[side]["verdict"] for row in papers if row[side])
        if counts:
            line += nodes.inline("", claim_tables.WHOSE[side].capitalize(), classes=["claim-side"])
        for verdict, count in counts.most_common():
            line += [nodes.Text(" "), badge(verdict, f"{count} {verdict}")]
        line += nodes.Text(" ")
    texts = []
    for rows in filter(None, (hypotheses, others)):
        holding = sum(set(verdicts_of(row)) == {HOLDS} for row in rows)
        texts.append(
            f"{claim_tables.counted(rows)}, of which {holding} "
            f"{'holds' if holding == 1 else 'hold'}"
        )
    line += nodes.Text("; ".join(texts))
    return line


def shell(command: str) -> nodes.literal_block:
    """Return a shell command as a block of code."""
    return nodes.literal_block(command, command, language="bash", classes=["command"])


class _StudyDirective(SphinxDirective):
    """A directive whose argument is the name of a study."""

    required_arguments = 1
    has_content = False
    option_spec: ClassVar[dict[str, Any]] = {"class": directives.class_option}

    @property
    def runs(self) -> list[SelectedRun]:
        """The complete runs of the study, the run to show first."""
        study = self.arguments[0]
        if study not in _RUNS:
            raise self.error(f"unknown study {study!r}; choose one of {', '.join(_RUNS)}")
        return _RUNS[study]


class RunBanner(_StudyDirective):
    """A banner that names the run on a page, with the command that repeats the run."""

    def run(self) -> list[nodes.Node]:
        run = self.runs[0]
        box = nodes.container(classes=["run-banner", f"run-{run.kind}"])
        if run.record is None:
            title = "Not run yet. "
            text = "This is the notebook's source; to run it and fill this page:"
            command = f"papermill notebooks/{run.study}.ipynb\njupyter-book build book/"
        else:
            title = "Your run. " if run.kind == "yours" else "Recorded run. "
            notebook, training = (
                records.duration_text(run.record.get(key) or 0)
                for key in ("duration_s", "training_s")
            )
            text = (
                f"Scale {run.scale}; {records.device_text(run.record)}; notebook {notebook}, "
                f"training {training}; {run.record['created']}."
            )
            if redrawn := run.record.get("redrawn"):
                text += f" Verdicts and figures were redrawn from its data on {redrawn['created']}."
            if run.scale == "smoke":
                text += " A smoke run only checks that everything works; its numbers mean nothing."
            if not run.current:
                text += " The notebook's code has changed since: run it again for its new results."
            if run.kind == "recorded":
                text += " Run it yourself and rebuild the book, and this page shows your run:"
            else:
                text += " To run it again:"
            command = records.command(run.record)
        box += nodes.paragraph("", "", nodes.strong("", title), nodes.Text(text))
        box += [nodes.paragraph("", sentence) for sentence in unshown(run)]
        box += shell(command)
        return [box]


class CompareRuns(_StudyDirective):
    """A table of the verdicts on our models, with a row per claim and a column per run."""

    def run(self) -> list[nodes.Node]:
        runs = [run for run in self.runs if run.record]
        names = {"yours": "your run", "recorded": "recorded"}
        header = ["Claim", *(f"{names[run.kind]}, {run.scale}" for run in runs)]
        claims = [
            {c["claim"]: c["ours"] for c in run.record["claims"] if c["ours"]} for run in runs
        ]

        def cell(test: dict[str, Any] | None) -> nodes.Node | str:
            """Return the value and the verdict of a test; "" without a test."""
            if test is None:
                return ""
            text = f"{records.measured_text(test)} "
            return nodes.paragraph("", "", nodes.Text(text), badge(test["verdict"]))

        rows: list[list[nodes.Node | str]] = [
            [name, *(cell(of.get(name)) for of in claims)]
            for name in dict.fromkeys(name for of in claims for name in of)
        ]
        return [table(header, rows, "compare")]


class Claims(SphinxDirective):
    """The front page's list of studies, each with its verdicts and a foldable table of claims."""

    def run(self) -> list[nodes.Node]:
        sections: list[nodes.Node] = []
        contents = (ROOT / "_toc.yml").read_text(encoding="utf-8")
        self.env.note_dependency(str(ROOT / "_toc.yml"))
        for study, runs in sorted(_RUNS.items(), key=lambda r: contents.find(f"studies/{r[0]}\n")):
            run = runs[0]
            source = notebooks.read_notebook(ROOT / "notebooks" / f"{study}.ipynb")
            name = source.cells[0].source.partition("\n")[0].lstrip("# ").strip() or study
            head = nodes.paragraph(classes=["study-head"])
            link = nodes.reference("", "", nodes.strong("", name), internal=True)
            link["refuri"] = self.env.app.builder.get_relative_uri(
                self.env.docname, f"studies/{study}"
            )
            head += [link, nodes.Text(" \N{EM DASH} " + self.status(run))]
            sections.append(head)
            if run.record is None:
                sections.append(shell(f"papermill notebooks/{study}.ipynb"))
                continue
            sections.append(verdict_counts(run.record["claims"]))
            what = claim_tables.counted(run.record["claims"])
            rule = self.env.app.builder.get_relative_uri(self.env.docname, "method") + "#verdicts"
            rows = claim_tables.claims_html(run.record["claims"], link=rule)
            opening = f"<details class='claims-of'><summary>{what}</summary>"
            sections += [
                nodes.raw("", f"{opening}{rows}", format="html"),
                nodes.paragraph("", records.provenance(run.record), classes=["provenance"]),
                nodes.raw("", "</details>", format="html"),
            ]
        return sections

    @staticmethod
    def status(run: SelectedRun) -> str:
        """Say whether the run to show is local, recorded or missing, and its scale."""
        if run.record is None:
            return f"{NOT_RUN}; to run it:"
        whose = "your run" if run.kind == "yours" else "recorded run"
        smoke = " (numbers of a smoke run mean nothing)" if run.scale == "smoke" else ""
        return f"{whose} at scale {run.scale}{smoke}"


class Costs(SphinxDirective):
    """A table with the cost of each recorded run."""

    def run(self) -> list[nodes.Node]:
        committed = site_runs.all_records(ROOT)
        if not committed:
            return [nodes.paragraph("", "No run has been recorded yet.")]
        header = [name[:1].upper() + name[1:] for name in site_runs.COSTS]
        return [table(header, [list(site_runs.costs_of(r)) for r in committed], "costs")]


class Scales(SphinxDirective):
    """A table of the scales that can be run, from pythia_core.suite.SCALES."""

    def run(self) -> list[nodes.Node]:
        times = "\N{MULTIPLICATION SIGN}"
        header = ["Scale", "Meant for", "Updates", f"Rows {times} tokens", "Tokenizer", "Sizes"]
        rows: list[list[nodes.Node | str]] = []
        for scale in SCALES.values():
            batch = f"{scale.batch_size:,} {times} {scale.data.seq_len:,}"
            sizes = ", ".join(scale.sizes)
            tokenizer = scale.data.tokenizer
            rows.append([scale.name, scale.machine, f"{scale.steps:,}", batch, tokenizer, sizes])
        return [table(header, rows, "scales")]


# --- drawings, numbers and sources on the explanatory pages ----------------------------------


def module_of(name: str, env: Any) -> tuple[Any, str]:
    """Import the module in a name such as "rotary.turning"; return the module and "turning".

    The module is pythia_book.pages.<page> if it exists, else pythia_book.studies.<page>.figures.
    """
    page, _, attribute = name.partition(".")
    path = f"pythia_book.pages.{page}"
    if importlib.util.find_spec(path) is None:  # else the figures of a study
        path = f"pythia_book.studies.{page}.figures"
    module = importlib.import_module(path)
    env.note_dependency(module.__file__)  # a page is read again when its drawings change
    return module, attribute


class DrawingFigure(SphinxDirective):
    """A directive for a figure or table that a function of a page's module draws.

    The content of the directive is the caption of the figure. With the option `interactive`, the
    page's script may replace the figure; the script gets the result of the module's
    `script_data(name)` as JSON.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "name": directives.unchanged,
        "interactive": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        module, attribute = module_of(self.arguments[0], self.env)
        drawing = getattr(module, attribute)()
        if isinstance(drawing, Table):
            rows = [
                [
                    nodes.paragraph("", "", nodes.literal("", cell))
                    if name in drawing.code
                    else cell
                    for name, cell in zip(drawing.frame.columns, row, strict=True)
                ]
                for row in drawing.frame.to_numpy().tolist()
            ]
            node = table(list(drawing.frame.columns), rows, "pythia-table")
            node.insert(0, nodes.title("", drawing.caption))
            self.add_name(node)
            return [node]
        path = Path(self.env.app.outdir).parent / "drawings" / f"{self.arguments[0]}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.save(path)
        folder = Path(self.env.doc2path(self.env.docname)).parent
        figure = nodes.figure()
        if "interactive" in self.options:
            for asset in (Path(self.env.srcdir) / "_static").glob(f"{self.env.docname}.*"):
                self.env.note_dependency(str(asset))  # else a changed script is not copied
            page = self.arguments[0].partition(".")[0]
            data = getattr(module, "script_data", lambda name: None)(attribute)
            values = html.escape(json.dumps(data, separators=(",", ":")))
            div = f'<div class="{page}" data-{page}="{attribute}" data-values="{values}"></div>'
            figure += nodes.raw("", div, format="html")
        figure += nodes.image(uri=os.path.relpath(path, folder), alt=drawing.description)
        caption = nodes.caption()
        parsed = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, parsed)
        for paragraph in parsed:
            caption += paragraph.children
        figure += caption
        self.add_name(figure)
        return [figure]


class Value(SphinxRole):
    """A role such as {value}`rotary.base`, which shows a number that `rotary.values()` returns."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        module, name = module_of(self.text, self.env)
        values = module.values()
        if name not in values:
            message = f"unknown value {self.text!r}; choose one of {', '.join(sorted(values))}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        return [nodes.Text(values[name])], []


class Source(SphinxRole):
    """A role that turns `path#text` into a link to the first line with `text` in the file `path`.

    The link points to the repository in the book's configuration, or else to a copy of the file.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, text = self.text.partition("#")
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        line = next((number for number, line in enumerate(lines, 1) if text in line), None)
        if line is None:
            message = f"no line of {name} contains {text!r}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        self.env.note_dependency(str(ROOT / name))
        label = nodes.literal("", f"{name}:{line}")
        options = self.config.html_theme_options
        if options.get("repository_url"):
            branch = options.get("repository_branch") or "main"
            target = f"{options['repository_url']}/blob/{branch}/{name}#L{line}"
            return [nodes.reference("", "", label, refuri=target)], []
        copy = os.path.relpath(ROOT / name, self.env.srcdir)
        link = addnodes.download_reference(
            "", "", label, refdoc=self.env.docname, reftarget=f"/{copy}", refdomain=""
        )
        return [link], []


def exclude_page_assets(app: Sphinx, config: Config) -> None:
    """Stop all pages from loading scripts and style sheets that belong to a single page."""
    pages = {path.stem for path in Path(app.srcdir).glob("*.md")}
    for files in (config.html_css_files, config.html_js_files):
        files[:] = [f for f in files if not (isinstance(f, str) and Path(f).stem in pages)]


def load_on_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Load the script and the style sheet that belong to a page, if they exist."""
    static = Path(app.srcdir) / "_static"
    if (static / f"{pagename}.css").is_file():
        app.add_css_file(f"{pagename}.css")
    if (static / f"{pagename}.js").is_file():
        app.add_js_file(f"{pagename}.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks, directives and roles of this extension with Sphinx."""
    app.add_config_value("pythia_shown", "", "env")
    # these run before priority 900, at which sphinx-external-toc reads the table of contents
    hooks = (configure, choose_runs, stage_notebooks, fill_numbers, exclude_page_assets)
    for order, hook in enumerate(hooks):
        app.connect("config-inited", hook, priority=100 + order)
    app.connect("builder-inited", copy_mathjax)
    app.connect("html-page-context", load_on_page)
    app.connect("html-page-context", point_at_sources, priority=900)
    for name, directive in {
        "pythia-run": RunBanner,
        "pythia-compare": CompareRuns,
        "pythia-claims": Claims,
        "pythia-costs": Costs,
        "pythia-scales": Scales,
        "drawing": DrawingFigure,
    }.items():
        app.add_directive(name, directive)
    app.add_role("value", Value())
    app.add_role("source", Source())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
