"""Tables of the seeds study, on how much results vary between training seeds.

A missing measurement is NaN in the table `levels`. Statistics that need it are left out, or are
computed from the other runs; `n` says how many. If all runs have the same value, there is no
interval, because a few equal values say little about the next run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import estimate, mean_over
from pythia_book.studies.seeds.params import Cell, Params
from pythia_book.studies.seeds.variance import (
    components,
    items_error,
    one_more,
    order_to_weights,
    spread,
)
from pythia_core.suite import DATA_ARMS, scale_named

if TYPE_CHECKING:
    import pandas as pd

MEASURES = {"loss": 1, "last_word": 100, "feminine_share": 100, "memorized": 100}
"""Maps a measure to the factor from table values to the page's unit; shares become percentages."""
KINDS = ("order", "weights", "both")
"""Which seed varies: the order seed, the weight seed, or both. A seed that does not vary is the
suite's."""
COLUMNS = ["order_seed", "weight_seed", "arm", "step", "percent", "measure", "value"]

Measured = dict[tuple[Cell, int, str], np.ndarray]
"""Maps (cell, step, measure) to the values of all items, float64[items]. A cell is a run."""


def stacked(measured: Measured, cells: list[Cell], step: int, measure: str) -> np.ndarray | None:
    """Stack the values of several runs, float[cells, items]; None if a run was not measured."""
    rows = [measured.get((cell, step, measure)) for cell in cells]
    return None if any(row is None for row in rows) else np.stack(rows)


def tables(params: Params, measured: Measured) -> dict[str, pd.DataFrame]:
    """Return the tables of the study. Shares are fractions of 1, and loss is in nats per token.

    `levels`: the mean score `value` of every run by `order_seed`, `weight_seed`, `arm`, `step`,
        `percent` (of training) and `measure`.
    `bands`: `mean`, `sd`, `min`, `max`, `n` over the standard runs in which both seeds vary, by
        `measure`, `step` and `percent`. From `low` to `high` is the 95 % prediction interval of one
        further run with two new seeds.
    `trajectories`: the standard deviation over seeds, `sd`, `low`, `high`, `n`, by `kind` (one of
        KINDS), `measure`, `step` and `percent`.
    `components`: standard deviations at the end, `value`, `low`, `high`, `n`, by `measure` and
        `kind`: "order", "weights", "rest", "both", or "items" (from the sampling of items alone).
    `ratios`: final standard deviation over order seeds divided by that over weight seeds, `value`,
        `low`, `high`, `n`, by `measure`.
    `effects`: deduplicated minus standard, `value`, `low`, `high`, `n`, by `measure`, `step`,
        `percent` and `seed`. The interval of a seed is over items, that of the seed "mean" is over
        seeds.
    """
    import pandas as pd

    scale = scale_named(params.scale)
    last = scale.steps
    means = {key: float(values.mean()) for key, values in measured.items()}

    def at(cells: list[Cell], step: int, measure: str) -> np.ndarray:
        """Return the mean score of each run at a step, float[cells]; NaN if not measured."""
        return np.array([means.get((cell, step, measure), np.nan) for cell in cells])

    levels, bands, trajectories, effects = [], [], [], []
    for measure in MEASURES:
        for step in [last] if measure == "memorized" else params.steps:
            common = {"measure": measure, "step": step, "percent": 100 * step / last}
            for cell, value in zip(params.cells, at(params.cells, step, measure), strict=True):
                where = dict(zip(COLUMNS[:3], cell, strict=True))
                levels.append(where | common | {"value": value})
            for kind in KINDS:
                values = at(params.members(kind), step, measure)
                values = values[np.isfinite(values)]
                row = {"kind": kind, **common, "n": len(values)}
                if len(values) > 1:
                    e = spread(values)
                    row |= {"sd": e.value, "low": e.low, "high": e.high}
                    if kind == "both":
                        bands.append(common | _band(values, measure) | {"sd": e.value})
                trajectories.append(row)
            effects += [common | row for row in _effects(params, measured, step, measure)]
    grid = params.cells[: params.seeds**2]
    squares = {
        measure: at(grid, last, measure).reshape(params.seeds, params.seeds) for measure in MEASURES
    }
    items = {
        measure: stacked(measured, grid, last, measure)
        for measure in MEASURES
        if measure != "memorized"  # runs of different order read different rows
    }
    parts, ratios = _components(squares, items)
    keys, interval = ["measure", "step", "percent"], ["value", "low", "high", "n"]
    frames = {
        "levels": (levels, COLUMNS),
        "bands": (bands, [*keys, "mean", "low", "high", "sd", "min", "max", "n"]),
        "trajectories": (trajectories, ["kind", *keys, "sd", "low", "high", "n"]),
        "components": (parts, ["measure", "kind", *interval]),
        "ratios": (ratios, ["measure", *interval]),
        "effects": (effects, [*keys, "seed", *interval]),
    }
    return {name: pd.DataFrame(rows, columns=columns) for name, (rows, columns) in frames.items()}


def _band(values: np.ndarray, measure: str) -> dict[str, Any]:
    """Return mean, low, high, min, max and n of a row of the table `bands`."""
    e = one_more(values)
    low, high = (e.low, e.high) if np.ptp(values) else (np.nan, np.nan)
    if measure != "loss":  # shares lie in 0..1
        low, high = np.clip([low, high], 0, 1)
    ends = {"min": values.min(), "max": values.max()}
    return {"mean": e.value, "low": low, "high": high, **ends, "n": len(values)}


def _effects(params: Params, measured: Measured, step: int, measure: str) -> list[dict[str, Any]]:
    """Return rows of the table `effects` for a step and measure: one per seed, then the mean."""
    rows, changes = [], []
    for seed in params.seed_values:
        twins = [measured.get(((seed, seed, arm), step, measure)) for arm in DATA_ARMS]
        row: dict[str, Any] = {"seed": str(seed)}
        if twins[0] is not None and twins[1] is not None:
            row["value"] = twins[1].mean() - twins[0].mean()
            changes.append(row["value"])
            if measure != "memorized":  # twins read different rows, so items cannot be paired
                exact = measure == "last_word"
                change = (twins[1] - twins[0])[None]
                e = estimate(change, params.bootstrap, change=True, exact=exact)
                row |= e.interval() | {"n": e.n_items}
        rows.append(row)
    mean: dict[str, Any] = {"seed": "mean", "n": len(changes)}
    if changes:
        mean["value"] = np.mean(changes)
    if len(changes) > 1 and np.ptp(changes):
        mean |= mean_over(changes).interval()
    return [*rows, mean]


def _components(
    squares: dict[str, np.ndarray], items: dict[str, np.ndarray | None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the tables `components` and `ratios`.

    `squares` maps a measure to mean scores, float[order seeds, weight seeds], and `items` maps a
    measure to scores of items, float[runs, items].
    """
    parts, ratios = [], []
    for measure, square in squares.items():
        if np.isnan(square).any() or not np.ptp(square):
            continue
        each = {**components(square), "both": spread(np.diag(square))}
        if items.get(measure) is not None:
            each["items"] = items_error(items[measure])
        parts += [
            {"measure": measure, "kind": kind, **e.interval(), "n": e.n_seeds}
            for kind, e in each.items()
        ]
        if ratio := order_to_weights(square):
            ratios.append({"measure": measure, **ratio.interval(), "n": ratio.n_seeds})
    return parts, ratios
