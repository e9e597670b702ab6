"""Directives of the front page: the findings, all claims of the paper, and how to cite.

Findings and claims come from the recorded runs, for which their sentences were written, and never
from the reader's runs. Each finding names the verdicts that it rests on, and a build warns if a
record no longer has them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from pythia_book import claim_tables, notebooks
from pythia_book.claim_tables import as_html
from pythia_book.records import measured_text
from pythia_book.site.citation import citation
from pythia_book.site.drawings import picture
from pythia_book.site.runs import SelectedRun
from pythia_book.site.staging import ROOT, RUNS, recorded_run
from pythia_book.verdicts import (
    CONFIRMED,
    CONTRADICTED,
    FAILS,
    HOLDS,
    NOT_RESOLVED,
    NOT_TESTABLE,
    REFUTED,
    REPRODUCED,
    SIDES,
)

_log = logging.getLogger(__name__)

MARKS = {
    REPRODUCED: "\N{CHECK MARK}", CONFIRMED: "\N{CHECK MARK}", HOLDS: "\N{CHECK MARK}",
    CONTRADICTED: "\N{MULTIPLICATION X}", REFUTED: "\N{MULTIPLICATION X}",
    FAILS: "\N{MULTIPLICATION X}", NOT_RESOLVED: "?", NOT_TESTABLE: "\N{MIDDLE DOT}",
}  # fmt: skip
"""Maps a verdict to its mark in the matrix of claims."""
LEGEND = (
    (REPRODUCED, "reproduced or confirmed"),
    (CONTRADICTED, "contradicted"),
    (NOT_RESOLVED, "not resolved: shown neither way, allowing for the number of tests"),
    (NOT_TESTABLE, "not testable here"),
)
_OF_THE_PAPER = re.compile(r"(abstract|sections?|appendi|tables?|figures?)", re.IGNORECASE)


def of_the_paper(row: dict[str, Any]) -> bool:
    """Return whether a row of claims is a statement of the Pythia paper, not of another one.

    The source of a claim of the paper is a section, table or figure; of others, it is an author.
    """
    return row["kind"] == "claim" and bool(_OF_THE_PAPER.match(row["source"]))


def paper_rows(study: str) -> list[dict[str, Any]]:
    """Return the claims of the paper in the recorded run of a study."""
    record = recorded_run(study).record or {"claims": []}
    return [row for row in record["claims"] if of_the_paper(row)]


def title_of(study: str) -> str:
    """Return the title of a study's notebook."""
    source = notebooks.read_notebook(ROOT / "notebooks" / f"{study}.ipynb")
    first = source.cells[0].source if source.cells else ""
    return first.partition("\n")[0].lstrip("# ").strip() or study


def in_order(contents: str) -> list[str]:
    """Return the studies in the order in which the text of a table of contents lists them."""
    places = {study: contents.find(f"studies/{study}\n") for study in RUNS}
    return sorted((study for study in RUNS if places[study] >= 0), key=places.__getitem__)


class Finding(SphinxDirective):
    """A finding of a study: title, small figure, and a text that may quote `recorded_` numbers.

    The argument names an entry of pythia_book.pages.index.FINDINGS.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"title": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        from pythia_book.pages import index

        name = self.arguments[0]
        if name not in index.FINDINGS:
            raise self.error(f"unknown finding {name!r}; choose one of {', '.join(index.FINDINGS)}")
        finding = index.FINDINGS[name]
        for text in unsupported(finding, recorded_run(finding.study)):
            _log.warning(
                "the recorded run no longer supports the finding %r: %s; reword the finding, or "
                "correct what it rests on",
                name,
                text,
                location=self.get_location(),
            )
        page = f"studies/{finding.study}"
        href = self.env.app.builder.get_relative_uri(self.env.docname, page)
        self.env.note_dependency(index.__file__)
        words = nodes.container(classes=["finding-text"])
        title = nodes.reference("", self.options["title"], internal=True, refuri=href)
        words += nodes.paragraph("", "", title, classes=["finding-title"])
        self.state.nested_parse(self.content, self.content_offset, words)
        drawing = finding.draw(recorded_run(finding.study))
        shown = picture(drawing._repr_mimebundle_(), f"finding-{name}", small=True)
        figure = nodes.container("", shown, classes=["finding-figure"])
        return [nodes.container("", words, figure, classes=["finding"])]


def unsupported(finding: Any, run: SelectedRun) -> list[str]:
    """List the verdicts that a finding rests on and that the recorded run no longer gives."""
    claims = {row["claim"]: row for row in (run.record or {"claims": []})["claims"]}
    problems = []
    for claim, side, verdict in finding.rests_on:
        test = (claims.get(claim) or {}).get(side)
        given = test["verdict"] if test else "not in the record"
        if given != verdict:
            problems.append(f"{claim} [{side}] is {given!r}, expected {verdict!r}")
    return problems


class PaperClaims(SphinxDirective):
    """The matrix of the paper's claims by study, on released models and ours, in recorded runs."""

    def run(self) -> list[nodes.Node]:
        contents = Path(self.config.external_toc_path)
        self.env.note_dependency(str(contents))
        parts = []
        for study in in_order(contents.read_text(encoding="utf-8")):
            rows = paper_rows(study)
            href = self.env.app.builder.get_relative_uri(self.env.docname, f"studies/{study}")
            if rows:
                yours = RUNS[study][0].kind == "yours"
                parts.append(_study_html(title_of(study), href, rows, yours))
        names = ("", *(claim_tables.WHOSE[side].capitalize() for side in SIDES))
        head = "".join(f"<span>{name}</span>" for name in names)
        text = (
            f'<div class="matrix"><div class="matrix-head">{head}</div>'
            f"{''.join(parts)}</div>{_legend_html()}"
        )
        return [nodes.raw("", text, format="html")]


def _counts(tests: Sequence[dict[str, Any]]) -> str:
    """Return counts of verdicts as words, e.g. "3 not resolved, 1 reproduced"."""
    counts = Counter(test["verdict"] for test in tests)
    return ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common()) or "no test"


_NO_MARK = '<span class="verdict-mark none"></span>'
"""Fills the place of a missing mark, so that the marks of a claim line up on both sides."""


def _mark(verdict: str) -> str:
    return f'<span class="verdict-mark {claim_tables.slug(verdict)}">{MARKS[verdict]}</span>'


def _marks(rows: Sequence[dict[str, Any]], side: str) -> str:
    """Return the marks of all verdicts on one side as one image with a text alternative."""
    tests = [row[side] for row in rows if row[side]]
    marks = "".join(_mark(row[side]["verdict"]) if row[side] else _NO_MARK for row in rows)
    whose = claim_tables.WHOSE[side].capitalize()
    label = as_html(f"{whose}: {_counts(tests)}")
    name = f'<span class="matrix-side" aria-hidden="true">{whose}</span>'
    image = f'<span role="img" aria-label="{label}">{marks}</span>'
    return f'<span class="matrix-cell">{name}{image}</span>'


def _study_html(title: str, href: str, rows: Sequence[dict[str, Any]], yours: bool) -> str:
    """Return a study's line of the matrix, which unfolds to its claims.

    Args:
        yours: whether the page of the study shows the reader's run.
    """
    marks = "".join(_marks(rows, side) for side in SIDES)
    summary = f'<summary><span class="matrix-study">{as_html(title)}</span>{marks}</summary>'
    lines = []
    for row in rows:
        cells = "".join(f'<span class="matrix-cell">{_verdict(row, side)}</span>' for side in SIDES)
        source = f'<span class="claim-source">({as_html(row["source"])})</span>'
        lines.append(
            f'<div class="matrix-row"><span>{as_html(row["claim"])} {source}</span>{cells}</div>'
        )
    more = f', <a href="{as_html(href)}#your-run-and-ours">your run and ours</a>' if yours else ""
    link = f'<p class="matrix-link"><a href="{as_html(href)}">Read the study</a>{more}</p>'
    return f"<details>{summary}{''.join(lines)}{link}</details>"


def _verdict(row: dict[str, Any], side: str) -> str:
    test = row[side]
    if not test:
        return ""
    whose = f'<span class="matrix-side">{claim_tables.WHOSE[side].capitalize()}</span>'
    verdict = test["verdict"]
    value = as_html(measured_text(test)) if test["value"] is not None else ""
    return f"{whose}{claim_tables.badge(verdict)} {value}"


def _legend_html() -> str:
    entries = " ".join(f"{_mark(verdict)} {words}" for verdict, words in LEGEND)
    return f'<p class="matrix-legend">{entries}.</p>'


class Outcome(SphinxDirective):
    """A sentence that counts the verdicts on statements of the paper, in the recorded runs."""

    def run(self) -> list[nodes.Node]:
        rows = [row for study in RUNS for row in paper_rows(study)]
        if not rows:
            return [nodes.paragraph("", "No study has been recorded yet.")]
        return [nodes.paragraph("", outcome(rows), classes=["outcome"])]


_OUTCOMES = {
    "released": {
        CONFIRMED: "confirmed", REFUTED: "contradicted", NOT_RESOLVED: "not resolved",
        NOT_TESTABLE: "not testable on them",
    },
    "ours": {
        REPRODUCED: "reproduced", CONTRADICTED: "contradicted", NOT_RESOLVED: "not resolved",
        NOT_TESTABLE: "not testable on it",
    },
}  # fmt: skip
"""Maps each side and verdict to its words in `outcome`."""


def outcome(rows: Sequence[dict[str, Any]]) -> str:
    """Count the verdicts in one sentence, on the released numbers and on ours."""
    texts = {}
    for side, words in _OUTCOMES.items():
        counts = Counter(row[side]["verdict"] for row in rows if row[side])
        parts = (f"{counts[verdict]} {word}" for verdict, word in words.items() if counts[verdict])
        texts[side] = f"{sum(counts.values())} times on {{}} ({', '.join(parts)})"
    return (
        f"We examine {len({row['claim'] for row in rows})} statements of the paper, some of which "
        f"it takes from related work: {texts['released'].format('the released numbers')} and "
        f"{texts['ours'].format('our miniature')}."
    )


class Cite(SphinxDirective):
    """BibTeX entries for the paper and for this book, from CITATION.cff."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(ROOT / "CITATION.cff"))
        book = citation(ROOT)
        text = f"{book.paper_bibtex}\n\n{book.bibtex}"
        return [nodes.literal_block(text, text, language="bibtex")]
