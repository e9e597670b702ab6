"""What deduplication removes and what it changes (paper sections 2.2, 2.4 and 2.6).

Twins are two models of one size, trained on the standard and on the deduplicated text, from the
same initial weights and for the same number of updates. Our twins are compared row by row and item
by item. For the released twins, only accuracies and standard errors are known.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.published.deduplication import twin_differences
from pythia_book.studies.deduplication.claims import claims, released_effects
from pythia_book.studies.deduplication.params import CONTEXT, STUDY, Params, texts
from pythia_book.studies.deduplication.tables import TEXT_ROW, tables, values
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.suite import DATA_ARMS, scale_named, suite_configs

if TYPE_CHECKING:
    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run

Suite = dict[tuple[str, str], "Run"]
"""Maps (size, arm) to a run."""


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, deduplicate the text by every recipe, and compare the twins.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """
    measuring, analysing = partial(measure, params, progress), partial(analyse, params)
    return conduct(STUDY, params, measuring, analysing, released, published)


def released(published: Published) -> Tables:
    """Return the table `twins`: deduplicated minus standard accuracy over training, in points."""
    return {"twins": twin_differences(published)}


def analyse(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers."""
    frames, effects = tables(params, measured), released_effects(released)
    numbers = values(params, measured, frames, effects)
    return frames, numbers, claims(params, measured, frames, effects)


# --- measuring -------------------------------------------------------------------------------


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the twins and measure them.

    Arrays, e.g. for size 25k and the standard text:

    - "loss/25k/standard/572": float32[rows], held-out loss at step 572 in nats per token.
    - "last_word/25k/standard/572": bool[words], whether each last word was predicted.
    - "accuracy/25k/standard/piqa_0": bool[items], whether the final model answers correctly.
    - "memorized/25k/standard": bool[texts], whether the final model has memorized a text. A text
      is the first 64 tokens of a training row; equal texts are listed once.
    - "rows/standard": int[texts], the number of training rows that begin with each text.

    Facts:

    - "recipes", "clusters": the rows of the tables with these names.
    - "tasks": maps the key of a task to [name, shots].
    - "gaps": the number of unmeasured checkpoints, summed over the measurements.
    """
    from pythia_book.studies.registry import train_all

    suite = train_all(
        params, suite_configs(params.scale, params.size_list, seed=params.seed), progress
    )
    recipes, clusters = _texts(params, progress)
    measured = Measurements({}, {"recipes": recipes, "clusters": clusters}, list(suite.values()))
    gaps = _language(params, suite, measured, progress)
    gaps += _memorized(params, suite, measured, progress)
    gaps += _tasks(params, suite, measured, progress)
    measured.facts["gaps"] = gaps
    return measured


def _texts(params: Params, progress: bool) -> tuple[list[list[Any]], list[list[Any]]]:
    """Deduplicate the text by every recipe; return rows for `recipes` and `clusters`."""
    from pythia_core.data.prepare import prepare

    rows: list[list[Any]] = []
    clusters: list[list[Any]] = []
    for text in texts(params):
        data = prepare(text, progress)
        report = data.manifest["tokens"]["dedup"]
        removed = report.get("removed", {})
        row = {"recipe": text.dedup, **data.manifest["tokens"]["train"]}
        row |= {"identical": removed.get("exact", 0), "similar": removed.get("near", 0)}
        rows.append([row[name] for name in TEXT_ROW])
        for copies, count in sorted(report.get("clusters", {}).items(), key=lambda c: int(c[0])):
            clusters.append([text.dedup, int(copies), count])
    return rows, clusters


def _language(params: Params, suite: Suite, measured: Measurements, progress: bool) -> int:
    """Add held-out loss and last words over training to `measured`; return the number of gaps."""
    from pythia_book.measurements import LanguageMeasurement, measure_all

    first = next(iter(suite.values()))
    language = LanguageMeasurement.of(first.data)
    cells = [(run, step) for run in suite.values() for step in params.steps]
    arrays_at, gaps = measure_all(cells, language, progress)
    for (size, arm), run in suite.items():
        for step in params.steps:
            arrays = arrays_at.get((run.id, step), {})
            for measure, scores in arrays.items():
                kind = np.float32 if measure == "loss" else bool
                measured.arrays[name_of(measure, size, arm, step)] = scores.astype(kind)
    return len(gaps)


def _memorized(params: Params, suite: Suite, measured: Measurements, progress: bool) -> int:
    """Add to `measured` which rows each final model has memorized; return the number of gaps.

    Rows whose first 64 tokens (32 of context, 32 to generate) are equal share one array entry.
    """
    from pythia_book.measurements import measure_all
    from pythia_core.evaluation.memorization import ExtractionMeasurement, distinct_windows

    n_gaps = 0
    for arm in DATA_ARMS:
        runs = {size: suite[size, arm] for size in params.size_list}
        first = next(iter(runs.values()))
        data, batch, last = first.data, first.config.train.batch_size, first.config.train.steps
        extraction = ExtractionMeasurement(data, batch, last, CONTEXT, CONTEXT)
        _, text = distinct_windows(data.rows.rows(0, batch * last), 2 * CONTEXT)
        _, example, counts = np.unique(text, return_index=True, return_counts=True)
        kind = np.min_scalar_type(int(counts.max()))
        measured.arrays[name_of("rows", arm)] = counts.astype(kind)
        arrays_at, gaps = measure_all([(run, last) for run in runs.values()], extraction, progress)
        n_gaps += len(gaps)
        for size, run in runs.items():
            if (run.id, last) in arrays_at:
                rows = np.asarray(arrays_at[run.id, last]["memorized"], bool)
                measured.arrays[name_of("memorized", size, arm)] = rows[example]
    return n_gaps


def _tasks(params: Params, suite: Suite, measured: Measurements, progress: bool) -> int:
    """Add to `measured` which items each final model gets right; return the number of gaps."""
    from pythia_book.tasks.benchmarks import TASKS
    from pythia_book.tasks.metrics import build_tasks, fitting_tasks, measure_tasks

    first = next(iter(suite.values()))
    tasks = fitting_tasks(build_tasks(first, list(TASKS), limit=params.limit))
    last = scale_named(params.scale).steps
    scored, gaps = measure_tasks([(run, last) for run in suite.values()], tasks, progress)
    measured.facts["tasks"] = {task.key: [task.name, task.shots] for task in tasks}
    for (size, arm), run in suite.items():
        for key, metrics in scored.get((run.id, last), {}).items():
            measured.arrays[name_of("accuracy", size, arm, key)] = metrics["acc"].astype(bool)
    return len(gaps)
