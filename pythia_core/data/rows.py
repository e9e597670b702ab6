"""Rows of S+1 token ids in training order: what every reader of them has in common.

A row holds S inputs and, one place on, S labels; batch k of size B is the rows [k*B, (k+1)*B), the
batch of the update that turns step k into step k+1. Rows may lie in files (order.PreshuffledRows),
behind URLs (remote_rows.RemoteRows) or be gathered from documents (order.OrderedRows,
index_maps.MappedRows); what looks at batches takes any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pythia_core.errors import DataError


class Rows(Protocol):
    """Rows of S+1 ids in training order, wherever they lie or however they are made."""

    seq_len: int
    n_rows: int
    contiguous: bool
    """Whether many rows cost one read; if not, each row costs several."""

    def rows(self, start: int, stop: int) -> NDArray: ...

    def batch(self, step: int, batch_size: int) -> NDArray: ...


class Batches:
    """What all kinds of rows share: batch k of size B is the rows [k*B, (k+1)*B)."""

    seq_len: int
    n_rows: int
    contiguous = True

    def rows(self, start: int, stop: int) -> NDArray:
        """Rows [start, stop) as a new array (stop - start, seq_len + 1).

        Raises:
            DataError: outside 0..n_rows.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise DataError(f"rows [{start}, {stop}) are outside 0..{self.n_rows}")
        return self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> NDArray:
        raise NotImplementedError

    def batch(self, step: int, batch_size: int) -> NDArray:
        """The batch of the update that turns step `step` into the next: (batch_size, seq_len + 1).

        Raises:
            DataError: past the end. Never wraps around: that would repeat data silently.
        """
        if step < 0 or batch_size < 1:
            raise DataError(f"need step >= 0 and batch_size >= 1, got {step}, {batch_size}")
        if (step + 1) * batch_size > self.n_rows:
            n_steps = self.n_rows // batch_size
            raise DataError(
                f"step {step} needs rows up to {(step + 1) * batch_size}, but there are "
                f"{self.n_rows}: the last full batch of {batch_size} is "
                + (f"step {n_steps - 1}" if n_steps else "none")
                + "; use fewer steps, a smaller batch, more epochs or more text"
            )
        return self.rows(step * batch_size, (step + 1) * batch_size)


class FixedRows(Batches):
    """Rows already in training order that lie back to back in bytes: row i at (S+1) * i ids.

    A subclass says where the bytes are.

    Raises:
        DataError: not a whole number of rows.
    """

    def __init__(
        self, name: str, sizes: Sequence[int], seq_len: int, dtype: str | np.dtype = "<u2"
    ) -> None:
        if seq_len < 1:
            raise DataError(f"seq_len must be at least 1, got {seq_len}")
        self.seq_len, self.dtype = seq_len, np.dtype(dtype)
        self._row_bytes = (seq_len + 1) * self.dtype.itemsize
        if not sum(sizes) or sum(sizes) % self._row_bytes:
            raise DataError(
                f"{name} (+{len(sizes) - 1} more): {sum(sizes)} bytes are not a whole "
                f"number of rows of {seq_len + 1} ids of {self.dtype.itemsize} bytes; a shard is "
                f"truncated or missing, or seq_len={seq_len} is not theirs"
            )
        self.n_rows = sum(sizes) // self._row_bytes
        self._bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).tolist()

    def _rows(self, start: int, stop: int) -> NDArray:
        first, last = start * self._row_bytes, stop * self._row_bytes
        pieces = [
            self._read(shard, max(first - low, 0), min(last, high) - low)
            for shard, (low, high) in enumerate(itertools.pairwise(self._bounds))
            if low < last and high > first
        ]
        joined = np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
        return joined.view(self.dtype).reshape(stop - start, self.seq_len + 1)

    def _read(self, shard: int, start: int, stop: int) -> NDArray[np.uint8]:
        """Bytes [start, stop) of one shard."""
        raise NotImplementedError
