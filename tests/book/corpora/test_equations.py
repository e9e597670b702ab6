"""Planted sums: correct, with the intended frequencies, and never of a held-out pair."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from pythia_book.corpora import equations

NATURAL = {n: max(1, 4000 // (n + 1)) for n in equations.FIRST}
LINE = re.compile(r"Q:What is (\d+) plus (\d+)\? A: (\d+)")


def planted(count: int = 1500) -> list[tuple[int, int, int]]:
    texts = "".join(equations.documents(NATURAL, count))
    return [tuple(map(int, m.groups())) for m in map(LINE.fullmatch, texts.splitlines()) if m]


def test_sums_are_correct_and_avoid_held_out_pairs() -> None:
    sums = planted(200)
    assert len(sums) == 200 * equations.PER_DOCUMENT
    assert all(a + b == c for a, b, c in sums)
    assert all(a in equations.FIRST and b in equations.SECOND for a, b, _ in sums)
    assert not any(equations.held_out(a, b) for a, b, _ in sums)
    share = sum(equations.held_out(a, b) for a in equations.FIRST for b in equations.SECOND) / 5000
    assert share == pytest.approx(equations.HELD_OUT, abs=0.02)


def test_first_operands_follow_their_weights() -> None:
    counts = Counter(a for a, *_ in planted())
    weight = equations.weights(NATURAL)
    available = {a: sum(not equations.held_out(a, b) for b in equations.SECOND) for a in weight}
    total = sum(weight[a] * available[a] for a in weight)
    for a in weight:
        expected = sum(counts.values()) * weight[a] * available[a] / total
        assert abs(counts[a] - expected) < 5 * expected**0.5 + 5


def test_one_number_of_each_pair_is_boosted() -> None:
    pairs = equations.pairs(NATURAL)
    assert sorted(n for pair in pairs for n in pair) == list(equations.FIRST)
    weight = equations.weights(NATURAL)
    for chosen, other in pairs:
        assert abs(chosen - other) == 1  # NATURAL decreases: neighbors are paired
        ratio = weight[chosen] / weight[other]
        natural = (NATURAL[chosen] + 1) / (NATURAL[other] + 1)
        assert ratio == pytest.approx(equations.BOOST * natural)
    placebo = equations.pairs(NATURAL, "placebo")
    assert [{*p} for p in placebo] == [{*p} for p in pairs]
    agree = [a == b for a, b in zip(placebo, pairs, strict=True)]
    assert all(one != two for one, two in zip(agree[::2], agree[1::2], strict=True))
    assert 5 < sum(agree[::2]) < 20


def test_numbers_are_counted_as_whole_numbers() -> None:
    counts = equations.natural_counts(["7 and 17, 1.7 or 7.5; a7 7b 007 $7 (7) 7,000 7", "99"])
    assert counts[7] == 4  # "7", "$7", "(7)" and the last
    assert counts[17] == 1 and counts[99] == 1 and counts[0] == 0
