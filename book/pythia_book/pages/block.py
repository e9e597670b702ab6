"""One layer, drawn from the module itself: parts, widths, parameters, wiring, packing of Q, K, V.

Whatever `recipe.block_parts` sees the module do is what is drawn: another width gives other
numbers, a sequential residual other arrows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book import recipe
from pythia_book.style import GRID, INK, MUTED, WIDTH, Drawing, style
from pythia_core.suite import OFFICIAL_SIZES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_core.config import ModelConfig

TIMES = "\N{MULTIPLICATION SIGN}"
DRAWN_SIZE = "70m"
_FILL = {"norm": "#f3ead6", "linear": "#dbe7f3", "plain": "#f4f4f4"}
_ATTENTION_X, _MLP_X, _BOX = 1.25, 3.75, 1.9
_TOP, _STEP, _HIGH = 4.55, 0.78, 0.46


def block(config: ModelConfig | None = None) -> Drawing:
    """One layer as the module in pythia_core.model runs it: parts, widths, parameters, wiring."""
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
        ax.text(5.15, 1.42, f"{total:,} parameters a layer", fontsize=8, weight="bold")
        ax.text(
            5.15,
            1.3,
            f"{TIMES} {config.n_layers} layers, and outside of them:\n"
            f"a last LayerNorm, {2 * config.d_model:,};\n"
            f"embedding and unembedding,\nuntied, no bias,\n"
            f"2 {TIMES} {config.vocab_size:,} {TIMES} {config.d_model:,}",
            fontsize=7,
            color=MUTED,
            va="top",
            linespacing=1.4,
        )
        kind = "parallel" if parallel else "sequential"
        words = (
            f"One layer of width {config.d_model} with {kind} residual: "
            + ", ".join(f"{name} {p.weight}" for name, p in parts.iterrows())
            + f"; {total:,} parameters"
        )
        return Drawing(figure, words)


def _part(parts: pd.DataFrame, name: str, title: str) -> tuple[str, str, str, int]:
    """A box for a part with weights: title, its weight and count, kind, width of its output."""
    part = parts.loc[name]
    kind = "norm" if "layernorm" in name else "linear"
    return title, f"{part.weight} + bias = {part.parameters:,}", kind, part.d_out


def _y(row: int) -> float:
    return _TOP - _HIGH / 2 - 0.12 - row * _STEP


def _lane(ax: Axes, x: float, boxes: list[tuple[str, str, str, int]]) -> None:
    """A column of boxes, top down, the width of what flows beside each arrow."""
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
    """The residual stream between the lanes, what branches off it, and where it is added."""
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
    """Straight pieces through the points, with a head at the last."""
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
    from matplotlib.patches import Circle

    ax.add_patch(Circle((x, y), 0.11, facecolor="white", edgecolor=INK, linewidth=0.9, zorder=3))
    ax.text(x, y - 0.005, "+", ha="center", va="center", fontsize=9, zorder=4)


def _packing(ax: Axes, config: ModelConfig) -> None:
    """How the output of the QKV map is packed: head after head, each as q, k, v."""
    from matplotlib.patches import Rectangle

    x, y, high, each = 5.15, 3.62, 0.27, 0.68
    ax.text(x, 4.78, "Packing of Q, K, V", fontsize=8, weight="bold", va="center")
    ax.text(x, 4.63, "rows of the map, head after head:", fontsize=7, color=MUTED, va="center")
    wide = 3 * each / config.n_heads
    for head in range(config.n_heads):
        face = "#c9d9ea" if head == 0 else "white"
        place = (x + head * wide, 4.22)
        ax.add_patch(Rectangle(place, wide, high, facecolor=face, edgecolor=MUTED, linewidth=0.7))
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
    words = (("norm", "normalisation"), ("linear", "matrix product"), ("plain", "no parameters"))
    for i, (kind, word) in enumerate(words):
        at = 2.85 - 0.24 * i
        ax.add_patch(Rectangle((x, at), 0.22, 0.14, facecolor=_FILL[kind], edgecolor=MUTED,
                               linewidth=0.7))  # fmt: skip
        ax.text(x + 0.3, at + 0.07, word, fontsize=7, va="center")
    ax.text(x, 2.1, "T: positions of a row", fontsize=7, va="center", color=MUTED)
