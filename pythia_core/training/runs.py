"""Find a run by its identity, or train it. Runs are stored in results/runs.

The identity of a run is everything on which its weights depend bitwise: config, fingerprint of the
data, versions of torch and of this code, kernels, kind of device, and the number of processes if
there are several. A hash of the identity is part of the name of the run's folder. A finished run is
loaded, and a stopped run is continued, whatever number of processes started it.

A fork is a run with an intervention (a change to its training text). Its control is the same run
without the intervention, and is found or trained first. The fork starts from the control's exact
state at the branching step, and then reads the control's batches with the changes.
"""

from __future__ import annotations

import contextlib
import glob
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from pythia_core.config import (
    RunConfig,
    config_dict,
    config_differences,
    run_config_from_dict,
    stable_hash,
)
from pythia_core.data.interventions import Ledger
from pythia_core.data.order import batch_hash
from pythia_core.data.prepare import PreparedData, TokenizedText, prepare, tokenizer_source
from pythia_core.errors import CheckpointError, ConfigError, DataError, TakenElsewhere, count_of
from pythia_core.kernels import native, use_triton
from pythia_core.model import GPTNeoX
from pythia_core.training.checkpoint import (
    REPAIR,
    duplicate_steps,
    load_checkpoint,
    newest_loadable,
    saved_steps,
    sha256_tensors,
    step_folder,
    steps_with_weights,
    weight_hashes,
)
from pythia_core.training.completion import (
    DONE,
    FILES,
    FOLDERS,
    RESTORE_ADVICE,
    check_against_state,
    check_file,
    check_run_files,
    check_step,
    read_done,
    write_done,
)
from pythia_core.training.distributed import ALONE, World, check_memory, plan_state
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.gpu_sharing import limit_memory
from pythia_core.training.lineage import TESTED_UP_TO, continues
from pythia_core.training.memory import run_bytes
from pythia_core.training.metrics import flops_per_token, read_metrics
from pythia_core.training.retention import Keep, prune_during_training, prune_run
from pythia_core.training.schedule import PAPER_FORKS, checkpoint_steps, linear_steps
from pythia_core.training.sharding import unsharded
from pythia_core.training.train import LEASE, Saving, Start, train
from pythia_core.training.trainer import State
from pythia_core.util.extensions import registered
from pythia_core.util.files import is_intact, json_object, results_dir, write_json
from pythia_core.util.leases import is_free
from pythia_core.util.machine import device_info, keep_freed_memory
from pythia_core.util.workers import n_workers, parallel_map

# --- identity --------------------------------------------------------------------------------

TRAJECTORY_VERSION = 4
"""Part of every run's identity: raise it when a change to the code alters trained weights."""


def run_identity(
    config: RunConfig, data: str, execution: Execution = EAGER, world: World = ALONE
) -> dict[str, Any]:
    """Return the identity of a run; the keys are "config", "data" (fingerprint) and "code"."""
    return {"config": config_dict(config), "data": data, "code": code_identity(execution, world)}


def code_identity(execution: Execution = EAGER, world: World = ALONE) -> dict[str, Any]:
    """Return the part of a run's identity that depends on the code and the machine.

    The keys are "trajectory" (TRAJECTORY_VERSION), "torch" (major and minor version), "device"
    ("cpu", or the model of the GPU, because libraries choose their algorithms by it) and "kernels"
    (see `Execution.backend`). With several processes, "processes" is their number when the run
    started, and "sharded" how many of them share one copy of the state, if they do.

    Raises:
        ConfigError: this machine's device does not support the execution mode.
    """
    major, minor = torch.__version__.split(".")[:2]
    info = device_info()
    kind = info["kind"]
    execution.check(kind)
    if kind == "cuda":
        kernels = "triton" if use_triton(torch.empty(0, device=kind)) else "torch"
    else:
        kernels = "native" if native.library() else "torch"
    return {
        "trajectory": TRAJECTORY_VERSION,
        "torch": f"{major}.{minor}",
        "device": info["device"] if kind == "cuda" else kind,
        "kernels": execution.backend(kernels, kind),
        **world.identity,
    }


def find_folder(name: str, identity: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return the folder of the run with this identity, and the identity of the run that is there.

    A run that was started with a different number of processes differs only in the last bits of
    its weights. So if no run with exactly this identity was started, such a run is found instead: a
    finished one, or else one with saved states. If there is none, the folder does not exist yet.

    Args:
        name: the beginning of the folder's name, which also has the number of processes if there
            are several, and a hash of the identity.
    """
    exact, alone = _named(name, identity), _without_processes(identity)
    if _progress(exact):
        return exact, identity
    candidates = [_named(name, alone), *sorted(exact.parent.glob(f"{glob.escape(name)}-x*-*"))]
    matches = [(0, exact, identity)]
    for folder in filter(_progress, candidates):
        with contextlib.suppress(CheckpointError, KeyError, AttributeError):  # damaged
            other = read_identity(folder)
            if _without_processes(other) == alone:
                matches.append((_progress(folder), folder, other))
    return max(matches, key=lambda each: each[0])[1:]


def _without_processes(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity as one process would give it to the same run."""
    code = {k: v for k, v in identity["code"].items() if k not in ("processes", "sharded")}
    return identity | {"code": code}


def _named(name: str, identity: dict[str, Any]) -> Path:
    """Return the path of the folder of the run with exactly this identity."""
    processes = identity["code"].get("processes", 1)
    suffix = f"-x{processes}" if processes > 1 else ""
    return results_dir() / "runs" / f"{name}{suffix}-{stable_hash(identity)[:12]}"


def _progress(folder: Path) -> int:
    """Return 2 if the run in a folder is finished, 1 if it has saved states, else 0."""
    return 2 if (folder / DONE).exists() else int(bool(saved_steps(folder / "states")))


def read_identity(folder: Path) -> dict[str, Any]:
    """Return the identity of the run in a folder.

    Raises:
        CheckpointError: the file with the identity is missing or damaged.
    """
    try:
        return json_object((folder / "identity.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not the folder of a run, because its identity.json cannot be read "
            f"({error}). The folders of runs are in {results_dir() / 'runs'}; if it is one of "
            "them, delete it and train the run again"
        ) from error


def claim_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Write the identity of a run into its folder, or check the identity that it has already.

    Raises:
        CheckpointError: the folder belongs to a run with another identity, its done.json does, or
            one of these files is damaged.
    """
    if not (folder / "identity.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "identity.json", identity)
        return
    recorded = read_identity(folder)
    if recorded != identity:
        differing = "; ".join(config_differences(identity, recorded))
        raise CheckpointError(
            f"{folder} belongs to a run with other settings (requested != recorded): "
            f"{differing}. Move the folder away, or request the recorded settings."
        )
    check_file(folder, "identity.json")


# --- runs ------------------------------------------------------------------------------------

Key = TypeVar("Key")
TrainJob = tuple[RunConfig, Keep | None]
ROW = ("step", "loss", "lr", "grad_norm", "batch_hash", "tokens_per_s")
"""Keys of every row of a run's log."""
CORE_FLOPS = 5e10
"""Approximate FLOP/s of one core in training; only for a warning."""
LONG_HOURS = 12
"""Without a GPU, warn before training that would take longer than this."""
DIFFERENT = (
    "Start all of them with the same command and the same versions, on GPUs of one kind, and set "
    "PYTHIA_RESULTS to one folder that all of them see"
)
"""Advice for processes that would train different runs."""
SHORT = 1e12
"""FLOP below which training takes less time than starting a worker process."""


class CheckpointSource(Protocol):
    """A model at several steps of its training: a run, or a published model."""

    @property
    def id(self) -> str: ...

    @property
    def name(self) -> str:
        """The name of the model in messages."""

    @property
    def label(self) -> str:
        """The name of the model in tables."""

    @property
    def deduped(self) -> bool:
        """Whether the model was trained on deduplicated text."""

    @property
    def folder(self) -> Path:
        """The folder in which measurements of the model are stored."""

    @property
    def config(self) -> RunConfig: ...

    @property
    def data(self) -> TokenizedText: ...

    @property
    def steps(self) -> list[int]:
        """The steps whose weights exist."""

    @property
    def scheduled_steps(self) -> list[int]:
        """The steps whose weights are saved when training is complete."""

    def model(self, step: int | None = None) -> GPTNeoX: ...


@dataclass(frozen=True)
class Run:
    """A run in its folder on disk, whether finished, unfinished or not yet started."""

    folder: Path
    config: RunConfig
    data: PreparedData

    def __reduce__(self) -> tuple:
        """Pickle the run without its ledger, which is read again after unpickling."""
        return Run, (self.folder, self.config, self.data)

    @property
    def id(self) -> str:
        """The first 12 hex digits of the hash of the run's identity."""
        return stable_hash(read_identity(self.folder))[:12]

    @property
    def name(self) -> str:
        return f"run {self.id}"

    @property
    def label(self) -> str:
        return self.id

    @property
    def deduped(self) -> bool:
        """Whether the run trains on deduplicated text."""
        return self.config.data.dedup != "none"

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's saved weights."""
        return self.folder / "checkpoints"

    @property
    def states(self) -> Path:
        """The folder of the run's saved states, from which training can resume."""
        return self.folder / "states"

    @property
    def steps(self) -> list[int]:
        """The steps with saved weights; in a fork, from the branching step on."""
        return steps_with_weights(self.checkpoints)

    @property
    def updates(self) -> range:
        """The run's updates: update k leads from step k to step k + 1."""
        return self.config.updates

    @property
    def scheduled_steps(self) -> list[int]:
        """The steps whose weights the run saves by the time it is finished."""
        return [s for s in checkpoint_steps(self.config.train.steps) if s >= self.updates.start]

    @cached_property
    def ledger(self) -> Ledger | None:
        """The record of all tokens that the intervention changes; None without an intervention."""
        window = self.config.intervention
        if window is None:
            return None
        return self.data.changes(window, self.config.train.batch_size, self.folder)

    @property
    def tokens_changed(self) -> int:
        """The number of tokens that the intervention changes; 0 without an intervention."""
        return len(self.ledger.row) if self.ledger is not None else 0

    def batch(self, step: int) -> np.ndarray:
        """Return the batch of the update from `step`, (batch_size, S+1), with a fork's changes.

        Raises:
            DataError: the run has no such update.
        """
        size = self.config.train.batch_size
        if not 0 <= step < self.config.train.steps:
            raise DataError(
                f"there is no update from step {step}; this run has the updates "
                f"0..{self.config.train.steps - 1}"
            )
        batch = self.data.batch(step, size)
        return batch if self.ledger is None else self.ledger.apply(batch, step * size)

    def model(self, step: int | None = None) -> GPTNeoX:
        """Load the model at a saved step (default: the last), in fp32, ready to evaluate.

        Raises:
            CheckpointError: the checkpoint does not exist, is corrupt or belongs to another run.
        """
        step = self.updates.stop if step is None else step
        self.require_step(step)
        keep_freed_memory()
        check_step(self.folder, "checkpoints", step)
        files, _ = load_checkpoint(step_folder(self.checkpoints, step))
        model = GPTNeoX(self.config.model)
        model.load_state_dict({name: t.float() for name, t in files["model"].items()})
        return model.eval().requires_grad_(False)

    def require_step(self, step: int) -> None:
        """Raise a CheckpointError if there are no saved weights of a step."""
        steps = self.steps
        if step not in steps:
            near = map(str, sorted(sorted(steps, key=lambda s: abs(s - step))[:4]))
            raise CheckpointError(
                f"run {self.id} has no checkpoint of step {step}; "
                + (
                    f"the nearest of its checkpoints: {', '.join(near)}"
                    if steps
                    else "it has no checkpoint with weights yet"
                )
            )

    def state(self, step: int) -> State:
        """Load the saved training state of a step, as one process would have saved it.

        Raises:
            CheckpointError: the state does not exist, is corrupt or belongs to another run.
        """
        check_step(self.folder, "states", step)
        files = load_checkpoint(step_folder(self.states, step))[0]
        return unsharded(files, self.config.model)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of the run's log, a dict for each update.

        The keys are step, loss, lr, grad_norm, batch_hash and tokens_per_s; in fp16, also
        loss_scale and skipped.

        Raises:
            DataError: a row is malformed.
            CheckpointError: the run is finished, and the log has changed since.
        """
        check_file(self.folder, "metrics.jsonl")
        return read_metrics(self.folder / "metrics.jsonl", ROW)

    @property
    def _done(self) -> Path:
        """The file that exists if the run is finished."""
        return self.folder / DONE

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end."""
        return self._done.exists()

    @property
    def final_sha256(self) -> str:
        """The hash of the final fp32 weights.

        Raises:
            CheckpointError: the run is not finished, or the file that stores the hash is damaged.
        """
        return read_done(self.folder)["final_sha256"]

    @property
    def seconds(self) -> float:
        """The seconds spent in the updates of the log; a repeated update counts only once."""
        tokens = self.config.train.batch_size * self.config.data.seq_len
        return sum(tokens / row["tokens_per_s"] for row in self.metrics())


def arm_label(config: RunConfig) -> str:
    """Return the arm of a run: "control", or "TRANSFORM-START-STOP" with an intervention.

    If the intervention is limited to some domains, "-DOMAIN" or "-in-N-domains" follows TRANSFORM.
    """
    window = config.intervention
    if not window:
        return "control"
    names = window.domains
    where = names[0] if len(names) == 1 else f"in-{len(names)}-domains" if names else ""
    return "-".join(filter(None, (window.transform, where, f"{window.start}-{window.stop}")))


def _describe(config: RunConfig) -> str:
    """Return the text for a run in the progress bar, e.g. "57,312 parameters, control"."""
    return f"{config.model.n_params_non_embedding:,} parameters, {arm_label(config)}"


def locate(
    config: RunConfig,
    progress: bool = True,
    execution: Execution | None = None,
    world: World = ALONE,
) -> Run:
    """Prepare the data and the folder of a run, and return the run, trained or not.

    A run started with a different number of processes is found, too (see `find_folder`).

    Args:
        execution: default: Execution.from_environment(). Executions with bitwise equal results
            share one run.
        world: the processes that are to train it, as `distributed.plan_state` returns them.

    Raises:
        ConfigError: too little data or too small a vocabulary for the config.
        CheckpointError: the folder or its done.json belongs to a run with another identity, or is
            damaged.
    """
    _check_vocabulary(config, tokenizer_source(config.data).id_limit)  # before text is encoded
    data = prepare(config.data, progress=progress)
    _check_vocabulary(config, data.vocab_size)
    available = data.rows.n_rows // config.train.batch_size
    if config.train.steps > available:
        raise ConfigError(
            f"the data has only {data.rows.n_rows} rows, enough for {available} steps of "
            f"{config.train.batch_size} rows, but the run has {config.train.steps} steps. Use "
            "fewer steps, more epochs (--epochs, DataConfig.epochs) or more text."
        )
    folder, identity = _place(config, data, execution or Execution.from_environment(), world)
    claim_folder(folder, identity)
    return Run(folder, config, data)


def _place(
    config: RunConfig, data: PreparedData, execution: Execution, world: World
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a run, and its identity (see `find_folder`).

    The identity of a fork includes its control if several processes started the control, because
    the bits of the fork depend on it.
    """
    identity = run_identity(config, data.fingerprint, execution, world)
    if config.parent:
        _, control = _place(config.parent, data, execution, world)
        if "processes" in control["code"]:
            identity["code"]["control"] = stable_hash(control)[:12]
    name = f"L{config.model.n_layers}-d{config.model.d_model}-{arm_label(config)}"
    return find_folder(name, identity)


def _check_vocabulary(config: RunConfig, id_limit: int) -> None:
    """Raise a ConfigError if the model lacks an embedding of an id below `id_limit`."""
    if id_limit > config.model.vocab_size:
        raise ConfigError(
            f"vocab_size={config.model.vocab_size} is too small for the tokenizer "
            f"{config.data.tokenizer}, whose largest id is {id_limit - 1}; use another tokenizer, "
            f"or raise vocab_size to at least {id_limit}"
        )


def open_run(folder: Path) -> Run:
    """Open the run in a folder.

    Raises:
        CheckpointError: the folder does not hold a run, its corpus has changed, or its identity
            has changed since the run was finished.
    """
    identity = read_identity(Path(folder))
    check_file(Path(folder), "identity.json")
    for kind, opener in registered("runs").items():
        if kind in identity:
            return opener.load()(Path(folder))
    try:
        config, fingerprint = run_config_from_dict(identity["config"]), str(identity["data"])
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise CheckpointError(
            f"{folder} is not the folder of a run, because its identity.json cannot be used "
            f"({error!r}). The folders of runs are in {results_dir() / 'runs'}."
        ) from error
    data = prepare(config.data, progress=False)
    if data.fingerprint != fingerprint:
        raise CheckpointError(
            f"the corpus {config.data.corpus!r} or the tokenizer {config.data.tokenizer!r} has "
            f"changed since the run in {folder} was trained: the fingerprint of the data was "
            f"{fingerprint[:12]} and is now {data.fingerprint[:12]}. Restore them, or train a new "
            "run."
        )
    return Run(Path(folder), config, data)


def find_run(name: str) -> Run:
    """Open a run, given its folder, the name of its folder, or the beginning of its id.

    Raises:
        CheckpointError: no run or several runs match.
    """
    if Path(name).is_dir():
        return open_run(Path(name))
    runs = sorted((results_dir() / "runs").glob("*"))
    matches = [r for r in runs if r.name == name or r.name.rsplit("-", 1)[-1].startswith(name)]
    if len(matches) != 1:
        listing = "\n  ".join(r.name for r in matches or runs) or "none yet"
        raise CheckpointError(
            f"{len(matches)} runs match {name!r}; name one of them in full:\n  {listing}"
            if matches
            else f"no run matches {name!r}; pass the folder or the id of a run. Existing runs:\n"
            f"  {listing}"
        )
    return open_run(matches[0])


def _parent_state(
    config: RunConfig, progress: bool, execution: Execution, world: World
) -> Start | None:
    """Return the control's exact state at a fork's branching step; if needed, train the control.

    None: the fork starts with the first update, from its initial weights. The state may be sharded.
    """
    assert config.parent and config.intervention
    parent = find_or_train(config.parent, progress, execution=execution, world=world)
    start = config.intervention.start
    if start == 0:
        return None
    states = parent.states
    if not world.from_rank_zero(start in saved_steps(states)):
        # one for each step and number of processes, which have logs and bits of their own
        replay = parent.folder / "replays" / _replay_name(start, world)
        older: tuple[int, State, dict[str, Any]] | None = None
        with world.rank_zero_first():
            if older := newest_loadable(states, at_most=start):
                check_step(parent.folder, "states", older[0])
        train(
            config.parent,
            parent.batch,
            replay,
            start=Start(older[0], older[1]) if older else None,
            stop_at=start,
            saving=Saving(weights=frozenset(), states=frozenset({start})),
            progress=progress,
            label=f"replaying to step {start}",
            execution=execution,
            world=world,
        )
        return Start(start, load_checkpoint(step_folder(replay / "states", start))[0])
    with world.rank_zero_first():
        check_step(parent.folder, "states", start)
        files, _ = load_checkpoint(step_folder(states, start), hashes=world.is_rank_zero)
    return Start(start, files)


def _replay_name(step: int, world: World) -> str:
    """Return the name of the folder of a replay to a step.

    It is e.g. "385" or, for four processes with one state per two of them, "385-x4-2".
    """
    name = str(step)
    if world.size > 1:
        name += f"-x{world.size}"
    if world.sharded:
        name += f"-{world.shards}"
    return name


def find_or_train(
    config: RunConfig,
    progress: bool = True,
    keep: Keep | None = None,
    execution: Execution | None = None,
    world: World = ALONE,
    wait: bool = True,
) -> Run:
    """Return the finished run that `config` describes; train it to its end if necessary.

    The run keeps its full state at the branching steps of the paper and at the steps in
    `keep.states`.

    Args:
        keep: what to keep if the run is large (see pythia_core.training.retention); default:
            everything. A fork's control, if it must be trained, keeps everything.
        execution: default: Execution.from_environment().
        world: the processes that train together (`distributed.run_together`); all of them call
            this function.
        wait: whether to wait for another process that trains the run.

    Raises:
        TakenElsewhere: another process is training it (and `wait` is false) or took the run over
            while this process was stopped.
        ConfigError: too little data or too small a vocabulary for the config, or the processes do
            not divide the batch.
        DataError: the intervention changes nothing, or is impossible with these data.
        CheckpointError, TrainingError: see pythia_core.training.checkpoint and .train.
    """
    execution = execution or Execution.from_environment()
    world = plan_state(world, config, execution)
    with world.rank_zero_first():  # the others find its data
        if world.is_rank_zero:
            run = locate(config, progress, execution, world)
            data, name, finished = run.data, run.folder.name, run.finished
            if not finished:
                check_memory(world, config, execution)
                _ = run.ledger  # its errors come before the control is trained
        else:
            data, name, finished = prepare(config.data, progress=False), "", False
    run_id = stable_hash(run_identity(config, data.fingerprint, execution))[:12]
    world.check_same(run_id, "the run to train", DIFFERENT)
    # one process decides, because a run may be started or finished elsewhere meanwhile
    name, finished = world.from_rank_zero((name, finished))
    run = Run(results_dir() / "runs" / name, config, data)
    if finished:
        return run
    if not (wait or is_free(run.folder / LEASE)):  # before the control's state is computed
        raise TakenElsewhere(f"another process is training the run in {run.folder}")
    states = linear_steps(PAPER_FORKS, config.train.steps)
    batch_at: Callable[[int], np.ndarray] = run.batch
    if world.is_rank_zero:  # it alone deletes
        batch_at = prune_during_training(run.batch, run.folder, config, keep)

    def finish(sha256: str) -> None:
        """Record that the run is finished, and delete what need not be kept."""
        processes = {"processes": world.size} if world.size > 1 else {}
        done = {"final_sha256": sha256, "machine": device_info(), **processes}
        write_done(run.folder, done)
        prune_run(run.folder, config, keep)

    train(
        config,
        batch_at,
        run.folder,
        start=_parent_state(config, progress, execution, world) if config.intervention else None,
        saving=Saving(frozenset(run.scheduled_steps), states | keep.states if keep else states),
        progress=progress,
        label=f"training {_describe(config)}",
        execution=execution,
        world=world,
        wait=wait,
        finish=finish,
    )
    return run


def find_or_train_all(
    configs: dict[Key, RunConfig],
    progress: bool = True,
    keep: Callable[[RunConfig], Keep | None] | None = None,
) -> dict[Key, Run]:
    """Find or train several runs in parallel, as `find_or_train` does; the longest start first.

    On CPUs, each core trains one run at a time. Each GPU trains as many runs as fit into its memory
    (pythia_core.training.gpu_sharing). The controls of forks are trained before all forks, even if
    `configs` does not contain these controls. Processes that share the folder of results, even on
    several machines, divide the runs among them; each returns when all runs are finished.

    Args:
        keep: a function that returns what the run of a config keeps; default: everything.

    Returns:
        The finished runs, under the keys of `configs`.

    Raises:
        PythiaError: the error of `find_or_train` for the first run that fails.
    """
    for data in dict.fromkeys(config.data for config in configs.values()):
        prepare(data, progress)
    names = _names(configs)
    parents = {c.parent: None for c in configs.values() if c.parent}
    controls = parents | {c: None for c in configs.values() if c.parent is None}
    forks = dict.fromkeys(c for c in configs.values() if c.parent is not None)
    for config in forks:
        _ = locate(config, progress).ledger  # its errors come before anything is trained
    for wave in (controls, forks):
        runs = {config: locate(config, progress) for config in wave}
        todo = [config for config, run in runs.items() if not run.finished]
        todo.sort(key=run_flops, reverse=True)

        def may_retry(job: TrainJob, runs: dict[RunConfig, Run] = runs) -> bool:
            """Return whether a run that another process was training is finished, or is free."""
            run = runs[job[0]]
            return run.finished or is_free(run.folder / LEASE)

        _warn_if_long(todo)
        parallel_map(
            _train_one,
            [(config, keep(config) if keep else None) for config in todo],
            progress=progress,
            desc="training",
            unit="run",
            names=[names.get(c) or _describe(c) for c in todo],
            work=[run_flops(c) for c in todo],
            in_process=sum(map(run_flops, todo)) < SHORT,
            may_retry=may_retry,
        )
    return {key: locate(config, progress) for key, config in configs.items()}


def _names(configs: dict[Key, RunConfig]) -> dict[RunConfig, str]:
    """Name each run in the progress bar by its key, without numbers that all keys share."""
    keys = [key if isinstance(key, tuple) else (key,) for key in configs]

    def distinctive(index: int, part: Any) -> bool:
        """Return whether names include a part of keys: text always, a number only if it varies."""
        return isinstance(part, str) or len({k[index] for k in keys if len(k) > index}) > 1

    return {
        config: " ".join(str(part) for index, part in enumerate(key) if distinctive(index, part))
        for key, config in zip(keys, configs.values(), strict=True)
    }


def _train_one(job: TrainJob) -> None:
    """Find or train a run, with GPU memory limited to a little more than `run_bytes`.

    Raises:
        TakenElsewhere: another process is training the run.
    """
    config, keep = job
    with limit_memory(run_bytes(config, Execution.from_environment())):
        find_or_train(config, keep=keep, wait=False)


def _warn_if_long(configs: list[RunConfig]) -> None:
    """Warn if training these runs without a GPU would take longer than LONG_HOURS."""
    if torch.cuda.is_available():
        return
    hours = sum(map(run_flops, configs)) / (CORE_FLOPS * n_workers()) / 3600
    if hours > LONG_HOURS:
        warnings.warn(
            f"training {count_of(len(configs), 'run')} will take about {hours:,.0f} hours on this "
            "machine, which has no GPU. A smaller scale (e.g. laptop) or fewer sizes would take "
            "less time. You can stop and resume training at any time",
            stacklevel=3,
        )


def run_flops(config: RunConfig) -> float:
    """Return the FLOP of training a run; for a fork, only the FLOP after the branching step."""
    per_token = flops_per_token(config.model, config.data.seq_len)
    return per_token * len(config.updates) * config.train.batch_size * config.data.seq_len


def verify(run: Run) -> list[str]:
    """Check all that a run's folder has: checkpoints, states, replays, log, ledger and identity.

    Every logged batch is compared with the data, and the final state with the hash in done.json.
    All files of prepared data are hashed, however large.

    Returns:
        The lines of a report: what was checked, what could not be checked, and which steps have
        equal weights.

    Raises:
        CheckpointError: files are missing or corrupt, belong to another run, or were changed after
            the run was finished, or an early step does not continue from step 0.
        DataError: a batch differs from the batch that was trained on, prepared data are damaged, or
            the log has changed since the newest state was saved.
    """
    hashed = check_run_files(run.folder) if run.finished else False
    if not hashed:
        check_against_state(run.folder)
    named = re.search(r"-([0-9a-f]{12})$", run.folder.name)
    if named and named[1] != run.id:
        raise CheckpointError(
            f"{run.folder / 'identity.json'} was changed or damaged: its hash begins with "
            f"{run.id}, but the folder's name ends with {named[1]}. {RESTORE_ADVICE}"
        )
    first, last, scheduled = run.updates.start, run.updates.stop, run.scheduled_steps
    rows = run.metrics()
    logged = [row["step"] for row in rows]
    saved = saved_steps(run.checkpoints)  # in a large run, some without their weights
    if run.finished and (saved != scheduled or logged != list(range(first + 1, last + 1))):
        missing = sorted(set(scheduled) - set(saved))
        steps = ", ".join(map(str, missing[:5])) + " …" * (len(missing) > 5)
        problem = (
            f"{len(missing)} of its {len(scheduled)} checkpoints are missing (steps {steps})"
            if missing
            else "its checkpoints or the rows of its metrics.jsonl do not match its updates"
        )
        raise CheckpointError(
            f"run {run.id} is finished, but {problem}; delete the run's folder and train the run "
            "again"
        )
    initial: dict[str, torch.Tensor] = {}
    final: dict[str, torch.Tensor] = {}
    continuing: list[int] = []
    for step in run.steps:
        weights = load_checkpoint(step_folder(run.checkpoints, step))[0]["model"]
        if step == last and all(t.dtype == torch.float32 for t in weights.values()):
            final = weights
        if step == 0:
            initial = weights
        elif step <= TESTED_UP_TO:
            related = continues(initial, weights)
            if related is False:
                raise CheckpointError(
                    f"step {step} of run {run.id} does not continue from its step 0: the signs of "
                    "its weights agree with those of step 0 no more often than by chance. " + REPAIR
                )
            continuing += [step] if related else []
    states = saved_steps(run.states)
    for step in states:
        state = load_checkpoint(step_folder(run.states, step))[0]
        if step == last:
            final = unsharded(state, run.config.model)["model"]
    if run.finished and final and sha256_tensors(final) != run.final_sha256:
        raise CheckpointError(
            f"the final weights of run {run.id} do not have the hash in {DONE}. {RESTORE_ADVICE}"
        )
    replays = _replays(run)
    for replay in replays:
        check_against_state(replay)
        for step in saved_steps(replay / "states"):
            load_checkpoint(step_folder(replay / "states", step))
    if isinstance(run.data, PreparedData):
        run.data.verify()
    for row in [*rows, *(r for each in replays for r in read_metrics(each / "metrics.jsonl", ROW))]:
        if row["batch_hash"] != batch_hash(run.batch(row["step"] - 1)):
            raise DataError(
                f"the data has changed since run {run.id} was trained: the hash of the batch of "
                f"update {row['step'] - 1} is not the one in the run's log. Restore the data"
            )
    lines = [
        f"run {run.id}: the hashes of {count_of(len(run.steps), 'checkpoint')}, "
        f"{count_of(len(rows), 'batch', 'batches')} and "
        f"{count_of(len(states), 'training state')} match",
    ]
    if hashed:
        lines.append(f"identity, log, ledger and manifests match the hashes in {DONE}")
    else:
        uncovered, reason = "losses and rates in the log", "an older version finished this run"
        if not run.finished:
            uncovered, reason = f"{uncovered} after the newest state", "the run is unfinished"
        lines.append(f"not covered by a hash: {uncovered} ({reason})")
    if replays:
        starts = ", ".join(replay.name for replay in replays)
        lines.append(f"the replays to the steps {starts} match their hashes and the data")
    if others := _unchecked(run):
        lines.append(f"not part of the run, and not checked: {', '.join(others)}")
    if continuing:
        first, last = continuing[0], continuing[-1]
        span = f"at step {first}" if first == last else f"from step {first} to {last}"
        lines.append(
            f"found to continue from step 0: {count_of(len(continuing), 'checkpoint')}, {span}"
        )
    early = [step for step in saved if 0 < step <= TESTED_UP_TO] if 0 in saved else []
    if untested := len(early) - len(continuing):
        lines.append(
            "could not be tested for continuing from step 0: "
            f"{count_of(untested, 'checkpoint')} up to step {early[-1]} (weights are missing, too "
            "few, or too far from those of step 0)"
        )
    for equal in duplicate_steps(weight_hashes(run.checkpoints)):
        reason = " (expected: the first update runs at learning rate 0)" if equal == [0, 1] else ""
        lines.append(f"equal weights at steps {', '.join(map(str, equal))}{reason}")
    return lines


def _replays(run: Run) -> list[Path]:
    """Return the folders in which forks trained the run again up to their branching steps."""
    replays = (run.folder / "replays").glob("*")
    named = [p for p in replays if re.fullmatch(r"\d+(-x\d+(-\d+)?)?", p.name)]
    return sorted(named, key=lambda p: (int(p.name.partition("-")[0]), p.name))


def _unchecked(run: Run) -> list[str]:
    """Return the names of what `verify` does not check in a run's folder.

    Raises:
        CheckpointError: a file does not have the sha256 in the file next to it.
    """
    parts = (*FILES, *FOLDERS, DONE, LEASE, ".lock", "replays")  # .lock is from older versions
    others = [p for p in (run.folder / "replays").glob("*") if p not in _replays(run)]
    for folder in (run.folder, *_replays(run)):
        others += [path for path in folder.iterdir() if path.name not in parts]
        for parent in (folder / name for name in FOLDERS if (folder / name).is_dir()):
            steps = [step_folder(parent, step) for step in saved_steps(parent)]
            others += [path for path in parent.iterdir() if path not in steps]
    hashed = [path for path in others if path.with_name(f"{path.name}.sha256") in others]
    for path in hashed:
        if not is_intact(path):
            raise CheckpointError(
                f"{path} does not have the sha256 in {path.name}.sha256. {RESTORE_ADVICE}"
            )
    digests = [path.with_name(f"{path.name}.sha256") for path in hashed]
    return sorted(
        str(path.relative_to(run.folder)) for path in others if path not in (*hashed, *digests)
    )
