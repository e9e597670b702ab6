"""Turns formulas into MathML while the book is built, so that pages load no script for them.

Browsers render MathML natively, without network access or scripts, and screen readers read it.
"""

from __future__ import annotations

import functools
import html
import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

NAME = "mathml"
_log = logging.getLogger(__name__)


def register(app: Sphinx) -> None:
    """Offer the renderer to Sphinx, which uses it if `html_math_renderer` is NAME."""
    app.add_html_math_renderer(NAME, (_inline, None), (_display, None))


@functools.cache
def mathml(latex: str, display: bool = False) -> str:
    """Return a formula as MathML.

    Raises:
        ValueError: the formula has a command or an environment that cannot be converted.
    """
    from latex2mathml.converter import convert

    latex = re.sub(r"\\\\\[[^\]]*\]", r"\\\\", latex.strip())  # without extra space between lines
    # the one environment of aligned lines that the converter knows
    latex = re.sub(r"\{(aligned|align\*?|gathered|gather\*?)\}", "{split}", latex)
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    bare = re.sub(r"\\[{}]", "", latex)
    if bare.count("{") != bare.count("}"):
        raise ValueError("its braces do not match")
    try:
        text = convert(latex, display="block" if display else "inline")
    except Exception as error:  # the converter raises many kinds of errors
        raise ValueError(f"{type(error).__name__} {error}".strip()) from error
    if unknown := re.search(r"\\[A-Za-z]+|>&<", text):
        raise ValueError(f"the converter does not know {unknown[0].strip('<>')}")
    # thin spaces around the names of functions, as in print: a cos b, but a cos(b)
    name, thin = "(?:<mi>(?:a?sin|a?cos|tan|log|ln|exp|max|min)</mi>)", '<mspace width="0.17em" />'
    text = re.sub(rf"(?<=</m[in]>)(?={name})", thin, text)
    return re.sub(rf"({name})(?=<m(?:[in]|sub|sup|frac)>)", rf"\1{thin}", text)


def _converted(node: nodes.Node, display: bool) -> str:
    latex = node.astext()
    try:
        return mathml(latex, display)
    except ValueError as error:
        _log.warning("the formula %r cannot be shown: %s", latex, error, location=node)
        return f"<code>{html.escape(latex)}</code>"


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{_converted(node, False)}</span>')
    raise nodes.SkipNode


def _display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(_converted(node, True))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode
