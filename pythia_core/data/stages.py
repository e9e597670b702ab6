"""Run work in stages of many tasks, shared by all processes that were started for it.

A task writes one folder, which depends on the task only and appears complete or not at all. A
process leases a task (pythia_core.util.leases) before it runs it. So processes on any machines that
share the work folder share the tasks, and the same call resumes work that was killed. If two
processes run a task after all, because one was suspended, one complete folder remains.

A stage begins once the stage before it has ended, so no job waits for one that has failed.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pythia_core.errors import CorpusChangedError, DataError, PythiaError, TakenElsewhere
from pythia_core.util.leases import POLL_SECONDS, leased, marker_of
from pythia_core.util.progress import bar as progress_bar


@dataclass(frozen=True)
class Stage:
    """Tasks that can run at the same time, in any order."""

    name: str
    outputs: Sequence[Path]
    """The folder that each task writes."""
    run: Callable[[int], object]
    """Runs a task, given its number."""


@dataclass(frozen=True)
class Stages:
    """Runs stages, one after the other, in this process and in all others with the same folder."""

    folder: Path
    """The work folder, which is deleted at the end."""
    finished: Callable[[], bool]
    """Whether the result of all stages is complete, so that nothing is left to do."""
    progress: bool

    @contextmanager
    def whole_work(self) -> Iterator[Stages]:
        """Delete the work folder at the end of a `with` block, which runs all stages.

        If another process finishes the work first, it deletes the files; errors that follow are
        ignored.

        Yields:
            This object.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            yield self
        except CorpusChangedError:
            shutil.rmtree(self.folder, ignore_errors=True)  # the work is of no use any more
            raise
        except (PythiaError, OSError) as error:
            if not self.finished():
                if os.fstat(folder).st_nlink == 0:
                    raise DataError(
                        f"the folder {self.folder} was deleted while it was in use, perhaps "
                        "because the text has changed; run again"
                    ) from error
                raise
        finally:
            os.close(folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, stage: Stage) -> None:
        """Run the tasks of a stage that no other process runs, until all are done.

        Raises:
            PythiaError: a task raised it, or failed with an unexpected exception.
            TakenElsewhere: another process has finished the whole work.
            OSError: a task raised it, e.g. because the disk is full.
        """
        tasks = self.incomplete(stage)
        total = len(tasks)
        with progress_bar(
            self.progress and total > 0, total=total, desc=stage.name, unit="task"
        ) as bar:
            while tasks:
                idle = True
                for task in tasks:
                    if self._run(stage, task):
                        idle = False
                        bar.update()
                if idle:
                    time.sleep(POLL_SECONDS)
                tasks = self.incomplete(stage)
                bar.update(total - len(tasks) - bar.n)  # those that other processes have done

    def incomplete(self, stage: Stage) -> list[int]:
        """Return the tasks of a stage that are not done."""
        return [n for n, output in enumerate(stage.outputs) if not output.exists()]

    def _run(self, stage: Stage, task: int) -> bool:
        """Run a task unless another process is running it or ran it; return whether it ran here."""
        output = stage.outputs[task]
        if self.finished():
            raise TakenElsewhere(f"another process has finished the work in {self.folder}")
        if output.exists():
            return False
        try:
            with leased(marker_of(output), wait=False) as lease, lease.explains_errors():
                if output.exists():
                    return False
                for leftover in output.parent.glob(f".{output.name}.tmp-*"):  # of a killed process
                    shutil.rmtree(leftover, ignore_errors=True)
                stage.run(task)
                return True
        except TakenElsewhere:
            return False
        except (PythiaError, OSError):
            raise
        except Exception as error:  # of datatrove
            raise DataError(
                f"task {task} of the stage {stage.name!r} failed ({type(error).__name__}: {error})"
            ) from error
