"""Makes the figures and tables of the page on Pythia's recipe: layer, schedule, training cost.

The page's calculator, recipe.js, repeats formulas of the library with the constants of
`script_data`; tests check that recipe.js agrees with the library.

Every build of the book calls the public functions without arguments, so the page always shows the
current library. `block` draws what `recipe.block_parts` observes in a forward pass.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from pythia_book import svg
from pythia_book.pages import cluster, formatted
from pythia_book.palette import BLUE, GOLD, GREEN, PALE, PINK, SKY
from pythia_book.released import recipe
from pythia_book.style import (
    GRID,
    INK,
    MUTED,
    NARROW,
    WIDTH,
    Drawing,
    Table,
    category_ticks,
    figure,
    legend,
    narrow,
    panels,
    reference,
    sheet,
    size_color,
    style,
)
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.memory import RESERVE, RESIDUAL_BYTES, state_bytes
from pythia_core.training.schedule import N_CHECKPOINTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_core.config import ModelConfig


@figure
def schedule() -> Drawing:
    """Draw the learning rate during training, and the peak rate of each size.

    The first panel has the schedule that was used and the schedule that is usually described. The
    second panel has the peak rates of Pythia and of GPT-3.
    """
    frame, floor = recipe.schedules()
    rates = recipe.gpt3_table()
    with style():
        note = "First panel: training.schedule. Second: the released configs, and GPT-3's paper."
        drawn, (ax, peaks) = panels(2, 2.9, note, ratios=(1.2, 1))
        forms = {
            "as used: cosine to 0, cut off at 10 %": (frame.neox, BLUE, {"linewidth": 2}),
            "cosine to 10 %, as usually described": (
                frame.paper, MUTED, {"linewidth": 1.1, "linestyle": (0, (4, 1.5))},
            ),
        }  # fmt: skip
        for label, (rate, color, shape) in forms.items():
            ax.plot(frame.step / 1000, 100 * rate, color=color, label=label, **shape)
        ax.axvline(floor / 1000, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        ax.set(xlim=(0, 143), ylim=(0, 104), xlabel="step, thousands",
               ylabel="learning rate, % of its peak")  # fmt: skip
        ax.set_title(f"The schedule: floor from step {floor:,}")
        legend(ax, {label: {"color": c} | shape for label, (_, c, shape) in forms.items()})
        for row in rates.itertuples(index=False):
            name = row.size
            n = OFFICIAL_SIZES[name].model().n_params
            if row.gpt3 is not None:
                peaks.plot([n], [row.gpt3_lr_max], marker="D", markersize=8, color=MUTED,
                           markerfacecolor="none", linestyle="",
                           label=f"{row.gpt3}, GPT-3")  # fmt: skip
            shape = {"color": size_color(name), "linestyle": "", "label": name}
            peaks.plot([n], [row.lr_max], marker="o", **shape)
            low = name == "6.9b"  # the next size is close by
            peaks.annotate(name, (n, row.lr_max), xytext=(-7, -10) if low else (6, 6),
                           ha="right" if low else "left",
                           textcoords="offset points")  # fmt: skip
        peaks.set(xscale="log", yscale="log", xlabel="parameters", title="Peaks, and GPT-3's",
                  xlim=(4e7, 4e10), ylim=(8e-5, 1.6e-3))  # fmt: skip
        peaks.set_ylabel("peak learning rate")
        legend(peaks, _marks(("o", MUTED, "Pythia"), ("D", "none", "GPT-3, nearest size")))
        description = (
            f"Learning rate over {frame.step.iloc[-1]:,} steps: the released runs are at their "
            f"floor from step {floor:,} on, a cosine to a tenth only at the end; "
            "peak rates by size, next to GPT-3's"
        )
        return Drawing(drawn, description)


@figure
def cost() -> Drawing:
    """Draw the GPU-hours of training each size, and what share of the peak FLOP/s was used."""
    costs = recipe.cost_table().dropna()
    today = recipe.estimates().set_index("size").h100_hours
    with style():
        note = (
            f"A100: the paper's GPU-hours. H100: computed for "
            f"{100 * recipe.H100_UTILIZATION:.0f} % of "
            f"{recipe.H100_PEAK / 1e12:.0f} TFLOP/s, not measured. Utilization: of "
            f"{recipe.A100_PEAK / 1e12:.0f} TFLOP/s."
        )
        drawn, (hours, share) = panels(2, 2.9, note)
        for row in costs.itertuples(index=False):
            color = size_color(row.size)
            label = f"{row.size}, A100, as trained"
            hours.plot([row.parameters], [row.gpu_hours], marker="o", color=color, label=label)
            hours.plot([row.parameters], [today[row.size]], marker="D", color=color,
                       markerfacecolor="white", label=f"{row.size}, H100, computed")  # fmt: skip
            hours.annotate(row.size, (row.parameters, row.gpu_hours), xytext=(-5, 5), ha="right",
                           textcoords="offset points")  # fmt: skip
        hours.set(xscale="log", yscale="log", xlabel="parameters", ylabel="GPU-hours",
                  title="One model", xlim=(2.5e7, 3e10),
                  ylim=(40, 2.5e5))  # fmt: skip
        kinds = _marks(("o", MUTED, "A100, as trained"), ("D", "white", "H100, computed"))
        legend(hours, kinds)
        for x, row in enumerate(costs.itertuples(index=False)):
            color = size_color(row.size)
            pair = [100 * row.utilization_6nt, 100 * row.utilization_exact]
            svg.hide(*share.plot([x, x], pair, color=color, linewidth=1.2, zorder=1))
            share.plot([x], pair[:1], marker="s", color=color, markerfacecolor="white",
                       label=f"6 {TIMES} parameters {TIMES} tokens")  # fmt: skip
            share.plot([x], pair[1:], marker="o", color=color, label="products performed")
        share.set_xticks(range(len(costs)), costs["size"])
        share.set_xlabel("size")
        share.set(ylim=(0, 42), ylabel="% of the peak", title="Utilization, counted in two ways")
        share.grid(axis="x", visible=False)
        rule = f"6 {TIMES} parameters {TIMES} tokens"
        kinds = _marks(("s", "white", rule), ("o", MUTED, "matrix products performed"))
        legend(share, kinds)
        first, last = costs.iloc[0], costs.iloc[-1]
        description = (
            f"From {first.gpu_hours:,.0f} A100-hours at {first['size']} to {last.gpu_hours:,.0f} "
            f"at {last['size']}; utilization between {100 * costs.utilization_exact.min():.0f} "
            f"and {100 * costs.utilization_exact.max():.0f} % of the peak"
        )
        return Drawing(drawn, description)


@figure
def calculator() -> Drawing:
    """Draw the memory of training each size on each of eight GPUs, by part.

    The page's script puts a calculator in its place, for any shape and any number of GPUs.
    """
    layouts = {size: cluster.Layout(shape.model(), 8) for size, shape in OFFICIAL_SIZES.items()}
    with style():
        drawn, (ax,) = panels(1, 3.4, "Estimated, not measured: bf16, rows of 2,048 tokens.")
        below = [0.0] * len(layouts)
        for part, (label, color) in PARTS.items():
            heights = [layout.memory_parts[part] / 1e9 for layout in layouts.values()]
            ax.bar(range(len(layouts)), heights, 0.7, bottom=below, color=color, label=label)
            below = [low + height for low, height in zip(below, heights, strict=True)]
        reference(ax, cluster.GPU_BYTES / 1e9)
        category_ticks(ax, layouts)
        ax.set(ylabel="GB on each of eight GPUs", xlabel="size", xlim=(-0.6, len(layouts) - 0.4))
        legend(drawn, {label: {"color": color, "linewidth": 6} for label, color in PARTS.values()})
        split = " and ".join(size for size, layout in layouts.items() if layout.split > 1)
        description = (
            f"Memory by part, from {below[0]:.0f} GB at {next(iter(layouts))}; dotted: "
            f"{cluster.GPU_BYTES / 1e9:.0f} GB. {split} share the state among the GPUs"
        )
        return Drawing(drawn, description)


def values() -> dict[str, str]:
    """Map the name of each number in the page's prose to the number as text."""
    costs = recipe.cost_table().set_index("size")
    per_parameter = state_bytes(OFFICIAL_SIZES["70m"].model(), "bf16") / costs.parameters["70m"]
    numbers = {
        "tokens": f"{recipe.TOKENS / 1e9:.0f} billion",
        "checkpoints": f"{N_CHECKPOINTS}",
        "least_hours": f"{costs.gpu_hours.min():,.0f}",
        "most_hours": f"{costs.gpu_hours.max():,.0f}",
        "state_bytes": f"{per_parameter:.0f}",
        "largest": f"{(cluster.GPU_BYTES - RESERVE) / per_parameter / 1e9:.1f} billion",
    }
    for size in ("70m", "12b"):
        model = OFFICIAL_SIZES[size].model()
        vocabulary = 1 - model.n_params_non_embedding / model.n_params
        numbers[f"vocabulary_{size}"] = f"{100 * vocabulary:.0f} %"
        numbers[f"rule_{size}"] = f"{100 * costs.flop_6nt[size] / costs.flop_exact[size]:.0f} %"
    return numbers


PARTS = {
    "weights": ("weights", BLUE),
    "moments": ("Adam's two moments", SKY),
    "gradients": ("gradients", GREEN),
    "copies": ("copies, whole gradients", GOLD),
    "activations": ("activations", PINK),
    "reserve": ("reserve", PALE),
}
"""For each part of `cluster.Layout.memory_parts`, its name and color."""


def script_data(name: str) -> dict[str, Any]:
    """Return what the page's calculator needs: constants of the library, and the released sizes."""
    from pythia_book.bench import cost_model

    traffic = cost_model.TRAFFIC["ours"]
    shapes = {size: shape.model() for size, shape in OFFICIAL_SIZES.items()}
    return {
        "sizes": {
            size: [model.n_layers, model.d_model, model.n_heads, model.vocab_size]
            for size, model in shapes.items()
        },
        "parts": PARTS,
        "seqLen": recipe.SEQ_LEN,
        "rows": recipe.BATCH_ROWS,
        "updates": recipe.OFFICIAL_STEPS,
        "reserve": RESERVE,
        "residual": RESIDUAL_BYTES,
        "gpuBytes": cluster.GPU_BYTES,
        "node": cluster.NODE,
        "nvlink": cluster.NVLINK,
        "fabric": cluster.FABRIC,
        "gradientBytes": cluster.GRADIENT_BYTES,
        "copyBytes": cluster.COPY_BYTES,
        "peak": recipe.H100_PEAK,
        "utilization": recipe.H100_UTILIZATION,
        "matmul": cost_model.MATMUL,
        "copy": cost_model.COPY,
        "efficiency": sorted(cost_model.EFFICIENCY.items()),
        "attention": cost_model.ATTENTION_TFLOPS,
        "bandwidth": cost_model.BANDWIDTH,
        "vocabExtra": cost_model.VOCAB_EXTRA,
        "vocabCap": cost_model.VOCAB_CAP,
        "vocabBandwidth": cost_model.VOCAB_BANDWIDTH,
        "chunkLogits": cost_model.CHUNK_LOGITS,
        "attentionLength": cost_model.SEQ_LEN,
        "passes": sum(traffic.passes.values()),
        "ends": traffic.ends,
        "lossBytes": traffic.loss_bytes,
        "weightBytes": traffic.weight_bytes,
        "vocabWeightBytes": traffic.vocab_weight_bytes,
        "embeddingBytes": cost_model.EMBEDDING_BYTES,
        "microTokens": cost_model.MICRO_TOKENS,
    }


def _marks(*kinds: tuple[str, str, str]) -> dict[str, dict[str, Any]]:
    """Return the lines of a legend from (marker, face color, label)."""
    return {
        label: {"linestyle": "", "marker": marker, "markerfacecolor": face}
        for marker, face, label in kinds
    }


# --- tables ----------------------------------------------------------------------------------


def cost_table() -> Table:
    """Return the table of the training cost of each size, with FLOP counted in two ways."""
    caption = (
        f"Work and cost of one model for {recipe.TOKENS:,} tokens; utilization of "
        f"{recipe.A100_PEAK / 1e12:.0f} TFLOP/s"
    )
    columns = {
        "size": ("Size", str),
        "parameters": ("Parameters", "{:,.0f}".format),
        "tokens_per_parameter": ("Tokens per parameter", "{:,.0f}".format),
        "flop_6nt": (f"6 {TIMES} N {TIMES} T, FLOP", _power),
        "flop_exact": ("Products, FLOP", _power),
        "gpu_hours": ("A100-hours", "{:,.0f}".format),
        "utilization_6nt": ("Utilization, 6NT", _percent),
        "utilization_exact": ("Utilization, products", _percent),
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
        f"H100: products / ({100 * recipe.H100_UTILIZATION:.0f}\N{NO-BREAK SPACE}% of "
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
        "gpus_allowed": ("GPUs that it would fill", str),
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


class _Places:
    """Where the parts of the drawing of a layer are, in inches."""

    def __init__(self) -> None:
        small = narrow()
        self.attention, self.mlp, self.box = (0.96, 2.72, 1.62) if small else (1.25, 3.75, 2.1)
        self.top, self.step, self.high = 4.55, (1.0 if small else 0.8), (0.66 if small else 0.5)
        self.lowest = -6.1 if small else -0.2
        self.side = (0.15, -6.5) if small else (5.2, 0.0)
        self.width = NARROW if small else WIDTH

    def row(self, number: int) -> float:
        """Return the height of the middle of a box, counted from the top."""
        return self.top - self.high / 2 - 0.12 - number * self.step


@figure
def block(config: ModelConfig | None = None) -> Drawing:
    """Draw one layer of the model, as observed in a forward pass of pythia_core.model.

    Args:
        config: the model; default: the official size DRAWN_SIZE.
    """
    config = config or OFFICIAL_SIZES[DRAWN_SIZE].model()
    parts = recipe.block_parts(config).set_index("part")
    parallel = parts.reads["post_attention_layernorm"] == "x"
    with style():
        at = _Places()
        drawn = sheet(5.25 - at.lowest, "")
        ax = drawn.add_axes((0, 0, 1, 1))
        ax.set(xlim=(0, at.width), ylim=(at.lowest, 5.25))
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
        _lane(ax, at, at.attention, attention)
        _lane(ax, at, at.mlp, mlp)
        _wires(ax, at, parallel, config.d_model, len(attention), len(mlp))
        _packing(ax, at, config)
        total = int(parts.parameters.sum())
        x, y = at.side
        ax.text(x, y + 1.42, f"{total:,} parameters per layer", weight="bold")
        ax.text(
            x,
            y + 1.33,
            f"{TIMES} {config.n_layers} layers, and outside them:\n"
            f"a final LayerNorm, {2 * config.d_model:,};\n"
            f"embedding and unembedding,\nuntied, no bias,\n"
            f"2 {TIMES} {config.vocab_size:,} {TIMES} {config.d_model:,}",
            color=MUTED,
            va="top",
            linespacing=1.35,
        )
        kind = "parallel" if parallel else "sequential"
        description = (
            f"One layer of width {config.d_model} with a {kind} residual: "
            + ", ".join(f"{name} {p.weight}" for name, p in parts.iterrows())
            + f"; {total:,} parameters"
        )
        return Drawing(drawn, description)


def _part(parts: pd.DataFrame, name: str, title: str) -> tuple[str, str, str, int]:
    """Return the box of a LayerNorm or linear map: (title, detail, kind, output width)."""
    part = parts.loc[name]
    kind = "norm" if "layernorm" in name else "linear"
    joint = "\n" if narrow() else " "
    return title, f"{part.weight}{joint}+ bias = {part.parameters:,}", kind, part.d_out


def _lane(ax: Axes, at: _Places, x: float, boxes: list[tuple[str, str, str, int]]) -> None:
    """Draw a column of boxes, centered at `x`, with labeled arrows from each box to the next.

    A box is (title, detail, kind, output width), where `kind` is a key of _FILL.
    """
    from matplotlib.patches import Rectangle

    for row, (title, detail, kind, width) in enumerate(boxes):
        y = at.row(row)
        corner = (x - at.box / 2, y - at.high / 2)
        look = {"facecolor": _FILL[kind], "edgecolor": MUTED, "linewidth": 0.8}
        ax.add_patch(Rectangle(corner, at.box, at.high, **look))
        room = 20 if narrow() else 40
        lines = [part for line in detail.split("\n") for part in textwrap.wrap(line, room)]
        middle = 0.085 * len(lines)
        ax.text(x, y + middle, title, ha="center", va="center", weight="bold")
        if lines:
            below = y + middle - 0.1
            ax.text(x, below, "\n".join(lines), ha="center", va="top", linespacing=1.2)
        if row < len(boxes) - 1:
            _arrow(ax, (x, y - at.high / 2), (x, at.row(row + 1) + at.high / 2))
            ax.text(x + 0.07, y - at.step / 2, f"T {TIMES} {width:,}", va="center", color=MUTED)


def _wires(ax: Axes, at: _Places, parallel: bool, width: int, n_attention: int, n_mlp: int) -> None:
    """Draw the residual stream between the attention and MLP boxes, and the arrows to the boxes.

    Args:
        parallel: whether the MLP reads the input of the layer, as attention does.
        n_attention, n_mlp: the numbers of boxes.
    """
    stream = (at.attention + at.mlp) / 2
    low_a, low_m = (at.row(n - 1) - at.high / 2 for n in (n_attention, n_mlp))
    top, bottom = 5.02, low_a - 0.55
    branch, first = 4.78, at.row(0) + at.high / 2
    label = f"x: T {TIMES} {width:,}"
    ax.text(stream, top + 0.1, label, ha="center", va="center", weight="bold")
    _arrow(ax, (stream, top), (stream, bottom + 0.11))
    _arrow(ax, (stream, branch), (at.attention, branch), (at.attention, first))
    if parallel:
        _arrow(ax, (stream, branch), (at.mlp, branch), (at.mlp, first))
        _arrow(ax, (at.attention, low_a), (at.attention, bottom), (stream - 0.11, bottom))
        title = "out = x + attention(LN x) + MLP(LN\N{PRIME} x)"
    else:  # attention is added first; the MLP reads the sum
        middle = low_a - 0.14
        _arrow(ax, (at.attention, low_a), (at.attention, middle), (stream - 0.11, middle))
        _plus(ax, stream, middle)
        gap = at.mlp - at.box / 2 - 0.12
        tap = middle - 0.2
        _arrow(ax, (stream, tap), (gap, tap), (gap, branch), (at.mlp, branch), (at.mlp, first))
        title = "x\N{PRIME} = x + attention(LN x);  out = x\N{PRIME} + MLP(LN\N{PRIME} x\N{PRIME})"
    _arrow(ax, (at.mlp, low_m), (at.mlp, bottom), (stream + 0.11, bottom))
    _plus(ax, stream, bottom)
    _arrow(ax, (stream, bottom - 0.11), (stream, bottom - 0.36))
    if narrow():
        title = title.replace(";  ", "\n")
        ax.text(stream, bottom - 0.42, title, ha="center", va="top", linespacing=1.3)
    else:
        ax.text(stream + 0.12, bottom - 0.27, title, va="center")


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


def _packing(ax: Axes, at: _Places, config: ModelConfig) -> None:
    """Draw the layout of the QKV output (for each head: q, k and v), and the legend."""
    from matplotlib.patches import Rectangle

    (x, base), high, each = at.side, 0.27, 0.68
    y, split = base + 3.62, base + 4.22
    ax.text(x, base + 4.82, "Layout of Q, K, V", weight="bold", va="center")
    ax.text(x, base + 4.64, "rows of the map, by heads:", color=MUTED, va="center")
    wide = 3 * each / config.n_heads
    for head in range(config.n_heads):
        face = "#c9d9ea" if head == 0 else "white"
        corner = (x + head * wide, split)
        ax.add_patch(Rectangle(corner, wide, high, facecolor=face, edgecolor=MUTED, linewidth=0.7))
        if config.n_heads <= 16:
            ax.text(x + (head + 0.5) * wide, split + high / 2, f"{head + 1}", ha="center",
                    va="center")  # fmt: skip
    for a, b in ((x, x), (x + wide, x + 3 * each)):
        ax.plot([a, b], [split, y + high], color=MUTED, linewidth=0.6, linestyle=(0, (2, 2)))
    turned = each * config.rotary_dims / config.head_dim
    for i, name in enumerate("qkv"):
        left = x + i * each
        ax.add_patch(Rectangle((left, y), each, high, facecolor="white", edgecolor=MUTED,
                               linewidth=0.7))  # fmt: skip
        if name != "v":
            ax.add_patch(Rectangle((left, y), turned, high, facecolor=GOLD, alpha=0.5, linewidth=0))
        ax.text(left + each / 2, y + high / 2, f"{name}: {config.head_dim}", 
                ha="center", va="center")  # fmt: skip
    share = f"{config.rotary_fraction:.0%}".replace("%", "\N{NO-BREAK SPACE}%")
    ax.add_patch(Rectangle((x, base + 3.33), 0.13, 0.13, facecolor=GOLD, alpha=0.5, linewidth=0))
    ax.text(x + 0.2, base + 3.39, f"rotated: {config.rotary_dims} of {config.head_dim} ({share})",
            va="center")  # fmt: skip
    ax.plot([x, at.width - 0.1], [base + 1.75] * 2, color=GRID, linewidth=0.8)
    labels = (("norm", "normalization"), ("linear", "matrix product"), ("plain", "no parameters"))
    for i, (kind, label) in enumerate(labels):
        bottom = base + 2.85 - 0.24 * i
        ax.add_patch(Rectangle((x, bottom), 0.22, 0.14, facecolor=_FILL[kind], edgecolor=MUTED,
                               linewidth=0.7))  # fmt: skip
        ax.text(x + 0.3, bottom + 0.07, label, va="center")
    ax.text(x, base + 2.05, "T: positions of a row", va="center", color=MUTED)
