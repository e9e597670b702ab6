"""Figures of the term-frequency study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book import style
from pythia_book.published.figures import ABSENT
from pythia_book.published.tables import MODELS
from pythia_book.records import number_text
from pythia_book.studies.term_frequency.examples import NO_NUMBER, SHOWN
from pythia_book.style import BLUE, ORANGE, Drawing, Table, interval

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

COINS = {"boost": style.mark("o"), "placebo": style.mark("s", hollow=True)}
GUESS = 25
"""Accuracy of guessing among four, in percent."""


@style.figure
def by_frequency(result: Result) -> Drawing:
    """Draw how often first operands were read in sums, and how accuracy depends on this frequency.

    The first panel compares reads in sums with counts in the text. The other panels show final
    accuracy if the model picks the answer out of four, and if the model writes the answer.
    """
    frequency, step = result.tables["frequency"], result.tables["frequency"].step.max()
    last = style.rows_where(frequency, step=step)
    accuracy = style.rows_where(result.tables["curves"], step=step)
    shots = result.params.shot_list[-1]
    note = "held-out pairs; band: 95 % interval over numbers, largest size"
    keys = {"made 16 times as frequent": ORANGE, "left as it was": BLUE}
    with style.canvas(result, 3, 2.9, note) as (figure, (planted, choice, exact)):
        for boosted, (label, color) in zip((True, False), keys.items(), strict=True):
            dots = style.rows_where(last, boosted=boosted)
            planted.scatter(dots.natural + 1, dots.in_sums + 1, s=9, color=color, linewidth=0,
                            alpha=0.8, label=label)  # fmt: skip
        planted.set(xscale="log", yscale="log", xlabel="times in the text, plus 1",
                    ylabel="times read in sums, plus 1", title="100 first operands")  # fmt: skip
        dot = {"marker": "o", "markersize": 3, "linestyle": ""}
        style.legend(figure, {name: {**dot, "color": color} for name, color in keys.items()})
        for ax, measure, k in ((choice, "choice", 0), (exact, "exact", shots)):
            _curves(ax, style.rows_where(accuracy, measure=measure, shots=k), "count", result)
            ax.set_xscale("symlog", linthresh=3)
            ax.set_xlabel("times read in sums")
        choice.set(title="choice of four, zero-shot", ylabel="% right")
        exact.set_title(f"answer written, {shots}-shot")
        style.reference(choice, GUESS)
        style.size_legend(figure, result.params.size_list)
        text = "Right choices of frequent numbers minus rare ones, in points"
        return Drawing(figure, text, _last_gaps(result))


def _curves(ax: Axes, frame: pd.DataFrame, x: str, result: Result) -> None:
    """Plot `value` in percent against the column `x` for each size; the largest has a band."""
    sizes = result.params.size_list
    style.size_curves(ax, frame, x, sizes, 100, banded=sizes[-1:], markersize=3)


def _last_gaps(result: Result) -> list[str]:
    """List each size with its final zero-shot gap in points, e.g. "25k +12"."""
    gaps = result.tables["gaps"]
    gaps = style.rows_where(gaps, step=gaps.step.max(), measure="choice", shots=0)
    return [f"{row.size} {100 * row.value:+.0f}" for row in gaps.itertuples()]


@style.figure
def over_training(result: Result) -> Drawing:
    """Draw how the accuracy gap between frequent and rare operands changes over training."""
    gaps = result.tables["gaps"]
    gaps = gaps.assign(percent=100 * gaps.step / gaps.step.max())
    shots = result.params.shot_list[-1]
    note = f"{len(gaps.step.unique())} checkpoints; band: 95 % interval, largest size"
    with style.canvas(result, 2, 2.7, note) as (figure, axes):
        shown = (("choice", 0, "choice of four, zero-shot"),
                 ("exact", shots, f"answer written, {shots}-shot"))  # fmt: skip
        for ax, (measure, k, title) in zip(axes, shown, strict=True):
            _curves(ax, style.rows_where(gaps, measure=measure, shots=k), "percent", result)
            ax.set(title=title, xlabel="% of training")
            style.reference(ax, 0)
        axes[0].set_ylabel("most minus least\nfrequent tenth, points")
        style.size_legend(figure, result.params.size_list)
        text = "Gap between frequent and rare numbers at the end, in points"
        return Drawing(figure, text, _last_gaps(result))


@style.figure
def experiment(result: Result) -> Drawing:
    """Draw how planting more sums with a number changes scores on sums with this number."""
    few, sizes = result.params.shot_list[-1], result.params.size_list
    table = result.tables["experiment"]
    note = "50 pairs of numbers; bars: 95 % intervals over pairs"
    with style.canvas(result, 3, 2.7, note) as (figure, axes):
        shown = (
            ("exact", few, 100, f"answer written, {few}-shot", "points"),
            ("choice", 0, 100, "choice of four, zero-shot", "points"),
            ("logprob", few, 1, f"log-probability, {few}-shot", "nats"),
        )
        for ax, (measure, shots, factor, title, unit) in zip(axes, shown, strict=True):
            points = style.rows_where(table, measure=measure, shots=shots)
            style.size_points(ax, points, sizes, "coin", COINS, factor)
            ax.set(xlabel="parameters without embeddings", title=title)
            ax.set_ylabel(f"chosen minus other, {unit}")
            style.reference(ax, 0)
        ratio = result.values["boost_ratio"] or 0
        labels = (f"chosen is read {ratio:.0f} times as often", "placebo: nothing done")
        style.legend(figure, dict(zip(labels, COINS.values(), strict=True)))
        rows = style.rows_where(table, size=sizes[-1], measure="exact", shots=few)
        numbers = (f"{row.coin} {100 * row.value:+.1f} points" for row in rows.itertuples())
        return Drawing(figure, f"Chosen minus other numbers, {sizes[-1]}", numbers)


@style.figure
def definitions(result: Result) -> Drawing:
    """Draw how often models pick the defined word out of four, by how often this word was read.

    One panel is for definitions that are in the training text, the other for the rest.
    """
    table = result.tables["definitions"]
    table = table[table.group > 0]
    notes = "band: 95 % interval, largest size"
    with style.canvas(result, 2, 2.7, notes, sharey=True) as (figure, axes):
        kinds = ((True, "definitions that were read"), (False, "definitions that were not"))
        for ax, (read, title) in zip(axes, kinds, strict=True):
            ax.set_title(title)
            points = style.rows_where(table, read=read)
            if points.empty:
                style.say(ax, "no dictionary\nin this corpus")
                continue
            _curves(ax, points, "group", result)
            ax.set_xscale("log", base=4)
            groups = sorted(points.group.unique())
            ax.set_xticks(groups, [f"{g}+" for g in groups])
            ax.set_xlabel("times the word was read")
            style.reference(ax, GUESS)
        axes[0].set_ylabel("% right of four words")
        if len(table):
            style.size_legend(figure, result.params.size_list)
        return Drawing(figure, "Right words of four for a definition, by how often they were read")


@style.figure
def measures(result: Result) -> Drawing:
    """Draw three measures of the same zero-shot sums over training: exact, choice and logprob."""
    accuracy = style.rows_where(result.tables["accuracy"], shots=0)
    accuracy = accuracy.assign(percent=100 * accuracy.step / accuracy.step.max())
    sizes = result.params.size_list
    note = (
        f"zero-shot, held-out pairs, {result.params.arm} text; dark band: 95 % interval over "
        "numbers, largest size"
    )
    seeds = style.seed_note(result, "sums_choice")
    with style.canvas(result, 3, 2.7, note, seeds) as (figure, axes):
        shown = (
            ("exact", 100, "answer written", "% right"),
            ("choice", 100, "choice of four", "% right"),
            ("logprob", 1, "log-probability", "nats"),
        )
        for ax, (name, factor, title, unit) in zip(axes, shown, strict=True):
            points = style.rows_where(accuracy, measure=name)
            style.seed_band(ax, result, points, "percent", f"sums_{name}", factor)
            style.size_curves(ax, points, "percent", sizes, factor, banded=sizes[-1:], markersize=3)
            ax.set(title=title, xlabel="% of training", ylabel=unit)
        style.reference(axes[1], GUESS)
        style.size_legend(figure, sizes)
        last = style.rows_where(accuracy, size=sizes[-1], step=accuracy.step.max())
        numbers = (f"{row.measure} {row.value:.3f}" for row in last.itertuples())
        return Drawing(figure, f"Three measures of sums at the end, {sizes[-1]}", numbers)


@style.figure
def released(result: Result) -> Drawing:
    """Draw released accuracies on sums and products by step, number of examples, and operand."""
    table = result.tables["arithmetic"]
    table = table.assign(size=table.model, percent=100 * table.step / table.step.max())
    operands = result.released.get("operands")
    models = [model for model in MODELS if model in set(table.model)]
    notes = "bands: 95 % intervals over 100 first operands; one model of each size"
    with style.canvas(result, 2, 4.6, notes, rows=2) as (figure, axes):
        if table.empty or operands is None:
            for ax in axes:
                style.say(ax, ABSENT)
            return Drawing(figure, "No released accuracies")
        adding, multiplying, examples, single = axes
        for ax, operation in ((adding, "addition"), (multiplying, "multiplication")):
            few = style.rows_where(table, operation=operation, shots=16)
            style.size_curves(ax, few, "percent", models, 100, markersize=3)
            ax.set(title=f"{operation}, 16 examples", xlabel="% of training", ylim=(-3, 100))
        style.size_legend(figure, models)
        end = style.rows_where(table, operation="addition", step=table.step.max())
        counts = sorted(end.shots.unique())
        end = end.assign(position=end.shots.map(counts.index))
        style.size_curves(examples, end, "position", models, 100, markersize=3)
        examples.set_xticks(range(len(counts)), [str(count) for count in counts])
        examples.set(title="addition, at the end", xlabel="examples", ylim=(-3, 100))
        last = style.rows_where(operands, step=operands.step.max())
        for model in models[-3:]:
            dots = style.rows_where(last, model=model)
            shape = {"color": style.size_color(model), "label": model}
            single.scatter(dots.number, 100 * dots.value, s=6, linewidth=0, **shape)
        single.set(
            ylabel="% right",
            title="addition, 16 examples, at the end",
            xlabel="first operand",
            ylim=(-3, 103),
        )
        for ax in axes[:3]:
            ax.set_ylabel("% right")
        numbers = (f"{row.model} {100 * row.value:.1f} %"
                   for row in style.rows_where(end, shots=16).itertuples())  # fmt: skip
        return Drawing(figure, "Released accuracies on addition at the end", numbers)


def examples_table(result: Result) -> Table:
    """Return sums with the answers of the largest model, right and wrong."""
    import pandas as pd

    rows = [
        {
            "First operand": f"{r.first} ({r.group})",
            "Read in sums": number_text(int(r.in_sums)),
            "Sum": f"{r.first} plus {r.second}",
            "Right answer": str(r.first + r.second),
            "The model writes": "no number" if r.answer == NO_NUMBER else str(r.answer),
            "Which is": "right" if r.right else "wrong",
        }
        for r in result.tables["examples"].itertuples()
    ]
    note = (
        f"Sums that were never shown, and what {result.params.size_list[-1]} writes at the end of "
        f"training, after {result.params.shot_list[-1]} solved examples; drawn by hash, {SHOWN} of "
        "each kind where there are so many"
    )
    note = note if rows else "No examples: this run was recorded before they were collected"
    return Table(pd.DataFrame(rows), note)


def answers_table(result: Result) -> Table:
    """Return a table describing the largest model's answers to sums, right and wrong, by group."""
    import pandas as pd

    rows = [
        {
            "First operands": r.group,
            "Sums": number_text(int(r.n)),
            "Right": str(int(r.right)),
            "Right if shuffled": f"{r.shuffled:.1f}",
            "Different answers": str(int(r.different)),
            "Most common answer": f"{r.common} ({100 * r.common_share:.0f} %)",
            "Median error": number_text(r.median_error),
            "Correlation with the sum": f"{r.correlation:.2f}",
        }
        for r in result.tables["answers"].itertuples()
    ]
    note = (
        f"The answers of {result.params.size_list[-1]} at the end of training, after "
        f"{result.params.shot_list[-1]} solved examples. Right if shuffled: how many would be "
        "right, on average, if the same answers were given to the sums in random order"
    )
    note = note if rows else "Not measured: this run was recorded before the study had this table"
    return Table(pd.DataFrame(rows), note)


def effects_table(result: Result) -> Table:
    """Return the effects of the two coins on every measure, averaged over sizes."""
    import pandas as pd

    names = {"exact": ("answer written, points", 100), "choice": ("choice of four, points", 100),
             "logprob": ("log-probability of the right answer, nats", 1),
             "margin": ("its margin over wrong answers, nats", 1)}  # fmt: skip
    effects, rows = result.tables["effects"], []
    for (measure, shots), group in effects.groupby(["measure", "shots"], sort=False):
        name, factor = names[measure]
        row = {"Solved examples": str(shots), "Measure": name}
        for r in group.itertuples():
            ends = (factor * x for x in (r.value, r.low, r.high))
            row[{"boost": "Made frequent", "placebo": "Placebo"}[r.coin]] = interval(*ends)
        rows.append(row)
    note = (
        "Chosen number minus the other of its pair, at the end of training, mean over "
        f"{result.values['coin_sizes']}, one run of each [95 % over pairs of numbers]"
    )
    return Table(pd.DataFrame(rows).fillna("not measured"), note)


def gaps_table(result: Result) -> Table:
    """Return our counterpart of the paper's Table 4: the final accuracy gap, by size and shots."""
    import pandas as pd

    gaps = result.tables["gaps"]
    gaps = style.rows_where(gaps, step=gaps.step.max())
    rows = []
    for size in result.params.size_list:
        row = {"Size": size}
        for r in style.rows_where(gaps, size=size).itertuples():
            name = {"choice": "choice of four", "exact": "written"}[r.measure]
            row[f"{name}, {r.shots}-shot"] = interval(100 * r.value, 100 * r.low, 100 * r.high)
        rows.append(row)
    note = (
        "Most minus least frequent tenth of the first operands, at the end, one run of each size, "
        "points [95 % over numbers]"
    )
    return Table(pd.DataFrame(rows).fillna("not measured"), note)
