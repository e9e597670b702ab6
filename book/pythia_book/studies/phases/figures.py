"""Figures of the phases study: n-grams, induction in prose and in the laboratory, the lens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pythia_book import style
from pythia_book.records import number_text, value_text
from pythia_book.stats import mean_over_known, quoted
from pythia_book.studies.phases.claims import NAMES
from pythia_book.studies.phases.transitions import depth_name
from pythia_book.style import DASH, INK, MUTED, Drawing, Table, interval, padded_limits
from pythia_core.errors import count_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

NOTHING = "no checkpoint\ncould be measured"
MARKS = {1: "o", 2: "s", 3: "^"}
LENS_PANELS = 3
"""Number of sizes, counted from the largest, whose layers are drawn."""


@style.figure
def distances(result: Result) -> Drawing:
    """Draw the KL between n-grams and models over training, and mark the nearest checkpoints."""
    levels, milestones = result.tables["levels"], result.tables["milestones"]
    with style.canvas(result, 3, 2.8, _rows_note(result), sharey=True) as (figure, axes):
        numbers = []
        for ax, (order, name) in zip(axes, NAMES.items(), strict=True):
            curves = style.rows_where(levels, measure=f"kl_{order}")
            ax.set_title(f"{name}s")
            if not _size_curves(ax, curves, result.params.size_list):
                continue
            for row in style.rows_where(milestones, what="nearest", which=order).itertuples():
                point = style.rows_where(curves, size=row.size, step=row.step)
                shape = {"marker": MARKS[order], "markersize": 6, "markeredgecolor": "white"}
                shape |= {"color": style.size_color(row.size), "label": f"{row.size}, nearest"}
                ax.plot(point.step.clip(lower=1), point.value, **shape)
                numbers.append(f"{name} {row.size} step {row.step}")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("KL(n-gram || model), nats")
        style.size_legend(figure, result.params.size_list)
        return Drawing(figure, "Nearest to n-grams", numbers)


@style.figure
def losses(result: Result) -> Drawing:
    """Draw held-out losses, and when models are nearest to n-grams and first beat the n-grams."""
    levels, ngrams = result.tables["levels"], result.tables["ngrams"]
    milestones, sizes = result.tables["milestones"], list(result.params.size_list)
    notes = _rows_note(result), style.seed_note(result)
    with style.canvas(result, 2, 3.0, *notes) as (figure, (loss, steps)):
        ends, curves = [], style.rows_where(levels, measure="loss")
        if _size_curves(loss, curves, sizes):
            style.seed_band(loss, result, curves[curves.step > 0], "step", "loss")
            for row in ngrams.itertuples():
                style.reference(loss, row.value)
                ends.append((NAMES[row.order], levels.step.max(), row.value, MUTED))
            style.end_labels(loss, ends)
            style.size_legend(figure, sizes)
        loss.set_ylabel("held-out loss, nats per token")
        rows = [(event, order) for event in ("nearest", "beaten") for order in NAMES]
        end = 1.25 * levels.step.max() if len(levels) else 2
        for y, (event, order) in enumerate(rows):
            reached = style.rows_where(milestones, what=event, which=order).set_index("size")
            reached = reached[["step", "low", "high"]].rename(columns={"step": "value"})
            for size, row in reached.astype(float).clip(lower=1).fillna(end).iterrows():
                height = y + 0.22 * (sizes.index(size) - (len(sizes) - 1) / 2)
                shape = {"marker": MARKS[order], "markersize": 4.5}
                if row["value"] == end:
                    shape |= {"marker": ">", "markerfacecolor": "white", "clip_on": False}
                style.interval_point(
                    steps, height, row, style.size_color(size), 1, flat=True, **shape
                )
        steps.set_xscale("log")
        steps.set_xlim(0.9, end)
        steps.set_yticks(range(len(rows)), [f"{NAMES[order]} {event}" for event, order in rows])
        steps.set_ylim(len(rows) - 0.5, -0.5)
        steps.grid(axis="y", visible=False)
        steps.set_xlabel("step")
        numbers = (f"{NAMES[row.order]} {row.value:.3f}" for row in ngrams.itertuples())
        return Drawing(figure, "Held-out loss of n-grams", numbers)


@style.figure
def induction(result: Result) -> Drawing:
    """Draw three measures of induction over training: `gain`, `order_gain` and `prefix`."""
    levels, values = result.tables["levels"], result.values
    note = f"{values['n_sequences']} sequences; bands: 95 % intervals"
    with style.canvas(result, 3, 2.8, note) as (figure, axes):
        panels = (
            ("gain", "read again", "loss, first minus second time", 0, 0.8),
            ("order_gain", "for its order", "loss, shuffled minus in order", 0, 0.8),
            ("prefix", "best head", "prefix matching", values["prefix_chance"], 0.1),
        )
        numbers = []
        for ax, (measure, title, label, no_effect, min_range) in zip(axes, panels, strict=True):
            ax.set_title(title)
            curves = style.rows_where(levels, measure=measure)
            if _size_curves(ax, curves, result.params.size_list):
                style.reference(ax, no_effect)
                # wide enough that noise looks small: a model that copies gains several nats
                low, high = padded_limits(curves.low.min(), curves.high.max(), min_range)
                ax.set_ylim((0, high) if measure == "prefix" else (low, high))
                last = style.rows_where(curves, step=curves.step.max())
                numbers += [f"{measure} {row.size} {row.value:.3f}" for row in last.itertuples()]
            ax.set_ylabel(label)
        style.size_legend(figure, result.params.size_list)
        return Drawing(figure, "At the end of training", numbers)


COPYING = (
    ("repeats", "loss, repeats", "nats per token"),
    ("order_gain", "gain from order", "nats per token"),
    ("prefix", "induction head", "prefix matching"),
    ("previous", "previous token", "attention"),
)
"""Panels of `copying`: measure, title and label."""


@style.figure
def copying(result: Result) -> Drawing:
    """Draw how models of the laboratory learn to copy: loss, gain from order, and two heads."""
    levels, numbers = result.tables["laboratory"], []
    with style.canvas(result, 4, 2.7, "a line per model", _gaps_note(result)) as (figure, axes):
        depths = sorted(set(levels.layers))
        for ax, (measure, title, label) in zip(axes, COPYING, strict=True):
            ax.set_title(title)
            curves = style.rows_where(levels, measure=measure)
            if not _step_axis(ax, curves):
                continue
            ax.set_xscale("linear")
            for (layers, seed), points in curves.groupby(["layers", "seed"]):
                shape = {"linewidth": 1.0, "name": f"{depth_name(layers)}, seed {seed}"}
                style.curve(ax, points.sort_values("step"), "step", _color(layers), **shape)
            last = curves[curves.step == curves.step.max()].groupby("layers").value.mean()
            numbers += [f"{title}, {depth_name(n)} {value:.2f}" for n, value in last.items()]
            ax.set_ylabel(label)
        style.legend(figure, {depth_name(n): {"color": _color(n), "linewidth": 3} for n in depths})
        return Drawing(figure, "At the end of training, means over seeds", numbers)


EVENT_LABELS = {
    "kl_1": "nearest to unigrams",
    "kl_2": "nearest to bigrams",
    "previous": "previous-token head",
    "prefix": "induction head",
    "gain": "gain from order",
    "loss": "loss on repeated text",
}
"""Rows of `order`: an event of the table `transitions`, and its label."""


@style.figure
def order(result: Result) -> Drawing:
    """Draw the steps at which models of at least two layers pass n-grams and learn to copy."""
    frame = result.tables["transitions"]
    frame = frame[frame.layers > 1]
    note = "a point per model; n-grams: nearest checkpoint; others: steepest change"
    with style.canvas(result, 1, 2.9, note) as (figure, (ax,)):
        if frame.empty:
            style.say(ax, "no model of two layers in this run")
            return Drawing(figure, "No model of two layers")
        _step_axis(ax, frame)
        depths, numbers = sorted(set(frame.layers)), []
        for y, (event, label) in enumerate(EVENT_LABELS.items()):
            for place, depth in enumerate(depths):
                points = style.rows_where(frame, event=event, layers=depth).dropna()
                if points.empty:
                    continue
                at = [y + 0.26 * (place - (len(depths) - 1) / 2)] * len(points)
                shape = {"marker": "o", "markersize": 4, "linestyle": "", "alpha": 0.75}
                ax.plot(points.step, at, color=_color(depth), label=depth_name(depth), **shape)
                numbers.append(f"{label}, {depth_name(depth)} step {points.step.mean():.0f}")
        ax.set_xlim(min(10, frame.step.min()), 1.15 * frame.step.max())
        ticks = [step for step in (10, 20, 50, 100, 200, 500) if step <= frame.step.max()]
        ax.set_xticks(ticks, map(str, ticks))
        ax.minorticks_off()
        ax.set_yticks(range(len(EVENT_LABELS)), EVENT_LABELS.values())
        ax.set_ylim(len(EVENT_LABELS) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        style.legend(figure, {depth_name(n): {"color": _color(n)} | DOT for n in depths})
        return Drawing(figure, "Means over seeds", numbers)


DOT = {"marker": "o", "linestyle": ""}


def heads_table(result: Result) -> Table:
    """Return the table of what models gain from order without some of their heads."""
    import pandas as pd

    labels = {
        "intact": "none",
        "induction": "induction heads",
        "induction control": "as many others, or all",
        "previous-token": "previous-token heads",
        "previous-token control": "as many others, or all",
    }
    rows = []
    for (model, kind), group in result.tables["heads"].groupby(["model", "without"], sort=False):
        if kind != "intact" and not group.heads.any():
            continue  # the model has no head of the kind
        rows.append(
            {
                "Model": model if kind == "intact" else "",
                "Heads knocked out": labels[kind],
                "Number": DASH if kind == "intact" else number_text(group.heads.mean()),
            }
            | {title: _mean_text(group[name]) for name, title in KNOCK_OUTS.items()}
        )
    caption = (
        "Models at the end of training, with heads knocked out, in nats per token; means over "
        "models. The gain is measured on more sequences than in the figures, and on different ones."
    )
    columns = ["Model", "Heads knocked out", "Number", *KNOCK_OUTS.values()]
    return Table(pd.DataFrame(rows, columns=columns), caption)


KNOCK_OUTS = {
    "gain": "Gain from order",
    "repeats": "Loss, repeated text",
    "grammar": "Loss, grammar",
}
"""Maps a column of the table `heads` to its title."""


def _mean_text(values: pd.Series) -> str:
    """Return a mean over models with its interval, as text."""
    shown = quoted(mean_over_known(values.to_numpy(float)))
    return DASH if shown is None else value_text(shown)


def _color(layers: int) -> str:
    """Return the color of a depth."""
    return {1: MUTED, 2: style.BLUE, 4: style.ORANGE, 8: style.GREEN}[layers]


@style.figure
def lens(result: Result) -> Drawing:
    """Draw the KL between a model's prediction and the logit lens of each layer, over training."""
    frame, sizes = result.tables["lens"], result.params.size_list[-LENS_PANELS:]
    with style.canvas(result, len(sizes), 2.9, _rows_note(result), sharey=True) as (figure, axes):
        numbers = []
        for ax, size in zip(axes, sizes, strict=True):
            ax.set_title(size)
            depths = style.rows_where(frame, size=size)
            if not _step_axis(ax, depths):
                continue
            ax.set_yscale("log")
            ends = []
            last, deepest = depths.step.max(), max(1, depths.layer.max())
            for layer, points in depths[depths.step > 0].groupby("layer"):
                color = style.shade(layer / deepest)
                shape = {"linewidth": 1.2, "name": f"after {layer} blocks"}
                style.curve(ax, points.sort_values("step"), "step", color, **shape)
                value = float(style.rows_where(points, step=last).value.iloc[0])
                ends.append((str(layer), last, value, color))
                numbers.append(f"{size} after {layer} blocks {value:.2f}")
            style.end_labels(ax, ends)
        axes[0].set_ylabel("KL(final || lens), nats")
        return Drawing(figure, "Lens at the end of training", numbers)


def ngrams_table(result: Result) -> Table:
    """Return the table of n-grams: the loss of each order, and the largest model's milestones."""
    import pandas as pd

    largest, milestones = result.params.size_list[-1], result.tables["milestones"]

    def step(event: str, order: int) -> str:
        """Return the step and interval of the largest model's milestone, as text."""
        reached = style.rows_where(milestones, size=largest, what=event, which=order)
        if reached.empty:
            return "not measured"
        value, low, high = (
            "not reached" if pd.isna(reached[c].iloc[0]) else int(reached[c].iloc[0])
            for c in ("step", "low", "high")
        )
        if isinstance(value, str):
            return value
        return f"{number_text(value)} [{number_text(low)},\N{NO-BREAK SPACE}{number_text(high)}]"

    rows = [
        {
            "Model": NAMES.get(row.order, row.order),
            "Distinct n-grams": number_text(int(row.different)),
            "Strength of backing off": DASH if pd.isna(row.strength) else f"{row.strength:g}",
            "Held-out loss [95 %]": interval(row.value, row.low, row.high),
            f"{largest} nearest at step": step("nearest", row.order),
            f"beaten by {largest} at step": step("beaten", row.order),
        }
        for row in result.tables["ngrams"].itertuples()
    ]
    tokens = number_text(result.values["tokens_read"])
    return Table(pd.DataFrame(rows), f"N-grams counted on the {tokens} tokens that the models read")


def _rows_note(result: Result) -> str:
    """Return the note under a figure: its checkpoints and rows, and what bands mean."""
    values = result.values
    return (
        f"{values['n_checkpoints']} checkpoints; {number_text(values['n_places'])} places in "
        f"{values['n_rows']} held-out rows; bands and bars: 95 % intervals over rows"
        + (f"; {_gaps_note(result)}" if values["gaps"] else "")
    )


def _gaps_note(result: Result) -> str:
    """Say how many checkpoints are missing, if any."""
    gaps = result.values["gaps"]
    return f"{count_of(gaps, 'checkpoint')} could not be measured" if gaps else ""


def _size_curves(ax: Axes, frame: pd.DataFrame, sizes: Sequence[str]) -> bool:
    """Draw a curve over steps for each size, and return whether there was anything to draw."""
    if not _step_axis(ax, frame):
        return False
    style.size_curves(ax, frame[frame.step > 0], "step", sizes, marker="")
    return True


def _step_axis(ax: Axes, frame: pd.DataFrame) -> bool:
    """Make a logarithmic x axis of steps; if `frame` is empty, say so and return False.

    A logarithmic axis has no step 0. Step 1 has the same weights, and is drawn in its place.
    """
    if frame.empty:
        style.say(ax, NOTHING)
        return False
    ax.set_xscale("log")
    ax.set_xlabel("step", color=INK)
    return True
