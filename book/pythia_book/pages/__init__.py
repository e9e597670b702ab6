"""Draws figures and tables of the explanatory pages, and computes the numbers in their prose."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pythia_book.style import DASH

if TYPE_CHECKING:
    import pandas as pd


def hls_color(degrees: float, lightness: float, saturation: float) -> str:
    """Convert an HLS color (hue in degrees) to "#rrggbb", rounded as in the pages' scripts."""
    red, green, blue = colorsys.hls_to_rgb(degrees % 360 / 360, lightness, saturation)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def formatted(
    frame: pd.DataFrame, columns: dict[str, tuple[str, Callable[[Any], str]]]
) -> pd.DataFrame:
    """Return some columns of a table, renamed and as text; a missing value becomes a dash.

    Args:
        columns: maps a column of `frame` to (title, function that formats a value of the column).
    """
    import pandas as pd

    return pd.DataFrame(
        {
            title: [DASH if pd.isna(v) else text(v) for v in frame[name].tolist()]
            for name, (title, text) in columns.items()
        }
    )
