"""How far rows are recited, which examples are chosen, and how their texts are shown."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pythia_book.site.studies import numbered_table
from pythia_book.studies.memorization import figures, tables
from pythia_book.studies.memorization.params import Params
from pythia_book.studies.memorization.recital import KINDS, RecitalMeasurement, examples
from pythia_book.study import Measurements, Result

TIMES = np.array([1, 9, 40, 2, 1, 1, 1, 0])
RECITED = np.array([4, 4, 4, 3, 1, 0, 2, 3])
OWN = np.array([1, 0, 0, 0, 1, 1, 0, 1], bool)
ROWS = np.arange(8 * 6).reshape(8, 6)
RECITAL = RecitalMeasurement(ROWS, TIMES, OWN, context=2, continuation=4)


def test_examples_are_chosen_by_rule() -> None:
    """Row 6 was read once and is recited further than row 4, but shares its text with others."""
    chosen = RECITAL.example_rows(RECITED)
    assert list(chosen) == list(KINDS)
    assert [*chosen.values()] == [0, 2, 3, 4, 4]
    nothing = RECITAL.example_rows(np.zeros(8, int))
    assert [*nothing.values()] == [1, 0, 4]
    unread = replace(RECITAL, times=np.zeros(8, int))
    assert unread.example_rows(RECITED) == {}


def test_examples_have_the_row_and_what_the_model_writes() -> None:
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    measured = {"recited": RECITED, "written": np.tile([7, 7, 7, 7], (5, 1))}
    found = examples(RECITAL, measured, SimpleNamespace(tokenizer=tokenizer))  # type: ignore[arg-type]
    assert found[1] == {
        "kind": "recited, most readings", "times": 40, "recited": 4, "prompt": "12 13",
        "truth": "14 15 16 17", "written": "7 7 7 7",
    }  # fmt: skip


def test_the_digest_depends_on_rows_times_and_lengths() -> None:
    others = (
        replace(RECITAL, rows=ROWS + 1), replace(RECITAL, times=TIMES + 1),
        replace(RECITAL, own=~OWN), replace(RECITAL, context=3),
    )  # fmt: skip
    assert len({RECITAL.digest, *(other.digest for other in others)}) == 5
    assert replace(RECITAL, rows=ROWS.astype(np.int32)).digest == RECITAL.digest


def test_the_table_compares_rows_by_how_often_they_were_read() -> None:
    """Seven rows were read, the last was not; text that is not a row's own counts only if read
    more than once."""
    measured = Measurements({"recited": RECITED, "own": OWN}, {})
    rows = tables.Rows(TIMES[:7], np.arange(7), TIMES[:7], np.full(7, -1))
    extracted = tables.Extracted(Params(continuation=4), measured, {"standard": rows})
    never, once, twice, *more = tables.recited(extracted)
    assert (never["times"], never["n"], never["value"], never["furthest"]) == ("0", 1, 3, 3)
    assert once["value"] == pytest.approx(5 / 3) and (once["memorized"], once["furthest"]) == (1, 1)
    assert twice["n"] == 1 and [line["times"] for line in more] == ["9-16", "33-64"]
    old = tables.Extracted(Params(), Measurements({}, {}), {"standard": rows})
    assert tables.recited(old) == []


def result_of(**facts: Any) -> Result:
    empty = {"recited": _frame([])}
    return Result("memorization", Params(), empty, {}, [], Measurements({}, facts), {}, 0.0)


def _frame(lines: tables.Lines) -> Any:
    import pandas as pd

    return pd.DataFrame(lines, columns=tables.COLUMNS["recited"])


HOSTILE = "<script>alert(1)</script>\x1b[31m\n</td>{{ x }}"


def test_texts_of_the_corpus_never_become_markup() -> None:
    example = {
        "kind": KINDS[2], "times": 42, "recited": 3, "prompt": HOSTILE, "truth": f"same {HOSTILE}",
        "written": "same <b>bold</b>",
    }  # fmt: skip
    table = figures.examples_table(result_of(examples=[example]))
    html = table._repr_html_()
    assert "<script" not in html and "<b>" not in html and "\x1b" not in html
    node = numbered_table(table.content)
    assert [n.astext() for n in node.findall() if n.tagname == "strong"] == ["b>bold</b>\u2026"]
    assert "<script>alert(1)</script>\ufffd[31m / </td>{{ x }}" in node.astext()
    assert not [n for n in node.findall() if n.tagname == "raw"]


def test_a_recited_row_has_no_error_to_mark() -> None:
    example = {
        "kind": KINDS[0], "times": 9, "recited": 32, "prompt": "a", "truth": "b", "written": "b",
    }  # fmt: skip
    table = figures.examples_table(result_of(examples=[example]))
    assert table.strong == {"What the model writes": [[]]}


def test_a_record_without_examples_says_so() -> None:
    assert "No examples" in figures.examples_table(result_of()).caption
    assert "Not measured" in figures.recited_table(result_of()).caption
