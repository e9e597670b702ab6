"""Defines the common look of all figures of the book: style, layouts, SVG output and tables.

Each model size has one color in all figures (pythia_book.palette). Each arm of an intervention has
one line style and marker. Drawings are made without pyplot, hence without global state. The same
numbers give the same bytes of SVG.

The decorator `figure` draws each figure twice: as wide as the text column, and with its panels
stacked for phones. The helpers here note the values of what they draw, so that the site
can show them on hover; other artists are shown with their label.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import io
import itertools
import math
import textwrap
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from pythia_book import records, seed_spread, svg
from pythia_book.claim_tables import claims_frame, claims_html
from pythia_book.palette import BLUE as BLUE
from pythia_book.palette import GREEN as GREEN
from pythia_book.palette import GRID, INK, MUTED, WHITE, shade, size_color, text_color
from pythia_book.palette import ORANGE as ORANGE
from pythia_book.study import Result
from pythia_core.suite import nominal_parameters, scale_named
from pythia_core.util.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

__all__ = ["BLUE", "GREEN", "GRID", "INK", "MUTED", "ORANGE", "WHITE", "shade", "size_color"]

FIGURE_TYPE = "application/vnd.pythia.figure+json"
"""MIME type of what the site needs to know about a figure, apart from its wide SVG."""
DASH = "\N{EN DASH}"
"""Marks an empty cell of a table."""
WIDTH, NARROW = 7.4, 3.68
"""Widths of a page's text column and of a phone, in inches; text has the same size in both."""
SMALLEST = 8.5
"""Smallest size of text in points, which is 11 px in a text column of 720 px."""

THIN = {"marker": "o", "markersize": 2.5, "linewidth": 1.2}
"""Line properties for a curve with many points."""
ARM_LABELS = {
    "control": "control",
    "swap_7": "swap in the last 7 %",
    "swap_21": "swap in the last 21 %",
}
ARM_STYLES: dict[str, dict[str, Any]] = {
    "control": {"linestyle": "-", "marker": "o"},
    "swap_7": {"linestyle": (0, (4, 1.5)), "marker": "s"},
    "swap_21": {"linestyle": (0, (1, 1.2)), "marker": "^"},
}
_RC = {
    "svg.hashsalt": "pythia-book",  # ids in the file follow from its content
    "path.simplify_threshold": 0.35,  # of a pixel: curves with many points become shorter
    "svg.fonttype": "none",  # text stays text: small files, selectable, searchable
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": SMALLEST,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": SMALLEST,
    "xtick.labelsize": SMALLEST,
    "ytick.labelsize": SMALLEST,
    "legend.fontsize": SMALLEST,
    "legend.title_fontsize": SMALLEST,
    "legend.frameon": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.linewidth": 0.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Apply the book's style within a `with` block."""
    import matplotlib
    import seaborn

    theme = seaborn.axes_style("whitegrid") | seaborn.plotting_context("paper") | _RC
    with matplotlib.rc_context({k: v for k, v in theme.items() if k in matplotlib.rcParams}):
        yield


TABLE_TYPE = "application/vnd.pythia.table+json"
"""MIME type of the content of a `Table`, from which a page makes a numbered table."""


class Drawing:
    """A finished figure, which a notebook shows as SVG, with a description for screen readers.

    Args:
        numbers: main numbers to append to the description, e.g. "25k 3.012".

    Attributes:
        narrow: the same figure for phones; None if it was drawn without the decorator `figure`.
        tables: names of the CSV files of the record that the figure shows, without ".csv".
    """

    narrow: Drawing | None = None
    tables: tuple[str, ...] = ()

    def __init__(self, figure: Figure, description: str, numbers: Iterable[str] = ()) -> None:
        self.figure = figure
        self.description = ": ".join(filter(None, (description, ", ".join(numbers))))

    @functools.cached_property
    def svg(self) -> str:
        """The figure as SVG text; the same numbers give the same bytes.

        The figure is rendered only once, because a second layout would move its parts slightly.
        """
        stream = io.StringIO()
        metadata = {"Date": None, "Creator": None}
        with style():
            foot = _finish(self.figure)
            self.figure.savefig(stream, format="svg", metadata=metadata)
        values = svg.panel_values(self.figure)
        return svg.compact(stream.getvalue(), self.description, values, foot)

    def save(self, path: Path) -> None:
        """Write the SVG to a file, atomically."""
        with atomic_file(Path(path)) as target:
            target.write_text(self.svg, encoding="utf-8")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {"image/svg+xml": self.svg, "text/plain": self.description}
        if self.narrow is not None:
            page = _PAGES.get(self.figure, _Page())
            bundle[FIGURE_TYPE] = {
                "narrow": self.narrow.svg,
                "note": page.note,
                "command": page.command,
                "tables": list(self.tables),
            }
        return bundle


_P = ParamSpec("_P")
_NARROW: ContextVar[bool] = ContextVar("narrow", default=False)


def narrow() -> bool:
    """Return whether the figure is being drawn for a phone."""
    return _NARROW.get()


def figure(draw: Callable[_P, Drawing]) -> Callable[_P, Drawing]:
    """Make a drawing function draw both a wide and a narrow figure; note the tables it reads."""

    @functools.wraps(draw)
    def both(*args: _P.args, **kwargs: _P.kwargs) -> Drawing:
        read: dict[str, None] = {}
        watched = [_watched(arg, read) if isinstance(arg, Result) else arg for arg in args]
        drawing = draw(*watched, **kwargs)
        token = _NARROW.set(True)
        try:
            drawing.narrow = draw(*args, **kwargs)
        finally:
            _NARROW.reset(token)
        drawing.tables = tuple(read)
        return drawing

    return both


class _Watched(dict):
    """A dictionary of tables that notes which of them are read."""

    def __init__(self, tables: dict[str, Any], read: dict[str, None], name: str) -> None:
        super().__init__(tables)
        self._note = lambda key: read.setdefault(name.format(key)) if key in tables else None

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)


def _watched(result: Result, read: dict[str, None]) -> Result:
    """Return a copy of the result that adds the names of the CSV files of read tables to `read`."""
    return dataclasses.replace(
        result,
        tables=_Watched(result.tables, read, "{}"),
        released=_Watched(result.released, read, "released_{}"),
    )


class Note:
    """A line of small print in a notebook."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return f'<p class="pythia-note"><small>{html.escape(self.text)}</small></p>'

    def __repr__(self) -> str:
        return self.text


class Table:
    """A table that a notebook shows as HTML, with every cell escaped.

    Args:
        code: columns that a page shows in a monospaced font.
        strong: for some columns, the passages that a page emphasizes: a list of (start, end) for
            each row, positions in the text of the cell.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        caption: str = "",
        code: tuple[str, ...] = (),
        strong: dict[str, list[list[tuple[int, int]]]] | None = None,
    ) -> None:
        self.frame, self.caption, self.code = frame, caption, code
        self.strong = strong or {}

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return {
            "text/html": self._repr_html_(),
            "text/plain": repr(self),
            TABLE_TYPE: self.content,
        }

    @property
    def content(self) -> dict[str, Any]:
        """The caption, the column names and the cells as text, from which a page makes a table."""
        import pandas as pd

        rows = self.frame.astype(object).where(pd.notna(self.frame), DASH).to_numpy().tolist()
        return {
            "caption": self.caption,
            "columns": [str(name) for name in self.frame.columns],
            "rows": [[str(cell) for cell in row] for row in rows],
            "code": list(self.code),
            "strong": self.strong,
        }

    def _repr_html_(self) -> str:
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = self.frame.to_html(index=False, escape=True, border=0, classes="pythia-table")
        return body.replace("<thead>", f"{caption}<thead>", 1)

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)


def one_line(text: str) -> str:
    """Return a passage on one line, for a table; a slash replaces one or more line breaks."""
    return " / ".join(filter(None, map(str.strip, text.split("\n"))))


# --- parts of figures ------------------------------------------------------------------------


@dataclasses.dataclass
class _Page:
    """What `panels` knows about a figure: its small print, its height, and its panels by rows."""

    note: str = ""
    command: str = ""
    height: float = 0.0
    rows: list[list[Axes]] = dataclasses.field(default_factory=list)
    legends: list[Legend] = dataclasses.field(default_factory=list)
    ends: list[tuple[Axes, list[tuple[str, float, float, str]]]] = dataclasses.field(
        default_factory=list
    )


_PAGES: weakref.WeakKeyDictionary[Figure, _Page] = weakref.WeakKeyDictionary()
_LEGEND_ROW = 0.25
_FOOT_LINE = 0.165
_FOOT_COLUMNS = 98


def panels(
    columns: int,
    height: float,
    footer: str,
    sharey: bool = False,
    ratios: Any = None,
    rows: int = 1,
    heights: Any = None,
) -> tuple[Figure, list[Axes]]:
    """Create a figure of page width with a footer; return the figure and its panels, row by row.

    On a phone, the panels form one column, and shared axis labels are repeated.

    Args:
        height: height of the wide figure in inches, without the footer.
        ratios: relative widths of the columns.
        heights: relative heights of the rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shape = {"nrows": rows, "ncols": columns, "width_ratios": ratios, "height_ratios": heights}
    if narrow():
        count = rows * columns
        least, usual = (1.55 if count > 6 else 1.9), (height - 0.3) / rows
        height = count * max(least, usual) + 0.1
        shape = {"nrows": count, "ncols": 1, "height_ratios": heights}
    size = (NARROW if narrow() else WIDTH, height)
    figure = Figure(figsize=size, dpi=svg.POINTS, layout="constrained")
    FigureCanvasAgg(figure)  # measures legends
    figure.patch.set_gid("paper")
    grid = list(figure.subplots(squeeze=False, sharey=sharey, **shape).flat)
    page = _PAGES[figure] = _page_of(footer, height)
    page.rows = [grid[i : i + columns] for i in range(0, len(grid), columns)]
    for ax in grid:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(length=0, left=False, bottom=False)
        ax.set_axisbelow(True)
    return figure, grid


_REDRAW = "Redraw: "


def sheet(height: float, footer: str) -> Figure:
    """Create a figure without panels, of the width of a page or phone, to be filled by hand.

    Args:
        height: height of the figure in inches, without the footer.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(NARROW if narrow() else WIDTH, height), dpi=svg.POINTS)
    figure.patch.set_gid("paper")
    _PAGES[figure] = _page_of(footer, height)
    return figure


def _page_of(footer: str, height: float) -> _Page:
    command = next((part for part in footer.splitlines() if part.startswith(_REDRAW)), "")
    note = " ".join(part for part in footer.splitlines() if part and part != command)
    return _Page(note, command.removeprefix(_REDRAW), height)


def _finish(figure: Figure) -> float:
    """Lay out a figure for good; return the height of its footer in points."""
    page = _PAGES.get(figure)
    if page is None:
        figure.draw_without_rendering()
        return 0.0
    _repeat_labels(page, visible=figure.get_figwidth() < WIDTH)
    places, above = _legend_places(page.legends, figure.get_figwidth())
    small_print = [
        *textwrap.wrap(page.note, _FOOT_COLUMNS),
        *textwrap.wrap(_REDRAW + page.command if page.command else "", _FOOT_COLUMNS),
    ]
    foot = 0.0
    if small_print and figure.get_figwidth() == WIDTH:
        foot = 0.08 + _FOOT_LINE * len(small_print)
    # wide figures already have room for one row of legends
    room = 0 if figure.get_figwidth() < WIDTH else _LEGEND_ROW
    height = page.height + max(0.0, above - room) + foot
    figure.set_figheight(height)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.set(rect=(0, foot / height, 1, 1 - (foot + above) / height))
    for ax in figure.axes if engine is None else ():
        x, y, wide, tall = ax.get_position().bounds
        ax.set_position((x, (y * page.height + foot) / height, wide, tall * page.height / height))
    for each, (x, y) in zip(page.legends, places, strict=True):
        each.set_bbox_to_anchor((x / figure.get_figwidth(), 1 - y / height))
    if foot:
        text = "\n".join(small_print)
        figure.text(0.006, 0.03 / height, text, color=MUTED, linespacing=1.25, gid="footer",
                    va="bottom", in_layout=False)  # fmt: skip
    figure.draw_without_rendering()
    if _fit_texts(page):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    _widen(page)
    for ax in figure.axes if engine is not None else ():
        ax.set_position(_snapped(ax))
    _place_texts(page)
    for ax, labels in page.ends:
        _spread(ax, labels)
    return foot * svg.POINTS


def _snapped(ax: Axes) -> list[float]:
    """Return the place of a panel in whole eighths of a point.

    The solver of constrained layouts rounds in varying ways, but the file must not vary.
    """
    wide, tall = (8 * svg.POINTS * inches for inches in ax.figure.get_size_inches())
    box = ax.get_position(original=True).bounds
    return [round(part * size) / size for part, size in zip(box, (wide, tall) * 2, strict=True)]


def _legend_places(legends: list[Legend], width: float) -> tuple[list[tuple[float, float]], float]:
    """Return where legends go, from the upper left in inches, and how high they are together."""
    places, x, y, high = [], 0.0, 0.0, 0.0
    for each in legends:
        wide, tall = _size_of(each)
        if x and x + wide > width:
            x, y, high = 0.0, y + high, 0.0
        places.append((x, y))
        x, high = x + wide + 0.15, max(high, tall)
    return places, y + high + (0.04 if legends else 0.0)


def _fit_texts(page: _Page) -> bool:
    """Break titles and axis labels that are longer than their panels; return whether any was.

    On a phone, titles begin at the left edge of the figure, and long labels end at the right edge.
    """
    changed = False
    for ax in (ax for row in page.rows for ax in row):
        box, figure = ax.get_window_extent(), ax.figure
        wide = svg.POINTS * figure.get_figwidth() if figure.get_figwidth() < WIDTH else box.width
        texts = ((ax._left_title, wide), (ax.xaxis.label, max(wide, 1.15 * box.width)),
                 (ax.yaxis.label, 1.1 * box.height))  # fmt: skip
        for text, room in texts:
            words = text.get_text()
            long = text.get_window_extent()
            length = long.height if text is ax.yaxis.label else long.width
            letters = max(map(len, words.split("\n")), default=0)
            if words and length > room:
                text.set_text(textwrap.fill(" ".join(words.split()), int(letters * room / length)))
                changed = changed or text.get_text() != words
        names = ax.get_xticklabels() if svg.categories(ax.xaxis) else []
        boxes = [name.get_window_extent() for name in names]
        if any(one.x1 + 2 > two.x0 for one, two in itertools.pairwise(boxes)):
            if names[0].get_rotation() == 0:
                slanted = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
                ax.set_xticks(ax.get_xticks(), [name.get_text() for name in names], **slanted)
                changed = True
    return changed


def _widen(page: _Page) -> None:
    """On a phone, widen panels into free space beside them, where other panels have labels."""
    for ax in (ax for row in page.rows for ax in row):
        width = ax.figure.get_window_extent().width
        if ax.figure.get_figwidth() == WIDTH or not ax.axison:
            continue
        outer = ax.get_tightbbox(for_layout_only=True)
        left, right = max(0.0, outer.x0 - 4), max(0.0, width - 4 - outer.x1)
        if left + right > _SPARE:
            box = ax.get_position()
            ax.set_position((box.x0 - left / width, box.y0, box.width + (left + right) / width,
                             box.height))  # fmt: skip


_SPARE = 30
"""A panel with more free space next to it than this, in points, is widened."""


def _place_texts(page: _Page) -> None:
    """Move titles to the left edge of a phone, and long x-axis labels to the right edge."""
    for ax in (ax for row in page.rows for ax in row):
        box, label = ax.get_window_extent(), ax.xaxis.label
        if ax.figure.get_figwidth() < WIDTH:
            ax._left_title.set_x((3 - box.x0) / box.width)
        if label.get_window_extent().width > box.width:
            label.set(x=1, ha="right")


def _repeat_labels(page: _Page, visible: bool) -> None:
    """Give panels without axis labels the labels of their row and column.

    Args:
        visible: draw these labels, as for panels in one column; else they only name the values.
    """
    for i, row in enumerate(page.rows):
        for j, ax in enumerate(row):
            if not ax.axison or not len(ax.get_xticks()):
                continue
            before = [left.get_ylabel() for left in row[:j]]
            if not ax.get_ylabel() and any(before) and not svg.categories(ax.yaxis):
                label = [text for text in before if text][-1]
                if visible:
                    ax.set_ylabel(label)
                svg.name_values(ax, label)
            below = [under[j].get_xlabel() for under in page.rows[i + 1 :] if j < len(under)]
            if visible and not ax.get_xlabel() and any(below):
                ax.set_xlabel(next(filter(None, below)))


def _size_of(legend: Legend) -> tuple[float, float]:
    """Return the width and height of a legend in inches."""
    box = legend.get_window_extent(legend.get_figure().canvas.get_renderer())
    return box.width / legend.get_figure().dpi, box.height / legend.get_figure().dpi


def say(ax: Axes, text: str) -> None:
    """Write `text` into an empty panel, to explain why it has no data."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for side in ax.spines.values():
        side.set(visible=True, color=GRID)
    centered = {"transform": ax.transAxes, "ha": "center", "va": "center"}
    ax.text(0.5, 0.5, text, **centered, color=MUTED, wrap=True)


def rows_where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Return the rows in which each named column has the given value."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def curve(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    color: str,
    factor: float = 1,
    bars: bool = False,
    name: str = "",
    **line: Any,
) -> None:
    """Plot the column `value` against the column `x`, with intervals if there are `low` and `high`.

    Args:
        factor: multiplies `value`, `low` and `high`.
        bars: draw intervals as bars instead of a band.
        name: name of the curve on hover.
    """
    at = frame[x].astype(float)
    (drawn,) = ax.plot(at, factor * frame.value.astype(float), color=color, **line)
    svg.register(drawn, svg.Series(name, flat=False))
    if "low" in frame:
        low, high = (factor * frame[bound].astype(float) for bound in ("low", "high"))
        svg.register(drawn, svg.Series(name, list(low), list(high), flat=False))
        if bars:
            ax.vlines(at, low, high, color=color, linewidth=1.1)
        else:
            ax.fill_between(at, low, high, color=color, alpha=0.13, linewidth=0)


def seed_band(
    ax: Axes, result: Result, points: pd.DataFrame, x: str, measure: str, factor: float = 1
) -> None:
    """Draw a pale band around curves of single runs: two sd over training seeds either way.

    Only the smallest and the largest size get a band, since more would hide each other. Nothing is
    drawn where the spread is not known. A study passes `seed_bands=True` to `conduct` to get it;
    `seed_note` is the note for the footer. The spread is for independent runs: the difference
    between two runs with the same seeds varies less.

    Args:
        points: the curves, with the columns `size`, `x`, `value`, and `percent` (of training) or
            `step`.
        measure: a measure of the study of seeds, e.g. "loss" (seed_spread.TABLE lists them).
        factor: multiplies `value` and the spread.
    """
    import numpy as np

    table = result.tables.get(seed_spread.TABLE)
    if table is None:
        return
    steps = scale_named(result.scale).steps
    sizes = sorted(set(points["size"]), key=nominal_parameters)
    for size in dict.fromkeys((*sizes[:1], *sizes[-1:])):
        curve = points[points["size"] == size].sort_values(x)
        percent = curve.percent if "percent" in curve else 100 * curve.step / steps
        half = 2 * seed_spread.spread_at(table, measure, size, percent.to_numpy(float))
        value = curve.value.to_numpy(float)
        low, high = value - half, value + half
        if measure in seed_spread.SHARES:
            low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        known = np.isfinite(low)
        if known.any():
            at, shape = curve[x].to_numpy(float), {"alpha": 0.16, "linewidth": 0, "zorder": 1}
            ax.fill_between(at[known], factor * low[known], factor * high[known],
                            color=size_color(size), **shape)  # fmt: skip


def seed_note(result: Result, measure: str = "loss") -> str:
    """Return the note for the footer of a figure with `seed_band`; "" if the spread is unknown."""
    table = result.tables.get(seed_spread.TABLE)
    if table is None:
        return ""
    sizes = result.params.size_list
    seeds = seed_spread.source_text(table, measure, (sizes[0], sizes[-1]))
    if not seeds:
        return ""
    return (
        "pale bands, smallest and largest size: \N{PLUS-MINUS SIGN} 2 sd over seeds, from runs on "
        f"the standard text ({seeds})"
    )


def size_curves(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    sizes: Iterable[str],
    factor: float = 1,
    banded: Iterable[str] | None = None,
    labeled: bool = False,
    **line: Any,
) -> None:
    """Plot one `curve` per model size, in the color of the size (column `size`).

    Args:
        banded: sizes drawn with intervals (many bands would hide each other); None: all sizes.
        labeled: write the sizes at the ends of their curves.
    """
    ends = []
    for size in sizes:
        points = rows_where(frame, size=size).sort_values(x)
        if banded is not None and size not in banded:
            points = points.drop(columns=["low", "high"], errors="ignore")
        curve(ax, points, x, size_color(size), factor, **({"name": size} | THIN | line))
        if len(known := points.dropna(subset=["value"])):
            last = known.iloc[-1]
            ends.append((size, float(last[x]), factor * float(last.value), size_color(size)))
    if labeled:
        end_labels(ax, ends)


def end_labels(ax: Axes, labels: Iterable[tuple[str, float, float, str]]) -> None:
    """Write labels to the right of a panel, each at the height of the end of its curve.

    Labels that would overlap are moved apart, and a thin line connects each to its curve.

    Args:
        labels: (text, x and y of the end of the curve, color of the curve).
    """
    labels = [label for label in labels if math.isfinite(label[2])]
    for text, _, y, color in labels:  # the layout makes room for them
        ax.annotate(text, (1, y), (_GAP, 0), ("axes fraction", "data"), "offset points",
                    color=text_color(color), va="center", annotation_clip=False)  # fmt: skip
    _PAGES[ax.figure].ends.append((ax, labels))


_GAP, _LINE = 9.0, 10.5
"""Distance of end labels from the panel, and between two of them, in points."""


def _spread(ax: Axes, labels: list[tuple[str, float, float, str]]) -> None:
    """Move the labels at the ends of curves apart, after the layout is final."""
    texts = {id(t): t for t in ax.texts}.values()
    places = sorted(
        (float(ax.transData.transform((x, y))[1]), text, x, y, color)
        for text, x, y, color in labels
    )
    heights = spread([place[0] for place in places], _LINE)
    box = ax.get_window_extent()
    shift = min(0.0, box.y1 - 3 - heights[-1]) if heights else 0.0
    shift = max(shift, box.y0 - heights[0]) if heights else 0.0
    for height, (old, text, x, y, color) in zip(heights, places, strict=True):
        moved = height + shift - old
        label = next(t for t in texts if t.get_text() == text and t.xy == (1, y))
        label.set_position((_GAP, moved))
        end = ax.transData.transform((x, y))
        path = ((end[0] + 2, end[1]), (box.x1 + _GAP - 2, height + shift))
        points = [ax.transAxes.inverted().transform(place) for place in path]
        (link,) = ax.plot(*zip(*points, strict=True), transform=ax.transAxes, color=color,
                          linewidth=0.5, alpha=0.6, clip_on=False, scalex=False,
                          scaley=False)  # fmt: skip
        svg.hide(link)


def spread(heights: list[float], least: float) -> list[float]:
    """Return sorted heights that are at least `least` apart, each near its old place.

    Overlapping labels form groups, which stay centered on the mean of their old heights.
    """
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1:
            (low, high) = groups[-2:]
            top = sum(low) / len(low) + least * (len(low) - 1) / 2
            bottom = sum(high) / len(high) - least * (len(high) - 1) / 2
            if bottom - top >= least:
                break
            groups[-2:] = [low + high]
    return [
        sum(group) / len(group) + least * (i - (len(group) - 1) / 2)
        for group in groups
        for i in range(len(group))
    ]


def line(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    size: str,
    arm: str,
    factor: float = 100,
    dense: bool = False,
) -> None:
    """Plot a `curve` in the color of the model size and the line style of the arm.

    Args:
        arm: the control or an intervention, a key of ARM_STYLES.
        dense: use a thinner line and smaller markers, for many points.
    """
    width, marker = (1.1, 1.8) if dense else (1.5, 3.4)
    shape = {**ARM_STYLES[arm], "linewidth": width, "markersize": marker, "markeredgewidth": 0}
    shape["name"] = f"{size}, {ARM_LABELS[arm]}"
    curve(ax, frame.sort_values(x), x, size_color(size), factor, **shape)


def interval_point(
    ax: Axes,
    at: float,
    row: Any,
    color: str,
    factor: float = 100,
    width: float = 1.3,
    flat: bool = False,
    name: str = "",
    **shape: Any,
) -> None:
    """Draw a value as a point with its interval as a bar.

    Args:
        at: position on the x axis or, if `flat`, on the y axis.
        row: has the attributes `value`, `low` and `high`, which are multiplied by `factor`.
        name: name of the point on hover; by default the attribute `size` of the row, if any.
    """
    value, low, high = (factor * float(x) for x in (row.value, row.low, row.high))
    bar, point = ([at, at], [low, high]), ([at], [value])
    if flat:
        bar, point = bar[::-1], point[::-1]
    (whisker,) = ax.plot(*bar, color=color, linewidth=width, solid_capstyle="butt")
    svg.hide(whisker)
    (dot,) = ax.plot(*point, color=color, **({"marker": "o", "linestyle": ""} | shape))
    size = getattr(row, "size", "")
    name = name or (size if isinstance(size, str) else "")
    svg.register(dot, svg.Series(name, [low], [high], flat=flat))


def size_points(
    ax: Axes,
    frame: pd.DataFrame,
    sizes: Iterable[str],
    column: str,
    marks: dict[Any, dict[str, Any]],
    factor: float = 100,
    names: dict[Any, str] | None = None,
    **shape: Any,
) -> None:
    """Draw a point with its interval for each size (on the x axis) and each value of `column`.

    Args:
        frame: has the columns `size`, `value`, `low`, `high`, and the column named by `column`.
        marks: maps each value of `column` to its `mark`. Filled markers get the color of the size.
        names: maps values of `column` to their names on hover.
    """
    sizes = list(sizes)
    for j, (key, mark) in enumerate(marks.items()):
        shift = 0.22 * (j - (len(marks) - 1) / 2)
        for row in rows_where(frame, **{column: key}).itertuples():
            at, color = sizes.index(row.size) + shift, size_color(row.size)
            face = "white" if mark["markerfacecolor"] == "white" else color
            name = (names or {}).get(key, key if isinstance(key, str) else f"{column} {key}")
            look = {"markersize": 5, "marker": mark["marker"], "markerfacecolor": face}
            look["name"] = f"{row.size}, {name}"
            interval_point(ax, at, row, color, factor, **(look | shape))
    category_ticks(ax, sizes)
    ax.set_xlim(-0.6, len(sizes) - 0.4)


def category_ticks(ax: Axes, names: Iterable[str], **text: Any) -> None:
    """Label the positions 0, 1, 2, ... of the x axis with names, without grid lines."""
    names = list(names)
    ax.set_xticks(range(len(names)), names, **text)
    ax.grid(axis="x", visible=False)


def reference(ax: Axes, y: float | None = None, x: float | None = None) -> None:
    """Draw a thin dotted line at a value, e.g. at chance. The caption must explain the line."""
    draw, at = (ax.axhline, y) if x is None else (ax.axvline, x)
    draw(at, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)


def legend(where: Axes | Figure, lines: dict[str, dict[str, Any]], **options: Any) -> None:
    """Add a legend that maps labels to line properties, in as few rows as fit.

    The legend of a figure is above all panels; the legend of a panel is between its title and axes.
    Without lines there is no legend.
    """
    if not lines:
        return
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **({"color": MUTED} | shape), label=label) for label, shape in lines.items()
    ]
    whole = isinstance(where, Figure)
    figure = where if isinstance(where, Figure) else where.figure
    room = figure.get_figwidth()
    if not whole:
        room = 1.08 * room * where.get_subplotspec().get_position(figure).width
    options = {
        "loc": "upper left" if whole else "lower left",
        "bbox_to_anchor": (0, 1),
        "columnspacing": 1.3,
        "handletextpad": 0.5,
        "borderpad": 0.2,
        "borderaxespad": 0.0,
        **options,
    }
    for columns in range(min(options.pop("ncols", len(handles)), len(handles)), 0, -1):
        by_rows = [handle for k in range(columns) for handle in handles[k::columns]]
        drawn = where.legend(handles=by_rows, ncols=columns, **options)
        if columns == 1 or _size_of(drawn)[0] <= room:
            break
        drawn.remove()
    if whole:
        drawn.set_in_layout(False)
        _PAGES[figure].legends.append(drawn)
    else:
        title = where.get_title(loc="left")
        where.set_title(title, pad=svg.POINTS * _size_of(drawn)[1] + 2)


def mark(marker: str, hollow: bool = False) -> dict[str, Any]:
    """Return the line properties of a filled or hollow marker without a line."""
    face = "white" if hollow else MUTED
    return {"marker": marker, "linestyle": "", "markerfacecolor": face}


def size_legend(where: Axes | Figure, sizes: Iterable[str], **options: Any) -> None:
    """Add a legend with the colors of model sizes."""
    lines = {size: {"color": size_color(size), "linewidth": 3} for size in sizes}
    legend(where, lines, handlelength=1.4, columnspacing=1.2, **options)


def arm_legend(figure: Figure, arms: Iterable[str] = tuple(ARM_LABELS)) -> None:
    """Add a legend of arms (control, interventions: keys of ARM_LABELS) above the panels."""
    lines = {ARM_LABELS[arm]: mark("o", arm == "control") | ARM_STYLES[arm] for arm in arms}
    legend(figure, lines, handlelength=2.6)


def padded_limits(low: float, high: float, least: float) -> tuple[float, float]:
    """Return axis limits that include [low, high] with a margin and are at least `least` apart.

    If `low` or `high` is not finite, the limits are 0 and `least`.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return 0.0, least
    middle, half = (low + high) / 2, max(high - low, least) / 2 * 1.08
    return middle - half, middle + half


# --- shared by all studies -------------------------------------------------------------------


def footer(result: Result, *notes: str) -> str:
    """Return the footer of a figure: notes, and the command that runs the study again."""
    record = {"study": result.study, "scale": result.scale, "parameters": result.parameters}
    lines = ["; ".join(filter(None, notes)), f"Redraw: {records.command(record)}"]
    return "\n".join(filter(None, lines))


@contextlib.contextmanager
def canvas(
    result: Result, columns: int, height: float, *notes: str, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Create `panels` in the book's style, with the footer of a study; `panels` gets `options`."""
    with style():
        yield panels(columns, height, footer(result, *notes), **options)


def write_record(result: Result) -> Note:
    """Write the record of a run; return a note with its origin and the command to repeat the run.

    If a notebook is run by hand, nothing is written, and the note says how to record the run.
    """
    folder = records.record_folder()
    if folder is None:
        made_by = {"study": result.study, "scale": result.scale, "parameters": result.parameters}
        return Note(f"This run was not recorded. To record it: {records.command(made_by)}")
    return Note(records.provenance(records.read_record(records.save_record(result, folder))))


class ClaimsTable:
    """The claims of a study with their verdicts, which a notebook shows as tables with a note."""

    def __init__(self, claims: list[dict[str, Any]], note: str = "") -> None:
        self.claims, self.note = claims, note

    @property
    def frame(self) -> pd.DataFrame:
        """The claims as plain text, one row per claim."""
        return claims_frame(self.claims)

    def _repr_html_(self) -> str:
        return claims_html(self.claims, self.note, link="../method.html#verdicts")

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)


def claims_table(result: Result, note: str = "") -> ClaimsTable:
    """Return the tables of a study's claims, premises and checks."""
    return ClaimsTable(result.claims, note)


def twin_shares(ax: Axes, frame: pd.DataFrame, sizes: tuple[str, ...]) -> None:
    """Plot the percentage of rows memorized by each size, on standard and on deduplicated text.

    Args:
        frame: has the columns `size`, `arm` ("standard" or "deduplicated"), `value`, `low`, `high`.
            The last three are fractions.
    """
    marks = {"standard": mark("s"), "deduplicated": mark("o", hollow=True)}
    size_points(ax, frame, sizes, "arm", marks)
    legend(ax, marks)
    ax.set(xlabel="parameters without embeddings", ylabel="% of rows memorized")


def interval(value: Any, low: float | None, high: float | None) -> str:
    """Format a value with its interval, if any; a value of None is "not measured"."""
    if value is None:
        return "not measured"
    if low is None:
        return records.number_text(value)
    return records.value_text({"value": value, "low": low, "high": high})
