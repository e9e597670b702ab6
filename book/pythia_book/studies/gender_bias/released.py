"""Continue the released deduplicated models with a swap, for the scale `paper`.

Each size has three runs to step 143,000. The control and the long swap start from the released
weights of step 113,000 and a fresh optimizer (pythia_book.released.continuation.run explains the
re-warming). The short swap forks from the control at step 133,000. By then, Adam's moments have had
20,000 updates to recover.

PYTHIA_PAPER_MODELS is "hub" or a folder with pythia-SIZE-deduped/step113000. PYTHIA_PAPER_DATA is
"pile-deduped" (read over the network) or a folder with the needed shards. Missing files are
reported before anything is downloaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_book.released.continuation.data import TokenFileData
from pythia_book.released.continuation.plan import Plan, make_plan
from pythia_book.released.continuation.run import find_or_continue
from pythia_book.released.continuation.start import find_source, published_train
from pythia_book.released.download import locate
from pythia_book.studies.gender_bias.params import SWAP
from pythia_core.config import TrainConfig
from pythia_core.errors import CheckpointError, ConfigError
from pythia_core.suite import Scale, scale_named, size_named

if TYPE_CHECKING:
    from pythia_book.studies.gender_bias.params import Params
    from pythia_core.training.runs import Run

MODELS, DATA = "PYTHIA_PAPER_MODELS", "PYTHIA_PAPER_DATA"
LONG, SHORT, END = 113, 133, 143
"""Evenly spaced checkpoints: the start of the long and of the short swap, and the last one."""


def _source(size: str) -> str:
    """Return the repository or folder of a released model, according to PYTHIA_PAPER_MODELS."""
    where, name = os.environ.get(MODELS) or "hub", f"pythia-{size}-deduped"
    return f"EleutherAI/{name}" if where == "hub" else str(Path(where).expanduser() / name)


def _train(scale: Scale, size: str) -> TrainConfig:
    """Return the training settings of the released model of this size."""
    shape = size_named(size)
    schedule = {"lr_max": shape.lr_max, "steps": scale.steps, "batch_size": scale.batch_size}
    return published_train(shape.model(50_304), scale.data.seq_len, **schedule)


def _rows(scale: Scale, size: str) -> TokenFileData:
    """Return the released training rows in training order, with the model's tokenizer."""
    tokenizer = find_source(_source(size)).tokenizer_name(f"step{scale.fork_step(LONG)}")
    return TokenFileData(os.environ.get(DATA) or "pile-deduped", tokenizer, scale.data.seq_len)


def plans(params: Params) -> list[Plan]:
    """Return two plans per size: one for control and long swap, then one for the short swap.

    Raises:
        CheckpointError: a released model is missing.
        DataError: there are no training rows, or too few.
    """
    scale, all_plans = scale_named(params.scale), []
    long, short, end = (scale.fork_step(i) for i in (LONG, SHORT, END))
    for size in params.size_list:
        rows, train = _rows(scale, size), _train(scale, size)
        model = size_named(size).model(50_304)
        model_and_train = (_source(size), model, train)
        all_plans.append(make_plan(*model_and_train, long, end - long, rows, swap=True))
        all_plans.append(make_plan(*model_and_train, short, end - short, rows, swap=False))
    return all_plans


def check(params: Params) -> None:
    """Check that the released models and data are there, and that there is only one seed.

    Raises:
        ConfigError: something is missing, or there are several seeds. The message lists what is
            missing, with sizes and hours.
    """
    if params.seeds != 1:
        raise ConfigError(
            f"with --scale paper, seeds must be 1, got {params.seeds}: each released "
            "model has only one seed"
        )
    missing = [
        f"set {name} to {value}"
        for name, value in (
            (MODELS, '"hub" or a folder with pythia-SIZE-deduped/step113000'),
            (DATA, '"pile-deduped" (over the network) or a folder with the needed shards'),
        )
        if not os.environ.get(name)
    ]
    first = f"step{scale_named(params.scale).fork_step(LONG)}"
    for size in params.size_list if os.environ.get(MODELS, "hub") != "hub" else ():
        try:
            locate(_source(size), first)
        except CheckpointError as error:
            missing.append(str(error))
    if missing:
        lines = [line for plan in _plans_or_none(params) for line in plan.lines]
        raise ConfigError("\n  ".join(["cannot start with --scale paper:", *missing, *lines]))
    all_plans = plans(params)
    if any(plan.missing_shards for plan in all_plans):
        lines = [line for plan in all_plans for line in plan.lines]
        raise ConfigError(
            "\n  ".join(["cannot start with --scale paper: shards are missing:", *lines])
        )


def _plans_or_none(params: Params) -> list[Plan]:
    """Return `plans`, or an empty list if a released model is missing."""
    try:
        return plans(params)
    except CheckpointError:  # already in the message
        return []


def find_or_continue_arms(params: Params, progress: bool = True) -> dict[tuple[str, int, str], Run]:
    """Find or train each size's control and two swaps, as {(size, 0, arm): run}."""
    scale = scale_named(params.scale)
    long, short, end = (scale.fork_step(i) for i in (LONG, SHORT, END))
    arms: dict[tuple[str, int, str], Any] = {}
    for size in params.size_list:
        long_swap = find_or_continue(
            _source(size),
            long,
            end - long,
            _rows(scale, size),
            SWAP,
            train_config=_train(scale, size),
            progress=progress,
        )
        control = long_swap.control
        short_swap = find_or_continue(
            control.folder, short, end - short, None, SWAP, progress=progress
        )
        arms |= {(size, 0, "control"): control, (size, 0, "swap_7"): short_swap}
        arms[size, 0, "swap_21"] = long_swap
    return arms
