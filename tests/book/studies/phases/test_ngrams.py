"""Counts of n-grams and their predictions equal brute force."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from markov_text import V, text
from pythia_book.studies.phases.ngrams import ORDERS, STRENGTHS, Ngrams, windows

from pythia_core.errors import DataError


def test_counts_and_probabilities_equal_brute_force() -> None:
    rows = text()
    ngrams = Ngrams.count(rows, V)._with(2, 0.5)._with(3, 3.0)
    lists = rows.tolist()
    one = Counter(w for row in lists for w in row[1:])
    two = Counter(pair for row in lists for pair in pairwise(row))
    three = Counter(t for row in lists for t in zip(row, row[1:], row[2:], strict=False))
    assert ngrams.unigrams.tolist() == [one[w] for w in range(V)]
    assert [len(keys) for keys in ngrams.keys] == [len(two), len(three)]

    def by_hand(order: int, u: int, v: int, w: int) -> float:
        if order == 1:
            return (one[w] + 1) / (sum(one.values()) + V)
        counts, context, a = (two, (v,), 0.5) if order == 2 else (three, (u, v), 3.0)
        total = sum(counts[(*context, x)] for x in range(V))
        return (counts[(*context, w)] + a * by_hand(order - 1, u, v, w)) / (total + a)

    contexts = np.array([(u, v) for u in range(V) for v in range(V)])
    for order in ORDERS:
        dense = ngrams.distribution(order, contexts)
        np.testing.assert_allclose(dense.sum(1), 1)
        expected = [[by_hand(order, u, v, w) for w in range(V)] for u, v in contexts.tolist()]
        np.testing.assert_allclose(dense, expected)
        some = np.arange(len(contexts)) % V
        picked = ngrams.probability(order, contexts, some)
        np.testing.assert_allclose(picked, dense[np.arange(len(some)), some])


def test_higher_orders_predict_a_text_that_has_them_better() -> None:
    ngrams = Ngrams.count(text(400), V).tuned(text(20, seed=1))
    contexts, targets = windows(text(20, seed=2), np.arange(1, 24))
    losses = [-np.log(ngrams.probability(n, contexts, targets)).mean() for n in ORDERS]
    assert losses[0] > losses[1] > losses[2]
    assert ngrams.strengths[1] < max(STRENGTHS)
    noise = np.random.default_rng(0).integers(V, size=(400, 25))
    worthless = Ngrams.count(noise, V).tuned(np.random.default_rng(1).integers(V, size=(20, 25)))
    assert worthless.strengths[1] > 50 * ngrams.strengths[1]  # backs off at once


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (np.zeros((3, 2), int), "3 tokens"),
        (np.full((3, 9), V), f"within 0..{V - 1}"),
        (np.zeros((0, 9), int), "3 tokens"),
    ],
)
def test_rows_that_cannot_be_counted_are_refused(rows: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Ngrams.count(rows, V)
