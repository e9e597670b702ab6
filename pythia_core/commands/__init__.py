"""The commands of `python -m pythia_core` by topic; `pythia_core.__main__` runs them.

Each module's `add` declares its commands; the functions below it only call the library. Heavy
modules are imported inside those functions, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Protocol

from pythia_core.suite import SCALES

RUN = "a run's folder or (the beginning of) its id"


class AddCommand(Protocol):
    """Declares a command and returns its parser, to which arguments are added.

    A command that resumes where it was stopped sets the default `kept`: what is kept, in words.
    """

    def __call__(
        self,
        name: str,
        function: Callable[[argparse.Namespace], None],
        text: str,
        **settings: Any,
    ) -> argparse.ArgumentParser: ...


def trained_scales() -> list[str]:
    """Scales whose models are trained from scratch."""
    return [name for name, scale in SCALES.items() if not scale.published]
