"""Extraction equals generation, on an overfitted model; repetition counts equal slow ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.evaluation import memorization
from pythia_core.evaluation.generate import generate
from pythia_core.evaluation.memorization import (
    check_by_generation,
    distinct_windows,
    extract,
    recited,
    repetition_counts,
)
from pythia_core.model import GPTNeoX

K = 8


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 60, (40, 2 * K + 1))


@pytest.fixture(scope="module")
def model(rows: np.ndarray) -> GPTNeoX:
    """A model trained on the first ten rows until it has memorized them."""
    made = GPTNeoX(ModelConfig(2, 32, 2, 64, max_seq_len=2 * K))
    made.init_weights(0)
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    batch = torch.from_numpy(rows[:10])
    for _ in range(120):
        optimizer.zero_grad()
        made.loss(batch).backward()
        optimizer.step()
    return made.eval().requires_grad_(False)


def test_memorized_rows_are_found(model: GPTNeoX, rows: np.ndarray) -> None:
    found = extract(model, rows, K, K)
    assert found.memorized[:10].all()
    assert not found.memorized[10:].any()
    assert (found.margin[:10] > 0).all()
    assert np.isnan(found.margin[10:]).all()


@pytest.mark.parametrize(("context", "continuation"), [(K, K), (4, 12), (1, 3), (12, 1)])
def test_extraction_equals_generation(
    model: GPTNeoX, rows: np.ndarray, context: int, continuation: int
) -> None:
    """Also for rows that begin like a memorized one but end differently."""
    mixed = np.concatenate([rows, rows[:10]])
    mixed[40:, context + continuation - 1] = 61  # a wrong last token
    found = extract(model, mixed, context, continuation)
    made = generate(model, mixed[:, :context].tolist(), continuation)
    same = (np.array(made) == mixed[:, context : context + continuation]).all(1)
    np.testing.assert_array_equal(found.memorized, same)
    assert found.memorized.any()
    assert not found.memorized[40:].any()
    assert check_by_generation(model, mixed, found, context, continuation, 30)[1] == 0


def test_recited_tokens_are_counted_up_to_the_first_error(model: GPTNeoX, rows: np.ndarray) -> None:
    wrong = np.concatenate([rows, rows[:10]])
    wrong[40:, K + 3] = 61  # the fourth token to recite
    counts = recited(model, wrong, K, K, token_budget=40)
    assert (counts[:10] == K).all() and (counts[40:] == 3).all()
    made = np.array(generate(model, wrong[:, :K].tolist(), K)) == wrong[:, K : 2 * K]
    np.testing.assert_array_equal(counts, made.cumprod(1).sum(1))
    np.testing.assert_array_equal(counts == K, extract(model, wrong, K, K).memorized)


def test_the_check_finds_a_wrong_result(model: GPTNeoX, rows: np.ndarray) -> None:
    found = extract(model, rows, K, K)
    wrong = type(found)(~found.memorized, found.margin)
    n, differing = check_by_generation(model, rows, wrong, K, K, 20)
    assert n == differing == 20
    with pytest.raises(DataError, match=r"40 rows, but .* results of 39"):
        check_by_generation(model, rows, type(found)(found.memorized[1:], found.margin[1:]), K, K)


def test_equal_rows_get_equal_results_in_any_batch(model: GPTNeoX, rows: np.ndarray) -> None:
    twice = np.concatenate([rows, rows[::-1]])
    whole, small = extract(model, twice, K, K), extract(model, twice, K, K, token_budget=40)
    np.testing.assert_array_equal(whole.memorized, small.memorized)
    np.testing.assert_array_equal(whole.memorized[:40], whole.memorized[40:][::-1])


def test_bad_lengths_are_refused(model: GPTNeoX, rows: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        extract(model, rows, 0, 4)
    with pytest.raises((ConfigError, DataError)):
        extract(model, rows, K, K + 2)


# --- repetition counts -----------------------------------------------------------------------


def slow_counts(rows: np.ndarray, windows: np.ndarray) -> list[int]:
    width = windows.shape[1]
    seen = [tuple(row[i : i + width]) for row in rows for i in range(len(row) - width + 1)]
    return [seen.count(tuple(window)) for window in windows]


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=12),
    start=st.integers(0, 8),
    share=st.floats(0, 1),
)
def test_counts_equal_a_slow_count(rows: list, start: int, share: float) -> None:
    array = np.array(rows, np.uint16)
    read, windows = array[: round(share * len(rows))], array[:, start:]
    assert repetition_counts(read, windows).tolist() == slow_counts(read, windows)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=9))
def test_hash_collisions_do_not_change_the_counts(rows: list) -> None:
    """With a multiplier of 0, all windows with the same last token have the same hash."""
    array = np.array(rows, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memorization, "MULTIPLIER", 0)
        windows = array[:, 1:5]
        assert repetition_counts(array, windows).tolist() == slow_counts(array, windows)


def test_a_planted_continuation_is_counted_wherever_it_was_read() -> None:
    """Copies of a text that are cut, edited or moved teach the same continuation."""
    rng = np.random.default_rng(0)
    width, k, n = 64, 16, 12
    rows = rng.integers(1, 5000, (40, width))
    text = rows[0, : k + n].copy()
    rows[1, : k + n] = text  # the same beginning
    rows[2, 20 : 20 + k + n] = text  # the whole text, further on in a row
    rows[3, : n + 2] = text[k - 2 :]  # begins with the end of the context
    rows[4, : k + n] = text
    rows[4, k - 1] = 0  # the last token of the context changed
    rows[5, : k + n] = text
    rows[5, k + 3] = 0  # a token of the continuation changed: another continuation
    rows[6, -n + 1 :] = text[k : k + n - 1]  # the continuation is cut by the end of the row
    counts = repetition_counts(rows, rows[:, k : k + n])
    assert counts[[0, 1, 4]].tolist() == [5, 5, 5]
    assert (np.delete(counts, [0, 1, 4]) == 1).all()
    beginnings = repetition_counts(rows, rows[:, : k + n])
    assert beginnings[[0, 4]].tolist() == [3, 1]  # what counting whole beginnings misses
    assert repetition_counts(rows[10:], rows[:10, k : k + n]).max() == 0


@given(st.lists(st.lists(st.integers(0, 1), min_size=4, max_size=4), min_size=1, max_size=9))
def test_rows_with_equal_beginnings_share_a_window(rows: list) -> None:
    array = np.array(rows, np.uint16)
    distinct, group = distinct_windows(array, 3)
    np.testing.assert_array_equal(distinct[group], array[:, :3])
    assert len({tuple(row) for row in distinct}) == len(distinct)


def test_windows_that_do_not_fit_are_refused() -> None:
    rows = np.zeros((3, 8), np.uint16)
    with pytest.raises(ConfigError, match="does not fit in rows of 8"):
        repetition_counts(rows, np.zeros((2, 9), np.uint16))
    assert repetition_counts(rows, np.zeros((0, 3), np.uint16)).tolist() == []
