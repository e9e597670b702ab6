"""Answers to sums: how they are read and summarized, and which are shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pythia_book.studies.term_frequency import examples
from pythia_book.studies.term_frequency import figures as draw
from pythia_book.studies.term_frequency.examples import NO_NUMBER, number
from pythia_book.studies.term_frequency.params import Params
from pythia_book.studies.term_frequency.tables import NumberScores
from pythia_book.study import Measurements

N = 100
FIRST = np.repeat(np.arange(N), 10)
SECOND = np.tile(np.arange(1, 11), N)


def scores(answer: np.ndarray | None) -> NumberScores:
    """Ten sums with each first operand; smaller operands are read more often."""
    arrays: dict[str, Any] = {"first": FIRST, "second": SECOND, "in_sums/9": 1000 - np.arange(N)}
    if answer is not None:
        arrays["answer/7k/9/4"] = answer.astype(np.int16)
    return NumberScores(Measurements(arrays, {"steps": [9]}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" 62", 62), ("62", 62), (" 6 2", NO_NUMBER), ("", NO_NUMBER), (" -6", NO_NUMBER),
     (" sixty", NO_NUMBER), (" 12345", NO_NUMBER), (" 62 Q:", NO_NUMBER), ("٦", NO_NUMBER)],
)  # fmt: skip
def test_an_answer_is_a_number_or_none(text: str, expected: int) -> None:
    assert number(text) == expected


def test_answers_that_ignore_the_sum_are_right_as_often_as_if_shuffled() -> None:
    rng = np.random.default_rng(0)
    table = examples.answers_table(scores(rng.permutation(FIRST + SECOND)), "7k", 4)
    row = table.set_index("group").loc["all"]
    assert abs(row.right - row.shuffled) < 4 * row.shuffled**0.5 and row.n == 1000
    assert abs(row.correlation) < 0.1
    perfect = examples.answers_table(scores(FIRST + SECOND), "7k", 4).set_index("group").loc["all"]
    assert perfect.right == 1000 > 10 * perfect.shuffled and perfect.correlation == pytest.approx(1)
    assert perfect.median_error == 0


def test_a_model_that_always_says_the_same() -> None:
    table = examples.answers_table(scores(np.full(1000, 15)), "7k", 4).set_index("group")
    row = table.loc["all"]
    assert (row.different, row.common, row.common_share) == (1, "15", 1)
    assert row.right == row.shuffled == (FIRST + SECOND == 15).sum() and np.isnan(row.correlation)
    assert table.loc["most frequent tenth"].median_error < 10 < 70 < table.median_error.max()
    none = examples.answers_table(scores(np.full(1000, NO_NUMBER)), "7k", 4).iloc[0]
    assert none.common == "no number" and np.isnan(none.median_error)


def test_both_kinds_of_answers_are_shown_from_all_groups() -> None:
    answer = FIRST + SECOND + (SECOND > 3)  # right for three of ten sums
    table = examples.examples_table(scores(answer), "7k", 4)
    assert table.groupby(["group", "right"]).size().tolist() == [examples.SHOWN] * 6
    top = table[table.group == "most frequent tenth"]
    assert (top["first"] < 10).all() and (top.in_sums > 990).all()
    assert (table.right == (table.answer == table["first"] + table.second)).all()
    one_right = np.where(np.arange(1000) == 995, FIRST + SECOND, NO_NUMBER)
    few = examples.examples_table(scores(one_right), "7k", 4)
    assert few.right.sum() == 1 and len(few) == 3 * examples.SHOWN + 1


def result(measured: NumberScores) -> Any:
    params = Params(sizes="7k")
    tables = {
        "examples": examples.examples_table(measured, "7k", 4),
        "answers": examples.answers_table(measured, "7k", 4),
    }
    return SimpleNamespace(params=params, tables=tables)


def test_the_tables_of_the_page() -> None:
    shown = result(scores(np.where(SECOND > 9, FIRST + SECOND, NO_NUMBER)))
    table = draw.examples_table(shown)
    text = repr(table)
    assert " plus " in text and "no number" in text and "right" in text
    assert "no number (90 %)" in repr(draw.answers_table(shown))


def test_a_record_without_answers_says_so() -> None:
    old = result(scores(None))
    assert "No examples" in draw.examples_table(old).caption
    assert "Not measured" in draw.answers_table(old).caption
