"""Counts n-grams up to order 3, and predicts tokens from these counts.

The unigrams p_1 have add-one smoothing. Order n backs off to order n - 1 with a strength a_n that
is chosen on held-out rows:

    p_n(w) = (c(context, w) + a_n p_{n-1}(w)) / (c(context) + a_n)

Here c(x) is how often x occurs, and the context is the n - 1 tokens before w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pythia_core.errors import DataError

ORDERS = (1, 2, 3)
STRENGTHS = tuple(2.0**k for k in range(-4, 13))
"""Candidates for the back-off strengths."""


@dataclass(frozen=True)
class Ngrams:
    """Counts of unigrams, bigrams and trigrams, with the back-off strengths a_2 and a_3."""

    vocab_size: int
    unigrams: np.ndarray
    """int64[V]: how often each token occurs."""
    keys: tuple[np.ndarray, np.ndarray]
    """For orders 2 and 3: the n-grams that occur, as numbers in base V, ascending."""
    counts: tuple[np.ndarray, np.ndarray]
    """How often each n-gram in `keys` occurs."""
    strengths: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def count(cls, rows: np.ndarray, vocab_size: int) -> Ngrams:
        """Count the n-grams in rows of ids, int[n, S+1].

        The first id of a row does not count as a unigram.

        Raises:
            DataError: rows have fewer than three tokens, or an id is outside the vocabulary.
        """
        rows = np.asarray(rows).astype(np.int64)
        if rows.ndim != 2 or rows.shape[1] < 3 or not len(rows):
            raise DataError(
                "rows must be a matrix with at least one row of at least three tokens, got shape "
                f"{rows.shape}"
            )
        if rows.min() < 0 or rows.max() >= vocab_size:
            raise DataError(
                f"token ids {rows.min()}..{rows.max()} are not within 0..{vocab_size - 1}"
            )
        pairs = rows[:, :-1] * vocab_size + rows[:, 1:]
        triples = pairs[:, :-1] * vocab_size + rows[:, 2:]
        both = [np.unique(each, return_counts=True) for each in (pairs, triples)]
        keys, counts = zip(*both, strict=True)
        return cls(vocab_size, np.bincount(rows[:, 1:].ravel(), minlength=vocab_size), keys, counts)

    def tuned(self, rows: np.ndarray) -> Ngrams:
        """Return a copy with the back-off strengths that best predict `rows`, int[n, S+1]."""
        rows = np.asarray(rows).astype(np.int64)
        contexts, targets = windows(rows, np.arange(1, rows.shape[1] - 1))
        best = self
        for order in (2, 3):
            candidates = [best._with(order, a) for a in STRENGTHS]
            losses = [-np.log(t.probability(order, contexts, targets)).mean() for t in candidates]
            best = candidates[int(np.argmin(losses))]
        return best

    def _with(self, order: int, strength: float) -> Ngrams:
        """Return a copy with another back-off strength for order 2 or 3."""
        changed = list(self.strengths)
        changed[order - 2] = strength
        return replace(self, strengths=tuple(changed))

    @cached_property
    def _first(self) -> np.ndarray:
        """The probabilities p_1 of all tokens, float64[V]."""
        return (self.unigrams + 1) / (self.unigrams.sum() + self.vocab_size)

    def probability(self, order: int, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the probability of each target by n-grams up to `order`, float64[n].

        Args:
            contexts: int[n, 2], the two tokens before each target.
        """
        p = self._first[targets]
        for n in range(2, order + 1):
            keys, counts, a = self.keys[n - 2], self.counts[n - 2], self.strengths[n - 2]
            low, high = self._range(n, contexts)
            wanted = self._number(n, contexts) * self.vocab_size + targets
            index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            hits = np.where(keys[index] == wanted, counts[index], 0)
            total = self._totals(n)
            p = (hits + a * p) / (total[high] - total[low] + a)
        return p

    def distribution(self, order: int, contexts: np.ndarray) -> np.ndarray:
        """Return the probability of each token after `contexts`, int[n, 2]: float64[n, V]."""
        p = np.tile(self._first, (len(contexts), 1))
        for n in range(2, order + 1):
            keys, counts, a = self.keys[n - 2], self.counts[n - 2], self.strengths[n - 2]
            p *= a
            for row, low, high in zip(p, *self._range(n, contexts), strict=True):
                row[keys[low:high] % self.vocab_size] += counts[low:high]
            p /= p.sum(1, keepdims=True)
        return p

    def _number(self, order: int, contexts: np.ndarray) -> np.ndarray:
        """Encode the last `order` - 1 tokens of each context as one number in base `vocab_size`."""
        last = contexts[:, 1].astype(np.int64)
        return last if order == 2 else contexts[:, 0].astype(np.int64) * self.vocab_size + last

    def _range(self, order: int, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the n-grams that begin with each context start and stop in `keys`."""
        begin = self._number(order, contexts) * self.vocab_size
        keys = self.keys[order - 2]
        return np.searchsorted(keys, begin), np.searchsorted(keys, begin + self.vocab_size)

    def _totals(self, order: int) -> np.ndarray:
        """Return the cumulative counts of the n-grams of one order, starting with 0."""
        return np.concatenate([[0], np.cumsum(self.counts[order - 2])])


def windows(rows: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut contexts of two tokens out of rows, with the token that follows each context.

    Args:
        positions: int[p], the last token of each context, from 1 to S - 1.

    Returns:
        The contexts, int[n * p, 2], and the following tokens, int[n * p].
    """
    contexts = np.stack([rows[:, positions - 1], rows[:, positions]], -1).reshape(-1, 2)
    return contexts, rows[:, positions + 1].ravel()
