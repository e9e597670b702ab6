"""Sphinx extension for pages that explain: drawings, numbers and source lines, made at build time.

`{drawing}` shows a function of pythia_book.pages.<page> as a figure, `{value}` a number from that
module's `values()`, and `{source}` links the line of a file that has a given text; what does not
exist fails the strict build. A page's own script and style, _static/<page>.js and .css, are loaded
on that page only.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.docutils import SphinxDirective, SphinxRole

from pythia_book import sphinx_pages
from pythia_book.style import Table

ROOT = Path(__file__).resolve().parents[2]


def module_of(name: str, env: Any) -> tuple[Any, str]:
    """ "rotary.turning" as the module pythia_book.pages.rotary and "turning"."""
    page, _, inside = name.partition(".")
    found = f"pythia_book.pages.{page}"
    if importlib.util.find_spec(found) is None:  # a study's own
        found = f"pythia_book.studies.{page}.figures"
    module = importlib.import_module(found)
    env.note_dependency(module.__file__)  # a page is read again when its drawings change
    return module, inside


class DrawingFigure(SphinxDirective):
    """A figure drawn while the page is read; the content is its caption. Or a table.

    `interactive`: the page's script may put something to play with in its place. It is handed what
    the module's `script_data(name)` gives, if it has one, as JSON.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "name": directives.unchanged,
        "interactive": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        module, inside = module_of(self.arguments[0], self.env)
        drawing = getattr(module, inside)()
        if isinstance(drawing, Table):
            rows = [
                [
                    nodes.paragraph("", "", nodes.literal("", cell))
                    if name in drawing.code
                    else cell
                    for name, cell in zip(drawing.frame.columns, row, strict=True)
                ]
                for row in drawing.frame.to_numpy().tolist()
            ]
            shown = sphinx_pages.table(list(drawing.frame.columns), rows, "pythia-table")
            shown.insert(0, nodes.title("", drawing.caption))
            self.add_name(shown)
            return [shown]
        path = Path(self.env.app.outdir).parent / "drawings" / f"{self.arguments[0]}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.save(path)
        folder = Path(self.env.doc2path(self.env.docname)).parent
        figure = nodes.figure()
        if "interactive" in self.options:
            for asset in (Path(self.env.srcdir) / "_static").glob(f"{self.env.docname}.*"):
                self.env.note_dependency(str(asset))  # else a changed script is not copied
            page = self.arguments[0].partition(".")[0]
            data = getattr(module, "script_data", lambda name: None)(inside)
            words = html.escape(json.dumps(data, separators=(",", ":")))
            place = f'<div class="{page}" data-{page}="{inside}" data-values="{words}"></div>'
            figure += nodes.raw("", place, format="html")
        figure += nodes.image(uri=os.path.relpath(path, folder), alt=drawing.description)
        caption = nodes.caption()
        words = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, words)
        for paragraph in words:
            caption += paragraph.children
        figure += caption
        self.add_name(figure)
        return [figure]


class Value(SphinxRole):
    """A number that a page's module computes."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        module, name = module_of(self.text, self.env)
        known = module.values()
        if name not in known:
            words = f"unknown value {self.text!r}; known: {', '.join(sorted(known))}"
            return [], [self.inliner.reporter.error(words, line=self.lineno)]
        return [nodes.Text(known[name])], []


class Source(SphinxRole):
    """`path#text`: a link to the first line of a file that has the text.

    It leads to the repository where the book has one, else to a copy of the file.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, words = self.text.partition("#")
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        found = [number for number, line in enumerate(lines, 1) if words in line]
        if not found:
            message = f"{name} has no line with {words!r}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        self.env.note_dependency(str(ROOT / name))
        label = nodes.literal("", f"{name}:{found[0]}")
        options = self.config.html_theme_options
        if options.get("repository_url"):
            branch = options.get("repository_branch") or "main"
            target = f"{options['repository_url']}/blob/{branch}/{name}#L{found[0]}"
            return [nodes.reference("", "", label, refuri=target)], []
        copy = os.path.relpath(ROOT / name, self.env.srcdir)
        link = addnodes.download_reference(
            "", "", label, refdoc=self.env.docname, reftarget=f"/{copy}", refdomain=""
        )
        return [link], []


def keep_for_pages(app: Sphinx, config: Config) -> None:
    """Jupyter Book loads every script and style on every page; those of one page are taken out."""
    pages = {path.stem for path in Path(app.srcdir).glob("*.md")}
    for files in (config.html_css_files, config.html_js_files):
        files[:] = [f for f in files if not (isinstance(f, str) and Path(f).stem in pages)]


def load_on_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    static = Path(app.srcdir) / "_static"
    if (static / f"{pagename}.css").is_file():
        app.add_css_file(f"{pagename}.css")
    if (static / f"{pagename}.js").is_file():
        app.add_js_file(f"{pagename}.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", keep_for_pages, priority=110)
    app.connect("html-page-context", load_on_page)
    app.add_directive("drawing", DrawingFigure)
    app.add_role("value", Value())
    app.add_role("source", Source())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
