"""Defines the commands that the book adds to `python -m pythia_core`, one group per module."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError, MissingDependencyError
from pythia_core.util.files import check_writable


def whole_number(word: str) -> int:
    """Parse a whole number of at least 0, such as a count or a step.

    Raises:
        argparse.ArgumentTypeError: the word is not one.
    """
    if not word.isascii() or not word.isdecimal() or len(word) > 18:
        raise argparse.ArgumentTypeError(f"expected a whole number such as 0 or 12, got {word!r}")
    return int(word)


def seed_number(word: str) -> int:
    """Parse a seed of a random generator, a whole number below 2**32.

    Raises:
        argparse.ArgumentTypeError: the word is not one.
    """
    if (number := whole_number(word)) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected a seed below 2**32, got {word}")
    return number


COUNT: dict[str, Any] = {"type": whole_number, "metavar": "N"}
STEP: dict[str, Any] = {"type": whole_number, "metavar": "K"}
"""Keyword arguments of `add_argument` for an option that takes a count (COUNT) or a step (STEP)."""


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names; return those that are not empty."""
    return tuple(filter(None, text.split(",")))


def utf8_text(word: str) -> str:
    """Return a word of the command line as text. It must be UTF-8, whatever the locale is.

    Raises:
        ConfigError: it is not.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(f"{word!r} is not UTF-8 text; type it in a UTF-8 terminal") from error


def file_to_write(option: str, name: str | Path, parquet: bool = False) -> Path:
    """Check that an output file can be written, and create its folder; return the path of the file.

    Args:
        option: the option that names the file, e.g. "--out", for error messages.
        parquet: whether the file is Parquet, which needs pyarrow.

    Raises:
        ConfigError: `name` is a folder or not UTF-8, or the file is not writable.
        MissingDependencyError: pyarrow is needed but not installed.
    """
    utf8_text(str(name))  # some libraries cannot write to other names
    path = Path(name).expanduser()
    if path.is_dir():
        raise ConfigError(f"{option} must be the name of a file, but {name} is a folder")
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"the file {name} of {option} cannot be written: no permission")
    if not path.exists() or path.is_file():  # else it is a device or a pipe
        check_writable(path.parent, f"choose another file for {option}")
        path.parent.mkdir(parents=True, exist_ok=True)
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f"{option} needs pyarrow to write Parquet; run pip install pyarrow"
        )
    return path
