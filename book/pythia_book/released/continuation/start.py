"""Finds the local or published checkpoint from which a continued run starts.

It also checks that the rows to train on fit the model's vocabulary and tokenizer. Published
revisions have weights only; a local run may also have kept the optimizer state of that step. The
files of a published model lack its training schedule, which is known only for Pythia's sizes.
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
"""Maximum tokens per forward and backward pass of a published model, unless micro_batch is set."""


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
    """The local run that saved the checkpoint; None if the checkpoint is published."""
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
            state: "kept" to require the optimizer state that a local run kept, "weights" to ignore
                it, or "auto" to use it if there is one.

        Raises:
            CheckpointError, FetchError: the revision, step or kept state does not exist, or the
                architecture is wrong.
            ConfigError: the revision belongs to another step, the step is before the end of the
                run's swap, or the state "kept" is requested of a published model.
        """
        ...

    def tokenizer_name(self, revision: str) -> str:
        """Return the path of the model's tokenizer.json, or a name such as "neox-20b"."""
        ...

    def settings(
        self, revision: str, seq_len: int, **changes: Any
    ) -> tuple[ModelConfig | None, TrainConfig | None, int]:
        """Return the model config, the training settings, and the number of tokens per row.

        Both configs are None for a repository on the hub, because its files may not be here yet.

        Args:
            seq_len: tokens per row for a published model; ignored for a local run.
            changes: fields of the training settings to change.
        """
        ...


def find_source(name: Path | str) -> Source:
    """Find a local run or a published model by its folder, run id or repository.

    Raises:
        CheckpointError: there is neither a run nor a published model of this name.
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
        run = self.run
        if run.ledger is not None and step < run.ledger.stop:
            raise ConfigError(
                f"step {step} of run {run.id} is before the end of its swap {run.ledger.swap} "
                f"(step {run.ledger.stop}): continue from step {run.ledger.stop} or later, or "
                "continue the run's control instead"
            )
        kept = saved_steps(run.states)
        if state == "kept" and step not in kept:
            raise CheckpointError(
                f"run {run.id} kept no optimizer state of step {step}, only of the steps {kept}. "
                "Continue from one of these steps, or from the weights alone (state 'weights')"
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
                f"{self.name} has weights only: published revisions have no optimizer state. "
                "Leave state at 'auto' and choose a rule for re-warming the learning rate"
            )
        revision = revision or f"step{step}"
        if step_of(revision) not in (None, step):
            raise ConfigError(
                f"revision {revision} does not belong to step {step}; pass only the revision or "
                "only the step"
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
    """Return the training settings of a published model.

    Args:
        seq_len: tokens per row, which limits the rows in a forward and backward pass.
        settings: fields that replace the defaults. The defaults are the official settings of the
            model's size, and the best precision of this machine.

    Raises:
        ConfigError: the model does not have a Pythia size, and required settings are missing.
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
    """Check that the model and the rows have the same vocabulary.

    Of the rows, only the batch of the first update is read.

    Raises:
        ConfigError: the tokenizers differ, or the model has no embedding for an id.
    """
    _check_vocabulary(start, data)
    largest = int(data.batch(start.step, batch_size).max())
    if largest >= start.model.vocab_size:
        raise ConfigError(
            f"the rows have the id {largest}, but {start.label} has embeddings only for ids below "
            f"{start.model.vocab_size}: model and rows do not match"
        )


def _check_vocabulary(start: Start, data: Batches) -> None:
    """Raise a ConfigError if the tokenizers of the model and of the rows are known and differ."""
    if not data.tokenizer_name:
        return
    if data.vocab_size > start.model.vocab_size:
        raise ConfigError(
            f"the tokenizer {data.tokenizer_name} of the rows has {data.vocab_size} ids, but "
            f"{start.label} has embeddings for only {start.model.vocab_size}: model and rows do "
            "not match"
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
