"""Figures of the scaling study, on tasks and losses of our models and on the released sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pythia_book import style, svg
from pythia_book.published.tables import TITLES
from pythia_book.style import BLUE, MUTED, ORANGE, Drawing, Table, interval
from pythia_book.tasks.benchmarks import TASKS
from pythia_core.suite import OFFICIAL_SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pythia_book.study import Result

GAPS = {
    "does not fit": "the prompts do not\nfit the model",
    "too long": "not one item\nfits the model",
    "lost": "checkpoint lost",
}
MARKERS = "os^D"


@contextlib.contextmanager
def _task_panels(
    result: Result, titles: list[str], note: str
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield a figure with one panel of "% right" per title, at most four in a row."""
    columns = min(4, len(titles))
    rows = -(-len(titles) // columns)
    with style.canvas(result, columns, 1.9 * rows + 0.5, note, rows=rows) as (figure, axes):
        for ax in axes[len(titles) :]:
            ax.set_axis_off()
        for ax, title in zip(axes, titles, strict=False):
            ax.set_title(title)
        for ax in axes[::columns]:
            ax.set_ylabel("% right")
        yield figure, axes[: len(titles)]


@style.figure
def tasks_by_size(result: Result) -> Drawing:
    """Draw the final accuracy of our models on the standard text, by task, size and shots."""
    table = style.rows_where(result.tables["accuracy"], percent=100, arm="standard")
    scored = table[table.status == "scored"]
    tasks, sizes = result.params.task_list, result.params.size_list
    note = f"{result.params.limit} items at most, standard half; bars: 95 % intervals"
    titles = [TITLES[task] for task in tasks]
    marks = {
        shots: style.mark(MARKERS[k % 4], hollow=k > 0)
        for k, shots in enumerate(result.params.shot_list)
    }
    with _task_panels(result, titles, f"{note}; dotted: guessing") as (figure, axes):
        for ax, task in zip(axes, tasks, strict=True):
            cells = style.rows_where(table, task=task)
            if not (cells.status == "scored").any():
                style.say(ax, GAPS[cells.status.iloc[0]])
                continue
            points = style.rows_where(scored, task=task)
            style.size_points(ax, points, sizes, "shots", marks, markersize=3.6, width=1)
            if missing := [f"{shots}-shot" for shots in marks if shots not in set(points.shots)]:
                ax.set_title(f"{TITLES[task]} (no {', '.join(missing)})")
            style.reference(ax, 100 * TASKS[task].chance)
            style.category_ticks(ax, sizes, rotation=60)
            ax.set_xlabel("parameters")
        style.legend(figure, {f"{shots}-shot": mark for shots, mark in marks.items()})
        cells = scored.groupby(["task", "shots"]).ngroups
        return Drawing(figure, f"Accuracy of {len(sizes)} sizes in {cells} cells")


@style.figure
def over_training(result: Result) -> Drawing:
    """Draw accuracy over training on each task and on last words, with the fewest shots."""
    first, sizes = min(result.params.shot_list), result.params.size_list
    selection = {"arm": "standard", "shots": first, "status": "scored"}
    accuracy = style.rows_where(result.tables["accuracy"], **selection)
    shown = [task for task in result.params.task_list if task in set(accuracy.task)]
    tables = {TITLES[task]: style.rows_where(accuracy, task=task) for task in shown}
    tables["last words, ours"] = result.tables["last_words"]
    note = f"{first}-shot, standard half; bands: 95 % intervals of the largest; dotted: guessing"
    with _task_panels(result, list(tables), note) as (figure, axes):
        for ax, table in zip(axes, tables.values(), strict=True):
            style.size_curves(ax, table, "percent", sizes, 100, sizes[-1:], markersize=2)
        for ax, task in zip(axes, shown, strict=False):
            style.reference(ax, 100 * TASKS[task].chance)
        for ax in axes[-4:]:
            ax.set_xlabel("% of training")
        style.size_legend(figure, sizes)
        return Drawing(figure, "Accuracy of our models over training, by task and size")


@style.figure
def losses(result: Result) -> Drawing:
    """Draw final held-out loss by size, with the fitted law, and held-out loss by training FLOP."""
    table, laws = result.tables["losses"], result.tables["laws"]
    sizes = result.params.size_list
    last = style.rows_where(table, step=table.step.max())
    with style.canvas(result, 2, 3.0, "bars: 95 % intervals") as (figure, (by_size, by_flop)):
        for row in last.itertuples():
            colour = style.size_colour(row.size)
            style.interval_point(by_size, row.n_params, row, colour, 1)
        law = style.rows_where(laws, law="size").set_index("parameter")
        if len(law):
            n = np.geomspace(last.n_params.min() / 1.5, last.n_params.max() * 1.5, 100)
            e, a, alpha = (law.value[p] for p in ("E", "A", "alpha"))
            svg.hide(*by_size.plot(n, e + a * n**-alpha, color=MUTED, linewidth=1, zorder=1))
            text = interval(alpha, law.low["alpha"], law.high["alpha"])
            by_size.set_title(f"at the end: exponent {text}")
        by_size.set(xscale="log", xlabel="parameters without embeddings",
                    ylabel="held-out loss, nats per token")  # fmt: skip
        style.size_curves(by_flop, table, "flops", sizes, banded=(), markersize=2)
        by_flop.set(xscale="log", xlabel="training FLOP", title="over training")
        style.size_legend(figure, sizes)
        numbers = (f"{row.size} {row.value:.3f}" for row in last.itertuples())
        return Drawing(figure, "Held-out loss at the end", numbers)


@style.figure
def optimal_sizes(result: Result) -> Drawing:
    """Draw the best size by the fitted law, and the tokens per parameter of the released sizes.

    The first panel shows the best size for each training budget. The second shows the size that
    reaches a given loss at the lowest total cost, against the number of tokens to be generated. The
    third shows the released sizes.
    """
    optimal, official = result.tables["optimal"], result.tables["official_sizes"]
    optimal = optimal.assign(value=optimal.n_params)
    compute = style.rows_where(optimal, kind="compute")
    uses = style.rows_where(optimal[optimal.uses > 0], kind="inference")
    with style.canvas(result, 3, 2.8, "bands: 95 % intervals") as (figure, axes):
        budget, use, released = axes
        for ax, points, x, label in (
            (budget, compute, "flops", "training FLOP"),
            (use, uses, "uses", "tokens generated, in\ntimes those trained on"),
        ):
            if points.empty:
                style.say(ax, "too few models\nfor a law")
                continue
            style.curve(ax, points, x, BLUE, marker="o", markersize=3)
            ax.set(xscale="log", yscale="log", xlabel=label)
        budget.set(ylabel="best size, parameters", title="for a training budget")
        use.set_title("for one loss, when used")
        for y, row in enumerate(official[::-1].itertuples()):
            colour = style.size_colour(row.size)
            shape = {"color": colour, "marker": "o", "markersize": 6, "linestyle": ""}
            (dot,) = released.plot(row.tokens_per_parameter, y, **shape)
            svg.register(dot, svg.Series(row.size))
        released.axvline(20, color=ORANGE, linewidth=1)
        released.set_yticks(range(len(official)), list(OFFICIAL_SIZES)[::-1])
        released.set(xscale="log", xlabel="tokens per parameter")
        released.set_title("the released sizes")
        style.legend(released, {"20: optimal for compute": {"color": ORANGE, "linewidth": 1}})
        released.grid(axis="y", visible=False)
        numbers = (f"{row.size} {row.tokens_per_parameter:,.0f}" for row in official.itertuples())
        return Drawing(figure, "Tokens per parameter of the released sizes", numbers)


def laws_table(result: Result) -> Table:
    """Return a table of the parameters of the fitted scaling laws, with their intervals."""
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
