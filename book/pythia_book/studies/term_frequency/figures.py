"""Figures of the term-frequency study: what was planted, what frequency does, what a coin does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pythia_book.published.figures import MODELS
from pythia_book.style import (
    MUTED,
    Drawing,
    Table,
    footer,
    interval,
    panels,
    reference,
    say,
    size_colour,
    size_legend,
    style,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import StudyResult as Result

BLUE, ORANGE = "#0072b2", "#d55e00"
GUESS = 25
"""% of choices of four that guessing gets right."""


def by_frequency(result: Result) -> Drawing:
    """What the corpus contains, and accuracy by how often a number was read in sums."""
    frequency, curves = result.tables["frequency"], result.tables["curves"]
    last = frequency[frequency.step == frequency.step.max()]
    curves = curves[curves.step == frequency.step.max()]
    shots = result.params.shot_list[-1]
    with style():
        note = "held-out pairs; band: 95 % interval over numbers, largest size"
        figure, (planted, choice, exact) = panels(3, 2.9, footer(result, note))
        for boosted, colour, label in ((True, ORANGE, "made 16 times"), (False, BLUE, "as it is")):
            dots = last[last.boosted == boosted]
            planted.scatter(dots.natural + 1, dots.in_sums + 1, s=9, color=colour, linewidth=0,
                            alpha=0.8, label=label)  # fmt: skip
        planted.set(xscale="log", yscale="log", xlabel="times in the text, plus 1",
                    ylabel="times read in sums, plus 1", title="100 first operands")  # fmt: skip
        planted.legend(loc="lower right", handletextpad=0.1)
        for ax, measure, k in ((choice, "choice", 0), (exact, "exact", shots)):
            selected = curves[(curves.measure == measure) & (curves.shots == k)]
            _curves(ax, selected, "count", result.params.size_list)
            ax.set_xscale("symlog", linthresh=3)
            ax.set_xlabel("times read in sums")
        choice.set(title="choice of four, zero-shot", ylabel="% right")
        exact.set_title(f"answer written, {shots}-shot")
        reference(choice, GUESS)
        size_legend(choice, result.params.size_list, loc="upper left", ncols=2)
        return Drawing(figure, _words("Right choices of frequent numbers minus rare ones", result))


def _curves(ax: Axes, frame: pd.DataFrame, x: str, sizes: Sequence[str]) -> None:
    """One line per size; a band for the largest only, as eight would hide each other."""
    for size in sizes:
        curve, colour = frame[frame["size"] == size].sort_values(x), size_colour(size)
        ax.plot(curve[x], 100 * curve.value, color=colour, marker="o", markersize=3, linewidth=1.2)
        if size == sizes[-1]:
            ax.fill_between(curve[x], 100 * curve.low, 100 * curve.high, color=colour, alpha=0.2,
                            linewidth=0)  # fmt: skip


def _words(what: str, result: Result) -> str:
    gaps = result.tables["gaps"]
    gaps = gaps[(gaps.step == gaps.step.max()) & (gaps.measure == "choice") & (gaps.shots == 0)]
    shown = (f"{s} {100 * v:+.0f}" for s, v in zip(gaps["size"], gaps.value, strict=True))
    return f"{what}, in points: " + ", ".join(shown)


def over_training(result: Result) -> Drawing:
    """The gap between the most and the least frequent tenth of the numbers, as in table 4."""
    gaps = result.tables["gaps"]
    shots = result.params.shot_list[-1]
    with style():
        note = f"{len(gaps.step.unique())} checkpoints; band: 95 % interval, largest size"
        figure, axes = panels(2, 2.7, footer(result, note))
        shown = (("choice", 0, "choice of four, zero-shot"),
                 ("exact", shots, f"answer written, {shots}-shot"))  # fmt: skip
        for ax, (measure, k, title) in zip(axes, shown, strict=True):
            selected = gaps[(gaps.measure == measure) & (gaps.shots == k)]
            selected = selected.assign(percent=100 * selected.step / gaps.step.max())
            _curves(ax, selected, "percent", result.params.size_list)
            ax.set(title=title, xlabel="% of training")
            reference(ax, 0)
        axes[0].set_ylabel("most minus least\nfrequent tenth, points")
        size_legend(axes[0], result.params.size_list, loc="upper left", ncols=3)
        return Drawing(figure, _words("Gap between frequent and rare numbers at the end", result))


def experiment(result: Result) -> Drawing:
    """Chosen minus other numbers of similar frequency, by size: the coin and its placebo."""
    table = result.tables["experiment"]
    shots = result.params.shot_list[-1]
    sizes = list(result.params.size_list)
    with style():
        note = f"{shots}-shot, 50 pairs of numbers; bars: 95 % intervals over pairs"
        figure, axes = panels(2, 2.7, footer(result, note))
        shown = (("exact", 100, "written right, points"), ("logprob", 1, "log-probability, nats"))
        for ax, (measure, factor, label) in zip(axes, shown, strict=True):
            for j, (coin, mark) in enumerate((("boost", "o"), ("placebo", "s"))):
                effects = table[(table.measure == measure) & (table.shots == shots)]
                for row in effects[effects.coin == coin].rename(columns={"size": "s"}).itertuples():
                    at, colour = sizes.index(row.s) + 0.24 * (j - 0.5), size_colour(row.s)
                    ax.plot([at, at], [factor * row.low, factor * row.high], color=colour,
                            linewidth=1.3)  # fmt: skip
                    ax.plot([at], [factor * row.value], color=colour, marker=mark, markersize=5,
                            markerfacecolor="white" if j else colour)  # fmt: skip
            ax.set_xticks(range(len(sizes)), sizes)
            ax.set(xlabel="parameters without embeddings", ylabel=f"chosen minus other:\n{label}")
            ax.grid(axis="x", visible=False)
            reference(ax, 0)
        from matplotlib.lines import Line2D

        ratio = result.values.get("boost_ratio", 0)
        handles = [
            Line2D([], [], color=MUTED, marker="o", linestyle="",
                   label=f"chosen is read {ratio:.0f} times as often"),
            Line2D([], [], color=MUTED, marker="s", linestyle="", markerfacecolor="white",
                   label="placebo: nothing done"),
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=2)
        rows = table[(table["size"] == sizes[-1]) & (table.measure == "exact")]
        rows = rows[rows.shots == shots]
        words = ", ".join(f"{r.coin} {100 * r.value:+.1f} points" for r in rows.itertuples())
        return Drawing(figure, f"Chosen minus other numbers, {sizes[-1]}: {words}")


def definitions(result: Result) -> Drawing:
    """Which word is this the definition of: accuracy by how often the word was read."""
    table = result.tables["definitions"]
    table = table[table.step == table.step.max()]
    with style():
        figure, axes = panels(
            2, 2.7, footer(result, "band: 95 % interval, largest size"), sharey=True
        )
        kinds = ((True, "definitions that were read"), (False, "definitions that were not"))
        for ax, (read, title) in zip(axes, kinds, strict=True):
            ax.set_title(title)
            known = table[(table.read == read) & (table.group > 0)]
            if known.empty:
                say(ax, "no dictionary\nin this corpus")
                continue
            _curves(ax, known, "group", result.params.size_list)
            ax.set_xscale("log", base=4)
            groups = sorted(known.group.unique())
            ax.set_xticks(groups, [f"{g}+" for g in groups])
            ax.set_xlabel("times the word was read")
            reference(ax, GUESS)
        axes[0].set_ylabel("% right of four words")
        if len(table):
            size_legend(axes[0], result.params.size_list, loc="upper left", ncols=3)
        return Drawing(figure, "Right words of four for a definition, by how often they were read")


def released(result: Result) -> Drawing:
    """The released accuracies, 16-shot, over training."""
    table = result.released
    with style():
        figure, axes = panels(2, 2.6, footer(result, "16-shot, mean over 100 first operands"))
        for ax, operation in zip(axes, ("addition", "multiplication"), strict=True):
            ax.set_title(f"released: {operation}")
            selected = table[(table.operation == operation) & (table.shots == 16)]
            if selected.empty:
                say(ax, "no released numbers\n(PYTHIA_PUBLISHED_DIR is not set)")
                continue
            means = selected.groupby(["model", "step"]).value.mean()
            for model in (m for m in MODELS if m in set(selected.model)):
                one = means[model]
                ax.plot(100 * one.index / 143_000, 100 * one, color=size_colour(model), marker="o",
                        markersize=3, label=model)  # fmt: skip
            ax.set_xlabel("% of training")
            ax.set_ylim(-3, 100)
        axes[0].set_ylabel("% right")
        if len(table):
            axes[0].legend(loc="upper left", ncols=2)
        return Drawing(figure, "Released accuracies on addition and multiplication over training")


def gaps_table(result: Result) -> Table:
    """The paper's table 4 for our models: gap at the end by size and shots, in points."""
    import pandas as pd

    gaps = result.tables["gaps"]
    gaps = gaps[gaps.step == gaps.step.max()]
    rows = []
    for size in result.params.size_list:
        row = {"Size": size}
        for r in gaps[gaps["size"] == size].itertuples():
            name = {"choice": "choice of four", "exact": "written"}[r.measure]
            row[f"{name}, {r.shots}-shot"] = interval(100 * r.value, 100 * r.low, 100 * r.high)
        rows.append(row)
    note = "Most minus least frequent tenth of the first operands, at the end, points [95 %]"
    return Table(pd.DataFrame(rows).fillna("not measured"), note)
