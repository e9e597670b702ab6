"""Run work in stages of many tasks: datatrove's tasks, in processes here or as Slurm jobs.

A task of a stage is a datatrove pipeline, whose result depends on the stage and on the number of
the task only. datatrove marks a task as completed when its pipeline has ended, and skips it from
then on. So whatever is killed, the same call continues where it was. Tasks write complete files or
none, so a task may even run twice at the same time.

Each stage begins when the one before has ended. Nothing waits in a queue for a job that failed.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pythia_core.errors import ConfigError, DataError, MissingDependencyError, PythiaError
from pythia_core.util.progress import bar as progress_bar
from pythia_core.util.stopping import uninterrupted_children
from pythia_core.util.workers import exit_with_parent


@dataclass(frozen=True)
class Stage:
    """Tasks that can run at the same time, in any order."""

    name: str
    tasks: int
    pipeline: Callable[[], Sequence[Any]]
    """Makes a task's pipeline: steps of datatrove, or functions of (data, task, number of tasks).
    Importable by name, or a `partial` of such a function."""


class Engine(Protocol):
    """Runs stages."""

    def run(self, stage: Stage, folder: Path, progress: bool) -> None:
        """Run those tasks of a stage that have not been completed before.

        Args:
            folder: has the marks of completed tasks, and the logs.

        Raises:
            PythiaError: of a task; or a task failed otherwise, or was killed.
            OSError: of a task, e.g. since the disk is full.
        """


def run_tasks(stage: Stage, folder: Path, tasks: Sequence[int]) -> None:
    """Run some tasks of a stage, one after the other, in this process."""
    try:
        from datatrove.executor.base import PipelineExecutor
    except ImportError as error:
        raise MissingDependencyError(
            f"preparation in stages needs datatrove ({error}); install it with "
            "`pip install -e .[dedup]`"
        ) from error

    class Tasks(PipelineExecutor):
        """Runs tasks here. (datatrove's own local executor waits for ever for a killed one.)"""

        world_size = stage.tasks

        def __init__(self) -> None:
            super().__init__(list(stage.pipeline()), str(folder / "logs" / stage.name))

        def run(self) -> None:
            raise NotImplementedError

        def get_distributed_env(self, node_rank: int = -1) -> dict[str, str]:
            names = ("node_ips", "cpus_per_task", "mem_per_cpu", "gpus_on_node", "executor")
            return dict.fromkeys((f"datatrove_{name}" for name in names), "")

    for task in tasks:
        with contextlib.redirect_stderr(io.StringIO()):  # datatrove's log is in a file, too
            Tasks()._run_for_rank(task)


def incomplete(stage: Stage, folder: Path) -> list[int]:
    """Return the tasks of a stage that have not been completed."""
    marks = folder / "logs" / stage.name / "completions"
    return [task for task in range(stage.tasks) if not (marks / f"{task:05d}").exists()]


def log_of(stage: Stage, folder: Path, task: int) -> Path:
    """Return the path of datatrove's log of a task."""
    return folder / "logs" / stage.name / "logs" / f"task_{task:05d}.log"


def _shares(tasks: list[int], parts: int) -> list[list[int]]:
    """Divide tasks into at most `parts` lists, as equal in length as possible."""
    parts = min(parts, len(tasks))
    return [tasks[part::parts] for part in range(parts)]


@contextlib.contextmanager
def _named_failure(stage: Stage, folder: Path, task: int) -> Iterator[None]:
    """Raise a DataError that names the log of a task which failed in an unexpected way."""
    try:
        yield
    except (PythiaError, OSError):
        raise
    except Exception as error:
        raise DataError(
            f"task {task} of the stage {stage.name!r} failed ({type(error).__name__}: {error}); "
            f"its log is {log_of(stage, folder, task)}"
        ) from error


# --- processes on this machine ---------------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """Runs tasks on this machine, `workers` at a time; with one worker, in this process."""

    workers: int

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"at least one task must run at a time, got {self.workers}")

    def run(self, stage: Stage, folder: Path, progress: bool) -> None:
        """See `Engine.run`."""
        tasks = incomplete(stage, folder)
        if not tasks:
            return
        with progress_bar(progress, total=len(tasks), desc=stage.name, unit="task") as bar:
            if min(self.workers, len(tasks)) == 1:
                for task in tasks:
                    with _named_failure(stage, folder, task):
                        run_tasks(stage, folder, [task])
                    bar.update()
                return
            context = multiprocessing.get_context("spawn")
            workers = min(self.workers, len(tasks))
            with uninterrupted_children():
                pool = ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(),))
                futures = {pool.submit(run_tasks, stage, folder, [task]): task for task in tasks}
            try:
                running = set(futures)
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        with _named_failure(stage, folder, futures[future]):
                            future.result()
                        bar.update()
            except BrokenProcessPool as error:
                raise PythiaError(
                    f"a process of the stage {stage.name!r} was killed, perhaps because memory ran "
                    "out. Finished tasks are saved: run the same command again to continue, with "
                    "fewer --workers if it happens again"
                ) from error
            finally:
                processes = list((pool._processes or {}).values())
                pool.shutdown(wait=False, cancel_futures=True)
                for process in processes if running else ():
                    process.terminate()
                for process in processes:
                    process.join()


def _start_worker(parent: int) -> None:
    """Set up a worker process, which ends with its parent and computes with one thread."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    exit_with_parent(parent, lambda: os._exit(1))
