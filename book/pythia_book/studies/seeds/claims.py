"""The claims of the seeds study, each with an interval over seeds.

Only one size is trained, so these claims are about differences between runs of that size, and one
is about the distance to the next size. A claim of similarity holds if the interval is inside a
bound, a claim of difference if it is outside. With few seeds, most intervals of spreads include the
bound, so such claims are "not testable here".
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import NOT_TESTABLE, Z_95, Estimate, claim_row, premise_verdict
from pythia_book.studies.seeds.params import SUITE_SEED
from pythia_book.studies.seeds.tables import MEASURES
from pythia_book.studies.seeds.variance import distance_in_sds, excess_over_item_noise

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.seeds.params import Params

ENOUGH = Z_95 * 2**0.5
"""Distance of two sizes, in standard deviations over seeds, at which single runs of the two have
the right order 97.5 % of the time."""
SIMILAR = 3.0
"""Two standard deviations are similar if neither is this many times the other."""
BENEFITS = {
    "loss": ("held-out loss", "nats per token", -1),
    "last_word": ("last words of held-out sentences", "points", 1),
}
"""Measure -> name, unit, and the sign of a benefit."""


def claims(
    params: Params,
    tables: dict[str, pd.DataFrame],
    neighbour: float | None,
    shares: np.ndarray | None,
) -> list[dict[str, Any]]:
    """One dict per claim, as `stats.claim_row` makes it.

    Args:
        tables: levels, ratios and effects as in seeds.tables.tables.
        neighbour: final held-out loss of the adjacent size.
        shares: feminine share at the end, float[seeds, occupations]; None if there are gaps.
    """
    n = params.seeds
    distance = _distance(params, tables["levels"], neighbour)
    _, memorized = _effect(tables["effects"], "memorized")
    ratios = tables["ratios"][tables["ratios"].measure == "loss"]
    ratio = _estimate(ratios, 1)
    excess = None if shares is None else excess_over_item_noise(shares)
    return [
        claim_row(
            f"Seeds matter little for the loss: one run each tells {params.size} from "
            f"{params.neighbour_size} (difference of held-out loss in standard deviations over "
            f"seeds; enough: {ENOUGH:.1f})",
            "presupposed: one run per size",
            distance,
            partial(_beyond, bound=ENOUGH),
        ),
        *(row for measure in BENEFITS for row in _deduplication(tables["effects"], measure, n)),
        claim_row(
            f"Deduplication lowers the share of training rows memorized, interval over {n} seeds "
            "(points)",
            "not measured; expected since earlier work",
            memorized,
            partial(premise_verdict, direction=-1),
        ),
        claim_row(
            "The order seed matters as much as the weight seed (held-out loss, standard deviation "
            f"by order over that by weights; similar: within {SIMILAR:g} times)",
            "not measured: PolyPythias varies both at once",
            ratio,
            partial(_within, bound=SIMILAR),
        ),
        claim_row(
            "The feminine share of pronouns after occupations differs between seeds by more than "
            "the items' error (standard deviation over seeds, in units of that error)",
            "not measured",
            excess,
            premise_verdict(excess.low - 1, excess.high - 1, +1) if excess else "",
        ),
    ]


def _deduplication(effects: pd.DataFrame, measure: str, n: int) -> list[dict[str, Any]]:
    """Two claims: deduplication brings no benefit; one pair's result survives more seeds."""
    name, unit, better = BENEFITS[measure]
    pair, mean = _effect(effects, measure)
    benefit = mean is not None and (mean.high < 0 if better < 0 else mean.low > 0)
    sign, one_pair = 0, "not measured"
    if pair is not None:
        sign = 1 if pair.low > 0 else -1 if pair.high < 0 else 0
        one_pair = f"{pair.value:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
        one_pair = one_pair.replace("-", "\N{MINUS SIGN}") + ("" if sign else ", none to be seen")
    return [
        claim_row(
            f"Deduplication brings no clear benefit: {name}, deduplicated minus standard, interval "
            f"over {n} seeds ({unit})",
            "no clear benefit on any task, from one pair of twins per size",
            mean,
            "not reproduced" if benefit else "reproduced",
        ),
        claim_row(
            f"The difference that one pair of twins shows survives {n} seeds: {name} ({unit}; one "
            f"pair, interval over items: {one_pair})",
            "presupposed: one run per size",
            mean,
            premise_verdict(mean.low, mean.high, sign) if mean and sign else NOT_TESTABLE,
        ),
    ]


def _distance(params: Params, levels: pd.DataFrame, neighbour: float | None) -> Estimate | None:
    """Held-out loss of the smaller size minus the larger, in standard deviations over seeds."""
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
    """The effect of deduplication at the end, in points or nats: for the suite's own pair of twins
    (interval over items), and the mean over seeds (interval over seeds)."""
    final = effects[(effects.measure == measure) & (effects.percent == 100)]
    final = final[final.low.notna()]
    rows = (final[final.seed == seed] for seed in (str(SUITE_SEED), "mean"))
    pair, mean = (_estimate(row, MEASURES[measure]) for row in rows)
    return pair, mean


def _estimate(rows: pd.DataFrame, factor: float) -> Estimate | None:
    """The first row of a table, times `factor`; None if the table is empty."""
    if rows.empty:
        return None
    row = rows.iloc[0]
    value, low, high = (factor * float(row[name]) for name in ("value", "low", "high"))
    return Estimate(value, low, high, 1, int(row["n"]))


def _beyond(low: float, high: float, bound: float) -> str:
    """Verdict on the claim that a value exceeds `bound`."""
    if low <= bound <= high:
        return NOT_TESTABLE
    return "holds" if low > bound else "does not hold"


def _within(low: float, high: float, bound: float) -> str:
    """Verdict on the claim that a ratio lies between 1 / `bound` and `bound`."""
    if 1 / bound < low and high < bound:
        return "holds"
    return "does not hold" if low > bound or high < 1 / bound else NOT_TESTABLE
