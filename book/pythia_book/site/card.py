"""Draws the image for link previews, and the icon that old browsers ask for, when a build ends."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sphinx.application import Sphinx

from pythia_book.site.head import CARD
from pythia_book.site.staging import RUNS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY = "gender_bias"
THESIS = "Every figure from raw text,\nwith one command."
QUESTION = "How much of a learned association survives when training continues on changed text?"
PAPER, LIGHT, SOFT, ACCENT = "#12263a", "#f5f7fa", "#a9bccf", "#f2b36b"
ARMS = {
    "placebo_21": "prepositions swapped",
    "swap_21": "pronouns swapped",
    "mirror_21": "swapped the other way",
    "shuffle_21": "genders shuffled",
}
"""Interventions in the last 21 % of training, and what the card calls them."""


def draw(app: Sphinx, error: Exception | None) -> None:
    """Write the card (1200 x 630 pixels) and favicon.ico into the built site."""
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    record = RUNS[STUDY][0].record if STUDY in RUNS else None
    card = figure(app.config.html_title, (record or {}).get("values", {}))
    card.savefig(site / CARD, dpi=100, metadata={"Software": None})
    (site / "favicon.ico").write_bytes(icon())


def figure(title: str, values: dict[str, Any]) -> Figure:
    """Return the card: title and thesis, and next to them the study's main result.

    Args:
        values: numbers of the gender study's record; without them, the card has no figure.
    """
    from matplotlib.figure import Figure

    from pythia_book import style

    rows = [(name, values.get(f"retained_{arm}")) for arm, name in ARMS.items()]
    with style.style():
        card = Figure(figsize=(12, 6.3), facecolor=PAPER)
        card.text(0.06, 0.82, title, color=LIGHT, fontsize=38, fontweight="bold", va="center")
        if not all(isinstance(value, dict) for _, value in rows):
            card.text(0.06, 0.45, THESIS, color=SOFT, fontsize=27, va="center", linespacing=1.5)
            return card
        card.text(0.06, 0.68, THESIS.replace("\n", " "), color=SOFT, fontsize=22, va="center")
        card.text(0.06, 0.53, QUESTION, color=LIGHT, fontsize=17)
        axes = card.add_axes((0.34, 0.16, 0.58, 0.32), facecolor="none")
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        for place, (name, value) in enumerate(rows):
            color = LIGHT if place == 0 else ACCENT
            axes.plot([value["low"], value["high"]], [-place] * 2, color=color, linewidth=4)
            axes.plot(value["value"], -place, "o", color=color, markersize=12)
            axes.text(-0.52, -place, name, color=LIGHT, fontsize=16, va="center", clip_on=False)
        axes.set_yticks([])
        axes.set_xlim(0, 1.08)
        axes.set_ylim(-len(rows) + 0.5, 0.5)
        axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"], fontsize=14, color=SOFT)
        axes.axvline(1, color=SOFT, linewidth=1, linestyle=":", zorder=0)
        card.text(
            0.94, 0.06, "mean and 95 % interval over seeds", color=SOFT, fontsize=12, ha="right"
        )
    return card


def icon(pixels: int = 32) -> bytes:
    """Return the favicon as an .ico file: a falling curve on the book's blue."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    drawing = Figure(figsize=(1, 1), dpi=pixels)
    drawing.patch.set_alpha(0)
    axes = drawing.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 32)
    axes.set_ylim(32, 0)
    corner = FancyBboxPatch(
        (6, 6), 20, 20, "round,pad=6,rounding_size=6", facecolor="#1f4e79", lw=0
    )
    axes.add_patch(corner)
    steps = range(33)
    across = [6 + 20 * step / 32 for step in steps]
    down = [24 - 17 * (1 - step / 32) ** 3 for step in steps]
    axes.plot(across, down, color="white", linewidth=3 * 72 / 32, solid_capstyle="round")
    stream = io.BytesIO()
    drawing.savefig(stream, format="png", transparent=True)
    png = stream.getvalue()
    head = struct.pack("<HHH", 0, 1, 1)
    entry = struct.pack("<BBBBHHII", pixels, pixels, 0, 0, 1, 32, len(png), 22)
    return head + entry + png
