"""Finds the model that a command names: a local run or a published model.

A published model is a folder in the hub's format or a checkpoint that `convert` wrote, a folder
with such a subfolder per step ("step3000"), or a repository on the hub with a revision per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pythia_book.released import download
from pythia_core import hf
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig, stable_hash
from pythia_core.data.tokenizer import EOD, load_tokenizer
from pythia_core.errors import CheckpointError, FetchError
from pythia_core.hf import (
    CONFIG,
    INDEX,
    TOKENIZER,
    local_folder,
    model_config,
    step_of,
    tokenizer_path,
)
from pythia_core.model import GPTNeoX
from pythia_core.training.checkpoint import MANIFEST, sha256_tensors
from pythia_core.training.runs import CheckpointSource, find_run
from pythia_core.training.schedule import OFFICIAL_STEPS
from pythia_core.util.files import file_sha256, results_dir

LAST = OFFICIAL_STEPS
"""The step of a published model that states no step; `main` is the last checkpoint."""


@dataclass(frozen=True)
class PublishedModel:
    """A published model with its checkpoints, which can be measured like a local run."""

    source: str
    """A folder or the name of a repository."""

    @property
    def label(self) -> str:
        """The size as in tables of released results, e.g. "70m" for pythia-70m-deduped."""
        return self._name.removeprefix("pythia-").removesuffix("-deduped")

    @property
    def name(self) -> str:
        return self.source

    @property
    def deduped(self) -> bool:
        return self._name.endswith("-deduped")

    @property
    def _name(self) -> str:
        """The name of the model, from `source` without the folder of a step."""
        *_, above, last = "/", *self.source.rstrip("/").split("/")
        return last if step_of(last) is None else above

    @cached_property
    def _revisions(self) -> dict[int, str]:
        """The revision of each available step."""
        folder = hf.local_folder(self.source)
        if folder is None:
            names = download.revisions(self.source, or_cached=True)
        elif hf.has_model(folder):
            step = hf.stated_step(folder)
            return {LAST if step is None else step: "main"}
        else:
            names = hf.local_revisions(folder)
        steps = {step_of(name): name for name in names}
        steps.pop(None, None)
        return steps or {LAST: "main"}

    @property
    def steps(self) -> list[int]:
        """The available steps in ascending order."""
        return sorted(self._revisions)

    @property
    def scheduled_steps(self) -> list[int]:
        return self.steps

    @cached_property
    def id(self) -> str:
        """The key of cached measurements.

        The key of a folder changes with the size or time of a weight file, and with the content of
        the config, tokenizer, index or manifest of a step.
        """
        folder = hf.local_folder(self.source)
        state: list[list[Any]] = []
        if folder:
            weights = sorted(folder.rglob("*.safetensors"))
            state += [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in weights]
            small = {f for name in (CONFIG, TOKENIZER, INDEX, MANIFEST) for f in folder.rglob(name)}
            small |= {f for f in [tokenizer_path(folder)] if f.is_file()}
            state += [[str(f.resolve()), file_sha256(f)] for f in sorted(small)]
        return f"{self.label}-{stable_hash([self.source, state])[:12]}"

    @property
    def folder(self) -> Path:
        """The folder in which measurements are cached."""
        return results_dir() / "published_models" / self.id

    def model(self, step: int | None = None) -> GPTNeoX:
        """Load the model at a step (default: the last), in fp32.

        Raises a CheckpointError if the step does not exist, or a file is damaged or not available.
        """
        try:
            return download.load(self.source, self.revision(step))[0]
        except FetchError as error:
            raise CheckpointError(str(error)) from error

    def sha256(self, step: int) -> str:
        """Return the sha256 of all tensors at a step, in the stored dtype."""
        folder = download.locate(self.source, self.revision(step)).folder
        return sha256_tensors(hf.Weights(folder))

    def revision(self, step: int | None = None) -> str:
        """Return a step's revision (default: the last); raise a CheckpointError if it is absent."""
        step = self.steps[-1] if step is None else step
        if step not in self._revisions:
            near = sorted(sorted(self.steps, key=lambda s: abs(s - step))[:4])
            raise CheckpointError(
                f"{self.source} has no checkpoint of step {step}; the nearest steps with a "
                f"checkpoint are {', '.join(map(str, near))}"
            )
        return self._revisions[step]

    @cached_property
    def _shared(self) -> tuple[ModelConfig, Any]:
        """The config and tokenizer, which are the same at all steps. No weights are fetched."""
        files = (CONFIG, TOKENIZER)
        folder = download.locate(self.source, self.revision(), files).folder
        return model_config(hf.read_config(folder)), load_tokenizer(tokenizer_path(folder))

    @property
    def data(self) -> Any:
        """An object with the model's `tokenizer` and `eod_id`, the id that ends a document."""
        tokenizer = self._shared[1]
        return SimpleNamespace(tokenizer=tokenizer, eod_id=tokenizer.token_to_id(EOD))

    @property
    def config(self) -> RunConfig:
        """A run config for the model. The training settings are made up, except the step count."""
        shape = self._shared[0]
        train = TrainConfig(steps=max(*self.steps, 1), batch_size=1024, lr_max=1e-3)
        return RunConfig(shape, DataConfig(seq_len=shape.max_seq_len), train)

    def __reduce__(self) -> tuple:
        """Pickle without the cached properties."""
        return PublishedModel, (self.source,)


def find_model(name: str) -> CheckpointSource:
    """Find a run by its folder or id, or a published model by its folder or repository.

    A prefix of the id suffices. Raises a CheckpointError if there is no such run or model.
    """
    if download.is_published(name):
        return PublishedModel(name)
    try:
        return find_run(str(local_folder(name) or name))
    except CheckpointError as error:
        if local_folder(name):
            raise
        raise CheckpointError(
            f"{error}\n{name!r} is not a published model either; pass the folder of a model or its "
            f"name on the hub, e.g. EleutherAI/pythia-70m{download.why_local(name)}"
        ) from error
