"""FLOP counts, partial and damaged lines of a metrics file, and the machine's description."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pythia_core.errors import DataError
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.metrics import MetricsLog, flops_per_token, read_metrics
from pythia_core.util.machine import device_info


@pytest.mark.parametrize(
    ("size", "causal", "full"),
    [("14m", 55.2, 64.6), ("70m", 305.5, 343.3), ("1b", 5852.8, 6255.3), ("12b", 71770.9, 74034.7)],
)
def test_flops_per_token_in_megaflop(size: str, causal: float, full: float) -> None:
    model = OFFICIAL_SIZES[size].model()
    assert flops_per_token(model, 2048) / 1e6 == pytest.approx(causal, rel=2e-3)
    assert flops_per_token(model, 2048, causal=False) / 1e6 == pytest.approx(full, rel=2e-3)


def test_rows_past_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write({"step": step})
    log.close()
    log = MetricsLog(path, 2)
    log.write({"step": 3, "again": True})
    log.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"line 2 of .*metrics\.jsonl is not a row of the log"):
        read_metrics(path)
    assert read_metrics(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize(
    "row",
    [
        '{"step": "3"}',
        '{"step": true}',
        '{"step": 3, "batch_hash": 5}',
        '{"step": 3, "tokens_per_s": []}',
        '{"step": 3, "loss": "2"}',
        "[" * 100_000,
        "null",
    ],
)
def test_a_row_of_wrong_types_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2}}\n{{"step": 2, "loss": null}}\n{row}\n')
    with pytest.raises(DataError, match=r"line 3 of .* is not a row of the log"):
        read_metrics(path)


def test_the_machine_is_described_without_naming_it() -> None:
    info = device_info()
    assert info["device"]
    assert info["threads"] >= 1
    assert socket.gethostname() not in str(info)
