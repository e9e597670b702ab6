"""Read and write models as `transformers` folders for GPT-NeoX: config.json and safetensors.

A checkpoint with weights only, in the format of this library, is read too: its manifest replaces
config.json. Pickled weights are rejected. A model that is saved and loaded in fp32 is unchanged.
`save` puts hashes into the metadata of the weights. The hashes are checked whenever the folder
is read; a folder written by another tool has none.

The released models were trained differently from what their config.json declares, in two ways:

- GELU. Training used the tanh form; config.json declares the exact form, which `transformers` uses.
  `gelu="as_trained"` (default) gives models of the official sizes the tanh form, and others what
  their config.json declares; `gelu="as_declared"` always gives the declared form.
- Rotary phases. GPT-NeoX computes them in the precision of training (EleutherAI/gpt-neox#1003). In
  fp16, phases at late positions are wrong by 0.1 to 0.8 radian, more in larger heads.
  `rotary="as_trained"` reproduces the error. The default is `rotary="fp32"`, because the error in
  the released runs is inferred from the code, not measured.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from pythia_core.suite import OFFICIAL_SIZES, size_of
from pythia_core.training.checkpoint import MANIFEST, read_manifest, sha256_tensors
from pythia_core.util.files import atomic_dir, file_sha256, json_object, save_safetensors

if TYPE_CHECKING:
    from tokenizers import Tokenizer


CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SETTINGS = (CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""The JSON files with the settings of a model and its tokenizer."""
WEIGHTS_ONLY = "weights only"
"""The value of "kind" in the manifest of a checkpoint without the state of the optimizer."""
TRAINED_STEP = "trained_step"
"""The key of config.json, unknown to transformers, for the step at which a model was saved."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.(json|safetensors)")
"""Matches the file names that may be fetched: .json or .safetensors, without a folder."""
ROTARY_CHOICES = ("fp32", "as_trained")
GELU_CHOICES = ("as_trained", "as_declared")
SHARD_BYTES = 5 * 10**9
HASH = "sha256 of "
"""Begins the keys of hashes in the metadata of safetensors files; a file's name or TENSORS follows.
Other tools ignore the keys, and leave them out when they save the model again."""
TENSORS = "tensors"


# --- reading ---------------------------------------------------------------------------------


class Weights(Mapping[str, Tensor]):
    """Maps our names for tensors to the tensors in a folder's safetensors files.

    A tensor is read when it is accessed. Stored tensors that the model computes from its config are
    left out. The hashes of a checkpoint, and of a folder that `save` wrote, are checked first.

    Attributes:
        problems: a sentence for each file or tensor that is missing, damaged or not expected.
        shards: maps our name for each tensor to its file.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.shards: dict[str, str] = {}
        self._stored_names: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        if is_checkpoint(folder):
            self.problems += [
                f"{name} does not have the sha256 in {MANIFEST}; convert the model again"
                for name, entry in read_manifest(folder)["files"].items()
                if file_sha256(folder / name) != entry["sha256"]
            ]
        index = self._read_index(folder)
        for file in sorted(set(index.values())) if index else [WEIGHTS]:
            if self._open_shard(folder / file):
                keys = list(self._open[file].keys())
                for key in keys:
                    self._add(key, file)
                absent = [k for k, shard in index.items() if shard == file and k not in keys]
                self.problems += [
                    f"{file} lacks the tensor {key}, which {INDEX} lists" for key in absent
                ]
        self._check_hashes(folder)

    def _read_index(self, folder: Path) -> dict[str, str]:
        """Map the stored names of tensors to file names; {} if all weights are in one file."""
        if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
            if not (folder / WEIGHTS).exists():
                refuse_pickle(str(folder), [p.name for p in folder.iterdir()])
            return {}
        try:
            index = dict(json_object((folder / INDEX).read_bytes())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder / INDEX} is damaged ({error!r}); get the file again from its source"
            ) from error
        invalid = sorted({f for f in index.values() if not PLAIN_NAME.fullmatch(str(f))})
        if invalid or not index:
            raise CheckpointError(
                f"{folder / INDEX} must list files in its own folder, but it lists "
                f"{invalid[:3] or 'no file'}; get the file again from its source"
            )
        return index

    def _open_shard(self, path: Path) -> bool:
        """Open a safetensors file, or add a sentence to `problems` and return False."""
        if not path.is_file():
            self.problems.append(f"{path.name} is missing")
        elif lfs_pointer(path):
            self.problems.append(f"{path.name} is only a git-lfs pointer; run git lfs pull")
        else:
            try:
                self._open[path.name] = safe_open(path, "pt")
                return True
            except (SafetensorError, OSError) as error:
                self.problems.append(
                    f"{path.name} ({path.stat().st_size:,} bytes) is truncated or damaged: {error}"
                )
        return False

    def _add(self, stored_name: str, file: str) -> None:
        """Register a stored tensor under our name, or add a sentence to `problems`."""
        try:
            name = our_name(stored_name)
        except KeyError:
            self.problems.append(f"{file} has a tensor {stored_name}, which no GPT-NeoX model has")
            return
        if name in self.shards:
            self.problems.append(
                f"the tensor {stored_name} is in {self.shards[name]} and again in {file}"
            )
        elif name is not None:
            self.shards[name], self._stored_names[name] = file, stored_name

    def _check_hashes(self, folder: Path) -> None:
        """Add a sentence to `problems` for each file that is not as `save` wrote it."""
        stated: dict[str, tuple[str, str]] = {}
        actual: dict[str, str | None] = {}
        for shard, opened in self._open.items():
            for key, sha256 in (opened.metadata() or {}).items():
                name = key.removeprefix(HASH)
                if key == HASH + TENSORS:
                    tensors = {stored: opened.get_tensor(stored) for stored in opened.keys()}
                    stated[shard], actual[shard] = (sha256, shard), sha256_tensors(tensors)
                elif name != key and PLAIN_NAME.fullmatch(name):
                    path = folder / name
                    stated[name] = sha256, shard
                    actual[name] = file_sha256(path) if path.is_file() else None
        self.problems += [
            f"{name} is missing, or was changed or damaged: it does not have the sha256 in {shard};"
            " convert the model again or, if the change is intended, load and save the folder with "
            "transformers"
            for name, (sha256, shard) in stated.items()
            if sha256 != actual[name]
        ]

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Return the shape and the stored dtype (e.g. "F16") of a tensor, without reading it."""
        part = self._open[self.shards[name]].get_slice(self._stored_names[name])
        return tuple(part.get_shape()), part.get_dtype()

    def __getitem__(self, name: str) -> Tensor:
        return self._open[self.shards[name]].get_tensor(self._stored_names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards)

    def __len__(self) -> int:
        return len(self.shards)

    def mismatches(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Return a sentence for each missing or unneeded tensor, and each wrong shape or dtype."""
        headers = {name: self.header(name) for name in self.shards}
        return mismatches({name: shape for name, (shape, _) in headers.items()}, shapes) + [
            f"the tensor {name} is stored as {dtype}, expected F16, BF16, F32 or F64"
            for name, (_, dtype) in headers.items()
            if dtype not in ("F16", "BF16", "F32", "F64")
        ]


def mismatches(
    stored: Mapping[str, tuple[int, ...]], needed: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return a sentence for each difference between the shapes of stored and needed tensors."""
    problems = [f"the tensor {name} is missing" for name in needed if name not in stored]
    for name, shape in stored.items():
        if name not in needed:
            problems.append(f"the tensor {name} belongs to no layer of the configured model")
        elif shape != needed[name]:
            problems.append(
                f"the tensor {name} has shape {shape}, but the config needs {needed[name]}"
            )
    return problems


class AsTrainedRotary(GPTNeoX):
    """A model whose rotary phases are computed in fp16, as GPT-NeoX v1.0 does in fp16 training."""

    def rotary(self, seq_len: int, device: torch.device) -> Rotary:
        """Return cos and sin, in fp32, of the angles rounded to fp16."""
        dims = self.config.rotary_dims
        powers = torch.arange(0, dims, 2, device=device).float() / dims
        frequencies = (1.0 / self.config.rotary_base**powers).half()
        phases = torch.arange(seq_len, device=device).half()[:, None] * frequencies
        return phases.cos().float(), phases.sin().float()


@dataclass(frozen=True)
class ModelSource:
    """Where a loaded model comes from, and what its files declare."""

    source: str
    revision: str
    commit: str
    """Commit of the hub's repository; empty for a folder."""
    folder: Path
    step: int | None
    """The step in the revision's name or, if it has none, the `stated_step` of the folder."""
    stored: tuple[str, ...]
    """The dtypes of tensors in the files, e.g. ("F16",)."""
    declared: dict[str, Any]
    """The contents of config.json."""

    def sha256(self) -> str:
        """Return a hash of the stored tensors under our names (see `checkpoint.sha256_tensors`)."""
        return sha256_tensors(Weights(self.folder))


def read_config(folder: Path) -> dict[str, Any]:
    """Return the contents of a folder's config.json, or what would be in it for a checkpoint.

    Raises:
        CheckpointError: the file is damaged, or the checkpoint belongs to a run.
    """
    settings = read_settings(folder)
    if CONFIG in settings:
        return settings[CONFIG]
    if is_checkpoint(folder):
        return declared_config(ModelConfig(**read_manifest(folder)["meta"]["model"]))
    raise CheckpointError(f"{folder / CONFIG} cannot be read: there is no such file")


def read_settings(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the contents of those files in SETTINGS that a model has, by name.

    A checkpoint has the settings of the model from which it was converted.

    Raises:
        CheckpointError: a file is damaged, or the checkpoint belongs to a run.
    """
    if is_checkpoint(folder):
        meta = read_manifest(folder)["meta"]
        if meta.get("kind") != WEIGHTS_ONLY:
            raise CheckpointError(
                f"the checkpoint {folder} belongs to a run; pass the folder of the run and --step "
                "instead"
            )
        return meta.get("settings", {})
    return {name: _read_json(folder / name) for name in SETTINGS if (folder / name).is_file()}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raise CheckpointError if that is impossible."""
    try:
        return json_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; copy the file again from its source"
        ) from error


def tokenizer_path(folder: Path) -> Path:
    """Return where a model's tokenizer.json is, if it has one. A model's checkpoints share one."""
    return (folder.parent if is_checkpoint(folder) else folder) / TOKENIZER


def load(
    source: str | Path,
    revision: str = "main",
    *,
    dtype: torch.dtype | None = torch.float32,
    gelu: str = "as_trained",
    rotary: str = "fp32",
    locate: Callable[[str | Path, str], ModelFolder] | None = None,
) -> tuple[GPTNeoX, ModelSource]:
    """Load a model from a folder in the format of `transformers`, ready to evaluate.

    Args:
        source: a folder with config.json and safetensors, or a folder of such folders, one for
            each revision.
        revision: e.g. "step3000".
        locate: finds the folder, given (source, revision); default: `locate_folder`.
        dtype: dtype of the parameters; None: as stored. The forward pass needs fp32.
        gelu: "as_trained" (official sizes have the tanh form) or "as_declared" (all have the form
            in config.json).
        rotary: "fp32", or "as_trained", which rounds rotary phases as training in fp16 did.

    Raises:
        ConfigError: an unknown value of `gelu` or `rotary`.
        CheckpointError: the folder is missing or damaged, or has another kind of model; the message
            lists every problem.
        FetchError: `locate` cannot fetch the model.
    """
    if rotary not in ROTARY_CHOICES:
        raise ConfigError(one_of(rotary, ROTARY_CHOICES, "rotary"))
    located = (locate or locate_folder)(source, revision)
    declared = read_config(located.folder)
    config = model_config(declared, gelu)
    weights = Weights(located.folder)
    if config.n_layers > len(weights) and not weights.problems:  # a model of any size can be built
        weights.problems.append(
            f"{CONFIG} declares {config.n_layers} layers, but there are {len(weights)} tensors"
        )
    raise_all(CheckpointError, weights.problems, f"{source} ({revision})")
    try:
        with torch.device("meta"):
            model = (GPTNeoX if rotary == "fp32" else AsTrainedRotary)(config)
    except RuntimeError as error:
        raise CheckpointError(f"{CONFIG} of {source} declares impossible sizes: {error}") from error
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    problems = weights.mismatches(shapes)
    if (tokenizer := tokenizer_path(located.folder)).is_file():
        ids = id_limit(load_tokenizer(tokenizer))
        if ids > config.vocab_size:
            problems.append(
                f"{TOKENIZER} has ids up to {ids - 1}, but vocab_size in {CONFIG} is only "
                f"{config.vocab_size}"
            )
    raise_all(CheckpointError, problems, f"{source} ({revision})")
    state = {name: weights[name].to(dtype, copy=True) for name in shapes}
    model.load_state_dict(state, assign=True)
    stored = tuple(sorted({weights.header(name)[1] for name in weights}))
    folder = located.folder
    step = step_of(revision) if step_of(revision) is not None else stated_step(folder)
    info = ModelSource(str(source), revision, located.commit, folder, step, stored, declared)
    return model.eval().requires_grad_(False), info


# --- writing ---------------------------------------------------------------------------------


def refuse_existing(folder: Path) -> None:
    """Raise CheckpointError if the folder that `save` is to create exists already."""
    if folder.exists():
        raise CheckpointError(f"{folder} exists; choose a new folder or delete this one")


def save(
    model: GPTNeoX,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, dict[str, Any]] | None = None,
    step: int | None = None,
) -> Path:
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads.

    Args:
        folder: the new folder.
        dtype: dtype of the stored tensors; None: the dtypes in the model.
        shard_bytes: a model with more bytes than this is split into several files.
        tokenizer: a tokenizer to write too; its end-of-document token becomes BOS and EOS.
        settings: what `read_settings` returns for the model's source, written unchanged except for
            the dtype; None: settings that follow from the model and the tokenizer.
        step: the step of training, if known; config.json states it as TRAINED_STEP.

    Raises:
        CheckpointError: the folder exists, or a weight exceeds the range of `dtype`.
    """
    folder = Path(folder)
    refuse_existing(folder)
    state = to_hf_state(model.state_dict(), "embed_out.weight")
    shards = _shards(state, dtype, shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [
        f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)
    ]  # fmt: skip
    with atomic_dir(folder) as target:
        stored = str(dtype or _dtype(state)).removeprefix("torch.")
        for name, value in (settings or _settings(model.config, stored, tokenizer)).items():
            if name == CONFIG:
                value = {**value, **{k: stored for k in ("dtype", "torch_dtype") if k in value}}
                value |= {} if step is None else {TRAINED_STEP: step}
            _write(target / name, value)
        if tokenizer is not None:
            tokenizer.save(str(target / TOKENIZER))
        if len(shards) > 1:
            index = {
                "metadata": {"total_size": sum(_bytes(t, dtype) for t in state.values())},
                "weight_map": {k: n for n, ks in zip(names, shards, strict=True) for k in ks},
            }
            _write(target / INDEX, index)
        hashes = {HASH + path.name: file_sha256(path) for path in sorted(target.iterdir())}
        for name, keys in zip(names, shards, strict=True):
            tensors = {key: cast(key, state[key], dtype) for key in keys}
            metadata = {"format": "pt", HASH + TENSORS: sha256_tensors(tensors), **hashes}
            save_safetensors(save_file, tensors, target / name, metadata)
            _sort_metadata(target / name)
            (target / name).chmod(0o644)  # the library creates private files
    return folder


def _settings(
    config: ModelConfig, dtype: str, tokenizer: Tokenizer | None
) -> dict[str, dict[str, Any]]:
    """Return the contents of the files in SETTINGS for a model whose dtype is, e.g., "float32"."""
    eod_id = 0 if tokenizer is None else tokenizer.token_to_id(EOD)
    special_ids = {"bos_token_id": eod_id, "eos_token_id": eod_id}
    settings: dict[str, dict[str, Any]] = {
        CONFIG: {**declared_config(config), "torch_dtype": dtype, **special_ids},
        "generation_config.json": {"_from_model_config": True, **special_ids},
    }
    if tokenizer is not None:
        settings["tokenizer_config.json"] = {
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOD, "bos_token": EOD,
            "model_max_length": config.max_seq_len,
        }  # fmt: skip
    return settings


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor in `dtype` (None: keep its dtype), on the CPU and contiguous.

    Raises:
        CheckpointError: some values of the tensor called `name` exceed the range of `dtype`.
    """
    stored = tensor.detach().to("cpu", dtype).contiguous()
    if not stored.isfinite().equal(tensor.isfinite().cpu()):
        raise CheckpointError(
            f"the tensor {name} has values beyond the range of {dtype}; save the model in fp32"
        )
    return stored


def _dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """Return the dtype of the first tensor."""
    return next(iter(state.values())).dtype


def _bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    """Return how many bytes a tensor takes in `dtype` (None: in its own dtype)."""
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _shards(state: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int) -> list[list[str]]:
    """Split the names, in order, into groups of at most `limit` bytes or one tensor."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in state.items():
        if shards[-1] and size + _bytes(tensor, dtype) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _bytes(tensor, dtype)
    return shards


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which the library writes in a random order."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
        file.seek(8)
        file.write(text.encode().ljust(length))


def _write(path: Path, value: dict[str, Any]) -> None:
    """Write a dict as a JSON file."""
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
"""The modules of a layer, named as in transformers and GPT-NeoX. Each has a weight and a bias."""
LAYER_NAMES = tuple(f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias"))
_OURS = (
    "embed_in.weight",
    *(f"layers.{{}}.{name}" for name in LAYER_NAMES),
    "final_layer_norm.weight",
    "final_layer_norm.bias",
)
WEIGHT_MAP: dict[str, str | None] = {
    **{name: name for name in _OURS},  # checkpoints of this library, and GPTNeoXModel
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
"""Maps transformers' names for tensors to ours, with `{}` for the number of the layer; to None if
the model computes the tensor from its config."""
_INVERSE = {ours: name for name, ours in WEIGHT_MAP.items() if ours}
_LAYER = re.compile(r"(?<=\blayers\.)\d+")


def our_name(hf_name: str) -> str | None:
    """Return our name for a tensor of GPTNeoXForCausalLM, or None if our model computes it.

    Raises:
        KeyError: GPTNeoXForCausalLM has no tensor of this name.
    """
    return _rename(hf_name, WEIGHT_MAP)


def to_hf_state(state: Mapping[str, Tensor], head_name: str = "lm_head.weight") -> dict[str, Any]:
    """Rename the tensors of our state dict as in `transformers`.

    Args:
        head_name: name of the unembedding: "lm_head.weight" in memory, "embed_out.weight" in files.
    """
    return {
        head_name if name == "embed_out.weight" else str(_rename(name, _INVERSE)): tensor
        for name, tensor in state.items()
    }


def _rename(name: str, names: Mapping[str, str | None]) -> str | None:
    """Look up the new name of a tensor. `names` has {} in place of the number of the layer."""
    layer = _LAYER.search(name)
    pattern = names[_LAYER.sub("{}", name)]
    return pattern.format(layer[0]) if pattern and layer else pattern


# --- configs ---------------------------------------------------------------------------------

GELU_FORMS = {
    "gelu": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
"""Maps transformers' `hidden_act` to ModelConfig.gelu."""


def hf_config(config: ModelConfig) -> dict[str, Any]:
    """Return the keyword arguments of `transformers.GPTNeoXConfig` for our ModelConfig."""
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


_FIELDS: dict[str, tuple[str, str, Any]] = {
    "n_layers": ("num_hidden_layers", "an integer", None),
    "d_model": ("hidden_size", "an integer", None),
    "n_heads": ("num_attention_heads", "an integer", None),
    "vocab_size": ("vocab_size", "an integer", None),
    "max_seq_len": ("max_position_embeddings", "an integer", None),
    "rotary_fraction": ("rotary_pct", "a number", 0.25),
    "rotary_base": ("rotary_emb_base", "a number", 10_000.0),
    "parallel_residual": ("use_parallel_residual", "true or false", True),
    "layer_norm_eps": ("layer_norm_eps", "a number", 1e-5),
}
"""Maps fields of ModelConfig to the key in config.json, the type and the default."""
_TYPES = {"an integer": (int,), "a number": (int, float), "true or false": (bool,)}


def model_config(declared: dict[str, Any], gelu: str = "as_trained") -> ModelConfig:
    """Return the ModelConfig for the contents of a config.json, in which null means the default.

    Args:
        gelu: "as_declared": the form in "hidden_act". "as_trained": if "hidden_act" names the exact
            form, the form in "trained_gelu" (which `save` writes) or, without this entry, the tanh
            form for models of an official size.

    Raises:
        CheckpointError: config.json declares another architecture or an unsupported setting.
        ConfigError: an unknown value of `gelu`.
    """
    if gelu not in GELU_CHOICES:
        raise ConfigError(one_of(gelu, GELU_CHOICES, "gelu"))
    given = _without_null(declared)
    kind, names = given.get("model_type"), given.get("architectures")
    if kind != "gpt_neox" or not isinstance(names, list) or "GPTNeoXForCausalLM" not in names:
        raise CheckpointError(
            f"{CONFIG} declares model_type {kind!r} and architectures {names}; only models of "
            "Pythia's architecture can be read: model_type 'gpt_neox' and architectures "
            "['GPTNeoXForCausalLM']"
        )
    rope = given.get("rope_parameters", {})
    problems = [] if isinstance(rope, dict) else [f"rope_parameters={rope!r}, expected an object"]
    rope = _without_null(rope) if isinstance(rope, dict) else {}
    for key, ours in (("partial_rotary_factor", "rotary_pct"), ("rope_theta", "rotary_emb_base")):
        if key in rope:
            given[ours] = rope[key]
    fields = {name: given.get(key, default) for name, (key, _, default) in _FIELDS.items()}
    problems += [
        f"{key} must be {words}, got {fields[name]!r}"
        for name, (key, words, _) in _FIELDS.items()
        if type(fields[name]) not in _TYPES[words] or not math.isfinite(fields[name])
    ]
    expected = {"attention_bias": True, "tie_word_embeddings": False, "rope_scaling": None}
    if not problems:
        expected["intermediate_size"] = 4 * fields["d_model"]
    problems += [
        f"{key}={given[key]!r}, expected {accepted!r}"
        for key, accepted in expected.items()
        if given.get(key, accepted) != accepted
    ]
    if rope.get("rope_type", "default") != "default":
        problems.append(f"rope_type={rope['rope_type']!r}, expected 'default'")
    act = given.get("hidden_act", "gelu")
    if not isinstance(act, str) or act not in GELU_FORMS:
        problems.append(one_of(act, GELU_FORMS, "hidden_act"))
    raise_all(CheckpointError, problems, CONFIG)
    try:
        config = ModelConfig(**fields, gelu=GELU_FORMS[act])
        official = size_of(config, OFFICIAL_SIZES)
        init = given.get("trained_init", official.init if official else INITS[0])
        config = replace(config, init=init)
        if config.gelu == "erf" and gelu == "as_trained":
            pythia = official is not None and config == official.model(gelu="erf", init=init)
            config = replace(config, gelu=given.get("trained_gelu", "tanh" if pythia else "erf"))
        return config
    except ConfigError as error:
        raise CheckpointError(f"{CONFIG}: {error}") from error


def _without_null(values: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that are not null; null means the default."""
    return {key: value for key, value in values.items() if value is not None}


def declared_config(config: ModelConfig) -> dict[str, Any]:
    """Return the contents of config.json for a model, without the dtype."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        **hf_config(config),
        "use_cache": True,
        "trained_gelu": config.gelu,
        "trained_init": config.init,
    }


# --- folders ---------------------------------------------------------------------------------

_STEP = re.compile(r"step-?(\d+)")
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\n")


def step_of(name: str) -> int | None:
    """Return the step in a name like "step3000" or "step-003000"; None for other names."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def stated_step(folder: Path) -> int | None:
    """Return the step that the manifest, the config.json or the name of a model's folder states.

    Raises:
        CheckpointError: the manifest or config.json is damaged.
    """
    if is_checkpoint(folder):
        return read_manifest(folder)["step"]
    step = read_config(folder).get(TRAINED_STEP)
    return step if type(step) is int else step_of(folder.resolve().name)


def lfs_pointer(path: Path) -> str | None:
    """Return the sha256 in a git-lfs pointer; None for any other file."""
    with open(path, "rb") as file:
        match = _POINTER.match(file.read(200))
    return match[1].decode() if match else None


def refuse_pickle(where: str, names: Iterable[str]) -> None:
    """Raise the CheckpointError for a folder or repository that lacks safetensors."""
    pickled = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if not pickled:
        raise CheckpointError(
            f"{where} has no {WEIGHTS} and no {INDEX}, so there are no weights to read"
        )
    raise CheckpointError(
        f"{where} has only pickled weights ({', '.join(pickled[:3])}), which can run code "
        "when opened, so they are not read here. Convert the weights once, with your SOURCE, "
        "REVISION and new FOLDER:"
        '\n  python -c "from transformers import AutoModelForCausalLM as M; '
        "M.from_pretrained('SOURCE', revision='REVISION', dtype='auto')"
        ".save_pretrained('FOLDER')\"\nThen load FOLDER here. (transformers opens pickles with "
        "weights_only=True and writes safetensors.)"
    )


@dataclass(frozen=True)
class ModelFolder:
    """A local folder with a model."""

    folder: Path
    commit: str = ""
    """Commit of the hub's repository; empty for a local folder."""


def local_folder(source: str | Path) -> Path | None:
    """Return the local folder with this path; None if there is none."""
    folder = Path(source).expanduser()
    return folder if folder.is_dir() else None


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint.

    Other tools write a manifest.json, too, but next to config.json.
    """
    return (folder / MANIFEST).is_file() and not (folder / CONFIG).is_file()


def has_model(folder: Path) -> bool:
    """Return whether a folder has a config.json, or is a checkpoint."""
    return (folder / CONFIG).is_file() or is_checkpoint(folder)


def local_revisions(folder: Path) -> list[str]:
    """Return the names of the subfolders that `has_model` accepts: the revisions, sorted."""
    names = {path.parent.name for name in (CONFIG, MANIFEST) for path in folder.glob(f"*/{name}")}
    return sorted(names)


def locate_folder(source: str | Path, revision: str = "main") -> ModelFolder:
    """Return the subfolder of `source` that has the revision's name or the same step.

    Without such a subfolder, return `source` itself if the revision is "main" or the name of
    `source`.

    Raises:
        CheckpointError: there is no such folder or revision.
    """
    folder = local_folder(source)
    if folder is None:
        raise CheckpointError(f"{source} is not an existing folder; name the folder of a model")
    revisions, step = local_revisions(folder), step_of(revision)
    for name in [revision, *(n for n in revisions if step is not None and step_of(n) == step)]:
        if has_model(folder / name):
            return ModelFolder(folder / name)
    if has_model(folder) and revision in ("main", folder.resolve().name):
        return ModelFolder(folder)
    if revisions:
        advice = f"choose one of the existing revisions: {', '.join(revisions[:8])}"
    elif has_model(folder):
        advice = "this folder has a single model; choose the revision 'main'"
    else:
        advice = "this is not a model folder"
    raise CheckpointError(f"{folder} has no {CONFIG} for revision {revision!r}; {advice}")
