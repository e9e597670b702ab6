"""What the page on errata shows: the list with its evidence, and what the switches change."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from pythia_book.records import number_text, value_text
from pythia_book.studies.errata.catalogue import ERRATA
from pythia_book.studies.errata.params import LABELS, SEED
from pythia_book.studies.errata.study import MARGIN
from pythia_book.style import (
    GRID,
    INK,
    MUTED,
    Drawing,
    Table,
    claims_frame,
    footer,
    interval,
    panels,
    reference,
    say,
    style,
)
from pythia_core.training.schedule import OFFICIAL_STEPS, lr_floor_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pythia_book.study import StudyResult as Result

BLUE, ORANGE = "#0072b2", "#d55e00"
COLOURS = dict(
    zip(LABELS, (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#8c6d31", INK), strict=True)
)
COMMAND = "python -m pythia_core errata NAME"


class Errata:
    """The list: title, certainty, and the sections of each erratum; every text escaped."""

    def __init__(self, result: Result) -> None:
        self.cards = [
            (e.name, e.title, e.certainty, e.sections(result.released[e.name], effect(result, e)))
            for e in ERRATA
        ]

    def _repr_html_(self) -> str:
        parts = []
        for name, title, certainty, sections in self.cards:
            parts.append(
                f'<h3 id="erratum-{html.escape(name, quote=True)}">{html.escape(title)} '
                f'<span class="sure {certainty}">{certainty}</span></h3>'
            )
            parts += [
                f"<p><strong>{heading}.</strong> {html.escape(text)}</p>"
                for heading, text in sections.items()
            ]
        names = ", ".join(name for name, *_ in self.cards)
        note = html.escape(f"The same in a shell: {COMMAND}. Names: {names}.")
        return "\n".join([*parts, f'<p class="pythia-note"><small>{note}</small></p>'])

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {title} ({sure})" for name, title, sure, _ in self.cards)


def effect(result: Result, erratum: object) -> str:
    """What was measured of an erratum's switch, in words; empty without a measurement."""
    names = [name for name in (erratum.measured, f"{erratum.measured}_read") if name in LABELS]
    parts = []
    for name in names:
        change = result.values[f"{name}_loss_change"]
        if isinstance(change, dict):
            percent = number_text(result.values[f"{name}_loss_percent"])
            parts.append(f"{LABELS[name]}, {value_text(change)} nats a token ({percent} %)")
    if not parts:
        return ""
    other = result.values[f"{SEED}_loss_change"]
    seed = f"; {LABELS[SEED]}, {value_text(other)}" if isinstance(other, dict) else ""
    return f"Held-out loss at {result.values['size']} changes: {'; '.join(parts)}{seed}."


def effects(result: Result) -> Drawing:
    """Change of held-out loss by each switch, at the end and over training."""
    frame = result.tables["effects"]
    loss = frame[frame.measure == "loss"]
    last = loss[loss.step == loss.step.max()]
    shown = [name for name in LABELS if name in set(loss.variant)]
    n = f"{int(loss.n.max())} held-out rows; bars: 95 % intervals" if len(loss) else ""
    with style():
        figure, (final, curves) = panels(2, 3.2, footer(result, n), ratios=(1.35, 1))
        if not shown:
            for ax in (final, curves):
                say(ax, "no checkpoint of a run and its\ncontrol could be measured")
            return Drawing(figure, "Nothing could be measured")
        control = result.values["loss_standard"]
        if not isinstance(control, str):
            bound = control * MARGIN / 100
            final.axvspan(-bound, bound, color=GRID, alpha=0.7, linewidth=0)
        for at, name in enumerate(reversed(shown)):
            row = last[last.variant == name]
            if row.empty:
                final.text(0, at, "not measured", color=MUTED, va="center", fontsize=7)
                continue
            value, low, high = (float(row[key].iloc[0]) for key in ("value", "low", "high"))
            final.plot([low, high], [at, at], color=COLOURS[name], linewidth=1.4)
            final.plot([value], [at], marker="D" if name == SEED else "o", color=COLOURS[name],
                       markersize=5)  # fmt: skip
        final.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        final.set_yticks(range(len(shown)), [LABELS[name] for name in reversed(shown)])
        final.set_ylim(-0.6, len(shown) - 0.4)
        final.grid(axis="y", visible=False)
        final.locator_params(axis="x", nbins=5)
        final.set_xlabel("change of held-out loss at the end, nats a token")
        for name in shown:
            _curve(curves, loss[loss.variant == name].sort_values("percent"), name)
        reference(curves, 0)
        curves.set_xlim(0, 102)
        curves.set_xlabel("% of training")
        curves.set_title("the same over training")
        words = "Change of held-out loss at the end: " + ", ".join(
            f"{LABELS[row.variant]} {row.value:+.4f}" for row in last.itertuples()
        )
        return Drawing(figure, words)


def _curve(ax: Axes, mine: object, name: str) -> None:
    dashes = "--" if name == SEED else "-"
    ax.plot(mine.percent, mine.value, color=COLOURS[name], linewidth=1.2, linestyle=dashes,
            marker="D" if name == SEED else "o", markersize=2.8)  # fmt: skip
    ax.fill_between(mine.percent, mine.low, mine.high, color=COLOURS[name], alpha=0.12, linewidth=0)


def schedule_and_passes(result: Result) -> Drawing:
    """The learning rate of the official run in both forms; how often it reads a token."""
    schedule, passes = result.tables["schedule"], result.tables["passes"]
    floor = lr_floor_step(OFFICIAL_STEPS)
    with style():
        figure, (rate, reads) = panels(2, 2.7, footer(result), ratios=(1.5, 1))
        for form, colour, label in (("neox", BLUE, "as run"), ("paper", ORANGE, "as told")):
            rate.plot(schedule.step / 1000, 100 * schedule[form], color=colour, label=label)
        rate.axvline(floor / 1000, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        rate.text(floor / 1000 - 2, 92, f"floor from\nupdate {floor:,}", ha="right", va="top",
                  color=MUTED, fontsize=7.5)  # fmt: skip
        rate.set(xlabel="thousand updates", ylabel="learning rate, % of the peak",
                 xlim=(0, OFFICIAL_STEPS / 1000), ylim=(0, 104))  # fmt: skip
        rate.legend(loc="lower left")
        kinds = (("joint", BLUE, "as run"), ("separate", ORANGE, "as told"))
        for j, (policy, colour, label) in enumerate(kinds):
            mine = passes[passes.policy == policy]
            at = mine.times + 0.36 * (j - 0.5)
            reads.bar(at, mine.percent, width=0.34, color=colour, label=label)
            for x, value in zip(at, mine.percent, strict=True):
                reads.text(x, value + 1, f"{value:.0f}", ha="center", fontsize=7, color=colour)
        reads.set_xticks(range(3), ["never", "once", "twice"])
        reads.set(ylabel="% of its text's tokens", ylim=(0, 68), xlabel="read")
        reads.set_title("deduplicated Pile")
        rate.set_title("official run")
        reads.grid(axis="x", visible=False)
        reads.legend(loc="upper left")
        words = f"The released runs reach their lowest rate at update {floor:,}; read " + ", ".join(
            f"{row.times} times {row.policy} {row.percent:.1f} %" for row in passes.itertuples()
        )
        return Drawing(figure, words)


def effects_table(result: Result) -> Table:
    """Every switch beside its control at the end of training."""
    import pandas as pd

    rows = []
    for name, label in LABELS.items():
        found = {m: result.values[f"{name}_{m}_change"] for m in ("loss", "last_word", "memorized")}
        if any(isinstance(change, dict) for change in found.values()):
            percent = result.values[f"{name}_loss_percent"]
            rows.append(
                {
                    "Switch": label,
                    "Held-out loss, nats a token": _text(found["loss"]),
                    "in %": percent if isinstance(percent, str) else number_text(percent),
                    "Last words, points": _text(found["last_word"]),
                    "Rows memorized, points": _text(found["memorized"]),
                }
            )
    caption = f"Changes at the end of training, {result.values['size']}, with 95 % intervals"
    return Table(pd.DataFrame(rows), caption)


def _text(change: dict[str, float] | str) -> str:
    missing = "\N{EN DASH}"
    return missing if isinstance(change, str) else interval(*map(change.get, _KEYS))


_KEYS = ("value", "low", "high")


def claims_table(result: Result) -> Table:
    """The claims with this page's rule of verdicts."""
    rule = (
        f"Verdicts by rule: the whole interval lies within {MARGIN:g} % of the control's loss, up "
        "or down, holds; wholly outside, does not hold; across it, not testable here."
    )
    return Table(claims_frame(result.claims), rule)
