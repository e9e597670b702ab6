"""What a name of a model on the command line means: a run of ours, or a published model.

A published model is a folder in the hub's format, one with a subfolder per step ("step3000"), or a
repository on the hub, whose revisions are its steps. It offers what evaluation needs of a run:
steps, the model at each, a tokenizer, a place for what was measured. Reading such files needs
pythia_core.hf's `load`. Not here: what a run is (pythia_core.runs).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pythia_core.config import DataConfig, RunConfig, TrainConfig, stable_hash
from pythia_core.errors import CheckpointError, FetchError, MissingDependencyError
from pythia_core.model import GPTNeoX
from pythia_core.paths import results_dir
from pythia_core.runs import Run, find_run
from pythia_core.tokenizer import EOD, load_tokenizer

LAST = 143_000
"""Step of a published model whose folder does not tell: `main` is the last checkpoint."""
_STEP = re.compile(r"step-?(\d+)")


def _step(name: str) -> int | None:
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def _hf_load() -> Callable[..., tuple[GPTNeoX, Any]]:
    from pythia_core import hf

    if not hasattr(hf, "load"):
        raise MissingDependencyError(
            "this version of pythia_core cannot read published models (pythia_core.hf.load is "
            "missing); name a run of yours"
        )
    return hf.load


@dataclass(frozen=True)
class PublishedModel:
    """A published model, in the shape of a run as far as measuring needs it."""

    source: str
    """A folder or a repository's name."""

    @property
    def label(self) -> str:
        """As in the tables of released results: "70m" of pythia-70m-deduped."""
        name = self.source.rstrip("/").rsplit("/", 1)[-1]
        return name.removeprefix("pythia-").removesuffix("-deduped")

    @property
    def deduped(self) -> bool:
        return self.source.rstrip("/").endswith("-deduped")

    @cached_property
    def _revisions(self) -> dict[int, str]:
        folder = Path(self.source).expanduser()
        if not folder.is_dir():
            from pythia_core import hub

            names = {_step(name): name for name in hub.revisions(self.source)}
            names.pop(None, None)
            return names or {LAST: "main"}
        if (folder / "config.json").is_file():
            step = _step(folder.resolve().name)
            return {LAST if step is None else step: "main"}
        names = (path.parent.name for path in folder.glob("*/config.json"))
        return {step: name for name in names if (step := _step(name)) is not None}

    @property
    def steps(self) -> list[int]:
        return sorted(self._revisions)

    @cached_property
    def id(self) -> str:
        """Name and, of a folder, state of its files: what is kept is kept for that."""
        folder = Path(self.source).expanduser()
        files = sorted(folder.rglob("*.safetensors")) if folder.is_dir() else []
        state = [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
        return f"{self.label}-{stable_hash([self.source, state])[:12]}"

    @property
    def folder(self) -> Path:
        """Where what was measured is kept."""
        return results_dir() / "published_models" / self.id

    def model(self, step: int | None = None) -> GPTNeoX:
        """The model at a step (default: the last), in fp32.

        Raises:
            CheckpointError: no such step, a damaged file, or one that cannot be fetched.
        """
        return self._load(step)[0]

    def _load(self, step: int | None = None) -> tuple[GPTNeoX, Any]:
        step = self.steps[-1] if step is None and self.steps else step
        if step not in self._revisions:
            near = sorted(self.steps, key=lambda s: abs(s - (step or 0)))[:4]
            raise CheckpointError(
                f"{self.source} has no checkpoint of step {step}; the nearest are {sorted(near)}"
            )
        try:
            return _hf_load()(self.source, self._revisions[step])
        except FetchError as error:
            raise CheckpointError(str(error)) from error

    @cached_property
    def _first(self) -> tuple[Any, Any]:
        """Config and tokenizer, which all steps share."""
        model, loaded = self._load()
        return model.config, load_tokenizer(loaded.folder / "tokenizer.json")

    @property
    def data(self) -> Any:
        tokenizer = self._first[1]
        return SimpleNamespace(tokenizer=tokenizer, eod_id=tokenizer.token_to_id(EOD))

    @property
    def config(self) -> RunConfig:
        """The model's; of its training only the length counts here."""
        shape = self._first[0]
        train = TrainConfig(steps=max(*self.steps, 1), batch_size=1024, lr_max=1e-3)
        return RunConfig(shape, DataConfig(seq_len=shape.max_seq_len), train)

    def __reduce__(self) -> tuple:
        """Pickled without what was read."""
        return PublishedModel, (self.source,)


AnyModel = Run | PublishedModel


def find_model(name: str) -> AnyModel:
    """A run by its folder, folder's name or (the beginning of) its id; or a published model by its
    folder or its repository's name ("EleutherAI/pythia-70m").

    Raises:
        CheckpointError: neither; MissingDependencyError: published models cannot be read here.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        published = not (folder / "identity.json").is_file() and (
            (folder / "config.json").is_file() or any(folder.glob("step*/config.json"))
        )
    else:
        published = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    if not published:
        return find_run(name)
    _hf_load()
    return PublishedModel(name)
