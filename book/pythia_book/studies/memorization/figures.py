"""Figures of the memorization study: shares, repetition, order, power, prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book import style
from pythia_book.published.figures import MODELS
from pythia_book.records import number_text
from pythia_book.style import BLUE, GREEN, ORANGE, Drawing, Table
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from pythia_book.study import Result

MEASURES = (("precision", GREEN, "s"), ("recall", ORANGE, "o"))
FEW = "too few memorized rows"


def shares(result: Result) -> Drawing:
    """Share of rows memorized, by size on both texts and over training on the standard text."""
    table, sizes = result.tables["shares"], list(result.params.size_list)
    last = table[table.percent == 100]
    with style.canvas(result, 2, 2.9, "bars: 95 % intervals") as (figure, (left, right)):
        style.twin_shares(left, last, result.params.size_list)
        standard = style.rows_where(table, arm="standard")
        style.size_curves(right, standard, "percent", sizes, 100, banded=())
        right.set_xlabel("% of training")
        right.set_ylabel("% of the rows read so far")
        right.set_xlim(0, 103)
        style.size_legend(right, sizes, loc="upper left", ncols=2)
        numbers = (f"{row.size} {row.arm} {100 * row.value:.2f} %" for row in last.itertuples())
        return Drawing(figure, "Share of memorized rows at the end", numbers)


def exposures(result: Result) -> Drawing:
    """Share of rows memorized, by how often their first tokens were read."""
    table = style.rows_where(result.tables["exposures"], arm="standard")
    names = list(dict.fromkeys(table.exposures))
    with style.canvas(result, 1, 2.7, "standard text; bands: 95 % intervals") as (figure, (ax,)):
        points = table[table.n > 0]
        points = points.assign(x=[names.index(name) for name in points.exposures])
        style.size_curves(ax, points, "x", result.params.size_list, 100, markersize=3)
        counts = table.groupby("exposures", sort=False).n.first()
        labels = [f"{name}\n({number_text(int(counts[name]))})" for name in names]
        ax.set_xticks(range(len(names)), labels)
        ax.set_xlabel("times the first tokens of a row were read in the run (rows)")
        ax.set_ylabel("% of them memorized")
        style.size_legend(ax, result.params.size_list, loc="upper left", ncols=2)
        return Drawing(figure, "Share of memorized rows by how often their tokens were read")


def order(result: Result) -> Drawing:
    """The paper's Q-Q plot with a 95 % band, and the rate over training."""
    qq, rates = result.tables["qq"], result.tables["rates"]
    n = result.params.window
    notes = f"{result.params.size_list[-1]}, standard text; bands: 95 %"
    with style.canvas(result, 3, 2.9, notes) as (figure, axes):
        for ax, subset in zip(axes[:2], ("all rows", "read once"), strict=True):
            ax.set_title(subset)
            points = style.rows_where(qq, arm="standard", subset=subset)
            points = points.sort_values(["theoretical", "observed"])
            if points.empty:
                style.say(ax, FEW)
                continue
            band = points.groupby("theoretical").agg(low=("low", "min"), high=("high", "max"))
            ax.fill_between(
                band.index, band.low, band.high, color=style.MUTED, alpha=0.18, linewidth=0
            )
            top = float(max(points.theoretical.max(), points.observed.max()))
            ax.plot([0, top], [0, top], color=style.MUTED, linewidth=0.8)
            ax.scatter(points.theoretical, points.observed, s=8 + 3 * points.windows, color=BLUE,
                       alpha=0.7, linewidth=0)  # fmt: skip
            ax.set_xlabel("Poisson quantile")
        axes[0].set_ylabel(f"memorized in {n} rows")
        axes[2].set_title("over training")
        for subset, colour in (("all rows", BLUE), ("read once", ORANGE)):
            points = style.rows_where(rates, arm="standard", subset=subset)
            if points.value.notna().any():
                shape = {"marker": "o", "markersize": 2.5, "label": subset}
                style.curve(axes[2], points, "percent", colour, 100, **shape)
        axes[2].set_xlabel("place in training, %")
        axes[2].set_ylabel("% memorized")
        axes[2].set_ylim(bottom=0)
        if axes[2].get_legend_handles_labels()[0]:
            axes[2].legend(loc="best")
        return Drawing(figure, f"Counts of memorized rows per {n} rows against Poisson quantiles")


def power(result: Result) -> Drawing:
    """The power of each test against each alternative."""
    table = result.tables["power"]
    note = "numbers: % of simulated orders that the test rejects at 5 %"
    with style.canvas(result, 1, 3.0, note) as (figure, (ax,)):
        if table.empty:
            style.say(ax, f"{FEW}:\nno test could be made")
            return Drawing(figure, FEW)
        window = np.where(table.window > 0, ",\n" + table.window.astype(str) + " rows", "")
        test = table.test + window
        wide = table.assign(name=test).pivot_table(
            index="alternative", columns="name", values="value", sort=False
        )
        ax.imshow(wide.to_numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, j in np.ndindex(wide.shape):
            value = wide.iat[i, j]
            ink = "white" if value > 0.55 else "#222222"
            ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=ink, fontsize=8)
        ax.set_xticks(range(len(wide.columns)), wide.columns)
        ax.set_yticks(range(len(wide.index)), wide.index)
        ax.grid(False)
        ax.xaxis.tick_top()
        return Drawing(figure, "Power of every test against planted effects of order")


def prediction(result: Result) -> Drawing:
    """Precision and recall of predicting the rows memorized at the end, ours and released."""
    table, released = result.tables["prediction"], result.released
    with style.canvas(result, 4, 2.8, "bars: 95 % intervals", sharey=True) as (figure, axes):
        steps = style.rows_where(table, experiment="earlier checkpoint")
        sizes = style.rows_where(table, experiment="smaller model")
        last = result.params.steps("standard")[-1]
        _precision_recall(axes[0], 100 * steps.step / last, steps)
        axes[0].set_title("earlier checkpoints")
        axes[0].set_xlabel("% of training")
        _precision_recall(axes[1], np.arange(len(sizes)), sizes)
        axes[1].set_xticks(range(len(sizes)), sizes["size"], rotation=60, fontsize=7)
        axes[1].set_title("smaller models")
        for ax, experiment in ((axes[2], "early_checkpoint_predicts_last"),
                         (axes[3], "small_model_predicts_12b")):  # fmt: skip
            ax.set_title("released, 12B")
            rows = style.rows_where(released, experiment=experiment) if len(released) else released
            if rows.empty:
                style.say(ax, "no released\nnumbers")
                continue
            if experiment.startswith("early"):
                rows = rows[rows.model == "12b"].sort_values("step")
                x = 100 * rows.step / OFFICIAL_STEPS
                ax.set_xlabel("% of training")
            else:
                rows = rows[rows.step == OFFICIAL_STEPS].set_index("model")
                rows = rows.reindex([model for model in MODELS if model in rows.index])
                x = np.arange(len(rows))
                ax.set_xticks(x, rows.index, rotation=60, fontsize=7)
            _curves(ax, x, rows)
        axes[0].set_ylabel("%")
        axes[0].set_ylim(-4, 104)
        shapes = {name: {"color": c, "marker": mark} for name, c, mark in MEASURES}
        style.legend(figure, shapes)
        return Drawing(figure, "Precision and recall of predicting the memorized rows")


def _precision_recall(ax: Axes, x: ArrayLike, rows: pd.DataFrame) -> None:
    if not len(rows) or not (rows.tp + rows.fn).any():
        style.say(ax, FEW)
        return
    _curves(ax, x, rows)
    style.reference(ax, 100)


def _curves(ax: Axes, x: ArrayLike, rows: pd.DataFrame) -> None:
    """Precision and recall, with bars where `rows` has intervals."""
    for name, colour, mark in MEASURES:
        ends = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
        points = rows.assign(x=x, **{key: rows[c] for key, c in ends.items() if c in rows})
        style.curve(ax, points, "x", colour, 100, bars=True, marker=mark, markersize=3.5)


def tests_table(result: Result) -> Table:
    """Every test of order: effect size, p, and p after Holm's adjustment."""
    import pandas as pd

    rows = []
    for r in result.tables["tests"].itertuples():
        tested = r.status == "tested"
        effect = tested and r.value == r.value  # some tests have no effect size
        rows.append({
            "Text": r.arm, "Rows": f"{r.subset} ({number_text(int(r.rows))})",
            "Memorized": number_text(int(r.events)),
            "Test": f"{r.test}, {r.window} rows" if r.window else r.test,
            "Effect [95 %]": style.interval(r.value, r.low, r.high) if effect else "",
            "p": f"{r.p:.3f}" if tested else r.status,
            "p (Holm)": f"{r.holm:.3f}" if tested else "",
        })  # fmt: skip
    note = "Trend: % change of the rate per tenth of training; dispersion: 1 is binomial"
    columns = ["Text", "Rows", "Memorized", "Test", "Effect [95 %]", "p", "p (Holm)"]
    return Table(pd.DataFrame(rows, columns=columns), note)


def levels_table(result: Result) -> Table:
    """How often our tests and the textbook tests reject a true null."""
    import pandas as pd

    table = result.tables["levels"]
    rows = [
        {"Rate of events": f"{100 * r.rate:g} %", "Kind": r.kind, "Test": r.test,
         "Rejects a true null, % [95 %]": style.interval(100 * r.value, 100 * r.low, 100 * r.high)}
        for r in table.itertuples()
        if r.kind == "textbook" or r.test in ("trend", "positions", "gaps")
    ]  # fmt: skip
    columns = ["Rate of events", "Kind", "Test", "Rejects a true null, % [95 %]"]
    return Table(pd.DataFrame(rows, columns=columns), "At a nominal 5 %, rows and windows as here")
