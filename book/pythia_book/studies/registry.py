"""Finds the studies that train something, their runs, and what a run keeps on disk.

A study is a folder next to this file. If its params.py has a function `runs`, it is listed here,
counted by pythia_book.budget and packed by pythia_book.bundle. Studies share runs, so a run keeps
whatever any of them reads, no matter which one trains it.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from functools import partial
from graphlib import TopologicalSorter
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from pythia_book import studies
from pythia_book.study import StudyParams
from pythia_core.config import DataConfig, RunConfig
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import scale_named
from pythia_core.training.retention import Keep
from pythia_core.training.runs import Run, find_or_train_all

# --- the studies -----------------------------------------------------------------------------


def _rooms() -> dict[str, ModuleType]:
    """params.py of every study that has runs, by the study's name, in the order to run them.

    Studies named in a study's AFTER come before it, because it reads runs that they train;
    otherwise the order is alphabetical. So budget counts shared runs where they are trained.
    """
    rooms = {}
    for room in pkgutil.iter_modules(studies.__path__, f"{studies.__name__}."):
        if room.ispkg and find_spec(f"{room.name}.params"):
            params = importlib.import_module(f"{room.name}.params")
            if hasattr(params, "runs"):
                rooms[room.name.rpartition(".")[2]] = params
    sorter = TopologicalSorter({name: getattr(room, "AFTER", ()) for name, room in rooms.items()})
    sorter.prepare()
    order: list[str] = []
    while ready := sorted(sorter.get_ready()):
        order += ready
        sorter.done(*ready)
    return {name: rooms[name] for name in order if name in rooms}


_ROOMS = _rooms()
STUDIES = tuple(_ROOMS)
"""The studies that have runs, in the order in which to run them."""


def declared(study: str) -> Any:
    """A study's params.py.

    Raises:
        ConfigError: an unknown study.
    """
    if study not in _ROOMS:
        raise ConfigError(one_of(study, _ROOMS, "study"))
    return _ROOMS[study]


# --- their runs ------------------------------------------------------------------------------


def runs_of(study: str, scale: str) -> list[RunConfig]:
    """The runs of a study with its default parameters, each once.

    Raises:
        ConfigError: an unknown study, or parameters that do not suit the scale.
    """
    room = declared(study)
    scale_named(scale)
    return list(dict.fromkeys(room.runs(room.Params(scale))))


def all_runs(scale: str, studies: Sequence[str] = STUDIES) -> list[RunConfig]:
    """The runs of several studies, each once, controls before their forks."""
    return list(dict.fromkeys(run for study in studies for run in runs_of(study, scale)))


def texts_of(scale: str, studies: Sequence[str] = STUDIES) -> list[DataConfig]:
    """The data that several studies read, each once: that of runs, and what else they declare."""
    texts = [run.data for run in all_runs(scale, studies)]
    for room in map(declared, studies):
        texts += room.texts(room.Params(scale)) if hasattr(room, "texts") else []
    return list(dict.fromkeys(texts))


def wheels_of(scale: str, studies: Sequence[str] = STUDIES) -> list[str]:
    """Wheels that several studies read as they run: of items, and of text that is read again."""
    wheels: set[str] = set()
    for room in map(declared, studies):
        wheels |= set(room.wheels(room.Params(scale))) if hasattr(room, "wheels") else set()
    return sorted(wheels)


# --- what runs keep --------------------------------------------------------------------------


def keep(scale: str, run: RunConfig, *also: StudyParams) -> Keep | None:
    """What a run keeps if it is large; None: everything.

    That is whatever any study reads from it with its default parameters, or with those in `also`;
    and always the first and the last weights.
    """
    params = list(also)
    for room in _ROOMS.values():
        with contextlib.suppress(ConfigError):  # a study without this scale
            params.append(room.Params(scale))
    kept = Keep(frozenset({0, run.train.steps}))
    for study_params in params:
        needed = sys.modules[type(study_params).__module__].keep(study_params, run)
        if needed is None:
            return None
        kept |= needed
    return kept


def train_all(
    params: StudyParams, configs: dict[Any, RunConfig], progress: bool = True
) -> dict[Any, Run]:
    """Find or train a study's runs; they keep whatever any study reads, this one with `params`.

    Raises:
        As pythia_core.training.runs.find_or_train_all.
    """
    return find_or_train_all(configs, progress, partial(_keep_for, params))


def _keep_for(params: StudyParams, run: RunConfig) -> Keep | None:
    return keep(params.scale, run, params)
