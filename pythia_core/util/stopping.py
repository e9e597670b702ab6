"""Stop a command cleanly on Ctrl-C (SIGINT) and SIGTERM, at a terminal and under a scheduler.

Work that can save its state runs inside `stop_requests`, which only records the signal; the work
then saves its state and raises `Stopped`. All other work runs inside `interruptible`, where the
signal raises `Stopped` at once. This is safe, because files are written atomically. A process that
is forked by any package gets the default handling of signals back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

COMMAND = "PYTHIA_COMMAND"
"""Environment variable, set by the Makefile: what the user typed, e.g. "make book"."""
PATIENCE = 1.0
"""Seconds after a signal during which further signals are ignored. make forwards SIGTERM to a
command that has already received it, and people press Ctrl-C twice."""


class Stopped(KeyboardInterrupt):
    """The user or a scheduler has requested a stop with the signal `number`."""

    def __init__(self, message: str = "stopped", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = int(number)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
_last = -PATIENCE
_shared_record: list[int] | None = None
_before_fork = threading.local()


@contextlib.contextmanager
def _handle_signals(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler` on SIGINT or SIGTERM inside the block, at most once per PATIENCE seconds.

    Outside the main thread, signals are handled as before. Python drops an exception that is
    raised while an object is finalized (while modules are imported, that happens all the time). A
    `Stopped` that is lost in this way is raised again a moment later.
    """
    previous: dict[signal.Signals, Any] = {}
    report_dropped = sys.unraisablehook

    def handle(number: int, _frame: Any) -> None:
        global _last
        now = time.monotonic()
        if now > _last + PATIENCE:
            _last = now
            handler(number)

    def raise_again(dropped: sys.UnraisableHookArgs) -> None:
        global _last
        if not isinstance(dropped.exc_value, Stopped):
            return report_dropped(dropped)
        _last = -PATIENCE
        threading.Timer(0.05, os.kill, (os.getpid(), dropped.exc_value.number)).start()

    with contextlib.suppress(ValueError):  # not the main thread: keep the default handling
        for number in SIGNALS:
            previous[number] = signal.signal(number, handle)
        sys.unraisablehook = raise_again
    try:
        yield
    finally:
        if sys.unraisablehook is raise_again:
            sys.unraisablehook = report_dropped
        for number, before in previous.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, before)


def _hold_signals() -> None:
    """Block signals during a fork, so that none meets an inherited handler."""
    _before_fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _release_signals() -> None:
    """Restore the mask from before the fork."""
    signal.pthread_sigmask(signal.SIG_SETMASK, _before_fork.mask)


def _restore_default_signals() -> None:
    """Undo `_handle_signals` in a forked process, and restore the mask."""
    for number in SIGNALS:
        if getattr(signal.getsignal(number), "__module__", None) == __name__:
            signal.signal(number, signal.SIG_DFL)
    _release_signals()


# Other packages fork workers (the evaluation harness does). A worker that inherited our handlers
# would survive a SIGTERM while it waits for a lock, and its pool would wait for it forever.
os.register_at_fork(
    before=_hold_signals,
    after_in_parent=_release_signals,
    after_in_child=_restore_default_signals,
)


@contextlib.contextmanager
def stop_requests(notify: Callable[[], None] | None = None) -> Iterator[Callable[[], int]]:
    """Record the first SIGINT or SIGTERM inside the block instead of stopping at once.

    A second signal, more than PATIENCE seconds later, raises `Stopped`. Nested blocks share
    one record.

    Args:
        notify: called when the first signal arrives.

    Yields:
        A function that returns the recorded signal, e.g. SIGINT, or 0.
    """
    global _shared_record
    outer = _shared_record
    received = _shared_record = [] if outer is None else outer

    def record(number: int) -> None:
        if received:
            raise Stopped(number=number)
        received.append(number)
        if notify is not None:
            notify()

    try:
        with _handle_signals(record):
            yield lambda: received[0] if received else 0
    finally:
        _shared_record = outer


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGINT and SIGTERM raise `Stopped` immediately inside the block."""

    def stop(number: int) -> None:
        raise Stopped(number=number)

    with _handle_signals(stop):
        yield


@contextlib.contextmanager
def uninterrupted_children() -> Iterator[None]:
    """Keep SIGINT from processes started inside the block; only their parent stops them.

    A terminal sends Ctrl-C to the whole process group, and each child would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_signals() -> None:
    """Ignore SIGINT and SIGTERM from now on, because the process is about to end."""
    with contextlib.suppress(ValueError):
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


LAST_WORDS = 2.0
"""Seconds for which `leave_quietly` waits."""


def leave_quietly() -> NoReturn:
    """End one of several processes without a word, once the first has had the time to print why.

    When one process ends, torchrun ends the others, perhaps before the first one has printed.
    """
    ignore_signals()
    time.sleep(LAST_WORDS)
    raise SystemExit(1)


def report_stop(stop: KeyboardInterrupt, resume_note: str | None = "") -> int:
    """Print that the command was stopped, and how to continue; return the exit code.

    After this call, signals are ignored and nothing is logged.

    Args:
        stop: its message begins the line.
        resume_note: what was saved, e.g. "training so far is saved"; "" if nothing was saved; None
            if nothing had been done yet.

    Returns:
        128 plus the number of the signal.
    """
    logging.disable()
    ignore_signals()
    command = os.environ.get(COMMAND)
    rerun = f"run {f'`{command}`' if command else 'the same command'} again"
    if resume_note is None:
        advice = f" before anything was done: {rerun}"
    elif resume_note:
        advice = f"; {resume_note}: {rerun} to continue"
    else:
        advice = f": {rerun} to start over"
    newline = "\n" if sys.stderr.isatty() else ""  # the terminal has echoed ^C
    print(f"{newline}{str(stop) or 'stopped'}{advice}", file=sys.stderr, flush=True)
    return 128 + getattr(stop, "number", signal.SIGINT)
