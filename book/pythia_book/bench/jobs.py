"""One job of the benchmark on a GPU: which contenders of which size, at which shape, on which text.

A job is what one process measures. From estimates of memory follow the micro-batches that are worth
trying and which contenders can be there at once. Nothing here computes on a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pythia_book.bench import cost_model
from pythia_book.bench.contenders import FITTING, LEARNING_RATE, Contender
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.suite import OFFICIAL_SIZES

Row = dict[str, Any]
SEQ_LEN = cost_model.SEQ_LEN
TOKENS = {"narrow": 1 << 16, "wide": 1 << 15}
"""Tokens a micro-batch at most, up to a width of 256 and beyond: what fills an H100."""
MEMORY = "out of memory"
SKIPPED = "skipped: the budget of seconds was spent"


@dataclass(frozen=True)
class Job:
    """What one process measures: some contenders of one size at one shape.

    Attributes:
        purpose: "compare", "price", "rows" (micro-batches), "seq_len" or "accumulate".
        rows: of a micro-batch; 0: the largest that FITTING fits.
        micro_batches: an update.
    """

    size: str
    contenders: tuple[Contender, ...]
    purpose: str = "compare"
    rows: int = 0
    seq_len: int = SEQ_LEN
    micro_batches: int = 1
    dry_run: bool = False
    seconds: float = 1.0
    deadline: float = float("inf")
    """time.time() after which nothing is begun."""
    tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint16), repr=False)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry_run else "cuda")

    @property
    def model(self) -> ModelConfig:
        rung = OFFICIAL_SIZES[self.size]
        if self.dry_run:
            return ModelConfig(1, 16, 2, 128, max_seq_len=self.seq_len)
        return rung.model(max_seq_len=self.seq_len)

    @property
    def common(self) -> Row:
        """What all rows of this job say."""
        return {
            "kind": "train",
            "size": self.size,
            "purpose": self.purpose,
            "rows": self.rows or None,
            "seq_len": self.seq_len,
            "micro_batches": self.micro_batches,
        }

    def config(self, rows: int) -> RunConfig:
        """A run whose updates are `micro_batches` of `rows` rows."""
        train = TrainConfig(
            steps=100_000,
            batch_size=rows * self.micro_batches,
            micro_batch=rows,
            lr_max=LEARNING_RATE,
            precision="bf16",
        )
        return RunConfig(self.model, DataConfig(seq_len=self.seq_len), train)

    def batches(self, rows: int, n: int = 4) -> list[np.ndarray]:
        """Some batches of rows of S+1 tokens, cut from the text one after the other."""
        shape = (rows * self.micro_batches, self.seq_len + 1)
        need = shape[0] * shape[1]
        found = np.resize(self.tokens, n * need).reshape(n, *shape)
        return list(found)


def rows_to_try(job: Job, total_bytes: float) -> list[int]:
    """Rows of a micro-batch, largest first: from twice what the estimate says, powers of two."""
    if job.rows:
        return [job.rows]
    model, most = job.model, TOKENS["narrow" if job.model.d_model <= 256 else "wide"]
    free = total_bytes - FITTING.held_bytes(model, 0)
    largest = rows = max(1, most // job.seq_len)
    while rows > 1 and FITTING.activation_bytes(model, rows * job.seq_len) > free:
        rows //= 2
    first = min(2 * rows, largest)
    return [2**power for power in range(first.bit_length() - 1, -1, -1)]


def groups(job: Job, rows: int, total_bytes: float) -> list[list[Contender]]:
    """Contenders that fit into memory together, by estimate, in order; alone if nothing fits."""
    model, tokens = job.model, rows * job.seq_len
    made: list[list[Contender]] = []
    held = peak = 0
    for contender in job.contenders:
        holds = contender.held_bytes(model, tokens)
        needs = contender.activation_bytes(model, tokens)
        if not made or held + holds + max(peak, needs) > total_bytes:
            made.append([])
            held = peak = 0
        made[-1].append(contender)
        held, peak = held + holds, max(peak, needs)
    return made


def unmeasured(job: Job, contenders: Sequence[Contender], why: str) -> Iterator[Row]:
    """A row for each of some contenders that says why it has no speed."""
    for contender in contenders:
        yield job.common | contender.words | {"error": why}
