"""Repeated data at equal compute: the cost of a second, a fourth, a sixteenth pass.

Arms share initial weights, learning rates and number of updates; an arm of r epochs reads the first
1/r of the fresh arm's rows r times, so it equals the fresh arm until its first pass ends. The text
is deduplicated, so fresh rows are not repeats. Muennighoff et al. (2023, arXiv:2305.16264) find up
to four epochs nearly free and fit a law for the worth of repeated data. Here, that worth is
measured with runs that read the same rows once and stop, which give the loss at that amount of
fresh data. Repeating only a small part of the data (Hernandez et al. 2022, arXiv:2205.10487) is not
studied.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pythia_book.measurements import Arrays, LanguageMeasurement, measure_all
from pythia_book.studies.registry import train_all
from pythia_book.studies.repetition.claims import claims, tables, values
from pythia_book.studies.repetition.params import (
    INDICES,
    STUDY,
    Params,
    repetition_configs,
)
from pythia_book.study import Result
from pythia_core.config import stable_hash
from pythia_core.data.prepare import prepare
from pythia_core.errors import DataError
from pythia_core.evaluation import scoring
from pythia_core.evaluation.memorization import ExtractionMeasurement
from pythia_core.suite import DEDUP, scale_named
from pythia_core.training.schedule import linear_step

N_READ = 320
"""Number of training rows, read by all arms, on which loss is measured."""
CONTEXT = 32
"""Tokens of prompt and of continuation for extraction (Pythia paper, section 3.2)."""


# --- runs ------------------------------------------------------------------------------------


def check_rows(params: Params, progress: bool = True) -> None:
    """Check, before anything is trained, that there is enough text for the fresh arm.

    Raises:
        DataError: too few rows; the message says for how many updates they are enough.
    """
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
    """Measures read_loss on training rows: float64[rows], nats per token."""

    rows: np.ndarray
    name: str = "read_rows"

    @cached_property
    def digest(self) -> str:
        return stable_hash([scoring.VERSION, self.rows.tolist()])

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        return {"read_loss": scoring.row_losses(model, self.rows)}


def run(params: Params, progress: bool = True) -> Result:
    """Find or train the arms and the single-pass runs, measure and compare them."""
    started = time.time()
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
    heldout = LanguageMeasurement.of(fresh.data, fresh.config.model.max_seq_len)
    common_rows = fresh.data.rows.rows(0, params.rows(params.epoch_list[-1]))
    spread = np.linspace(0, len(common_rows) - 1, min(N_READ, len(common_rows))).round().astype(int)
    cells = [(run, step) for run in arms.values() for step in steps]
    last = [(run, run.config.train.steps) for run in once.values()]
    language, gaps = measure_all([*cells, *last], heldout, progress)
    read, read_gaps = measure_all(cells, ReadRowsMeasurement(common_rows[spread]), progress)
    batch, first = fresh.config.train.batch_size, params.n_steps // params.epoch_list[-1]
    extraction = ExtractionMeasurement(fresh.data, batch, first, CONTEXT, CONTEXT, unread=True)
    ends = [(run, params.n_steps) for run in arms.values()]
    extracted, extraction_gaps = measure_all(ends, extraction, progress)
    gaps += read_gaps + extraction_gaps

    measured = {
        (*cell, step): language[run.id, step] | read.get((run.id, step), {})
        for cell, run in arms.items()
        for step in steps
        if (run.id, step) in language
    }
    finals = {(s, r): dict(a) for (s, r, step), a in measured.items() if step == params.n_steps}
    for cell, run in arms.items():
        if (run.id, params.n_steps) in extracted and cell in finals:
            finals[cell]["memorized"] = extracted[run.id, params.n_steps]["memorized"]
    singles = {
        cell: language[run.id, step]["loss"]
        for (cell, run), (_, step) in zip(once.items(), last, strict=True)
        if (run.id, step) in language
    }
    frames = tables(params, measured, finals, singles)
    rows = claims(params, finals, singles)
    numbers = values(params, finals, singles) | {"gaps": len(gaps)}
    runs = list({run.id: run for run in (*arms.values(), *once.values())}.values())
    return Result(STUDY, params, frames, numbers, rows, runs, started)
