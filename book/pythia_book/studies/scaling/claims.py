"""The scaling study's claims about our own models; those about released ones are elsewhere.

Differences between models are paired over items. A task on which the largest model does not beat
guessing cannot show that ability rises with size: "not testable here".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import (
    NOT_TESTABLE,
    Estimate,
    claim_row,
    directional_verdict,
    estimate,
    premise_verdict,
)
from pythia_book.tasks.benchmarks import TASKS

if TYPE_CHECKING:
    import pandas as pd

CLOSE = 2.0
"""Percent of the loss within which a prediction counts as one."""
TO_LOSE = 0.02
"""Accuracy that a model must reach before one can say that it keeps or loses it."""
Finals = dict[tuple[str, str, str], np.ndarray]
"""(size, arm, task_shots) -> right or wrong, bool[items], at the end of training."""


def claims_table(
    params: Any, finals: Finals, tables: dict[str, pd.DataFrame], words: dict[int, np.ndarray]
) -> list[dict[str, Any]]:
    """One dict a claim, as a record holds them.

    Args:
        words: step -> last words predicted or not, bool[passages], of the smallest standard model.
    """
    small, large = params.size_list[0], params.size_list[-1]
    zero = min(params.shot_list)
    rows: list[dict[str, Any]] = []

    def row(claim: str, paper: str, e: Estimate | None, verdict: str) -> None:
        rows.append(claim_row(claim, paper, e, verdict))

    for task in params.task_list:
        claim = f"Accuracy on {task} rises with size ({small} to {large}, zero-shot, points)"
        pair = [finals.get((size, "standard", f"{task}_{zero}")) for size in (small, large)]
        if small == large or None in _lengths(pair):
            row(claim, "rises", None, NOT_TESTABLE)
            continue
        change = _points(pair[1].astype(float) - pair[0], params.bootstrap)
        best = estimate(pair[1].astype(float)[None], params.bootstrap, exact=True)
        able = best.low > TASKS[task].chance
        verdict = directional_verdict(change.low, change.high, 1) if able else NOT_TESTABLE
        row(claim, "rises", change, verdict)

    few = max(params.shot_list)
    both = {
        task: [finals.get((large, "standard", f"{task}_{k}")) for k in (zero, few)]
        for task in params.task_list
    }
    both = {task: pair for task, pair in both.items() if few > zero and None not in _lengths(pair)}
    claim = (
        f"Solved examples in the prompt help ({large}, {few}-shot minus zero-shot, points; mean of "
        f"{', '.join(both) or 'no task: none fits'})"
    )
    if both:
        change = np.concatenate([b.astype(float) - a for a, b in both.values()])
        e = _points(change, params.bootstrap)
        row(claim, "helps large models", e, directional_verdict(e.low, e.high, 1))
    else:
        row(claim, "helps large models", None, NOT_TESTABLE)

    claim = f"{small} loses last-word accuracy late in training (end minus best step, points)"
    change = late_change(words)
    if change is None:
        row(claim, "not discussed; the smallest released models do", None, NOT_TESTABLE)
    else:
        e = _points(change, params.bootstrap)
        able = max(hits.mean() for hits in words.values()) >= TO_LOSE
        verdict = premise_verdict(e.low, e.high, -1) if able else NOT_TESTABLE
        row(claim, "not discussed; the smallest released models do", e, verdict)

    claim = (
        "A power law fitted to the other sizes predicts the loss of the largest within "
        f"{CLOSE:.0f} % (its loss over the predicted one, %)"
    )
    if len(tables["prediction"]):
        found = tables["prediction"].iloc[0]
        e = Estimate(found.value, found.low, found.high, len(params.size_list), 1)
        apart = e.low > CLOSE or e.high < -CLOSE
        within = -CLOSE < e.low and e.high < CLOSE
        verdict = "holds" if within else "does not hold" if apart else NOT_TESTABLE
        row(claim, "not measured", e, verdict)
    else:
        row(claim, "not measured", None, NOT_TESTABLE)
    optimal = tables["optimal"]
    uses = optimal[optimal.kind == "inference"]
    claim = (
        "The more a model is used, the smaller the size that is cheapest overall (best size at a "
        "thousand times the training tokens, over that without use)"
    )
    paper = "why small models are trained far past the compute optimum"
    if len(uses) > 1:
        first, last = uses.iloc[0], uses.iloc[-1]
        # the widest interval that those of the two sizes allow
        e = Estimate(last.n_params / first.n_params, last.low / first.high, last.high / first.low,
                     len(uses), 1)  # fmt: skip
        row(claim, paper, e, "holds" if e.high < 1 else "no effect")
    else:
        row(claim, paper, None, NOT_TESTABLE)
    agreement = tables["agreement"]
    if len(agreement):
        n, differing = int(agreement["items"].sum()), int(agreement.differing.sum())
        rows.append({"claim": "Our scorer and the evaluation harness agree on every item",
                     "paper": "the harness was used", "published": None,
                     "ours": f"{differing} of {n} differ", "low": None, "high": None,
                     "verdict": "holds" if not differing else "does not hold"})  # fmt: skip
    return rows


def late_change(words: dict[int, np.ndarray]) -> np.ndarray | None:
    """Last step minus best step, float[passages]; None with no accuracy to lose.

    The best of many steps is too good by chance: it is chosen on one half of the passages and
    compared with the end on the other, and the other way round.
    """
    steps = sorted(words)
    if len(steps) < 2 or not any(words[step].any() for step in steps):
        return None
    matrix = np.array([words[step] for step in steps], float)
    change = np.empty(matrix.shape[1])
    for chosen, judged in ((slice(0, None, 2), slice(1, None, 2)),
                           (slice(1, None, 2), slice(0, None, 2))):  # fmt: skip
        best = int(matrix[:, chosen].mean(1).argmax())
        change[judged] = matrix[-1, judged] - matrix[best, judged]
    return change


def _lengths(pair: list[np.ndarray | None]) -> list[int | None]:
    """Numbers of items; None where a cell was not scored, or where the two differ in items."""
    found = [None if values is None else len(values) for values in pair]
    return found if len(set(found)) == 1 else [None]


def _points(change: np.ndarray, bootstrap: int) -> Estimate:
    e = estimate(100 * np.asarray(change)[None], bootstrap, change=True)
    if change.min() == change.max():  # nothing differs: the exact bound, in points
        e = estimate(np.asarray(change)[None], bootstrap, change=True, exact=True)
        return Estimate(100 * e.value, 100 * e.low, 100 * e.high, e.n_items, 1)
    return e
