"""The compiled kernels are optional: without them training is slower but equally accurate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import HELPERS

from pythia_core.kernels import attention, linear_cross_entropy, native, rotary_tables

STEP = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from tiny_training import batch_at, config
from pythia_core.kernels import native
from pythia_core.training.trainer import Trainer
trainer = Trainer(config(precision=sys.argv[2]), torch.device("cpu"))
losses = [trainer.update(batch_at(step))[0] for step in range(6)]
print(native.library() is not None, *losses)
"""


def run(precision: str, **environment: str) -> tuple[bool, list[float], str]:
    result = subprocess.run(
        [sys.executable, "-c", STEP, str(HELPERS), precision],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        check=True,
    )
    compiled, *losses = result.stdout.split()
    return compiled == "True", [float(x) for x in losses], result.stderr


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_agree_with_and_without_compiled_kernels(precision: str) -> None:
    with_native, fast, _ = run(precision)
    if not with_native:
        pytest.skip("no C compiler on this machine")
    without, plain, _ = run(precision, PYTHIA_NATIVE="0")
    assert not without
    assert fast == pytest.approx(plain, rel=1e-5 if precision == "fp32" else 5e-3)


def test_a_broken_compiler_is_logged_once_and_training_continues(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho out of ideas >&2; exit 1\n')
    broken.chmod(0o755)
    compiled, losses, log = run("fp32", CC=str(broken), PYTHIA_CACHE=str(tmp_path / "cache"))
    assert not compiled
    assert len(losses) == 6
    assert log.count("native.c could not be compiled") == 1
    assert "out of ideas" in log


def test_exp_is_accurate_and_nan_survives() -> None:
    x = torch.linspace(-30, 30, 100_001)
    if not native.available(x):
        pytest.skip("no C compiler on this machine")
    y = torch.empty_like(x)
    native.function("gelu", x.dtype)(x, None, y, 1, x.numel())
    exact = torch.nn.functional.gelu(x.double(), approximate="tanh")
    assert (y - exact).abs().max() < 1e-6
    for dtype in (torch.float32, torch.bfloat16):
        bad = torch.tensor([float("nan"), 1.0, float("inf")], dtype=dtype)
        out = torch.empty_like(bad)
        native.function("gelu", dtype)(bad, None, out, 1, 3)
        assert out[0].isnan()
        assert out[2].isinf()
        hidden = torch.ones(1, 1, dtype=dtype)
        weight = torch.tensor([[0.0], [float("nan")]], dtype=dtype)
        assert linear_cross_entropy(hidden, weight, torch.tensor([0]), weight).isnan()


def test_no_gradient_of_attention_is_subnormal() -> None:
    """Processors by Intel compute with subnormal numbers a hundred times more slowly."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 48, 2, 3, 16, requires_grad=True)
    if not native.available(qkv):
        pytest.skip("no C compiler on this machine")
    out = attention(qkv, *rotary_tables(48, 4, 10_000.0))
    out.backward(torch.randn_like(out) * 1e-4)
    assert qkv.grad is not None
    sizes = qkv.grad.abs()
    assert sizes[sizes > 0].min() > torch.finfo(torch.float32).tiny
