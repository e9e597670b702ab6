"""Shows the claims of a study: as HTML on pages and in notebooks, as a pandas frame in terminals.

A row has the claim, its source, the results on the released models and on our models, and the
verdict. In HTML, "Details" expands to show the paper's words, exact numbers and tests. This book's
hypotheses have a table of their own. Premises and checks share another, which is collapsed at
first.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pythia_book.records import measured_text
from pythia_book.verdicts import SIDES
from pythia_core.errors import count_of

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
"""A claim as a record stores it (pythia_book.verdicts.judge)."""

RULE = "Every verdict from a 95 % interval follows one rule, with Holm's correction."
"""Shown below tables that have such a verdict."""
RULE_LINK = "How verdicts are given"
HEADER = ("Claim", "Released models", "Our miniature", "Verdict")
WHOSE = {"released": "released models", "ours": "our miniature"}
_FORMS = {"above": "above {}", "below": "below {}", "within": "between \N{MINUS SIGN}{} and {}"}


def slug(verdict: str) -> str:
    """Return the CSS class of a verdict."""
    return "verdict-" + verdict.replace(" ", "-")


def parts(claims: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Split rows into hypotheses of this book, claims of papers, and premises and checks."""
    hypotheses, papers = ([r for r in claims if r["kind"] == k] for k in ("hypothesis", "claim"))
    return hypotheses, papers, [row for row in claims if row["kind"] in ("premise", "check")]


PLURALS = {
    "hypothesis": "hypotheses", "claim": "claims", "premise": "premises", "check": "checks",
}  # fmt: skip


def counted(rows: Sequence[Row]) -> str:
    """Return a count of the rows, e.g. "3 claims, 1 check" or "2 claims, 4 premises and checks"."""
    kinds = {kind: sum(row["kind"] == kind for row in rows) for kind in PLURALS}
    kinds = {kind: n for kind, n in kinds.items() if n}
    both = kinds.keys() & {"premise", "check"}
    texts = [
        count_of(n, kind, PLURALS[kind])
        for kind, n in kinds.items()
        if len(both) < 2 or kind not in both
    ]
    if len(both) == 2:
        texts.append(f"{kinds['premise'] + kinds['check']} premises and checks")
    return ", ".join(texts)


def claims_html(claims: Sequence[Row], note: str = "", link: str = "") -> str:
    """Return the claims of a study as HTML tables, with every text escaped.

    Args:
        note: a sentence below the tables.
        link: URL of the page that explains verdicts; empty: no link.
    """
    hypotheses, papers, others = parts(claims)
    text = (
        _table(hypotheses, "Hypothesis, with what was known when it was stated")
        if hypotheses
        else ""
    )
    text += _table(papers, "Claim") if papers else ""
    if others:
        table = _table(others, "Premise or check")
        text += f'<details class="claims-of"><summary>{counted(others)}</summary>{table}</details>'
    rule = f' <a href="{as_html(link)}">{RULE_LINK}</a>' if link else ""
    tests = [row[side] for row in claims for side in SIDES if row[side]]
    corrected = any(test["p"] is not None for test in tests)
    words = as_html(" ".join(filter(None, (note, RULE if corrected else ""))))
    return f'<div>{text}<p class="verdict-rule">{words}{rule}</p></div>'


def claims_frame(claims: Sequence[Row]) -> pd.DataFrame:
    """Return the claims as plain text, one row per claim, with the columns HEADER."""
    import pandas as pd

    rows = [
        (
            f"{row['claim']} ({row['source']})",
            measured_text(row["released"]),
            measured_text(row["ours"]),
            "; ".join(f"{WHOSE[side]}: {row[side]['verdict']}" for side in SIDES if row[side]),
        )
        for row in claims
    ]
    return pd.DataFrame(rows, columns=list(HEADER))


def as_html(value: object) -> str:
    """Escape a value for HTML text and for quoted attributes."""
    return html.escape(str(value))


def badge(verdict: str) -> str:
    """Return a verdict as HTML."""
    return f'<span class="verdict {as_html(slug(verdict))}">{as_html(verdict)}</span>'


def _table(rows: Sequence[Row], first: str) -> str:
    head = "".join(f"<th>{as_html(name)}</th>" for name in (first, *HEADER[1:]))
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in _cells(row))}</tr>" for row in rows)
    return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _cells(row: Row) -> list[str]:
    source = f'<span class="claim-source">({as_html(row["source"])})</span>'
    lines = "".join(f"<li>{line}</li>" for line in _details(row))
    details = f"<details><summary>Details</summary><ul>{lines}</ul></details>" if lines else ""
    given = [side for side in SIDES if row[side]]
    verdicts = ""
    for side in given:
        verdict, reason = row[side]["verdict"], row[side]["reason"]
        whose = f'<span class="claim-side">{WHOSE[side]}</span> ' if len(given) > 1 else ""
        verdicts += f"<p>{whose}{badge(verdict)}</p>"
        verdicts += f'<p class="claim-reason">{as_html(reason)}</p>' if reason else ""
    measured = [f"<p>{as_html(measured_text(row[side]))}</p>" for side in SIDES]
    return [f"<p>{as_html(row['claim'])} {source}</p>{details}", *measured, verdicts]


def _details(row: Row) -> list[str]:
    """Return the lines of HTML that appear when a reader opens the "Details" of a claim."""
    lines = []
    if row["quote"]:
        lines.append(f"In the words of the source: <q>{as_html(row['quote'])}</q>")
    for side in SIDES:
        facts = _facts(row[side]) if row[side] else []
        if facts:
            lines.append(as_html(f"{WHOSE[side].capitalize()}: {'; '.join(facts)}"))
    return lines


def _facts(test: Row) -> list[str]:
    facts = []
    if test["value"] is not None:
        numbers = f"{test['value']:.6g}"
        if all(test[end] is not None and math.isfinite(test[end]) for end in ("low", "high")):
            numbers += f" [{test['low']:.6g}, {test['high']:.6g}]"
        facts.append(f"{numbers} {test['unit']}".strip())
    if test["units"]:
        facts.append(test["units"])
    if test["form"] in _FORMS and test["bound"] is not None:
        bound = f"{test['bound']:.4g}"
        facts.append(f"tested: {_FORMS[test['form']].format(bound, bound)}")
    if test["p"] is not None:
        p = "< 0.001" if test["p"] < 0.001 else f"= {test['p']:.2g}"
        facts.append(f"Holm-adjusted p {p}")
    if test["note"]:
        facts.append(test["note"])
    return facts
