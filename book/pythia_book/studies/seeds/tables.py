"""Makes the tables of the seeds study, on how much results vary between training seeds.

For a missing measurement, the table `levels` has a row without a value. Statistics that need it are
omitted, or are computed from fewer runs; the column `n` has the number of runs. If all runs have
the same value, e.g. because no model gets a last word right, there is no interval, because a few
equal values say little about the next run.
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
"""Maps a measure to the factor that converts a table value to the unit of the page's text. Tables
have shares, and the text has percentages."""
KINDS = ("order", "weights", "both")
"""Which seed varies: the order seed or the weight seed, with the other one fixed to the suite's; or
both, as in PolyPythias."""
COLUMNS = ["order_seed", "weight_seed", "arm", "step", "percent", "measure", "value"]

Measured = dict[tuple[Cell, int, str], np.ndarray]
"""Maps (cell, step, measure) to the values of all items, float64[items]."""


def stacked(measured: Measured, cells: list[Cell], step: int, measure: str) -> np.ndarray | None:
    """Stack the values of several runs on one measure at one step, float[cells, items].

    Return None if a run was not measured.
    """
    rows = [measured.get((cell, step, measure)) for cell in cells]
    return None if any(row is None for row in rows) else np.stack(rows)


def tables(params: Params, measured: Measured) -> dict[str, pd.DataFrame]:
    """Return the tables of the study. Shares are fractions of 1, and loss is in nats per token.

    - levels: order_seed, weight_seed, arm, step, percent (of training), measure, value (NaN if not
      measured): the mean score of every run.
    - bands: measure, step, percent, mean, low, high, sd, min, max, n, over the standard runs in
      which both seeds vary together. From low to high is the 95 % prediction interval for the
      score of one further run with two new seeds.
    - trajectories: kind, measure, step, percent, sd, low, high, n: the standard deviation over
      seeds. The kind, one of KINDS, says which seeds vary.
    - components: measure, kind, value, low, high, n: standard deviations at the end. The kinds are
      order, weights, rest, both (the two seeds vary together, as in PolyPythias), and items (from
      the sampling of items alone).
    - ratios: measure, value, low, high, n: the standard deviation of the kind order divided by the
      standard deviation of the kind weights, at the end.
    - effects: measure, step, percent, seed, value, low, high, n: deduplicated minus standard, for
      each seed (with an interval over items) and for the seed "mean" (with an interval over seeds).
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
    """Return mean, low, high, min, max and n of a row of the table `bands`.

    `low` and `high` are the ends of the prediction interval for one more run. They are NaN if all
    values are equal.

    Args:
        values: the mean score of each run.
    """
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

    Args:
        squares: for each measure, the mean scores of the runs, float[order seeds, weight seeds].
        items: for each measure, the scores of the items, float[runs, items], or None if a run is
            missing.
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
