"""The released benchmark results, drawn: over training, by size, by batch size, late LAMBADA.

Colours are those of the official ladder everywhere; a dashed line is a deduplicated model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.published.tables import MODELS, TASKS
from pythia_book.style import MUTED, WIDTH, Drawing, footer, reference, say, size_colour, style

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
"""Percent right by guessing."""
ABSENT = "no released numbers:\nset PYTHIA_PUBLISHED_DIR"
FAMILIES = {
    "pythia": ("Pythia", "o", "#0072b2"),
    "pythia-deduped": ("Pythia, deduplicated", "s", "#56b4e9"),
    "opt": ("OPT", "^", "#d55e00"),
    "bloom": ("BLOOM", "D", "#009e73"),
}


def grid(rows: int, columns: int, height: float, small_print: str) -> tuple[Figure, list[Axes]]:
    """Small multiples the width of the page, row by row, with the footer below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    room = 0.02 + 0.13 * (1 + small_print.count("\n")) / height
    figure.get_layout_engine().set(rect=(0, room, 1, 1 - room))
    figure.text(0.008, 0.012, small_print, fontsize=6.5, color=MUTED, linespacing=1.3)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(length=0)
        ax.set_axisbelow(True)
    return figure, axes


def model_legend(figure: Figure, models: tuple[str, ...] = MODELS, arms: bool = True) -> None:
    """Which colour is which size, and with `arms` which line which text, above the panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=size_colour(m), linewidth=3, label=m) for m in models]
    handles += [
        Line2D([], [], color=MUTED, linestyle=shape, label=label)
        for shape, label in (("-", "standard"), ((0, (3, 1.2)), "deduplicated"))
        if arms
    ]
    figure.legend(
        handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1.6,
        columnspacing=0.9, fontsize=7,
    )  # fmt: skip


def benchmarks_over_training(ps: PublishedScaling, result: Any) -> Drawing:
    """Eight tasks, sixteen models, 27 checkpoints, zero-shot."""
    curves = ps.tables["curves"]
    with style():
        figure, axes = grid(2, 4, 4.2, footer(result, "zero-shot; dotted: guessing"))
        for ax, task in zip(axes, TASKS, strict=True):
            ax.set_title(TITLES[task])
            mine = curves[(curves.task == task) & (curves.shots == 0) & (curves.step > 0)]
            if mine.empty:
                say(ax, ABSENT)
                continue
            for (model, deduped), line in mine.groupby(["model", "deduped"]):
                steps = sorted(mine.step.unique())  # a step left out breaks the line
                values = line.set_index("step").value.reindex(steps)
                ax.plot(steps, 100 * values, color=size_colour(model), linewidth=0.9,
                        linestyle=(0, (3, 1.2)) if deduped else "-")  # fmt: skip
            ax.set_xscale("log")
            reference(ax, CHANCE[task])
        for ax in axes[4:]:
            ax.set_xlabel("step")
        for ax in (axes[0], axes[4]):
            ax.set_ylabel("% right")
        if not curves.empty:
            model_legend(figure)
        words = (
            f"Zero-shot accuracy of {ps.values.get('n_models', 0)} released models on eight tasks"
        )
        return Drawing(figure, words)


def benchmarks_by_size(ps: PublishedScaling, result: Any) -> Drawing:
    """Final zero-shot accuracy against all parameters, with OPT and BLOOM."""
    final = ps.tables["final"]
    with style():
        small_print = footer(result, "final checkpoints, zero-shot; bars: 95 % intervals")
        figure, axes = grid(2, 4, 4.2, small_print)
        for ax, task in zip(axes, TASKS, strict=True):
            ax.set_title(TITLES[task])
            mine = final[final.task == task]
            if mine.empty:
                say(ax, ABSENT)
                continue
            for family, (_, marker, colour) in FAMILIES.items():
                _points(ax, mine[mine.family == family], marker, colour)
            ax.set_xscale("log")
            reference(ax, CHANCE[task])
        for ax in axes[4:]:
            ax.set_xlabel("parameters")
        for ax in (axes[0], axes[4]):
            ax.set_ylabel("% right")
        if not final.empty:
            from matplotlib.lines import Line2D

            handles = [
                Line2D([], [], color=colour, marker=marker, label=label, linewidth=1)
                for label, marker, colour in FAMILIES.values()
            ]
            figure.legend(handles=handles, loc="outside upper left", ncols=4)
        words = f"Final accuracy of {final.name.nunique()} released models by size on eight tasks"
        return Drawing(figure, words)


def _points(ax: Axes, rows: pd.DataFrame, marker: str, colour: str) -> None:
    rows = rows.sort_values("n_params")
    ax.plot(rows.n_params, 100 * rows.value, color=colour, marker=marker, markersize=3.2,
            linewidth=0.9)  # fmt: skip
    ax.vlines(
        rows.n_params, 100 * rows.low, 100 * rows.high, color=colour, linewidth=0.8, alpha=0.6
    )


def batch_size(ps: PublishedScaling, result: Any) -> Drawing:
    """Small against full batches at equal tokens, one panel a size."""
    batch = ps.tables["batch"]
    models = list(dict.fromkeys(batch.model)) or list(MODELS[:5])
    with style():
        note = "solid: 2M tokens a batch; five-shot, mean over eight tasks; bands: 95 % intervals"
        small_print = footer(result, note, "axes differ")
        figure, axes = grid(1, len(models), 2.3, small_print)
        for ax, model in zip(axes, models, strict=True):
            mine = batch[batch.model == model]
            ax.set_title(model)
            if mine.empty:
                say(ax, "no released\nnumbers")
                continue
            full = mine.batch_tokens.max()
            for tokens, line in mine.groupby("batch_tokens"):
                dashes = "-" if tokens == full else (0, (3, 1.2))
                ax.plot(line.tokens / 1e9, 100 * line.value, color=size_colour(model),
                        linewidth=1.2, linestyle=dashes)  # fmt: skip
                ax.fill_between(line.tokens / 1e9, 100 * line.low, 100 * line.high,
                                color=size_colour(model), alpha=0.12, linewidth=0)  # fmt: skip
            small = mine.batch_tokens.min() / 2**20
            ax.text(0.97, 0.05, f"dashed: {small:g}M", transform=ax.transAxes, ha="right",
                    fontsize=7, color=MUTED)  # fmt: skip
            ax.set_xlabel("tokens, billions")
        axes[0].set_ylabel("% right")
        words = "Accuracy with batches of two million tokens (solid) and smaller ones (dashed)"
        return Drawing(figure, words)


def lambada_decline(ps: PublishedScaling, result: Any) -> Drawing:
    """LAMBADA over training on a linear axis: the smallest models peak early and fall."""
    curves = ps.tables["curves"]
    curves = curves[(curves.task == "lambada_openai") & (curves.shots == 0) & (curves.step >= 1000)]
    with style():
        small_print = footer(result, "zero-shot; bands: 95 % intervals; circles: best checkpoint")
        figure, axes = grid(1, 2, 3.0, small_print)
        for ax, deduped in zip(axes, (False, True), strict=True):
            ax.set_title("deduplicated" if deduped else "standard")
            mine = curves[curves.deduped == deduped]
            if mine.empty:
                say(ax, ABSENT)
                continue
            for model, line in mine.groupby("model"):
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
