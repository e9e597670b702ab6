"""When operations use a Triton kernel, and that their fallbacks give the same results."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels import attention_backends, attention_tiles, dispatch
from pythia_core.kernels.cross_entropy import linear_cross_entropy_reference
from pythia_core.kernels.gelu import bias_gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference
from pythia_core.kernels.rotary import split_rotated_reference
from pythia_core.util.machine import deterministic

attention = importlib.import_module("pythia_core.kernels.attention")  # the function shadows it
GPU_TENSOR = SimpleNamespace(device=torch.device("cuda"))
"""A stand-in: `use_triton` looks only at the device."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHIA_TRITON", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(dispatch, "_warned", set())
    monkeypatch.setattr(dispatch, "_supported", {})
    monkeypatch.setattr(attention_backends, "_unavailable", {})
    monkeypatch.setattr(dispatch, "TRITON_FOUND", True)


def test_kernels_run_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dispatch.use_triton(GPU_TENSOR)
    assert not dispatch.use_triton(torch.zeros(1))
    assert not dispatch.use_triton(torch.zeros(1, device="meta"))
    monkeypatch.setenv("PYTHIA_TRITON", "0")
    assert not dispatch.use_triton(GPU_TENSOR)


def test_the_interpreter_runs_kernels_on_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.use_triton(torch.zeros(1))
    monkeypatch.setattr(dispatch, "TRITON_FOUND", False)
    assert not dispatch.use_triton(torch.zeros(1))


def test_missing_triton_is_reported_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dispatch, "TRITON_FOUND", False)
    with caplog.at_level(logging.WARNING):
        assert not dispatch.use_triton(GPU_TENSOR) and not dispatch.use_triton(GPU_TENSOR)
        assert not dispatch.use_triton(torch.zeros(1))
    assert [r.message for r in caplog.records] == [
        "Triton is not installed, so slower torch operations are used"
    ]


def test_all_problems_are_reported_at_once() -> None:
    dispatch.check("op", {"x": torch.bfloat16})
    with pytest.raises(ConfigError, match=r"x is int32, but the kernel takes .*; too wide\."):
        dispatch.check("op", {"x": torch.int32}, ["too wide"])


@pytest.mark.parametrize("branches", [0, 2])
def test_layer_norm_pair_equals_two_layer_norms(branches: int) -> None:
    x, added = normal(5, 24), [normal(5, 24, seed=1 + i) for i in range(branches)]
    norms = [normal(24, seed=3 + i) for i in range(4)]
    ours = kernels.layer_norm_pair(x, added, norms, 1e-5, torch.float32)
    plain = layer_norm_pair_reference(x, added, norms, 1e-5, torch.float32)
    for o, p in zip(ours, plain, strict=True):
        torch.testing.assert_close(o, p)
    z = ours[0]
    assert torch.equal(ours[2], kernels.layer_norm(z, norms[2], norms[3], 1e-5, torch.float32))


@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_bias_gelu_adds_the_bias(form: str) -> None:
    x, bias = normal(5, 24), normal(24, seed=1)
    torch.testing.assert_close(kernels.bias_gelu(x, bias, form), bias_gelu_reference(x, bias, form))


def test_without_a_kernel_the_input_is_unchanged() -> None:
    qkv = normal(2, 6, 3, 3, 16)
    before, (cos, sin) = qkv.clone(), kernels.rotary_tables(6, 4, 10_000.0)
    ours, plain = kernels.split_rotated(qkv, cos, sin), split_rotated_reference(qkv, cos, sin)
    assert all(torch.equal(o, p) for o, p in zip(ours, plain, strict=True))
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("backend", ["torch", "flash", "math"])
def test_backends_agree(backend: str) -> None:
    qkv = normal(2, 7, 3, 3, 16)
    one, zero = torch.ones(7, 2), torch.zeros(7, 2)
    exact = attention.attention_reference(qkv, one, zero)
    out = attention_backends.backend_attention(*qkv.unbind(3), backend).flatten(2)
    torch.testing.assert_close(out, exact)


def test_unknown_backends_are_refused() -> None:
    q = normal(1, 2, 1, 8)
    with pytest.raises(ConfigError, match=r"unknown attention backend 'flsh'.*'flash'"):
        attention_backends.backend_attention(q, q, q, "flsh")


def package(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package with this code into `folder` and on the import path."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def test_a_missing_package_comes_with_install_instructions() -> None:
    q = normal(1, 2, 1, 8)
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash_attn is installed")
    with pytest.raises(
        ConfigError, match=r"flash_attn is not installed; .*requirements-gpu.txt`. Or choose anoth"
    ):
        attention_backends.backend_attention(q, q, q, "flash_attn")


def test_a_package_built_for_another_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    package("flash_attn", "raise ImportError('undefined symbol: _ZN3c10')", tmp_path, monkeypatch)
    why = attention_backends.unavailable_reason("flash_attn")
    assert "does not load with torch" in why and "undefined symbol: _ZN3c10" in why
    assert "--force-reinstall" in why


def test_flash_attention_4_alone_is_not_flash_attention_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package is also called flash_attn, but has none of the functions."""
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    package("flash_attn", "", tmp_path, monkeypatch)
    assert "flash_attn is not installed" in attention_backends.unavailable_reason("flash_attn")


@pytest.mark.parametrize("wanted", [True, False])
def test_flash_attention_is_as_deterministic_as_the_process(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def flash_attn_func(q, k, v, causal, deterministic):\n    return q, deterministic\n"
    package("flash_attn", text, tmp_path, monkeypatch)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    q = normal(1, 2, 1, 8)
    with deterministic(wanted):
        assert attention_backends.backend_attention(q, q, q, "flash_attn")[1] is wanted


def test_a_missing_backend_warns_once_and_raises_in_benchmarks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(attention_backends, "FASTEST", {64: "flash_attn", 128: "cudnn"})
    monkeypatch.setattr(attention_backends, "_unavailable", {"flash_attn": "it is not there"})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert (
                attention_backends.select_backend(64, torch.bfloat16, GPU_TENSOR.device) == "torch"
            )
    assert [r.message for r in caplog.records] == [
        "it is not there. Using torch's own attention instead"
    ]
    with dispatch.no_fallback(), pytest.raises(ConfigError, match="it is not there"):
        attention_backends.select_backend(64, torch.bfloat16, GPU_TENSOR.device)
    default = attention_backends.DEFAULT
    assert attention_backends.select_backend(128, torch.bfloat16, GPU_TENSOR.device) == "cudnn"
    assert attention_backends.select_backend(128, torch.float32, GPU_TENSOR.device) == default
    assert attention_backends.select_backend(80, torch.bfloat16, GPU_TENSOR.device) == default


def test_the_table_lists_only_known_backends() -> None:
    assert set(attention_backends.FASTEST.values()) <= set(attention_backends.BACKENDS)
    assert attention_backends.DEFAULT in attention_backends.BACKENDS


def test_a_failing_kernel_warns_once_and_raises_in_benchmarks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = []

    def fails(device: torch.device, dtype: torch.dtype, width: int) -> None:
        tried.append((dtype, width))
        raise RuntimeError("at 3:7\nptxas: out of registers")

    monkeypatch.setitem(dispatch._probes, "op", fails)
    monkeypatch.setattr(dispatch, "version_problem", lambda: "install another Triton")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not dispatch.is_supported("op", GPU_TENSOR.device, torch.bfloat16, 64)
    assert tried == [(torch.bfloat16, 64)], "tried again"
    assert [r.message for r in caplog.records] == [
        "the Triton kernel of op fails on this GPU at width 64 with RuntimeError: ptxas: out of "
        "registers (install another Triton). Slower torch operations are used instead"
    ]
    with dispatch.no_fallback(), pytest.raises(ConfigError, match="ptxas: out of registers"):
        dispatch.is_supported("op", GPU_TENSOR.device, torch.bfloat16, 64)
    assert not dispatch.strict()
    monkeypatch.setitem(dispatch._probes, "op", lambda *_: None)
    assert dispatch.is_supported("op", GPU_TENSOR.device, torch.float16, 64)
    monkeypatch.setitem(dispatch._probes, "op", fails)
    assert dispatch.is_supported("op", torch.device("cpu"), torch.bfloat16, 64), "not compiled"


def test_out_of_memory_does_not_disable_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setitem(dispatch._probes, "op", full)
    with pytest.raises(torch.OutOfMemoryError):
        dispatch.is_supported("op", GPU_TENSOR.device, torch.bfloat16, 64)
    monkeypatch.setitem(dispatch._probes, "op", lambda *_: None)
    assert dispatch.is_supported("op", GPU_TENSOR.device, torch.bfloat16, 64)


@pytest.mark.parametrize("operation", ["bias_gelu", "layer_norm_pair", "linear_cross_entropy"])
def test_operations_fall_back_to_torch_if_the_kernel_fails(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "use_triton", lambda tensor: True)
    monkeypatch.setattr(dispatch, "is_supported", lambda *_: False)
    x, w, targets = normal(5, 24), normal(24, seed=1), torch.arange(5)
    if operation == "bias_gelu":
        ours, plain = kernels.bias_gelu(x, w, "tanh"), bias_gelu_reference(x, w, "tanh")
    elif operation == "layer_norm_pair":
        ours = kernels.layer_norm_pair(x, (), [w] * 4, 1e-5, torch.float32)[1]
        plain = layer_norm_pair_reference(x, (), [w] * 4, 1e-5, torch.float32)[1]
    else:
        table = normal(9, 24, seed=2)
        ours = kernels.linear_cross_entropy(x, table, targets, table)
        plain = linear_cross_entropy_reference(x, table, targets)
    torch.testing.assert_close(ours, plain)


def test_attention_falls_back_to_torch_if_the_rotation_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "use_triton", lambda tensor: True)
    monkeypatch.setattr(dispatch, "is_supported", lambda *_: False)
    qkv, (cos, sin) = normal(2, 6, 3, 3, 16), kernels.rotary_tables(6, 4, 10_000.0)
    before = qkv.clone()
    out = kernels.attention(qkv, cos, sin)
    torch.testing.assert_close(out, attention.attention_reference(before, cos, sin))
    assert torch.equal(qkv, before)


@pytest.mark.parametrize(
    ("requirement", "installed", "incompatible"),
    [
        ('triton==3.7.1; platform_system == "Linux"', "3.7.1", False),
        ('triton==3.7.1; platform_system == "Linux"', "3.6.0", True),
        ("numpy", "3.6.0", False),
        ("triton==3.7.1", None, False),
    ],
)
def test_an_incompatible_triton_is_reported(
    requirement: str, installed: str | None, incompatible: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["sympy", requirement])
    monkeypatch.setattr(importlib.metadata, "version", version)
    problem = dispatch.version_problem()
    assert bool(problem) is incompatible
    assert not incompatible or problem.endswith(
        "was built for Triton 3.7.1, but Triton 3.6.0 is installed; run `pip install triton==3.7.1`"
    )


def test_heads_are_split_into_runs_of_lanes() -> None:
    assert {d: attention_tiles.lanes(d) for d in (8, 20, 32, 64, 80, 96, 128, 192, 256)} == {
        8: (16, 0),
        20: (16, 16),
        32: (32, 0),
        64: (64, 0),
        80: (64, 16),
        96: (64, 32),
        128: (128, 0),
        192: (128, 64),
        256: (256, 0),
    }
    for table in (*attention_tiles.TILES.values(), attention_tiles.TILES_FP32):
        assert table.forward.queries % table.forward.keys == 0
        assert table.dq.queries % table.dq.keys == 0
        assert all(t.keys % t.queries == 0 for t in (table.dk, table.dv) if t)
    assert attention_tiles.tiles(20, torch.bfloat16) is attention_tiles.TILES[32]
    assert attention_tiles.tiles(96, torch.float16) is attention_tiles.TILES[128]
