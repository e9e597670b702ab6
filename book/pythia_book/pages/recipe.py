"""Makes the figures and tables of the page on Pythia's recipe: layer, schedule, training cost.

Every build of the book calls the public functions without arguments, so the page always shows the
current library. `block` draws what `recipe.block_parts` observes in a forward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.pages import formatted
from pythia_book.released import recipe
from pythia_book.style import GRID, INK, MUTED, WIDTH, Drawing, Table, panels, size_colour, style
from pythia_core.suite import OFFICIAL_SIZES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_core.config import ModelConfig

_LINE = "#0072b2"


def schedule() -> Drawing:
    """Draw the learning rate during training, and the peak rate of each size.

    The left panel has the schedule that was used and the schedule that is usually described. The
    right panel has the peak rates of Pythia and of GPT-3.
    """
    frame, floor = recipe.schedules()
    rates = recipe.gpt3_table()
    with style():
        note = "Left: training.schedule. Right: the released configs, and GPT-3's paper."
        figure, (ax, peaks) = panels(2, 2.9, note, ratios=(1.35, 1))
        ax.plot(frame.step / 1000, 100 * frame.paper, color=MUTED, linestyle=(0, (4, 1.5)),
                linewidth=1.1)  # fmt: skip
        ax.plot(frame.step / 1000, 100 * frame.neox, color=_LINE, linewidth=2)
        ax.axvline(floor / 1000, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.text(floor / 1000 - 2, 96, f"floor from step {floor:,}", ha="right", va="top",
                fontsize=7.5)  # fmt: skip
        ax.text(62, 72, "cosine to 10 %,\nas usually described", color=MUTED, fontsize=7.5)
        ax.text(17, 30, "as used: cosine to 0,\ncut off at 10 %", color=_LINE,
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
        description = (
            f"Learning rate over {frame.step.iloc[-1]:,} steps: the released runs are at their "
            f"floor from step {floor:,} on, a cosine to a tenth only at the end; "
            "peak rates by size, next to GPT-3's"
        )
        return Drawing(figure, description)


def cost() -> Drawing:
    """Draw the GPU-hours of training each size, and what share of the peak FLOP/s was used."""
    costs = recipe.cost_table().dropna()
    today = recipe.estimates().set_index("size").h100_hours
    with style():
        note = (
            f"A100: the paper's GPU-hours. H100: computed for "
            f"{100 * recipe.H100_UTILISATION:.0f} % of "
            f"{recipe.H100_PEAK / 1e12:.0f} TFLOP/s, not measured. Utilisation: of "
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
        for x, row in enumerate(costs.itertuples(index=False)):
            colour = size_colour(row.size)
            pair = [100 * row.utilisation_6nt, 100 * row.utilisation_exact]
            share.plot([x, x], pair, color=colour, linewidth=1.2, zorder=1)
            share.plot([x], pair[:1], marker="s", color=colour, markerfacecolor="white")
            share.plot([x], pair[1:], marker="o", color=colour)
        share.set_xticks(range(len(costs)), costs["size"])
        share.set(ylim=(0, 42), ylabel="% of the peak", title="Utilisation, counted in two ways")
        share.grid(axis="x", visible=False)
        rule = f"6 {TIMES} parameters {TIMES} tokens"
        kinds = _marks(("s", "white", rule), ("o", MUTED, "matrix products performed"))
        share.legend(handles=kinds, loc="lower right")
        first, last = costs.iloc[0], costs.iloc[-1]
        description = (
            f"From {first.gpu_hours:,.0f} A100-hours at {first['size']} to {last.gpu_hours:,.0f} "
            f"at {last['size']}; utilisation between {100 * costs.utilisation_exact.min():.0f} "
            f"and {100 * costs.utilisation_exact.max():.0f} % of the peak"
        )
        return Drawing(figure, description)


def _marks(*kinds: tuple[str, str, str]) -> list[Any]:
    """Return legend handles from (marker, face colour, label)."""
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], linestyle="", marker=m, color=MUTED, markerfacecolor=face, label=label)
        for m, face, label in kinds
    ]


# --- tables ----------------------------------------------------------------------------------


def cost_table() -> Table:
    """Return the table of the training cost of each size, with FLOP counted in two ways."""
    caption = (
        f"Work and cost of one model for {recipe.TOKENS:,} tokens; utilisation of "
        f"{recipe.A100_PEAK / 1e12:.0f} TFLOP/s"
    )
    columns = {
        "size": ("Size", str),
        "parameters": ("Parameters", "{:,.0f}".format),
        "tokens_per_parameter": ("Tokens per parameter", "{:,.0f}".format),
        "flop_6nt": (f"6 {TIMES} N {TIMES} T, FLOP", _power),
        "flop_exact": ("Products, FLOP", _power),
        "gpu_hours": ("A100-hours", "{:,.0f}".format),
        "utilisation_6nt": ("Utilisation, 6NT", _percent),
        "utilisation_exact": ("Utilisation, products", _percent),
    }
    return Table(formatted(recipe.cost_table(), columns), caption)


def layout_table() -> Table:
    """Return the table that shows, for each size, how a batch was distributed over GPUs."""
    columns = {
        "size": ("Size", str),
        "gpus": ("A100s of 40 GB", str),
        "tensor_parallel": ("Tensor parallel", str),
        "ranks": ("Copies of the model", str),
        "micro_batch": ("Micro-batch, rows", str),
        "accumulation": ("Accumulation steps", str),
        "rows": ("Rows per update", "{:,}".format),
        "zero": ("ZeRO stage", str),
        "days": ("Days", "{:.1f}".format),
    }
    return Table(formatted(recipe.layout_table(), columns), "Hardware, by size")


def estimates() -> Table:
    """Return the table of the estimated energy and H100 hours of training each size."""
    caption = (
        f"Our estimates. Energy: A100-hours {TIMES} {recipe.A100_WATT} W {TIMES} {recipe.PUE}. "
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
        "h100_hours": ("Hours on one H100", "{:,.0f}".format),
        "days": ("Days on one H100", "{:,.1f}".format),
    }
    return Table(formatted(frame, columns), caption)


def gpt3_table() -> Table:
    """Return the table that compares each size with GPT-3 in batch size and peak learning rate."""
    columns = {
        "size": ("Size", str),
        "lr_max": ("Peak rate", _rate),
        "gpt3": ("Nearest GPT-3", str),
        "gpt3_lr_max": ("Its peak rate", _rate),
        "gpt3_batch": ("Its batch, tokens", "{:,}".format),
        "gpus_allowed": ("GPUs that would fill", str),
        "gpus": ("GPUs used", str),
        "speed_up": ("Times faster, at most", "{:.0f}".format),
    }
    caption = (
        f"Compared with GPT-3; Pythia's batch is {recipe.BATCH_TOKENS:,} tokens at every size. "
        "Last column: if twice the GPUs take half the time"
    )
    return Table(formatted(recipe.gpt3_table(), columns), caption)


def _percent(value: float) -> str:
    """Format a share as a percentage, e.g. 0.42 as "42 %"."""
    return f"{100 * value:.0f} %"


def _rate(value: float) -> str:
    """Format a learning rate with two digits, e.g. 6e-4 as 6.0 times 10 to the power -4."""
    return _power(value, 1)


def _power(value: float, digits: int = 2) -> str:
    """Format a number as a power of ten, with `digits` digits after the decimal point."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} {TIMES} 10{raised}".replace(" ", "\N{NO-BREAK SPACE}")


# --- one layer -------------------------------------------------------------------------------

TIMES = "\N{MULTIPLICATION SIGN}"
DRAWN_SIZE = "70m"
_FILL = {"norm": "#f3ead6", "linear": "#dbe7f3", "plain": "#f4f4f4"}
_ATTENTION_X, _MLP_X, _BOX = 1.25, 3.75, 1.9
_TOP, _STEP, _HIGH = 4.55, 0.78, 0.46


def block(config: ModelConfig | None = None) -> Drawing:
    """Draw one layer of the model, as observed in a forward pass of pythia_core.model.

    Args:
        config: the model; default: the official size DRAWN_SIZE.
    """
    from matplotlib.figure import Figure

    config = config or OFFICIAL_SIZES[DRAWN_SIZE].model()
    parts = recipe.block_parts(config).set_index("part")
    parallel = parts.reads["post_attention_layernorm"] == "x"
    with style():
        figure = Figure(figsize=(WIDTH, 5.45))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, WIDTH), ylim=(-0.2, 5.25))
        ax.axis("off")
        attention = [
            _part(parts, "input_layernorm", "LayerNorm"),
            _part(parts, "attention.query_key_value", "Q, K, V"),
            ("rotary positions", f"first {config.rotary_dims} of {config.head_dim} dims of q, k",
             "plain", parts.d_out["attention.query_key_value"]),
            ("causal attention", f"{config.n_heads} heads of {config.head_dim}, dense", "plain",
             parts.d_in["attention.dense"]),
            _part(parts, "attention.dense", "output map"),
        ]  # fmt: skip
        mlp = [
            _part(parts, "post_attention_layernorm", "LayerNorm"),
            _part(parts, "mlp.dense_h_to_4h", "MLP up"),
            (f"GELU, {config.gelu} form", "", "plain", parts.d_in["mlp.dense_4h_to_h"]),
            _part(parts, "mlp.dense_4h_to_h", "MLP down"),
        ]
        _lane(ax, _ATTENTION_X, attention)
        _lane(ax, _MLP_X, mlp)
        _wires(ax, parallel, config.d_model, len(attention), len(mlp))
        _packing(ax, config)
        total = int(parts.parameters.sum())
        ax.text(5.15, 1.42, f"{total:,} parameters per layer", fontsize=8, weight="bold")
        ax.text(
            5.15,
            1.3,
            f"{TIMES} {config.n_layers} layers, and outside them:\n"
            f"a final LayerNorm, {2 * config.d_model:,};\n"
            f"embedding and unembedding,\nuntied, no bias,\n"
            f"2 {TIMES} {config.vocab_size:,} {TIMES} {config.d_model:,}",
            fontsize=7,
            color=MUTED,
            va="top",
            linespacing=1.4,
        )
        kind = "parallel" if parallel else "sequential"
        description = (
            f"One layer of width {config.d_model} with a {kind} residual: "
            + ", ".join(f"{name} {p.weight}" for name, p in parts.iterrows())
            + f"; {total:,} parameters"
        )
        return Drawing(figure, description)


def _part(parts: pd.DataFrame, name: str, title: str) -> tuple[str, str, str, int]:
    """Return the box of a LayerNorm or linear map: (title, detail, kind, output width)."""
    part = parts.loc[name]
    kind = "norm" if "layernorm" in name else "linear"
    return title, f"{part.weight} + bias = {part.parameters:,}", kind, part.d_out


def _y(row: int) -> float:
    """Return the height of the middle of the box with index `row`, counted from the top."""
    return _TOP - _HIGH / 2 - 0.12 - row * _STEP


def _lane(ax: Axes, x: float, boxes: list[tuple[str, str, str, int]]) -> None:
    """Draw a column of boxes, centred at `x`, with labelled arrows from each box to the next.

    A box is (title, detail, kind, output width), where `kind` is a key of _FILL.
    """
    from matplotlib.patches import Rectangle

    for row, (title, detail, kind, width) in enumerate(boxes):
        y = _y(row)
        corner = (x - _BOX / 2, y - _HIGH / 2)
        face = _FILL[kind]
        ax.add_patch(Rectangle(corner, _BOX, _HIGH, facecolor=face, edgecolor=MUTED, linewidth=0.8))
        lift = 0.09 if detail else 0
        ax.text(x, y + lift, title, ha="center", va="center", fontsize=8, weight="bold")
        if detail:
            ax.text(x, y - 0.11, detail, ha="center", va="center", fontsize=6.6)
        if row < len(boxes) - 1:
            _arrow(ax, (x, y - _HIGH / 2), (x, _y(row + 1) + _HIGH / 2))
            ax.text(x + 0.07, y - _STEP / 2, f"T {TIMES} {width:,}", fontsize=6.8, va="center",
                    color=MUTED)  # fmt: skip


def _wires(ax: Axes, parallel: bool, width: int, n_attention: int, n_mlp: int) -> None:
    """Draw the residual stream between the attention and MLP boxes, and the arrows to the boxes.

    Args:
        parallel: whether the MLP reads the input of the layer, as attention does.
        n_attention, n_mlp: the numbers of boxes.
    """
    stream = (_ATTENTION_X + _MLP_X) / 2
    top, bottom = 5.02, 0.22
    low_a, low_m = _y(n_attention - 1) - _HIGH / 2, _y(n_mlp - 1) - _HIGH / 2
    branch, first = 4.78, _y(0) + _HIGH / 2
    label = f"x: T {TIMES} {width:,}"
    ax.text(stream, top + 0.1, label, ha="center", va="center", fontsize=8, weight="bold")
    _arrow(ax, (stream, top), (stream, bottom + 0.11))
    _arrow(ax, (stream, branch), (_ATTENTION_X, branch), (_ATTENTION_X, first))
    if parallel:
        _arrow(ax, (stream, branch), (_MLP_X, branch), (_MLP_X, first))
        _arrow(ax, (_ATTENTION_X, low_a), (_ATTENTION_X, bottom), (stream - 0.11, bottom))
        title = "out = x + attention(LN x) + MLP(LN\N{PRIME} x)"
    else:  # attention is added first; the MLP reads the sum
        middle = low_a - 0.14
        _arrow(ax, (_ATTENTION_X, low_a), (_ATTENTION_X, middle), (stream - 0.11, middle))
        _plus(ax, stream, middle)
        gap = _MLP_X - _BOX / 2 - 0.12
        tap = middle - 0.2
        _arrow(ax, (stream, tap), (gap, tap), (gap, branch), (_MLP_X, branch), (_MLP_X, first))
        title = "x\N{PRIME} = x + attention(LN x);  out = x\N{PRIME} + MLP(LN\N{PRIME} x\N{PRIME})"
    _arrow(ax, (_MLP_X, low_m), (_MLP_X, bottom), (stream + 0.11, bottom))
    _plus(ax, stream, bottom)
    _arrow(ax, (stream, bottom - 0.11), (stream, bottom - 0.36))
    ax.text(stream + 0.12, bottom - 0.27, title, fontsize=7.5, va="center")


def _arrow(ax: Axes, *points: tuple[float, float]) -> None:
    """Draw a line through the points, with an arrowhead at the last point."""
    xs, ys = zip(*points[:-1], strict=True)
    if len(points) > 2:
        ax.plot(xs, ys, color=INK, linewidth=0.9, solid_joinstyle="miter", solid_capstyle="butt")
    ax.annotate(
        "",
        xy=points[-1],
        xytext=points[-2],
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 0.9, "shrinkA": 0,
                    "shrinkB": 0, "mutation_scale": 8},
    )  # fmt: skip


def _plus(ax: Axes, x: float, y: float) -> None:
    """Draw the addition of two branches, as a plus in a circle."""
    from matplotlib.patches import Circle

    ax.add_patch(Circle((x, y), 0.11, facecolor="white", edgecolor=INK, linewidth=0.9, zorder=3))
    ax.text(x, y - 0.005, "+", ha="center", va="center", fontsize=9, zorder=4)


def _packing(ax: Axes, config: ModelConfig) -> None:
    """Draw the layout of the QKV output (for each head: q, k and v), and the legend."""
    from matplotlib.patches import Rectangle

    x, y, high, each = 5.15, 3.62, 0.27, 0.68
    ax.text(x, 4.78, "Layout of Q, K, V", fontsize=8, weight="bold", va="center")
    ax.text(x, 4.63, "rows of the map, head after head:", fontsize=7, color=MUTED, va="center")
    wide = 3 * each / config.n_heads
    for head in range(config.n_heads):
        face = "#c9d9ea" if head == 0 else "white"
        corner = (x + head * wide, 4.22)
        ax.add_patch(Rectangle(corner, wide, high, facecolor=face, edgecolor=MUTED, linewidth=0.7))
        if config.n_heads <= 16:
            ax.text(x + (head + 0.5) * wide, 4.22 + high / 2, f"{head + 1}", ha="center",
                    va="center", fontsize=6.5)  # fmt: skip
    for a, b in ((x, x), (x + wide, x + 3 * each)):
        ax.plot([a, b], [4.22, y + high], color=MUTED, linewidth=0.6, linestyle=(0, (2, 2)))
    turned = each * config.rotary_dims / config.head_dim
    for i, name in enumerate("qkv"):
        left = x + i * each
        ax.add_patch(Rectangle((left, y), each, high, facecolor="white", edgecolor=MUTED,
                               linewidth=0.7))  # fmt: skip
        if name != "v":
            ax.add_patch(Rectangle((left, y), turned, high, facecolor="#e69f00", linewidth=0))
        ax.text(left + each / 2, y + high / 2, f"{name}: {config.head_dim}", fontsize=7.5,
                ha="center", va="center")  # fmt: skip
    share = f"{config.rotary_fraction:.0%}".replace("%", "\N{NO-BREAK SPACE}%")
    ax.add_patch(Rectangle((x, 3.33), 0.13, 0.13, facecolor="#e69f00", linewidth=0))
    ax.text(x + 0.2, 3.39, f"rotated: {config.rotary_dims} of {config.head_dim} ({share})",
            fontsize=7, va="center")  # fmt: skip
    ax.plot([x, WIDTH - 0.2], [1.72, 1.72], color=GRID, linewidth=0.8)
    labels = (("norm", "normalisation"), ("linear", "matrix product"), ("plain", "no parameters"))
    for i, (kind, label) in enumerate(labels):
        bottom = 2.85 - 0.24 * i
        ax.add_patch(Rectangle((x, bottom), 0.22, 0.14, facecolor=_FILL[kind], edgecolor=MUTED,
                               linewidth=0.7))  # fmt: skip
        ax.text(x + 0.3, bottom + 0.07, label, fontsize=7, va="center")
    ax.text(x, 2.1, "T: positions of a row", fontsize=7, va="center", color=MUTED)
