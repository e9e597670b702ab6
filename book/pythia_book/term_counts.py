"""How often terms stand in what a model has read, at every checkpoint (paper section 3.3).

Terms are counted in one pass over the rows in training order, block of steps by block of steps, so
that the counts up to any checkpoint are sums of blocks, exact for that prefix of training. Two
kinds of terms share one matcher, a trie of ids walked for all places of many rows at once:

- *token terms*: sequences of token ids; a term may have several, e.g. with and without a space;
- *surface terms*: words as a reader sees them, whatever their tokens. A word is a run of ASCII
  letters and digits and of all bytes above 127; several words match with anything between them.

What is counted are the inputs of a row, its first S tokens: the last one is the next row's first.
An occurrence must lie within one row, as no model reads across its end; overlapping ones all count.
The released code counted number words near each other in decoded rows, into pickles; here a count
is what it says. Not here: what a frequency does to a model.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_book.search import RowBytes
from pythia_core.errors import ConfigError, DataError
from pythia_core.util.files import atomic_file
from pythia_core.util.progress import bar

if TYPE_CHECKING:
    from pythia_core.data.order import PreshuffledRows

CHUNK = 1 << 17
"""Tokens looked at together: large enough for numpy, small enough for the caches."""
_WORD = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MULTIPLIER = 0x9E3779B97F4A7C15
_SHIFT = np.uint64(48)


# --- counts ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class TermCounts:
    """Occurrences of each term between checkpoints."""

    terms: tuple[str, ...]
    ends: tuple[int, ...]
    """Steps at which blocks end, rising; block i holds the updates from ends[i-1] (or 0) on."""
    counts: NDArray[np.int64]
    """[terms, blocks]."""

    def up_to(self, step: int) -> NDArray[np.int64]:
        """int64[terms]: occurrences in all that was read before the checkpoint at `step`.

        Raises:
            DataError: a step at which no block ends.
        """
        if step == 0:
            return np.zeros(len(self.terms), np.int64)
        if step not in self.ends:
            raise DataError(
                f"no count up to step {step}; blocks end at {', '.join(map(str, self.ends))}"
            )
        return self.counts[:, : self.ends.index(step) + 1].sum(1)

    def save(self, path: Path | str) -> None:
        """As Parquet: term_id, term, step (end of the block), count; empty blocks are left out."""
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
        ).replace_schema_metadata(
            {"pythia_terms": json.dumps({"terms": self.terms, "ends": self.ends})}
        )
        with atomic_file(Path(path)) as target:
            pq.write_table(table, target)

    @classmethod
    def load(cls, path: Path | str) -> TermCounts:
        """The inverse of `save`.

        Raises:
            DataError: absent, damaged, or another kind of file.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            names = json.loads((table.schema.metadata or {})[b"pythia_terms"])
            counts = np.zeros((len(names["terms"]), len(names["ends"])), np.int64)
            block = np.searchsorted(names["ends"], table["step"].to_numpy())
            counts[table["term_id"].to_numpy(), block] = table["count"].to_numpy()
        except (OSError, pa.ArrowException, KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path} holds no term counts ({error}); count them again") from error
        return cls(tuple(names["terms"]), tuple(names["ends"]), counts)


def count_terms(
    rows: PreshuffledRows,
    terms: TokenTerms | SurfaceTerms,
    ends: Sequence[int],
    batch_size: int,
    progress: bool = False,
) -> TermCounts:
    """Count terms in the rows of training, up to the last of `ends`.

    Raises:
        ConfigError: steps that do not rise. DataError: more steps than there are rows.
    """
    ends = tuple(int(end) for end in ends)
    if not ends or list(ends) != sorted({*ends}) or ends[0] < 1:
        raise ConfigError(f"steps must rise from 1 on, got {ends}")
    if ends[-1] * batch_size > rows.n_rows:
        raise DataError(
            f"step {ends[-1]} needs {ends[-1] * batch_size} rows, but there are {rows.n_rows}"
        )
    counts = np.zeros((len(terms.names), len(ends)), np.int64)
    step = max(1, CHUNK // rows.seq_len)
    bounds = [0, *(end * batch_size for end in ends)]
    with bar(progress, total=bounds[-1], desc="counting terms", unit="row") as shown:
        for block, (start, stop) in enumerate(itertools.pairwise(bounds)):
            for low in range(start, stop, step):
                part = rows.rows(low, min(low + step, stop))[:, :-1]
                counts[:, block] += terms.count(part)
                shown.update(len(part))
    return TermCounts(terms.names, ends, counts)


# --- terms -----------------------------------------------------------------------------------


class TokenTerms:
    """Terms as sequences of token ids.

    Args:
        encodings: by term, the sequences that count as an occurrence of it.
        n_ids: ids are below this.

    Raises:
        ConfigError: no terms, an empty sequence, an id outside, or a sequence that is part of
            another one of the same term, which would count one occurrence twice.
    """

    def __init__(self, encodings: Mapping[str, Sequence[Sequence[int]]], n_ids: int) -> None:
        self.names = tuple(encodings)
        self.n_ids = n_ids
        self._trie = _Trie([[tuple(s) for s in found] for found in encodings.values()], n_ids)
        for name, found in encodings.items():
            _check_encodings(name, [tuple(s) for s in found], n_ids)

    @classmethod
    def of(cls, terms: Sequence[str], tokenizer: Any) -> TokenTerms:
        """Each term as the tokenizer encodes it at the start of a text and after a space."""
        from pythia_core.data.tokenizer import id_limit

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        found = {}
        for term in dict.fromkeys(terms):
            pair = dict.fromkeys((ids(term), ids(" " + term)))
            # one inside the other: the shorter finds them all
            found[term] = [s for s in pair if not any(o != s and _inside(o, s) for o in pair)]
        return cls(found, id_limit(tokenizer))

    def count(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64[terms]: occurrences in rows int[n, width], each row by itself."""
        ended = np.full((len(rows), rows.shape[1] + 1), self.n_ids, np.int32)
        ended[:, :-1] = rows
        return self._trie.count(ended.reshape(-1))


class SurfaceTerms:
    """Terms as words, found in the bytes that tokens stand for.

    Args:
        terms: one or more words each, separated by anything that is no letter or digit.
        token_bytes: the bytes of each id, None for special tokens (pythia_core.data.tokenizer).
        ignore_case: of ASCII letters.

    Raises:
        ConfigError: no terms, one without a word, or the same term twice.
    """

    def __init__(
        self, terms: Sequence[str], token_bytes: Sequence[bytes | None], ignore_case: bool = False
    ) -> None:
        self.names = tuple(terms)
        self._is_word = np.zeros(256, bool)
        self._is_word[list(_WORD)] = True
        self._is_word[128:] = True
        raw = [term.encode() for term in terms]
        split = [self._words(word.lower() if ignore_case else word) for word in raw]
        for term, words in zip(terms, split, strict=True):
            if not words:
                raise ConfigError(f"the term {term!r} has no letter or digit; give words")
        if len({*map(tuple, split)}) < len(split):
            twice = next(t for t, w in zip(terms, split, strict=True) if split.count(w) > 1)
            raise ConfigError(f"the term {twice!r} is there twice; name each term once")
        vocabulary = sorted({word for words in split for word in words})
        number = {word: i for i, word in enumerate(vocabulary)}
        self._trie = _Trie(
            [[tuple(number[word] for word in words)] for words in split], len(vocabulary) + 1
        )
        hashes = np.array([_hash(word) for word in vocabulary], np.uint64)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._maybe = np.zeros(1 << 16, bool)
        self._maybe[hashes >> _SHIFT] = True
        self._sizes = np.array([len(word) for word in vocabulary], np.int64)
        self._letters = np.zeros((len(vocabulary), self._sizes.max()), np.uint8)
        for i, word in enumerate(vocabulary):
            self._letters[i, : len(word)] = np.frombuffer(word, np.uint8)
        self._bytes = RowBytes(token_bytes, b"\n", ignore_case)
        self._powers = np.zeros(0, np.uint64)

    def _words(self, term: bytes) -> list[bytes]:
        letters = np.frombuffer(term, np.uint8)
        return (
            np.where(self._is_word[letters], letters, ord(" ")).astype(np.uint8).tobytes().split()
        )

    def count(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64[terms]: occurrences in rows int[n, width], each row by itself."""
        text, stops = self._bytes(rows)
        self._grow(len(text))
        inside = self._is_word[text]
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
        """The number in the vocabulary of each word text[first:last]; for others its size."""
        sums = np.zeros(len(text) + 1, np.uint64)
        np.cumsum((text.astype(np.uint64) + np.uint64(1)) * self._powers[: len(text)], out=sums[1:])
        found = (sums[last] - sums[first]) * self._inverses[first]
        numbers = np.full(len(first), len(self._sizes), np.int32)
        hits = np.flatnonzero(self._maybe[found >> _SHIFT])  # few are left to be searched for
        place = np.minimum(np.searchsorted(self._hashes, found[hits]), len(self._hashes) - 1)
        known = self._hashes[place] == found[hits]
        hits, number = hits[known], self._order[place[known]]
        same = last[hits] - first[hits] == self._sizes[number]  # hashes may collide: look
        for letter in range(self._letters.shape[1]):
            check = np.flatnonzero(same & (letter < self._sizes[number]))
            equal = text[first[hits[check]] + letter] == self._letters[number[check], letter]
            same[check[~equal]] = False
        numbers[hits[same]] = number[same]
        return numbers

    def _grow(self, size: int) -> None:
        """Powers of the multiplier and of its inverse, modulo 2**64, for `size` places."""
        if size > len(self._powers):
            for name, base in (
                ("_powers", _MULTIPLIER),
                ("_inverses", pow(_MULTIPLIER, -1, 2**64)),
            ):
                steps = np.full(size, base, np.uint64)
                steps[0] = 1
                setattr(self, name, np.cumprod(steps))


def _hash(word: bytes) -> int:
    """Polynomial in the multiplier with the bytes plus one as coefficients, modulo 2**64."""
    return sum((byte + 1) * pow(_MULTIPLIER, i, 2**64) for i, byte in enumerate(word)) % 2**64


# --- matching --------------------------------------------------------------------------------


class _Trie:
    """Sequences of ids, found at all places of an array at once, one level of the trie a pass.

    Args:
        terms: the sequences of each term. n_ids: ids are below; n_ids itself matches nothing.
    """

    def __init__(self, terms: Sequence[Sequence[tuple[int, ...]]], n_ids: int) -> None:
        if not terms or not any(terms):
            raise ConfigError("no terms to count; give at least one")
        edges: dict[tuple[int, int], int] = {}
        ends = set()
        for term, sequences in enumerate(terms):
            for sequence in sequences:
                if not sequence or not all(0 <= i < n_ids for i in sequence):
                    raise ConfigError(
                        f"term number {term} has the ids {list(sequence)}; give at least one, each "
                        f"in 0..{n_ids - 1}"
                    )
                state = 0
                for i in sequence:
                    state = edges.setdefault((state, i), len(edges) + 1)
                ends.add((state, term))
        self.n_terms, self.n_states, self.width = len(terms), len(edges) + 1, n_ids + 1
        self.ends = np.array(sorted(ends), np.int64)
        self.root = np.zeros(self.width, np.int32)
        deeper = []
        for (state, i), following in edges.items():
            if state:
                deeper.append((state * self.width + i, following))
            else:
                self.root[i] = following
        table = np.array(sorted(deeper), np.int64).reshape(-1, 2)
        self.keys, self.following = table[:, 0], table[:, 1]
        self.has_children = np.zeros(self.n_states, bool)
        self.has_children[self.keys // self.width] = True

    def count(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """int64[terms]: occurrences in ids int[n], the last of which matches nothing."""
        state = self.root[ids]
        place = np.flatnonzero(state)
        state = state[place].astype(np.int64)
        visits = np.bincount(state, minlength=self.n_states)
        while (more := self.has_children[state]).any():
            place, state = place[more] + 1, state[more]
            keys = state * self.width + ids[place]
            edge = np.searchsorted(self.keys, keys)
            edge[edge == len(self.keys)] = 0
            found = self.keys[edge] == keys
            place, state = place[found], self.following[edge[found]]
            visits += np.bincount(state, minlength=self.n_states)
        counts = np.zeros(self.n_terms, np.int64)
        np.add.at(counts, self.ends[:, 1], visits[self.ends[:, 0]])
        return counts


def _check_encodings(name: str, found: list[tuple[int, ...]], n_ids: int) -> None:
    for one in found:
        for other in found:
            if one is not other and _inside(one, other):
                raise ConfigError(
                    f"of the encodings of {name!r}, {list(one)} is part of {list(other)}: what "
                    "matches the longer would count twice; leave the longer out"
                )


def _inside(short: tuple[int, ...], long: tuple[int, ...]) -> bool:
    """Whether `short` stands somewhere in `long`."""
    return any(
        long[start : start + len(short)] == short for start in range(len(long) - len(short) + 1)
    )
