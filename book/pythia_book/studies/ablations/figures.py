"""Figures and the table of the ablations study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book import style
from pythia_book.records import number_text
from pythia_book.studies.ablations.claims import MARGIN
from pythia_book.studies.ablations.params import ARMS, BASELINE, MEAN
from pythia_book.style import DASH, Drawing, Table

if TYPE_CHECKING:
    from pythia_book.study import Result


def _intervals(result: Result) -> str:
    """Say what bars and bands are; with one seed there are none."""
    seeds = result.params.seeds
    return f"intervals: 95 %, over {seeds} seeds" if seeds > 1 else "one seed: no intervals"


def _sizes(result: Result) -> list[str]:
    """Return the sizes and, if there are several, MEAN."""
    sizes = result.params.size_list
    return [*sizes, MEAN] if len(sizes) > 1 else [*sizes]


def _color(size: str) -> str:
    return style.INK if size == MEAN else style.size_color(size)


@style.figure
def differences(result: Result) -> Drawing:
    """Draw the final loss of every arm, minus Pythia's."""
    sizes, arms = _sizes(result), result.params.arm_list[1:]
    table = result.tables["differences"]
    final = style.rows_where(table, step=result.params.n_steps)
    with style.canvas(result, 1, 0.8 + 0.42 * len(arms), _intervals(result)) as (figure, (ax,)):
        ax.axvspan(-MARGIN, MARGIN, color=style.GRID, linewidth=0, zorder=0)
        style.reference(ax, x=0)
        for size in sizes:
            shift = 0.2 * (sizes.index(size) - (len(sizes) - 1) / 2)
            for row in style.rows_where(final, size=size).itertuples():
                at = arms.index(row.arm) + shift
                name = f"{size}, {ARMS[row.arm].title}"
                style.interval_point(ax, at, row, _color(size), 1, flat=True, name=name)
        ax.set_yticks(range(len(arms)), [ARMS[arm].title for arm in arms])
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("loss minus that of Pythia's architecture, nats per token")
        lines = {size: {"color": _color(size), "linewidth": 3} for size in sizes}
        style.legend(figure, lines, handlelength=1.4)
        means = style.rows_where(final, size=sizes[-1]).itertuples()
        numbers = (f"{ARMS[row.arm].title} {row.value:+.3f}" for row in means)
        return Drawing(figure, f"Loss minus that of Pythia's architecture ({sizes[-1]})", numbers)


@style.figure
def over_training(result: Result) -> Drawing:
    """Draw the loss of every arm minus Pythia's over training, one panel per arm."""
    sizes, arms = result.params.size_list, result.params.arm_list[1:]
    table = result.tables["differences"]
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    height = 0.5 + 1.9 * rows
    with style.canvas(result, columns, height, _intervals(result), rows=rows) as (figure, grid):
        for arm, ax in zip(arms, grid, strict=False):  # a last row may have empty panels
            ax.axhspan(-MARGIN, MARGIN, color=style.GRID, linewidth=0, zorder=0)
            style.reference(ax, 0)
            style.size_curves(ax, style.rows_where(table, arm=arm), "step", sizes)
            ax.set_xscale("log")
            steps = result.params.checkpoints
            ticks = [2**k for k in range(2, 20, 2) if steps[0] <= 2**k <= steps[-1]]
            ax.set_xticks(ticks, [number_text(step) for step in ticks])
            ax.minorticks_off()
            ax.set_title(ARMS[arm].title)
            ax.set_xlabel("updates")
        for ax in grid[len(arms) :]:
            ax.set_axis_off()
        for ax in grid[::columns]:
            ax.set_ylabel("minus Pythia's,\nnats per token")
        style.size_legend(figure, sizes)
        last = style.rows_where(table, step=result.params.n_steps, size=sizes[-1]).itertuples()
        numbers = (f"{ARMS[row.arm].title} {row.value:+.3f}" for row in last)
        return Drawing(figure, f"Loss minus that of Pythia's, at the end ({sizes[-1]})", numbers)


def arms_table(result: Result) -> Table:
    """Return a table with the parameters, losses and speeds of all arms."""
    import pandas as pd

    rows = []
    for row in result.tables["arms"].itertuples():
        rows.append(
            {
                "Architecture": ARMS[row.arm].title,
                "Size": row.size,
                "Parameters": number_text(row.parameters),
                "Held-out loss": _cell(row.loss, row.loss_low, row.loss_high),
                "Minus Pythia's": DASH
                if row.arm == BASELINE
                else _cell(row.value, row.low, row.high),
                "Speed": DASH
                if row.arm == BASELINE
                else f"{row.speed:.2f} ({row.slowest:.2f}{DASH}{row.fastest:.2f})",
            }
        )
    caption = (
        f"Loss in nats per token after {number_text(result.params.n_steps)} updates, "
        f"{_intervals(result)}; speed (by processor time) relative to Pythia's, median and range "
        "over rounds"
    )
    return Table(pd.DataFrame(rows), caption)


def _cell(value: Any, low: Any, high: Any) -> str:
    """Format a value with its interval, if it has one."""
    return style.interval(value, *((low, high) if low < high else (None, None)))
