"""Terms of the glossary are found where prose uses them, and nowhere else."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from places import ROOT

nodes = pytest.importorskip("docutils.nodes", reason="the extra `book` is not installed")

from pythia_book.site import terms  # noqa: E402
from sphinx import addnodes  # noqa: E402

ENTRIES = re.findall(r"^(\S.*)\n  \S", (ROOT / "book/glossary.md").read_text("utf-8"), re.MULTILINE)
NAMES = [name for entry in ENTRIES for name in entry.split(", ")]
PATTERN = terms.pattern_of(NAMES)


def found(text: str) -> list[tuple[str, str]]:
    groups = ((each.lastgroup or "", each[0]) for each in PATTERN.finditer(text))
    return [(NAMES[int(group[1:])], words) for group, words in groups]


def test_every_form_is_of_a_term() -> None:
    assert terms.FORMS.keys() <= set(NAMES)
    assert len(NAMES) == len(set(NAMES)) and sorted(ENTRIES, key=str.lower) == ENTRIES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Forks of each run", [("fork", "Forks")]),
        ("an induction\nhead", [("induction head", "induction\nhead")]),
        ("by 0.3 nats per token", [("nat", "nats")]),
        ("four canaries", [("canary", "canaries")]),
        ("after Holm\u2019s correction", [("Holm's correction", "Holm\u2019s correction")]),
        ("95\xa0% intervals over seeds", [("95 % interval", "95\xa0% intervals")]),
        ("by step 3,000", [("step", "step")]),
        ("the standard text", [("standard", "standard text")]),
        ("CrowS-Pairs and n-grams", [("CrowS-Pairs", "CrowS-Pairs"), ("n-gram", "n-grams")]),
    ],
)
def test_terms_are_found(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "two standard deviations",  # an ordinary word
        "the next step is to shuffle",
        "this checks that all runs agree",
        "row by row",
        "it traces bias to the data",
        "a Pythia in miniature",
        "We planted sentences that",
        "simulations in the test suite",
        "pitchforks, donations, harms",  # part of another word
        "a fork-like file",
    ],
)
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert found(text) == []


def glossary() -> nodes.document:
    """A glossary with two terms, as Sphinx reads it."""
    document = nodes.document(None, None)
    items = nodes.definition_list()
    for name in ("fork", "nat"):
        definition = nodes.definition("", nodes.paragraph("", f"What a {name} is."))
        items += nodes.definition_list_item(
            "", nodes.term("", name, ids=[f"term-{name}"]), definition
        )
    document += items
    return document


def test_the_first_use_in_a_section_becomes_a_link() -> None:
    page = nodes.document(None, None)
    title = nodes.title("", "A fork")
    sections = [
        nodes.section("", nodes.title("", "nats"), nodes.paragraph("", text))
        for text in ("One fork, two forks.", "A fork costs nats.")
    ]
    code = nodes.paragraph("", "", nodes.literal("", "fork"), nodes.reference("", "a nat"))
    page += nodes.section("", title, code, nodes.paragraph("", "No term."), *sections)
    env = SimpleNamespace(found_docs={"glossary"}, get_doctree=lambda name: glossary())
    builder = SimpleNamespace(
        format="html", get_relative_uri=lambda page, other: "../glossary.html"
    )
    terms.mark_terms(SimpleNamespace(env=env, builder=builder), page, "studies/one")
    links = [link for link in page.findall(nodes.reference) if terms.CLASS in link["classes"]]
    assert [link.astext() for link in links] == ["fork", "fork", "nats"]
    assert links[2]["refuri"] == "../glossary.html#term-nat"
    assert [each.astext() for each in sections] == [
        "nats\n\nOne fork, two forks.",
        "nats\n\nA fork costs nats.",
    ]


def test_a_definition_has_all_its_names_and_the_words_of_its_links() -> None:
    def link(words: str, **to: object) -> nodes.Element:
        return addnodes.pending_xref("", nodes.inline("", words), **to)

    document = nodes.document(None, None)
    paragraph = nodes.paragraph("", "Two halves ")
    paragraph += link("smith2020", refdomain="cite", reftype="p")
    paragraph += nodes.Text(". See ")
    paragraph += link("rule", refdomain="std", reftype="ref", reftarget="rule", refexplicit=False)
    paragraph += nodes.Text(" and ")
    paragraph += link("that", refdomain="std", reftype="ref", reftarget="rule", refexplicit=True)
    term = nodes.term("", "deduplicated, standard", ids=["term-both"])
    item = nodes.definition_list_item("", term, nodes.definition("", paragraph))
    document += nodes.definition_list("", item)
    labels = {"rule": ("method", "rule", "How verdicts are given")}
    env = SimpleNamespace(get_doctree=lambda name: document, domaindata={"std": {"labels": labels}})
    builder = SimpleNamespace(render_partial=lambda node: {"fragment": node.astext()})
    page = nodes.document(None, None)
    page += nodes.reference("", "", refuri="glossary.html#term-both", classes=[terms.CLASS])
    context = {"body": "<p></p>"}
    terms.add_definitions(SimpleNamespace(env=env, builder=builder), "one", "", context, page)
    assert context["body"] == (
        '<p></p><template id="definitions"><div data-term="term-both">'
        "<b>deduplicated, standard</b> "
        "Two halves. See How verdicts are given and that</div></template>"
    )
