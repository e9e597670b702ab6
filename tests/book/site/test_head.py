"""What search engines and link previews read about a page."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from places import ROOT
from pythia_book.site import head


def paragraph(text: str, *classes: str) -> nodes.paragraph:
    return nodes.paragraph("", text, classes=list(classes))


def page(*children: nodes.Node) -> nodes.document:
    from docutils.utils import new_document

    document = new_document("page")
    document += nodes.section("", *children)
    return document


def test_a_description_is_the_abstract_else_the_first_paragraph() -> None:
    banner = nodes.container("", paragraph("Recorded run."), classes=["run-unshown"])
    abstract = paragraph("Abstract. What is read is learned.")
    assert head.description_of(page(banner, paragraph("First."), abstract)) == (
        "What is read is learned."
    )
    assert head.description_of(page(banner, paragraph("First."), paragraph("Second."))) == "First."
    assert head.description_of(page(banner)) == ""


def test_a_description_has_no_citations() -> None:
    cited = paragraph("Pythia ")
    cited += nodes.inline("", "[A et al., 2023]", classes=["bibtex-citation"])
    cited += nodes.Text(" is a suite")
    cited += nodes.inline("", "[B, 2020]", classes=["bibtex-citation"])
    cited += nodes.Text(".")
    assert head.description_of(page(cited)) == "Pythia is a suite."


@pytest.mark.parametrize(
    ("text", "shortened"),
    [
        ("Two  words.\nMore.", "Two words. More."),
        ("One sentence that is long. " + "x " * 20, "One sentence that is long."),
        ("Short. " + "word " * 20, "Short. word word word word word word\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_long_texts_end_at_a_sentence_or_a_word(text: str, shortened: str) -> None:
    assert head.shorten(text, 40) == shortened
    assert len(shortened) <= 40


def context_of(base: str, name: str = "method", **given: object) -> dict:
    config = SimpleNamespace(
        html_title="The book", root_doc="index", html_baseurl=base, html_theme_options={}
    )
    context = {"title": "A &amp; <em>B</em>", "metatags": "", **given}
    head.add_head(SimpleNamespace(config=config), name, "page.html", context, None)
    return context


def test_addresses_appear_only_if_the_site_has_one() -> None:
    without = context_of("")["head"]
    assert not any("http" in content for _, content in [*without.named, *without.properties])
    there = context_of("https://book.example/", pageurl="https://book.example/method.html")["head"]
    assert ("og:url", "https://book.example/method.html") in there.properties
    assert ("og:image", "https://book.example/_static/card.png") in there.properties
    assert ("twitter:card", "summary_large_image") in there.named


def test_titles_are_plain_and_the_front_page_has_one() -> None:
    assert context_of("")["head"].title == "A & B \N{EM DASH} The book"
    assert context_of("", "index")["head"].title == "The book"


def test_an_author_may_write_the_description() -> None:
    own = '<meta name="viewport" content="x" /><meta name="description" content="Mine." />'
    context = context_of("", metatags=own)
    assert "viewport" not in context["metatags"] and "Mine." in context["metatags"]
    assert "description" not in dict(context["head"].named)


THEIRS, OURS = "https://theirs.example/a/b", "https://ours.example/c/d"


@pytest.mark.parametrize(
    ("settings", "environment", "url", "branch"),
    [
        ("title: A book", {}, None, None),
        (f"repository: {{url: {OURS}}}", {}, OURS, None),
        ("title: A book", {"PYTHIA_BOOK_REPOSITORY": f"{OURS}/"}, OURS, "main"),
        (
            f"repository: {{url: {THEIRS}}}",
            {"PYTHIA_BOOK_REPOSITORY": OURS, "PYTHIA_BOOK_BRANCH": "mine"},
            OURS,
            "mine",
        ),
    ],
)
def test_the_repository_is_the_readers(
    settings: str,
    environment: dict[str, str],
    url: str | None,
    branch: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for part in ("CITATION.cff", "book/references.bib"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / part, tmp_path / part)
    monkeypatch.setattr(head, "ROOT", tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "_config.yml").write_text(settings, encoding="utf-8")
    options = {"repository_url": THEIRS, "repository_branch": "master"}
    config = SimpleNamespace(html_theme_options=options, author="", html_baseurl="")
    head.identify(SimpleNamespace(), config)
    assert config.author and options.get("repository_url") == url
    assert options.get("repository_branch") == branch
    assert ("use_edit_page_button" in options) == bool(environment)


def test_the_address_of_the_site_can_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHIA_BOOK_URL", "https://ours.example/book")
    config = SimpleNamespace(html_theme_options={}, author="", html_baseurl="")
    head.identify(SimpleNamespace(), config)
    assert config.html_baseurl == "https://ours.example/book"
