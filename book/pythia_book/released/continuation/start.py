"""Finds the local or published checkpoint from which a continued run starts.

A local checkpoint has weights, and may have the optimizer state. A published checkpoint has only
weights, and its files do not state how the model was trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from pythia_book.released import download
from pythia_core.config import ModelConfig, TrainConfig
from pythia_core.data.prepare import Batches
from pythia_core.data.tokenizer import load_tokenizer
from pythia_core.errors import CheckpointError, ConfigError, one_of
from pythia_core.hf import (
    local_folder,
    model_config,
    read_config,
    stated_step,
    step_of,
    tokenizer_path,
)
from pythia_core.suite import OFFICIAL_SIZES, size_of
from pythia_core.training.checkpoint import saved_steps
from pythia_core.training.precision import best_precision
from pythia_core.training.runs import Run, find_run
from pythia_core.training.schedule import OFFICIAL_STEPS

STATES = ("auto", "kept", "weights")
PASS_TOKENS = 1 << 14
"""Maximum tokens per pass of a published model, unless micro_batch is set."""


@dataclass(frozen=True)
class Start:
    """A checkpoint from which to continue training."""

    label: str
    """The name of the checkpoint in messages."""
    step: int
    model: ModelConfig
    weights: dict[str, Tensor]
    moments: dict[str, Tensor] | None = None
    """Adam's moments; None if there is no optimizer state."""
    run: Run | None = None
    """The local run that saved the checkpoint; None for a published model."""
    published: str = ""
    """Folder or repository of a published model; "" for a local run."""
    revision: str = ""
    tokenizer_name: str = ""
    """Path of the tokenizer.json next to published weights."""


class Source(Protocol):
    """A model whose training can be continued: a local run or a published model."""

    brings_data: bool
    """Whether the rows on which the model was trained are available."""

    def start(self, step: int, revision: str = "", state: str = "auto") -> Start:
        """Load the checkpoint of a step.

        Args:
            revision: the revision of a published model; default: f"step{step}".
            state: "kept" to require the optimizer state, "weights" to ignore it, "auto" to use it
                if available.

        Raises:
            CheckpointError, FetchError: the revision, step or kept state does not exist, or the
                architecture is wrong.
            ConfigError: the revision has another step, the step is before the end of the run's
                swap, or "kept" is requested of a published model.
        """
        ...

    def check(self, step: int, revision: str) -> None:
        """Raise the errors of `start` that are known before weights are loaded or downloaded."""
        ...

    def tokenizer_name(self, revision: str) -> str:
        """Return the path of the model's tokenizer.json, or a name such as "neox-20b"."""
        ...

    def settings(
        self, revision: str, seq_len: int, **changes: Any
    ) -> tuple[ModelConfig | None, TrainConfig | None, int]:
        """Return the model config, the training settings, and the number of tokens per row.

        For a repository on the hub, config and settings are None: its files may not be here yet.

        Args:
            seq_len: tokens per row for a published model; ignored for a local run.
            changes: fields of the training settings to change.
        """
        ...


def find_source(name: Path | str) -> Source:
    """Find a local run or a published model by its folder, run id or repository.

    Raises a CheckpointError if there is no such run or model.
    """
    name = str(local_folder(name) or name)
    return PublishedSource(name) if download.is_published(name) else RunSource(find_run(name))


def check_start(step: int, state: str) -> None:
    """Raise a ConfigError if the step is negative or `state` is not one of STATES."""
    if state not in STATES:
        raise ConfigError(one_of(state, STATES, "state"))
    if step < 0:
        raise ConfigError(f"step must be at least 0, got {step}")


@dataclass(frozen=True)
class RunSource:
    """A local run as a `Source`."""

    run: Run
    brings_data = True

    def start(self, step: int, revision: str = "", state: str = "auto") -> Start:
        check_start(step, state)
        self.check(step)
        run = self.run
        kept = saved_steps(run.states)
        if state == "kept" and step not in kept:
            raise CheckpointError(
                f"run {run.id} kept no optimizer state for step {step}. The steps with an "
                f"optimizer state are: {', '.join(map(str, kept)) or 'none'}. Continue from one of "
                "these steps, or set state (--state) to 'weights' to continue from the weights "
                "alone"
            )
        label, model = f"run {run.id}", run.config.model
        if step in kept and state != "weights":
            files = run.state(step)
            return Start(label, step, model, files["model"], files["optimizer"], run)
        return Start(label, step, model, run.model(step).state_dict(), None, run)

    def check(self, step: int, revision: str = "") -> None:
        run = self.run
        if run.ledger is not None and step < run.ledger.stop:
            raise ConfigError(
                f"run {run.id} reads changed text ({run.ledger.transform}) until step "
                f"{run.ledger.stop}, so this run cannot be continued from step {step}. Continue "
                f"from step {run.ledger.stop} or later, or continue the control of this run "
                "instead"
            )
        if step not in saved_steps(run.states):
            run.require_step(step)

    def tokenizer_name(self, revision: str) -> str:
        return self.run.data.tokenizer_name

    def settings(
        self, revision: str, seq_len: int, **changes: Any
    ) -> tuple[ModelConfig, TrainConfig, int]:
        config = self.run.config
        return config.model, replace(config.train, **changes), config.data.seq_len


@dataclass(frozen=True)
class PublishedSource:
    """A published model as a `Source`: a folder in Hugging Face format, or a repository."""

    name: str
    brings_data = False

    def start(self, step: int, revision: str = "", state: str = "auto") -> Start:
        check_start(step, state)
        if state == "kept":
            raise ConfigError(
                f"state 'kept' requires an optimizer state, but {self.name} is a published model, "
                "which has only weights; set state (--state) to 'auto' or 'weights'"
            )
        revision = revision or f"step{step}"
        self.check(step, revision)
        model, info = download.load(self.name, revision)
        tokenizer = tokenizer_path(info.folder)
        return Start(
            f"{self.name} ({revision})",
            step,
            model.config,
            model.state_dict(),
            published=self.name,
            revision=revision,
            tokenizer_name=str(tokenizer) if tokenizer.is_file() else "",
        )

    def check(self, step: int, revision: str) -> None:
        stated = step_of(revision)
        if stated is None and local_folder(self.name):
            stated = stated_step(download.locate(self.name, revision).folder)
        if stated not in (None, step):
            raise ConfigError(
                f"the revision {revision} of {self.name} is of step {stated}, not of step {step}; "
                "pass only the revision, or only the step"
            )

    def tokenizer_name(self, revision: str) -> str:
        if local_folder(self.name):
            path = tokenizer_path(download.locate(self.name, revision).folder)
            if path.is_file():
                return str(path)
        return "neox-20b"

    def settings(
        self, revision: str, seq_len: int, **changes: Any
    ) -> tuple[ModelConfig | None, TrainConfig | None, int]:
        if local_folder(self.name) is None:
            return None, None, seq_len
        model = model_config(read_config(download.locate(self.name, revision).folder))
        return model, published_train(model, seq_len, **changes), seq_len


def published_train(model: ModelConfig, seq_len: int = 2048, **settings: Any) -> TrainConfig:
    """Return the official training settings of a size, with the best precision on this machine.

    Args:
        seq_len: tokens per row. A pass has at most PASS_TOKENS tokens, or one row if that is more.
        settings: fields to replace.

    Raises:
        ConfigError: the size is not one of Pythia's, and `settings` lacks lr_max, steps or
            batch_size.
    """
    official = size_of(model, OFFICIAL_SIZES)
    missing = {"lr_max", "steps", "batch_size"} - settings.keys()
    if official is None and missing:
        options = {"steps": "--schedule-steps", "batch_size": "--batch-size", "lr_max": "--lr"}
        needed = (f"{name} ({options[name]})" for name in sorted(missing))
        raise ConfigError(
            f"a model of {model.n_layers} layers, width {model.d_model} and {model.n_heads} heads "
            "is not of a Pythia size, so its training settings are unknown; pass "
            f"{', '.join(needed)}"
        )
    known: dict[str, Any] = {"steps": OFFICIAL_STEPS, "batch_size": 1024}
    known |= {"precision": best_precision(), "lr_max": official and official.lr_max} | settings
    if "micro_batch" not in settings:
        rows = max(1, PASS_TOKENS // seq_len)
        fitting = [n for n in range(1, rows + 1) if known["batch_size"] % n == 0]
        known["micro_batch"] = 0 if known["batch_size"] <= rows else fitting[-1]
    return TrainConfig(**known)


# --- checks of the rows ----------------------------------------------------------------------


def check_rows(start: Start, data: Batches, batch_size: int) -> None:
    """Raise a ConfigError if the tokenizers of model and rows differ, or an id has no embedding.

    Only the batch of the first update is read.
    """
    _check_vocabulary(start, data)
    largest = int(data.batch(start.step, batch_size).max())
    if largest >= start.model.vocab_size:
        raise ConfigError(
            f"the rows have the token id {largest}, but {start.label} has embeddings only for ids "
            f"below {start.model.vocab_size}; pass rows that were tokenized for this model"
        )


def _check_vocabulary(start: Start, data: Batches) -> None:
    """Raise a ConfigError if the rows have a known tokenizer that does not fit the model."""
    if not data.tokenizer_name:
        return
    if data.vocab_size > start.model.vocab_size:
        raise ConfigError(
            f"the tokenizer {data.tokenizer_name} of the rows has {data.vocab_size} ids, but "
            f"{start.label} has embeddings for only {start.model.vocab_size} ids; pass rows that "
            "were tokenized for this model, and their tokenizer"
        )
    if start.run is not None:
        tokenizer = start.run.data.tokenizer
    elif start.tokenizer_name:
        tokenizer = load_tokenizer(start.tokenizer_name)
    else:
        return
    of_rows = data.tokenizer.get_vocab(with_added_tokens=True)
    of_model = tokenizer.get_vocab(with_added_tokens=True)
    other = sorted((i, token) for token, i in of_model.items() if of_rows.get(token, i) != i)
    if other or len(of_rows.keys() & of_model.keys()) < len(of_rows) / 2:
        differing = ", ".join(repr(token) for _, token in other[:3])
        reason = f"different ids of {differing}" if differing else "few tokens in common"
        raise ConfigError(
            f"{start.label} and the rows have different tokenizers ({reason}), so the model would "
            "misread the rows; pass rows that were tokenized for this model, and their tokenizer"
        )
