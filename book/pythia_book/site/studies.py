"""Directives about studies: the run on a page, its tables, code and comparison, costs, scales.

Texts in a record never become markup.
"""

from __future__ import annotations

import html
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from pythia_book import claim_tables, notebooks, records
from pythia_book.recording import COSTS, all_costs
from pythia_book.site import report
from pythia_book.site.runs import NOT_RUN, SelectedRun
from pythia_book.site.staging import ROOT, RUNS, TABLES, recorded_run, unshown
from pythia_core.errors import DataError
from pythia_core.suite import SCALES


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


def numbered_table(content: dict[str, Any]) -> nodes.table:
    """Return a table with a caption, from the content of a `style.Table` (see its `content`)."""

    def cell(number: int, name: str, text: str) -> nodes.Node | str:
        if name in content["code"]:
            return nodes.paragraph("", "", nodes.literal("", text))
        if passages := content.get("strong", {}).get(name):
            return emphasized(text, passages[number])
        return text

    rows: list[list[nodes.Node | str]] = [
        [cell(number, name, text) for name, text in zip(content["columns"], row, strict=True)]
        for number, row in enumerate(content["rows"])
    ]
    node = table(content["columns"], rows, "pythia-table")
    node.insert(0, nodes.title("", content["caption"] or NOT_RUN))
    return node


def emphasized(text: str, passages: list[tuple[int, int]]) -> nodes.paragraph:
    """Return a paragraph in which the passages (start, end) are strong."""
    words, at = nodes.paragraph(), 0
    for start, end in passages:
        words += [nodes.Text(text[at:start]), nodes.strong("", text[start:end])]
        at = end
    words += nodes.Text(text[at:])
    return words


def badge(verdict: str, text: str = "") -> nodes.inline:
    """Return `text`, by default the verdict itself, in the color of the verdict."""
    return nodes.inline("", text or verdict, classes=["verdict", claim_tables.slug(verdict)])


def rebuild_command(study: str) -> str:
    """Return the commands that run a study and build the site again."""
    return f"papermill notebooks/{study}.ipynb\njupyter-book build book/"


def shell(command: str) -> nodes.literal_block:
    """Return a shell command as a block of code."""
    return nodes.literal_block(command, command, language="bash", classes=["command"])


class _StudyDirective(SphinxDirective):
    """A directive whose argument is the name of a study."""

    required_arguments = 1

    @property
    def runs(self) -> list[SelectedRun]:
        """The complete runs of the study; the run to show comes first."""
        study = self.arguments[0]
        if study not in RUNS:
            raise self.error(f"unknown study {study!r}; choose one of {', '.join(RUNS)}")
        return RUNS[study]


class RunBanner(_StudyDirective):
    """One line that names the run on a page; it unfolds to the command that repeats the run."""

    def run(self) -> list[nodes.Node]:
        run = self.runs[0]
        if run.record is None:
            title, text = "Not run yet. ", "This page shows the notebook's source."
            advice = "To run it and fill this page:"
            command = rebuild_command(run.study)
        else:
            title = "Your run. " if run.kind == "yours" else "Recorded run. "
            text = f"Scale {run.scale}, {records.device_text(run.record)}, {run.record['created']}."
            if run.scale == "smoke":
                text += " A smoke run only checks that everything works; its numbers mean nothing."
            if not run.current:
                text += (
                    " The notebook's code has changed since; run it again to update the results."
                )
            advice = self.advice(run, run.record)
            command = records.command(run.record)
        summary = f"<strong>{title}</strong>{html.escape(text)}"
        opening = f'<details class="run-banner run-{run.kind}"><summary>{summary}</summary>'
        return [
            nodes.raw("", opening, format="html"),
            nodes.paragraph("", advice),
            shell(command),
            nodes.raw("", "</details>", format="html"),
            *[nodes.paragraph("", sentence, classes=["run-unshown"]) for sentence in unshown(run)],
        ]

    @staticmethod
    def advice(run: SelectedRun, record: dict[str, Any]) -> str:
        """Say what the run cost, when it was redrawn, and what the command below does."""
        notebook, training = (
            records.duration_text(record.get(key) or 0) for key in ("duration_s", "training_s")
        )
        text = f"The notebook took {notebook}"
        if record.get("training_s"):
            text += f", and training {training} on one thread"
        text += "."
        if redrawn := record.get("redrawn"):
            text += f" Verdicts and figures were redrawn from its data on {redrawn['created']}."
        if run.kind == "recorded":
            return f"{text} To see your own run here, run this and rebuild the book:"
        return f"{text} The abstract has the recorded run's numbers. To run it again:"


class ReproductionReport(_StudyDirective):
    """A comparison of the reader's run with the recorded one: verdicts, numbers, machines."""

    def run(self) -> list[nodes.Node]:
        yours, recorded = self.runs[0], recorded_run(self.arguments[0])
        assert yours.record and recorded.record
        comparison = report.compare(yours.record, recorded.record)
        items = [nodes.list_item("", nodes.paragraph("", text)) for text in comparison.sentences()]
        header = ["Claim", "your run", "recorded", "distance"]

        def cell(test: dict[str, Any] | None) -> nodes.Node | str:
            """Return the value and the verdict of a test; "" without a test."""
            if test is None:
                return ""
            text = f"{records.measured_text(test)} "
            return nodes.paragraph("", "", nodes.Text(text), badge(test["verdict"]))

        rows: list[list[nodes.Node | str]] = [
            [
                row.claim,
                cell(row.yours),
                cell(row.recorded),
                "" if row.distance is None else records.number_text(row.distance, 1),
            ]
            for row in sorted(comparison.rows, key=lambda row: row.agree is not False)
        ]
        note = (
            "Claims with different verdicts come first. Distance: the difference of the values, "
            "divided by the half-width of its 95 % interval (for a value of one seed, of the "
            "interval in which one more seed of the recorded run would lie); above 1, the runs "
            "differ by more than chance allows."
        )
        return [
            nodes.bullet_list("", *items, classes=["report"]),
            table(header, rows, "compare"),
            nodes.paragraph("", note, classes=["pythia-note"]),
        ]


class StudyTable(SphinxDirective):
    """A numbered table: what the code cell `<study>/<cell id>` of a study's notebook shows."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {"name": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        if self.arguments[0] not in TABLES:
            raise self.error(
                f"unknown table {self.arguments[0]!r}; choose one of {', '.join(TABLES)}"
            )
        node = numbered_table(TABLES[self.arguments[0]])
        self.add_name(node)
        return [node]


class Code(_StudyDirective):
    """All code of a page in one fold, with the anchor `code-<cell id>` for each cell."""

    def run(self) -> list[nodes.Node]:
        run = self.runs[0]
        source = run.notebook or ROOT / "notebooks" / f"{run.study}.ipynb"
        opening = '<details class="page-code" id="code"><summary>Code of this page</summary>'
        cells: list[nodes.Node] = [nodes.raw("", opening, format="html")]
        for cell in notebooks.read_notebook(source).cells:
            if cell.cell_type == "code":
                block = nodes.literal_block(cell.source, cell.source, language="python")
                cells.append(nodes.container("", block, ids=[f"code-{cell.id}"]))
        return [*cells, nodes.raw("", "</details>", format="html")]


class Costs(SphinxDirective):
    """A table with the cost of each recorded run, including earlier ones on other machines."""

    def run(self) -> list[nodes.Node]:
        header = [name[:1].upper() + name[1:] for name in COSTS]
        try:
            rows = all_costs(ROOT)
        except DataError as error:
            raise ExtensionError(str(error)) from error
        return [table(header, [list(row) for row in rows], "costs")]


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
