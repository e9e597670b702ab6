"""Writes finished figures as short SVG text, with the values behind them.

The same figure gives the same bytes. `compact` shortens what matplotlib writes. For each panel, the
file has one element `<g class="panel" data-values="...">` with the values that the site shows on
hover: see `panel_values`.
"""

from __future__ import annotations

import json
import math
import re
import weakref
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pythia_book.palette import INK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
FONTS = "'DejaVu Sans', Verdana, sans-serif"
DENSE = 40
"""A curve with more points than this keeps only this many for hovering, evenly chosen."""
POINTS = 72
"""Points per inch; the unit of coordinates in SVG files."""


@dataclass(frozen=True)
class Series:
    """What is known about the points of a line: its name, and the ends of intervals.

    Attributes:
        name: the name of the series; empty: the label of the artist, if it has one.
        low, high: ends of intervals in the unit of the axis, one per point.
        shown: whether its points are shown on hover.
        flat: whether the values are on the x axis; None: yes if only the y axis has categories.
        points: names of the points, shown instead of their places on the x axis.
    """

    name: str = ""
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    shown: bool = True
    flat: bool | None = None
    points: Sequence[str] | None = None


_SERIES: weakref.WeakKeyDictionary[Artist, Series] = weakref.WeakKeyDictionary()


def register(artist: Artist, series: Series) -> None:
    """Record what an artist shows, for `panel_values`."""
    _SERIES[artist] = series


def hide(*artists: Artist) -> None:
    """Mark artists as not data, so that hovering does not find them."""
    for artist in artists:
        register(artist, Series(shown=False))


_NAMES: weakref.WeakKeyDictionary[Axes, str] = weakref.WeakKeyDictionary()


def name_values(ax: Axes, label: str) -> None:
    """Give the values of a panel a name, where its y axis is labeled in another panel."""
    _NAMES[ax] = label


# --- values behind a figure ------------------------------------------------------------------


def panel_values(figure: Figure) -> list[dict[str, Any]]:
    """Return the values of each panel that has axes, after the layout is final.

    Each panel has its `title`, the labels `x` and `y`, and `series`: [name, color, flat, points].
    A point is [left, top, x, value] or [left, top, x, value, low, high], where x is a number or the
    name of a category, and `flat` swaps the axes. Coordinates are those of the file.
    """
    panels = []
    for ax in figure.axes:
        if not ax.axison:
            continue
        series = _merged(row for row in _series_of(ax) if row[3])
        if series:
            panels.append(
                {
                    "title": _one_line(ax.get_title(loc="left")),
                    "x": _one_line(ax.get_xlabel()),
                    "y": _one_line(ax.get_ylabel() or _NAMES.get(ax, "")),
                    "series": series,
                }
            )
    return panels


def _series_of(ax: Axes) -> Iterator[list[Any]]:
    """Yield [name, color, flat, points] of each artist of a panel whose values are shown."""
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_hex

    for artist in (*ax.lines, *ax.collections):
        about = _SERIES.get(artist, Series())
        if not about.shown or not artist.get_transform().contains_branch(ax.transData):
            continue
        if artist in ax.lines:
            if artist.get_transform() != ax.transData:
                continue  # a line across the panel, not data
            points, color = artist.get_xydata(), artist.get_color()
        elif isinstance(artist, PathCollection):
            points, color = artist.get_offsets(), artist.get_facecolor()
            color = color[0] if len(color) else INK
        else:
            continue
        yield _row(ax, about, _label(about, artist), to_hex(color), points)
    for bars in ax.containers:
        about = _SERIES.get(bars[0], Series()) if len(bars) else Series(shown=False)
        if not about.shown or not hasattr(bars, "datavalues"):
            continue
        flat = bars.orientation == "horizontal"
        points = [
            (bar.get_x() + bar.get_width(), bar.get_y() + bar.get_height() / 2)
            if flat
            else (bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height())
            for bar in bars
        ]
        about = Series(about.name, about.low, about.high, True, flat)
        row = _row(ax, about, _label(about, bars), to_hex(bars[0].get_facecolor()), points)
        for point, value in zip(row[3], bars.datavalues, strict=True):
            point[3] = _number(value)  # of the bar itself, also if it is stacked on another
        yield row


def _merged(rows: Iterable[list[Any]]) -> list[list[Any]]:
    """Join series of the same name and color, e.g. single points."""
    merged: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        merged.setdefault(tuple(row[:3]), [*row[:3], []])[3] += row[3]
    return list(merged.values())


def _label(about: Series, artist: Any) -> str:
    label = about.name or str(artist.get_label() or "")
    return "" if label.startswith("_") else _one_line(label)


def _row(ax: Axes, about: Series, name: str, color: str, points: Any) -> list[Any]:
    """Return [name, color, flat, points] of one series."""
    across, up = categories(ax.xaxis), categories(ax.yaxis)
    flat = bool(up and not across) if about.flat is None else about.flat
    seen = ax.bbox.padded(1)  # beyond the limits of the axes, nothing is drawn
    whole = []
    for i, (x, y) in enumerate(points):
        if math.isfinite(float(x)) and math.isfinite(float(y)):
            place = ax.transData.transform((float(x), float(y)))
            if seen.contains(*place):
                whole.append((i, float(x), float(y), place))
    if len(whole) > DENSE:
        step = (len(whole) - 1) / (DENSE - 1)
        whole = [whole[round(k * step)] for k in range(DENSE)]
    rows = []
    names = up if flat else across
    for i, x, y, place in whole:
        along, value = (y, x) if flat else (x, y)
        named = about.points[i] if about.points is not None else _nearest(names, along)
        row: list[Any] = [*_place(ax.figure, *place), named, _number(value)]
        if about.low is not None and about.high is not None:
            ends = [float(about.low[i]), float(about.high[i])]
            if all(map(math.isfinite, ends)):
                row += [_number(end) for end in ends]
        rows.append(row)
    return [name, color, int(flat), rows]


def categories(axis: Any) -> dict[float, str]:
    """Return the names at 0, 1, 2, ... of an axis of categories; empty for other axes."""
    from matplotlib.ticker import FixedLocator

    ticks = [float(tick) for tick in axis.get_majorticklocs()]
    if not isinstance(axis.get_major_locator(), FixedLocator) or len(ticks) < 2:
        return {}
    texts = axis.get_major_formatter().format_ticks(ticks)
    named = ticks == list(range(len(ticks))) and texts != [str(i) for i in range(len(ticks))]
    return dict(zip(ticks, map(_one_line, texts), strict=True)) if named else {}


def _nearest(names: dict[float, str], at: float) -> float | str:
    near = min(names, key=lambda tick: abs(tick - at), default=None)
    return names[near] if near is not None and abs(near - at) <= 0.5 else _number(at)


def _number(value: float) -> float | int:
    """Round to four significant digits; whole numbers stay whole."""
    rounded = float(f"{float(value):.4g}")
    whole = float(value)
    if whole.is_integer() and abs(whole) < 1e15:
        return int(whole)
    return rounded


def _place(figure: Figure, x: float, y: float) -> tuple[float, float]:
    """Convert pixels from the lower left to the coordinates of the file."""
    scale, height = POINTS / figure.dpi, POINTS * figure.get_figheight()
    return round(x * scale, 1), round(height - y * scale, 1)


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


# --- a short file ----------------------------------------------------------------------------

_LONG = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
_NUMBER = re.compile(r"-?[\d.]+(?:e-?\d+)?")
_SPACES = re.compile(r"\s+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"font: (?:(bold|italic) )?([\d.]+)px[^;]*;?\s*")


def compact(text: str, label: str, panels: list[dict[str, Any]], foot: float = 0.0) -> str:
    """Shorten a file of matplotlib's, and add a description and the values of its panels.

    Args:
        label: description for screen readers.
        foot: height of the small print under the drawing, which is the group "footer".
    """
    ET.register_namespace("", SVG)
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    used = {
        name for each in root.iter() for value in each.attrib.values()
        for name in _REFERENCE.findall(value)
    } | {each.get(LINK, "#")[1:] for each in root.iter()}  # fmt: skip
    for each in root.iter():
        _shorten(each)
        if each.get("id") not in {*used, "footer", "paper"}:
            each.attrib.pop("id", None)
    _flatten(root)
    _share_styles(root)
    root.attrib.pop("width", None)
    root.attrib.pop("height", None)
    width, height = root.get("viewBox", "0 0 0 0").split()[2:]
    root.attrib = {
        "viewBox": f"0 0 {width} {height}",
        "width": f"{width}pt",
        "height": f"{height}pt",
        "role": "img",
        "aria-label": label,
        "font-family": FONTS,
        "stroke-linejoin": "round",
        **({"data-foot": f"{foot:g}"} if foot else {}),
    }
    for panel in panels:
        ET.SubElement(root, f"{{{SVG}}}g", {"class": "panel", "data-values": compact_json(panel)})
    return ET.tostring(root, encoding="unicode") + "\n"


def compact_json(value: Any) -> str:
    """Return JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _shorten(element: ET.Element) -> None:
    """Shorten the attributes of an element, and drop what has no effect."""
    for name, value in list(element.attrib.items()):
        if name == LINK:
            del element.attrib[name]
            element.set("href", value)
        elif name == "style":
            value = _FONT.sub(_font, value)
            element.set(name, _LONG.sub(_short, value).replace("; ", ";").replace(": ", ":"))
            if not value:
                del element.attrib[name]
        elif name not in ("id", "aria-label"):
            value = _SPACES.sub(" ", _LONG.sub(_short, value)).strip()
            if name == "d":
                value = _path(value)
            elif name in ("x", "y"):
                value = _NUMBER.sub(lambda match: _word(float(match[0]), 1), value)
            element.set(name, value)
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.tag != f"{{{SVG}}}text" and not (element.text or "").strip():
        element.text = None
    element.tail = None


def _short(match: re.Match[str]) -> str:
    return _word(float(match[0]), 2)


_MARK = 12
"""Paths that stay this near to 0 are marks, drawn at several places. They keep two decimals."""


def _path(commands: str) -> str:
    """Shorten a path of M, L, Q, C and z: make it relative, and keep one decimal except in marks.

    Steps are differences of rounded places, so that rounding does not add up along a path.
    """
    digits = 2 if all(abs(float(word)) < _MARK for word in _NUMBER.findall(commands)) else 1
    text = before = ""
    start = here = (0.0, 0.0)
    for letter, rest in re.findall(r"([MLQCz])([^MLQCz]*)", commands):
        numbers = [round(float(word), digits) for word in rest.split()]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        if letter == "z":
            here = start
        elif letter == "M":
            start, here = points[0], points[-1]
        else:
            numbers = [b - a for point in points for a, b in zip(here, point, strict=True)]
            here = points[-1]
        new = letter != before or letter == "M"  # more numbers after those of M would draw a line
        if new:
            text += letter if letter == "M" else letter.lower()
        for k, number in enumerate(numbers):
            word = _word(number, digits)
            text += word if word[0] == "-" or (new and not k) else f" {word}"
        before = letter
    return text


def _word(number: float, digits: int) -> str:
    """Write a number as briefly as SVG allows, e.g. -.5."""
    word = f"{number:.{digits}f}".rstrip("0").rstrip(".")
    sign, word = ("-", word[1:]) if word[0] == "-" else ("", word)
    word = word.lstrip("0")
    return sign + word if word else "0"


def _share_styles(element: ET.Element) -> None:
    """If all children of a group share a style, move the style to the group."""
    for child in element:
        _share_styles(child)
    styles = {child.get("style", "") for child in element}
    if element.tag != f"{{{SVG}}}g" or len(element) < 2 or len(styles) != 1:
        return
    (style,) = styles
    if style and "opacity" not in style and not element.get("style"):
        element.set("style", style)
        for child in element:
            del child.attrib["style"]


def _font(match: re.Match[str]) -> str:
    weight = {"bold": "font-weight: bold; ", "italic": "font-style: italic; "}.get(match[1], "")
    return f"{weight}font-size: {match[2]}px; "


def _flatten(element: ET.Element) -> None:
    """Replace each group without attributes by what it contains."""
    children: list[ET.Element] = []
    for child in element:
        _flatten(child)
        if child.tag == f"{{{SVG}}}g" and not child.attrib:
            children += list(child)
        elif child.tag not in (f"{{{SVG}}}g", f"{{{SVG}}}defs") or len(child) or child.attrib:
            children.append(child)
    element[:] = children
