"""Intervene in the training data: list which tokens change during a window of updates.

The paper (section 3.1) repeats the end of training with changed pronouns and everything else equal.
Besides such swaps of words, genders can be shuffled and documents replaced (see `make_ledger`). A
run with an intervention is a fork; the run without it is its control. All changes are computed
before the fork is trained, and listed in a ledger. Each batch of the fork is the control's batch
with the ledger applied. Neighboring rows overlap by one token; such a token is changed in both
rows.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pythia_core.config import (
    CONTROL_DOMAINS,
    PLANTED_DOMAINS,
    REPLACE,
    SHUFFLE,
    DataConfig,
    InterventionConfig,
)
from pythia_core.data.indexed_dataset import MegatronIndexed
from pythia_core.data.order import RowOrder, Rows
from pythia_core.data.pronouns import GENDERED, WordSwap
from pythia_core.errors import DataError
from pythia_core.util.files import (
    FULL_DISK,
    atomic_file,
    full_disk_advice,
    json_object,
    save_safetensors,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Ledger:
    """All tokens that an intervention changes in training, sorted by row and column.

    Change i replaces token `old[i]` by `new[i]`, in column `column[i]` of training row `row[i]`.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int32]
    old: NDArray[np.uint32]
    new: NDArray[np.uint32]
    transform: str
    start: int
    stop: int
    batch_size: int
    domains: tuple[str, ...] = ()
    n_tokens: int = 0
    """Number of tokens in the rows of the updates [start, stop)."""
    counts: dict[str, int] = field(default_factory=dict)
    """Maps each spelling of a word to its number of occurrences in the rows of the updates [start,
    stop). An occurrence in two rows counts twice."""
    unmapped: dict[str, int] = field(default_factory=dict)
    """The part of `counts` for spellings that cannot be swapped."""

    recorded: ClassVar[bool] = True

    @property
    def intervention(self) -> InterventionConfig:
        """The intervention whose changes are listed."""
        return InterventionConfig(self.transform, self.start, self.stop, self.domains)

    def apply(self, batch: NDArray, first_row: int) -> NDArray:
        """Return a copy of `batch` with the ledger's changes.

        Args:
            batch: int[n, tokens], the rows first_row, first_row + 1, ... of the training order.

        Raises:
            DataError: the batch does not have the tokens that the ledger expects.
        """
        changed = np.array(batch)
        low, high = np.searchsorted(self.row, [first_row, first_row + len(changed)])
        index = self.row[low:high] - first_row, self.column[low:high]
        if low < high and int(index[1].max()) >= changed.shape[1]:
            raise DataError(
                f"the intervention's ledger changes column {index[1].max()}, but rows have only "
                f"{changed.shape[1]} tokens, so the ledger was made for other "
                "data; use the data for which it was made"
            )
        wrong = np.flatnonzero(changed[index] != self.old[low:high])
        if wrong.size:
            i = int(wrong[0])
            raise DataError(
                f"the intervention's ledger expects token {self.old[low + i]} in row "
                f"{self.row[low + i]}, column {self.column[low + i]}, but the data has token "
                f"{changed[index][i]} there, so the ledger was made for other data or another "
                "order; use the data and the order for which it was made"
            )
        changed[index] = self.new[low:high].astype(changed.dtype)
        return changed

    def summary(self) -> dict[str, Any]:
        """Return the settings of the intervention and what it changes, as plain JSON types.

        `share_changed` is the fraction of `tokens` that is changed. `words` is the sum of `counts`.
        """
        return {
            "transform": self.transform,
            "domains": list(self.domains),
            "start": self.start,
            "stop": self.stop,
            "batch_size": self.batch_size,
            "tokens": self.n_tokens,
            "tokens_changed": len(self.row),
            "share_changed": len(self.row) / self.n_tokens if self.n_tokens else 0.0,
            "words": sum(self.counts.values()),
            "by_form": dict(self.counts),
            "unmapped": dict(self.unmapped),
        }

    def save(self, path: Path | str) -> None:
        """Write the ledger atomically to a safetensors file; raise DataError on a full disk."""
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        values = {k: v for k, v in asdict(self).items() if k not in _ARRAYS}
        metadata = {"ledger": json.dumps(values), "sha256": self._digest()}
        try:
            with atomic_file(Path(path)) as temporary:
                save_safetensors(save_file, arrays, temporary, metadata)
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise DataError(
                f"the ledger {path} could not be written, because "
                f"{full_disk_advice(str(Path(path).parent))}"
            ) from error

    @classmethod
    def load(cls, path: Path | str) -> Ledger:
        """Read a ledger that `save` wrote; raise DataError if the file is absent or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "np") as file:
                metadata = file.metadata() or {}
                values = json_object(metadata["ledger"])
                ledger = cls(**{name: file.get_tensor(name) for name in _ARRAYS}, **values)
            ledger._check()
            if metadata["sha256"] != ledger._digest():
                raise ValueError("its contents do not have the sha256 in its metadata")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            detail = f"no entry {error}" if isinstance(error, KeyError) else error
            raise DataError(
                f"{path} is not a readable ledger: {detail}. Delete the file and run again"
            ) from error
        return ledger

    def _digest(self) -> str:
        """Return the sha256 of all fields, in hex."""
        values = {k: v for k, v in asdict(self).items() if k not in _ARRAYS}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for name in _ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()

    def _check(self) -> None:
        """Raise ValueError if the arrays have wrong lengths, dtypes, order or row numbers."""
        sizes = {len(getattr(self, name)) for name in _ARRAYS}
        types = {name: getattr(self, name).dtype.name for name in _ARRAYS}
        if len(sizes) != 1 or types != _ARRAYS:
            raise ValueError(
                f"its arrays have {sizes} entries and the dtypes {types}; they need equal lengths "
                f"and the dtypes {_ARRAYS}"
            )
        keys = self.row * 2**31 + self.column
        first, last = self.start * self.batch_size, self.stop * self.batch_size
        if len(keys) and not (
            (np.diff(keys) > 0).all() and first <= self.row[0] and self.row[-1] < last
        ):
            raise ValueError(f"its entries are unsorted or outside the rows {first}..{last - 1}")


_ARRAYS = {"row": "int64", "column": "int32", "old": "uint32", "new": "uint32"}


class OrderedDocuments(Protocol):
    """A dataset with training rows and with the documents from which the rows were cut."""

    @property
    def folder(self) -> Path: ...

    @property
    def config(self) -> DataConfig: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def tokens(self) -> MegatronIndexed: ...

    @property
    def order(self) -> RowOrder: ...

    @property
    def rows(self) -> Rows: ...

    @property
    def eod_id(self) -> int: ...

    @property
    def manifest(self) -> dict[str, Any]: ...

    def in_domains(
        self, positions: NDArray[np.int64], domains: Sequence[str]
    ) -> NDArray[np.bool_]: ...

    def batch(self, step: int, batch_size: int) -> NDArray: ...


def make_ledger(
    data: OrderedDocuments, intervention: InterventionConfig, batch_size: int, chunk: int = 2048
) -> Ledger:
    """Make the ledger of an intervention, for a run with `batch_size` rows per update.

    The transforms (config.TRANSFORMS), each limited to documents of `intervention.domains`:

    - a swap of words: see pythia_core.data.pronouns.
    - "shuffle_genders": the words "he" and "she" of the window are permuted among their places,
      as are "his" and "her", and "himself" and "herself". Every word stays as frequent as it was,
      but its gender no longer depends on the text around it. A place that is read twice in the
      window gets the same word both times.
    - "replace_text": documents are replaced by as many tokens of other domains (never those in
      PLANTED_DOMAINS or CONTROL_DOMAINS) from the last rows of the order, after the window. A run
      that reads all rows reads those tokens twice. Ends of documents stay where they are.

    Raises:
        DataError: there are too few rows, the stored rows are not in the order `data.order`, there
            is too little text for "replace_text", or nothing would change.
    """
    first, last = intervention.start * batch_size, intervention.stop * batch_size
    if last > data.rows.n_rows:
        data.batch(intervention.stop - 1, batch_size)  # its error names the last step
    transform, counts, unmapped = intervention.transform, Counter[str](), []
    if transform == REPLACE:
        changes = _replace_text(data, intervention, first, last, chunk)
    elif transform == SHUFFLE:
        changes, counts = _shuffle_genders(data, intervention, first, last, chunk)
    else:
        swap = WordSwap.from_tokenizer(data.tokenizer, transform)
        changes, counts = _find(data, swap, intervention, first, last, chunk)
        unmapped = [form for form in swap.unswappable if counts[form]]
    ledger = Ledger(
        *changes,
        transform,
        intervention.start,
        intervention.stop,
        batch_size,
        intervention.domains,
        n_tokens=(last - first) * (data.config.seq_len + 1),
        counts={form: counts[form] for form in sorted(counts)},
        unmapped={form: counts[form] for form in sorted(unmapped)},
    )
    if not len(ledger.row):
        where = f" in {', '.join(intervention.domains)}" if intervention.domains else ""
        raise DataError(
            f"the intervention {transform}{where} changes no token of the updates "
            f"{intervention.start}..{intervention.stop - 1}; choose a longer window, other "
            "domains, or text to which the transform applies"
        )
    return ledger


Found = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint32], NDArray[np.uint32]]
"""Rows, columns, old and new ids of tokens to change, sorted by row and column."""


def _windows(
    data: OrderedDocuments,
    domains: tuple[str, ...],
    first: int,
    last: int,
    context: int,
    chunk: int,
) -> Iterator[tuple[int, NDArray, NDArray[np.bool_]]]:
    """Yield the training rows [first, last) in chunks: first row, tokens, and a mask.

    The tokens are those of `RowOrder.gather`, with `context` on both sides. The mask is False
    outside the stream and outside `domains`.

    Raises:
        DataError: the stored rows are not in the order that their manifest describes.
    """
    for start in range(first, last, chunk):
        rows = np.arange(start, min(start + chunk, last))
        windows, valid = data.order.gather(data.tokens, rows, context, context)
        unchanged = data.rows.rows(start, start + len(rows))
        if not np.array_equal(windows[:, context : context + unchanged.shape[1]], unchanged):
            raise DataError(
                f"the rows in {data.folder} are not in the order that their manifest describes; "
                "delete this folder and run again"
            )
        if domains:
            stream, _ = data.order.stream(rows, context, context)
            valid &= data.in_domains(data.order.positions(stream), domains)
        yield start, windows, valid


def _find(
    data: OrderedDocuments,
    swap: WordSwap,
    intervention: InterventionConfig,
    first: int,
    last: int,
    chunk: int,
) -> tuple[Found, Counter[str]]:
    """Return what a swap changes in the rows [first, last), and the counts of its spellings."""
    counts: Counter[str] = Counter()
    parts: list[tuple[NDArray, ...]] = []
    context = swap.context
    for start, windows, valid in _windows(data, intervention.domains, first, last, context, chunk):
        row, *others, occurrences = swap.find(windows, valid, context, context)
        parts.append((row + start, *others))
        counts += occurrences
    row, column, old, new = (np.concatenate(part) for part in zip(*parts, strict=True))
    return (row, column, old, new), counts


def _shuffle_genders(
    data: OrderedDocuments, intervention: InterventionConfig, first: int, last: int, chunk: int
) -> tuple[Found, Counter[str]]:
    """Return the changes of "shuffle_genders" in the rows [first, last), and counts of spellings.

    The permutations depend on the seed of the order and on the first row.
    """
    changes_of_swaps, counts = [], Counter[str]()
    for words in (GENDERED, {feminine: masculine for masculine, feminine in GENDERED.items()}):
        swap = WordSwap.of_words(data.tokenizer, words, one_change=True)
        changes, of_swap = _find(data, swap, intervention, first, last, chunk)
        changes_of_swaps.append(changes)
        counts += of_swap
    row, column, old, new = (np.concatenate(part) for part in zip(*changes_of_swaps, strict=True))
    place = data.order.places(row, column)
    pair = np.minimum(old, new).astype(np.int64) << 32 | np.maximum(old, new)
    rng = np.random.default_rng([data.order.seed, first])
    changed = np.zeros(len(row), bool)
    for each in np.unique(pair):
        (members,) = np.nonzero(pair == each)
        _, index, inverse = np.unique(place[members], return_index=True, return_inverse=True)
        ids = old[members][index]
        changed[members] = (ids != rng.permutation(ids))[inverse]
    order = np.lexsort((column, row))
    chosen = order[changed[order]]
    return (row[chosen], column[chosen], old[chosen], new[chosen]), counts


def _replace_text(
    data: OrderedDocuments, intervention: InterventionConfig, first: int, last: int, chunk: int
) -> Found:
    """Return the changes of "replace_text" in the rows [first, last).

    The n-th place to change in the stream of documents gets the n-th token of the other text, so
    that neighbors stay neighbors, and a place that is read twice gets the same token both times.
    """
    parts = []
    for start, windows, valid in _windows(data, intervention.domains, first, last, 0, chunk):
        row, column = np.nonzero(valid & (windows != data.eod_id))
        stream, _ = data.order.stream(np.arange(start, start + len(windows)))
        parts.append((row + start, column, windows[row, column], stream[row, column]))
    row, column, old, place = (np.concatenate(part) for part in zip(*parts, strict=True))
    places, index = np.unique(place, return_inverse=True)
    new = _other_text(data, intervention.domains, len(places), last, chunk)[index]
    kept = new != old
    types = (np.int64, np.int32, np.uint32, np.uint32)
    arrays = (part[kept].astype(t) for part, t in zip((row, column, old, new), types, strict=True))
    row, column, old, new = arrays
    return row, column, old, new


def _other_text(
    data: OrderedDocuments, replaced: tuple[str, ...], n_tokens: int, last: int, chunk: int
) -> NDArray:
    """Return the order's last `n_tokens` tokens outside planted, control and `replaced` domains.

    Raises:
        DataError: there are too few such tokens in the rows from `last` on.
    """
    names = dict.fromkeys(name for name, _ in data.manifest["tokens"]["train"]["domains"])
    excluded = (*PLANTED_DOMAINS, *CONTROL_DOMAINS, *replaced)
    domains = tuple(name for name in names if name not in excluded)
    pieces: list[NDArray] = []
    n_found, stop = 0, data.rows.n_rows
    while n_found < n_tokens and stop > last and domains:
        start = max(stop - chunk, last)
        (_, rows, valid), *_ = _windows(data, domains, start, stop, 0, chunk)
        pieces.insert(0, rows[:, :-1][valid[:, :-1]])  # the last token is the next row's first
        n_found, stop = n_found + len(pieces[0]), start
    if n_found < n_tokens:
        raise DataError(
            f"replace_text needs {n_tokens} tokens of other text, but the rows after the window "
            f"have only {n_found}; use more text, more epochs or a shorter window"
        )
    return np.concatenate(pieces)[-n_tokens:] if n_tokens else np.zeros(0, data.tokens.dtype)
