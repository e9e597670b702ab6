"""The PDF of the book: every page, in order, linked, and nothing clipped."""

from __future__ import annotations

import re
from pathlib import Path

import browser as tools
import pytest
from pypdf import PdfReader
from pythia_book.site import pdf

from pythia_core.__main__ import main
from pythia_core.errors import ConfigError, DataError

PAGES = {
    "index": '<p id="top"><a href="one.html#part">on</a> <a href="data.csv">data</a></p>'
    f'<div class="matrix"><details><summary>m</summary>folded</details></div>{pdf.LINK}',
    "one": '<section id="part"><h2>1.1. A &amp; B<a class="headerlink" href="#part">#</a></h2>'
    '<p id="top"><a href="#part">here</a> <a href="rooms/two.html">next</a>'
    '<a href="https://x.example/">away</a></p><details><summary>s</summary>answer</details>'
    '<details class="page-code">code</details><button>press</button><script>1</script></section>',
    "rooms/two": '<p><a href="../one.html">back</a></p><table class="claims"><tr>'
    "<td>c<details><summary>Details</summary><p>quote</p></details></td><td>v</td></tr></table>",
}
SIDEBAR = """<nav class="bd-links"><ul><li class="toctree-l1"><a href="#">The book</a></li></ul>
<p><span class="caption-text">Part</span></p><ul><li class="toctree-l1"><a href="one.html">1. One
</a></li><li class="toctree-l1"><a href="rooms/two.html">2. "Two" \\ <b>&lt;/style&gt;</b></a></li>
</ul></nav>"""


def tiny_site(folder: Path, head: str = "") -> Path:
    """A site of three pages, as the theme writes them."""
    for name, body in PAGES.items():
        path = folder / f"{name}.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'<html><head>{head}<meta property="og:site_name" content="A book"></head>'
            f'<body>{SIDEBAR}<article class="bd-article"><h1>{name}</h1>{body}</article>'
            f"<p>{pdf.LINK}</p></body></html>",
            encoding="utf-8",
        )
    return folder


def test_the_document_has_all_pages_and_its_links_lead_into_it(tmp_path: Path) -> None:
    book = pdf.assemble(tiny_site(tmp_path))
    assert [(e.level, e.title, e.target) for e in book.entries] == [
        (1, "The book", "index"),
        (0, "Part", ""),
        (1, "1. One", "one"),
        (2, "1.1. A & B", "one--part"),
        (1, '2. "Two" \\ </style>', "rooms-two"),
    ]
    text = book.html({"one": 41})
    links = re.findall(r'href="([^"]*)"', text)
    assert {"#one--part", "#rooms-two", "#one", "https://x.example/"} <= {*links}
    assert "data.csv" not in text and "data</p>" in text, "no link to a file beside the site"
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len({*ids}) == len(ids) and {link[1:] for link in links if link[0] == "#"} <= {*ids}
    assert '<details open=""><summary>s' in text and "<details><summary>m" in text
    assert not re.search(r"press|page-code|<script|headerlink", text)
    assert re.search(r'</tr><tr class="claim-details"><td colspan="2"><p>quote</p></td></tr>', text)
    assert text.count("</style>") == 1, "a title cannot end the style sheet"
    assert '<span class="page">41</span>' in text


def test_links_to_files_lead_to_the_published_site(tmp_path: Path) -> None:
    home = '<link rel="canonical" href="https://book.example/it/index.html">'
    text = pdf.assemble(tiny_site(tmp_path, home)).html({})
    assert 'href="https://book.example/it/data.csv"' in text


def test_what_is_not_a_site_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"no index\.html in .*run `jupyter-book build book/`"):
        pdf.assemble(tmp_path)
    (tmp_path / "index.html").write_text("<p>Nothing.</p>")
    with pytest.raises(DataError, match=r"index\.html has no contents"):
        pdf.assemble(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["pdf", str(tmp_path)]) == 1
    assert "a PDF needs Chromium or Chrome" in capsys.readouterr().err


@tools.needed
def test_a_small_book_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["pdf", str(tiny_site(tmp_path))]) == 0
    path = tmp_path / pdf.FILE
    assert capsys.readouterr().out.strip() == str(path)
    reader = PdfReader(path)
    texts = [page.extract_text() for page in reader.pages]
    assert len(texts) == 5 and "A book" in texts[0] and reader.metadata.title == "A book"
    assert "The pythia-book authors" in texts[0] and reader.metadata.author
    assert re.search(r"1\. One\s*4", texts[1]), "the contents have page numbers"
    assert "answer" in texts[3] and "1. One" in texts[3] and "\n4" in texts[3]
    outline = reader.outline
    assert [each.title for each in outline if not isinstance(each, list)] == ["The book", "Part"]
    chapters = [each.title for each in outline[2] if not isinstance(each, list)]
    assert chapters == ["1. One", '2. "Two" \\ </style>']
    assert reader.get_destination_page_number(outline[2][0]) == 3
    links = re.findall(r'href="([^"]*)">PDF', (tmp_path / "rooms" / "two.html").read_text())
    assert links == [f"../{pdf.FILE}"]
    assert "PDF of the book" not in pdf.assemble(tmp_path).html({}), "nor does it link to itself"


CLIPPED = """width => {
  const wrong = [];
  const kinds = 'p, li, td, th, pre, table, svg, img, math, div';
  for (const box of document.querySelectorAll(`main :is(${kinds})`)) {
    if (!box.checkVisibility() || box.parentElement.closest('svg')) continue;
    const name = `${box.closest('.chapter')?.id} ${box.tagName} ${box.textContent.slice(0, 40)}`;
    const right = box.getBoundingClientRect().right;
    if (right > width + 1) wrong.push(`${Math.round(right)}: ${name}`);
    const hides = getComputedStyle(box).overflowX !== 'visible';
    if (hides && box.scrollWidth > box.clientWidth + 1) wrong.push(`clipped: ${name}`);
  }
  return wrong;
}"""


@pytest.mark.slow
@pytest.mark.commands
@pytest.mark.timeout(600)
@tools.needed
def test_the_book_is_printed_whole(fresh: Path, tmp_path: Path) -> None:
    book = pdf.assemble(fresh)
    text = book.html({})
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len({*ids}) == len(ids)
    assert {link for link in re.findall(r'<a [^>]*href="#([^"]*)"', text)} <= {*ids}
    (tmp_path / "book.html").write_text(text, encoding="utf-8")
    size = (643, 900)  # A4 between its margins
    with (
        tools.chromium() as chromium,
        tools.visit(chromium, (tmp_path / "book.html").as_uri(), size) as seen,
    ):
        seen.page.emulate_media(media="print", color_scheme="light")
        assert seen.page.evaluate(CLIPPED, size[0]) == []
    path = pdf.write_pdf(fresh, tmp_path / "book.pdf")
    reader = PdfReader(path)
    pages = pdf.page_numbers(path)
    targets = [entry.target for entry in book.entries if entry.target]
    numbers = [pages[target] for target in targets]
    assert numbers == sorted(numbers) and len(reader.pages) > 100
    for entry in book.entries:
        if entry.level == 1:
            shown = reader.pages[pages[entry.target] - 1].extract_text()
            words = re.findall(r"\w+", entry.title)
            assert words[-1] in shown, entry
    assert not [page for page in reader.pages if not page.extract_text().strip()], "an empty page"
