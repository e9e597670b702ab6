"""Measures how far the largest model recites rows before its first error, with examples.

Rows that are never read show how far a model gets by guessing. Only the standard text is used.
Examples are chosen by rule (KINDS).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_core.config import stable_hash

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData
    from pythia_core.model import GPTNeoX

KINDS = (
    "recited, fewest readings",
    "recited, most readings",
    "near miss, read often",
    "near miss, read once",
    "typical, read once",
)
"""The kinds of examples, one of each: of the rows recited in full, those read least and most often;
of the others, those recited furthest, among rows read more than once and among rows read once; and
the median of the rows read once. Of rows read once, only those with text of their own count."""


@dataclass(frozen=True)
class RecitalMeasurement:
    """Measures how far a model recites rows, and what it writes after some of them.

    A call returns `recited` int16[n], the number of tokens recited before the first error, and
    `written` int64[k, l], what the model writes after the k rows of `example_rows`.
    """

    rows: np.ndarray
    """int[n, width]: the rows of a run, then rows that it never reads."""
    times: np.ndarray
    """int[n]: how often the run reads the continuation of each row."""
    own: np.ndarray
    """bool[n]: whether a row is natural text of its own (see `samples.own_text`)."""
    context: int
    continuation: int
    name: str = "recital"

    @cached_property
    def digest(self) -> str:
        """A hash of the rows, the lengths and the method."""
        arrays = (self.rows.astype(np.int64), self.times.astype(np.int64), self.own)
        hashes = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        return stable_hash([1, KINDS, self.rows.shape, self.context, self.continuation, *hashes])

    def __call__(self, model: GPTNeoX, step: int) -> dict[str, np.ndarray]:
        """Return the arrays. The step is not used."""
        from pythia_core.evaluation.generate import generate
        from pythia_core.evaluation.memorization import recited

        counts = recited(model, self.rows, self.context, self.continuation)
        shown = list(self.example_rows(counts).values())
        prompts = self.rows[shown, : self.context].astype(np.int64).tolist()
        written = np.array(generate(model, prompts, self.continuation), np.int64)
        return {"recited": counts.astype(np.int16), "written": written}

    def example_rows(self, recited: np.ndarray) -> dict[str, int]:
        """Choose one row for each of the KINDS that occurs; the first if several fit.

        `recited` has the number of tokens recited of each row, int[n].
        """
        whole = recited == self.continuation
        (full,) = np.nonzero(whole & (self.times > 0))
        (often,) = np.nonzero(~whole & (self.times > 1))
        (once,) = np.nonzero(~whole & (self.times == 1) & self.own)
        chosen = {}
        if len(full):
            chosen["recited, fewest readings"] = full[self.times[full].argmin()]
            chosen["recited, most readings"] = full[self.times[full].argmax()]
        if len(often):
            chosen["near miss, read often"] = often[recited[often].argmax()]
        if len(once):
            chosen["near miss, read once"] = once[recited[once].argmax()]
            ranked = once[np.argsort(recited[once], kind="stable")]
            chosen["typical, read once"] = ranked[len(once) // 2]
        return {kind: int(row) for kind, row in chosen.items()}


def examples(
    measurement: RecitalMeasurement, measured: dict[str, np.ndarray], data: PreparedData
) -> list[dict[str, Any]]:
    """Return the examples as text: `kind`, `times`, `recited`, `prompt`, `truth`, `written`."""
    recited, k = measured["recited"], measurement.context
    chosen = measurement.example_rows(recited)
    decode = data.tokenizer.decode
    texts = []
    for (kind, row), written in zip(chosen.items(), measured["written"], strict=True):
        ids = measurement.rows[row, : k + measurement.continuation].tolist()
        texts.append(
            {
                "kind": kind,
                "times": int(measurement.times[row]),
                "recited": int(recited[row]),
                "prompt": decode(ids[:k], skip_special_tokens=False),
                "truth": decode(ids[k:], skip_special_tokens=False),
                "written": decode(written.tolist(), skip_special_tokens=False),
            }
        )
    return texts
