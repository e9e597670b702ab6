"""Figures of the released benchmark results: over training, by size, by batch size, LAMBADA.

Every official size has one colour; dashed lines are deduplicated models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pythia_book.published.tables import MODELS, TASKS
from pythia_book.style import MUTED, Drawing, footer, panels, reference, say, size_colour, style

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
    "pythia": ("Pythia", "o", "#0072b2"),
    "pythia-deduped": ("Pythia, deduplicated", "s", "#56b4e9"),
    "opt": ("OPT", "^", "#d55e00"),
    "bloom": ("BLOOM", "D", "#009e73"),
}


def model_legend(figure: Figure, models: tuple[str, ...] = MODELS, arms: bool = True) -> None:
    """A legend above the panels: size colours and, with `arms`, the line style of each text."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=size_colour(m), linewidth=3, label=m) for m in models]
    handles += [
        Line2D([], [], color=MUTED, linestyle=shape, label=label)
        for shape, label in (("-", "standard"), (DASHED, "deduplicated"))
        if arms
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1.6,
        columnspacing=0.9, fontsize=7,
    )  # fmt: skip


def _task_panels(axes: list[Axes], rows: pd.DataFrame) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Each task's panel and rows, for the caller to draw; titles the panels, labels the axes."""
    for ax, task in zip(axes, TASKS, strict=True):
        ax.set_title(TITLES[task])
        part = rows[rows.task == task]
        if part.empty:
            say(ax, ABSENT)
            continue
        yield ax, part
        ax.set_xscale("log")
        reference(ax, CHANCE[task])
    for ax in axes[::4]:
        ax.set_ylabel("% right")


def benchmarks_over_training(ps: PublishedScaling, result: Any) -> Drawing:
    """Eight tasks, sixteen models, 27 checkpoints, zero-shot."""
    curves = ps.tables["curves"]
    with style():
        figure, axes = panels(4, 4.2, footer(result, "zero-shot; dotted: guessing"), rows=2)
        for ax, rows in _task_panels(axes, curves[(curves.shots == 0) & (curves.step > 0)]):
            for (model, deduped), line in rows.groupby(["model", "deduped"]):
                steps = sorted(rows.step.unique())  # a step left out breaks the line
                values = line.set_index("step").value.reindex(steps)
                ax.plot(steps, 100 * values, color=size_colour(model), linewidth=0.9,
                        linestyle=DASHED if deduped else "-")  # fmt: skip
        for ax in axes[4:]:
            ax.set_xlabel("step")
        if not curves.empty:
            model_legend(figure)
        models = len(curves[["model", "deduped"]].drop_duplicates())
        caption = f"Zero-shot accuracy of {models} released models on eight tasks"
        return Drawing(figure, caption)


def benchmarks_by_size(ps: PublishedScaling, result: Any) -> Drawing:
    """Final zero-shot accuracy against all parameters, with OPT and BLOOM."""
    final = ps.tables["final"]
    with style():
        small_print = footer(result, "final checkpoints, zero-shot; bars: 95 % intervals")
        figure, axes = panels(4, 4.2, small_print, rows=2)
        for ax, rows in _task_panels(axes, final):
            for family, (_, marker, colour) in FAMILIES.items():
                _points(ax, rows[rows.family == family], marker, colour)
        for ax in axes[4:]:
            ax.set_xlabel("parameters")
        if not final.empty:
            from matplotlib.lines import Line2D

            handles = [
                Line2D([], [], color=colour, marker=marker, label=label, linewidth=1)
                for label, marker, colour in FAMILIES.values()
            ]
            figure.legend(handles=handles, loc="outside upper left", ncols=4)
        caption = f"Final accuracy of {final.name.nunique()} released models by size on eight tasks"
        return Drawing(figure, caption)


def _points(ax: Axes, rows: pd.DataFrame, marker: str, colour: str) -> None:
    rows = rows.sort_values("n_params")
    ax.plot(rows.n_params, 100 * rows.value, color=colour, marker=marker, markersize=3.2,
            linewidth=0.9)  # fmt: skip
    ax.vlines(
        rows.n_params, 100 * rows.low, 100 * rows.high, color=colour, linewidth=0.8, alpha=0.6
    )


def batch_size(ps: PublishedScaling, result: Any) -> Drawing:
    """Small and full batches at equal tokens, one panel per size."""
    batch = ps.tables["batch"]
    models = list(dict.fromkeys(batch.model)) or list(MODELS[:5])
    with style():
        note = "solid: 2M tokens per batch; five-shot, mean over eight tasks; bands: 95 % intervals"
        small_print = footer(result, note, "axes differ")
        figure, axes = panels(len(models), 2.3, small_print)
        for ax, model in zip(axes, models, strict=True):
            rows = batch[batch.model == model]
            ax.set_title(model)
            if rows.empty:
                say(ax, "no released\nnumbers")
                continue
            full = rows.batch_tokens.max()
            for tokens, line in rows.groupby("batch_tokens"):
                dashes = "-" if tokens == full else DASHED
                ax.plot(line.tokens / 1e9, 100 * line.value, color=size_colour(model),
                        linewidth=1.2, linestyle=dashes)  # fmt: skip
                ax.fill_between(line.tokens / 1e9, 100 * line.low, 100 * line.high,
                                color=size_colour(model), alpha=0.12, linewidth=0)  # fmt: skip
            small = rows.batch_tokens.min() / 2**20
            ax.text(0.97, 0.05, f"dashed: {small:g}M", transform=ax.transAxes, ha="right",
                    fontsize=7, color=MUTED)  # fmt: skip
            ax.set_xlabel("tokens, billions")
        axes[0].set_ylabel("% right")
        caption = "Accuracy with batches of two million tokens (solid) and smaller ones (dashed)"
        return Drawing(figure, caption)


def lambada_decline(ps: PublishedScaling, result: Any) -> Drawing:
    """LAMBADA over training on a linear axis: the smallest models peak early and decline."""
    curves = ps.tables["curves"]
    curves = curves[(curves.task == "lambada_openai") & (curves.shots == 0) & (curves.step >= 1000)]
    with style():
        small_print = footer(result, "zero-shot; bands: 95 % intervals; circles: best checkpoint")
        figure, axes = panels(2, 3.0, small_print)
        for ax, deduped in zip(axes, (False, True), strict=True):
            ax.set_title("deduplicated" if deduped else "standard")
            rows = curves[curves.deduped == deduped]
            if rows.empty:
                say(ax, ABSENT)
                continue
            for model, line in rows.groupby("model"):
                colour = size_colour(model)
                ax.plot(line.step / 1000, 100 * line.value, color=colour, linewidth=1.2)
                ax.fill_between(line.step / 1000, 100 * line.low, 100 * line.high, color=colour,
                                alpha=0.15, linewidth=0)  # fmt: skip
                best = line.loc[line.value.idxmax()]
                ax.plot(best.step / 1000, 100 * best.value, "o", color=colour,
                        markerfacecolor="white", markersize=4.5)  # fmt: skip
            ax.set(xlabel="step, thousands", ylim=(0, 75))
        axes[0].set_ylabel("LAMBADA, % right")
        if not curves.empty:
            model_legend(figure, arms=False)
        return Drawing(figure, "LAMBADA accuracy of the released models over training, by size")
