"""Batches read in a thread before they are asked for, so that a step does not wait for a network.

A batch is a pure function of the step; which of them are read early changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

AHEAD = 4
"""Batches that may be there before their time; 4.2 MB each of the pre-shuffled Pile."""


class ReadAhead:
    """`batch_at` up to, not with, step `stop`, asked for in ascending order of steps.

    Errors of a step come when that step is asked for. To be closed (a context manager).
    """

    def __init__(
        self, batch_at: Callable[[int], np.ndarray], stop: int, ahead: int = AHEAD
    ) -> None:
        self._batch_at, self._stop, self._ahead = batch_at, stop, ahead
        self._found: dict[int, Future[np.ndarray]] = {}
        self._reader = ThreadPoolExecutor(1, "read-ahead")  # one: the order of reads is kept

    def __call__(self, step: int) -> np.ndarray:
        for later in range(step, min(step + 1 + self._ahead, max(self._stop, step + 1))):
            if later not in self._found:
                self._found[later] = self._reader.submit(self._batch_at, later)
        return self._found.pop(step).result()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
