"""Put documents in training order, as rows of S+1 tokens, exactly as in GPT-NeoX v1.0.

The order depends only on the lengths of the D documents, the seed, S, the number of epochs E and
the epoch policy. With the policy "joint", it is made as in `megatron/data/gpt2_dataset.py` at v1.0:

1. one `RandomState(seed)` is made, which shuffles first in step 2 and then in step 4;
2. E copies of the document numbers 0..D-1 are shuffled *together* (so epochs have no boundary);
3. the documents form one stream of tokens; row i has the tokens i*S to i*S + S;
4. the rows are shuffled.

NumPy has frozen RandomState, so the order does not depend on the version of NumPy.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pythia_core.data.indexed_dataset import MegatronIndexed, check_shard_names
from pythia_core.errors import ConfigError, DataError, one_of
from pythia_core.util.files import atomic_file
from pythia_core.util.progress import bar

# --- rows and batches ------------------------------------------------------------------------


class Rows:
    """A source of training rows of seq_len + 1 token ids; the last seq_len are the labels.

    Batch k of size B has the rows [k*B, (k+1)*B). Subclasses implement `_rows`.
    """

    seq_len: int
    n_rows: int
    contiguous = True
    """Whether one read gives several consecutive rows; otherwise each row takes several reads."""

    def rows(self, start: int, stop: int) -> NDArray:
        """Return the token ids of the rows [start, stop), a new array (stop - start, seq_len + 1).

        Raises:
            DataError: [start, stop) is outside 0..n_rows.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise DataError(
                f"the range of rows from start={start} to stop={stop} is outside "
                f"0..{self.n_rows}; this source has {self.n_rows} rows"
            )
        return self._rows(start, stop)

    def _rows(self, start: int, stop: int) -> NDArray:
        """Do the work of `rows`, for rows that exist."""
        raise NotImplementedError

    def missing_files(self, start: int, stop: int) -> list[Any]:
        """Return the absent files that the rows [start, stop) need."""
        return []

    def batch(self, step: int, batch_size: int) -> NDArray:
        """Return the ids of the update from `step` to `step + 1`, int[batch_size, seq_len + 1].

        Raises:
            DataError: `step` or `batch_size` is too small, or there are too few rows.
        """
        if step < 0 or batch_size < 1:
            raise DataError(
                f"step must be at least 0 and batch_size at least 1, got step={step} and "
                f"batch_size={batch_size}"
            )
        if (step + 1) * batch_size > self.n_rows:
            n_steps = self.n_rows // batch_size
            raise DataError(
                f"step {step} needs {(step + 1) * batch_size} rows, but there are only "
                f"{self.n_rows}, so "
                + (
                    f"the last full batch of {batch_size} is step {n_steps - 1}"
                    if n_steps
                    else f"no batch of {batch_size} is full"
                )
                + ". Use fewer steps, a smaller batch, more epochs or more text"
            )
        return self.rows(step * batch_size, (step + 1) * batch_size)


class FixedRows(Rows):
    """Rows stored back to back in training order. Subclasses implement `_read`.

    Args:
        name: file name for error messages.
        sizes: bytes of each shard; shards may be split at any byte.

    Raises:
        DataError: the shards together do not have a whole number of rows, or are all empty.
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
                f"{name}{f' and {len(sizes) - 1} more shards have' if len(sizes) > 1 else ' has'} "
                f"{sum(sizes):,} bytes, not a whole number of rows (a row is {seq_len + 1} "
                f"ids of {self.dtype.itemsize} bytes); a shard is truncated or missing, or "
                f"seq_len={seq_len} is wrong"
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
        """Return the bytes [start, stop) of a shard."""
        raise NotImplementedError


# --- the order -------------------------------------------------------------------------------

POLICIES = ("joint", "separate", "rows")


def epochs_needed(tokens_per_epoch: int, seq_len: int, n_samples: int) -> int:
    """Return the smallest number of epochs E with at least `n_samples` rows.

    E epochs have (E * tokens_per_epoch - 1) // seq_len rows. Raises DataError if an epoch is empty.
    """
    if tokens_per_epoch < 1:
        raise DataError(
            f"the corpus is empty (tokens_per_epoch={tokens_per_epoch}); use another corpus"
        )
    return max(1, -(-(n_samples * seq_len + 1) // tokens_per_epoch))


def samples_requested(steps: int, batch_size: int) -> int:
    """Return how many rows GPT-NeoX requests for `steps` updates: 0.5 % more than needed."""
    return -(-steps * batch_size * 1005 // 1000)


class RowOrder:
    """The order of training: which tokens of which documents are in each row.

    The order is a pure function of the arguments.

    Args:
        sizes: int[n_documents], number of tokens of each document (0 is allowed).
        seq_len: S; a row has S + 1 tokens.
        epochs: how often every document (with the policy "rows": every row) is read.
        policy: how to shuffle.
            "joint": all epochs together, as in GPT-NeoX v1.0.
            "separate": each epoch on its own, as the paper describes it. No row crosses the end
                of an epoch. The first epoch is the same as with `epochs=1`.
            "rows": the first `unique_rows` rows of one epoch are read, and then read again, newly
                shuffled, in each further epoch. Those of a smaller `unique_rows` are a subset.
        unique_rows: number of different rows with the policy "rows"; otherwise 0.

    Raises:
        DataError: the documents have too few tokens for one row, or too few rows.
        ConfigError: the policy is unknown, `epochs` or `seq_len` is below 1, or `unique_rows`
            does not fit the policy.
    """

    def __init__(
        self,
        sizes: NDArray[np.integer] | Sequence[int],
        seq_len: int,
        seed: int = 1234,
        epochs: int = 1,
        policy: str = "joint",
        unique_rows: int = 0,
    ) -> None:
        if policy not in POLICIES:
            raise ConfigError(one_of(policy, POLICIES, "epoch policy"))
        if (unique_rows > 0) != (policy == "rows"):
            raise ConfigError(
                f"unique_rows={unique_rows} with epoch policy {policy!r}: set unique_rows above 0 "
                'with the policy "rows" and leave it at 0 otherwise'
            )
        if epochs < 1 or seq_len < 1:
            raise ConfigError(
                f"epochs and seq_len must be at least 1, got epochs={epochs} and seq_len={seq_len}"
            )
        lengths = np.asarray(sizes, dtype=np.int64)
        if lengths.ndim != 1 or (lengths.size and lengths.min() < 0):
            raise DataError(
                "document sizes must be a flat list of non-negative integers; "
                + (
                    f"the smallest is {lengths.min()}"
                    if lengths.ndim == 1
                    else f"the shape is {lengths.shape}"
                )
            )
        self.seq_len, self.seed, self.epochs, self.policy = seq_len, seed, epochs, policy
        self.unique_rows = unique_rows
        self.n_documents, self.tokens_per_epoch = len(lengths), int(lengths.sum())
        parts, copies = {"joint": (1, epochs), "separate": (epochs, 1), "rows": (1, 1)}[policy]
        self._part_tokens = copies * self.tokens_per_epoch
        self._part_rows = (self._part_tokens - 1) // seq_len
        if self._part_rows < 1:
            raise DataError(
                f"the text has only {self._part_tokens} tokens, but a row needs seq_len + 1 = "
                f"{seq_len + 1}; use more text or a smaller seq_len"
            )
        self.n_rows = parts * self._part_rows

        row_dtype = np.uint32 if self.n_rows < 2**32 - 1 else np.int64
        rng = np.random.RandomState(seed)
        documents, shuffles = [], []
        for part in range(parts):
            tiled = np.tile(np.arange(self.n_documents, dtype=np.int32), copies)
            rng.shuffle(tiled)
            rows = np.arange(self._part_rows, dtype=row_dtype)
            rng.shuffle(rows)
            documents.append(tiled)
            shuffles.append((rows + part * self._part_rows).astype(row_dtype, copy=False))
        if policy == "rows":
            if unique_rows > self.n_rows:
                raise DataError(
                    f"unique_rows={unique_rows}, but the text has {self.n_rows} rows; use fewer "
                    "unique rows or more text"
                )
            first = shuffles[0][:unique_rows]
            shuffles = [first, *(rng.permutation(first) for _ in range(epochs - 1))]
            self.n_rows = epochs * unique_rows
        self.documents: NDArray[np.int32] = np.concatenate(documents)
        """Indices of the documents in the order in which they form the stream of tokens."""
        self.shuffle: NDArray[np.integer] = np.concatenate(shuffles)
        """shuffle[r]: index, in the stream, of the row that is read r-th in training."""

        starts = np.zeros(self.n_documents + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        ends = np.cumsum(lengths[self.documents])
        # stream position p is in the document at searchsorted(ends, p, "right"), which skips empty
        # documents; adding that document's shift gives the token's position in the file
        self._ends = ends
        self._shift = starts[self.documents] - (ends - lengths[self.documents])

    def gather(
        self,
        data: MegatronIndexed,
        rows: NDArray[np.integer] | Sequence[int],
        before: int = 0,
        after: int = 0,
    ) -> tuple[NDArray, NDArray[np.bool_]]:
        """Return the tokens of some training rows, with context on both sides of each row.

        Args:
            data: the token file that this order was made for.
            rows: int[n], positions of the rows in training order.
            before: number of tokens before each row, from the stream of shuffled documents.
            after: number of tokens after it, from the same stream.

        Returns:
            The tokens, [n, before + seq_len + 1 + after] in the file's dtype, and a mask of the
            same shape. Outside the stream, the mask is False and the token is 0. With the policy
            "separate", every epoch is a stream of its own.

        Raises:
            DataError: a position in `rows` is out of range, or `data` is another token file.
        """
        indices = np.asarray(rows, dtype=np.int64).reshape(-1)
        if indices.size and (indices.min() < 0 or indices.max() >= self.n_rows):
            bad = int(indices[(indices < 0) | (indices >= self.n_rows)][0])
            raise DataError(f"there is no row {bad}; this order has the rows 0..{self.n_rows - 1}")
        if (data.n_documents, data.n_tokens) != (self.n_documents, self.tokens_per_epoch):
            raise DataError(
                f"{data.prefix} has {data.n_documents} documents and {data.n_tokens} tokens, but "
                f"this order was made for a file with {self.n_documents} documents and "
                f"{self.tokens_per_epoch} tokens; pass that file"
            )
        stream, valid = self.stream(indices, before, after)
        tokens = data.tokens[self.positions(stream).reshape(-1)].reshape(stream.shape)
        tokens[~valid] = 0
        return tokens, valid

    def stream(
        self, rows: NDArray[np.integer], before: int = 0, after: int = 0
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return where the tokens of some training rows are in the stream of shuffled documents.

        Returns:
            The places and the mask of `gather`, [n, before + seq_len + 1 + after]. Outside the
            stream, the place of some other token is given.
        """
        part, row = np.divmod(self.shuffle[rows].astype(np.int64), self._part_rows)
        in_part = row[:, None] * self.seq_len + np.arange(-before, self.seq_len + 1 + after)
        valid = (in_part >= 0) & (in_part < self._part_tokens)
        return np.where(valid, in_part, 0) + part[:, None] * self._part_tokens, valid

    def places(self, rows: NDArray[np.integer], columns: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return where single tokens, given by training row and column, are in the stream."""
        part, row = np.divmod(self.shuffle[rows].astype(np.int64), self._part_rows)
        return row * self.seq_len + columns + part * self._part_tokens

    def positions(self, stream: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions, in the token file, of places in the stream of documents."""
        document = np.searchsorted(self._ends, stream.reshape(-1), side="right")
        return stream + self._shift[document].reshape(stream.shape)

    def read_counts(self, n_rows: int, block: int) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Count how often the first `n_rows` rows read each token as an input.

        Args:
            block: number of rows per block.

        Returns:
            The number of reads of each token, by position in the token file; and, for each block,
            the number of its reads that are not the first read of a token.

        Raises:
            DataError: the order has fewer than `n_rows` rows.
        """
        if not 0 <= n_rows <= self.n_rows:
            raise DataError(
                f"n_rows must be in 0..{self.n_rows}, the number of rows of this order, got "
                f"{n_rows}"
            )
        counts = np.zeros(self.tokens_per_epoch, np.uint16)
        repeats = []
        for start in range(0, n_rows, block):
            rows = np.arange(start, min(start + block, n_rows))
            part, row = np.divmod(self.shuffle[rows].astype(np.int64), self._part_rows)
            first = row * self.seq_len + part * self._part_tokens
            stream = (first[:, None] + np.arange(self.seq_len)).reshape(-1)
            document = np.searchsorted(self._ends, stream, side="right")
            position, times = np.unique(stream + self._shift[document], return_counts=True)
            repeats.append(int((times - (counts[position] == 0)).sum()))
            counts[position] += times.astype(np.uint16)
        return counts, np.array(repeats, np.int64)


def write_rows(
    path: Path | str,
    order: RowOrder,
    data: MegatronIndexed,
    progress: bool = False,
    chunk: int = 0,
    rows: range | None = None,
) -> None:
    """Write rows, without a header, in the format of the released pre-shuffled datasets.

    Args:
        chunk: number of rows in memory at a time (default: about 65,000 tokens; a mapped file takes
            up to 64 KB of memory for each row that is read).
        rows: the rows to write (default: all).
    """
    rows = range(order.n_rows) if rows is None else rows
    chunk = chunk or max(1, (1 << 16) // (order.seq_len + 1))
    rows_bar = bar(progress, total=len(rows), desc="writing rows", unit="row", unit_scale=True)
    with rows_bar, atomic_file(Path(path)) as temporary, open(temporary, "wb") as file:
        for start in range(rows.start, rows.stop, chunk):
            part = np.arange(start, min(start + chunk, rows.stop))
            file.write(np.ascontiguousarray(order.gather(data, part)[0]).tobytes())
            data.release_pages()
            rows_bar.update(len(part))


class OrderedRows(Rows):
    """Rows that are gathered from the documents whenever they are read."""

    def __init__(self, data: MegatronIndexed, order: RowOrder) -> None:
        self.data, self.order = data, order
        self.seq_len, self.n_rows = order.seq_len, order.n_rows

    def _rows(self, start: int, stop: int) -> NDArray:
        return self.order.gather(self.data, np.arange(start, stop))[0]


class PreshuffledRows(FixedRows):
    """Rows stored in training order, in one file that may be split into shards at any byte.

    The released pre-shuffled datasets (600 GB) have 21 such shards.

    Raises:
        DataError: a shard is missing, the shards are not in order, or together they do not have a
            whole number of rows.
    """

    def __init__(
        self, paths: Sequence[Path | str], seq_len: int, dtype: str | np.dtype = "<u2"
    ) -> None:
        self.paths = [Path(path) for path in paths]
        if not self.paths:
            raise DataError("the list of files with rows is empty; pass at least one file")
        for path in self.paths:
            if not path.is_file():
                raise DataError(f"{path} does not exist; pass all shards, in order")
        check_shard_names(self.paths)
        sizes = [path.stat().st_size for path in self.paths]
        super().__init__(str(self.paths[0]), sizes, seq_len, dtype)
        self._maps = [
            np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
            for path, size in zip(self.paths, sizes, strict=True)
        ]

    def _read(self, shard: int, start: int, stop: int) -> NDArray[np.uint8]:
        return self._maps[shard][start:stop]


def batch_hash(rows: NDArray[np.integer]) -> str:
    """Return half of the sha256 of a batch's shape and token ids, 32 hex digits.

    The hash depends on neither the dtype of the ids nor the byte order of the machine.

    Raises:
        DataError: the ids are not integers, or an id does not fit into uint32.
    """
    array = np.asarray(rows)
    if array.dtype.kind not in "iu":
        raise DataError(f"a batch must have integer ids, got {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= 2**32):
        raise DataError(
            f"the ids of a batch must be in 0..2^32-1, got ids from {array.min()} to {array.max()}"
        )
    digest = hashlib.sha256(np.asarray([array.ndim, *array.shape], dtype="<u8").tobytes())
    digest.update(np.ascontiguousarray(array, dtype="<u4").tobytes())
    return digest.hexdigest()[:32]
