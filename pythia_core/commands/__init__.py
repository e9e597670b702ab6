"""The library's own commands of `python -m pythia_core`, and the types of all arguments.

Each module has a function `add`, which declares its commands. The functions that run commands
import heavy modules only when they run, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, Protocol

from pythia_core.suite import SCALES
from pythia_core.training.execution import SHARDING

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


# --- types of arguments ----------------------------------------------------------------------


def nonblank(word: str) -> str:
    """Return a path or a name unless it is blank, as the value of an unset shell variable is.

    Raises:
        argparse.ArgumentTypeError: the word is blank.
    """
    if not word.strip():
        raise argparse.ArgumentTypeError(
            f"expected a path or a name, got {word!r}; perhaps a shell variable is not set"
        )
    return word


def whole_number(word: str) -> int:
    """Parse a whole number of at least 0, such as a count or a step.

    Raises:
        argparse.ArgumentTypeError: the word is not such a number.
    """
    if not word.isascii() or not word.isdecimal() or len(word) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {word!r}")
    return int(word)


def seed_number(word: str) -> int:
    """Parse a seed of a random generator, a whole number below 2**32.

    Raises:
        argparse.ArgumentTypeError: the word is not such a number.
    """
    if (number := whole_number(word)) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a seed below 2**32, got {word}")
    return number


def positive_number(word: str) -> float:
    """Parse a positive, finite number such as a size or a duration.

    Raises:
        argparse.ArgumentTypeError: the word is not such a number.
    """
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number such as 0.5, got {word!r}")
    return number


COUNT: dict[str, Any] = {"type": whole_number, "metavar": "N"}
STEP: dict[str, Any] = {"type": whole_number, "metavar": "K"}
"""Keyword arguments of `add_argument` for an option that takes a count (COUNT) or a step (STEP)."""


def share_under_torchrun(p: argparse.ArgumentParser) -> None:
    """Mark a command as one that torchrun's processes share, and add the option --shard to it."""
    p.set_defaults(together=True)
    p.add_argument(
        "--shard",
        choices=SHARDING,
        default="auto",
        help="under torchrun, when to split weights, gradients and optimizer state over the "
        "processes: only if they do not fit on one device (auto, the default), never, or always; "
        "when split, updates run in eager mode",
    )
