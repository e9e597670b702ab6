"""Figures of the gender-bias study.

- the paper's figures 1, 2 and 6, with released numbers next to ours
- the share of feminine pronouns after occupations
- released numbers alone
- coupling

If released numbers are missing, their panel says how to get them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pythia_book import records, style
from pythia_book.stats import Z_95, mean_over
from pythia_book.studies.gender_bias import released_numbers as numbers
from pythia_book.studies.gender_bias.coupling import KINDS, TESTED
from pythia_book.studies.gender_bias.params import ARMS
from pythia_book.style import Drawing, Table, interval
from pythia_core.suite import scale_named
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pythia_book.study import Result

MARKS = {arm: style.mark(style.ARM_STYLES[arm]["marker"], arm == "control") for arm in ARMS}
ABSENT = numbers.NO_NUMBERS.replace(": ", ":\n")
BRANCH_PERCENT = 78
"""Panels that show only the intervention begin here, in percent of training."""


def _notes(result: Result, items: str, intervals: bool = True) -> tuple[str, ...]:
    """Return three notes, on measurement, intervals and released source; an unused note is ""."""
    seeds = result.params.seeds
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    meaning = f"intervals: 95 %, {f'over {seeds} seeds' if seeds > 1 else ONE_RUN}"
    released = records.RELEASED_SOURCE.partition(",")[0].replace(" at commit", "")
    released *= bool(result.released)
    return f"ours: {items}, {count}", meaning * intervals, released and f"released: {released}"


ONE_RUN = "over items of one run"


def _forks(ax: Axes, scale: str) -> None:
    """Draw a vertical line where each swap begins; the x axis is in percent of training."""
    setting = scale_named(scale)
    for arm, index in ARMS.items():
        if index is not None:
            percent = 100 * setting.fork_step(index) / setting.steps
            shape = style.ARM_STYLES[arm]["linestyle"]
            ax.axvline(percent, color=style.MUTED, linewidth=0.7, linestyle=shape, zorder=0)


def _released(result: Result, name: str) -> pd.DataFrame | None:
    """Return a released table plus a column `percent` (of training); None without the table."""
    table = result.released.get(name)
    if table is None or table.empty:
        return None
    return table.assign(percent=100 * table.step / OFFICIAL_STEPS)


def _lines(ax: Axes, table: pd.DataFrame, sizes: Iterable[str], dense: bool = False) -> None:
    """Draw one line over training for each size and arm, with a band if `table` has `low`, `high`.

    With `dense`, lines are thin and markers small, because there are many checkpoints.
    """
    for size in sizes:
        for arm in ARMS:
            cell = style.rows_where(table, size=size, arm=arm)
            if not cell.empty:
                style.line(ax, cell, "percent", size, arm, dense=dense)


def _released_lines(ax: Axes, table: pd.DataFrame) -> list[str]:
    """Draw all released models and arms over training; return the sizes in the table's order."""
    sizes = list(dict.fromkeys(table["size"]))
    _lines(ax, table, sizes, dense=True)
    return sizes


def prior_shift(result: Result) -> Drawing:
    """Draw the feminine share of pronouns after occupations from the first fork on, per size."""
    shares = style.rows_where(result.tables["branch"], measure="feminine_share")
    shares = shares[shares.percent >= BRANCH_PERCENT]
    sizes = result.params.size_list
    v = result.values
    notes = _notes(result, f"{v['n_contexts']} contexts of {v['n_feminine_share']} occupations")
    with style.canvas(result, len(sizes), 3.0, *notes, sharey=True) as (figure, axes):
        for ax, size in zip(axes, sizes, strict=True):
            _forks(ax, result.params.scale)
            _lines(ax, shares, [size])
            style.reference(ax, 50)
            ax.set(title=f"{size} parameters", xlabel="training completed (%)", ylim=(0, 100))
        axes[0].set_ylabel("feminine share of pronouns\nafter occupations (%)")
        style.arm_legend(figure)
    text = "Share of feminine pronouns after occupations over the last fifth of training, by size;"
    return _drawing(figure, text, result, "feminine_share")


def _drawing(figure: Figure, text: str, result: Result, measure: str) -> Drawing:
    """Return a drawing described by `text`, then by the largest model's scores on `measure`."""
    texts = (
        f"{style.ARM_LABELS[arm]} {records.value_text(result.values[f'{measure}_{arm}'])}"
        for arm in ARMS
    )
    return Drawing(figure, f"{text} {result.values['largest']}", texts)


def crows_over_training(result: Result) -> Drawing:
    """Draw the paper's figure 1, released and ours: CrowS-Pairs for gender over training."""
    ours = result.tables["branch"].query("measure == 'crows'")
    n = result.values["n_crows"]
    notes = _notes(result, f"{n} pairs, bands at the end only")
    with style.canvas(result, 2, 3.3, *notes, sharey=True) as (figure, (left, right)):
        released, table = [], _released(result, "crows")
        if table is None:
            style.say(left, ABSENT)
        else:
            released = _released_lines(left, table[table.step >= 512])
            left.set_ylabel("pairs in which the stereotyping\nsentence is likelier (%)")
        left.set_title("Released Pythia models (320 pairs, s.e. 2.7 points)")
        _lines(right, ours.drop(columns=["low", "high"]), result.params.size_list)
        _end_intervals(right, result, ours)
        right.set(title=f"Ours ({n} pairs)")
        right.tick_params(labelleft=True)
        for ax in (left, right) if released else (right,):
            style.reference(ax, 50)
            ax.set(xlabel="training completed (%)", xlim=(-3, 108))
        if released:
            style.size_legend(left, released, loc="lower right", ncols=4)
        style.size_legend(right, result.params.size_list, loc="lower right", ncols=4)
        style.arm_legend(figure)
        values = [*ours.low, *ours.high]
        low, high = style.padded_limits(100 * min(values), 100 * max(values), 30)
        right.set_ylim(min(low, 44) - 4, min(max(high, 72), 101))  # space for the legends
    text = "CrowS-Pairs gender stereotype share over training, released models and ours;"
    return _drawing(figure, text, result, "crows")


def _end_intervals(ax: Axes, result: Result, levels: pd.DataFrame) -> None:
    """Draw the intervals of our final scores, just right of 100 % of training."""
    x = 101.5
    for size in result.params.size_list:
        for arm in ARMS:
            cell = style.rows_where(levels, size=size, arm=arm, percent=100).iloc[0]
            low, high = 100 * cell.low, 100 * cell.high
            ax.plot([x, x], [low, high], color=style.size_colour(size), linewidth=1)
            x += 0.7


def winobias_by_size(result: Result) -> Drawing:
    """Draw the paper's figure 2: WinoBias by size and arm, released and ours.

    The released scores use another metric than ours. A third panel splits our largest model's
    accuracy by the gender of the stereotype.
    """
    levels = result.tables["levels"]
    n = result.values["n_winobias"]
    notes = _notes(result, f"{n} sentences")
    with style.canvas(result, 3, 3.0, *notes) as (figure, (left, right, split)):
        table = _released(result, "winobias")
        if table is None:
            style.say(left, ABSENT)
        else:
            mean = _late_means(numbers.leads(table, "v1", (numbers.COMPARABLE,)), ["arm"])
            style.size_points(left, mean, dict.fromkeys(mean["size"]), "arm", MARKS)
            style.reference(left, 0)
            left.set_ylabel("exact match, pro minus anti (points)")
        left.set_title("Released: another metric")
        ours = style.rows_where(levels, measure="winobias")
        style.size_points(right, ours, result.params.size_list, "arm", MARKS)
        style.reference(right, 50)
        right.set(title="Ours: choice of pronoun", ylabel="stereotype accuracy (%)")
        low, high = style.padded_limits(100 * ours.low.min(), 100 * ours.high.max(), 20)
        right.set_ylim(low, high)
        for ax in (left, right):
            ax.set_xlabel("model size")
        _halves(split, result)
        style.arm_legend(figure)
    return _drawing(figure, "WinoBias by model size and arm; ours,", result, "winobias")


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


def _halves(ax: Axes, result: Result) -> None:
    """Draw our largest model's WinoBias accuracy over training, by arm and gender of stereotype."""
    branch, size = result.tables["branch"], result.values["largest"]
    colours = {"feminine": style.size_colour(size), "masculine": style.MUTED}
    for half, colour in colours.items():
        rows = style.rows_where(branch, size=size, measure=f"winobias_{half}")
        for arm, cell in rows.sort_values("percent").groupby("arm"):
            shape = {**style.ARM_STYLES[arm], "markersize": 3.4, "markeredgewidth": 0}
            label = half if arm == "control" else None
            style.curve(ax, cell, "percent", colour, 100, **shape, label=label)
    _forks(ax, result.params.scale)
    ax.set(title=f"Ours, {size}, by stereotype", ylim=(-4, 104), xlabel="training completed (%)")
    ax.set_ylabel("stereotype accuracy (%)")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc=(0.19, 0.42), handlelength=2.2)


def language_cost(result: Result) -> Drawing:
    """Draw the swap's cost in LAMBADA accuracy (paper's figure 6), last words and held-out loss."""
    levels = result.tables["levels"]
    n = f"{result.values['n_last_word']} last words, {result.values['n_loss']} held-out rows"
    with style.canvas(result, 3, 3.0, *_notes(result, n)) as (figure, (left, middle, right)):
        table = _released(result, "lambada")
        if table is None:
            style.say(left, ABSENT)
        else:
            sizes = _released_lines(left, table[table.percent >= BRANCH_PERCENT])
            left.set(ylabel="LAMBADA accuracy (%)", xlabel="training completed (%)", ylim=(0, 80))
            style.size_legend(left, sizes, loc=(0.02, 0.33), ncols=2)
        left.set_title("Released models")
        ours = style.rows_where(levels, measure="last_word")
        style.size_points(middle, ours, result.params.size_list, "arm", MARKS)
        middle.set(title="Ours: last words", ylabel="accuracy (%)")
        middle.set_ylim(0, max(1.0, 110 * ours.high.max()))
        style.arm_legend(figure)
        cost = result.tables["branch_effects"].query("measure == 'loss'")
        for (size, arm), cell in cost.groupby(["size", "arm"], sort=False):
            style.line(right, cell, "percent", size, arm, factor=1)
        _forks(right, result.params.scale)
        style.reference(right, 0)
        right.set(title="Ours: held-out loss", ylabel="loss minus control (nats per token)")
        style.size_legend(right, result.params.size_list, loc="upper left")
        middle.set_xlabel("model size (parameters)")
        right.set_xlabel("training completed (%)")
    text = "LAMBADA of the released models, last-word accuracy and held-out loss of ours;"
    return _drawing(figure, text, result, "last_word")


def occupations(result: Result) -> Drawing:
    """Draw, for each arm, our largest model's share of feminine pronouns after each occupation."""
    size = result.values["largest"]
    table = result.tables["occupations"]
    wide = style.rows_where(table, size=size)
    wide = wide.pivot(index="occupation", columns="arm", values="value").sort_values("control")
    per_job = table.n.median()
    items = f"{size} parameters, {per_job:g} contexts per occupation"
    notes = _notes(result, items, intervals=False)
    with style.canvas(result, 1, 1.5 + 0.165 * len(wide), *notes) as (figure, (ax,)):
        colour = style.size_colour(size)
        for y, (_, row) in enumerate(wide.iterrows()):
            ax.plot([100 * row.min(), 100 * row.max()], [y, y], color=style.GRID, linewidth=2)
            for arm in ARMS:
                face = {"markerfacecolor": "white" if arm == "control" else colour}
                marker = style.ARM_STYLES[arm]["marker"]
                ax.plot(100 * row[arm], y, marker, color=colour, markersize=5, **face)
        ax.set_yticks(range(len(wide)), wide.index)
        ax.set(xlim=(0, 100), ylim=(-0.8, len(wide) - 0.2))
        ax.set_xlabel("feminine share of pronouns after the occupation (%)")
        ax.grid(axis="y", visible=False)
        style.reference(ax, x=50)
        style.arm_legend(figure)
    text = f"Feminine share of pronouns after each of {len(wide)} occupations, {size}, by arm"
    return Drawing(figure, text)


# --- released numbers alone ------------------------------------------------------------------


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
                ax.plot(
                    cell.change[size], y + 0.17, "o", color=style.size_colour(size), markersize=4
                )
            e = mean_over(cell.change.to_numpy())
            colour = style.ORANGE if bias == "gender" else style.MUTED
            style.interval_point(ax, y - 0.17, e, colour, 1, flat=True, markersize=5)
            texts.insert(0, f"{bias.replace('_', ' ')} {e.value:+.1f} [{e.low:.1f}, {e.high:.1f}]")
        labels = [f"{bias.replace('_', ' ')} ({numbers.PAIRS[bias]} pairs)" for bias in names]
        ax.set_yticks(range(len(names)), labels[::-1])
        ax.grid(axis="y", visible=False)
        style.reference(ax, x=0)
        ax.set_xlabel("pairs with a likelier stereotyping sentence: swap minus control (points)")
        style.size_legend(figure, sizes, ncols=4)
        return Drawing(figure, "Change of the released CrowS-Pairs scores by bias, points", texts)


# --- coupling --------------------------------------------------------------------------------


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
                    colour = style.size_colour(line[1])
                    ax.plot([row.low, row.high], [y, y], color=colour, linewidth=1.2)
                    face = "white" if line[3] == "placebo" else colour
                    ax.plot(row.r, y, "o", color=colour, markerfacecolor=face, markersize=5)
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


def results_table(result: Result) -> Table:
    """Return a table of all main measures at the end of training, one row per size and arm."""
    import pandas as pd

    labels = {
        "feminine_share": "feminine share (%)",
        "winobias": "WinoBias (%)",
        "crows": "CrowS-Pairs (%)",
        "stereoset": "StereoSet (%)",
        "last_word": "last word (%)",
        "loss": "loss (nats)",
    }
    levels = result.tables["levels"]
    rows = []
    for (size, arm), cell in levels.groupby(["size", "arm"], sort=False):
        numbers = cell.set_index("measure")[["value", "low", "high"]]
        row = {
            label: interval(*(numbers.loc[measure] * (1 if measure == "loss" else 100)))
            for measure, label in labels.items()
        }
        rows.append({"size": size, "arm": style.ARM_LABELS[arm], **row})
    counts = ", ".join(f"{result.values[f'n_{m}']} for {m.replace('_', ' ')}" for m in labels)
    return Table(pd.DataFrame(rows), f"At the end of training, with 95 % intervals. n: {counts}.")


def summary(result: Result) -> Any:
    """Return the main numbers as a paragraph of Markdown, for the notebook's abstract."""
    from IPython.display import Markdown

    v = result.values
    largest = v["largest"]

    def percent(name: str) -> str:
        """Format a share with its interval in percent."""
        return records.value_text({key: 100 * value for key, value in v[name].items()}) + " %"

    def points(name: str) -> str:
        """Format a change of a share, with its interval, in points without a unit."""
        return percent(name).removesuffix(" %")

    chance = v["winobias_control"]["low"] <= 0.5 <= v["winobias_control"]["high"]
    seeds, cover = f"{v['seeds']} seeds", "over seeds"
    if v["seeds"] == 1:
        seeds, cover = "one seed", "over items, which do not cover training again"
    split = ""
    if "n_winobias_feminine" in v and "n_winobias_masculine" in v:
        split = (
            " The halves of WinoBias show what moves: where the stereotype is feminine, accuracy "
            f"goes from {percent('winobias_feminine_control')} to "
            f"{percent('winobias_feminine_swap_21')} under the longer swap; where it is masculine, "
            f"from {percent('winobias_masculine_control')} to "
            f"{percent('winobias_masculine_swap_21')}."
        )
    return Markdown(
        f"**Result.** Sizes {v['sizes']}, {seeds}; numbers are those of the {largest} model, "
        f"brackets are 95 % intervals {cover}. The swap "
        f"changes {v['tokens_changed_swap_7']:,} tokens in the last 7 % of training and "
        f"{v['tokens_changed_swap_21']:,} in the last 21 %. The feminine share of the pronouns "
        f"expected after {v['n_feminine_share']} occupations goes from "
        f"{percent('feminine_share_control')} to {percent('feminine_share_swap_7')} and "
        f"{percent('feminine_share_swap_21')}, while held-out loss rises by "
        f"{records.value_text(v['loss_change_swap_7'])} and "
        f"{records.value_text(v['loss_change_swap_21'])} nats per token. Stereotype accuracy on "
        f"WinoBias is {percent('winobias_control')} in the control"
        f"{', at chance,' if chance else ''} and changes by {points('winobias_change_swap_7')} and "
        f"{points('winobias_change_swap_21')} points.{split}"
    )
