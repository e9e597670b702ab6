"""Defines the markup of explanatory pages: `{drawing}`, `{value}` and `{source}`.

`{drawing}` and `{value}` show what functions of pythia_book.pages.<page> return, and `{source}`
links to a line of code. An unknown name fails the strict build.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective, SphinxRole

from pythia_book.site.figures import inline_figure
from pythia_book.site.staging import ROOT
from pythia_book.site.studies import numbered_table
from pythia_book.style import FIGURE_TYPE, Table


def module_of(name: str, env: BuildEnvironment) -> tuple[ModuleType, str]:
    """Import the module in a name such as "rotary.turning"; return the module and "turning".

    The module is pythia_book.pages.<page> if it exists, else pythia_book.studies.<page>.figures.
    """
    page, _, attribute = name.partition(".")
    path = f"pythia_book.pages.{page}"
    if importlib.util.find_spec(path) is None:
        path = f"pythia_book.studies.{page}.figures"
    module = importlib.import_module(path)
    env.note_dependency(str(module.__file__))  # a page is read again when its drawings change
    return module, attribute


def picture(bundle: dict[str, Any], name: str, small: bool = False) -> nodes.Node:
    """Return the node that shows a drawing, with the arguments of `inline_figure`."""
    return nodes.raw("", inline_figure(bundle, name, small), format="html")


class DrawingFigure(SphinxDirective):
    """A directive for a figure or table that a function of a page's module draws.

    The content of the directive is the caption of the figure. With the option `interactive`, the
    page's script may replace the figure; the script gets the result of the module's
    `script_data(name)` as JSON.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "name": directives.unchanged,
        "interactive": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        module, attribute = module_of(self.arguments[0], self.env)
        draw = getattr(module, attribute, None)
        if not callable(draw):
            raise self.error(
                f"unknown drawing {self.arguments[0]!r}: {module.__name__} has no function "
                f"{attribute!r}; check the spelling, or add it there"
            )
        drawing = draw()
        if isinstance(drawing, Table):
            node = numbered_table(drawing.content)
            self.add_name(node)
            return [node]
        figure, page = nodes.figure(), self.arguments[0].partition(".")[0]
        if "interactive" in self.options:
            for asset in (Path(self.env.srcdir) / "_static").glob(f"{self.env.docname}.*"):
                self.env.note_dependency(str(asset))  # else a changed script is not copied
            data = getattr(module, "script_data", lambda name: None)(attribute)
            values = html.escape(json.dumps(data, separators=(",", ":")))
            names = f'class="explorable {page}" data-{page}="{attribute}"'
            div = f'<div {names} data-values="{values}"></div>'
            figure += nodes.raw("", div, format="html")
        bundle = drawing._repr_mimebundle_()
        figure += picture(bundle, f"{page}-{attribute}")
        caption = nodes.caption()
        parsed = nodes.Element()
        self.state.nested_parse(self.content, self.content_offset, parsed)
        for paragraph in parsed:
            caption += paragraph.children
        figure += caption
        if note := bundle.get(FIGURE_TYPE, {}).get("note"):
            small = f'<p class="figure-note">{html.escape(note)}</p>'
            figure += nodes.raw("", small, format="html")
        self.add_name(figure)
        return [figure]


class Value(SphinxRole):
    """A role such as {value}`rotary.base`, which shows a number that `rotary.values()` returns."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        module, name = module_of(self.text, self.env)
        values = module.values()
        if name not in values:
            message = f"unknown value {self.text!r}; choose one of {', '.join(sorted(values))}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        return [nodes.Text(values[name])], []


class Source(SphinxRole):
    """A role that turns `path#text` into a link to the first line with `text` in the file `path`.

    The link points to the repository in the book's configuration, or else to a copy of the file.
    """

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        name, _, text = self.text.partition("#")
        problem = ""
        lines: list[str] = []
        if not text:
            problem = f"{self.text!r} names no line; write path#text, with text that the line has"
        elif not (ROOT / name).is_file():
            problem = f"the repository has no file {name!r}"
        else:
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        line = next((number for number, line in enumerate(lines, 1) if text in line), None)
        if line is None:
            changed = "the code has changed: update the text after # on this page"
            message = problem or f"no line of {name} contains {text!r}; {changed}"
            return [], [self.inliner.reporter.error(message, line=self.lineno)]
        self.env.note_dependency(str(ROOT / name))
        label = nodes.literal("", f"{name}:{line}")
        options = self.config.html_theme_options
        if options.get("repository_url"):
            branch = options.get("repository_branch") or "main"
            target = f"{options['repository_url']}/blob/{branch}/{name}#L{line}"
            return [nodes.reference("", "", label, refuri=target)], []
        copy = os.path.relpath(ROOT / name, self.env.srcdir)
        link = addnodes.download_reference(
            "", "", label, refdoc=self.env.docname, reftarget=f"/{copy}", refdomain=""
        )
        return [link], []
