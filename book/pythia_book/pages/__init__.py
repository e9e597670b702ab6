"""Figures, tables and numbers for the explanatory pages; shared helpers in this file."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

DASH = "\N{EN DASH}"


def hls_colour(degrees: float, lightness: float, saturation: float) -> str:
    """A colour of the colour circle as "#rrggbb", rounded like in the pages' scripts."""
    red, green, blue = colorsys.hls_to_rgb(degrees % 360 / 360, lightness, saturation)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def formatted(
    frame: pd.DataFrame, columns: dict[str, tuple[str, Callable[[Any], str]]]
) -> pd.DataFrame:
    """A frame of formatted cells; missing values become a dash.

    Args:
        columns: the columns to show: name -> (title, formatter of a cell).
    """
    import pandas as pd

    return pd.DataFrame(
        {
            title: [DASH if pd.isna(v) else text(v) for v in frame[name].tolist()]
            for name, (title, text) in columns.items()
        }
    )
