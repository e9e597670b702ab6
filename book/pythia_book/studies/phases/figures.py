"""Figures of the phases study: distances to n-grams, both losses, induction, the lens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book.records import number_text, value_text
from pythia_book.studies.phases.claims import NAMES
from pythia_book.style import (
    INK,
    MUTED,
    Drawing,
    Table,
    footer,
    interval,
    padded_limits,
    panels,
    reference,
    say,
    size_colour,
    size_legend,
    style,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import StudyResult as Result

NOTHING = "no checkpoint\ncould be measured"
MARKS = {1: "o", 2: "s", 3: "^"}
LENS_PANELS = 3
"""Sizes for which layers are drawn: the largest."""


def distances(result: Result) -> Drawing:
    """How far predictions are from those of each order of n-grams, and where they are nearest."""
    levels, milestones = result.tables["levels"], result.tables["milestones"]
    with style():
        figure, axes = panels(3, 2.8, footer(result, _rows_note(result)), sharey=True)
        texts = []
        for ax, (order, name) in zip(axes, NAMES.items(), strict=True):
            curves = levels[levels.measure == f"kl_{order}"]
            ax.set_title(f"{name}s")
            if not _curves(ax, curves, result.params.size_list):
                continue
            there = milestones[(milestones.what == "nearest") & (milestones.which == order)]
            for row in there.rename(columns={"size": "name"}).itertuples():
                at = curves[(curves["size"] == row.name) & (curves.step == row.step)]
                ax.plot(at.step.clip(lower=1), at.value, color=size_colour(row.name),
                        marker=MARKS[order], markersize=6, markeredgecolor="white")  # fmt: skip
                texts.append(f"{name} {row.name} step {row.step}")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("KL(n-gram || model), nats")
        size_legend(axes[0], result.params.size_list, loc="upper left")
        return Drawing(figure, "Nearest to n-grams: " + ", ".join(texts))


def losses(result: Result) -> Drawing:
    """Held-out loss with that of n-grams, and the steps at which they are nearest and beaten."""
    import pandas as pd

    levels, ngrams = result.tables["levels"], result.tables["ngrams"]
    milestones, sizes = result.tables["milestones"], list(result.params.size_list)
    with style():
        figure, (loss, steps) = panels(2, 3.0, footer(result, _rows_note(result)))
        if _curves(loss, levels[levels.measure == "loss"], sizes):
            for row in ngrams.itertuples():
                reference(loss, row.value)
                loss.annotate(NAMES[row.order], (0.01, row.value), fontsize=7, color=MUTED,
                              xycoords=("axes fraction", "data"), va="bottom")  # fmt: skip
            size_legend(loss, sizes, loc="upper right")
        loss.set_ylabel("held-out loss, nats per token")
        rows = [(what, order) for what in ("nearest", "beaten") for order in NAMES]
        end = 1.25 * levels.step.max() if len(levels) else 2
        for y, (what, order) in enumerate(rows):
            reached = milestones[(milestones.what == what) & (milestones.which == order)]
            for row in reached.rename(columns={"size": "name"}).itertuples():
                at = y + 0.22 * (sizes.index(row.name) - (len(sizes) - 1) / 2)
                places = (row.low, row.step, row.high)
                low, step, high = (end if pd.isna(x) else max(1, x) for x in places)
                colour = size_colour(row.name)
                steps.plot([low, high], [at, at], color=colour, linewidth=1.3)
                if step == end:
                    steps.plot([end], [at], color=colour, marker=">", markersize=4.5,
                               markerfacecolor="white", clip_on=False)  # fmt: skip
                else:
                    steps.plot([step], [at], color=colour, marker=MARKS[order], markersize=4.5)
        steps.set_xscale("log")
        steps.set_xlim(0.9, end)
        steps.set_yticks(range(len(rows)), [f"{NAMES[o]} {what}" for what, o in rows])
        steps.set_ylim(len(rows) - 0.5, -0.5)
        steps.grid(axis="y", visible=False)
        steps.set_xlabel("step")
        words = "Held-out loss of n-grams: " + ", ".join(
            f"{NAMES[row.order]} {row.value:.3f}" for row in ngrams.itertuples()
        )
        return Drawing(figure, words)


def induction(result: Result) -> Drawing:
    """What a second reading of a random sequence gains, what of it is the order, the best head."""
    levels, values = result.tables["levels"], result.values
    with style():
        note = f"{values['n_sequences']} sequences; bands: 95 % intervals"
        figure, axes = panels(3, 2.8, footer(result, note))
        shown = (
            ("gain", "read again", "loss, first minus second time", 0, 0.8),
            ("order_gain", "for its order", "loss, shuffled minus in order", 0, 0.8),
            ("prefix", "best head", "prefix matching", values["prefix_chance"], 0.1),
        )
        texts = []
        for ax, (measure, title, label, nothing, least) in zip(axes, shown, strict=True):
            ax.set_title(title)
            curves = levels[levels.measure == measure]
            if _curves(ax, curves, result.params.size_list):
                reference(ax, nothing)
                # wide enough for nothing to look like nothing: a model that copies gains nats
                low, high = padded_limits(curves.low.min(), curves.high.max(), least)
                ax.set_ylim((0, high) if measure == "prefix" else (low, high))
                last = curves[curves.step == curves.step.max()]
                texts += [
                    f"{measure} {s} {v:.3f}" for s, v in zip(last["size"], last.value, strict=True)
                ]
            ax.set_ylabel(label)
        size_legend(axes[0], result.params.size_list, loc="lower left")
        return Drawing(figure, "At the end of training: " + ", ".join(texts))


def lens(result: Result) -> Drawing:
    """KL between the final prediction and what each layer would say, by layer, over training."""
    import matplotlib

    frame, sizes = result.tables["lens"], result.params.size_list[-LENS_PANELS:]
    with style():
        figure, axes = panels(len(sizes), 2.9, footer(result, _rows_note(result)), sharey=True)
        texts = []
        for ax, size in zip(axes, sizes, strict=True):
            ax.set_title(size)
            depths = frame[frame["size"] == size]

            def colour(layer: int, depths: pd.DataFrame = depths) -> str:
                depth = layer / max(1, depths.layer.max())
                return matplotlib.colors.to_hex(matplotlib.colormaps["viridis"](0.86 * depth))

            if not _curves(ax, depths, sorted(depths.layer.unique()), "layer", colour):
                continue
            ax.set_yscale("log")
            for layer, rows in depths[depths.step == depths.step.max()].groupby("layer"):
                value = float(rows.value.iloc[0])
                ax.annotate(str(layer), (1.01, value), xycoords=("axes fraction", "data"),
                            fontsize=7, color=colour(layer), va="center")  # fmt: skip
                texts.append(f"{size} after {layer} blocks {value:.2f}")
        axes[0].set_ylabel("KL(final || lens), nats")
        return Drawing(figure, "Lens at the end of training: " + ", ".join(texts))


def ngrams_table(result: Result) -> Table:
    """The n-grams, their loss, and where the largest model is nearest to them and beats them."""
    import pandas as pd

    largest, milestones = result.params.size_list[-1], result.tables["milestones"]

    def step(what: str, order: int) -> str:
        reached = milestones[(milestones["size"] == largest) & (milestones.what == what)]
        reached = reached[reached.which == order]
        if reached.empty:
            return "not measured"
        value, low, high = (
            "not reached" if pd.isna(reached[c].iloc[0]) else int(reached[c].iloc[0])
            for c in ("step", "low", "high")
        )
        if isinstance(value, str):
            return value
        return value_text({"value": value, "low": low, "high": high})

    rows = [
        {
            "Model": row.order if row.order not in NAMES else NAMES[row.order],
            "Different n-grams": number_text(int(row.different)),
            "Strength of backing off": "\N{EN DASH}"
            if pd.isna(row.strength)
            else f"{row.strength:g}",
            "Held-out loss [95 %]": interval(row.value, row.low, row.high),
            f"{largest} nearest at step": step("nearest", row.order),
            f"beaten by {largest} at step": step("beaten", row.order),
        }
        for row in result.tables["ngrams"].itertuples()
    ]
    tokens = number_text(result.values["tokens_read"])
    return Table(pd.DataFrame(rows), f"Counted on {tokens} tokens that the models read")


def _rows_note(result: Result) -> str:
    values = result.values
    return (
        f"{values['n_checkpoints']} checkpoints; {number_text(values['n_places'])} places in "
        f"{values['n_rows']} held-out rows; bands and bars: 95 % intervals over rows"
    )


def _curves(
    ax: Axes,
    frame: pd.DataFrame,
    groups: list,
    by: str = "size",
    colour: Callable[..., str] = size_colour,
) -> bool:
    """A line with a band for each group, over steps from 1 on (where the weights are still the
    initial ones); whether there was anything to draw."""
    if frame.empty:
        say(ax, NOTHING)
        return False
    for group in groups:
        curve = frame[(frame[by] == group) & (frame.step > 0)].sort_values("step")
        ax.plot(curve.step, curve.value, color=colour(group), linewidth=1.2)
        ax.fill_between(curve.step, curve.low, curve.high, color=colour(group), alpha=0.15,
                        linewidth=0)  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("step", color=INK)
    return True
