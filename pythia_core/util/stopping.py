"""Stopping on Ctrl-C (SIGINT) and SIGTERM, at a terminal and under a scheduler.

Work that can save its state polls `stop_requests`, saves, and raises `Stopped`. Everything else is
interrupted immediately, which is safe because files are written atomically. A command then prints
one line that says what was kept (`report_stop`) and exits with 128 plus the signal number.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

COMMAND = "PYTHIA_COMMAND"
"""What the user typed, if it is not this process's command line; set by the Makefile."""
PATIENCE = 1.0
"""Seconds within which a second signal counts as the first: make forwards SIGTERM to a command that
has already received it, and people press Ctrl-C twice."""


class Stopped(KeyboardInterrupt):
    """The user or a scheduler requested a stop; `number` is the signal number."""

    def __init__(self, message: str = "stopped", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = int(number)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
_last = -PATIENCE
_arrived: list[int] | None = None


@contextlib.contextmanager
def _handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Pass both signals to `handler`, except repeated ones."""
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, _frame: Any) -> None:
        global _last
        now = time.monotonic()
        if now > _last + PATIENCE:
            _last = now
            handler(number)

    with contextlib.suppress(ValueError):  # not the main thread: keep the default handling
        for number in SIGNALS:
            previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, before in previous.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, before)


@contextlib.contextmanager
def stop_requests(notify: Callable[[], None] | None = None) -> Iterator[Callable[[], int]]:
    """Record SIGINT and SIGTERM inside the block; a second one, after PATIENCE, raises `Stopped`.

    Nested blocks share the record. `notify` is called when the first signal arrives.

    Yields:
        A function that returns the number of the signal received, 0 if none.
    """
    global _arrived
    outer = _arrived
    arrived = _arrived = [] if outer is None else outer

    def record(number: int) -> None:
        if arrived:
            raise Stopped(number=number)
        arrived.append(number)
        if notify is not None:
            notify()

    try:
        with _handled(record):
            yield lambda: arrived[0] if arrived else 0
    finally:
        _arrived = outer


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block, SIGINT and SIGTERM raise `Stopped` immediately."""

    def stop(number: int) -> None:
        raise Stopped(number=number)

    with _handled(stop):
        yield


@contextlib.contextmanager
def uninterrupted_children() -> Iterator[None]:
    """Processes started inside the block never see SIGINT, which a terminal sends to the whole
    group, and print no tracebacks; their parent stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore both signals from now on, because little is left to do."""
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def report_stop(stop: KeyboardInterrupt, kept: str | None = "") -> int:
    """Print one line to the error stream: the command was stopped, and how to go on.

    Afterwards the process should exit with the returned code: it ignores signals and logs nothing
    more.

    Args:
        kept: what was kept, e.g. "what was trained is kept"; empty if the command would start over;
            None if nothing had been done yet.
    """
    logging.disable()
    ignore_signals()
    typed = os.environ.get(COMMAND)
    again = f"run {f'`{typed}`' if typed else 'the same command'} again"
    if kept is None:
        then = f" before anything began: {again}"
    else:
        then = f"; {kept}: {again} to go on from there" if kept else f": {again} to start over"
    begin = "\n" if sys.stderr.isatty() else ""  # the terminal has echoed ^C
    print(f"{begin}{str(stop) or 'stopped'}{then}", file=sys.stderr, flush=True)
    return 128 + getattr(stop, "number", signal.SIGINT)
