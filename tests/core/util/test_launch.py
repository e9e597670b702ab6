"""Commands run in several processes here or as jobs of a real Slurm; failures name their logs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm

from pythia_core.errors import ConfigError, PythiaError
from pythia_core.util import launch
from pythia_core.util.launch import Slurm, on_slurm, on_this_machine

COMMAND = ["errata"]  # prints a list, needs neither torch nor a corpus
WRONG = ["errata", "no-such-erratum"]


def test_processes_on_this_machine(tmp_path: Path) -> None:
    logs = on_this_machine(COMMAND, 2, tmp_path / "logs")
    assert len({log.read_text() for log in logs}) == 1 and "\n" in logs[0].read_text()
    with pytest.raises(PythiaError) as caught:
        on_this_machine(WRONG, 2, tmp_path / "logs")
    assert "all 2 workers have failed" in str(caught.value)
    assert "1 more with the same last line" in str(caught.value)
    assert f"{tmp_path}/logs/local-{os.getpid()}-0.log ends with:" in str(caught.value)
    assert "no-such-erratum" in str(caught.value)


def test_each_process_gets_its_gpu_and_the_programs_of_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command is replaced by one that prints its environment."""
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $PYTHIA_WORKERS $PATH"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.delenv("PYTHIA_WORKERS", raising=False)
    logs = on_this_machine(COMMAND, 2, tmp_path / "logs", ["4", "GPU-7"])
    words = [log.read_text().split() for log in logs]
    assert [word[0] for word in words] == ["4", "GPU-7"]
    assert words[0][1].startswith(f"{fake.parent}:"), "no number of workers, and the PATH"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (log,) = on_this_machine(COMMAND, 1, tmp_path / "logs")
    assert log.read_text().split()[0] == "1", "one worker has one core"


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch here"):
        on_slurm(COMMAND, 1, tmp_path, Slurm())


def test_the_id_of_a_job_in_an_array_is_not_that_of_the_array() -> None:
    last = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert launch._job_id(last) == "12_3"
    assert launch._job_id({"SLURM_JOB_ID": "12"}) == "12"


# --- a real Slurm ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(launch, "VANISHED_SECONDS", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_jobs_run_on_both_nodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = on_slurm(COMMAND, 3, tmp_path / "logs", Slurm(minutes=5))
    assert len(logs) == 3 and all("\n" in log.read_text() for log in logs)
    out = capsys.readouterr().err
    assert "3 x errata; logs in" in out and "running" in out


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_failed_job_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(PythiaError) as caught:
        on_slurm(WRONG, 1, tmp_path / "logs", Slurm(minutes=5))
    assert "the worker has failed" in str(caught.value) and "no-such-erratum" in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_node_without_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    with pytest.raises(PythiaError, match=r"elsewhere/python: No such file or directory"):
        on_slurm(COMMAND, 1, tmp_path / "logs", Slurm(minutes=5))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_slurm_refuses_a_job(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Slurm refuses the jobs: .*partition"):
        on_slurm(COMMAND, 1, tmp_path / "logs", Slurm(partition="nowhere"))


SLEEPER = """#!/bin/sh
[ "${SLURM_RESTART_COUNT:-0}" = 0 ] && trap 'echo saved; exit 143' TERM
echo started on $SLURMD_NODENAME, restarts ${SLURM_RESTART_COUNT:-0}
while [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; do sleep 1 & wait; done
"""
DRIVER = """
import sys
from pathlib import Path
from pythia_core.util import launch
from pythia_core.util.stopping import interruptible
launch.POLL_SECONDS, launch.VANISHED_SECONDS = 0.5, 1.0
launch._Command = lambda words, made=launch._Command: made((sys.argv[2],))
with interruptible():
    launch.on_slurm(["sleeper"], 1, Path(sys.argv[1]), launch.Slurm(minutes=5))
"""


def submitted(tmp_path: Path) -> tuple[subprocess.Popen[str], str, Path]:
    """Submit a job that sleeps; return the process that waits for it, its number and its log."""
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(SLEEPER)
    sleeper.chmod(0o755)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "logs"), str(sleeper)],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stderr is not None
    number = driver.stderr.readline().split()[2].rstrip(":")  # "Slurm job 12: ..."
    log = tmp_path / "logs" / f"{number}_0_log.out"
    wait_for(log, "started on")
    return driver, number, log


def wait_for(log: Path, text: str) -> None:
    end = time.monotonic() + 90
    while not (log.is_file() and text in log.read_text()):
        assert time.monotonic() < end, log.read_text() if log.is_file() else "there is no log"
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_requeued_job_goes_on(tmp_path: Path) -> None:
    driver, number, log = submitted(tmp_path)
    slurm.requeue(number, dict(os.environ))
    assert driver.wait(90) == 0
    assert "saved\n" in log.read_text() and "restarts 1" in log.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_job_at_its_time_limit_saves_and_queues_again(tmp_path: Path) -> None:
    driver, number, log = submitted(tmp_path)
    subprocess.run(["scancel", "--signal=USR2", number], check=True)  # what Slurm announces it by
    wait_for(log, "saved\n")
    slurm.start_now(number, dict(os.environ))
    assert driver.wait(90) == 0
    assert "restarts 1" in log.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_cancels_its_jobs(tmp_path: Path, number: signal.Signals) -> None:
    driver, job, log = submitted(tmp_path)
    driver.send_signal(number)
    _, err = driver.communicate(timeout=60)
    assert f"job {job} was canceled; its work is saved" in err
    wait_for(log, "saved\n")


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_job_that_was_canceled_elsewhere_has_failed(tmp_path: Path) -> None:
    driver, job, _ = submitted(tmp_path)
    subprocess.run(["scancel", job], check=True)
    _, err = driver.communicate(timeout=60)
    assert f"Slurm job {job} was stopped or has failed" in err and "saved" in err
