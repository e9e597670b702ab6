"""Phases of early training, over all 154 checkpoints: from single tokens to pairs to induction.

For a few sizes, trained on the standard text, the study measures

- when models are nearest to n-grams, and when their loss falls below that of n-grams (Belrose et
  al. 2024, arXiv:2402.04362);
- whether they learn to continue a sequence that they have read before (Olsson et al. 2022,
  arXiv:2209.11895);
- when the logit lens of a layer approaches the final prediction.

Induction heads do not form on this small text. They do form in small models that are trained on a
made-up language, half of whose text repeats itself (phases.laboratory).

Intervals for the steps at which these changes happen come from resampling the held-out rows. At the
scale "paper", released models are measured instead (phases.released).
"""

from __future__ import annotations

from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.studies.phases import tables as tables_of
from pythia_book.studies.phases import transitions
from pythia_book.studies.phases.claims import claims, values
from pythia_book.studies.phases.params import STUDY, Params
from pythia_book.studies.phases.transitions import KnockOut, depth_name, knock_outs
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.suite import scale_named, suite_configs

if TYPE_CHECKING:
    from pythia_book.measurements import Arrays, Gap
    from pythia_book.released.resolve import CheckpointSource
    from pythia_book.studies.phases.probes import ProbeText

HEADS = ["model", "seed", "without", "heads", "gain", "repeats", "grammar"]
MODELS = ["size", "deduplicated", "checkpoints", "last_step", "sha256"]


def run(params: Params, progress: bool = True) -> Result:
    """Get the models (trained here or released), measure checkpoints, and analyze the results."""
    measuring, analyzing = partial(measure, params, progress), partial(analyze, params)
    return conduct(STUDY, params, measuring, analyzing, seed_bands=True)


def measure(params: Params, progress: bool = True) -> Measurements:
    """Measure every checkpoint of every model, with a value for each row or random sequence.

    The arrays, where c is the number of measured checkpoints of a size:
    `ngram_loss`: [orders, rows];
    `steps/<size>`: [c];
    `lens/<size>`: [layers, c, rows];
    `<measure>/<size>`: [c, n], for the other measures of `tables.reduced`;
    `heads/<size>`: see `heads.HeadsMeasurement`, at the last step;
    `laboratory/...`: see `laboratory.measure`.
    """
    from pythia_book.measurements import measure_all
    from pythia_book.studies.phases import laboratory
    from pythia_book.studies.phases.heads import HeadsMeasurement
    from pythia_book.studies.phases.probes import PhasesMeasurement, prefix_chance

    models, text = _models(params, progress)
    steps = {size: _steps(model, params.steps) for size, model in models.items()}
    measured: dict[tuple[str, int], Arrays] = {}
    without_heads: Arrays = {}
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
        last = {model.id: (model, step) for model, step in cells}  # the last step of each
        scores, _ = measure_all(list(last.values()), HeadsMeasurement.like(measurement), progress)
        without_heads |= {run_id: each["heads"] for (run_id, _), each in scores.items()}
    ngrams, probe = measurement.ngrams(), measurement.probe()
    arrays = {"ngram_loss": probe.ngram_loss.astype(np.float32)}
    for size, model in models.items():
        available = [step for step in steps[size] if (model.id, step) in measured]
        curves = tables_of.reduced([measured[model.id, step] for step in available])
        arrays[name_of("steps", size)] = np.array(available, np.int64)
        arrays |= {name_of(name, size): a.astype(np.float32) for name, a in curves.items()}
        if model.id in without_heads:
            arrays[name_of("heads", size)] = without_heads[model.id].astype(np.float32)
    length = probe.copies.shape[1] // 2
    scale = scale_named(params.scale)
    facts = {
        "gaps": len(gaps),
        "n_checkpoints": len(set().union(*steps.values())),
        "n_rows": len(probe.rows),
        "n_places": probe.rows.shape[0] * len(probe.positions),
        "n_sequences": len(probe.copies),
        "copy_length": length,
        "prefix_chance": prefix_chance(length),
        "tokens_read": text.n_read * text.seq_len,
        "tokens_trained": max(s[-1] for s in steps.values()) * scale.batch_size * text.seq_len,
        "different": [np.count_nonzero(ngrams.unigrams), *map(len, ngrams.keys)],
        "strengths": [None, *ngrams.strengths],
        "models": _released_rows(models, steps) if params.released else [],
    }
    of_laboratory = laboratory.train(params, progress)
    more_arrays, more_facts, more_gaps = laboratory.measure(of_laboratory, progress)
    facts["gaps"] += len(more_gaps)
    runs: list[Any] = [] if params.released else [*models.values(), *of_laboratory.values()]
    return Measurements(arrays | more_arrays, facts | more_facts, runs)


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements; `released` is not used."""
    import pandas as pd

    curves = {size: tables_of.Curves.of(measured, size) for size in params.size_list}
    of_laboratory = transitions.models_of(measured)
    frames = tables_of.tables(params.bootstrap, curves, measured)
    frames |= transitions.tables(of_laboratory)
    frames["heads"] = pd.DataFrame(_without_heads(params, measured, of_laboratory), columns=HEADS)
    if measured.facts["models"]:
        frames["released"] = pd.DataFrame(measured.facts["models"], columns=MODELS)
    return (
        frames,
        values(params, curves, measured, of_laboratory),
        claims(params, curves, measured.facts, of_laboratory),
    )


def _without_heads(
    params: Params, measured: Measurements, of_laboratory: list[transitions.Model]
) -> list[list[Any]]:
    """Return rows, with the columns HEADS, for the models of the laboratory and those of prose."""
    models: list[tuple[str, int, dict[str, KnockOut]]] = [
        (depth_name(model.layers), model.seed, model.without) for model in of_laboratory
    ]
    for size in params.size_list:
        heads = measured.get("heads", size)
        models.append((size, params.seed, {} if heads is None else knock_outs(heads)))
    return [
        [model, seed, kind, *astuple(row)]
        for model, seed, kinds in models
        for kind, row in kinds.items()
    ]


def _models(params: Params, progress: bool) -> tuple[dict[str, CheckpointSource], ProbeText]:
    """Return the models by size, and the text on which they were trained."""
    from pythia_book.studies.phases.probes import RunText
    from pythia_book.studies.phases.released import released_models, released_text
    from pythia_book.studies.registry import train_all

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
    """Return the steps to measure: those listed in `text`, or for "all" the scheduled steps."""
    from pythia_book.tasks.sweep import steps_of

    return model.scheduled_steps if text == "all" else steps_of(model, text)


def _released_rows(
    models: dict[str, CheckpointSource], steps: dict[str, list[int]]
) -> list[list[Any]]:
    """Return a row with the columns MODELS for each released model."""
    return [
        [size, model.deduped, len(steps[size]), steps[size][-1], model.sha256(steps[size][-1])]
        for size, model in models.items()
    ]
