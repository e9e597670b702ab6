"""What a continuation needs and costs, estimated before anything is downloaded or trained.

FLOP are 6 N D with N all parameters, as in papers' tables of compute; hours assume a share of one
GPU's peak, which was not measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pythia_book.released.continuation.data import RowsData
from pythia_book.released.continuation.start import published_train
from pythia_book.released.download import is_repository
from pythia_book.released.pile import RELEASED, Absent
from pythia_core.config import ModelConfig, TrainConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.hf import local_folder
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.schedule import checkpoint_steps

GPU, PEAK_FLOPS, UTILISATION = "H100", 989e12, 0.25
"""One H100 in bf16 without sparsity, and the assumed share of its peak. By their GPU-hours, the
released 70M to 410M models reached 22 to 26 % of their A100s' peak."""
NETWORK = 25e6
"""Bytes per second assumed for downloads."""
LARGE_DOWNLOAD, LONG = 1e9, 3600.0
"""More bytes or seconds than these need confirmation."""
_SIZE = re.compile(r"pythia-(\w+(?:\.\d+\w*)?)")


def hub_size(source: str) -> ModelConfig | None:
    """The model by its repository's name, e.g. EleutherAI/pythia-70m-deduped; None if unknown."""
    match = _SIZE.search(source.rsplit("/", 1)[-1])
    size = OFFICIAL_SIZES.get(match[1].lower()) if match else None
    return size.model() if size else None


@dataclass(frozen=True)
class Plan:
    """Sizes, missing files and estimates of one continuation; `lines` is the report."""

    source: str
    model: ModelConfig | None
    """None where it is known only from the files."""
    train: TrainConfig | None
    start: int
    stop: int
    rows: str
    seq_len: int
    arms: int
    """Runs to train: 2 for a swap, with its control."""
    absent: tuple[Absent, ...] = ()
    weight_bytes: float = 0.0
    """To be downloaded."""
    row_bytes: float = 0.0
    """To be read over the network, all arms together."""

    @property
    def tokens(self) -> int:
        """Per arm."""
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
        """Checkpoints per arm, as far as the schedule is known."""
        steps = checkpoint_steps(self.train.steps) if self.train else ()
        return sum(self.start <= step <= self.stop for step in steps)

    @property
    def memory(self) -> float:
        """Bytes of weights, gradients and Adam's moments, in bf16 with a copy of the weights."""
        return self.model.n_params * (18.0 if self._half else 16.0) if self.model else 0.0

    @property
    def disk(self) -> float:
        """Bytes of all arms' checkpoints and of the optimizer states that each keeps."""
        per_parameter = self.saved * (2 if self._half else 4) + 4 * 12
        return float(self.arms * self.model.n_params * per_parameter) if self.model else 0.0

    @property
    def _half(self) -> bool:
        return bool(self.train and self.train.precision != "fp32")

    @property
    def is_large(self) -> bool:
        """Whether it needs confirmation."""
        return self.weight_bytes + self.row_bytes > LARGE_DOWNLOAD or self.seconds > LONG

    @property
    def lines(self) -> list[str]:
        """The plan as text, one fact per line."""
        updates = self.stop - self.start
        lines = [
            f"from {self.source}, step {self.start:,} to {self.stop:,}: {updates:,} updates, "
            f"{self.tokens:,} tokens per arm, {self.arms} arm(s)"
            + (" (the swap and its control)" if self.arms == 2 else ""),
            f"rows: {self.rows}",
        ]
        if self.weight_bytes:
            lines.append(f"weights to fetch: {self.weight_bytes / 1e9:.2f} GB from the hub")
        if self.row_bytes:
            hours = self.row_bytes / NETWORK / 3600
            lines.append(
                f"rows to fetch while training: {self.row_bytes / 1e9:.1f} GB, {hours:.1f} h at an "
                f"assumed {NETWORK / 1e6:.0f} MB/s"
            )
        lines += [f"MISSING: {shard.name}, {shard.size / 1e9:.1f} GB" for shard in self.absent]
        if self.model and self.train:
            lines += [
                f"{self.model.n_params:,} parameters: {self.memory / 1e9:.1f} GB for weights, "
                f"gradients and Adam, plus activations; about {self.disk / 1e9:.1f} GB of disk "
                f"for {self.saved} checkpoints per arm",
                f"6 N D = {self.flops:.2g} FLOP, {self.seconds / 3600:.2g} h on one {GPU} at an "
                f"assumed {UTILISATION:.0%} of {PEAK_FLOPS / 1e12:.0f} TFLOP/s",
                "this uses one GPU; to share every batch among N: "
                "torchrun --nproc-per-node N -m pythia_core continue ...",
            ]
        return lines


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
    """The plan of a continuation; reads local files and names only.

    Args:
        model, train: as far as known; a repository's name gives its size.
        rows: None for those of the run that is continued, which are `seq_len` long.

    Raises:
        ConfigError: impossible steps. DataError: no such rows, or too few of them.
    """
    if start < 0 or steps < 1:
        raise ConfigError(f"from step {start} for {steps} updates: accepted are 0 and 1 or more")
    model = model or hub_size(source)
    train = train or (published_train(model) if model else None)
    stop, arms = start + steps, 1 + swap
    batch = train.batch_size if train else 1024
    absent: list[Absent] = []
    row_bytes = 0.0
    if rows is not None and rows.where in RELEASED:
        row_bytes = float(arms * steps * batch * (rows.seq_len + 1) * np.dtype("<u2").itemsize)
    elif rows is not None:
        absent = rows.absent(start, stop, batch)
        if rows.rows.n_rows < stop * batch:
            raise DataError(
                f"updates {start}..{stop - 1} read rows up to {stop * batch:,}; {rows.where} has "
                f"{rows.rows.n_rows:,}, enough for {rows.rows.n_rows // batch:,} updates"
            )
    remote = is_repository(source) and local_folder(source) is None
    return Plan(
        source,
        model,
        train,
        start,
        stop,
        rows.description if rows else "those of the run",
        rows.seq_len if rows else seq_len,
        arms,
        tuple(absent),
        weight_bytes=2.0 * model.n_params if remote and model else 0.0,
        row_bytes=row_bytes,
    )
