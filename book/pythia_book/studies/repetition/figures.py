"""Figures of the repetition study: how much worse repeated data are than fresh data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book import palette, style, svg
from pythia_book.records import number_text
from pythia_book.studies.repetition import law
from pythia_book.studies.repetition.claims import NEGLIGIBLE
from pythia_book.style import DASH, Drawing, Table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

NOTHING = "no last checkpoint\ncould be measured"


def epochs_colour(epochs: int, passes: tuple[int, ...]) -> str:
    """Return the colour for a number of epochs in `passes`; the fewer epochs, the darker."""
    return style.shade(passes.index(epochs) / (len(passes) - 1))


@style.figure
def cost_and_worth(result: Result) -> Drawing:
    """Draw by how many percent repeating raises the loss, and what repeated data are worth."""
    params = result.params
    excess, worth = _last(result, "effects"), result.tables["worth"]
    notes = f"bars: 95 % intervals over {number_text(result.values['n_rows'])} held-out rows"
    with style.canvas(result, 2, 3.0, notes) as (figure, (cost, shares)):
        cost.axhspan(-NEGLIGIBLE, NEGLIGIBLE, color=style.GRID, linewidth=0, zorder=0)
        style.reference(cost, 0)
        for size in params.size_list:
            _points(cost, excess, size)
            best = style.rows_where(worth, at="best")
            _points(shares, best, size, hollow=True, name="best checkpoint")
            _points(shares, style.rows_where(worth, at="end"), size, name="at the end")
        if excess.empty:
            style.say(cost, NOTHING)
        else:
            _epochs_axis(cost, params.epoch_list)
        cost.set_ylabel("held-out loss, % above fresh data")
        passes = np.geomspace(1, params.epoch_list[-1], 100)
        by_data = [100 * law.data_share(r) for r in passes]
        shares.plot(passes, by_data, color=style.MUTED, linewidth=1.2, label="the law's data term")
        counts = result.measured.facts["parameters"][params.size_list[-1]]
        tokens = result.values["tokens"]
        whole = [
            [100 * law.whole_share(counts[kind], tokens, r) for r in passes]
            for kind in ("all", "non_embedding")
        ]
        shares.fill_between(passes, *whole, color=style.MUTED, alpha=0.25, linewidth=0)
        thin = {"color": style.MUTED, "linewidth": 0.8, "linestyle": (0, (1, 2))}
        svg.hide(*shares.plot(passes, 100 / passes, **thin))
        shares.set_ylim(0, 105)
        shares.set_ylabel("worth, % of as much fresh data")
        _epochs_axis(shares, params.epoch_list)
        shapes = {
            "at the end": {"marker": "o", "linestyle": "-", "markerfacecolor": style.MUTED},
            "best checkpoint": {"marker": "o", "linestyle": "--", "markerfacecolor": "white"},
            "the law's data term": {"linestyle": "-", "color": style.MUTED, "linewidth": 1.2},
            "the whole law": {"linestyle": "-", "color": palette.PALE, "linewidth": 6},
        }
        style.legend(figure, shapes)
        if len(params.size_list) > 1:
            style.size_legend(figure, params.size_list)
        numbers = (
            f"{row.size} {row.epochs} epochs {row.value:+.2f} %" for row in excess.itertuples()
        )
        return Drawing(figure, "Held-out loss above fresh data", numbers)


@style.figure
def over_training(result: Result) -> Drawing:
    """Draw the largest size's held-out loss over training, and its percentage above fresh data."""
    params, size = result.params, result.params.size_list[-1]
    with style.canvas(result, 2, 3.0, f"model of {size} parameters") as (figure, (levels, above)):
        for ax, name in ((levels, "levels"), (above, "effects")):
            frame = style.rows_where(result.tables[name], size=size)
            if frame.empty:
                style.say(ax, NOTHING.replace("last ", ""))
                continue
            ends: list[tuple[str, float, float, str]] = []
            for r in params.epoch_list:
                points = style.rows_where(frame, epochs=r).sort_values("percent")
                points = points if ax is above else points.drop(columns=["low", "high"])
                colour = epochs_colour(r, params.epoch_list)
                text = f"{r} epochs" if r > 1 else "1 epoch"
                style.curve(ax, points, "percent", colour, name=text, **style.THIN)
                for row in points.dropna(subset=["value"]).tail(1).itertuples():
                    ends.append((text, row.percent, row.value, colour))
            style.end_labels(ax, ends)
            ax.set_xlim(0, 100)
            ax.set_xlabel("% of training")
        levels.set_ylabel("held-out loss, nats per token")
        style.reference(above, 0)
        above.set_ylabel("% above fresh data")
        last = style.rows_where(_last(result, "levels"), size=size)
        numbers = (f"{row.epochs} epochs {row.value:.3f}" for row in last.itertuples())
        return Drawing(figure, f"Held-out loss of {size} at the end", numbers)


@style.figure
def read_rows(result: Result) -> Drawing:
    """Draw final loss on held-out rows and on rows that all arms read, and memorized rows."""
    params, memorized = result.params, result.tables["memorized"]
    heldout, read = _last(result, "levels"), result.tables["read"]
    n = int(memorized.n.max()) if len(memorized) else 0
    notes = f"bars: 95 % intervals; all arms have read the same {n} rows"
    with style.canvas(result, 2, 2.9, notes) as (figure, (losses, recited)):
        for size in params.size_list:
            _points(losses, heldout, size, name="held-out rows")
            _points(losses, read, size, hollow=True, name="rows read")
            _points(recited, memorized, size, 100)
        for ax, frame in ((losses, heldout), (recited, memorized)):
            if frame.empty:
                style.say(ax, NOTHING)
            else:
                _epochs_axis(ax, params.epoch_list)
        losses.set_ylabel("loss at the end, nats per token")
        recited.set_ylabel("% of these rows memorized")
        shapes = {
            "held-out rows": {"marker": "o", "linestyle": "-", "markerfacecolor": style.MUTED},
            "rows read": {"marker": "o", "linestyle": "--", "markerfacecolor": "white"},
        }
        style.legend(figure, shapes)
        if len(params.size_list) > 1:
            style.size_legend(figure, params.size_list)
        numbers = (f"{row.size} {row.epochs} epochs {row.value:.3f}" for row in read.itertuples())
        return Drawing(figure, "Loss at the end, held-out and read rows", numbers)


def arms_table(result: Result) -> Table:
    """Return a table of the runs of the largest size, with one row per number of epochs.

    The worth of an arm is given as measured and as predicted by the law. It is 100 % if repeated
    data are worth as much as fresh data.
    """
    import pandas as pd

    params, size = result.params, result.params.size_list[-1]
    loss, excess, worth = _last(result, "levels"), _last(result, "effects"), result.tables["worth"]
    counts, tokens = result.measured.facts["parameters"][size], result.values["tokens"]
    rows = []
    for r in params.epoch_list:
        again = r > 1
        by_law = [
            100 * law.whole_share(counts[kind], tokens, r) for kind in ("all", "non_embedding")
        ]
        row = {
            "Epochs": r,
            "Different rows": number_text(params.rows(r)),
            "Held-out loss [95 %]": _cell(loss, size, r),
            "% above fresh data": _cell(excess, size, r) if again else DASH,
        }
        for at, name in (("end", "at the end"), ("best", "at the best checkpoint")):
            shown = style.rows_where(worth, at=at)
            row[f"Worth in %, {name}"] = _cell(shown, size, r) if again else DASH
        row["by the law's data term"] = number_text(100 * law.data_share(r)) if again else DASH
        ends = " to ".join(number_text(share, 0) for share in by_law)
        row["by the whole law"] = ends if again else DASH
        rows.append(row)
    caption = (
        f"Arms of {size} parameters after {number_text(params.n_steps)} updates; worth in % of as "
        "much fresh data; the whole law with N counted with and without embeddings, far outside "
        "the sizes that it was fitted to"
    )
    return Table(pd.DataFrame(rows), caption)


def _last(result: Result, table: str) -> pd.DataFrame:
    """Return those rows of the result's table `table` that are about the last step."""
    return style.rows_where(result.tables[table], step=result.params.n_steps)


def _cell(frame: pd.DataFrame, size: str, epochs: int) -> str:
    """Format the value and interval of one size and number of epochs, or say "not measured"."""
    for row in style.rows_where(frame, size=size, epochs=epochs).itertuples():
        return style.interval(row.value, row.low, row.high)
    return "not measured"


def _points(
    ax: Axes,
    frame: pd.DataFrame,
    size: str,
    factor: float = 1,
    hollow: bool = False,
    name: str = "",
) -> None:
    """Draw the values of one size, times `factor`, against the number of epochs."""
    points, colour = style.rows_where(frame, size=size), style.size_colour(size)
    dashes, face = ("--", "white") if hollow else ("-", colour)
    shape = {"marker": "o", "linewidth": 1.1, "linestyle": dashes, "markerfacecolor": face}
    shape["name"] = ", ".join(filter(None, (size, name)))
    style.curve(ax, points.sort_values("epochs"), "epochs", colour, factor, bars=True, **shape)


def _epochs_axis(ax: Axes, passes: tuple[int, ...]) -> None:
    """Make the x axis a logarithmic axis of epochs, with a tick for each number in `passes`."""
    ax.set_xscale("log", base=2)
    ax.set_xlim(passes[0] / 1.15, passes[-1] * 1.15)
    ax.set_xticks(passes, [str(r) for r in passes])
    ax.minorticks_off()
    ax.set_xlabel("epochs at equal compute", color=style.INK)
