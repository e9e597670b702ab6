"""What the paper says about term frequency, held against our counts and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.stats import (
    NOT_TESTABLE,
    Estimate,
    claim_row,
    difference,
    directional_verdict,
    estimate,
    premise_verdict,
)
from pythia_book.studies.term_frequency.definitions import BINS as WORD_BINS
from pythia_book.studies.term_frequency.tables import NumberScores, gap_change

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.term_frequency.params import TermFrequencyParams


def claims_table(
    params: TermFrequencyParams,
    scores: NumberScores,
    tables: dict[str, pd.DataFrame],
    steps: list[int],
) -> list[dict[str, Any]]:
    """Of the largest model at the end with the most examples, unless a claim says otherwise."""
    sizes, shots, draws = params.size_list, params.shot_list[-1], params.bootstrap
    small, large, first, last = sizes[0], sizes[-1], steps[0], steps[-1]
    frequency = tables["frequency"]
    rows: list[dict[str, Any]] = []

    def add(claim: str, paper: str, e: Estimate | None, verdict: str, factor: float = 100) -> None:
        rows.append(claim_row(claim, paper, e, verdict, factor=factor))

    def directed(e: Estimate | None, rule: Any = directional_verdict, direction: int = 1) -> str:
        return NOT_TESTABLE if e is None else rule(e.low, e.high, direction)

    for measure, k, what in (("exact", shots, f"written right, {shots}-shot"),
                             ("choice", 0, "choice of four, zero-shot")):  # fmt: skip
        e = _cell(tables["gaps"], size=large, step=last, shots=k, measure=measure)
        add(f"Frequent operands are added better: {what}, most minus least frequent tenth "
            f"({large}, points)",
            "yes, from 2.8B on; up to tens of points", e, directed(e))  # fmt: skip
    e = gap_change(scores, frequency, ((large, first), (large, last)), 0, "choice", draws)
    add(f"The gap widens over training (choices, {large}, from {_percent(first, last)} % to the "
        "end, points)", "yes", e if first < last else None,
        directed(e if first < last else None))  # fmt: skip
    e = gap_change(scores, frequency, ((small, last), (large, last)), 0, "choice", draws)
    e = e if small != large else None
    add(f"The gap is wider in larger models (choices, {large} against {small}, points)",
        "yes: smaller ones hardly learn the task", e, directed(e))  # fmt: skip
    for coin, claim in (
        ("boost", "A number that is made more frequent becomes easier"),
        ("placebo", "A coin that changes nothing finds nothing"),
    ):
        for measure, unit, factor in (("exact", "points", 100), ("logprob", "nats", 1)):
            e = _cell(tables["experiment"], coin=coin, size=large, shots=shots, measure=measure)
            verdict = directed(e, premise_verdict)
            if coin == "placebo" and e is not None:
                verdict = "holds" if e.low <= 0 <= e.high else "does not hold"
            add(f"{claim} ({measure}, {large}, {shots}-shot, {unit})",
                "not tested: a correlation" if coin == "boost" else "a check of ours",
                e, verdict, factor)  # fmt: skip
    e = None
    if shots:
        zero, more = (scores.questions(large, last, s, "exact") for s in (0, shots))
        if zero is not None and more is not None:
            e = estimate((more - zero)[None], draws, change=True)
    add(f"Solved examples help ({large}, {shots}-shot minus zero-shot, exact, points)",
        "yes", e, directed(e))  # fmt: skip
    for read in (True, False):
        e = _word_gap(tables["definitions"], large, last, read)
        what = "that were read once" if read else "that were not read"
        add(f"Words that are frequent elsewhere are known better: definitions {what}, most minus "
            f"least frequent group ({large}, points)",
            "yes, for questions about facts (TriviaQA)", e, directed(e))  # fmt: skip
    return rows


def _percent(step: int, steps: int) -> str:
    return f"{100 * step / steps:.0f}"


def _cell(table: pd.DataFrame, **where: Any) -> Estimate | None:
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    return None if table.empty else _estimate(table.iloc[0])


def _estimate(row: Any) -> Estimate:
    return Estimate(float(row.value), float(row.low), float(row.high), int(row.get("n", 0)), 1)


def _word_gap(table: pd.DataFrame, size: str, step: int, read: bool) -> Estimate | None:
    """Most minus least frequent group of words."""
    groups = table[(table["size"] == size) & (table.step == step) & (table.read == read)]
    groups = groups[groups.group >= WORD_BINS[0]].sort_values("group")
    if len(groups) < 2:
        return None
    return difference(_estimate(groups.iloc[-1]), _estimate(groups.iloc[0]))
