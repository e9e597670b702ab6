"""One progress bar for everything that takes long: silent in logs, visible under papermill.

A bar is drawn on the error stream if that is a terminal. In a notebook's kernel it never is; there
the terminal that started papermill is used, if there is one (`PYTHIA_TERMINAL`, set by
pythia_core.papermill_engine), so that bars show where a person waits and never in the notebook.
"""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

TERMINAL = "PYTHIA_TERMINAL"


def _stream() -> TextIO:
    name = os.environ.get(TERMINAL)
    if name and not sys.stderr.isatty():
        try:
            return open(name, "w", encoding="utf-8")
        except OSError:
            pass
    return sys.stderr


def bar(show: bool = True, **settings: Any) -> tqdm:
    """A tqdm bar with this project's settings; `show=False` makes it silent."""
    quiet = None if show else True  # None: tqdm draws on terminals only
    return tqdm(file=_stream(), mininterval=1, disable=quiet, dynamic_ncols=True, **settings)
