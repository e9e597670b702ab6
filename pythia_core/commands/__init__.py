"""The library's own commands of `python -m pythia_core`, which pythia_core.__main__ runs.

Each module in this package has a function `add`, which declares the commands of the module. Its
other functions run one command each, by calling the library. They import heavy modules only when
they run, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

from pythia_core.suite import SCALES

RUN = "folder or id of a run (or the beginning of the id)"


class AddCommand(Protocol):
    """A function that declares a command of `python -m pythia_core` and returns its parser.

    The caller adds the command's arguments to the parser. If the command can be resumed, the caller
    also calls the parser's `set_defaults` with a `resume_note`, e.g. "training so far is saved".
    This note is printed if the user stops the command.

    Args:
        name: the name of the command, as the user types it.
        function: runs the command, given the parsed arguments.
        text: one line that `--help` shows.
        settings: further arguments of argparse's `add_parser`.
    """

    def __call__(
        self,
        name: str,
        function: Callable[[argparse.Namespace], None],
        text: str,
        **settings: Any,
    ) -> argparse.ArgumentParser: ...


def trained_scales() -> list[str]:
    """Return the names of the scales at which models are trained from scratch, e.g. "laptop"."""
    return [name for name, scale in SCALES.items() if not scale.published]
