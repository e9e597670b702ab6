"""Kill jobs with SIGKILL at random moments until they are done, and compare what they made.

Every job runs in a child that is forked from this process, which has imported everything already.
After a kill, the same call is made again in the same folder, and nothing else is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pythia_book import notebooks, records
from tiny_runs import control
from tiny_study import arrays_hash, save_study

from pythia_core.data.prepare import prepare
from pythia_core.kernels import native
from pythia_core.training import train as loop
from pythia_core.training.checkpoint import sha256_tensors
from pythia_core.training.runs import find_or_train, verify

LIMIT = 300.0
"""Seconds after which a job that was not killed has failed."""


@dataclass(frozen=True)
class Job:
    """Something that is started again after every kill.

    Attributes:
        prepare: makes the inputs in a new folder.
        work: makes everything in the folder, or goes on after a kill; returns a hash of the result.
    """

    name: str
    prepare: Callable[[Path], object]
    work: Callable[[Path], str]


@dataclass(frozen=True)
class Kills:
    """The counts of one job."""

    kills: int
    finished: int
    """How often the job was done after kills."""
    equal: int
    """How often its result was that of an undisturbed job."""


def places(folder: Path) -> None:
    """Keep results and cache of this process in a folder."""
    os.environ["PYTHIA_RESULTS"] = str(folder / "results")
    os.environ["PYTHIA_CACHE"] = str(folder / "cache")


def train_twice(folder: Path) -> str:
    """Train a control and its fork; states are saved all the time."""
    places(folder)
    loop.STATE_EVERY_SECONDS, loop.STATE_SHARE = 0.0, 1e9
    run = find_or_train(control(folder).fork("masculine_to_feminine", 12, 17), progress=False)
    verify(run)
    rows = [{**row, "tokens_per_s": 0} for row in run.metrics()]
    weights = [sha256_tensors(run.model(step).state_dict()) for step in run.steps]
    text = json.dumps([run.final_sha256, rows, weights])
    return hashlib.sha256(text.encode()).hexdigest()


def prepare_text(folder: Path) -> str:
    """Prepare the tokens of a corpus, without duplicates, and its rows."""
    places(folder)
    data = prepare(replace(control(folder).data, dedup="exact"), progress=False)
    data.verify()
    leftovers = [path.name for path in data.folder.parent.glob(".*")]
    assert not leftovers, f"the cache keeps {leftovers}"
    return data.fingerprint + arrays_hash(data.rows.rows(0, data.rows.n_rows))


def record_study(folder: Path) -> str:
    """Replace the record of an earlier run; there is a whole record at every moment."""
    target = folder / "results" / "tiny" / "smoke"
    records.tidy(target)
    problems = records.check_whole(target, named=False)
    assert not problems, problems
    with records.staging(target) as new:
        save_study(new, seed=1)
        records.swap_in(new, target)
    assert [path.name for path in target.parent.iterdir()] == ["smoke"]
    found = records.read_record(target)
    arrays = records.read_measurements(target, "tiny", found["parameters"]).arrays
    page = [cell.source for cell in notebooks.read_notebook(target / "notebook.ipynb").cells]
    text = json.dumps([found["values"], page, arrays_hash(*arrays.values())])
    return hashlib.sha256(text.encode()).hexdigest()


def earlier_record(folder: Path) -> None:
    """Write the record that `record_study` replaces."""
    target = folder / "results" / "tiny" / "smoke"
    target.mkdir(parents=True)
    save_study(target, seed=0)


JOBS = (
    Job("training", control, train_twice),
    Job("preparation", control, prepare_text),
    Job("recording", earlier_record, record_study),
)


def kill_repeatedly(job: Job, root: Path, kills: int, seed: int = 0) -> Kills:
    """Kill a job `kills` times in all, each time it is under way; let the last one end.

    Raises:
        AssertionError: a job that was not killed failed.
    """
    random = np.random.default_rng([seed, *job.name.encode()])
    expected, whole = _undisturbed(job, root / "undisturbed")
    killed = finished = equal = attempts = 0
    while killed < kills or attempts:
        folder = root / job.name
        if not attempts:
            folder.mkdir()
            job.prepare(folder)
        last = killed >= kills
        started = time.monotonic()
        done = _run(job, folder, LIMIT if last else float(random.uniform(0.05, 1.0)) * whole)
        attempts += 1
        if done is None:
            assert not last, f"{job.name} did not end within {LIMIT:g} s"
            killed += 1
            continue
        if attempts > 1:  # it was killed before
            finished, equal = finished + 1, equal + (done == expected)
        else:
            whole = time.monotonic() - started  # the machine is faster than it was
        attempts = 0
        shutil.rmtree(folder)
    return Kills(killed, finished, equal)


def _undisturbed(job: Job, folder: Path) -> tuple[str, float]:
    """Return the result of a job that nobody kills, and its seconds."""
    folder.mkdir()
    job.prepare(folder)
    started = time.monotonic()
    result = _run(job, folder, LIMIT)
    assert result is not None, f"{job.name} did not end within {LIMIT:g} s"
    seconds = time.monotonic() - started
    shutil.rmtree(folder)
    return result, seconds


def _run(job: Job, folder: Path, seconds: float) -> str | None:
    """Run a job in a forked child; return its result, or None if it was killed after `seconds`."""
    native.library()  # compiled once, not in every child
    result = folder.with_name("result")
    result.unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            text = job.work(folder)
            result.with_suffix(".new").write_text(text)
            result.with_suffix(".new").rename(result)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0, f"{job.name} failed after a kill (see the traceback above)"
            return result.read_text()
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
