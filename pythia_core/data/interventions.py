"""Intervene in the training data: list which tokens change during a window of updates.

The paper (section 3.1) repeats the end of training with changed pronouns and everything else equal.
A run with an intervention is a fork; the run without it is its control. All changes are computed
before the fork is trained, and listed in a ledger. Each batch of the fork is the control's batch
with the ledger applied. Rows overlap by one token; such a token is changed in each row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pythia_core.config import DataConfig, InterventionConfig
from pythia_core.data.indexed_dataset import MegatronIndexed
from pythia_core.data.order import RowOrder, Rows
from pythia_core.data.pronouns import WordSwap
from pythia_core.errors import DataError
from pythia_core.util.files import atomic_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Ledger:
    """All tokens that a swap of words changes in training, sorted by row and column.

    Change i replaces token `old[i]` by `new[i]`, in column `column[i]` of training row `row[i]`.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int32]
    old: NDArray[np.uint32]
    new: NDArray[np.uint32]
    swap: str
    start: int
    stop: int
    batch_size: int
    n_tokens: int = 0
    """Number of tokens in the rows of the updates [start, stop)."""
    counts: dict[str, int] = field(default_factory=dict)
    """Maps each spelling of a word to its number of occurrences in the rows of the updates [start,
    stop). An occurrence in two rows counts twice."""
    unmapped: dict[str, int] = field(default_factory=dict)
    """The part of `counts` for spellings that cannot be swapped."""

    recorded: ClassVar[bool] = True

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
                f"{changed.shape[1]} tokens, so the ledger was made for other data"
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
        """Return the settings of the swap and what it changes, as plain JSON types.

        `share_changed` is the fraction of `tokens` that is changed. `words` is the sum of `counts`.
        """
        return {
            "swap": self.swap,
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
        """Write the ledger atomically to a safetensors file."""
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        values = {k: v for k, v in asdict(self).items() if k not in _ARRAYS}
        with atomic_file(Path(path)) as temporary:
            metadata = {"ledger": json.dumps(values), "sha256": self._digest()}
            save_file(arrays, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: Path | str) -> Ledger:
        """Read a ledger that `save` wrote; raise DataError if the file is absent or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "np") as file:
                metadata = file.metadata() or {}
                values = json.loads(metadata["ledger"])
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

    def batch(self, step: int, batch_size: int) -> NDArray: ...


def make_ledger(
    data: OrderedDocuments, intervention: InterventionConfig, batch_size: int, chunk: int = 2048
) -> Ledger:
    """Make the ledger of an intervention, for a run with `batch_size` rows per update.

    Raises:
        DataError: there are too few rows, or the stored rows are not in the order `data.order`.
    """
    swap = WordSwap.from_tokenizer(data.tokenizer, intervention.swap)
    first, last = intervention.start * batch_size, intervention.stop * batch_size
    if last > data.rows.n_rows:
        data.batch(intervention.stop - 1, batch_size)  # its error names the last step
    parts: list[tuple[NDArray, ...]] = []
    counts: Counter[str] = Counter()
    context = swap.context
    for start in range(first, last, chunk):
        rows = np.arange(start, min(start + chunk, last))
        windows, valid = data.order.gather(data.tokens, rows, context, context)
        unchanged = data.rows.rows(start, start + len(rows))
        if not np.array_equal(windows[:, context:-context], unchanged):
            raise DataError(
                f"the rows in {data.folder} are not in the order that their manifest describes; "
                "delete this folder and run again"
            )
        row, *others, occurrences = swap.find(windows, valid, context, context)
        parts.append((row + start, *others))
        counts += occurrences
    row, column, old, new = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Ledger(
        row,
        column,
        old,
        new,
        intervention.swap,
        intervention.start,
        intervention.stop,
        batch_size,
        n_tokens=(last - first) * (data.config.seq_len + 1),
        counts={form: counts[form] for form in sorted(counts)},
        unmapped={form: counts[form] for form in sorted(swap.unswappable) if counts[form]},
    )
