"""Run a command in several processes, on this machine or as Slurm jobs, and wait for them.

The processes share work by leases on a shared folder (pythia_core.util.leases). Each ends without
an error only when all the work is done, so the command succeeds if one process does. Slurm jobs are
submitted with `submitit`, whose own files are the only pickles; results are never unpickled.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError, MissingDependencyError, PythiaError
from pythia_core.util.machine import DEVICES
from pythia_core.util.progress import print_line
from pythia_core.util.workers import VARIABLE

POLL_SECONDS = 5.0
"""Seconds between two calls of squeue."""
VANISHED_SECONDS = 10.0
"""How long the result of a job that squeue no longer lists may take to appear, since shared file
systems show new files late; after that, the job has failed."""
LOG_LINES = 10
"""How many lines of a failed job's log are shown."""
NEWS_SECONDS = 20.0
"""Time between two lines that say what a worker is doing."""
MINUTES = 240
"""Default time limit of a job, in minutes; a job that reaches it saves its work and is requeued."""


@dataclass(frozen=True)
class Slurm:
    """What Slurm jobs request."""

    gpu: bool = False
    """Whether a job has a GPU."""
    partition: str = ""
    minutes: int = MINUTES
    options: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch, e.g. {"account": "abc", "mem": "32G"}."""


@dataclass(frozen=True)
class _Command:
    """What a Slurm job runs."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command. If Slurm announces the time limit, stop the command and requeue the job.

        Raises:
            SystemExit: the command was stopped or has failed, so that the job has no result.
        """
        # Slurm sends the announcement to all processes of the job, and the command would die of it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        child = subprocess.Popen(self.words)
        announced = False

        def stop(*_: Any) -> None:
            nonlocal announced
            announced = True
            child.terminate()

        signal.signal(signal.SIGUSR2, stop)
        code = child.wait()
        if code and announced:
            subprocess.run(["scontrol", "requeue", _job_id()], check=True)
        if code:
            raise SystemExit(code)


def _job_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return the id of this job, e.g. 12 or, in an array, 12_0.

    SLURM_JOB_ID will not do: one of the jobs in an array has the id of the whole array.
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def on_slurm(arguments: Sequence[str], count: int, folder: Path, slurm: Slurm) -> list[Path]:
    """Run `python -m pythia_core ARGUMENTS` in `count` Slurm jobs, and wait for them to end.

    Ctrl-C or SIGTERM cancels the jobs. Jobs that are preempted or reach their time limit are
    requeued.

    Args:
        folder: for the logs; a shared folder.

    Returns:
        The logs of the jobs.

    Raises:
        ConfigError: this machine has no sbatch, or Slurm refuses the job.
        MissingDependencyError: submitit is not installed.
        PythiaError: all jobs have failed or were canceled; the message has the ends of their logs.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "there is no sbatch here; run this command on a login node of the cluster"
        )
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError(
            "Slurm jobs need submitit; install it with `pip install -e .[cluster]`"
        ) from error
    executor = submitit.SlurmExecutor(folder=folder)
    options: dict[str, Any] = {"time": slurm.minutes, "job_name": f"pythia-{arguments[0]}"}
    options |= {"partition": slurm.partition} if slurm.partition else {}
    options |= {"gpus_per_node": 1} if slurm.gpu else {}
    executor.update_parameters(
        **options,
        stderr_to_stdout=True,
        setup=[
            f"export PATH={shlex.quote(_path())}",
            f"export {VARIABLE}=${{{VARIABLE}:-${{SLURM_CPUS_PER_TASK:-1}}}}",
        ],
        additional_parameters={"requeue": True, **slurm.options},
    )
    command = _Command((sys.executable, "-m", "pythia_core", *arguments))
    try:
        with executor.batch():
            jobs = [executor.submit(command) for _ in range(count)]
    except (subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        raise ConfigError(f"Slurm refuses the jobs: {str(error).strip()}") from error
    number = jobs[0].job_id.partition("_")[0]
    logs = {job.job_id: job.paths.stdout for job in jobs}
    print_line(f"Slurm job {number}: {count} x {arguments[0]}; logs in {folder}")
    try:
        _wait_for(
            number, {job.job_id: job.paths.result_pickle for job in jobs}, _News(logs.values())
        )
    except BaseException:
        subprocess.run(["scancel", number], check=False)
        print_line(f"job {number} was canceled; its work is saved")
        raise
    failed = [job.job_id for job in jobs if not job.paths.result_pickle.exists()]
    _report_failed({f"Slurm job {job}": logs[job] for job in failed}, count)
    return list(logs.values())


class _News:
    """Shows what workers are doing: the last line of the newest of their logs."""

    def __init__(self, logs: Iterable[Path]) -> None:
        self._logs = list(logs)
        self._shown, self._next = "", time.monotonic() + NEWS_SECONDS

    def show(self) -> None:
        """Print the line if it is new, at most once per NEWS_SECONDS."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + NEWS_SECONDS
        logs = [log for log in self._logs if log.is_file()]
        newest = max(logs, key=lambda log: log.stat().st_mtime, default=None)
        line = _last_lines(newest, 1) if newest else []
        if line and line[0] != self._shown:
            self._shown = line[0]
            print_line(self._shown)


def _last_lines(log: Path, n: int) -> list[str]:
    """Return the last lines of a log that are not blank."""
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
        text = file.read().decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-n:]


def _wait_for(number: str, results: Mapping[str, Path], news: _News) -> None:
    """Wait until each job has a result or is no longer listed by Slurm; print what changes."""
    last_text, vanished = "", dict[str, float]()
    while True:
        open_jobs = [job for job, result in results.items() if not result.exists()]
        if not open_jobs:
            return
        listed = _listed(number)
        if listed is not None:
            now = time.monotonic()
            vanished = {job: vanished.get(job, now) for job in open_jobs if job not in listed}
            if len(vanished) == len(open_jobs) and (
                now - max(vanished.values()) > VANISHED_SECONDS
            ):
                return
            states = Counter(listed[job] for job in open_jobs if job in listed)
            text = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
            if text and text != last_text:
                print_line(f"job {number}: {text}, {len(results) - len(open_jobs)} finished")
                last_text = text
        news.show()
        time.sleep(POLL_SECONDS)


def _listed(number: str) -> dict[str, str] | None:
    """Return the state of each job that waits or runs; None if Slurm does not answer.

    Unlike sacct, squeue needs no accounting database.
    """
    command = ["squeue", "--noheader", "--array", f"--jobs={number}", "--format=%i %T (%r)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    rows = (line.partition(" ") for line in done.stdout.splitlines())
    return {job: state.lower().removesuffix(" (none)") for job, _, state in rows}


def _path() -> str:
    """Return a PATH on which programs of this environment are found, activated or not."""
    folder = str(Path(sys.executable).parent)
    words = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join([folder, *(word for word in words if word != folder)])


def on_this_machine(
    arguments: Sequence[str], count: int, folder: Path, devices: Sequence[str] = ()
) -> list[Path]:
    """Run `python -m pythia_core ARGUMENTS` in `count` processes, and wait for them to end.

    If this process is stopped, the others are stopped, too; what they did is saved.

    Args:
        folder: for the logs.
        devices: the GPUs, one for each process; default: each process uses one core.

    Returns:
        The logs of the processes.

    Raises:
        PythiaError: all processes have failed; the message has the ends of their logs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"local-{os.getpid()}-{number}.log" for number in range(count)]
    processes: list[subprocess.Popen[bytes]] = []
    print_line(f"{count} x {arguments[0]} on this machine, logs in {folder}")
    try:
        for number, log in enumerate(logs):
            one_core = {VARIABLE: "1", "TOKENIZERS_PARALLELISM": "false"}
            own = {DEVICES: devices[number]} if devices else one_core
            with log.open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "pythia_core", *arguments],
                        env={**os.environ, "PATH": _path(), **own},
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                        process_group=0,  # Ctrl-C at the terminal is for the parent
                        preexec_fn=_end_with_parent,
                    )
                )
        news = _News(logs)
        while alive := [process for process in processes if process.poll() is None]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                alive[0].wait(POLL_SECONDS)
            news.show()
    finally:
        for process in processes:
            with contextlib.suppress(OSError):
                process.terminate()
        for process in processes:
            process.wait()
    pairs = zip(processes, logs, strict=True)
    _report_failed({f"process {p.pid}": log for p, log in pairs if p.returncode}, count)
    return logs


def _end_with_parent() -> None:
    """Ask Linux for a SIGTERM when the parent ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _report_failed(logs: Mapping[str, Path], count: int) -> None:
    """Print the last lines of the logs of failed jobs; if all jobs failed, in a PythiaError."""
    if not logs:
        return
    lines, by_last_line = list[str](), Counter[str]()
    for name, log in logs.items():
        end = _last_lines(log, LOG_LINES) if log.is_file() else []
        end = end or ["(it is empty)"]
        by_last_line[end[-1]] += 1
        if by_last_line[end[-1]] == 1:
            lines.append(f"{name} was stopped or has failed; its log {log} ends with:")
            lines += [f"    {line}" for line in end]
    lines += [f"{n - 1} more with the same last line" for n in by_last_line.values() if n > 1]
    report = "\n".join(lines)
    if len(logs) == count:
        workers = f"all {count} workers have" if count > 1 else "the worker has"
        raise PythiaError(
            f"{workers} failed. What is finished is kept; run the same command "
            f"again to continue\n{report}"
        )
    print_line(
        f"{report}\n{len(logs)} of {count} workers have failed; the others have finished the work"
    )
