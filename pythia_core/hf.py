"""Models as folders in the format of `transformers`' GPT-NeoX: config.json and safetensors.

A folder is checked as a whole before anything is read, and everything wrong with it is reported at
once. Pickled weights are refused. A round trip in fp32 is exact.

Two things of the released models are not what their config.json makes of them. It declares the
exact GELU, while training used the tanh form: `gelu="as_trained"`, the default here, is the model
that was trained; "as_declared" the one `transformers` evaluates. And GPT-NeoX of that time computed
rotary phases in the training precision (EleutherAI/gpt-neox#1003), in fp16 off by 0.1 to 0.8 radian
at late positions, more for larger heads: `rotary="as_trained"` does the same. That the released
runs did follows from the code and was not measured, so the default is "fp32", as in `transformers`.

Tensors have the same layout on both sides, QKV per head included, so that nothing is permuted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pythia_core.config import INITS, ModelConfig
from pythia_core.data.tokenizer import EOD, id_limit, load_tokenizer
from pythia_core.errors import CheckpointError, ConfigError, one_of, raise_all
from pythia_core.model import GPTNeoX, Rotary
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.checkpoint import sha256_tensors
from pythia_core.util.files import atomic_dir

if TYPE_CHECKING:
    from tokenizers import Tokenizer


CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.(json|safetensors)")
"""Names of files that may be fetched: no folders, nothing executable."""
ROTARY_CHOICES = ("fp32", "as_trained")
GELU_CHOICES = ("as_trained", "as_declared")
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
    """The step in the name of the revision or folder."""
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
    find: Callable[[str | Path, str], ModelFolder] | None = None,
) -> tuple[GPTNeoX, Loaded]:
    """A model from a folder in the format of `transformers`, ready to evaluate.

    Args:
        source: a folder with config.json and safetensors, or one with a subfolder per revision.
        revision: e.g. "step3000".
        find: (source, revision) -> folder, for sources of another kind; default: locate_folder.
        dtype: of the parameters; None keeps the stored one. A model in half precision can be
            saved again and hashed; the forward pass needs fp32.
        gelu, rotary: see the module's docstring.

    Raises:
        CheckpointError: not such a model, or damaged; every problem is listed.
        FetchError: `find` cannot fetch it.
    """
    if rotary not in ROTARY_CHOICES:
        raise ConfigError(one_of(rotary, ROTARY_CHOICES, "rotary"))
    found = (find or locate_folder)(source, revision)
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


# --- names -----------------------------------------------------------------------------------

PARTS = (
    "input_layernorm",
    "post_attention_layernorm",
    "attention.query_key_value",
    "attention.dense",
    "mlp.dense_h_to_4h",
    "mlp.dense_4h_to_h",
)
"""Modules of a layer with a weight and a bias: named alike here, in transformers and GPT-NeoX."""
LAYER_NAMES = tuple(f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias"))
WEIGHT_MAP: dict[str, str | None] = {
    "gpt_neox.embed_in.weight": "embed_in.weight",
    **{f"gpt_neox.layers.{{}}.{name}": f"layers.{{}}.{name}" for name in LAYER_NAMES},
    "gpt_neox.layers.{}.attention.bias": None,  # the causal mask, stored by old versions
    "gpt_neox.layers.{}.attention.masked_bias": None,
    "gpt_neox.layers.{}.attention.rotary_emb.inv_freq": None,
    "gpt_neox.final_layer_norm.weight": "final_layer_norm.weight",
    "gpt_neox.final_layer_norm.bias": "final_layer_norm.bias",
    "lm_head.weight": "embed_out.weight",  # its name in memory since transformers 5.13
    "embed_out.weight": "embed_out.weight",  # its name in files
}
"""transformers' name -> ours, `{}` for the layer; None: computed from the config, not read."""
_INVERSE = {ours: theirs for theirs, ours in WEIGHT_MAP.items() if ours}
_LAYER = re.compile(r"(?<=\blayers\.)\d+")


def our_name(theirs: str) -> str | None:
    """Our name of a tensor of GPTNeoXForCausalLM; None for one that is computed.

    Raises:
        KeyError: not a tensor of that model.
    """
    layer = _LAYER.search(theirs)
    name = WEIGHT_MAP[_LAYER.sub("{}", theirs)]
    return name.format(layer[0]) if name and layer else name


def from_hf_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A GPTNeoXForCausalLM state dict under our names.

    Raises:
        CheckpointError: keys that are not GPT-NeoX's.
    """
    ours, unknown = {}, []
    for theirs, tensor in state.items():
        try:
            name = our_name(theirs)
        except KeyError:
            unknown.append(theirs)
            continue
        if name:
            ours[name] = tensor
    if unknown or "embed_out.weight" not in ours:
        raise CheckpointError(
            f"not a GPT-NeoX language model: unknown keys {unknown[:5]}, unembedding "
            f"{'found' if 'embed_out.weight' in ours else 'missing'}"
        )
    return ours


def to_hf_state(state: Mapping[str, Tensor], head_name: str = "lm_head.weight") -> dict[str, Any]:
    """Our state dict under `transformers` names."""

    def theirs(name: str) -> str:
        layer = _LAYER.search(name)
        pattern = _INVERSE[_LAYER.sub("{}", name)]
        return pattern.format(layer[0]) if layer else pattern

    return {
        head_name if name == "embed_out.weight" else theirs(name): tensor
        for name, tensor in state.items()
    }


# --- configs ---------------------------------------------------------------------------------

GELU_FORMS = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""transformers' `hidden_act` -> ModelConfig.gelu."""


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments of `transformers.GPTNeoXConfig` for the same architecture."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "hidden_act": "gelu_new" if config.gelu == "tanh" else "gelu",
        "rotary_pct": config.rotary_fraction,
        "rotary_emb_base": config.rotary_base,
        "max_position_embeddings": config.max_seq_len,
        "layer_norm_eps": config.layer_norm_eps,
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def model_config(declared: dict[str, Any], gelu: str = "as_trained") -> ModelConfig:
    """The architecture that a config.json declares.

    Args:
        gelu: "as_trained": the tanh form where the config says "gelu", unless we wrote it and say
            otherwise; or "as_declared".

    Raises:
        CheckpointError: another architecture, or a setting that our model does not have.
        ConfigError: an unknown value of `gelu`.
    """
    if gelu not in GELU_CHOICES:
        raise ConfigError(one_of(gelu, GELU_CHOICES, "gelu"))
    kind = declared.get("model_type")
    if kind != "gpt_neox" or "GPTNeoXForCausalLM" not in declared.get("architectures", ()):
        raise CheckpointError(
            f"this is a {kind!r} with architectures {declared.get('architectures')}, accepted is "
            "'gpt_neox' with GPTNeoXForCausalLM: only models of Pythia's architecture can be read"
        )
    rope = declared.get("rope_parameters") or {}
    problems = [
        f"{key}={declared[key]!r}, accepted: {only!r}"
        for key, only in {
            "attention_bias": True,
            "tie_word_embeddings": False,
            "rope_scaling": None,
            "intermediate_size": 4 * (declared.get("hidden_size") or 0),
        }.items()
        if declared.get(key, only) != only
    ]
    if rope.get("rope_type", "default") != "default":
        problems.append(f"rope_type={rope['rope_type']!r}, accepted: 'default'")
    act = declared.get("hidden_act", "gelu")
    if act not in GELU_FORMS:
        problems.append(one_of(act, GELU_FORMS, "hidden_act"))
    shape = {
        ours: declared.get(theirs)
        for ours, theirs in {
            "n_layers": "num_hidden_layers",
            "d_model": "hidden_size",
            "n_heads": "num_attention_heads",
            "vocab_size": "vocab_size",
            "max_seq_len": "max_position_embeddings",
        }.items()
    }
    problems += [f"no whole number {n} (got {v!r})" for n, v in shape.items() if type(v) is not int]
    raise_all(CheckpointError, problems, CONFIG)
    form = GELU_FORMS[act]
    if form == "erf" and gelu == "as_trained":
        form = declared.get("trained_gelu", "tanh")
    twin = [s for s in OFFICIAL_SIZES.values() if (s.n_layers, s.d_model, s.n_heads) ==
            (shape["n_layers"], shape["d_model"], shape["n_heads"])]  # fmt: skip
    init = declared.get("trained_init", twin[0].init if twin else INITS[0])
    try:
        return ModelConfig(
            **shape,
            rotary_fraction=rope.get("partial_rotary_factor", declared.get("rotary_pct", 0.25)),
            rotary_base=rope.get("rope_theta", declared.get("rotary_emb_base", 10_000.0)),
            parallel_residual=declared.get("use_parallel_residual", True),
            layer_norm_eps=declared.get("layer_norm_eps", 1e-5),
            gelu=form,
            init=init,
        )
    except ConfigError as error:
        raise CheckpointError(f"{CONFIG}: {error}") from error


def declared_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What config.json says of a model: hf_config, and what only training knew."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        **hf_config(config),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "trained_gelu": config.gelu,
        "trained_init": config.init,
    }


# --- folders ---------------------------------------------------------------------------------

_STEP = re.compile(r"step-?(\d+)")
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\n")


def step_of(name: str) -> int | None:
    """The step that a revision or folder is named after: "step3000", "step-003000"."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def lfs_pointer(path: Path) -> str | None:
    """The sha256 that a git-lfs pointer stands for; None if the file is not one."""
    with open(path, "rb") as file:
        match = _POINTER.match(file.read(200))
    return match[1].decode() if match else None


def refuse_pickle(where: str, names: Iterable[str]) -> None:
    """Explain that a model has no safetensors.

    Raises:
        CheckpointError: always.
    """
    pickled = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not pickled:
        raise CheckpointError(f"{where} has no {WEIGHTS} and no {INDEX}: no weights to read")
    raise CheckpointError(
        f"{where} has its weights as pickles only ({', '.join(pickled[:3])}), which can run code "
        "when they are opened and are not read here. Convert a copy once, in a folder you can "
        'lose:\n  python -c "from transformers import AutoModelForCausalLM as M; '
        "M.from_pretrained('SOURCE', revision='REVISION', dtype='auto')"
        ".save_pretrained('FOLDER')\"\nand give FOLDER; transformers opens pickles with "
        "weights_only=True and writes safetensors."
    )


@dataclass(frozen=True)
class ModelFolder:
    """A folder that holds a published model."""

    folder: Path
    commit: str = ""
    """Of the hub's repository; empty for a folder of yours."""


def locate_folder(source: str | Path, revision: str = "main") -> ModelFolder:
    """A model's folder: the one named, or its subfolder named after the revision.

    Raises:
        CheckpointError: no folder, or none with that revision.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{source} is not a folder")
    if (folder / revision / CONFIG).is_file():
        return ModelFolder(folder / revision)
    if (folder / CONFIG).is_file() and revision in ("main", folder.resolve().name):
        return ModelFolder(folder)
    there = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG}"))
    raise CheckpointError(
        f"{folder} has no {CONFIG} for revision {revision!r}; "
        + (f"revisions there: {', '.join(there[:8])}" if there else "it is no model's folder")
    )
