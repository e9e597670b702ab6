"""The claims of the gender-bias study: paper, released numbers, our estimate, verdict.

Every claim is about one difference, and its verdict follows from the interval of that difference by
the rules of `stats`: "reproduced" if the interval is on the claimed side of 0, "not reproduced" if
it is on the other side, "no effect" if it includes 0. "Marginal" costs are compared with a bound.
A claim is not testable if its premise does not hold here (no stereotype or accuracy to lose, only
one size, feminine swapped for masculine). Released numbers are means over the checkpoints from step
134,000 on that both arms have.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import (
    NOT_TESTABLE,
    Estimate,
    Verdict,
    claim_row,
    directional_verdict,
    estimate,
    noninferiority_verdict,
    premise_verdict,
)

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.studies.gender_bias.params import Params

UNAVAILABLE = "not available: set PYTHIA_PUBLISHED_DIR"
NOT_RELEASED = "not among the released files"
LAST_WINDOW = 134_000
MARGINAL = 2.0
"""A loss of accuracy below this counts as marginal, in points."""
WINDOWS = {"swap_7": 7, "swap_21": 21}
"""Arm -> length of its intervention in percent of training."""

CLAIMS = {
    "shift": "The swap in the last 7 % of training moves the feminine share of pronouns after "
    "occupations (points; mean of {sizes})",
    "longer": "The swap in the last 21 % moves it further than the one in the last 7 % "
    "(points; mean of {sizes})",
    "winobias": "The swap in the last {window} % lowers stereotype accuracy on WinoBias "
    "(points; mean of {sizes})",
    "turned": "The largest model ({large}) turns from pro- to anti-stereotypical "
    "(WinoBias after the 7 % swap, points above one half)",
    "by_size": "CrowS-Pairs gender bias is larger in larger models ({small} to {large}, points)",
    "crows": "The swap in the last {window} % lowers CrowS-Pairs gender bias "
    "(points; mean of {sizes})",
    "contrast": "It lowers it most in large models (7 %; change at {large} minus change at "
    "{small}: negative is a larger fall, points)",
    "cost": "The swap in the last {window} % costs little accuracy on last words "
    "(points lost, marginal: below {bound:g}; mean of {sizes})",
}

Final = dict[tuple[str, str], dict[str, np.ndarray]]
"""(size, arm) -> measure -> float[seeds, items] at the end of training."""


def claims(
    params: Params,
    final: Final,
    published: Published | None,
    halves: dict[str, np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """One dict per claim, as returned by `stats.claim_row`.

    Args:
        halves: measure -> stratum of each item, for measures that are resampled within strata.
    """
    sizes = params.size_list
    small, large = sizes[0], sizes[-1]
    as_paper = params.swap == "masculine_to_feminine"
    rows: list[dict[str, Any]] = []

    def add(
        name: str, paper: str, released: str, e: Estimate | None, verdict: Verdict, window: int = 7
    ) -> None:
        names = {"sizes": ", ".join(sizes), "small": small, "large": large}
        claim = CLAIMS[name].format(**names, window=window, bound=MARGINAL)
        rows.append(claim_row(claim, paper, e, verdict, released))

    def change(size: str, arm: str, measure: str) -> np.ndarray:
        return final[size, arm][measure] - final[size, "control"][measure]

    def pooled(arm: str, measure: str) -> np.ndarray:
        return np.mean([change(size, arm, measure) for size in sizes], axis=0)

    def points(values: np.ndarray, measure: str = "", change: bool = True) -> Estimate:
        strata = (halves or {}).get(measure)
        return estimate(values, params.bootstrap, 0, strata, change, exact=True).times(100)

    def control(measure: str) -> Estimate:
        values = np.mean([final[size, "control"][measure] for size in sizes], axis=0)
        return points(values, measure, change=False)

    moves = partial(premise_verdict, direction=1 if as_paper else -1)
    # The paper only swapped masculine for feminine: the reverse swap tests none of its claims.
    falls = partial(directional_verdict, direction=-1) if as_paper else NOT_TESTABLE
    # Only controls with a stereotype, or with some accuracy, can lose it.
    lowered = {
        measure: falls if control(measure).low > 50 else NOT_TESTABLE
        for measure in ("winobias", "crows")
    }
    marginal = partial(noninferiority_verdict, bound=MARGINAL)
    costs = marginal if control("last_word").low > MARGINAL else NOT_TESTABLE

    def add_both(measure: str, paper: str, view: str, column: str) -> None:
        for arm, window in WINDOWS.items():
            e = points(pooled(arm, measure), measure)
            released = _released(published, view, column, window)
            if measure == "winobias" and window == 7 and published is not None:
                released = f"another metric, exact match, pro minus anti: {released}"
            words = paper if window == 7 else "falls (1.4B only)"
            add(measure, words, released, e, lowered[measure], window)

    e = points(pooled("swap_7", "feminine_share"))
    add("shift", "premise of the intervention; not measured", NOT_RELEASED, e, moves)
    e = points(pooled("swap_21", "feminine_share") - pooled("swap_7", "feminine_share"))
    paper = "not measured; the longer window was run for 1.4B only"
    add("longer", paper, NOT_RELEASED, e, moves)
    add_both("winobias", "falls at all scales", "winobias_em", "net")
    before = points(final[large, "control"]["winobias"] - 0.5, "winobias")
    e = points(final[large, "swap_7"]["winobias"] - 0.5, "winobias")
    verdict = falls if before.low > 0 else NOT_TESTABLE
    add("turned", "6.9B turns during the 7 % intervention", NOT_RELEASED, e, verdict)

    by_size = contrast = None
    if len(sizes) > 1:
        by_size = points(final[large, "control"]["crows"] - final[small, "control"]["crows"])
        contrast = points(change(large, "swap_7", "crows") - change(small, "swap_7", "crows"))
    released = _released(published, "crows_gender", "value", None)
    rises = partial(directional_verdict, direction=1)
    add("by_size", "rises with size", released, by_size, rises)
    add_both("crows", "falls", "crows_gender", "value")
    released = _released(published, "crows_gender", "value")
    add("contrast", "most in the largest models", released, contrast, lowered["crows"])
    for arm, window in WINDOWS.items():
        released = _released(published, "lambada", "value", window)
        e = points(-pooled(arm, "last_word"))
        add("cost", "LAMBADA: marginal", released, e, costs, window)
    return rows


def _released(published: Published | None, view: str, column: str, window: int | None = 7) -> str:
    """Released means in percent, control → swap: "70m 54.7 → 57.0, …".

    If `window` is None, those of the controls only.
    """
    if published is None:
        return UNAVAILABLE
    table: pd.DataFrame = getattr(published, view)()
    late = table[table.step >= LAST_WINDOW]
    wide = late.pivot(index=["model", "step"], columns="intervention", values=column)
    parts = []
    for model in dict.fromkeys(late.model):
        arms = ["none"] if window is None else ["none", f"swap_last_{window}pct"]
        # Only steps at which both arms were scored: some controls have scores for the last only.
        both = wide.loc[model].reindex(columns=arms).dropna()
        if len(both):
            parts.append(f"{model} " + " → ".join(f"{100 * both[arm].mean():.1f}" for arm in arms))
    return ", ".join(parts) or NOT_RELEASED
