"""The choice of the precision: measured once, stored, and the same for every later process."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pythia_core.errors import ConfigError
from pythia_core.kernels import native
from pythia_core.suite import LAPTOP_SIZES, scale_named
from pythia_core.training import precision, trainer
from pythia_core.training.precision import best_precision

SPEEDS = {"fp32": 39_500.0, "bf16": 65_800.0}


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with an empty cache, on which nothing is chosen yet."""
    monkeypatch.delenv("PYTHIA_PRECISION", raising=False)
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(native, "library", lambda: None)


def measuring(monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float]) -> list[int]:
    """Replace the measurement; return a list that grows by one element per measurement."""
    calls: list[int] = []
    monkeypatch.setattr(precision, "measure", lambda: calls.append(1) or speeds)
    return calls


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(39_500.0, "fp32"), (41_400.0, "fp32"), (41_500.0, "bf16")]
)
def test_bf16_needs_a_clear_margin(
    bf16: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, SPEEDS | {"bf16": bf16})
    assert best_precision() == chosen


def test_it_is_measured_once_said_once_and_stored_with_the_speeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = measuring(monkeypatch, SPEEDS)
    assert [best_precision() for _ in range(3)] == ["bf16"] * 3
    assert len(calls) == 1
    said = capsys.readouterr().err
    assert said.count("precision bf16: 65,800 tokens/s against 39,500 in fp32") == 1
    (file,) = (tmp_path / "precision").glob("*.json")
    stored = json.loads(file.read_text())
    assert stored["precision"] == "bf16" and stored["tokens_per_s"] == SPEEDS
    assert stored["machine"]["native"] is False


def test_a_later_measurement_would_not_change_it(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring(monkeypatch, SPEEDS)
    assert best_precision() == "bf16"
    calls = measuring(monkeypatch, {"fp32": 2.0, "bf16": 1.0})
    assert best_precision() == "bf16" and not calls


@pytest.mark.parametrize("change", ["cpu_name", "cpu_flags", "VERSION", "native"])
def test_another_machine_or_probe_measures_again(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, SPEEDS)
    best_precision()
    calls = measuring(monkeypatch, SPEEDS)
    if change == "native":  # the functions in C were compiled since
        monkeypatch.setattr(native, "library", object)
    else:
        monkeypatch.setattr(precision, change, 0 if change == "VERSION" else lambda: "avx1024")
    best_precision()
    assert len(calls) == 1
    assert len([*(tmp_path / "precision").glob("*.json")]) == 2, "the first choice is kept"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"machine": 1}', '{"precision": "fp8"}'])
def test_a_damaged_file_is_measured_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring(monkeypatch, SPEEDS)
    best_precision()
    (file,) = (tmp_path / "precision").glob("*.json")
    file.write_text(damage)
    calls = measuring(monkeypatch, SPEEDS)
    assert best_precision() == "bf16" and len(calls) == 1
    assert json.loads(file.read_text())["precision"] == "bf16"


def test_without_a_writable_cache_it_is_measured_each_time_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "file" / "cache"))
    calls = measuring(monkeypatch, SPEEDS)
    with caplog.at_level(logging.WARNING):
        assert [best_precision() for _ in range(2)] == ["bf16"] * 2
    assert len(calls) == 2
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and "could not be stored in" in warnings[0]
    assert "set PYTHIA_PRECISION=bf16 to keep it" in warnings[0]
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_full_disk_is_no_reason_not_to_train(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    calls = measuring(monkeypatch, SPEEDS)
    monkeypatch.setattr(precision, "write_json", full)
    with caplog.at_level(logging.WARNING):
        assert best_precision() == "bf16"
    assert calls and "No space left on device" in caplog.text


@pytest.mark.parametrize("cuda", [False, True])
def test_the_variable_overrides_everything(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measuring(monkeypatch, SPEEDS)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    for wanted in precision.CHOICES:
        monkeypatch.setenv("PYTHIA_PRECISION", wanted)
        assert best_precision() == wanted
    monkeypatch.setenv("PYTHIA_PRECISION", "bf61")
    with pytest.raises(ConfigError, match=r"PYTHIA_PRECISION 'bf61'.*Did you mean 'bf16'"):
        best_precision()
    assert not calls


def test_a_gpu_trains_in_bf16_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = measuring(monkeypatch, {"fp32": 2.0, "bf16": 1.0})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_precision() == "bf16" and not calls


def test_the_measured_step_is_one_of_the_ladder() -> None:
    assert LAPTOP_SIZES["150k"].model(4096, max_seq_len=128) == precision.MODEL
    assert scale_named("laptop").batch_size == precision.ROWS


def test_the_fastest_of_alternating_steps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = {"fp32": iter([9.0, 4.0, 5.0]), "bf16": iter([8.0, 3.0, 2.0])}
    order: list[str] = []
    clock = [0.0]

    class Fake:
        def __init__(self, config: object, device: object) -> None:
            self.name = config.train.precision  # type: ignore[attr-defined]
            self.steps: Iterator[float] = durations[self.name]

        def update(self, rows: object) -> None:
            assert rows.shape == (32, 129)  # type: ignore[attr-defined]
            order.append(self.name)
            clock[0] += next(self.steps)

    monkeypatch.setattr(trainer, "Trainer", Fake)
    monkeypatch.setattr(precision, "ROUNDS", 2)
    monkeypatch.setattr(precision.time, "thread_time", lambda: clock[0])
    assert precision.measure() == {"fp32": 4096 / 4.0, "bf16": 4096 / 2.0}
    assert order == ["fp32", "bf16"] * 3
