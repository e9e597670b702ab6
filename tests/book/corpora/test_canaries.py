"""Canaries: planted as often as declared, never twice in a document, and like nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book.corpora import canaries

from pythia_core.data.dedup import deduplicate
from pythia_core.suite import DEDUP


def documents(count: int) -> list[list[str]]:
    return [text.splitlines() for text in canaries.documents(count)]


@settings(deadline=None)
@given(st.integers(1, 120))
def test_every_canary_stands_as_often_as_planned_in_different_documents(count: int) -> None:
    made = documents(count)
    assert all(len(set(lines)) == len(lines) for lines in made)
    assert Counter(line for lines in made for line in lines) == canaries.canary_counts(count)
    sizes = [len(lines) for lines in made]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    if count > 16:  # with fewer documents, the most frequent canaries need more of them
        assert len(made) == pytest.approx(count, rel=0.15)


def test_the_places_are_shared_out_as_declared() -> None:
    assert sum(canaries.TIMES.values()) == pytest.approx(1)
    planted = canaries.canary_counts(1000)
    for times, share in canaries.TIMES.items():
        places = sum(n for n in planted.values() if n == times)
        assert places / 4000 == pytest.approx(share, abs=16 / 4000)
    assert set(planted.values()) == {1, 2, 4, 8, 16}


def test_no_two_documents_are_equal() -> None:
    """Else deduplication would remove one, and its canaries would stand once less."""
    repeated = {count: len(d) - len(set(d)) for count in range(1, 60)
                if len(d := [*canaries.documents(count)]) > len(set(d))}  # fmt: skip
    assert repeated == {}, "documents that repeat another one, by count"


@pytest.mark.parametrize("count", [8, 201])  # about what the scales smoke and laptop ask for
def test_deduplication_removes_no_document(count: int) -> None:
    texts = list(canaries.documents(count))
    assert len(texts) == len(set(texts))
    assert deduplicate(texts, DEDUP, progress=False).keep.all()
    repeated = deduplicate([*texts, texts[0]], DEDUP, progress=False)
    assert repeated.keep.tolist() == [True] * len(texts) + [False]


def test_canaries_are_unlike_each_other_and_some_are_never_planted() -> None:
    planted = canaries.canary_counts(201)
    others = [canaries.canary(f"never planted {n}") for n in range(300)]
    assert len(set(others)) == 300 and not {*others} & {*planted}
    text = "".join(canaries.documents(201))
    assert not any(other in text for other in others)
    runs = [
        run
        for canary in (*planted, *others)
        for run in zip(*(canary.split()[k:] for k in range(3)), strict=False)
    ]
    assert len(set(runs)) == len(runs), "no three words in a row stand twice"


def test_canaries_are_random_words() -> None:
    made = [canaries.canary(str(n)) for n in range(500)]
    assert made == [canaries.canary(str(n)) for n in range(500)]
    assert {len(canary.split()) for canary in made} == {canaries.N_WORDS}
    words = [word for canary in made for word in canary.split()]
    assert {len(word) for word in words} == {4}
    for start in (0, 2):  # of 80 syllables, all occur about equally often
        counts = Counter(word[start : start + 2] for word in words)
        expected = len(words) / 80
        assert len(counts) == 80
        chi_squared = sum((n - expected) ** 2 / expected for n in counts.values())
        assert chi_squared < 79 + 5 * (2 * 79) ** 0.5
    pairs = Counter(pairwise(words))
    assert pairs.most_common(1)[0][1] <= 2


def test_the_copies_of_a_canary_stand_in_random_documents_and_lines() -> None:
    """Else how often a canary stands would go with where it stands, and with its company."""
    made, planted = documents(201), canaries.canary_counts(201)
    where = {c: [n for n, lines in enumerate(made) if c in lines] for c in planted}
    frequent = [c for c, times in planted.items() if times == 16]
    gaps = [b - a for c in frequent for a, b in pairwise(where[c])]
    assert sum(gap == 1 for gap in gaps) / len(gaps) < 0.2, "neighbors: 16 / 201 by chance"
    company = Counter(
        (c, other) for c in frequent for n in where[c] for other in made[n] if other != c
    )
    assert max(company.values()) <= 6, "another stands in 1 or 2 of its 16 documents by chance"
    for times in canaries.TIMES:
        lines = [made[n].index(c) for c, k in planted.items() if k == times for n in where[c]]
        mean = sum(lines) / len(lines)  # 1.5 by chance, with a standard deviation of 1.12
        assert mean == pytest.approx(1.5, abs=5 * 1.12 / len(lines) ** 0.5), times
