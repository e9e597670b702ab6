"""Builds the corpora "miniature" (from a sample of the pocket Pile) and "large" (from more text).

Deduplication removed 38 % of the Pile's tokens, but would remove few of the pocket Pile's. So
copies are planted until the share is about the same. Documents are cut into pieces, of which a
sample is taken. Some texts are repeated until they occur 2, 4, ... or 128 times; copies at each of
these levels have about the same number of words in all. Every fourth copy has one word in a hundred
replaced. Generated text follows: sums (equations), sentences about people (occupations) and random
strings (canaries). The copies and each kind of generated text are *planted domains*, which a run
can omit.

With the domain "copies_pile" instead of "copies", all documents, generated ones included, are
repeated about as often as those of the Pile (pythia_book.corpora.pile_copies).

Hashes of the text decide everything, so the result is the same on every machine. Held-out documents
are never copied, and nothing planted is held out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice, permutations
from pathlib import Path
from typing import Any

from pythia_book.corpora import (
    canaries,
    equations,
    large,
    occupations,
    pile_copies,
    pocket_pile,
)
from pythia_book.corpora.facts import cached_json
from pythia_book.corpora.pocket_pile import raw_texts, wheels_needed
from pythia_book.corpora.wheels import WHEELS
from pythia_core.config import CONTROL_DOMAINS, DOMAINS
from pythia_core.errors import ConfigError, raise_all
from pythia_core.util.files import fraction

PIECE = 4000
"""A piece of a document ends at the first line end after this many characters."""
GUARD = 0.15
"""The hash of a planted text is never smaller than GUARD. A text is held out if its hash is smaller
than DataConfig.heldout_fraction. So DataConfig.heldout_fraction must not exceed GUARD."""
LEVELS = (2, 4, 8, 16, 32, 64, 128)
"""The possible numbers of times that a copied text occurs in the corpus, counting the original."""
LENGTHS = (120, 500)
"""Minimum and maximum number of words of a text that may be copied."""
EDIT_EVERY = 4
"""One copy in this many is edited."""
EDIT_SPAN = 100
"""In an edited copy, one word in this many is replaced."""


@dataclass(frozen=True)
class Proportions:
    """The composition of a corpus: how much text is sampled, and how much is planted."""

    pocket_pile: float
    """Fraction of the pieces of the pocket Pile that is sampled."""
    added: float
    """Fraction of the pieces of the added domains (pythia_book.corpora.large) that is sampled."""
    copies: float
    """Words of the copies at each of LEVELS, divided by the words of all sampled pieces."""
    generated: dict[str, float]
    """Words of each generated domain, divided by the words of all sampled pieces."""


PROPORTIONS = {
    "miniature": Proportions(
        pocket_pile=0.0748,
        added=0.0,
        copies=0.091,
        generated={"equations": 0.134, "occupations": 0.235, "canaries": 0.018},
    ),
    "large": Proportions(
        pocket_pile=1.0,
        added=0.557,
        copies=0.062,
        generated={"equations": 0.047, "occupations": 0.04, "canaries": 0.005},
    ),
}
"""The proportions of each corpus. The large corpus samples the added domains, so that a run takes
only minutes on one GPU, and so that manuals and code do not outweigh prose."""
GENERATED_MAX = 0.30
"""Largest fraction of the words of a corpus, not counting copies, that may be generated."""


@dataclass(frozen=True)
class GeneratedDomain:
    """A planted domain with generated text. (Copies are planted too, but are not generated.)"""

    documents: Callable[[int, Mapping[int, int]], Iterator[str]]
    """Yields about as many documents as the first argument says. The second argument maps each
    number in equations.FIRST to how often the number occurs in the sampled pieces."""
    words: float
    """Mean number of words in a document."""


GENERATED = {
    "equations": GeneratedDomain(
        lambda n, natural: equations.documents(natural, n), equations.WORDS
    ),
    "occupations": GeneratedDomain(lambda n, _: occupations.documents(n), occupations.WORDS),
    "occupations_flat": GeneratedDomain(
        lambda n, _: occupations.documents(n, flat=True), occupations.WORDS
    ),
    "canaries": GeneratedDomain(lambda n, _: canaries.documents(n), canaries.WORDS),
}


def texts(domains: tuple[str, ...], corpus: str = "miniature") -> Iterator[tuple[str, str]]:
    """Yield (domain, text) for every text of a corpus: sampled pieces, copies, generated text.

    The copies of a text follow directly after the text, and are in its domain. Generated domains
    come last. The corpus is read twice, first to choose the texts to copy. This needs little
    memory: a text is kept only if it may be copied (if its word count is within LENGTHS).

    Raises:
        ConfigError: see `document_counts`.
    """
    repeated = _repeated_as_in_the_pile if "copies_pile" in domains else iter
    yield from repeated(_texts(domains, corpus))


def _repeated_as_in_the_pile(
    texts: Iterator[tuple[str, str]],
) -> Iterator[tuple[str, str]]:
    """Yield all texts, each followed by the copies that the domain "copies_pile" plants.

    If the corpus itself has a text several times, only the first one is copied. A text whose hash
    is below GUARD is never copied.
    """
    copied: set[float] = set()
    for domain, text in texts:
        yield domain, text
        if (key := fraction(text)) not in copied:
            copied.add(key)  # a hash, because a large corpus may not fit into memory
            yield from ((domain, copy) for copy in pile_copies_of(text))


def pile_copies_of(text: str) -> list[str]:
    """Return the copies, edited ones last, that the domain "copies_pile" adds to a text."""
    if fraction(text) < GUARD:
        return []
    times, edited = pile_copies.occurrences(text)
    return [text] * (times - 1) + [near_duplicate(text, n) for n in range(1, edited + 1)]


def _texts(domains: tuple[str, ...], corpus: str) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) for every text of a corpus, without the domain "copies_pile"."""
    counts = document_counts(domains, corpus)
    copies, natural = copied_texts(domains, corpus), _survey(domains, corpus)[2]
    for domain, text in sampled(domains, corpus):
        for copy in copies_of(text, copies.pop(text, 1)):
            yield domain, copy
    for domain, count in counts.items():
        for text in GENERATED[domain].documents(count, natural):
            yield domain, _never_held_out(text)


def is_natural(domain: str) -> bool:
    """Return whether the documents of a domain are natural text, not generated."""
    return domain not in GENERATED


def document_counts(domains: tuple[str, ...], corpus: str) -> dict[str, int]:
    """Map each generated domain among `domains` to its approximate number of documents.

    Raises:
        ConfigError: generated text would be more than GENERATED_MAX of the words, or there is too
            little prose for a generated domain.
    """
    names = [name for name in GENERATED if name in domains]
    of_domain = PROPORTIONS[corpus].generated
    shares = {name: of_domain[CONTROL_DOMAINS.get(name, name)] for name in names}
    total = sum(shares.values())
    share, problems = total / (1 + total), []
    if share > GENERATED_MAX:
        problems.append(
            f"planted text would be {share:.0%} of the words ({', '.join(names)}), which leaves "
            f"too little prose; the limit is {GENERATED_MAX:.0%}. Leave out one of these domains"
        )
    words = _survey(domains, corpus)[1] if names else 0
    counts = {name: round(shares[name] * words / GENERATED[name].words) for name in names}
    problems += [
        f"there are only {words} words of prose, too few to plant {name!r}; add a domain of "
        "prose, e.g. 'biographies'"
        for name, count in counts.items()
        if not count
    ]
    raise_all(ConfigError, problems, f"the corpus {corpus!r}")
    return counts


def _never_held_out(text: str) -> str:
    """Permute the lines of a planted document until the hash of the document is at least GUARD.

    So the held-out text is all natural, and all planted text is in the training data.
    """
    orders = islice(permutations(text.splitlines(keepends=True)), 1000)
    return next((new for new in map("".join, orders) if fraction(new) >= GUARD), text)


def copied_texts(domains: tuple[str, ...], corpus: str = "miniature") -> dict[str, int]:
    """Map each copied text of a corpus to how often it occurs, counting the original.

    The texts that occur most often come first. Without the domain "copies", the dict is empty.
    """
    return dict(_survey(domains, corpus)[0]) if "copies" in domains else {}


def copies_of(text: str, times: int) -> Iterator[str]:
    """Yield a text and its copies, `times` texts in all; one in EDIT_EVERY copies is edited."""
    yield text
    for number in range(1, times):
        yield near_duplicate(text, number) if number % EDIT_EVERY == 0 else text


def number_counts(domains: tuple[str, ...], corpus: str) -> dict[int, int]:
    """Map each number in equations.FIRST to how often it occurs in the sampled pieces."""
    return dict(_survey(domains, corpus)[2])


def survey_file(domains: tuple[str, ...], corpus: str) -> Path:
    """Return the path of the cached survey of a corpus; make the survey if it is absent.

    The file's name depends on the wheels and on the code that reads them. With it, studies that
    count what is planted need no wheels.
    """
    pins = [WHEELS[name].sha256 for name in wheels_needed(domains)]
    sources = (__file__, pocket_pile.__file__, large.__file__, equations.__file__)
    key = [corpus, sorted(domains), pins]
    return cached_json("surveys", key, sources, partial(_read_all, domains, corpus))


@lru_cache(maxsize=1)
def _survey(domains: tuple[str, ...], corpus: str) -> tuple[dict[str, int], int, dict[int, int]]:
    """Return the survey of a corpus, from the cache.

    Returns:
        How often each copied text occurs, the number of words in the sampled pieces, and how often
        each number in equations.FIRST occurs in these pieces.
    """
    survey = json.loads(survey_file(domains, corpus).read_text("utf-8"))
    natural = dict(zip(equations.FIRST, survey["natural"], strict=True))
    return dict(survey["copies"]), survey["words"], natural


def _read_all(domains: tuple[str, ...], corpus: str) -> dict[str, Any]:
    """Read all sampled pieces of a corpus, and return its survey in JSON types.

    `copies`: pairs of a text and how often it will occur, in the order of `choose_copied`;
    `words`: number of words in the pieces;
    `natural`: how often each number in equations.FIRST occurs in the pieces, in FIRST's order.
    """
    words = 0
    natural = dict.fromkeys(equations.FIRST, 0)

    def sampled_texts() -> Iterator[str]:
        """Yield the sampled texts, and count their words and numbers on the way."""
        nonlocal words
        for _, text in sampled(domains, corpus):
            words += _words(text)
            for number, count in equations.natural_counts((text,)).items():
                natural[number] += count
            yield text

    copies = choose_copied(sampled_texts(), PROPORTIONS[corpus].copies)
    numbers = [natural[number] for number in equations.FIRST]
    return {"copies": [*copies.items()], "words": words, "natural": numbers}


def sampled(domains: tuple[str, ...], corpus: str = "miniature") -> Iterator[tuple[str, str]]:
    """Yield (domain, text) for each sampled piece of the documents.

    If a sampled piece occurs several times in the documents, it is yielded each time.
    """
    proportions = PROPORTIONS[corpus]
    for domain, text in raw_texts(domains):
        share = proportions.pocket_pile if domain in DOMAINS else proportions.added
        for piece in pieces(text.replace("\r\n", "\n").replace("\r", "\n")):
            # salted: the plain hash says which documents are held out
            if fraction(piece, b"sample") < share and not piece.isspace():
                yield domain, piece


def pieces(text: str) -> Iterator[str]:
    """Cut a text at line ends into pieces of about PIECE characters. No character is lost."""
    start = 0
    while len(text) - start > PIECE * 1.5:
        cut = text.find("\n", start + PIECE)
        if cut < 0:
            break
        yield text[start : cut + 1]
        start = cut + 1
    if start < len(text):
        yield text[start:]


def choose_copied(
    texts: Iterable[str], share: float = PROPORTIONS["miniature"].copies
) -> dict[str, int]:
    """Choose the texts to copy, and map each of them to how often it will occur in the corpus.

    The texts that will occur most often come first.

    Args:
        share: for each of LEVELS (how often a text will occur), the approximate number of words in
            the additional copies, divided by the number of words in all texts.
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
    """Return the number of words in a text: the number of its spaces, plus one."""
    return text.count(" ") + 1


def near_duplicate(text: str, number: int) -> str:
    """Edit a text: in every span of EDIT_SPAN words, replace a word by another word of the text.

    Args:
        number: number of the copy; copies with different numbers are edited differently.

    Returns:
        The edited text, or the text itself if no edit changes it.
    """
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
