"""Directives about studies: the banner of a page, verdicts, costs and scales.

Texts in a record never become markup.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from pythia_book import claim_tables, notebooks, records
from pythia_book.site.runs import COSTS, NOT_RUN, SelectedRun, all_records, costs_of
from pythia_book.site.staging import ROOT, RUNS, unshown
from pythia_book.verdicts import HOLDS, SIDES, verdicts_of
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
        if study not in RUNS:
            raise self.error(f"unknown study {study!r}; choose one of {', '.join(RUNS)}")
        return RUNS[study]


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
        for study, runs in sorted(RUNS.items(), key=lambda r: contents.find(f"studies/{r[0]}\n")):
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
        committed = all_records(ROOT)
        if not committed:
            return [nodes.paragraph("", "No run has been recorded yet.")]
        header = [name[:1].upper() + name[1:] for name in COSTS]
        return [table(header, [list(costs_of(r)) for r in committed], "costs")]


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
