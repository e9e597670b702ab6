"""Measures how much results vary between training runs with different seeds.

The study follows PolyPythias (arXiv:2503.09543). There, a seed sets both the initial weights and
the data order, except for six runs of 160M in which only one of the two varies. Here, we separate
the two effects: one size is trained on the standard text with every pair of an order seed and a
weight seed. On the deduplicated text, both seeds vary together. All runs are measured on the same
held-out rows and items.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.published.training_maps import training_maps
from pythia_book.studies.deduplication.params import CONTEXT
from pythia_book.studies.seeds.claims import claims, map_agreement
from pythia_book.studies.seeds.params import STUDY, Cell, Params
from pythia_book.studies.seeds.tables import MEASURES, Measured, tables
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.suite import DATA_ARMS, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import Measurement
    from pythia_book.published.results import Published
    from pythia_core.config import RunConfig
    from pythia_core.training.runs import Run


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train all runs, measure them, and split the spread between runs into components.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """
    measuring, analysing = partial(measure, params, progress), partial(analyse, params)
    return conduct(STUDY, params, measuring, analysing, released, published)


def released(published: Published) -> Tables:
    """Return the table `training_maps`: a state for each checkpoint of PolyPythias' 410M runs."""
    return {"training_maps": training_maps(published)}


def analyse(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers alone."""
    by_cell = unpacked(params, measured)
    frames, other = tables(params, by_cell), measured.facts["neighbour_loss"]
    numbers = values(params, frames, other) | {"gaps": measured.facts["gaps"]}
    same = map_agreement(released.get("training_maps"))
    numbers["map_agreement"] = same and same.interval()
    return frames, numbers, claims(params, by_cell, frames, other, released)


def unpacked(params: Params, measured: Measurements) -> Measured:
    """Map each measured (cell, step, measure) to the values of all items, float64[items]."""
    found: Measured = {}
    for measure in MEASURES:
        for cell, step in product(params.cells, params.steps):
            array = measured.get(measure, *cell, step)
            if array is not None:
                found[cell, step, measure] = array.astype(np.float64)
    return found


# --- measuring -------------------------------------------------------------------------------

TYPES: dict[str, type] = {
    "loss": np.float32,
    "last_word": bool,
    "feminine_share": np.float32,
    "memorized": bool,
}
"""Maps a measure to the type of its array in the record."""


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train all runs and measure them.

    Arrays MEASURE/ORDER_SEED/WEIGHT_SEED/ARM/STEP, with one value per item, for these measures:
    `loss`: in nats per token, on held-out rows;
    `last_word`: whether the last word of a held-out sentence is predicted;
    `feminine_share`: the share of feminine pronouns after an occupation;
    `memorized`: whether a training row is memorized, at the end only.

    Facts:
    `neighbour_loss`: the final held-out loss of the neighbouring size, or None;
    `gaps`: number of measurements without a readable checkpoint.
    """
    from pythia_book.measurements import LanguageMeasurement, measure_all
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
    from pythia_book.studies.registry import train_all
    from pythia_core.evaluation.memorization import ExtractionMeasurement

    configs: dict[Any, RunConfig] = {cell: params.config(*cell) for cell in params.cells}
    configs |= suite_configs(params.scale, [params.neighbour_size], ["standard"])
    trained = train_all(params, configs, progress)
    neighbour = trained[params.neighbour_size, "standard"]
    runs: dict[Cell, Run] = {cell: trained[cell] for cell in params.cells}
    first = runs[params.cells[0]]
    length, last = first.config.model.max_seq_len, first.config.train.steps
    arrays: dict[str, np.ndarray] = {}
    n_gaps = 0

    def add(measurement: Measurement, cells: list[Cell], steps: list[int], *names: str) -> None:
        """Measure the runs `cells` at `steps`, and keep only the arrays that `names` lists."""
        nonlocal n_gaps
        checkpoints = [(runs[cell], step) for cell in cells for step in steps]
        found, gaps = measure_all(checkpoints, measurement, progress)
        n_gaps += len(gaps)
        for cell, step in product(cells, steps):
            at = found.get((runs[cell].id, step), {})
            for name in names:
                if name in at:
                    arrays[name_of(name, *cell, step)] = at[name].astype(TYPES[name])

    # Held-out documents and tokenizer do not depend on the order or the text.
    language = LanguageMeasurement.of(first.data)
    add(language, params.cells, params.steps, "loss", "last_word")
    gender = TokenizedItems(Items.load(), first.data, length).measurement(full=False)
    add(gender, params.cells, params.steps, "feminine_share")
    for order, arm in product(params.seed_values, DATA_ARMS):  # these determine the rows read
        cells = [cell for cell in params.cells if cell[::2] == (order, arm)]
        t = runs[cells[0]].config.train
        rows = ExtractionMeasurement(runs[cells[0]].data, t.batch_size, t.steps, CONTEXT, CONTEXT)
        add(rows, cells, [last], "memorized")

    key = (neighbour.id, neighbour.config.train.steps)
    language = LanguageMeasurement.of(neighbour.data)
    found, gaps = measure_all([(neighbour, key[1])], language, progress)
    other = float(found[key]["loss"].mean()) if key in found else None
    facts = {"neighbour_loss": other, "gaps": n_gaps + len(gaps)}
    return Measurements(arrays, facts, [*runs.values(), neighbour])


# --- values for the text ---------------------------------------------------------------------


def values(params: Params, tables: dict[str, pd.DataFrame], other: float | None) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name; None if not measured.

    Shares are in percent or points, loss in nats per token. `other` is the final loss of the
    neighbouring size.
    """
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
