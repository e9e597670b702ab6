"""Find the words to swap in token ids, for the paper's gender-bias intervention and a placebo.

The paper (section 3.1) replaces masculine by feminine pronouns in the last 7 % or 21 % of training.
Its code is not documented (case-studies/README.md in EleutherAI/pythia, commit 4d0c901). Here, a
word is replaced only if it is whole (a sequence of letters, digits and underscores), written in
lower, Capitalized or UPPER case, and has as many tokens as its replacement. So other tokens do not
move.

A swap to feminine and back does not restore a text: "his" and "him" both become "her", and "her"
always becomes "his", because it is mostly a determiner. The placebo replaces four prepositions by
rarer ones. At the scale `laptop`, it changes as many tokens as the swap of masculine pronouns, to
within about 5 %.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_core.config import SWAPS
from pythia_core.data.tokenizer import token_bytes
from pythia_core.errors import ConfigError, DataError, one_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORDS = {
    "masculine_to_feminine": {"he": "she", "his": "her", "him": "her", "himself": "herself"},
    "feminine_to_masculine": {"she": "he", "her": "his", "hers": "his", "herself": "himself"},
    "prepositions": {"on": "over", "with": "through", "for": "toward", "at": "near"},
}
assert tuple(WORDS) == SWAPS
GENDERED = {"he": "she", "his": "her", "himself": "herself"}
"""The pronouns of the transform "shuffle_genders". It leaves "him" and "hers" alone, because "her"
corresponds to both "his" and "him"."""

_BOUNDARY, _WORD, _UNSURE = 0, 1, 2
Bytes = list[bytes | None]


@dataclass(frozen=True)
class _TokenForm:
    """A spelling of a word (the source), and the spelling that replaces it (the target).

    `target_ids` is None if the target cannot be written with as many tokens as the source.
    """

    source: str
    target: str
    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...] | None
    word_at_start: bool
    """Whether the source begins with a letter, so that a longer word may begin before it."""

    @property
    def n_changed(self) -> int:
        """The number of tokens in which source and target differ; 0 without a target."""
        pairs = zip(self.source_ids, self.target_ids or self.source_ids, strict=True)
        return sum(a != b for a, b in pairs)


class WordSwap:
    """A replacement of words by other words with as many tokens; see `from_tokenizer`.

    Attributes:
        table: (source text, target text, source ids, target ids) of every spelling that is swapped.
        unswappable: spellings left unchanged, because the target cannot have as many tokens.
        context: number of tokens that `find` needs before and after each row.
    """

    def __init__(self, forms: list[_TokenForm], table: Bytes) -> None:
        self._forms = sorted(forms, key=lambda form: -len(form.source_ids))
        self.table = [
            (f.source, f.target, list(f.source_ids), list(f.target_ids))
            for f in forms
            if f.target_ids is not None
        ]
        self.unswappable = [f.source for f in forms if f.target_ids is None]
        self.context = max(len(form.source_ids) for form in forms) + 4
        self._bytes = table
        self._starts = np.array([_edge(raw, first=True) for raw in table], np.uint8)
        self._ends = np.array([_edge(raw, first=False) for raw in table], np.uint8)
        self._is_first = np.zeros(len(table), bool)
        self._is_first[[form.source_ids[0] for form in forms]] = True

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, direction: str) -> WordSwap:
        """Make the swap that WORDS lists under `direction`.

        Raises:
            ConfigError: the direction is unknown.
            DataError: the tokenizer is not a byte-level BPE.
        """
        if direction not in WORDS:
            raise ConfigError(one_of(direction, SWAPS, "swap"))
        return cls.of_words(tokenizer, WORDS[direction])

    @classmethod
    def of_words(
        cls, tokenizer: Tokenizer, words: dict[str, str], one_change: bool = False
    ) -> WordSwap:
        """Make the swap of the keys of `words`, in lower case, for their values.

        Args:
            one_change: leave out spellings that differ from their replacements in several tokens.

        Raises:
            DataError: the tokenizer is not a byte-level BPE.
        """
        table = token_bytes(tokenizer)
        vocabulary = {raw: i for i, raw in reversed(list(enumerate(table))) if raw}

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        forms: dict[tuple[int, ...], _TokenForm] = {}
        for source, target in words.items():
            for case in (str.lower, str.capitalize, str.upper):
                for prefix in _prefixes(ids, case(source)):
                    text, swapped = prefix + case(source), prefix + case(target)
                    source_ids = ids(text)
                    target_ids: tuple[int, ...] | None = ids(swapped)
                    if len(ids(swapped)) != len(source_ids):
                        target_ids = _segment(swapped.encode(), source_ids, vocabulary)
                    first = (table[source_ids[0]] or b" ")[:1]
                    starts = _is_word(first.decode())
                    form = _TokenForm(text, swapped, source_ids, target_ids, starts)
                    forms.setdefault(source_ids, form)
        kept = [form for form in forms.values() if not one_change or form.n_changed == 1]
        return cls(kept, table)

    def find(
        self, windows: NDArray, valid: NDArray[np.bool_], before: int, after: int
    ) -> tuple[NDArray, NDArray, NDArray, NDArray, Counter[str]]:
        """Find the tokens to change in rows, which are given with context on both sides.

        Args:
            windows: ids[n, before + S + 1 + after] from RowOrder.gather.
            valid: mask of the same shape, False where there is no token. No word continues past
                such a place.
            before, after: number of context columns. With at least `self.context`, the result does
                not depend on how the stream is split into rows.

        Returns:
            row (int64), column (int32, without context), old id and new id (uint32) of each token
            to change, sorted by row and column; and, for each spelling, how many of its occurrences
            are at least partly inside a row.

        Raises:
            DataError: an array has a wrong shape or dtype, or an id is outside the vocabulary.
        """
        windows = np.asarray(windows)
        if windows.ndim != 2 or windows.shape != valid.shape or windows.dtype.kind not in "iu":
            raise DataError(
                "windows must be integers [n, width] with a mask of the same shape, got "
                f"{windows.dtype} {windows.shape} with a mask of shape {valid.shape}"
            )
        if windows.size and (windows.min() < 0 or windows.max() >= len(self._bytes)):
            raise DataError(
                f"the rows have ids {windows.min()}..{windows.max()}, but the tokenizer's ids are "
                f"0..{len(self._bytes) - 1}; use the tokenizer with which the rows were made"
            )
        width = windows.shape[1]
        rows, columns = np.nonzero(self._is_first[windows] & valid)
        matched = np.zeros(windows.shape, bool)
        changes: list[tuple[NDArray, ...]] = []
        counts: Counter[str] = Counter()
        for form in self._forms:  # longest first
            k = len(form.source_ids)
            match = columns + k <= width
            row, column = rows[match], columns[match]
            for j, source_id in enumerate(form.source_ids):
                here = (windows[row, column + j] == source_id) & valid[row, column + j]
                here &= ~matched[row, column + j]
                row, column = row[here], column[here]
            whole = self._at_word_boundary(windows, valid, row, column + k, forward=True)
            if form.word_at_start:
                whole &= self._at_word_boundary(windows, valid, row, column - 1, forward=False)
            row, column = row[whole], column[whole]
            inside = np.zeros(len(column), bool)
            for j, old in enumerate(form.source_ids):
                matched[row, column + j] = True
                core = (column + j >= before) & (column + j < width - after)
                inside |= core
                if form.target_ids is not None and form.target_ids[j] != old:
                    n = int(core.sum())
                    values = np.full(n, old), np.full(n, form.target_ids[j])
                    changes.append((row[core], column[core] + j - before, *values))
            counts[form.source] += int(inside.sum())
        parts = zip(*changes, strict=True) if changes else [[np.zeros(0)]] * 4
        row, column, olds, news = (np.concatenate(list(part)) for part in parts)
        order = np.lexsort((column, row))
        types = (np.int64, np.int32, np.uint32, np.uint32)
        row, column, olds, news = (
            part[order].astype(kind)
            for part, kind in zip((row, column, olds, news), types, strict=True)
        )
        return row, column, olds, news, counts

    def _at_word_boundary(
        self,
        windows: NDArray,
        valid: NDArray[np.bool_],
        row: NDArray,
        column: NDArray,
        forward: bool,
    ) -> NDArray[np.bool_]:
        """Return whether a word boundary separates each match from the adjacent token.

        The adjacent token is at (row, column). It follows the match if `forward`, else precedes it.
        """
        inside = (column >= 0) & (column < windows.shape[1])
        safe = np.where(inside, column, 0)
        inside &= valid[row, safe]
        kinds = (self._starts if forward else self._ends)[windows[row, safe]]
        kinds = np.where(inside, kinds, _BOUNDARY)
        for i in np.flatnonzero(kinds == _UNSURE):  # rare: a character split between tokens
            r, c = row[i], int(column[i])
            kinds[i] = self._split_character_kind(windows[r], valid[r], c, forward)
        return kinds == _BOUNDARY

    def _split_character_kind(
        self, window: NDArray, valid: NDArray[np.bool_], column: int, forward: bool
    ) -> int:
        """Classify the character next to a match, when this character spans several tokens."""
        step = 1 if forward else -1
        spelled = b""
        while 0 <= column < len(window) and valid[column]:
            raw = self._bytes[window[column]]
            if raw is None:
                break
            spelled = spelled + raw if forward else raw + spelled
            if (kind := _edge(spelled, first=forward)) != _UNSURE:
                return kind
            column += step
        return _WORD  # cannot be decoded: do not swap here


def _prefixes(ids: Any, word: str) -> list[str]:
    """Return "", " ", and each mark, newline or tab that changes the tokens of a following `word`.

    For instance, GPT-2's pattern reads the start of "'she" as the contraction "'s".
    """
    others = [c for c in string.punctuation + "\n\t" if c != "_"]
    return ["", " "] + [c for c in others if ids(c + word) != ids(c) + ids(word)]


def _segment(
    text: bytes, source: tuple[int, ...], vocabulary: dict[bytes, int]
) -> tuple[int, ...] | None:
    """Return len(source) ids that spell `text` and agree most with `source`; None if impossible."""

    def segmentations(rest: bytes, n: int) -> Iterator[tuple[int, ...]]:
        """Yield each way to spell `rest` with n tokens, as ids. Longer tokens are tried first."""
        if n == 0 and not rest:
            yield ()
        for end in range(len(rest), 0, -1) if n else ():
            token = vocabulary.get(rest[:end])
            if token is not None:
                yield from ((token, *tail) for tail in segmentations(rest[end:], n - 1))

    def n_equal(ids: tuple[int, ...]) -> int:
        return sum(a == b for a, b in zip(ids, source, strict=True))

    return max(segmentations(text, len(source)), key=n_equal, default=None)


def _is_word(character: str) -> bool:
    """Return whether a character can be part of a word: a letter, digit or underscore."""
    return character.isalnum() or character == "_"


def _edge(raw: bytes | None, first: bool) -> int:
    """Classify the first character of a token's bytes `raw`; without `first`, the last character.

    `raw` is None for a special token. _UNSURE: the adjacent token has some bytes of the character.
    """
    if raw is None:
        return _BOUNDARY
    if first:
        lead = raw[0]
        size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        part = raw[:size]
        complete = len(part) == size
    else:
        start = next((i for i in range(len(raw) - 1, -1, -1) if raw[i] & 0xC0 != 0x80), None)
        part = raw if start is None else raw[start:]
        complete = start is not None
        if not complete and len(raw) >= 4:
            return _WORD
    if not complete:
        # a lone continuation byte at the start cannot begin a character
        return _WORD if first and part and part[0] & 0xC0 == 0x80 else _UNSURE
    try:
        return _WORD if _is_word(part.decode("utf-8")) else _BOUNDARY
    except UnicodeDecodeError:
        return _WORD
