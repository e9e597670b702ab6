"""Benchmarks of kernels and attention libraries; the speeds themselves are not tested."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pythia_book.bench import kernels as bench_kernels
from pythia_book.bench.rows import SKIPPED
from torch import Tensor

from pythia_core.__main__ import main
from pythia_core.errors import ConfigError, PythiaError
from pythia_core.kernels import dispatch

KERNELS = {
    *("linear_cross_entropy", "split_rotated", "layer_norm_pair"),
    *("bias_gelu_tanh", "bias_gelu_erf", "attention"),
}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return list(bench_kernels.bench_kernels(("31m",), dry_run=True))


def test_every_implementation_is_measured(rows: list[dict]) -> None:
    machine, *measured = rows
    assert {"copy_gb_per_s", "matmul_tflop_per_s", "triton", "device"} <= machine.keys()
    pairs = [(r["kernel"], r["implementation"]) for r in measured]
    assert len(pairs) == len(set(pairs))
    everywhere = ("ours", "reference", "torch.compile (eager)")
    expected = {(kernel, name) for kernel in (*KERNELS, "adamw") for name in everywhere}
    assert set(pairs) == expected | {("attention", "triton"), ("adamw", "torch (fused)")}
    assert all(r["dry_run"] is True for r in rows)
    assert {r["implementation"] for r in measured if "failed" in r} <= {"triton"}


def test_rates_are_work_over_time(rows: list[dict]) -> None:
    row = next(r for r in rows[1:] if r["kernel"] == "bias_gelu_erf")
    elements = row["shape"]["tokens"] * row["shape"]["width"]
    assert row["unit"] == "GB/s"
    assert row["rate"] == pytest.approx(5 * 2 * elements / row["ms"] / 1e6)
    assert row["share"] == pytest.approx(row["rate"] / rows[0]["copy_gb_per_s"])
    assert row["ms_low"] <= row["ms"] <= row["ms_high"] and row["calls"] >= 3
    row = next(r for r in rows[1:] if r["kernel"] == "attention")
    s = row["shape"]
    pairs = s["batch"] * s["heads"] * s["seq"] * (s["seq"] + 1) / 2  # (query, key) not in future
    assert row["rate"] == pytest.approx(7 * 2 * pairs * s["head_dim"] / row["ms"] / 1e9)
    assert row["formula"].startswith("7 batch heads seq (seq + 1) head_dim")


def test_errors_have_the_size_of_bf16_rounding(rows: list[dict]) -> None:
    for row in rows[1:]:
        if "failed" not in row:
            low, high = (1e-9, 1e-6) if row["kernel"] == "adamw" else (1e-6, 2e-2)  # fp32 masters
            assert low < row["relative_error"] < high, row


def test_warm_up_calls_are_not_timed() -> None:
    calls = []
    result = bench_kernels.timing(lambda: calls.append(1), "cpu", 0.0)
    assert result["calls"] == 3 * 20 == len(calls) - 3
    assert result["ms_low"] <= result["ms"] <= result["ms_high"]


def test_a_fallback_is_not_timed_as_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "use_triton", lambda tensor: True)

    def refuses(operation: str, *_: object) -> bool:
        assert dispatch.strict()
        raise ConfigError(f"{operation} does not compile")

    monkeypatch.setattr(dispatch, "is_supported", refuses)
    rows = bench_kernels.bench_kernels(("31m",), dry_run=True)
    ours = [r for r in list(rows)[1:] if r["implementation"] == "ours"]
    assert all("does not compile" in r["failed"] and "ms" not in r for r in ours) and ours


def toy(tokens: int, other: Callable[[Tensor], Tensor]) -> bench_kernels.Case:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    return bench_kernels.Case(
        "double", {"tokens": tokens}, lambda: [torch.ones(tokens, 8)],
        double, double, double, "GB/s", (1.0, "1"), {"other": other},
    )  # fmt: skip


def measured(other: Callable[[Tensor], Tensor], **more) -> list[dict]:
    roof = {"copy_gb_per_s": 1.0, "matmul_tflop_per_s": {"fp32": 1.0}}
    case, small = toy(64, other), toy(24, other)
    return list(bench_kernels.measure(case, small, torch.float32, "cpu", 0.0, roof, 1, **more))


def test_the_compiler_specializes_to_the_timed_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It sees the shape of the error measurement first, but must not generalize to both."""
    compiled, compile_ = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        compiled.append([tuple(x.shape) if isinstance(x, Tensor) else x for x in inputs])
        return graph

    monkeypatch.setattr(torch, "compile", lambda f, **k: compile_(f, **{**k, "backend": backend}))
    measured(lambda x: 2 * x)
    assert [(24, 8)] in compiled and [(64, 8)] in compiled
    assert all(len(inputs) == 1 for inputs in compiled), "a size was passed as an argument"


class CompilationError(Exception):
    """Like Triton's own exceptions, not a RuntimeError."""


@pytest.mark.parametrize(
    "error",
    [CompilationError("at 3:7\nno such layout"), TypeError("unexpected keyword 'dq'"), OSError()],
)
def test_a_failing_implementation_gives_a_row(error: Exception) -> None:
    def broken(x: Tensor) -> Tensor:
        raise error

    rows = measured(broken)
    text = " ".join(str(error).split())
    expected = f"{type(error).__name__}: {text}".removesuffix(": ")
    assert [r["failed"] for r in rows if r["implementation"] == "other"] == [expected]
    assert all("ms" in r for r in rows if r["implementation"] != "other") and len(rows) == 4


def test_other_implementations_also_sum_the_gradient_that_ours_has_summed() -> None:
    case = next(c for c in bench_kernels.cases(1, 8, 16, 2, 96, torch.float32, "cpu")
                if c.kernel == "split_rotated")  # fmt: skip
    seen = []
    case = replace(case, then=lambda gradients: seen.append(gradients[0].shape))
    bench_kernels._call(case, case.ours)()
    assert seen == []
    bench_kernels._call(case, case.reference)()
    assert seen == [(1, 8, 2, 3, 8)]


def lose_the_gpu(monkeypatch: pytest.MonkeyPatch, errors: list[str]) -> None:
    """Make the next calls on a pretended GPU raise these errors."""

    def synchronize() -> None:
        if errors:
            raise RuntimeError(errors.pop(0))

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


def test_a_lost_gpu_ends_the_benchmark_after_the_row_that_lost_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    access = "CUDA error: an illegal memory access was encountered"

    def broken(x: Tensor) -> Tensor:
        lose_the_gpu(monkeypatch, [access] * 9)
        raise RuntimeError(access)

    rows = []
    roof = {"copy_gb_per_s": 1.0, "matmul_tflop_per_s": {"fp32": 1.0}}
    cases = toy(64, broken), toy(24, broken)
    with pytest.raises(PythiaError, match=r"other of double has made the GPU unusable .*illegal"):
        for row in bench_kernels.measure(*cases, torch.float32, "cpu", 0.0, roof, 1):
            rows.append(row)
    assert [row.get("failed") for row in rows] == [None] * 3 + [f"RuntimeError: {access}"]
    lose_the_gpu(monkeypatch, ["CUDA error: invalid configuration argument"])
    bench_kernels.check_gpu_usable("a kernel")  # the error is over


def test_a_full_memory_is_recognized() -> None:
    full = bench_kernels.OUT_OF_MEMORY
    for error in (
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ):
        assert bench_kernels.reason(error).startswith(f"{full}: CUDA")
    assert not bench_kernels.reason(RuntimeError("no shared memory")).startswith(full)


def test_nothing_is_measured_after_the_deadline() -> None:
    assert [r["failed"] for r in measured(lambda x: x, deadline=0.0)] == [SKIPPED] * 4
    rows = list(bench_kernels.bench_kernels(("31m",), dry_run=True, only=("adamw",), budget=-1.0))
    assert "copy_gb_per_s" in rows[0]
    assert {(r["kernel"], r["failed"]) for r in rows[1:]} == {("adamw", SKIPPED)}


def test_kernels_are_chosen_by_name() -> None:
    assert set(bench_kernels.KERNELS) == KERNELS | {"adamw"}
    rows = bench_kernels.bench_kernels(("31m",), dry_run=True, only=("adamw", "bias_gelu_erf"))
    assert [r["kernel"] for r in rows if "kernel" in r] == ["bias_gelu_erf"] * 3 + ["adamw"] * 4
    with pytest.raises(ConfigError, match="unknown kernel 'gelu'; accepted: linear_cross_entr"):
        next(bench_kernels.bench_kernels(dry_run=True, only=("gelu",)))


def test_the_command_writes_one_object_per_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = iter([{"kernel": "a"}, {"kernel": "b"}])
    monkeypatch.setattr(bench_kernels, "bench_kernels", lambda dry_run, rates_from: few)
    path = tmp_path / "rows.jsonl"
    assert main(["bench", "kernels", "--dry-run", "--json", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert [json.loads(line)["kernel"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {}
    monkeypatch.setattr(
        bench_kernels, "bench_kernels", lambda dry_run, **more: options.update(more) or []
    )
    words = "bench kernels --dry-run --kernels adamw,attention --budget 2m --seconds 0.1"
    assert main(words.split()) == 0
    assert options.pop("rates_from") is None
    assert options == {"only": ("adamw", "attention"), "budget": 120.0, "seconds": 0.1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_kernels_need_a_gpu() -> None:
    with pytest.raises(
        ConfigError, match="bench kernels needs a GPU, but torch finds no CUDA device; to"
    ):
        next(bench_kernels.bench_kernels())


def test_unknown_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown sizes 7k; .*official sizes: 14m, "):
        next(bench_kernels.bench_kernels(("160m", "7k"), dry_run=True))


def test_cpu_kernels_are_compared_with_torch() -> None:
    machine, *rows = bench_kernels.bench_kernels(
        ("7k",), seconds=0.0, device="cpu", precisions=("fp32", "bf16"), calls=1
    )
    assert set(machine["matmul_tflop_per_s"]) == {"fp32", "bf16"} and not machine["dry_run"]
    kernels = ("linear_cross_entropy", "layer_norm", "gelu", "attention")
    assert [(r["dtype"], r["kernel"], r["implementation"]) for r in rows] == [
        (dtype, kernel, name)
        for dtype in ("fp32", "bf16")
        for kernel in kernels
        for name in ("ours", "reference", "torch")
        if (kernel, name) != ("linear_cross_entropy", "torch")  # torch has none
    ]
    for row in rows:
        assert row["shape"].get("tokens", 32 * 128) == 32 * 128
        assert row["relative_error"] < (1e-6 if row["dtype"] == "fp32" else 1e-2)
        assert row["share"] > 0


# --- attention -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attention_rows() -> list[dict]:
    return list(bench_kernels.bench_attention(dry_run=True))


def test_every_library_is_measured_with_and_without_determinism(
    attention_rows: list[dict],
) -> None:
    rows = attention_rows
    assert rows[0]["kind"] == "machine" and all(row["dry_run"] for row in rows)
    assert {row["library"] for row in rows[1:]} == set(bench_kernels.MEASURED)
    results = [row for row in rows[1:] if "failed" not in row]
    assert {(r["library"], r["deterministic"]) for r in results} >= {
        ("torch", False), ("torch", True), ("flash", False), ("flash", True),
    }  # fmt: skip
    for row in results:
        assert row["bits_repeat"] is True, "on a CPU nothing is summed in another order"
        product = 7 * row["seq_len"] * (row["seq_len"] + 1) * row["head_dim"]
        assert row["tflops"] == pytest.approx(product / row["ms"] / 1e9)
    assert {row["chosen"] for row in results if row["library"] == "torch"} == {"FLASH_ATTENTION"}
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_non_deterministic_backward_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def drifting(q: Tensor, k: Tensor, v: Tensor, library: str) -> Tensor:
        calls.append(torch.are_deterministic_algorithms_enabled())
        drift = 0.0 if calls[-1] else len(calls) * 0.1
        return (1 + drift) * (q + k + v)

    monkeypatch.setattr(bench_kernels, "backend_attention", drifting)
    monkeypatch.setattr(bench_kernels, "MEASURED", ("flash",))
    rows = list(bench_kernels.bench_attention(dry_run=True))[1:]
    assert {(row["deterministic"], row["bits_repeat"]) for row in rows} == {
        (False, False), (True, True),
    }  # fmt: skip


def test_a_failing_library_gives_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Tensor:
        raise TypeError("unexpected keyword\nmore")

    monkeypatch.setattr(bench_kernels, "backend_attention", broken)
    rows = list(bench_kernels.bench_attention(dry_run=True))[1:]
    assert {r["failed"] for r in rows if "head_dim" in r} == {"TypeError: unexpected keyword more"}


def test_no_attention_is_measured_after_the_budget() -> None:
    rows = list(bench_kernels.bench_attention(dry_run=True, budget=-1.0))[1:]
    assert {row["failed"] for row in rows if "head_dim" in row} == {SKIPPED}


def test_the_attention_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        bench_kernels, "bench_attention", lambda *a, **k: calls.append((a, k)) or [{"a": 1}]
    )
    path = tmp_path / "rows.jsonl"
    words = ["bench", "attention", "--dry-run", "--budget", "2m", "--json", str(path)]
    assert main(words) == 0 and calls == [((), {"dry_run": True, "budget": 120.0})]
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_attention_needs_a_gpu() -> None:
    with pytest.raises(
        ConfigError, match="bench attention needs a GPU, but torch finds no CUDA device; to"
    ):
        next(bench_kernels.bench_attention())
