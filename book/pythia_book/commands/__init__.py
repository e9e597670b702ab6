"""Defines the commands that the book adds to `python -m pythia_core`, one group per module."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

from pythia_core.errors import ConfigError, MissingDependencyError
from pythia_core.util.files import check_writable


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names; return those that are not empty.

    Raises:
        argparse.ArgumentTypeError: the text has only commas and spaces.
    """
    listed = tuple(name for name in text.split(",") if name.strip())
    if text and not listed:
        raise argparse.ArgumentTypeError(
            f"expected a comma-separated list of names, got {text!r}; to use all, omit the option"
        )
    return listed


def utf8_text(word: str) -> str:
    """Return a word of the command line as text. It must be UTF-8, whatever the locale is.

    Raises:
        ConfigError: the word is not UTF-8.
    """
    try:
        return os.fsencode(word).decode("utf-8")
    except UnicodeError as error:
        raise ConfigError(f"{word!r} is not UTF-8 text; type it in a UTF-8 terminal") from error


def nonempty_text(word: str) -> str:
    """Return a word of the command line as UTF-8 text, which must not be empty.

    Raises:
        argparse.ArgumentTypeError: the word is empty.
        ConfigError: the word is not UTF-8.
    """
    if not word:
        raise argparse.ArgumentTypeError("expected text, got ''; pass some text or omit the option")
    return utf8_text(word)


def file_to_write(option: str, name: str | Path, suffixes: tuple[str, ...] = ()) -> Path:
    """Check that an output file can be written, and create its folder; return the path of the file.

    Args:
        option: the option that names the file, e.g. "--out", for error messages.
        suffixes: the accepted suffixes; () for any. ".parquet" needs pyarrow.

    Raises:
        ConfigError: `name` is a folder, is not UTF-8 or has another suffix, or the file is not
            writable.
        MissingDependencyError: pyarrow is needed but not installed.
    """
    utf8_text(str(name))  # some libraries cannot write to other names
    path = Path(name).expanduser()
    if path.is_dir():
        raise ConfigError(f"{option} must name a file, but {name} is a folder; add a file name")
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(
            f"{option}: the file name must end in {' or '.join(suffixes)}, got {str(name)!r}"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"{option}: no permission to write {name}; name another file")
    if not path.exists() or path.is_file():  # else it is a device or a pipe
        check_writable(path.parent, f"choose another file for {option}")
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f"{option} needs pyarrow to write Parquet; run pip install pyarrow"
        )
    return path
