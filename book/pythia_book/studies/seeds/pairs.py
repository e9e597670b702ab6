"""Compares two weight seeds, as trained and with the defect reported for two PolyPythias runs.

The checkpoints of pythia-160m-weight-seed1 and 2 are reported to continue from weights other than
their own step 0 (EleutherAI/pythia#203). The decoupled pair has this defect.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.studies.seeds.params import Cell, Params
from pythia_book.study import Measurements, name_of
from pythia_core.suite import SUITE_SEED

if TYPE_CHECKING:
    from pythia_core.training.runs import Run

SOUND, DECOUPLED = "sound", "decoupled"
PAIRS = (SOUND, DECOUPLED)
OWN, BETWEEN, LOSS, DESCENT = "own", "between", "loss", "descent"
QUANTITIES = (OWN, BETWEEN, LOSS, DESCENT)


def compare(
    params: Params, runs: dict[Cell, Run], progress: bool
) -> tuple[dict[str, np.ndarray], int]:
    """Compare two weight seeds, as trained and with the reported defect, at `weight_steps`.

    The sound pair reads the same batches from different initial weights. The decoupled pair has the
    same two step-0 checkpoints, but all later steps are from runs that start at the suite's weights
    and read different batches. Arrays QUANTITY/PAIR, float64[steps]:

    `own`: distance of the second run from its step 0;
    `between`: distance between the two runs; both in units of that between the step-0 checkpoints;
    `loss`: difference between the held-out losses of the two runs, in nats per token;
    `descent`: lineage score of the second run, see pythia_core.training.lineage.

    The second result is the number of checkpoints that could not be read.
    """
    from pythia_book.measurements import LanguageMeasurement, measure_all
    from pythia_core.errors import CheckpointError
    from pythia_core.training.lineage import distance, lineage_score

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
        for quantity in QUANTITIES
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
                arrays[name_of(BETWEEN, pair)][i] = distance(first, second) / unit
                arrays[name_of(LOSS, pair)][i] = losses[1] - losses[0]
                arrays[name_of(DESCENT, pair)][i] = lineage_score(start, second)
    return arrays, len(used) - len(weights)


def rows(params: Params, measured: Measurements) -> list[dict[str, Any]]:
    """Return the rows of the table `pairs`: a `value` by `pair`, `quantity` and `step`."""
    return [
        {"pair": pair, "quantity": quantity, "step": step, "value": value}
        for quantity in QUANTITIES
        for (pair,), array in measured.under(quantity)
        for step, value in zip(params.weight_steps, array, strict=True)
    ]
