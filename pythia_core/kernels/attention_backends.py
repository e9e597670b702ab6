"""Backends of causal attention on CUDA devices, and the choice between them.

    torch                           torch's attention; torch chooses one of its four backends
    cudnn, flash, efficient, math   one of torch's four backends
    flash_attn                      the package flash-attn (FlashAttention-2)
    triton                          our own kernel (attention_triton), opaque to torch.compile

`FASTEST` maps a head dim to its fastest backend. `FASTEST` is empty, because no backend has been
measured on a GPU yet. So every head dim uses `DEFAULT`. `python -m pythia_core bench attention`
times the backends, and the notebook `speed` shows what to enter into `FASTEST`.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pythia_core.errors import ConfigError, one_of
from pythia_core.kernels import dispatch

SDPA_BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
BACKENDS = ("torch", *SDPA_BACKENDS, "flash_attn", "triton")
"""The names of the backends that `backend_attention` accepts."""
FASTEST: dict[int, str] = {}
"""Maps head dims to the backend measured to be fastest in bf16, forward and backward together.
It is empty until this is measured."""
DEFAULT = "torch"
"""The backend for head dims not in FASTEST, and for fp32, which some backends do not support."""
_unavailable: dict[str, str] = {}


@torch.compiler.assume_constant_result
def unavailable_reason(backend: str) -> str:
    """Return why a backend cannot be used here and what to do, or "" if the backend can be used.

    Raises:
        ConfigError: no backend has this name.
    """
    if backend not in BACKENDS:
        raise ConfigError(one_of(backend, BACKENDS, "attention backend"))
    if backend not in _unavailable:
        _unavailable[backend] = _find_reason(backend)
    return _unavailable[backend]


def _find_reason(backend: str) -> str:
    """Find the text that `unavailable_reason` returns for a backend."""
    if backend == "triton" and not dispatch.TRITON_FOUND:
        return (
            "Triton is not installed; install it with `pip install triton`, in the version that "
            "torch requires"
        )
    if backend != "flash_attn":
        return ""
    install = "pip install --no-build-isolation -r requirements-gpu.txt"
    try:
        from flash_attn import flash_attn_func  # noqa: F401
    except Exception as error:  # a build for another version of torch fails in many ways
        missing = isinstance(error, ModuleNotFoundError) and error.name == "flash_attn"
        # FlashAttention-4 alone installs an empty package of this name
        if missing or "cannot import name 'flash_attn_func'" in str(error):
            return f"flash_attn is not installed; install it with `{install}`"
        reason = str(error).split("\n")[0]
        return (
            f"flash_attn does not load with torch {torch.__version__} ({reason}), perhaps because "
            "it was built for another version; reinstall it with "
            f"`{install} --force-reinstall --no-deps`"
        )
    return ""


@torch.compiler.assume_constant_result
def select_backend(head_dim: int, dtype: torch.dtype, device: torch.device) -> str:
    """Return the attention backend to use: FASTEST[head_dim] or DEFAULT.

    DEFAULT serves fp32 and head dims that are not in FASTEST. If FASTEST[head_dim] does not work
    here, a warning is logged and DEFAULT is returned.

    Raises:
        ConfigError: FASTEST[head_dim] does not work here, and a `no_fallback` block is active.
    """
    backend = FASTEST.get(head_dim, DEFAULT) if dtype != torch.float32 else DEFAULT
    if reason := unavailable_reason(backend):
        if dispatch.strict():
            raise ConfigError(reason)
        dispatch.warn_once(f"{reason}. Using torch's own attention instead")
        return DEFAULT
    if backend == "triton" and not dispatch.is_supported("attention", device, dtype, head_dim):
        return DEFAULT
    return backend


# Our own kernel, with one packed gradient.


@torch.library.custom_op("pythia::causal_attention", mutates_args=())
def packed_forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Run the forward of our attention kernel; `q` and `k` are already rotated.

    Returns:
        The output, in the shape of q; the log-sum-exp of each query's scores, (batch, heads, seq).
    """
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
    """Return the gradients of q, k and v, packed into one tensor (batch, seq, heads, 3, head_dim).

    `dout` is the gradient of `out`.
    """
    from pythia_core.kernels.attention_triton import attention_backward

    return attention_backward(dout, q, k, v, out, lse)


@packed_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    return q.new_empty(*q.shape[:3], 3, q.shape[3])


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    """Save the inputs and results of `packed_forward` for the backward pass."""
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor, ...]:
    """Return the gradients of q, k and v, given the gradient of the output."""
    return packed_backward(dout, *ctx.saved_tensors).unbind(3)


packed_forward.register_autograd(_backward, setup_context=_setup)


@dispatch.probe("attention")
def _probe(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Try our attention kernel on one head of 16 tokens (see `dispatch.probe`)."""
    q, k, v = torch.zeros(1, 16, 1, 3, head_dim, device=device, dtype=dtype).unbind(3)
    out, lse = packed_forward(q, k, v)
    packed_backward(out, q, k, v, out, lse)


def _with_alternatives(reason: str, backend: str) -> str:
    """Append the names of all backends but `backend` to `reason`."""
    others = ", ".join(name for name in BACKENDS if name != backend)
    return f"{reason}. Or choose another attention backend: {others}"


def check_packed(q: Tensor) -> None:
    """Check that our kernel can take queries like `q`, (batch, seq, heads, head_dim).

    Raises:
        ConfigError: Triton is missing or off, or the device, dtype or shape is not accepted.
    """
    if reason := unavailable_reason("triton"):
        raise ConfigError(_with_alternatives(reason, "triton"))
    if not dispatch.use_triton(q):
        raise ConfigError(
            "the attention backend triton needs a CUDA device, and PYTHIA_TRITON must not be 0, "
            f"but q is on {q.device!s} and PYTHIA_TRITON={os.environ.get('PYTHIA_TRITON', '')}"
        )
    _, seq, heads, dim = q.shape
    problems = []
    if dim > dispatch.HEAD_DIM_MAX:
        problems.append(f"head_dim is {dim}, but the kernel takes at most {dispatch.HEAD_DIM_MAX}")
    if seq * 3 * heads * dim >= 2**31:
        problems.append(
            f"a row of {seq} tokens and {heads} heads is too long for the kernel's 32-bit offsets"
        )
    dispatch.check("attention", {"q": q.dtype}, problems)


def backend_attention(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    """Return the causal attention of q, k and v, computed by a given backend.

    Args:
        q, k, v: (batch, seq, heads, head_dim), with any strides; q and k are already rotated.
        backend: one of BACKENDS.

    Raises:
        ConfigError: the backend is unknown or unavailable, or our kernel cannot take the tensors.
    """
    if backend == "triton":
        check_packed(q)
        return packed_forward(q, k, v)[0]
    if reason := unavailable_reason(backend):
        raise ConfigError(_with_alternatives(reason, backend))
    if backend == "flash_attn":
        from flash_attn import flash_attn_func

        strict = torch.are_deterministic_algorithms_enabled()
        return flash_attn_func(q, k, v, causal=True, deterministic=strict)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    torch_chooses = backend == "torch"
    with contextlib.nullcontext() if torch_chooses else sdpa_kernel(SDPA_BACKENDS[backend]):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2)
