"""Converts models between the formats of this library, of transformers and of GPT-NeoX.

In the format of this library, a converted model is a checkpoint without an optimizer state. Its
manifest has the kind "weights only", the source and the config of the model, so the checkpoint can
be loaded without a run (pythia_core.hf). The manifest also keeps the settings that came with the
model, such as its config.json, so that converting back changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pythia_book.released import download, neox_format
from pythia_book.released.download import is_published
from pythia_book.released.resolve import find_model
from pythia_core import hf
from pythia_core.config import ModelConfig, config_dict
from pythia_core.data.tokenizer import load_tokenizer
from pythia_core.errors import CheckpointError, ConfigError, one_of
from pythia_core.hf import TOKENIZER, WEIGHTS_ONLY
from pythia_core.model import GPTNeoX
from pythia_core.suite import size_named
from pythia_core.training.checkpoint import load_checkpoint, save_checkpoint, step_folder
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMATS = ("hf", "pythia")
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A model with its origin."""

    kind: str
    """The format: "pythia" (ours), "hf" (transformers) or "native" (GPT-NeoX)."""
    model: GPTNeoX
    step: int | None
    """The step of training; None if unknown."""
    about: dict[str, Any]
    """The origin of the model, as in the manifest of a converted checkpoint."""
    tokenizer: Tokenizer | None = None
    settings: dict[str, dict[str, Any]] | None = None
    """The settings that came with the model (see `hf.read_settings`), if any."""


def _model(config: ModelConfig, state: dict[str, torch.Tensor]) -> GPTNeoX:
    """Build a model whose parameters are the tensors in `state`, without gradients."""
    with torch.device("meta"):
        model = GPTNeoX(config)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _from_run(name: str, step: int | None) -> Source:
    """Read the model of a local run at a step (default: the last)."""
    from pythia_core.training.runs import Run

    run = find_model(name)
    assert isinstance(run, Run), "any other model is published"
    step = run.config.train.steps if step is None else step
    if step not in run.steps:
        run.model(step)  # its error lists the steps
    state = load_checkpoint(step_folder(run.checkpoints, step))[0]["model"]
    model = _model(run.config.model, state)
    return Source("pythia", model, step, {"run": run.id}, run.data.tokenizer)


def read(source: str, revision: str = "main", step: int | None = None, size: str = "") -> Source:
    """Read a model from any source. The format is detected.

    Args:
        source: a run (folder or id), a converted checkpoint, a transformers folder, a folder of
            native GPT-NeoX files or of several such folders, or a repository on the hub.
        revision: for a transformers folder or a repository, e.g. "step3000".
        step: for a run or a folder of native checkpoints, the step to read (default: the last); for
            other sources, the step to record (default: the step in the name).
        size: for native files, the model size if the shapes do not determine the size.

    Raises:
        ConfigError: `size` is not the name of a size.
        CheckpointError, FetchError: `source` is none of the above, is damaged, or is not available.
    """
    native = neox_format.find(Path(source).expanduser(), step)
    if native is not None:
        config = size_named(size).model() if size else None
        model = neox_format.load(native, config)
        step = neox_format.step_of(native) if step is None else step
        return Source("native", model, step, {"native": native.name})
    if not is_published(source):
        return _from_run(source, step)
    model, info = download.load(source, revision, dtype=None)
    step = info.step if step is None else step
    if step is None and source.startswith("EleutherAI/pythia"):
        step = OFFICIAL_STEPS  # main is the last step
    about = {"source": info.source, "revision": revision, "commit": info.commit}
    about |= {"sha256": info.sha256(), "stored": list(info.stored)}
    kind = "pythia" if hf.is_checkpoint(info.folder) else "hf"
    tokenizer = _tokenizer(hf.tokenizer_path(info.folder))
    return Source(kind, model, step, about, tokenizer, hf.read_settings(info.folder))


def _tokenizer(path: Path) -> Tokenizer | None:
    """Load a tokenizer.json; return None if the file does not exist."""
    return load_tokenizer(path) if path.is_file() else None


def convert(
    source: str,
    target: str | Path,
    to: str = "",
    *,
    revision: str = "main",
    step: int | None = None,
    dtype: str = "",
    size: str = "",
) -> Path:
    """Read a model in any format, write it in another format, and return the new folder.

    Args:
        source, revision, step, size: as in `read`.
        target: the folder to create for "hf"; the parent of the new folder `step-NNNNNN` for
            "pythia".
        to: one of FORMATS; default: "pythia" for a transformers model, "hf" for any other.
        dtype: "fp32", "fp16" or "bf16"; default: the stored dtype.

    Raises:
        CheckpointError, FetchError: the model cannot be read, a weight exceeds the range of
            `dtype`, or the new folder exists already.
        ConfigError: an argument is unknown or does not fit the source.
    """
    if to and to not in FORMATS:
        raise ConfigError(one_of(to, FORMATS, "format"))
    if dtype and dtype not in DTYPES:
        raise ConfigError(one_of(dtype, DTYPES, "dtype"))
    cast_to = DTYPES.get(dtype)
    native = neox_format.find(Path(source).expanduser(), step) is not None
    if to == "hf" or (not to and (native or not is_published(source))):
        hf.refuse_existing(Path(target))  # before reading, which may take minutes
    origin = read(source, revision, step, size)
    if (to or ("pythia" if origin.kind == "hf" else "hf")) == "hf":
        return hf.save(
            origin.model, target, dtype=cast_to, tokenizer=origin.tokenizer,
            settings=origin.settings, step=origin.step,
        )  # fmt: skip
    if origin.kind == "pythia":
        raise ConfigError(
            f"{source} is already in the format pythia; pass --to hf to write the format of "
            "transformers"
        )
    if origin.step is None:
        raise ConfigError(
            f"the step of the model is neither in the name {source} nor in the revision "
            f"{revision}; pass --step"
        )
    parent = Path(target)
    folder = step_folder(parent, origin.step)
    if folder.exists():
        raise CheckpointError(f"{folder} already exists; choose another folder or delete this one")
    state = {name: hf.cast(name, t, cast_to) for name, t in origin.model.state_dict().items()}
    meta = {"kind": WEIGHTS_ONLY, "source": origin.about, "model": config_dict(origin.model.config)}
    meta["settings"] = origin.settings or {}
    parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(parent, origin.step, {"model": state}, meta)
    if origin.tokenizer is not None:
        origin.tokenizer.save(str(parent / TOKENIZER))
    return folder
