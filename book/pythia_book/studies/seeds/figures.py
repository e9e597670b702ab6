"""Figures of the seeds study: curves with bands, spreads over training, their parts, effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.records import number_text
from pythia_book.style import (
    MUTED,
    Drawing,
    footer,
    padded_limits,
    panels,
    reference,
    say,
    size_colour,
    style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import StudyResult as Result

LABELS = {
    "order": "order seed",
    "weights": "weight seed",
    "rest": "rest",
    "both": "both seeds",
    "items": "items alone",
}
STYLES: dict[str, dict[str, Any]] = {
    "order": {"linestyle": (0, (4, 1.5)), "marker": "s"},
    "weights": {"linestyle": (0, (1, 1.2)), "marker": "^"},
    "both": {"linestyle": "-", "marker": "o"},
    "rest": {"marker": "D"},
    "items": {"marker": "x"},
}
PANELS = {
    "loss": ("held-out loss", "nats per token", 1),
    "last_word": ("last words", "points", 100),
    "feminine_share": ("feminine share", "points", 100),
    "memorized": ("rows memorized", "points", 100),
}
"""Measure -> title, unit, factor."""
NOT_MEASURED = "not measured,\nor no run differs\nfrom another"


def _seeds_note(result: Result) -> str:
    return f"{result.params.seeds} seeds of each kind"


def curves(result: Result) -> Drawing:
    """Held-out loss over training with its band, then every run against the mean, by what varies.

    The three kinds share one scale of loss, so that their spreads can be compared.
    """
    levels = result.tables["levels"]
    loss = levels[(levels.measure == "loss") & (levels.arm == "standard")]
    wide = loss.pivot(index="step", columns=["order_seed", "weight_seed"], values="value")
    apart = wide.sub(wide.mean(axis=1), axis=0)
    colour = size_colour(result.params.size)
    with style():
        notes = f"size {result.params.size}; {_seeds_note(result)}"
        figure, axes = panels(4, 2.7, footer(result, notes), ratios=(1.25, 1, 1, 1))
        _loss_band(axes[0], result, wide, colour)
        spread = {}
        for ax, kind in zip(axes[1:], ("order", "weights", "both"), strict=True):
            pairs = [cell[:2] for cell in result.params.members(kind)]
            distances = apart[pairs]
            for pair in pairs:
                ax.plot(distances.index, distances[pair], color=colour, linewidth=0.9, marker="o",
                        markersize=1.8, markeredgewidth=0)  # fmt: skip
            low, high = distances.min(axis=1), distances.max(axis=1)
            ax.fill_between(distances.index, low, high, color=colour, alpha=0.13, linewidth=0)
            reference(ax, 0)
            ax.set_title(LABELS[kind])
            spread[kind] = (high - low).iloc[-1]
        largest = float(np.nanmax(np.abs(apart.to_numpy()))) if apart.size else np.nan
        for ax in axes[1:]:
            ax.set_ylim(*padded_limits(-largest, largest, 1e-3))
        for ax in axes[2:]:
            ax.set_yticklabels([])
        axes[1].set_ylabel("run minus mean of all runs,\nnats per token")
        for ax in axes:
            ax.set(xscale="log", xlabel="step")
        words = "Range of the final held-out loss over seeds: " + ", ".join(
            f"{LABELS[kind]} {number_text(float(value))}" for kind, value in spread.items()
        )
        return Drawing(figure, words)


def _loss_band(ax: Axes, result: Result, wide: pd.DataFrame, colour: str) -> None:
    bands = result.tables["bands"]
    band = bands[bands.measure == "loss"]
    pairs = [cell[:2] for cell in result.params.members("both")]
    ax.plot(wide.index, wide[pairs], color=colour, linewidth=0.9)
    ax.fill_between(band.step, band.low, band.high, color=colour, alpha=0.2, linewidth=0)
    ax.set(title="both seeds: the curve", ylabel="held-out loss, nats per token")


def spreads(result: Result) -> Drawing:
    """Standard deviation over seeds along training, by what varies; a logarithmic axis."""
    frame = result.tables["trajectories"]
    colour = size_colour(result.params.size)
    shown = ("loss", "last_word", "feminine_share")
    with style():
        notes = f"size {result.params.size}; {_seeds_note(result)}; bars: 95 % intervals at the end"
        figure, axes = panels(len(shown), 2.8, footer(result, notes))
        for ax, measure in zip(axes, shown, strict=True):
            title, unit, factor = PANELS[measure]
            ax.set_title(title)
            spreads = frame[(frame.measure == measure) & (frame.sd > 0)]
            if spreads.empty:
                say(ax, NOT_MEASURED)
                continue
            last = spreads.step.max()
            for i, kind in enumerate(("order", "weights", "both")):
                rows = spreads[spreads.kind == kind]
                ax.plot(rows.step, factor * rows.sd, color=colour, label=LABELS[kind],
                        linewidth=1.2, markersize=3, **STYLES[kind])  # fmt: skip
                end = rows[rows.step == last]
                at = last * 1.25 ** (i + 1)
                for row in end.itertuples():
                    ax.plot([at, at], [factor * row.low, factor * row.high], color=colour,
                            linewidth=1.1)  # fmt: skip
                    ax.plot([at], [factor * row.sd], color=colour, markersize=4,
                            marker=STYLES[kind]["marker"])  # fmt: skip
            ax.set(xscale="log", yscale="log", xlabel="step", ylabel=f"sd over seeds, {unit}")
        if axes[0].lines:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=2.8)
        end = frame[(frame.percent == 100) & (frame.measure == "loss")]
        words = "Standard deviation of the final held-out loss over seeds: " + ", ".join(
            f"{LABELS[row.kind]} {number_text(float(row.sd))}" for row in end.itertuples()
        )
        return Drawing(figure, words)


def parts(result: Result) -> Drawing:
    """Standard deviations at the end, taken apart: order, weights, the rest, and items' error."""
    frame = result.tables["components"]
    colour = size_colour(result.params.size)
    kinds = ("order", "weights", "rest", "items")
    with style():
        n = result.params.seeds**2
        notes = f"size {result.params.size}; {n} runs; bars: 95 % intervals, cut where they go on"
        figure, axes = panels(len(PANELS), 2.7, footer(result, notes))
        texts = []
        for ax, (measure, (title, unit, factor)) in zip(axes, PANELS.items(), strict=True):
            ax.set_title(title)
            parts = frame[frame.measure == measure].set_index("kind")
            if parts.empty:
                say(ax, NOT_MEASURED)
                continue
            shown = [kind for kind in kinds if kind in parts.index]
            # An interval may go on to many times the value: the axis ends where values can be read.
            top = 2.2 * factor * parts.loc[shown, "value"].max()
            for i, kind in enumerate(shown):
                value, low, high = factor * parts.loc[kind, ["value", "low", "high"]].astype(float)
                ax.plot([i, i], [low, min(high, 2 * top)], color=colour, linewidth=1.3)
                ax.plot([i], [value], color=colour, marker=STYLES[kind]["marker"], markersize=5,
                        markerfacecolor="white" if kind == "rest" else colour)  # fmt: skip
                if high > top:
                    ax.annotate(number_text(high), (i, 1), xycoords=("data", "axes fraction"),
                                xytext=(2, -6), textcoords="offset points", fontsize=6.5,
                                color=MUTED)  # fmt: skip
            ax.set_ylim(-0.03 * top, top)
            names = [LABELS[kind].replace(" ", "\n") for kind in shown]
            ax.set_xticks(range(len(shown)), names, fontsize=7)
            ax.set_xlim(-0.5, len(shown) - 0.3)
            ax.set_ylabel(f"sd, {unit}")
            ax.grid(axis="x", visible=False)
            values = (f"{LABELS[k]} {number_text(factor * float(parts.value[k]))}" for k in shown)
            texts.append(f"{title} ({unit}): {', '.join(values)}")
        words = "Parts of the standard deviation at the end. " + "; ".join(texts)
        return Drawing(figure, words)


def effects(result: Result) -> Drawing:
    """Deduplicated minus standard at the end, seed by seed and over seeds."""
    frame = result.tables["effects"]
    frame = frame[frame.percent == 100]
    colour = size_colour(result.params.size)
    with style():
        notes = f"size {result.params.size}; bars: 95 % intervals, of a seed over shared items"
        figure, axes = panels(len(PANELS), 2.7, footer(result, notes))
        texts = []
        for ax, (measure, (title, unit, factor)) in zip(axes, PANELS.items(), strict=True):
            ax.set_title(title)
            changes = frame[frame.measure == measure]
            if changes.value.notna().sum() == 0:
                say(ax, "no twins were measured")
                continue
            for i, row in enumerate(changes.itertuples()):
                mean = row.seed == "mean"
                ax.plot([i, i], [factor * row.low, factor * row.high], color=colour,
                        linewidth=1.8 if mean else 1.1)  # fmt: skip
                ax.plot([i], [factor * row.value], color=colour, marker="D" if mean else "o",
                        markersize=5, markerfacecolor=colour if mean else "white")  # fmt: skip
                if mean and row.n:
                    texts.append(f"{title} {number_text(factor * float(row.value))} {unit}")
            reference(ax, 0)
            ax.set_xticks(range(len(changes)), [*changes.seed[:-1], "over\nseeds"], fontsize=7)
            ax.set_xlim(-0.5, len(changes) - 0.5)
            ax.set(xlabel="seed", ylabel=unit)
            ax.grid(axis="x", visible=False)
        words = "Deduplicated minus standard at the end, mean over seeds: " + ", ".join(texts)
        return Drawing(figure, words)
