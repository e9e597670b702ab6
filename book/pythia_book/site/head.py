"""Writes metadata into each page for search engines, link previews and reference managers.

Titles and authors come from CITATION.cff. Absolute addresses appear only if the site's own address
is known, and a link to the repository only if the repository's address is known. Both addresses
come from the environment (the variables are in pythia_book.site.citation), or from `html: baseurl`
and `repository: url` in _config.yml.
"""

from __future__ import annotations

import html
import os
import re
from dataclasses import dataclass, field
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from pythia_book.site.citation import REPOSITORY, SITE, citation, repository
from pythia_book.site.staging import ROOT

CARD = "_static/card.png"
"""The image of link previews, relative to the site (pythia_book.site.card)."""
LONGEST = 160
"""How many characters of a description search engines show at most."""
_APART = {"byline", "run-unshown", "pythia-note", "finding-text", "admonition"}
"""CSS classes of containers and paragraphs that say nothing about a page's subject."""


@dataclass(frozen=True)
class Head:
    """The title and the `<meta>` elements of a page; texts are not escaped yet."""

    title: str
    named: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of the attributes `name` and `content`."""
    properties: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of the attributes `property` and `content`."""


def identify(app: Sphinx, config: Config) -> None:
    """Take the author from CITATION.cff, and the addresses from the environment or _config.yml.

    If the environment names a repository, each page has buttons to its source and to a new issue.
    """
    config.author = ", ".join(citation(ROOT).authors)
    config.html_baseurl = os.environ.get(SITE) or config.html_baseurl
    own, options = repository(ROOT), config.html_theme_options
    for setting in ("url", "branch"):
        options.pop(f"repository_{setting}", None)
        if own.get(setting):
            options[f"repository_{setting}"] = own[setting]
    if os.environ.get(REPOSITORY):
        options |= {f"use_{kind}_button": True for kind in ("repository", "edit_page", "issues")}
        options["path_to_docs"] = "book"


def shorten(text: str, longest: int = LONGEST) -> str:
    """Shorten a text to whole sentences if that leaves at least half, else to whole words."""
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    ends = [end.end() for end in re.finditer(r"[.?!](?= )", text[: longest + 1])]
    if ends and ends[-1] >= longest / 2:
        return text[: ends[-1]]
    return text[: longest - 1].rpartition(" ")[0].rstrip(",;:") + "\N{HORIZONTAL ELLIPSIS}"


def description_of(doctree: nodes.document) -> str:
    """Return the abstract of a page, or else its first paragraph, as plain text without citations;
    "" if there is none."""
    description = ""
    for paragraph in doctree.findall(nodes.paragraph):
        above, classes = paragraph.parent, set(paragraph.get("classes", []))
        while above is not None:
            classes |= set(above.get("classes", []))
            above = above.parent
        inside_table = isinstance(paragraph.parent, nodes.entry | nodes.list_item)
        if classes & _APART or inside_table:
            continue
        text = _plain(paragraph)
        if text.startswith("Abstract."):
            return shorten(text.removeprefix("Abstract.").strip())
        description = description or shorten(text)
    return description


def _plain(node: nodes.Node) -> str:
    """Return the text of a node without citations and the spaces that they leave behind."""
    if isinstance(node, nodes.Text):
        return node.astext()
    if isinstance(node, nodes.Element) and "bibtex-citation" in node.get("classes", []):
        return ""
    return re.sub(r"\s+(?=[.,;:)])", "", "".join(_plain(child) for child in node.children))


def add_head(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Give the page's template its metadata, as `head`, `citation` and `repository`."""
    book, site = citation(ROOT), app.config.html_title
    name = html.unescape(re.sub(r"<[^>]*>", "", context.get("title") or "")) or site
    front = pagename == app.config.root_doc
    title = site if front else f"{name} \N{EM DASH} {site}"
    about = description_of(doctree) if doctree is not None else ""
    about = about or f"{name}: {site}"
    tags = context.get("metatags") or ""
    # the theme's frame has a viewport already, and an author's own description goes first
    context["metatags"] = tags = re.sub(r'\s*<meta name="viewport"[^>]*>', "", tags)
    named = [] if 'name="description"' in tags else [("description", about)]
    named += [("citation_title", book.title if front else name)]
    named += [("citation_author", author) for author in book.authors]
    named += [("citation_publication_date", book.date.replace("-", "/"))]
    if not front:
        named += [("citation_inbook_title", book.title)]
    properties = [
        ("og:type", "website" if front else "article"),
        ("og:site_name", site),
        ("og:title", site if front else name),
        ("og:description", about),
    ]
    card = "summary"
    if base := app.config.html_baseurl:
        card = "summary_large_image"
        image = f"{base.rstrip('/')}/{CARD}"
        properties += [
            ("og:url", context.get("pageurl") or base),
            ("og:image", image),
            ("og:image:width", "1200"),
            ("og:image:height", "630"),
            ("og:image:alt", f"{site}: a figure of the gender-bias study"),
        ]
    named += [("twitter:card", card)]  # the rest of a card is that of og:...
    context["head"] = Head(title, named, properties)
    context["citation"] = book
    context["repository"] = app.config.html_theme_options.get("repository_url")
