"""The page on the recipe, drawn: the schedule, what training cost, and the tables.

Each function takes nothing and gives a Drawing or a Table; the book calls them while it is built,
so that the page cannot show anything but what the library is. `block` is in figures_block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pythia_book import recipe
from pythia_book.pages.block import TIMES, block
from pythia_book.style import MUTED, Drawing, Table, panels, size_colour, style
from pythia_core.suite import OFFICIAL_SIZES

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["block", "cost", "cost_table", "estimates", "gpt3_table", "layout_table", "schedule"]

DASH = "\N{EN DASH}"
_LINE = "#0072b2"


def schedule() -> Drawing:
    """The learning rate that was run beside the one usually described; peaks by size."""
    frame, floor = recipe.schedules()
    rates = recipe.gpt3_table()
    with style():
        note = "Left: pythia_core.training.schedule. Right: the released configs; GPT-3 from its paper."
        figure, (ax, peaks) = panels(2, 2.9, note, ratios=(1.35, 1))
        ax.plot(frame.step / 1000, 100 * frame.paper, color=MUTED, linestyle=(0, (4, 1.5)),
                linewidth=1.1)  # fmt: skip
        ax.plot(frame.step / 1000, 100 * frame.neox, color=_LINE, linewidth=2)
        ax.axvline(floor / 1000, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text(floor / 1000 - 2, 96, f"floor from step {floor:,}", ha="right", va="top",
                fontsize=7.5)  # fmt: skip
        ax.text(62, 72, "cosine to 10 %,\nas usually described", color=MUTED, fontsize=7.5)
        ax.text(17, 30, "as run: a cosine to 0,\ncut off at 10 %", color=_LINE,
                fontsize=7.5)  # fmt: skip
        ax.set(xlim=(0, 143), ylim=(0, 104), xlabel="step, thousands",
               ylabel="learning rate, % of its peak", title="The schedule")  # fmt: skip
        for row in rates.itertuples(index=False):
            name = row.size
            n = OFFICIAL_SIZES[name].model().n_params
            if row.gpt3 is not None:
                peaks.plot([n], [row.gpt3_lr_max], marker="D", markersize=8, color=MUTED,
                           markerfacecolor="none", linestyle="")  # fmt: skip
            peaks.plot([n], [row.lr_max], marker="o", color=size_colour(name), linestyle="")
            low = name == "6.9b"  # the next size is close by
            peaks.annotate(name, (n, row.lr_max), xytext=(-6, -9) if low else (5, 4),
                           ha="right" if low else "left", textcoords="offset points",
                           fontsize=7)  # fmt: skip
        peaks.set(xscale="log", yscale="log", xlabel="parameters", title="Peaks, and GPT-3's",
                  xlim=(4e7, 3e10), ylim=(8e-5, 1.6e-3))  # fmt: skip
        peaks.set_ylabel("peak learning rate")
        peaks.legend(handles=_marks(("o", MUTED, "Pythia"), ("D", "none", "GPT-3, nearest size")))
        words = (
            f"Learning rate over {frame.step.iloc[-1]:,} steps: the released runs are at their "
            f"floor from step {floor:,}, a cosine to a tenth only at the end; "
            "peak rates by size beside GPT-3's"
        )
        return Drawing(figure, words)


def cost() -> Drawing:
    """GPU-hours and the share of the peak against size."""
    costs = recipe.cost_table().dropna()
    today = recipe.estimates().set_index("size").h100_hours
    with style():
        note = (
            f"A100: GPU-hours of the paper. H100: computed at "
            f"{100 * recipe.H100_UTILISATION:.0f} % of "
            f"{recipe.H100_PEAK / 1e12:.0f} TFLOP/s, not measured. Shares are of "
            f"{recipe.A100_PEAK / 1e12:.0f} TFLOP/s."
        )
        figure, (hours, share) = panels(2, 2.9, note)
        for row in costs.itertuples(index=False):
            colour = size_colour(row.size)
            hours.plot([row.parameters], [row.gpu_hours], marker="o", color=colour)
            hours.plot([row.parameters], [today[row.size]], marker="D", color=colour,
                       markerfacecolor="white")  # fmt: skip
            hours.annotate(row.size, (row.parameters, row.gpu_hours), xytext=(-5, 4), ha="right",
                           textcoords="offset points", fontsize=7)  # fmt: skip
        hours.set(xscale="log", yscale="log", xlabel="parameters", ylabel="GPU-hours",
                  title="One model", xlim=(2.5e7, 3e10),
                  ylim=(40, 2.5e5))  # fmt: skip
        kinds = _marks(("o", MUTED, "A100, as trained"), ("D", "white", "H100, computed"))
        hours.legend(handles=kinds, loc="upper left")
        for at, row in enumerate(costs.itertuples(index=False)):
            colour = size_colour(row.size)
            pair = [100 * row.utilisation_6nt, 100 * row.utilisation_exact]
            share.plot([at, at], pair, color=colour, linewidth=1.2, zorder=1)
            share.plot([at], pair[:1], marker="s", color=colour, markerfacecolor="white")
            share.plot([at], pair[1:], marker="o", color=colour)
        share.set_xticks(range(len(costs)), costs["size"])
        share.set(ylim=(0, 42), ylabel="% of the peak", title="Utilisation, by two counts")
        share.grid(axis="x", visible=False)
        rule = f"6 {TIMES} parameters {TIMES} tokens"
        kinds = _marks(("s", "white", rule), ("o", MUTED, "products that are made"))
        share.legend(handles=kinds, loc="lower right")
        first, last = costs.iloc[0], costs.iloc[-1]
        words = (
            f"From {first.gpu_hours:,.0f} A100-hours at {first['size']} to {last.gpu_hours:,.0f} "
            f"at {last['size']}; utilisation between {100 * costs.utilisation_exact.min():.0f} "
            f"and {100 * costs.utilisation_exact.max():.0f} % of the peak"
        )
        return Drawing(figure, words)


def _marks(*kinds: tuple[str, str, str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle="", marker=m, color=MUTED, markerfacecolor=face, label=label)
        for m, face, label in kinds
    ]


# --- tables ------------------------------------------------------------------------------------


def cost_table() -> Table:
    """What each size cost, by two counts of the work."""
    caption = (
        f"Work and cost of one model: {recipe.TOKENS:,} tokens; shares of "
        f"{recipe.A100_PEAK / 1e12:.0f} TFLOP/s"
    )
    columns = {
        "size": ("Size", str),
        "parameters": ("Parameters", "{:,.0f}".format),
        "tokens_per_parameter": ("Tokens a parameter", "{:,.0f}".format),
        "flop_6nt": (f"6 {TIMES} N {TIMES} T, FLOP", _power),
        "flop_exact": ("Products, FLOP", _power),
        "gpu_hours": ("A100-hours", "{:,.0f}".format),
        "utilisation_6nt": ("Share, 6NT", _percent),
        "utilisation_exact": ("Share, products", _percent),
    }
    return Table(_shown(recipe.cost_table(), columns), caption)


def layout_table() -> Table:
    """How a batch was spread over the GPUs."""
    columns = {
        "size": ("Size", str),
        "gpus": ("A100s of 40 GB", str),
        "tensor_parallel": ("Tensor parallel", str),
        "ranks": ("Copies of the model", str),
        "micro_batch": ("Rows at once", str),
        "accumulation": ("Accumulated", str),
        "rows": ("Rows an update", "{:,}".format),
        "zero": ("ZeRO stage", str),
        "days": ("Days", "{:.1f}".format),
    }
    return Table(_shown(recipe.layout_table(), columns), "Hardware, by size")


def estimates() -> Table:
    """Energy and hours of today: ours, by the formula in the caption."""
    caption = (
        f"Estimates of ours. Energy: A100-hours {TIMES} {recipe.A100_WATT} W {TIMES} {recipe.PUE}. "
        f"H100: products / ({100 * recipe.H100_UTILISATION:.0f}\N{NO-BREAK SPACE}% of "
        f"{recipe.H100_PEAK / 1e12:.0f} TFLOP/s)"
    )
    frame = recipe.estimates()
    trained = frame.dropna().drop(columns="size")
    frame.loc[len(frame)] = {"size": f"the paper's {len(trained)}, once", **trained.sum().to_dict()}
    frame["days"] = frame.h100_hours / 24
    columns = {
        "size": ("Size", str),
        "gpu_hours": ("A100-hours", "{:,.0f}".format),
        "energy_mwh": ("Energy, MWh", "{:.2f}".format),
        "h100_hours": ("Hours of one H100", "{:,.0f}".format),
        "days": ("Days of one H100", "{:,.1f}".format),
    }
    return Table(_shown(frame, columns), caption)


def gpt3_table() -> Table:
    """Batch and learning rate beside GPT-3's."""
    columns = {
        "size": ("Size", str),
        "lr_max": ("Peak rate", _rate),
        "gpt3": ("GPT-3's nearest", str),
        "gpt3_lr_max": ("Its peak rate", _rate),
        "gpt3_batch": ("Its batch, tokens", "{:,}".format),
        "gpus_allowed": ("GPUs it would feed", str),
        "gpus": ("GPUs used", str),
        "speed_up": ("Times faster", "{:.0f}".format),
    }
    caption = f"Against GPT-3's rule; Pythia's batch is {recipe.BATCH_TOKENS:,} tokens throughout"
    return Table(_shown(recipe.gpt3_table(), columns), caption)


def _shown(frame: pd.DataFrame, columns: dict[str, tuple[str, Callable[[Any], str]]]) -> Any:
    """A frame of texts under readable names; what is missing is a dash."""
    import pandas as pd

    return pd.DataFrame(
        {
            title: [DASH if pd.isna(v) else text(v) for v in frame[name].tolist()]
            for name, (title, text) in columns.items()
        }
    )


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _rate(value: float) -> str:
    return _power(value, 1)


def _power(value: float, digits: int = 2) -> str:
    """1.27e20 as 1.27 x 10^20 in print, which does not break over lines."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} {TIMES} 10{raised}".replace(" ", "\N{NO-BREAK SPACE}")
