"""The library's own commands of `python -m pythia_core`; `pythia_core.__main__` runs them.

Each module has a function `add`, which declares the module's commands. The other functions run a
command by calling the library. They import heavy modules when they run, so `--help` is fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

from pythia_core.suite import SCALES

RUN = "folder or id of a run (or the beginning of the id)"


class AddCommand(Protocol):
    """A function that declares a command and returns the command's parser.

    The caller adds the command's arguments to the parser.

    A command that can be resumed sets `resume_note` with `set_defaults`, e.g. to "training so far
    is saved". The note is printed if the user stops the command.

    Args:
        name: of the command.
        function: runs the command.
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
    """The names of the scales at which models are trained from scratch."""
    return [name for name, scale in SCALES.items() if not scale.published]
