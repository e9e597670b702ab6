"""Counts terms in the text that a model has read up to each checkpoint (paper section 3.3).

A term is one or more words, no matter how they are tokenized. A word is a sequence of letters,
marks and numbers (Unicode categories L, M and N); any other character separates words, including
quotes, dashes and no-break spaces. Terms are read in NFC, like the data. The last token of a row
is not counted, because the next row repeats it. An occurrence must lie within one row, because no
model reads across rows. Overlapping occurrences all count.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pythia_book.search import RowBytes, as_in_data
from pythia_core.errors import ConfigError, DataError
from pythia_core.util.files import atomic_file
from pythia_core.util.progress import bar

if TYPE_CHECKING:
    from pythia_core.data.order import Rows

CHUNK = 1 << 17
"""Tokens per numpy call: enough for numpy to be efficient, few enough for the CPU's caches."""
_MULTIPLIER = 0x9E3779B97F4A7C15
_SHIFT = np.uint64(48)


# --- counts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TermCounts:
    """The number of occurrences of each term in each block of training steps."""

    terms: tuple[str, ...]
    ends: tuple[int, ...]
    """Ascending steps at which blocks end. Block i begins at ends[i-1], the first block at 0."""
    counts: NDArray[np.int64]
    """int64[terms, blocks]."""

    def up_to(self, step: int) -> NDArray[np.int64]:
        """Return int64[terms], how often each term occurs in the text read before the step `step`.

        Raises:
            DataError: no block ends at this step.
        """
        if step == 0:
            return np.zeros(len(self.terms), np.int64)
        if step not in self.ends:
            raise DataError(
                f"there are no counts up to step {step}, only up to the steps "
                f"{', '.join(map(str, self.ends))}"
            )
        return self.counts[:, : self.ends.index(step) + 1].sum(1)

    def save(self, path: Path | str) -> None:
        """Write nonzero counts as Parquet: `term_id`, `term`, `step` (end of block), `count`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        term, block = np.nonzero(self.counts)
        table = pa.table(
            {
                "term_id": pa.array(term, pa.int32()),
                "term": pa.array([self.terms[i] for i in term], pa.string()),
                "step": pa.array(np.array(self.ends, np.int64)[block], pa.int64()),
                "count": pa.array(self.counts[term, block], pa.int64()),
            }
        )
        with atomic_file(Path(path)) as target:
            pq.write_table(table, target)


def count_terms(
    rows: Rows,
    terms: SurfaceTerms,
    ends: Sequence[int],
    batch_size: int,
    progress: bool = False,
) -> TermCounts:
    """Count terms in the rows that training reads, separately for each block of steps.

    Args:
        ends: the steps at which blocks end, ascending. The first block starts at step 0.
        batch_size: rows per step.

    Raises:
        ConfigError: there are no steps, they do not ascend strictly, or they begin below 1.
        DataError: there are fewer rows than the steps need.
    """
    ends = tuple(int(end) for end in ends)
    if not ends or list(ends) != sorted({*ends}) or ends[0] < 1:
        raise ConfigError(
            "the steps must be positive and strictly ascending, and there must be at least one; "
            f"got {ends}"
        )
    if ends[-1] * batch_size > rows.n_rows:
        raise DataError(
            f"counting up to step {ends[-1]} needs {ends[-1] * batch_size} rows, but the data has "
            f"only {rows.n_rows}; count up to an earlier step"
        )
    counts = np.zeros((len(terms.names), len(ends)), np.int64)
    step = max(1, CHUNK // rows.seq_len)
    bounds = [0, *(end * batch_size for end in ends)]
    with bar(progress, total=bounds[-1], desc="counting terms", unit="row") as progress_bar:
        for block, (start, stop) in enumerate(itertools.pairwise(bounds)):
            for low in range(start, stop, step):
                part = rows.rows(low, min(low + step, stop))[:, :-1]
                counts[:, block] += terms.count(part)
                progress_bar.update(len(part))
    return TermCounts(terms.names, ends, counts)


# --- terms -----------------------------------------------------------------------------------


class SurfaceTerms:
    """A counter of terms in rows of token ids. Terms match whole words in any tokenization.

    Args:
        token_bytes: the bytes of each id, None for special tokens (pythia_core.data.tokenizer).
        ignore_case: whether to ignore the case of ASCII letters.

    Raises:
        ConfigError: there are no terms, a term has no word or is not valid text, or two terms have
            the same words.
    """

    def __init__(
        self, terms: Sequence[str], token_bytes: Sequence[bytes | None], ignore_case: bool = False
    ) -> None:
        if not terms:
            raise ConfigError("there are no terms to count; pass at least one term")
        self.names = tuple(terms)
        raw = [as_in_data(term) for term in terms]
        split = [_words(word.lower() if ignore_case else word) for word in raw]
        for term, words in zip(terms, split, strict=True):
            if not words:
                raise ConfigError(
                    f"the term {term!r} has no letter or digit; pass a term of one or more words"
                )
        if len({*map(tuple, split)}) < len(split):
            repeated = next(words for words in split if split.count(words) > 1)
            same = [
                repr(term) for term, words in zip(terms, split, strict=True) if words == repeated
            ]
            raise ConfigError(
                f"the terms {', '.join(same)} have the same words; pass only one of these terms"
            )
        vocabulary = sorted({word for words in split for word in words})
        number = {word: i for i, word in enumerate(vocabulary)}
        self._trie = _Trie([[number[word] for word in words] for words in split], len(vocabulary))
        hashes = np.array([_hash(word) for word in vocabulary], np.uint64)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._prefilter = np.zeros(1 << 16, bool)
        self._prefilter[hashes >> _SHIFT] = True
        self._sizes = np.array([len(word) for word in vocabulary], np.int64)
        self._letters = np.zeros((len(vocabulary), self._sizes.max()), np.uint8)
        for i, word in enumerate(vocabulary):
            self._letters[i, : len(word)] = np.frombuffer(word, np.uint8)
        self._bytes = RowBytes(token_bytes, b"\n", ignore_case)
        self._powers = np.zeros(0, np.uint64)

    def count(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return int64[terms], how often each term occurs in rows of token ids, int[n, width]."""
        text, stops = self._bytes(rows)
        self._grow(len(text))
        inside = _in_words(text)
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1  # a row ends outside of words
        if inside[0]:
            edges = np.concatenate([[0], edges])
        first, last = edges[::2], edges[1::2]
        words = self._numbers(text, first, last)
        # the end of a row comes after its last word
        row_ends = np.searchsorted(first, stops[rows.shape[1] :: rows.shape[1] + 1])
        return self._trie.count(np.insert(words, row_ends, len(self._sizes)))

    def _numbers(
        self, text: NDArray[np.uint8], first: NDArray[np.int64], last: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """Return int32[words], the vocabulary index of each word text[first:last].

        The index of an unknown word is the size of the vocabulary.
        """
        sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum((text.astype(np.uint64) + np.uint64(1)) * self._powers[: len(text)], out=sums[1:])
        hashes = (sums[last] - sums[first]) * self._inverses[first]
        numbers = np.full(len(first), len(self._sizes), np.int32)
        hits = np.flatnonzero(self._prefilter[hashes >> _SHIFT])  # leaves few words to look up
        index = np.minimum(np.searchsorted(self._hashes, hashes[hits]), len(self._hashes) - 1)
        match = self._hashes[index] == hashes[hits]
        hits, number = hits[match], self._order[index[match]]
        same = last[hits] - first[hits] == self._sizes[number]  # hashes may collide: compare
        for letter in range(self._letters.shape[1]):
            check = np.flatnonzero(same & (letter < self._sizes[number]))
            equal = text[first[hits[check]] + letter] == self._letters[number[check], letter]
            same[check[~equal]] = False
        numbers[hits[same]] = number[same]
        return numbers

    def _grow(self, size: int) -> None:
        """Extend the tables of powers of _MULTIPLIER, and of its inverse, to `size` powers each."""
        if size > len(self._powers):
            for name, base in (
                ("_powers", _MULTIPLIER),
                ("_inverses", pow(_MULTIPLIER, -1, 2**64)),
            ):
                steps = np.full(size, base, np.uint64)
                steps[0] = 1
                setattr(self, name, np.cumprod(steps))


@cache
def _word_characters() -> NDArray[np.bool_]:
    """Return, for each code point, whether the character belongs to words."""
    points = map(chr, range(sys.maxunicode + 1))
    return np.array([unicodedata.category(point)[0] in "LMN" for point in points])


def _in_words(text: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool[bytes], whether each byte of UTF-8 text belongs to a word.

    Bytes that are not UTF-8, e.g. of a character that the start of a row cuts, separate words.
    """
    decoded = text.tobytes().decode("utf-8", "surrogateescape")
    codes = np.frombuffer(decoded.encode("utf-32-le", "surrogatepass"), "<u4")
    size = 1 + (codes >= 0x80).astype(np.int8) + (codes >= 0x800) + (codes >= 0x10000)
    size[(codes >= 0xDC80) & (codes <= 0xDCFF)] = 1  # stands for a byte that is not UTF-8
    return np.repeat(_word_characters()[codes], size)


def _words(term: bytes) -> list[bytes]:
    """Split the UTF-8 bytes of a term into words."""
    letters = np.frombuffer(term + b" ", np.uint8)
    return np.where(_in_words(letters), letters, ord(" ")).astype(np.uint8).tobytes().split()


def _hash(word: bytes) -> int:
    """Hash a word, as a polynomial in _MULTIPLIER with the coefficients byte + 1, modulo 2**64."""
    return sum((byte + 1) * pow(_MULTIPLIER, i, 2**64) for i, byte in enumerate(word)) % 2**64


# --- matching --------------------------------------------------------------------------------


class _Trie:
    """A trie of sequences of ids, matched at all positions of an array at once.

    Args:
        sequences: sequences of at least one id, all below `n_ids`.
        n_ids: the number of ids. The id `n_ids` itself matches nothing.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], n_ids: int) -> None:
        edges: dict[tuple[int, int], int] = {}
        ends = []
        for sequence in sequences:
            state = 0
            for i in sequence:
                state = edges.setdefault((state, i), len(edges) + 1)
            ends.append(state)
        self.ends, self.n_states, self.width = np.array(ends), len(edges) + 1, n_ids + 1
        self.root = np.zeros(self.width, np.int32)
        deeper = []
        for (state, i), child in edges.items():
            if state:
                deeper.append((state * self.width + i, child))
            else:
                self.root[i] = child
        table = np.array(sorted(deeper), np.int64).reshape(-1, 2)
        self.keys, self.children = table[:, 0], table[:, 1]
        self.has_children = np.zeros(self.n_states, bool)
        self.has_children[self.keys // self.width] = True

    def count(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return int64[sequences], each sequence's count in `ids`. The last id must be `n_ids`."""
        state = self.root[ids]
        position = np.flatnonzero(state)
        state = state[position].astype(np.int64)
        visits = np.bincount(state, minlength=self.n_states)
        while (more := self.has_children[state]).any():
            position, state = position[more] + 1, state[more]
            keys = state * self.width + ids[position]
            edge = np.searchsorted(self.keys, keys)
            edge[edge == len(self.keys)] = 0
            followed = self.keys[edge] == keys
            position, state = position[followed], self.children[edge[followed]]
            visits += np.bincount(state, minlength=self.n_states)
        return visits[self.ends]
