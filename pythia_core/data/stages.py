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
import shlex
import shutil
import signal
import subprocess
import sys
import time
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
        """Runs tasks here. (datatrove's own local executor hangs if a process is killed.)"""

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
    except (PythiaError, OSError, BrokenProcessPool):
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
        _cancel_leftover(folder)
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


# --- Slurm -----------------------------------------------------------------------------------

POLL_SECONDS = 2.0
LOST_SECONDS = 20.0
"""A job that has left Slurm's queue without a result for so long has failed. (Files appear on
other machines of a cluster only after some seconds.)"""


class _Share:
    """Runs some tasks of a stage as a Slurm job; what is not done at its time limit goes on."""

    def __call__(self, stage: Stage, folder: Path, tasks: list[int]) -> BaseException | None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        for task in tasks:
            try:
                with _named_failure(stage, folder, task):
                    run_tasks(stage, folder, [task])
            except (PythiaError, OSError) as error:
                return error
        return None

    def checkpoint(self, *arguments: Any) -> Any:
        """Let submitit queue the job again, if its time is over or it makes room for another."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


@dataclass(frozen=True)
class Slurm:
    """Runs each stage as one Slurm job array, from a machine on which sbatch works.

    The work folder must have the same path on every node. More options of sbatch can be given as
    its environment variables, such as SBATCH_ACCOUNT or SBATCH_MEM_PER_NODE.
    """

    jobs: int
    """Number of jobs among which the tasks of a stage are divided."""
    partition: str = ""
    minutes: int = 60
    """Time limit of a job. A job that reaches it is queued again, up to three times."""
    workers: int = 0
    """Maximum number of jobs that run at the same time; 0: no limit."""

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.minutes < 1 or self.workers < 0:
            raise ConfigError(
                f"the work must be divided among at least one job of at least one minute, got "
                f"{self.jobs} jobs of {self.minutes} minutes"
            )

    def run(self, stage: Stage, folder: Path, progress: bool) -> None:
        """See `Engine.run`. Ctrl-C cancels the jobs, and so does the failure of one."""
        _cancel_leftover(folder)
        tasks = incomplete(stage, folder)
        if not tasks:
            return
        jobs = self._submit(stage, folder, tasks)
        number = jobs[0].job_id.partition("_")[0]
        _leftover(folder).write_text(number)
        try:
            with progress_bar(progress, total=len(tasks), desc=stage.name, unit="task") as bar:
                lost_since: float | None = None
                while waiting := [job for job in jobs if not job.paths.result_pickle.exists()]:
                    bar.update(len(tasks) - len(incomplete(stage, folder)) - bar.n)
                    lost = not _in_queue(number)
                    lost_since = (lost_since or time.monotonic()) if lost else None
                    if lost_since and time.monotonic() - lost_since > LOST_SECONDS:
                        raise _job_failed(stage, waiting[0], "ended without a result")
                    _raise_first(stage, [job for job in jobs if job not in waiting])
                    time.sleep(POLL_SECONDS)
                _raise_first(stage, jobs)
                bar.update(len(tasks) - bar.n)
        except KeyboardInterrupt as stop:
            _cancel_leftover(folder)
            stop.args = (f"stopped, and the Slurm job {number} was cancelled",)
            raise
        except BaseException:
            _cancel_leftover(folder)
            raise
        _leftover(folder).unlink(missing_ok=True)

    def _submit(self, stage: Stage, folder: Path, tasks: list[int]) -> list[Any]:
        """Submit the tasks as a job array; return submitit's jobs."""
        try:
            import submitit
        except ImportError as error:
            raise MissingDependencyError(
                "Slurm jobs need submitit; install it with `pip install -e .[cluster]`"
            ) from error
        name = stage.name.replace(" ", "-")
        try:
            executor = submitit.SlurmExecutor(folder / "slurm" / name)
        except RuntimeError as error:
            raise ConfigError(f"{error} Use --on local, or a machine where sbatch works") from error
        settings = {"partition": self.partition} if self.partition else {}
        executor.update_parameters(
            job_name=f"pythia-{name}",
            time=self.minutes,
            cpus_per_task=1,
            array_parallelism=self.workers or self.jobs,
            # programs of an environment that is not activated are found, too
            setup=[f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"],
            **settings,
        )
        shares = _shares(tasks, self.jobs)
        try:
            return executor.map_array(
                _Share(), [stage] * len(shares), [folder] * len(shares), shares
            )
        except submitit.core.utils.FailedJobError as error:
            raise ConfigError(f"Slurm refused the job: {str(error).strip()}") from error


def _leftover(folder: Path) -> Path:
    """Return the path of the file with the number of the job array that may be running."""
    return folder / "slurm-job"


def _cancel_leftover(folder: Path) -> None:
    """Cancel the job array that a killed command left running, and wait until it has ended.

    Raises:
        ConfigError: there is one, but no Slurm on this machine.
    """
    path = _leftover(folder)
    if path.exists():
        number = path.read_text()
        if shutil.which("scancel") is None:
            raise ConfigError(
                f"the Slurm job {number} may still be preparing this text; cancel it where Slurm "
                f"is, delete {path}, and run again"
            )
        subprocess.run(["scancel", number], capture_output=True, check=False)
        end = time.monotonic() + LOST_SECONDS
        while _in_queue(number) and time.monotonic() < end:
            time.sleep(0.2)
        path.unlink(missing_ok=True)


def _in_queue(number: str) -> bool:
    """Return whether a job of the array waits or runs; True if Slurm does not answer."""
    command = ["squeue", "--noheader", "--jobs", number, "--format", "%i"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return "Invalid job id" not in done.stderr
    return bool(done.stdout.strip())


def _raise_first(stage: Stage, jobs: list[Any]) -> None:
    """Raise the error of the first job that failed, if one did."""
    for job in jobs:
        try:
            error = job.result()
        except Exception as failure:  # submitit has several
            raise _job_failed(stage, job, type(failure).__name__) from failure
        if error is not None:
            raise error


def _job_failed(stage: Stage, job: Any, reason: str) -> PythiaError:
    """Return the error for a job that failed in an unexpected way."""
    return PythiaError(
        f"the Slurm job {job.job_id} of the stage {stage.name!r} failed ({reason}); its logs are "
        f"{job.paths.stderr} and {job.paths.stdout}. Finished tasks are saved: run the same "
        "command again to continue"
    )
