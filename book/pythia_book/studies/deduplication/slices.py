"""Selects held-out text with its copies, and text by how often a model read it.

Held-out documents are never copied, so they look like text of the deduplicated corpus, and no model
has read them. A random slice of the *standard* corpus would be different: if one of k copies of a
document is held out, the other k - 1 stay in the training text. Independent hashes decide whether a
document is held out and how often it is copied. So such a document can be replaced by one that
occurs k - 1 times in the training text or, for k = 1, by a held-out document.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.corpora import miniature
from pythia_book.measurements import N_ROWS, Arrays, LanguageMeasurement
from pythia_core.config import stable_hash
from pythia_core.evaluation import memorization, scoring

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData

GROUPS = {"once": (1, 1), "twice": (2, 2), "more": (3, np.inf)}
"""Maps each group of documents to how often they occur in the standard text: from, to."""
SHARED = 32
"""A row shares text with the training text if they have this many consecutive tokens in common."""


@dataclass(frozen=True)
class Slices:
    """Rows of text by how often it occurs in the standard training text, and shares of that text.

    Attributes:
        rows: for each group, int64[n, S + 1]. A group whose documents do not fill a row is absent.
        shares: the share of each group in the standard text, counting every copy.
        slice_shares: the composition of a random slice of the standard text that is held out, by
            how often a document still occurs in the training text: "unread" (never), or a group.

    Shares count tokens of natural documents (planted ones are never held out). Absent groups are
    left out.
    """

    rows: dict[str, np.ndarray]
    shares: dict[str, float]
    slice_shares: dict[str, float]


def read_slices(standard: PreparedData, deduplicated: PreparedData) -> Slices:
    """Find the natural documents of two twins' texts, and group them by how often they occur."""
    documents, times = natural_documents(standard, deduplicated)
    tokens = np.array([len(ids) for ids in documents])
    copies = tokens * times
    rows, shares, slice_shares = {}, {}, {"unread": float(tokens[times == 1].sum())}
    for group, (low, high) in GROUPS.items():
        members = np.flatnonzero((times >= low) & (times <= high))
        if tokens[members].sum() <= standard.config.seq_len:
            continue
        stream = np.concatenate([documents[i] for i in members])
        rows[group] = scoring.sample_windows(stream, standard.config.seq_len, N_ROWS)
        shares[group] = float(copies[members].sum())
        slice_shares[group] = float(copies[(times - 1 >= low) & (times - 1 <= high)].sum())
    return Slices(rows, _normalized(shares), _normalized(slice_shares))


def heldout_once(data: PreparedData) -> LanguageMeasurement:
    """Return the measurement on held-out documents, in which equal documents count once.

    The corpus itself contains some documents several times, and equal documents are held out
    together because their hashes are equal. The deduplicated corpus has each of them once.
    """
    everything = (data.heldout.document(i) for i in range(data.heldout.n_documents))
    different = {ids.tobytes(): ids for ids in everything}
    stream = np.concatenate([*different.values()])
    rows = scoring.sample_windows(stream, data.config.seq_len, N_ROWS)
    return LanguageMeasurement(rows, scoring.last_words(rows, data.tokenizer, data.eod_id))


def _normalized(sizes: dict[str, float]) -> dict[str, float]:
    """Divide sizes by their sum."""
    total = sum(sizes.values())
    return {name: size / total for name, size in sizes.items()}


def natural_documents(
    standard: PreparedData, deduplicated: PreparedData
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the deduplicated text's natural documents, and how often the standard text has them.

    Returns:
        The token ids of each document, and int64[documents]: the number of identical documents and
        of planted edited copies in the standard training text.
    """
    documents = [
        ids
        for ids, domain in zip(_documents(deduplicated), _domains(deduplicated), strict=True)
        if miniature.is_natural(domain)
    ]
    identical = Counter(ids.tobytes() for ids in _documents(standard))
    texts = deduplicated.tokenizer.decode_batch([ids[:-1].tolist() for ids in documents])
    times = [
        identical[ids.tobytes()] + sum(copy != text for copy in miniature.pile_copies_of(text))
        for ids, text in zip(documents, texts, strict=True)
    ]
    return documents, np.array(times, np.int64)


def _documents(data: PreparedData) -> list[np.ndarray]:
    """Return the token ids of each training document."""
    return [data.tokens.document(i) for i in range(data.tokens.n_documents)]


def _domains(data: PreparedData) -> list[str]:
    """Return the domain of each training document."""
    runs = data.manifest["tokens"]["train"]["domains"]
    return [domain for domain, n in runs for _ in range(n)]


def unshared(rows: np.ndarray, standard: PreparedData) -> np.ndarray:
    """Return which rows have no SHARED consecutive tokens from the standard text, bool[rows].

    The deduplicated text is a part of the standard text. Tokens in common across the end of a
    training row do not count.
    """
    training = standard.rows.rows(0, standard.rows.n_rows)
    windows = np.lib.stride_tricks.sliding_window_view(rows, SHARED, axis=1)
    counts = memorization.repetition_counts(training, windows.reshape(-1, SHARED))
    return ~(counts.reshape(len(rows), -1) > 0).any(1)


@dataclass(frozen=True)
class CopiesMeasurement:
    """A measurement of how well a checkpoint knows some rows of text. Arrays:

    `loss`: float64[rows], mean loss of each row in nats per token
    `recited`: bool[rows], whether greedy decoding from the first `context` tokens of a row gives
        its next `context` tokens
    """

    rows: np.ndarray
    """int64[n, S + 1], token ids."""
    context: int
    name: str = "copies"

    @cached_property
    def digest(self) -> str:
        """A hash of the rows and the method."""
        versions = [scoring.VERSION, memorization.VERSION]
        return stable_hash([*versions, self.context, self.rows.tolist()])

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        """Return `loss` and `recited` of a model. The step is not used."""
        losses = scoring.score_rows(model, self.rows).losses
        recited = memorization.extract(model, self.rows, self.context, self.context).memorized
        return {"loss": losses, "recited": recited}
