"""How a kernel is judged: against fp64, by what the plain formula loses in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    """The same numbers on every device, fp64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element nobody writes cannot pass for a right one."""
    empty = torch.empty

    def filled(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *a, **k: filled(empty(*a, **k)))
    new_empty, empty_like = Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(Tensor, "new_empty", lambda s, *a, **k: filled(new_empty(s, *a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: filled(empty_like(*a, **k)))


def results(
    function: Callable[..., Tensor | Sequence[Tensor]], inputs: list[Tensor]
) -> list[Tensor]:
    """Outputs and gradients of all inputs, in fp64 on the CPU."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    upstream = [normal(*o.shape, seed=99 + i).to(o) for i, o in enumerate(outputs)]
    grads = torch.autograd.grad(outputs, leaves, upstream)
    assert all(g.dtype == leaf.dtype for g, leaf in zip(grads, leaves, strict=True))
    return [t.detach().double().cpu() for t in (*outputs, *grads)]


def error(actual: Tensor, exact: Tensor) -> float:
    return ((actual - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def check(
    kernel: Callable[..., Tensor | Sequence[Tensor]],
    reference: Callable[..., Tensor | Sequence[Tensor]],
    inputs: list[Tensor],
    exact: Callable[..., Tensor | Sequence[Tensor]] | None = None,
) -> None:
    """Twice the error of the reference in the same dtype at most (fp32: or 1e-6), bits repeat.

    Args:
        inputs: in the dtypes and on the device under test.
        exact: the reference where it can take fp64, if `reference` cannot.
    """
    truth = results(exact or reference, [x.double().cpu() for x in inputs])
    plain, ours = results(reference, inputs), results(kernel, inputs)
    floor = 1e-6 if all(x.dtype == torch.float32 for x in inputs) else 1e-12
    for number, (t, p, o) in enumerate(zip(truth, plain, ours, strict=True)):
        bound = max(2 * error(p, t), floor)
        assert error(o, t) <= bound, f"result {number}: {error(o, t)} > {bound}"
    again = results(kernel, inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)), "not deterministic"
