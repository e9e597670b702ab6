"""Lists the studies, the runs of each study, and the checkpoints that runs keep.

A study is a folder next to this file, with a params.py. If params.py defines a function `runs`, the
study trains runs that other studies can read. So a run keeps every checkpoint that any study reads,
whichever study trains the run.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from graphlib import TopologicalSorter
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pythia_book import studies
from pythia_book.corpora.wheels import WHEELS
from pythia_book.study import StudyParams
from pythia_core.config import DataConfig, RunConfig
from pythia_core.data.downloads import wheel, wheel_bytes
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import scale_named, size_name
from pythia_core.training.retention import Keep

if TYPE_CHECKING:
    from pythia_core.training.runs import Run

# --- the studies -----------------------------------------------------------------------------


def _load_studies() -> dict[str, ModuleType]:
    """Map the name of every study to its params module, in the order to run them.

    A study reads runs of the studies that its AFTER lists, and comes after these studies. Otherwise
    the order is alphabetical. So the budget counts a shared run under the study that trains it.
    """
    by_name = {}
    for package in pkgutil.iter_modules(studies.__path__, f"{studies.__name__}."):
        if package.ispkg and find_spec(f"{package.name}.params"):
            name = package.name.rpartition(".")[2]
            by_name[name] = importlib.import_module(f"{package.name}.params")
    sorter = TopologicalSorter({name: getattr(p, "AFTER", ()) for name, p in by_name.items()})
    sorter.prepare()
    order: list[str] = []
    while ready := sorted(sorter.get_ready()):
        order += ready
        sorter.done(*ready)
    return {name: by_name[name] for name in order if name in by_name}


_STUDIES_BY_NAME = _load_studies()
ALL = tuple(_STUDIES_BY_NAME)
"""All studies, in the order to run them."""
STUDIES = tuple(name for name, module in _STUDIES_BY_NAME.items() if hasattr(module, "runs"))
"""The studies that have runs, in the order to run them."""


def params_of(study: str) -> Any:
    """Return the params module of a study.

    Raises:
        ConfigError: the study is unknown.
    """
    if study not in _STUDIES_BY_NAME:
        raise ConfigError(one_of(study, _STUDIES_BY_NAME, "study"))
    return _STUDIES_BY_NAME[study]


# --- their runs ------------------------------------------------------------------------------


def runs_with(params: StudyParams) -> list[RunConfig]:
    """Return the configs of a study's runs with these parameters; [] if the study has no runs."""
    module = sys.modules[type(params).__module__]
    return list(dict.fromkeys(module.runs(params))) if hasattr(module, "runs") else []


def runs_of(study: str, scale: str) -> list[RunConfig]:
    """Return the configs of a study's runs with default parameters, without duplicates.

    [] for a study without runs.

    Raises:
        ConfigError: the study or scale is unknown, or the default parameters do not suit the scale.
    """
    module = params_of(study)
    scale_named(scale)
    return runs_with(module.Params(scale))


def all_runs(scale: str, studies: Sequence[str] = STUDIES) -> list[RunConfig]:
    """Return the configs of the runs of several studies, without duplicates.

    A control (a run on unchanged data) comes before the runs that fork from it.
    """
    return list(dict.fromkeys(run for study in studies for run in runs_of(study, scale)))


def texts_of(scale: str, studies: Sequence[str] = STUDIES) -> list[DataConfig]:
    """Return the configs of all texts that several studies read, without duplicates.

    These are the texts of the studies' runs, and the texts that the function `texts` in a study's
    params module returns.
    """
    texts = [run.data for run in all_runs(scale, studies)]
    for module in map(params_of, studies):
        texts += module.texts(module.Params(scale)) if hasattr(module, "texts") else []
    return list(dict.fromkeys(texts))


def wheels_of(scale: str, studies: Sequence[str] = STUDIES) -> list[str]:
    """Return the names of the wheels (packages of data) that several studies measure with.

    Wheels hold evaluation items, or training text that a study reads again.
    """
    wheels: set[str] = set()
    for module in map(params_of, studies):
        wheels |= set(module.wheels(module.Params(scale))) if hasattr(module, "wheels") else set()
    return sorted(wheels)


# --- retention -------------------------------------------------------------------------------


def keep(scale: str, run: RunConfig, *more_params: StudyParams) -> Keep | None:
    """Return which checkpoints of `run` to keep if the run is large; None means all checkpoints.

    The kept checkpoints are the first, the last, and every checkpoint that some study reads with
    its default parameters or with parameters in `more_params`.
    """
    params = list(more_params)
    for module in (m for m in _STUDIES_BY_NAME.values() if hasattr(m, "keep")):
        with contextlib.suppress(ConfigError):  # the study does not have this scale
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
    """Find or train a study's runs, and keep the checkpoints that any study reads.

    `configs` and the result have the same keys. `params` are the parameters of this study; the
    other studies are assumed to use their default parameters.

    Raises:
        ConfigError: this machine's memory cannot hold one of the models.
        FetchError: a wheel that the study measures with is not available. As with the memory, this
            is checked before any training.
        The errors of pythia_core.training.runs.find_or_train_all.
    """
    return train_together([params], configs, progress)


def train_together(
    all_params: Sequence[StudyParams], configs: dict[Any, RunConfig], progress: bool = True
) -> dict[Any, Run]:
    """Do the same as `train_all`, but for several studies at once, given the parameters of each."""
    from pythia_core.training.runs import find_or_train_all  # needs torch, a redraw does not

    _check_memory(configs.values())
    for params in all_params:
        module = sys.modules[type(params).__module__]
        names = module.wheels(params) if hasattr(module, "wheels") else ()
        for pin in (WHEELS[name] for name in names):
            if pin.members:
                for member in pin.members:
                    wheel_bytes(pin, member)
            else:
                wheel(pin, progress)
    return find_or_train_all(configs, progress, partial(_keep_for, all_params))


def _check_memory(configs: Iterable[RunConfig]) -> None:
    """Raise ConfigError if a model's weights and optimizer state exceed this machine's memory."""
    from pythia_core.training.gpu_sharing import device_bytes
    from pythia_core.training.memory import state_bytes
    from pythia_core.util.machine import memory_bytes

    largest = max(configs, key=lambda config: config.model.n_params, default=None)
    if largest is None:
        return
    memory = device_bytes() or memory_bytes()
    needed = state_bytes(largest.model, largest.train.precision)
    if needed > memory:
        raise ConfigError(
            f"training {size_name(largest.model)} needs "
            f"{needed / 1e9:.0f} GB for weights and optimizer, but this machine has "
            f"{memory / 1e9:.0f} GB; choose smaller sizes"
        )


def _keep_for(all_params: Sequence[StudyParams], run: RunConfig) -> Keep | None:
    """Return the result of `keep` for `all_params` and the default parameters of all studies."""
    return keep(all_params[0].scale, run, *all_params)
