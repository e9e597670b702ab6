"""Figures of the memorization study, on our runs and on the released confusion tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book import style, svg
from pythia_book.published.tables import MODELS
from pythia_book.records import number_text
from pythia_book.studies.memorization.order_tests import MIN_EVENTS
from pythia_book.studies.memorization.params import COHORTS, INTERVAL, PERSISTENT_AFTER
from pythia_book.studies.memorization.traces import FOLLOWED
from pythia_book.style import BLUE, GREEN, ORANGE, Drawing, Table
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from pythia_book.study import Result

MEASURES = (("precision", GREEN, "s"), ("recall", ORANGE, "o"))
FEW = "too few memorized rows"


@style.figure
def profiles(result: Result) -> Drawing:
    """Draw the traces of cohorts over training (largest size), and of early cohorts by age."""
    table, ages = result.tables["profiles"], result.tables["ages"]
    sizes = result.params.size_list
    notes = f"bands, bars: 95 % intervals over rows; first panel {sizes[-1]}, dots: before reading"
    with style.canvas(result, 2, 2.9, notes, ratios=(1.15, 1)) as (figure, (left, right)):
        color = style.size_color(sizes[-1])
        largest = style.rows_where(table, size=sizes[-1]).sort_values("step")
        for number, path in largest.groupby("cohort"):
            after = path[path.age >= 0]
            style.curve(left, after, "percent", color, name=f"cohort {number}", **style.THIN)
        before = largest[largest.age < 0]
        dots = {"marker": "o", "markersize": 3, "linestyle": "none", "name": "before reading"}
        style.curve(left, before, "percent", style.MUTED, bars=True, **dots)
        style.reference(left, 0)
        left.set(xlabel="% of training", ylabel="trace, nats per token")
        left.set_title(f"{len(result.params.cohorts)} cohorts")
        style.size_curves(right, ages, "age", sizes, banded=(sizes[0], sizes[-1]), labeled=True)
        style.reference(right, 0)
        right.set_xlabel("updates since reading")
        right.set_title(f"the {FOLLOWED} earliest, by size")
        numbers = (
            f"{row.size} {row.age} updates later {number_text(row.value)}"
            for row in ages.itertuples()
            if row.size in (sizes[0], sizes[-1])
        )
        return Drawing(figure, "Trace of reading a row once, in nats per token", numbers)


FOLLOWED_ON = f"the {len(COHORTS) - PERSISTENT_AFTER} earliest cohorts"
TRACE_NAMES = {
    "first": f"soon after reading, all {len(COHORTS)} cohorts",
    "first_early": f"soon after reading, {FOLLOWED_ON}",
    "persistent": f"a quarter of training later, {FOLLOWED_ON}",
    "retained": f"left by then, %, {FOLLOWED_ON}",
    "residual": "at the end, all rows",
    "trend": "at the end, change per tenth of training",
    "first_half": "the same, only rows read in the first half",
    "second_half": "the same, only rows read in the second half",
    "floor_trend": "the same, only rows read at the minimum rate",
    "placebo": "before reading, rows read at the minimum rate",
    "canary_before": "canaries read once, before reading",
    "canary": "canaries read once, at the end",
    "canary_dose": "canaries, change per doubling of readings",
    "canary_floor": "canaries, change per tenth at the minimum rate",
}
"""Maps each of traces.MEASURES to its name."""
BY_SIZE = {
    "first_early": style.mark("o"), "persistent": style.mark("s"),
    "residual": style.mark("^", True),
}  # fmt: skip
"""Maps each trace that is drawn against size to its marker."""


@style.figure
def trace_sizes(result: Result) -> Drawing:
    """Draw the mean traces against size, and the share of the first trace that is retained."""
    table = style.rows_where(result.tables["traces"], seed=result.params.seed)
    sizes = result.params.size_list
    with style.canvas(result, 2, 2.9, "bars: 95 % intervals over rows") as (figure, (left, right)):
        style.size_points(left, table, sizes, "measure", BY_SIZE, 1, TRACE_NAMES)
        style.reference(left, 0)
        left.set(xlabel="parameters without embeddings", ylabel="trace, nats per token")
        retained = {"retained": style.mark("s")}
        style.size_points(right, table, sizes, "measure", retained, 100)
        style.reference(right, 100)
        right.set(xlabel="parameters without embeddings", ylabel="% of the first trace left")
        right.set_ylim(bottom=min(0, right.get_ylim()[0]))
        style.legend(figure, {TRACE_NAMES[name]: look for name, look in BY_SIZE.items()})
        numbers = (
            f"{row.size} {TRACE_NAMES[row.measure]} {number_text(row.value)}"
            for row in table.itertuples()
            if row.measure in BY_SIZE
        )
        return Drawing(figure, "Traces by size", numbers)


@style.figure
def recency(result: Result) -> Drawing:
    """Draw traces by position: at the end, at the end for the lowest rate, soon after reading."""
    positions, cohorts = result.tables["positions"], result.tables["cohorts"]
    sizes = result.params.size_list
    shown = tuple(dict.fromkeys((sizes[0], result.params.tenth, sizes[-1])))
    notes = f"bands: 95 % intervals over rows, of {sizes[-1]}"
    with style.canvas(result, 3, 2.9, notes) as (figure, axes):
        panels = (
            ("at the end", style.rows_where(positions, scope="training")),
            ("at the end, minimum rate", style.rows_where(positions, scope="floor")),
            ("soon after reading", cohorts),
        )
        for ax, (title, table) in zip(axes, panels, strict=True):
            style.size_curves(ax, table, "percent", shown, banded=sizes[-1:], labeled=ax is axes[2])
            style.reference(ax, 0)
            ax.set_title(title)
            ax.set_xlabel("read at % of training")
        axes[0].set_ylabel("trace, nats per token")
        numbers = (
            f"read at {row.percent:.0f} % {number_text(row.value)}"
            for row in positions[positions["size"] == sizes[-1]].itertuples()
        )
        return Drawing(figure, f"Trace at the end of training, {sizes[-1]}", numbers)


@style.figure
def canaries(result: Result) -> Drawing:
    """Draw the trace of canaries by their age, if read once, and by how often they were read."""
    table, sizes = result.tables["canaries"], result.params.size_list
    notes = f"bands: 95 % intervals over canaries, of {sizes[-1]}"
    with style.canvas(result, 2, 2.9, notes) as (figure, axes):
        titles = {"age": "read once, by updates since", "dose": "at the end, by times read"}
        for ax, (kind, title) in zip(axes, titles.items(), strict=True):
            ax.set_title(title)
            points = style.rows_where(table, kind=kind)
            names = [*dict.fromkeys(points.group)]
            points = points.assign(x=points.groupby("size").cumcount()).dropna(subset=["value"])
            if points.empty:
                style.say(ax, "too few canaries")
                continue
            style.size_curves(ax, points, "x", sizes, banded=sizes[-1:], labeled=ax is axes[1])
            style.reference(ax, 0)
            style.category_ticks(ax, names)
        axes[0].set_ylabel("trace, nats per token")
        numbers = (
            f"{row.kind} {row.group}: {number_text(row.value)}"
            for row in table[table["size"] == sizes[-1]].dropna(subset=["value"]).itertuples()
        )
        return Drawing(figure, f"Trace of canaries, {sizes[-1]}", numbers)


@style.figure
def shares(result: Result) -> Drawing:
    """Draw the share of memorized rows: at the end by size and training text, and over training."""
    table, sizes = result.tables["shares"], list(result.params.size_list)
    last = table[table.percent == 100]
    note = style.seed_note(result, "memorized")
    with style.canvas(result, 2, 2.9, "bars: 95 % intervals", note) as (figure, (left, right)):
        style.twin_shares(left, last, result.params.size_list)
        standard = style.rows_where(table, arm="standard")
        style.seed_band(right, result, standard, "percent", "memorized", 100)
        style.size_curves(right, standard, "percent", sizes, 100, banded=(), labeled=True)
        right.set_xlabel("% of training")
        right.set_ylabel("% of the rows read so far")
        right.set_xlim(0, 100)
        numbers = (f"{row.size} {row.arm} {100 * row.value:.2f} %" for row in last.itertuples())
        return Drawing(figure, "Share of memorized rows at the end", numbers)


@style.figure
def exposures(result: Result) -> Drawing:
    """Draw the share of rows memorized, by how often the continuation was read."""
    table = style.rows_where(result.tables["exposures"], arm="standard")
    names, sizes = list(dict.fromkeys(table.times)), result.params.size_list
    note = f"standard text; band: 95 % interval of {sizes[-1]}, over texts"
    with style.canvas(result, 1, 2.7, note) as (figure, (ax,)):
        points = table[table.n > 0]
        points = points.assign(x=[names.index(name) for name in points.times])
        style.size_curves(
            ax, points, "x", sizes, 100, banded=sizes[-1:], markersize=3, labeled=True
        )
        counts = table.groupby("times", sort=False).n.first()
        labels = [f"{name}\n({number_text(int(counts[name]))})" for name in names]
        ax.set_xticks(range(len(names)), labels)
        ax.set_xlabel("times the continuation of a row was read in the run (rows)")
        ax.set_ylabel("% of them memorized")
        numbers = (
            f"{row.size} {row.times} times {100 * row.value:.1f} %"
            for row in points[points["size"] == sizes[-1]].itertuples()
        )
        return Drawing(figure, "Share of rows memorized by how often they were read", numbers)


@style.figure
def order(result: Result) -> Drawing:
    """Draw the paper's Q-Q plot with a 95 % band, and the share of rows memorized over training.

    The plot for rows whose continuation was read only once is drawn if enough are memorized.
    """
    qq, rates = result.tables["qq"], result.tables["rates"]
    n = result.params.window
    notes = f"{result.params.size_list[-1]}, standard text; bands: 95 %"
    plots = {
        subset: points.sort_values(["theoretical", "observed"])
        for subset in ("all rows", "read once")
        if len(points := style.rows_where(qq, arm="standard", subset=subset))
    }
    with style.canvas(result, len(plots) + 1, 2.9, notes) as (figure, axes):
        for ax, (subset, points) in zip(axes, plots.items(), strict=False):
            ax.set_title(subset + (" (holds by design)" if subset == "all rows" else ""))
            band = points.groupby("theoretical").agg(low=("low", "min"), high=("high", "max"))
            ax.fill_between(
                band.index, band.low, band.high, color=style.MUTED, alpha=0.18, linewidth=0
            )
            top = float(max(points.theoretical.max(), points.observed.max()))
            svg.hide(*ax.plot([0, top], [0, top], color=style.MUTED, linewidth=0.8))
            ax.scatter(points.theoretical, points.observed, s=8 + 3 * points.windows, color=BLUE,
                       alpha=0.7, linewidth=0)  # fmt: skip
            ax.set_xlabel("Poisson quantile")
            ax.set_ylabel(f"memorized in {n} rows")
        over = axes[-1]
        over.set_title("over training")
        ends = []
        for subset, color in (("all rows", BLUE), ("read once", ORANGE)):
            points = style.rows_where(rates, arm="standard", subset=subset)
            if points.value.notna().any():
                shape = {"marker": "o", "markersize": 2.5, "name": subset}
                style.curve(over, points, "percent", color, 100, **shape)
                last = points.dropna(subset=["value"]).iloc[-1]
                ends.append((subset, last.percent, 100 * last.value, color))
        over.set_xlabel("position in training, %")
        over.set_ylabel("% memorized")
        over.set_ylim(bottom=0)
        style.end_labels(over, ends)
        return Drawing(figure, f"Counts of memorized rows per {n} rows against Poisson quantiles")


@style.figure
def prediction(result: Result) -> Drawing:
    """Draw how well earlier checkpoints and smaller models predict which texts are memorized."""
    table = result.tables["prediction"]
    note = "bars: 95 % intervals over planted texts"
    with style.canvas(result, 2, 2.8, note, sharey=True) as (figure, axes):
        steps = style.rows_where(table, experiment="earlier checkpoint")
        sizes = style.rows_where(table, experiment="smaller model")
        last = result.params.steps("standard")[-1]
        _precision_recall(axes[0], 100 * steps.step / last, steps)
        axes[0].set_title("earlier checkpoints")
        axes[0].set_xlabel("% of training")
        _precision_recall(axes[1], np.arange(len(sizes)), sizes)
        style.category_ticks(axes[1], sizes["size"], rotation=60)
        axes[1].set_title("smaller models")
        axes[0].set_ylabel("%")
        axes[0].set_ylim(-4, 104)
        shapes = {name: {"color": c, "marker": mark} for name, c, mark in MEASURES}
        style.legend(figure, shapes)
        numbers = (
            f"{row.size} step {row.step} precision {100 * row.precision:.0f} % recall "
            f"{100 * row.recall:.0f} %"
            for row in table.itertuples()
        )
        return Drawing(figure, "Predicting the memorized texts", numbers)


def _precision_recall(ax: Axes, x: ArrayLike, rows: pd.DataFrame) -> None:
    """Draw the precision and recall of each row of the table `prediction`, at the x values `x`."""
    if not len(rows) or not (rows.tp + rows.fn).any():
        style.say(ax, FEW)
        return
    for name, color, mark in MEASURES:
        ends = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
        points = rows.assign(x=x, **{key: rows[c] for key, c in ends.items()})
        shape = {"marker": mark, "markersize": 3.5, "name": name}
        style.curve(ax, points, "x", color, 100, bars=True, **shape)


def _both_measures(ax: Axes, x: ArrayLike, rows: pd.DataFrame, model: str = "") -> None:
    """Draw the precision and recall of each row of the table `released`, at the x values `x`.

    Args:
        model: the size whose color the curves have; empty: colors of the measures.
    """
    for name, own, mark in MEASURES:
        label, color = (f"{model}, {name}", style.size_color(model)) if model else (name, own)
        shape = {"marker": mark, "markersize": 3, "linewidth": 1, "label": label}
        ax.plot(x, 100 * rows[name], color=color, **shape)


@style.figure
def released(result: Result) -> Drawing:
    """Draw how much released models memorize, and how well their memorization is predicted."""
    table = result.tables["released"]
    note = "of the first 23,552,000 sequences; one run per size, so there is no interval"
    with style.canvas(result, 4, 3.2, note, ratios=(1, 1, 1, 1.1)) as (figure, axes):
        early = style.rows_where(table, experiment="earlier checkpoint")
        small = style.rows_where(table, experiment="smaller model", step=OFFICIAL_STEPS)
        names = ("memorized", "earlier checkpoints", "smaller models", "recall, equal compute")
        for ax, title in zip(axes, names, strict=True):
            ax.set_title(title)
            if table.empty:
                style.say(ax, "no released\nnumbers")
        if table.empty:
            return Drawing(figure, "No released numbers")
        ticks = np.arange(len(small))
        axes[0].scatter(ticks, small.share, color=[style.size_color(m) for m in small.model])
        axes[0].set_ylabel("% of sequences")
        axes[0].set_ylim(bottom=0)
        style.category_ticks(axes[0], small.model, rotation=90)
        for model in MODELS:
            rows = style.rows_where(early, model=model)
            _both_measures(axes[1], rows.percent, rows, model)
        axes[1].set_xlabel("% of training")
        _both_measures(axes[2], ticks, small)
        style.category_ticks(axes[2], small.model, rotation=90)
        partial, ends = style.rows_where(early, model=MODELS[-1]), []
        for rows, color, label in ((partial, BLUE, "12B itself"), (small, ORANGE, "smaller")):
            rows = rows.dropna(subset=["recall"])
            axes[3].plot(
                100 * rows.compute,
                100 * rows.recall,
                color=color,
                marker="o",
                markersize=3.5,
                label=label,
            )
            last = rows.sort_values("compute").iloc[-1]
            ends.append((label, 100 * last.compute, 100 * last.recall, color))
        axes[3].set_xscale("log")
        axes[3].set_xlabel("compute, % of all of 12B's")
        style.end_labels(axes[3], ends)
        for ax in axes[1:]:
            ax.set_ylim(0, 104)
        for ax in axes[1:]:
            ax.set_ylabel("%")
        shapes = {name: {"color": c, "marker": mark} for name, c, mark in MEASURES}
        style.legend(figure, shapes)
        numbers = (
            f"{row.model} {row.share:.2f} % memorized, precision {100 * row.precision:.0f} "
            f"% recall {100 * row.recall:.0f} %"
            for row in small.itertuples()
        )
        return Drawing(figure, "Released models at the end of training", numbers)


def examples_table(result: Result) -> Table:
    """Return rows with what the largest model writes after their beginnings."""
    import pandas as pd

    rows, wrong = [], []
    for example in result.measured.facts.get("examples", ()):
        prompt, truth, written = (_passage(example[k]) for k in ("prompt", "truth", "written"))
        pairs = enumerate(zip(truth, written, strict=False))
        error = next((i for i, (right, ours) in pairs if right != ours), len(truth))
        wrong.append([(error, len(written))] if truth != written else [])
        rows.append({
            "Row (times read; tokens recited)":
                f"{example['kind']} ({number_text(example['times'])}; {example['recited']})",
            "Prompt": prompt, "How it goes on": truth, "What the model writes": written,
        })  # fmt: skip
    note = (
        f"What {result.params.size_list[-1]} writes at the end of training after the first "
        f"{result.params.context} tokens of a row; bold: from its first error on"
    )
    note = note if rows else "No examples: this run was recorded before they were collected"
    return Table(pd.DataFrame(rows), note, strong={"What the model writes": wrong} if rows else {})


def _passage(text: str) -> str:
    """Return a piece of a text for a table; characters that do not print are replaced."""
    shown = "".join(c if c.isprintable() else "\ufffd" for c in style.one_line(text))
    return f"\u2026{shown}\u2026"


def recited_table(result: Result) -> Table:
    """Return how far the largest model recites rows, by how often they were read."""
    import pandas as pd

    rows = [
        {
            "Times read": "never" if r.times == "0" else r.times,
            "Rows": number_text(int(r.n)),
            "Tokens recited [95 %]": style.interval(r.value, r.low, r.high),
            "Recited in full": number_text(int(r.memorized)),
            "Furthest of the others, tokens": str(int(r.furthest)),
        }
        for r in result.tables["recited"].itertuples()
    ]
    note = (
        f"How many of the next {result.params.continuation} tokens {result.params.size_list[-1]} "
        "recites before its first error (mean over rows). Rows read once or never: only natural "
        "text that hardly any other row shares"
    )
    note = note if rows else "Not measured: this run was recorded before the study had this table"
    return Table(pd.DataFrame(rows), note)


def tests_table(result: Result) -> Table:
    """Return all tests of order, with effect size, p, and p after Holm's correction."""
    import pandas as pd

    rows = []
    for r in result.tables["tests"].itertuples():
        tested = r.status == "tested"
        effect = tested and r.value == r.value  # some tests have no effect size
        rows.append({
            "Text": r.arm, "Rows read once": number_text(int(r.rows)),
            "Memorized": number_text(int(r.events)),
            "Test": (f"{r.test}, {r.window} rows" if r.window else r.test) if tested else "none",
            "Effect [95 %]": style.interval(r.value, r.low, r.high) if effect else "",
            "p": f"{r.p:.3f}" if tested else "",
            "p (Holm)": f"{r.holm:.3f}" if tested else "",
        })  # fmt: skip
    note = (
        f"Does it matter when {result.params.size_list[-1]} reads a row? Tests on the rows read "
        f"once, if at least {MIN_EVENTS} of them are memorized"
    )
    columns = ["Text", "Rows read once", "Memorized", "Test"]
    if (result.tables["tests"].status == "tested").any():
        columns += ["Effect [95 %]", "p", "p (Holm)"]
        note += ". Trend: % change of the rate per tenth of training; dispersion: 1 is binomial"
    return Table(pd.DataFrame(rows, columns=columns), note)


def traces_table(result: Result) -> Table:
    """Return the estimates of traces for the smallest and the largest size, and over seeds."""
    import pandas as pd

    params, values = result.params, result.values
    traces = style.rows_where(result.tables["traces"], seed=params.seed)
    columns = {size: style.rows_where(traces, size=size) for size in params.size_list[-1:]}
    columns |= {params.size_list[0]: style.rows_where(traces, size=params.size_list[0])}
    if values["seeds"] > 1:
        columns |= {f"{values['seeded']}, {values['seeds']} seeds": result.tables["seeds"]}
    rows = []
    for measure, name in TRACE_NAMES.items():
        row: dict[str, str] = {"Trace": name}
        for column, table in columns.items():
            line = style.rows_where(table, measure=measure)
            factor = 100 if measure == "retained" else 1
            row[column] = style.DASH
            if len(line) and line.value.notna().all():
                row[column] = style.interval(*(factor * float(line[c].iloc[0]) for c in INTERVAL))
        rows.append(row)
    note = "In nats per token [95 %], over rows or canaries of one run"
    note += "; last column: over seeds" if values["seeds"] > 1 else ""
    return Table(pd.DataFrame(rows, columns=["Trace", *columns]), note)
