"""Train one run with several processes, one per device, each on its share of every batch.

torchrun starts the processes, on one machine or on several that share the results folder:

    torchrun --nproc-per-node 8 -m pythia_core train 19m --scale gpu
    torchrun --nproc-per-node 8 -m pythia_core continue EleutherAI/pythia-70m-deduped ...

Process r of W takes the rows [r B / W, (r + 1) B / W) of every batch of B rows, as the ranks of
GPT-NeoX did. So the batch of a step does not depend on W. The last bits of the weights depend on
W, because gradients are summed over the processes. Only the first process prints and writes
files, except that each process writes its own share of a sharded state.

If weights, moments and gradients fit one device, each process has them all, and the processes only
sum their gradients. Otherwise they are sharded: each process has a part (training.sharding). Over
several nodes, each node has a whole state if it can hold one; otherwise, all processes share one.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError, PythiaError, TrainingError
from pythia_core.training.execution import Execution
from pythia_core.training.gpu_sharing import device_bytes
from pythia_core.training.memory import (
    RESERVE,
    smallest_training_bytes,
    smallest_world,
    state_bytes,
)
from pythia_core.util.machine import memory_bytes, process_count
from pythia_core.util.stopping import Stopped, leave_quietly

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others during training."""
PATIENCE = timedelta(days=7)
"""How long a process waits for others that prepare text, or read or write files."""


class ProcessDied(TrainingError):
    """Another of the processes that train together died, or does not answer."""


@dataclass(frozen=True)
class World:
    """The processes that train together, and this one's place among them.

    The methods that exchange something must be called by all processes, in the same order. They
    raise ProcessDied if another process died or does not answer.
    """

    rank: int = 0
    size: int = 1
    """Number of processes."""
    node_size: int = 1
    """Number of processes on this node."""
    sharding: str = "auto"
    """One of execution.SHARDING."""
    shards: int = 1
    """Number of processes that share one copy of the state of training; 1: each has its own."""
    waiting: Any = field(default=None, compare=False, repr=False)
    """The group of processes for exchanges that wait for the file system or a download."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the first process, the only one that prints."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether this process has only a part of the state of training."""
        return self.shards > 1

    @property
    def shard_index(self) -> int:
        """Which part of the state this process has."""
        return self.rank % self.shards

    @property
    def replica(self) -> int:
        """Which copy of the state this process has a part of; only the first copy is saved."""
        return self.rank // self.shards

    @property
    def identity(self) -> dict[str, int]:
        """What the processes add to a run's identity; {} for one process."""
        sharded = {"sharded": self.shards} if self.sharded else {}
        return {"processes": self.size} | sharded if self.size > 1 else {}

    def share_of(self, rows: Tensor) -> Tensor:
        """Return the part of a batch of rows (B, ...) that this process trains on.

        Raises:
            ConfigError: B is not a multiple of the number of processes.
        """
        self.check_divides(len(rows))
        return rows.chunk(self.size)[self.rank]

    def check_divides(self, rows: int) -> None:
        """Raise ConfigError unless the processes can split batches of `rows` rows evenly."""
        if rows % self.size:
            raise ConfigError(
                f"a batch of {rows} rows cannot be split evenly over {self.size} processes; "
                f"use a number of processes that divides {rows}, or another --batch-size"
            )

    def all_reduce_(self, *tensors: Tensor) -> None:
        """Sum tensors over all processes, in place; every process gets the same bits."""
        if self.size > 1:
            with self._answered():
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def any_rank(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process, without waiting for a GPU."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Return for each flag whether it is set in any process, without waiting for a GPU."""
        return self._any(flags) if self.size > 1 else flags

    def _any(self, flags: tuple[bool, ...], group: Any = None) -> tuple[bool, ...]:
        """Return which flags are set in any process of a group (None: the default group)."""
        numbers = torch.tensor(flags, dtype=torch.int32)
        with self._answered():
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group)
        return tuple(map(bool, numbers))

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank; any process may be busy with files."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._answered():
            dist.all_gather_object(values, value, self.waiting)
        return values

    def from_rank_zero(self, value: T) -> T:
        """Return the value of the first process."""
        return self.gather(value)[0]

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        self.any_rank(False)

    @contextlib.contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Run the block in the first process, and then in the others at the same time.

        If it fails in the first process, which prints the error, the others end without a word.
        """
        if self.size == 1:
            yield
        elif self.is_rank_zero:
            try:
                yield
            except BaseException:
                with contextlib.suppress(ProcessDied):
                    self._any((True,), self.waiting)
                raise
            self._any((False,), self.waiting)
        else:
            if self._any((False,), self.waiting)[0]:
                leave_quietly()
            yield

    def check_same(self, value: object, name: str, advice: str) -> None:
        """Check that `value`, called `name` in the error, is the same in all processes.

        Raises:
            TrainingError: the values differ; every process raises the error.
        """
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise TrainingError(
                f"the {self.size} processes disagree about {name}: "
                f"{', '.join(map(str, values))}. {advice}"
            )

    def check_shared(self, folder: Path) -> None:
        """Check that all processes see the same folder, by a file that the first one writes there.

        Raises:
            TrainingError: one of them does not; every process raises the error.
        """
        if self.size == 1:
            return
        marker = folder / self.from_rank_zero(f".{secrets.token_hex(8)}.tmp-shared")
        with self.rank_zero_first():
            if self.is_rank_zero:
                marker.touch()
        places = self.gather((str(folder), marker.exists()))
        if self.is_rank_zero:
            marker.unlink()
        for rank, (place, sees_marker) in enumerate(places):
            if not sees_marker:
                raise TrainingError(
                    f"the {self.size} processes do not share a results folder: the folder {place} "
                    f"of process {rank} lacks a file that process 0 wrote in {places[0][0]}. Set "
                    "PYTHIA_RESULTS to one folder that all of them see, on all machines"
                )

    @contextlib.contextmanager
    def exchanging(self) -> Iterator[None]:
        """Raise ProcessDied if torch cannot exchange tensors with another process in the block."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or "gloo" in str(error):  # it has no own class
                raise self._died(error) from error
            raise

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """Raise ProcessDied for any error in the block, which does nothing but exchange."""
        try:
            yield
        except RuntimeError as error:
            raise self._died(error) from error

    def _died(self, error: RuntimeError) -> ProcessDied:
        """Return the error about a process that died, or that did not answer in time."""
        messages = filter(None, map(_last_words, range(self.size)))
        reason = next(messages, str(error).splitlines()[0][:200])
        return ProcessDied(
            f"one of the {self.size} processes that train together died, or did not answer "
            f"in time ({reason}). End all processes, and run the "
            "same command again: training resumes from the last state"
        )


ALONE = World()


# --- the errors of other processes -----------------------------------------------------------


def _store() -> Any:
    """Return the key-value store of the processes; it outlives them if torchrun started them."""
    return dist.distributed_c10d._get_default_store()


def _tell(rank: int, error: BaseException) -> None:
    """Leave a message about this process's end; the first of the other processes prints it."""
    with contextlib.suppress(Exception):  # the process that had the store is gone
        _store().set(f"pythia-error-{rank}", str(error))


def _last_words(rank: int) -> str:
    """Return the message that a process has left with `_tell`; "" if there is none."""
    with contextlib.suppress(Exception):
        if _store().check([f"pythia-error-{rank}"]):
            return f"process {rank}: {_store().get(f'pythia-error-{rank}').decode()}"
    return ""


# --- starting --------------------------------------------------------------------------------


@contextlib.contextmanager
def init_world(sharding: str = "auto") -> Iterator[World]:
    """Connect the processes that torchrun started, if any; yield this process's World.

    Raises:
        ConfigError: the sharding is "always", but there is only one process; or WORLD_SIZE was not
            set by torchrun; or there are more processes than GPUs.
    """
    size = process_count()
    if size == 1:
        if sharding == "always":
            raise ConfigError(
                "one process cannot shard its state; start several with torchrun "
                "--nproc-per-node N, or omit --shard always"
            )
        yield ALONE
        return
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise ConfigError(
            f"WORLD_SIZE={size} asks for {size} processes, but {', '.join(missing)} is not set; "
            "start the command with torchrun, or unset WORLD_SIZE"
        )
    backend = "gloo"
    if torch.cuda.is_available():
        local, devices = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= devices:
            raise ConfigError(
                f"there is no GPU for process {local} of this machine, which has {devices}; start "
                f"at most {devices} processes (torchrun --nproc-per-node {devices})"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        waiting = dist.new_group(backend="gloo", timeout=PATIENCE)
        node_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        yield World(dist.get_rank(), size, node_size, sharding, waiting=waiting)
    finally:
        dist.destroy_process_group()


def run_together(function: Callable[[World], None], sharding: str = "auto") -> None:
    """Call `function` in every process; only the first one prints and warns.

    Raises:
        PythiaError: as `function` does, in the first process. The others exit with code 1, and
            leave their message for the first one.
    """
    with init_world(sharding) as world:
        try:
            if world.is_rank_zero:
                return function(world)
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return function(world)
        except Stopped as stop:
            if world.is_rank_zero:
                _tell(0, stop)
                raise
            raise SystemExit(128 + stop.number) from None
        except PythiaError as error:
            died = isinstance(error, ProcessDied)
            if not died:
                _tell(world.rank, error)
            if world.is_rank_zero or (died and world.rank == 1 and not _last_words(0)):
                raise  # in the second process, because the first may be the one that died
            leave_quietly()


# --- the state of a run ----------------------------------------------------------------------


def plan_state(world: World, config: RunConfig, execution: Execution) -> World:
    """Return `world` with the number of processes that share one copy of a run's state.

    "auto" chooses the smallest number with which the run fits: 1, the processes of a node, or all.
    "always" excludes 1; "never" is always 1. If the run does not fit, the result is the largest.

    Raises:
        ConfigError: the processes do not divide the batch, or a sharded run uses mode "compile".
    """
    world.check_divides(config.train.batch_size)
    whole_nodes = 1 < world.node_size < world.size and world.size % world.node_size == 0
    choices = [1, *([world.node_size] if whole_nodes else []), world.size]
    if world.size == 1 or world.sharding == "never":
        choices = [1]
    elif world.sharding == "always":
        choices = choices[1:]
    memory = _device_memory(world)
    fitting = (n for n in choices if smallest_training_bytes(config, execution, n) <= memory)
    shards = next(fitting, choices[-1])
    if shards > 1 and execution.mode == "compile":
        raise ConfigError(
            "a run whose state is sharded over processes cannot use the execution mode "
            "'compile'; choose 'eager' or 'eager+recompute'"
        )
    return replace(world, shards=shards)


def check_memory(world: World, config: RunConfig, execution: Execution) -> None:
    """Check that a run, shared as in `world`, fits the devices, before anything is allocated.

    Raises:
        TrainingError: it does not fit; the message says how many processes would be enough.
    """
    memory = _device_memory(world)
    needed = smallest_training_bytes(config, execution, world.shards)
    if needed <= memory:
        return
    enough = smallest_world(config, memory, execution)
    advice = (
        f"Shared by {enough} processes, the run would fit: torchrun --nproc-per-node N, on as many "
        "machines as needed"
        if enough
        else "No number of processes that divides the batch is enough; use a smaller model"
    )
    if enough and world.sharding == "never":
        advice += ", without --shard never"
    if not execution.recompute:
        advice += ". Recomputation (+recompute) needs less memory"
    shared = f"shared by {world.shards} processes" if world.sharded else "in each process"
    raise TrainingError(
        f"this run does not fit in memory: with a state of "
        f"{state_bytes(config.model, config.train.precision) / 1e9:,.1f} GB, {shared}, and one row "
        f"of a batch, each process needs about {needed / 1e9:,.1f} GB, but has "
        f"{memory / 1e9:,.1f} GB. {advice}"
    )


def _device_memory(world: World) -> float:
    """Return the bytes of this process's GPU; without one, its share of the machine's memory.

    All estimates include the RESERVE. Only a GPU needs it, so a share of memory is increased by it.
    """
    device = device_bytes()
    return memory_bytes() / world.node_size + RESERVE if device is None else device
