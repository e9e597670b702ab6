"""Trains and measures what studies need, together with other workers on any machines.

All workers do the same: they find or train the runs of the studies, and then measure, study by
study. Each run and each measurement is done by the worker that leases it (pythia_core.util.leases),
and the others find its result. A worker writes no record and no notebook: afterwards, the notebooks
find all results.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pythia_book import notebooks
from pythia_book.studies import registry
from pythia_core.errors import ConfigError, PythiaError, raise_all
from pythia_core.suite import scale_named, size_name
from pythia_core.util.machine import DEVICES
from pythia_core.util.progress import print_line


def shared_studies() -> list[str]:
    """Return the studies that workers can share: all that train models."""
    modules = {study: registry.params_of(study) for study in registry.ALL}
    return [study for study, m in modules.items() if hasattr(m, "runs") or hasattr(m, "models")]


def values_of(
    studies: Sequence[str], scale: str | None, parameters: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the values of all parameters of each study, with those of its notebook as defaults.

    Raises:
        ConfigError: a study is unknown, trains no models, or does not accept a value.
    """
    given = {**parameters, **({"scale": scale} if scale is not None else {})}
    values, shared = {}, shared_studies()
    for study in studies:
        notebook = notebooks.read_notebook(notebooks.notebook_path(study))
        if study not in shared:
            raise ConfigError(
                f"{study} trains no models that workers could share; studies that do: "
                f"{', '.join(shared)}"
            )
        values[study] = notebooks.validate_parameters(notebook, given)
        notebooks.check_values(study, values[study])
    return values


def take_device(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the GPU for this process if srun shows several processes the same GPUs, else None.

    A process that is alone on its node uses all of them.
    """
    names = [name for name in environment.get(DEVICES, "").split(",") if name.strip()]
    local = environment.get("SLURM_LOCALID", "")
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")  # e.g. 8(x2),4: nodes, too
    alone = {part.partition("(")[0] for part in per_node.split(",")} == {"1"}
    if len(names) < 2 or not local.isdecimal() or alone:
        return None
    return names[int(local) % len(names)]


def work(values: Mapping[str, dict[str, Any]], progress: bool = True) -> None:
    """Train and measure what studies need and no other worker is doing, until all is done.

    Args:
        values: maps each study to the values of its parameters.

    Raises:
        PythiaError: a study has failed; the others are done.
    """
    from pythia_core.training.runs import arm_label  # imports torch, which `--help` does not need

    params = {study: registry.params_of(study).Params(**v) for study, v in values.items()}
    for scale in dict.fromkeys(chosen.scale for chosen in params.values()):
        if scale_named(scale).published:
            continue
        of_scale = [chosen for chosen in params.values() if chosen.scale == scale]
        # the runs of all studies at once, so that nobody waits in between
        runs = dict.fromkeys(run for chosen in of_scale for run in registry.runs_with(chosen))
        named = {
            (size_name(run.model), arm_label(run), number): run for number, run in enumerate(runs)
        }
        registry.train_together(of_scale, named, progress)
    problems = []
    for study, chosen in params.items():
        try:
            importlib.import_module(f"pythia_book.studies.{study}.study").run(chosen, progress)
        except PythiaError as error:
            problems.append(f"{study}: {error}")
            print_line(f"error: {problems[-1]}")
            continue
        print_line(f"== {study}: everything is trained and measured")
    raise_all(PythiaError, problems, f"{len(problems)} of {len(params)} studies failed")
