"""Figures of the deduplication study: the text it removes, and twin models compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pythia_book import palette, style
from pythia_book.published.deduplication import BEFORE, COLUMNS, EPOCH_STEP
from pythia_book.published.figures import ABSENT
from pythia_book.published.means import mean_over_pairs
from pythia_book.published.tables import TITLES
from pythia_book.records import number_text
from pythia_book.stats import Z_95
from pythia_book.style import BLUE, ORANGE, Drawing, Table
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

PALE = palette.PALE
SHOTS = {"Zero-shot": 0, "Five-shot": 5}
LEAD = "deduplicated minus standard,\naccuracy, points"
RECIPE_COLOURS = {"exact": style.MUTED, "jaccard-0.87": BLUE, "eleutherai-0.87": ORANGE}


@style.figure
def taken_away(result: Result) -> Drawing:
    """Draw how much text each recipe leaves, and how often a recipe finds similar documents."""
    recipes, caught = result.tables["recipes"], result.tables["caught"]
    with style.canvas(result, 2, 2.7, ratios=(1, 1.1)) as (figure, (bars, curves)):
        bottom_up = recipes[recipes.recipe != "none"].iloc[::-1]
        before = float(recipes.tokens[recipes.recipe == "none"].iloc[0])
        names = [*bottom_up.recipe, "the Pile"]
        left = [*(100 * bottom_up.tokens / before), 100 - result.values["percent_pile"]]
        colours = [*(RECIPE_COLOURS[r] for r in bottom_up.recipe), style.INK]
        rows = range(len(names))
        bars.barh(rows, left, color=colours, height=0.62, label="stays")
        gone = [100 - value for value in left]
        edge = {"color": palette.PALE, "edgecolor": style.MUTED, "linewidth": 0.8}
        bars.barh(rows, gone, left=left, height=0.62, label="is removed", **edge)
        labels = [f"{name}: {value:.0f} %" for name, value in zip(names, left, strict=True)]
        bars.set_yticks(rows, labels)
        bars.set_xlim(0, 100)
        bars.set_xlabel("% of the training tokens that stay")
        bars.grid(axis="y", visible=False)
        lines, notes = (
            {},
            {
                "jaccard-0.87": "jaccard-0.87: all from the threshold on, none below",
                "eleutherai-0.87": "eleutherai-0.87: by chance",
            },
        )
        for recipe, points in caught.groupby("recipe", sort=False):
            colour = RECIPE_COLOURS[recipe]
            curves.plot(points.similarity, 100 * points.probability, color=colour, label=recipe)
            lines[notes[recipe]] = {"color": colour}
        style.legend(figure, lines)
        style.reference(curves, x=0.87)
        curves.set_xlim(0.4, 1.005)
        curves.set_ylim(-3, 103)
        curves.set_xlabel("Jaccard similarity of two documents (word 5-grams)")
        curves.set_ylabel("% of such pairs found")
        numbers = (f"{name} {value:.0f} %" for name, value in zip(names, left, strict=True))
        return Drawing(figure, "Tokens that stay", numbers)


@style.figure
def over_training(result: Result) -> Drawing:
    """Draw how our twins differ over training, in held-out loss and in last words predicted."""
    effects = result.tables["effects"]
    n = {m: int(g.n.max()) for m, g in effects.groupby("measure")}
    notes = f"{n.get('loss', 0)} held-out rows, {n.get('last_word', 0)} last words"
    with style.canvas(result, 2, 3.0, notes) as (figure, (loss, words)):
        _differences(loss, effects[effects.measure == "loss"], 1, result)
        loss.set_ylabel("held-out loss, nats per token\n(below 0: deduplicated is better)")
        _differences(words, effects[effects.measure == "last_word"], 100, result)
        words.set_ylabel("last words predicted, points\n(above 0: deduplicated is better)")
        last = style.rows_where(effects, measure="loss", percent=effects.percent.max())
        numbers = (f"{row.size} {row.value:+.3f}" for row in last.itertuples())
        return Drawing(figure, "Change of held-out loss by deduplication at the end", numbers)


def _differences(ax: Axes, effects: object, factor: float, result: Result) -> None:
    """Draw `effects`, the differences of twins in one measure, over training, times `factor`."""
    if effects.empty:
        style.say(ax, "no checkpoint of both twins\ncould be measured")
        return
    style.size_curves(ax, effects, "percent", result.params.size_list, factor, labelled=True)
    style.reference(ax, 0)
    ax.set_xlim(0, 100)
    ax.set_xlabel("% of training")


@style.figure
def tasks(result: Result) -> Drawing:
    """Draw how our final twins differ in zero-shot accuracy, task by task."""
    table = result.tables["tasks"]
    table = table[table.shots == 0]
    names = [t for t in dict.fromkeys(table.task) if t != "mean"] + ["mean"]
    sizes = list(result.params.size_list)
    note = f"zero-shot, {result.params.limit} items per task at most; bars: 95 % intervals"
    with style.canvas(result, 1, 2.8, note) as (figure, (ax,)):
        if table.empty:
            style.say(ax, "no task fits these models")
            return Drawing(figure, "no task fits these models")
        for row in table.itertuples():
            shift = 0.8 * (sizes.index(row.size) / max(len(sizes) - 1, 1) - 0.5)
            x, colour = names.index(row.task) + shift, style.size_colour(row.size)
            style.interval_point(ax, x, row, colour, width=1, markersize=3.4)
        style.reference(ax, 0)
        style.category_ticks(ax, [TITLES.get(name, "all items") for name in names])
        ax.set_ylabel(LEAD)
        style.size_legend(figure, sizes)
        mean = style.rows_where(table, task="mean")
        numbers = (f"{row.size} {100 * row.value:+.1f} points" for row in mean.itertuples())
        return Drawing(figure, "Change of zero-shot accuracy, all items", numbers)


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
                colour = style.size_colour(model)
                ax.plot(pair.step / 1000, pair.value, color=colour, linewidth=0.6, label=model)
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
    """Draw what share of the training rows each of our final models has memorized."""
    memorized = result.tables["memorized"]
    sizes = result.params.size_list
    with style.canvas(result, 1, 2.6, "bars: 95 % intervals") as (figure, (ax,)):
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
