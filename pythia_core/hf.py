"""Weights in and out of `transformers`' GPT-NeoX: folders of config.json and safetensors.

A folder is checked as a whole before anything is read, and all that is wrong with it is told at
once. Pickled weights are refused. A round trip in fp32 is exact.

Two things of the released models are not what their config.json makes of them. It declares the
exact GELU, while training used the tanh form: `gelu="as_trained"`, the default here, is the model
that was trained; "as_declared" the one `transformers` evaluates. And GPT-NeoX of that time computed
rotary phases in the training precision (EleutherAI/gpt-neox#1003), in fp16 off by 0.1 to 0.8 radian
at late positions, more for larger heads: `rotary="as_trained"` does the same. That the released
runs did follows from the code and was not measured, so the default is "fp32", as in `transformers`.

Not here: names and configs (hf_names), files on the hub (hub), DeepSpeed files (neox_native).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pythia_core.checkpoint import sha256_tensors
from pythia_core.errors import CheckpointError, ConfigError, one_of, raise_all
from pythia_core.hf_names import (
    declared_config,
    from_hf_state,
    hf_config,
    model_config,
    our_name,
    to_hf_state,
)
from pythia_core.hub import (
    CONFIG,
    INDEX,
    PLAIN_NAME,
    TOKENIZER,
    WEIGHTS,
    lfs_pointer,
    locate,
    refuse_pickle,
    step_of,
)
from pythia_core.model import GPTNeoX, Rotary
from pythia_core.paths import atomic_dir
from pythia_core.tokenizer import EOD, id_limit, load_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Loaded", "Weights", "from_hf_state", "hf_config", "load", "save", "to_hf_state"]

ROTARY_CHOICES = ("fp32", "as_trained")
SHARD_BYTES = 5 * 10**9


# --- reading ---------------------------------------------------------------------------------


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files under our names, each read when asked for.

    What is wrong with the files is in `problems`, a sentence each; `shards` maps each of our names
    to its file, `ignored` names what was found and is not read.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.shards: dict[str, str] = {}
        self.ignored: list[str] = []
        self._theirs: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        listed = self._listed(folder)
        for file in sorted(set(listed.values())) if listed else [WEIGHTS]:
            if self._opened(folder / file):
                keys = list(self._open[file].keys())
                for theirs in keys:
                    self._take(theirs, file)
                lost = [k for k, where in listed.items() if where == file and k not in keys]
                self.problems += [f"{file} lacks {key}, which {INDEX} places there" for key in lost]

    def _listed(self, folder: Path) -> dict[str, str]:
        """Tensor -> shard by the index; empty for a single file."""
        if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
            if not (folder / WEIGHTS).exists():
                refuse_pickle(str(folder), [p.name for p in folder.iterdir()])
            return {}
        try:
            listed = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / INDEX} is damaged: {error!r}") from error
        odd = sorted({f for f in listed.values() if not PLAIN_NAME.fullmatch(str(f))})
        if odd or not listed:
            raise CheckpointError(f"{folder / INDEX} names no files of this folder: {odd[:3]}")
        return listed

    def _opened(self, path: Path) -> bool:
        if not path.is_file():
            self.problems.append(f"{path.name} is missing")
        elif lfs_pointer(path):
            self.problems.append(f"{path.name} is a git-lfs pointer; fetch it with git lfs pull")
        else:
            try:
                self._open[path.name] = safe_open(path, "pt")
                return True
            except (SafetensorError, OSError) as error:
                self.problems.append(
                    f"{path.name} ({path.stat().st_size:,} bytes) is truncated or damaged: {error}"
                )
        return False

    def _take(self, theirs: str, file: str) -> None:
        try:
            name = our_name(theirs)
        except KeyError:
            self.problems.append(f"{file}: unknown key {theirs}")
            return
        if name is None:
            self.ignored.append(theirs)
        elif name in self.shards:
            self.problems.append(f"{theirs} is in {self.shards[name]} and again in {file}")
        else:
            self.shards[name], self._theirs[name] = file, theirs

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and stored dtype ("F16", "BF16", "F32", …), without reading the tensor."""
        part = self._open[self.shards[name]].get_slice(self._theirs[name])
        return tuple(part.get_shape()), part.get_dtype()

    def __getitem__(self, name: str) -> Tensor:
        return self._open[self.shards[name]].get_tensor(self._theirs[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards)

    def __len__(self) -> int:
        return len(self.shards)

    def misfits(self, shapes: dict[str, tuple[int, ...]]) -> list[str]:
        """How the tensors differ from what a model needs."""
        found = [f"{name} is missing" for name in shapes if name not in self.shards]
        for name in self.shards:
            shape, dtype = self.header(name)
            if name not in shapes:
                found.append(f"{name} belongs to no layer of the model that {CONFIG} declares")
            elif shape != shapes[name]:
                found.append(f"{name} has shape {shape}, the config needs {shapes[name]}")
            elif dtype not in ("F16", "BF16", "F32", "F64"):
                found.append(f"{name} is stored as {dtype}, accepted: F16, BF16, F32, F64")
        return found


class AsTrainedRotary(GPTNeoX):
    """A model whose rotary tables are computed in fp16 throughout, as GPT-NeoX v1.0 did in fp16."""

    def rotary(self, seq_len: int, device: torch.device) -> Rotary:
        dims = self.config.rotary_dims
        powers = torch.arange(0, dims, 2, device=device).float() / dims
        frequencies = (1.0 / self.config.rotary_base**powers).half()
        phases = torch.arange(seq_len, device=device).half()[:, None] * frequencies
        return phases.cos().float(), phases.sin().float()


@dataclass(frozen=True)
class Loaded:
    """Where a model came from."""

    source: str
    revision: str
    commit: str
    """Of the hub's repository; empty for a folder."""
    folder: Path
    step: int | None
    """The step that the revision's or the folder's name tells."""
    stored: tuple[str, ...]
    """Dtypes in the files."""
    declared: dict[str, Any]
    """config.json."""

    def sha256(self) -> str:
        """Hash of the tensors as stored, under our names: `checkpoint.sha256_tensors`."""
        return sha256_tensors(Weights(self.folder))


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        CheckpointError: absent or damaged.
    """
    try:
        declared = json.loads((folder / CONFIG).read_text())
        if not isinstance(declared, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {error}") from error
    return declared


def load(
    source: str | Path,
    revision: str = "main",
    *,
    dtype: torch.dtype | None = torch.float32,
    gelu: str = "as_trained",
    rotary: str = "fp32",
) -> tuple[GPTNeoX, Loaded]:
    """A published model, ready to evaluate.

    Args:
        source: a folder with config.json and safetensors, one with a subfolder per revision, or the
            name of a repository on the hub, e.g. "EleutherAI/pythia-70m".
        revision: e.g. "step3000".
        dtype: of the parameters; None keeps the stored one. A model in half precision can be
            saved again and hashed; the forward pass needs fp32.
        gelu, rotary: see the module's docstring.

    Raises:
        CheckpointError: not such a model, or damaged; every problem is listed.
        FetchError: see pythia_core.hub.
    """
    if rotary not in ROTARY_CHOICES:
        raise ConfigError(one_of(rotary, ROTARY_CHOICES, "rotary"))
    found = locate(source, revision)
    declared = read_config(found.folder)
    config = model_config(declared, gelu)
    with torch.device("meta"):
        model = (GPTNeoX if rotary == "fp32" else AsTrainedRotary)(config)
    weights = Weights(found.folder)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    problems = weights.problems or weights.misfits(shapes)
    if (found.folder / TOKENIZER).is_file():
        ids = id_limit(load_tokenizer(found.folder / TOKENIZER))
        if ids > config.vocab_size:
            problems.append(f"{TOKENIZER} has ids to {ids - 1}, vocab_size is {config.vocab_size}")
    raise_all(CheckpointError, problems, f"{source} ({revision})")
    state = {name: weights[name].to(dtype, copy=True) for name in shapes}
    model.load_state_dict(state, assign=True)
    stored = tuple(sorted({weights.header(name)[1] for name in weights}))
    step = step_of(revision) if step_of(revision) is not None else step_of(found.folder.name)
    info = Loaded(str(source), revision, found.commit, found.folder, step, stored, declared)
    return model.eval().requires_grad_(False), info


# --- writing ---------------------------------------------------------------------------------


def save(
    model: GPTNeoX,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads.

    Args:
        dtype: of the stored tensors; None: as they are.
        shard_bytes: more than this goes into several files and an index.

    Raises:
        CheckpointError: the folder exists, or a weight does not fit the dtype.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(f"{folder} exists; name a new folder, or delete that one")
    state = to_hf_state(model.state_dict(), "embed_out.weight")
    shards = _shards(state, dtype, shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [
        f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)
    ]  # fmt: skip
    with atomic_dir(folder) as place:
        for name, keys in zip(names, shards, strict=True):
            tensors = {key: cast(key, state[key], dtype) for key in keys}
            save_file(tensors, place / name, {"format": "pt"})
            (place / name).chmod(0o644)  # the library makes private files
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(_bytes(t, dtype) for t in state.values())},
                "weight_map": {k: n for n, ks in zip(names, shards, strict=True) for k in ks},
            }
            _write(place / INDEX, index)
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        if tokenizer is not None:
            ends = dict.fromkeys(ends, tokenizer.token_to_id(EOD))
            tokenizer.save(str(place / TOKENIZER))
            words = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOD,
                     "bos_token": EOD, "model_max_length": model.config.max_seq_len}  # fmt: skip
            _write(place / "tokenizer_config.json", words)
        _write(place / "generation_config.json", {"_from_model_config": True, **ends})
        _write(place / CONFIG, {**declared_config(model.config, dtype or _dtype(state)), **ends})
    return folder


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor ready to be stored; None keeps its dtype.

    Raises:
        CheckpointError: it has values that the dtype cannot hold.
    """
    stored = tensor.detach().to("cpu", dtype).contiguous()
    if not stored.isfinite().equal(tensor.isfinite().cpu()):
        raise CheckpointError(f"{name} has values beyond the range of {dtype}; use fp32")
    return stored


def _dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(state.values())).dtype


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _shards(state: Mapping[str, Tensor], dtype: torch.dtype | None, most: int) -> list[list[str]]:
    """Names in order, in groups of at most so many bytes; a larger tensor is alone."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + _bytes(tensor, dtype) > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(tensor, dtype)
    return shards


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
