"""Record a model's activations and attention patterns, or patch them, with PyTorch's hooks.

    with record(model, ["layers.*", "layers.*.mlp"]) as seen:
        model.hidden(ids)
    seen["layers.2"]                        # the residual stream after the third block, (B, T, d)

A place is the name of a module in pythia_core.model and means its output: `embed_in` and `layers.3`
are the residual stream before the first and after the fourth block, `layers.3.attention` and
`layers.3.mlp` what the two add to it. `*` matches one part of a name. The model itself does not
change, and no hook remains after the `with`.

TransformerLens and nnsight read a model that pythia_core.hf.save has written for transformers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from pythia_core.errors import ConfigError, one_of
from pythia_core.kernels.rotary import rotary_reference
from pythia_core.model import Attention, GPTNeoX, Rotary

Change = Callable[[Tensor], Tensor]
"""Maps an output (B, T, width) to the one that the model continues with, of the same shape."""


def places(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of modules that match any of the patterns, in the order of the model.

    Raises:
        ConfigError: a pattern that matches none.
    """
    names = [name for name, _ in model.named_modules() if name]
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if _matches(name, pattern)}
        if not matches:
            kinds = dict.fromkeys(
                ".".join("*" if part.isdecimal() else part for part in name.split("."))
                for name in names
            )
            raise ConfigError(one_of(pattern, kinds, "place"))
        chosen |= matches
    return [name for name in names if name in chosen]


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


@contextlib.contextmanager
def record(model: GPTNeoX, patterns: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the last forward pass by place, each (B, T, width), with their autograd graph.

    Raises:
        ConfigError: see `places`.
    """
    seen: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        shape = _note_shape(model, stack)
        for name in places(model, patterns):

            def keep(_: nn.Module, __: Any, out: Tensor, name: str = name) -> Tensor:
                seen[name] = _by_row(out, shape)
                return seen[name].reshape(out.shape)  # gradients are taken of what was recorded

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield seen


@contextlib.contextmanager
def patch(model: GPTNeoX, place: str, change: Change) -> Iterator[None]:
    """Let the model continue with `change(output)` at a place, or at all that match a pattern.

    Raises:
        ConfigError: see `places`; while the model runs: the change returned another shape or dtype.
    """
    with contextlib.ExitStack() as stack:
        shape = _note_shape(model, stack)
        for name in places(model, [place]):

            def replace(_: nn.Module, __: Any, out: Tensor, name: str = name) -> Tensor:
                old = _by_row(out, shape)
                new = change(old)
                if new.shape != old.shape or new.dtype != old.dtype:
                    raise ConfigError(
                        f"the change at {name} returned {tuple(new.shape)} {new.dtype} for an "
                        f"output of {tuple(old.shape)} {old.dtype}; return the same shape and dtype"
                    )
                return new.reshape(out.shape)

            stack.callback(model.get_submodule(name).register_forward_hook(replace).remove)
        yield


# --- attention -------------------------------------------------------------------------------


@contextlib.contextmanager
def record_attention(model: GPTNeoX) -> Iterator[list[Tensor]]:
    """Attention patterns of the last forward pass, one tensor (B, heads, T, T) per layer.

    The model's kernels never materialise them, so they are recomputed from each layer's input.
    Memory grows with the square of the row length: use few, short rows.

    Raises:
        ConfigError: while the model runs: it reads with a cache of earlier tokens.
    """
    seen: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        for layer in range(len(model.layers)):

            def keep(module: Attention, args: tuple, _: Tensor, layer: int = layer) -> None:
                x, rotary, batch, attend = args
                if attend is not model.ops.attention:
                    raise ConfigError(
                        "attention patterns need whole rows; run the model without a cache"
                    )
                if layer == 0:
                    seen.clear()
                qkv = module.query_key_value(x)
                seen.append(_pattern(qkv.view(batch, -1, module.heads, 3, module.head_dim), rotary))

            attention = model.get_submodule(f"layers.{layer}.attention")
            stack.callback(attention.register_forward_hook(keep).remove)
        yield seen


def _pattern(qkv: Tensor, rotary: Rotary) -> Tensor:
    """The softmax of kernels.attention_reference."""
    q, k, _ = (part.transpose(1, 2).float() for part in qkv.unbind(3))
    q, k = rotary_reference(q, *rotary), rotary_reference(k, *rotary)
    scores = q @ k.transpose(-1, -2) * qkv.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


# --- rows ------------------------------------------------------------------------------------


def _note_shape(model: GPTNeoX, stack: contextlib.ExitStack) -> list[int]:
    """[B, T] of the running pass: inside the model the rows are concatenated, (B*T, width)."""
    shape: list[int] = []

    def note(_: nn.Module, args: tuple) -> None:
        shape[:] = args[0].shape

    stack.callback(model.embed_in.register_forward_pre_hook(note).remove)
    return shape


def _by_row(out: Tensor, shape: Sequence[int]) -> Tensor:
    flat = out.dim() == 2 and out.shape[0] == shape[0] * shape[1]
    return out.unflatten(0, tuple(shape)) if flat else out
