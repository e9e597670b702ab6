"""Reads GPT-NeoX's own checkpoints: folders global_stepN with the files of DeepSpeed.

With pipeline stages, there is a file per layer and tensor-parallel rank,
`layer_XX-model_YY-model_states.pt`, which has the part of layer XX on rank YY. Without pipeline
stages (GPT-NeoX 2.x), there is a file per rank, `mp_rank_YY_model_states.pt`, which has the same
tensors under module["sequential.XX.*"], and more of the state of training. Layer 00 is the
embedding, layers 02 to n + 1 are the n transformer layers, n + 3 is the final norm, and n + 4 the
unembedding.

The parts are merged as in the training code's own converter. Split outputs are concatenated by rows
(for QKV, whole heads), and split inputs by columns. The biases of layers with split inputs are
*summed* over ranks. LayerNorms are averaged. Nothing that could run code is unpickled: a layer file
that contains anything but tensors is refused, and in rank files, such objects are skipped.
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
    """Concatenate weights or biases whose outputs (or vocabulary) are split over ranks."""
    return torch.cat(parts, 0)


def columns(parts: list[Tensor]) -> Tensor:
    """Concatenate weights whose inputs are split over ranks."""
    return torch.cat(parts, 1)


def summed(parts: list[Tensor]) -> Tensor:
    """Sum a bias over all ranks, because training summed the outputs of the ranks."""
    return torch.stack(parts).float().sum(0).to(parts[0].dtype)


def mean(parts: list[Tensor]) -> Tensor:
    """Average the copies of a LayerNorm parameter, one per rank."""
    return torch.stack(parts).float().mean(0).to(parts[0].dtype)


MERGES: dict[str, tuple[Merge, Merge]] = {
    "input_layernorm": (mean, mean),
    "post_attention_layernorm": (mean, mean),
    "attention.query_key_value": (rows, rows),
    "attention.dense": (columns, summed),
    "mlp.dense_h_to_4h": (rows, rows),
    "mlp.dense_4h_to_h": (columns, summed),
}
"""Maps each part of a layer to the functions that merge its weights and its biases."""
RENAMED = {"mlp.linear1.": "mlp.dense_h_to_4h.", "mlp.linear2.": "mlp.dense_4h_to_h."}
"""Maps beginnings of names in later versions of GPT-NeoX to those in earlier versions."""
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
"""Maps each name in a layer file to our name ({} is the layer number) and the merge function."""
ROTARY = "attention.rotary_emb.inv_freq"
"""A tensor in each layer. Only its length is used, to check the config."""
LATEST = "latest"
"""A file next to the folders global_stepN with the name of the last one."""
_FILE = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_SEQUENTIAL = re.compile(r"sequential\.(\d+)\.(.+)")
_QKV = "attention.query_key_value.weight"


def is_native(folder: Path) -> bool:
    """Whether a folder has the files of a GPT-NeoX checkpoint."""
    return any(_FILE.fullmatch(p.name) or _RANK_FILE.fullmatch(p.name) for p in folder.glob("*.pt"))


def find(folder: Path, step: int | None = None) -> Path | None:
    """Return the folder of a GPT-NeoX checkpoint, or None if there is none.

    Args:
        folder: the folder itself, or a folder of such folders, in which the file `latest` names the
            last one.
        step: which one of several to return; default: the last.

    Raises a CheckpointError if there are several, but not the requested one.
    """
    if is_native(folder):
        return folder
    steps = {step_of(inner): inner for inner in folder.glob("global_step*") if is_native(inner)}
    if not steps:
        return None
    names = ", ".join(inner.name for _, inner in sorted(steps.items()))
    if step is None and (folder / LATEST).is_file():
        latest = (folder / LATEST).read_text("utf-8", "replace").strip()
        for inner in steps.values():
            if inner.name == latest:
                return inner
        raise CheckpointError(
            f"{folder / LATEST} names the checkpoint {latest[:80]!r}, but only {names} exist; pass "
            "the folder of one of these"
        )
    if step is None and len(steps) == 1:
        return next(iter(steps.values()))
    if step not in steps:
        raise CheckpointError(
            f"{folder} has the GPT-NeoX checkpoints {names}; pass the folder of one of these, or "
            "its --step"
        )
    return steps[step]


def step_of(folder: Path) -> int | None:
    """Return the step in a folder name like global_step143000; None for other names."""
    match = re.fullmatch(r"global_step(\d+)", folder.resolve().name)
    return int(match[1]) if match else None


class _Placeholder:
    """Takes the place of an object whose class or function must not be used.

    The state of training has objects of DeepSpeed and numpy, which a checkpoint does not need.
    """

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _load(path: Path, placeholders: bool = False) -> Any:
    """Unpickle a file without running code.

    Raises a CheckpointError if the file is damaged, or has more than tensors and plain values,
    unless `placeholders` are to take the place of these objects.
    """
    try:
        if placeholders:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            with torch.serialization.safe_globals([(_Placeholder, name) for name in names]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged files
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{path} was not opened, because it is a pickle that contains more than tensors "
                "and may run code. Layer files of GPT-NeoX contain only tensors. Do not open this "
                "file by other means unless you trust its author. "
                f"({str(error).splitlines()[-1]})"
            ) from error
        raise CheckpointError(
            f"{path} is truncated or damaged ({error}); copy the file again from its source"
        ) from error


def _check_tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """Return `state`; raise a CheckpointError if it is anything but tensors by name."""
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(
            f"{path} is not a file of GPT-NeoX: the content must be a dictionary with only "
            "tensors; pass the folder of a GPT-NeoX checkpoint"
        )
    return state


def _read_layers(folder: Path) -> list[list[dict[str, Tensor]]]:
    """Read the tensors in a folder; entry [i][rank] maps names to tensors of the i-th layer."""
    layers: dict[int, dict[int, Path]] = {}
    for path in sorted(folder.glob("layer_*.pt")):
        if match := _FILE.fullmatch(path.name):
            layers.setdefault(int(match[1]), {})[int(match[2])] = path
    if not layers:
        return _read_ranks(folder)
    ranks = 1 + max(rank for paths in layers.values() for rank in paths)
    missing = [
        f"layer_{layer:02}-model_{rank:02}-model_states.pt is missing"
        for layer, paths in layers.items()
        for rank in range(ranks)
        if rank not in paths
    ]
    raise_all(CheckpointError, missing, str(folder))
    return [
        [_check_tensors(_load(layers[n][rank]), layers[n][rank]) for rank in range(ranks)]
        for n in sorted(layers)
    ]


def _read_ranks(folder: Path) -> list[list[dict[str, Tensor]]]:
    """Read rank files, each of which has all layers; return what _read_layers does."""
    matches = [_RANK_FILE.fullmatch(path.name) for path in folder.glob("mp_rank_*.pt")]
    files = {int(match[1]): folder / match[0] for match in matches if match}
    if not files:
        raise CheckpointError(
            f"{folder} has neither layer files (layer_XX-model_YY-model_states.pt) nor rank "
            "files (mp_rank_YY_model_states.pt); pass the folder of a GPT-NeoX checkpoint, e.g. "
            "global_step143000"
        )
    missing = [
        f"mp_rank_{rank:02}_model_states.pt is missing"
        for rank in range(max(files))
        if rank not in files
    ]
    raise_all(CheckpointError, missing, str(folder))
    ranks: list[dict[int, dict[str, Tensor]]] = []
    for _, path in sorted(files.items()):
        state = _load(path, placeholders=True)
        module = state.get("module") if isinstance(state, dict) else None
        layers: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _check_tensors(module, path).items():
            if not (match := _SEQUENTIAL.fullmatch(key)):
                raise CheckpointError(f"{path} has the tensor {key}, which no GPT-NeoX model has")
            layers.setdefault(int(match[1]), {})[match[2]] = tensor
        ranks.append(layers)
    numbers = sorted({number for layers in ranks for number in layers})
    return [[layers.get(number, {}) for layers in ranks] for number in numbers]


def load(folder: str | Path, config: ModelConfig | None = None) -> GPTNeoX:
    """Load a model, in the stored dtype, from a folder of layer files.

    The default config is that of the official size with the same shapes. Raises a CheckpointError
    if files are missing, damaged or unsafe, or the shapes do not match a config.
    """
    folder = Path(folder)
    merged: dict[str, Tensor] = {}
    problems: list[str] = []
    rotary: set[int] = set()
    number = 0
    for states in _read_layers(folder):
        states = [{_old_name(key): tensor for key, tensor in state.items()} for state in states]
        for key in sorted({key for state in states for key in state}):
            parts = [state[key] for state in states if key in state]
            if key == ROTARY:
                rotary.add(2 * parts[0].numel())
            elif key not in NATIVE:
                problems.append(f"the layer files have a tensor with the unknown name {key}")
            elif len(parts) < len(states):
                problems.append(
                    f"the files of some ranks lack the tensor {NATIVE[key][0].format(number)}"
                )
            else:
                name, merge = NATIVE[key]
                try:
                    tensor = merge(parts)
                except RuntimeError:
                    shapes = [tuple(p.shape) for p in parts]
                    problems.append(
                        f"the parts of {key} cannot be merged, because their shapes on the ranks "
                        f"are {shapes}"
                    )
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
        problems.append(
            f"the layer files have rotary dimensions of {', '.join(map(str, sorted(rotary)))}, but "
            f"the config has {config.rotary_dims}"
        )
    raise_all(CheckpointError, sorted(problems), f"{folder} does not match the config")
    model.load_state_dict(merged, assign=True)
    return model.eval().requires_grad_(False)


def _old_name(key: str) -> str:
    """Return the name that a tensor had before GPT-NeoX renamed it."""
    for new, old in RENAMED.items():
        if key.startswith(new):
            return old + key.removeprefix(new)
    return key


def _official_config(folder: Path, merged: dict[str, Tensor], n_layers: int) -> ModelConfig:
    """Return the config of the official size with these shapes; else raise a CheckpointError.

    Shapes do not determine the number of heads, so no other config can be inferred.
    """
    vocab, width = merged["embed_in.weight"].shape if "embed_in.weight" in merged else (0, 0)
    for size in OFFICIAL_SIZES.values():
        if (size.n_layers, size.d_model, size.vocab_size) == (n_layers, width, vocab):
            return size.model()
    raise CheckpointError(
        f"the model in {folder} has {n_layers} layers, width {width} and a vocabulary of {vocab}, "
        "which is not an official size. The files do not state the number of heads, so pass the "
        "config of the model or its size (--size)"
    )
