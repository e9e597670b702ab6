"""Write and read token files in the format of Megatron and GPT-NeoX: a pair of `.bin` and `.idx`.

`PREFIX.bin` has all token ids, little-endian, without a header. `PREFIX.idx` has, in this order: 9
bytes of magic, u64 version (1), u8 dtype code, u64 number of sequences N, u64 length of the
document table D, i32 sizes[N] (tokens), i64 pointers[N] (byte offsets in the .bin) and i64 table[D]
(first sequence of each document, then N). Text has one sequence per document, so the table is 0, 1,
..., N. GPT-NeoX's tools leave out the end of the table: merging adds no entries, so the released
`document.idx` of 146,432,000 sequences has the single entry 0. Such a table is accepted, because it
is not needed.

A flipped bit in an `.idx` is detected when the file is opened. Only a hash can detect a flipped bit
in a `.bin`; pythia_core.data.prepare stores one. A `.bin` in several parts, like the Pile's
`PREFIX-00000-of-000NN.bin`, is read in place.
"""

from __future__ import annotations

import contextlib
import glob
import mmap
import re
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pythia_core.errors import DataError, count_of
from pythia_core.util.files import atomic_file

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f4"),
    7: np.dtype("<f8"),
    8: np.dtype("<u2"),
}
"""The dtype codes of GPT-NeoX (in Megatron-core, 6 and 7 are swapped)."""

_COPIED = 1 << 22
"""Number of bytes to copy at a time."""
_CHECKED = 1 << 20
"""Number of entries of an index to check at a time."""
UINT16_BELOW = 65_500
"""GPT-NeoX stores ids as uint16 for vocabularies smaller than this, else as int32."""


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the dtype in which GPT-NeoX stores token ids for this size of vocabulary."""
    return DTYPES[8 if vocab_size < UINT16_BELOW else 4]


class IndexedWriter:
    """Writes `PREFIX.bin` and `PREFIX.idx`, which appear when the `with` block ends without error.

    >>> with IndexedWriter(prefix, vocab_size=4096) as out:  # doctest: +SKIP
    ...     out.add([5, 6, 7, 0])

    Args:
        prefix: path without the suffixes.
        vocab_size: all ids must be smaller; determines the dtype.
    """

    def __init__(self, prefix: Path | str, vocab_size: int) -> None:
        if not 1 <= vocab_size <= 2**31:
            raise DataError(f"vocab_size must be in 1..2^31, got {vocab_size}")
        self.prefix = Path(prefix)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self.n_tokens = 0
        self._sizes = array("i")  # four bytes a document, of which there may be millions
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> IndexedWriter:
        self._temporary = self._stack.enter_context(atomic_file(_with(self.prefix, ".bin")))
        self._bin = open(self._temporary, "wb")
        return self

    def add(self, ids: Sequence[int] | NDArray[np.integer]) -> None:
        """Append the token ids of one document, which may be empty.

        Raises:
            DataError: `ids` is not a flat list of integers, is too long for the format, or has an
                id outside 0..vocab_size-1.
        """
        flat = np.asarray(ids)
        if flat.ndim != 1 or (flat.size and flat.dtype.kind not in "iu"):
            raise DataError(
                f"document {len(self._sizes)}: token ids must be a flat list of integers, "
                f"got {count_of(flat.ndim, 'dimension')} of {flat.dtype}"
            )
        if flat.size > np.iinfo(np.int32).max:
            raise DataError(
                f"document {len(self._sizes)} has {flat.size} tokens, but the format allows at "
                "most 2^31 - 1 per document; split it"
            )
        if flat.size and (flat.min() < 0 or flat.max() >= self.vocab_size):
            position = int(np.flatnonzero((flat < 0) | (flat >= self.vocab_size))[0])
            raise DataError(
                f"document {len(self._sizes)}, position {position}: id {int(flat[position])} is "
                f"outside the vocabulary 0..{self.vocab_size - 1}; was it encoded with another "
                "tokenizer?"
            )
        self._bin.write(flat.astype(self.dtype).tobytes())
        self._sizes.append(flat.size)
        self.n_tokens += flat.size

    def copy(self, source: BinaryIO, sizes: NDArray[np.int32]) -> None:
        """Append the next documents of an open `.bin` file of the same vocabulary.

        Args:
            sizes: int32[n], number of tokens of each document.

        Raises:
            DataError: the file ends too soon.
        """
        tokens = int(sizes.sum(dtype=np.int64))
        left = tokens * self.dtype.itemsize
        while left:
            part = source.read(min(left, _COPIED))
            if not part:
                raise DataError(f"{source.name} ends {left} bytes too soon; copy it again")
            self._bin.write(part)
            left -= len(part)
        self._sizes.frombytes(sizes.astype(np.int32).tobytes())
        self.n_tokens += tokens

    @property
    def n_documents(self) -> int:
        """The number of documents written so far."""
        return len(self._sizes)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the `.bin` in place and write the `.idx`; after an error, delete what was written."""
        with self._stack:  # removes the temporary file if anything below fails
            self._bin.close()
            if kind is not None:
                self._stack.__exit__(kind, error, trace)
                return
            # an old index must never be next to a new .bin, not even for a moment
            _with(self.prefix, ".idx").unlink(missing_ok=True)
        with atomic_file(_with(self.prefix, ".idx")) as temporary, open(temporary, "wb") as idx:
            idx.write(index_bytes(np.frombuffer(self._sizes, np.int32), self.dtype))


def index_bytes(sizes: NDArray[np.int32], dtype: np.dtype) -> bytes:
    """Return the content of an `.idx` file with one sequence per document, of `sizes` tokens."""
    n = len(sizes)
    code = next(code for code, candidate in DTYPES.items() if candidate == dtype)
    return b"".join(
        (
            HEADER.pack(MAGIC, VERSION, code, n, n + 1),
            sizes.astype("<i4").tobytes(),
            (_starts(sizes)[:-1] * dtype.itemsize).astype("<i8").tobytes(),
            np.arange(n + 1, dtype="<i8").tobytes(),
        )
    )


@dataclass(frozen=True)
class IndexHeader:
    """The header of an `.idx` file: the dtype of the ids, and the lengths of the arrays."""

    dtype: np.dtype
    n_sequences: int
    n_documents: int
    """Length of the document table."""

    @classmethod
    def read(cls, raw: bytes, size: int, name: str) -> IndexHeader:
        """Read a header; check it against the size of the file.

        Args:
            raw: the first bytes of the file, at least HEADER.size if the file is that long.
            size: number of bytes of the file.
            name: name of the file, for error messages.

        Raises:
            DataError: the file is not an index of token ids, or does not have the right size.
        """
        if len(raw) < HEADER.size:
            raise damaged_index(
                name, f"it has {size} bytes, but the header alone needs {HEADER.size}"
            )
        magic, version, code, n, d = HEADER.unpack(raw[: HEADER.size])
        problem = ""
        if magic != MAGIC:
            problem = f"it starts with {magic!r}, not with {MAGIC!r}"
        elif version != VERSION:
            problem = f"it has version {version}, but only version {VERSION} is supported"
        elif code in (6, 7):
            problem = f"dtype code {code} means floating-point numbers, which token ids cannot be"
        elif code not in DTYPES:
            problem = (
                f"unknown dtype code {code}; accepted: 1 (uint8), 2 (int8), 3 (int16), 4 (int32), "
                "5 (int64) and 8 (uint16)"
            )
        elif not 1 <= d <= n + 1:
            problem = (
                f"it has {n} sequences and {d} entries in the document table, expected 1 to "
                f"{n + 1} entries: only one sequence per document is supported"
            )
        elif size != (length := HEADER.size + 12 * n + 8 * d):
            problem = (
                f"it has {size} bytes, but {n} sequences with {d} entries in the document table "
                f"need exactly {length}"
            )
        if problem:
            raise damaged_index(name, problem)
        return cls(DTYPES[code], n, d)


def damaged_index(name: Path | str, problem: str) -> DataError:
    """Return the error for an `.idx` file that cannot be used."""
    return DataError(
        f"{name}: {problem}. The file is damaged or has another format; copy it again from its "
        "source"
    )


class MegatronIndexed:
    """A strict reader of the token files `PREFIX.bin` and `PREFIX.idx`.

    Attributes:
        sizes: int32[n_documents], number of tokens of each document.
        tokens: all token ids in file order, a flat read-only memory map; a JoinedTokens if the
            `.bin` is split into shards.

    Raises:
        DataError: at construction, if a file is absent or does not have the module's format.
    """

    def __init__(self, prefix: Path | str) -> None:
        self.prefix = Path(prefix)
        idx, bin_ = _with(self.prefix, ".idx"), _with(self.prefix, ".bin")
        shards = [] if bin_.is_file() else find_shards(self.prefix)
        for path in (idx, *([] if shards else [bin_])):
            if not path.is_file():
                raise DataError(
                    f"{path} does not exist; token files come in pairs: PREFIX.bin and PREFIX.idx"
                )
        raw = _mapped(idx, np.dtype(np.uint8))
        header = IndexHeader.read(raw[: HEADER.size].tobytes(), len(raw), str(idx))
        n, d = header.n_sequences, header.n_documents

        def field(offset: int, count: int, dtype: str) -> NDArray:
            return np.frombuffer(raw, dtype, count, HEADER.size + offset)

        self.dtype = header.dtype
        self.sizes = field(0, n, "<i4")
        self._pointers = field(4 * n, n, "<i8")
        self.n_documents = n
        self.n_tokens = _checked_total(idx, self.sizes, self._pointers, self.dtype.itemsize)
        if not np.array_equal(field(12 * n, d, "<i8"), np.arange(d)):
            raise damaged_index(
                idx,
                f"its document table is neither 0..{n} nor the beginning of that; only one "
                "sequence per document is supported",
            )
        expected = self.n_tokens * self.dtype.itemsize
        size = sum(path.stat().st_size for path in shards or [bin_])
        if size != expected:
            raise DataError(
                f"{bin_} has {size} bytes{f' in {len(shards)} shards' if shards else ''}, but "
                f"according to {idx.name} it should have {expected} ({self.n_tokens} tokens of "
                f"{self.dtype.itemsize} bytes); copy both files again from the source"
            )
        self.tokens: NDArray | JoinedTokens = (
            JoinedTokens(shards, self.dtype) if shards else _mapped(bin_, self.dtype)
        )

    def release_pages(self) -> None:
        """Let the system reclaim the memory of the `.bin` pages that were read."""
        tokens = self.tokens
        for part in tokens.maps if isinstance(tokens, JoinedTokens) else [tokens]:
            if isinstance(part, np.memmap):
                part._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def document(self, index: int) -> NDArray:
        """Return the token ids of a document; raise DataError if there is none."""
        if not 0 <= index < self.n_documents:
            raise DataError(
                f"there is no document {index}; {self.prefix} has the documents "
                f"0..{self.n_documents - 1}"
            )
        start = int(self._pointers[index]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.sizes[index])]


def _checked_total(
    idx: Path, sizes: NDArray[np.int32], pointers: NDArray[np.int64], itemsize: int
) -> int:
    """Return the number of tokens; raise DataError if the pointers do not follow from the sizes.

    Reads a part at a time, because the released index takes 1.8 GB.
    """
    total = 0
    for low in range(0, len(sizes), _CHECKED):
        part = sizes[low : low + _CHECKED]
        if part.min() < 0:
            raise damaged_index(idx, f"document {low + int(part.argmin())} has a negative size")
        starts = total + _starts(part)
        if not np.array_equal(pointers[low : low + _CHECKED], starts[:-1] * itemsize):
            raise damaged_index(idx, "its pointers do not follow from its document sizes")
        total = int(starts[-1])
    return total


class JoinedTokens:
    """The shards of a `.bin` file as one flat array, indexed by slices of step 1 or by positions.

    Raises:
        DataError: at construction, if a shard ends inside a token.
    """

    def __init__(self, paths: Sequence[Path], dtype: np.dtype) -> None:
        for path in paths:
            if path.stat().st_size % dtype.itemsize:
                raise DataError(
                    f"{path} ends inside a token of {dtype.itemsize} bytes; copy it again from "
                    "the source"
                )
        self.dtype = dtype
        self.maps = [_mapped(path, dtype) for path in paths]
        self._bounds = _starts(np.array([len(shard) for shard in self.maps], np.int64))

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __getitem__(self, key: slice | NDArray[np.integer]) -> NDArray:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError(f"slices of joined shards must have step 1, got {step}")
            pairs = zip(self.maps, self._bounds[:-1].tolist(), strict=True)
            parts = [shard[max(start - low, 0) : max(stop - low, 0)] for shard, low in pairs]
            return np.concatenate(parts)
        flat = np.asarray(key, np.int64).reshape(-1)
        if flat.size and (flat.min() < 0 or flat.max() >= len(self)):
            raise IndexError(
                f"positions must be in 0..{len(self) - 1}, got {flat.min()} to {flat.max()}"
            )
        shards = np.searchsorted(self._bounds, flat, side="right") - 1
        out = np.empty(flat.shape, self.dtype)
        for shard in np.unique(shards).tolist():
            mask = shards == shard
            out[mask] = self.maps[shard][flat[mask] - self._bounds[shard]]
        return out.reshape(np.shape(key))


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\D*$")


def find_shards(prefix: Path) -> list[Path]:
    """Return all shards `PREFIX-00000-of-000NN.bin` in order, perhaps none.

    Raises:
        DataError: a shard is missing or occurs twice.
    """
    shards = sorted(prefix.parent.glob(glob.escape(prefix.name) + "-?????-of-?????.bin"))
    check_shard_names(shards)
    return shards


def check_shard_names(paths: Sequence[Path | str]) -> None:
    """Check by their names ("-00000-of-00021.bin") that shards are complete and in order.

    Raises:
        DataError: a shard is missing, repeated or out of order.
    """
    matches = [_SHARD.search(str(path)) for path in paths]
    if not paths or not all(matches):
        return
    numbers = [int(match[1]) for match in matches if match]
    last = max(int(match[2]) for match in matches if match)
    if numbers == list(range(last + 1)) or numbers == list(range(last)):  # both are in use
        return
    missing = sorted(set(range(last)) - set(numbers))
    raise DataError(
        f"{Path(paths[0]).name} and {len(paths) - 1} more must be the complete set of shards, each "
        f"once and in order, but "
        + (f"shard {missing[0]} is missing" if missing else f"the shards are {numbers}")
    )


def _mapped(path: Path, dtype: np.dtype) -> NDArray:
    """Map a file as a flat read-only array; an empty file gives an empty array."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def _starts(sizes: NDArray) -> NDArray[np.int64]:
    """Return the first position of each document, and the total, as int64 (int32 would wrap)."""
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, dtype=np.int64, out=starts[1:])
    return starts


def _with(prefix: Path, suffix: str) -> Path:
    """Append `suffix` to the file name. Unlike Path.with_suffix, this keeps dots in the name."""
    return prefix.with_name(prefix.name + suffix)
