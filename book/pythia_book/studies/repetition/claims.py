"""The cost and the worth of repeated data: comparisons, tables and claims of the study.

By the law of Muennighoff et al. (2023), each further pass is worth less: U unique tokens repeated R
times are worth D' = U + U R* (1 - exp(-R / R*)) fresh tokens. The law's second term, a penalty for
more parameters than the unique data warrant, is left out. It would raise the predicted loss where
data is scarce, so the worth measured here may be below that of D' alone. All functions are pure
functions of losses per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import (
    LEVEL,
    NOT_TESTABLE,
    Estimate,
    as_premise,
    claim_row,
    difference,
    directional_verdict,
    equivalence_verdict,
    estimate,
    noninferiority_verdict,
    premise_verdict,
    wilson,
)
from pythia_book.studies.repetition.params import Cell, Params

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import Arrays

R_STAR = 15.387756
"""R*_D of the law (appendix A of the paper): after R* repetitions, reading a token once more is
worth 1/e of a fresh token."""
MARGINAL = 1.0
"""A cost below this many percent of the fresh arm's loss is negligible."""
CLOSE = 10.0
"""A measured worth within this many percentage points of the law agrees with it."""

Losses = dict[Cell, np.ndarray]


# --- comparisons -----------------------------------------------------------------------------


@dataclass(frozen=True)
class ArmComparison:
    """Compares arms at one step, row by row, averaged over sizes; None if an arm is missing."""

    sizes: tuple[str, ...]
    draws: int
    arms: dict[Cell, Arrays]

    def change(
        self, measure: str, epochs: int, base: int = 1, percent: bool = False
    ) -> Estimate | None:
        """Mean change of a measure from the arm of `base` epochs; `percent`: in % of that arm."""
        changes = []
        for size in self.sizes:
            one, other = (self.arms.get((size, r), {}).get(measure) for r in (epochs, base))
            if one is None or other is None:
                return None
            change = one.astype(float) - other
            changes.append(100 * change / other.mean() if percent else change)
        pooled = np.mean(changes, axis=0)[None]
        exact = measure in ("last_word", "memorized")
        return estimate(pooled, self.draws, change=True, exact=exact)

    def gap(self, epochs: int) -> Estimate | None:
        """How much larger the gap between held-out and training loss is than in the fresh arm."""
        heldout, read = self.change("loss", epochs), self.change("read_loss", epochs)
        return None if heldout is None or read is None else difference(heldout, read)


def law_share(epochs: float, r_star: float = R_STAR) -> float:
    """By the law, the worth of `epochs` passes relative to the same amount of fresh data: D' / D
    with D' = U + U R* (1 - exp(-R / R*)), U unique tokens, R = epochs - 1, D = U epochs.
    """
    return (1 + r_star * (1 - math.exp(-(epochs - 1) / r_star))) / epochs


def measured_share(loss: np.ndarray, single_pass: dict[int, np.ndarray], draws: int) -> Estimate:
    """The share of an arm's tokens that would give the same loss as fresh data read once.

    Args:
        loss: float[rows], of the arm.
        single_pass: r -> losses of the run that read 1/r of the data once. The mean loss is
            interpolated linearly in the logarithm of the data size, and never extrapolated.
    """
    passes = sorted(single_pass)  # most data first, so losses rise
    losses = np.stack([*(single_pass[r] for r in passes), loss])
    n = losses.shape[1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    means = np.vstack([losses.mean(1), counts @ losses.T / n])
    curves = np.maximum.accumulate(means[:, :-1], axis=1)
    logs = [np.interp(m, c, np.log(passes)) for m, c in zip(means[:, -1], curves, strict=True)]
    shares = np.exp(-np.array(logs))
    low, high = np.quantile(shares[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(shares[0]), float(low), float(high), n, 1)


def worth(
    params: Params, finals: dict[Cell, Arrays], single_pass: Losses, size: str, epochs: int
) -> Estimate | None:
    """`measured_share` in %; None if a run that it needs is missing."""
    curve = {r: single_pass[size, r] for r in params.epoch_list if (size, r) in single_pass}
    if (size, epochs) not in finals or len(curve) < len(params.epoch_list):
        return None
    return measured_share(finals[size, epochs]["loss"], curve, params.bootstrap).times(100)


# --- tables ----------------------------------------------------------------------------------


def tables(
    params: Params,
    measured: dict[tuple[str, int, int], Arrays],
    finals: dict[Cell, Arrays],
    single_pass: Losses,
) -> dict[str, pd.DataFrame]:
    """The study's tables; `result` stands for the columns value, low, high, n.

    levels: size, epochs, step, percent, measure (loss, last_word, read_loss), result.
    effects: the same columns for an arm minus the fresh arm, paired by row; two more measures are
    excess (loss, % above the fresh arm's) and gap (nats, see ArmComparison.gap).
    law: size, epochs, rows (unique), predicted, result: the worth of the passes in %.
    fresh: size, epochs, rows, result: the loss of the run that read an arm's rows once.
    memorized: size, epochs, result: the share of rows memorized.

    Args:
        measured: arrays by (size, epochs, step). finals: arrays at the last step.
        single_pass: losses of the single-pass runs.
    """
    import pandas as pd

    levels, effects, law, fresh, memorized = [], [], [], [], []
    cell = ["size", "epochs"]
    result = ["value", "low", "high", "n"]

    def add(rows: list, where: tuple, e: Estimate | None) -> None:
        if e is not None:
            rows.append((*where, e.value, e.low, e.high, e.n_items))

    for step in sorted({step for _, _, step in measured}):
        at = {(size, r): arrays for (size, r, s), arrays in measured.items() if s == step}
        for (size, r), arrays in at.items():
            where = (size, r, step, 100 * step / params.n_steps)
            for measure, items in arrays.items():
                exact = measure == "last_word"
                add(levels, (*where, measure), estimate(items[None], params.bootstrap, exact=exact))
            if r == 1:
                continue
            one = ArmComparison((size,), params.bootstrap, at)
            for measure in arrays:
                add(effects, (*where, measure), one.change(measure, r))
            add(effects, (*where, "excess"), one.change("loss", r, percent=True))
            add(effects, (*where, "gap"), one.gap(r))
    for size in params.size_list:
        for r in params.epoch_list:
            where = (size, r, params.rows(r))
            if (size, r) in single_pass:
                add(fresh, where, estimate(single_pass[size, r][None], params.bootstrap))
            if r > 1:
                e = worth(params, finals, single_pass, size, r)
                add(law, (*where, 100 * law_share(r)), e)
            if (hits := finals.get((size, r), {}).get("memorized")) is not None:
                share = wilson(int(hits.sum()), len(hits))
                memorized.append((size, r, *share.interval().values(), len(hits)))
    columns = [*cell, "step", "percent", "measure", *result]
    return {
        "levels": pd.DataFrame(levels, columns=columns),
        "effects": pd.DataFrame(effects, columns=columns),
        "law": pd.DataFrame(law, columns=[*cell, "rows", "predicted", *result]),
        "fresh": pd.DataFrame(fresh, columns=[*cell, "rows", *result]),
        "memorized": pd.DataFrame(memorized, columns=[*cell, *result]),
    }


# --- claims ----------------------------------------------------------------------------------


def claims(params: Params, finals: dict[Cell, Arrays], single_pass: Losses) -> list[dict[str, Any]]:
    """The claims of earlier work, and Pythia's premise that one and a half epochs cost little."""
    sizes, largest = ", ".join(params.size_list), params.size_list[-1]
    most = params.epoch_list[-1]
    arms = ArmComparison(params.size_list, params.bootstrap, finals)
    rows = []

    def add(*row: Any) -> None:
        rows.append(claim_row(*row))

    cost = f"(held-out loss, % above that of fresh data; marginal is below {MARGINAL:g}; {sizes})"
    marginal = partial(noninferiority_verdict, bound=MARGINAL)
    grows = partial(premise_verdict, direction=1)
    paper = "Muennighoff et al.: negligible; 0.5 % for 8.7 billion parameters"
    e = arms.change("loss", 4, percent=True)
    add(f"Up to four epochs are nearly free {cost}", paper, e, marginal)
    paper = "presupposed: Pythia reads the deduplicated Pile one and a half times"
    e = arms.change("loss", 2, percent=True)
    verdict = as_premise(marginal(e.low, e.high)) if e else NOT_TESTABLE
    add(f"Two epochs are nearly free {cost}", paper, e, verdict)
    claim = "Sixteen epochs cost more than four (difference of held-out loss, nats per token; "
    paper = "Muennighoff et al.: what repeating gives decays with every pass"
    e = arms.change("loss", 16, base=4)
    add(f"{claim}{sizes})", paper, e, partial(directional_verdict, direction=1))
    for word, epochs in (("Four", 4), ("Sixteen", 16)):
        expected = 100 * law_share(epochs)
        claim = f"{word} epochs are worth what the law says (fresh data with the same loss, in % "
        claim += f"of the data read; within {CLOSE:g} points; {largest})"
        paper = f"Muennighoff et al.: {expected:.0f} % by the data term of their law"
        e = worth(params, finals, single_pass, largest, epochs)
        add(claim, paper, e, partial(equivalence_verdict, expected=expected, margin=CLOSE))
    claim = "Held-out rows fall behind read rows as these are repeated (growth of the gap from 1 "
    claim += f"to {most} epochs, nats per token; {sizes})"
    add(claim, "expected since earlier work", arms.gap(most), grows)
    claim = f"Rows read {most} times are memorized more often than rows read once (points; {sizes})"
    e = arms.change("memorized", most)
    add(claim, "expected since earlier work", e, grows, None, 100)
    return rows


def values(params: Params, finals: dict[Cell, Arrays], single_pass: Losses) -> dict[str, Any]:
    """Numbers quoted in the page's text; None where an arm is missing."""
    arms = ArmComparison(params.size_list, params.bootstrap, finals)
    largest, most = params.size_list[-1], params.epoch_list[-1]

    def interval(e: Estimate | None, factor: float = 1) -> dict[str, float] | None:
        return e.times(factor).interval() if e else None

    fresh = finals.get((largest, 1), {}).get("loss")
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": largest,
        "epochs": ", ".join(map(str, params.epoch_list)),
        "most": most,
        "steps": params.n_steps,
        "rows": params.rows(),
        "rows_least": params.rows(most),
        "marginal": MARGINAL,
        "n_rows": None if fresh is None else len(fresh),
        "fresh_loss": None if fresh is None else interval(estimate(fresh[None], params.bootstrap)),
        "gap_growth": interval(arms.gap(most)),
        "memorized_change": interval(arms.change("memorized", most), 100),
    }
    for epochs in (2, 4, 8, 16):
        numbers[f"excess_{epochs}"] = interval(arms.change("loss", epochs, percent=True))
        numbers[f"worth_{epochs}"] = interval(worth(params, finals, single_pass, largest, epochs))
        numbers[f"predicted_{epochs}"] = 100 * law_share(epochs)
    return numbers
