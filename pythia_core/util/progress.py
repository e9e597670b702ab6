"""Show the progress of long work: a bar for a person, plain lines in a log.

Each stage of the work has its own bar, named by `desc`. The form depends on the place:

    at a terminal                     tqdm's bar, on the error stream
    with output to a pipe or file     a line when a stage begins, every LOG_SECONDS, and at its end
    in a notebook opened by a person  tqdm's bar as text in the cell's output, redrawn in place
    in a notebook run by papermill    tqdm's bar, on the terminal in which papermill was started
    in one of many parallel jobs      part of a line that all jobs share (pythia_core.util.workers)
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

TERMINAL = "PYTHIA_TERMINAL"
"""Environment variable with the terminal of the command that runs this notebook. It is empty if
the command has no terminal; the command then relays the kernel's error stream."""
LOG_SECONDS = 20.0
"""Seconds between two lines of a stage in a log."""
DONE = "{desc}: done in {elapsed}"
Report = Callable[[float, str], None]
"""Receives a job's progress: the fraction done, from 0 to 1, and a position, e.g. "step 4/9"."""

_report: Report | None = None

# bars are text here; tqdm.auto, which other libraries import in a kernel, asks for ipywidgets
warnings.filterwarnings("ignore", "IProgress not found")


class _Lines(tqdm):
    """A progress bar that prints plain lines to a log. (With `gui=True`, tqdm draws nothing.)"""

    desc: str

    def __init__(self, **settings: Any) -> None:
        if settings.get("unit_scale"):
            position = "{n_fmt}{unit}" + (" of {total_fmt}{unit}" if settings.get("total") else "")
        else:
            position = "{unit} {n_fmt}" + (" of {total_fmt}" if settings.get("total") else "")
        left = "{remaining} left" if settings.get("total") else "{elapsed} so far"
        defaults = {"bar_format": f"{{desc}}: {position}, {left}{{postfix}}", "miniters": 1}
        fixed = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "ncols": 1000}
        super().__init__(gui=True, file=sys.stderr, **(defaults | settings | fixed))
        self._title, self._interrupted = self.desc, False
        self._print(self._title)

    def _print(self, line: str) -> None:
        """Write a line to the log immediately."""
        self.fp.write(f"{line}\n")  # in one piece: print could be interrupted before the newline
        self.fp.flush()

    def display(self, *_: Any, **__: Any) -> None:
        """Print the current state of the bar."""
        self._print(str(self))

    def clear(self, *_: Any, **__: Any) -> None:
        """Do nothing, because there is no bar on the screen to erase."""

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self._interrupted = kind is not None
        super().__exit__(kind, *rest)

    def close(self) -> None:
        """Print "done", or the current state if the stage did not finish, and close the bar."""
        if not getattr(self, "disable", True):
            if not self._interrupted and (self.total is None or self.n >= self.total):
                self.desc, self.bar_format = self._title, DONE
            self.display()
        super().close()

    def __del__(self) -> None:
        """Do nothing. tqdm would print a line here if an error had left the bar open."""


class _Reporting(tqdm):
    """A progress bar that draws nothing, but passes the state of its job to `_report`.

    The reported position, e.g. "step 412/572, 61.0k tokens/s", ends with the part of tqdm's postfix
    before the first comma.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(gui=True, **(settings | {"mininterval": 0.5, "miniters": 1}))
        self.display()

    def display(self, *_: Any, **__: Any) -> None:
        """Report the current state of the bar."""
        if _report is not None and self.total:
            share = (self.n - self.initial) / max(1, self.total - self.initial)
            first = str(self.postfix or "").partition(", ")[0]
            _report(share, ", ".join(filter(None, (f"{self.unit} {self.n}/{self.total}", first))))

    def clear(self, *_: Any, **__: Any) -> None:
        """Do nothing, because there is no bar on the screen to erase."""


@contextlib.contextmanager
def reporting(report: Report) -> Iterator[None]:
    """Make bars created inside the block call `report`, twice per second, instead of drawing."""
    global _report
    before, _report = _report, report
    try:
        yield
    finally:
        _report = before


def is_live(stream: TextIO) -> bool:
    """Return whether a stream is a terminal of known width, on which a line can be redrawn."""
    try:
        return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:
        return False


def _terminal() -> TextIO | None:
    """Return the terminal on which a progress bar can be redrawn; None if there is none."""
    if is_live(sys.stderr):
        return sys.stderr
    if name := os.environ.get(TERMINAL):
        with contextlib.suppress(OSError):
            terminal = open(name, "w", encoding="utf-8")
            terminal.write("\r\033[K")  # erase what papermill has drawn there
            return terminal
    return None


def print_line(text: str) -> None:
    """Print a line where progress is shown, and leave the bars there intact."""
    tqdm.write(text, file=_terminal() or sys.stderr)


def bar(show: bool = True, **settings: Any) -> tqdm:
    """Create a progress bar in the form that suits the place (see the module's docstring).

    Args:
        show: if false, the bar shows nothing.
        settings: arguments of tqdm. A bar without `desc` shows nothing in a log.
    """
    if not show:
        return tqdm(disable=True, **settings)
    if _report is not None:
        return _Reporting(**settings)
    settings = {"mininterval": 1.0} | settings
    terminal = _terminal()
    if terminal is not None:
        return tqdm(file=terminal, dynamic_ncols=True, **settings)
    if TERMINAL not in os.environ and type(sys.stderr).__module__.startswith("ipykernel"):
        return tqdm(file=sys.stderr, ncols=100, **settings)
    return _Lines(**settings) if settings.get("desc") else tqdm(disable=True, **settings)
