"""Prefetched batches are those that were requested, in order, and errors come with their step."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from pythia_book.released.continuation.run import Prefetch

from pythia_core.errors import FetchError


def test_the_next_batches_are_read_while_one_is_used() -> None:
    read: list[int] = []
    third = threading.Event()

    def batch_at(step: int) -> np.ndarray:
        read.append(step)
        if step == 7:
            third.set()
        return np.full(3, step)

    with Prefetch(batch_at, stop=9, depth=2) as batches:
        assert batches(5).tolist() == [5, 5, 5]
        assert third.wait(5), "two more are read, unasked"
        assert [int(batches(step)[0]) for step in (6, 7, 8)] == [6, 7, 8]
        assert read == [5, 6, 7, 8], "each once, in order, none past the end"
        assert batches(20)[0] == 20, "a step past the end is read on request"


def test_an_error_comes_with_its_step() -> None:
    def batch_at(step: int) -> np.ndarray:
        if step == 3:
            raise FetchError("the server is gone")
        return np.zeros(1)

    with Prefetch(batch_at, stop=9) as batches:
        for step in range(3):
            batches(step)
        with pytest.raises(FetchError, match="is gone"):
            batches(3)
