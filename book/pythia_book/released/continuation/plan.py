"""Estimates what a continuation needs and costs, before anything is downloaded or trained.

FLOP are those of the matrix products, as on the page on the recipe. The speed of training is
assumed, not measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from pythia_book.released.continuation.data import TokenFileData
from pythia_book.released.continuation.start import published_train
from pythia_book.released.download import is_repository
from pythia_book.released.pile import MissingShard, released_order
from pythia_book.released.recipe import H100_PEAK, H100_UTILIZATION
from pythia_core.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from pythia_core.errors import ConfigError, DataError, count_of
from pythia_core.hf import local_folder
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.memory import smallest_world, state_bytes
from pythia_core.training.metrics import flops_per_token
from pythia_core.training.retention import checkpoint_bytes, saved_state_bytes
from pythia_core.training.schedule import checkpoint_steps

GPU, GPU_BYTES = "H100", 80e9
"""Assumed device, and its memory."""
NETWORK = 25e6
"""Assumed bytes per second of downloads."""
LARGE_DOWNLOAD, LONG = 1e9, 3600.0
"""Bytes to download and seconds of training above which the user must confirm."""
_SIZE = re.compile(r"pythia-(\w+(?:\.\d+\w*)?)")


def hub_size(source: str) -> ModelConfig | None:
    """Return the config of the size in a name like EleutherAI/pythia-70m; None if unknown."""
    match = _SIZE.search(source.rsplit("/", 1)[-1])
    size = OFFICIAL_SIZES.get(match[1].lower()) if match else None
    return size.model() if size else None


@dataclass(frozen=True)
class Plan:
    """What it takes to continue the training of a model, with the estimated cost."""

    source: str
    model: ModelConfig | None
    """None if the config is only in files that have not been downloaded."""
    train: TrainConfig | None
    """None if the training settings of the model are unknown."""
    start: int
    stop: int
    """The step at which the continued training ends."""
    rows: str
    """A description of the training rows."""
    seq_len: int
    arms: int
    """Number of runs to train: 2 for a swap and its control, else 1."""
    missing_shards: tuple[MissingShard, ...] = ()
    weight_bytes: float = 0.0
    """Bytes of weights to download."""
    row_bytes: float = 0.0
    """Bytes of rows to read over the network, for all arms together."""

    @property
    def tokens(self) -> int:
        """Number of training tokens per arm."""
        batch = self.train.batch_size if self.train else 1024
        return (self.stop - self.start) * batch * self.seq_len

    @property
    def flops(self) -> float:
        """FLOP of the matrix products of all arms; 0 if the model is unknown."""
        if not self.model:
            return 0.0
        return flops_per_token(self.model, self.seq_len) * self.tokens * self.arms

    @property
    def seconds(self) -> float:
        """Seconds to train all arms on one GPU at the assumed speed; 0 if the model is unknown."""
        return self.flops / (H100_PEAK * H100_UTILIZATION)

    @property
    def saved(self) -> int:
        """Number of checkpoints that each arm saves; 0 if the schedule is unknown."""
        steps = checkpoint_steps(self.train.steps) if self.train else ()
        return sum(self.start <= step <= self.stop for step in steps)

    @property
    def memory(self) -> float:
        """Bytes of weights, gradients and Adam's state in training; 0 if the model is unknown."""
        precision = self.train.precision if self.train else "fp32"
        return state_bytes(self.model, precision) if self.model else 0.0

    @property
    def _processes(self) -> str:
        """How many GPUs must share the state of training; "" if one can hold it."""
        assert self.model and self.train
        run = RunConfig(self.model, DataConfig(seq_len=self.seq_len), self.train)
        fewest = smallest_world(run, GPU_BYTES)
        if fewest == 1:
            return ""
        enough = f"at least {fewest} GPUs" if fewest else "more GPUs than a batch has rows"
        return f"{enough}, each with {GPU_BYTES / 1e9:.0f} GB, must share the state of this model; "

    @property
    def disk(self) -> float:
        """Bytes of the saved weights and optimizer states of all arms; 0 for an unknown model."""
        if not self.model or not self.train:
            return 0.0
        data = DataConfig(seq_len=self.model.max_seq_len)
        config = RunConfig(self.model, data, self.train)
        states = 4 * saved_state_bytes(config)
        return float(self.arms * (self.saved * checkpoint_bytes(config) + states))

    @property
    def is_large(self) -> bool:
        """Whether the user must confirm the download or the training."""
        return self.weight_bytes + self.row_bytes > LARGE_DOWNLOAD or self.seconds > LONG

    @property
    def lines(self) -> list[str]:
        """The plan as text, one item per line."""
        updates = self.stop - self.start
        lines = [
            f"from {self.source}, step {self.start:,} to {self.stop:,}: {updates:,} updates, "
            f"{self.tokens:,} tokens per arm, {count_of(self.arms, 'arm')}"
            + (" (the swap and its control)" if self.arms == 2 else ""),
            f"rows: {self.rows}",
        ]
        if self.weight_bytes:
            lines.append(f"weights to download from the hub: {self.weight_bytes / 1e9:.2f} GB")
        if self.row_bytes:
            hours = self.row_bytes / NETWORK / 3600
            lines.append(
                f"rows to download during training: {self.row_bytes / 1e9:.1f} GB, {hours:.1f} h "
                f"at an assumed {NETWORK / 1e6:.0f} MB/s"
            )
        lines += [
            f"MISSING SHARD: {shard.name}, {shard.size / 1e9:.1f} GB"
            for shard in self.missing_shards
        ]
        if self.model and self.train:
            lines += [
                f"memory: {self.memory / 1e9:.1f} GB for the weights, gradients and Adam's state "
                f"of {self.model.n_params:,} parameters, plus activations",
                f"disk: about {self.disk / 1e9:.1f} GB for optimizer states and for {self.saved} "
                "checkpoints per arm",
                f"training: {self.flops:.2g} FLOP of matrix products, {self.seconds / 3600:.2g} h "
                f"on one {GPU} at an assumed {H100_UTILIZATION:.0%} of "
                f"{H100_PEAK / 1e12:.0f} TFLOP/s",
                f"this plan is for one GPU; {self._processes}to split every batch over N GPUs, run "
                "torchrun --nproc-per-node N -m pythia_core continue ...",
            ]
        return lines


def make_plan(
    source: str,
    model: ModelConfig | None,
    train: TrainConfig | None,
    start: int,
    steps: int,
    rows: TokenFileData | None,
    swap: bool,
    seq_len: int = 2048,
) -> Plan:
    """Plan to continue the training of a model, without downloading anything.

    Args:
        source: a local run, or the folder or repository of a published model.
        model, train: config and settings; None: take them from the Pythia size that `source` names.
        rows: the training rows; None: the rows of the local run `source`.
        swap: whether to train two arms, a pronoun swap and its control.
        seq_len: tokens per row if `rows` is None.

    Raises:
        ConfigError: `start` or `steps` is invalid.
        DataError: the rows do not exist, or there are too few rows.
    """
    if start < 0 or steps < 1:
        raise ConfigError(
            f"start must be at least 0 and steps at least 1, got start={start}, steps={steps}"
        )
    model = model or hub_size(source)
    train = train or (published_train(model) if model else None)
    stop, arms = start + steps, 1 + swap
    batch = train.batch_size if train else 1024
    missing_shards: list[MissingShard] = []
    row_bytes = 0.0
    if rows is not None and released_order(rows.where):
        row_bytes = float(arms * steps * batch * (rows.seq_len + 1) * np.dtype("<u2").itemsize)
    elif rows is not None:
        missing_shards = rows.missing_shards(start, stop, batch)
        if rows.rows.n_rows < stop * batch:
            raise DataError(
                f"updates up to {stop - 1} need {stop * batch:,} rows from the start of the data, "
                f"but {rows.where} has {rows.rows.n_rows:,} rows, enough for only the first "
                f"{rows.rows.n_rows // batch:,} updates; pass more rows or fewer steps"
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
        tuple(missing_shards),
        weight_bytes=2.0 * model.n_params if remote and model else 0.0,
        row_bytes=row_bytes,
    )
