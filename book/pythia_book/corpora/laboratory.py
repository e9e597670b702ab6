"""A made-up language in which copying from the context pays, for the study of phases.

The corpus "laboratory" has two domains. A document of either is LENGTH syllables long:

grammar: a Markov chain of second order with fixed transitions. Each syllable belongs to one of ten
    classes. The next class depends on the last two classes, and the syllable within this class on
    the last syllable. So bigrams predict better than unigrams, and trigrams better than bigrams.
repeats: a new random sequence of 4 to 8 different syllables, repeated. Only what was read in the
    document itself predicts it, so n-grams do not help, but induction does.

All random numbers come from `RandomState`, whose streams numpy keeps unchanged between versions.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
LENGTH = 32
"""Syllables per document."""
PERIODS = range(4, 9)
"""Lengths of the sequences that documents of the domain "repeats" repeat."""
DOCUMENTS = 37_500
"""Documents in each domain: enough for 572 updates of 64 rows of 64 tokens."""
N_CLASSES = 10
SEEDS = {"grammar": 1, "repeats": 2}
"""Maps each domain to the seed of its documents in the corpus."""


def texts(domains: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) for each document of the corpus."""
    for domain in SEEDS:
        if domain in domains:
            for document in documents(domain, DOCUMENTS, SEEDS[domain]):
                yield domain, as_text(document)


def as_text(document: np.ndarray) -> str:
    """Write the syllables int[n] as text, with a space before each."""
    return "".join(f" {SYLLABLES[i]}" for i in document)


def documents(domain: str, n: int, seed: int) -> np.ndarray:
    """Draw documents of a domain, int[n, LENGTH], as indices into SYLLABLES."""
    random = np.random.RandomState(seed)
    return {"grammar": _grammar, "repeats": _repeats}[domain](n, random)


def _grammar(n: int, random: np.random.RandomState) -> np.ndarray:
    """Draw documents of the Markov chain, int[n, LENGTH]."""
    next_class, next_member = _transitions()
    drawn = random.random_sample((LENGTH, 2, n))
    out = np.empty((n, LENGTH), np.int64)
    out[:, :2] = (drawn[:2, 0].T * len(SYLLABLES)).astype(np.int64)
    for t in range(2, LENGTH):
        before, last = out[:, t - 2], out[:, t - 1]
        chosen = _draw(next_class[before % N_CLASSES, last % N_CLASSES], drawn[t, 0])
        member = _draw(next_member[last, chosen], drawn[t, 1])
        out[:, t] = member * N_CLASSES + chosen
    return out


@cache
def _transitions() -> tuple[np.ndarray, np.ndarray]:
    """Return the cumulative probabilities of the next class and of its members.

    The first array, [class, class, class], depends on the last two classes; the second, [syllable,
    class, member], on the last syllable and the next class. Syllable i is member i // N_CLASSES of
    the class i % N_CLASSES.
    """
    random = np.random.RandomState(0)
    of_class = random.dirichlet(np.full(N_CLASSES, 0.15), (N_CLASSES, N_CLASSES))
    n_members = len(SYLLABLES) // N_CLASSES
    of_member = random.dirichlet(np.full(n_members, 0.3), (len(SYLLABLES), N_CLASSES))
    return of_class.cumsum(-1), of_member.cumsum(-1)


def _draw(cumulative: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draw an index from each row of cumulative probabilities [n, k], given uniform numbers [n]."""
    return np.minimum((uniform[:, None] > cumulative).sum(1), cumulative.shape[1] - 1)


def _repeats(n: int, random: np.random.RandomState) -> np.ndarray:
    """Draw documents that repeat a random sequence, int[n, LENGTH]."""
    periods = random.randint(PERIODS.start, PERIODS.stop, n)
    sequences = random.random_sample((n, len(SYLLABLES))).argsort(1)  # no syllable twice
    return np.take_along_axis(sequences, np.arange(LENGTH) % periods[:, None], 1)
