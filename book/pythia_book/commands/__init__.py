"""The book's part of the command line: studies, models, data, speed, other machines.

Bad arguments are refused at the start, not after minutes of work.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from pythia_core.errors import ConfigError, MissingDependencyError


def file_to_write(option: str, name: str | Path, parquet: bool = False) -> Path:
    """The file that an option names, in a folder that is made if need be.

    Raises:
        ConfigError: nothing can be written there. MissingDependencyError: nothing writes `parquet`.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{option} takes the name of a file, {name} is a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option}: {name} cannot be written")
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(f"{option} writes Parquet with pyarrow: pip install pyarrow")
    return path
