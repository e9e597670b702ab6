"""Puts figures into pages as inline SVG, with both layouts, theme colors and values on hover.

`inline_figure` turns the outputs of a Drawing into HTML. Notebooks may come from anyone, so only
listed elements and attributes are kept. Colors become CSS variables, with a variant for dark
pages. `_static/figures.css` and `_static/figures.js` do the rest.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from sphinx.util import logging

from pythia_book import notebooks
from pythia_book.palette import INK, THEME, WHITE, dark_variant
from pythia_book.site.runs import SelectedRun
from pythia_book.style import FIGURE_TYPE
from pythia_book.svg import compact_json
from pythia_core.errors import DataError

_log = logging.getLogger(__name__)
SVG_TYPE = "image/svg+xml"
ELEMENTS = frozenset(
    "svg g defs path use rect circle ellipse line polyline polygon text tspan clipPath".split()
)
ATTRIBUTES = frozenset(
    "viewBox d x y x1 y1 x2 y2 cx cy r rx ry width height points transform fill stroke opacity "
    "fill-opacity stroke-opacity stroke-width stroke-dasharray stroke-linejoin stroke-linecap "
    "fill-rule clip-path clip-rule text-anchor font-size font-weight font-style data-values "
    "class id href".split()
)
STYLES = frozenset(
    "fill stroke opacity fill-opacity stroke-opacity stroke-width stroke-dasharray "
    "stroke-dashoffset stroke-linejoin stroke-linecap stroke-miterlimit fill-rule clip-rule "
    "text-anchor font-size font-weight font-style".split()
)
CLASSES = frozenset({"panel"})
UNSHOWN = ("footer", "paper")
"""Groups of a file that a page does not need: the small print and the white background."""
_LOCAL = re.compile(r"url\(#([\w.-]+)\)")
_HEX = re.compile(r"#[0-9a-f]{6}")
_SAFE = re.compile(r"[\w\s.,:;#%()+*/=-]*")
_LARGEST = 8_000_000
_FAR = 1_000_000


# --- SVG -------------------------------------------------------------------------------------


def sanitized(text: str, prefix: str, colors: dict[str, None]) -> ET.Element:
    """Return a drawing as an element tree that is safe in a page, without its small print.

    Args:
        prefix: put before each id, so that the ids of a page are unique.
        colors: gets the colors that the drawing uses, as "crrggbb", those of text as "trrggbb".

    Raises:
        DataError: the text is not SVG, is too large, or defines entities.
    """
    if len(text) > _LARGEST:
        raise DataError(
            f"the drawing has {len(text):,} characters; at most {_LARGEST:,} are shown; run the "
            "study again"
        )
    if "<!ENTITY" in text.upper():
        raise DataError(
            "the drawing defines entities, which figures never need; run the study again"
        )
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise DataError(f"the drawing is not SVG ({error}); run the study again") from error
    if _name(root) != "svg":
        raise DataError(f"expected a drawing, got a <{_name(root)}>; run the study again")
    try:
        return _whole(root, prefix, colors)
    except RecursionError as error:
        raise DataError("the drawing is nested too deeply; run the study again") from error


def _whole(root: ET.Element, prefix: str, colors: dict[str, None]) -> ET.Element:
    try:
        box = [float(part) for part in root.get("viewBox", "").split()]
        box[3] -= float(root.get("data-foot", "0"))
        left, top, width, height = box
    except (ValueError, IndexError) as error:
        raise DataError("the drawing has no valid viewBox; run the study again") from error
    clean = _copy(root, prefix, colors)
    _join_marks(clean, f"{prefix}s")
    clean.attrib = {
        "viewBox": f"{left:g} {top:g} {width:g} {height:g}",
        "width": f"{width:g}",
        "height": f"{height:g}",
        "aria-hidden": "true",
        "focusable": "false",
    }
    return clean


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _copy(element: ET.Element, prefix: str, colors: dict[str, None]) -> ET.Element:
    """Copy the listed elements and attributes of a drawing."""
    name = _name(element)
    clean = ET.Element(name)
    of_text = name in ("text", "tspan")
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        if key == "style":
            for declaration in value.split(";"):
                part, _, setting = declaration.partition(":")
                if part.strip() in STYLES:
                    _set(clean, part.strip(), setting.strip(), prefix, colors, of_text)
        elif key in ATTRIBUTES:
            _set(clean, key, value, prefix, colors, of_text)
    if of_text:
        clean.text = element.text
        if "fill" not in clean.attrib:
            _set(clean, "fill", INK, prefix, colors, True)
    for child in element:
        if _name(child) in ELEMENTS and child.get("id") not in UNSHOWN:
            clean.append(_copy(child, prefix, colors))
            if of_text:
                clean[-1].tail = child.tail
    return clean


def _set(
    element: ET.Element, key: str, value: str, prefix: str, colors: dict[str, None], text: bool
) -> None:
    """Set an attribute of a drawing in a page, if its value is harmless."""
    if key == "id":
        value = prefix + value
    elif key == "href":
        if not value.startswith("#"):
            return
        value = f"#{prefix}{value[1:]}"
    elif key == "class":
        value = " ".join(word for word in value.split() if word in CLASSES)
        if not value:
            return
    elif key == "data-values":
        value = _values(value, colors)
    elif key in ("fill", "stroke"):
        value = _color(value.strip().lower(), colors, text)
    elif key == "clip-path":
        local = _LOCAL.fullmatch(value.strip())
        if not local:
            return
        value = f"url(#{prefix}{local[1]})"
    elif "url(" in value.lower().replace(" ", "") or not _SAFE.fullmatch(value):
        return
    element.set(key, value)


def _color(value: str, colors: dict[str, None], text: bool = False) -> str:
    """Return the CSS variable of a color; the color itself is what a light page shows."""
    value = {"white": WHITE, "black": "#000000"}.get(value, value)
    if re.fullmatch(r"#[0-9a-f]{3}", value):
        value = "#" + "".join(2 * digit for digit in value[1:])
    if not _HEX.fullmatch(value):
        return "none" if value in ("none", "transparent") else "currentColor"
    if value in THEME:
        return THEME[value].replace(")", f", {value})")
    key = ("t" if text else "c") + value[1:]
    colors[key] = None
    return f"var(--{key}, {value})"


def _join_marks(root: ET.Element, prefix: str) -> None:
    """Draw the marks of a series as markers of one path: thousands of elements load slowly.

    Args:
        prefix: put before the ids of the markers.
    """
    for number, group in enumerate(list(root.iter("g"))):
        marks = list(group)
        if len(marks) < 3:  # a path would be no shorter
            continue
        kinds = {(mark.tag, *sorted(mark.attrib), mark.get("href")) for mark in marks}
        if kinds != {("use", "href", "x", "y", marks[0].get("href"))}:
            continue
        try:
            steps = [_steps(float(mark.get(axis, "")) for mark in marks) for axis in "xy"]
        except (ValueError, OverflowError):
            continue
        name = f"{prefix}{number}"
        marker = ET.Element("marker", id=name, overflow="visible", markerUnits="userSpaceOnUse")
        for key in sorted(({*group.attrib} & STYLES) - {"opacity"}):  # opacity is of the whole
            marker.set(key, group.attrib.pop(key))
        ET.SubElement(marker, "use", href=marks[0].get("href", ""))
        line = "M" + "l".join(f"{x / 10:g} {y / 10:g}" for x, y in zip(*steps, strict=True))
        group[:] = [marker, ET.Element("path", d=line, style=f"marker:url(#{name})", fill="none")]


def _values(text: str, colors: dict[str, None]) -> str:
    """Return the values of a panel as the page's script reads them; "" if they are damaged.

    The points of a series become columns: left, top, and the rest of `panel_values`. Places are in
    tenths, each as the step from the place before, because such numbers compress better.
    """
    try:
        panel = json.loads(text)
        for series in panel["series"]:
            _title, color, _flat, points = series
            left, top, along, value, *ends = zip_longest(*points)
            series[1] = _color(str(color).lower(), colors)
            series[3] = [_steps(left), _steps(top), along, value, *ends]
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return ""
    return compact_json(panel)


def _steps(places: Iterable[float]) -> list[int]:
    tenths = [round(10 * place) for place in places]
    if any(abs(tenth) > _FAR for tenth in tenths):
        raise ValueError("a place is far outside the drawing")
    return [after - before for before, after in pairwise([0, *tenths])]


def _share_values(wide: ET.Element, narrow: ET.Element) -> None:
    """Store, instead of the series of the narrow layout, how their points have moved.

    Both layouts draw the same values on the same axes. So each panel of the narrow one is a panel
    of the wide one, stretched and shifted: "moved" has the scale and shift of left, then of top. A
    panel for which this does not hold keeps its series.
    """
    panels = zip(*(each.iterfind(".//g[@class='panel']") for each in (wide, narrow)), strict=False)
    for whole, part in panels:
        try:
            before, after = (json.loads(each.get("data-values", "")) for each in (whole, part))
        except ValueError:
            continue
        if not before["series"] or [_without_places(each) for each in before["series"]] != [
            _without_places(each) for each in after["series"]
        ]:
            continue
        moves = [_move(_places(before, axis), _places(after, axis)) for axis in (0, 1)]
        if all(moves):
            del after["series"]
            after["moved"] = [number for move in moves for number in move]
            part.set("data-values", compact_json(after))


def _without_places(series: list[Any]) -> list[Any]:
    *about, (_left, _top, *values) = series
    return [about, values]


def _places(panel: dict[str, Any], axis: int) -> np.ndarray:
    return np.concatenate([np.cumsum(series[3][axis]) / 10 for series in panel["series"]])


def _move(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Return the scale and the shift between places; [] if they differ by more than rounding."""
    terms = np.stack([before, np.ones_like(before)], 1)
    scale, shift = np.linalg.lstsq(terms, after, rcond=None)[0]
    near = np.abs(scale * before + shift - after).max() <= 0.2  # each was rounded to a tenth
    return [round(float(scale), 4), round(float(shift), 2)] if near else []


def dark_rules(colors: dict[str, None]) -> str:
    """Return the style rule that gives the colors of a figure their variants for dark pages."""
    rules = ";".join(f"--{key}:{dark_variant('#' + key[1:], key[0] == 't')}" for key in colors)
    return f'@media screen{{html[data-theme="dark"] .pythia-figure{{{rules}}}}}' if rules else ""


# --- pages -----------------------------------------------------------------------------------


def inline_figure(bundle: dict[str, Any], prefix: str, small: bool = False) -> str:
    """Return the HTML of a figure, from the outputs of a Drawing by MIME type.

    A figure without a narrow layout scrolls on phones. A damaged one is replaced by its
    description.

    Args:
        prefix: a name that is unique in the page, for the ids of the figure.
        small: whether its one layout fits a phone.
    """
    prefix = re.sub(r"[^\w-]", "-", prefix)
    label = html.escape("".join(bundle.get("text/plain", "")).strip() or "Figure")
    more = _more(bundle)
    colors: dict[str, None] = {}
    drawings = []
    for layout, text in (("wide", bundle.get(SVG_TYPE)), ("narrow", more.get("narrow"))):
        try:
            if text:
                drawing = sanitized(_joined(text), f"{prefix}-{layout[0]}-", colors)
                drawing.set("class", layout)
                drawings.append(drawing)
        except DataError as error:
            _log.warning("figure %s: %s", prefix, error)
    if not drawings:
        return f'<p class="pythia-lost">This figure is damaged. It shows: {label}</p>'
    if len(drawings) == 2:
        _share_values(*drawings)
    else:
        drawings[0].set("class", "wide")  # the narrow one would be hidden on wide screens
    if rules := dark_rules(colors):
        style = ET.Element("style")
        style.text = rules
        drawings[0].insert(0, style)
    scrolls = len(drawings) == 1 and not small
    kind = "pythia-figure" + (" one-layout" if scrolls else " two-layouts" if not small else "")
    scroll = ' tabindex="0"' if scrolls else ""
    shapes = "".join(ET.tostring(d, encoding="unicode") for d in drawings)
    # while a drawing is out of sight, its space is reserved
    sizes = ";".join(f"--{d.get('class')}:{d.get('width')}/{d.get('height')}" for d in drawings)
    room = f' style="{sizes}"' if len(drawings) == 2 else ""
    return (
        f'<div class="{kind}"><div class="drawing" role="img" aria-label="{label}"{scroll}{room}>'
        f"{shapes}</div></div>"
    )


def _joined(text: Any) -> str:
    """Return the text of an output, which may be a list of lines."""
    lines = [text] if isinstance(text, str) else text
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise DataError("the drawing is not text; run the study again")
    return "".join(lines)


def _more(bundle: dict[str, Any]) -> dict[str, Any]:
    """Return the details of the figure in a bundle of outputs; {} if an old run has none."""
    more = bundle.get(FIGURE_TYPE)
    return more if isinstance(more, dict) else {}


def tools(bundle: dict[str, Any], study: str, cell: str, tables: set[str]) -> str:
    """Return the HTML under a study's figure: links to code, data and file, and the small print.

    Args:
        tables: the CSV files in the record, without ".csv".
    """
    more = _more(bundle)
    listed = more.get("tables")
    parts = [
        _link("code", f"#code-{cell}", "Code", "Code of this figure"),
        *(
            _link("data", f"../_static/data/{study}/{name}.csv", f"{name}.csv", f"Data: {name}.csv")
            for name in (map(str, listed) if isinstance(listed, list) else ())
            if name in tables
        ),
        _link(
            "file", f"../_static/figures/{study}/{cell}.svg", "SVG", "This figure as an SVG file"
        ),
    ]
    if command := str(more.get("command", "")):
        words = html.escape(command)
        parts.append(
            f'<button type="button" class="tool command" data-command="{words}">Command</button>'
            f'<code class="redraw" hidden>{words}</code>'
        )
    note = html.escape(str(more.get("note", "")))
    note = note[:1].upper() + note[1:]
    small = f'<p class="small-print">{note}</p>' if note else ""
    return f'<div class="figure-tools"><p class="tools">{" ".join(parts)}</p>{small}</div>'


def _link(kind: str, target: str, text: str, name: str) -> str:
    target, text, name = (html.escape(part) for part in (target, text, name))
    download = "" if kind == "code" else " download"
    return (
        f'<a class="tool {kind}" href="{target}" aria-label="{name}" title="{name}"'
        f"{download}>{text}</a>"
    )


def _figures(notebook: notebooks.Notebook) -> list[tuple[Any, Any]]:
    """Return the cells with a figure, each with the output that is the figure."""
    return [
        (cell, output)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if SVG_TYPE in output.get("data", {})
    ]


def with_inline_figures(notebook: notebooks.Notebook, run: SelectedRun) -> notebooks.Notebook:
    """Replace the figures of a run's notebook by HTML, in place, and add the tools under each."""
    import nbformat

    study = run.study
    tables = {Path(name).stem for name in _csv_files(run)}
    below = {}
    for cell, output in _figures(notebook):
        bundle = dict(output.data)
        output.data = nbformat.from_dict(
            {"text/html": inline_figure(bundle, f"{study}-{cell.id}"), "text/plain": ""}
        )
        markup = tools(bundle, study, cell.id, tables)
        markup = markup.replace("\n", " ").replace("`", "&#96;")  # it cannot end the fence
        source = f"```{{raw}} html\n{markup}\n```"
        below[cell.id] = nbformat.v4.new_markdown_cell(source, id=f"tools-{cell.id}"[:64])
    notebook.cells = [
        each
        for cell in notebook.cells
        for each in ([cell, below[cell.id]] if cell.id in below else [cell])
    ]
    return notebook


def _csv_files(run: SelectedRun) -> list[str]:
    """Return the names of the tables in the folder of a run."""
    files = run.record["files"] if run.record else {}
    return [name for name in files if name.endswith(".csv")]


def write_files(runs: Iterable[SelectedRun], static: Path) -> None:
    """Write the figures and tables of runs to the site's folder `static`, for readers to download.

    A figure is `figures/<study>/<cell>.svg`, a table `data/<study>/<name>.csv`.
    """
    for kind in ("figures", "data"):
        shutil.rmtree(static / kind, ignore_errors=True)
    for run in runs:
        if run.folder is None or run.notebook is None:
            continue
        drawings, data = static / "figures" / run.study, static / "data" / run.study
        for each in (drawings, data):
            each.mkdir(parents=True, exist_ok=True)
        for cell, output in _figures(notebooks.read_notebook(run.notebook)):
            text = "".join(output.data[SVG_TYPE])
            (drawings / f"{cell.id}.svg").write_text(text, encoding="utf-8")
        for name in _csv_files(run):
            shutil.copyfile(run.folder / name, data / name)
