"""The benchmark of attention libraries, dry: what is measured, what fails; speed is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pythia_book.bench import attention as bench
from pythia_book.bench.rows import SKIPPED
from torch import Tensor

from pythia_core.__main__ import main
from pythia_core.errors import ConfigError


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(bench.bench_attention(dry_run=True))


def test_every_library_is_measured_in_both_ways_or_says_why_not(rows: list[dict]) -> None:
    assert rows[0]["kind"] == "machine" and all(row["dry_run"] for row in rows)
    assert {row["library"] for row in rows[1:]} == set(bench.MEASURED)
    done = [row for row in rows[1:] if "failed" not in row]
    assert {(r["library"], r["deterministic"]) for r in done} >= {
        ("torch", False), ("torch", True), ("flash", False), ("flash", True),
    }  # fmt: skip
    for row in done:
        assert row["bits_repeat"] is True, "on a CPU nothing is summed in another order"
        product = 7 * row["seq_len"] * (row["seq_len"] + 1) * row["head_dim"]
        assert row["tflops"] == pytest.approx(product / row["ms"] / 1e9)
    assert {row["chosen"] for row in done if row["library"] == "torch"} == {"FLASH_ATTENTION"}
    assert not torch.are_deterministic_algorithms_enabled()


def test_bits_that_differ_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a backward whose sums depend on the order of threads."""
    calls = []

    def drifting(q: Tensor, k: Tensor, v: Tensor, library: str) -> Tensor:
        calls.append(torch.are_deterministic_algorithms_enabled())
        drift = 0.0 if calls[-1] else len(calls) * 0.1
        return (1 + drift) * (q + k + v)

    monkeypatch.setattr(bench, "backend_attention", drifting)
    monkeypatch.setattr(bench, "MEASURED", ("flash",))
    rows = list(bench.bench_attention(dry_run=True))[1:]
    assert {(row["deterministic"], row["bits_repeat"]) for row in rows} == {
        (False, False), (True, True),
    }  # fmt: skip


def test_a_library_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise TypeError("unexpected keyword\nmore")

    monkeypatch.setattr(bench, "backend_attention", broken)
    rows = list(bench.bench_attention(dry_run=True))[1:]
    assert {r["failed"] for r in rows if "head_dim" in r} == {"TypeError: unexpected keyword"}


def test_past_the_budget_nothing_is_measured() -> None:
    rows = list(bench.bench_attention(dry_run=True, budget=-1.0))[1:]
    assert {row["failed"] for row in rows if "head_dim" in row} == {SKIPPED}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(bench, "bench_attention", lambda *a, **k: seen.append((a, k)) or [{"a": 1}])
    path = tmp_path / "rows.jsonl"
    words = ["bench", "attention", "--dry-run", "--budget", "2m", "--json", str(path)]
    assert main(words) == 0 and seen == [((True,), {"budget": 120.0})]
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device; --dry-run"):
        next(bench.bench_attention())
    assert main(["bench", "attention", "--sizes", "160m"]) == 1
    assert "it takes no --sizes" in capsys.readouterr().err
