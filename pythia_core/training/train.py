"""The training loop, top to bottom: one function that a reader can follow line by line.

Everything that varies with the step is a pure function of it (batch, learning rate, what to save),
so the only state is the weights, the Adam moments and the step number (in fp16 the loss scale too);
resumption is bit-exact on the same kind of machine and library versions. Nothing is random after
the initialisation. On a CPU a run uses one thread, so that its bits do not depend on the cores;
several runs use several cores. On a CUDA device the loop runs LAG updates ahead of their reports.

Not here: the update (pythia_core.training.trainer), finding or naming runs
(pythia_core.training.runs), which data (pythia_core.data).
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pythia_core.config import RunConfig
from pythia_core.data.order import batch_hash
from pythia_core.errors import TrainingError
from pythia_core.training.async_writer import CheckpointWriter
from pythia_core.training.checkpoint import (
    newest_loadable,
    prune,
    sha256_tensors,
    sweep_temporaries,
)
from pythia_core.training.distributed import ALONE, World
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.metrics import MetricsLog
from pythia_core.training.schedule import checkpoint_steps
from pythia_core.training.trainer import Pending, State, Trainer
from pythia_core.util.machine import device_info, keep_freed_memory
from pythia_core.util.progress import bar as progress_bar
from pythia_core.util.stopping import Stopped, stop_requests
from pythia_core.util.workers import one_thread

STATE_EVERY_SECONDS = 2.0
"""A crash loses about this much work, or more where saving takes long:"""
STATE_SHARE = 0.02
"""share of the time that saving states may take."""
LOCK_SECONDS = 3.0
"""How long to wait for another process to let go of a run."""
LAG = {"cpu": 0, "cuda": 2}
"""Updates whose reports are not waited for, by kind of device."""


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process; the lock vanishes with it, however it ends.

    A worker whose parent was killed holds it for a moment longer, so one is patient.
    """
    patience = time.monotonic() + LOCK_SECONDS
    with open(folder / ".lock", "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > patience:
                    raise TrainingError(
                        f"{folder} is being trained by another process; wait for it or stop it"
                    ) from error
                time.sleep(0.1)
        yield


class _InFlight:
    """Updates that were launched, oldest first, until their reports are logged."""

    def __init__(self, log: MetricsLog, bar: Any, config: RunConfig, lag: int) -> None:
        self._log, self._bar, self._lag = log, bar, lag
        self._tokens = config.train.batch_size * config.data.seq_len
        self._entries: deque[tuple[float, Pending]] = deque()
        self._last = 0.0

    def add(self, started: float, pending: Pending) -> None:
        """Take an update up, begun at `started` (perf_counter); log those that are older."""
        self._entries.append((started, pending))
        self.settle(self._lag)

    def settle(self, left: int = 0) -> None:
        """Wait for reports and log them until only `left` are missing.

        Raises:
            TrainingError: an update was not finite; it and the later ones are not logged.
        """
        while len(self._entries) > left:
            started, pending = self._entries.popleft()
            loss, lr, norm = pending.result()
            now = time.perf_counter()
            rate = self._tokens / (now - max(started, self._last))
            self._last = now
            row = {
                "step": pending.step + 1,
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "batch_hash": batch_hash(pending.batch),
                "tokens_per_s": round(rate),
            }
            if pending.loss_scale is not None:
                finite = {
                    k: row[k] if math.isfinite(row[k]) else None for k in ("loss", "grad_norm")
                }
                row |= finite | {"loss_scale": pending.loss_scale, "skipped": pending.skipped}
            self._log.write(row)
            self._bar.set_postfix_str(f"{rate / 1e3:.1f}k tokens/s, loss {loss:.3f}", refresh=False)
            self._bar.update()


def _follow(
    trainer: Trainer,
    batch_at: Callable[[int], np.ndarray],
    end: int,
    lag: int,
    stop_requested: Callable[[], int],
) -> str:
    """What `train` does in every process but the first: all updates, and nothing written."""
    launched: deque[Pending] = deque()
    while trainer.step < end:
        launched.append(trainer.launch(batch_at(trainer.step)))
        while len(launched) > lag:
            launched.popleft().result()
        if trainer.world.any(bool(stop_requested())):
            raise Stopped(f"stopped after step {trainer.step}", stop_requested() or signal.SIGINT)
    for pending in launched:
        pending.result()
    trainer.world.wait()
    return sha256_tensors(trainer.state()["model"])


def train(
    config: RunConfig,
    batch_at: Callable[[int], np.ndarray],
    folder: Path,
    *,
    initial: tuple[int, State] | None = None,
    keep_states: frozenset[int] = frozenset(),
    first_saved_step: int = 0,
    stop_at: int | None = None,
    also_save: frozenset[int] = frozenset(),
    make_trainer: Callable[[RunConfig, torch.device, Execution], Trainer] = Trainer,
    progress: bool = True,
    label: str = "train",
    device: torch.device | None = None,
    execution: Execution = EAGER,
    write_beside: bool | None = None,
    world: World = ALONE,
) -> str:
    """Train a run to its end (or to `stop_at`), from its newest state if it has one.

    Args:
        batch_at: step -> (batch_size, S+1) token ids, a pure function.
        folder: the run's own; gets checkpoints/, states/ and metrics.jsonl.
        initial: step and state to start from when the folder has none (a fork's branching point).
        keep_states: steps whose full state is never pruned.
        first_saved_step: scheduled checkpoints before it are not written (they are the parent's).
        stop_at: last step to reach in this call; the state there is kept.
        also_save: further steps whose weights are written.
        make_trainer: for a run with another optimizer.
        write_beside: write checkpoints in a thread; default: on CUDA devices.
        world: the processes that make each update together; all call this, the first one writes.

    Returns:
        sha256 of the fp32 weights at the step reached.

    Raises:
        TrainingError: a non-finite loss, no space left, or another process on the same run.
        Stopped: after SIGINT or SIGTERM, once the state is saved; call again to go on.
    """
    keep_freed_memory()
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    beside = device.type == "cuda" if write_beside is None else write_beside
    checkpoints, states = folder / "checkpoints", folder / "states"
    for path in (checkpoints, states):
        path.mkdir(parents=True, exist_ok=True)
    end = config.train.steps if stop_at is None else stop_at
    keep = set(keep_states) | {end, config.train.steps}
    scheduled = {s for s in checkpoint_steps(config.train.steps) if s >= first_saved_step}
    scheduled |= also_save
    machine = device_info() | ({"processes": world.size} if world.size > 1 else {})

    def started() -> Trainer:
        """A trainer with the newest state there is."""
        trainer = make_trainer(config, device, execution)
        trainer.world = world
        saved = newest_loadable(states, at_most=end)
        if saved:
            trainer.load_state(*saved[:2])
            if saved[2].get("machine") != machine:
                warnings.warn(
                    f"step {saved[0]} was saved on another machine, by another number of processes "
                    "or under other versions; the run goes on, but perhaps not bit-identically",
                    stacklevel=2,
                )
        elif initial:
            trainer.load_state(*initial)
        world.check_same(trainer.step, "the step to go on from")
        return trainer

    if not world.leads:
        with one_thread(), stop_requests() as stop_requested:
            world.wait()  # until nothing is swept any more
            return _follow(started(), batch_at, end, LAG[device.type], stop_requested)

    with one_thread(), _locked(folder), stop_requests() as stop_requested:
        sweep_temporaries(checkpoints)
        sweep_temporaries(states)
        world.wait()
        trainer = started()
        with (
            contextlib.closing(MetricsLog(folder / "metrics.jsonl", trainer.step)) as log,
            progress_bar(
                progress, total=end, initial=trainer.step, desc=label, unit="step", leave=None
            ) as bar,
            CheckpointWriter(beside) as writer,
        ):
            updates = _InFlight(log, bar, config, LAG[device.type])

            def save_state() -> None:
                updates.settle()
                log.sync()  # the log is never behind the state
                meta = {"machine": machine}
                step, state = trainer.step, trainer.state()
                hold(writer.save(states, step, state, meta, lambda: prune(states, keep)))

            def save_weights() -> None:
                updates.settle()
                if not torch.isfinite(trainer.flat.flat).all():
                    raise TrainingError(
                        f"the update to step {trainer.step} made weights that are not finite; "
                        "nothing of it was saved. Try a lower lr_max (now "
                        f"{config.train.lr_max})."
                    )
                hold(writer.save(checkpoints, trainer.step, {"model": trainer.weights()}, {}))

            def hold(copied: torch.cuda.Event | None) -> None:
                if copied is not None:
                    trainer.hold_update(copied)

            if trainer.step in scheduled:
                save_weights()
            due = time.monotonic() + STATE_EVERY_SECONDS
            while trainer.step < end:
                updates.add(time.perf_counter(), trainer.launch(batch_at(trainer.step)))
                writer.check()
                if trainer.step in scheduled:
                    save_weights()
                late = time.monotonic() > due and not writer.busy
                stopping = world.any(bool(stop_requested()))
                if trainer.step in keep or late or stopping:
                    save_state()
                    due = time.monotonic() + max(STATE_EVERY_SECONDS, writer.seconds / STATE_SHARE)
                if stopping:
                    writer.wait()
                    raise Stopped(
                        f"stopped after saving step {trainer.step}",
                        stop_requested() or signal.SIGINT,
                    )
        world.wait()  # everything is written
        return sha256_tensors(trainer.state()["model"])
