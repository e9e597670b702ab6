"""Reads training rows in the order that GPT-NeoX's index maps give.

Three `.npy` files, the maps, say how the documents are joined in shuffled order and cut into rows:

    doc_idx      the shuffled documents of all epochs
    sample_idx   where each row begins: the entry of doc_idx, and the token of that document
    shuffle_idx  which of the rows is the r-th row of training

pythia_core.data.order.RowOrder computes the same arrays. The orders of the PolyPythias seeds are
released as index maps. All files may be behind URLs, because reading a row takes only a few bytes
of each map. Shapes, lengths and every offset are validated.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from pythia_book.released.remote_rows import ByteFile, JoinedFile, LocalFile
from pythia_core.data.indexed_dataset import HEADER, IndexHeader, damaged_index, find_shards
from pythia_core.data.order import Rows
from pythia_core.errors import DataError, count_of

PARTS = ("doc_idx", "sample_idx", "shuffle_idx")
_NAME = re.compile(r"(?P<prefix>.+)_indexmap_\d+ns_(?P<seq_len>\d+)sl_(?P<seed>\d+)s$")
_HEAD = 4096
_UNREADABLE = (
    ValueError,
    KeyError,
    TypeError,
    SyntaxError,
    TokenError,
    RecursionError,
    MemoryError,
)
"""What numpy raises for the header of a file that is not a .npy file."""


class NpyArray:
    """An array of integers with `ndim` dimensions in a `.npy` file. Only slices are read.

    Raises a DataError if the file is truncated, or has the wrong kind of array.
    """

    def __init__(self, file: ByteFile, ndim: int) -> None:
        self.file = file
        head = io.BytesIO(file.read(0, min(file.size, _HEAD)))
        try:
            version = np.lib.format.read_magic(head)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            self.shape, fortran, self.dtype = read(head)
        except _UNREADABLE as error:
            raise DataError(
                f"{file.name} is not a readable .npy file ({error}); copy the file again from its "
                "source"
            ) from error
        if self.dtype.kind not in "iu" or len(self.shape) != ndim or (fortran and ndim > 1):
            raise DataError(
                f"{file.name} has an array of {self.dtype} with shape {self.shape}; expected an "
                f"array of integers with {count_of(ndim, 'dimension')}, in C order"
            )
        self._start = head.tell()
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        expected = self._start + self.shape[0] * self._row
        if file.size != expected:
            raise DataError(
                f"{file.name} has {file.size} bytes, but its header announces {expected} bytes; "
                "copy the file again from its source"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the entries [start, stop); raise a DataError if they do not exist."""
        if not 0 <= start <= stop <= len(self):
            raise DataError(
                f"{self.file.name} has {len(self)} entries, so the entries [{start}, {stop}) "
                "cannot be read"
            )
        raw = self.file.read(self._start + start * self._row, self._start + stop * self._row)
        return np.frombuffer(raw, self.dtype).astype(np.int64).reshape(-1, *self.shape[1:])


class Documents:
    """The documents in a token file (`.bin`), located by its index (`.idx`).

    Raises a DataError if `index` is not an index, or has the wrong length. At first, only the
    header is read: the index of the Pile takes 4.2 GB and may be behind a URL.
    """

    def __init__(self, index: ByteFile, tokens: ByteFile) -> None:
        self.tokens, self._index = tokens, index
        raw = index.read(0, min(index.size, HEADER.size))
        header = IndexHeader.read(raw, index.size, index.name)
        self.dtype, self._count = header.dtype, header.n_sequences

    def extent(self, number: int) -> tuple[int, int]:
        """Return the range [low, high) of a document's tokens in the token file.

        Raises a DataError if the document does not exist, or its pointers contradict its size.
        """
        if not 0 <= number < self._count:
            raise DataError(
                f"{self._index.name} has {self._count} documents, numbered from 0, so there is no "
                f"document {number}"
            )
        size_at = HEADER.size + 4 * number
        (size,) = np.frombuffer(self._index.read(size_at, size_at + 4), "<i4").tolist()
        start = HEADER.size + 4 * self._count + 8 * number
        raw = self._index.read(start, start + (16 if number < self._count - 1 else 8))
        low, high, *_ = [*np.frombuffer(raw, "<i8").tolist(), self.tokens.size]
        width = self.dtype.itemsize
        if low < 0 or low % width or high - low != size * width:
            raise damaged_index(
                self._index.name,
                f"document {number} has {size} tokens, but occupies the bytes {low} to {high}",
            )
        return low // width, high // width

    def read(self, low: int, high: int) -> NDArray:
        """Return the token ids [low, high) of the file."""
        width = self.dtype.itemsize
        return np.frombuffer(self.tokens.read(low * width, high * width), self.dtype)


class MappedRows(Rows):
    """Training rows that are cut from documents in the order of GPT-NeoX's index maps.

    Raises a DataError, now or on reading, if the maps contradict each other or the documents.

    Args:
        maps: the files doc_idx, sample_idx and shuffle_idx, in this order.
        index, tokens: the `.idx` and `.bin` files of the documents.
        remote: whether every read is a network request.
    """

    def __init__(
        self,
        maps: Sequence[ByteFile],
        index: ByteFile,
        tokens: ByteFile,
        seq_len: int,
        remote: bool = False,
    ) -> None:
        self._order, self._samples, self._shuffle = map(NpyArray, maps, (1, 2, 1))
        self.seq_len, self.n_rows, self.contiguous = seq_len, len(self._shuffle), not remote
        if self._samples.shape != (self.n_rows + 1, 2):
            raise DataError(
                f"{maps[1].name} has the shape {self._samples.shape}, but {maps[2].name}, with "
                f"{self.n_rows} entries, requires the shape {(self.n_rows + 1, 2)}; use the maps "
                "of one set"
            )
        self._documents = Documents(index, tokens)

    def _rows(self, start: int, stop: int) -> NDArray:
        rows = [self._row(number) for number in self._shuffle.read(start, stop).tolist()]
        return np.stack(rows) if rows else np.zeros((0, self.seq_len + 1), self._documents.dtype)

    def _row(self, number: int) -> NDArray:
        """Return the seq_len + 1 token ids of row `number`, as numbered before shuffling."""
        (first, offset), (last, end) = self._samples.read(number, number + 2).tolist()
        parts = []
        for entry, document in enumerate(self._order.read(first, last + 1).tolist(), first):
            low, high = self._documents.extent(document)
            start = low + (offset if entry == first else 0)
            stop = low + end + 1 if entry == last else high
            if not low <= start <= stop <= high:
                raise self._contradiction(number, f"refer to tokens outside document {document}")
            parts.append(self._documents.read(start, stop))
        if (length := sum(map(len, parts))) != self.seq_len + 1:
            raise self._contradiction(number, f"give {length} tokens, not {self.seq_len + 1}")
        return np.concatenate(parts)

    def _contradiction(self, number: int, problem: str) -> DataError:
        """Return the error for wrong maps, e.g. with the problem "give 5 tokens, not 2049"."""
        return DataError(
            f"for row {number} (before the rows are shuffled), the index maps {problem}; use index "
            f"maps that were made for {self._documents.tokens.name} with seq_len={self.seq_len}"
        )


def find_maps(folder: Path) -> Path | None:
    """Return the STEM of a folder's index maps STEM_doc_idx.npy and so on; None without maps.

    Raises a DataError if the folder has several sets of maps, or an incomplete set.
    """
    stems = sorted(p.name.removesuffix("_doc_idx.npy") for p in folder.glob("*_doc_idx.npy"))
    if not stems:
        return None
    if len(stems) > 1:
        raise DataError(
            f"{folder} has several sets of index maps ({', '.join(stems)}); keep one set per folder"
        )
    for part in PARTS:
        if not (folder / f"{stems[0]}_{part}.npy").is_file():
            raise DataError(f"{folder} lacks {stems[0]}_{part}.npy; put this file there")
    return folder / stems[0]


def open_maps(stem: Path, seq_len: int) -> MappedRows:
    """Open the index maps STEM_doc_idx.npy and so on, and their documents.

    The documents are PREFIX.idx and PREFIX.bin (or its shards), where PREFIX begins the name of the
    maps. Both files are in the folder of the maps, or both in the folder above. Raises a DataError
    if a file is missing, or the maps are for other documents or another `seq_len`.
    """
    named = _NAME.match(stem.name)
    if named and int(named["seq_len"]) != seq_len:
        raise DataError(
            f"the index maps {stem.name} are for seq_len={named['seq_len']}, not for "
            f"seq_len={seq_len}; pass seq_len={named['seq_len']}"
        )
    base = re.sub(r"_(train|valid|test)_\d+$", "", named["prefix"]) if named else stem.name
    incomplete = []
    for folder in (stem.parent, stem.parent.parent):
        index, whole = folder / f"{base}.idx", folder / f"{base}.bin"
        tokens = [whole] if whole.is_file() else find_shards(folder / base)
        exists = {index.name: index.is_file(), whole.name: bool(tokens)}
        missing = [name for name, here in exists.items() if not here]
        if not missing:
            return MappedRows(
                list(LocalFile(stem.with_name(f"{stem.name}_{part}.npy")) for part in PARTS),
                LocalFile(index),
                JoinedFile([LocalFile(path) for path in tokens]),
                seq_len,
            )
        incomplete.append(f"{folder} lacks {' and '.join(missing)}")
    raise DataError(
        f"the maps {stem.name} belong to {base}.idx and {base}.bin (or its shards), but "
        f"{', and '.join(incomplete)}; put both files into one of these two folders"
    )
