"""Draws the figures of the page on rotary embeddings, and computes the numbers in its prose.

The model's own functions compute all angles, cosines, sines and rotations. Head dimensions are
those of the official models. The page's script draws the same figures in the browser, and tests
check that the two agree.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.pages import hls_color
from pythia_book.palette import PALE, text_color
from pythia_book.style import (
    BLUE,
    GRID,
    INK,
    MUTED,
    ORANGE,
    Drawing,
    figure,
    legend,
    narrow,
    panels,
    reference,
    style,
)
from pythia_core.config import ModelConfig
from pythia_core.suite import OFFICIAL_SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOOTER = "drawn by book/pythia_book/pages/rotary.py whenever the book is built"
SHOWN = 64
"""The head dimension of 70M, 160M and 410M. Figures of a single head show this dimension."""
REACH = 128
"""The number of query and key positions in the figures."""
STRETCH = 32
"""Each point of an error curve is the largest error in a span of this many positions."""
PRECISIONS = {
    "bf16": ("bf16 throughout", BLUE, "-"),
    "fp16": ("fp16 throughout", ORANGE, "-"),
    "fp32, bf16": ("angle in fp32, then bf16", BLUE, (0, (3, 1.5))),
    "fp32, fp16": ("angle in fp32, then fp16", ORANGE, (0, (3, 1.5))),
}
"""Label, color and line style of each way to compute cos and sin."""


# --- numbers ---------------------------------------------------------------------------------


def head_dims() -> dict[int, ModelConfig]:
    """Map each head dimension of the official sizes, smallest first, to the config of one model."""
    configs = {size.model().head_dim: size.model() for size in OFFICIAL_SIZES.values()}
    return dict(sorted(configs.items()))


def models_of(head_dim: int) -> list[str]:
    """Return the names, like "70M", of the official sizes with this head dimension."""
    sizes = OFFICIAL_SIZES.values()
    return [size.name.upper() for size in sizes if size.model().head_dim == head_dim]


def inverse_frequencies(head_dim: int) -> np.ndarray:
    """Return the angle, in radians, that each pair of dims rotates per position; float32[pairs]."""
    import torch

    from pythia_core.kernels.rotary import rotary_tables

    config = head_dims()[head_dim]
    cos, sin = rotary_tables(2, config.rotary_dims, config.rotary_base)
    return torch.atan2(sin[1], cos[1]).numpy()


def wavelengths(head_dim: int) -> np.ndarray:
    """Return how many positions each rotary pair needs for a full rotation, float[pairs]."""
    return 2 * math.pi / inverse_frequencies(head_dim).astype(float)


def scores(head_dim: int, positions: int = REACH) -> np.ndarray:
    """Return the attention scores float[positions, positions] of queries (rows) and keys (columns).

    All queries and keys are the same vector: (1, 0) in each rotated pair, and 0 elsewhere. The
    model's code rotates the vector to each position. A score is at most 1.
    """
    import torch

    from pythia_core.kernels.rotary import rotary_reference, rotary_tables

    config = head_dims()[head_dim]
    half = config.rotary_dims // 2
    vector = torch.zeros(positions, head_dim)
    vector[:, :half] = 1.0
    tables = rotary_tables(positions, config.rotary_dims, config.rotary_base)
    rotated = rotary_reference(vector, *tables)
    return (rotated @ rotated.T / half).numpy()


def table_errors(head_dim: int, precision: str) -> np.ndarray:
    """Return the larger of the errors of cos and sin at each position, float[positions, pairs].

    The `precision` is a key of PRECISIONS. If the key is a single type, all steps are rounded to
    this type. If the key starts with "fp32", only the final cos and sin are rounded to the type
    after the comma.
    """
    import torch

    from pythia_core.kernels.rotary import rotary_tables

    config = head_dims()[head_dim]
    lanes = torch.arange(0, config.rotary_dims, 2, dtype=torch.float64)
    exact = config.rotary_base ** (-lanes / config.rotary_dims)
    positions = torch.arange(config.max_seq_len)
    truth = torch.outer(positions.double(), exact)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision.split(", ")[-1]]
    if precision.startswith("fp32"):
        tables = rotary_tables(config.max_seq_len, config.rotary_dims, config.rotary_base)
        cos, sin = (table.to(dtype) for table in tables)
    else:
        angles = positions.to(dtype)[:, None] * exact.to(dtype)
        cos, sin = angles.cos(), angles.sin()
    errors = torch.maximum((cos.double() - truth.cos()).abs(), (sin.double() - truth.sin()).abs())
    return errors.numpy()


@functools.cache
def values() -> dict[str, str]:
    """Map the name of each number in the page's prose to the number as text."""
    import torch

    config = head_dims()[SHOWN]
    periods, context = wavelengths(SHOWN), config.max_seq_len
    last = torch.tensor(float(context - 1), dtype=torch.bfloat16)
    numbers = {
        "base": f"{config.rotary_base:,.0f}",
        "context": f"{context:,}",
        "rotated": f"{config.rotary_dims}",
        "left": f"{SHOWN - config.rotary_dims}",
        "pairs": f"{len(periods)}",
        "fastest": f"{periods[0]:.2f}",
        "slowest": f"{periods[-1]:,.0f}",
        "slow_pairs": f"{(periods > context).sum()}",
        "last_position": f"{context - 1:,}",
        "last_in_bf16": f"{float(last):,.0f}",
    }
    for head_dim in (SHOWN, 128):
        for name in PRECISIONS:
            key = f"{name.replace(', ', '_')}_{head_dim}"
            worst = table_errors(head_dim, name).max()
            numbers[key] = f"{worst:.2f}" if worst > 0.01 else f"{worst:.4f}"
    return numbers | _answers()


def _answers() -> dict[str, str]:
    """Return the numbers in the answers to the page's questions."""
    import torch

    by_distance = scores(SHOWN)[:, 0]
    rises = np.diff(by_distance) > 0
    low = int(rises.argmax())
    high = low + int((~rises[low:]).argmax())
    slowest = inverse_frequencies(SHOWN)[-1]
    positions = torch.arange(head_dims()[SHOWN].max_seq_len)
    fastest_off = (positions.bfloat16().double() - positions).abs()
    numbers = {
        "low": f"{low}",
        "low_score": f"{by_distance[low]:.2f}",
        "high": f"{high}",
        "high_score": f"{by_distance[high]:.2f}",
        "half_turn": f"{2 / len(wavelengths(SHOWN)):.2f}",
        "slowest_turn": f"{math.degrees(slowest * (REACH - 1)):.1f}",
        "bf16_exact": f"{int((fastest_off > 0).int().argmax()) - 1}",
        "bf16_opposite": f"{int((fastest_off > math.pi / 2).int().argmax())}",
    }
    for d in (32, 256):
        lowest = f"{scores(d)[:, 0].min():.2f}"
        numbers[f"lowest_{d}"] = lowest.replace("-", "\N{MINUS SIGN}")
    return numbers


# --- drawings --------------------------------------------------------------------------------


def hue(pair: int, pairs: int) -> str:
    """Return the color of a rotary pair as "#rrggbb": warm for fast pairs, cold for slow pairs.

    The page's script uses the same colors.
    """
    return hls_color(25 - 170 * pair / max(pairs - 1, 1), 0.47, 0.65)


def _dial(ax: Axes, x: float, query: float, key: float, color: str) -> None:
    """Draw a clock face with hands at the angles `query` and `key`, and shade the angle between.

    Angles are in radians, clockwise from twelve o'clock.
    """
    from matplotlib.patches import Circle, Wedge

    angle = math.degrees(math.remainder(query - key, 2 * math.pi))  # the shorter way round
    start = 90 - math.degrees(key)
    low, high = min(start, start - angle), max(start, start - angle)
    ax.add_patch(Wedge((x, 0), 0.5, low, high, color=color, alpha=0.22, linewidth=0))
    ax.add_patch(Circle((x, 0), 1, fill=False, color=MUTED, linewidth=0.8))
    for hand, line in ((key, (0, (2, 1.2))), (query, "-")):
        tip = x + 0.92 * math.sin(hand), 0.92 * math.cos(hand)
        ax.plot([x, tip[0]], [0, tip[1]], color=color, linestyle=line, linewidth=1.8)


@figure
def turning() -> Drawing:
    """Draw query and key as clock hands, one dial per rotary pair, and the score by distance."""
    m, n = 20, 12
    turn, table = inverse_frequencies(SHOWN), scores(SHOWN)
    pairs = len(turn)
    with style():
        drawn, (dials, ax) = panels(1, 3.7, FOOTER, rows=2, heights=(0.6 if narrow() else 1, 1.7))
        for i in range(pairs):
            _dial(dials, 2.5 * i, m * turn[i], n * turn[i], hue(i, pairs))
            label = f"{i}" if narrow() else f"pair {i}"
            dials.text(2.5 * i, -1.7, label, ha="center", va="center")
        dials.set(xlim=(-1.6, 2.5 * pairs - 0.9), ylim=(-2.1, 1.2), aspect="equal")
        dials.set_axis_off()
        dials.set_title(f"query at m = {m} (solid hands), key at n = {n} (dashed)")
        distance = np.arange(1 - REACH, REACH)
        curve = [table.diagonal(-d)[0] for d in distance]
        ax.axvspan(1 - REACH, -0.5, color=GRID, alpha=0.5, linewidth=0)
        masked = "key after\nquery: masked" if narrow() else "key after query: masked"
        ax.text(-REACH + 4, 1.25 if narrow() else 0.97, masked, color=MUTED, va="top")
        ax.plot(distance, curve, color=INK, linewidth=1.1, label="score")
        for shift in range(0, REACH - m, 12):  # equal shifts of both give the same point
            ax.plot([m - n], [table[m + shift, n + shift]], "o", color=ORANGE, markersize=5)
        ax.annotate(f"m \N{MINUS SIGN} n = {m - n},\nwherever they are", (m - n, table[m, n]),
                    (20, -0.36), color=text_color(ORANGE),
                    arrowprops={"arrowstyle": "-", "color": ORANGE, "linewidth": 0.8})  # fmt: skip
        ax.set(xlim=(1 - REACH, REACH - 1), ylim=(-0.5, 1.3 if narrow() else 1.05))
        ax.set(xlabel="distance m \N{MINUS SIGN} n", ylabel="score (at most 1)")
    return Drawing(
        drawn,
        f"Above, {pairs} clock dials, one per rotated pair of a head of {SHOWN} dims: each has a "
        f"solid hand for a query at position {m} and a dashed one for a key at {n}; the first "
        "turn fast, the last hardly at all. Below, the score against the distance m minus n: "
        "highest at 0, then lower, in waves; moving both positions together gives the same point.",
    )


@figure
def quarter() -> Drawing:
    """Draw which dims of a head rotate, and which form a pair, for each official head dimension."""
    from matplotlib.patches import Arc, Rectangle

    dims = head_dims()
    with style():
        drawn, (ax,) = panels(1, 3.3, f"arcs join the two dims of a pair; {FOOTER}")
        apart = 2.1 if narrow() else 1.5
        for row, (head_dim, config) in enumerate(dims.items()):
            half, wide, y = config.rotary_dims // 2, 256 / head_dim, -apart * row
            for dim in range(head_dim):
                color = hue(dim % half, half) if dim < 2 * half else PALE
                ax.add_patch(Rectangle((dim * wide, y), wide, 0.55, facecolor=color,
                                       edgecolor="white", linewidth=0.25))  # fmt: skip
            for i in range(half):
                middle = (i + half / 2 + 0.5) * wide
                ax.add_patch(Arc((middle, y + 0.55), half * wide, 0.9, theta1=0, theta2=180,
                                 color=hue(i, half), linewidth=0.7))  # fmt: skip
            models = ", ".join(models_of(head_dim))
            if narrow():
                ax.text(0, y - 0.12, f"{head_dim} dims: {models}", va="top")
            else:
                ax.text(-4, y + 0.28, f"{head_dim} dims", ha="right", va="center")
                ax.text(260, y + 0.28, models, va="center")
            words = f"the first {config.rotary_dims} rotate; {head_dim - config.rotary_dims} do not"
            ax.text(256, y + 0.66, words, ha="right", color=MUTED)
        ends = (-2, 258) if narrow() else (-34, 326)
        ax.set(xlim=ends, ylim=(-apart * len(dims) + apart - 0.5, 1.25))
        ax.set_axis_off()
    shares = ", ".join(f"{c.rotary_dims} of {d}" for d, c in dims.items())
    return Drawing(
        drawn,
        "Five strips of cells, one for each head dim of the official sizes; the first quarter is "
        f"colored ({shares}). Arcs join dim i with the dim an eighth of the head further on.",
    )


@figure
def frequencies() -> Drawing:
    """Draw the wavelengths of rotary pairs, in tokens, for each official head dimension."""
    dims = head_dims()
    context = dims[SHOWN].max_seq_len
    with style():
        names = []
        drawn, (ax,) = panels(1, 2.7, f"one dot per pair; dotted: the context; {FOOTER}")
        for row, head_dim in enumerate(dims):
            periods = wavelengths(head_dim)
            for i, period in enumerate(periods):
                shape = {"color": hue(i, len(periods)), "markersize": 5, "label": f"pair {i}"}
                ax.plot([row], [period], "o", **shape)
            above = f"{(periods > context).sum()} of {len(periods)}"
            names.append(f"{head_dim}\n{above}")
        reference(ax, context)
        ax.set_yscale("log")
        ax.set_xticks(range(len(dims)), names)
        ax.set_xlim(-0.4, len(dims) - 0.3)
        ax.grid(axis="x", visible=False)
        ax.set_xlabel("dims of a head, and how many pairs are above the dotted line")
        ax.set_ylabel("tokens for one full turn")
    low, high = wavelengths(SHOWN)[[0, -1]]
    return Drawing(
        drawn,
        "Tokens in which each pair makes one full turn, on a logarithmic scale, for five head "
        f"dims: evenly spaced dots, for {SHOWN} dims from {low:.1f} to {high:,.0f}, some of them "
        f"above the context of {context:,}.",
    )


@figure
def precision() -> Drawing:
    """Draw the error of cos and sin by position, for each precision of the computation."""
    with style():
        notes = f"largest error of any pair in each stretch of {STRETCH} positions, against fp64"
        drawn, axes = panels(2, 2.9, f"{notes}; {FOOTER}", sharey=True)
        for ax, head_dim in zip(axes, (SHOWN, 128), strict=True):
            for name, (label, color, line) in PRECISIONS.items():
                worst = table_errors(head_dim, name).max(axis=1)
                middle = np.arange(STRETCH / 2, len(worst), STRETCH)
                tops = worst.reshape(-1, STRETCH).max(axis=1)
                ax.plot(middle, tops, color=color, linestyle=line, label=label)
            ax.set_yscale("log")
            ax.set(title=f"head of {head_dim} dims", xlabel="position", xlim=(0, len(worst)))
        axes[0].set_ylabel("error of cos or sin")
        kinds = PRECISIONS.values()
        legend(drawn, {name: {"color": c, "linestyle": line} for name, c, line in kinds})
    return Drawing(
        drawn,
        "Error of cos or sin against the position on a logarithmic scale, for heads of "
        f"{SHOWN} and 128 dims. With everything in bf16 or fp16 it grows with the position, in "
        "bf16 to the size of cos itself; with the angle in fp32 it stays flat and small.",
    )
