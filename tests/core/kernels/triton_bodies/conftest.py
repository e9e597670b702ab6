"""For all bodies: the device, and a Triton interpreter that computes bf16 as a GPU does.

tests/core/kernels/test_triton.py runs these files in child processes, interpreted on the CPU or
compiled on a GPU, because the choice is fixed when Triton is first imported.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """fp32 rounded to bf16, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def bf16_values(bits: np.ndarray) -> np.ndarray:
    return (np.asarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def correct_bf16() -> None:
    """Without this, casts to bf16 truncate, and tl.dot multiplies the bit patterns of bf16."""
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast_before, dot_before = builder.cast_impl, builder.create_dot

    def cast(self, source, target):
        old, new = source.dtype.scalar, target.scalar
        if old == new:
            return cast_before(self, source, target)
        if old == tl.bfloat16:
            source = handle(bf16_values(source.data), tl.float32)
            return source if new == tl.float32 else cast_before(self, source, target)
        if new == tl.bfloat16:
            with np.errstate(invalid="ignore"):
                return handle(bf16_bits(source.data.astype(np.float32)), new)
        return cast_before(self, source, target)

    def dot(self, a, b, d, *rest):
        a, b = (
            handle(bf16_values(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return dot_before(self, a, b, d, *rest)

    for name in dir(builder):  # these call the old cast through a closure of their own
        code = getattr(getattr(builder, name), "__code__", None)
        if name.startswith("create_") and code and "cast_impl" in code.co_names:
            setattr(builder, name, lambda self, s, d, *_: self.cast_impl(s, d))
    builder.cast_impl, builder.create_dot = cast, dot


if INTERPRETED:
    correct_bf16()


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the interpreter would run mostly idle programs in the sums over rows."""
    from pythia_core.kernels import gelu_triton, layer_norm_triton, rotary_triton

    for kernels in (gelu_triton, layer_norm_triton, rotary_triton):
        monkeypatch.setattr(kernels, "PARTIALS", 2)


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"
