"""Estimates what the studies still have to train, and how long that takes.

Training time is estimated for the missing models only, at the speed at which this machine has
trained others; if it has trained none, at the speed of a recorded run. The time for measuring and
drawing is taken from the last run here, or else from the recorded run, and scaled by the number of
models.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pythia_book import notebooks, records
from pythia_book.records import device_text, duration_text
from pythia_book.studies import registry
from pythia_core.config import RunConfig, config_dict, run_config_from_dict, stable_hash
from pythia_core.errors import ConfigError, DataError, PythiaError, count_of, raise_all
from pythia_core.suite import scale_named
from pythia_core.util.files import project_root, results_dir
from pythia_core.util.machine import visible_devices
from pythia_core.util.workers import n_workers

SAMPLE = 30
"""Maximum number of finished runs from which the speed of this machine is read."""


@dataclass(frozen=True)
class Finished:
    """The finished runs in the results folder that this machine and code would find again."""

    folders: dict[str, Path]
    """Maps the hash of a run's config to the run's folder."""

    @classmethod
    def find(cls) -> Finished:
        """Read the identities of all finished runs; damaged runs are left out."""
        from pythia_core.training.execution import Execution
        from pythia_core.training.runs import code_identity, read_identity

        code, folders = code_identity(Execution.from_environment()), {}
        for done in sorted((results_dir() / "runs").glob("*/done.json")):
            with contextlib.suppress(PythiaError, KeyError, AttributeError):
                identity = read_identity(done.parent)
                if code.items() <= identity["code"].items():  # several processes add to it
                    folders[stable_hash(identity["config"])] = done.parent
        return cls(folders)

    def has(self, config: RunConfig) -> bool:
        """Return whether the run of a config is finished."""
        return stable_hash(config_dict(config)) in self.folders

    @cached_property
    def seconds_per_flop(self) -> float | None:
        """The seconds that one thread of this machine takes per FLOP of training; None: unknown."""
        from pythia_core.training.metrics import read_metrics
        from pythia_core.training.runs import read_identity, run_flops

        seconds = flops = 0.0
        for folder in [*self.folders.values()][:SAMPLE]:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, PythiaError):
                identity = read_identity(folder)
                if "processes" in identity["code"]:
                    continue  # trained on several devices
                config = run_config_from_dict(identity["config"])
                tokens = config.train.batch_size * config.data.seq_len
                rows = read_metrics(folder / "metrics.jsonl")
                seconds += sum(tokens / row["tokens_per_s"] for row in rows)
                flops += run_flops(config)
        return seconds / flops if seconds and flops else None


def models_of(study: str, parameters: dict[str, Any]) -> list[RunConfig]:
    """Return the configs of the models that a study trains or finds, without duplicates.

    These are the study's runs or, if it has none, the models that it trains for itself (the
    function `models` of its params.py). At the scale `paper`, there are none.

    Raises:
        ConfigError: a parameter is not accepted.
    """
    module = registry.params_of(study) if study in registry.ALL else None
    models = getattr(module, "runs", None) or getattr(module, "models", None)
    if module is None or models is None or scale_named(parameters["scale"]).published:
        return []
    return list(dict.fromkeys(models(module.Params(**parameters))))


@dataclass(frozen=True)
class Plan:
    """What a study has to do before its results are up to date."""

    study: str
    last: float | None = None
    """The seconds that the last run of the study on this machine took; None: there was none."""
    models: int = 0
    """Number of models that the study reads."""
    missing: tuple[RunConfig, ...] = ()
    """The configs of those that are not trained yet."""
    seconds: float | None = None
    """Rough time until the study is finished, without other studies; None: unknown."""
    source: str = ""
    """What `seconds` was estimated from."""
    current: bool = False
    """Whether the results are up to date, so that there is nothing to do."""

    def text(self) -> str:
        """Return the plan in one line, e.g. "3 of 16 models to train, about 4 min"."""
        if self.current:
            return f"up to date (took {duration_text(self.last or 0)})"
        parts = [f"{len(self.missing)} of {self.models} models to train"] if self.models else []
        parts += [f"about {_rounded(self.seconds)}"] if self.seconds else []
        parts += [f"last time {duration_text(self.last)}"] if self.last else []
        return ", ".join(parts) or "never run before"


def _rounded(seconds: float) -> str:
    """Format an estimate, in whole minutes if it is above five minutes."""
    whole = 60 * round(seconds / 60) if seconds > 300 else seconds
    return duration_text(whole).removesuffix(" 0 s")


def plan_of(
    study: str,
    parameters: dict[str, Any],
    finished: Finished | None = None,
    planned: Collection[RunConfig] = (),
) -> Plan:
    """Plan a run of a study with these values of all parameters.

    Args:
        planned: configs of runs that another study will have trained.

    Raises:
        ConfigError: a parameter is not accepted.
    """
    runs = models_of(study, parameters)
    if runs and finished is None:
        finished = Finished.find()
    missing = tuple(r for r in runs if finished and not finished.has(r) and r not in planned)
    own, recorded = _records(study, parameters["scale"])
    last = float(own["duration_s"]) if own and own.get("duration_s") else None
    alone = study not in registry.STUDIES  # trains its models itself; which it keeps is unknown
    seconds, source = _estimate(study, runs, missing, own or recorded, finished, alone)
    if seconds and not source:
        source = "the last run here" if own else f"the recorded run ({device_text(recorded or {})})"
    models, shown = (0, ()) if alone else (len(runs), missing)
    return Plan(study, last, models, shown, seconds, source)


def _records(study: str, scale: str) -> list[dict[str, Any] | None]:
    """Return the record of the last run here, and that in book/recorded; None for a missing one."""
    both: list[dict[str, Any] | None] = []
    for root in (results_dir(), project_root() / "book" / "recorded"):
        try:
            both.append(records.read_record(root / study / scale))
        except DataError:
            both.append(None)
    return both


def _estimate(
    study: str,
    runs: Sequence[RunConfig],
    missing: Sequence[RunConfig],
    record: dict[str, Any] | None,
    finished: Finished | None,
    alone: bool,
) -> tuple[float | None, str]:
    """Estimate the seconds of a run (None: unknown); return also the source, "" for `record`.

    Args:
        alone: whether the time in `record` includes the training of its models.
    """
    if record is None:
        return None, ""
    measuring = float(record.get("duration_s") or 0)
    if not runs:
        return measuring, ""
    from pythia_core.training.runs import run_flops

    source = ""
    if alone:
        threads = (record.get("device") or {}).get("cores") or 1
        measuring = max(0.0, measuring - float(record.get("training_s") or 0) / threads)
    with contextlib.suppress(ConfigError, TypeError):  # the record is from an older version
        before = models_of(study, record["parameters"])
        measuring *= len(runs) / max(1, len(before))
        rate = float(record.get("training_s") or 0) / max(1.0, sum(map(run_flops, before)))
        if finished and finished.seconds_per_flop:
            rate, source = finished.seconds_per_flop, "models trained here"
        at_once = len(visible_devices()) or min(n_workers(), max(1, len(missing)))
        return measuring + rate * sum(map(run_flops, missing)) / at_once, source
    return None, ""


def start_message(study: str, parameters: dict[str, Any]) -> str:
    """Return the message at the start of a study: what is left to train, and the estimated time.

    Args:
        parameters: the values of all parameters; `scale` among them.
    """
    scale = parameters["scale"]
    text = f"== Running {study} at scale {scale}; data, models and measurements that exist are kept"
    if not any(_records(study, scale)):
        return text  # nothing to estimate from, so that torch need not be loaded
    try:
        plan = plan_of(study, parameters)
    except PythiaError:  # the notebook's kernel will say it
        return text
    source = f"\n   (estimated from {plan.source})" if plan.source else ""
    return f"{text}\n   {plan.text()}{source}"


def plans(studies: Sequence[str], scale: str | None, force: bool = False) -> list[Plan]:
    """Plan several studies with default parameters; a model counts for the first that needs it.

    Args:
        scale: the scale of all studies; None: each study's default.
        force: whether studies run even if they are up to date.

    Raises:
        ConfigError: a study is unknown, or does not accept the scale; the message names each one.
    """
    listed: list[Plan] = []
    problems: list[str] = []
    to_plan = []
    for study in studies:
        try:
            source = notebooks.read_notebook(notebooks.notebook_path(study))
            values = notebooks.validate_parameters(
                source, {"scale": scale} if scale is not None else {}
            )
            notebooks.check_values(study, values)
            to_plan.append((study, source, values))
        except ConfigError as error:
            problems.append(f"{study}: {error}")
    raise_all(ConfigError, problems, "studies")
    finished, planned = None, set[RunConfig]()
    for study, source, values in to_plan:
        folder = notebooks.output_path(study, values["scale"]).parent
        records.tidy(folder)
        stamp = notebooks.make_stamp(study, values, source)
        if not force and records.is_current(folder, stamp):
            last = records.read_record(folder).get("duration_s")
            listed.append(Plan(study, last, current=True))
            continue
        finished = finished or Finished.find()
        listed.append(plan_of(study, values, finished, planned))
        planned |= {*listed[-1].missing}
    return listed


def overview(listed: Sequence[Plan]) -> str:
    """Return what several studies will do, one line each, and how long it takes in all."""
    width = max(len(plan.study) for plan in listed)
    lines = [f"   {plan.study:{width}}  {plan.text()}" for plan in listed]
    due = [plan for plan in listed if not plan.current]
    if not due:
        return "\n".join(["== Every study is up to date", *lines])
    known = [plan for plan in due if plan.seconds]
    total = f"about {_rounded(sum(plan.seconds or 0 for plan in known))}"
    unknown = f", not counting {', '.join(p.study for p in due if p not in known)}"
    sources = " and ".join(dict.fromkeys(plan.source.partition(" (")[0] for plan in known))
    return "\n".join(
        [
            f"== {len(due)} of {len(listed)} studies to run, one after another; finished work is "
            "not repeated",
            *lines,
            f"   {count_of(sum(len(plan.missing) for plan in due), 'model')} to train in all; "
            + (f"{total}{unknown * (len(known) < len(due))}" if known else "time unknown"),
            *([f"   (estimated from {sources})"] if known else []),
        ]
    )
