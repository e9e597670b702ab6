"""Seeds (after PolyPythias, arXiv:2503.09543): variation between repeated training runs.

PolyPythias trains five sizes with nine more seeds, each of which sets initial weights and data
order at once. Here one size is trained on the standard text with every pair of an order seed and a
weight seed, which separates the two, and on the deduplicated text with both varied together. The
suite's own runs are among them and are not trained again. All runs are measured on the same
held-out rows and items. seeds.variance computes the intervals over seeds.
"""

from __future__ import annotations

import time
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import LanguageMeasurement, Measurement, measure_all
from pythia_book.studies.deduplication.params import CONTEXT
from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
from pythia_book.studies.registry import train_all
from pythia_book.studies.seeds.claims import claims
from pythia_book.studies.seeds.params import STUDY, Cell, Params
from pythia_book.studies.seeds.tables import MEASURES, Measured, stacked, tables
from pythia_book.study import Result
from pythia_core.config import RunConfig
from pythia_core.evaluation.memorization import ExtractionMeasurement
from pythia_core.suite import DATA_ARMS, scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.training.runs import Run


def run(params: Params, progress: bool = True) -> Result:
    """Find or train all runs, measure them, and split the spread into components."""
    started = time.time()
    configs: dict[Any, RunConfig] = {cell: params.config(*cell) for cell in params.cells}
    configs |= suite_configs(params.scale, [params.neighbour_size], ["standard"])
    trained = train_all(params, configs, progress)
    neighbour = trained[params.neighbour_size, "standard"]
    runs = {cell: trained[cell] for cell in params.cells}
    measured, gaps = measure(params, runs, progress)
    frames = tables(params, measured)
    other, more = neighbour_loss(neighbour, progress)
    last = scale_named(params.scale).steps
    shares = stacked(measured, params.members("both"), last, "feminine_share")
    rows = claims(params, frames, other, shares)
    numbers = values(params, frames, other) | {"gaps": gaps + more}
    return Result(STUDY, params, frames, numbers, rows, [*runs.values(), neighbour], started)


# --- measuring -------------------------------------------------------------------------------


def measure(params: Params, runs: dict[Cell, Run], progress: bool) -> tuple[Measured, int]:
    """All measures of all runs, and the number of gaps."""
    first = runs[params.cells[0]]
    length, last = first.config.model.max_seq_len, first.config.train.steps
    measured: Measured = {}
    n_gaps = 0

    def add(measurement: Measurement, cells: list[Cell], steps: list[int], *names: str) -> None:
        nonlocal n_gaps
        checkpoints = [(runs[cell], step) for cell in cells for step in steps]
        arrays, gaps = measure_all(checkpoints, measurement, progress)
        n_gaps += len(gaps)
        for cell, step in product(cells, steps):
            at = arrays.get((runs[cell].id, step), {})
            measured.update({(cell, step, n): at[n].astype(np.float64) for n in names if n in at})

    # Held-out documents and tokenizer do not depend on the order or the text.
    language = LanguageMeasurement.of(first.data, length)
    add(language, params.cells, params.steps, "loss", "last_word")
    gender = TokenizedItems(Items.load(), first.data, length).measurement(full=False)
    add(gender, params.cells, params.steps, "feminine_share")
    for order, arm in product(params.seed_values, DATA_ARMS):  # these determine the rows read
        cells = [cell for cell in params.cells if cell[::2] == (order, arm)]
        t = runs[cells[0]].config.train
        rows = ExtractionMeasurement(runs[cells[0]].data, t.batch_size, t.steps, CONTEXT, CONTEXT)
        add(rows, cells, [last], "memorized")
    return measured, n_gaps


def neighbour_loss(neighbour: Run, progress: bool) -> tuple[float | None, int]:
    """Final held-out loss of the adjacent size, and the number of gaps; (None, 1) for a gap."""
    language = LanguageMeasurement.of(neighbour.data, neighbour.config.model.max_seq_len)
    key = (neighbour.id, neighbour.config.train.steps)
    arrays, gaps = measure_all([(neighbour, key[1])], language, progress)
    return (float(arrays[key]["loss"].mean()) if key in arrays else None), len(gaps)


# --- values for the text ---------------------------------------------------------------------


def values(params: Params, tables: dict[str, pd.DataFrame], other: float | None) -> dict[str, Any]:
    """Names and numbers quoted in the page's text; shares in percent or points, None for a gap."""
    numbers: dict[str, Any] = {
        "size": params.size,
        "neighbour": params.neighbour_size,
        "n_seeds": params.seeds,
        "n_grid": params.seeds**2,
        "n_runs": len(params.cells),
        "loss_gap": None,
    }
    kinds = ("sd_order", "sd_weights", "sd_rest", "sd_both", "sd_items", "mean", "change")
    numbers |= {f"{measure}_{kind}": None for measure in MEASURES for kind in kinds}
    for row in tables["components"].itertuples():
        factor = MEASURES[row.measure]
        ends = {"value": row.value, "low": row.low, "high": row.high}
        numbers[f"{row.measure}_sd_{row.kind}"] = {k: factor * v for k, v in ends.items()}
    bands = tables["bands"]
    for row in bands[bands.percent == 100].itertuples():
        numbers[f"{row.measure}_mean"] = MEASURES[row.measure] * row.mean
        if row.measure == "loss" and other is not None:
            numbers["loss_gap"] = abs(row.mean - other)
    effects = tables["effects"]
    for row in effects[(effects.percent == 100) & (effects.seed == "mean")].dropna().itertuples():
        ends = {"value": row.value, "low": row.low, "high": row.high}
        factor = MEASURES[row.measure]
        numbers[f"{row.measure}_change"] = {k: factor * v for k, v in ends.items()}
    return numbers
