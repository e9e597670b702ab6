"""The Pile in miniature, in two sizes: deduplication removes as large a share of it.

Near-deduplication removed 38 % of the Pile's tokens (334 to 207 billion). The pocket Pile hardly
repeats itself, so deduplicating it would show nothing. "miniature" is a sample of it, "large"
is all of it and more (pythia_book.corpora.large); both keep the Pile's proportions. Documents are
cut into pieces, and the hash of a piece decides whether it is sampled; natural copies (the
encyclopedic domain has many) are kept. Some of the pieces are *planted*: repeated until they occur
2, 4, ... 128 times. The copies at each of these levels have about the same number of words in
total, because in large collections many texts occur twice and few very often. Every fourth copy
differs from its source in one word out of a hundred, as near-duplicates do. The corpus ends with
sums for arithmetic tests (pythia_book.corpora.equations).

Everything follows from hashes of the text: no random state, the same on every machine. Held-out
documents (pythia_core.data.prepare: hash below 1 %) are never planted, and edited copies and sums
are never held out. pythia_core.data.dedup knows nothing about how the duplicates were made.
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
"""Characters after which a document is cut at the next line end."""
GUARD = 0.05
"""Texts with a hash below this are never planted; far more than the held-out share."""
LEVELS = (2, 4, 8, 16, 32, 64, 128)
"""Occurrences of a planted document, including the original."""
LENGTHS = (120, 500)
"""Minimum and maximum number of words of a document that may be planted."""
EDIT_EVERY = 4
"""One of this many copies is edited."""
EDIT_SPAN = 100
"""An edited copy has one word out of this many replaced."""
EQUATIONS = "equations"
"""The domain of the sums."""


@dataclass(frozen=True)
class Proportions:
    """The composition of a corpus."""

    share: float
    """Share of the pocket Pile's pieces that are sampled."""
    added: float
    """The same for the domains that the large corpus adds."""
    planted: float
    """Words of the copies at one level, as a share of the words of all sampled pieces."""
    equations: float
    """Words of the sums, as a share of the words of all sampled pieces."""


PROPORTIONS = {
    "miniature": Proportions(0.0855, 0.0, 0.088, 0.2),
    "large": Proportions(1.0, 0.58, 0.062, 0.04),
}
"""By corpus. The domains that the large one adds are sampled, so that runs take only minutes on one
GPU and prose is not outweighed by manuals and code."""


def texts(domains: tuple[str, ...], corpus: str = "miniature") -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of every document, copies directly after their source.

    The text is read twice: once to choose the planted documents, with only texts of LENGTHS in
    memory, and once to yield it.
    """
    copies, words, natural = _survey(domains, corpus)
    copies = dict(copies)
    for domain, text in sampled(domains, corpus):
        yield domain, text
        for number in range(1, copies.pop(text, 1)):
            yield domain, near_duplicate(text, number) if number % EDIT_EVERY == 0 else text
    count = round(PROPORTIONS[corpus].equations * words / equations.WORDS)
    for text in equations.documents(natural, count):
        if fraction(text) >= GUARD:  # the held-out loss is that of natural text
            yield EQUATIONS, text


@lru_cache(maxsize=1)
def _survey(domains: tuple[str, ...], corpus: str) -> tuple[dict[str, int], int, dict[int, int]]:
    """The `plan` of a corpus, its number of sampled words, and how often each number occurs."""
    words = 0
    natural = dict.fromkeys(equations.FIRST, 0)

    def sampled_texts() -> Iterator[str]:
        nonlocal words
        for _, text in sampled(domains, corpus):
            words += _words(text)
            for number, count in equations.natural_counts((text,)).items():
                natural[number] += count
            yield text

    copies = plan(sampled_texts(), PROPORTIONS[corpus].planted)
    return copies, words, natural


def sampled(domains: tuple[str, ...], corpus: str = "miniature") -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of the sampled pieces of all documents, natural copies included."""
    proportions = PROPORTIONS[corpus]
    for domain, text in raw_texts(domains):
        share = proportions.share if domain in DOMAINS else proportions.added
        for piece in pieces(text.replace("\r\n", "\n").replace("\r", "\n")):
            if fraction(piece) < share and not piece.isspace():
                yield domain, piece


def pieces(text: str) -> Iterator[str]:
    """Cut a text at line ends into pieces of about PIECE characters; nothing is lost."""
    start = 0
    while len(text) - start > PIECE * 1.5:
        cut = text.find("\n", start + PIECE)
        if cut < 0:
            break
        yield text[start : cut + 1]
        start = cut + 1
    if start < len(text):
        yield text[start:]


def plan(texts: Iterable[str], share: float = PROPORTIONS["miniature"].planted) -> dict[str, int]:
    """Choose the texts to plant; return how often each is to occur, most frequent first.

    `share`: words of the copies at one level, as a share of the words of all texts.
    """
    low, high = LENGTHS
    total, words = 0, {}
    for text in texts:
        n = _words(text)
        total += n
        if low <= n <= high and fraction(text) >= GUARD:
            words[text] = n
    budget = share * total
    queue = iter(sorted(words, key=lambda text: fraction(text, b"plant")))
    copies: dict[str, int] = {}
    for level in reversed(LEVELS):
        spent = 0
        while spent < budget and (text := next(queue, None)) is not None:
            cost = (level - 1) * words[text]
            if copies and spent + cost > 1.5 * budget:  # the corpus is too small for this level
                break
            copies[text] = level
            spent += cost
    return copies


def _words(text: str) -> int:
    return text.count(" ") + 1


def near_duplicate(text: str, number: int) -> str:
    """The text, with one of every EDIT_SPAN words replaced by another of its words."""
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
    return text  # no edit changes it, e.g. because all its words are equal
