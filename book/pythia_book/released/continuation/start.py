"""The checkpoint from which a continued run starts, local or published, and checks of its rows.

Published revisions hold weights only; a local run may have kept its optimizer state at the step. A
published model's schedule is not in its files; for Pythia's sizes it is known.
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
from pythia_core.hf import TOKENIZER, local_folder, model_config, read_config, step_of
from pythia_core.suite import OFFICIAL_SIZES, size_of
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder
from pythia_core.training.runs import Run, find_run
from pythia_core.training.schedule import OFFICIAL_STEPS
from pythia_core.util.machine import best_precision

STATES = ("auto", "kept", "weights")
PASS_TOKENS = 1 << 14
"""Tokens per forward and backward pass of a published model, unless micro_batch is set."""


@dataclass(frozen=True)
class Start:
    """A checkpoint to continue from; `run` if it is local, `moments` if they were kept."""

    label: str
    step: int
    model: ModelConfig
    weights: dict[str, Tensor]
    moments: dict[str, Tensor] | None = None
    run: Run | None = None
    published: str = ""
    """Folder or repository of a published model."""
    revision: str = ""
    tokenizer_name: str = ""
    """Path of the tokenizer.json next to published weights."""


class Source(Protocol):
    """A model whose training can be continued: a local run or a published model."""

    brings_data: bool
    """Whether the rows of its training are at hand."""

    def start(self, step: int, revision: str = "", state: str = "auto") -> Start:
        """The checkpoint of a step.

        Args:
            revision: of a published model; default: "step" and the number.
            state: of a local run: the optimizer state that was "kept", "weights" only, or "auto":
                the state if it was kept.

        Raises:
            CheckpointError, FetchError: no such revision or step, or the wrong architecture.
            ConfigError: the revision belongs to another step; the run is being swapped at this
                step; a published model has no kept state.
        """
        ...

    def tokenizer_name(self, revision: str) -> str:
        """Its tokenizer.json, or "neox-20b" for a repository on the hub."""
        ...

    def settings(
        self, revision: str, seq_len: int, **changes: Any
    ) -> tuple[ModelConfig | None, TrainConfig | None, int]:
        """Architecture, training settings with `changes`, and tokens per row.

        The first two are None for a repository on the hub, whose files are not here yet.
        """
        ...


def find_source(name: Path | str) -> Source:
    """The local run or the published model of this name (a folder, run id or repository).

    Raises:
        CheckpointError: neither exists.
    """
    name = str(local_folder(name) or name)
    return PublishedSource(name) if download.is_published(name) else RunSource(find_run(name))


def check_start(step: int, state: str) -> None:
    """Reject an impossible step or state with a ConfigError."""
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
        run = self.run
        if run.ledger is not None and step < run.ledger.stop:
            raise ConfigError(
                f"run {run.id} swaps {run.ledger.swap} up to step {run.ledger.stop}: continue from "
                "that step or later, or from its control"
            )
        kept = saved_steps(run.states)
        if state == "kept" and step not in kept:
            raise CheckpointError(
                f"run {run.id} kept no optimizer state of step {step}, only of {kept}. "
                "Continue from one of them, or from the weights alone (state 'weights')"
            )
        label, model = f"run {run.id}", run.config.model
        if step in kept and state != "weights":
            files, _ = load_checkpoint(step_folder(run.states, step))
            return Start(label, step, model, files["model"], files["optimizer"], run)
        return Start(label, step, model, run.model(step).state_dict(), None, run)

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
                f"{self.name} holds weights only: published revisions have no optimizer state. "
                "Leave state at 'auto' and choose the learning-rate re-warming (Rewarm)"
            )
        revision = revision or f"step{step}"
        if step_of(revision) not in (None, step):
            raise ConfigError(
                f"revision {revision} does not belong to step {step}; pass only one of the two"
            )
        model, info = download.load(self.name, revision)
        if info.step not in (None, step):
            raise ConfigError(f"{self.name} ({revision}) belongs to step {info.step}, not {step}")
        tokenizer = info.folder / TOKENIZER
        return Start(
            f"{self.name} ({revision})",
            step,
            model.config,
            model.state_dict(),
            published=self.name,
            revision=revision,
            tokenizer_name=str(tokenizer) if tokenizer.is_file() else "",
        )

    def tokenizer_name(self, revision: str) -> str:
        if local_folder(self.name):
            path = download.locate(self.name, revision).folder / TOKENIZER
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
    """The training settings of a published model; `settings` overrides fields.

    Raises:
        ConfigError: not a Pythia size, and required settings are missing.
    """
    official = size_of(model, OFFICIAL_SIZES)
    missing = {"lr_max", "steps", "batch_size"} - settings.keys()
    if official is None and missing:
        raise ConfigError(
            f"{model.n_layers} layers of width {model.d_model} with {model.n_heads} heads are not "
            f"a Pythia size; specify how the model was trained: {', '.join(sorted(missing))}"
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
    """Check that the rows are in the model's vocabulary.

    Raises:
        ConfigError: another tokenizer, or ids without an embedding.
    """
    _check_vocabulary(start, data)
    largest = int(data.batch(start.step, batch_size).max())
    if largest >= start.model.vocab_size:
        raise ConfigError(
            f"the rows hold id {largest}, {start.label} has embeddings for ids below "
            f"{start.model.vocab_size}: model and rows do not match"
        )


def _check_vocabulary(start: Start, data: Batches) -> None:
    if not data.tokenizer_name:
        return
    if data.vocab_size > start.model.vocab_size:
        raise ConfigError(
            f"the tokenizer {data.tokenizer_name} of the rows has {data.vocab_size} ids, "
            f"{start.label} has embeddings for {start.model.vocab_size}: model and rows do not "
            "match"
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
        shown = ", ".join(repr(token) for _, token in other[:3]) or "few tokens in common"
        raise ConfigError(
            f"{start.label} and the rows have different tokenizers ({shown}): the same ids would "
            "mean different tokens"
        )
