"""What the pages of all studies show alike: the small print of a figure, the table of claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book import records
from pythia_book.style import MUTED, Table, size_colour

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import StudyResult

VERDICTS = (
    "Verdicts by rule: the interval excludes 0 on the claimed side, reproduced (of premises that "
    "the paper did not measure: holds); on the other side, not reproduced; it includes 0, no "
    "effect seen; what would be needed is not there, not testable here."
)


def footer(result: StudyResult, *notes: str) -> str:
    """The small print of a figure: what it shows, and the command that draws it again."""
    record = {"study": result.study, "scale": result.params.scale, "parameters": result.parameters}
    return (
        "; ".join(note for note in notes if note)
        + ("\n" if any(notes) else "")
        + (f"drawn again by: {records.command(record)}")
    )


def claims_table(result: StudyResult, note: str = "") -> Table:
    """What the paper says, what was released, what we measured, and the verdict."""
    return Table(claims_frame(result.claims), f"{note} {VERDICTS}".strip())


def claims_frame(claims: list[dict[str, Any]]) -> pd.DataFrame:
    """A study's claims in words, a row each."""
    import pandas as pd

    rows = [
        {
            "claim": claim["claim"],
            "the paper": claim["paper"],
            "released numbers": "\N{EN DASH}" if claim["published"] is None else claim["published"],
            "ours [95 %]": interval(claim["ours"], claim["low"], claim["high"]),
            "verdict": claim["verdict"],
        }
        for claim in claims
    ]
    return pd.DataFrame(rows)


def twin_shares(ax: Axes, frame: pd.DataFrame, sizes: tuple[str, ...]) -> None:
    """Percent of rows memorized by size, standard and deduplicated twins side by side.

    Args:
        frame: size, arm, value, low, high (shares).
    """
    from matplotlib.lines import Line2D

    arms = (("standard", "s", MUTED), ("deduplicated", "o", "white"))
    for j, (arm, mark, _) in enumerate(arms):
        for row in frame[frame.arm == arm].rename(columns={"size": "name"}).itertuples():
            at, colour = sizes.index(row.name) + 0.24 * (j - 0.5), size_colour(row.name)
            ax.plot([at, at], [100 * row.low, 100 * row.high], color=colour, linewidth=1.3)
            ax.plot([at], [100 * row.value], color=colour, marker=mark, markersize=5,
                    markerfacecolor="white" if j else colour)  # fmt: skip
    handles = [
        Line2D([], [], color=MUTED, marker=mark, linestyle="", markerfacecolor=face, label=arm)
        for arm, mark, face in arms
    ]
    ax.legend(handles=handles, loc="upper left")
    ax.set_xticks(range(len(sizes)), sizes)
    ax.set_xlabel("parameters without embeddings")
    ax.set_ylabel("% of rows memorized")
    ax.grid(axis="x", visible=False)


def interval(value: Any, low: float | None, high: float | None) -> str:
    """A measured value with its interval where it has one."""
    if value is None:
        return "not measured"
    if low is None:
        return records.number_text(value)
    return records.value_text({"value": value, "low": low, "high": high})
