"""AdamW as Pythia used it, on parameters that live in one flat buffer.

One tensor holds all fp32 master weights, another all gradients, and a third all half-precision
copies. The model's parameters are views of these tensors. So each operation of the optimizer takes
at most one pass over contiguous memory.

As in GPT-NeoX v1.0, weight decay applies to everything but biases and LayerNorm, and so to
embedding and unembedding. Weight decay is decoupled (AdamW), although the paper and the code of
GPT-NeoX say "Adam".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pythia_core.config import TrainConfig
from pythia_core.kernels.adamw import AdamWBuffers, AdamWHyperparameters, adamw_
from pythia_core.model import GPTNeoX, Linear
from pythia_core.training.distributed import World


def is_decayed(name: str) -> bool:
    """Return whether weight decay applies to the parameter called `name`."""
    return name.endswith("weight") and "layernorm" not in name and "layer_norm" not in name


def flat_order(names: Iterable[str]) -> list[str]:
    """Return the names of a model's parameters in the order of the flat buffers: decayed first."""
    return sorted(names, key=lambda name: not is_decayed(name))  # stable sort


class FlatParameters:
    """The parameters of a model in flat buffers; the model then works on views of these buffers.

    Attributes:
        flat, grad: all master weights and all gradients, in fp32.
        names: names of the parameters in the order of the buffers.
        copy: the master weights in the compute dtype; None if the compute dtype is fp32.
        copies: maps each parameter's name to its view of `copy`; empty if `copy` is None.
        n_decayed: number of elements with weight decay, which come first in the buffers.
    """

    def __init__(self, model: GPTNeoX, compute_dtype: torch.dtype) -> None:
        parameters = dict(model.named_parameters())
        self.names = flat_order(parameters)
        self.n_decayed = sum(parameters[n].numel() for n in self.names if is_decayed(n))
        self.flat = torch.cat([parameters[n].detach().flatten() for n in self.names])
        self.grad = torch.zeros_like(self.flat)
        self.copy = self.flat.to(compute_dtype) if compute_dtype != torch.float32 else None
        self.copies: dict[str, Tensor] = {}
        offset = 0
        for name in self.names:
            p = parameters[name]
            view = slice(offset, offset + p.numel())
            p.data = self.flat[view].view(p.shape)
            p.grad = self.grad[view].view(p.shape)
            if self.copy is not None:
                self.copies[name] = self.copy[view].view(p.shape)
                self._attach_copy(model, name, self.copies[name])
            offset += p.numel()
        model.compute_dtype = compute_dtype

    @staticmethod
    def _attach_copy(model: GPTNeoX, name: str, copy: Tensor) -> None:
        """Give a copy to the module that computes with it: a Linear module or the unembedding."""
        if name == "embed_out.weight":
            model.embed_out_copy = copy
            return
        path, leaf = name.rsplit(".", 1)
        module = model.get_submodule(path)
        if isinstance(module, Linear):
            module.copies[leaf] = copy

    def add_gradients_in_backward(self, model: GPTNeoX) -> None:
        """Make the backward passes of linear maps and of the loss add to `grad` directly.

        Autograd no longer returns these gradients, so `torch.autograd.grad` cannot be used on the
        parameters of these maps.
        """
        for module in model.modules():
            if isinstance(module, Linear):
                assert module.weight.grad is not None and module.bias.grad is not None
                module.grads = (module.weight.grad, module.bias.grad)
        model.embed_out_grad = model.embed_out.weight.grad

    def refresh_copies(self) -> None:
        """Round the master weights into the copies. Call this after changing the master weights."""
        if self.copy is not None:
            self.copy.copy_(self.flat)

    def zero_grad_(self) -> None:
        """Set all gradients to zero."""
        self.grad.zero_()

    def sum_gradients_(self, world: World, total: Tensor) -> None:
        """Sum the gradients, and the tensor `total`, over all processes."""
        world.all_reduce_(self.grad, total)

    def norm(self) -> Tensor:
        """Return the global norm of the gradient, as a 0-dim fp32 tensor on the device."""
        return torch.linalg.vector_norm(self.grad)

    def all_finite(self) -> bool:
        """Return whether every weight is finite."""
        return bool(torch.isfinite(self.flat).all())


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """Return the factor that clips a gradient with this norm to `max_norm`, as 0-dim fp64."""
    norm = norm.double()
    return torch.where(norm > max_norm, max_norm / (norm + 1e-6), 1.0)


class FlatAdamW:
    """AdamW for FlatParameters; also updates the copies in the compute dtype.

    Attributes:
        exp_avg, exp_avg_sq: flat fp32 moments in the order of the parameters.
    """

    def __init__(self, flat: FlatParameters, train: TrainConfig) -> None:
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(flat.flat) for _ in range(2))
        self._buffers = AdamWBuffers(
            flat.flat, flat.grad, self.exp_avg, self.exp_avg_sq, flat.copy, flat.n_decayed
        )
        self._hyperparameters = AdamWHyperparameters(
            train.beta1, train.beta2, train.eps, train.weight_decay
        )
        device = flat.flat.device
        self._one, self._no = torch.ones((), device=device), torch.zeros((), device=device)

    @torch.no_grad()
    def step(
        self, lr: float, update: int, factor: Tensor | None = None, skip: Tensor | None = None
    ) -> None:
        """Update the parameters once, in place, without waiting for the device (see kernels.adamw).

        Args:
            update: number of updates since the moments were zero, including this one.
            factor: 0-dim tensor that multiplies the gradient; default: 1.
            skip: 0-dim tensor: 0 to update (default), 1 to leave everything unchanged.
        """
        factor = self._one if factor is None else factor.float()
        skip = self._no if skip is None else skip.float()
        adamw_(self._buffers, self._hyperparameters, lr, update, factor, skip)
