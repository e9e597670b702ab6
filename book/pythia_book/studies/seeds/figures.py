"""Draws the figures of the seeds study: curves, spreads over training, components, and effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book import style, svg
from pythia_book.published.figures import ABSENT
from pythia_book.records import number_text
from pythia_book.style import MUTED, Drawing, padded_limits, size_colour

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

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
"""Maps a measure to its title, its unit, and the factor that converts table values to this unit."""
NO_SPREAD = "not measured,\nor no run differs\nfrom another"


def _notes(result: Result, *notes: str) -> str:
    """Join the size and some notes into the text under a figure."""
    return "; ".join([f"size {result.params.size}", *notes])


@style.figure
def curves(result: Result) -> Drawing:
    """Draw held-out loss over training, and how far each run is from the mean of all runs.

    The first panel shows the loss of runs in which both seeds vary. The other panels show distances
    of runs in which the order seed, the weight seed, or both vary. These panels share a y axis.
    """
    loss = style.rows_where(result.tables["levels"], measure="loss", arm="standard")
    wide = loss.pivot(index="step", columns=["order_seed", "weight_seed"], values="value")
    apart = wide.sub(wide.mean(axis=1), axis=0)
    colour = size_colour(result.params.size)
    notes = _notes(result, f"{result.params.seeds} seeds of each kind")
    with style.canvas(result, 4, 2.7, notes, ratios=(1.25, 1, 1, 1)) as (figure, axes):
        level, *distances = axes
        pairs = [cell[:2] for cell in result.params.members("both")]
        for order, weights in pairs:
            name = f"order seed {order}, weight seed {weights}"
            level.plot(wide.index, wide[order, weights], color=colour, linewidth=0.9, label=name)
        _fill(level, style.rows_where(result.tables["bands"], measure="loss"), colour)
        level.set(title="both seeds: the curve", ylabel="held-out loss, nats per token")
        largest = float(np.nanmax(np.abs(apart.to_numpy()))) if apart.size else np.nan
        numbers = []
        for ax, kind in zip(distances, ("order", "weights", "both"), strict=True):
            runs = apart[[cell[:2] for cell in result.params.members(kind)]]
            shape = {"linewidth": 0.9, "marker": "o", "markersize": 1.8, "markeredgewidth": 0}
            for seeds in runs:
                name = f"order seed {seeds[0]}, weight seed {seeds[1]}"
                ax.plot(runs.index, runs[seeds], color=colour, label=name, **shape)
            band = runs.agg(["min", "max"], axis=1).set_axis(["low", "high"], axis=1)
            _fill(ax, band.reset_index(), colour)
            style.reference(ax, 0)
            ax.set(title=LABELS[kind], ylim=padded_limits(-largest, largest, 1e-3))
            spread = float((band.high - band.low).iloc[-1])
            numbers.append(f"{LABELS[kind]} {number_text(spread)}")
        for ax in [] if style.narrow() else distances[1:]:
            ax.set_yticklabels([])
        distances[0].set_ylabel("run minus mean of all runs,\nnats per token")
        for ax in axes:
            ax.set(xscale="log", xlabel="step")
        return Drawing(figure, "Range of the final held-out loss over seeds", numbers)


def _fill(ax: Axes, band: pd.DataFrame, colour: str) -> None:
    """Fill the area between the columns `low` and `high` of a table, over its column `step`."""
    ax.fill_between(band.step, band.low, band.high, color=colour, alpha=0.15, linewidth=0)


@style.figure
def spreads(result: Result) -> Drawing:
    """Draw the standard deviation over seeds during training, with one panel per measure."""
    frame = result.tables["trajectories"].rename(columns={"sd": "value"})
    colour = size_colour(result.params.size)
    shown, kinds = ("loss", "last_word", "feminine_share"), ("order", "weights", "both")
    seeds = f"{result.params.seeds} seeds of each kind"
    notes = _notes(result, seeds, "bars: 95 % intervals at the end")
    with style.canvas(result, len(shown), 2.8, notes) as (figure, axes):
        for ax, measure in zip(axes, shown, strict=True):
            title, unit, factor = PANELS[measure]
            ax.set_title(title)
            positive = style.rows_where(frame[frame.value > 0], measure=measure)
            if positive.empty:
                style.say(ax, NO_SPREAD)
                continue
            last = positive.step.max()
            for i, kind in enumerate(kinds):
                rows = style.rows_where(positive, kind=kind)
                shape = {"linewidth": 1.2, "markersize": 3} | STYLES[kind]
                ax.plot(rows.step, factor * rows.value, color=colour, label=LABELS[kind], **shape)
                shape = {"marker": STYLES[kind]["marker"], "markersize": 4, "name": LABELS[kind]}
                for row in style.rows_where(rows, step=last).itertuples():
                    at = last * 1.25 ** (i + 1)
                    style.interval_point(ax, at, row, colour, factor, 1.1, **shape)
            ax.set(xscale="log", yscale="log", xlabel="step", ylabel=f"sd over seeds, {unit}")
        if axes[0].lines:
            shapes = {LABELS[k]: STYLES[k] | {"color": colour, "markersize": 3} for k in kinds}
            style.legend(figure, shapes, handlelength=2.8)
        end = style.rows_where(frame, percent=100, measure="loss")
        numbers = (
            f"{LABELS[row.kind]} {number_text(float(row.value))}" for row in end.itertuples()
        )
        return Drawing(figure, "Standard deviation of the final held-out loss over seeds", numbers)


@style.figure
def parts(result: Result) -> Drawing:
    """Draw the standard deviations of final scores due to order, weights, items and the rest."""
    colour = size_colour(result.params.size)
    kinds = ("order", "weights", "rest", "items")
    cut = "bars: 95 % intervals, cut where they go on"
    notes = _notes(result, f"{result.params.seeds**2} runs", cut)
    with style.canvas(result, len(PANELS), 2.7, notes) as (figure, axes):
        texts = []
        for ax, (measure, (title, unit, factor)) in zip(axes, PANELS.items(), strict=True):
            ax.set_title(title)
            frame = style.rows_where(result.tables["components"], measure=measure)
            if frame.empty:
                style.say(ax, NO_SPREAD)
                continue
            frame = factor * frame.set_index("kind")[["value", "low", "high"]].astype(float)
            frame = frame.loc[[kind for kind in kinds if kind in frame.index]]
            # Cut the axis: with the longest intervals on it, the values could not be read.
            top = 2.2 * frame.value.max()
            for i, (kind, row) in enumerate(frame.iterrows()):
                face = "white" if kind == "rest" else colour
                shape = {"marker": STYLES[kind]["marker"], "markersize": 5, "markerfacecolor": face}
                style.interval_point(ax, i, row.clip(upper=2 * top), colour, 1, **shape)
                if row.high > top:
                    ax.annotate(number_text(row.high), (i, 1), xycoords=("data", "axes fraction"),
                                xytext=(2, -6), textcoords="offset points",
                                color=MUTED)  # fmt: skip
            ax.set_ylim(-0.03 * top, top)
            style.category_ticks(ax, [LABELS[kind] for kind in frame.index])
            ax.set_xlim(-0.5, len(frame) - 0.3)
            ax.set_ylabel(f"sd, {unit}")
            values = (f"{LABELS[kind]} {number_text(value)}" for kind, value in frame.value.items())
            texts.append(f"{title} ({unit}): {', '.join(values)}")
        return Drawing(figure, "Parts of the standard deviation at the end. " + "; ".join(texts))


@style.figure
def effects(result: Result) -> Drawing:
    """Draw how deduplication changes each measure at the end: for each seed, and on average."""
    frame = style.rows_where(result.tables["effects"], percent=100)
    colour = size_colour(result.params.size)
    notes = _notes(result, "bars: 95 % intervals, of a seed over shared items")
    with style.canvas(result, len(PANELS), 2.7, notes) as (figure, axes):
        numbers = []
        for ax, (measure, (title, unit, factor)) in zip(axes, PANELS.items(), strict=True):
            ax.set_title(title)
            changes = style.rows_where(frame, measure=measure)
            if changes.value.notna().sum() == 0:
                style.say(ax, "no twins were measured")
                continue
            for i, row in enumerate(changes.itertuples()):
                mean = row.seed == "mean"
                marker, face, width = ("D", colour, 1.8) if mean else ("o", "white", 1.1)
                shape = {"marker": marker, "markersize": 5, "markerfacecolor": face}
                style.interval_point(ax, i, row, colour, factor, width, **shape)
                if mean and row.n:
                    numbers.append(f"{title} {number_text(factor * float(row.value))} {unit}")
            style.reference(ax, 0)
            style.category_ticks(ax, [*changes.seed[:-1], "mean"])
            ax.set_xlim(-0.5, len(changes) - 0.5)
            ax.set(xlabel="seed", ylabel=unit)
        return Drawing(figure, "Deduplicated minus standard at the end, mean over seeds", numbers)


@style.figure
def training_maps(result: Result) -> Drawing:
    """Draw the training maps (a state per checkpoint) and scores of PolyPythias' ten 410M runs."""
    maps = result.released.get("training_maps")
    notes = "PolyPythias, 410M; states are comparable only above or only below the line"
    with style.canvas(result, 2, 2.9, notes, ratios=(1.5, 1)) as (figure, (grid, scores)):
        if maps is None or maps.empty:
            for ax in (grid, scores):
                style.say(ax, ABSENT)
            return Drawing(figure, "no released training maps")
        outlier = maps.groupby("seed").outlier.first().astype(bool)
        seeds = [*outlier.index[~outlier], *outlier.index[outlier]]
        steps = sorted(maps.step.unique())
        states = sorted(maps.state.unique())
        colours = {s: style.shade(i / max(len(states) - 1, 1)) for i, s in enumerate(states)}
        side = 5.0 if style.narrow() else 6.4
        for row in maps.itertuples():
            at = steps.index(row.step), seeds.index(row.seed)
            look = {"color": colours[row.state], "markersize": side, "markeredgewidth": 0}
            (dot,) = grid.plot(*at, "s", **look)
            named = svg.Series(f"state {row.state}", points=[f"step {row.step:,}"], flat=False)
            svg.register(dot, named)
        grid.axhline(len(outlier) - outlier.sum() - 0.5, color=style.INK, linewidth=0.8)
        named = (0, 512, 143_000) if style.narrow() else (0, 8, 512, 13_000, 63_000, 143_000)
        shown = [i for i, step in enumerate(steps) if step in named]
        grid.set_xticks(shown, [f"{steps[i]:,}" for i in shown])
        grid.set_yticks(range(len(seeds)), [str(seed) for seed in seeds])
        grid.set(xlabel="step (equal places)", ylabel="seed", xlim=(-0.8, len(steps) - 0.2))
        grid.invert_yaxis()
        grid.grid(False)
        marks = {str(s): {"color": c, "marker": "s", "linestyle": ""} for s, c in colours.items()}
        style.legend(figure, {f"state {name}": mark for name, mark in marks.items()})
        ends = []
        for seed, run in maps.groupby("seed"):
            colour = style.ORANGE if outlier[seed] else MUTED
            label = f"seed {seed}"
            scores.plot(run.step / 1000, run.score, color=colour, linewidth=0.9, label=label)
            if outlier[seed]:
                ends.append((label, run.step.iloc[-1] / 1000, run.score.iloc[-1], colour))
        style.end_labels(scores, ends)
        scores.set(xlabel="thousands of updates", ylabel="score: four tasks, standardised")
        same = result.values["map_agreement"]
        numbers = [f"{number_text(same['value'])} % of checkpoints"] if same else []
        return Drawing(figure, "Two of the eight stable runs are in the same state at", numbers)
