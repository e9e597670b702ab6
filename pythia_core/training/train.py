"""Train a run, in one loop that can be read from top to bottom (`train`).

Batches, learning rates and saved steps are pure functions of the step, and nothing is random after
initialization. So the state of training is only the weights, Adam's moments, the step and, in fp16,
the loss scale. A resumed run gives the same bits as an uninterrupted one on the same kind of
machine with the same versions of libraries.

On a CPU, a run uses one thread, so its results do not depend on the number of cores. On a CUDA
device, LAG updates stay in flight, so that the GPU does not wait.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pythia_core.config import RunConfig
from pythia_core.data.order import batch_hash
from pythia_core.errors import TrainingError
from pythia_core.training.async_writer import CheckpointWriter
from pythia_core.training.checkpoint import (
    delete_temporaries,
    load_checkpoint,
    manifest_hash,
    newest_loadable,
    prune,
    step_folder,
)
from pythia_core.training.completion import DONE, check_against_state, read_done
from pythia_core.training.distributed import ALONE, World
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.metrics import MetricsLog
from pythia_core.training.schedule import checkpoint_steps
from pythia_core.training.sharding import save_sharded
from pythia_core.training.trainer import PendingUpdate, State, Trainer
from pythia_core.util.leases import LEASE_SECONDS, leased
from pythia_core.util.machine import device_info, keep_freed_memory
from pythia_core.util.progress import bar as progress_bar
from pythia_core.util.stopping import Stopped, stop_requests
from pythia_core.util.workers import one_thread

STATE_EVERY_SECONDS = 2.0
"""Time between two saved states, longer if saving is slow. A crash loses about this much work."""
STATE_SHARE = 0.02
"""Maximum fraction of the time that is spent on saving states."""
LAG = {"cpu": 0, "cuda": 2}
"""Updates in flight (launched, result not yet read) for each kind of device."""


@dataclass(frozen=True)
class Start:
    """A training state and its step, e.g. the state of a control from which a fork starts."""

    step: int
    state: State


@dataclass(frozen=True)
class Saving:
    """What a run saves in addition to the two newest states, from which training can resume."""

    weights: frozenset[int] | None = None
    """Steps whose weights are saved; None: those of schedule.checkpoint_steps, usually 154."""
    states: frozenset[int] = frozenset()
    """Steps whose full state is saved and never deleted, in addition to the last step."""
    asynchronous: bool | None = None
    """Whether to write in a background thread; None: only on CUDA devices."""


LEASE = ".lease"
"""The marker, in a run's folder, of the lease on training the run (pythia_core.util.leases)."""


class _InFlight:
    """The updates that were launched but are not logged yet, oldest first."""

    def __init__(
        self, log: MetricsLog, bar: Any, config: RunConfig, lag: int, world: World
    ) -> None:
        self._log, self._bar, self._lag = log, bar, lag
        self._processes = {"processes": world.size} if world.size > 1 else {}
        self._tokens = config.train.batch_size * config.data.seq_len
        self._precision = config.train.precision
        self._entries: deque[tuple[float, PendingUpdate]] = deque()
        self._last = 0.0

    def add(self, started: float, pending: PendingUpdate) -> None:
        """Add an update launched at `started` (perf_counter); log the oldest until `lag` remain."""
        self._entries.append((started, pending))
        self.drain(self._lag)

    def drain(self, remaining: int = 0) -> None:
        """Wait for the oldest updates and log them, until only `remaining` are in flight."""
        while len(self._entries) > remaining:
            started, pending = self._entries.popleft()
            loss, lr, norm = pending.result()
            now = time.perf_counter()
            rate = self._tokens / (now - max(started, self._last))
            self._last = now
            row: dict[str, Any] = {
                "step": pending.step + 1,
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "batch_hash": batch_hash(pending.batch),
                "tokens_per_s": round(rate),
            } | self._processes
            if pending.loss_scale is not None:
                finite = {
                    k: row[k] if math.isfinite(row[k]) else None for k in ("loss", "grad_norm")
                }
                row |= finite | {"loss_scale": pending.loss_scale, "skipped": pending.skipped}
            self._log.write(row)
            speed = f"{rate / 1e3:.1f}k tokens/s in {self._precision}"
            self._bar.set_postfix_str(f"{speed}, loss {loss:.3f}", refresh=False)
            self._bar.update()


def _resume(
    trainer: Trainer,
    states: Path,
    end: int,
    start: Start | None,
    machine: dict[str, Any],
) -> None:
    """Set the trainer to the newest saved state up to step `end`, or else to `start`.

    The first process checks the hashes of the state, which the others then read, too.
    """
    saved, step = None, None
    if trainer.world.is_rank_zero and (saved := newest_loadable(states, at_most=end)):
        step = saved[0]
    step = trainer.world.from_rank_zero(step)
    if step is not None:
        _, state, meta = saved or (step, *load_checkpoint(step_folder(states, step), hashes=False))
        trainer.load_state(step, state)
        if meta.get("machine") != machine:
            warnings.warn(
                f"training resumes from step {step}, which was saved on another machine or with a "
                "different number of processes or other library versions; the result may differ in "
                "the last bits",
                stacklevel=3,
            )
    elif start:
        trainer.load_state(start.step, start.state)


def _train_worker(
    trainer: Trainer,
    batch_at: Callable[[int], np.ndarray],
    states: Path,
    end: int,
    scheduled: set[int],
    keep: set[int],
    stop_requested: Callable[[], int],
) -> None:
    """Train up to step `end` in any process but the first one, which decides what is saved.

    This process writes nothing but its shards of the states, if they are sharded.
    """
    in_flight: deque[PendingUpdate] = deque()
    sharded = trainer.world.sharded

    def drain(remaining: int = 0) -> None:
        """Wait for the oldest updates, until only `remaining` are in flight."""
        while len(in_flight) > remaining:
            in_flight.popleft().result()

    def save_weights() -> None:
        """Take part in gathering the weights."""
        drain()
        if trainer.flat.all_finite():  # else the first process raises an error
            trainer.weights()

    if sharded and trainer.step in scheduled:
        save_weights()
    while trainer.step < end:
        in_flight.append(trainer.launch(batch_at(trainer.step)))
        drain(LAG[trainer.device.type])
        if sharded and trainer.step in scheduled:
            save_weights()
        stopping, state_due = trainer.world.any_of(bool(stop_requested()), False)
        if sharded and (trainer.step in keep or state_due or stopping):
            drain()
            save_sharded(states, trainer.step, trainer.state(), {}, trainer.world)
        if stopping:
            raise Stopped(f"stopped after step {trainer.step}", stop_requested() or signal.SIGINT)
    drain()
    if sharded:
        trainer.weights_sha256()
    trainer.world.barrier()


def train(
    config: RunConfig,
    batch_at: Callable[[int], np.ndarray],
    folder: Path,
    *,
    start: Start | None = None,
    stop_at: int | None = None,
    saving: Saving = Saving(),
    make_trainer: Callable[..., Trainer] = Trainer,
    device: torch.device | None = None,
    execution: Execution = EAGER,
    world: World = ALONE,
    progress: bool = True,
    label: str = "train",
    wait: bool = True,
    finish: Callable[[str], None] | None = None,
) -> str:
    """Train a run to its end (or to `stop_at`), starting from its newest saved state, if any.

    Args:
        batch_at: a pure function that returns the batch (batch_size, S+1) of token ids for the
            update after a step.
        folder: the run's folder, for checkpoints/, states/ and metrics.jsonl.
        start: the state to start from if the folder has no saved state yet.
        stop_at: last step of this call; the state at that step is kept.
        make_trainer: called with the config, device and execution, and with `world` by name.
        device: default: the CUDA device if there is one, otherwise the CPU.
        world: the processes that share each update, and perhaps the state. All of them call
            `train`.
        label: text of the progress bar.
        wait: whether to wait for another process that trains the run. Processes that share
            updates wait only as long as the lease of a dead process can last.
        finish: called in the first process with the result at the end, while no other process
            trains the run.

    Returns:
        sha256 of the fp32 weights at the last step; "" in all processes but the first.

    Raises:
        TrainingError: the loss is not finite, no space is left, or the folder was moved.
        TakenElsewhere: another process is training the run, or took it while this process was
            stopped.
        DataError, CheckpointError: the log or a checkpoint of the run to resume has changed since
            its last state was saved.
        Stopped: SIGINT or SIGTERM arrived. The state has been saved; call again to resume.
    """
    keep_freed_memory()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    end = config.train.steps if stop_at is None else stop_at
    keep = set(saving.states) | {end, config.train.steps}
    scheduled = set(
        checkpoint_steps(config.train.steps) if saving.weights is None else saving.weights
    )
    asynchronous = device.type == "cuda" if saving.asynchronous is None else saving.asynchronous
    checkpoints, states = folder / "checkpoints", folder / "states"
    for path in (checkpoints, states):
        path.mkdir(parents=True, exist_ok=True)
    machine = device_info() | world.identity
    world.check_shared(folder)

    def resume() -> Trainer:
        """Create the trainer and load the state to start from."""
        trainer = make_trainer(config, device, execution, world=world)
        _resume(trainer, states, end, start, machine)
        return trainer

    if not world.is_rank_zero:
        with one_thread(), stop_requests() as stop_requested:
            world.from_rank_zero(None)  # the first process takes the run, and deletes leftovers
            if world.any_rank(False):
                return ""  # another process has trained the run meanwhile
            _train_worker(resume(), batch_at, states, end, scheduled, keep, stop_requested)
            return ""

    with (
        one_thread(),
        # meanwhile, other processes of this run wait, but not forever
        leased(folder / LEASE, wait and (world.size == 1 or 2 * LEASE_SECONDS), label) as lease,
        stop_requests() as stop_requested,
    ):
        # so that a process that lost its lease while saving a step can no longer finish that save
        delete_temporaries(checkpoints)
        delete_temporaries(states)
        world.from_rank_zero(None)
        if world.any_rank((folder / DONE).exists()):  # another process was faster
            return str(read_done(folder)["final_sha256"])
        trainer = resume()
        hashes = check_against_state(folder, at_most=trainer.step)
        unhashed: list[int] = []  # steps whose weights were saved since the last state
        with (
            lease.explains_errors(),
            contextlib.closing(MetricsLog(folder / "metrics.jsonl", trainer.step)) as log,
            progress_bar(
                progress, total=end, initial=trainer.step, desc=label, unit="step", leave=None
            ) as bar,
            CheckpointWriter(asynchronous) as writer,
        ):
            in_flight = _InFlight(log, bar, config, LAG[device.type], world)

            def save_state() -> None:
                """Log all updates in flight, then save the full training state."""
                lease.check()
                in_flight.drain()
                log.sync()  # the log is never behind the state
                writer.wait()  # nor are the checkpoints
                while unhashed:
                    saved = unhashed.pop()
                    hashes[str(saved)] = manifest_hash(step_folder(checkpoints, saved))
                step, state = trainer.step, trainer.state()
                meta = {"machine": machine, "log": log.sha256, "checkpoints": dict(hashes)}
                if not world.sharded:
                    trainer.wait_for_copy(
                        writer.save(states, step, state, meta, lambda: prune(states, keep))
                    )
                    return
                started = time.monotonic()
                save_sharded(states, step, state, meta, world)
                prune(states, keep)
                writer.seconds = time.monotonic() - started

            def save_weights() -> None:
                """Log all updates in flight, then save the weights, which must be finite."""
                lease.check()
                in_flight.drain()
                if not trainer.flat.all_finite():
                    raise TrainingError(
                        f"the update to step {trainer.step} gave weights that are not finite, so "
                        "the weights were not saved. Try a lower lr_max (now "
                        f"{config.train.lr_max})."
                    )
                trainer.wait_for_copy(
                    writer.save(checkpoints, trainer.step, {"model": trainer.weights()}, {})
                )
                unhashed.append(trainer.step)

            if trainer.step in scheduled:
                save_weights()
            next_state = time.monotonic() + STATE_EVERY_SECONDS
            while trainer.step < end:
                lease.check()
                in_flight.add(time.perf_counter(), trainer.launch(batch_at(trainer.step)))
                writer.check()
                if trainer.step in scheduled:
                    save_weights()
                state_due = time.monotonic() > next_state and not writer.busy
                stopping, state_due = world.any_of(bool(stop_requested()), state_due)
                if trainer.step in keep or state_due or stopping:
                    save_state()
                    interval = max(STATE_EVERY_SECONDS, writer.seconds / STATE_SHARE)
                    next_state = time.monotonic() + interval
                if stopping:
                    writer.wait()
                    raise Stopped(
                        f"stopped after saving step {trainer.step}",
                        stop_requested() or signal.SIGINT,
                    )
        sha256 = trainer.weights_sha256()
        if finish is not None:
            lease.check()
            finish(sha256)
        world.barrier()  # everything is written
        return sha256
