"""The claims of the term-frequency study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pythia_book.stats import (
    Estimate,
    claim_row,
    difference,
    directional_verdict,
    estimate,
    premise_verdict,
)
from pythia_book.studies.term_frequency.definitions import BINS as WORD_BINS
from pythia_book.studies.term_frequency.tables import NumberScores, cell, gap_change, selected

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.term_frequency.params import Params


def claims(
    params: Params,
    scores: NumberScores,
    tables: dict[str, pd.DataFrame],
    steps: list[int],
) -> list[dict[str, Any]]:
    """Claims about the largest model at the end with the most examples, unless stated otherwise."""
    sizes, shots, draws = params.size_list, params.shot_list[-1], params.bootstrap
    small, large, first, last = sizes[0], sizes[-1], steps[0], steps[-1]

    def row(
        claim: str,
        paper: str,
        e: Estimate | None,
        rule: Callable[[float, float, int], str] = directional_verdict,
        factor: float = 100,
    ) -> dict[str, Any]:
        return claim_row(claim, paper, e, rule(e.low, e.high, 1) if e else "", factor=factor)

    def widening(*cells: tuple[str, int]) -> Estimate | None:
        if cells[0] == cells[1]:
            return None
        return gap_change(scores, tables["frequency"], cells, 0, "choice", draws)

    return [
        *(
            row(f"Frequent operands are added better: {test}, most minus least frequent tenth "
                f"({large}, points)", "yes, from 2.8B on; up to tens of points",
                cell(tables["gaps"], size=large, step=last, shots=k, measure=measure))
            for measure, k, test in (("exact", shots, f"written right, {shots}-shot"),
                                     ("choice", 0, "choice of four, zero-shot"))
        ),
        row(f"The gap widens over training (choices, {large}, from {100 * first / last:.0f} % to "
            "the end, points)", "yes", widening((large, first), (large, last))),
        row(f"The gap is wider in larger models (choices, {large} against {small}, points)",
            "yes: smaller ones hardly learn the task", widening((small, last), (large, last))),
        *(
            row(f"{claim} ({measure}, {large}, {shots}-shot, {unit})", paper,
                cell(tables["experiment"], coin=coin, size=large, shots=shots, measure=measure),
                rule, factor)
            for coin, claim, paper, rule in (
                ("boost", "A number that is made more frequent becomes easier",
                 "not tested: a correlation", premise_verdict),
                ("placebo", "The placebo coin shows no effect", "a check of ours",
                 _null_verdict),
            )
            for measure, unit, factor in (("exact", "points", 100), ("logprob", "nats", 1))
        ),
        row(f"Solved examples help ({large}, {shots}-shot minus zero-shot, exact, points)", "yes",
            _examples(scores, large, last, shots, draws)),
        *(
            row(f"Words that are frequent elsewhere are known better: definitions that were "
                f"{reading}, most minus least frequent group ({large}, points)",
                "yes, for questions about facts (TriviaQA)",
                _word_gap(tables["definitions"], large, last, read))
            for read, reading in ((True, "read once"), (False, "not read"))
        ),
    ]  # fmt: skip


def _null_verdict(low: float, high: float, _: int) -> str:
    return "holds" if low <= 0 <= high else "does not hold"


def _examples(
    scores: NumberScores, size: str, step: int, shots: int, draws: int
) -> Estimate | None:
    """Accuracy with solved examples minus zero-shot accuracy."""
    zero, few = (scores.questions(size, step, k, "exact") for k in (0, shots))
    if not shots or zero is None or few is None:
        return None
    return estimate((few - zero)[None], draws, change=True)


def _word_gap(table: pd.DataFrame, size: str, step: int, read: bool) -> Estimate | None:
    """Accuracy on the most frequent group of words minus that on the least frequent one."""
    groups = selected(table, size=size, step=step, read=read)
    groups = groups[groups.group >= WORD_BINS[0]].sort_values("group")
    if len(groups) < 2:
        return None
    return difference(cell(groups[-1:]), cell(groups))
