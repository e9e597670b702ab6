"""Draws the figures of the seeds study: curves, spreads, the two kinds of seeds, a defect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book import style, svg
from pythia_book.published.figures import ABSENT
from pythia_book.records import number_text
from pythia_book.studies.seeds.params import BOTH, LARGEST, ORDER, WEIGHTS
from pythia_book.studies.seeds.tables import ADDED, APART, ITEMS, MEASURES, SIZE
from pythia_book.style import BLUE, MUTED, ORANGE, Drawing, Table, padded_limits, size_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pythia_book.study import Result

STYLES: dict[str, dict[str, Any]] = {
    ORDER: {"linestyle": (0, (4, 1.5)), "marker": "s"},
    WEIGHTS: {"linestyle": (0, (1, 1.2)), "marker": "^"},
    BOTH: {"linestyle": "-", "marker": "o"},
    LARGEST: {"linestyle": "-", "marker": "D"},
}
BAND = "bands: \N{PLUS-MINUS SIGN} 2 sd"
NO_SPREAD = "not measured,\nor no run differs\nfrom another"


def _labels(result: Result) -> dict[str, str]:
    """Return the names of the groups of runs."""
    params = result.params
    return {
        ORDER: f"{params.size}, order seed",
        WEIGHTS: f"{params.size}, weight seed",
        BOTH: f"{params.size}, both seeds",
        LARGEST: f"{params.largest_size}, both seeds",
    }


def _color(result: Result, kind: str) -> str:
    return size_color(result.params.size_of(kind))


def _counts(result: Result) -> str:
    """Return the note on the number of runs."""
    params = result.params
    return (
        f"{params.seeds} runs of {params.size} with both seeds, {params.apart_seeds} with each "
        f"alone, {params.largest_seeds} of {params.largest_size}"
    )


@style.figure
def curves(result: Result) -> Drawing:
    """Draw how far the held-out loss of each run is from the mean of its group, over training.

    Runs of a group differ in the order seed, in the weight seed, or in both; the last panel shows
    the largest size. Bands are two standard deviations either way. All panels share a y axis.
    """
    import pandas as pd

    levels = style.rows_where(result.tables["levels"], measure="loss").dropna(subset=["value"])
    spreads = style.rows_where(result.tables["spreads"], measure="loss")
    labels, numbers, seeds = _labels(result), [], ["order_seed", "weight_seed"]
    # at first, runs differ too much to share an axis with the rest
    late = levels[levels.step >= levels.step.max() / 10]
    with style.canvas(result, 4, 2.7, _counts(result), BAND) as (figure, axes):
        largest = 0.0
        for ax, kind in zip(axes, (ORDER, WEIGHTS, BOTH, LARGEST), strict=True):
            ax.set(title=labels[kind], xlabel="% of training")
            group = pd.DataFrame(result.params.members(kind), columns=["size", *seeds])
            wide = late.merge(group).pivot(index="percent", columns=seeds, values="value")
            if wide.shape[1] < 2:
                style.say(ax, "fewer than\ntwo runs")
                continue
            away, color = wide.sub(wide.mean(axis=1), axis=0), _color(result, kind)
            for order, weights in away:
                name = f"order seed {order}, weight seed {weights}"
                ax.plot(away.index, away[order, weights], color=color, linewidth=0.9, label=name)
            band = style.rows_where(spreads, kind=kind).set_index("percent").loc[away.index]
            ax.fill_between(away.index, -2 * band.sd, 2 * band.sd, color=color, alpha=0.15,
                            linewidth=0)  # fmt: skip
            style.reference(ax, 0)
            largest = max(largest, 2 * band.sd.max(), away.abs().to_numpy().max())
            numbers.append(f"{labels[kind]} {number_text(float(np.ptp(away.iloc[-1])))}")
        for i, ax in enumerate(axes):
            ax.set_ylim(*padded_limits(-largest, largest, 1e-3))
            if i and not style.narrow():
                ax.set_yticklabels([])
        axes[0].set_ylabel("held-out loss minus\nmean of the group, nats")
        return Drawing(figure, "Range of the final held-out loss over seeds", numbers)


@style.figure
def spreads(result: Result) -> Drawing:
    """Draw the standard deviation over seeds during training, one panel per measure, both sizes."""
    frame = result.tables["spreads"].rename(columns={"sd": "value"})
    frame = frame[(frame.value > 0) & frame.kind.isin((BOTH, LARGEST))]
    labels = {kind: _labels(result)[kind] for kind in (BOTH, LARGEST)}
    shown = ("loss", "last_word", "feminine_share", "association", "sums_choice", "sums_logprob")
    notes = _counts(result), "bars: 95 % intervals at the end"
    with style.canvas(result, 3, 4.6, *notes, rows=2) as (figure, axes):
        for ax, measure in zip(axes, shown, strict=True):
            about = MEASURES[measure]
            ax.set_title(about.title)
            rows = style.rows_where(frame, measure=measure)
            if rows.empty:
                style.say(ax, NO_SPREAD)
                continue
            for i, kind in enumerate(labels):
                curve = style.rows_where(rows, kind=kind)
                line = {"color": _color(result, kind), "label": labels[kind], "markersize": 3}
                ax.plot(curve.step, about.factor * curve.value, **(STYLES[kind] | line))
                shape = {"marker": STYLES[kind]["marker"], "markersize": 4, "name": labels[kind]}
                for row in style.rows_where(curve, percent=100).itertuples():
                    at = row.step * 1.35 ** (i + 1)
                    style.interval_point(ax, at, row, line["color"], about.factor, 1.1, **shape)
            ax.set(xscale="log", xlabel="step", ylabel=f"sd over seeds, {about.unit}")
            _log_scale(ax)
        shapes = {
            name: STYLES[kind] | {"color": _color(result, kind), "markersize": 3}
            for kind, name in labels.items()
            if kind in set(frame.kind)
        }
        style.legend(figure, shapes, handlelength=2.8)
        end = style.rows_where(frame, percent=100, measure="loss")
        numbers = (f"{labels[r.kind]} {number_text(float(r.value))}" for r in end.itertuples())
        return Drawing(figure, "Standard deviation of the final held-out loss over seeds", numbers)


@style.figure
def apart(result: Result) -> Drawing:
    """Draw the spread at the end if order, weights or both vary, and the items' sampling error."""
    frame = style.rows_where(result.tables["spreads"], percent=100)
    frame = frame.rename(columns={"sd": "value"})
    single = style.rows_where(result.tables["single"], kind=BOTH).set_index("measure")
    shown = ("loss", "last_word", "feminine_share", "memorized")
    names = {ORDER: "order", WEIGHTS: "weights", BOTH: "both", LARGEST: result.params.largest_size}
    notes = _counts(result), "bars: 95 % intervals"
    with style.canvas(result, len(shown), 2.7, *notes) as (figure, axes):
        texts = []
        for ax, measure in zip(axes, shown, strict=True):
            about = MEASURES[measure]
            ax.set_title(about.title)
            rows = style.rows_where(frame[frame.value > 0], measure=measure).set_index("kind")
            if rows.empty:
                style.say(ax, NO_SPREAD)
                continue
            rows = about.factor * rows[["value", "low", "high"]].astype(float)
            rows = rows.loc[[kind for kind in names if kind in rows.index]]
            for i, (kind, row) in enumerate(rows.iterrows()):
                shape = {"marker": STYLES[kind]["marker"], "markersize": 5, "name": names[kind]}
                style.interval_point(ax, i, row, _color(result, kind), 1, **shape)
            if measure in ITEMS and measure in single.index:
                style.reference(ax, about.factor * single["items"][measure])
            _log_scale(ax)
            style.category_ticks(ax, [names[kind] for kind in rows.index])
            ax.set_xlim(-0.5, len(rows) - 0.3)
            ax.set_ylabel(f"sd over seeds, {about.unit}")
            values = (f"{names[kind]} {number_text(value)}" for kind, value in rows.value.items())
            texts.append(f"{about.title} ({about.unit}): {', '.join(values)}")
        return Drawing(figure, "Standard deviation over seeds at the end. " + "; ".join(texts))


def _log_scale(ax: Axes) -> None:
    """Make a logarithmic y axis with plain numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def single_table(result: Result) -> Table:
    """Return the table of what the spread over seeds means for single runs at the end."""
    import pandas as pd

    rows = []
    ends = style.rows_where(result.tables["spreads"], percent=100)
    ends = ends.set_index(["measure", "kind"])
    for row in result.tables["single"].itertuples():
        about, end = MEASURES[row.measure], ends.loc[(row.measure, row.kind)]
        known = bool(np.isfinite(row.value))
        sd = (about.factor * float(end[key]) for key in ("sd", "low", "high"))
        rows.append(
            {
                "Measure": f"{about.title}, {about.unit}",
                "Size": row.size,
                "Runs": int(end["n"]),
                "Mean": number_text(about.factor * float(end["mean"])),
                "SD over seeds [95 %]": style.interval(*sd),
                "In units of the items' error [95 %]": style.interval(
                    row.value, row.low, row.high
                ) if known else style.DASH,
                "SD in bands": number_text(about.factor * row.sd),
                "Two runs differ by at most": number_text(about.factor * row.differ),
            }
        )  # fmt: skip
    caption = (
        "At the end of training, both seeds varied. SD in bands: the pooled spread of all three "
        "groups of the smaller size where that is larger. Last column: by this spread, two single "
        "runs that differ in nothing but their seeds are at most this far apart in 95 % of cases"
    )
    return Table(pd.DataFrame(rows), caption)


def ratios_table(result: Result) -> Table:
    """Return the table of the ratios of standard deviations at the end of training."""
    import pandas as pd

    params = result.params
    names = {
        SIZE: f"{params.size} over {params.largest_size}",
        APART: "Order over weights",
        ADDED: "Both over order and weights added",
    }
    ends = style.rows_where(result.tables["ratios"], percent=100).set_index(["measure", "contrast"])
    rows = [
        {"Measure": about.title}
        | {
            name: style.interval(*ends.loc[(measure, contrast), ["value", "low", "high"]])
            if (measure, contrast) in ends.index
            else style.DASH
            for contrast, name in names.items()
        }
        for measure, about in MEASURES.items()
    ]
    caption = (
        "Ratios of standard deviations over seeds at the end of training, with 95 % intervals that "
        "are not corrected for their number"
    )
    return Table(pd.DataFrame(rows), caption)


PAIRS = {"sound": (BLUE, "o", "as trained"), "decoupled": (ORANGE, "s", "with the defect")}


@style.figure
def decoupled(result: Result) -> Drawing:
    """Draw how two weight seeds move apart, as trained and with the reported defect."""
    frame = result.tables["pairs"].dropna(subset=["value"])
    size = result.params.size
    with style.canvas(result, 3, 2.8, f"size {size}, weight seeds 1 and 2") as (figure, axes):
        panels = (
            ("own", "from its own step 0", "distance (1: another step 0)"),
            ("between", "between the two runs", "distance (1: at step 0)"),
            ("loss", "held-out loss", "difference, nats per token"),
        )
        for ax, (quantity, title, label) in zip(axes, panels, strict=True):
            ax.set(title=title, xlabel="step", ylabel=label)
            rows = style.rows_where(frame, quantity=quantity)
            if rows.empty:
                style.say(ax, "not measured")
                continue
            rows = rows.assign(value=rows.value.abs()) if quantity == "loss" else rows
            for pair, (color, marker, name) in PAIRS.items():
                points = style.rows_where(rows, pair=pair)
                shape = {"marker": marker, "markersize": 3.5, "linewidth": 1.2, "name": name}
                style.curve(ax, points, "step", color, **shape)
            _powers(ax, frame.step.max())
        keys = {name: {"color": c, "marker": m} for c, m, name in PAIRS.values()}
        style.legend(figure, keys, handlelength=2.2)
        first = style.rows_where(frame, quantity="own", step=1)
        numbers = (f"{PAIRS[r.pair][2]} {number_text(float(r.value))}" for r in first.itertuples())
        return Drawing(figure, "Distance of step 1 from step 0", numbers)


def _powers(ax: Axes, last: int) -> None:
    """Make an x axis of steps that is linear from 0 to 1 and logarithmic from there on."""
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ticks = [0, 1, 4, 16, 64, 256] if last > 100 else [0, 1, 4, 16]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()


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
        colors = {s: style.shade(i / max(len(states) - 1, 1)) for i, s in enumerate(states)}
        side = 5.0 if style.narrow() else 6.4
        for row in maps.itertuples():
            at = steps.index(row.step), seeds.index(row.seed)
            look = {"color": colors[row.state], "markersize": side, "markeredgewidth": 0}
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
        marks = {str(s): {"color": c, "marker": "s", "linestyle": ""} for s, c in colors.items()}
        style.legend(figure, {f"state {name}": mark for name, mark in marks.items()})
        ends = []
        for seed, run in maps.groupby("seed"):
            color = style.ORANGE if outlier[seed] else MUTED
            label = f"seed {seed}"
            scores.plot(run.step / 1000, run.score, color=color, linewidth=0.9, label=label)
            if outlier[seed]:
                ends.append((label, run.step.iloc[-1] / 1000, run.score.iloc[-1], color))
        style.end_labels(scores, ends)
        scores.set(xlabel="thousands of updates", ylabel="score: four tasks, standardized")
        same = result.values["map_agreement"]
        numbers = [f"{number_text(same['value'])} % of checkpoints"] if same else []
        return Drawing(figure, "Two of the eight stable runs are in the same state at", numbers)
