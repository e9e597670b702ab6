"""Look into a model and reach into it: states, attention patterns, patches, through plain hooks.

    with record(model, ["layers.*", "layers.*.mlp"]) as seen:
        model.hidden(ids)
    seen["layers.2"]                        # the residual stream after the third block, (B, T, d)

A place is the name of a module of pythia_core.model and stands for its output: `embed_in` and
`layers.3` are the residual stream before the first and after the fourth block, `layers.3.attention`
and `layers.3.mlp` what the two write into it. `*` stands for one part of a name. Nothing of the
model changes, and nothing stays behind after the `with`.

Not here: other tools for such work. A model saved by pythia_core.hf.save is one of transformers,
from which TransformerLens and nnsight read it.
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
from pythia_core.model import GPTNeoX, Rotary

Change = Callable[[Tensor], Tensor]
"""Of an output (B, T, width): what the model goes on with instead, of the same shape."""


def places(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of modules that fit any of the patterns, in the order of the model.

    Raises:
        ConfigError: a pattern that fits none.
    """
    names = [name for name, _ in model.named_modules() if name]
    found: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if _fits(name, pattern)}
        if not fitting:
            kinds = dict.fromkeys(
                ".".join("*" if part.isdecimal() else part for part in name.split("."))
                for name in names
            )
            raise ConfigError(one_of(pattern, kinds, "place"))
        found |= fitting
    return [name for name in names if name in found]


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


@contextlib.contextmanager
def record(model: GPTNeoX, patterns: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the last pass by place, each (B, T, width), with their graph if there is one.

    Raises:
        ConfigError: see `places`.
    """
    seen: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        shape = stack.enter_context(_shape_of_rows(model))
        for name in places(model, patterns):

            def keep(_: nn.Module, __: Any, out: Tensor, name: str = name) -> Tensor:
                seen[name] = _by_row(out, shape)
                return seen[name].reshape(out.shape)  # gradients are taken of what was recorded

            stack.enter_context(_removed(model.get_submodule(name).register_forward_hook(keep)))
        yield seen


@contextlib.contextmanager
def patch(model: GPTNeoX, place: str, change: Change) -> Iterator[None]:
    """Let the model go on with `change(output)` at a place (or several, by pattern).

    Raises:
        ConfigError: see `places`; while the model runs: the change gave another shape or dtype.
    """
    with contextlib.ExitStack() as stack:
        shape = stack.enter_context(_shape_of_rows(model))
        for name in places(model, [place]):

            def replace(_: nn.Module, __: Any, out: Tensor, name: str = name) -> Tensor:
                given = _by_row(out, shape)
                new = change(given)
                if new.shape != given.shape or new.dtype != given.dtype:
                    raise ConfigError(
                        f"the change at {name} gave {tuple(new.shape)} {new.dtype} for an output "
                        f"of {tuple(given.shape)} {given.dtype}; give back the same kind"
                    )
                return new.reshape(out.shape)

            stack.enter_context(_removed(model.get_submodule(name).register_forward_hook(replace)))
        yield


def replaced_by(clean: Tensor, positions: slice | Sequence[int] = slice(None)) -> Change:
    """A change that puts in what was recorded in another pass, at some positions of each row."""

    def change(out: Tensor) -> Tensor:
        new = out.clone()
        new[:, positions] = clean[:, positions].to(out)
        return new

    return change


def steered_by(vector: Tensor, strength: float = 1.0) -> Change:
    """A change that adds a direction (width,) at every position."""
    return lambda out: out + (strength * vector).to(out)


# --- attention -------------------------------------------------------------------------------


@contextlib.contextmanager
def record_attention(model: GPTNeoX) -> Iterator[list[Tensor]]:
    """Attention patterns of the last pass, a tensor (B, heads, T, T) a layer.

    The model's own kernels never hold them, hence they are made again from what each layer was
    given. Memory grows with the square of the row: use few and short rows.

    Raises:
        ConfigError: while the model runs: it reads with a cache of earlier tokens.
    """
    seen: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        for layer, block in enumerate(model.layers):

            def keep(module: nn.Module, given: tuple, _: Tensor, layer: int = layer) -> None:
                x, rotary, batch, attend = given
                if attend is not model.ops.attention:
                    raise ConfigError(
                        "attention patterns are of whole rows; read them without a cache"
                    )
                if layer == 0:
                    seen.clear()
                qkv = module.query_key_value(x)
                seen.append(_pattern(qkv.view(batch, -1, module.heads, 3, module.head_dim), rotary))

            stack.enter_context(_removed(block.attention.register_forward_hook(keep)))
        yield seen


def attention_patterns(model: GPTNeoX, ids: Tensor) -> Tensor:
    """(layers, B, heads, T, T) of token ids (B, T): how much a position (row) looks at another."""
    with record_attention(model) as seen:
        model.hidden(ids)
    return torch.stack(seen)


def _pattern(qkv: Tensor, rotary: Rotary) -> Tensor:
    """As kernels.attention_reference has it, up to the softmax."""
    q, k, _ = (part.transpose(1, 2).float() for part in qkv.unbind(3))
    q, k = rotary_reference(q, *rotary), rotary_reference(k, *rotary)
    scores = q @ k.transpose(-1, -2) * qkv.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=qkv.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


# --- hooks -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _shape_of_rows(model: GPTNeoX) -> Iterator[list[int]]:
    """[B, T] of the pass that runs: inside the model rows lie one after another, (B*T, width)."""
    shape: list[int] = []

    def note(_: nn.Module, given: tuple) -> None:
        shape[:] = given[0].shape

    with _removed(model.embed_in.register_forward_pre_hook(note)):
        yield shape


def _by_row(out: Tensor, shape: Sequence[int]) -> Tensor:
    flat = out.dim() == 2 and out.shape[0] == shape[0] * shape[1]
    return out.unflatten(0, tuple(shape)) if flat else out
