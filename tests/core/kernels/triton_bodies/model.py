"""The whole model with the kernels: fused blocks equal plain ones, and hooks always fire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_checks import DTYPES
from pythia_book.bench.kernels import relative_error
from torch import Tensor

from pythia_core.config import ModelConfig
from pythia_core.evaluation import hooks
from pythia_core.model import MLP, GPTNeoX
from pythia_core.training.execution import Execution
from pythia_core.training.memory import saved_activation_bytes
from pythia_core.training.optimizer import FlatParameters
from pythia_core.training.trainer import MicroStep

TINY = ModelConfig(n_layers=2, d_model=32, n_heads=2, vocab_size=50, max_seq_len=16)


def model(
    device: str, dtype: torch.dtype = torch.float32, config: ModelConfig = TINY
) -> tuple[GPTNeoX, FlatParameters]:
    """Random weights, biases and norms included."""
    made = GPTNeoX(config)
    made.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    made.to(device)
    return made, FlatParameters(made, dtype)


def rows(device: str) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 50, (2, 13), generator=generator).to(device)


def gradient(
    device: str,
    dtype: torch.dtype,
    execution: Execution = Execution(),  # noqa: B008
    prepare: Callable[[GPTNeoX], object] = lambda made: None,
) -> tuple[Tensor, Tensor]:
    """Loss and flat gradient of one micro-step."""
    made, flat = model(device, dtype)
    prepare(made)
    total = torch.zeros((), dtype=torch.float64, device=device)
    MicroStep(made, execution, total)(rows(device), 2)
    return total, flat.grad


def listen(made: GPTNeoX) -> None:
    """Add a hook, because any hook inside a block turns fusion off."""
    made.layers[1].mlp.dense_h_to_4h.register_forward_hook(lambda *_: None)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fused(*_: object) -> None:
        raise AssertionError("a module was bypassed")

    monkeypatch.setattr(MLP, "fused", fused)


@DTYPES
def test_fused_and_plain_agree(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, ours = gradient(device, dtype)
    with monkeypatch.context() as patched:
        forbid(patched)
        plain_loss, plain = gradient(device, dtype, prepare=listen)
        with pytest.raises(AssertionError, match="bypassed"):
            gradient(device, dtype)
    if dtype == torch.float32:
        assert relative_error(loss, plain_loss) < 1e-6 and relative_error(ours, plain) < 1e-5
        return
    exact_loss, exact = gradient(device, torch.float32, prepare=listen)
    assert relative_error(loss, exact_loss) <= max(2 * relative_error(plain_loss, exact_loss), 1e-3)
    assert relative_error(ours, exact) <= 1.5 * relative_error(plain, exact)


@DTYPES
def test_recomputation_changes_no_bit(dtype: torch.dtype, device: str) -> None:
    results = []
    for execution in (Execution(), Execution(recompute=True)):
        made, flat = model(device, dtype)
        flat.add_gradients_in_backward(made)  # as the Trainer does on a GPU
        total = torch.zeros((), dtype=torch.float64, device=device)
        MicroStep(made, execution, total)(rows(device), 2)
        results.append((total, flat.grad))
    (loss, saved), (again_loss, again) = results
    assert torch.equal(loss, again_loss) and torch.equal(saved, again)


@DTYPES
def test_gradients_added_in_the_backward_equal_those_of_autograd(
    dtype: torch.dtype, device: str
) -> None:
    """Every parameter gets its gradient once, and a second micro-batch is added to it."""
    gradients = []
    for added in (False, True):
        made, flat = model(device, dtype)
        if added:
            flat.add_gradients_in_backward(made)
        step = MicroStep(made, Execution(), torch.zeros((), dtype=torch.float64, device=device))
        for micro_batch in (rows(device), rows(device).flip(0, 1)):
            step(micro_batch, 4)
        gradients.append(flat.grad)
    assert relative_error(gradients[1], gradients[0]) < (1e-6 if dtype == torch.float32 else 1e-2)
    assert (gradients[1] != 0).float().mean() > 0.5


def test_hooks_fire_and_receive_the_same_values(device: str) -> None:
    made, _ = model(device)
    ids = rows(device)
    fused = made.hidden(ids)
    places = ["layers.*", "layers.*.attention", "layers.*.mlp", "layers.*.input_layernorm"]
    with hooks.record(made, places) as seen:
        listened = made.hidden(ids)
    assert len(seen) == 8 and relative_error(listened, fused) < 1e-6
    added = seen["layers.0"] + seen["layers.1.attention"] + seen["layers.1.mlp"]
    torch.testing.assert_close(seen["layers.1"], added)
    direction = torch.arange(32.0, device=device)
    with hooks.patch(made, "layers.*", lambda out: out + direction.to(out)):
        assert relative_error(made.hidden(ids), fused) > 1e-2
    assert torch.equal(made.hidden(ids), fused)


@DTYPES
@pytest.mark.parametrize("recompute", [False, True])
def test_saved_bytes_match_saved_activation_bytes(
    dtype: torch.dtype, recompute: bool, device: str
) -> None:
    """The storages that autograd saves per layer: the difference between two depths."""
    saved_bytes = []
    for n_layers in (1, 3):
        made, flat = model(device, dtype, replace(TINY, n_layers=n_layers, vocab_size=8))
        MicroStep(made, Execution(recompute=recompute), torch.zeros(()))
        own = {t.untyped_storage().data_ptr() for t in (flat.flat, flat.copy) if t is not None}
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(t: Tensor, own: set = own, storages: dict = storages) -> Tensor:
            storages.update({t.untyped_storage().data_ptr(): t.untyped_storage()})
            return t

        ids = rows(device) % 8
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            made.hidden(ids)
        saved_bytes.append(
            sum(s.nbytes() for at, s in storages.items() if at not in own) / ids.numel()
        )
    precision = "fp32" if dtype == torch.float32 else "bf16"
    counted = saved_activation_bytes(
        replace(TINY, n_layers=2), Execution(recompute=recompute), precision
    )
    assert saved_bytes[1] - saved_bytes[0] == pytest.approx(counted, rel=0.15)


def test_torch_compile_needs_no_graph_break(device: str) -> None:
    made, flat = model(device, config=replace(TINY, n_layers=1))
    made.rotary(12, torch.device(device))
    made.loss(rows(device)).backward()
    eager = flat.grad.clone()
    flat.grad.zero_()
    torch.compile(made.loss, backend="aot_eager", fullgraph=True)(rows(device)).backward()
    assert relative_error(flat.grad, eager) < 1e-6
