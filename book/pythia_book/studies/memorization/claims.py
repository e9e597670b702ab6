"""The memorization study's claims, with verdicts from intervals and calibrated tests.

That order does not matter is a claim of no effect: an interval around zero supports it only as far
as it is narrow. Here it counts as reproduced if the trend's interval lies within BOUND percent per
tenth of training, and as not testable if it is wider.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pythia_book.stats import NOT_TESTABLE, directional_verdict, premise_verdict

if TYPE_CHECKING:
    import pandas as pd

BOUND = 5.0
"""% change of the rate per 10 % of training that counts as none."""
ALPHA = 0.05
PAPER_PREDICTION = "12B from its step 23,000: precision .918, recall .500; from 70M: .956, .197"


def claims_table(
    params: Any, tables: dict[str, pd.DataFrame], released: pd.DataFrame
) -> list[dict[str, Any]]:
    """One dict a claim, as a record holds them."""
    rows: list[dict[str, Any]] = []
    largest, smallest = params.size_list[-1], params.size_list[0]

    def row(claim: str, paper: str, ours: Any, verdict: str, published: str | None = None) -> None:
        value, low, high = ours or (None, None, None)
        rows.append({"claim": claim, "paper": paper, "published": published, "ours": value,
                     "low": low, "high": high, "verdict": verdict})  # fmt: skip

    shares = tables["shares"]
    last = shares[shares.percent == 100].set_index(["size", "arm"])

    def change(a: tuple[str, str], b: tuple[str, str]) -> tuple[float, float, float] | None:
        """Share at a minus share at b in points, intervals combined as independent ones."""
        if a == b or a not in last.index or b not in last.index:
            return None
        one, other = last.loc[a], last.loc[b]
        value = one.value - other.value
        low = value - ((one.value - one.low) ** 2 + (other.high - other.value) ** 2) ** 0.5
        high = value + ((one.high - one.value) ** 2 + (other.value - other.low) ** 2) ** 0.5
        return 100 * value, 100 * low, 100 * high

    e = change((largest, "standard"), (smallest, "standard"))
    row(f"Larger models memorize more ({smallest} to {largest}, standard text, points)",
        "rises with size: 0.3 % at 70M to 1.5 % at 12B (first suite)", e,
        directional_verdict(e[1], e[2], 1) if e else NOT_TESTABLE)  # fmt: skip

    tests = tables["tests"]
    mine = tests[(tests.arm == "standard") & (tests.status == "tested")]
    for subset in ("all rows", "read once"):
        some = mine[mine.subset == subset]
        trend = some[some.test == "trend"]
        claim = f"The place in training does not matter: trend of the rate, {subset} "
        claim += f"({largest}, % per tenth of training)"
        if trend.empty:
            row(claim, "no effect of order (figure 3)", None, NOT_TESTABLE)
            continue
        r = trend.iloc[0]
        verdict = "not reproduced" if not r.low <= 0 <= r.high else NOT_TESTABLE
        if -BOUND <= r.low and r.high <= BOUND:
            verdict = "reproduced"
        row(claim, "no effect of order (figure 3)", (r.value, r.low, r.high), verdict)
    for subset in ("all rows", "read once"):
        spread = mine[(mine.subset == subset) & (mine.test == "dispersion")]
        claim = f"Counts per window are what chance gives: dispersion, {subset} ({largest}; 1 is "
        claim += "binomial, smallest window)"
        if spread.empty:
            row(claim, "a Poisson process fits extremely well", None, NOT_TESTABLE)
            continue
        r = spread.iloc[0]
        verdict = "not reproduced" if (spread.holm < ALPHA).any() else "reproduced"
        row(claim, "a Poisson process fits extremely well", (r.value, r.low, r.high), verdict)

    e = change((largest, "deduplicated"), (largest, "standard"))
    row(f"Deduplication lowers memorization ({largest}, points)", "not measured", e,
        premise_verdict(e[1], e[2], -1) if e else NOT_TESTABLE)  # fmt: skip

    seen = tables["exposures"]
    seen = seen[(seen["size"] == largest) & (seen.arm == "standard") & (seen.n > 0)]
    claim = f"The share memorized rises with exposure ({largest}, most against one, points)"
    if len(seen) > 1:
        top, one = seen.iloc[-1], seen.iloc[0]
        ours = 100 * (top.value - one.value), 100 * (top.low - one.high), 100 * (top.high - one.low)
        row(claim, "not measured", ours, premise_verdict(ours[1], ours[2], 1))
    else:
        row(claim, "not measured", None, NOT_TESTABLE)

    prediction = tables["prediction"]
    for experiment, words in (
        ("earlier checkpoint", "the earliest checkpoint predicts the last"),
        ("smaller model", "the smallest able model predicts the largest"),
    ):
        some = prediction[(prediction.experiment == experiment) & (prediction.tp > 0)]
        claim = f"Precision without recall: {words} (precision minus recall, points)"
        if some.empty:
            row(claim, PAPER_PREDICTION, None, NOT_TESTABLE, _released(released, experiment))
            continue
        r = some.iloc[0]
        ours = 100 * r.gap, 100 * r.gap_low, 100 * r.gap_high
        row(claim, PAPER_PREDICTION, ours, directional_verdict(ours[1], ours[2], 1),
            _released(released, experiment))  # fmt: skip
    return rows


def _released(released: pd.DataFrame, experiment: str) -> str | None:
    """Precision and recall of 12B's own earliest checkpoint, or of 70M at the end."""
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
