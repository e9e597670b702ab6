"""Accuracy and loss by size and over training, of our and the released models (section 2.6).

Seven benchmark tasks are scored zero-shot and few-shot at the end of training. Models trained on
the standard text are also scored zero-shot during training. Scaling laws predict the held-out loss
from model size and tokens. The language-model evaluation harness scores one checkpoint as well, and
its scores are compared with ours item by item. Results of the released models come from
pythia_book.published.scaling.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.published.scaling import released_tables
from pythia_book.stats import estimate
from pythia_book.studies.scaling import emergence, released_sums
from pythia_book.studies.scaling import released as released_tests
from pythia_book.studies.scaling.claims import advantage, claims
from pythia_book.studies.scaling.laws import RULES, laws_tables
from pythia_book.studies.scaling.params import LOSS_AT, OVER_TRAINING, STUDY, Params
from pythia_book.studies.scaling.sum_claims import emergence_claims
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.errors import MissingDependencyError
from pythia_core.suite import scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.tasks.metrics import BuiltTask
    from pythia_core.training.runs import Run

    Suite = dict[tuple[str, str], Run]


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, score it, fit laws, and compare it with the released models.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """
    return conduct(
        STUDY, params, partial(measure, params, progress), partial(analyze, params),
        released_tables, published, seed_bands=True,
    )  # fmt: skip


# --- measuring -------------------------------------------------------------------------------


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the suite and score it.

    Arrays, where ARM is "standard" or "deduplicated":
    `hits/SIZE/ARM/STEP/TASK/SHOTS`: bool[items], whether each answer is right;
    `loss/SIZE/STEP`: float32[rows], held-out loss in nats per token, on the standard text;
    `words/SIZE/STEP`: bool[words], whether each last word is right, on the standard text;
    `sums/...`: see `sums.measure_sums`.

    Facts:
    `steps`: updates of a run;
    `context`: maximum number of tokens that a model reads;
    `n_params`, `tokens_per_step`: a value for each size; `n_params` leaves out embeddings;
    `tasks`: dicts with `name`, `shots`, `items` (number of items), `fits` (share of items that
        fit the context) and `status`, see `accuracy_table`;
    `agreement`: the result of `_agreement`;
    `gaps`: number of measurements without a readable checkpoint.
    """
    from pythia_book.studies.registry import train_all
    from pythia_book.studies.scaling.sums import measure_sums
    from pythia_book.tasks.metrics import (
        MIN_FITTING,
        build_tasks,
        fitting_tasks,
        share_fitting,
    )

    configs = suite_configs(params.scale, params.size_list, seed=params.seed)
    suite: Suite = train_all(params, configs, progress)
    first = next(iter(suite.values()))
    built = build_tasks(first, params.task_list, params.shot_list, params.limit)
    tasks: list[dict[str, Any]] = []
    for each in built:
        fits = share_fitting(each)
        status = "too long" if not len(each.fits) else "does not fit"
        status = "scored" if fits >= MIN_FITTING else status
        tasks.append({"name": each.name, "shots": each.shots, "items": len(each.fits),
                      "fits": fits, "status": status})  # fmt: skip
    fitting = fitting_tasks(built)
    hits, task_gaps = _hits(params, suite, fitting, progress)
    language, language_gaps = _language(params, suite, progress)
    sums, sum_gaps = measure_sums(suite, progress)
    configs = {size: suite[size, "standard"].config for size in params.size_list}
    facts = {
        "steps": scale_named(params.scale).steps,
        "context": first.config.model.max_seq_len,
        "n_params": {size: c.model.n_params_non_embedding for size, c in configs.items()},
        "tokens_per_step": {
            size: c.train.batch_size * c.data.seq_len for size, c in configs.items()
        },
        "tasks": tasks,
        "agreement": _agreement(params, suite, fitting, hits),
        "gaps": task_gaps + language_gaps + sum_gaps,
    }
    return Measurements(hits | language | sums, facts, list(suite.values()))


def _steps(params: Params, indices: tuple[int, ...]) -> list[int]:
    """Return the last step and the steps of the checkpoints `indices` (of 143), without step 0."""
    scale = scale_named(params.scale)
    return sorted({scale.fork_step(i) for i in indices} - {0} | {scale.steps})


def _hits(
    params: Params, suite: Suite, tasks: list[BuiltTask], progress: bool
) -> tuple[dict[str, np.ndarray], int]:
    """Return the arrays `hits` of `measure`, and how many checkpoints are missing or corrupt.

    All tasks are scored at the end. Tasks with the fewest shots are also scored at earlier
    checkpoints of the models trained on the standard text.
    """
    from pythia_book.tasks.metrics import measure_tasks

    last = scale_named(params.scale).steps
    finals = {(size, arm, last): run for (size, arm), run in suite.items()}
    earlier = {
        (size, "standard", step): suite[size, "standard"]
        for size in params.size_list
        for step in _steps(params, OVER_TRAINING)
        if step != last
    }
    zero_shot = [task for task in tasks if task.shots == min(params.shot_list)]
    arrays, lost = {}, 0
    for cells, measured_tasks in ((finals, tasks), (earlier, zero_shot)):
        checkpoints = [(run, step) for (_, _, step), run in cells.items()]
        scored, gaps = measure_tasks(checkpoints, measured_tasks, progress)
        lost += len(gaps)
        for (size, arm, step), run in cells.items():
            for task in measured_tasks if (run.id, step) in scored else ():
                name = name_of("hits", size, arm, step, task.name, task.shots)
                arrays[name] = scored[run.id, step][task.key]["acc"].astype(bool)
    return arrays, lost


def _language(params: Params, suite: Suite, progress: bool) -> tuple[dict[str, np.ndarray], int]:
    """Return the arrays `loss` and `words`, and how many checkpoints are missing or corrupt."""
    from pythia_book.measurements import LanguageMeasurement, measure_all

    runs = {size: suite[size, "standard"] for size in params.size_list}
    first = runs[params.size_list[0]]
    language = LanguageMeasurement.of(first.data)
    cells = [(run, step) for run in runs.values() for step in _steps(params, LOSS_AT)]
    measured, gaps = measure_all(cells, language, progress)
    arrays = {}
    for size, run in runs.items():
        for step in _steps(params, LOSS_AT):
            if (run.id, step) in measured:
                each = measured[run.id, step]
                arrays[name_of("loss", size, step)] = each["loss"].astype(np.float32)
                arrays[name_of("words", size, step)] = each["last_word"]
    return arrays, len(gaps)


def _agreement(
    params: Params, suite: Suite, tasks: list[BuiltTask], hits: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Score the last checkpoint of the largest size with lm_eval, and compare item by item.

    Args:
        hits: our own scores, as in `measure`.

    Returns:
        A dict per task and shot count with `task`, `shots`, `items` (number of items), `differing`
        (number of items that only one scorer counts as right) and `harness` (accuracy by lm_eval, 0
        to 1). The list is empty without lm_eval or without our scores of a task.
    """
    from pythia_book.tasks.harness import adapter, evaluate_with_harness
    from pythia_core.util.workers import one_thread

    size, last = params.size_list[-1], scale_named(params.scale).steps
    run = suite[size, "standard"]
    ours = {
        each.key: hits.get(name_of("hits", size, "standard", last, each.name, each.shots))
        for each in tasks
    }
    if any(right is None for right in ours.values()):
        return []
    length = run.config.model.max_seq_len
    try:
        with one_thread():
            lm = adapter(run.model(last), run.data.tokenizer, run.data.eod_id, length)
            results = evaluate_with_harness(lm, tasks)
    except MissingDependencyError:
        return []
    return [
        {"task": each.name, "shots": each.shots, "items": len(each.items),
         "differing": int((ours[each.key] != results[each.key].acc).sum()),
         "harness": results[each.key].metrics["acc"]}
        for each in tasks
        if each.key in results
    ]  # fmt: skip


# --- analysis --------------------------------------------------------------------------------


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers."""
    import pandas as pd

    facts = measured.facts
    losses, words = language_tables(params, measured)
    rows = {(size, int(step)): array for (size, step), array in measured.under("loss")}
    columns = ["task", "shots", "items", "differing", "harness"]
    pairs = released_tests.pairs_table(_table(released, "final"))
    batch = released_tests.batch_table(_table(released, "batch"))
    tables = {
        "accuracy": accuracy_table(params, measured),
        "losses": losses,
        "last_words": words,
        "agreement": pd.DataFrame(facts["agreement"], columns=columns),
        "pairs": pairs,
        "batch_difference": batch,
        **laws_tables(losses, rows),
        **emergence.tables_of(params, measured),
    }
    effects = released_tests.estimates(released, pairs, batch)
    numbers = values(facts, tables) | released_tests.values(effects, released)
    numbers |= emergence.values(params, measured, tables)
    numbers |= released_sums.values(released, params.bootstrap)
    statements = [
        *claims(params, measured, tables, effects, pairs),
        *emergence_claims(params, measured, tables, released),
    ]
    return tables, numbers, statements


def _table(released: Tables, name: str) -> pd.DataFrame:
    """Return the released table `name`; if missing, return an empty table with the same columns."""
    import pandas as pd

    from pythia_book.published.scaling import COLUMNS

    return released.get(name, pd.DataFrame(columns=COLUMNS[name]))


def accuracy_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the table of the accuracy of our models on every task.

    Columns:
    `size`, `arm`, `task`, `shots`, `step`, `percent` (of training);
    `value`, `low`, `high`: accuracy from 0 to 1 with its interval;
    `n`: number of items;
    `fits`: share of the items that fit the model's context;
    `status`: "scored", "does not fit" (too few items fit), "too long" (every item has an answer
        that alone exceeds the context) or "lost" (the checkpoint is missing).
    """
    import pandas as pd

    last, rows = measured.facts["steps"], []
    cells = [(size, arm, last) for size in params.size_list for arm in ("standard", "deduplicated")]
    cells += [
        (size, "standard", step)
        for size in params.size_list
        for step in _steps(params, OVER_TRAINING)
        if step != last
    ]
    for size, arm, step in cells:
        for task in measured.facts["tasks"]:
            name, shots, status = task["name"], task["shots"], task["status"]
            if step != last and shots != min(params.shot_list):
                continue
            right = measured.get("hits", size, arm, step, name, shots)
            row = {"value": None, "low": None, "high": None}
            if right is not None:
                row = estimate(right[None].astype(float), params.bootstrap, exact=True).interval()
            elif status == "scored":
                status = "lost"
            rows.append({"size": size, "arm": arm, "task": name, "shots": shots, "step": step,
                         "percent": 100 * step / last, **row, "n": task["items"],
                         "fits": task["fits"], "status": status})  # fmt: skip
    return pd.DataFrame(rows)


def language_tables(params: Params, measured: Measurements) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables `losses` and `last_words`, on the models trained on the standard text.

    `losses`: `size`, `step`, `n_params` (without embeddings), `tokens` (read so far), `flops` (6 *
        n_params * tokens), and held-out loss in nats per token (`value`, `low`, `high`).
    `last_words`: `size`, `step`, `percent` (of training), and the share of last words that
        are right (`value`, `low`, `high`).
    """
    import pandas as pd

    facts, losses, words = measured.facts, [], []
    for size in params.size_list:
        n = facts["n_params"][size]
        for step in _steps(params, LOSS_AT):
            loss, right = (measured.get(kind, size, step) for kind in ("loss", "words"))
            if loss is None or right is None:
                continue
            tokens = step * facts["tokens_per_step"][size]
            losses.append({
                "size": size, "step": step, "n_params": n, "tokens": tokens,
                "flops": 6 * n * tokens, **estimate(loss[None], params.bootstrap).interval(),
            })  # fmt: skip
            hits = estimate(right[None].astype(float), params.bootstrap, exact=True)
            percent = 100 * step / facts["steps"]
            words.append({"size": size, "step": step, "percent": percent, **hits.interval()})
    ends = ["value", "low", "high"]
    return (
        pd.DataFrame(losses, columns=["size", "step", "n_params", "tokens", "flops", *ends]),
        pd.DataFrame(words, columns=["size", "step", "percent", *ends]),
    )


def values(facts: dict[str, Any], tables: Tables) -> dict[str, Any]:
    """Return the numbers about our models, besides those about sums, that the page quotes."""
    prediction = tables["prediction"]
    numbers: dict[str, Any] = {"context": facts["context"], "gaps": facts["gaps"]}
    for rule in RULES:
        errors = prediction[prediction.rule == rule].error.abs()
        numbers[f"prediction_{rule}"] = float(errors.mean()) if len(errors) else None
    numbers["prediction_advantage"] = None
    if len(prediction):
        numbers["prediction_advantage"] = advantage(prediction)[0].interval()
    best = tables["optimal"][tables["optimal"].kind == "compute"].tokens_per_parameter
    for end, value in (("least", best.min()), ("most", best.max())):
        numbers[f"optimal_tokens_{end}"] = float(value) if len(best) else None
    return numbers
