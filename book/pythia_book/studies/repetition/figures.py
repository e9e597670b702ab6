"""Figures and tables of the repetition study, as the page shows them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book import style, svg
from pythia_book.records import number_text
from pythia_book.studies.repetition.law import constant_text, range_text
from pythia_book.style import DASH, Drawing, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

NOTHING = "nothing could\nbe measured"
FEW = "the laws need at least\nthree sizes"
RIVALS = {
    "none": "no decay",
    "theirs": "R*_D, R*_N of the source",
    "data": "only data decay",
    "whole": "the whole law",
    "penalty": "additive penalty",
}
"""Names of the laws for readers, in the order of figures and tables."""


def epochs_color(epochs: int, passes: tuple[int, ...]) -> str:
    """Return the color for a number of epochs in `passes`; the fewer epochs, the darker."""
    return style.shade(passes.index(epochs) / (len(passes) - 1))


def _intervals(result: Result) -> str:
    """Say what bands and bars are; with one seed there are none."""
    seeds = result.params.seeds
    return f"intervals: 95 %, over {seeds} seeds" if seeds > 1 else "one seed: no intervals"


@style.figure
def over_training(result: Result) -> Drawing:
    """Draw the held-out loss of the arms over training, one panel per size."""
    params, table = result.params, result.tables["levels"]
    sizes = params.size_list
    with style.canvas(result, len(sizes), 3.0, _intervals(result), sharey=True) as (figure, grid):
        numbers = []
        for size, ax in zip(sizes, grid, strict=True):
            frame = style.rows_where(table, size=size)
            if frame.empty:
                style.say(ax, NOTHING)
                continue
            for r in params.epoch_list:
                points = style.rows_where(frame, epochs=r).sort_values("percent")
                text = f"{r} epochs" if r > 1 else "1 epoch"
                style.curve(ax, points, "percent", epochs_color(r, params.epoch_list), name=text,
                            **style.THIN)  # fmt: skip
                if len(points):
                    numbers.append(f"{size} {text} {points.value.iloc[-1]:.3f}")
            ax.set_xlim(0, 102)
            ax.set_xlabel("% of training")
            ax.set_title(f"{size} parameters")
        grid[0].set_ylabel("held-out loss, nats per token")
        lines = {
            str(r): {"color": epochs_color(r, params.epoch_list), "linewidth": 2.5}
            for r in params.epoch_list
        }
        first, *others = lines
        named = {f"{first} epoch": lines[first]} | {name: lines[name] for name in others}
        style.legend(figure, named, handlelength=1.4)
        return Drawing(figure, "Held-out loss at the end of training", numbers)


SERIES = {
    "end": ("at the end", {"marker": "o", "linestyle": "-"}),
    "best": ("best checkpoint", {"marker": "o", "linestyle": "--", "markerfacecolor": "white"}),
    "planned": ("planned to stop early", {"marker": "^", "linestyle": ":"}),
}
"""How the worth of repeated data is measured: the name and the look of each way."""
AT_MOST = {"marker": "v", "linestyle": "", "markerfacecolor": "white", "markersize": 8}
"""The look of a worth that is only an upper bound."""


@style.figure
def worth(result: Result) -> Drawing:
    """Draw what repeated data are worth, against the number of epochs, one panel per size."""
    params, table, curves = result.params, result.tables["worth"], result.tables["curves"]
    sizes = params.size_list
    with style.canvas(result, len(sizes), 3.0, _intervals(result), sharey=True) as (figure, grid):
        for size, ax in zip(sizes, grid, strict=True):
            color = style.size_color(size)
            for law, dashes in (("theirs, data term", "-"), ("ours", "--")):
                points = style.rows_where(curves, size=size, law=law)
                label = f"law, {'fitted here' if law == 'ours' else law}"
                ax.plot(points.epochs, points.value, color=style.MUTED, linewidth=1.2,
                        linestyle=dashes, label=label)  # fmt: skip
            passes = np.geomspace(1, params.epoch_list[-1], 50)
            thin = {"color": style.MUTED, "linewidth": 0.8, "linestyle": (0, (1, 2))}
            svg.hide(*ax.plot(passes, 100 / passes, **thin))
            for i, (at, (name, look)) in enumerate(SERIES.items()):
                points = style.rows_where(table, size=size, at=at).sort_values("epochs")
                points = points.assign(epochs=points.epochs * 2 ** (0.08 * (i - 1)))
                shape = {"linewidth": 1.1, "markerfacecolor": color, "name": f"{size}, {name}"}
                style.curve(ax, points, "epochs", color, bars=True, **(shape | look))
                bounds = points[points.at_most.astype(bool)]
                svg.hide(*ax.plot(bounds.epochs, bounds.value, color=color, **AT_MOST))
            ax.set_ylim(0, 112)
            ax.set_title(f"{size} parameters")
            _epochs_axis(ax, params.epoch_list)
        grid[0].set_ylabel("worth, % of as much fresh data")
        shapes = {name: {"markerfacecolor": style.MUTED} | look for name, look in SERIES.values()}
        if table.at_most.any():
            shapes["at most"] = AT_MOST
        shapes["law of the source, data term"] = {"linewidth": 1.2}
        shapes["whole law, fitted here"] = {"linewidth": 1.2, "linestyle": "--"}
        style.legend(figure, shapes)
        rows = style.rows_where(table, at="end").itertuples()
        numbers = (
            f"{row.size} {row.epochs} epochs {'at most ' * row.at_most}{row.value:.0f} %"
            for row in rows
        )
        return Drawing(figure, "Worth of repeated data at the end of training", numbers)


KINDS = {
    "checkpoint": ("best checkpoint of the arm", {"marker": "o"}),
    "planned": ("best planned number of epochs", {"marker": "^", "markerfacecolor": "white"}),
}
"""What can be lowest: the name and the look of each kind in the table `onset`."""


@style.figure
def onset(result: Result) -> Drawing:
    """Draw the epoch at which the loss begins to rise, and its rise, against the number of
    epochs."""
    params, table, rises = result.params, result.tables["onset"], result.tables["rise"]
    passes = params.epoch_list
    with style.canvas(result, 2, 3.0, _intervals(result)) as (figure, (where, rise)):
        if rises.empty:
            style.say(where, NOTHING)
            style.say(rise, NOTHING)
            return Drawing(figure, "Nothing could be measured")
        for i, size in enumerate(params.size_list):
            shift = 2 ** (0.14 * (i - (len(params.size_list) - 1) / 2))
            color = style.size_color(size)
            for kind, (name, look) in KINDS.items():
                for row in style.rows_where(table, size=size, kind=kind).itertuples():
                    if row.n and math.isfinite(row.value):
                        shape = {"name": f"{size}, {name}"} | look
                        style.interval_point(where, row.epochs * shift, row, color, 1, **shape)
            points = style.rows_where(rises, size=size).sort_values("epochs")
            points = points.assign(epochs=points.epochs * shift)
            style.curve(rise, points, "epochs", color, bars=True, name=size, marker="o",
                        linewidth=1.1)  # fmt: skip
        where.plot(passes[1:], passes[1:], color=style.MUTED, linewidth=0.8,
                   linestyle=(0, (1, 2)), label="no rise until the end")  # fmt: skip
        where.set_yscale("log", base=2)
        where.set_yticks(passes, [str(r) for r in passes])
        where.set_ylim(0.9, passes[-1] * 1.2)
        where.set_ylabel("epochs at which the loss is lowest")
        style.reference(rise, 0)
        rise.set_ylabel("rise at the end, nats per token")
        for ax in (where, rise):
            _epochs_axis(ax, passes[1:])
        style.size_legend(figure, params.size_list)
        shapes = {
            name: {"linestyle": "", "markerfacecolor": style.MUTED} | look
            for name, look in KINDS.values()
        }
        style.legend(figure, shapes)
        numbers = (f"{row.size} {row.epochs} epochs {row.value:+.3f}" for row in rises.itertuples())
        return Drawing(figure, "Rise of the held-out loss until the end", numbers)


@style.figure
def errors(result: Result) -> Drawing:
    """Draw how well each law predicts the runs that it has not seen."""
    table = result.tables["errors"]
    names = list(dict.fromkeys(table.left_out))
    panels = max(1, len(names))
    with style.canvas(result, panels, 2.3, _intervals(result), sharey=True) as (figure, grid):
        if not names:
            style.say(grid[0], FEW)
            return Drawing(figure, "No law was fitted")
        rivals = list(RIVALS)[::-1]
        for name, ax in zip(names, grid, strict=True):
            for row in style.rows_where(table, left_out=name).itertuples():
                at = rivals.index(row.rival)
                style.interval_point(ax, at, row, style.INK, 1, flat=True, name=RIVALS[row.rival])
            ax.set_yticks(range(len(rivals)), [RIVALS[rival] for rival in rivals])
            ax.set_xscale("log")
            ax.set_xlim(*_decades(style.rows_where(table, left_out=name)))
            ax.minorticks_off()
            ax.set_title(f"left out: {name}")
            ax.grid(axis="y", visible=False)
            ax.set_xlabel("error, % of the loss")
        numbers = (f"{row.left_out} {row.rival} {row.value:.2f}" for row in table.itertuples())
        return Drawing(figure, "Error of prediction, by law", numbers)


def _decades(frame: pd.DataFrame) -> tuple[float, float]:
    """Return axis limits just outside two powers of ten around the values, which get ticks."""
    logs = np.log10(frame.value[frame.value > 0])
    if logs.empty:
        return 0.1, 10.0
    return 0.8 * 10.0 ** math.floor(logs.min()), 1.25 * 10.0 ** math.ceil(logs.max())


def arms_table(result: Result) -> Table:
    """Return a table of the arms, with one row per size and number of epochs."""
    import pandas as pd

    params, table = result.params, result.tables["worth"]
    last = style.rows_where(result.tables["levels"], step=params.n_steps)
    rows = []
    for size in params.size_list:
        for r in params.epoch_list:
            cell = {"size": size, "epochs": r}
            row: dict[str, Any] = {
                "Size": size,
                "Epochs": r,
                "Distinct rows": number_text(params.rows(r)),
                "Held-out loss": _cell(last, **cell),
                "% above fresh data": _cell(result.tables["excess"], **cell) if r > 1 else DASH,
            }
            for at, (name, _) in SERIES.items():
                row[f"Worth in %, {name}"] = _cell(table, at=at, **cell) if r > 1 else DASH
            rows.append(row)
    caption = (
        f"Arms after {number_text(params.n_steps)} updates; worth in % of as much fresh data, "
        "at the end over all held-out rows, else over the half on which nothing was chosen; "
        f"{_intervals(result)}"
    )
    return Table(pd.DataFrame(rows), caption)


def constants_table(result: Result) -> Table:
    """Return a table of the constants of the law, ours and those of the source."""
    import pandas as pd

    frame = result.tables["constants"]
    rows = [
        {
            "Constant": row.constant,
            "Here": constant_text(math.inf if math.isnan(row.value) else row.value),
            "95 % interval over seeds": "at the bound of the search"
            if any(
                math.isclose(row.value, end, rel_tol=1e-3)
                for end in (row.profile_low, row.profile_high)
            )
            else _range(row.low, row.high, row.constant),
            "Profile interval": _range(row.profile_low, row.profile_high, row.constant),
            "Identified": "yes" if row.identified else "no",
            "In the source": constant_text(row.theirs) if row.theirs == row.theirs else DASH,
        }
        for row in frame.itertuples()
    ]
    caption = (
        "The law of Muennighoff et al., fitted to our runs, and its constants for C4; size term: "
        "A/N^alpha at the middle size; data term: B/D^beta at the middle length"
        if rows
        else "No law was fitted: a fit needs at least three sizes"
    )
    return Table(pd.DataFrame(rows), caption)


def _range(low: float, high: float, constant: str) -> str:
    """Format an interval; a missing end means infinity for R*, and no interval for others."""
    if math.isnan(low) and (math.isnan(high) or not constant.startswith("R*")):
        return DASH
    return range_text(*(math.inf if math.isnan(x) else x for x in (low, high)))


def _cell(frame: pd.DataFrame, **where: Any) -> str:
    """Format the value and interval of one row, or say "not measured"."""
    for row in style.rows_where(frame, **where).itertuples():
        if getattr(row, "at_most", False):
            return f"≤ {number_text(row.value)}"
        known = row.low < row.high
        return style.interval(row.value, *((row.low, row.high) if known else (None, None)))
    return "not measured"


def _epochs_axis(ax: Axes, passes: tuple[int, ...]) -> None:
    """Make the x axis a logarithmic axis of epochs, with a tick for each number in `passes`."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(passes[0] / 1.25, passes[-1] * 1.25)
    ax.set_xticks(passes, [str(r) for r in passes])
    ax.minorticks_off()
    ax.set_xlabel("epochs at equal compute", color=style.INK)
