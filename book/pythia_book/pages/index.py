"""Lists the front page's findings and the verdicts they rest on, and draws their small figures.

The figures are drawn from the tables of the recorded runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pythia_book import style
from pythia_book.site.runs import NOT_RUN, SelectedRun
from pythia_book.style import BLUE, MUTED, ORANGE, Drawing
from pythia_book.verdicts import (
    CONFIRMED,
    FAILS,
    HOLDS,
    NOT_RESOLVED,
    NOT_TESTABLE,
    OURS,
    REFUTED,
    RELEASED,
    REPRODUCED,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Finding:
    """A finding of the front page; its sentences are in book/index.md."""

    study: str
    paint: Callable[[Axes, SelectedRun], str]
    """Draws the figure into a panel, and returns a description of what it shows."""
    rests_on: tuple[tuple[str, str, str], ...]
    """The verdicts without which the sentences would not follow: (claim, side, verdict)."""
    height: float = 2.3

    def draw(self, run: SelectedRun) -> Drawing:
        """Draw the figure of a run or, if its tables are missing, a panel that says so."""
        from matplotlib.figure import Figure

        with style.style():
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            ax = figure.subplots()
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(length=0)
            ax.set_axisbelow(True)
            try:
                text = self.paint(ax, run)
            except (FileNotFoundError, KeyError):  # no run, or one of an older version
                ax.clear()
                style.say(ax, NOT_RUN)
                text = NOT_RUN
            return Drawing(figure, text)


WIDTH = 3.5
"""Width of a small figure in inches."""


def _table(run: SelectedRun, name: str) -> pd.DataFrame:
    """Read a table of a run.

    Raises:
        FileNotFoundError: there is no run, or it has no such table.
    """
    import pandas as pd

    if run.folder is None:
        raise FileNotFoundError(name)
    return pd.read_csv(run.folder / f"{name}.csv")


def _values(run: SelectedRun) -> dict[str, Any]:
    if run.record is None:
        raise FileNotFoundError("record.json")
    return run.record["values"]


def _bars(ax: Axes, rows: list[tuple[str, dict[str, float], str]], label: str) -> str:
    """Draw values with their intervals, one per line from the top; return them as text."""
    for place, (_, value, color) in enumerate(rows):
        point = SimpleNamespace(**value)
        style.interval_point(ax, len(rows) - 1 - place, point, color, 1, flat=True, markersize=6)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)
    flat = [name.replace("\n", " ") for name, _, _ in rows]
    texts = (f"{name} {v['value']:.2f}" for name, (_, v, _) in zip(flat, rows, strict=True))
    return f"{label}: {', '.join(texts)}"


def swap(ax: Axes, run: SelectedRun) -> str:
    """Draw how much of the association of nouns and pronouns each change to the data leaves."""
    values = _values(run)
    arms = (
        ("shuffle_21", "genders shuffled in\nthe sentences that teach it", ORANGE),
        ("swap_21", "pronouns swapped\neverywhere (the paper)", ORANGE),
        ("complement_21", "swapped everywhere else", BLUE),
        ("placebo_21", "prepositions swapped", BLUE),
    )
    rows = [(name, values[f"retained_{arm}"], color) for arm, name, color in arms]
    style.reference(ax, x=1)
    style.reference(ax, x=0)
    ax.set_xlim(-0.05, 1.15)
    return _bars(ax, rows, "share of the association left")


def frequency(ax: Axes, run: SelectedRun) -> str:
    """Draw the effect of planting more sums with a number, and that of a placebo."""
    values = _values(run)
    rows = [
        ("more sums\nwith a number", values["boost"], ORANGE),
        ("placebo", values["placebo"], MUTED),
    ]
    style.reference(ax, x=0)
    return _bars(ax, rows, "log-probability of the right sum, nats")


def order(ax: Axes, run: SelectedRun) -> str:
    """Draw the trace of a row at the end of training, by when it was read, for two sizes."""
    values, table = _values(run), _table(run, "positions")
    table = table[table.scope == "training"]
    style.reference(ax, 0)
    texts = []
    for size, color in ((values["seeded"], BLUE), (values["largest"], ORANGE)):
        rows = table[table["size"] == size]
        ax.fill_between(rows.percent, rows.low, rows.high, color=color, alpha=0.15, linewidth=0)
        ax.plot(rows.percent, rows.value, "o-", color=color, markersize=4, label=size)
        texts.append(f"{size} {', '.join(f'{value:.2f}' for value in rows.value)}")
    ax.legend(loc="upper left", frameon=False)
    label = "trace at the end, nats per token"
    ax.set(xlabel="read at % of training", ylabel=label)
    return f"{label}, by when a row was read: {'; '.join(texts)}"


def twins(ax: Axes, run: SelectedRun) -> str:
    """Draw how much deduplication changes the final held-out loss, by size and copies."""
    heavy, margin = _table(run, "effects"), _values(run)["margin"]
    as_in_the_pile = style.rows_where(_table(run, "changes"), measure="heldout_deduplicated")
    sizes = list(heavy["size"])
    style.reference(ax, 0)
    ax.axhspan(-margin, margin, color=style.GRID, linewidth=0, zorder=0)
    texts = []
    for name, table, color in (
        ("as in the Pile (bars: seeds)", as_in_the_pile, BLUE),
        ("up to 128 times (bars: rows)", heavy, ORANGE),
    ):
        rows = table[table["size"].isin(sizes)]
        for row in rows.itertuples():
            at = sizes.index(row.size)
            style.interval_point(ax, at, row, color, 1, markersize=5)
        ax.plot([], [], "o", color=color, markersize=5, label=name)
        ends = (f"{row.size} {row.value:.3f}" for row in rows.itertuples())
        texts.append(f"{name}: {', '.join(ends)}")
    ax.legend(loc="lower right", frameon=False, bbox_to_anchor=(1, 1))
    style.category_ticks(ax, sizes)
    ax.set(
        xlabel="parameters without embeddings",
        ylabel="deduplicated minus standard,\nloss in nats per token",
    )
    return f"Deduplicated minus standard, held-out loss; {'; '.join(texts)}"


def bloom(ax: Axes, run: SelectedRun) -> str:
    """Draw BLOOM's released scores minus Pythia's, task by task."""
    values = _values(run)
    tasks = {
        "lambada_openai": "LAMBADA", "arc_easy": "ARC-easy", "wsc": "WSC (not in the mean)",
        "piqa": "PIQA", "logiqa": "LogiQA", "arc_challenge": "ARC-challenge", "sciq": "SciQ",
        "winogrande": "WinoGrande",
    }  # fmt: skip
    rows = [
        (name, values[f"released_bloom_{task}"], ORANGE if task == "lambada_openai" else BLUE)
        for task, name in tasks.items()
    ]
    rows.append(("mean of seven", values["released_bloom"], MUTED))
    style.reference(ax, x=0)
    return _bars(ax, rows, "BLOOM minus Pythia, points")


FINDINGS = {
    "swap": Finding(
        "gender_bias",
        swap,
        (
            (
                "The shuffle, which keeps the prior, leaves less of the association than the swap.",
                OURS,
                HOLDS,
            ),
            (
                "Swapping everything but the planted sentences leaves the association unchanged, "
                "within 15 % of the control's.",
                OURS,
                HOLDS,
            ),
        ),
    ),
    "frequency": Finding(
        "term_frequency",
        frequency,
        (
            (
                "The right answer is given a higher probability for numbers whose frequency was "
                "raised at random.",
                OURS,
                REPRODUCED,
            ),
            (
                "The right answer is written more often for numbers whose frequency was raised at "
                "random.",
                OURS,
                NOT_RESOLVED,
            ),
        ),
        1.5,
    ),
    "order": Finding(
        "memorization",
        order,
        (
            (
                "Over seeds, 25k predicts rows read once better at the end.",
                OURS,
                HOLDS,
            ),
            (
                "Over seeds, the trace of a row at the end hardly depends on when 25k read it, on "
                "a straight line through all of training.",
                OURS,
                FAILS,
            ),
            (
                "Over seeds, later rows leave a larger trace among those that 25k read at the "
                "minimum learning rate.",
                OURS,
                HOLDS,
            ),
            (
                "Whether a row is memorized does not depend on when in training it is read.",
                OURS,
                NOT_TESTABLE,
            ),
        ),
    ),
    "twins": Finding(
        "deduplication",
        twins,
        (
            (
                "Models trained on text with heavily repeated documents have a higher held-out "
                "loss.",
                OURS,
                NOT_TESTABLE,
            ),
            (
                "If documents are repeated as in the Pile, deduplication changes the loss on "
                "held-out text of the deduplicated corpus by less than 0.05 nats per token.",
                OURS,
                REPRODUCED,
            ),
            (
                "Models trained on deduplicated text score higher on benchmarks.",
                RELEASED,
                NOT_RESOLVED,
            ),
        ),
    ),
    "bloom": Finding(
        "scaling",
        bloom,
        (
            (
                "BLOOM performs very similarly to Pythia.",
                RELEASED,
                REFUTED,
            ),
            ("BLOOM is worse than Pythia on LAMBADA.", RELEASED, CONFIRMED),
        ),
        2.6,
    ),
}
"""Maps the name of each finding to its study, figure and verdicts."""
