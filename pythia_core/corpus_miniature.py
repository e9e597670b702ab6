"""The Pile in miniature: a sample of the pocket Pile that is as repetitive as the Pile.

Near-deduplication took 38 % of the Pile's tokens (334 to 207 billion). The pocket Pile hardly
repeats itself, so that deduplicating it would show nothing. This corpus keeps its proportions:
documents are cut into pieces, a share of them chosen by the hash of their text is taken, natural
copies included (the encyclopedic domain has many), and some of them are *planted*: copied 2, 4, ...
128 times, each level with about the same number of words in all, as large text collections have few
texts with very many copies and many with two. Every fourth copy differs from its source in one word
of a hundred, as near-duplicates do. At the end come sums (pythia_core.equations), something to
compute with the numbers that the texts hold.

Everything follows from hashes of the text: no random state, the same on every machine. Held-out
documents (pythia_core.heldout: hash below 1 %) are never planted, nor is an edited copy or are sums
ever among them.
Not here: finding the duplicates again (pythia_core.dedup knows nothing of how they came about).
"""

from __future__ import annotations

from collections.abc import Iterator

from pythia_core import corpus, equations
from pythia_core.heldout import fraction

SHARE = 0.0855
"""Share of the pieces that are taken."""
PIECE = 4000
"""Characters after which a document is cut, at the end of a line."""
GUARD = 0.05
"""Hashes below this are never planted: far above any held-out share."""
LEVELS = (2, 4, 8, 16, 32, 64, 128)
"""Copies of a planted document, itself included."""
PLANTED_SHARE = 0.088
"""Words of the copies at one level, as a share of the words of all pieces taken."""
LENGTHS = (120, 500)
"""Words of a document that may be planted."""
EDIT_EVERY = 4
"""Every fourth copy is edited, in one word of every"""
EDIT_SPAN = 100
EQUATION_SHARE = 0.2
"""Words of the sums, as a share of the words of all pieces taken."""
EQUATIONS = "equations"
"""The domain of the sums."""


def texts(domains: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(domain, text) of every document, copies right behind their source."""
    chosen = taken(domains)
    copies = plan([text for _, text in chosen])
    for domain, text in chosen:
        yield domain, text
        for number in range(1, copies.pop(text, 1)):
            yield domain, edited(text, number) if number % EDIT_EVERY == 0 else text
    words = sum(text.count(" ") + 1 for _, text in chosen)
    natural = equations.natural_counts(text for _, text in chosen)
    for text in equations.documents(natural, round(EQUATION_SHARE * words / equations.WORDS)):
        if fraction(text) >= GUARD:  # held-out loss is about natural text
            yield EQUATIONS, text


def taken(domains: tuple[str, ...]) -> list[tuple[str, str]]:
    """(domain, text) of the pieces of the pocket Pile that are here, natural copies included."""
    return [
        (domain, piece)
        for domain, text in corpus.raw_texts(domains)
        for piece in pieces(text.replace("\r\n", "\n").replace("\r", "\n"))
        if fraction(piece) < SHARE and not piece.isspace()
    ]


def pieces(text: str) -> Iterator[str]:
    """The text cut at line ends into pieces of about PIECE characters; nothing is lost."""
    start = 0
    while len(text) - start > PIECE * 1.5:
        cut = text.find("\n", start + PIECE)
        if cut < 0:
            break
        yield text[start : cut + 1]
        start = cut + 1
    if start < len(text):
        yield text[start:]


def plan(taken: list[str]) -> dict[str, int]:
    """How often each planted text stands in the corpus in all; most copies first."""
    low, high = LENGTHS
    words = {text: text.count(" ") + 1 for text in taken}
    budget = PLANTED_SHARE * sum(text.count(" ") + 1 for text in taken)
    able = [t for t, n in words.items() if low <= n <= high and fraction(t) >= GUARD]
    able.sort(key=lambda text: fraction(text, b"plant"))
    copies: dict[str, int] = {}
    queue = iter(able)
    for level in reversed(LEVELS):
        spent = 0
        while spent < budget and (text := next(queue, None)) is not None:
            cost = (level - 1) * words[text]
            if copies and spent + cost > 1.5 * budget:  # a corpus too small for this level
                break
            copies[text] = level
            spent += cost
    return copies


def edited(text: str, number: int) -> str:
    """A near-duplicate: one word of every EDIT_SPAN exchanged for another word of the text."""
    words = text.split(" ")
    for nonce in range(1000):
        new = list(words)
        for start in range(0, len(words), EDIT_SPAN):
            span = min(EDIT_SPAN, len(words) - start)
            salt = f"edit {number} {nonce} {start} ".encode()
            new[start + int(fraction(text, salt) * span)] = words[
                int(fraction(text, b"by " + salt) * len(words))
            ]
        result = " ".join(new)
        if result != text and fraction(result) >= GUARD:
            return result
    return text  # a text of equal words: an exact copy
