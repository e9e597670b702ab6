"""Sums as questions: what is asked, with which examples and answers, and how it is scored."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from pythia_book.corpora import equations
from pythia_book.tasks import arithmetic
from pythia_book.tasks.arithmetic import ArithmeticMeasurement, Question

from pythia_core.errors import ConfigError


def encode(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


class Adder(torch.nn.Module):
    """A model that adds one-digit and two-digit numbers; token ids are bytes."""

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        wanted = torch.zeros(batch, length, 256)
        for b in range(batch):
            text = bytes(ids[b].tolist()).rstrip(b"\0").decode()
            tail = text[text.rindex("Q:What") :]
            first, second, said = re.fullmatch(
                r"Q:What is (\d+) plus (\d+)\? A:(.*)", tail, re.DOTALL
            ).groups()
            answer = f" {int(first) + int(second)}\n"
            start = len(text) - len(said) - 1
            for i, letter in enumerate(answer.encode()):
                if start + i < length:
                    wanted[b, start + i, letter] = 5.0
        return wanted

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_as_many_planted_as_held_out_pairs_are_asked() -> None:
    asked = arithmetic.questions()
    assert len({(q.first, q.second) for q in asked}) == len(asked)
    assert {q.first for q in asked} == set(equations.FIRST)
    for q in asked:
        assert q.held_out == equations.held_out(q.first, q.second)
    for number in equations.FIRST:
        held_out = [q.held_out for q in asked if q.first == number]
        assert sum(held_out) * 2 == len(held_out)
    assert asked == arithmetic.questions()


@pytest.mark.parametrize("shots", [0, 1, 5])
def test_examples_are_right_and_planted_pairs_of_other_numbers(shots: int) -> None:
    for question in arithmetic.questions()[::97]:
        text = arithmetic.prompt(question, shots)
        *examples, last = text.split("\n")
        assert last == equations.question(question.first, question.second)
        assert len(examples) == shots
        for line in examples:
            a, b, c = map(int, re.findall(r"\d+", line))
            assert a + b == c and a != question.first and not equations.held_out(a, b)


def test_one_answer_is_right_and_three_are_wrong_sums_of_the_same_number() -> None:
    for question in arithmetic.questions()[::31]:
        values = [int(answer) for answer in arithmetic.answers(question)]
        assert values[0] == question.first + question.second
        assert len(set(values)) == 4
        assert all(question.first < value <= question.first + 50 for value in values)


def test_a_model_is_right_only_if_it_adds() -> None:
    asked = tuple(q for q in arithmetic.questions() if q.first in (3, 40))
    requests = arithmetic.requests(asked, 0, encode, 0, 64)
    measurement = ArithmeticMeasurement(asked, tuple(requests), 0, 64)
    found = measurement(Adder(), 1)
    assert found["exact"].all() and found["choice"].all()
    # shifted by one token id, the same logits are wrong everywhere
    shifted = Adder()
    shifted.logits = lambda hidden: hidden.roll(1, -1)  # type: ignore[method-assign]
    wrong = measurement(shifted, 1)
    assert not wrong["exact"].any() and not wrong["choice"].all()
    assert (wrong["logprob"] < found["logprob"]).all()
    # after examples only the right answer is asked for
    requests = arithmetic.requests(asked, 1, encode, 0, 64)
    assert len(requests) == len(asked)
    one_shot = ArithmeticMeasurement(asked, tuple(requests), 1, 64)(Adder(), 1)
    assert one_shot["exact"].all() and "choice" not in one_shot


def test_too_many_examples_are_refused_with_the_number_that_fits() -> None:
    asked = [Question(12, 7, False)]
    fits = len(arithmetic.prompt(asked[0], 3)) + 1 + 4 - 1
    assert arithmetic.requests(asked, 3, encode, 0, fits)
    with pytest.raises(ConfigError, match=rf"shots=8: .* reads {fits}; set shots to at most [23]"):
        arithmetic.requests(asked, 8, encode, 0, fits)


def test_the_digest_depends_on_what_was_asked() -> None:
    asked = tuple(arithmetic.questions()[:4])
    one, two = (
        ArithmeticMeasurement(asked, tuple(arithmetic.requests(asked, k, encode, 0, 256)), k, 256)
        for k in (0, 1)
    )
    assert one.digest != two.digest and one.name != two.name
    assert one.digest == ArithmeticMeasurement(asked, one.requests, 0, 256).digest
    assert np.unique([one.digest, two.digest]).size == 2
