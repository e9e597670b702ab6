"""The benchmark tasks as studies ask them: built once, the same for every study of a scale.

Built alike, they are measured once: what one study kept beside a run, another finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pythia_book.stats import estimate
from pythia_book.tasks.task_metrics import BuiltTask, TaskMeasurement, build_all
from pythia_book.tasks.tasks import TASKS

if TYPE_CHECKING:
    import numpy as np

    from pythia_book.measurements import Arrays
    from pythia_core.training.runs import Run

SHOTS = (0, 1)
LIMIT = 150
"""Items of a task."""
LEAST_FITTING = 0.2
"""Below this share of items that fit the model whole, a cell is a gap."""


def share_fitting(built: BuiltTask) -> float:
    """Share of the items whose whole prompt fits the model."""
    return float(built.fits.mean()) if len(built.fits) else 0.0


def built_tasks(
    run: Run,
    tasks: Sequence[str] = tuple(TASKS),
    shots: Sequence[int] = SHOTS,
    limit: int = LIMIT,
) -> tuple[list[BuiltTask], TaskMeasurement]:
    """All cells, and the measurement of those that fit a run's model well enough."""
    length = run.config.model.max_seq_len
    built = build_all(tasks, shots, limit, run.data.tokenizer, length)
    fitting = tuple(each for each in built if share_fitting(each) >= LEAST_FITTING)
    return built, TaskMeasurement(fitting, length)


def twin_rows(
    size: str, tasks: TaskMeasurement, both: Sequence[Arrays], draws: int
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Accuracy of the second minus the first of two models, item by item: a row a task (size, task,
    shots, value, low, high, n), and the zero-shot differences by task."""
    rows, zero = [], {}
    for each in tasks.built:
        first, second = (arrays[f"{each.key}_acc"].astype(float) for arrays in both)
        change = second - first
        e = estimate(change[None], draws, change=True, exact=True)
        rows.append({"size": size, "task": each.task, "shots": each.shots, **e.interval(),
                     "n": e.n_items})  # fmt: skip
        if each.shots == 0:
            zero[each.task] = change
    return rows, zero
