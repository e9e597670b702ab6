"""One progress bar for everything that takes long: silent in logs, visible under papermill.

A bar is drawn on the error stream if that is a terminal. In a notebook's kernel it never is; there
the terminal that started papermill is used, if there is one (`PYTHIA_TERMINAL`, set by
pythia_book.papermill_engine), so that bars show where a person waits and never in the notebook. In
a worker process (pythia_core.util.workers) bars draw nothing and add to what the parent's bar
counts.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

TERMINAL = "PYTHIA_TERMINAL"
_shared_count: Any = None


def _stream() -> TextIO:
    name = os.environ.get(TERMINAL)
    if name and not sys.stderr.isatty():
        try:
            return open(name, "w", encoding="utf-8")
        except OSError:
            pass
    return sys.stderr


class _Relay(tqdm):
    """Draws nothing; what it counts is added to the parent's bar."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(disable=True, **settings)
        self.update(settings.get("initial", 0))

    def update(self, n: float | None = 1) -> bool | None:
        with _shared_count.get_lock():
            _shared_count.value += int(n or 0)
        return None


def relay_to(count: Any) -> None:
    """From now on every bar of this process adds to `count`, a multiprocessing.Value."""
    global _shared_count
    _shared_count = count


def bar(show: bool = True, **settings: Any) -> tqdm:
    """A tqdm bar with this project's settings; `show=False` makes it silent."""
    if _shared_count is not None:
        return _Relay(**settings)
    quiet = None if show else True  # None: tqdm draws on terminals only
    return tqdm(file=_stream(), mininterval=1, disable=quiet, dynamic_ncols=True, **settings)
