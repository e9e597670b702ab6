"""Record a model's activations and attention patterns, or patch them, with PyTorch's hooks.

    with record(model, ["layers.*", "layers.*.mlp"]) as outputs:
        model.hidden(ids)
    outputs["layers.2"]                     # the residual stream after the third block, (B, T, d)

Outputs are named after the modules of pythia_core.model. `embed_in` is the residual stream before
the first block, `layers.3` the residual stream after the fourth block. `layers.3.attention` and
`layers.3.mlp` are what the fourth block adds.
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

PatchFunction = Callable[[Tensor], Tensor]
"""Maps an output (B, T, width) to its replacement of the same shape."""


def match_modules(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Return the names of the modules that match any of the patterns, in the model's order.

    In a pattern, `*` matches within one part of a name, e.g. "layers.*.mlp".

    Raises:
        ConfigError: a pattern matches no module.
    """
    names = [name for name, _ in model.named_modules() if name]
    selected: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if _matches(name, pattern)}
        if not matches:
            kinds = dict.fromkeys(
                ".".join("*" if part.isdecimal() else part for part in name.split("."))
                for name in names
            )
            known = one_of(pattern, kinds, "module")
            raise ConfigError(f"{known} Each * stands for the number of a layer of this model.")
        selected |= matches
    return [name for name in names if name in selected]


def _matches(name: str, pattern: str) -> bool:
    """Return whether a module's name matches a pattern, part by part between the dots."""
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


@contextlib.contextmanager
def record(model: GPTNeoX, patterns: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of the modules that match the patterns, inside a `with` block.

    Yields:
        A dict that maps a module's name to the module's output in the latest forward pass,
        (B, T, width), with the autograd graph.

    Raises:
        ConfigError: a pattern matches no module.
    """
    outputs: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        shape = _note_shape(model, stack)
        for name in match_modules(model, patterns):

            def store(_: nn.Module, __: Any, out: Tensor, name: str = name) -> Tensor:
                outputs[name] = _by_row(out, shape)
                return outputs[name].reshape(out.shape)  # so that gradients reach the stored output

            stack.callback(model.get_submodule(name).register_forward_hook(store).remove)
        yield outputs


@contextlib.contextmanager
def patch(model: GPTNeoX, pattern: str, fn: PatchFunction) -> Iterator[None]:
    """Replace the output of every module that matches the pattern with `fn(output)`.

    `fn` must keep the shape (B, T, width) and the dtype.

    Raises:
        ConfigError: the pattern matches no module, or `fn` has changed the shape or dtype.
    """
    with contextlib.ExitStack() as stack:
        shape = _note_shape(model, stack)
        for name in match_modules(model, [pattern]):

            def replace(_: nn.Module, __: Any, out: Tensor, name: str = name) -> Tensor:
                old = _by_row(out, shape)
                new = fn(old)
                if new.shape != old.shape or new.dtype != old.dtype:
                    raise ConfigError(
                        f"fn returned a tensor {tuple(new.shape)} of {new.dtype} for {name}, whose "
                        f"output is {tuple(old.shape)} of {old.dtype}; return a tensor of the same "
                        "shape and dtype"
                    )
                return new.reshape(out.shape)

            stack.callback(model.get_submodule(name).register_forward_hook(replace).remove)
        yield


# --- attention -------------------------------------------------------------------------------


@contextlib.contextmanager
def record_attention(model: GPTNeoX) -> Iterator[list[Tensor]]:
    """Record the attention probabilities of every layer, inside a `with` block.

    The probabilities are recomputed, because the model's kernels never store them. Use few, short
    rows: memory grows with the square of the row length.

    Yields:
        A list with one tensor (B, heads, T, T) per layer from the latest pass.

    Raises:
        ConfigError: in a forward pass, if the model uses a cache of earlier tokens.
    """
    patterns: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        for layer in range(len(model.layers)):

            def store(module: Attention, args: tuple, _: Tensor, layer: int = layer) -> None:
                x, rotary, batch, attend = args
                if attend is not model.ops.attention:
                    raise ConfigError(
                        "record_attention needs whole rows, but the model was called with a cache "
                        "of earlier tokens; call the model without a cache"
                    )
                if layer == 0:
                    patterns.clear()
                qkv = module.query_key_value(x)
                qkv = qkv.view(batch, -1, module.heads, 3, module.head_dim)
                patterns.append(_pattern(qkv, rotary))

            attention = model.get_submodule(f"layers.{layer}.attention")
            stack.callback(attention.register_forward_hook(store).remove)
        yield patterns


def _pattern(qkv: Tensor, rotary: Rotary) -> Tensor:
    """Compute attention probabilities (B, heads, T, T) as kernels.attention_reference does."""
    q, k, _ = (part.transpose(1, 2).float() for part in qkv.unbind(3))
    q, k = rotary_reference(q, *rotary), rotary_reference(k, *rotary)
    scores = q @ k.transpose(-1, -2) * qkv.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


# --- rows ------------------------------------------------------------------------------------


def _note_shape(model: GPTNeoX, stack: contextlib.ExitStack) -> list[int]:
    """Return a list that every forward pass of the model sets to [B, T], the shape of the ids."""
    shape: list[int] = []

    def note(_: nn.Module, args: tuple) -> None:
        shape[:] = args[0].shape

    stack.callback(model.embed_in.register_forward_pre_hook(note).remove)
    return shape


def _by_row(out: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape an output (B*T, width) to (B, T, width); leave other shapes as they are."""
    flat = out.dim() == 2 and out.shape[0] == shape[0] * shape[1]
    return out.unflatten(0, tuple(shape)) if flat else out
