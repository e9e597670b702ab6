"""Copies as in the Pile: how often documents occur, and that deduplication finds all copies."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from pythia_book.corpora import miniature, pile_copies

from pythia_core.config import DataConfig, default_domains
from pythia_core.data.dedup import deduplicate, jaccard, shingles
from pythia_core.errors import ConfigError
from pythia_core.suite import DEDUP, scale_named
from pythia_core.util.files import fraction


def document(i: int, words: int = 400) -> str:
    """A document of random words."""
    rng = random.Random(i)
    return " ".join(f"w{rng.randrange(5000)}" for _ in range(words))


def test_the_composition_is_that_of_the_published_table() -> None:
    sizes = [size for size, _ in pile_copies.EPOCHS.values()]
    effective = [size * epochs for size, epochs in pile_copies.EPOCHS.values()]
    assert sum(sizes) == pytest.approx(825.18, abs=0.02)  # the table's last row
    assert sum(effective) == pytest.approx(1254.20, abs=0.1)
    shares = pile_copies.exact_shares()
    assert list(shares) == [1, 2, 3] and sum(shares.values()) == pytest.approx(1)
    assert sum(n * share for n, share in shares.items()) == pytest.approx(1254.20 / 825.18, 1e-3)


def test_documents_occur_as_often_as_planned() -> None:
    occurrences = [pile_copies.occurrences(document(i)) for i in range(6000)]
    exact = Counter(times for times, _ in occurrences)
    for times, share in pile_copies.exact_shares().items():
        error = (share * (1 - share) / 6000) ** 0.5
        assert exact[times] / 6000 == pytest.approx(share, abs=4 * error)
    edited = np.array([n for _, n in occurrences])
    assert np.mean(edited > 0) == pytest.approx(pile_copies.NEAR_SHARE, abs=0.012)
    assert max(map(sum, occurrences)) <= pile_copies.MOST
    several = edited[edited > 0]  # P(1) / P(2) = 4 for an exponent of 2
    assert 2.5 < (several == 1).sum() / (several == 2).sum() < 7
    short = [pile_copies.occurrences(document(i, pile_copies.NEAR_WORDS - 1)) for i in range(500)]
    assert {n for _, n in short} == {0}


def test_more_edited_copies_are_less_likely() -> None:
    at_least = pile_copies.at_least()
    assert at_least[0] == pytest.approx(pile_copies.NEAR_SHARE) and (np.diff(at_least) < 0).all()
    exactly = -np.diff(at_least)
    assert exactly[0] / exactly[3] == pytest.approx(4**pile_copies.NEAR_EXPONENT)
    assert len(at_least) + max(pile_copies.exact_shares()) == pile_copies.MOST


@pytest.mark.parametrize("words", [300, 301, 399, 400, 700, 1100])
def test_edited_copies_are_near_duplicates_at_every_length(words: int) -> None:
    for i in range(20):
        text = document(i, words)
        copy = miniature.near_duplicate(text, 1 + i)
        assert 0.87 <= jaccard(shingles(text), shingles(copy)) < 1


def test_a_text_is_copied_once_and_never_if_it_may_be_held_out() -> None:
    texts = [document(i) for i in range(300)]
    pairs = [("books", text) for text in [*texts, *texts[:50]]]
    out = list(miniature._repeated_as_in_the_pile(iter(pairs)))
    counts = Counter(text for _, text in out)
    for number, text in enumerate(texts):
        exact = 1
        if fraction(text) >= miniature.GUARD:
            exact, edited = pile_copies.occurrences(text)
            assert len(miniature.pile_copies_of(text)) == exact - 1 + edited
        else:
            assert miniature.pile_copies_of(text) == []
        assert counts[text] == exact + (number < 50), "natural repeats are not copied again"
    result = deduplicate([text for _, text in out], DEDUP, progress=False)
    assert result.keep.sum() == len(texts), "and all copies are found"


def test_the_domain_replaces_the_heavily_repeated_texts_on_request() -> None:
    for corpus in ("miniature", "large"):
        assert "copies_pile" not in default_domains(corpus)
        DataConfig(corpus, ("books", "copies_pile"))
    with pytest.raises(ConfigError, match="both 'copies' and its alternative 'copies_pile'"):
        DataConfig("miniature", ("books", "copies", "copies_pile"))


@pytest.mark.wheels
def test_the_miniature_is_repeated_as_the_pile() -> None:
    domains = tuple(
        "copies_pile" if d == "copies" else d for d in scale_named("smoke").data.domains
    )
    pairs = list(miniature.texts(domains))
    plain = list(miniature.texts(tuple(d for d in domains if d != "copies_pile")))
    assert list(dict.fromkeys(plain)) == [
        pair for pair in dict.fromkeys(pairs) if pair in set(plain)
    ], "the different text is unchanged"
    training = [text for _, text in pairs if fraction(text) >= 0.1]
    once = {text for _, text in plain if fraction(text) >= 0.1}
    removed = 1 - sum(map(len, once)) / sum(map(len, training))
    assert 0.34 < removed < 0.42
    counts = Counter(training)
    assert set(counts.values()) <= {1, 2, 3} and max(counts.values()) > 1
    held_out = Counter(text for _, text in pairs if fraction(text) < 0.1)
    assert set(held_out.values()) == {1}
