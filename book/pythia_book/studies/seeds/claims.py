"""What survives training again: the claims of the seeds study, each with an interval over seeds.

One size is trained here, so that these are claims about differences between runs of that size, and
one about its distance to the next. A claim that two things are alike needs an interval inside a
bound, one that they differ an interval outside; an interval across it is "not testable here": with
few seeds that is the honest answer to most questions about spreads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import NOT_TESTABLE, Estimate, claim_row, premise_verdict
from pythia_book.studies.seeds.tables import MEASURES
from pythia_book.studies.seeds.variance import beyond_items, distance_in_sds

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.seeds.params import SeedsParams

ENOUGH = 1.96 * 2**0.5
"""Distance of two sizes in standard deviations over seeds from which on one run of each is put in
the right order 97.5 % of the time."""
ALIKE = 3.0
"""Two standard deviations are alike if neither is this many times the other."""
WORDS = {
    "loss": ("held-out loss", "nats a token"),
    "last_word": ("last words of held-out sentences", "points"),
    "memorized": ("share of training rows memorized", "points"),
}
"""Measure -> its name and its unit."""

BETTER = {"loss": -1, "last_word": 1}
"""Measure -> the sign of a benefit."""


def claims_table(
    params: SeedsParams,
    tables: dict[str, pd.DataFrame],
    neighbour: float | None,
    shares: np.ndarray | None,
) -> list[dict[str, Any]]:
    """One dict a claim: claim, paper, published, ours, low, high, verdict; ours may be None.

    Args:
        tables: levels, ratios and effects as in seeds.tables.tables_of.
        neighbour: final held-out loss of the size next to ours.
        shares: feminine share at the end, float[seeds, occupations]; None: not all there.
    """
    rows = []

    def row(claim: str, paper: str, e: Estimate | None, verdict: str) -> None:
        rows.append(claim_row(claim, paper, e, verdict))

    n = params.seeds
    e = _distance(params, tables["levels"], neighbour)
    row(
        f"Seeds matter little for the loss: one run each tells {params.size} from "
        f"{params.neighbour_size} (difference of held-out loss in standard deviations over seeds; "
        f"enough: {ENOUGH:.1f})",
        "presupposed: one run a size",
        e,
        _beyond(e, ENOUGH),
    )
    for measure, better in BETTER.items():
        what, unit = WORDS[measure]
        pair, mean = _effect(tables["effects"], measure)
        benefit = mean is not None and (mean.high < 0 if better < 0 else mean.low > 0)
        row(
            f"Deduplication brings no clear benefit: {what}, deduplicated minus standard, interval "
            f"over {n} seeds ({unit})",
            "no clear benefit on any task, from one pair of twins a size",
            mean,
            "not reproduced" if benefit else "reproduced",
        )
        shown = "not measured"
        sign = 0
        if pair is not None:
            sign = 1 if pair.low > 0 else -1 if pair.high < 0 else 0
            shown = f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
            shown = shown.replace("-", "\N{MINUS SIGN}") + ("" if sign else ", none to be seen")
        row(
            f"The difference that one pair of twins shows survives {n} seeds: {what} ({unit}; one "
            f"pair, interval over items: {shown})",
            "presupposed: one run a size",
            mean,
            premise_verdict(mean.low, mean.high, sign) if mean and sign else NOT_TESTABLE,
        )
    what, unit = WORDS["memorized"]
    _, mean = _effect(tables["effects"], "memorized")
    row(
        f"Deduplication lowers the {what}, interval over {n} seeds ({unit})",
        "not measured; expected since earlier work",
        mean,
        premise_verdict(mean.low, mean.high, -1) if mean else NOT_TESTABLE,
    )
    ratio = tables["ratios"][tables["ratios"].measure == "loss"]
    e = _estimate(ratio.iloc[0], 1) if len(ratio) else None
    row(
        "The order seed matters as much as the weight seed (held-out loss, standard deviation by "
        f"order over that by weights; alike: within {ALIKE:g} times)",
        "not measured: PolyPythias varies both at once",
        e,
        _within(e, ALIKE),
    )
    e = None if shares is None else beyond_items(shares)
    row(
        "The feminine share of pronouns after occupations differs between seeds by more than the "
        "items' error (standard deviation over seeds, in units of that error)",
        "not measured",
        e,
        premise_verdict(e.low - 1, e.high - 1, +1) if e else NOT_TESTABLE,
    )
    return rows


def _distance(
    params: SeedsParams, levels: pd.DataFrame, neighbour: float | None
) -> Estimate | None:
    """How far apart the two sizes are in held-out loss, the smaller one minus the larger one."""
    diagonal = levels[
        (levels.measure == "loss")
        & (levels.percent == 100)
        & (levels.arm == "standard")
        & (levels.order_seed == levels.weight_seed)
    ]
    values = diagonal.value.to_numpy()
    if neighbour is None or len(values) < 2 or np.isnan(values).any():
        return None
    sign = 1 if params.size_is_smaller else -1
    return distance_in_sds(sign * values, sign * neighbour)


def _effect(effects: pd.DataFrame, measure: str) -> tuple[Estimate | None, Estimate | None]:
    """Of the suite's own pair with its interval over items, and the mean over all seeds with its
    interval over seeds, at the end and in the units of `WORDS`."""
    mine = effects[(effects.measure == measure) & (effects.percent == 100)]
    factor = MEASURES[measure]
    pair = mine[(mine.seed != "mean") & mine.low.notna()]
    pair = pair[pair.seed == mine.seed.iloc[0]] if len(mine) else pair
    mean = mine[(mine.seed == "mean") & mine.low.notna()]
    both = (_estimate(found.iloc[0], factor) if len(found) else None for found in (pair, mean))
    return next(both), next(both)


def _estimate(row: Any, factor: float) -> Estimate:
    value, low, high = (factor * float(row[name]) for name in ("value", "low", "high"))
    return Estimate(value, low, high, 1, int(row["n"]))


def _beyond(e: Estimate | None, bound: float) -> str:
    """Verdict on "more than `bound`"."""
    if e is None or e.low <= bound <= e.high:
        return NOT_TESTABLE
    return "holds" if e.low > bound else "does not hold"


def _within(e: Estimate | None, bound: float) -> str:
    """Verdict on "neither is `bound` times the other", of a ratio."""
    if e is None:
        return NOT_TESTABLE
    if 1 / bound < e.low and e.high < bound:
        return "holds"
    return "does not hold" if e.low > bound or e.high < 1 / bound else NOT_TESTABLE
