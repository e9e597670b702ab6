"""Loads models from GPT-NeoX's native files, one per layer and tensor-parallel rank.

`layer_XX-model_YY-model_states.pt` is layer XX of the pipeline on rank YY: 00 the embedding, 02
onwards the transformer layers, then, after skipping one number, the final norm and the unembedding.
Of a linear layer whose output is split over ranks, a file has rows of the weight (QKV: whole
heads); if the input is split, columns, and a separate bias per rank: these are *summed*.
LayerNorms were computed on every rank and are averaged. These are the rules of the training code's
own converter.

These files are pickles; `torch.load(weights_only=True)` refuses anything that would run code.
Optimizer states are not read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pythia_core.config import ModelConfig
from pythia_core.errors import CheckpointError, raise_all
from pythia_core.hf import mismatches
from pythia_core.model import GPTNeoX
from pythia_core.suite import OFFICIAL_SIZES

Merge = Callable[[list[Tensor]], Tensor]


def rows(parts: list[Tensor]) -> Tensor:
    """Concatenate rows: for layers whose output is split over ranks, and the vocabulary."""
    return torch.cat(parts, 0)


def columns(parts: list[Tensor]) -> Tensor:
    """Concatenate columns: for layers whose input is split over ranks."""
    return torch.cat(parts, 1)


def summed(parts: list[Tensor]) -> Tensor:
    """Add biases: where the input is split, each rank adds its own before outputs are summed."""
    return torch.stack(parts).float().sum(0).to(parts[0].dtype)


def mean(parts: list[Tensor]) -> Tensor:
    """Average: for LayerNorms, which every rank computed."""
    return torch.stack(parts).float().mean(0).to(parts[0].dtype)


MERGES: dict[str, tuple[Merge, Merge]] = {
    "input_layernorm": (mean, mean),
    "post_attention_layernorm": (mean, mean),
    "attention.query_key_value": (rows, rows),
    "attention.dense": (columns, summed),
    "mlp.dense_h_to_4h": (rows, rows),
    "mlp.dense_4h_to_h": (columns, summed),
}
"""Part of a layer -> how to merge the ranks' weights, and their biases."""
NATIVE: dict[str, tuple[str, Merge]] = {
    "word_embeddings.weight": ("embed_in.weight", rows),
    **{
        f"{part}.{kind}": (f"layers.{{}}.{part}.{kind}", merge)
        for part, merges in MERGES.items()
        for kind, merge in zip(("weight", "bias"), merges, strict=True)
    },
    "norm.weight": ("final_layer_norm.weight", mean),
    "norm.bias": ("final_layer_norm.bias", mean),
    "final_linear.weight": ("embed_out.weight", rows),
}
"""Name in a layer's file -> our name, {} for the layer, and how to merge the ranks' parts."""
ROTARY = "attention.rotary_emb.inv_freq"
"""Stored per layer; only its length is used: it must match the config."""
_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_QKV = "attention.query_key_value.weight"


def is_native(folder: Path) -> bool:
    """Whether a folder holds GPT-NeoX's layer files."""
    return folder.is_dir() and any(folder.glob("layer_*-model_*-model_states.pt"))


def step_of(folder: Path) -> int | None:
    """The step in a folder name given by DeepSpeed: global_step143000."""
    match = re.fullmatch(r"global_step(\d+)", folder.resolve().name)
    return int(match[1]) if match else None


def _layer_tensors(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{path} is a pickle that asks to run code, or holds more than tensors: it was not "
                f"opened. GPT-NeoX's layer files hold tensors only; do not open it by other means "
                f"unless you trust its author. ({str(error).splitlines()[-1]})"
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} is not a layer file: it holds no dictionary of tensors")
    return state


def _read_layers(folder: Path) -> list[list[dict[str, Tensor]]]:
    """The tensors of all layer files: for each layer in order, one dict per rank.

    Raises:
        CheckpointError: no files, a rank's file missing, or one that cannot be opened.
    """
    layers: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob("layer_*.pt")):
        if match := _FILE.fullmatch(path.name):
            layers.setdefault(int(match[1]), {})[int(match[2])] = path
    if not layers:
        raise CheckpointError(f"{folder} holds no layer_XX-model_YY-model_states.pt")
    ranks = 1 + max(rank for paths in layers.values() for rank in paths)
    missing = [
        f"layer_{layer:02}-model_{rank:02}-model_states.pt is missing"
        for layer, paths in layers.items()
        for rank in range(ranks)
        if rank not in paths
    ]
    raise_all(CheckpointError, missing, str(folder))
    return [[_layer_tensors(layers[n][rank]) for rank in range(ranks)] for n in sorted(layers)]


def load(folder: str | Path, config: ModelConfig | None = None) -> GPTNeoX:
    """The model in a folder of layer files, with ranks merged, in the stored dtype. The default
    config is that of the official size with these shapes.

    Raises:
        CheckpointError: files missing, damaged or unsafe; shapes other than the config's; no config
            given and no official size.
    """
    folder = Path(folder)
    merged: dict[str, Tensor] = {}
    problems: list[str] = []
    rotary: set[int] = set()
    number = 0
    for states in _read_layers(folder):
        for key in sorted({key for state in states for key in state}):
            parts = [state[key] for state in states if key in state]
            if key == ROTARY:
                rotary.add(2 * parts[0].numel())
            elif key not in NATIVE:
                problems.append(f"unknown key {key}")
            elif len(parts) < len(states):
                problems.append(f"{NATIVE[key][0].format(number)} is not on every rank")
            else:
                name, merge = NATIVE[key]
                try:
                    tensor = merge(parts)
                except RuntimeError:
                    shapes = [tuple(p.shape) for p in parts]
                    problems.append(f"{key}: the ranks' shapes do not match: {shapes}")
                    continue
                merged[name.format(number)] = tensor
        number += _QKV in states[0]
    raise_all(CheckpointError, problems, str(folder))
    config = config or _official_config(folder, merged, number)
    with torch.device("meta"):
        model = GPTNeoX(config)
    stored, needed = (
        {name: tuple(tensor.shape) for name, tensor in state.items()}
        for state in (merged, model.state_dict())
    )
    problems = mismatches(stored, needed)
    if rotary - {config.rotary_dims}:
        problems.append(f"{sorted(rotary)} rotary dims are stored, not {config.rotary_dims}")
    raise_all(CheckpointError, sorted(problems), f"{folder} against the config")
    model.load_state_dict(merged, assign=True)
    return model.eval().requires_grad_(False)


def _official_config(folder: Path, merged: dict[str, Tensor], n_layers: int) -> ModelConfig:
    """The config of the official size with these shapes, which do not determine the heads."""
    vocab, width = merged["embed_in.weight"].shape if "embed_in.weight" in merged else (0, 0)
    for size in OFFICIAL_SIZES.values():
        if (size.n_layers, size.d_model, size.vocab_size) == (n_layers, width, vocab):
            return size.model()
    raise CheckpointError(
        f"{folder}: {n_layers} layers of width {width} and a vocabulary of {vocab} match no "
        "official size; the files lack the number of heads, so give the model's config or size"
    )
