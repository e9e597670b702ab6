"""Phases of early training, over all 154 checkpoints: from single tokens to pairs to induction.

For a few sizes of the suite, trained on the standard text, the study measures

- when a model's predictions are nearest to those of unigrams, bigrams and trigrams of its training
  text, and when its loss falls below theirs (Belrose et al. 2024, arXiv:2402.04362);
- whether it learns to continue a sequence it has read before (Olsson et al. 2022,
  arXiv:2209.11895);
- when the logit lens of a layer approaches the final prediction.

The step of such an event has an interval like any estimate, from resampled rows. At scale paper the
same is measured on released models (phases.released).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pythia_book.measurements import Arrays, Gap, measure_all
from pythia_book.studies.phases.claims import claims, values
from pythia_book.studies.phases.params import STUDY, Params
from pythia_book.studies.phases.probes import PhasesMeasurement, RunText, prefix_chance
from pythia_book.studies.phases.released import released_models, released_text
from pythia_book.studies.phases.tables import tables
from pythia_book.studies.registry import train_all
from pythia_book.study import Result
from pythia_book.tasks.sweep import steps_of
from pythia_core.suite import scale_named, suite_configs

if TYPE_CHECKING:
    from pythia_book.released.resolve import CheckpointSource
    from pythia_book.studies.phases.probes import ProbeText


def run(params: Params, progress: bool = True) -> Result:
    """Find or train the models, or find released ones, and measure every checkpoint."""
    started = time.time()
    models, text = _models(params, progress)
    steps = {size: _steps(model, params.steps) for size, model in models.items()}
    measured: dict[tuple[str, int], Arrays] = {}
    gaps: list[Gap] = []
    vocabularies = {size: model.config.model.vocab_size for size, model in models.items()}
    # released models of different sizes have different padded vocabularies
    for vocabulary in sorted(set(vocabularies.values()), reverse=True):
        measurement = PhasesMeasurement(text, vocabulary)
        cells = [
            (models[size], step)
            for size, vocabulary_of_size in vocabularies.items()
            if vocabulary_of_size == vocabulary
            for step in steps[size]
        ]
        more, missing = measure_all(cells, measurement, progress)
        measured |= more
        gaps += missing
    measured_by_size = {
        size: {s: measured[model.id, s] for s in steps[size] if (model.id, s) in measured}
        for size, model in models.items()
    }
    ngrams, probe = measurement.ngrams(), measurement.probe()
    frames = tables(params.bootstrap, measured_by_size, ngrams, probe)
    rows = claims(params, measured_by_size, prefix_chance(probe.copies.shape[1] // 2))
    numbers = values(params, measured_by_size, probe) | {
        "gaps": len(gaps),
        "n_checkpoints": len(set().union(*steps.values())),
        "tokens_read": text.n_read * text.seq_len,
        "strength_2": ngrams.strengths[0],
        "strength_3": ngrams.strengths[1],
    }
    runs: list[Any] = [] if params.released else list(models.values())
    if params.released:
        frames["released"] = _released_table(models, steps)
    return Result(STUDY, params, frames, numbers, rows, runs, started)


def _models(params: Params, progress: bool) -> tuple[dict[str, CheckpointSource], ProbeText]:
    """Size -> model, and the text that the models were trained on."""
    if params.released:
        models: dict[str, CheckpointSource] = dict(released_models(params.source))
        eod_id = next(iter(models.values())).data.eod_id
        scale = scale_named(params.scale)
        return models, released_text(params.data, params.batches, scale, eod_id)
    configs = suite_configs(params.scale, params.size_list, ("standard",), params.seed)
    runs = {size: r for (size, _), r in train_all(params, configs, progress).items()}
    first = next(iter(runs.values()))
    train = first.config.train
    return runs, RunText(first.data, train.steps * train.batch_size)


def _steps(model: CheckpointSource, text: str) -> list[int]:
    """Steps to measure. "all" includes scheduled checkpoints that are missing; they become gaps."""
    return model.scheduled_steps if text == "all" else steps_of(model, text)


def _released_table(models: dict[str, CheckpointSource], steps: dict[str, list[int]]) -> Any:
    """Table of the released models; sha256 is that of the last step's weights as stored.

    Columns: size, deduplicated, checkpoints, last_step, sha256.
    """
    import pandas as pd

    rows = [
        (size, model.deduped, len(steps[size]), steps[size][-1], model.sha256(steps[size][-1]))
        for size, model in models.items()
    ]
    columns = ["size", "deduplicated", "checkpoints", "last_step", "sha256"]
    return pd.DataFrame(rows, columns=columns)
