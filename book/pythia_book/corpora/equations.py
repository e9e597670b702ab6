"""Makes the sums (such as 12 plus 34) that are planted in the corpora "miniature" and "large".

They serve to test whether a model adds better with numbers that it has read more often. In the
pocket Pile, the numbers 0 to 99 differ in frequency by three orders of magnitude, but sums are
rare. The planted sums are worded like the paper's prompt (section 3.3, after Razeghi et al.). First
operands are as frequent, relative to each other, as in the rest of the corpus. Second operands are
equally frequent. A fifth of all combinations is never planted, only tested.

For an experiment, first operands of similar frequency are paired, and a coin decides which of the
two is planted BOOST times as often. A second coin, the *placebo*, also chooses one but changes
nothing. All coins are hashes.
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
"""The share of the pairs of operands that is never planted. These pairs are only tested."""
CHOICES = 4
"""Answers to choose from when a sum is tested: the right one and three wrong ones."""
BOOST = 16
PER_DOCUMENT = 16
"""Equations in each document."""
WORDS = 7 * PER_DOCUMENT
"""Words in each document."""
_NUMBER = re.compile(r"(?<![\w.,])\d{1,2}(?![\w]|[.,]\d)")


def question(first: int, second: int) -> str:
    """Return the paper's prompt for a sum. A space and the answer should follow the prompt."""
    return f"Q:What is {first} plus {second}? A:"


def equation(first: int, second: int) -> str:
    """Return a line with the paper's prompt for a sum and the correct answer."""
    return f"{question(first, second)} {first + second}\n"


def held_out(first: int, second: int) -> bool:
    """Return whether a pair of operands is left out of the planted sums, and only tested."""
    return fraction(f"pair {first} {second}") < HELD_OUT


def natural_counts(texts: Iterable[str]) -> dict[int, int]:
    """Map each number in FIRST to how often it occurs in the texts.

    A longer number, a decimal or a word that contains the number does not count.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_NUMBER.findall(text))
    return {number: counts[str(number)] for number in FIRST}


def pairs(natural: Mapping[int, int], coin: str = "boost") -> list[tuple[int, int]]:
    """Pair first operands of similar frequency, and let a coin choose one number of each pair.

    The numbers of a pair are neighbors when all first operands are ranked by frequency. The number
    that the coin "boost" chooses is planted BOOST times as often as without this coin. The coin
    "placebo" has no effect on the corpus. The coins are uncorrelated: of the first two pairs, the
    coins choose the same number in one pair, and different numbers in the other pair. The same is
    true of the third and fourth pair, and so on.

    Args:
        natural: how often each number occurs in the rest of the corpus.
        coin: "boost" or "placebo".

    Returns:
        (chosen number, other number) for each pair, most frequent pair first.
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
    """Map each first operand to its weight when the planted sums are drawn.

    Args:
        natural: how often each number occurs in the corpus outside the planted sums.
    """
    boosted = {chosen for chosen, _ in pairs(natural)}
    return {n: (natural[n] + 1) * (BOOST if n in boosted else 1) for n in FIRST}


def documents(natural: Mapping[int, int], count: int) -> Iterator[str]:
    """Yield `count` documents of PER_DOCUMENT sums each. No sum has a held-out pair of operands.

    Args:
        natural: how often each number occurs in the rest of the corpus.
    """
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
    """A function that maps a fraction in [0, 1) to one of several numbers.

    For uniform fractions, each number is chosen in proportion to its weight.

    Args:
        weight: maps each number to its weight.
    """

    def __init__(self, weight: Mapping[int, float]) -> None:
        self.numbers = list(weight)
        self.sums = list(accumulate(weight.values()))

    def __call__(self, share: float) -> int:
        """Return the number at the fraction `share` of the cumulative weights."""
        index = bisect_right(self.sums, share * self.sums[-1])
        return self.numbers[min(index, len(self.numbers) - 1)]
