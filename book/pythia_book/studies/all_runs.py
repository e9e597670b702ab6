"""Every run that the studies of a scale train, without training any.

For planning (pythia_book.bench.budget), for packing what a machine without a network needs
(pythia_book.bundle), and for the proof that a scale suits all studies. Not here: what a study does
with its runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from pythia_core.config import DataConfig, RunConfig
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import DATA_ARMS, scale_named, suite_configs


def _suite(study: str, scale: str, arms: Sequence[str] = DATA_ARMS) -> list[RunConfig]:
    params = importlib.import_module(f"pythia_book.studies.{study}.params").Params(scale)
    return list(suite_configs(scale, params.size_list, arms, params.seed).values())


def _term_frequency(scale: str) -> list[RunConfig]:
    from pythia_book.studies.term_frequency.params import Params

    return _suite("term_frequency", scale, (Params(scale).arm,))


def _gender_bias(scale: str) -> list[RunConfig]:
    from pythia_book.studies.gender_bias.params import ARMS, Params

    params = Params(scale)
    return [
        params.arm(size, i, arm)
        for size in params.size_list
        for i in range(params.seeds)
        for arm in ARMS
    ]


def _seeds(scale: str) -> list[RunConfig]:
    from pythia_book.studies.seeds.params import Params

    params = Params(scale)
    beside = suite_configs(scale, [params.neighbour_size], ["standard"])
    return [params.config(*cell) for cell in params.cells] + list(beside.values())


def _errata(scale: str) -> list[RunConfig]:
    from pythia_book.studies.errata.params import Params, run_configs

    return list(run_configs(Params(scale)).values())


def _repetition(scale: str) -> list[RunConfig]:
    from pythia_book.studies.repetition.params import Params, repetition_configs

    arms, once = repetition_configs(Params(scale))
    return [*arms.values(), *once.values()]


_RUNS: dict[str, Callable[[str], list[RunConfig]]] = {
    "phases": lambda scale: _suite("phases", scale, ("standard",)),
    "gender_bias": _gender_bias,
    "suite": lambda scale: _suite("suite", scale),
    "scaling": lambda scale: _suite("scaling", scale),
    "deduplication": lambda scale: _suite("deduplication", scale),
    "memorization": lambda scale: _suite("memorization", scale),
    "term_frequency": _term_frequency,
    "seeds": _seeds,
    "errata": _errata,
    "repetition": _repetition,
}

STUDIES = tuple(_RUNS)
"""The studies in the order in which a machine best runs them: phases first, whose runs keep every
checkpoint (pythia_core.training.retention); then those whose runs the others share."""


def runs_of(study: str, scale: str) -> list[RunConfig]:
    """The runs of a study with its default parameters, each once.

    Raises:
        ConfigError: an unknown study, or parameters that do not suit the scale.
    """
    if study not in _RUNS:
        raise ConfigError(one_of(study, _RUNS, "study"))
    scale_named(scale)
    return list(dict.fromkeys(_RUNS[study](scale)))


def all_runs(scale: str, studies: Sequence[str] = STUDIES) -> list[RunConfig]:
    """The runs of several studies, each once, controls before the forks that leave them."""
    return list(dict.fromkeys(run for study in studies for run in runs_of(study, scale)))


def data_of(runs: Sequence[RunConfig]) -> list[DataConfig]:
    """The data that runs read, each once."""
    return list(dict.fromkeys(run.data for run in runs))
