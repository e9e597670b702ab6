"""Claims as a table: what is shown first, what is one click behind, and that all of it is text."""

from __future__ import annotations

import html.parser
import re

import pytest
from places import ROOT
from pythia_book import claim_tables, verdicts
from pythia_book.records import measured_text
from pythia_book.stats import Estimate
from pythia_book.style import ClaimsTable
from pythia_book.verdicts import Claim

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too'"


def estimate(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, low, high, 100, 5, 4.0)


CLAIMS = verdicts.judge(
    [
        Claim(
            "It rises.",
            "section 3.1",
            quote="it goes up",
            ours=verdicts.rises(
                estimate(1.234, 0.41, 2.04), "points", "5 seeds", note="from 1 to 2"
            ),
            released=verdicts.within(estimate(0.2, -1, 1.4), "points", "8 models", margin=0.5),
        ),
        Claim("It cannot be told.", "Figure 2", ours=verdicts.untestable("one seed")),
        Claim("The hashes agree.", "hashes", ours=verdicts.passes(True), kind="check"),
    ]
)


class Cells(html.parser.HTMLParser):
    """The text of every cell, without what is folded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._folded = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._folded += tag == "ul"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._folded -= tag == "ul"

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and not self._folded:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")


def test_a_row_has_both_kinds_of_models_and_a_verdict_for_each() -> None:
    head, rises, unknown, *_ = Cells(claim_tables.claims_html(CLAIMS)).rows
    assert head == ["Claim", "Released models", "Our miniature", "Verdict"]
    assert rises[0].startswith("It rises. (section 3.1)")
    assert rises[1] == "0.2 points (95 % CI \N{MINUS SIGN}1.0 to 1.4)"
    assert rises[2] == "1.2 points (95 % CI 0.4 to 2.0)"
    assert re.fullmatch(
        "released models not resolvedthe interval extends beyond ±0.5 points; .*"
        "our miniature reproduced",
        rises[3],
    )
    dash = "\N{EN DASH}"
    assert unknown[1:3] == [dash, dash] and unknown[3].startswith("not testable hereone seed")


def test_details_are_one_click_behind_and_checks_apart() -> None:
    text = claim_tables.claims_html(CLAIMS, link="method.html#verdicts")
    folded = re.findall(r"<details><summary>Details</summary><ul>(.*?)</ul>", text)
    assert len(folded) == 1
    for part in ("<q>it goes up</q>", "1.234 [0.41, 2.04] points", "5 seeds", "above 0", "p = "):
        assert part in folded[0]
    assert "from 1 to 2" in folded[0]
    first, second = text.split('<details class="claims-of"><summary>1 check</summary>')
    assert "The hashes agree." not in first and "The hashes agree." in second
    assert html.escape(claim_tables.RULE) in second and 'href="method.html#verdicts"' in second
    label = (ROOT / "book" / "method.md").read_text(encoding="utf-8")
    assert "\n(verdicts)=\n## How verdicts are given\n" in label


def test_the_rule_of_intervals_is_said_only_where_one_is_judged() -> None:
    exact = [row for row in CLAIMS if row["kind"] == "check"]
    assert html.escape(claim_tables.RULE) not in claim_tables.claims_html(exact, "A note.")


def test_every_text_is_escaped() -> None:
    test = dict.fromkeys(CLAIMS[0]["ours"], HOSTILE) | {"value": 1.0, "low": 0.0, "high": 2.0}
    test |= {"p": 0.5, "bound": None, "form": None}
    row = dict.fromkeys(CLAIMS[0], HOSTILE) | {"released": test, "ours": test}
    for kind in ("claim", "check"):
        shown = ClaimsTable([row | {"kind": kind}], HOSTILE)._repr_html_()
        assert "<script>" not in shown and "verdict-<" not in shown
        assert '"quoted"' not in shown and shown.count("&lt;script&gt;") > 8


@pytest.mark.parametrize(
    ("papers", "others", "words"),
    [(2, ["check"], "2 claims, 1 check"), (1, [], "1 claim"), (0, ["check"] * 3, "3 checks"),
     (1, ["premise", "check"], "1 claim, 2 premises and checks"), (0, ["premise"], "1 premise"),
     (1, ["hypothesis"] * 2, "2 hypotheses, 1 claim"), (0, ["hypothesis"], "1 hypothesis")],
)  # fmt: skip
def test_counts_in_words(papers: int, others: list[str], words: str) -> None:
    rows = [{"kind": kind} for kind in ["claim"] * papers + others]
    assert claim_tables.counted(rows) == words


def test_values_in_words() -> None:
    gap = "\N{NO-BREAK SPACE}"
    known = {"value": 0.5, "low": None, "high": None, "unit": "%"}
    assert measured_text(known) == f"0.5{gap}%"
    assert measured_text(known | {"value": 12345, "unit": ""}) == "12,345"
    assert measured_text(None) == measured_text(known | {"value": None}) == "\N{EN DASH}"


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(part * c for part, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("theme", "page"), [("light", "#ffffff"), ("dark", "#14181e")])
def test_every_verdict_has_a_color_that_can_be_read(theme: str, page: str) -> None:
    sheet = (ROOT / "book" / "_static" / "paper.css").read_text(encoding="utf-8")
    colors = dict(
        re.findall(
            r"--(\w+): (#\w{6});", sheet.partition(f'[data-theme="{theme}"]')[2].partition("}")[0]
        )
    )
    for verdict in verdicts.VERDICTS:
        rule = re.search(rf"\.{claim_tables.slug(verdict)}\b[^{{]*{{ color: var\(--(\w+)\)", sheet)
        assert rule, f"no color for {verdict}"
        bright, dim = sorted((luminance(colors[rule[1]]), luminance(page)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (verdict, theme)
