"""Corrects details of the HTML from Sphinx and the notebooks before a page is written.

Columns of numbers are aligned on the right, and ARIA roles and header cells are set as
assistive technology expects.
"""

from __future__ import annotations

import html
import re
from typing import Any

from sphinx.application import Sphinx

_NUMBER = re.compile(
    r"[\N{MINUS SIGN}\-+±<≥≤~]?\s*[\d.,]+(e[\N{MINUS SIGN}\-+]?\d+)?"
    r"(\s*(%|\N{MULTIPLICATION SIGN}|[kMB]))?"
    r"(\s*[\[(][^\])]*\d[^\])]*[\])])?"
)
"""A number, perhaps with a sign, an exponent, a unit of one character, or an interval."""
MANY = 8
"""The number of columns from which intervals may break."""
_EMPTY = {"", "\N{EN DASH}", "\N{EM DASH}", "-", "nan"}


def mend(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Correct the HTML of a page's text."""
    body = context.get("body")
    if not body:
        return
    body = re.sub(r"<table\b.*?</table>", lambda table: aligned(table[0]), body, flags=re.DOTALL)
    body = coded(boxed(body))
    # a header cell without words is an ordinary cell, and a bibliography is a list of items
    body = re.sub(r"<th\b[^>]*>\s*(<p>\s*</p>)?\s*</th>", "<td></td>", body)
    context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')


_OPAQUE = ("code", "pre", "script", "style", "svg", "math", "template", "textarea")
_TICKED = re.compile(r"`([^`\n]+)`")


def coded(body: str) -> str:
    """Show `words` between backticks as code, wherever they occur in text.

    Markdown has done so in prose; captions of tables, claims and cells come from records as plain
    text.
    """
    parts, inside = re.split(r"(<[^>]*>)", body), 0
    for place, part in enumerate(parts):
        if place % 2:
            name = re.match(r"<(/?)(\w+)", part)
            if name and name[2].lower() in _OPAQUE and not part.endswith("/>"):
                inside += -1 if name[1] else 1
        elif not inside and "`" in part:
            parts[place] = _TICKED.sub(
                r'<code class="docutils literal notranslate">\1</code>', part
            )
    return "".join(parts)


def boxed(body: str) -> str:
    """Wrap each outermost table that has no scrolling box in a box of class "scrolls"."""
    depth, parts, last = 0, [], 0
    for tag in re.finditer(r"<(/?)table\b[^>]*>", body):
        closing = bool(tag[1])
        depth += -1 if closing else 1
        if depth != (0 if closing else 1):
            continue
        if not closing:
            before = body[: tag.start()].rstrip()
            bare = not before.endswith('class="pst-scrollable-table-container">')
            bare = bare and "highlighttable" not in tag[0]
            parts.append(body[last : tag.start()] + ('<div class="scrolls">' if bare else ""))
        else:
            parts.append(body[last : tag.start()] + tag[0] + ("</div>" if bare else ""))
        last = tag.end() if closing else tag.start()
    return "".join(parts) + body[last:]


def aligned(table: str) -> str:
    """Give the class "number" to the cells of columns whose every entry is a number.

    The first column, which names the rows, stays as it is. Tables of claims, tables with merged
    cells and tables that contain tables are not changed either. In tables of MANY columns,
    intervals may break after the comma.
    """
    if re.search(r'colspan=|rowspan=|class="claims"', table) or table.count("<table") > 1:
        return table
    rows = [_CELL.findall(row) for row in re.findall(r"<tr\b.*?</tr>", table, re.DOTALL)]
    columns: dict[int, list[str]] = {}
    for cells in rows:
        for place, (kind, text) in enumerate(cells):
            if kind == "td":
                columns.setdefault(place, []).append(_words(text))
    numeric = {
        place: " interval" if any("[" in text for text in texts) else ""
        for place, texts in columns.items()
        if place > 0
        and any(text not in _EMPTY for text in texts)
        and all(text in _EMPTY or _NUMBER.fullmatch(text) for text in texts)
    }

    def mark(row: re.Match[str]) -> str:
        place = -1

        def cell(match: re.Match[str]) -> str:
            nonlocal place
            place += 1
            return _with_class(match[0], numeric[place]) if place in numeric else match[0]

        return re.sub(r"<t[hd]\b[^>]*>", cell, row[0])

    if len(columns) >= MANY:
        table = re.sub(r"\[[^\]<]*\]", _range, table)
    return re.sub(r"<tr\b.*?</tr>", mark, table, flags=re.DOTALL) if numeric else table


_CELL = re.compile(r"<(t[hd])\b[^>]*>(.*?)</t[hd]>", re.DOTALL)


def _range(interval: re.Match[str]) -> str:
    """Let an interval break after its comma, and begin a line of its own where it breaks."""
    return (
        f'<span class="range">{interval[0].replace(chr(0xA0), " ").replace("&nbsp;", " ")}</span>'
    )


def _words(cell: str) -> str:
    """Return the text of a cell without markup."""
    return html.unescape(re.sub(r"<[^>]*>", "", cell)).replace("\N{NO-BREAK SPACE}", " ").strip()


def _with_class(tag: str, more: str) -> str:
    """Add the class "number", and `more`, to a start tag."""
    if 'class="' in tag:
        return tag.replace('class="', f'class="number{more} ', 1)
    return f'{tag[:-1]} class="number{more}">'
