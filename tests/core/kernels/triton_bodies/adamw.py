"""AdamW as one Triton kernel over flat buffers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_checks import normal
from pythia_book.bench.kernels import relative_error

from pythia_core.kernels.adamw import (
    AdamWBuffers,
    AdamWHyperparameters,
    adamw_,
    adamw_reference_,
    adamw_torch_,
)

CONSTANTS = AdamWHyperparameters(beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
NAMES = ("params", "exp_avg", "exp_avg_sq", "copy")
COPIES = pytest.mark.parametrize("copy", [None, torch.bfloat16, torch.float16])


def buffers(
    n: int, dtype: torch.dtype, device: str, copy: torch.dtype | None = None
) -> AdamWBuffers:
    """Buffers as in the middle of training; weight decay does not apply to the last third."""
    params, grad, exp_avg, noise = (normal(n, seed=i).to(device, dtype) for i in range(4))
    rounded = None if copy is None else params.to(copy)
    return AdamWBuffers(params, grad, 0.1 * exp_avg, 0.01 * noise.square(), rounded, n - n // 3)


def tensors(state: AdamWBuffers) -> dict[str, torch.Tensor]:
    return {n: t for n in NAMES if (t := getattr(state, n)) is not None}


def number(value: float, device: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


@COPIES
@pytest.mark.parametrize("update", [1, 1000])
@pytest.mark.parametrize("n", [1, 1024, 2500])
def test_three_updates(n: int, update: int, copy: torch.dtype | None, device: str) -> None:
    """The error against fp64 is at most 1.5 times that of torch's fused kernel."""
    exact = buffers(n, torch.float64, "cpu")
    plain, ours, again = (buffers(n, torch.float32, device, copy) for _ in range(3))
    for k in range(3):
        lr, factor = 1e-2 * (k + 1), 0.7 - 0.2 * k
        wide = number(factor, "cpu", torch.float64), number(0, "cpu")
        adamw_reference_(exact, CONSTANTS, lr, update + k, *wide)
        settings = CONSTANTS, lr, update + k, number(factor, device), number(0, device)
        adamw_torch_(plain, *settings)
        plain.grad.copy_(ours.grad)  # adamw_torch_ scales it in place
        adamw_(ours, *settings)
        adamw_(again, *settings)
    for name in ("params", "exp_avg", "exp_avg_sq"):
        truth = getattr(exact, name)
        bound = max(1.5 * relative_error(getattr(plain, name).double().cpu(), truth), 3e-7)
        assert relative_error(getattr(ours, name).double().cpu(), truth) <= bound, name
    if copy is not None:
        assert torch.equal(ours.copy, ours.params.to(copy))
    assert all(torch.equal(t, tensors(again)[name]) for name, t in tensors(ours).items())


@COPIES
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1.0])
def test_a_skipped_update_changes_nothing(
    bad: float, copy: torch.dtype | None, device: str
) -> None:
    state = buffers(2500, torch.float32, device, copy)
    state.grad[7] = bad
    before = {name: t.clone() for name, t in tensors(state).items()}
    adamw_(state, CONSTANTS, 1e-2, 3, number(bad, device), number(1, device))
    assert all(torch.equal(t, before[name]) for name, t in tensors(state).items())


def test_only_the_first_n_decayed_parameters_are_decayed(device: str) -> None:
    state = replace(buffers(2500, torch.float32, device), n_decayed=1100)
    for tensor in (state.grad, state.exp_avg, state.exp_avg_sq):
        tensor.zero_()
    state.params.fill_(0.5)
    adamw_(state, CONSTANTS, 1e-2, 1, number(1, device), number(0, device))
    expected = torch.full((2500,), 0.5, device=device)
    expected[:1100] *= 1 - 1e-3
    assert torch.equal(state.params, expected)
