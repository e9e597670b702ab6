"""Causal attention on CUDA devices: one entry for everything that computes it, and the choice.

Candidates by name: what torch brings ("torch" lets it choose; "cudnn", "flash", "efficient" and
"math" force one), the packages "flash_attn" (FlashAttention-2) and "flash_attn_4" (package
flash-attn-4), and our kernel, "triton" (attention_triton). The last two leave dq, dk and dv in one
packed gradient, without a copy; they are one registered operation, which torch.compile takes whole.
The functions of flash-attn-4 that allow it are private; those of 4.0.0b36 are meant here, and no
card has run them yet.

Nothing has been measured on a card yet, so `FASTEST` is empty and `DEFAULT` decides. `python -m
pythia_core bench kernels` measures every candidate; the notebook `kernels` shows which to enter.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.attention import SDPBackend, sdpa_kernel

from pythia_core.errors import ConfigError, one_of
from pythia_core.kernels import dispatch

SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
PACKED = ("triton", "flash_attn_4")
LIBRARIES = ("torch", *SDPA, "flash_attn", *PACKED)
"""Accepted by `library_attention`."""
FASTEST: dict[int, str] = {}
"""The fastest of LIBRARIES by head dim, forward and backward together, bf16. Not yet measured."""
DEFAULT = "torch"
"""For a head dim that has not been measured, and in fp32, which some libraries do not take."""
_missing: dict[str, str] = {}


@torch.compiler.assume_constant_result
def missing(library: str) -> str:
    """Why a library cannot be used here, and what to do; "" if it can. Imports it when asked.

    Raises:
        ConfigError: a library that is not known.
    """
    if library not in LIBRARIES:
        raise ConfigError(one_of(library, LIBRARIES, "attention library"))
    if library not in _missing:
        _missing[library] = _why_missing(library)
    return _missing[library]


def _why_missing(library: str) -> str:
    if library == "triton" and not dispatch.TRITON_FOUND:
        return "Triton is not installed: pip install triton, of the version that torch asks for"
    try:
        if library == "flash_attn":
            from flash_attn import flash_attn_func  # noqa: F401
        if library == "flash_attn_4":
            from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd  # noqa: F401
    except Exception as error:  # a build for another torch fails in many ways
        install = {
            "flash_attn": "pip install --no-build-isolation -r requirements-gpu.txt",
            "flash_attn_4": "pip install --pre flash-attn-4",
        }[library]
        absent = isinstance(error, ModuleNotFoundError) and error.name in (
            "flash_attn",
            "flash_attn.cute",
        )
        # the package of FlashAttention-4 alone leaves an empty parent
        if absent or "cannot import name 'flash_attn_func'" in str(error):
            return f"{library} is not installed: {install}"
        reason = str(error).split("\n")[0]
        return (
            f"{library} does not load with torch {torch.__version__} ({reason}): it was built for "
            f"another version, install it again: {install} --force-reinstall --no-deps"
        )
    return ""


@torch.compiler.assume_constant_result
def chosen(head_dim: int, dtype: torch.dtype, device: torch.device) -> str:
    """The library for heads of this size: FASTEST if it works here, else one line and DEFAULT."""
    library = FASTEST.get(head_dim, DEFAULT) if dtype != torch.float32 else DEFAULT
    if why := missing(library):
        if dispatch.strict():
            raise ConfigError(why)
        dispatch.say_once(f"{why}. torch's own attention is used")
        return DEFAULT
    if library in PACKED and not dispatch.works(f"attention by {library}", device, dtype, head_dim):
        return DEFAULT
    return library


# Those that write one packed gradient.


@torch.library.custom_op("pythia::causal_attention", mutates_args=())
def packed_forward(q: Tensor, k: Tensor, v: Tensor, library: str) -> tuple[Tensor, Tensor]:
    """out, and the log-sum-exp (batch, heads, seq) that this library's backward wants."""
    if library == "triton":
        from pythia_core.kernels.attention_triton import attention_forward

        return attention_forward(q, k, v)
    from flash_attn.cute.interface import _flash_attn_fwd

    return _flash_attn_fwd(q, k, v, causal=True, return_lse=True)[:2]


@packed_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, library: str) -> tuple[Tensor, Tensor]:
    batch, seq, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, seq, dtype=torch.float32)


@torch.library.custom_op("pythia::causal_attention_backward", mutates_args=())
def packed_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, library: str
) -> Tensor:
    """(batch, seq, heads, 3, head_dim): dq, dk, dv side by side."""
    if library == "triton":
        from pythia_core.kernels.attention_triton import attention_backward

        return attention_backward(dout, q, k, v, out, lse)
    from flash_attn.cute.interface import _flash_attn_bwd

    dqkv = q.new_empty(*q.shape[:3], 3, q.shape[3])
    dq, dk, dv = dqkv.unbind(3)
    _flash_attn_bwd(
        q, k, v, out, dout.contiguous(), lse, dq=dq, dk=dk, dv=dv,
        causal=True, deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return dqkv


@packed_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, library: str
) -> Tensor:
    return q.new_empty(*q.shape[:3], 3, q.shape[3])


def _setup(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *qkv, ctx.library = inputs
    ctx.save_for_backward(*qkv, *output)
    ctx.set_materialize_grads(False)


def _backward(ctx: FunctionCtx, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*packed_backward(dout, *ctx.saved_tensors, ctx.library).unbind(3), None)


packed_forward.register_autograd(_backward, setup_context=_setup)


def _probe(library: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    q, k, v = torch.zeros(1, 16, 1, 3, head_dim, device=device, dtype=dtype).unbind(3)
    out, lse = packed_forward(q, k, v, library)
    packed_backward(out, q, k, v, out, lse, library)


for _name in PACKED:
    dispatch.probe(f"attention by {_name}")(functools.partial(_probe, _name))


def check_packed(q: Tensor, library: str) -> None:
    """Refuse what the packed libraries cannot compute: q is (batch, seq, heads, head_dim).

    Raises:
        ConfigError: with every problem, or that the library is not there.
    """
    if why := missing(library):
        raise ConfigError(f"{why}, or take another of {', '.join(LIBRARIES)}")
    if not dispatch.use_triton(q):
        raise ConfigError(f"attention by {library} runs on CUDA devices, this is {q.device}")
    _, seq, heads, dim = q.shape
    step = 8 if library == "flash_attn_4" else 1
    no_fp32 = library == "flash_attn_4" and q.dtype == torch.float32
    dispatch.check(
        f"attention by {library}",
        {"q": q.dtype},
        (
            f"head_dim is {dim}, the kernel takes up to {dispatch.HEAD_DIM_MAX}"
            if dim > dispatch.HEAD_DIM_MAX
            else "",
            f"head_dim is {dim}, it takes multiples of {step}" if dim % step else "",
            "it takes bf16 and fp16 only" if no_fp32 else "",
            f"a row of {seq} tokens x {heads} heads does not fit 32-bit offsets"
            if seq * 3 * heads * dim >= 2**31
            else "",
        ),
    )


def library_attention(q: Tensor, k: Tensor, v: Tensor, library: str) -> Tensor:
    """Causal attention of q, k, v (batch, seq, heads, head_dim), any strides, by one library.

    Raises:
        ConfigError: a library that is not known or not installed, or cannot take these tensors.
    """
    if library in PACKED:
        check_packed(q, library)
        return packed_forward(q, k, v, library)[0]
    if why := missing(library):
        raise ConfigError(f"{why}, or take another of {', '.join(LIBRARIES)}")
    if library == "flash_attn":
        from flash_attn import flash_attn_func

        strict = torch.are_deterministic_algorithms_enabled()
        return flash_attn_func(q, k, v, causal=True, deterministic=strict)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    if library == "torch":
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        with sdpa_kernel(SDPA[library]):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return out.transpose(1, 2)
