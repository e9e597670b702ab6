"""Figures of the deduplication study: twins compared, and the text that deduplication removes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pythia_book import palette, style
from pythia_book.published.deduplication import BEFORE, COLUMNS, EPOCH_STEP
from pythia_book.published.figures import ABSENT
from pythia_book.published.means import mean_over_pairs
from pythia_book.records import number_text
from pythia_book.stats import Z_95
from pythia_book.studies.deduplication.params import MARGIN
from pythia_book.studies.deduplication.tables import ALL, HELDOUT, HELDOUT_STANDARD
from pythia_book.style import BLUE, ORANGE, Drawing, Table
from pythia_core.errors import count_of
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

SHOTS = {"Zero-shot": 0, "Five-shot": 5}
LEAD = "deduplicated minus standard,\naccuracy, points"
RECIPE_COLORS = {"exact": style.MUTED, "jaccard-0.87": BLUE, "eleutherai-0.87": ORANGE}


TEXTS = {
    HELDOUT: "deduplicated held-out text",
    HELDOUT_STANDARD: "raw held-out text",
}
"""Maps measures in the table `changes` to their names."""
MARKS = {HELDOUT: style.mark("o"), HELDOUT_STANDARD: style.mark("s", hollow=True)}
OFTEN = {"once": "once", "twice": "twice", "more": "3 times\nor more"}
"""Maps groups of documents to how often they occur in the standard text."""


@style.figure
def answer(result: Result) -> Drawing:
    """Draw how deduplication changes the held-out loss, for both ways of repeating documents."""
    changes, suite = result.tables["changes"], result.tables["effects"]
    changes = changes[changes.measure.isin(TEXTS)]
    ours = count_of(result.params.seeds, "seed")
    notes = f"bars: 95 % intervals over {ours}; in the second panel, over held-out rows"
    with style.canvas(result, 2, 2.8, notes, sharey=True, ratios=(1, 1.5)) as (figure, axes):
        pile, heavy = axes
        pile.axhspan(-MARGIN, MARGIN, color=style.GRID, linewidth=0, zorder=0)
        _points(pile, changes, _sizes(result))
        pile.set_title("copies as in the Pile")
        pile.set_ylabel("deduplicated minus standard,\nloss in nats per token")
        heavy.set_title("texts repeated up to 128 times")
        for at, row in enumerate(suite.itertuples()):
            style.interval_point(heavy, at, row, style.INK, 1, markersize=5)
        style.category_ticks(heavy, suite["size"])
        for ax in axes:
            style.reference(ax, 0)
        style.legend(figure, {TEXTS[measure]: mark for measure, mark in MARKS.items()})
        means = style.rows_where(changes, size=ALL)
        numbers = [f"{TEXTS[row.measure]} {row.value:+.3f}" for row in means.itertuples()]
        if len(suite):
            numbers.append(f"texts repeated up to 128 times {suite.value.mean():+.3f}")
        return Drawing(figure, "Change of held-out loss by deduplication", numbers)


def _sizes(result: Result) -> list[str]:
    """Return the sizes of the twins and, if there are several, ALL for their mean."""
    sizes = result.params.size_list
    return [*sizes, ALL] if len(sizes) > 1 else [*sizes]


def _points(ax: Axes, changes: pd.DataFrame, sizes: list[str]) -> None:
    """Draw a point for each size, and for their mean in black, for each measure of MARKS."""
    ticks = ["mean" if size == ALL else size for size in sizes]
    style.size_points(ax, changes[changes["size"] != ALL], ticks, "measure", MARKS, 1, TEXTS)
    for shift, (measure, mark) in zip((-0.11, 0.11), MARKS.items(), strict=True):
        face = "white" if mark["markerfacecolor"] == "white" else style.INK
        look = {"marker": mark["marker"], "markerfacecolor": face}
        for row in style.rows_where(changes, measure=measure, size=ALL).itertuples():
            name = f"mean, {TEXTS[measure]}"
            at = len(ticks) - 1 + shift
            style.interval_point(ax, at, row, style.INK, 1, name=name, markersize=5, **look)


@style.figure
def memory(result: Result) -> Drawing:
    """Draw how much more deduplicated models have memorized, by how often a text was repeated."""
    table = result.tables["memory"]
    sizes = _sizes(result)
    with style.canvas(result, 1, 2.6, "bars: 95 % intervals over seeds") as (figure, (ax,)):
        groups = [group for group in OFTEN if group in set(table.group)]
        for j, size in enumerate(sizes):
            shift = 0.2 * (j - (len(sizes) - 1) / 2)
            color = style.INK if size == ALL else style.size_color(size)
            for row in style.rows_where(table, size=size).itertuples():
                if row.group in groups:
                    at = groups.index(row.group) + shift
                    style.interval_point(ax, at, row, color, 1, markersize=5)
        style.category_ticks(ax, [OFTEN[group] for group in groups])
        ax.set_xlim(-0.6, len(groups) - 0.4)
        style.reference(ax, 0)
        ax.set_xlabel("occurrences of the text in the standard corpus")
        ax.set_ylabel("memorized, nats per token,\nminus standard twin")
        lines = {s: {"color": style.size_color(s), "linewidth": 3} for s in sizes if s != ALL}
        if ALL in sizes:
            lines["mean"] = {"color": style.INK, "linewidth": 3}
        style.legend(figure, lines)
        means = style.rows_where(table[table.group.isin(groups)], size=ALL)
        numbers = (f"{row.group} {row.value:+.3f}" for row in means.itertuples())
        return Drawing(figure, "Memorized by deduplicated minus standard models", numbers)


@style.figure
def taken_away(result: Result) -> Drawing:
    """Draw how much text each recipe leaves, and how often a recipe finds similar documents."""
    recipes, caught = result.tables["recipes"], result.tables["caught"]
    with style.canvas(result, 2, 2.7, ratios=(1, 1.1)) as (figure, (bars, curves)):
        bottom_up = recipes[recipes.recipe != "none"].iloc[::-1]
        before = float(recipes.tokens[recipes.recipe == "none"].iloc[0])
        names = [*bottom_up.recipe, "the Pile"]
        left = [*(100 * bottom_up.tokens / before), 100 - result.values["percent_pile"]]
        colors = [*(RECIPE_COLORS[r] for r in bottom_up.recipe), style.INK]
        rows = range(len(names))
        bars.barh(rows, left, color=colors, height=0.62, label="stays")
        gone = [100 - value for value in left]
        edge = {"color": palette.PALE, "edgecolor": style.MUTED, "linewidth": 0.8}
        bars.barh(rows, gone, left=left, height=0.62, label="is removed", **edge)
        labels = [f"{name}: {value:.0f} %" for name, value in zip(names, left, strict=True)]
        bars.set_yticks(rows, labels)
        bars.set_xlim(0, 100)
        bars.set_xlabel("% of the training tokens that stay")
        bars.grid(axis="y", visible=False)
        lines = {}
        notes = {
            "jaccard-0.87": "jaccard-0.87: all from the threshold on, none below",
            "eleutherai-0.87": "eleutherai-0.87: by chance",
        }
        for recipe, points in caught.groupby("recipe", sort=False):
            color = RECIPE_COLORS[recipe]
            curves.plot(points.similarity, 100 * points.probability, color=color, label=recipe)
            lines[notes[recipe]] = {"color": color}
        style.legend(figure, lines)
        style.reference(curves, x=0.87)
        curves.set_xlim(0.4, 1.005)
        curves.set_ylim(-3, 103)
        curves.set_xlabel("Jaccard similarity of two documents (word 5-grams)")
        curves.set_ylabel("% of such pairs found")
        numbers = (f"{name} {value:.0f} %" for name, value in zip(names, left, strict=True))
        return Drawing(figure, "Tokens that stay", numbers)


@style.figure
def released(result: Result) -> Drawing:
    """Draw, for each size, how the released twins differ in zero-shot and five-shot accuracy."""
    frame = _twins(result)
    frame = frame[frame.step.isin([BEFORE, OFFICIAL_STEPS])]
    half = Z_95 * frame.stderr
    frame = frame.assign(size=frame.model, low=frame.value - half, high=frame.value + half)
    marks = {BEFORE: style.mark("o", hollow=True), OFFICIAL_STEPS: style.mark("s")}
    notes = "bars: 95 % intervals over items, upper bounds"
    with style.canvas(result, 2, 2.5, notes, sharey=True) as (figure, axes):
        for ax, points in _by_shots(axes, frame):
            names = {step: f"step {step:,}" for step in marks}
            sizes = dict.fromkeys(points.model)
            style.size_points(ax, points, sizes, "step", marks, 1, names)
        if not frame.empty:
            style.legend(figure, {f"step {step:,}": mark for step, mark in marks.items()})
        means = frame.groupby(["shots", "step"]).value.mean()
        numbers = (f"{n}-shot at {step:,} {v:+.2f} points" for (n, step), v in means.items())
        return Drawing(figure, "Released models, mean change by deduplication", numbers)


@style.figure
def released_over_training(result: Result) -> Drawing:
    """Draw how each pair of released twins differs over training, and the mean over pairs."""
    frame = _twins(result)
    notes = f"band: 95 % interval over pairs and items; dotted: {EPOCH_STEP:,} updates, 207B tokens"
    with style.canvas(result, 2, 2.6, notes, sharey=True) as (figure, axes):
        for ax, points in _by_shots(axes, frame):
            for model, pair in points.groupby("model", sort=False):
                color = style.size_color(model)
                ax.plot(pair.step / 1000, pair.value, color=color, linewidth=0.6, label=model)
            means = _means(points)
            style.curve(
                ax,
                means.assign(step=means.step / 1000),
                "step",
                style.INK,
                name="mean",
                **style.THIN,
            )
            style.reference(ax, x=EPOCH_STEP / 1000)
            ax.set_xlabel("thousands of updates")
        if not frame.empty:
            style.size_legend(figure, dict.fromkeys(frame.model))
            style.legend(figure, {"mean": {"color": style.INK, "marker": "o", "markersize": 2.5}})
        averages = frame.groupby("shots").value.mean()
        numbers = (f"{shots}-shot {value:+.2f} points" for shots, value in averages.items())
        return Drawing(figure, "Released models, change by deduplication over training", numbers)


def _by_shots(axes: list[Axes], frame: pd.DataFrame) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Yield each panel (zero-shot, five-shot) that has rows in `frame`, with these rows."""
    axes[0].set_ylabel(LEAD)
    for ax, (title, shots) in zip(axes, SHOTS.items(), strict=True):
        ax.set_title(title)
        points = style.rows_where(frame, shots=shots)
        if points.empty:
            style.say(ax, ABSENT)
        else:
            style.reference(ax, 0)
            yield ax, points


def _twins(result: Result) -> pd.DataFrame:
    """Return the table `twins` of released differences; it is empty without released numbers."""
    import pandas as pd

    return result.released.get("twins", pd.DataFrame(columns=COLUMNS, dtype=float))


def _means(points: pd.DataFrame) -> pd.DataFrame:
    """Average the difference over pairs of models: a table of `step`, `value`, `low`, `high`."""
    import pandas as pd

    rows = []
    for step, pairs in points.groupby("step"):
        e = mean_over_pairs(pairs.value.to_numpy(), pairs.stderr.to_numpy())
        rows.append({"step": step, **e.interval()})
    return pd.DataFrame(rows)


@style.figure
def remembered(result: Result) -> Drawing:
    """Draw what share of the training rows each final model of the suite has memorized."""
    memorized = result.tables["memorized"]
    sizes = result.params.suite_sizes
    with style.canvas(result, 1, 2.6, "bars: 95 % intervals over texts") as (figure, (ax,)):
        if memorized.empty:
            style.say(ax, "no final model could be measured")
            return Drawing(figure, "no final model could be measured")
        style.twin_shares(ax, memorized, sizes)
        largest = style.rows_where(memorized, size=sizes[-1])
        numbers = (f"{row.size} {row.arm} {100 * row.value:.2f} %" for row in largest.itertuples())
        return Drawing(figure, "Share of memorized rows", numbers)


def recipes_table(result: Result) -> Table:
    """Return a table with the number of documents and tokens before and after each recipe."""
    frame = result.tables["recipes"].copy()
    frame.columns = ["Recipe", "Documents", "Tokens", "Identical removed", "Similar removed",
                     "% of tokens removed"]  # fmt: skip
    for name in frame.columns[1:5]:
        frame[name] = [number_text(v) for v in frame[name].tolist()]
    frame["% of tokens removed"] = [f"{v:.1f}" for v in frame["% of tokens removed"]]
    return Table(frame, "The training text before and after each recipe")


def repetition_table(result: Result) -> Table:
    """Return a table that compares how repetitive the Pile and our two texts are."""
    frame = result.tables["repetition"].copy()
    frame.columns = ["Text", "% of tokens removed", "% of documents with a copy",
                     "Times such a document occurs", "Most occurrences"]  # fmt: skip
    for name, digits in zip(frame.columns[1:], (0, 0, 2, 0), strict=True):
        frame[name] = ["" if v is None or v != v else f"{v:.{digits}f}" for v in frame[name]]
    caption = (
        "Copies in the Pile and in our two standard texts. A document has a copy if another is "
        "identical (the Pile) or a near-duplicate (ours)"
    )
    return Table(frame, caption)
