"""Train with several processes, one per GPU, each on its shard (part) of every batch.

Process r of W takes the rows [r B / W, (r + 1) B / W) of every batch of B rows, as the ranks of
GPT-NeoX did. So the batch of a step does not depend on W. The last bits of the weights depend on
W, because gradients are summed over the processes. Only the first process writes files. The whole
model and optimizer state must fit on one GPU. torchrun starts the processes:

    torchrun --nproc-per-node 8 -m pythia_core continue EleutherAI/pythia-70m-deduped ...
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pythia_core.errors import ConfigError, TrainingError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, e.g. for the first one to read its data."""


@dataclass(frozen=True)
class World:
    """The processes that train together: their number (`size`), and this process's `rank`."""

    rank: int = 0
    size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the first process, the only one that writes files and prints."""
        return self.rank == 0

    def shard(self, rows: Tensor) -> Tensor:
        """Return the part of a batch of rows (B, ...) that this process trains on.

        Raises:
            ConfigError: B is not a multiple of the number of processes.
        """
        if len(rows) % self.size:
            raise ConfigError(
                f"a batch of {len(rows)} rows cannot be split evenly over {self.size} processes; "
                f"use a number of processes that divides {len(rows)}"
            )
        return rows.chunk(self.size)[self.rank]

    def all_reduce_(self, *tensors: Tensor) -> None:
        """Sum tensors over all processes, in place; every process gets the same bits.

        Raises:
            TrainingError: another process died or does not answer; so in the methods below.
        """
        if self.size > 1:
            with _answered(self.size):
                for tensor in tensors:
                    dist.all_reduce(tensor)

    def any_rank(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process, without waiting for a GPU."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        with _answered(self.size):
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def check_same(self, value: int, name: str) -> None:
        """Check that `value`, called `name` in the error, is the same in all processes.

        Raises:
            TrainingError: the values differ; every process raises the error.
        """
        if self.size == 1:
            return
        gathered = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _answered(self.size):
            dist.all_gather(gathered, torch.tensor([value]))
        values = [int(each) for each in gathered]
        if len(set(values)) > 1:
            raise TrainingError(
                f"the {self.size} processes disagree about {name}: {values}. All processes must "
                "use the same results folder, which the variable PYTHIA_RESULTS sets"
            )

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        self.any_rank(False)


ALONE = World()


@contextlib.contextmanager
def _answered(size: int) -> Iterator[None]:
    """Raise TrainingError if one of the `size` processes died, or did not answer within TIMEOUT."""
    try:
        yield
    except RuntimeError as error:  # gloo has no class of its own
        raise TrainingError(
            f"one of the {size} processes that train together died, or did not answer within "
            f"{TIMEOUT.total_seconds():g} s ({str(error).splitlines()[0][:200]}). End all "
            "processes, and run the same command again: training resumes from the last state"
        ) from error


@contextlib.contextmanager
def init_world() -> Iterator[World]:
    """Connect the processes that torchrun started, if any; yield this process's World."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
