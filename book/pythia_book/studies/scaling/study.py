"""Accuracy and loss by size and over training (paper section 2.6), for our and released models.

Seven benchmark tasks are scored, zero-shot and few-shot at the end of training, and zero-shot over
training for the standard half of the suite. Laws are fitted to held-out loss by size, tokens and
FLOP. The last checkpoint of the largest model is also scored by the language-model evaluation
harness and compared item by item. Results of the released models come from
pythia_book.published.scaling.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import Arrays, LanguageMeasurement, measure_all
from pythia_book.published.results import find as find_published
from pythia_book.published.scaling import published_scaling
from pythia_book.stats import estimate
from pythia_book.studies.registry import train_all
from pythia_book.studies.scaling.claims import claims
from pythia_book.studies.scaling.laws import laws_tables
from pythia_book.studies.scaling.params import LOSS_AT, OVER_TRAINING, STUDY, Params
from pythia_book.study import Result
from pythia_book.tasks.metrics import (
    MIN_FITTING,
    BuiltTask,
    Metrics,
    build_tasks,
    fitting_tasks,
    measure_tasks,
    share_fitting,
)
from pythia_core.errors import MissingDependencyError
from pythia_core.suite import scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import CheckpointKey
    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run


Suite = dict[tuple[str, str], "Run"]


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, score it, fit laws, and compare with the released models."""
    published = published or find_published()
    started = time.time()
    suite = train_all(
        params, suite_configs(params.scale, params.size_list, seed=params.seed), progress
    )
    first = next(iter(suite.values()))
    length = first.config.model.max_seq_len
    built = build_tasks(first, params.task_list, params.shot_list, params.limit)
    fitting = fitting_tasks(built)
    scored, gaps = _score(params, suite, fitting, progress)
    accuracy = _accuracy_table(params, suite, built, scored)
    losses, words, arrays, more_gaps = _language(params, suite, progress)
    laws = laws_tables(losses, {cell: measured["loss"] for cell, measured in arrays.items()})
    agreement = agreement_table(params, suite, fitting, scored, length)
    released = published_scaling(published)
    tables = {"accuracy": accuracy, "losses": losses, "last_words": words, "agreement": agreement}
    tables |= laws
    finals = _finals(params, suite, fitting, scored)
    numbers = values(params, tables) | {"gaps": len(gaps) + more_gaps}
    smallest = {
        step: measured["last_word"]
        for (size, arm, step), measured in arrays.items()
        if (size, arm) == (params.size_list[0], "standard")
    }
    rows = [*released.claims, *claims(params, finals, tables, smallest)]
    runs = list(suite.values())
    return Result(STUDY, params, tables, numbers, rows, runs, started, released)


# --- scores ----------------------------------------------------------------------------------


def _steps(params: Params, indices: tuple[int, ...]) -> list[int]:
    scale = scale_named(params.scale)
    return sorted({scale.fork_step(i) for i in indices} - {0} | {scale.steps})


def _score(
    params: Params, suite: Suite, tasks: list[BuiltTask], progress: bool
) -> tuple[dict[CheckpointKey, Metrics], list]:
    """Score all tasks at the end, and the zero-shot ones on the standard half before it.

    Returns the metrics by (run id, step), and the gaps.
    """
    last = scale_named(params.scale).steps
    finals, gaps = measure_tasks([(run, last) for run in suite.values()], tasks, progress)
    zero_shot = [task for task in tasks if task.shots == min(params.shot_list)]
    earlier = [
        (suite[size, "standard"], step)
        for size in params.size_list
        for step in _steps(params, OVER_TRAINING)
        if step != last
    ]
    before, more = measure_tasks(earlier, zero_shot, progress)
    return finals | before, gaps + more


def _accuracy_table(
    params: Params, suite: Suite, built: list[BuiltTask], scored: dict
) -> pd.DataFrame:
    """Accuracy: size, arm, task, shots, step, percent, metric, value, low, high, n, fits, status.

    `fits`: share of the items that fit the context. `status`: "scored", or why there is no value:
    "does not fit" (too few items do), "too long" (no item fits), "lost" (no checkpoint).
    """
    import pandas as pd

    scale = scale_named(params.scale)
    rows = []
    for (size, arm), run in suite.items():
        for step in _steps(params, OVER_TRAINING):
            if step != scale.steps and arm != "standard":
                continue
            metrics = scored.get((run.id, step))
            for each in built:
                if step != scale.steps and each.shots != min(params.shot_list):
                    continue
                fits = share_fitting(each)
                cell = {"size": size, "arm": arm, "task": each.name, "shots": each.shots,
                         "step": step, "percent": 100 * step / scale.steps}  # fmt: skip
                status = "too long" if not len(each.fits) else "does not fit"
                status = "scored" if fits >= MIN_FITTING else status
                status = "lost" if metrics is None else status
                for metric in ("acc", "acc_norm"):
                    row = {"value": None, "low": None, "high": None}
                    if status == "scored":
                        arrays = metrics[each.key]
                        hits = arrays.get(metric, arrays["acc"]).astype(float)
                        row = estimate(hits[None], params.bootstrap, exact=True).interval()
                    rows.append({**cell, "metric": metric, **row, "n": len(each.fits),
                                 "fits": fits, "status": status})  # fmt: skip
    return pd.DataFrame(rows)


def _finals(
    params: Params, suite: Suite, built: list[BuiltTask], scored: dict
) -> dict[tuple[str, str, str], np.ndarray]:
    """(size, arm, task_shots) -> right or wrong at the end, bool[items]; gaps are left out."""
    last = scale_named(params.scale).steps
    return {
        (size, arm, each.key): scored[run.id, last][each.key]["acc"]
        for (size, arm), run in suite.items()
        for each in built
        if (run.id, last) in scored
    }


def agreement_table(
    params: Params, suite: Suite, built: list[BuiltTask], scored: dict, length: int
) -> pd.DataFrame:
    """Our scores of the largest standard model's last checkpoint, compared with the harness's.

    Columns: task, shots, items, differing (scores that differ), harness (its accuracy). Empty if
    lm_eval is not installed.
    """
    import pandas as pd

    from pythia_book.tasks.harness import adapter, evaluate_with_harness
    from pythia_core.util.workers import one_thread

    columns = ["task", "shots", "items", "differing", "harness"]
    run, last = suite[params.size_list[-1], "standard"], scale_named(params.scale).steps
    if (run.id, last) not in scored:
        return pd.DataFrame(columns=columns)
    try:
        with one_thread():
            lm = adapter(run.model(last), run.data.tokenizer, run.data.eod_id, length)
            results = evaluate_with_harness(lm, built)
    except MissingDependencyError:
        return pd.DataFrame(columns=columns)
    rows = []
    for each in built:
        if each.key in results:
            ours, harness = scored[run.id, last][each.key], results[each.key]
            differing = (ours["acc"] != harness.acc).sum()
            differing += (ours.get("acc_norm", ours["acc"]) != harness.acc_norm).sum()
            rows.append((each.name, each.shots, len(each.items), int(differing),
                         harness.metrics["acc"]))  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _language(
    params: Params, suite: Suite, progress: bool
) -> tuple[pd.DataFrame, pd.DataFrame, dict[tuple[str, str, int], Arrays], int]:
    """Held-out loss and last words: two tables, the arrays by (size, arm, step), number of gaps.

    losses: size, arm, step, n_params (without embeddings), tokens, flops (6 N D), value, low, high
    (nats). last_words: size, arm, step, percent, value, low, high.
    """
    import pandas as pd

    first = next(iter(suite.values()))
    language = LanguageMeasurement.of(first.data, first.config.model.max_seq_len)
    cells = [(run, step) for run in suite.values() for step in _steps(params, LOSS_AT)]
    measured, gaps = measure_all(cells, language, progress)
    losses, words, arrays = [], [], {}
    for (size, arm), run in suite.items():
        n, t = run.config.model.n_params_non_embedding, run.config.train
        for step in _steps(params, LOSS_AT):
            if (run.id, step) not in measured:
                continue
            arrays[size, arm, step] = of_cell = measured[run.id, step]
            tokens = step * t.batch_size * run.config.data.seq_len
            cell = {"size": size, "arm": arm, "step": step}
            losses.append({
                **cell, "n_params": n, "tokens": tokens, "flops": 6 * n * tokens,
                **estimate(of_cell["loss"][None], params.bootstrap).interval(),
            })  # fmt: skip
            hits = of_cell["last_word"][None].astype(float)
            words.append({**cell, "percent": 100 * step / t.steps,
                          **estimate(hits, params.bootstrap, exact=True).interval()})  # fmt: skip
    return pd.DataFrame(losses), pd.DataFrame(words), arrays, len(gaps)


def values(params: Params, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Names and numbers quoted in the page's text."""
    accuracy, agreement, laws = tables["accuracy"], tables["agreement"], tables["laws"]
    last = accuracy[accuracy.percent == 100]
    fits = last.groupby(["task", "shots"]).agg(fits=("fits", "first"), status=("status", "first"))
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": params.size_list[-1],
        "smallest": params.size_list[0],
        "context": int(scale_named(params.scale).data.seq_len),
        "limit": params.limit,
        "n_scored": int((fits.status == "scored").sum()),
        "n_cells": len(fits),
        "n_agreement": int(agreement["items"].sum()) if len(agreement) else 0,
        "n_differing": int(agreement.differing.sum()) if len(agreement) else 0,
    }
    for row in laws.itertuples():
        ends = {"value": row.value, "low": row.low, "high": row.high}
        numbers[f"{row.law}_{row.parameter}".lower()] = ends
    return numbers
