"""The checkpoint from which a continued run starts, local or published, and checks of its rows.

Published revisions hold weights only; a local run may have kept its optimizer state at the step. A
published model's schedule is not in its files; for Pythia's sizes it is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pythia_book.released import download
from pythia_book.released.continuation.data import TokenFileData, check_swap
from pythia_core.config import ModelConfig, TrainConfig
from pythia_core.data.prepare import Batches, PreparedData
from pythia_core.data.tokenizer import load_tokenizer
from pythia_core.errors import CheckpointError, ConfigError, one_of
from pythia_core.hf import TOKENIZER, local_folder, step_of
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


def source_of(source: Run | Path | str) -> Run | str:
    """A local run, or the folder or repository of a published model."""
    if isinstance(source, Run):
        return source
    name = str(local_folder(source) or source)
    return name if download.is_published(name) else find_run(name)


def tokenizer_of(source: Run | str, revision: str = "main") -> str:
    """The tokenizer.json of a model or a run; "neox-20b" for a repository on the hub."""
    if isinstance(source, Run):
        return str(source.data.tokens_folder / TOKENIZER)
    if local_folder(source):
        path = download.locate(source, revision).folder / TOKENIZER
        if path.is_file():
            return str(path)
    return "neox-20b"


def start_at(source: Run | Path | str, step: int, revision: str = "", state: str = "auto") -> Start:
    """The checkpoint of a step.

    Args:
        revision: revision of a published model; default: "step" and the number.
        state: of a local run: the "kept" optimizer state, "weights" only, or "auto": kept if any.

    Raises:
        CheckpointError, FetchError: no such run, model, revision or step, or wrong architecture.
        ConfigError: the revision belongs to another step; a published model has no kept state.
    """
    if state not in STATES:
        raise ConfigError(one_of(state, STATES, "state"))
    if step < 0:
        raise ConfigError(f"step must be at least 0, got {step}")
    run = source_of(source)
    if not isinstance(run, Run):
        return _published_start(run, step, revision, state)
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


def _published_start(source: str, step: int, revision: str, state: str) -> Start:
    if state == "kept":
        raise ConfigError(
            f"{source} holds weights only: published revisions have no optimizer state. Leave "
            "state at 'auto' and choose the learning-rate re-warming (Rewarm)"
        )
    revision = revision or f"step{step}"
    if step_of(revision) not in (None, step):
        raise ConfigError(
            f"revision {revision} does not belong to step {step}; pass only one of the two"
        )
    model, info = download.load(source, revision)
    if info.step not in (None, step):
        raise ConfigError(f"{source} ({revision}) belongs to step {info.step}, not {step}")
    tokenizer = info.folder / TOKENIZER
    return Start(
        f"{source} ({revision})",
        step,
        model.config,
        model.state_dict(),
        published=source,
        revision=revision,
        tokenizer_name=str(tokenizer) if tokenizer.is_file() else "",
    )


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


def checked_data(start: Start, data: Batches, stop: int, swap: str, batch_size: int) -> Any:
    """The data's part of the run's identity.

    Raises:
        ConfigError: a vocabulary other than the model's. DataError: too few rows, or a tokenizer
            that does not allow the swap.
    """
    if isinstance(data, PreparedData):
        data.batch(stop - 1, batch_size)  # its error says how many rows there are
        return data.fingerprint
    identity = data.identity(start.step, stop, batch_size)
    _check_vocabulary(start, data)
    largest = int(data.batch(start.step, batch_size).max())
    if largest >= start.model.vocab_size:
        raise ConfigError(
            f"the rows hold id {largest}, {start.label} has embeddings for ids below "
            f"{start.model.vocab_size}: model and rows do not match"
        )
    if swap:
        check_swap(data.tokenizer, swap)
    return identity


def _check_vocabulary(start: Start, data: TokenFileData) -> None:
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
