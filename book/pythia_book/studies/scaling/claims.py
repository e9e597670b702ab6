"""Claims about our own models; pythia_book.published.scaling has those about released models.

Differences between models are paired over items. A task on which the largest model does not beat
guessing cannot show that ability rises with size, so its verdict is "not testable here".
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

    from pythia_book.studies.scaling.params import Params

CLOSE = 2.0
"""A prediction is correct if it is within this many percent of the measured loss."""
MIN_ACCURACY = 0.02
"""A decline is testable only if the accuracy was at least this at some step."""
Finals = dict[tuple[str, str, str], np.ndarray]
"""(size, arm, task_shots) -> whether each item was answered right at the end, bool[items]."""
Judged = tuple[Estimate, str] | None
"""An estimate and its verdict; None if it could not be measured."""


def claims(
    params: Params,
    finals: Finals,
    tables: dict[str, pd.DataFrame],
    words: dict[int, np.ndarray],
) -> list[dict[str, Any]]:
    """One dict per claim, as stored in a record.

    Args:
        words: step -> whether the smallest standard model predicts the last word, bool[passages].
    """
    small, large = params.size_list[0], params.size_list[-1]
    zero, few = min(params.shot_list), max(params.shot_list)
    draws = params.bootstrap

    def pair(task: str, *cells: tuple[str, int]) -> list[np.ndarray]:
        """Scores float[items] of two cells (size, shots); empty unless both have the same items."""
        scores = [finals.get((size, "standard", f"{task}_{shots}")) for size, shots in cells]
        if len(set(cells)) < 2 or any(s is None for s in scores) or len({*map(len, scores)}) > 1:
            return []
        return [s.astype(float) for s in scores]

    by_size = {task: pair(task, (small, zero), (large, zero)) for task in params.task_list}
    by_shots = {task: pair(task, (large, zero), (large, few)) for task in params.task_list}
    by_shots = {task: scores for task, scores in by_shots.items() if scores}
    statements: list[tuple[str, str, Judged]] = [
        (f"Accuracy on {task} rises with size ({small} to {large}, zero-shot, points)",
         "rises", _rise([scores] if scores else [], draws, TASKS[task].chance))
        for task, scores in by_size.items()
    ]  # fmt: skip
    statements += [
        (f"Solved examples in the prompt help ({large}, {few}-shot minus zero-shot, points; "
         f"mean of {', '.join(by_shots) or 'no task: none fits'})",
         "helps large models", _rise(list(by_shots.values()), draws)),
        (f"{small} loses last-word accuracy late in training (end minus best step, points)",
         "not discussed; the smallest released models do", _decline(words, draws)),
        ("A power law fitted to the other sizes predicts the loss of the largest within "
         f"{CLOSE:.0f} % (its loss over the predicted one, %)",
         "not measured", _prediction(tables["prediction"], len(params.size_list))),
        ("The more a model is used, the smaller the size that is cheapest overall (best size at "
         "a thousand times the training tokens, over that without use)",
         "why small models are trained far past the compute optimum", _use(tables["optimal"])),
    ]  # fmt: skip
    rows = [claim_row(claim, paper, *(judged or (None, ""))) for claim, paper, judged in statements]
    agreement = tables["agreement"]
    if len(agreement):
        n, differing = int(agreement["items"].sum()), int(agreement.differing.sum())
        rows.append({"claim": "Our scorer and the evaluation harness agree on every item",
                     "paper": "the harness was used", "published": None,
                     "ours": f"{differing} of {n} differ", "low": None, "high": None,
                     "verdict": "holds" if not differing else "does not hold"})  # fmt: skip
    return rows


def _rise(pairs: list[list[np.ndarray]], draws: int, chance: float | None = None) -> Judged:
    """Change from first to second in each pair; with `chance`, the second must beat guessing."""
    if not pairs:
        return None
    change = _in_points(np.concatenate([second - first for first, second in pairs]), draws)
    best = np.concatenate([second for _, second in pairs])
    if chance is not None and estimate(best[None], draws, exact=True).low <= chance:
        return change, NOT_TESTABLE
    return change, directional_verdict(change.low, change.high, 1)


def _decline(words: dict[int, np.ndarray], draws: int) -> Judged:
    """The change of last-word accuracy from the best step to the last."""
    change = late_change(words)
    if change is None:
        return None
    e = _in_points(change, draws)
    able = max(hits.mean() for hits in words.values()) >= MIN_ACCURACY
    return e, premise_verdict(e.low, e.high, -1) if able else NOT_TESTABLE


def late_change(words: dict[int, np.ndarray]) -> np.ndarray | None:
    """Last step minus best step, float[passages]; None for one step or without any hit.

    The best of many steps is biased upwards, so it is chosen on one half of the passages and
    compared with the last step on the other half, and vice versa.
    """
    steps = sorted(words)
    if len(steps) < 2 or not any(words[step].any() for step in steps):
        return None
    matrix = np.array([words[step] for step in steps], float)
    change = np.empty(matrix.shape[1])
    halves = slice(0, None, 2), slice(1, None, 2)
    for chosen, judged in (halves, halves[::-1]):
        best = int(matrix[:, chosen].mean(1).argmax())
        change[judged] = matrix[-1, judged] - matrix[best, judged]
    return change


def _prediction(prediction: pd.DataFrame, n_sizes: int) -> Judged:
    """How far the largest model's loss is from its prediction."""
    if prediction.empty:
        return None
    excess = prediction.iloc[0]
    e = Estimate(excess.value, excess.low, excess.high, n_sizes, 1)
    if -CLOSE < e.low and e.high < CLOSE:
        return e, "holds"
    return e, "does not hold" if e.low > CLOSE or e.high < -CLOSE else NOT_TESTABLE


def _use(optimal: pd.DataFrame) -> Judged:
    """The best size at the most use, over the best size without use."""
    uses = optimal[optimal.kind == "inference"]
    if len(uses) < 2:
        return None
    first, last = uses.iloc[0], uses.iloc[-1]
    # the widest interval that the two intervals allow
    low, high = last.low / first.high, last.high / first.low
    e = Estimate(last.n_params / first.n_params, low, high, len(uses), 1)
    return e, "holds" if e.high < 1 else "no effect"


def _in_points(change: np.ndarray, draws: int) -> Estimate:
    e = estimate(100 * change[None], draws, change=True)
    if change.min() == change.max():  # all changes are equal, so a bootstrap interval has no width
        e = estimate(change[None], draws, change=True, exact=True)
        return Estimate(100 * e.value, 100 * e.low, 100 * e.high, e.n_items, 1)
    return e
