"""Random strings that are planted in the miniature a known number of times.

A canary cannot be predicted. So a model that prefers it to a string that was never planted has
memorized it (Carlini et al. 2019, "The Secret Sharer"). If a canary is planted once, one known
update reads it (pythia_book.search finds the update). So a study can ask how memory depends on when
a text was read, and how often.

A canary is N_WORDS words of random syllables. Every document has PER_DOCUMENT different canaries in
random order, so that deduplication removes none.
"""

from __future__ import annotations

from collections.abc import Iterator

from pythia_core.util.files import fraction

TIMES = {1: 0.36, 2: 0.16, 4: 0.16, 8: 0.16, 16: 0.16}
"""Maps n to the share of the canary lines that belong to canaries with n copies."""
N_WORDS = 16
"""Words in a canary, each of two syllables."""
PER_DOCUMENT = 4
"""Canaries in each document, one per line."""
WORDS = N_WORDS * PER_DOCUMENT
"""Words in each document."""
_SYLLABLES = [c + v for c in "bdfghjklmnprstvz" for v in "aeiou"]


def canary(name: str) -> str:
    """Return the canary with this name: N_WORDS random words."""
    words = []
    for word in range(N_WORDS):
        share = [fraction(f"canary {name} {word} {half}") for half in range(2)]
        words.append("".join(_SYLLABLES[int(s * len(_SYLLABLES))] for s in share))
    return " ".join(words)


def canary_counts(count: int) -> dict[str, int]:
    """Map each canary that `count` documents contain to its number of copies.

    The documents have about `count` * PER_DOCUMENT lines. TIMES divides the lines among canaries.
    """
    result = {}
    for times, share in TIMES.items():
        for number in range(round(count * PER_DOCUMENT * share / times)):
            result[canary(f"{times} {number}")] = times
    return result


def documents(count: int) -> Iterator[str]:
    """Yield about `count` documents. Each has about PER_DOCUMENT canaries, all different."""
    times = canary_counts(count)
    n_documents = max(-(-sum(times.values()) // PER_DOCUMENT), max(times.values(), default=0))
    contents: list[list[str]] = [[] for _ in range(n_documents)]
    for text, n in sorted(times.items(), key=lambda item: -item[1]):
        places = {number: fraction(f"{text} in {number}") for number in range(n_documents)}
        # the emptiest documents, and among these random ones
        for number in sorted(places, key=lambda at: (len(contents[at]), places[at]))[:n]:
            contents[number].append(text)
    for number, document in enumerate(contents):
        lines = sorted(document, key=lambda text, at=number: fraction(f"line of {text} in {at}"))
        yield "".join(f"{text}\n" for text in lines)
