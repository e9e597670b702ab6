"""Draws the released benchmark results.

Each official size has its own color. Dashed lines are deduplicated models or, in the figure of
batch sizes, smaller batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book import palette, style
from pythia_book.published.means import mean_over_tasks
from pythia_book.published.scaling import (
    COLUMNS,
    LAST_STEPS,
    MIDDLE_STEPS,
    PHENOMENA,
)
from pythia_book.published.tables import CHANCE, MODELS, NO_RELEASED, SEVEN, TASKS, TITLES
from pythia_book.stats import Z_95
from pythia_book.style import BLUE, GREEN, MUTED, ORANGE, Drawing, size_color

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pythia_book.study import Result

DASHED = (0, (3, 1.2))
ABSENT = NO_RELEASED.replace(": ", ":\n")
FAMILIES = {
    "pythia": ("Pythia", "o", BLUE),
    "pythia-deduped": ("Pythia, deduplicated", "s", palette.SKY),
    "opt": ("OPT", "^", ORANGE),
    "bloom": ("BLOOM", "D", GREEN),
}


def model_legend(figure: Figure, models: tuple[str, ...] = MODELS, arms: bool = True) -> None:
    """Add a legend: the color of each model size and, with `arms`, the line style of each text."""
    lines = {model: {"color": size_color(model), "linewidth": 3} for model in models}
    if arms:
        lines |= {"standard": {"linestyle": "-"}, "deduplicated": {"linestyle": DASHED}}
    style.legend(figure, lines, handlelength=1.6, columnspacing=0.9)


def _released(result: Result, name: str) -> pd.DataFrame:
    """Return the table `name`; rename `model` to `size`, and add 95 % limits `low` and `high`."""
    import pandas as pd

    table = result.released.get(name, pd.DataFrame(columns=COLUMNS[name]))
    if "model" in table:
        table = table.rename(columns={"model": "size"})
    if "stderr" in table:
        half = Z_95 * table.stderr.fillna(0)
        table = table.assign(low=table.value - half, high=table.value + half)
    return table


def _sizes(table: pd.DataFrame) -> list[str]:
    """Return the model sizes that occur in a table, smallest first."""
    return [model for model in MODELS if model in set(table["size"])]


def _label_outer(axes: list[Axes], columns: int, xlabel: str, ylabel: str = "% right") -> None:
    """In a grid of `columns` columns, label x in the lowest row and y in the leftmost column."""
    for ax in axes[-columns:]:
        ax.set_xlabel(xlabel)
    for ax in axes[::columns]:
        ax.set_ylabel(ylabel)


@style.figure
def benchmarks_over_training(result: Result) -> Drawing:
    """Draw the zero-shot accuracy of the sixteen models over training, with a panel per task."""
    curves = _released(result, "curves")
    with style.canvas(result, 4, 4.2, "zero-shot; dotted: guessing", rows=2) as (figure, axes):
        for ax, task in zip(axes, TASKS, strict=True):
            ax.set_title(TITLES[task])
            if curves.empty:
                style.say(ax, ABSENT)
                continue
            steps = sorted(curves.step.unique())  # a missing step breaks the line
            for (size, deduped), line in curves.groupby(["size", "deduped"]):
                values = line.set_index("step")[task].reindex(steps)
                shape = {"linewidth": 0.9, "linestyle": DASHED if deduped else "-"}
                text = "deduplicated" if deduped else "standard"
                shape |= {"color": size_color(size), "label": f"{size}, {text}"}
                ax.plot(steps, 100 * values, **shape)
            ax.set_xscale("log")
            style.reference(ax, CHANCE[task])
        _label_outer(axes, 4, "step")
        if not curves.empty:
            model_legend(figure)
        models = len(curves[["size", "deduped"]].drop_duplicates())
        return Drawing(figure, f"Zero-shot accuracy of {models} released models on eight tasks")


@style.figure
def benchmarks_by_size(result: Result) -> Drawing:
    """Draw final zero-shot accuracy against size for Pythia, OPT and BLOOM; one panel per task."""
    final = _released(result, "final")
    notes = "final checkpoints, zero-shot; bars: 95 % intervals"
    with style.canvas(result, 4, 4.2, notes, rows=2) as (figure, axes):
        for ax, task in zip(axes, TASKS, strict=True):
            ax.set_title(TITLES[task])
            rows = final[final.task == task]
            if rows.empty:
                style.say(ax, ABSENT)
                continue
            for family, (label, marker, color) in FAMILIES.items():
                points = style.rows_where(rows, family=family).sort_values("n_params")
                shape = {"marker": marker, "markersize": 3.2, "linewidth": 0.9, "name": label}
                style.curve(ax, points, "n_params", color, 100, bars=True, **shape)
            ax.set_xscale("log")
            style.reference(ax, CHANCE[task])
        _label_outer(axes, 4, "parameters")
        if not final.empty:
            lines = {
                label: {"color": color, "marker": marker, "linewidth": 1}
                for label, marker, color in FAMILIES.values()
            }
            style.legend(figure, lines)
        models = final.name.nunique()
        text = f"Final accuracy of {models} released models by size on eight tasks"
        return Drawing(figure, text)


@style.figure
def late_change(result: Result) -> Drawing:
    """Draw accuracy over training, to compare the middle and the end of training.

    The panels show LAMBADA for standard models, LAMBADA for deduplicated models, and the mean over
    seven tasks and over the two models of each size.
    """
    lambada, curves = (_released(result, name) for name in ("lambada", "curves"))
    deduped = lambada.deduped.astype(bool)
    curves = curves[curves.step >= 1000]
    tasks = curves[list(SEVEN)].mean(axis=1, skipna=False)
    mean = curves.assign(value=tasks).groupby(["size", "step"], as_index=False).value.mean()
    shown = {
        "LAMBADA, standard": lambada[~deduped],
        "LAMBADA, deduplicated": lambada[deduped],
        "seven tasks, both texts": mean,
    }
    notes = "zero-shot; bands: 95 % intervals over items; gray: the checkpoints that are compared"
    with style.canvas(result, 3, 2.9, notes) as (figure, axes):
        for ax, (title, rows) in zip(axes, shown.items(), strict=True):
            ax.set_title(title)
            if rows.empty:
                style.say(ax, ABSENT)
                continue
            rows = rows.assign(thousands=rows.step / 1000)
            shape = {"marker": "", "linewidth": 1.2, "labeled": True}
            style.size_curves(ax, rows, "thousands", _sizes(rows), 100, **shape)
            for steps in (MIDDLE_STEPS, LAST_STEPS):
                ends = (min(steps) / 1000 - 3, max(steps) / 1000 + 3)
                ax.axvspan(*ends, color=MUTED, alpha=0.12, linewidth=0, zorder=0)
            ax.set_xlabel("step, thousands")
        axes[0].set_ylabel("% right")
        return Drawing(figure, "Accuracy of the released models over training, by size")


BATCH_PANELS = {"mean": "seven tasks", "lambada_openai": "LAMBADA", "sciq": "SciQ"}


@style.figure
def batch_size(result: Result) -> Drawing:
    """Draw accuracy against tokens read, for models trained with small and with full batches.

    Model sizes are columns of panels, and the entries of BATCH_PANELS are rows.
    """
    batch = _released(result, "batch")
    sizes = _sizes(batch) or list(MODELS[:5])
    mean = _mean_over_tasks(batch)
    note = "solid: 2M tokens per batch, dashed: fewer; five-shot; bands: 95 % intervals over items"
    rows = len(BATCH_PANELS)
    with style.canvas(result, len(sizes), 4.8, note, "axes differ", rows=rows) as (figure, axes):
        cells = [(task, size) for task in BATCH_PANELS for size in sizes]
        for ax, (task, size) in zip(axes, cells, strict=True):
            lines = style.rows_where(mean if task == "mean" else batch, size=size)
            lines = lines if task == "mean" else style.rows_where(lines, task=task)
            if lines.empty:
                style.say(ax, "no released\nnumbers")
                continue
            full, small = lines.batch_tokens.max(), lines.batch_tokens.min()
            for tokens, line in lines.groupby("batch_tokens"):
                shape = {"linewidth": 1.2, "linestyle": "-" if tokens == full else DASHED}
                shape["name"] = f"{tokens / 2**20:g}M tokens per batch"
                line = line.assign(billions=line.tokens / 1e9).sort_values("tokens")
                style.curve(ax, line, "billions", size_color(size), 100, **shape)
            batches = f"{small / 2**20:g}M or {full / 2**20:g}M"
            if style.narrow():
                ax.set_title(f"{BATCH_PANELS[task]}, {size}: {batches}")
            elif task == "mean":
                ax.set_title(f"{size}: {batches}")
        _label_outer(axes, len(sizes), "tokens, billions")
        for ax, title in zip(axes[:: len(sizes)], BATCH_PANELS.values(), strict=True):
            ax.set_ylabel("% right" if style.narrow() else f"{title}, % right")
        caption = "Accuracy with batches of two million tokens (solid) and smaller ones (dashed)"
        return Drawing(figure, caption)


def _mean_over_tasks(batch: pd.DataFrame) -> pd.DataFrame:
    """Average accuracy over tasks, for each checkpoint with scores on all seven tasks.

    The intervals assume that the errors of different tasks are independent.
    """
    mean = mean_over_tasks(batch, ["size", "batch_tokens", "tokens"], len(SEVEN))
    half = Z_95 * mean.stderr
    return mean.assign(low=mean.value - half, high=mean.value + half)


@style.figure
def mmlu(result: Result) -> Drawing:
    """Draw zero-shot and five-shot accuracy on MMLU over training, and at the end by model size."""
    table = _released(result, "mmlu")
    sizes, last = _sizes(table), table.step.max()
    note = "mean of 57 subjects and both texts; bands and bars: 95 % intervals over subjects"
    with style.canvas(result, 3, 2.8, f"{note}; dotted: guessing", sharey=True) as (figure, axes):
        titles = ("Zero-shot", "Five-shot", "At the end")
        for ax, title in zip(axes, titles, strict=True):
            ax.set_title(title)
        if table.empty:
            for ax in axes:
                style.say(ax, ABSENT)
            return Drawing(figure, f"MMLU: {NO_RELEASED}")
        for ax, shots in zip(axes, (0, 5), strict=False):
            rows = style.rows_where(table[table.step >= 1000], shots=shots)
            rows = rows.assign(thousands=rows.step / 1000)
            style.size_curves(ax, rows, "thousands", sizes, 100, (sizes[0], sizes[-1]), marker="")
            ax.set_xlabel("step, thousands")
        marks = {0: style.mark("o"), 5: style.mark("s", hollow=True)}
        end = table[(table.step == last) & table["size"].isin(sizes)]
        style.size_points(axes[2], end, sizes, "shots", marks, markersize=3.6, width=1)
        style.category_ticks(axes[2], sizes, rotation=60)
        for ax in axes:
            style.reference(ax, 25)
        axes[0].set_ylabel("% right")
        model_legend(figure, tuple(sizes), arms=False)
        style.legend(figure, {f"{k}-shot, at the end": mark for k, mark in marks.items()})
        five = style.rows_where(end, shots=5)
        numbers = (f"{row.size} {100 * row.value:.1f} %" for row in five.itertuples())
        return Drawing(figure, "Five-shot MMLU at the end of training", numbers)


@style.figure
def blimp(result: Result) -> Drawing:
    """Draw the BLiMP accuracy of the first suite (v0) over training, a panel per phenomenon."""
    table = _released(result, "blimp")
    table = table.assign(thousands=table.step / 1000)
    sizes = _sizes(table)
    note = "first suite (v0), zero-shot, mean of both texts; bands: 95 % intervals over items"
    with style.canvas(result, 4, 5.4, f"{note}; dotted: guessing", rows=3, sharey=True) as (
        figure,
        axes,
    ):
        for ax, phenomenon in zip(axes, PHENOMENA, strict=True):
            ax.set_title(phenomenon)
            rows = table[table.phenomenon == phenomenon]
            if rows.empty:
                style.say(ax, ABSENT)
                continue
            style.size_curves(ax, rows, "thousands", sizes, 100, marker="", linewidth=1)
            style.reference(ax, 50)
        _label_outer(axes, 4, "step, thousands")
        if sizes:
            model_legend(figure, tuple(sizes), arms=False)
        end = table[(table.phenomenon == "all") & (table.step == table.step.max())]
        numbers = (f"{row.size} {100 * row.value:.1f} %" for row in end.itertuples())
        return Drawing(figure, "BLiMP at the end, mean over all paradigms", numbers)
