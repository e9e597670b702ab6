"""Measure what repeated passes over the same data cost, at equal compute.

All arms have the same initial weights, learning rates and number of updates. The fresh arm reads
every row once. An arm of r epochs reads the first 1/r of these rows r times, so it equals the fresh
arm until its first pass ends. The text is deduplicated, so fresh rows are not repeats.

Muennighoff et al. (2023, arXiv:2305.16264) find that up to four epochs cost almost no loss, and fit
a law for the worth of repeated data. Here, this worth is measured with single-pass runs, which read
an arm's rows once and stop. Repeating only a small part of the data (Hernandez et al. 2022,
arXiv:2205.10487) is not studied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.studies.repetition import claims as c
from pythia_book.studies.repetition.params import INDICES, STUDY, Params, repetition_configs
from pythia_book.studies.repetition.tables import Arms, tables
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.config import stable_hash
from pythia_core.errors import DataError
from pythia_core.suite import DEDUP, scale_named
from pythia_core.training.schedule import linear_step

if TYPE_CHECKING:
    from pythia_book.measurements import Arrays
    from pythia_core.evaluation.scoring import Scorable

N_READ = 320
"""Number of training rows on which loss is measured. All arms have read these rows."""
CONTEXT = 32
"""Length in tokens of the prompt, and of the continuation, when memorization is tested (Pythia
paper, section 3.2)."""


def run(params: Params, progress: bool = True) -> Result:
    """Find or train runs that repeat their data and runs that do not, and compare their losses."""
    return conduct(STUDY, params, partial(measure, params, progress), partial(analyse, params))


def analyse(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements; `released` is not used."""
    arms = Arms(params, measured)
    return tables(arms), c.values(arms), c.claims(arms)


# --- runs ------------------------------------------------------------------------------------


def check_rows(params: Params, progress: bool = True) -> None:
    """Check that the deduplicated text has enough rows for the fresh arm.

    Raises:
        DataError: there are too few rows. The message says for how many updates they suffice.
    """
    from pythia_core.data.prepare import prepare

    scale = scale_named(params.scale)
    data = replace(scale.data, dedup=DEDUP, order_seed=params.seed)
    available = prepare(data, progress).rows.n_rows
    if params.rows() > available:
        every = math.lcm(*params.epoch_list)
        most = available // scale.batch_size // every * every
        raise DataError(
            f"steps={params.n_steps} of {scale.batch_size} rows need {params.rows()} different "
            f"rows, but the deduplicated text has {available}: use "
            + (f"steps={most} or fewer" if most else "fewer epochs, which need fewer steps")
        )


@dataclass(frozen=True)
class ReadRowsMeasurement:
    """A measurement of `read_loss`, the loss on given rows of the training text."""

    rows: np.ndarray
    name: str = "read_rows"

    @cached_property
    def digest(self) -> str:
        """A hash of everything that determines the result, except weights and step."""
        from pythia_core.evaluation import scoring

        return stable_hash([scoring.VERSION, self.rows.tolist()])

    def __call__(self, model: Scorable, step: int) -> Arrays:
        """Return {"read_loss": float64[rows], in nats per token}."""
        from pythia_core.evaluation import scoring

        return {"read_loss": scoring.score_rows(model, self.rows).losses}


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the runs of the study, and measure them.

    Arrays of an arm, with losses in nats per token:
    `loss/SIZE/EPOCHS/STEP`: float32[rows], on held-out rows;
    `read_loss/SIZE/EPOCHS`: float32[rows], at the end, on rows that all arms have read;
    `memorized/SIZE/EPOCHS`: bool[rows], whether the arm has memorized each of these rows.

    Array of a single-pass run, which reads an arm's rows once:
    `once/SIZE/EPOCHS`: float32[rows], loss on held-out rows.

    Facts: `steps` (of the checkpoints), `tokens_per_row`, `parameters` (`non_embedding` and `all`
    by size), `gaps` (number of measurements without a readable checkpoint).

    Raises:
        DataError: the text has too few rows; raised before any training.
    """
    from pythia_book.measurements import LanguageMeasurement, measure_all
    from pythia_book.studies.registry import train_all
    from pythia_core.evaluation.memorization import ExtractionMeasurement

    check_rows(params, progress)
    arm_configs, once_configs = repetition_configs(params)
    trained = train_all(
        params,
        {("arm", cell): config for cell, config in arm_configs.items()}
        | {("once", cell): config for cell, config in once_configs.items()},
        progress,
    )
    arms = {cell: trained["arm", cell] for cell in arm_configs}
    once = {cell: trained["once", cell] for cell in once_configs}
    fresh = arms[params.size_list[0], 1]

    steps = sorted({linear_step(index, params.n_steps) for index in INDICES} - {0})
    heldout = LanguageMeasurement.of(fresh.data)
    common_rows = fresh.data.rows.rows(0, params.rows(params.epoch_list[-1]))
    spread = np.linspace(0, len(common_rows) - 1, min(N_READ, len(common_rows))).round().astype(int)
    cells = [(run, step) for run in arms.values() for step in steps]
    ends = [(run, params.n_steps) for run in arms.values()]
    singles = [(run, run.config.train.steps) for run in once.values()]
    language, gaps = measure_all([*cells, *singles], heldout, progress)
    read, read_gaps = measure_all(ends, ReadRowsMeasurement(common_rows[spread]), progress)
    batch, first = fresh.config.train.batch_size, params.n_steps // params.epoch_list[-1]
    extraction = ExtractionMeasurement(fresh.data, batch, first, CONTEXT, CONTEXT, unread=True)
    extracted, extraction_gaps = measure_all(ends, extraction, progress)

    arrays: Arrays = {}
    for cell, run in arms.items():
        for step in steps:
            if (run.id, step) in language:
                arrays[name_of("loss", *cell, step)] = language[run.id, step]["loss"]
        if (run.id, params.n_steps) in read:
            arrays[name_of("read_loss", *cell)] = read[run.id, params.n_steps]["read_loss"]
        if (run.id, params.n_steps) in extracted:
            arrays[name_of("memorized", *cell)] = extracted[run.id, params.n_steps]["memorized"]
    for (cell, run), (_, step) in zip(once.items(), singles, strict=True):
        if (run.id, step) in language:
            arrays[name_of("once", *cell)] = language[run.id, step]["loss"]
    single = {n: a if a.dtype == bool else a.astype(np.float32) for n, a in arrays.items()}
    models = {size: arms[size, 1].config.model for size in params.size_list}
    facts = {
        "steps": steps,
        "tokens_per_row": fresh.config.data.seq_len,
        "parameters": {
            size: {"non_embedding": model.n_params_non_embedding, "all": model.n_params}
            for size, model in models.items()
        },
        "gaps": len(gaps) + len(read_gaps) + len(extraction_gaps),
    }
    runs = list({run.id: run for run in (*arms.values(), *once.values())}.values())
    return Measurements(single, facts, runs)
