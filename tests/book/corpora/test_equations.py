"""Planted sums: right, as frequent as said, never of a pair that is kept for asking."""

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


def test_every_sum_is_right_and_none_of_a_held_out_pair() -> None:
    found = planted(200)
    assert len(found) == 200 * equations.EACH
    assert all(a + b == c for a, b, c in found)
    assert all(a in equations.FIRST and b in equations.SECOND for a, b, _ in found)
    assert not any(equations.held_out(a, b) for a, b, _ in found)
    share = sum(equations.held_out(a, b) for a in equations.FIRST for b in equations.SECOND) / 5000
    assert share == pytest.approx(equations.HELD_OUT, abs=0.02)


def test_first_operands_are_as_frequent_as_their_weights() -> None:
    found = Counter(a for a, *_ in planted())
    weight = equations.weights(NATURAL)
    left = {a: sum(not equations.held_out(a, b) for b in equations.SECOND) for a in weight}
    total = sum(weight[a] * left[a] for a in weight)
    for a in weight:
        expected = sum(found.values()) * weight[a] * left[a] / total
        assert abs(found[a] - expected) < 5 * expected**0.5 + 5


def test_a_coin_makes_one_of_each_pair_of_neighbours_more_frequent() -> None:
    pairs = equations.pairs(NATURAL)
    assert sorted(n for pair in pairs for n in pair) == list(equations.FIRST)
    weight = equations.weights(NATURAL)
    for chosen, other in pairs:
        assert abs(chosen - other) == 1  # neighbours in this frequency, which falls with the number
        ratio = weight[chosen] / weight[other]
        natural = (NATURAL[chosen] + 1) / (NATURAL[other] + 1)
        assert ratio == pytest.approx(equations.BOOST * natural)
    placebo = equations.pairs(NATURAL, "placebo")
    assert [{*p} for p in placebo] == [{*p} for p in pairs]
    agree = [a == b for a, b in zip(placebo, pairs, strict=True)]
    assert all(one != two for one, two in zip(agree[::2], agree[1::2], strict=True))
    assert 5 < sum(agree[::2]) < 20


def test_numbers_are_counted_as_whole_numbers() -> None:
    found = equations.natural_counts(["7 and 17, 1.7 or 7.5; a7 7b 007 $7 (7) 7,000 7", "99"])
    assert found[7] == 4  # "7", "$7", "(7)" and the last
    assert found[17] == 1 and found[99] == 1 and found[0] == 0
