"""Makes one PDF of the built site: all pages in the order of the contents, printed by Chromium.

The articles of the pages become one document. Scripts do not run, so interactive parts are shown as
the pictures that they replace; figures stay vector graphics, and links between pages lead to pages
of the PDF. The document is printed twice: the first print gives the page numbers of the contents.
"""

from __future__ import annotations

import html
import itertools
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from pythia_book.site.citation import citation
from pythia_book.site.staging import ROOT
from pythia_core.errors import ConfigError, DataError, MissingDependencyError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

FILE = "pythia-book.pdf"
"""The name of the PDF in the folder of the site."""
LINK = "<!-- pdf -->"
"""Marks where each page links to the PDF once it exists."""
BROWSERS = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chrome")
STYLE = Path(__file__).with_name("pdf.css")
_LEFT_OUT = (
    "script, style, noscript, button, .headerlink, .page-code, .figure-tools .tools, "
    ".figure-tools .command, .value-tip, .book-pdf"
)
"""What makes no sense on paper, as a CSS selector."""


@dataclass(frozen=True)
class Entry:
    """A line of the contents."""

    level: int
    """0 for a part of the book, 1 for a page, 2 for a section of a page."""
    title: str
    target: str = ""
    """The id, in the document of the whole book, of what the entry names; "" for a part."""
    page: str = ""
    """For a page of the site: its path without the suffix, e.g. "studies/suite"."""


@dataclass(frozen=True)
class Book:
    """The document of the whole book, except for the page numbers in its contents."""

    title: str
    address: str
    """Where the site is published; "" if its configuration does not say so."""
    styles: str
    articles: str
    entries: list[Entry]

    def html(self, pages: Mapping[str, int]) -> str:
        """Return the document as HTML: title page, contents, and all articles.

        Args:
            pages: page numbers, by the targets of entries.
        """
        running = "".join(
            f"@page {each.target} {{ @top-center {{ content: {_css_string(each.title)} }} }}\n"
            f"#{each.target} {{ page: {each.target} }}\n"
            for each in self.entries
            if each.level == 1
        )
        return (
            '<!DOCTYPE html><html lang="en" data-theme="light" data-mode="light"><head>'
            f'<meta charset="utf-8"><title>{html.escape(self.title)}</title>{self.styles}'
            f"<style>{STYLE.read_text(encoding='utf-8')}\n{running}</style></head>"
            f'<body><main class="bd-main bd-content book">{self._title_page()}'
            f"{self._contents(pages)}{self.articles}</main></body></html>"
        )

    def _title_page(self) -> str:
        book = citation(ROOT)
        lines = [", ".join(book.authors), f"Version {book.version}", f"License: {book.license}"]
        text = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        where = html.escape(self.address)
        text += f'<p><a href="{where}">{where}</a></p>' if where else ""
        title = html.escape(self.title)
        return f'<header class="title-page"><p class="book-title">{title}</p>{text}</header>'

    def _contents(self, pages: Mapping[str, int]) -> str:
        lines = []
        for each in self.entries:
            title, number = html.escape(each.title), pages.get(each.target, "")
            if each.target:
                title = f'<a href="#{each.target}">{title}</a><span class="page">{number}</span>'
            lines.append(f'<p class="level-{each.level}">{title}</p>')
        return f'<nav class="book-contents"><h1>Contents</h1><div>{"".join(lines)}</div></nav>'


# --- the document ----------------------------------------------------------------------------


def contents(site: Path) -> list[Entry]:
    """Return the parts and pages of a built site, as the contents of its front page list them.

    Raises:
        ConfigError: there is no site in the folder.
        DataError: the front page has no contents.
    """
    sidebar = _parsed(site / "index.html").select_one("nav.bd-links")
    entries = []
    for each in sidebar.select(".caption-text, li.toctree-l1 > a") if sidebar else []:
        title = " ".join(each.get_text().split())
        target = str(each.get("href", ""))
        if each.name != "a":
            entries.append(Entry(0, title))
        elif target == "#" or target.endswith(".html"):
            page = "index" if target == "#" else target.removesuffix(".html")
            entries.append(Entry(1, title, _slug(page), page))
    if not entries:
        raise DataError(f"{site / 'index.html'} has no contents; build the site again")
    return entries


def _parsed(path: Path) -> BeautifulSoup:
    from bs4 import BeautifulSoup

    try:
        return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path.name} in {path.parent}; run `jupyter-book build book/` first"
        ) from None


def _slug(page: str) -> str:
    """Return the id of a page in the document, with which all ids in the page begin."""
    return page.replace("/", "-")


def assemble(site: Path) -> Book:
    """Read a built site as one document.

    Raises:
        ConfigError: there is no site in the folder.
        DataError: a page has no article, or the front page no contents.
    """
    site = site.resolve()
    listed = contents(site)
    known = {each.page for each in listed}
    front = _parsed(site / "index.html")
    canonical = front.select_one("link[rel=canonical]")
    address = urljoin(str(canonical["href"]), ".") if canonical else ""
    name = front.select_one('meta[property="og:site_name"]')
    sheets = ["site.css", *(f"{each.page}.css" for each in listed if each.page)]
    paths = [site / "_static" / sheet for sheet in sheets]
    links = [f'<link rel="stylesheet" href="{p.as_uri()}">' for p in paths if p.is_file()]
    entries, articles = [], []
    for each in listed:
        entries.append(each)
        if each.page:
            body = article(site, each.page, known, address)
            entries += sections(body)
            articles.append(str(body))
    title = str(name["content"]) if name else "The book"
    return Book(title, address, "".join(links), "\n".join(articles), entries)


def article(site: Path, page: str, known: set[str], address: str = "") -> Tag:
    """Return the article of a page, changed to be a part of the document of the whole book.

    Folds are open, except in the matrix of claims, whose rows are on other pages. Details of claims
    get rows of their own. Ids get the page's name as a prefix, and links to other pages lead to
    their parts. Links to files of the site lead to `address`; without one, only their text stays.

    Args:
        known: the names of all pages of the document.
        address: where the site is published.

    Raises:
        DataError: the page has no article.
    """
    path = site / f"{page}.html"
    soup = _parsed(path)
    body = soup.select_one("article.bd-article")
    if body is None:
        raise DataError(f"{path} has no article; build the site again")
    for each in body.select(_LEFT_OUT):
        each.decompose()
    for each in body.select("table.claims td > details"):
        row = each.find_parent("tr")
        wide = soup.new_tag("td", colspan=str(len(row.find_all("td", recursive=False))))
        below = soup.new_tag("tr", attrs={"class": "claim-details"})
        row.insert_after(below)
        below.append(wide)
        wide.extend([child for child in each.contents if child.name != "summary"])
        each.decompose()
    for each in body.select("details:not(.matrix details)"):
        each["open"] = ""
    for each in body.find_all(id=True):
        if not each.find_parent("svg"):
            each["id"] = f"{_slug(page)}--{each['id']}"
    for each in body.find_all("img", src=True):
        each["src"] = urljoin(path.as_uri(), str(each["src"]))
    for each in body.find_all("a", href=True):
        _retarget(each, page, known, address)
    body.name, body["class"], body["id"] = "section", ["bd-article", "chapter"], _slug(page)
    return body


def _retarget(link: Tag, page: str, known: set[str], address: str) -> None:
    """Make a link lead to a part of the document, to another site, or nowhere."""
    target = urlsplit(str(link["href"]))
    if target.scheme or target.netloc:
        return
    inside = urlsplit(urljoin(f"/{page}.html", target.path)).path.lstrip("/")
    name = unquote(inside).removesuffix(".html")
    if name in known:
        link["href"] = f"#{_slug(name)}" + (f"--{target.fragment}" if target.fragment else "")
    elif address:
        link["href"] = urljoin(address.rstrip("/") + "/", inside)
    else:
        link.unwrap()


def sections(body: Tag) -> list[Entry]:
    """Return the sections of an article."""
    headings = [h for h in body.select("section[id] > h2") if h.parent is not None]
    return [Entry(2, " ".join(h.get_text().split()), str(h.parent["id"])) for h in headings]


def _css_string(text: str) -> str:
    """Return a text as a string of CSS that is safe in a style element."""
    return '"' + "".join(c if c.isalnum() or c in " .,:" else f"\\{ord(c):x} " for c in text) + '"'


# --- printing --------------------------------------------------------------------------------


def browser() -> str:
    """Return the path of the machine's Chromium or Chrome.

    Raises:
        MissingDependencyError: there is none.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise MissingDependencyError(
            "a PDF needs Chromium or Chrome, and neither is installed; on Debian and Ubuntu, run "
            "`apt-get install chromium`"
        )
    return path


def write_pdf(site: Path, target: Path | None = None) -> Path:
    """Print the built site to a PDF file, and return its path.

    Args:
        target: the file. If None, it is FILE in the folder of the site, and the pages link to it.

    Raises:
        ConfigError: there is no site in the folder.
        DataError: the site is incomplete.
        MissingDependencyError: there is no browser.
    """
    program, book = browser(), assemble(site)
    path = target or site / FILE
    with tempfile.TemporaryDirectory() as place:
        printed = Path(place) / "book.pdf"
        _print(program, book.html({}), printed)
        _print(program, book.html(page_numbers(printed)), printed)
        finish(printed, book.entries)
        shutil.move(printed, path)
    if target is None:
        link_pages(site)
    return path


def _print(program: str, text: str, target: Path) -> None:
    """Print an HTML document to PDF, without running scripts."""
    from playwright.sync_api import sync_playwright

    source = target.with_suffix(".html")
    source.write_text(text, encoding="utf-8")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = chromium.new_context(java_script_enabled=False).new_page()
        page.goto(source.as_uri(), wait_until="load", timeout=300_000)
        page.pdf(path=str(target), prefer_css_page_size=True, print_background=True, tagged=True)
        chromium.close()


def page_numbers(path: Path) -> dict[str, int]:
    """Return the page number, counted from 1, of each id that a link in a PDF leads to."""
    from pypdf import PdfReader

    reader = PdfReader(path)
    pages = {
        name: reader.get_destination_page_number(place)
        for name, place in reader.named_destinations.items()
    }
    return {name.lstrip("/"): page + 1 for name, page in pages.items() if page is not None}


def finish(path: Path, entries: list[Entry]) -> None:
    """Give a PDF its authors and its outline, which readers show at the side."""
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import Fit

    reader = PdfReader(path)
    places = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    pages = page_numbers(path)
    writer = PdfWriter(clone_from=reader)
    writer.add_metadata({"/Author": ", ".join(citation(ROOT).authors)})
    above: list[Any] = [None, None, None]
    for entry, following in itertools.zip_longest(entries, entries[1:]):
        target = entry.target or (following.target if following else "")
        if target not in places:
            continue
        item = writer.add_outline_item(
            title=entry.title,
            page_number=pages[target] - 1,
            parent=above[entry.level],
            fit=Fit.xyz(left=places[target].left, top=places[target].top),
            is_open=entry.level == 0,
        )
        above[entry.level + 1 :] = [item] * (2 - entry.level)
    writer.page_mode = "/UseOutlines"
    writer.write(path)


def link_pages(site: Path) -> None:
    """Add the link to the PDF to every page that has LINK."""
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        if LINK in text:
            up = "../" * (len(path.relative_to(site).parts) - 1)
            link = f'<span class="book-pdf"><a href="{up}{FILE}">PDF of the book</a>.</span>'
            text = text.replace(LINK, link)
            path.write_text(text, encoding="utf-8")
