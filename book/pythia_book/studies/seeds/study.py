"""Measures how much results vary between training runs with different seeds.

The study follows PolyPythias (arXiv:2503.09543). There, a seed sets both the initial weights and
the data order, except for six runs of 160M in which only one of the two varies. Here, a small size
is trained with many seeds of each of the three kinds, and the largest size with a few. All runs
read the standard text, and are measured on the same held-out rows and items. Other studies draw
bands under their curves from the table `spreads` (pythia_book.seed_spread).
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.published.training_maps import training_maps
from pythia_book.studies.seeds.claims import claims, map_agreement
from pythia_book.studies.seeds.params import (
    BOTH,
    CONTEXT,
    KINDS,
    LARGE,
    STUDY,
    SUITE_SEED,
    Cell,
    Params,
)
from pythia_book.studies.seeds.tables import ITEMS, MEASURES, Scores, tables
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.suite import scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import Measurement
    from pythia_book.published.results import Published
    from pythia_core.config import RunConfig
    from pythia_core.training.runs import Run


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train all runs, measure them, and compare the spreads between runs.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """
    measuring, analysing = partial(measure, params, progress), partial(analyse, params)
    return conduct(STUDY, params, measuring, analysing, released, published)


def released(published: Published) -> Tables:
    """Return the table `training_maps`: a state for each checkpoint of PolyPythias' 410M runs."""
    return {"training_maps": training_maps(published)}


def analyse(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers alone."""
    scores = Scores(params, measured)
    frames = tables(scores)
    other = measured.facts["neighbour_loss"]
    numbers = values(params, frames, other) | {"gaps": measured.facts["gaps"]}
    same = map_agreement(released.get("training_maps"))
    numbers["map_agreement"] = same and same.interval()
    return frames, numbers, claims(scores, frames, other, released)


# --- measuring -------------------------------------------------------------------------------


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train all runs and measure them.

    Arrays of a run, named KIND/MEASURE/SIZE/ORDER_SEED/WEIGHT_SEED:
    `mean`: float64[steps], the score of the run at each of `params.steps`, for all of MEASURES; NaN
        if it was not measured. Runs in which only one seed varies are measured at the end only,
        except for held-out loss and last words.
    `items`: [items], the score of each item at the end, for the measures ITEMS.

    Arrays QUANTITY/PAIR of two weight seeds, float64[steps] at `params.weight_steps`: see `_pairs`.

    Facts:
    `neighbour_loss`: the final held-out loss of the neighbouring size, or None;
    `gaps`: number of measurements without a readable checkpoint.
    """
    from pythia_book.measurements import LanguageMeasurement, measure_all
    from pythia_book.studies.registry import train_all

    configs: dict[Any, RunConfig] = {cell: params.config(cell) for cell in params.cells}
    configs |= suite_configs(params.scale, [params.neighbour_size], ["standard"])
    trained = train_all(params, configs, progress)
    neighbour = trained[params.neighbour_size, "standard"]
    runs: dict[Cell, Run] = {cell: trained[cell] for cell in params.cells}
    first = runs[params.cells[0]]
    last = first.config.train.steps
    arrays: dict[str, np.ndarray] = {
        name_of("mean", measure, *cell): np.full(len(params.steps), np.nan)
        for measure in MEASURES
        for cell in params.cells
    }
    n_gaps = 0

    def add(measurement: Measurement, cells: list[Cell], steps: list[int], **names: str) -> None:
        """Measure runs at some steps. `names` maps measures of the study to names of arrays."""
        nonlocal n_gaps
        checkpoints = [(runs[cell], step) for cell in cells for step in steps]
        by_checkpoint, gaps = measure_all(checkpoints, measurement, progress)
        n_gaps += len(gaps)
        for cell in cells:
            for step in steps:
                at = by_checkpoint.get((runs[cell].id, step))
                for name, array in names.items() if at else ():
                    score = _score(name, at[array])
                    arrays[name_of("mean", name, *cell)][params.steps.index(step)] = score
                    if name in ITEMS and step == last:
                        arrays[name_of("items", name, *cell)] = at[array].astype(ITEMS[name])

    curves = list(dict.fromkeys([*params.members(BOTH), *params.members(LARGE)]))
    lines = [cell for cell in params.cells if cell not in curves]
    language = LanguageMeasurement.of(first.data)  # held-out text depends on no seed
    add(language, params.cells, params.steps, loss="loss", last_word="last_word")
    for measurement, names in _measurements(first):
        add(measurement, curves, params.steps, **names)
        add(measurement, lines, [last], **names)
    for order in dict.fromkeys(order for _, order, _ in params.cells):  # determines the rows read
        extraction = _extraction(runs, order)
        for cells, steps in ((curves, params.extraction_steps), (lines, [last])):
            add(extraction, [cell for cell in cells if cell[1] == order], steps,
                memorized="memorized")  # fmt: skip
    for cell, each in runs.items():
        arrays[name_of("mean", "training_loss", *cell)] = _training_losses(each, params.steps)

    key = (neighbour.id, neighbour.config.train.steps)
    last_of_neighbour, gaps = measure_all([(neighbour, key[1])], language, progress)
    other = float(last_of_neighbour[key]["loss"].mean()) if key in last_of_neighbour else None
    pairs, unread = _pairs(params, runs, progress)
    facts = {"neighbour_loss": other, "gaps": n_gaps + len(gaps) + unread}
    return Measurements(arrays | pairs, facts, [*runs.values(), neighbour])


def _measurements(run: Run) -> list[tuple[Measurement, dict[str, str]]]:
    """Return the measurements on items, with their arrays by the study's name of the measure."""
    from pythia_book.corpora import occupations
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
    from pythia_book.tasks.arithmetic import ArithmeticMeasurement
    from pythia_book.tasks.associations import UNSEEN, AssociationMeasurement

    data, length = run.data, run.config.model.max_seq_len
    gender = TokenizedItems(Items.load(), data, length).measurement(full=False)
    sums = ArithmeticMeasurement.of(data, 0, length, planted=False)
    stimuli = occupations.stimuli()
    nouns = [noun for noun in stimuli.nouns if noun.group == occupations.INVENTED]
    frames = {UNSEEN: stimuli.unseen}
    return [
        (gender, {"feminine_share": "feminine_share"}),
        (sums, {f"sums_{name}": name for name in ("choice", "exact", "logprob")}),
        (AssociationMeasurement.of(data, length, frames, nouns), {"association": UNSEEN}),
    ]


def _score(measure: str, array: np.ndarray) -> float:
    """Return a run's score from the array of a measurement: its mean, or for nouns, the slope."""
    if measure != "association":
        return float(array.mean(dtype=np.float64))
    from pythia_book.corpora import occupations
    from pythia_book.stats import slope

    nouns = occupations.stimuli().nouns
    shares = np.array([noun.share for noun in nouns if noun.group == occupations.INVENTED])
    fit = slope(np.log(shares / (1 - shares)), array.mean(0))
    assert fit is not None
    return fit.value


def _extraction(runs: dict[Cell, Run], order: int) -> Measurement:
    """Return the measurement of memorized rows for all runs with this order seed."""
    from pythia_core.evaluation.memorization import ExtractionMeasurement

    run = next(run for (_, seed, _), run in runs.items() if seed == order)
    train = run.config.train
    return ExtractionMeasurement(run.data, train.batch_size, train.steps, CONTEXT, CONTEXT)


def _training_losses(run: Run, steps: list[int]) -> np.ndarray:
    """Return the mean training loss over the last updates before each step, float64[steps].

    As many updates are averaged as for a point of the suite's loss curves.
    """
    from pythia_book.studies.suite.study import BINS

    losses = np.array([row["loss"] for row in run.metrics()])
    window = max(1, len(losses) // BINS)
    return np.array([losses[max(0, step - window) : step].mean() for step in steps])


SOUND, DECOUPLED = "sound", "decoupled"
PAIRS = (SOUND, DECOUPLED)
OWN, APART, LOSS, DESCENT = "own", "apart", "loss", "descent"


def _pairs(
    params: Params, runs: dict[Cell, Run], progress: bool
) -> tuple[dict[str, np.ndarray], int]:
    """Compare two weight seeds, as trained and with the reported defect, at `weight_steps`.

    The sound pair reads the same batches from different initial weights. The decoupled pair has the
    same two step 0, but all later steps are from runs that start at the suite's weights and read
    different batches. Arrays QUANTITY/PAIR:

    `own`: distance of the second run from its step 0;
    `apart`: distance between the two runs; both in units of the distance between the two step 0;
    `loss`: difference between the held-out losses of the two runs, in nats per token;
    `descent`: see pythia_core.training.descent, of the second run.

    The second result is the number of checkpoints that could not be read.
    """
    from pythia_book.measurements import LanguageMeasurement, measure_all
    from pythia_core.errors import CheckpointError
    from pythia_core.training.descent import descent, distance

    one, two = ((params.size, SUITE_SEED, seed) for seed in (1, 2))
    steps = params.weight_steps
    later = {
        SOUND: (one, two),
        DECOUPLED: tuple((params.size, seed, SUITE_SEED) for seed in (1, 2)),
    }
    cells = {pair: [(one, two) if step == 0 else later[pair] for step in steps] for pair in PAIRS}
    used = sorted(
        {(cell, step) for pair in PAIRS for step, both in zip(steps, cells[pair], strict=True)
         for cell in both}
    )  # fmt: skip
    weights = {}
    for cell, step in used:
        with contextlib.suppress(CheckpointError):
            weights[cell, step] = runs[cell].model(step).state_dict()
    language = LanguageMeasurement.of(runs[one].data)
    scores, _ = measure_all([(runs[cell], step) for cell, step in weights], language, progress)
    arrays = {
        name_of(quantity, pair): np.full(len(steps), np.nan)
        for quantity in (OWN, APART, LOSS, DESCENT)
        for pair in PAIRS
    }
    if (one, 0) not in weights or (two, 0) not in weights:
        return arrays, len(used) - len(weights)
    unit = distance(weights[one, 0], weights[two, 0])
    for pair in PAIRS:
        for i, (step, (a, b)) in enumerate(zip(steps, cells[pair], strict=True)):
            if (a, step) in weights and (b, step) in weights:
                losses = [scores[runs[cell].id, step]["loss"].mean() for cell in (a, b)]
                first, second, start = weights[a, step], weights[b, step], weights[two, 0]
                arrays[name_of(OWN, pair)][i] = distance(start, second) / unit
                arrays[name_of(APART, pair)][i] = distance(first, second) / unit
                arrays[name_of(LOSS, pair)][i] = losses[1] - losses[0]
                arrays[name_of(DESCENT, pair)][i] = descent(start, second)
    return arrays, len(used) - len(weights)


# --- values for the text ---------------------------------------------------------------------


def values(params: Params, tables: dict[str, pd.DataFrame], other: float | None) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name; None if not measured.

    Shares are in percent or points, loss in nats per token. `other` is the final loss of the
    neighbouring size.
    """
    numbers: dict[str, Any] = {
        "size": params.size,
        "large_size": params.large_size,
        "neighbour": params.neighbour_size,
        "n_seeds": params.seeds,
        "n_apart": params.apart_seeds,
        "n_largest": params.largest_seeds,
        "n_runs": len(params.cells),
        "loss_gap": None,
    }
    numbers |= {f"{m}_sd_{kind}": None for m in MEASURES for kind in KINDS}
    numbers |= {f"{m}_{key}_{kind}": None for m in MEASURES for key in ("items", "times", "differ")
                for kind in (BOTH, LARGE)}  # fmt: skip
    numbers |= {f"{m}_ratio_{name}": None for m in MEASURES for name in ("apart", "size", "added")}
    numbers |= {f"{m}_mean": None for m in MEASURES}

    def ends(row: Any, factor: float = 1) -> dict[str, float]:
        return {key: factor * getattr(row, key) for key in ("value", "low", "high")}

    end = tables["spreads"][tables["spreads"].percent == 100].dropna(subset=["sd"])
    for row in end.rename(columns={"sd": "value"}).itertuples():
        factor = MEASURES[row.measure].factor
        numbers[f"{row.measure}_sd_{row.kind}"] = ends(row, factor)
        if row.kind == BOTH:
            numbers[f"{row.measure}_mean"] = factor * row.mean
            if row.measure == "loss" and other is not None:
                numbers["loss_gap"] = abs(row.mean - other)
    for row in tables["ratios"][tables["ratios"].percent == 100].itertuples():
        numbers[f"{row.measure}_ratio_{row.contrast}"] = ends(row)
    for row in tables["single"].itertuples():
        factor = MEASURES[row.measure].factor
        numbers[f"{row.measure}_differ_{row.kind}"] = factor * row.differ
        if np.isfinite(row.value):
            numbers[f"{row.measure}_items_{row.kind}"] = factor * row.items
            numbers[f"{row.measure}_times_{row.kind}"] = ends(row)
    pairs = tables["pairs"].dropna(subset=["value"])
    for pair in PAIRS:
        for quantity in (OWN, APART, LOSS, DESCENT):
            rows = (
                pairs[(pairs.pair == pair) & (pairs.quantity == quantity)].set_index("step").value
            )
            for name, step in (("first", 1), ("last", scale_named(params.scale).steps)):
                value = rows.get(step)
                numbers[f"{pair}_{quantity}_{name}"] = None if value is None else float(value)
        rows = pairs[(pairs.pair == pair) & (pairs.quantity == DESCENT) & (pairs.step > 0)].value
        extreme = rows.min() if pair == SOUND else rows.abs().max()
        numbers[f"{pair}_descent"] = float(extreme) if len(rows) else None
    return numbers
