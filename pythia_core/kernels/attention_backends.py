"""Causal attention on CUDA devices: the backends that can compute it, and which one is used.

Backends by name: what torch brings ("torch" lets it choose; "cudnn", "flash", "efficient" and
"math" force one), "flash_attn" (the package flash-attn, FlashAttention-2), and our own kernel,
"triton" (attention_triton). Ours leaves dq, dk and dv in one packed gradient without a copy, and is
a registered operation, which torch.compile takes whole.

Nothing has been measured on a card yet, so `FASTEST` is empty and `DEFAULT` decides. `python -m
pythia_core bench kernels` measures every backend; the notebook `speed` shows which to enter.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pythia_core.errors import ConfigError, one_of
from pythia_core.kernels import dispatch

SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
BACKENDS = ("torch", *SDPA, "flash_attn", "triton")
"""Accepted by `backend_attention`."""
FASTEST: dict[int, str] = {}
"""The fastest of BACKENDS by head dim, forward and backward together, bf16. Not yet measured."""
DEFAULT = "torch"
"""For a head dim that has not been measured, and in fp32, which some backends do not take."""
_missing: dict[str, str] = {}


@torch.compiler.assume_constant_result
def missing(backend: str) -> str:
    """Why a backend cannot be used here, and what to do; "" if it can. Imports it when asked.

    Raises:
        ConfigError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise ConfigError(one_of(backend, BACKENDS, "attention backend"))
    if backend not in _missing:
        _missing[backend] = _why_missing(backend)
    return _missing[backend]


def _why_missing(backend: str) -> str:
    if backend == "triton" and not dispatch.TRITON_FOUND:
        return "Triton is not installed: pip install triton, the version that torch asks for"
    if backend != "flash_attn":
        return ""
    install = "pip install --no-build-isolation -r requirements-gpu.txt"
    try:
        from flash_attn import flash_attn_func  # noqa: F401
    except Exception as error:  # a build for another version of torch fails in many ways
        absent = isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"
        # the package of FlashAttention-4 alone leaves an empty parent
        if absent or "cannot import name 'flash_attn_func'" in str(error):
            return f"flash_attn is not installed: {install}"
        reason = str(error).split("\n")[0]
        return (
            f"flash_attn does not load with torch {torch.__version__} ({reason}): it was built for "
            f"another version, install it again: {install} --force-reinstall --no-deps"
        )
    return ""


@torch.compiler.assume_constant_result
def chosen(head_dim: int, dtype: torch.dtype, device: torch.device) -> str:
    """The backend for heads of this size: FASTEST if it works here, else DEFAULT and a warning."""
    backend = FASTEST.get(head_dim, DEFAULT) if dtype != torch.float32 else DEFAULT
    if why := missing(backend):
        if dispatch.strict():
            raise ConfigError(why)
        dispatch.warn_once(f"{why}. torch's own attention is used")
        return DEFAULT
    if backend == "triton" and not dispatch.works("attention", device, dtype, head_dim):
        return DEFAULT
    return backend


# Ours, with one packed gradient.


@torch.library.custom_op("pythia::causal_attention", mutates_args=())
def packed_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """out, and the log-sum-exp (batch, heads, seq) that the backward needs."""
    from pythia_core.kernels.attention_triton import attention_forward

    return attention_forward(q, k, v)


@packed_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    batch, seq, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, seq, dtype=torch.float32)


@torch.library.custom_op("pythia::causal_attention_backward", mutates_args=())
def packed_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> Tensor:
    """(batch, seq, heads, 3, head_dim): dq, dk, dv side by side."""
    from pythia_core.kernels.attention_triton import attention_backward

    return attention_backward(dout, q, k, v, out, lse)


@packed_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:3], 3, q.shape[3])


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor, ...]:
    return packed_backward(dout, *ctx.saved_tensors).unbind(3)


packed_forward.register_autograd(_backward, setup_context=_setup)


@dispatch.probe("attention")
def _probe(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    q, k, v = torch.zeros(1, 16, 1, 3, head_dim, device=device, dtype=dtype).unbind(3)
    out, lse = packed_forward(q, k, v)
    packed_backward(out, q, k, v, out, lse)


def check_packed(q: Tensor) -> None:
    """Refuse what our kernel cannot compute: q is (batch, seq, heads, head_dim).

    Raises:
        ConfigError: with every problem, or that Triton is missing.
    """
    if why := missing("triton"):
        raise ConfigError(f"{why}, or choose another of {', '.join(BACKENDS)}")
    if not dispatch.use_triton(q):
        raise ConfigError(f"attention by triton runs on CUDA devices, this is {q.device}")
    _, seq, heads, dim = q.shape
    problems = []
    if dim > dispatch.HEAD_DIM_MAX:
        problems.append(f"head_dim is {dim}, the kernel takes up to {dispatch.HEAD_DIM_MAX}")
    if seq * 3 * heads * dim >= 2**31:
        problems.append(f"a row of {seq} tokens x {heads} heads does not fit 32-bit offsets")
    dispatch.check("attention by triton", {"q": q.dtype}, problems)


def backend_attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """Causal attention of q, k, v (batch, seq, heads, head_dim), any strides, by one backend.

    Raises:
        ConfigError: an unknown or missing backend, or one that cannot take these tensors.
    """
    if backend == "triton":
        check_packed(q)
        return packed_forward(q, k, v)[0]
    if why := missing(backend):
        raise ConfigError(f"{why}, or choose another of {', '.join(BACKENDS)}")
    if backend == "flash_attn":
        from flash_attn import flash_attn_func

        strict = torch.are_deterministic_algorithms_enabled()
        return flash_attn_func(q, k, v, causal=True, deterministic=strict)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    with sdpa_kernel(SDPA[backend]) if backend in SDPA else contextlib.nullcontext():
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2)
