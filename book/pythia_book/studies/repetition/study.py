"""Measures what repeated passes over the same data are worth, and when they begin to hurt.

For each pair (p, e) in `Params.pairs`, a run reads the first 1/p of the same rows e times. The runs
with e = p, the *arms*, are equally long; those with e = 1 read *fresh* data. So each run has a
fresh run of the same length, and each part of the data is read by several runs, for different
numbers of epochs; each run has a learning-rate schedule of its own length. Runs of one size and
seed share their initial weights. The text is deduplicated, so fresh rows are not repeats.

Muennighoff et al. (2023, arXiv:2305.16264) find that up to four epochs cost almost no loss, and fit
a law for the worth of repeated data; see `law`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.studies.repetition.claims import claims
from pythia_book.studies.repetition.fits import fit_laws
from pythia_book.studies.repetition.losses import Losses
from pythia_book.studies.repetition.params import STUDY, Params
from pythia_book.studies.repetition.tables import tables
from pythia_book.studies.repetition.values import values
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.errors import DataError
from pythia_core.suite import DEDUP, SUITE_SEED, scale_named


def run(params: Params, progress: bool = True) -> Result:
    """Find or train runs that repeat their data and runs that do not, and compare their losses."""
    return conduct(STUDY, params, partial(measure, params, progress), partial(analyze, params))


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements; `released` is not used."""
    losses = Losses(params, measured)
    laws = fit_laws(losses)
    return tables(losses, laws), values(losses, laws), claims(losses, laws)


def check_rows(params: Params, progress: bool = True) -> None:
    """Check that the deduplicated text has enough rows for the longest fresh run.

    Raises:
        DataError: there are too few rows. The message says for how many updates they suffice.
    """
    from pythia_core.data.prepare import prepare

    scale = scale_named(params.scale)
    batch = params.batch_size
    data = replace(scale.data, dedup=DEDUP, order_seed=SUITE_SEED)
    available = prepare(data, progress).rows.n_rows
    if params.rows() > available:
        every = math.lcm(*params.epoch_list)
        most = available // batch // every * every
        raise DataError(
            f"steps={params.n_steps} of {batch} rows need {params.rows()} different "
            f"rows, but the deduplicated text has {available}: use "
            + (f"steps={most} or fewer" if most else "fewer epochs, which need fewer steps")
        )


def halves(sizes: np.ndarray, seq_len: int, n_rows: int) -> np.ndarray:
    """Return the half, 0 or 1, of each held-out row, int64[rows].

    Documents go to the halves in turn, and a row goes with the document of its first token, so that
    the halves share little text, but both have all kinds of it. (Each kind is one block.) If all
    rows are of one document, the rows themselves go to the halves in turn.

    Args:
        sizes: int[documents], number of tokens of each.
        seq_len, n_rows: length and number of rows.
    """
    from pythia_core.evaluation.scoring import sample_windows

    starts = sample_windows(np.arange(sizes.sum()), seq_len, n_rows)[:, 0]
    documents = np.searchsorted(np.cumsum(sizes), starts, side="right")
    _, turn = np.unique(documents, return_inverse=True)
    return (turn if turn.max() else np.arange(n_rows)) % 2


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the runs of the study, and measure them on held-out text.

    loss/<size>/<part>/<epochs>: float64[seeds, checkpoints, 2], mean loss in nats per token on the
    rows of either half of the held-out documents (`halves`). Arms are measured at
    `Params.checkpoints`, other runs at their end only. NaN means that the checkpoint is missing.

    Raises:
        DataError: the text has too few rows; raised before any training.
    """
    from pythia_book.measurements import LanguageMeasurement, measure_all
    from pythia_book.studies.registry import train_all

    check_rows(params, progress)
    runs = train_all(params, {cell: params.config(*cell) for cell in params.cells()}, progress)
    steps = {
        cell: params.checkpoints if cell[2] == cell[3] else [run.config.train.steps]
        for cell, run in runs.items()
    }
    data = next(iter(runs.values())).data
    heldout = LanguageMeasurement.of(data)
    half = halves(data.heldout.sizes, data.config.seq_len, len(heldout.rows))
    checkpoints = [(runs[cell], step) for cell in runs for step in steps[cell]]
    measured, gaps = measure_all(checkpoints, heldout, progress)
    arrays: dict[str, np.ndarray] = {}
    for cell, run in runs.items():
        size, seed, *pair = cell
        shape = (params.seeds, len(steps[cell]), 2)
        array = arrays.setdefault(name_of("loss", size, *pair), np.full(shape, np.nan))
        for at, step in enumerate(steps[cell]):
            if (run.id, step) in measured:
                rows = measured[run.id, step]["loss"]
                array[seed, at] = rows[half == 0].mean(), rows[half == 1].mean()
    models = {size: params.config(size, 0, 1, 1).model for size in params.size_list}
    facts = {
        "tokens_per_row": scale_named(params.scale).data.seq_len,
        "heldout_rows": len(heldout.rows),
        "parameters": {
            size: {"non_embedding": model.n_params_non_embedding, "all": model.n_params}
            for size, model in models.items()
        },
        "gaps": len(gaps),
    }
    return Measurements(arrays, facts, list({run.id: run for run in runs.values()}.values()))
