"""Defines the commands that the book adds to `python -m pythia_core`, one group per module."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError, MissingDependencyError

COUNT: dict[str, Any] = {"type": int, "metavar": "N"}
STEP: dict[str, Any] = {"type": int, "metavar": "K"}
"""Keyword arguments of `add_argument` for an option that takes a count (COUNT) or a step (STEP)."""


def names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names; return those that are not empty."""
    return tuple(filter(None, text.split(",")))


def file_to_write(option: str, name: str | Path, parquet: bool = False) -> Path:
    """Check that an output file can be written, and create its folder; return the path of the file.

    Args:
        option: the option that names the file, e.g. "--out", for error messages.
        parquet: whether the file is Parquet, which needs pyarrow.

    Raises:
        ConfigError: `name` is a folder, or the file is not writable.
        MissingDependencyError: pyarrow is needed but not installed.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{option} must be the name of a file, but {name} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"the file {name} of {option} cannot be written: no permission")
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f"{option} needs pyarrow to write Parquet; run pip install pyarrow"
        )
    return path
