"""Train with several processes, one per GPU, each on its shard (part) of every batch.

Process r of W takes the rows [r B / W, (r + 1) B / W) of every batch of B rows, as the ranks of
GPT-NeoX did. Every process divides its loss by the size of the whole batch, and the gradients of
all processes are summed. So the batch of a step and its hash do not depend on W. The last bits of
the weights depend on W, because the order of summation does. Only the first process writes files.
Every process has the whole model and optimizer state, which must fit on one GPU. torchrun starts
the processes:

    torchrun --nproc-per-node 8 -m pythia_core continue EleutherAI/pythia-70m-deduped ...
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pythia_core.errors import ConfigError, TrainingError


@dataclass(frozen=True)
class World:
    """How many processes train together (`size`), and the rank of this process (`rank`)."""

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
        """Sum tensors over all processes, in place; every process gets the same bits."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any_rank(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process.

        Flags are exchanged on the CPU, so no process waits for its GPU.
        """
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def check_same(self, value: int, name: str) -> None:
        """Raise an error if the processes have different values.

        Args:
            name: what the value is, for the error message.

        Raises:
            TrainingError: the values differ; every process raises the error.
        """
        if self.size == 1:
            return
        gathered = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
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
def init_world() -> Iterator[World]:
    """Connect the processes that torchrun started, and yield the World of this process.

    Without torchrun, or with a single process, yield ALONE.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
