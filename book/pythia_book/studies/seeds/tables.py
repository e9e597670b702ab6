"""Tables of the seeds study, on how much results vary between training seeds.

A missing measurement is NaN in the table `levels`, and statistics are computed from the other runs;
`n` says how many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.seed_spread import POOLED, of_single_runs
from pythia_book.stats import Estimate
from pythia_book.studies.seeds import pairs
from pythia_book.studies.seeds.params import BOTH, KINDS, LARGEST, ORDER, WEIGHTS, Cell, Params
from pythia_book.studies.seeds.variance import (
    added_ratio,
    excess_over_item_noise,
    items_error,
    largest_difference,
    spread,
    spread_ratio,
)
from pythia_book.study import name_of
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Measurements


@dataclass(frozen=True)
class Measure:
    """A measure of a run: its title in figures, and its unit on the page.

    The factor converts a value of a table to this unit.
    """

    title: str
    unit: str
    factor: float = 1


MEASURES = {
    "loss": Measure("held-out loss", "nats per token"),
    "last_word": Measure("last words", "points", 100),
    "feminine_share": Measure("feminine share", "points", 100),
    "association": Measure("association", "slope"),
    "sums_choice": Measure("sums, choice of four", "points", 100),
    "sums_logprob": Measure("sums, log-probability", "nats"),
    "sums_exact": Measure("sums, written", "points", 100),
    "memorized": Measure("rows memorized", "points", 100),
    "training_loss": Measure("training loss", "nats per token"),
}
ITEMS: dict[str, type] = {"loss": np.float32, "last_word": bool, "feminine_share": np.float32}
"""Maps each measure whose items are recorded to their type. Runs with different orders read
different rows, so memorization has no items in common."""
APART, SIZE, ADDED = "apart", "size", "added"
"""Ratios of standard deviations: order seeds over weight seeds; the smaller size over the largest;
both seeds over what order and weights would give if their contributions simply added up."""


class Scores:
    """Looks up the scores of runs in the measurements of the study."""

    def __init__(self, params: Params, measured: Measurements) -> None:
        self.params, self.measured = params, measured

    @cached_property
    def percents(self) -> np.ndarray:
        """How much of training is done at each step, in percent."""
        return 100 * np.array(self.params.steps) / scale_named(self.params.scale).steps

    def of(self, measure: str, cell: Cell) -> np.ndarray:
        """Return a run's score at each step, float64[steps]; NaN where not measured."""
        return self.measured.arrays[name_of("mean", measure, *cell)]

    def at(self, measure: str, kind: str, index: int = -1) -> np.ndarray:
        """Return the scores of a group's measured runs at one of the steps, float64[runs]."""
        scores = np.array([self.of(measure, cell)[index] for cell in self.params.members(kind)])
        return scores[np.isfinite(scores)]

    def items(self, measure: str, kind: str) -> np.ndarray | None:
        """Return the final scores of items, float64[runs, items]; None if a run lacks them."""
        rows = [self.measured.get("items", measure, *c) for c in self.params.members(kind)]
        if len(rows) < 2 or any(row is None for row in rows):
            return None
        return np.stack([row for row in rows if row is not None]).astype(np.float64)

    def ratio(self, contrast: str, measure: str, index: int = -1) -> Estimate | None:
        """Return a ratio of standard deviations (APART, SIZE or ADDED) at one of the steps.

        None if a group has fewer than two measured runs, or does not vary.
        """
        groups = {kind: self.at(measure, kind, index) for kind in KINDS}
        kinds = {APART: (ORDER, WEIGHTS), SIZE: (BOTH, LARGEST), ADDED: (BOTH, ORDER, WEIGHTS)}
        values = [groups[kind] for kind in kinds[contrast]]
        if any(len(each) < 2 or not np.ptp(each) for each in values):
            return None
        return added_ratio(*values) if contrast == ADDED else spread_ratio(*values)


def tables(scores: Scores) -> dict[str, pd.DataFrame]:
    """Return the tables of the study. Shares are fractions of 1, and losses in nats per token.

    `levels`: the score `value` of every run by `size`, `order_seed`, `weight_seed`, `measure`,
        `step` and `percent` (of training).
    `spreads`: `mean`, standard deviation `sd` with its interval `low` to `high`, and number `n`
        of runs, by `kind` (one of KINDS, or POOLED for the groups of the smaller size together),
        `size`, `measure`, `step` and `percent`.
    `ratios`: `value`, `low`, `high` of the ratios of standard deviations by `contrast` (APART, SIZE
        or ADDED), `measure`, `step` and `percent`.
    `single`: what the spread means for single runs at the end, by `measure` and `kind` (BOTH or
        LARGEST): `sd`, the spread in bands (see `seed_spread.of_single_runs`), from `n` runs;
        `differ`, the difference that two runs with different seeds exceed one time in
        twenty; `items`, the standard deviation of a run due to the choice of items; and `value`
        (with its interval `low` to `high`), the spread over seeds divided by `items`.
    `pairs`: `value` of the arrays of `pairs.compare`, by `pair`, `quantity` and `step`.
    """
    import pandas as pd

    keys, interval = ["measure", "step", "percent"], ["value", "low", "high"]
    columns = {
        "levels": ["size", "order_seed", "weight_seed", *keys, "value"],
        "spreads": ["kind", "size", *keys, "mean", "sd", "low", "high", "n"],
        "ratios": ["contrast", *keys, *interval],
        "single": ["measure", "kind", "size", "n", "sd", "differ", "items", *interval],
        "pairs": ["pair", "quantity", "step", "value"],
    }
    spreads = pd.DataFrame(_spreads(scores), columns=columns["spreads"])
    rows = {
        "levels": _levels(scores),
        "spreads": spreads,
        "ratios": _ratios(scores),
        "single": _single(scores, spreads),
        "pairs": pairs.rows(scores.params, scores.measured),
    }
    return {name: pd.DataFrame(rows[name], columns=columns[name]) for name in columns}


def _times(scores: Scores) -> list[tuple[int, dict[str, Any]]]:
    """Return the index of every step, with its keys in a table."""
    steps = zip(scores.params.steps, scores.percents, strict=True)
    return [(i, {"step": step, "percent": percent}) for i, (step, percent) in enumerate(steps)]


def _levels(scores: Scores) -> list[dict[str, Any]]:
    return [
        {"size": cell[0], "order_seed": cell[1], "weight_seed": cell[2], "measure": measure}
        | time
        | {"value": scores.of(measure, cell)[i]}
        for measure in MEASURES
        for cell in scores.params.cells
        for i, time in _times(scores)
        if measure != "memorized" or time["step"] in scores.params.extraction_steps
    ]


def _spreads(scores: Scores) -> list[dict[str, Any]]:
    rows = []
    kinds = {kind: (kind,) for kind in KINDS} | {POOLED: (ORDER, WEIGHTS, BOTH)}
    for kind, members in kinds.items():
        size = scores.params.size_of(members[-1])
        for measure in MEASURES:
            for i, time in _times(scores):
                groups = [scores.at(measure, member, i) for member in members]
                if min(map(len, groups)) < 2:
                    continue
                e = spread(*groups)
                mean = np.mean([group.mean() for group in groups])
                rows.append(
                    {"kind": kind, "size": size, "measure": measure, **time, "n": e.n_seeds,
                     "mean": mean, "sd": e.value, "low": e.low, "high": e.high}
                )  # fmt: skip
    return rows


def _ratios(scores: Scores) -> list[dict[str, Any]]:
    return [
        {"contrast": contrast, "measure": measure, **time, **e.interval()}
        for contrast in (APART, SIZE, ADDED)
        for measure in MEASURES
        for i, time in _times(scores)
        if (e := scores.ratio(contrast, measure, i))
    ]


def _single(scores: Scores, spreads: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    ends = of_single_runs(spreads)
    ends = ends[ends.percent == 100].set_index(["measure", "size"])
    for kind in (BOTH, LARGEST):
        size = scores.params.size_of(kind)
        for measure in MEASURES:
            if len(scores.at(measure, kind)) < 2:
                continue
            end = ends.loc[(measure, size)]
            row = {"measure": measure, "kind": kind, "size": size, "n": int(end.n), "sd": end.sd}
            row |= {"differ": largest_difference(end.sd, int(end.n) - 1), "items": math.nan}
            items = scores.items(measure, kind)
            if items is not None:
                excess = excess_over_item_noise(items)
                row |= {"items": items_error(items).value, **(excess.interval() if excess else {})}
            rows.append(row)
    return rows
