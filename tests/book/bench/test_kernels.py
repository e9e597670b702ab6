"""The benchmark of the kernels measures every contender in every direction; speed is not tested."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from pythia_book.bench import kernels as bench_kernels

from pythia_core.__main__ import main
from pythia_core.errors import ConfigError, DataError
from pythia_core.kernels import dispatch
from pythia_core.kernels.attention_backends import LIBRARIES

KERNELS = {
    *("linear_cross_entropy", "split_rotated", "layer_norm_pair"),
    *("bias_gelu_tanh", "bias_gelu_erf", "attention"),
}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(bench_kernels.bench_kernels(("31m",), dry_run=True))


def test_every_contender_is_measured_in_every_direction(rows: list[dict]) -> None:
    assert {"copy_gb_per_s", "matmul_tflop_per_s", "triton", "device", "dry_run"} <= rows[0].keys()
    seen = {(r["kernel"], r["contender"], r["direction"]) for r in rows[1:]}
    assert len(seen) == len(rows) - 1
    for kernel in KERNELS:
        for contender in ("ours", "reference", "torch.compile (eager)"):
            for direction in ("forward", "backward", "both"):
                assert (kernel, contender, direction) in seen
    update = {key for key in seen if key[0] == "adamw"}
    rivals = {"reference", "torch.compile (eager)", "torch (fused)"}
    assert {name for _, name, _ in update} == {"ours"} | rivals
    assert {direction for *_, direction in update} == {"both"}
    assert {r["kernel"] for r in rows[1:]} == KERNELS | {"adamw"}
    assert all(r["dry_run"] is True for r in rows)


def test_only_absent_libraries_fail(rows: list[dict]) -> None:
    failed = {r["contender"] for r in rows[1:] if "failed" in r}
    assert failed <= {"cudnn", "flash", "efficient", "flash_attn", "flash_attn_4", "triton"}
    said = {r["failed"] for r in rows[1:] if r["contender"] == "flash_attn_4"}
    assert importlib.util.find_spec("flash_attn") or all("not installed" in s for s in said)


def test_every_library_is_a_contender(rows: list[dict]) -> None:
    assert set(LIBRARIES) <= {r["contender"] for r in rows[1:] if r["kernel"] == "attention"}


def test_rates_are_work_over_time(rows: list[dict]) -> None:
    row = next(r for r in rows[1:] if r["kernel"] == "bias_gelu_erf" and r["direction"] == "both")
    elements = row["shape"]["tokens"] * row["shape"]["width"]
    assert row["unit"] == "GB/s"
    assert row["rate"] == pytest.approx(5 * 2 * elements / row["ms"] / 1e6)
    assert row["share"] == pytest.approx(row["rate"] / rows[0]["copy_gb_per_s"])
    assert row["ms_low"] <= row["ms"] <= row["ms_high"] and row["calls"] >= 3
    row = next(r for r in rows[1:] if r["kernel"] == "attention" and r["direction"] == "forward")
    s = row["shape"]
    pairs = s["batch"] * s["heads"] * s["seq"] * (s["seq"] + 1) / 2  # (query, key) not in future
    assert row["rate"] == pytest.approx(2 * 2 * pairs * s["head_dim"] / row["ms"] / 1e9)
    assert row["formula"].startswith("2 batch heads seq (seq + 1) head_dim")


def test_errors_are_those_of_bf16(rows: list[dict]) -> None:
    """Measured, and of the size of its rounding: the truth is the same function."""
    for row in rows[1:]:
        if "failed" not in row:
            low, high = (1e-9, 1e-6) if row["kernel"] == "adamw" else (1e-6, 2e-2)  # fp32 masters
            assert low < row["relative_error"] < high, row


def test_warm_up_is_dropped_and_calls_are_enough() -> None:
    calls = []
    found = bench_kernels.timing(lambda: calls.append(1), "cpu", 0.0)
    assert found["calls"] == 3 * 20 == len(calls) - 3
    assert found["ms_low"] <= found["ms"] <= found["ms_high"]


def test_a_kernel_that_fails_is_not_timed_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "use_triton", lambda tensor: True)

    def refuses(operation: str, *_: object) -> bool:
        assert dispatch.strict()
        raise ConfigError(f"{operation} does not compile")

    monkeypatch.setattr(dispatch, "works", refuses)
    rows = bench_kernels.bench_kernels(("31m",), dry_run=True)
    ours = [r for r in list(rows)[1:] if r["contender"] == "ours"]
    assert all("does not compile" in r["failed"] and "ms" not in r for r in ours) and ours


def test_rows_are_read_back(tmp_path: Path, rows: list[dict]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert bench_kernels.rows_for(str(path)) == json.loads(json.dumps(rows))
    path.write_text(json.dumps(rows[1]))
    with pytest.raises(DataError, match="the first with its ceilings; it has 1 rows, 0 of them"):
        bench_kernels.rows_for(str(path))
    with pytest.raises(DataError, match="is no file of `bench kernels --json`"):
        bench_kernels.rows_for(str(tmp_path / "none.jsonl"))


def test_the_command_writes_one_object_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = iter([{"kernel": "a"}, {"kernel": "b"}])
    monkeypatch.setattr(bench_kernels, "bench_kernels", lambda sizes, dry_run: few)
    path = tmp_path / "rows.jsonl"
    assert main(["bench", "kernels", "--dry-run", "--json", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert [json.loads(line)["kernel"] for line in path.read_text().splitlines()] == ["a", "b"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_it_says_so() -> None:
    with pytest.raises(ConfigError, match="needs a CUDA device; --dry-run"):
        next(bench_kernels.bench_kernels())


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes official sizes \(14m, .*got 7k"):
        next(bench_kernels.bench_kernels(("160m", "7k"), dry_run=True))
