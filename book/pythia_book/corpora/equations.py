"""Sums planted in the miniature and large corpora; how often a number occurs is randomised.

Whether a model adds better with numbers that it has read more often can only be tested on a corpus
with numbers and sums. In the pocket Pile, the numbers 0 to 99 differ in frequency by three orders
of magnitude, but sums are rare. So sums are planted, worded like the paper's prompt (section 3.3,
after Razeghi et al.). The relative frequencies of their first operands are those of the surrounding
text; their second operands are equally frequent. One exception turns a correlation into an
experiment: numbers of similar frequency are paired, a coin decides which of each pair becomes
BOOST times as frequent among the sums, and a second coin, the *placebo*, changes nothing. A fifth
of all pairs of operands is never planted.

Everything follows from hashes, as in pythia_book.corpora.miniature. The models are tested by
pythia_book.studies.term_frequency.arithmetic.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from pythia_core.util.files import fraction

FIRST = range(100)
"""First operands, as in the paper."""
SECOND = range(1, 51)
"""Second operands, as in the paper."""
HELD_OUT = 0.2
"""Share of the pairs of operands that are reserved for tests."""
BOOST = 16
PER_DOCUMENT = 16
"""Equations per document."""
WORDS = 6 * PER_DOCUMENT
"""Words per document."""
_NUMBER = re.compile(r"(?<![\w.,])\d{1,2}(?![\w]|[.,]\d)")


def question(first: int, second: int) -> str:
    """The paper's prompt; the answer follows after a space."""
    return f"Q:What is {first} plus {second}? A:"


def equation(first: int, second: int) -> str:
    return f"{question(first, second)} {first + second}\n"


def held_out(first: int, second: int) -> bool:
    """Whether this pair of operands is never planted."""
    return fraction(f"pair {first} {second}") < HELD_OUT


def natural_counts(texts: Iterable[str]) -> dict[int, int]:
    """How often each first operand occurs in the texts as a separate number."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_NUMBER.findall(text))
    return {number: counts[str(number)] for number in FIRST}


def pairs(natural: Mapping[int, int], coin: str = "boost") -> list[tuple[int, int]]:
    """(chosen, other) for each pair of numbers of adjacent frequency rank, most frequent first.

    `coin` is "boost" or "placebo". In one of every two pairs, chosen at random, the placebo agrees
    with the boost, and in the other it does not; so the two are uncorrelated.
    """
    ranked = sorted(FIRST, key=lambda number: (-natural[number], number))
    couples = list(zip(ranked[::2], ranked[1::2], strict=True))
    result = []
    for index, (one, two) in enumerate(couples):
        heads = fraction(f"boost {one} {two}") < 0.5
        if coin == "placebo":
            first_agrees = fraction(f"placebo {couples[index - index % 2]}") < 0.5
            heads = heads == (first_agrees == (index % 2 == 0))
        result.append((one, two) if heads else (two, one))
    return result


def weights(natural: Mapping[int, int]) -> dict[int, float]:
    """Relative frequency of each first operand in the equations."""
    boosted = {chosen for chosen, _ in pairs(natural)}
    return {n: (natural[n] + 1) * (BOOST if n in boosted else 1) for n in FIRST}


def documents(natural: Mapping[int, int], count: int) -> Iterator[str]:
    """Yield `count` documents of PER_DOCUMENT equations, none with a held-out pair."""
    first = _WeightedChoice(weights(natural))
    for number in range(count):
        lines = []
        for line in range(PER_DOCUMENT):
            for attempt in range(1000):
                salt = f"equation {number} {line} {attempt} "
                x1 = first(fraction(salt + "first"))
                x2 = SECOND[int(fraction(salt + "second") * len(SECOND))]
                if not held_out(x1, x2):
                    break
            lines.append(equation(x1, x2))
        yield "".join(lines)


class _WeightedChoice:
    """Maps a fraction in [0, 1) to a number, in proportion to the weights."""

    def __init__(self, weight: Mapping[int, float]) -> None:
        self.numbers = list(weight)
        self.sums = list(accumulate(weight.values()))

    def __call__(self, share: float) -> int:
        index = bisect_right(self.sums, share * self.sums[-1])
        return self.numbers[min(index, len(self.numbers) - 1)]
