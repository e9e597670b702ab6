"""Figures of the scaling study: tasks, losses and sums of our models, and the released sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pythia_book import palette, style, svg
from pythia_book.corpora.equations import CHOICES
from pythia_book.published.scaling import COLUMNS, SUM_SHOTS
from pythia_book.published.tables import MODELS, NO_RELEASED, TITLES
from pythia_book.studies.scaling.jumps import DOUBLINGS
from pythia_book.studies.scaling.sums import MEASURES, PRODUCT, SHARES
from pythia_book.style import BLUE, INK, MUTED, ORANGE, Drawing, Table, interval
from pythia_book.tasks.benchmarks import TASKS
from pythia_core.suite import DATA_ARMS, OFFICIAL_SIZES

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
    note = "; ".join(filter(None, (note, style.seed_note(result, "last_word"))))
    with _task_panels(result, list(tables), note) as (figure, axes):
        style.seed_band(axes[-1], result, result.tables["last_words"], "percent", "last_word", 100)
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
    note = style.seed_note(result, "loss")
    with style.canvas(result, 2, 3.0, "bars: 95 % intervals", note) as (figure, axes):
        by_size, by_flop = axes
        for row in last.itertuples():
            color = style.size_color(row.size)
            style.interval_point(by_size, row.n_params, row, color, 1)
        law = style.rows_where(laws, law="size").set_index("parameter")
        if len(law):
            n = np.geomspace(last.n_params.min() / 1.5, last.n_params.max() * 1.5, 100)
            e, a, alpha = (law.value[p] for p in ("E", "A", "alpha"))
            svg.hide(*by_size.plot(n, e + a * n**-alpha, color=MUTED, linewidth=1, zorder=1))
            text = interval(alpha, law.low["alpha"], law.high["alpha"])
            by_size.set_title(f"at the end: exponent {text}")
        by_size.set(xscale="log", xlabel="parameters without embeddings",
                    ylabel="held-out loss, nats per token")  # fmt: skip
        style.seed_band(by_flop, result, table, "flops", "loss")
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
            (use, uses, "uses", "tokens generated, as a\nmultiple of those trained on"),
        ):
            if points.empty:
                style.say(ax, "too few models\nfor a law")
                continue
            style.curve(ax, points, x, BLUE, marker="o", markersize=3)
            ax.set(xscale="log", yscale="log", xlabel=label)
        budget.set(ylabel="best size, parameters", title="for a training budget")
        use.set_title("for one loss, by use")
        for y, row in enumerate(official[::-1].itertuples()):
            color = style.size_color(row.size)
            shape = {"color": color, "marker": "o", "markersize": 6, "linestyle": ""}
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


# --- emergence -------------------------------------------------------------------------------

BINNED = 6
"""Number of neighboring checkpoints whose mean is one point of a curve."""


def _binned(sums: pd.DataFrame) -> pd.DataFrame:
    """Average the scores over groups of BINNED consecutive checkpoints of a run, after step 0."""
    read = sums[sums.step > 0]
    place = read.groupby(["size", "arm"]).cumcount() // BINNED
    means = read.groupby(["size", "arm", place], sort=False).mean(numeric_only=True)
    return means.reset_index(level=[0, 1]).reset_index(drop=True)


@style.figure
def sums_over_training(result: Result) -> Drawing:
    """Draw scores of sums over training by size, for each half of the suite.

    The run whose choice accuracy rises most is also shown by checkpoint, with its smooth curve.
    """
    sums, smooth = result.tables["sums"], result.tables["sums_smooth"]
    sizes = result.params.size_list
    riser, riser_arm = result.values["riser"], result.values["riser_arm"]
    late = sums[sums.percent >= 100 / 2**DOUBLINGS]
    binned = _binned(late)
    shown = ("choice", "logprob", "margin")
    notes = (
        f"lines: means of {BINNED} checkpoints; dotted: guessing, or no margin",
        style.seed_note(result, "sums_choice"),
    )
    with style.canvas(result, 2, 6.4, *notes, rows=3) as (figure, axes):
        for ax, (measure, arm) in zip(axes, product(shown, DATA_ARMS), strict=True):
            about = MEASURES[measure]
            lines = style.rows_where(binned, arm=arm)
            lines = lines.assign(value=lines[measure])
            if arm == "standard":
                style.seed_band(ax, result, lines, "percent", f"sums_{measure}", about.factor)
            if arm == riser_arm:
                own = style.rows_where(late, size=riser, arm=arm)
                look = {"marker": ".", "markersize": 2.2, "linestyle": "", "alpha": 0.45}
                dots = ax.plot(own.percent, about.factor * own[measure], color=MUTED, **look)
                curve = style.rows_where(smooth, size=riser, arm=arm)
                at = 100 * curve.step / sums.step.max()
                line = ax.plot(at, curve[measure], color=INK, linewidth=1.6, zorder=3)
                svg.hide(*dots, *line)
            look = {"marker": "", "linewidth": 1.1}
            style.size_curves(ax, lines, "percent", sizes, about.factor, **look)
            ax.set(title=f"{about.title}, {arm}", xlim=(0, 101))
            low, high = (about.factor * float(end) for end in
                         (binned[measure].min(), binned[measure].max()))  # fmt: skip
            if np.isfinite(low) and low < high:
                ax.set_ylim(low - 0.1 * (high - low), high + 0.2 * (high - low))
            if measure != "logprob":
                style.reference(ax, 100 / CHOICES if measure == "choice" else 0)
        for ax, measure in zip(axes[::2], shown, strict=True):
            ax.set_ylabel("% right" if measure in SHARES else MEASURES[measure].unit)
        for ax in axes[-2:]:
            ax.set_xlabel("% of training")
        style.size_legend(figure, sizes)
        return Drawing(figure, f"Scores of sums over training for {len(sizes)} sizes on two texts")


@style.figure
def through_the_metric(result: Result) -> Drawing:
    """Draw accuracy on sums against three smooth measures and against its expected value.

    Lines are the links fitted to all sizes; in the last panel, the line is that of equal values.
    """
    binned, links = _binned(result.tables["sums"]), result.tables["link_curves"]
    panels = {
        ("choice", "margin"): "margin, nats",
        ("choice", "logprob"): "log-probability, nats",
        ("exact", "logprob"): "log-probability, nats",
        ("exact", PRODUCT): "mean probability, %",
    }
    note = f"points: means of {BINNED} checkpoints, hollow: standard half; dotted: guessing"
    with style.canvas(result, 2, 4.6, note, rows=2) as (figure, axes):
        for ax, ((accuracy, smooth), label) in zip(axes, panels.items(), strict=True):
            factor = 100 if smooth == PRODUCT else 1
            line = style.rows_where(links, accuracy=accuracy, smooth=smooth)
            x, y = line.x, 100 * line.value
            if smooth == PRODUCT:
                x = y = np.array([0, 100 * binned[[accuracy, smooth]].to_numpy().max(initial=0)])
            svg.hide(*ax.plot(x, y, color=INK, linewidth=1))
            for size, arm in product(result.params.size_list, DATA_ARMS):
                own = style.rows_where(binned, size=size, arm=arm)
                look = style.mark("o", hollow=arm == "standard") | {"markersize": 2.6}
                look["markerfacecolor"] = "white" if arm == "standard" else style.size_color(size)
                (dots,) = ax.plot(factor * own[smooth], 100 * own[accuracy],
                                  color=style.size_color(size), **look)  # fmt: skip
                svg.register(dots, svg.Series(f"{size} {arm}"))
            if len(line):
                ax.set_xlim(line.x.min() - 0.05 * np.ptp(line.x), None)
            ax.set(title=MEASURES[accuracy].title, xlabel=label)
        for ax in axes[::2]:
            ax.set_ylabel("% right")
        for ax in axes[:2]:
            style.reference(ax, 100 / CHOICES)
        style.size_legend(figure, result.params.size_list)
        return Drawing(figure, "Accuracy on sums against margin and probability of the answer")


SHOWN_STEPS = (13_000, 65_000, 143_000)
"""Steps at which released sums are shown. LAMBADA was evaluated at the nearest steps."""


@style.figure
def released_sums(result: Result) -> Drawing:
    """Draw released accuracy on sums and on LAMBADA, and LAMBADA's log-probability, over size."""
    sums, lambada = (
        result.released.get(name, pd.DataFrame(columns=COLUMNS[name]))
        for name in ("sums", "lambada")
    )
    sums = style.rows_where(sums, operation="addition", shots=SUM_SHOTS)
    means = lambada.groupby(["model", "step"], as_index=False)[["value", "nats"]].mean()
    panels = {
        f"sums, {SUM_SHOTS} examples": (sums, "value", 100),
        "LAMBADA": (means, "value", 100),
        "LAMBADA, log-probability": (means.assign(nats=-means.nats), "nats", 1),
    }
    with style.canvas(result, 3, 2.8, "exact answers; mean of both texts (LAMBADA)") as (
        figure,
        axes,
    ):
        for ax, (title, (table, column, factor)) in zip(axes, panels.items(), strict=True):
            ax.set_title(title)
            if table.empty:
                style.say(ax, NO_RELEASED.replace(": ", ":\n"))
                continue
            models = [model for model in MODELS if model in set(table.model)]
            ends = []
            for wanted, color in zip(SHOWN_STEPS, (palette.SKY, BLUE, INK), strict=True):
                step = min(table.step.unique(), key=lambda s: abs(s - wanted))
                line = style.rows_where(table, step=step).set_index("model")[column].reindex(models)
                (drawn,) = ax.plot(range(len(models)), factor * line, color=color, marker="o",
                                   markersize=3, linewidth=1.2)  # fmt: skip
                svg.register(drawn, svg.Series(f"step {step:,}"))
                ends.append((f"{step // 1000}k", len(models) - 1, factor * line.iloc[-1], color))
            style.end_labels(ax, ends)
            style.category_ticks(ax, models, rotation=60)
        axes[0].set_ylabel("% right")
        axes[2].set_ylabel("nats")
        return Drawing(figure, "Released accuracy on sums and LAMBADA over size")


def sums_table(result: Result) -> Table:
    """Return a table of the sums by run: scores at the end, rises and largest jumps."""
    ends, jumps = result.tables["sums_end"], result.tables["jumps"]
    rows = []
    for arm, size in product(DATA_ARMS, result.params.size_list):
        row = {"Size": size, "Half": arm}
        for measure, name in (("choice", "Choice, %"), ("exact", "Exact, %"), ("margin", "Margin")):
            for end in style.rows_where(ends, size=size, arm=arm, measure=measure).itertuples():
                factor = MEASURES[measure].factor
                row[name] = interval(*(factor * x for x in (end.value, end.low, end.high)))
        for measure, name in (("choice", "choice"), ("margin", "margin"), ("logprob", "log-prob.")):
            for jump in style.rows_where(jumps, size=size, arm=arm, measure=measure).itertuples():
                row[f"Rise of {name}"] = interval(jump.rise, jump.rise_low, jump.rise_high)
        rows.append(row)
    caption = (
        "Sums by run. Choices, exact answers and margin (nats) at the end, and rises over the last "
        "two doublings of training, in points and nats"
    )
    return Table(pd.DataFrame(rows), caption)
