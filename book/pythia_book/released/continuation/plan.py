"""What a continuation needs and takes, told before anything is downloaded or trained.

From sizes that are known beforehand: the released shards', Pythia's parameter counts. FLOP are
6 N D with N all parameters, as in the tables of compute that papers print; hours follow from a
stated share of one GPU's peak (an assumption, not a measurement of ours). Several GPUs share every
batch (pythia_core.training.distributed).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pythia_book.released.continuation.data import RowsData
from pythia_book.released.continuation.start import published_train
from pythia_book.released.download import is_repository
from pythia_book.released.pile import RELEASED, Absent
from pythia_core.config import ModelConfig, TrainConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.schedule import checkpoint_steps

GPU, PEAK_FLOPS, UTILISATION = "H100", 989e12, 0.25
"""One H100 in bf16 without sparsity, and the share of it that is assumed to be used. The released
70M to 410M models reached 22 to 26 % of their A100s by their GPU-hours."""
NETWORK = 25e6
"""Bytes a second assumed for downloads."""
LARGE_DOWNLOAD, LONG = 1e9, 3600.0
"""More bytes, or more seconds, are not begun unasked."""
_SIZE = re.compile(r"pythia-(\w+(?:\.\d+\w*)?)")


def hub_size(source: str) -> ModelConfig | None:
    """The model that a repository's name tells, e.g. EleutherAI/pythia-70m-deduped."""
    match = _SIZE.search(source.rsplit("/", 1)[-1])
    size = OFFICIAL_SIZES.get(match[1].lower()) if match else None
    return size.model() if size else None


@dataclass(frozen=True)
class Plan:
    """Sizes, missing files and estimates of one continuation; `lines` says it all."""

    source: str
    model: ModelConfig | None
    """None where only reading the model can tell."""
    train: TrainConfig | None
    start: int
    stop: int
    rows: str
    seq_len: int
    arms: int
    """Trained runs: a swap has its control beside it."""
    absent: tuple[Absent, ...] = ()
    weight_bytes: float = 0.0
    """To be downloaded."""
    row_bytes: float = 0.0
    """To be read over the network, all arms together."""

    @property
    def tokens(self) -> int:
        """Of one arm."""
        batch = self.train.batch_size if self.train else 1024
        return (self.stop - self.start) * batch * self.seq_len

    @property
    def flops(self) -> float:
        """6 N D of all arms."""
        return 6.0 * self.model.n_params * self.tokens * self.arms if self.model else 0.0

    @property
    def seconds(self) -> float:
        """Of all arms on the stated GPU."""
        return self.flops / (PEAK_FLOPS * UTILISATION)

    @property
    def saved(self) -> int:
        """Checkpoints of one arm, as far as the schedule is known."""
        steps = checkpoint_steps(self.train.steps) if self.train else ()
        return sum(self.start <= step <= self.stop for step in steps)

    @property
    def memory(self) -> float:
        """Bytes of weights, gradients and Adam's moments, in bf16 with a copy of the weights."""
        return self.model.n_params * (18.0 if self._half else 16.0) if self.model else 0.0

    @property
    def disk(self) -> float:
        """Bytes of the checkpoints of all arms, and of the states that each keeps."""
        one = self.saved * (2 if self._half else 4) + 4 * 12
        return float(self.arms * self.model.n_params * one) if self.model else 0.0

    @property
    def _half(self) -> bool:
        return bool(self.train and self.train.precision != "fp32")

    @property
    def is_large(self) -> bool:
        """Whether it is not to be begun unasked."""
        return self.weight_bytes + self.row_bytes > LARGE_DOWNLOAD or self.seconds > LONG

    @property
    def lines(self) -> list[str]:
        """For people, one fact a line."""
        updates = self.stop - self.start
        said = [
            f"from {self.source}, step {self.start:,} to {self.stop:,}: {updates:,} updates, "
            f"{self.tokens:,} tokens an arm, {self.arms} arm(s)"
            + (" (the swap and its control)" if self.arms == 2 else ""),
            f"rows: {self.rows}",
        ]
        if self.weight_bytes:
            said.append(f"weights to fetch: {self.weight_bytes / 1e9:.2f} GB from the hub")
        if self.row_bytes:
            hours = self.row_bytes / NETWORK / 3600
            said.append(
                f"rows to fetch while training: {self.row_bytes / 1e9:.1f} GB, {hours:.1f} h at an "
                f"assumed {NETWORK / 1e6:.0f} MB/s"
            )
        for shard in self.absent:
            said.append(f"MISSING: {shard.name}, {shard.size / 1e9:.1f} GB")
        if self.model and self.train:
            said += [
                f"{self.model.n_params:,} parameters: {self.memory / 1e9:.1f} GB for weights, "
                f"gradients and Adam, besides activations; about {self.disk / 1e9:.1f} GB of disk "
                f"for {self.saved} checkpoints an arm",
                f"6 N D = {self.flops:.2g} FLOP, {self.seconds / 3600:.2g} h on one {GPU} at an "
                f"assumed {UTILISATION:.0%} of {PEAK_FLOPS / 1e12:.0f} TFLOP/s",
                "one GPU is used; N of them share every batch with "
                "torchrun --nproc-per-node N -m pythia_core continue ...",
            ]
        return said


def make_plan(
    source: str,
    model: ModelConfig | None,
    train: TrainConfig | None,
    start: int,
    steps: int,
    rows: RowsData | None,
    swap: bool,
    seq_len: int = 2048,
) -> Plan:
    """The plan of a continuation; looks at local files and names only.

    Args:
        model, train: as far as known; for a repository of the hub its name tells.
        rows: None for those of the run that goes on, which are `seq_len` long.

    Raises:
        ConfigError: steps that cannot be. DataError: no such rows, or too few of them.
    """
    if start < 0 or steps < 1:
        raise ConfigError(f"from step {start} for {steps} updates: accepted are 0 and 1 or more")
    model = model or hub_size(source)
    train = train or (published_train(model) if model else None)
    stop, arms = start + steps, 1 + swap
    remote = is_repository(source) and not Path(source).expanduser().is_dir()
    weights = 2.0 * model.n_params if remote and model else 0.0
    if rows is None:
        return Plan(source, model, train, start, stop, "those of the run", seq_len, arms)
    batch = train.batch_size if train else 1024
    absent: tuple[Absent, ...] = ()
    network = 0.0
    what = rows.where
    if rows.where in RELEASED:
        width = (rows.seq_len + 1) * np.dtype("<u2").itemsize
        network = float(arms * steps * batch * width)
        what = f"{rows.where}: {RELEASED[rows.where].what}, read over the network"
    else:
        what = rows.what
        if rows.rows.n_rows < stop * batch:
            raise DataError(
                f"updates {start}..{stop - 1} read rows up to {stop * batch:,}; {rows.where} has "
                f"{rows.rows.n_rows:,}, enough for {rows.rows.n_rows // batch:,} updates"
            )
        absent = tuple(rows.absent(start, stop, batch))
    return Plan(
        source, model, train, start, stop, what, rows.seq_len, arms, absent, weights, network
    )
