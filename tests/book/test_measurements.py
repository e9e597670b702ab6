"""Measurements are made once and cached safely; a lost checkpoint is a gap."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from pythia_book import measurements
from pythia_book.measurements import damaged_caches, measure_all

from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import PythiaError, TakenElsewhere
from pythia_core.training.checkpoint import saved_steps, step_folder
from pythia_core.training.runs import Run, find_or_train, find_or_train_all, locate
from pythia_core.training.train import LEASE
from pythia_core.util import files
from pythia_core.util.leases import leased


@dataclass(frozen=True)
class Norm:
    """The norm of a weight, and the step."""

    name: str = "norm"
    digest: str = "a"
    calls: list[int] = field(default_factory=list)

    def __call__(self, model, step: int) -> dict[str, np.ndarray]:
        self.calls.append(step)
        return {
            "norm": np.array([model.embed_in.weight.norm().item()]),
            "step": np.array([step]),
            "late": np.array([step > 3, False]),
        }


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.setattr(measurements, "_kept", {})
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": f"Number {i} follows number {i - 1}. " * 9}) for i in range(50)]
    corpus.write_text("\n".join(lines))
    configs = {
        seed: RunConfig(
            model=ModelConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=384, max_seq_len=16),
            data=DataConfig(corpus=str(corpus), tokenizer="bpe-384", seq_len=16),
            train=TrainConfig(steps=6, batch_size=4, lr_max=1e-2, weight_seed=seed),
        )
        for seed in (1, 2)
    }
    return list(find_or_train_all(configs, progress=False).values())


def test_what_was_measured_is_not_measured_again(trained: list[Run]) -> None:
    checkpoints = [(run, step) for run in trained for step in (0, 2, 6)]
    measurement = Norm()
    measured, gaps = measure_all(checkpoints, measurement, progress=False)
    assert (len(measured), gaps, len(measurement.calls)) == (6, [], 6)
    assert all(measured[run.id, step]["step"] == step for run, step in checkpoints)
    again, _ = measure_all([*checkpoints, (trained[0], 5)], measurement, progress=False)
    assert len(measurement.calls) == 7
    for key, arrays in measured.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(again[key][name], array)
            assert again[key][name].dtype == array.dtype


def test_what_a_measurement_has_prepared_is_kept(trained: list[Run]) -> None:
    first, copy = Norm(digest="kept"), Norm(digest="kept")
    measure_all([(trained[0], 0)], first, progress=False)
    measure_all([(trained[0], 2)], copy, progress=False)
    assert (first.calls, copy.calls) == ([0, 2], [])


def test_another_digest_is_another_measurement(trained: list[Run]) -> None:
    first, second = Norm(), Norm(digest="b")
    for measurement in (first, second):
        measure_all([(trained[0], 2)], measurement, progress=False)
    assert len(first.calls) == len(second.calls) == 1


@pytest.mark.parametrize("position", [3, 200, -3])
def test_a_damaged_cached_result_is_measured_again(trained: list[Run], position: int) -> None:
    measurement = Norm()
    first, _ = measure_all([(trained[0], 2)], measurement, progress=False)
    (file,) = (trained[0].folder / "evaluations").iterdir()
    raw = bytearray(file.read_bytes())
    raw[position] ^= 4
    assert damaged_caches(trained[0]) == []
    file.write_bytes(raw)
    assert damaged_caches(trained[0]) == [file]
    again, _ = measure_all([(trained[0], 2)], measurement, progress=False)
    assert len(measurement.calls) == 2
    key = (trained[0].id, 2)
    np.testing.assert_array_equal(first[key]["norm"], again[key]["norm"])


@pytest.mark.parametrize("result", [7.0, None])
def test_what_another_process_measures_is_waited_for(
    trained: list[Run], result: float | None
) -> None:
    """If it ends without a result, the measurement is made here."""
    run, measurement, held = trained[0], Norm(), threading.Event()

    def elsewhere() -> None:
        with leased(measurements._lease_of(run, 2, measurement)):
            held.set()
            time.sleep(0.5)
            if result is not None:
                file, key = (f(run, 2, measurement) for f in (new_file, measurements._key))
                measurements.save_cached(file, key, {"norm": np.array([result])})

    new_file = measurements._new_file
    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert held.wait(10)
    measured, gaps = measure_all([(run, step) for step in (0, 2, 6)], measurement, progress=False)
    thread.join()
    assert not gaps and [step for _, step in measured] == [0, 2, 6]
    assert measurement.calls == ([0, 6] if result else [0, 6, 2])
    assert (measured[run.id, 2]["norm"] == 7).all() == (result is not None)
    assert not list(run.folder.rglob(".*.lease"))


def test_what_training_may_replace_is_not_cached(trained: list[Run]) -> None:
    """Training resumes from the newest state, perhaps with other processes and to other bits."""
    run, measurement = trained[0], Norm()
    (run.folder / "done.json").unlink()
    shutil.rmtree(step_folder(run.states, 6))
    assert 0 < max(saved_steps(run.states)) < 6
    for _ in range(2):
        measure_all([(run, 0), (run, 6)], measurement, progress=False)
    assert measurement.calls == [0, 6, 6]


def test_a_run_that_another_process_trains_is_waited_for(trained: list[Run]) -> None:
    other = replace(trained[0].config, train=replace(trained[0].config.train, weight_seed=3))
    held = threading.Event()

    def elsewhere() -> None:
        with leased(locate(other).folder / LEASE):
            held.set()
            time.sleep(0.5)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    assert held.wait(10)
    with pytest.raises(TakenElsewhere):
        find_or_train(other, progress=False, wait=False)
    found = find_or_train_all({"done": trained[0].config, "other": other}, progress=False)
    thread.join()
    assert found["other"].finished and found["done"].id == trained[0].id


def test_a_run_of_somebody_else_is_measured(
    trained: list[Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its folder cannot be written to, but has what its owner has measured."""
    run, measurement = trained[0], Norm()
    measure_all([(run, 2)], measurement, progress=False)
    theirs = sorted((run.folder / "evaluations").iterdir())
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "mine"))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse_in(run.folder))
    measured, gaps = measure_all([(run, 2), (run, 3)], measurement, progress=False)
    assert not gaps and len(measured) == 2 and measurement.calls == [2, 3]
    assert sorted((run.folder / "evaluations").iterdir()) == theirs
    assert len(list((tmp_path / "mine").rglob("norm-000003-*"))) == 1
    measure_all([(run, 2), (run, 3)], measurement, progress=False)
    assert measurement.calls == [2, 3]
    theirs[0].write_bytes(b"damaged")
    measure_all([(run, 2)], measurement, progress=False)
    assert measurement.calls == [2, 3, 2] and theirs[0].read_bytes() == b"damaged"
    (mine,) = (tmp_path / "mine").rglob("norm-000003-*")
    mine.write_bytes(b"damaged")
    assert damaged_caches(run) == sorted([*theirs, mine])


def test_results_are_in_the_order_of_the_checkpoints_whatever_is_cached(trained: list[Run]) -> None:
    measurement, checkpoints = Norm(), [(run, step) for run in trained[:2] for step in (3, 0, 2)]
    keys = [(run.id, step) for run, step in checkpoints]
    measure_all([checkpoints[1], checkpoints[4]], measurement, progress=False)
    for _ in range(2):
        assert [*measure_all(checkpoints, measurement, progress=False)[0]] == keys


def refuse_in(folder: Path) -> Callable:
    """Return a function that makes temporary files, except in a folder."""
    make = tempfile.TemporaryFile

    def made(dir: Path) -> object:
        if Path(dir).is_relative_to(folder):
            raise PermissionError(13, "Permission denied")
        return make(dir=dir)

    return made


def test_a_lost_or_corrupt_checkpoint_is_a_gap(trained: list[Run]) -> None:
    run = trained[0]
    weights = run.checkpoints / "step-000002" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    measured, gaps = measure_all([(run, 2), (run, 3), (run, 99)], Norm(), progress=False)
    assert set(measured) == {(run.id, 3)}
    assert {gap.step: "corrupt" in gap.reason for gap in gaps} == {2: True, 99: False}


@dataclass(frozen=True)
class Killed:
    """Notes each call in a folder; the first call at step 3 is killed, as if memory had run out."""

    folder: Path
    name: str = "killed"
    digest: str = "a"

    def __call__(self, model, step: int) -> dict[str, np.ndarray]:
        calls = len(list(self.folder.glob(f"{step}-*")))
        (self.folder / f"{step}-{calls}").touch()
        if step == 3 and not calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"step": np.array([step])}


def test_a_worker_that_memory_has_killed_costs_only_its_own_work(
    trained: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_WORKERS", "2")
    monkeypatch.setattr(measurements, "SHORT", 0)
    (tmp_path / "calls").mkdir()
    killed, checkpoints = Killed(tmp_path / "calls"), [(trained[0], step) for step in (0, 1, 2, 3)]
    with pytest.raises(PythiaError, match=r"perhaps because memory ran out.*PYTHIA_WORKERS, e\.g"):
        measure_all(checkpoints, killed, progress=False)
    before = len(list((trained[0].folder / "evaluations").glob("*.safetensors")))
    assert before >= 1
    measured, gaps = measure_all(checkpoints, killed, progress=False)
    assert gaps == [] and [int(each["step"][0]) for each in measured.values()] == [0, 1, 2, 3]
    again = [path for path in (tmp_path / "calls").iterdir() if path.name.endswith("-1")]
    assert len(again) <= 4 - before, "what was measured is kept"


def test_no_flip_of_a_cached_result_is_silent(tmp_path: Path) -> None:
    path, key = tmp_path / "x.safetensors", {"step": 3}
    arrays = {"a": np.arange(6, dtype=np.float32), "b": np.array([True, False])}
    measurements.save_cached(path, key, arrays)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for number in range(1000):
        raw = bytearray(whole[: random.integers(len(whole))] if number % 10 == 0 else whole)
        if number % 10:
            raw[random.integers(len(raw))] ^= 1 << random.integers(8)
        path.write_bytes(raw)
        found = measurements.load_cached(path, key)
        if found is not None:
            assert all(np.array_equal(found[name], array) for name, array in arrays.items())
            assert {n: a.dtype for n, a in found.items()} == {n: a.dtype for n, a in arrays.items()}
    path.write_bytes(whole)
    assert measurements.load_cached(path, {"step": 4}) is None
    assert measurements.load_cached(path, key) is not None
