"""The errata page: the errata with their evidence, and the effects of changed settings."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from pythia_book import palette, style
from pythia_book.records import value_text
from pythia_book.studies.errata.catalog import ERRATA, READ, STATUSES, Erratum
from pythia_book.studies.errata.claims import MARGIN
from pythia_book.studies.errata.params import LABELS
from pythia_book.studies.errata.study import evidence_of
from pythia_book.style import BLUE, DASH, GREEN, GRID, MUTED, ORANGE, Drawing, Table
from pythia_book.verdicts import NOT_MEASURED
from pythia_core.errors import count_of
from pythia_core.training.schedule import OFFICIAL_STEPS, lr_floor_step

if TYPE_CHECKING:
    from pythia_book.study import Result

COLORS = dict(
    zip(LABELS, (BLUE, ORANGE, GREEN, palette.PINK, palette.SKY, palette.BROWN), strict=True)
)
COMMAND = "python -m pythia_core errata NAME"


class Errata:
    """All errata as HTML for a notebook, each with title, status, sections and links."""

    def __init__(self, result: Result) -> None:
        evidence = evidence_of(result.measured.facts, result.released)
        self.cards = [(e, e.sections(evidence[e.name], effect(result, e))) for e in ERRATA]

    def _repr_html_(self) -> str:
        """Return the errata as HTML."""
        meanings = (f"{_badge(status)} {meaning}" for status, meaning in STATUSES.items())
        parts = [f"<p>How far each erratum was checked: {'; '.join(meanings)}.</p>"]
        for erratum, sections in self.cards:
            parts.append(
                f'<h3 id="erratum-{html.escape(erratum.name, quote=True)}">'
                f"{html.escape(erratum.title)} {_badge(erratum.status)}</h3>"
            )
            for heading, text in sections.items():
                more = f" {_links(erratum)}" if heading == "Source" else ""
                parts.append(f"<p><strong>{heading}.</strong> {html.escape(text)}{more}</p>")
        names = ", ".join(erratum.name for erratum in ERRATA)
        note = style.Note(
            f"Sources read on {READ}. The same in a shell: {COMMAND}. Names: {names}."
        )
        return "\n".join([*parts, note._repr_html_()])

    def __repr__(self) -> str:
        return "\n".join(f"{e.name}: {e.title} ({e.status})" for e in ERRATA)


def _badge(status: str) -> str:
    """Return a status as HTML, with its meaning as a hint."""
    return f'<span class="sure {status}" title="{STATUSES[status]}">{status}</span>'


def _links(erratum: Erratum) -> str:
    """Return the links of an erratum as numbered HTML links."""
    links = (
        f'<a href="{html.escape(url, quote=True)}">[{number}]</a>'
        for number, url in enumerate(erratum.links, 1)
    )
    return " ".join(links)


def effect(result: Result, erratum: Erratum) -> str:
    """Say how the misstated setting changes held-out loss; "" if that was not measured."""
    parts = []
    for name in (erratum.measured, f"{erratum.measured}_read"):
        change = result.values[f"{name}_loss_change"] if name in LABELS else NOT_MEASURED
        if not isinstance(change, str):
            percent = value_text(result.values[f"{name}_loss_percent"])
            parts.append(f"{LABELS[name]}, {value_text(change)} nats per token ({percent} %)")
    if not parts:
        return ""
    return f"Held-out loss at {result.values['size']} changes: {'; '.join(parts)}."


@style.figure
def effects(result: Result) -> Drawing:
    """Draw how each changed setting affects held-out loss, at the end and during training."""
    frame = result.tables["effects"]
    loss = frame[frame.measure == "loss"]
    last = loss[loss.step == loss.step.max()]
    names = [name for name in LABELS if name in set(loss.variant)]
    n_seeds = result.values["n_seeds"]
    n = count_of(n_seeds, "seed") + "; bars: 95 % intervals over seeds" * (n_seeds > 1)
    with style.canvas(result, 2, 3.2, n, ratios=(1.35, 1)) as (figure, (final, curves)):
        if not names:
            for ax in (final, curves):
                style.say(ax, "no checkpoint of a run and its\ncontrol could be measured")
            return Drawing(figure, "Nothing could be measured")
        control = result.values["loss_standard"]
        if not isinstance(control, str):
            bound = control * MARGIN / 100
            final.axvspan(-bound, bound, color=GRID, alpha=0.7, linewidth=0)
        for y, name in zip(reversed(range(len(names))), names, strict=True):
            color = COLORS[name]
            points = style.rows_where(loss, variant=name).sort_values("percent")
            shape = style.THIN | {"marker": "o"}
            style.curve(curves, points, "percent", color, name=LABELS[name], **shape)
            rows = style.rows_where(last, variant=name)
            if rows.empty:
                final.text(0, y, "not measured", color=MUTED, va="center")
            for row in rows.itertuples():
                shape = {"markersize": 5, "name": LABELS[name]}
                style.interval_point(final, y, row, color, 1, flat=True, **shape)
        style.reference(final, x=0)
        final.set_yticks(range(len(names)), [LABELS[name] for name in reversed(names)])
        final.set_ylim(-0.6, len(names) - 0.4)
        final.grid(axis="y", visible=False)
        final.locator_params(axis="x", nbins=3 if style.narrow() else 5)
        final.set_xlabel("change of held-out loss at the end, nats per token")
        style.reference(curves, 0)
        curves.set(xlim=(0, 102), xlabel="% of training", title="the same over training")
        final.set_title("at the end")
        numbers = (f"{LABELS[row.variant]} {row.value:+.4f}" for row in last.itertuples())
        return Drawing(figure, "Change of held-out loss at the end", numbers)


@style.figure
def schedule_and_passes(result: Result) -> Drawing:
    """Draw the learning rate and the passes over tokens, by the code and as usually described."""
    schedule, passes = result.tables["schedule"], result.tables["passes"]
    floor = lr_floor_step(OFFICIAL_STEPS)
    versions = ((BLUE, "by the training code"), (ORANGE, "as usually described"))
    with style.canvas(result, 2, 2.7, ratios=(1.5, 1)) as (figure, (rate, reads)):
        for form, (color, label) in zip(("neox", "paper"), versions, strict=True):
            rate.plot(schedule.step / 1000, 100 * schedule[form], color=color, label=label)
        style.reference(rate, x=floor / 1000)
        rate.set(xlabel="thousand updates", ylabel="learning rate, % of the peak",
                 xlim=(0, OFFICIAL_STEPS / 1000), ylim=(0, 104))  # fmt: skip
        rate.set_title(f"official run, floor from update {floor:,}")
        style.legend(figure, {label: {"color": c, "linewidth": 3} for c, label in versions})
        policies = (("joint", -0.18), ("separate", 0.18))
        for (policy, shift), (color, label) in zip(policies, versions, strict=True):
            bars = style.rows_where(passes, policy=policy)
            positions = bars.times + shift
            reads.bar(positions, bars.percent, width=0.34, color=color, label=label)
        style.category_ticks(reads, ["never", "once", "twice"])
        reads.set(ylabel="% of its text's tokens", ylim=(0, 78), xlabel="read",
                  title="deduplicated Pile")  # fmt: skip
        words = ", ".join(
            f"{row.times} times {row.policy} {row.percent:.1f} %" for row in passes.itertuples()
        )
        text = f"The released runs reach their lowest rate at update {floor:,}; read {words}"
        return Drawing(figure, text)


def effects_table(result: Result) -> Table:
    """Return the effects of each changed setting on final loss, last words and memorized rows."""
    import pandas as pd

    measures = {
        "loss": "Held-out loss, nats per token",
        "last_word": "Last words predicted, percentage points",
        "memorized": "Rows memorized, percentage points",
    }
    rows = []
    for name, label in LABELS.items():
        changes = {title: result.values[f"{name}_{m}_change"] for m, title in measures.items()}
        if any(not isinstance(change, str) for change in changes.values()):
            rows.append(
                {
                    "Switch": label,
                    "in %": _text(result.values[f"{name}_loss_percent"]),
                    **{title: _text(change) for title, change in changes.items()},
                    measures["memorized"]: _shares_text(changes[measures["memorized"]]),
                }
            )
    columns = ["Switch", measures["loss"], "in %", measures["last_word"], measures["memorized"]]
    n_seeds = result.values["n_seeds"]
    seeds = "with 95 % intervals over " * (n_seeds > 1) + count_of(n_seeds, "seed")
    caption = (
        f"Changes at the end of training, {result.values['size']}, {seeds}; "
        "a dash: not measured, or no row is memorized either way"
    )
    return Table(pd.DataFrame(rows, columns=columns), caption)


def _shares_text(change: dict[str, float] | float | str) -> str:
    """Return a change in a share as text; a dash if both shares are 0 with every seed."""
    constant = isinstance(change, dict) and not change["low"] < change["high"]
    return DASH if constant else _text(change)


def _text(change: dict[str, float] | float | str) -> str:
    """Return a change with its interval, if any, as text; a dash if it was not measured."""
    return DASH if isinstance(change, str) else value_text(change)
