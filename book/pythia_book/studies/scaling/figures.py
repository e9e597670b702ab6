"""Figures of the scaling study: tasks and losses of our models, where the released sizes fall."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.figures import TITLES
from pythia_book.style import (
    INK,
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
from pythia_book.tasks.benchmarks import TASKS
from pythia_core.suite import OFFICIAL_SIZES

if TYPE_CHECKING:
    from pythia_book.study import StudyResult as Result

GAPS = {
    "does not fit": "the prompts do not\nfit the model",
    "too long": "not one item\nfits the model",
    "lost": "checkpoint lost",
}
BLUE, ORANGE = "#0072b2", "#d55e00"


def tasks_by_size(result: Result) -> Drawing:
    """Final accuracy of our models on every task, zero-shot and few-shot."""
    table = result.tables["accuracy"]
    table = table[(table.percent == 100) & (table.metric == "acc") & (table.arm == "standard")]
    tasks, sizes = result.params.task_list, list(result.params.size_list)
    with style():
        notes = f"{result.params.limit} items at most, standard half; bars: 95 % intervals; "
        small_print = footer(result, notes + "dotted: guessing")
        columns = 4 if len(tasks) > 3 else len(tasks)
        rows = -(-len(tasks) // columns)
        figure, axes = panels(columns, 1.9 * rows + 0.5, small_print, rows=rows)
        for ax in axes[len(tasks) :]:
            ax.set_axis_off()
        for ax, task in zip(axes, tasks, strict=False):
            ax.set_title(TITLES[task])
            scores = table[table.task == task]
            if not (scores.status == "scored").any():
                say(ax, GAPS[scores.status.iloc[0]])
                continue
            for k, (shots, cells) in enumerate(scores.groupby("shots")):
                for row in (
                    cells[cells.status == "scored"].rename(columns={"size": "s"}).itertuples()
                ):
                    at, colour = sizes.index(row.s) + 0.28 * (k - 0.5), size_colour(row.s)
                    ax.plot([at, at], [100 * row.low, 100 * row.high], color=colour, linewidth=1)
                    ax.plot([at], [100 * row.value], color=colour, marker="os^D"[k % 4],
                            markersize=3.6, markerfacecolor="white" if k else colour)  # fmt: skip
                if (cells.status != "scored").all():
                    ax.text(0.97, 0.93, f"{shots}-shot does not fit", transform=ax.transAxes,
                            ha="right", va="top", fontsize=6.5, color=MUTED)  # fmt: skip
            reference(ax, 100 * TASKS[task].chance)
            ax.set_xticks(range(len(sizes)), sizes, rotation=60, fontsize=6.5)
            ax.grid(axis="x", visible=False)
        for ax in axes[::columns]:
            ax.set_ylabel("% right")
        from matplotlib.lines import Line2D

        handles = [
            Line2D([], [], color=MUTED, marker="os^D"[k % 4], linestyle="",
                   markerfacecolor="white" if k else MUTED, label=f"{shots}-shot")
            for k, shots in enumerate(result.params.shot_list)
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
        scored = table[table.status == "scored"]
        words = (
            f"Accuracy of {len(sizes)} sizes in {scored.groupby(['task', 'shots']).ngroups} cells"
        )
        return Drawing(figure, words)


def over_training(result: Result) -> Drawing:
    """Zero-shot accuracy and last words of held-out sentences over training, standard half."""
    accuracy, words = result.tables["accuracy"], result.tables["last_words"]
    first = min(result.params.shot_list)
    accuracy = accuracy[(accuracy.arm == "standard") & (accuracy.metric == "acc")]
    accuracy = accuracy[(accuracy.shots == first) & (accuracy.status == "scored")]
    shown = [task for task in result.params.task_list if task in set(accuracy.task)]
    tables = {TITLES[task]: accuracy[accuracy.task == task] for task in shown}
    tables["last words, ours"] = words[words.arm == "standard"]
    columns = min(4, len(tables))
    rows = -(-len(tables) // columns)
    with style():
        note = (
            f"{first}-shot, standard half; bands: 95 % intervals of the largest; dotted: guessing"
        )
        figure, axes = panels(columns, 1.9 * rows + 0.5, footer(result, note), rows=rows)
        for ax in axes[len(tables) :]:
            ax.set_axis_off()
        for ax, (title, table) in zip(axes, tables.items(), strict=False):
            ax.set_title(title)
            for size in result.params.size_list:
                curve = table[table["size"] == size].sort_values("percent")
                ax.plot(curve.percent, 100 * curve.value.astype(float), color=size_colour(size),
                        marker="o", markersize=2, linewidth=1)  # fmt: skip
                if size == result.params.size_list[-1]:
                    low, high = (100 * curve[k].astype(float) for k in ("low", "high"))
                    ax.fill_between(curve.percent, low, high, color=size_colour(size), alpha=0.12,
                                    linewidth=0)  # fmt: skip
        for ax, task in zip(axes, shown, strict=False):
            reference(ax, 100 * TASKS[task].chance)
        for ax in axes[len(tables) - columns : len(tables)]:
            ax.set_xlabel("% of training")
        for ax in axes[::columns]:
            ax.set_ylabel("% right")
        size_legend(axes[len(tables) - 1], result.params.size_list, loc="upper left", ncols=2)
        return Drawing(figure, "Accuracy of our models over training, by task and size")


def losses(result: Result) -> Drawing:
    """Held-out loss against size with its law, and against training FLOP."""
    table, laws = result.tables["losses"], result.tables["laws"]
    standard = table[table.arm == "standard"]
    last = standard[standard.step == standard.step.max()]
    with style():
        figure, (by_size, by_flop) = panels(2, 3.0, footer(result, "bars: 95 % intervals"))
        for row in last.rename(columns={"size": "s"}).itertuples():
            by_size.vlines(row.n_params, row.low, row.high, color=size_colour(row.s), linewidth=1.2)
            by_size.plot([row.n_params], [row.value], marker="o", color=size_colour(row.s))
        law = laws[laws.law == "size"].set_index("parameter")
        if len(law):
            n = np.geomspace(last.n_params.min() / 1.5, last.n_params.max() * 1.5, 100)
            e, a, alpha = (law.value[p] for p in ("E", "A", "alpha"))
            by_size.plot(n, e + a * n**-alpha, color=MUTED, linewidth=1, zorder=1)
            text = interval(alpha, law.low["alpha"], law.high["alpha"])
            by_size.text(0.97, 0.93, f"exponent {text}", transform=by_size.transAxes, ha="right",
                         color=INK, fontsize=7.5)  # fmt: skip
        by_size.set(xscale="log", xlabel="parameters without embeddings",
                    ylabel="held-out loss, nats per token")  # fmt: skip
        for size in result.params.size_list:
            curve = standard[standard["size"] == size].sort_values("flops")
            by_flop.plot(curve.flops, curve.value, color=size_colour(size), marker="o",
                         markersize=2, linewidth=1.1)  # fmt: skip
        by_flop.set(xscale="log", xlabel="training FLOP")
        size_legend(by_flop, result.params.size_list, loc="upper right", ncols=2)
        words = "Held-out loss at the end: " + ", ".join(
            f"{r.s} {r.value:.3f}" for r in last.rename(columns={"size": "s"}).itertuples()
        )
        return Drawing(figure, words)


def optimal_sizes(result: Result) -> Drawing:
    """Best size for a training budget, best size for a use, and the released sizes."""
    optimal, official = result.tables["optimal"], result.tables["official_sizes"]
    compute = optimal[optimal.kind == "compute"]
    uses = optimal[(optimal.kind == "inference") & (optimal.uses > 0)]
    with style():
        figure, axes = panels(3, 2.8, footer(result, "bands: 95 % intervals"))
        for ax, points, x, label in (
            (axes[0], compute, "flops", "training FLOP"),
            (axes[1], uses, "uses", "tokens generated, in\ntimes those trained on"),
        ):
            if points.empty:
                say(ax, "too few models\nfor a law")
                continue
            at = points[x].astype(float)
            ax.plot(at, points.n_params, color=BLUE, marker="o", markersize=3)
            ax.fill_between(at, points.low.astype(float), points.high.astype(float), color=BLUE,
                            alpha=0.15, linewidth=0)  # fmt: skip
            ax.set(xscale="log", yscale="log", xlabel=label)
        axes[0].set(ylabel="best size, parameters", title="for a training budget")
        axes[1].set_title("for one loss, when used")
        for i, row in enumerate(official.rename(columns={"size": "s"}).itertuples()):
            axes[2].barh(len(official) - 1 - i, row.tokens_per_parameter, color=size_colour(row.s),
                         height=0.7)  # fmt: skip
        axes[2].axvline(20, color=ORANGE, linewidth=1)
        axes[2].text(24, len(official) - 0.9, "20: optimal for compute", color=ORANGE, fontsize=6.5,
                     va="bottom")  # fmt: skip
        axes[2].set_yticks(range(len(official)), list(OFFICIAL_SIZES)[::-1])
        axes[2].set(xscale="log", xlabel="tokens per parameter")
        axes[2].set_title("the released sizes", pad=12)
        axes[2].grid(axis="y", visible=False)
        words = "Tokens per parameter of the released sizes: " + ", ".join(
            f"{r.s} {r.tokens_per_parameter:,.0f}"
            for r in official.rename(columns={"size": "s"}).itertuples()
        )
        return Drawing(figure, words)


def laws_table(result: Result) -> Table:
    """The fitted laws."""
    import pandas as pd

    names = {"size": "E + A / N^alpha, end of training",
             "both": "E + A / N^alpha + B / D^beta, checkpoints"}  # fmt: skip
    rows = [
        {
            "Law": names[r.law],
            "Parameter": r.parameter,
            "Value [95 %]": interval(r.value, r.low, r.high),
        }
        for r in result.tables["laws"].itertuples()
    ]
    columns = ["Law", "Parameter", "Value [95 %]"]
    return Table(pd.DataFrame(rows, columns=columns), "Laws fitted to held-out loss in nats")
