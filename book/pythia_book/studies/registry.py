"""Finds the studies that train models, their runs, and the checkpoints that a run keeps.

A study is a folder next to this file. If its params.py has a function `runs`, it is listed here,
counted by pythia_book.budget and packed by pythia_book.bundle. Studies share runs, so a run keeps
whatever any study reads, no matter which one trains it.
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
from typing import TYPE_CHECKING, Any

from pythia_book import studies
from pythia_book.study import StudyParams
from pythia_core.config import DataConfig, RunConfig
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import scale_named
from pythia_core.training.retention import Keep

if TYPE_CHECKING:
    from pythia_core.training.runs import Run

# --- the studies -----------------------------------------------------------------------------


def _load_studies() -> dict[str, ModuleType]:
    """Study -> its params.py, for studies that have runs, in the order to run them.

    A study comes after those in its AFTER, which train runs that it reads; otherwise the order is
    alphabetical. So budget counts shared runs with the study that trains them.
    """
    by_name = {}
    for package in pkgutil.iter_modules(studies.__path__, f"{studies.__name__}."):
        if package.ispkg and find_spec(f"{package.name}.params"):
            params = importlib.import_module(f"{package.name}.params")
            if hasattr(params, "runs"):
                by_name[package.name.rpartition(".")[2]] = params
    sorter = TopologicalSorter({name: getattr(p, "AFTER", ()) for name, p in by_name.items()})
    sorter.prepare()
    order: list[str] = []
    while ready := sorted(sorter.get_ready()):
        order += ready
        sorter.done(*ready)
    return {name: by_name[name] for name in order if name in by_name}


_STUDIES_BY_NAME = _load_studies()
STUDIES = tuple(_STUDIES_BY_NAME)
"""The studies that have runs, in the order to run them."""


def declared(study: str) -> Any:
    """The module params.py of a study.

    Raises:
        ConfigError: an unknown study.
    """
    if study not in _STUDIES_BY_NAME:
        raise ConfigError(one_of(study, _STUDIES_BY_NAME, "study"))
    return _STUDIES_BY_NAME[study]


# --- their runs ------------------------------------------------------------------------------


def runs_of(study: str, scale: str) -> list[RunConfig]:
    """The runs of a study with its default parameters, each once.

    Raises:
        ConfigError: an unknown study, or default parameters that do not suit the scale.
    """
    module = declared(study)
    scale_named(scale)
    return list(dict.fromkeys(module.runs(module.Params(scale))))


def all_runs(scale: str, studies: Sequence[str] = STUDIES) -> list[RunConfig]:
    """The runs of several studies, each once, controls before their forks."""
    return list(dict.fromkeys(run for study in studies for run in runs_of(study, scale)))


def texts_of(scale: str, studies: Sequence[str] = STUDIES) -> list[DataConfig]:
    """The data that several studies read, each once: of their runs, and as declared."""
    texts = [run.data for run in all_runs(scale, studies)]
    for module in map(declared, studies):
        texts += module.texts(module.Params(scale)) if hasattr(module, "texts") else []
    return list(dict.fromkeys(texts))


def wheels_of(scale: str, studies: Sequence[str] = STUDIES) -> list[str]:
    """Wheels that several studies declare: with items, or with text that they read again."""
    wheels: set[str] = set()
    for module in map(declared, studies):
        wheels |= set(module.wheels(module.Params(scale))) if hasattr(module, "wheels") else set()
    return sorted(wheels)


# --- retention -------------------------------------------------------------------------------


def keep(scale: str, run: RunConfig, *more_params: StudyParams) -> Keep | None:
    """The checkpoints that a run keeps if it is large; None: all.

    These are the first and last weights, and whatever any study reads with its default parameters
    or with those in `more_params`.
    """
    params = list(more_params)
    for module in _STUDIES_BY_NAME.values():
        with contextlib.suppress(ConfigError):  # a study without this scale
            params.append(module.Params(scale))
    retained = Keep(frozenset({0, run.train.steps}))
    for study_params in params:
        needed = sys.modules[type(study_params).__module__].keep(study_params, run)
        if needed is None:
            return None
        retained |= needed
    return retained


def train_all(
    params: StudyParams, configs: dict[Any, RunConfig], progress: bool = True
) -> dict[Any, Run]:
    """Find or train a study's runs; they keep all that any study reads, this one with `params`.

    Raises:
        As pythia_core.training.runs.find_or_train_all.
    """
    from pythia_core.training.runs import find_or_train_all  # with torch, which a redraw spares

    return find_or_train_all(configs, progress, partial(_keep_for, params))


def _keep_for(params: StudyParams, run: RunConfig) -> Keep | None:
    return keep(params.scale, run, params)
