"""Pronouns swapped in a token stream: the transform of the gender-bias intervention.

The paper (section 3.1) replays the last 7 % or 21 % of training with masculine pronouns made
feminine. The public code for it either damaged words that contain "he" or swapped nothing; here
whole words are swapped in the tokens themselves, so that every row keeps its length and every
other token is untouched. The map is derived from the tokenizer in use:

    masculine to feminine   he -> she, his -> her, him -> her, himself -> herself
    feminine to masculine   she -> he, her -> his, hers -> his, herself -> himself

each in lower case, Capitalised and UPPER CASE, with and without a leading space. English "her" is
both "his" and "him", so the mirror is not an inverse: as the determiner is the more frequent use,
"her" always becomes "his"; likewise "his" always becomes "her", never "hers".

A word is what a regular expression calls one: letters, digits and underscores (so "_he_" is left
alone). A swap keeps the number of tokens or is not made at all (`PronounSwap.unmapped`).
pythia_core.data.interventions decides which rows are changed, and records it.
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
}
assert tuple(WORDS) == SWAPS

_BOUNDARY, _WORD, _UNSURE = 0, 1, 2
Bytes = list[bytes | None]


@dataclass(frozen=True)
class _Form:
    """One spelling of one pronoun as tokens; `target_ids` is None where no equal length exists."""

    source: str
    target: str
    source_ids: tuple[int, ...]
    target_ids: tuple[int, ...] | None
    word_at_start: bool
    """Whether its first byte belongs to the word, so that what precedes it matters."""


class PronounSwap:
    """A map from pronouns to pronouns as token sequences of equal length, by `from_tokenizer`.

    Attributes:
        table: (source text, target text, source ids, target ids) of every form that can be swapped.
        unmapped: source texts that cannot be, at equal length, with this vocabulary.
        reach: how many tokens of context on either side `find` may look at.
    """

    def __init__(self, direction: str, forms: list[_Form], table: Bytes) -> None:
        self.direction = direction
        self._forms = sorted(forms, key=lambda form: -len(form.source_ids))
        self.table = [
            (f.source, f.target, list(f.source_ids), list(f.target_ids))
            for f in forms
            if f.target_ids is not None
        ]
        self.unmapped = [f.source for f in forms if f.target_ids is None]
        self.reach = max(len(form.source_ids) for form in forms) + 4
        self._bytes = table
        self._starts = np.array([_edge(raw, first=True) for raw in table], np.uint8)
        self._ends = np.array([_edge(raw, first=False) for raw in table], np.uint8)
        self._is_first = np.zeros(len(table), bool)
        self._is_first[[form.source_ids[0] for form in forms]] = True

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, direction: str) -> PronounSwap:
        """The map for this tokenizer.

        Raises:
            ConfigError: unknown direction. DataError: not a byte-level BPE tokenizer.
        """
        if direction not in WORDS:
            raise ConfigError(one_of(direction, SWAPS, "swap"))
        table = token_bytes(tokenizer)
        vocabulary = {raw: i for i, raw in reversed(list(enumerate(table))) if raw}

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        forms: dict[tuple[int, ...], _Form] = {}
        for source, target in WORDS[direction].items():
            for case in (str.lower, str.capitalize, str.upper):
                for prefix in _prefixes(ids, case(source)):
                    text, swapped = prefix + case(source), prefix + case(target)
                    source_ids = ids(text)
                    target_ids: tuple[int, ...] | None = ids(swapped)
                    if len(ids(swapped)) != len(source_ids):
                        target_ids = _segment(swapped.encode(), source_ids, vocabulary)
                    first = (table[source_ids[0]] or b" ")[:1]
                    form = _Form(text, swapped, source_ids, target_ids, _is_word(first.decode()))
                    forms.setdefault(source_ids, form)
        return cls(direction, list(forms.values()), table)

    def find(
        self, windows: NDArray, valid: NDArray[np.bool_], before: int, after: int
    ) -> tuple[NDArray, NDArray, NDArray, NDArray, Counter[str]]:
        """The tokens to change in rows that come with their context.

        Args:
            windows: ids[n, before + S + 1 + after], as RowOrder.gather gives them.
            valid: False where there is no token; that counts as the edge of a text.
            before, after: context columns; `reach` of each makes the result independent of how
                the stream is cut into rows.

        Returns:
            row (int64), column (int32), old and new (uint32), sorted; columns count from the row's
            first token, context excluded. Only tokens that differ are listed. And how often each
            form occurs with a token inside the rows.

        Raises:
            DataError: other arrays, or ids that the tokenizer does not have.
        """
        windows = np.asarray(windows)
        if windows.ndim != 2 or windows.shape != valid.shape or windows.dtype.kind not in "iu":
            raise DataError(
                f"need integer windows[n, width] and a mask of that shape, got {windows.shape}"
            )
        if windows.size and (windows.min() < 0 or windows.max() >= len(self._bytes)):
            raise DataError(
                f"ids {windows.min()}..{windows.max()} are outside the tokenizer's "
                f"0..{len(self._bytes) - 1}; the rows were made with another tokenizer"
            )
        width = windows.shape[1]
        rows, columns = np.nonzero(self._is_first[windows] & valid)
        taken = np.zeros(windows.shape, bool)
        changes: list[tuple[NDArray, ...]] = []
        counts: Counter[str] = Counter()
        for form in self._forms:  # longest first
            k = len(form.source_ids)
            match = columns + k <= width
            at_row, at = rows[match], columns[match]
            for j, source_id in enumerate(form.source_ids):
                here = (windows[at_row, at + j] == source_id) & valid[at_row, at + j]
                here &= ~taken[at_row, at + j]
                at_row, at = at_row[here], at[here]
            whole = self._free(windows, valid, at_row, at + k, ahead=True)
            if form.word_at_start:
                whole &= self._free(windows, valid, at_row, at - 1, ahead=False)
            at_row, at = at_row[whole], at[whole]
            inside = np.zeros(len(at), bool)
            for j, old in enumerate(form.source_ids):
                taken[at_row, at + j] = True
                core = (at + j >= before) & (at + j < width - after)
                inside |= core
                if form.target_ids is not None and form.target_ids[j] != old:
                    n = int(core.sum())
                    values = np.full(n, old), np.full(n, form.target_ids[j])
                    changes.append((at_row[core], at[core] + j - before, *values))
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

    def _free(
        self,
        windows: NDArray,
        valid: NDArray[np.bool_],
        row: NDArray,
        column: NDArray,
        ahead: bool,
    ) -> NDArray[np.bool_]:
        """Whether the token at (row, column), just after or before a match, leaves it a word."""
        inside = (column >= 0) & (column < windows.shape[1])
        safe = np.where(inside, column, 0)
        inside &= valid[row, safe]
        kinds = (self._starts if ahead else self._ends)[windows[row, safe]]
        kinds = np.where(inside, kinds, _BOUNDARY)
        for i in np.flatnonzero(kinds == _UNSURE):  # a character split over tokens: rare
            kinds[i] = self._spelled_out(windows[row[i]], valid[row[i]], int(column[i]), ahead)
        return kinds == _BOUNDARY

    def _spelled_out(
        self, window: NDArray, valid: NDArray[np.bool_], column: int, ahead: bool
    ) -> int:
        """The kind of a neighbouring character whose bytes are spread over several tokens."""
        step = 1 if ahead else -1
        spelled = b""
        while 0 <= column < len(window) and valid[column]:
            raw = self._bytes[window[column]]
            if raw is None:
                break
            spelled = spelled + raw if ahead else raw + spelled
            if (kind := _edge(spelled, first=ahead)) != _UNSURE:
                return kind
            column += step
        return _WORD  # not decodable: leave the text alone


def _prefixes(ids: Any, word: str) -> list[str]:
    """Prefixes of a word with which it forms other tokens than alone.

    Always none and the leading space; and whatever else the pre-tokenizer binds to the word:
    GPT-2's pattern reads the start of "'she" as the contraction "'s", for instance.
    """
    others = [c for c in string.punctuation + "\n\t" if c != "_"]
    return ["", " "] + [c for c in others if ids(c + word) != ids(c) + ids(word)]


def _segment(
    text: bytes, source: tuple[int, ...], vocabulary: dict[bytes, int]
) -> tuple[int, ...] | None:
    """`text` as exactly len(source) tokens, or None if that is impossible.

    If there are several, the one that keeps most of the source's tokens in place; then the one
    whose earlier tokens are longest.
    """

    def segmentations(rest: bytes, n: int) -> Iterator[tuple[int, ...]]:
        if n == 0 and not rest:
            yield ()
        for end in range(len(rest), 0, -1) if n else ():
            token = vocabulary.get(rest[:end])
            if token is not None:
                yield from ((token, *tail) for tail in segmentations(rest[end:], n - 1))

    def kept(ids: tuple[int, ...]) -> int:
        return sum(a == b for a, b in zip(ids, source, strict=True))

    return max(segmentations(text, len(source)), key=kept, default=None)


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _edge(raw: bytes | None, first: bool) -> int:
    """Whether a token's first (last) character belongs to a word, as far as its bytes show."""
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
