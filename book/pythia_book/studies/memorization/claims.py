"""The claims of the memorization study, with verdicts from intervals and calibrated tests.

"Order does not matter" is a claim of no effect. An interval around zero supports it only if it is
narrow, within BOUND percent per tenth of training; otherwise the claim is not testable.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pythia_book.stats import (
    NOT_TESTABLE,
    Estimate,
    claim_row,
    difference,
    directional_verdict,
    premise_verdict,
)

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.memorization.params import Params

BOUND = 5.0
"""Changes of the rate up to this, in % per 10 % of training, count as none."""
ALPHA = 0.05
PAPER_PREDICTION = "12B from its step 23,000: precision .918, recall .500; from 70M: .956, .197"


def claims(
    params: Params, tables: dict[str, pd.DataFrame], released: pd.DataFrame
) -> list[dict[str, Any]]:
    """One dict per claim, as returned by `stats.claim_row`."""
    rows: list[dict[str, Any]] = []
    largest, smallest = params.size_list[-1], params.size_list[0]
    shares = tables["shares"]
    last = shares[shares.percent == 100].set_index(["size", "arm"])
    rises = partial(directional_verdict, direction=1)

    def add(*row: Any) -> None:
        rows.append(claim_row(*row))

    def change(a: tuple[str, str], b: tuple[str, str]) -> Estimate | None:
        """Share at a minus share at b in points; the two are independent."""
        if a == b or a not in last.index or b not in last.index:
            return None
        return difference(_estimate(last.loc[a]), _estimate(last.loc[b])).times(100)

    claim = f"Larger models memorize more ({smallest} to {largest}, standard text, points)"
    paper = "rises with size: 0.3 % at 70M to 1.5 % at 12B (first suite)"
    add(claim, paper, change((largest, "standard"), (smallest, "standard")), rises)

    tests = tables["tests"]
    tests = tests[(tests.arm == "standard") & (tests.status == "tested")]
    for subset in ("all rows", "read once"):
        trend = tests[(tests.subset == subset) & (tests.test == "trend")]
        claim = f"The place in training does not matter: trend of the rate, {subset} "
        claim += f"({largest}, % per tenth of training)"
        paper = "no effect of order (figure 3)"
        add(claim, paper, None if trend.empty else _estimate(trend.iloc[0]), no_trend_verdict)
    for subset in ("all rows", "read once"):
        spread = tests[(tests.subset == subset) & (tests.test == "dispersion")]
        claim = f"Counts per window are what chance gives: dispersion, {subset} ({largest}; 1 is "
        claim += "binomial, smallest window)"
        paper = "a Poisson process fits extremely well"
        verdict = "not reproduced" if (spread.holm < ALPHA).any() else "reproduced"
        add(claim, paper, None if spread.empty else _estimate(spread.iloc[0]), verdict)

    claim = f"Deduplication lowers memorization ({largest}, points)"
    twins = change((largest, "deduplicated"), (largest, "standard"))
    add(claim, "not measured", twins, partial(premise_verdict, direction=-1))

    bins = tables["exposures"]
    bins = bins[(bins["size"] == largest) & (bins.arm == "standard") & (bins.n > 0)]
    rise = None
    if len(bins) > 1:
        most, once = bins.iloc[-1], bins.iloc[0]
        rise = Estimate(most.value - once.value, most.low - once.high, most.high - once.low, 0, 1)
        rise = rise.times(100)
    claim = f"The share memorized rises with exposure ({largest}, most against one, points)"
    add(claim, "not measured", rise, partial(premise_verdict, direction=1))

    prediction = tables["prediction"]
    for experiment, words in (
        ("earlier checkpoint", "the earliest checkpoint predicts the last"),
        ("smaller model", "the smallest able model predicts the largest"),
    ):
        able = prediction[(prediction.experiment == experiment) & (prediction.tp > 0)]
        gap = None
        if len(able):
            first = able.iloc[0]
            gap = Estimate(first.gap, first.gap_low, first.gap_high, 0, 1).times(100)
        claim = f"Precision without recall: {words} (precision minus recall, points)"
        add(claim, PAPER_PREDICTION, gap, rises, _released(released, experiment))
    return rows


def no_trend_verdict(low: float, high: float) -> str:
    """Verdict on "there is no trend", from the interval of the trend.

    "reproduced" if all of it is within BOUND of 0; otherwise "not reproduced" if it excludes 0, and
    "not testable here" if it is too wide to tell.
    """
    if -BOUND <= low and high <= BOUND:
        return "reproduced"
    return NOT_TESTABLE if low <= 0 <= high else "not reproduced"


def _estimate(row: pd.Series) -> Estimate:
    return Estimate(row.value, row.low, row.high, 0, 1)


def _released(released: pd.DataFrame, experiment: str) -> str | None:
    """Released precision and recall of predictions from 12B at step 23,000, or from final 70M."""
    if released.empty:
        return None
    early = experiment == "earlier checkpoint"
    name = "early_checkpoint_predicts_last" if early else "small_model_predicts_12b"
    model, step = ("12b", 23_000) if early else ("70m", 143_000)
    rows = released[(released.experiment == name) & (released.model == model)]
    rows = rows[rows.step == step]
    if rows.empty:
        return None
    r = rows.iloc[0]
    return f"{model} at {step:,}: precision {r.precision:.3f}, recall {r.recall:.3f}"
