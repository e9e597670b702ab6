"""The rules that decide which kernels stay, with made-up measurements that come out each way."""

from __future__ import annotations

from typing import Any

import pytest
from pythia_book.bench.decisions import HEAD_DIMS, TRITON_FILES, decisions, format_decision
from pythia_book.bench.kernels import HEAD_DIMS as MEASURED_DIMS
from pythia_book.bench.kernels import KERNELS as MEASURED_KERNELS
from pythia_book.bench.rows import SKIPPED, Row


def operation(kernel: str, implementation: str, ms: float, size: str = "160m", **more: Any) -> Row:
    row = {"kernel": kernel, "size": size, "implementation": implementation, "ms": ms}
    return {"kind": "operation", **row, "graph": True, "peak_bytes": 100, **more}


def pair(kernel: str, ratio: float, size: str = "160m", **theirs: Any) -> list[Row]:
    compiled = operation(kernel, "torch.compile (inductor)", 2.0 * ratio, size, **theirs)
    return [operation(kernel, "ours", 2.0, size), compiled]


def library(name: str, dim: int, ms: float | None, **more: Any) -> Row:
    row = {"library": name, "head_dim": dim, "seq_len": 2048, "deterministic": True}
    measured = {"failed": "no"} if ms is None else {"ms": ms, "bits_repeat": True}
    return {"kind": "attention", **row, **measured, **more}


def decided(operations: list[Row], attention: list[Row] = ()) -> dict[str, Row]:
    return {row["subject"]: row for row in decisions(operations, attention)}


def test_nothing_is_decided_without_measurements() -> None:
    rows = decided([])
    assert {row["outcome"] for row in rows.values()} == {"not measured"}
    assert all(row["value"] is None for row in rows.values())
    dims = {f"attention at head dim {dim}" for dim in HEAD_DIMS}
    assert set(rows) == {*TRITON_FILES.values(), *dims, "attention_triton"}
    assert set(HEAD_DIMS) == set(MEASURED_DIMS) and set(TRITON_FILES) < set(MEASURED_KERNELS)


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [((1.05,), "keep"), ((1.04,), "delete"), ((1.3, 0.9), "keep"), ((1.1, 0.95), "delete")],
)
def test_a_kernel_stays_if_the_geometric_mean_is_large_enough(
    ratios: tuple[float, ...], outcome: str
) -> None:
    sizes = ("160m", "1b")
    rows = [r for size, x in zip(sizes, ratios, strict=False) for r in pair("adamw", x, size)]
    row = decided(rows)["adamw_triton"]
    assert row["outcome"] == outcome
    product = ratios[0] * ratios[-1] if len(ratios) > 1 else ratios[0] ** 2
    assert row["value"] == pytest.approx(product**0.5)
    assert f"{sizes[len(ratios) - 1]} {ratios[-1]:.3g})" in row["note"]
    assert decided(rows)["gelu_triton"]["outcome"] == "not measured"
    text = format_decision(row)
    start = f"adamw_triton: {outcome}; torch.compile takes {row['value']:.3g} times as long (160m "
    assert text.startswith(start) and text.endswith(f"Rule: {row['rule']}")


def test_the_loss_also_stays_for_its_memory() -> None:
    for theirs, outcome in ((200, "keep"), (199, "delete")):
        rows = pair("linear_cross_entropy", 0.8, peak_bytes=theirs)
        assert decided(rows)["cross_entropy_triton"]["outcome"] == outcome
    rows = pair("layer_norm_pair", 0.8, peak_bytes=1000)
    assert decided(rows)["layer_norm_triton"]["outcome"] == "delete", "by time alone"


def test_only_pairs_that_were_replayed_from_graphs_count() -> None:
    ours, compiled = pair("split_rotated", 1.5)
    failed = {k: v for k, v in compiled.items() if k != "ms"} | {"failed": "no"}
    for rows in ([ours], [ours, failed], [ours, compiled | {"graph": False}]):
        assert decided(rows)["rotary_triton"]["outcome"] == "not measured"
    assert decided([ours, compiled])["rotary_triton"]["outcome"] == "keep"


def everywhere(**ms: float | None) -> list[Row]:
    return [library(name, dim, time) for dim in HEAD_DIMS for name, time in ms.items()]


def outcomes(rows: list[Row]) -> tuple[str, str]:
    """The outcome at head dim 64, and that of our own kernel."""
    row = decided([], rows)
    return row["attention at head dim 64"]["outcome"], row["attention_triton"]["outcome"]


def test_the_fastest_repeatable_library_is_used_if_it_gains_enough() -> None:
    assert outcomes(everywhere(torch=1.05, flash=1.0)) == ("use flash", "not measured")
    assert outcomes(everywhere(torch=1.04, flash=1.0))[0] == "use torch"
    drifting = library("cudnn", 64, 0.1, bits_repeat=False)
    loose = library("cudnn", 64, 0.1, deterministic=False)
    short = library("cudnn", 64, 0.1, seq_len=512)
    rows = [*everywhere(torch=1.0, efficient=1.0), drifting, loose, short]
    assert outcomes(rows)[0] == "use torch"
    assert outcomes(everywhere(torch=None, flash=1.0))[0] == "use flash", "torch refuses"
    assert outcomes(everywhere(flash=1.0))[0] == "not measured", "no comparison with the default"
    skipped = library("torch", 64, None, failed=SKIPPED)
    assert outcomes([*everywhere(flash=1.0), skipped])[0] == "not measured"


def test_our_attention_stays_if_it_wins_at_one_head_dim() -> None:
    slow = everywhere(torch=1.0, flash=1.0, triton=1.0)
    assert outcomes(slow) == ("use torch", "delete")
    assert outcomes([*slow, library("triton", 64, 0.95)]) == ("use triton", "keep")
    assert outcomes([*slow, library("triton", 256, 0.95)]) == ("use torch", "keep")
    barely = [*slow, library("torch", 64, 1.05), library("triton", 64, 0.96)]
    assert outcomes(barely) == ("use flash", "delete"), "a kernel that is deleted is not used"
    some = [row for row in slow if row["head_dim"] != 80]
    assert outcomes(some)[1] == "not measured", "it may win at the missing head dim"
    assert outcomes(everywhere(torch=1.0, triton=None)) == ("use torch", "delete"), "it fails"
