"""The Pile in miniature: its proportions, its planted copies, and no held-out text among them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pythia_book.corpora import miniature

from pythia_core.config import DOMAINS, DataConfig
from pythia_core.data.corpus import open_corpus
from pythia_core.data.dedup import jaccard, shingles

WORDS = [f"word{i}" for i in range(300)]


def document(i: int, length: int = 200) -> str:
    return " ".join(
        WORDS[(i * 7 + j * (1, 7, 11, 13, 17)[i % 5]) % 300] + str(i) for j in range(length)
    )


@given(st.text(alphabet="ab \n", max_size=60).map(lambda t: t * 700))
def test_cutting_loses_nothing(text: str) -> None:
    parts = list(miniature.pieces(text))
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts[:-1])


def test_copies_follow_the_plan() -> None:
    texts = [document(i) for i in range(3000)]
    copies = miniature.plan(texts)
    assert copies == miniature.plan(list(reversed(texts)))  # in any order
    assert set(copies.values()) == set(miniature.LEVELS)
    budget = miniature.PROPORTIONS["miniature"].planted * 200 * len(texts)
    for level in miniature.LEVELS:
        words = sum(200 * (level - 1) for n in copies.values() if n == level)
        assert budget - 1 <= words <= 1.5 * budget
    assert all(miniature.fraction(text) >= miniature.GUARD for text in copies)


def test_short_and_long_texts_are_not_planted() -> None:
    texts = [document(i, 60) for i in range(500)] + [document(i, 900) for i in range(500)]
    assert miniature.plan(texts) == {}


@pytest.mark.parametrize("i", range(5))
def test_an_edited_copy_is_a_near_duplicate(i: int) -> None:
    text = document(i)
    one, other = miniature.near_duplicate(text, 4), miniature.near_duplicate(text, 8)
    assert len({text, one, other}) == 3
    assert miniature.near_duplicate(text, 4) == one
    changed = sum(a != b for a, b in zip(text.split(), one.split(), strict=True))
    assert 1 <= changed <= 2
    assert 0.87 <= jaccard(shingles(text), shingles(one)) < 1
    assert miniature.fraction(one) >= miniature.GUARD


@pytest.mark.wheels
def test_the_corpus_is_as_repetitive_as_the_pile() -> None:
    data = DataConfig("miniature")
    texts = [document.text for document in open_corpus(data, progress=False)]
    once = {text: len(text) for text in texts}
    assert 0.60 < sum(once.values()) / sum(map(len, texts)) < 0.70
    counts = Counter(texts)
    assert max(counts.values()) == 128 - 31  # every fourth copy is edited
    planted = miniature.planted(DOMAINS)
    assert set(planted.values()) == set(miniature.LEVELS)
    assert not Counter(t for t, n in planted.items() for t in miniature.copies_of(t, n)) - counts
    held_out = [text for text in once if miniature.fraction(text) < data.heldout_fraction]
    assert len(held_out) > 100
    documents = list(open_corpus(data, progress=False))
    assert {d.domain for d in documents} == {*DOMAINS, miniature.EQUATIONS}
    sums = [d.text for d in documents if d.domain == miniature.EQUATIONS]
    assert not {*sums} & {*held_out}
    assert 0.06 < sum(map(len, sums)) / sum(map(len, texts)) < 0.10
