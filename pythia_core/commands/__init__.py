"""The library's own commands of `python -m pythia_core`.

Each module has a function `add`, which declares its commands. The functions that run commands
import heavy modules only when they run, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

from pythia_core.suite import SCALES

RUN = "folder or id of a run (or the beginning of the id)"


class AddCommand(Protocol):
    """Declares a command and returns its parser, to which the caller adds arguments.

    For a command that can be resumed, the caller also sets the parser's default `resume_note`, e.g.
    "training so far is saved". This note is printed if the user stops the command.

    Args:
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
