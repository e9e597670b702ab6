"""Chunked linear + cross-entropy as a Triton kernel."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, check, normal
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import ConfigError
from pythia_core.kernels import cross_entropy
from pythia_core.kernels.cross_entropy import linear_cross_entropy_reference
from pythia_core.kernels.cross_entropy_triton import cross_entropy_


def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(hidden @ weight.T, targets.to(hidden.device))


@DTYPES
@pytest.mark.parametrize(("rows", "vocab"), [(1, 97), (130, 97), (20, 5000)])
def test_loss_and_gradients(
    dtype: torch.dtype, rows: int, vocab: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS_CUDA", 128 * vocab)  # 130 rows: 2 chunks
    targets = torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(2)).to(device)

    def kernel(hidden: Tensor, weight: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(hidden, weight, targets, weight.detach().to(dtype))

    def reference(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy_reference(hidden, weight.to(dtype), targets)

    # an fp32 master, exact in `dtype`
    weight = normal(vocab, 24, seed=1).to(dtype).float().to(device)
    inputs = [normal(rows, 24).to(device, dtype), weight]
    check(kernel, reference, inputs, lambda h, w: exact(h, w, targets))


def test_strided_rows_and_no_writes_between_them(device: str) -> None:
    """The kernel in place on a strided view, at the official vocabulary."""
    vocab, rows = 50_304, 3
    buffer = torch.full((rows, vocab + 16), float("nan"), device=device)
    logits = buffer[:, :vocab]
    logits.copy_(3 * normal(rows, vocab))
    truth = logits.double().cpu()
    targets = torch.tensor([0, 50_276, 17], device=device)
    losses = torch.full((rows,), float("nan"), device=device)
    cross_entropy_(logits, targets, losses)
    expected = torch.nn.functional.cross_entropy(truth, targets.cpu(), reduction="none")
    torch.testing.assert_close(losses.double().cpu(), expected, rtol=1e-6, atol=0)
    gradient = truth.softmax(-1) - torch.nn.functional.one_hot(targets.cpu(), vocab)
    torch.testing.assert_close(logits.double().cpu(), gradient, rtol=0, atol=1e-7)
    assert buffer[:, vocab:].isnan().all(), "wrote outside the rows"


def test_the_softmax_includes_the_padding_of_the_vocabulary(device: str) -> None:
    hidden, weight = normal(8, 16).float().to(device), normal(128, 16, seed=1).float().to(device)
    targets = torch.arange(8, device=device)  # ids of a tokenizer of 100; rows 100..127 are padding
    weight.requires_grad_()
    kernels.linear_cross_entropy(hidden, weight, targets, weight.detach()).backward()
    assert (weight.grad[100:].norm(dim=1) > 0).all()


def test_a_very_unlikely_target_has_the_right_loss(device: str) -> None:
    weight = torch.tensor([[500.0], [-500.0]], device=device)
    hidden, target = torch.ones(1, 1, device=device), torch.tensor([1], device=device)
    assert kernels.linear_cross_entropy(hidden, weight, target, weight).item() == 1000


@pytest.mark.parametrize("target", [-1, 7])
def test_a_target_outside_the_vocabulary_gives_nan_only(target: int, device: str) -> None:
    logits, losses = normal(2, 7).float().to(device), torch.zeros(2, device=device)
    cross_entropy_(logits, torch.tensor([target, 3], device=device), losses)
    assert losses.isnan().tolist() == [True, False]
    assert logits.isfinite().all()


def test_unknown_dtypes_are_refused(device: str) -> None:
    weight = torch.zeros(3, 2, dtype=torch.float64, device=device)
    with pytest.raises(ConfigError, match="hidden is float64, but the kernel takes only float32"):
        kernels.linear_cross_entropy(weight, weight, torch.zeros(3, dtype=torch.long), weight)


def test_the_operation_passes_opcheck(device: str) -> None:
    hidden = normal(9, 8).float().to(device).requires_grad_()
    weight = normal(33, 8).float().to(device).requires_grad_()
    targets = torch.arange(9, device=device)
    arguments = (hidden, weight, targets, weight.detach(), None)
    torch.library.opcheck(torch.ops.pythia.linear_cross_entropy.default, arguments)


def test_torch_compile_needs_no_graph_break(device: str) -> None:
    hidden, weight = normal(9, 8).float().to(device), normal(33, 8).float().to(device)
    targets = torch.arange(9, device=device)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return 2 * kernels.linear_cross_entropy(hidden, weight, targets, weight.detach())

    def gradients(function) -> tuple[Tensor, ...]:
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        return torch.autograd.grad(function(*leaves), leaves)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(gradients(compiled), gradients(loss), strict=True):
        assert torch.equal(ours, eager)
