"""The front page: its findings follow from the records, its texts stay texts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from places import ROOT
from pythia_book.pages import index

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from pythia_book.site import front
from pythia_book.site.runs import SelectedRun, select_runs
from pythia_book.verdicts import VERDICTS


@pytest.fixture(params=index.FINDINGS)
def finding(request: pytest.FixtureRequest) -> index.Finding:
    return index.FINDINGS[request.param]


def recorded(study: str) -> SelectedRun:
    return select_runs(ROOT, None, study)[0]


def test_each_finding_follows_from_its_record(finding: index.Finding) -> None:
    assert finding.rests_on and front.unsupported(finding, recorded(finding.study)) == []


def test_a_changed_verdict_takes_the_ground_from_a_finding(finding: index.Finding) -> None:
    run = recorded(finding.study)
    record = json.loads(json.dumps(run.record))
    claim, side, _ = finding.rests_on[0]
    row = next(row for row in record["claims"] if row["claim"] == claim)
    row[side]["verdict"] = "contradicted"
    changed = SelectedRun(finding.study, "recorded", record=record)
    assert len(front.unsupported(finding, changed)) == 1
    assert len(front.unsupported(finding, SelectedRun(finding.study, "unrun"))) == len(
        finding.rests_on
    )


def test_figures_show_the_numbers_of_the_record_or_say_that_there_are_none(
    finding: index.Finding,
) -> None:
    assert re.search(r"\d", finding.draw(recorded(finding.study)).description)
    assert finding.draw(SelectedRun(finding.study, "unrun")).description == "not run yet"


def test_every_number_of_the_page_is_a_recorded_one() -> None:
    text = (ROOT / "book" / "index.md").read_text(encoding="utf-8")
    names = re.findall(r"\{\{\s*(\w+)\s*\}\}", text)
    assert names and all(name.startswith(("recorded_", "book_")) for name in names)
    findings = text[text.index("## What we found") : text.index("## The paper's claims")]
    prose = re.sub(r"\{\{.*?\}\}", "", findings)
    prose = re.sub(r"95 %|margin of 15 %|last 21 % of training|section [\d.]+", "", prose)
    assert not re.search(r"\d", prose), "numbers come from records"


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("claim", "section 3.1, Figure 2", True),
        ("claim", "Appendix D; Table 5", True),
        ("claim", "sections 2.4 to 2.6", True),
        ("claim", "abstract; section 2.1", True),
        ("claim", "Carlini et al. 2022, abstract", False),
        ("claim", "Biderman et al. 2023b, section 4 and Table 2", False),
        ("hypothesis", "this book, stated after a pilot", False),
        ("check", "section 1", False),
    ],
)
def test_which_claims_are_the_papers(kind: str, source: str, expected: bool) -> None:
    assert front.of_the_paper({"kind": kind, "source": source}) is expected


def test_the_matrix_escapes_and_has_a_text_for_its_marks() -> None:
    test: dict[str, Any] = {
        "value": 1.0,
        "low": 0.5,
        "high": 1.5,
        "unit": "<i>",
        "verdict": "holds",
    }
    row = {"claim": "<script>", "source": "section <b>", "ours": test, "released": None}
    text = front._study_html("<h1>", "x.html?a=1&b='\"", [row], yours=True)
    assert "<script>" not in text and "<h1>" not in text and "<i>" not in text
    assert 'aria-label="Our miniature: 1 holds"' in text and "your run and ours" in text
    assert set(front.MARKS) == set(VERDICTS)


def test_the_outcome_counts_what_the_recorded_runs_say() -> None:
    def row(claim: str, released: str | None, ours: str | None) -> dict[str, Any]:
        sides = {"released": released, "ours": ours}
        return {"claim": claim, **{s: v and {"verdict": v} for s, v in sides.items()}}

    text = front.outcome(
        [
            row("a", "confirmed on released numbers", "reproduced"),
            row("a", None, "reproduced"),
            row("b", "not resolved", "not testable here"),
        ]
    )
    assert text == (
        "We examine 2 statements of the paper, some of which it takes from related work: 2 times "
        "on the released numbers (1 confirmed, 1 not resolved) and 3 times on our miniature (2 "
        "reproduced, 1 not testable on it)."
    )
