"""The gender-bias study's claims: the paper's words, the released numbers, ours, a verdict.

Every row states one difference in one unit, and the verdict follows from its interval by the rules
of `stats`: excludes 0 on the claimed side -> reproduced; on the other side -> not reproduced;
includes 0 -> no effect seen. "Marginal" costs are compared with a bound. A claim whose premise
does not hold here (no stereotype or accuracy to lose, one size, the mirrored swap) is not testable.
The released numbers are means over the checkpoints from step 134k on that both arms have.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import (
    NOT_TESTABLE,
    Estimate,
    claim_row,
    directional_verdict,
    estimate,
    premise_verdict,
    small_cost_verdict,
)

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.studies.gender_bias.params import Params

UNAVAILABLE = "not available: set PYTHIA_PUBLISHED_DIR"
NOT_RELEASED = "not among the released files"
LAST_WINDOW = 134_000
MARGINAL = 2.0
"""Bound of a marginal loss of accuracy, in points."""

Final = dict[tuple[str, str], dict[str, np.ndarray]]
"""(size, arm) -> measure -> float[seeds, items] at the end of training."""


def claims_table(
    params: Params,
    final: Final,
    published: Published | None,
    halves: dict[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """One dict a claim: claim, paper, published, ours, low, high, verdict; ours may be None."""
    sizes = params.size_list
    small, large = sizes[0], sizes[-1]
    shown = ", ".join(sizes)
    as_paper = params.swap == "masculine_to_feminine"

    def change(size: str, arm: str, measure: str) -> np.ndarray:
        return final[size, arm][measure] - final[size, "control"][measure]

    def pooled(arm: str, measure: str) -> np.ndarray:
        return np.mean([change(size, arm, measure) for size in sizes], axis=0)

    def points(values: np.ndarray, measure: str = "", change: bool = True) -> Estimate:
        strata = (halves or {}).get(measure)
        e = estimate(values, params.bootstrap, 0, strata, change, exact=True)
        return replace(e, value=100 * e.value, low=100 * e.low, high=100 * e.high)

    def control(measure: str) -> Estimate:
        values = np.mean([final[size, "control"][measure] for size in sizes], axis=0)
        return points(values, measure, change=False)

    def row(claim: str, paper: str, released: str, e: Estimate | None, verdict: str) -> dict:
        return claim_row(claim, paper, e, verdict, released)

    def directed(e: Estimate, direction: int, premise: bool) -> str:
        # The paper swapped masculine for feminine only: the mirror tests none of its claims.
        testable = as_paper and premise
        return directional_verdict(e.low, e.high, direction) if testable else NOT_TESTABLE

    # A stereotype can only be lowered where the controls have one.
    stereotyped = {measure: control(measure).low > 50 for measure in ("winobias", "crows")}

    crows = _released(published, "crows_gender", "value")
    winobias = _released(published, "winobias_em", "net")
    if published is not None:
        winobias = f"another metric, exact match, pro minus anti: {winobias}"
    lambada = _released(published, "lambada", "value")
    towards = 1 if as_paper else -1
    rows = []

    shift = points(pooled("swap_7", "feminine_share"))
    longer = points(pooled("swap_21", "feminine_share") - pooled("swap_7", "feminine_share"))
    rows.append(
        row(
            "The swap in the last 7 % of training moves the feminine share of pronouns after "
            f"occupations (points; mean of {shown})",
            "premise of the intervention; not measured",
            NOT_RELEASED,
            shift,
            premise_verdict(shift.low, shift.high, towards),
        )
    )
    rows.append(
        row(
            "The swap in the last 21 % moves it further than the one in the last 7 % "
            f"(points; mean of {shown})",
            "not measured; the longer window was run for 1.4B only",
            NOT_RELEASED,
            longer,
            premise_verdict(longer.low, longer.high, towards),
        )
    )
    for arm, window in (("swap_7", "7 %"), ("swap_21", "21 %")):
        e = points(pooled(arm, "winobias"), "winobias")
        rows.append(
            row(
                f"The swap in the last {window} lowers stereotype accuracy on WinoBias "
                f"(points; mean of {shown})",
                "falls at all scales" if arm == "swap_7" else "falls (1.4B only)",
                winobias if arm == "swap_7" else _released(published, "winobias_em", "net", 21),
                e,
                directed(e, -1, stereotyped["winobias"]),
            )
        )
    before = points(final[large, "control"]["winobias"] - 0.5, "winobias")
    turned = points(final[large, "swap_7"]["winobias"] - 0.5, "winobias")
    rows.append(
        row(
            f"The largest model ({large}) turns from pro- to anti-stereotypical "
            "(WinoBias after the 7 % swap, points above one half)",
            "6.9B turns during the 7 % intervention",
            NOT_RELEASED,
            turned,
            directed(turned, -1, before.low > 0),
        )
    )
    gap = None
    if len(sizes) > 1:
        gap = points(final[large, "control"]["crows"] - final[small, "control"]["crows"])
    rows.append(
        row(
            f"CrowS-Pairs gender bias is larger in larger models ({small} to {large}, points)",
            "rises with size",
            _released(published, "crows_gender", "value", None),
            gap,
            directional_verdict(gap.low, gap.high, +1) if gap else NOT_TESTABLE,
        )
    )
    for arm, window in (("swap_7", "7 %"), ("swap_21", "21 %")):
        e = points(pooled(arm, "crows"))
        rows.append(
            row(
                f"The swap in the last {window} lowers CrowS-Pairs gender bias "
                f"(points; mean of {shown})",
                "falls" if arm == "swap_7" else "falls (1.4B only)",
                crows if arm == "swap_7" else _released(published, "crows_gender", "value", 21),
                e,
                directed(e, -1, stereotyped["crows"]),
            )
        )
    contrast = None
    if len(sizes) > 1:
        contrast = points(change(large, "swap_7", "crows") - change(small, "swap_7", "crows"))
    rows.append(
        row(
            f"It lowers it most in large models (7 %; change at {large} minus change at {small}: "
            "negative is a larger fall, points)",
            "most in the largest models",
            crows,
            contrast,
            directed(contrast, -1, stereotyped["crows"]) if contrast else NOT_TESTABLE,
        )
    )
    for arm, window in (("swap_7", "7 %"), ("swap_21", "21 %")):
        cost = points(-pooled(arm, "last_word"))
        to_lose = control("last_word").low > MARGINAL
        rows.append(
            row(
                f"The swap in the last {window} costs little accuracy on last words "
                f"(points lost, marginal: below {MARGINAL:g}; mean of {shown})",
                "LAMBADA: marginal",
                lambada if arm == "swap_7" else _released(published, "lambada", "value", 21),
                cost,
                small_cost_verdict(cost.low, cost.high, MARGINAL) if to_lose else NOT_TESTABLE,
            )
        )
    return rows


def _released(published: Published | None, view: str, column: str, window: int | None = 7) -> str:
    """Released means in percent, "70m 54.7 → 57.0, …"; without `window`, controls only."""
    if published is None:
        return UNAVAILABLE
    table: pd.DataFrame = getattr(published, view)()
    late = table[table.step >= LAST_WINDOW]
    wide = late.pivot(index=["model", "step"], columns="intervention", values=column)
    parts = []
    for model in dict.fromkeys(late.model):
        arms = ["none"] if window is None else ["none", f"swap_last_{window}pct"]
        # Only steps at which both were scored: some controls have the final one alone.
        both = wide.loc[model].reindex(columns=arms).dropna()
        if len(both):
            parts.append(f"{model} " + " → ".join(f"{100 * both[arm].mean():.1f}" for arm in arms))
    return ", ".join(parts) or NOT_RELEASED
