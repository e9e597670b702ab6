"""Figures of the deduplication study: what is taken away, and what becomes of the twins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book.published.figures import TITLES
from pythia_book.records import number_text
from pythia_book.style import (
    INK,
    MUTED,
    Drawing,
    Table,
    footer,
    panels,
    reference,
    say,
    size_colour,
    size_legend,
    style,
    twin_shares,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pythia_book.study import StudyResult as Result

BLUE, ORANGE, PALE = "#0072b2", "#d55e00", "#c9c9c9"
RECIPE_COLOURS = {"exact": MUTED, "jaccard-0.87": BLUE, "eleutherai-0.87": ORANGE}


def taken_away(result: Result) -> Drawing:
    """Tokens that each recipe leaves, and which pairs it finds."""
    recipes, caught = result.tables["recipes"], result.tables["caught"]
    with style():
        figure, (bars, curves) = panels(2, 2.7, footer(result), ratios=(1, 1.1))
        shown = recipes[recipes.recipe != "none"].iloc[::-1]
        before = float(recipes.tokens[recipes.recipe == "none"].iloc[0])
        names = [*shown.recipe, "the Pile"]
        left = [*(100 * shown.tokens / before), 100 - result.values["percent_pile"]]
        colours = [*(RECIPE_COLOURS[r] for r in shown.recipe), INK]
        bars.barh(range(len(names)), left, color=colours, height=0.62)
        bars.barh(range(len(names)), [100 - v for v in left], left=left, color=PALE, height=0.62)
        for i, value in enumerate(left):
            bars.text(value - 2, i, f"{value:.0f} %", color="white", ha="right", va="center")
        bars.set_yticks(range(len(names)), names)
        bars.set_xlim(0, 100)
        bars.set_xlabel("% of the training tokens that stay")
        bars.grid(axis="y", visible=False)
        for recipe, mine in caught.groupby("recipe", sort=False):
            curves.plot(mine.similarity, 100 * mine.probability, color=RECIPE_COLOURS[recipe])
            words = {"jaccard-0.87": "jaccard-0.87: all from the\nthreshold on, none below",
                     "eleutherai-0.87": "eleutherai-0.87:\nby chance"}[recipe]  # fmt: skip
            x, y = (0.42, 70) if recipe == "jaccard-0.87" else (0.6, 24)
            curves.text(x, y, words, color=RECIPE_COLOURS[recipe], fontsize=7.5)
        curves.axvline(0.87, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        curves.set_xlim(0.4, 1.005)
        curves.set_ylim(-3, 103)
        curves.set_xlabel("Jaccard similarity of two documents (word 5-grams)")
        curves.set_ylabel("% of such pairs found")
        words = "Tokens that stay: " + ", ".join(
            f"{name} {value:.0f} %" for name, value in zip(names, left, strict=True)
        )
        return Drawing(figure, words)


def over_training(result: Result) -> Drawing:
    """Deduplicated minus standard over training: held-out loss and last words."""
    effects = result.tables["effects"]
    n = {m: int(g.n.max()) for m, g in effects.groupby("measure")}
    with style():
        notes = f"{n.get('loss', 0)} held-out rows, {n.get('last_word', 0)} sentences"
        figure, (loss, words) = panels(2, 3.0, footer(result, notes))
        _differences(loss, effects[effects.measure == "loss"], 1, result)
        loss.set_ylabel("held-out loss, nats a token\n(below 0: deduplicated is better)")
        _differences(words, effects[effects.measure == "last_word"], 100, result)
        words.set_ylabel("last words predicted, points\n(above 0: deduplicated is better)")
        size_legend(loss, result.params.size_list, loc="best", ncols=2)
        last = effects[(effects.measure == "loss") & (effects.percent == effects.percent.max())]
        text = "Change of held-out loss by deduplication at the end: " + ", ".join(
            f"{row.size} {row.value:+.3f}" for row in last.rename(columns={"size": "name"})
            .rename(columns={"name": "size"}).itertuples()
        )  # fmt: skip
        return Drawing(figure, text)


def _differences(ax: Axes, effects: object, factor: float, result: Result) -> None:
    if effects.empty:
        say(ax, "no checkpoint of both twins\ncould be measured")
        return
    for size in result.params.size_list:
        mine = effects[effects["size"] == size].sort_values("percent")
        colour = size_colour(size)
        ax.plot(mine.percent, factor * mine.value, color=colour, marker="o", markersize=2.5,
                linewidth=1.2)  # fmt: skip
        ax.fill_between(mine.percent, factor * mine.low, factor * mine.high, color=colour,
                        alpha=0.12, linewidth=0)  # fmt: skip
    reference(ax, 0)
    ax.set_xlim(0, 102)
    ax.set_xlabel("% of training")


def tasks(result: Result) -> Drawing:
    """Deduplicated minus standard at the end: zero-shot accuracy of every benchmark task."""
    table = result.tables["tasks"]
    table = table[table.shots == 0]
    names = [t for t in dict.fromkeys(table.task) if t != "mean"] + ["mean"]
    sizes = list(result.params.size_list)
    with style():
        note = f"zero-shot, {result.params.limit} items a task at most; bars: 95 % intervals"
        figure, (ax,) = panels(1, 2.8, footer(result, note))
        if table.empty:
            say(ax, "no task fits these models")
            return Drawing(figure, "no task fits these models")
        for row in table.rename(columns={"size": "s"}).itertuples():
            shift = 0.8 * (sizes.index(row.s) / max(len(sizes) - 1, 1) - 0.5)
            at, colour = names.index(row.task) + shift, size_colour(row.s)
            ax.plot([at, at], [100 * row.low, 100 * row.high], color=colour, linewidth=1)
            ax.plot([at], [100 * row.value], color=colour, marker="o", markersize=3.4)
        reference(ax, 0)
        ax.margins(y=0.14)  # the legend's place
        ax.set_xticks(range(len(names)), [TITLES.get(name, "all items") for name in names])
        ax.set_ylabel("deduplicated minus standard,\naccuracy, points")
        ax.grid(axis="x", visible=False)
        size_legend(ax, sizes, loc="upper left", ncols=8)
        mean = table[table.task == "mean"]
        words = "Change of zero-shot accuracy, all items: " + ", ".join(
            f"{s} {100 * v:+.1f} points" for s, v in zip(mean["size"], mean.value, strict=True)
        )
        return Drawing(figure, words)


def released(result: Result) -> Drawing:
    """The released twins: difference of accuracy by size, zero-shot and five-shot."""
    frame = result.released
    with style():
        figure, axes = panels(2, 2.5, footer(result, "bars: 95 % intervals"), sharey=True)
        for ax, shots, title in zip(axes, (0, 5), ("Zero-shot", "Five-shot"), strict=True):
            ax.set_title(title)
            mine = frame[frame.shots == shots]
            if mine.empty:
                say(ax, "no released numbers:\nset PYTHIA_PUBLISHED_DIR")
                continue
            models = list(dict.fromkeys(mine.model))
            for j, step in enumerate(sorted(mine.step.unique())):
                for row in mine[mine.step == step].itertuples():
                    at, colour = models.index(row.model) + 0.22 * (j - 0.5), size_colour(row.model)
                    ax.plot([at, at], [row.low, row.high], color=colour, linewidth=1.2)
                    ax.plot([at], [row.value], marker="os"[j], color=colour, markersize=4.5,
                            markerfacecolor=colour if j else "white")  # fmt: skip
            reference(ax, 0)
            ax.set_xticks(range(len(models)), models)
            ax.grid(axis="x", visible=False)
        axes[0].set_ylabel("deduplicated minus standard,\naccuracy, points")
        if not frame.empty:
            from matplotlib.lines import Line2D

            handles = [
                Line2D([], [], color=MUTED, marker=mark, linestyle="", markerfacecolor=face,
                       label=f"step {step:,}")
                for step, mark, face in zip(sorted(frame.step.unique()), "os", ("white", MUTED),
                                            strict=False)
            ]  # fmt: skip
            axes[1].legend(handles=handles, loc="upper left", ncols=2)
        means = frame.groupby("shots").value.mean()
        words = "Released models, mean change by deduplication: " + ", ".join(
            f"{shots}-shot {value:+.2f} points" for shots, value in means.items()
        )
        return Drawing(figure, words)


def remembered(result: Result) -> Drawing:
    """Share of memorized training rows in the final models of both halves."""
    memorized = result.tables["memorized"]
    sizes = result.params.size_list
    with style():
        figure, (ax,) = panels(1, 2.6, footer(result, "bars: 95 % intervals"))
        if memorized.empty:
            say(ax, "no final model could be measured")
        twin_shares(ax, memorized, sizes)
        words = "Share of memorized rows: " + ", ".join(
            f"{r.size} {r.arm} {100 * r.value:.2f} %"
            for r in memorized[memorized["size"] == sizes[-1]].itertuples(index=False, name="Row")
        ) if not memorized.empty else "no final model could be measured"  # fmt: skip
        return Drawing(figure, words)


def recipes_table(result: Result) -> Table:
    """What each recipe takes out of the text."""
    frame = result.tables["recipes"].copy()
    frame.columns = ["Recipe", "Documents", "Tokens", "Identical removed", "Similar removed",
                     "% of tokens removed"]  # fmt: skip
    for name in frame.columns[1:5]:
        frame[name] = [number_text(v) for v in frame[name].tolist()]
    frame["% of tokens removed"] = [f"{v:.1f}" for v in frame["% of tokens removed"]]
    return Table(frame, "The training text before and after each recipe")
