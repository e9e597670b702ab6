"""Training under faults of the machine: full disks, lost folders, other clocks, hung processes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from places import HELPERS
from tiny_runs import control
from tiny_training import batch_at, config, wait_for_rows

from pythia_core.errors import CheckpointError, DataError, TrainingError
from pythia_core.training import train as loop
from pythia_core.training.checkpoint import (
    load_checkpoint,
    saved_steps,
    sha256_tensors,
    step_folder,
)
from pythia_core.training.metrics import read_metrics
from pythia_core.training.runs import find_or_train, find_run, verify
from pythia_core.training.train import Saving, train
from pythia_core.training.trainer import Trainer


@pytest.fixture
def straight(tmp_path: Path) -> str:
    """The hash of the final weights of the tiny run, trained without any fault."""
    return train(config(), batch_at, tmp_path / "straight", progress=False)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def interrupted_at(step: int, action: Callable[[], object]) -> Callable[[int], np.ndarray]:
    """Return a function of batches that calls `action` once, before the batch of `step`."""
    pending = [action]

    def batch(at: int) -> np.ndarray:
        if at == step and pending:
            pending.pop()()
        return batch_at(at)

    return batch


@pytest.mark.parametrize(
    ("size", "saving", "message"),
    [
        (30_000, Saving(), "could not save step"),
        (900, Saving(weights=frozenset()), r"could not write to .*metrics\.jsonl"),
    ],
    ids=["checkpoint", "log"],
)
def test_a_disk_that_fills_up_stops_training_and_loses_nothing(
    tmp_path: Path, straight: str, size: int, saving: Saving, message: str
) -> None:
    """A checkpoint or a row of the log is not written, or not as a whole."""
    folder = tmp_path / "run"
    train(config(), batch_at, folder, stop_at=4, progress=False, saving=saving)
    before = saved_steps(folder / "states")
    with file_limit(size), pytest.raises(TrainingError, match=message):
        train(config(), batch_at, folder, progress=False, saving=saving)
    assert set(before) <= set(saved_steps(folder / "states"))
    for kind in ("states", "checkpoints"):
        for step in saved_steps(folder / kind):
            load_checkpoint(step_folder(folder / kind, step))
    assert not list(folder.rglob("*.tmp-*"))
    assert train(config(), batch_at, folder, progress=False) == straight
    assert [r["step"] for r in read_metrics(folder / "metrics.jsonl")] == list(range(1, 13))


def test_a_small_disk_that_is_really_full(tmp_path: Path, straight: str) -> None:
    """On a tmpfs of 200 kB, in a namespace of its own, where this machine allows that."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from tiny_training import batch_at, config\n"
        "from pythia_core.training.train import train\n"
        "print(train(config(), batch_at, Path(sys.argv[1]) / 'run', progress=False))\n"
    )
    mount = tmp_path / "disk"
    mount.mkdir()
    script = f'mount -t tmpfs -o size=200k none "{mount}" && exec "$@"'
    words = [sys.executable, "-c", code, str(mount), str(HELPERS)]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *words]
    try:
        subprocess.run([*command[:5], "mount -t tmpfs none /mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine allows no file system of its own to a test: {error}")
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 1 and straight not in done.stdout
    assert (
        "TrainingError: could not" in done.stderr and "resumes from the last state" in done.stderr
    )


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_folder_that_vanishes_is_not_made_again(
    tmp_path: Path, straight: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "STATE_EVERY_SECONDS", 0.0)
    folder, away = tmp_path / "run", tmp_path / "away"
    train(config(), batch_at, folder, stop_at=4, progress=False)

    def vanish() -> None:
        folder.rename(away)
        if how == "deleted":
            shutil.rmtree(away)
        if how == "replaced":
            shutil.copytree(away, folder)

    with pytest.raises(TrainingError, match=r"no longer exists|was moved, deleted or replaced"):
        train(config(), interrupted_at(6, vanish), folder, progress=False)
    assert folder.exists() is (how == "replaced")
    if how == "moved":
        away.rename(folder)
    assert train(config(), batch_at, folder, progress=False) == straight


READ_ONLY = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_training import batch_at, config
from pythia_core.errors import TrainingError
from pythia_core.training.train import train
folder = Path(sys.argv[1])
if os.getuid() == 0:
    os.chown(folder, 65534, 65534)
    os.setuid(65534)  # for root, nothing is read-only
train(config(), batch_at, folder, stop_at=4, progress=False)
(folder / "states").chmod(0o555)
try:
    train(config(), batch_at, folder, progress=False)
except TrainingError as error:
    print(error)
(folder / "states").chmod(0o755)
hashes = [train(config(), batch_at, folder / name, progress=False) for name in (".", "straight")]
print("equal" if hashes[0] == hashes[1] else "different")
"""


def test_a_folder_that_becomes_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for parent in (tmp_path, *tmp_path.parents):
        if "pytest-of-" in str(parent):  # pytest makes its folders private
            parent.chmod(0o755)
    command = [sys.executable, "-c", READ_ONLY, str(folder), str(HELPERS)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    refused, compared = done.stdout.splitlines() or ["", done.stderr]
    assert "could not save step 12" in refused and "Permission denied" in refused
    assert compared == "equal"


def test_a_clock_that_jumps_and_a_folder_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    hashes, clock, random = [], time.time, np.random.default_rng(0)
    for name in ("a", "b"):
        monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / name))
        hashes.append(find_or_train(control(tmp_path), progress=False).final_sha256)
        monkeypatch.setattr(time, "time", lambda: clock() + float(random.normal(0, 1e8)))
    assert hashes[0] == hashes[1]
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "elsewhere"))
    moved = find_or_train(control(tmp_path), progress=False)
    assert moved.final_sha256 == hashes[0] and verify(moved)
    corpus = str(tmp_path / "corpus.jsonl").encode()  # the reader's own text: part of the config
    for path in moved.folder.rglob("*"):
        content = path.read_bytes().replace(corpus, b"") if path.is_file() else b""
        assert str(tmp_path).encode() not in content, f"{path.name} names a folder"


def test_a_stopped_run_is_moved_and_goes_on(tmp_path: Path, straight: str) -> None:
    train(config(), batch_at, tmp_path / "here", stop_at=5, progress=False)
    (tmp_path / "here").rename(tmp_path / "there")
    assert train(config(), batch_at, tmp_path / "there", progress=False) == straight


def test_a_tokenizer_that_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    asked = control(tmp_path)
    trained = find_or_train(asked, progress=False)
    own = tmp_path / "tokenizer.json"
    text = trained.data.tokenizer.to_str(pretty=True)
    own.write_text(text)
    asked = replace(asked, data=replace(asked.data, tokenizer=str(own)))
    run = find_or_train(asked, progress=False)
    vocabulary = trained.data.tokenizer.get_vocab()
    a, b = (next(w for w, i in vocabulary.items() if i == wanted) for wanted in (70, 71))
    swapped = text.replace(f'"{a}": 70', f'"{a}": 71').replace(f'"{b}": 71', f'"{b}": 70')
    assert swapped != text
    own.write_text(swapped)
    with pytest.raises(CheckpointError, match=r"or the tokenizer '.*' has changed since the run"):
        find_run(str(run.folder))


def test_a_resume_under_other_conditions_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(), batch_at, tmp_path, stop_at=4, progress=False)
    here = loop.device_info()
    monkeypatch.setattr(loop, "device_info", lambda: here | {"threads": 64})
    with pytest.warns(UserWarning, match="the result may differ in the last bits"):
        train(config(), batch_at, tmp_path, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(config(), batch_at, tmp_path, progress=False)


def test_a_spike_is_logged_and_training_goes_on(tmp_path: Path) -> None:
    """Nothing is skipped, because the suite must stay comparable."""

    def spiked(step: int) -> np.ndarray:
        if step == 30:
            return np.full((4, 17), 96, np.uint16)
        return np.tile(np.arange(17, dtype=np.uint16), (4, 1))

    train(config(steps=40), spiked, tmp_path, progress=False)
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert len(losses) == 40 and losses[30] > 2 * losses[29]
    trainer = Trainer(config(steps=40), torch.device("cpu"))
    for step in range(40):
        trainer.update(spiked(step))
    state, _ = load_checkpoint(step_folder(tmp_path / "states", 40))
    assert sha256_tensors(trainer.state()["model"]) == sha256_tensors(state["model"])


def test_an_edited_log_of_a_stopped_run_is_refused(tmp_path: Path) -> None:
    train(config(), batch_at, tmp_path, stop_at=5, progress=False)
    log = tmp_path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"loss": 4', '"loss": 3', 1))
    with pytest.raises(DataError, match=r"rows up to step 5 do not have the sha256"):
        train(config(), batch_at, tmp_path, progress=False)


# --- other processes -------------------------------------------------------------------------

WORKERS = """
import os, signal, time
from pythia_core.util.workers import parallel_map
def job(number):
    if number == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
if __name__ == "__main__":
    parallel_map(job, [0, 1], progress=False)
"""


@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_is_an_error_not_a_hang(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(WORKERS)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHIA_WORKERS": "2"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "PythiaError: a worker process died, perhaps because memory ran out" in done.stderr


RANK = """
import sys, time
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_training import batch_at, config
from pythia_core.training import distributed
from pythia_core.training.train import train
distributed.TIMEOUT = timedelta(seconds=20)
def slow(step):
    time.sleep(0.05)
    return batch_at(step)
with distributed.init_world() as world:
    train(config(steps=4000), slow, Path(sys.argv[1]), world=world, progress=False)
"""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_process_that_hangs_or_dies_ends_the_others(tmp_path: Path, how: signal.Signals) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(2):
        named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        given = {**os.environ, "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        given |= {name: str(value) for name, value in named.items()}
        command = [sys.executable, "-c", RANK, str(tmp_path / "run"), str(HELPERS)]
        ranks.append(subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True))
    try:
        wait_for_rows(tmp_path / "run", 3)
        ranks[1].send_signal(how)
        started = time.monotonic()
        _, said = ranks[0].communicate(timeout=90)
        assert time.monotonic() - started < 80 and ranks[0].returncode == 1
        assert "one of the 2 processes that train together died, or did" in said
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


PREPARE = """
import json, sys
from pythia_core.config import DataConfig
from pythia_core.data import prepare as module
made, make = [], module.make_tokens
module.make_tokens = lambda *arguments: (made.append(1), make(*arguments))[1]
data = module.prepare(DataConfig(**json.loads(sys.argv[1])), progress=False)
print(len(made), data.fingerprint)
"""


def test_of_processes_that_need_the_same_tokens_one_makes_them(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHIA_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", PREPARE, json.dumps(asdict(control(tmp_path).data))]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert sorted(made for made, _ in said) == ["0", "0", "1"]
    assert len({fingerprint for _, fingerprint in said}) == 1
    assert not list((tmp_path / "cache" / "data").glob(".*"))
