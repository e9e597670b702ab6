"""Run work in stages of many tasks, shared by all processes that were started for it.

The result of a task depends on its stage and its number only. A process leases a task
(pythia_core.util.leases), runs it and marks it as done, all in the work folder; so processes on any
machines that share this folder share the tasks, and whatever is killed, the same call continues.
Tasks write complete files or none, so a task may even run twice at the same time.

A stage begins when the one before has ended. Nothing waits in a queue for a job that has failed.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_core.errors import DataError, PythiaError, TakenElsewhere
from pythia_core.util.leases import POLL_SECONDS, leased, marker_of
from pythia_core.util.progress import bar as progress_bar


@dataclass(frozen=True)
class Stage:
    """Tasks that can run at the same time, in any order."""

    name: str
    tasks: int
    steps: Callable[[], Sequence[Callable[[Any, int, int], Any]]]
    """Makes the steps of a task: steps of datatrove, or functions of (data, task, number of tasks).
    Each gets what the one before has returned; the last may return an iterable, to be exhausted."""


@dataclass(frozen=True)
class Stages:
    """Runs stages, one after the other, in this process and in all others with the same folder."""

    folder: Path
    """The work folder, which is deleted at the end."""
    finished: Callable[[], bool]
    """Whether the result of all stages is complete, so that nothing is left to do."""
    progress: bool

    @contextmanager
    def whole_work(self) -> Iterator[None]:
        """Enclose all stages, in a `with` block; at its end, delete the work folder.

        If the work was finished elsewhere while this process was at it, any error is its
        consequence, since the files were deleted.
        """
        try:
            yield
        except (PythiaError, OSError):
            if not self.finished():
                raise
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, stage: Stage) -> None:
        """Run the tasks of a stage that no other process runs, until all are done.

        Raises:
            PythiaError: of a task; or a task failed otherwise.
            TakenElsewhere: other processes have finished the whole work.
            OSError: of a task, e.g. since the disk is full.
        """
        tasks = self.incomplete(stage)
        total = len(tasks)
        with progress_bar(
            self.progress and total > 0, total=total, desc=stage.name, unit="task"
        ) as bar:
            while tasks:
                if not any([self._run(stage, task) for task in tasks]):
                    time.sleep(POLL_SECONDS)
                tasks = self.incomplete(stage)
                bar.update(total - len(tasks) - bar.n)

    def incomplete(self, stage: Stage) -> list[int]:
        """Return the tasks of a stage that are not done."""
        return [n for n in range(stage.tasks) if not self._mark(stage, n).exists()]

    def _mark(self, stage: Stage, task: int) -> Path:
        return self.folder / "done" / stage.name / f"{task:05d}"

    def _run(self, stage: Stage, task: int) -> bool:
        """Run a task unless another process does or did; return whether it was run."""
        mark = self._mark(stage, task)
        if self.finished():
            raise TakenElsewhere(f"{self.folder} is of work that is finished")
        if mark.exists():
            return False
        try:
            with leased(marker_of(mark), wait=False) as lease, lease.explains_errors():
                if mark.exists():
                    return False
                data: Any = None
                for step in stage.steps():
                    data = step(data, task, stage.tasks)
                if isinstance(data, Iterable):
                    deque(data, maxlen=0)
                mark.touch()
                return True
        except TakenElsewhere:
            return False
        except (PythiaError, OSError):
            raise
        except Exception as error:  # of datatrove
            raise DataError(
                f"task {task} of the stage {stage.name!r} failed ({type(error).__name__}: {error})"
            ) from error
