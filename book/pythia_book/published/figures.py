"""Figures of the released benchmark results: over training, by size, by batch size, LAMBADA.

Every official size has one colour; dashed lines are deduplicated models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pythia_book import style
from pythia_book.published.tables import MODELS, TASKS
from pythia_book.style import BLUE, GREEN, MUTED, ORANGE, Drawing, size_colour

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pythia_book.published.scaling import PublishedScaling

TITLES = {
    "lambada_openai": "LAMBADA",
    "piqa": "PIQA",
    "winogrande": "WinoGrande",
    "wsc": "WSC",
    "arc_easy": "ARC, easy",
    "arc_challenge": "ARC, challenge",
    "sciq": "SciQ",
    "logiqa": "LogiQA",
    "hellaswag": "HellaSwag",
}
CHANCE = {"piqa": 50, "winogrande": 50, "wsc": 50, "arc_easy": 25, "arc_challenge": 25, "sciq": 25,
          "logiqa": 25, "hellaswag": 25, "lambada_openai": 0}  # fmt: skip
"""Accuracy of guessing, in percent."""
DASHED = (0, (3, 1.2))
ABSENT = "no released numbers:\nset PYTHIA_PUBLISHED_DIR"
FAMILIES = {
    "pythia": ("Pythia", "o", BLUE),
    "pythia-deduped": ("Pythia, deduplicated", "s", "#56b4e9"),
    "opt": ("OPT", "^", ORANGE),
    "bloom": ("BLOOM", "D", GREEN),
}


def model_legend(figure: Figure, models: tuple[str, ...] = MODELS, arms: bool = True) -> None:
    """Add a legend above the panels: size colours and, with `arms`, each text's line style."""
    lines = {model: {"color": size_colour(model), "linewidth": 3} for model in models}
    if arms:
        lines |= {"standard": {"linestyle": "-"}, "deduplicated": {"linestyle": DASHED}}
    style.legend(figure, lines, handlelength=1.6, columnspacing=0.9, fontsize=7)


def _task_panels(
    axes: list[Axes], rows: pd.DataFrame, xlabel: str
) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Yield each task's panel and rows for the caller to draw; set titles and axis labels."""
    for ax, task in zip(axes, TASKS, strict=True):
        ax.set_title(TITLES[task])
        part = rows[rows.task == task]
        if part.empty:
            style.say(ax, ABSENT)
            continue
        yield ax, part
        ax.set_xscale("log")
        style.reference(ax, CHANCE[task])
    for ax in axes[4:]:
        ax.set_xlabel(xlabel)
    for ax in axes[::4]:
        ax.set_ylabel("% right")


def benchmarks_over_training(ps: PublishedScaling, result: Any) -> Drawing:
    """Draw zero-shot accuracy of sixteen models on eight tasks over 27 checkpoints."""
    curves = ps.tables["curves"]
    notes = "zero-shot; dotted: guessing"
    with style.canvas(result, 4, 4.2, notes, rows=2) as (figure, axes):
        zero_shot = style.rows_where(curves[curves.step > 0], shots=0)
        for ax, rows in _task_panels(axes, zero_shot, "step"):
            for (model, deduped), line in rows.groupby(["model", "deduped"]):
                steps = sorted(rows.step.unique())  # a missing step breaks the line
                values = line.set_index("step").value.reindex(steps)
                ax.plot(steps, 100 * values, color=size_colour(model), linewidth=0.9,
                        linestyle=DASHED if deduped else "-")  # fmt: skip
        if not curves.empty:
            model_legend(figure)
        models = len(curves[["model", "deduped"]].drop_duplicates())
        return Drawing(figure, f"Zero-shot accuracy of {models} released models on eight tasks")


def benchmarks_by_size(ps: PublishedScaling, result: Any) -> Drawing:
    """Draw final zero-shot accuracy against the number of parameters, with OPT and BLOOM."""
    final = ps.tables["final"]
    notes = "final checkpoints, zero-shot; bars: 95 % intervals"
    with style.canvas(result, 4, 4.2, notes, rows=2) as (figure, axes):
        for ax, rows in _task_panels(axes, final, "parameters"):
            for family, (_, marker, colour) in FAMILIES.items():
                points = style.rows_where(rows, family=family).sort_values("n_params")
                shape = {"marker": marker, "markersize": 3.2, "linewidth": 0.9}
                style.curve(ax, points, "n_params", colour, 100, bars=True, **shape)
        if not final.empty:
            lines = {
                label: {"color": colour, "marker": marker, "linewidth": 1}
                for label, marker, colour in FAMILIES.values()
            }
            style.legend(figure, lines)
        models = final.name.nunique()
        text = f"Final accuracy of {models} released models by size on eight tasks"
        return Drawing(figure, text)


def batch_size(ps: PublishedScaling, result: Any) -> Drawing:
    """Draw accuracy with small and full batches at equal tokens, one panel per size."""
    batch = ps.tables["batch"]
    models = list(dict.fromkeys(batch.model)) or list(MODELS[:5])
    batch = batch.assign(billions=batch.tokens / 1e9)
    note = "solid: 2M tokens per batch; five-shot, mean over eight tasks; bands: 95 % intervals"
    with style.canvas(result, len(models), 2.3, note, "axes differ") as (figure, axes):
        for ax, model in zip(axes, models, strict=True):
            rows = batch[batch.model == model]
            ax.set_title(model)
            if rows.empty:
                style.say(ax, "no released\nnumbers")
                continue
            full = rows.batch_tokens.max()
            for tokens, line in rows.groupby("batch_tokens"):
                dashes = "-" if tokens == full else DASHED
                shape = {"linewidth": 1.2, "linestyle": dashes}
                style.curve(ax, line, "billions", size_colour(model), 100, **shape)
            small = rows.batch_tokens.min() / 2**20
            ax.text(0.97, 0.05, f"dashed: {small:g}M", transform=ax.transAxes, ha="right",
                    fontsize=7, color=MUTED)  # fmt: skip
            ax.set_xlabel("tokens, billions")
        axes[0].set_ylabel("% right")
        caption = "Accuracy with batches of two million tokens (solid) and smaller ones (dashed)"
        return Drawing(figure, caption)


def lambada_decline(ps: PublishedScaling, result: Any) -> Drawing:
    """Draw LAMBADA over training on a linear axis: the smallest models peak early and decline."""
    curves = ps.tables["curves"]
    curves = style.rows_where(curves[curves.step >= 1000], task="lambada_openai", shots=0)
    curves = curves.assign(thousands=curves.step / 1000)
    notes = "zero-shot; bands: 95 % intervals; circles: best checkpoint"
    with style.canvas(result, 2, 3.0, notes) as (figure, axes):
        for ax, deduped in zip(axes, (False, True), strict=True):
            ax.set_title("deduplicated" if deduped else "standard")
            rows = curves[curves.deduped == deduped]
            if rows.empty:
                style.say(ax, ABSENT)
                continue
            for model, line in rows.groupby("model"):
                colour = size_colour(model)
                style.curve(ax, line, "thousands", colour, 100, linewidth=1.2)
                best = line.loc[line.value.idxmax()]
                ax.plot(best.thousands, 100 * best.value, "o", color=colour,
                        markerfacecolor="white", markersize=4.5)  # fmt: skip
            ax.set(xlabel="step, thousands", ylim=(0, 75))
        axes[0].set_ylabel("LAMBADA, % right")
        if not curves.empty:
            model_legend(figure, arms=False)
        return Drawing(figure, "LAMBADA accuracy of the released models over training, by size")
