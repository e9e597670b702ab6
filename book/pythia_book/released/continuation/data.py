"""Reads the training rows of a continued run from token files, and swaps pronouns in the rows.

In training order, neighboring rows usually come from different documents. So the swap treats the
ends of a row as ends of the text, and its log counts the tokens changed there. Each row is swapped
on its own when it is read, so the log can be reproduced at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_book.released.pile import MissingShard, open_rows, released_order, tokenizer_at
from pythia_book.released.recipe import SEQ_LEN
from pythia_core.config import SWAPS, DataConfig, InterventionConfig, stable_hash
from pythia_core.data.interventions import Ledger
from pythia_core.data.order import Rows, batch_hash
from pythia_core.data.prepare import PreparedData, prepare
from pythia_core.data.pronouns import WORDS, WordSwap
from pythia_core.data.tokenizer import EOD, id_limit
from pythia_core.errors import ConfigError, DataError, one_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# --- rows ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenFileData:
    """Training rows in token files, with their tokenizer; the counterpart of PreparedData.

    Attributes:
        where: a released name, a folder (the needed shards suffice) or a PREFIX, as in
            `pile.open_rows`.
        tokenizer_name: "neox-20b", the path of a tokenizer.json, or "" for none. Swaps and
            measurements need a tokenizer.
        dtype: type of the ids in a `.bin` without an `.idx`.
    """

    where: str
    tokenizer_name: str = "neox-20b"
    seq_len: int = SEQ_LEN
    dtype: str = "<u2"

    def __reduce__(self) -> tuple:
        """Pickle without the open files."""
        return TokenFileData, (self.where, self.tokenizer_name, self.seq_len, self.dtype)

    @cached_property
    def _opened(self) -> tuple[Rows, str]:
        """The rows, and a sentence that describes them."""
        return open_rows(self.where, self.seq_len, dtype=self.dtype)

    @property
    def rows(self) -> Rows:
        """The rows in training order. The first access opens the files."""
        return self._opened[0]

    @property
    def description(self) -> str:
        """A sentence that describes the rows. Released data are not opened."""
        released = released_order(self.where)
        return released.sentence if released else self._opened[1]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the rows. Raises a DataError if `tokenizer_name` is empty."""
        if not self.tokenizer_name:
            raise DataError(
                f"the tokenizer of the rows in {self.where} is unknown; set the tokenizer "
                "(--tokenizer) to neox-20b or to the path of a tokenizer.json"
            )
        return tokenizer_at(self.tokenizer_name)

    @property
    def eod_id(self) -> int:
        """The id of the token that ends a document."""
        return self.tokenizer.token_to_id(EOD)

    @property
    def vocab_size(self) -> int:
        """The largest id of the tokenizer plus one."""
        return id_limit(self.tokenizer)

    def batch(self, step: int, batch_size: int) -> NDArray:
        """Return the rows int[batch_size, seq_len + 1] of the update from `step` to `step + 1`."""
        return self.rows.batch(step, batch_size)

    @property
    def config(self) -> DataConfig:
        """The data config of a run on these rows."""
        return DataConfig(
            corpus=self.where,
            domains=(),
            tokenizer=self.tokenizer_name or "neox-20b",
            seq_len=self.seq_len,
            dedup="eleutherai-0.87" if "dedup" in self.where else "none",
        )

    def changes(self, window: InterventionConfig, batch_size: int, folder: Path) -> RowSwap:
        """Return the pronoun swap that `window` describes. Nothing is stored in `folder`.

        Raises:
            ConfigError: the intervention is not a swap, or is limited to some domains.
        """
        if window.domains:
            raise ConfigError(
                "token files do not say which domain a document belongs to, so a swap cannot be "
                f"limited to {', '.join(window.domains)}"
            )
        return RowSwap(self.tokenizer, window.transform, window.start, window.stop, batch_size)

    def with_heldout(self) -> PreparedData:
        """Return the prepared corpus `miniature`, because the rows have no held-out text.

        If a published model was trained on these texts, swap and control are affected equally.
        """
        return prepare(DataConfig("miniature", tokenizer=self.tokenizer_name))

    def missing_shards(self, start: int, stop: int, batch_size: int) -> list[MissingShard]:
        """Return the shards that updates [start, stop) need but the folder lacks."""
        return self.rows.missing_files(start * batch_size, stop * batch_size)

    def identity(self, start: int, stop: int, batch_size: int, swap: str = "") -> dict[str, Any]:
        """Check the rows, and return a fingerprint that does not depend on where they are stored.

        The fingerprint has `seq_len`, `batches` (hashes of the first, middle and last batch of the
        updates [start, stop)) and `tokenizer` (hash of the vocabulary; "" without a tokenizer).

        Raises:
            DataError: rows or shards are missing, the rows have an id that the tokenizer lacks, or
                the tokenizer does not allow the pronoun swap `swap`.
        """
        if missing_shards := self.missing_shards(start, stop, batch_size):
            lacking = ", ".join(
                f"{file.name} ({file.size / 1e9:.1f} GB)" for file in missing_shards
            )
            raise DataError(
                f"the updates {start}..{stop - 1} read shards that are missing in {self.where}; "
                f"put the missing shards there: {lacking}"
            )
        last = self.batch(stop - 1, batch_size)  # first: its error says where the rows end
        probes = [self.batch(k, batch_size) for k in (start, (start + stop) // 2)] + [last]
        vocabulary = ""
        if self.tokenizer_name:
            vocabulary = stable_hash(self.tokenizer.get_vocab(with_added_tokens=True))
            largest = max(int(rows.max()) for rows in probes)
            if largest >= self.vocab_size:
                raise DataError(
                    f"the rows of {self.where} have the token id {largest}, but the tokenizer "
                    f"{self.tokenizer_name} has only ids below {self.vocab_size}; pass the "
                    "tokenizer with which the rows were made"
                )
        if swap:
            check_swap(self.tokenizer, swap)
        hashes = [batch_hash(rows) for rows in probes]
        return {"seq_len": self.seq_len, "batches": hashes, "tokenizer": vocabulary}


# --- the swap --------------------------------------------------------------------------------


def check_swap(tokenizer: Tokenizer, direction: str) -> WordSwap:
    """Return the pronoun swap of `direction` (one of config.SWAPS) for a tokenizer.

    Raises:
        ConfigError: the direction is unknown.
        DataError: some non-reflexive pronouns are not single tokens; the message lists them.
    """
    if direction not in WORDS:
        raise ConfigError(one_of(direction, SWAPS, "swap"))
    swap = WordSwap.from_tokenizer(tokenizer, direction)
    words = [w for pair in WORDS[direction].items() for w in pair if not w.endswith("self")]
    pieces = {w: len(tokenizer.encode(f" {w}", add_special_tokens=False).ids) for w in words}
    if split := [f"' {w}' ({n} tokens)" for w, n in pieces.items() if n != 1]:
        raise DataError(
            f"the swap {direction} works only if the tokenizer encodes every swapped word as one "
            f"token, but this tokenizer splits {', '.join(split)}; pass the tokenizer that "
            "encoded the training data, or use data that was encoded with another tokenizer"
        )
    return swap


class RowSwap:
    """A pronoun swap in updates [start, stop) that treats each row separately.

    A RowSwap is used like a Ledger, but computes the changes instead of storing them.
    """

    recorded = False

    def __init__(
        self, tokenizer: Tokenizer, swap: str, start: int, stop: int, batch_size: int
    ) -> None:
        self.swap, self.start, self.stop, self.batch_size = swap, start, stop, batch_size
        self._swap = check_swap(tokenizer, swap)

    def ledger(self, rows: NDArray, first_row: int) -> Ledger:
        """Return the changes to `rows`, whose training indices start at `first_row`."""
        valid = np.ones(rows.shape, bool)
        inside = np.arange(first_row, first_row + len(rows)) // self.batch_size
        valid[(inside < self.start) | (inside >= self.stop)] = False
        row, *others, counts = self._swap.find(rows, valid, 0, 0)
        return Ledger(
            row + first_row,
            *others,
            self.swap,
            self.start,
            self.stop,
            self.batch_size,
            n_tokens=int(valid.sum()),
            counts={form: counts[form] for form in sorted(counts) if counts[form]},
            unmapped={f: counts[f] for f in sorted(self._swap.unswappable) if counts[f]},
        )

    def apply(self, rows: NDArray, first_row: int) -> NDArray:
        """Return a copy of `rows` with the pronouns swapped."""
        return self.ledger(rows, first_row).apply(rows, first_row)


def swap_row(step: int, ledger: Ledger, width: int) -> dict[str, Any]:
    """Return the log entry of the update that ends at `step`. Its rows have `width` ids each.

    Keys:
    - `step`, `tokens`, `tokens_changed`
    - `at_row_ends`: changed tokens that are the first or last of a row.
    - `by_form`: occurrences of each pronoun.
    - `unmapped`: occurrences of each pronoun that cannot be swapped.
    """
    ends = (ledger.column == 0) | (ledger.column == width - 1)
    return {
        "step": step,
        "tokens": ledger.n_tokens,
        "tokens_changed": len(ledger.row),
        "at_row_ends": int(ends.sum()),
        "by_form": ledger.counts,
        "unmapped": ledger.unmapped,
    }


def swap_summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the totals of a swap's log, with the keys of `swap_row` except `step`.

    The further key `share_changed` is the fraction of changed tokens.
    """
    totals: dict[str, Any] = {
        key: sum(line[key] for line in lines) for key in ("tokens", "tokens_changed", "at_row_ends")
    }
    for key in ("by_form", "unmapped"):
        counts: Counter[str] = Counter()
        for line in lines:
            counts.update(line[key])
        totals[key] = dict(sorted(counts.items()))
    totals["share_changed"] = totals["tokens_changed"] / max(1, totals["tokens"])
    return totals
