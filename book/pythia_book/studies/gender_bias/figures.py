"""Figures of the gender-bias study.

- what is retained of an association, and the shift of the prior
- the nouns of one size, arm by arm
- what the scores of published benchmarks respond to
- the paper's figures 1, 2 and 6, with released numbers
- coupling

If released numbers are missing, their panel says how to get them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from difflib import SequenceMatcher
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book import records, style, svg
from pythia_book.stats import Z_95, mean_over
from pythia_book.studies.gender_bias import released_numbers as numbers
from pythia_book.studies.gender_bias.associations import (
    FORK,
    PLANTED_FRAMES,
    REFERENCES,
    Slopes,
    seed_mean,
)
from pythia_book.studies.gender_bias.coupling import KINDS, TESTED
from pythia_book.studies.gender_bias.params import (
    ARMS,
    CONTROL,
    LONG_ARMS,
    LONGER,
    MIRROR,
    PLACEBO,
    SWAP,
)
from pythia_book.style import Drawing, Table
from pythia_book.tasks.associations import NATURAL, UNSEEN
from pythia_book.verdicts import FAILS, HOLDS
from pythia_core.config import REPLACE, SHUFFLE
from pythia_core.errors import count_of
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pythia_book.study import Result

MARKS = {
    "swap_7": "s", "swap_21": "^", "mirror_7": "D", "mirror_21": "v", "shuffle_21": "X",
    "only_21": "P", "complement_21": "o", "absent_21": "h", "placebo_21": "d", "restored": "*",
}  # fmt: skip
"""Maps each arm to its marker."""
BESIDE = {
    "swap_7": (2, 28, "center"), "swap_21": (0, -30, "center"), "mirror_7": (-14, 20, "center"),
    "mirror_21": (12, -28, "left"), "shuffle_21": (14, 0, "left"), "only_21": (20, -36, "center"),
    "complement_21": (30, 14, "left"), "absent_21": (-30, -44, "center"),
    "placebo_21": (-14, 8, "right"), "restored": (22, -3, "left"),
}  # fmt: skip
"""Maps each arm to where `retained` writes its name: the offset (right, up) from its points, in
typographic points, and the horizontal alignment of the text."""
ABSENT = numbers.NO_NUMBERS.replace(": ", ":\n")
BRANCH_PERCENT = 78
"""Panels that show only the intervention begin here, in percent of training."""
RELEASED_ARMS = ("control", "swap_7", "swap_21")
POINTS = {arm: style.mark(style.ARM_STYLES[arm]["marker"], arm == CONTROL) for arm in RELEASED_ARMS}
FRAMES = {UNSEEN: "unseen frames", PLANTED_FRAMES: "planted frames", NATURAL: "natural contexts"}
GROUPS = {
    "invented": "made-up nouns",
    "occupations": "occupations",
    "definitional": "king, queen, ...",
}


def _notes(result: Result, items: str = "") -> tuple[str, ...]:
    """Return notes on measurement, intervals and source of released numbers; unused ones are ""."""
    seeds = result.params.seeds
    count = f"{count_of(seeds, 'seed')} per size"
    meaning = "intervals: 95 %, over seeds" if seeds > 1 else "one seed has no interval"
    released = records.RELEASED_SOURCE.partition(",")[0].replace(" at commit", "")
    ours = "; ".join(filter(None, (items, count)))
    return f"ours: {ours}", meaning, (released and f"released: {released}") * bool(result.released)


def _primary(result: Result) -> str:
    """Return the group of nouns that the study is about."""
    return str(result.tables["associations"].group.iloc[0])


# --- what is retained ------------------------------------------------------------------------


@style.figure
def retained(result: Result) -> Drawing:
    """Draw what each arm retains of the association against its shift of the prior."""
    table = result.tables["retained"]
    table = style.rows_where(table, group=_primary(result))
    curves, sizes = result.tables["curves"], result.params.size_list
    arms = result.params.arms
    notes = _notes(result)[:2]
    ends = table[["value", "low", "high"]].astype(float)
    limits = max(-0.5, min(-0.08, ends.min().min())), min(2.0, max(1.25, ends.max().max()))
    wide = not style.narrow()
    with style.canvas(result, 1, 7.2, *notes, rows=2) as (figure, axes):
        for ax, frames in zip(axes, (UNSEEN, PLANTED_FRAMES), strict=True):
            style.reference(ax, 1)
            style.reference(ax, 0)
            for size in sizes:
                color = style.size_color(size)
                for reference, dashes in zip(REFERENCES, ("-", (0, (3, 2))), strict=True):
                    curve = style.rows_where(curves, size=size, frames=frames, reference=reference)
                    shape = {"linewidth": 0.8, "linestyle": dashes, "zorder": 1}
                    svg.hide(*ax.plot(curve["shift"], curve.retained, color=color, **shape))
                for row in style.rows_where(table, model=size, frames=frames).itertuples():
                    if row.value is None or not math.isfinite(row.value):
                        continue
                    ends = [row.shift_low, row.shift_high]
                    svg.hide(*ax.plot(ends, [row.value] * 2, color=color, linewidth=0.8))
                    look = {"marker": MARKS[row.arm], "markersize": 6, "markeredgewidth": 0.6}
                    look |= {"markeredgecolor": "white", "name": f"{size}, {ARMS[row.arm].label}"}
                    style.interval_point(ax, row.shift, row, color, 1, 0.8, **look)
            ax.set(title=FRAMES[frames], xlabel="shift of the prior, arm minus control (logits)")
            shifts = style.rows_where(table, frames=frames)["shift"]
            ax.set_xlim(min(-1, 1.15 * shifts.min()), max(1, 1.15 * shifts.max()))
            ax.set_ylim(*limits)
            ax.set_ylabel("retained association\n(fraction of the control's)")
        style.size_legend(figure, sizes)
        if wide:
            _name_arms(axes[0], style.rows_where(table, frames=UNSEEN))
        else:
            style.legend(figure, {ARMS[arm].label: style.mark(MARKS[arm]) for arm in arms})
    shown_rows = style.rows_where(table, frames=UNSEEN).dropna(subset=["value"])
    texts = (
        f"{row.model} {ARMS[row.arm].label} {row.value:.2f} at {row.shift:+.1f}"
        for row in shown_rows.itertuples()
        if row.model in (sizes[0], sizes[-1])
    )
    return Drawing(figure, "Retained association against the shift of the prior", texts)


def _name_arms(ax: Axes, table: pd.DataFrame) -> None:
    """Write the name of each arm next to its points."""
    for arm, rows in table.dropna(subset=["value"]).groupby("arm", sort=False):
        right, up, side = BESIDE[arm]
        ax.annotate(
            ARMS[arm].label, (rows["shift"].mean(), rows.value.mean()), (right, up),
            textcoords="offset points", ha=side, va="center", color=style.INK,
        )  # fmt: skip


@style.figure
def nouns(result: Result) -> Drawing:
    """Draw log odds after the nouns against what was read: control, swap and shuffle."""
    table, sizes = result.tables["nouns"], result.params.size_list
    arms = [a for a in (CONTROL, "swap_21", "complement_21", "shuffle_21") if _has(result, a)]
    chosen = list(dict.fromkeys((sizes[0], sizes[-1])))
    labels = {a: ARMS[a].label if a != CONTROL else CONTROL for a in arms}
    colors = dict(zip(arms, (style.MUTED, style.ORANGE, style.BLUE, style.GREEN), strict=False))
    group = _primary(result)
    places = ((-12, "left"), (-20, "left"), (12, "right"))
    with style.canvas(result, len(chosen), 3.6, *_notes(result)[:1], sharey=True) as (figure, axes):
        for ax, size in zip(axes, chosen, strict=True):
            style.reference(ax, 0)
            last = []
            for arm in arms:
                cell = style.rows_where(table, size=size, arm=arm, group=group)
                line = np.polyfit(cell["read"], cell.value, 1)
                ends = np.array([cell["read"].min(), cell["read"].max()])
                (fit,) = ax.plot(ends, np.polyval(line, ends), color=colors[arm], linewidth=1)
                svg.hide(fit)
                (dots,) = ax.plot(cell["read"], cell.value, "o", color=colors[arm], markersize=3.5)
                svg.register(dots, svg.Series(labels[arm], points=[f"{n}" for n in cell.noun]))
                last.append((labels[arm], ends[1], np.polyval(line, ends[1]), colors[arm]))
                if arm == CONTROL:
                    named = cell.sort_values("read").iloc[[0, len(cell) // 2, -1]]
                    for row, (up, side) in zip(named.itertuples(), places, strict=True):
                        ax.annotate(
                            row.noun, (row.read, row.value), color=style.MUTED, ha=side,
                            xytext=(0, up), textcoords="offset points", va="center",
                        )  # fmt: skip
            style.end_labels(ax, last)
            ax.set(title=f"{size} parameters", xlabel="log odds read about the noun")
            ax.margins(y=0.1)
        axes[0].set_ylabel("log P(she) \N{MINUS SIGN} log P(he)\nafter the noun")
    return Drawing(figure, "Log odds of she after each noun, against those read", chosen)


def _has(result: Result, arm: str) -> bool:
    return arm == CONTROL or arm in result.params.arms


@style.figure
def slopes(result: Result) -> Drawing:
    """Draw the association of every arm, next to the control's at the fork and at the end."""
    params, group = result.params, _primary(result)
    found = Slopes(params, result.tables["associations"])
    sizes, arms = params.size_list, params.arms
    labels = ["control where the forks begin", "control at the end"]
    labels += [ARMS[arm].label for arm in arms]
    notes = _notes(result, "made-up nouns")[:2]
    with style.canvas(result, 3, 1.5 + 0.27 * len(labels), *notes, sharey=True) as (figure, axes):
        for ax, (frames, title) in zip(axes, FRAMES.items(), strict=True):
            values = {}
            for size in sizes:
                rows = [found.of(size, CONTROL, frames, group, w) for w in (ARMS[LONGER].window, 0)]
                values[size] = rows + [found.of(size, arm, frames, group) for arm in arms]
            _arm_panel(ax, labels, values)
            ax.set(title=title, xlabel="association (slope)")
        style.size_legend(figure, sizes)
    texts = (
        f"{size} {records.number_text(float(found.of(size, CONTROL).mean()), 2)} in the control"
        for size in sizes
    )
    return Drawing(figure, "Association by arm, size and kind of frame", texts)


def _arm_panel(ax: Axes, labels: list[str], values: dict[str, list[np.ndarray]]) -> None:
    """Draw the mean over seeds, with its interval, for each label (row) and size (color).

    Args:
        values: maps a size to float64[seeds] for each label.
    """
    style.reference(ax, x=0)
    for i, (size, rows) in enumerate(values.items()):
        shift = 0.16 * (i - (len(values) - 1) / 2)
        for y, units in enumerate(rows):
            e, color = mean_over(units), style.size_color(size)
            style.interval_point(ax, y + shift, e, color, 1, flat=True, markersize=4, name=size)
    ax.grid(axis="y", visible=False)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)


@style.figure
def learned(result: Result) -> Drawing:
    """Draw the association of two arms against the control's, seed by seed."""
    params = result.params
    found = Slopes(params, result.tables["associations"])
    names = [name for name, model in params.models.items() if not model.flat]
    arms = [arm for arm in (LONGER, "absent_21") if _has(result, arm)]
    with style.canvas(result, 2, 3.4, *_notes(result)[:1], sharey=True) as (figure, axes):
        largest = max(found.of(name, CONTROL).max() for name in names)
        for ax, arm in zip(axes, arms, strict=False):
            for fraction in (1, 0.5, 0):
                line = ax.plot([0, largest], [0, fraction * largest], color=style.MUTED, lw=0.7)
                svg.hide(*line)
            kept = {"all": largest, "half": largest / 2, "none": 0.0}
            style.end_labels(ax, [(k, largest, y, style.MUTED) for k, y in kept.items()])
            ax.set_xlim(right=1.03 * largest)
            for name in names:
                model = params.models[name]
                color = style.size_color(model.size)
                face = "white" if model.rate_of else color
                shape = {"color": color, "markerfacecolor": face, "markersize": 5}
                (dots,) = ax.plot(found.of(name, CONTROL), found.of(name, arm), "o", **shape)
                rate = f", rate of {model.rate_of}" if model.rate_of else ""
                svg.register(dots, svg.Series(f"{model.size}{rate}", flat=False))
            ax.set(title=ARMS[arm].label, xlabel="association of the control (slope)")
        axes[0].set_ylabel("association of the arm (slope)")
        style.size_legend(figure, params.size_list)
    return Drawing(figure, "Association of single seeds under two arms against their controls'")


# --- scores ----------------------------------------------------------------------------------

SCORE_TITLES = {
    "winobias_feminine": "WinoBias, feminine stereotypes",
    "winobias_masculine": "WinoBias, masculine stereotypes",
    "winobias": "WinoBias, all",
    "crows": "CrowS-Pairs, gender",
    "stereoset": "StereoSet, gender",
}


@style.figure
def scores(result: Result) -> Drawing:
    """Draw by how much each arm changes the scores of published benchmarks."""
    table, sizes = result.tables["scores"], result.params.size_list
    wide = table.pivot_table("value", ["model", "seed"], ["arm", "score"])
    arms = [arm for arm in LONG_ARMS if _has(result, arm)]
    height = 1.8 + 0.3 * len(arms)
    notes = _notes(result)[:2]
    with style.canvas(result, len(SCORE_TITLES), height, *notes, sharey=True) as (figure, axes):
        for ax, (score, title) in zip(axes, SCORE_TITLES.items(), strict=True):
            changes = {arm: 100 * (wide[arm, score] - wide[CONTROL, score]) for arm in arms}
            values = {
                size: [change.loc[size].to_numpy() for change in changes.values()] for size in sizes
            }
            _arm_panel(ax, [ARMS[arm].label for arm in arms], values)
            ax.set_title(title)
        shown = axes if style.narrow() else axes[len(axes) // 2 :][:1]
        for ax in shown:
            ax.set_xlabel("arm minus control (points)")
        style.size_legend(figure, sizes)
    names = {
        title: f"change_{score}_complement_21"
        for score, title in SCORE_TITLES.items()
        if "complement_21" in arms
    }
    texts = (title + " " + records.value_text(result.values[name]) for title, name in names.items())
    text = f"Change of benchmark scores by arm; {ARMS['complement_21'].label}, points"
    return Drawing(figure, text, texts)


# --- the paper's figures ---------------------------------------------------------------------


def _released(result: Result, name: str) -> pd.DataFrame | None:
    """Return a released table plus a column `percent` (of training); None without the table."""
    table = result.released.get(name)
    if table is None or table.empty:
        return None
    return table.assign(percent=100 * table.step / OFFICIAL_STEPS)


def _released_lines(ax: Axes, table: pd.DataFrame) -> list[str]:
    """Draw all released models and arms over training; return the sizes in the table's order."""
    sizes = list(dict.fromkeys(table["size"]))
    for size in sizes:
        for arm in RELEASED_ARMS:
            cell = style.rows_where(table, size=size, arm=arm)
            if not cell.empty:
                style.line(ax, cell, "percent", size, arm, dense=True)
    return sizes


@style.figure
def paper_figures(result: Result) -> Drawing:
    """Draw the paper's figures 1, 2 and 6 from released numbers.

    The released WinoBias scores use a different metric from the paper's figure.
    """
    options = {"ratios": (1.5, 1, 1)}
    with style.canvas(result, 3, 3.4, _notes(result)[2], **options) as (figure, axes):
        left, middle, right = axes
        crows, winobias, lambada = (
            _released(result, name) for name in ("crows", "winobias", "lambada")
        )
        for ax, table in zip(axes, (crows, winobias, lambada), strict=True):
            if table is None:
                style.say(ax, ABSENT)
        if crows is not None:
            sizes = _released_lines(left, crows[crows.step >= 512])
            style.reference(left, 50)
            left.set(xlabel="training completed (%)")
            left.set_ylabel("pairs in which the stereotyping\nsentence is likelier (%)")
            style.size_legend(figure, sizes)
        if winobias is not None:
            mean = _late_means(numbers.leads(winobias, "v1", (numbers.COMPARABLE,)), ["arm"])
            style.size_points(middle, mean, dict.fromkeys(mean["size"]), "arm", POINTS)
            style.reference(middle, 0)
            middle.set(xlabel="model size", ylabel="exact match, pro minus anti (points)")
        if lambada is not None:
            _released_lines(right, lambada[lambada.percent >= BRANCH_PERCENT])
            right.set(xlabel="training completed (%)", ylabel="accuracy (%)", ylim=(0, 80))
        for ax, title in zip(axes, ("CrowS-Pairs, gender", "WinoBias", "LAMBADA"), strict=True):
            ax.set_title(title)
        style.arm_legend(figure)
    return Drawing(figure, "Released models: CrowS-Pairs, WinoBias and LAMBADA by model and arm")


def _late_means(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Average released scores over the steps from LAST_WINDOW on, by size and the columns `by`.

    The result has the columns `by`, `size`, `value`, `variance`, `low`, `high`. Checkpoints share
    their items, so averaging over checkpoints does not narrow the intervals, which are over items.
    """
    late = table[table.step >= numbers.LAST_WINDOW]
    late = late.assign(variance=late.stderr**2)
    mean = late.groupby(["size", *by], sort=False)[["value", "variance"]].mean().reset_index()
    error = Z_95 * mean.variance**0.5
    return mean.assign(low=mean.value - error, high=mean.value + error)


# --- released numbers alone ------------------------------------------------------------------


@style.figure
def released_winobias(result: Result) -> Drawing:
    """Draw what share of released WinoBias answers match exactly, by size, suite and prompt."""
    table = _released(result, "winobias")
    source = _notes(result, "")[-1]
    notes = ("intervals: 95 % over items, 792 sentences per point", source)
    with style.canvas(result, 2, 5.0, *notes, rows=2) as (figure, axes):
        marks = {
            f"{side} {arm}": style.mark("^" if side == "pro" else "v", arm == "control")
            for side in numbers.SENTENCES
            for arm in ("control", "swap_7")
        }
        panels = [(suite, prompt) for suite in ("v1", "v0") for prompt in numbers.PROMPTS]
        texts = []
        for ax, (suite, prompt) in zip(axes, panels, strict=True):
            name = "current suite (v1)" if suite == "v1" else "first suite (v0)"
            ax.set_title(f'{name}, "{prompt}"')
            if table is None:
                style.say(ax, ABSENT)
                continue
            rows = style.rows_where(table, suite=suite, prompt=prompt)
            mean = _late_means(rows[rows.arm != "swap_21"], ["side", "arm"])
            mean["mark"] = mean.side + " " + mean.arm
            sizes = [size for size in _SIZES if size in set(mean["size"])]
            style.size_points(ax, mean, sizes, "mark", marks)
            ax.set_ylim(0, 48)
            cells = mean[mean["size"] == sizes[-1]].set_index("mark").value if sizes else []
            if len(cells) == len(marks):
                pro, anti = (
                    f"{side} {100 * cells[f'{side} control']:.1f} to "
                    f"{100 * cells[f'{side} swap_7']:.1f}"
                    for side in numbers.SENTENCES
                )
                texts.append(f"{suite} {prompt} {sizes[-1]} {pro}, {anti}")
        for ax in axes[::2]:
            ax.set_ylabel("exact matches (%)")
        labels = {"pro": "stereotypical", "anti": "anti-stereotypical"}
        style.legend(
            figure,
            {
                f"{labels[key.split()[0]]}, {'control' if 'control' in key else '7 % swap'}": mark
                for key, mark in marks.items()
            },
        )
        text = "Exact matches of the released WinoBias answers by model, prompt, side and arm"
        return Drawing(figure, text, texts)


_SIZES = ("70m", "410m", "1.4b", "6.9b")


@style.figure
def crows_biases(result: Result) -> Drawing:
    """Draw by how many points the swap changes the released CrowS-Pairs scores for each bias."""
    table, source = _released(result, "crows_biases"), _notes(result, "")[-1]
    notes = ("large points: mean over models, 95 % Student t over models", source)
    with style.canvas(result, 1, 3.2, *notes) as (figure, (ax,)):
        if table is None:
            style.say(ax, ABSENT)
            return Drawing(figure, "No released CrowS-Pairs scores")
        ends, texts = numbers.at_end(table, "swap_7", ("bias",)), []
        sizes = [size for size in _SIZES if size in set(ends["size"])]
        names = [bias for bias in numbers.PAIRS if bias in set(ends.bias)]
        for y, bias in enumerate(reversed(names)):
            cell = ends[ends.bias == bias].set_index("size")
            for size in sizes:
                look = {"color": style.size_color(size), "markersize": 4}
                (dot,) = ax.plot(cell.change[size], y + 0.17, "o", **look)
                svg.register(dot, svg.Series(size, flat=True))
            e = mean_over(cell.change.to_numpy())
            color = style.ORANGE if bias == "gender" else style.MUTED
            style.interval_point(ax, y - 0.17, e, color, 1, flat=True, markersize=5, name="mean")
            texts.insert(0, f"{bias.replace('_', ' ')} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}]")
        labels = [f"{bias.replace('_', ' ')} ({numbers.PAIRS[bias]} pairs)" for bias in names]
        ax.set_yticks(range(len(names)), labels[::-1])
        ax.grid(axis="y", visible=False)
        style.reference(ax, x=0)
        ax.set_xlabel("pairs with a likelier stereotyping sentence: swap minus control (points)")
        style.size_legend(figure, sizes)
        return Drawing(figure, "Change of the released CrowS-Pairs scores by bias, points", texts)


# --- coupling --------------------------------------------------------------------------------


@style.figure
def coupling(result: Result) -> Drawing:
    """Draw, for each score, the correlation of its changes in a fork and in the fork's control."""
    table = result.tables["coupling"]
    lines = list(dict.fromkeys(zip(*(table[c] for c in _LINE), strict=True)))
    notes = (
        "95 % Fisher intervals over steps, widened for autocorrelation",
        "" if (table.source == "released").any() else numbers.NO_NUMBERS,
    )
    height = 1.3 + 0.24 * max(3, len(lines))
    with style.canvas(result, len(TESTED), height, *notes, sharey=True) as (drawn, axes):
        for ax, measure in zip(axes, TESTED, strict=True):
            style.reference(ax, x=0)
            ax.set(title=TITLES[measure], xlim=(-1.02, 1.02), xlabel="correlation with control")
            for y, line in enumerate(lines):
                cell = style.rows_where(table, **dict(zip(_LINE, line, strict=True)))
                for row in style.rows_where(cell, measure=measure).itertuples():
                    color = style.size_color(line[1])
                    value = SimpleNamespace(value=row.r, low=row.low, high=row.high)
                    face = "white" if line[3] == "placebo" else color
                    shape = {"markerfacecolor": face, "markersize": 5, "clip_on": False}
                    style.interval_point(ax, y, value, color, 1, 1.2, flat=True, **shape)
            ax.grid(axis="y", visible=False)
        axes[0].set_yticks(range(len(lines)), [_label(line) for line in lines])
        axes[0].set_ylim(max(1, len(lines)) - 0.4, -0.6)
        if not lines:
            style.say(axes[0], "Too few checkpoints\nat this scale.")
    parts = (
        f"{_label(line)} r = {math.tanh(cell.z.mean()):.2f}"
        for line, cell in table[table.measure.isin(TESTED)].groupby(_LINE, sort=False)
    )
    text = "Correlation of a fork's step-by-step differences with its control's, mean of the scores"
    return Drawing(drawn, text, parts)


TITLES = {"last_words": "last words", "crows": "CrowS-Pairs, gender", "winobias": "WinoBias"}
_LINE = ["source", "model", "seed", "kind", "window"]


def _label(line: tuple[str, str, int, str, int]) -> str:
    """Return the label of a row of the figure; `line` has one value per column of _LINE."""
    source, model, seed, kind, window = line
    if source == "released":
        return f"released {model}, last {window} %"
    return f"{model}{f', seed {seed}' if seed else ''}, {KINDS[kind]}, last {window} %"


# --- tables ----------------------------------------------------------------------------------


def arms_table(result: Result) -> Table:
    """Return a table of the arms: what each changes, and how many tokens."""
    import pandas as pd

    where = {
        "": "all text",
        "planted": "the planted sentences",
        "rest": "all but the planted sentences",
    }
    what = {
        SWAP: "masculine pronouns become feminine",
        MIRROR: "feminine pronouns become masculine",
        SHUFFLE: "genders are permuted; every word stays as frequent",
        REPLACE: "replaced by prose from rows that the run never reads",
        PLACEBO: "four prepositions become rarer ones",
    }
    rows = []
    for name in result.params.arms:
        arm = ARMS[name]
        window = f"last {arm.window} %" + (f", until {arm.until} % are left" if arm.until else "")
        rows.append(
            {
                "arm": arm.label,
                "window": window,
                "where": where[arm.where],
                "what changes": what[arm.transform],
                "tokens": f"{result.values[f'tokens_changed_{name}']:,}",
                "%": records.number_text(result.values[f"share_changed_{name}"], 2),
            }
        )
    caption = (
        "The arms. Tokens changed, and their share of the window: means over the runs of the "
        "largest size."
    )
    return Table(pd.DataFrame(rows), caption)


def examples_table(result: Result) -> Table:
    """Return a table of passages that the arms change, before and after."""
    frame = result.tables["examples"]
    if frame.empty:
        return Table(
            frame, "No examples: passages are shown only for models that are trained here."
        )
    chosen = frame[frame.arm.isin(LONG_ARMS)].groupby(["arm", "planted"], sort=False).head(1)
    chosen = chosen.sort_values("arm", key=lambda c: c.map(LONG_ARMS.index), kind="stable")
    shown_rows = chosen.assign(
        arm=chosen.arm.map(lambda a: ARMS[a].label),
        before=chosen.before.map(_passage),
        after=chosen.after.map(_passage),
    )[["arm", "before", "after"]]
    changes = [_changes(r.before, r.after) for r in shown_rows.itertuples()]
    strong = {"before": [b for b, _ in changes], "after": [a for _, a in changes]}
    caption = "What the arms change: passages from the ledgers of the largest size."
    return Table(shown_rows, caption, strong=strong)


def _changes(before: str, after: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the words in which two texts differ, as positions (start, end) in each text."""
    words = [list(re.finditer(r"\w+|[^\w\s]", text)) for text in (before, after)]
    matcher = SequenceMatcher(None, *([w[0] for w in of] for of in words), autojunk=False)
    found: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for kind, *places in matcher.get_opcodes():
        for of, passages, start, end in zip(words, found, places[::2], places[1::2], strict=True):
            if kind != "equal" and end > start:
                passages.append((of[start].start(), of[end - 1].end()))
    return found


def _passage(text: str) -> str:
    return f"\u2026{style.one_line(text)}\u2026"


def retained_table(result: Result) -> Table:
    """Return a table of what the arms retain: by size for the primary nouns, then by group."""
    import pandas as pd

    found = Slopes(result.params, result.tables["associations"])
    sizes = result.params.size_list
    rows = []
    for arm in result.params.arms:
        row = {"arm": ARMS[arm].label}
        row |= {size: _units_text(found.retained(size, arm)) for size in sizes}
        for group in found.groups[1:]:
            units = [found.retained(size, arm, group=group) for size in sizes]
            known = all(of_size is not None for of_size in units)
            row[GROUPS[group]] = _units_text(np.mean(units, axis=0) if known else None)
        row["prior, logits"] = _units_text(
            np.mean([found.shift(size, arm) for size in sizes], axis=0)
        )
        row["per 1,000 tokens"] = records.value_text(result.values[f"per_1000_{arm}"])
        rows.append(row)
    caption = (
        "Retained association in unseen frames: by size for the made-up nouns, then means over "
        "sizes for the other nouns; and the shift of the prior, mean over sizes, also per 1,000 "
        "changed tokens."
    )
    return Table(pd.DataFrame(rows), caption)


def contrasts_table(result: Result) -> Table:
    """Return a table of each arm's association minus each of three others."""
    import pandas as pd

    found = Slopes(result.params, result.tables["associations"])
    sizes, rows = result.params.size_list, []
    others = {FORK: "control at the fork", CONTROL: "control at the end", "absent_21": "absent"}
    for arm in result.params.arms:
        row = {"arm": ARMS[arm].label}
        for other, title in others.items():
            known = other != arm and (other == FORK or _has(result, other))
            units = [found.difference(size, arm, other) for size in sizes] if known else None
            row[f"minus {title}"] = _units_text(units and np.mean(units, axis=0))
        rows.append(row)
    caption = (
        "Differences of associations (slopes): made-up nouns in unseen frames, means over sizes. "
        "The first column is the change since the fork; the second also counts what the control "
        "went on to learn; the third compares with a window that says nothing about the nouns."
    )
    return Table(pd.DataFrame(rows), caption)


def scores_table(result: Result) -> Table:
    """Return a table of how much each arm changes every score, means over sizes."""
    import pandas as pd

    labels = SCORE_TITLES | {
        "winobias_feminine_margin": "margin, feminine (nats)",
        "last_word": "last words",
        "loss": "held-out loss (nats)",
        "loss_rest": "loss without pronouns (nats)",
    }
    rows = [
        {"arm": ARMS[arm].label}
        | {
            label: records.value_text(result.values[f"change_{score}_{arm}"])
            for score, label in labels.items()
        }
        for arm in result.params.arms
    ]
    caption = (
        "Arm minus control at the end, means over sizes; points or, where stated, nats. The margin "
        "for masculine stereotypes mirrors the one for feminine stereotypes."
    )
    return Table(pd.DataFrame(rows), caption)


def _units_text(units: Any) -> str:
    """Format the mean of values over seeds, with its interval if there are several."""
    return style.DASH if units is None else records.value_text(seed_mean(units))


def summary(result: Result) -> Any:
    """Return a paragraph of Markdown on the run: sizes, seeds and verdicts on the hypotheses."""
    from IPython.display import Markdown

    v = result.values
    seeds = (
        f"{v['seeds']} seeds each; brackets are 95 % intervals over seeds"
        if v["seeds"] > 1
        else "one seed each, so its numbers have no intervals"
    )
    tests = [row["ours"]["verdict"] for row in result.claims if row["kind"] == "hypothesis"]
    words = {HOLDS: "hold", FAILS: "do not hold"}
    counts = ", ".join(
        f"{n} {words.get(verdict, f'are {verdict}')}" for verdict, n in Counter(tests).most_common()
    )
    return Markdown(
        f"**The run on this page** has the sizes {v['sizes']} with {seeds}. Of {len(tests)} "
        f"hypotheses: {counts}."
    )
