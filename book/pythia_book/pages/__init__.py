"""Draws the figures and tables of the explanatory pages, and computes the numbers in their prose.

This module has the helpers that the pages share.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

DASH = "\N{EN DASH}"


def hls_colour(degrees: float, lightness: float, saturation: float) -> str:
    """Convert an HLS colour to "#rrggbb", with the same rounding as in the scripts of the pages.

    Args:
        degrees: the hue, as an angle on the colour circle.
    """
    red, green, blue = colorsys.hls_to_rgb(degrees % 360 / 360, lightness, saturation)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def formatted(
    frame: pd.DataFrame, columns: dict[str, tuple[str, Callable[[Any], str]]]
) -> pd.DataFrame:
    """Format the cells of a table as text; missing values become a dash.

    Args:
        columns: maps the name of a column of `frame` to (title, function that formats a cell).

    Returns:
        A frame of texts with only the columns in `columns`, under their titles.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            title: [DASH if pd.isna(v) else text(v) for v in frame[name].tolist()]
            for name, (title, text) in columns.items()
        }
    )
