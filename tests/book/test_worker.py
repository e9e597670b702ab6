"""Workers share studies: the files are those of one machine, whatever happens to workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slurm
from pythia_book import worker
from safetensors import safe_open

from pythia_core.errors import ConfigError
from pythia_core.training.completion import read_done
from pythia_core.util.launch import _job_id

PYTHIA = [sys.executable, "-m", "pythia_core"]
STUDY = ["suite", "--scale", "smoke", "-p", "sizes=7k"]


def contents(results: Path) -> dict[str, Any]:
    """Return the hash of the final weights of each run, and of the arrays of each measurement."""
    runs = sorted((results / "runs").iterdir())
    hashes: dict[str, Any] = {run.name: read_done(run)["final_sha256"] for run in runs}
    for path in sorted(results.glob("runs/*/evaluations/*")):
        with safe_open(path, "np") as file:  # the order of the metadata's entries varies
            hashes[str(path.relative_to(results))] = file.metadata()
    return hashes


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def owners(results: Path) -> dict[str, int]:
    """Map the number of the job of each worker that trains a run, e.g. 1_0, to its process id."""
    found = {}
    for marker in results.glob("runs/*/.lease"):
        try:
            pid = int(next(x for x in marker.read_text().splitlines() if x.startswith("pid="))[4:])
            words = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        except (OSError, StopIteration):
            continue
        found[_job_id(dict(word.split("=", 1) for word in words if "=" in word))] = pid
    return found


@pytest.mark.slow
@pytest.mark.wheels
@pytest.mark.timeout(1200)
def test_two_nodes_give_the_files_of_one_machine_though_one_worker_dies_and_one_is_requeued(
    tmp_path: Path, cluster: dict[str, str]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = subprocess.run(
        [*PYTHIA, "worker", *STUDY],
        env={**os.environ, "PYTHIA_RESULTS": str(tmp_path / "one"), "PYTHIA_WORKERS": "1"},
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0, alone.stderr
    assert "everything is trained and measured" in alone.stderr
    assert not (tmp_path / "one" / "suite").exists(), "a worker writes no record"
    two = tmp_path / "two"
    process = subprocess.Popen(
        [*PYTHIA, "study", *STUDY, "--on", "slurm", "--cpus", "2", "--minutes", "30"],
        env={**cluster, "PYTHIA_RESULTS": str(two)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: owners(two), process)
        job, pid = next(iter(owners(two).items()))
        os.kill(pid, signal.SIGKILL)
        (other,) = {*slurm.job_ids(cluster)} - {job}
        slurm.requeue(other, cluster)
        out, err = process.communicate(timeout=900)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "1 of 2 workers have failed; the others have finished the work" in err
    assert str(two / "suite" / "smoke" / "notebook.ipynb") in out
    assert (two / "suite" / "smoke" / "record.json").is_file()
    assert contents(two) == contents(tmp_path / "one")
    assert not list(two.rglob(".*lease*"))


def test_workers_share_what_trains_models_and_nothing_else() -> None:
    assert "speed" not in worker.shared_studies()
    assert {"suite", "ablations"} <= set(worker.shared_studies())
    with pytest.raises(ConfigError, match="speed trains no models that workers could share"):
        worker.values_of(["speed"], "smoke", {})
    values = worker.values_of(["seeds"], "smoke", {"seeds": 2})
    assert (values["seeds"]["scale"], values["seeds"]["seeds"]) == ("smoke", 2)


@pytest.mark.parametrize(
    ("devices", "local", "per_node", "device"),
    [
        ("0,1", "1", "2", "1"),
        ("4,6", "2", "8(x2)", "4"),
        ("0,1", "0", "2,1", "0"),
        ("6", "1", "2", None),
        ("0,1", "0", "1(x4)", None),  # alone on its node
    ],
)
def test_a_worker_takes_one_of_the_gpus_that_srun_shows_it(
    devices: str, local: str, per_node: str, device: str | None
) -> None:
    variables = ("CUDA_VISIBLE_DEVICES", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    environment = dict(zip(variables, (devices, local, per_node), strict=True))
    assert worker.take_device(environment) == device
    assert worker.take_device({"CUDA_VISIBLE_DEVICES": devices}) is None
