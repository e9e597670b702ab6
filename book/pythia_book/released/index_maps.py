"""GPT-NeoX's index maps: the order of training as three `.npy` files beside the documents.

GPT-NeoX keeps what `order.RowOrder` computes: `doc_idx` (the shuffled documents of all epochs),
`sample_idx` (where each row of the stream begins: place in doc_idx, token within it) and
`shuffle_idx` (which row of the stream is the r-th of training). The orders of PolyPythias' seeds
are released in this form. A row needs a few bytes of each, so that maps and documents may lie
behind URLs as well as on disk. Nothing is trusted: shapes, lengths and every place are checked, and
a row that does not come out as S+1 tokens is an error.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from pythia_book.released.remote_rows import ByteFile, JoinedFile, LocalFile
from pythia_core.data.indexed_dataset import DTYPES, HEADER, MAGIC, VERSION, find_shards
from pythia_core.data.order import Rows
from pythia_core.errors import DataError

PARTS = ("doc_idx", "sample_idx", "shuffle_idx")
_NAME = re.compile(r"(?P<prefix>.+)_indexmap_\d+ns_(?P<seq_len>\d+)sl_(?P<seed>\d+)s$")
_HEAD = 4096


class NpyArray:
    """An array of integers in a `.npy` file, of which any entries can be read.

    Raises:
        DataError: no `.npy` file, another kind of array, or truncated.
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
        except (ValueError, KeyError, TypeError, SyntaxError, TokenError) as error:
            raise DataError(f"{file.name} is no .npy file of a known kind ({error})") from error
        if self.dtype.kind not in "iu" or len(self.shape) != ndim or (fortran and ndim > 1):
            raise DataError(
                f"{file.name} holds an array of {self.dtype} with shape {self.shape}; needed are "
                f"integers in {ndim} dimension(s), row by row"
            )
        self._start = head.tell()
        self._row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        expected = self._start + self.shape[0] * self._row
        if file.size != expected:
            raise DataError(
                f"{file.name} has {file.size} bytes, but its header says {expected}; copy it again"
            )

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Entries [start, stop) of the first dimension.

        Raises:
            DataError: there are no such entries.
        """
        if not 0 <= start <= stop <= len(self):
            raise DataError(f"{self.file.name} has no entries [{start}, {stop}), but {len(self)}")
        raw = self.file.read(self._start + start * self._row, self._start + stop * self._row)
        return np.frombuffer(raw, self.dtype).astype(np.int64).reshape(-1, *self.shape[1:])


class MappedRows(Rows):
    """Rows of documents in the order of GPT-NeoX's index maps.

    Args:
        maps: doc_idx, sample_idx, shuffle_idx. index, tokens: the `.idx` and `.bin` of the
            documents. seq_len: S. remote: whether every read costs a request.

    Raises:
        DataError: maps that contradict each other or the documents.
    """

    def __init__(
        self,
        maps: tuple[ByteFile, ByteFile, ByteFile],
        index: ByteFile,
        tokens: ByteFile,
        seq_len: int,
        remote: bool = False,
    ) -> None:
        documents, samples, shuffle = maps
        self.documents = NpyArray(documents, 1)
        self.samples = NpyArray(samples, 2)
        self.shuffle = NpyArray(shuffle, 1)
        self.seq_len, self.n_rows, self.contiguous = seq_len, len(self.shuffle), not remote
        if self.samples.shape != (self.n_rows + 1, 2):
            raise DataError(
                f"{samples.name} has shape {self.samples.shape}, but {shuffle.name} has "
                f"{self.n_rows} entries: {(self.n_rows + 1, 2)} is needed. They are not of one set"
            )
        self._index, self._tokens = index, tokens
        if index.size < HEADER.size:
            raise DataError(f"{index.name} has {index.size} bytes; that is no index")
        magic, version, code, n, d = HEADER.unpack(index.read(0, HEADER.size))
        if magic != MAGIC or version != VERSION or code not in DTYPES or DTYPES[code].kind == "f":
            raise DataError(f"{index.name} is not the index of a token file")
        if index.size != HEADER.size + 12 * n + 8 * d:
            raise DataError(
                f"{index.name} has {index.size} bytes, but {n} documents need "
                f"{HEADER.size + 12 * n + 8 * d}; copy it again"
            )
        self.n_documents, self.dtype = n, DTYPES[code]

    def _rows(self, start: int, stop: int) -> NDArray:
        numbers = self.shuffle.read(start, stop).tolist()
        rows = [self._row(number) for number in numbers]
        return np.stack(rows) if rows else np.zeros((0, self.seq_len + 1), self.dtype)

    def _row(self, number: int) -> NDArray:
        """Row `number` of the stream: from its first token to the first of the next row."""
        (first, offset), (last, end) = self.samples.read(number, number + 2).tolist()
        parts = []
        for place, document in enumerate(self.documents.read(first, last + 1).tolist(), first):
            low, high = self._extent(document)
            begin = low + (offset if place == first else 0)
            until = low + end + 1 if place == last else high
            if not low <= begin <= until <= high:
                raise self._wrong(number, f"places outside document {document}")
            width = self.dtype.itemsize
            parts.append(np.frombuffer(self._tokens.read(begin * width, until * width), self.dtype))
        row = np.concatenate(parts) if parts else np.zeros(0, self.dtype)
        if len(row) != self.seq_len + 1:
            raise self._wrong(number, f"{len(row)} tokens instead of {self.seq_len + 1}")
        return row

    def _extent(self, document: int) -> tuple[int, int]:
        """Tokens [low, high) of the token file that are the document's."""
        if not 0 <= document < self.n_documents:
            raise DataError(f"{self._index.name} has no document {document}")
        at, last = HEADER.size + 4 * self.n_documents + 8 * document, self.n_documents - 1
        raw = self._index.read(at, at + (16 if document < last else 8))
        pointers = [*np.frombuffer(raw, "<i8").tolist(), self._tokens.size]
        return pointers[0] // self.dtype.itemsize, pointers[1] // self.dtype.itemsize

    def _wrong(self, number: int, what: str) -> DataError:
        return DataError(
            f"the index maps give row {number} of the stream {what}; are they of "
            f"{self._tokens.name}, and for seq_len={self.seq_len}?"
        )


def find_maps(folder: Path) -> Path | None:
    """The common beginning of the three maps' names in a folder, None if there are none.

    Raises:
        DataError: several sets, or one that lacks a part.
    """
    stems = sorted(
        {path.name.removesuffix("_doc_idx.npy") for path in folder.glob("*_doc_idx.npy")}
    )
    if not stems:
        return None
    if len(stems) > 1:
        raise DataError(f"{folder} has the index maps {', '.join(stems)}; keep one set a folder")
    for part in PARTS:
        if not (folder / f"{stems[0]}_{part}.npy").is_file():
            raise DataError(f"{folder} lacks {stems[0]}_{part}.npy")
    return folder / stems[0]


def open_maps(stem: Path, seq_len: int) -> MappedRows:
    """Rows of the maps `STEM_doc_idx.npy` ... and of the documents that their name says.

    The documents, `PREFIX.idx` with `PREFIX.bin` or its shards, may lie beside the maps or one
    folder up.

    Raises:
        DataError: the documents are not there, or not those of the maps.
    """
    named = _NAME.match(stem.name)
    if named and int(named["seq_len"]) != seq_len:
        raise DataError(f"{stem.name} is for seq_len={named['seq_len']}, not {seq_len}")
    base = re.sub(r"_(train|valid|test)_\d+$", "", named["prefix"]) if named else stem.name
    for folder in (stem.parent, stem.parent.parent):
        prefix = folder / base
        if prefix.with_name(base + ".idx").is_file():
            whole = prefix.with_name(base + ".bin")
            paths = [whole] if whole.is_file() else find_shards(prefix)
            return MappedRows(
                tuple(LocalFile(stem.with_name(f"{stem.name}_{part}.npy")) for part in PARTS),
                LocalFile(prefix.with_name(base + ".idx")),
                JoinedFile([LocalFile(path) for path in paths]),
                seq_len,
            )
    raise DataError(f"the maps {stem.name} belong to {base}.idx and .bin; put them beside them")
