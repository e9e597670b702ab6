"""Defines the common look of all figures of the book: style, palette, SVG output and tables.

Each model size has one colour in all figures, from a colour-blind-safe colour map. Each arm of an
intervention has one line style and marker. Drawings are made without pyplot, hence without global
state. The same numbers give the same bytes of SVG. A white background keeps figures readable on
dark pages.
"""

from __future__ import annotations

import contextlib
import functools
import html
import io
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_book import records
from pythia_book.claim_tables import claims_frame, claims_html
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import GPU_SIZES, LAPTOP_SIZES, OFFICIAL_SIZES
from pythia_core.util.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pythia_book.study import Result


INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e3e3e3"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Colours for anything but model sizes; colour-blind readers can tell them apart."""
DASH = "\N{EN DASH}"
"""Marks an empty cell of a table."""
WIDTH = 7.4
"""Width of a page's text column, in inches."""

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
    "svg.fonttype": "none",  # text stays text: small files, selectable, searchable
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
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


def size_colour(size: str) -> str:
    """Return the colour of a model size. Smaller sizes are darker.

    Raises:
        ConfigError: the size is unknown.
    """
    for sizes in (LAPTOP_SIZES, GPU_SIZES, OFFICIAL_SIZES):
        if size in sizes:
            return shade(0.84 * list(sizes).index(size) / (len(sizes) - 1), "plasma")
    raise ConfigError(one_of(size, [*LAPTOP_SIZES, *GPU_SIZES, *OFFICIAL_SIZES], "size"))


def shade(position: float, colours: str = "viridis") -> str:
    """Return the colour of a colour map at a position in [0, 1]; above 0.86, too pale on white."""
    import matplotlib

    return matplotlib.colors.to_hex(matplotlib.colormaps[colours](position))


TABLE = "application/vnd.pythia.table+json"
"""MIME type of the content of a `Table`, from which a page makes a numbered table."""


class Drawing:
    """A finished figure, which a notebook shows as SVG, with a description for screen readers.

    Args:
        numbers: main numbers to append to the description, e.g. "25k 3.012".
    """

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
            self.figure.savefig(stream, format="svg", metadata=metadata)
        text = stream.getvalue()
        # A screen reader gets the description; "<title>" would also show up as a tool tip.
        label = html.escape(self.description, quote=True)
        return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)

    def save(self, path: Path) -> None:
        """Write the SVG to a file, atomically."""
        with atomic_file(Path(path)) as target:
            target.write_text(self.svg, encoding="utf-8")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"image/svg+xml": self.svg, "text/plain": self.description}


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
        return {"text/html": self.html, "text/plain": repr(self), TABLE: self.content}

    @property
    def content(self) -> dict[str, Any]:
        """The caption, the column names and the cells as texts, which a page makes a table of."""
        import pandas as pd

        rows = self.frame.astype(object).where(pd.notna(self.frame), DASH).to_numpy().tolist()
        return {
            "caption": self.caption,
            "columns": [str(name) for name in self.frame.columns],
            "rows": [[str(cell) for cell in row] for row in rows],
            "code": list(self.code),
            "strong": self.strong,
        }

    @property
    def html(self) -> str:
        """The table as HTML, for a notebook."""
        caption = f"<caption>{html.escape(self.caption)}</caption>" if self.caption else ""
        body = self.frame.to_html(index=False, escape=True, border=0, classes="pythia-table")
        return body.replace("<thead>", f"{caption}<thead>", 1)

    def __repr__(self) -> str:
        return self.frame.to_string(index=False)


# --- parts of figures ------------------------------------------------------------------------


def panels(
    columns: int,
    height: float,
    footer: str,
    sharey: bool = False,
    ratios: Any = None,
    rows: int = 1,
) -> tuple[Figure, list[Axes]]:
    """Create a figure of page width with a footer; return the figure and its panels, row by row.

    Args:
        height: height of the figure in inches.
        ratios: relative widths of the columns.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    margin = 0.02 + 0.13 * (1 + footer.count("\n")) / height
    figure.get_layout_engine().set(rect=(0, margin, 1, 1 - margin))
    figure.text(0.008, 0.012, footer, fontsize=6.5, color=MUTED, linespacing=1.3)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey, width_ratios=ratios)
    for ax in grid.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(length=0)
        ax.set_axisbelow(True)
    return figure, list(grid.flat)


def say(ax: Axes, text: str) -> None:
    """Write `text` into an empty panel, to explain why it has no data."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for side in ax.spines.values():
        side.set(visible=True, color=GRID)
    centred = {"transform": ax.transAxes, "ha": "center", "va": "center"}
    ax.text(0.5, 0.5, text, **centred, color=MUTED, fontsize=8, wrap=True)


def rows_where(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Return the rows in which each named column has the given value."""
    for column, value in values.items():
        frame = frame[frame[column] == value]
    return frame


def curve(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    colour: str,
    factor: float = 1,
    bars: bool = False,
    **line: Any,
) -> None:
    """Plot the column `value` against the column `x`, with intervals if there are `low` and `high`.

    Args:
        factor: multiplies `value`, `low` and `high`.
        bars: draw intervals as bars instead of a band.
    """
    at = frame[x].astype(float)
    ax.plot(at, factor * frame.value.astype(float), color=colour, **line)
    if "low" in frame:
        low, high = (factor * frame[bound].astype(float) for bound in ("low", "high"))
        if bars:
            ax.vlines(at, low, high, color=colour, linewidth=1.1)
        else:
            ax.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)


def size_curves(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    sizes: Iterable[str],
    factor: float = 1,
    banded: Iterable[str] | None = None,
    **line: Any,
) -> None:
    """Plot one `curve` per model size, in the colour of the size (column `size`).

    Args:
        banded: sizes drawn with intervals (many bands would hide each other); None: all sizes.
    """
    for size in sizes:
        points = rows_where(frame, size=size).sort_values(x)
        if banded is not None and size not in banded:
            points = points.drop(columns=["low", "high"], errors="ignore")
        curve(ax, points, x, size_colour(size), factor, **(THIN | line))


def line(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    size: str,
    arm: str,
    factor: float = 100,
    dense: bool = False,
) -> None:
    """Plot a `curve` in the colour of the model size and the line style of the arm.

    Args:
        arm: the control or an intervention, a key of ARM_STYLES.
        dense: use a thinner line and smaller markers, for many points.
    """
    width, marker = (1.1, 1.8) if dense else (1.5, 3.4)
    shape = {**ARM_STYLES[arm], "linewidth": width, "markersize": marker, "markeredgewidth": 0}
    curve(ax, frame.sort_values(x), x, size_colour(size), factor, **shape)


def interval_point(
    ax: Axes,
    at: float,
    row: Any,
    colour: str,
    factor: float = 100,
    width: float = 1.3,
    flat: bool = False,
    **shape: Any,
) -> None:
    """Draw a value as a point with its interval as a bar.

    Args:
        at: position on the x axis or, if `flat`, on the y axis.
        row: has the attributes `value`, `low` and `high`, which are multiplied by `factor`.
    """
    value, low, high = (factor * float(x) for x in (row.value, row.low, row.high))
    bar, point = ([at, at], [low, high]), ([at], [value])
    if flat:
        bar, point = bar[::-1], point[::-1]
    ax.plot(*bar, color=colour, linewidth=width, solid_capstyle="butt")
    ax.plot(*point, color=colour, **({"marker": "o"} | shape))


def size_points(
    ax: Axes,
    frame: pd.DataFrame,
    sizes: Iterable[str],
    column: str,
    marks: dict[Any, dict[str, Any]],
    factor: float = 100,
    **shape: Any,
) -> None:
    """Draw a point with its interval for each size (on the x axis) and each value of `column`.

    Args:
        frame: has the columns `size`, `value`, `low`, `high`, and the column named by `column`.
        marks: maps each value of `column` to its `mark`. Filled markers get the colour of the size.
    """
    sizes = list(sizes)
    for j, (key, mark) in enumerate(marks.items()):
        shift = 0.22 * (j - (len(marks) - 1) / 2)
        for row in rows_where(frame, **{column: key}).itertuples():
            at, colour = sizes.index(row.size) + shift, size_colour(row.size)
            face = "white" if mark["markerfacecolor"] == "white" else colour
            look = {"markersize": 5, "marker": mark["marker"], "markerfacecolor": face}
            interval_point(ax, at, row, colour, factor, **(look | shape))
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
    """Add a legend that maps labels to line properties, by default as one row above the panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **({"color": MUTED} | shape), label=label) for label, shape in lines.items()
    ]
    if "loc" not in options:
        options |= {"loc": "outside upper left", "ncols": len(lines)}
    where.legend(handles=handles, **options)


def mark(marker: str, hollow: bool = False) -> dict[str, Any]:
    """Return the line properties of a filled or hollow marker without a line."""
    face = "white" if hollow else MUTED
    return {"marker": marker, "linestyle": "", "markerfacecolor": face}


def size_legend(where: Axes | Figure, sizes: Iterable[str], **options: Any) -> None:
    """Add a legend with the colours of model sizes."""
    lines = {size: {"color": size_colour(size), "linewidth": 3} for size in sizes}
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
    legend(ax, marks, loc="upper left")
    ax.set(xlabel="parameters without embeddings", ylabel="% of rows memorized")


def interval(value: Any, low: float | None, high: float | None) -> str:
    """Format a value with its interval, if any; a value of None is "not measured"."""
    if value is None:
        return "not measured"
    if low is None:
        return records.number_text(value)
    return records.value_text({"value": value, "low": low, "high": high})
