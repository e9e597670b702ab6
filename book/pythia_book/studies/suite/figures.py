"""The suite's figures and tables: loss curves, sizes, proofs, how often a token is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book.records import number_text
from pythia_book.style import (
    INK,
    MUTED,
    Drawing,
    Table,
    footer,
    panels,
    size_colour,
    size_legend,
    style,
)

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import StudyResult as Result

ARM_TITLES = {"standard": "Standard text", "deduplicated": "Deduplicated text"}
READINGS = {
    ("standard", "joint"): "standard, one copy",
    ("deduplicated", "joint"): "deduplicated,\ncopies shuffled together",
    ("deduplicated", "separate"): "deduplicated,\none epoch after the other",
}
_SHADES = ("#c9c9c9", "#0072b2", "#e69f00", "#222222")


def loss_curves(result: Result) -> Drawing:
    """Training loss against tokens read, one panel per text, one line per size."""
    losses = result.tables["losses"]
    sizes = result.params.size_list
    with style():
        figure, axes = panels(2, 2.9, footer(result), sharey=True)
        for ax, (arm, title) in zip(axes, ARM_TITLES.items(), strict=True):
            for size in sizes:
                curve = losses[(losses.arm == arm) & (losses["size"] == size)]
                ax.plot(curve.tokens, curve.loss, color=size_colour(size), linewidth=1.1)
            ax.set(xscale="log", title=title, xlabel="tokens read")
        axes[0].set_ylabel("training loss, nats per token")
        size_legend(axes[1], sizes, loc="upper right", ncols=2, title="parameters")
        last = losses.groupby(["size", "arm"]).loss.last()
        words = f"Training loss of {len(last)} models, falling to {last.min():.2f} nats per token"
        return Drawing(figure, words)


def reading(result: Result) -> Drawing:
    """How often a token is read, and whether a stretch of training had been read before."""
    reads, rereads = result.tables["reads"], result.tables["rereads"]
    kinds = [k for k in READINGS if ((reads.arm == k[0]) & (reads.policy == k[1])).any()]
    with style():
        figure, (bars, lines) = panels(2, 2.9, footer(result), ratios=(1.1, 1))
        for i, (arm, policy) in enumerate(kinds):
            shares = reads[(reads.arm == arm) & (reads.policy == policy)]
            for offset, column, alpha in ((0.18, "share", 1.0), (-0.18, "pile", 0.45)):
                left = 0.0
                for shade, value in zip(_SHADES, 100 * shares[column], strict=True):
                    at = len(kinds) - 1 - i + offset
                    bars.barh(at, value, 0.32, left=left, color=shade, alpha=alpha, linewidth=0)
                    if value > 6:
                        dark = shade in ("#0072b2", "#222222") and alpha == 1
                        ink = "white" if dark else INK
                        bars.text(left + value / 2, at, f"{value:.0f}", color=ink,
                                  ha="center", va="center", fontsize=7)  # fmt: skip
                    left += value
        names = [
            "standard",
            "deduplicated,\ncopies shuffled\ntogether",
            "deduplicated,\nepoch after\nepoch",
        ]
        bars.set_yticks(range(len(kinds)), names[: len(kinds)][::-1])
        bars.set_xlim(0, 100)
        bars.set_xlabel("% of the tokens of the text (pale: the Pile, by its size)")
        bars.grid(axis="y", visible=False)
        from matplotlib.patches import Patch

        handles = [
            Patch(color=shade, label=label)
            for shade, label in zip(_SHADES, ("never", "once", "twice", "more often"), strict=True)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=1.2)
        dashes = {"joint": "-", "separate": (0, (4, 1.5))}
        colours = {"standard": MUTED, "deduplicated": "#d55e00"}
        for arm, policy in kinds:
            curve = rereads[(rereads.arm == arm) & (rereads.policy == policy)]
            lines.plot(curve.percent, 100 * curve.share, color=colours[arm],
                       linestyle=dashes[policy])  # fmt: skip
        lines.set_xlim(0, 100)
        lines.set_ylim(-3, 103)
        lines.set(xlabel="% of training", ylabel="% of a stretch read before")
        places = {("standard", "joint"): (3, 4, "left"), ("deduplicated", "joint"): (2, 48, "left"),
                  ("deduplicated", "separate"): (67, 92, "right")}  # fmt: skip
        for kind in kinds:
            x, y, side = places[kind]
            lines.text(x, y, READINGS[kind], color=colours[kind[0]], ha=side, fontsize=7)
        joint = reads[(reads.arm == "deduplicated") & (reads.policy == "joint")]
        words = "Tokens of the deduplicated text read 0, 1 and 2 times: " + ", ".join(
            f"{100 * share:.1f} %" for share in joint.share[:3]
        )
        return Drawing(figure, words)


def models_table(result: Result) -> Table:
    """Our sizes, with what they reach."""
    return Table(_sizes(result.tables["models"]), "The suite in miniature")


def official_table(result: Result) -> Table:
    """The ten released sizes in the same columns."""
    return Table(_sizes(result.tables["official"]), "The released sizes")


def _sizes(frame: pd.DataFrame) -> pd.DataFrame:
    shown = frame.rename(
        columns={
            "size": "Name",
            "layers": "Layers",
            "width": "Width",
            "heads": "Heads",
            "head_dim": "Head dim",
            "non_embedding": "Parameters without embeddings",
            "total": "In all",
            "lr_max": "Peak LR",
            "batch_tokens": "Tokens per batch",
            "tokens": "Tokens",
            "tokens_per_parameter": "Tokens per parameter",
            "loss_standard": "Last loss, standard",
            "loss_deduplicated": "Last loss, deduplicated",
        }
    )
    for name in shown.columns[1:]:
        losses = name.startswith("Last")
        shown[name] = [
            f"{v:.3f}" if losses else f"{v:.1e}" if name == "Peak LR" else number_text(v)
            for v in shown[name].tolist()
        ]
    return shown


def proofs_table(result: Result) -> Table:
    """Every check, how many cases it had and how many failed."""
    frame = result.tables["proofs"].rename(
        columns={"check": "Check", "what": "What", "cases": "Cases", "failures": "Failures"}
    )
    frame["Cases"] = [number_text(v) for v in frame["Cases"].tolist()]
    return Table(frame, "What the studies rely on, checked")


def suites_table(result: Result) -> Table:
    """Pythia compared with other public suites."""
    frame = result.tables["suites"].copy()
    frame.columns = [name[:1].upper() + name[1:] for name in frame.columns]
    return Table(frame, "Suites of language models on the axes of the paper")
