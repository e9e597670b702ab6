"""Measures how much results vary between training runs with different seeds.

The study follows PolyPythias (arXiv:2503.09543). There, a seed sets both the initial weights and
the data order, except for six runs of 160M in which only one of the two varies. Here, a small size
is trained with many seeds of each of these three kinds (both, weights only, order only), and the
largest size with a few. All runs read the standard text, and are measured on the same held-out rows
and items. Other studies draw bands around their curves from the table `spreads`
(pythia_book.seed_spread).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.published.training_maps import training_maps
from pythia_book.studies.seeds.claims import ENOUGH, MAPPED_FROM, claims, distance, map_agreement
from pythia_book.studies.seeds.pairs import DESCENT, SOUND, compare
from pythia_book.studies.seeds.params import (
    BOTH,
    CONTEXT,
    LARGEST,
    ORDER,
    STUDY,
    WEIGHTS,
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
    measuring, analyzing = partial(measure, params, progress), partial(analyze, params)
    return conduct(STUDY, params, measuring, analyzing, released, published)


def released(published: Published) -> Tables:
    """Return the table `training_maps`: a state for each checkpoint of PolyPythias' 410M runs."""
    return {"training_maps": training_maps(published)}


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers alone."""
    scores = Scores(params, measured)
    frames = tables(scores)
    other = measured.facts["neighbour_loss"]
    bound = measured.facts["descent_bound"]
    same = map_agreement(released.get("training_maps"))
    apart = distance(scores, frames["single"], other)
    numbers = (
        values(params, frames, other)
        | group_means(scores, other)
        | {
            "neighbor_apart": apart and apart.interval(),
            "enough": f"{ENOUGH:.1f}",
            "gaps": measured.facts["gaps"],
            "map_agreement": same and same.interval(),
            "maps_from": MAPPED_FROM,
            "tested_up_to": measured.facts["tested_up_to"],
            "descent_bound": f"{bound:g}",
            "descent_millions": int(math.exp(bound**2 / 2) / 1e6),  # the inverse of the probability
        }
    )
    return frames, numbers, claims(scores, frames, measured.facts, released)


# --- measuring -------------------------------------------------------------------------------


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train all runs and measure them.

    Arrays of a run, named KIND/MEASURE/SIZE/ORDER_SEED/WEIGHT_SEED:
    `mean`: float64[steps], the score of the run at each of `params.steps`, for all of MEASURES; NaN
        if it was not measured. Runs in which only one seed varies are measured at the end only,
        except for held-out loss and last words.
    `items`: [items], the score of each item at the end, for the measures ITEMS.

    Arrays QUANTITY/PAIR of two weight seeds, float64[steps] at `params.weight_steps`: see
    `pairs.compare`.

    Facts:
    `neighbour_loss`: the final held-out loss of the neighboring size, or None;
    `gaps`: number of measurements without a readable checkpoint;
    `descent_bound`: the score above which a step continues from step 0; `tested_up_to`: the last
        step that `verify` tests in this way.
    """
    from pythia_book.measurements import LanguageMeasurement, measure_all
    from pythia_book.studies.registry import train_all
    from pythia_core.training.lineage import SAME_LINEAGE, TESTED_UP_TO

    configs: dict[Any, RunConfig] = {cell: params.config(cell) for cell in params.cells}
    configs |= suite_configs(params.scale, [params.neighbor_size], ["standard"])
    trained = train_all(params, configs, progress)
    neighbor = trained[params.neighbor_size, "standard"]
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

    curves = list(dict.fromkeys([*params.members(BOTH), *params.members(LARGEST)]))
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

    key = (neighbor.id, neighbor.config.train.steps)
    last_of_neighbor, gaps = measure_all([(neighbor, key[1])], language, progress)
    other = float(last_of_neighbor[key]["loss"].mean()) if key in last_of_neighbor else None
    pairs, unread = compare(params, runs, progress)
    facts = {
        "neighbour_loss": other,
        "gaps": n_gaps + len(gaps) + unread,
        "descent_bound": SAME_LINEAGE,
        "tested_up_to": TESTED_UP_TO,
    }
    return Measurements(arrays | pairs, facts, [*runs.values(), neighbor])


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
    """Return a run's score: the mean of `array`, or for "association", a slope over nouns."""
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


# --- values for the text ---------------------------------------------------------------------

QUOTED = (
    "size", "largest_size", "neighbor", "n_seeds", "n_apart", "n_largest", "n_runs",
    "loss_gap",
    "loss_sd_both", "loss_sd_pooled", "loss_sd_largest", "loss_sd_order", "loss_sd_weights",
    "loss_times_both", "last_word_times_both", "feminine_share_times_both",
    "loss_differ_both", "feminine_share_differ_both", "association_differ_both",
    "loss_ratio_size", "sums_choice_ratio_size", "sums_exact_ratio_size", "sums_logprob_ratio_size",
    "loss_ratio_apart", "last_word_ratio_apart", "sums_logprob_ratio_apart",
    "training_loss_ratio_apart", "loss_ratio_added", "ratios", "ratios_off",
    "sound_own_first", "sound_own_last", "sound_loss_first", "sound_descent",
    "decoupled_own_first", "decoupled_own_last", "decoupled_loss_first", "decoupled_descent",
)  # fmt: skip
"""The values of a record that its page quotes; None if not measured."""


def values(params: Params, tables: dict[str, pd.DataFrame], other: float | None) -> dict[str, Any]:
    """Return the values QUOTED. Shares are in percent or points, loss in nats per token.

    Args:
        other: the final loss of the neighboring size; None if it was not measured.
    """
    known: dict[str, Any] = {
        "size": params.size,
        "largest_size": params.largest_size,
        "neighbor": params.neighbor_size,
        "n_seeds": params.seeds,
        "n_apart": params.apart_seeds,
        "n_largest": params.largest_seeds,
        "n_runs": sum(size == params.size for size, *_ in params.cells),
    }

    def ends(row: Any, factor: float = 1) -> dict[str, float]:
        return {key: factor * getattr(row, key) for key in ("value", "low", "high")}

    end = tables["spreads"][tables["spreads"].percent == 100].dropna(subset=["sd"])
    for row in end.rename(columns={"sd": "value"}).itertuples():
        known[f"{row.measure}_sd_{row.kind}"] = ends(row, MEASURES[row.measure].factor)
        if (row.kind, row.measure) == (BOTH, "loss") and other is not None:
            known["loss_gap"] = abs(row.mean - other)
    ratios = tables["ratios"][tables["ratios"].percent == 100]
    off = (ratios.low > 1) | (ratios.high < 1)
    known |= {"ratios": len(ratios), "ratios_off": int(off.sum())}
    for row in ratios.itertuples():
        known[f"{row.measure}_ratio_{row.contrast}"] = ends(row)
    for row in tables["single"].itertuples():
        known[f"{row.measure}_differ_{row.kind}"] = MEASURES[row.measure].factor * row.differ
        if np.isfinite(row.value):
            known[f"{row.measure}_times_{row.kind}"] = ends(row)
    for (pair, quantity), rows in (
        tables["pairs"].dropna(subset=["value"]).groupby(["pair", "quantity"])
    ):
        at = rows.set_index("step").value
        for name, step in (("first", 1), ("last", scale_named(params.scale).steps)):
            known[f"{pair}_{quantity}_{name}"] = float(at[step]) if step in at else None
        later = at[at.index > 0]
        if quantity == DESCENT and len(later):
            known[f"{pair}_descent"] = float(later.min() if pair == SOUND else later.abs().max())
    return {name: known.get(name) for name in QUOTED}


def group_means(scores: Scores, other: float | None) -> dict[str, Any]:
    """Return how far the groups of the smaller size differ in their means at the end.

    `loss_mean_<kind>`: the mean loss of a group without the run that all groups share, and
        `loss_means_apart`, the largest difference between two of them;
    `<measure>_means_p`: p-value of an F-test that the means are equal, for loss and association;
        `other_means_p`: the smallest one of all other measures;
    `loss_sd_all`: standard deviation of the loss around the mean of all runs; `loss_gap_all`: by
        how much this mean exceeds `other`, the final loss of the neighboring size.

    None stands for what was not measured.
    """
    from scipy.stats import f_oneway

    kinds, named = (BOTH, ORDER, WEIGHTS), ("loss", "association")
    p_values: dict[str, float] = {}
    known: dict[str, Any] = {}
    for measure in MEASURES:
        groups = [
            np.array([scores.of(measure, cell)[-1] for cell in scores.params.members(kind)[1:]])
            for kind in kinds
        ]
        if any(len(own) < 2 or not np.isfinite(own).all() or not np.ptp(own) for own in groups):
            continue
        p_values[measure] = float(f_oneway(*groups).pvalue)
        if measure == "loss":
            means = [float(own.mean()) for own in groups]
            known = {f"loss_mean_{k}": f"{m:.3f}" for k, m in zip(kinds, means, strict=True)}
            known["loss_means_apart"] = max(means) - min(means)
            center = scores.of(measure, scores.params.members(BOTH)[0])[-1]
            runs = np.array([center, *np.concatenate(groups)])
            known["loss_sd_all"] = float(runs.std(ddof=1))
            known["loss_gap_all"] = None if other is None else abs(float(runs.mean()) - other)
    known |= {f"{measure}_means_p": p_values.get(measure) for measure in named}
    known["other_means_p"] = min((p for m, p in p_values.items() if m not in named), default=None)
    names = (*(f"loss_mean_{kind}" for kind in kinds), "loss_means_apart", "loss_sd_all")
    return dict.fromkeys((*names, "loss_gap_all")) | known
