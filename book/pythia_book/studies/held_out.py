"""How well a checkpoint models held-out text: loss by row, and last words predicted.

One measurement for every study that follows training, so that none of it is made twice. Held-out
documents are the same for all runs of a scale, whatever was taken out of their training text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.measurements import Arrays
from pythia_core.config import stable_hash
from pythia_core.evaluation import scoring as evaluate

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData

N_ROWS = 320
"""Held-out rows for the loss, spread evenly over the held-out stream."""
N_PASSAGE_ROWS = 960
"""Held-out rows in which a last word is looked for."""


@dataclass(frozen=True)
class LanguageMeasurement:
    """loss: nats a token, float64[rows]; last_word: greedy match, bool[passages]."""

    rows: np.ndarray
    passages: tuple[evaluate.Request, ...]
    max_seq_len: int
    name: str = "language"

    @classmethod
    def of(cls, data: PreparedData, max_seq_len: int) -> LanguageMeasurement:
        """On the held-out documents of prepared data."""
        tokens, seq_len = data.heldout.tokens, data.config.seq_len
        passages = evaluate.last_words(
            evaluate.stream_rows(tokens, seq_len, N_PASSAGE_ROWS), data.tokenizer, data.eod_id
        )
        return cls(evaluate.stream_rows(tokens, seq_len, N_ROWS), tuple(passages), max_seq_len)

    @cached_property
    def digest(self) -> str:
        passages = [(p.context, p.continuation) for p in self.passages]
        return stable_hash([evaluate.VERSION, self.max_seq_len, self.rows.tolist(), passages])

    def __call__(self, model: evaluate.Scorable, step: int) -> Arrays:
        found = {"loss": evaluate.row_losses(model, self.rows)}
        packed = evaluate.pack(self.passages, self.max_seq_len)
        return found | {"last_word": evaluate.score(model, packed).greedy}
