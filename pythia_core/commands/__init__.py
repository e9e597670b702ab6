"""The commands of `python -m pythia_core` by topic; `pythia_core.__main__` runs them.

Each module's `add` declares its commands; the functions below it only call the library. They import
heavy modules themselves, so `--help` is fast.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

from pythia_core.suite import SCALES

RUN = "folder or id of a run (or the beginning of the id)"


class AddCommand(Protocol):
    """Declares a command and returns its parser, to which the caller adds arguments.

    A command that can be resumed sets the default `resume_note`, e.g. "training so far is saved".
    """

    def __call__(
        self,
        name: str,
        function: Callable[[argparse.Namespace], None],
        text: str,
        **settings: Any,
    ) -> argparse.ArgumentParser: ...


def trained_scales() -> list[str]:
    """Names of the scales whose models are trained from scratch."""
    return [name for name, scale in SCALES.items() if not scale.published]
