"""The checkpoint that a continued run begins with, ours or published, and whether rows fit it.

Published revisions hold weights only; a run of ours may have kept its optimizer state at the step.
A published model's schedule is not in its files: for Pythia's sizes it is the released configs'.

Not here: the run itself (continued).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pythia_book.released import download
from pythia_book.released.continuation.data import RowsData, check_swap
from pythia_core.config import ModelConfig, TrainConfig
from pythia_core.data.prepare import Batches, PreparedData
from pythia_core.data.tokenizer import load_tokenizer
from pythia_core.errors import CheckpointError, ConfigError, one_of
from pythia_core.hf import TOKENIZER, step_of
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder
from pythia_core.training.runs import Run, find_run
from pythia_core.training.schedule import OFFICIAL_STEPS
from pythia_core.util.machine import best_precision

STATES = ("auto", "kept", "weights")
PASS_TOKENS = 1 << 14
"""Tokens of one forward and backward pass of a published model, unless micro_batch is given."""


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from; of ours with `run`, with `moments` if they were kept."""

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
    """Path of the tokenizer.json beside published weights."""


def source_of(source: Run | Path | str) -> Run | str:
    """A run of ours, or the folder or repository of a published model."""
    if isinstance(source, Run):
        return source
    name = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else str(source)
    return name if download.is_published(name) else find_run(name)


def tokenizer_of(source: Run | str, revision: str = "main") -> str:
    """The tokenizer.json beside a model or a run; for a repository of the hub "neox-20b"."""
    if isinstance(source, Run):
        return str(source.data.tokens_folder / TOKENIZER)
    if Path(source).expanduser().is_dir():
        beside = download.locate(source, revision).folder / TOKENIZER
        if beside.is_file():
            return str(beside)
    return "neox-20b"


def start_at(source: Run | Path | str, step: int, revision: str = "", state: str = "auto") -> Start:
    """The checkpoint of a step.

    Args:
        revision: of a published model; default: "step" and the number.
        state: of a run of ours: "kept" optimizer state, "weights" only, or "auto", what there is.

    Raises:
        CheckpointError, FetchError: no such run, model, revision or step, or another architecture.
        ConfigError: the revision is of another step; a published model has no kept state.
    """
    if state not in STATES:
        raise ConfigError(one_of(state, STATES, "state"))
    if step < 0:
        raise ConfigError(f"step {step}: steps are counted from 0")
    found = source_of(source)
    if not isinstance(found, Run):
        return _published_start(found, step, revision, state)
    swapped = found.ledger
    if swapped is not None and step < swapped.stop:
        raise ConfigError(
            f"run {found.id} swaps {swapped.swap} up to step {swapped.stop}: go on from there or "
            "later, or from its control"
        )
    kept = saved_steps(found.states)
    if state == "kept" and step not in kept:
        raise CheckpointError(
            f"run {found.id} kept no optimizer state of step {step}; it has those of {kept}. Go on "
            "from one of them, or from the weights alone (state 'weights')"
        )
    if step in kept and state != "weights":
        files, _ = load_checkpoint(step_folder(found.states, step))
        return Start(
            f"run {found.id}", step, found.config.model, files["model"], files["optimizer"], found
        )
    weights = found.model(step).state_dict()
    return Start(f"run {found.id}", step, found.config.model, weights, None, found)


def _published_start(source: str, step: int, revision: str, state: str) -> Start:

    if state == "kept":
        raise ConfigError(
            f"{source} holds weights only: published revisions have no optimizer state. Leave "
            "state at 'auto' and choose how the learning rate begins (Rewarm)"
        )
    revision = revision or f"step{step}"
    if step_of(revision) not in (None, step):
        raise ConfigError(f"revision {revision} is not of step {step}; name one of the two")
    model, info = download.load(source, revision)
    if info.step not in (None, step):
        raise ConfigError(f"{source} ({revision}) is of step {info.step}, not {step}")
    tokenizer = info.folder / TOKENIZER
    name = str(tokenizer) if tokenizer.is_file() else ""
    label = f"{source} ({revision})"
    return Start(
        label,
        step,
        model.config,
        model.state_dict(),
        published=source,
        revision=revision,
        tokenizer_name=name,
    )


def published_train(model: ModelConfig, seq_len: int = 2048, **given: Any) -> TrainConfig:
    """The schedule that a published model was trained with; `given` are fields that differ.

    Raises:
        ConfigError: none of Pythia's sizes, and not said how it was trained.
    """
    shape = (model.n_layers, model.d_model, model.n_heads)
    twins = [s for s in OFFICIAL_SIZES.values() if (s.n_layers, s.d_model, s.n_heads) == shape]
    needed = {"lr_max", "steps", "batch_size"} - given.keys()
    if not twins and needed:
        raise ConfigError(
            f"{shape[0]} layers of width {shape[1]} with {shape[2]} heads are none of Pythia's "
            f"sizes; say how the model was trained: {', '.join(sorted(needed))}"
        )
    known = {"steps": OFFICIAL_STEPS, "batch_size": 1024, "precision": best_precision()}
    settings = {**known, **({"lr_max": twins[0].lr_max} if twins else {}), **given}
    if "micro_batch" not in given:
        rows = max(1, PASS_TOKENS // seq_len)
        fitting = [n for n in range(1, rows + 1) if settings["batch_size"] % n == 0]
        settings["micro_batch"] = 0 if settings["batch_size"] <= rows else fitting[-1]
    return TrainConfig(**settings)


# --- whether rows fit it ---------------------------------------------------------------------


def checked_data(start: Start, data: Batches, stop: int, swap: str, batch_size: int) -> Any:
    """The data's part of the identity.

    Raises:
        ConfigError: another vocabulary than the model's. DataError: too few rows, or a swap that
            cannot be made.
    """
    if isinstance(data, PreparedData):
        data.batch(stop - 1, batch_size)  # says where the rows end
        return data.fingerprint
    found = data.identity(start.step, stop, batch_size)
    _same_vocabulary(start, data)
    top = int(data.batch(start.step, batch_size).max())
    if top >= start.model.vocab_size:
        raise ConfigError(
            f"the rows hold id {top}, {start.label} has embeddings for ids below "
            f"{start.model.vocab_size}: model and rows do not belong together"
        )
    if swap:
        check_swap(data.tokenizer, swap)
    return found


def _same_vocabulary(start: Start, data: RowsData) -> None:
    if not data.tokenizer_name:
        return
    if data.vocab_size > start.model.vocab_size:
        raise ConfigError(
            f"the tokenizer {data.tokenizer_name} of the rows has {data.vocab_size} ids, "
            f"{start.label} has embeddings for {start.model.vocab_size}: model and rows do not "
            "belong together"
        )
    if start.run is not None:
        theirs = start.run.data.tokenizer
    elif start.tokenizer_name:
        theirs = load_tokenizer(start.tokenizer_name)
    else:
        return
    ours = data.tokenizer.get_vocab(with_added_tokens=True)
    named = theirs.get_vocab(with_added_tokens=True)
    other = sorted((i, token) for token, i in named.items() if ours.get(token, i) != i)
    if other or len(ours.keys() & named.keys()) < len(ours) / 2:
        shown = ", ".join(repr(token) for _, token in other[:3]) or "few tokens in common"
        raise ConfigError(
            f"{start.label} and the rows have different tokenizers ({shown}): the ids would mean "
            "other tokens"
        )
