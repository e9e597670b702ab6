"""AdamW as Pythia used it, on parameters that live in one flat buffer.

All masters are views of one fp32 tensor, all gradients of another, and in bf16 runs all compute
copies of a third: zeroing, the gradient norm, clipping, the update and the refresh of the copies
are each one pass over contiguous memory, however many tensors the model has.

Groups (GPT-NeoX v1.0): biases and LayerNorm parameters are not decayed; everything else is, both
embeddings included. The decay is decoupled (AdamW), although paper and code say "Adam".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pythia_core.config import TrainConfig
from pythia_core.model import GPTNeoX, Linear


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to the parameter called `name`."""
    return name.endswith("weight") and "layernorm" not in name and "layer_norm" not in name


class FlatParameters:
    """The parameters of a model moved into flat buffers; the model keeps working on views of them.

    Attributes:
        decayed, undecayed: the two groups, flat fp32 leaves with `.grad` set.
        grad: flat fp32 gradient of everything. names: parameter names in buffer order.
    """

    def __init__(self, model: GPTNeoX, compute_dtype: torch.dtype) -> None:
        parameters = dict(model.named_parameters())
        self.names = sorted(parameters, key=lambda name: not is_decayed(name))  # stable: order kept
        n_decayed = sum(parameters[n].numel() for n in self.names if is_decayed(n))
        self.flat = torch.cat([parameters[n].detach().flatten() for n in self.names])
        self.grad = torch.zeros_like(self.flat)
        self.copy = self.flat.to(compute_dtype) if compute_dtype != torch.float32 else None
        offset = 0
        for name in self.names:
            p = parameters[name]
            view = slice(offset, offset + p.numel())
            p.data = self.flat[view].view(p.shape)
            p.grad = self.grad[view].view(p.shape)
            if self.copy is not None:
                self._attach_copy(model, name, self.copy[view].view(p.shape))
            offset += p.numel()
        model.compute_dtype = compute_dtype
        self.decayed = nn.Parameter(self.flat[:n_decayed])
        self.undecayed = nn.Parameter(self.flat[n_decayed:])
        self.decayed.grad = self.grad[:n_decayed]
        self.undecayed.grad = self.grad[n_decayed:]

    @staticmethod
    def _attach_copy(model: GPTNeoX, name: str, copy: Tensor) -> None:
        if name == "embed_out.weight":
            model.embed_out_copy = copy
            return
        path, leaf = name.rsplit(".", 1)
        module = model.get_submodule(path)
        if isinstance(module, Linear):
            module.copies[leaf] = copy

    def refresh_copies(self) -> None:
        """Round the masters into the compute copies; call after every change of the masters."""
        if self.copy is not None:
            self.copy.copy_(self.flat)

    def clip(self, max_norm: float) -> float:
        """Scale the gradient to a global norm of at most `max_norm`; returns the norm before."""
        norm = torch.linalg.vector_norm(self.grad).item()
        if norm > max_norm:
            self.grad.mul_(max_norm / (norm + 1e-6))
        return norm


def make_optimizer(flat: FlatParameters, train: TrainConfig) -> torch.optim.AdamW:
    """torch's fused AdamW over the two flat groups; the learning rate is set before each step."""
    groups = [
        {"params": [flat.decayed], "weight_decay": train.weight_decay},
        {"params": [flat.undecayed], "weight_decay": 0.0},
    ]
    betas = (train.beta1, train.beta2)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=train.eps, fused=True)
