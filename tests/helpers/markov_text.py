"""Token rows whose n-grams matter."""

from __future__ import annotations

import numpy as np

V = 12


def text(n: int = 60, length: int = 24, seed: int = 0) -> np.ndarray:
    """Return rows of tokens from a Markov chain of order two, int[n, length + 1].

    After each pair of tokens, few tokens are likely. All calls use the same chain.

    Args:
        n: number of rows. seed: seed of the rows.
    """
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(99).dirichlet(np.full(V, 0.2), (V, V))
    rows = rng.integers(V, size=(n, length + 1))
    for t in range(2, length + 1):
        for row in rows:
            row[t] = rng.choice(V, p=table[row[t - 2], row[t - 1]])
    return rows
