"""The book's commands. They reject bad arguments at once, not after some work."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError, MissingDependencyError

COUNT: dict[str, Any] = {"type": int, "metavar": "N"}
STEP: dict[str, Any] = {"type": int, "metavar": "K"}
"""Arguments of add_argument for an option that takes a count or a step."""


def file_to_write(option: str, name: str | Path, parquet: bool = False) -> Path:
    """The path of an output file that an option names; creates its folder if needed.

    Raises:
        ConfigError: the file is not writable. MissingDependencyError: pyarrow is not installed.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{option} takes the name of a file, but {name} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option}: {name} is not writable")
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f"{option} needs pyarrow to write Parquet: pip install pyarrow"
        )
    return path
