"""LayerNorm of the fp32 residual stream, with output in the dtype of the next matrix product.

`layer_norm_pair` adds the outputs of the previous block's attention and MLP to the stream, and
computes the two LayerNorms of a parallel block. A CUDA device runs Triton kernels for this
(layer_norm_triton), and a CPU with a C compiler runs C functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pythia_core.kernels import dispatch, native

WIDTH_MAX = 8192
"""Widest row, in elements, that the Triton kernels can hold in registers; Pythia-12B has 5,120."""


def layer_norm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias for each row, rounded to `dtype`.

    `x` is (n, d) in fp32 or fp64; `weight` and `bias` are (d,) in the dtype of `x`.
    """
    centered = x - x.mean(-1, keepdim=True)
    scaled = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight + bias).to(dtype)


class _NativeLayerNorm(torch.autograd.Function):
    """An autograd function for `layer_norm`, computed by the C functions of native.c."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        n, d = x.shape
        x = x.contiguous()
        y = torch.empty_like(x, dtype=dtype)
        mean, rstd = x.new_empty(n), x.new_empty(n)
        native.function("layer_norm", y.dtype)(x, weight, bias, y, mean, rstd, float(eps), n, d)
        ctx.save_for_backward(x, weight, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        n, d = x.shape
        dx = torch.empty_like(x)
        dweight, dbias = x.new_empty(native.BLOCKS, d), x.new_empty(native.BLOCKS, d)
        native.function("layer_norm_backward", dy.dtype)(
            x, dy.contiguous(), weight, mean, rstd, dx, dweight, dbias, n, d, native.BLOCKS
        )
        return dx, dweight.sum(0), dbias.sum(0), None, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Return the LayerNorm of fp32 rows x (n, d) in `dtype`, in the fastest way on this device."""
    if x.dtype == torch.float32 and dtype != torch.float16 and native.available(x):
        return _NativeLayerNorm.apply(x, weight, bias, eps, dtype)
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps).to(dtype)


# The two norms of a parallel block.


def layer_norm_pair_reference(
    x: Tensor, branches: Sequence[Tensor], norms: Sequence[Tensor], eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `layer_norm_pair` in plain torch; `x` and `norms` may also be in fp64."""
    z = x + (branches[0].to(x.dtype) + branches[1]) if branches else x
    weight1, bias1, weight2, bias2 = norms
    y1 = layer_norm_reference(z, weight1, bias1, eps, dtype)
    return z, y1, layer_norm_reference(z, weight2, bias2, eps, dtype)


class _NativePair(torch.autograd.Function):
    """An autograd function for `layer_norm_pair` in C; both branches may be None."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branch1: Tensor | None, branch2: Tensor | None, weight1: Tensor,
        bias1: Tensor, weight2: Tensor, bias2: Tensor, eps: float, dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        n, d = x.shape
        x = x.contiguous()
        branches = [b if b is None else b.contiguous() for b in (branch1, branch2)]
        z = x if branch1 is None else torch.empty_like(x)
        y1, y2 = (torch.empty_like(x, dtype=dtype) for _ in range(2))
        mean, rstd = x.new_empty(n), x.new_empty(n)
        native.function("layer_norm_pair", dtype)(
            x, *branches, weight1, bias1, weight2, bias2, z, y1, y2, mean, rstd, float(eps), n, d
        )
        ctx.save_for_backward(z, weight1, weight2, mean, rstd)
        ctx.branched = branch1 is not None
        return z, y1, y2

    @staticmethod
    def backward(ctx: Any, dz: Tensor, dy1: Tensor, dy2: Tensor) -> tuple[Tensor | None, ...]:
        z, weight1, weight2, mean, rstd = ctx.saved_tensors
        n, d = z.shape
        dx = torch.empty_like(z)
        dbranch = torch.empty_like(dy1) if ctx.branched else None
        sums = z.new_empty(native.BLOCKS, 4, d)
        native.function("layer_norm_pair_backward", dy1.dtype)(
            z, dz.contiguous(), dy1.contiguous(), dy2.contiguous(), weight1, weight2, mean, rstd,
            dx, dbranch, sums, n, d, native.BLOCKS,
        )  # fmt: skip
        return dx, dbranch, dbranch, *sums.sum(0), None, None


Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("pythia::layer_norm_pair", mutates_args=())
def _pair(
    x: Tensor, branches: list[Tensor], norms: list[Tensor], eps: float, dtype: torch.dtype
) -> Forward:
    """Run the forward Triton kernel; see `layer_norm_triton.pair_forward`."""
    from pythia_core.kernels.layer_norm_triton import pair_forward

    return pair_forward(x, branches, norms, eps, dtype)


@_pair.register_fake
def _(
    x: Tensor, branches: list[Tensor], norms: list[Tensor], eps: float, dtype: torch.dtype
) -> Forward:
    n, d = x.shape
    z = x.new_empty((n, d) if branches else (0,))
    y1, y2 = (x.new_empty(n, d, dtype=dtype) for _ in range(2))
    mean, rstd = (x.new_empty(n, dtype=torch.float32) for _ in range(2))
    return z, y1, y2, mean, rstd


@torch.library.custom_op("pythia::layer_norm_pair_backward", mutates_args=())
def _pair_backward(
    z: Tensor, dz: Tensor | None, dy1: Tensor, dy2: Tensor, weight1: Tensor, weight2: Tensor,
    mean: Tensor, rstd: Tensor, branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the backward Triton kernel; see `layer_norm_triton.pair_backward`."""
    from pythia_core.kernels.layer_norm_triton import pair_backward

    return pair_backward(z, dz, dy1, dy2, weight1, weight2, mean, rstd, branch_dtype)


@_pair_backward.register_fake
def _(
    z: Tensor, dz: Tensor | None, dy1: Tensor, dy2: Tensor, weight1: Tensor, weight2: Tensor,
    mean: Tensor, rstd: Tensor, branch_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dbranch = z.new_empty((0,) if dz is None else z.shape, dtype=branch_dtype)
    return z.new_empty(z.shape), dbranch, z.new_empty(4, z.shape[1], dtype=torch.float32)


def _setup_pair(ctx: Any, inputs: tuple, output: Forward) -> None:
    """Save what the backward pass needs."""
    x, branches, norms, _, _ = inputs
    z, _, _, mean, rstd = output
    ctx.branch_dtypes = [b.dtype for b in branches]
    ctx.norm_dtypes = [w.dtype for w in norms]
    ctx.save_for_backward(z if branches else x, norms[0], norms[2], mean, rstd)


def _backward_pair(
    ctx: Any, dz: Tensor, dy1: Tensor, dy2: Tensor, *_: Tensor
) -> tuple[Tensor | list[Tensor] | None, ...]:
    """Return the gradients of x, of each branch, and of the weights and biases."""
    z, weight1, weight2, mean, rstd = ctx.saved_tensors
    dtypes = ctx.branch_dtypes
    dx, dbranch, dnorms = _pair_backward(
        z, dz if dtypes else None, dy1, dy2, weight1, weight2, mean, rstd,
        dtypes[0] if dtypes else z.dtype,
    )  # fmt: skip
    return (
        dx,
        [dbranch.to(dtype) for dtype in dtypes],
        [g.to(dtype) for g, dtype in zip(dnorms.unbind(0), ctx.norm_dtypes, strict=True)],
        None,
        None,
    )


_pair.register_autograd(_backward_pair, setup_context=_setup_pair)


@dispatch.probe("layer_norm_pair")
def _probe(device: torch.device, dtype: torch.dtype, d: int) -> None:
    """Try the two Triton kernels on 16 rows of `d` elements (see `dispatch.probe`)."""
    x, low = torch.zeros(16, d, device=device), torch.zeros(16, d, device=device, dtype=dtype)
    z, y1, y2, mean, rstd = _pair(x, [low, low], [x[0]] * 4, 1e-5, dtype)
    _pair_backward(z, z, y1, y2, x[0], x[0], mean, rstd, dtype)


def layer_norm_pair(
    x: Tensor, branches: Sequence[Tensor], norms: Sequence[Tensor], eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Add two branches to `x`, and apply two LayerNorms to the sum, in the fastest way here.

    Args:
        x: (n, d), fp32.
        branches: two tensors (n, d), or an empty sequence to apply the LayerNorms to `x` itself.
        norms: weight1, bias1, weight2, bias2, each (d,), fp32.
        dtype: dtype of the results of the LayerNorms.

    Returns:
        The sum x + (branches[0] + branches[1]), and the results of the two LayerNorms, each (n, d).

    Raises:
        ConfigError: the Triton kernel cannot take a dtype, or rows of this width.
    """
    if dispatch.use_triton(x):
        dtypes = {"x": x.dtype, "dtype": dtype, "norms": norms[0].dtype}
        dtypes |= {f"branch {i + 1}": b.dtype for i, b in enumerate(branches)}
        d = x.shape[1]
        wide = (
            [f"rows have {d} elements, but the kernel takes at most {WIDTH_MAX}"]
            if d > WIDTH_MAX
            else []
        )
        dispatch.check("layer_norm_pair", dtypes, wide)
        if dispatch.is_supported("layer_norm_pair", x.device, dtype, d):
            z, y1, y2, _, _ = _pair(x, list(branches), list(norms), eps, dtype)
            return z if branches else x, y1, y2
    dtypes_match = all(b.dtype == dtype for b in branches)
    if dtypes_match and dtype != torch.float16 and native.available(x):
        return _NativePair.apply(x, *(branches or (None, None)), *norms, eps, dtype)
    z = x + (branches[0].to(x.dtype) + branches[1]) if branches else x
    weight1, bias1, weight2, bias2 = norms
    y1 = layer_norm(z, weight1, bias1, eps, dtype)
    return z, y1, layer_norm(z, weight2, bias2, eps, dtype)
