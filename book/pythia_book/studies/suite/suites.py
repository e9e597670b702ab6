"""Reads suites.toml, which describes public suites of models and names the sources."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

CELLS = ("data", "order", "checkpoints", "optimizer", "seeds", "license")
"""The properties by which suites are compared."""


def _read_suites() -> tuple[list[dict[str, Any]], str]:
    """Return the public suites in suites.toml, and the day on which their sources were read."""
    content = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    return content["suite"], content["read"]


SUITES, READ = _read_suites()
"""Public suites of models with their sources, and when the sources were read."""


def suites_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a table of public suites of models, and a table of the sources of the first table.

    The first table has the columns `suite`, `year`, `sizes`, `models`, and CELLS. The second has
    `suite`, `cell` (one of CELLS, or "about" for the other columns), `url` and `quote`.
    """
    import pandas as pd

    rows, sources = [], []
    for suite in SUITES:
        about = suite["about"]
        row = {"suite": suite["name"]} | {k: about[k] for k in ("year", "sizes", "models")}
        rows.append(row | {cell: suite[cell]["text"] for cell in CELLS})
        for cell in ("about", *CELLS):
            sources += [{"suite": suite["name"], "cell": cell, **s} for s in suite[cell]["sources"]]
    return pd.DataFrame(rows), pd.DataFrame(sources)
