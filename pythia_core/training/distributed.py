"""One update over several processes, one a GPU: each takes its share of the batch's rows.

Process r of W takes the rows [r B / W, (r + 1) B / W) of every batch, as GPT-NeoX's ranks did, and
the gradients, already means over the whole batch, are summed. So the batch of a step, its hash and
the log do not depend on W; weights do in their last bits, as sums are taken in another order. The
first process alone writes files. Started with torchrun, which names the processes:

    torchrun --nproc-per-node 8 -m pythia_core continue EleutherAI/pythia-70m-deduped ...

Every process holds the whole state. Not here: models that are larger than a GPU.
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
    """The processes that train together, seen by one of them; alone, nothing is exchanged."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process' part of a batch (B, ...).

        Raises:
            ConfigError: B is not a multiple of the number of processes.
        """
        if len(rows) % self.size:
            raise ConfigError(
                f"a batch of {len(rows)} rows cannot be split over {self.size} processes; accepted "
                "are numbers of processes that divide it"
            )
        return rows.chunk(self.size)[self.rank]

    def sum_(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes, which get the same bits."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether any process says so. Through main memory: a GPU is not waited for."""
        if self.size == 1:
            return flag
        said = torch.tensor([int(flag)])
        dist.all_reduce(said, dist.ReduceOp.MAX)
        return bool(said)

    def check_same(self, value: int, what: str) -> None:
        """Refuse to go on where processes have read different things.

        Raises:
            TrainingError: on every process.
        """
        if self.size == 1:
            return
        said = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(said, torch.tensor([value]))
        found = [int(each) for each in said]
        if len(set(found)) > 1:
            raise TrainingError(
                f"the {self.size} processes found different values of {what}: {found}. They must "
                "see the same results folder (PYTHIA_RESULTS)"
            )

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world that torchrun started this process in; without torchrun it is alone."""
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
