"""Defines the colors of all figures, and computes their variants for dark pages.

Every data color has a contrast of at least 3:1 with the page, and every text 4.5:1, on light and
on dark pages. Model sizes get colors from dark to light, on a path through all hues, so that
neighbors differ in hue and lightness, even for color-blind readers. Colors are computed in
OKLCH, where equal steps look equally large.
"""

from __future__ import annotations

import functools
import math

from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import GPU_SIZES, LAPTOP_SIZES, OFFICIAL_SIZES

INK = "#222222"
MUTED = "#6b6b6b"
GRID = "#e3e3e3"
WHITE = "#ffffff"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#00875f"
PINK, SKY, GOLD, BROWN = "#b5538c", "#2f8fc9", "#a67c00", "#7a5f2a"
"""Colors for anything but model sizes; color-blind readers can tell them apart."""
PALE = "#d4d4d4"
"""Fills areas that do not show data, or the rest of a whole."""
DARK_PAGE = "#121212"
"""The background of the site's dark pages."""
THEME = {
    INK: "var(--pst-color-text-base)",
    MUTED: "var(--mute)",
    GRID: "var(--figure-grid)",
    WHITE: "var(--pst-color-background)",
}
"""Maps the colors of text, grid and paper to what the site's theme has for them."""
GRAPHIC, TEXT = 3.0, 4.5
"""Smallest contrast of graphics and of text, by the accessibility guidelines (WCAG 2.2)."""

_FIRST_HUE, _HUES, _CHROMA = 280, 320, 0.18
_DARKEST, _LIGHTEST = 0.30, 0.66
_PALE_LIGHTNESS, _PALE_CHROMA = 0.80, 0.05


def size_color(size: str) -> str:
    """Return the color of a model size. Smaller sizes are darker.

    Raises:
        ConfigError: the size is unknown.
    """
    for sizes in (LAPTOP_SIZES, GPU_SIZES, OFFICIAL_SIZES):
        if size in sizes:
            return shade(list(sizes).index(size) / (len(sizes) - 1))
    raise ConfigError(one_of(size, [*LAPTOP_SIZES, *GPU_SIZES, *OFFICIAL_SIZES], "size"))


@functools.cache
def shade(position: float) -> str:
    """Return the color at a position in [0, 1] of the path from dark violet to light blue."""
    lightness = _DARKEST + (_LIGHTEST - _DARKEST) * position
    return _from_lch(lightness, _CHROMA, _FIRST_HUE + _HUES * position)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colors "#rrggbb", from 1 to 21."""
    low, high = sorted(luminance(color) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    """Return the relative luminance of a color "#rrggbb", from 0 (black) to 1 (white)."""
    red, green, blue = _linear(color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@functools.cache
def text_color(color: str) -> str:
    """Return the color, darkened until text in it can be read on a light page."""
    lightness, chroma, hue = _to_lch(color)
    while contrast(color, WHITE) < TEXT:
        lightness -= 0.01
        color = _from_lch(lightness, chroma, hue)
    return color


@functools.cache
def dark_variant(color: str, text: bool = False) -> str:
    """Return the color of the same hue for a dark page.

    Darker colors stay darker than lighter ones, and pale areas stay close to the background.
    """
    lightness, chroma, hue = _to_lch(color)
    paper = _to_lch(DARK_PAGE)[0]
    if lightness > _PALE_LIGHTNESS and chroma < _PALE_CHROMA and not text:
        return _from_lch(paper + 1.1 * (1 - lightness), chroma, hue)
    lightness = min(0.93, 0.54 + 0.9 * max(0.0, lightness - _DARKEST))
    variant = _from_lch(lightness, chroma, hue)
    while contrast(variant, DARK_PAGE) < (TEXT if text else GRAPHIC) and lightness < 1:
        lightness += 0.01
        variant = _from_lch(lightness, chroma, hue)
    return variant


# --- OKLCH -----------------------------------------------------------------------------------

_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_FROM_LAB = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_FROM_CONES = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)
_Matrix = tuple[tuple[float, float, float], ...]


def _times(matrix: _Matrix, vector: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix)


def _linear(color: str) -> tuple[float, ...]:
    """Return red, green and blue in linear light, from 0 to 1."""
    parts = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)


def _to_lch(color: str) -> tuple[float, float, float]:
    """Return lightness (0 to 1), chroma and hue in degrees."""
    cones = tuple(math.cbrt(c) for c in _times(_TO_CONES, _linear(color)))
    lightness, a, b = _times(_TO_LAB, cones)
    return lightness, math.hypot(a, b), math.degrees(math.atan2(b, a))


def _from_lch(lightness: float, chroma: float, hue: float) -> str:
    """Return the color as "#rrggbb"; the chroma is lowered until a screen can show the color."""
    angle = math.radians(hue)
    while True:
        lab = (lightness, chroma * math.cos(angle), chroma * math.sin(angle))
        rgb = _times(_FROM_CONES, tuple(c**3 for c in _times(_FROM_LAB, lab)))
        if chroma <= 0 or all(-1e-4 <= c <= 1.0001 for c in rgb):
            break
        chroma = max(0.0, chroma - 0.001)
    clipped = (min(1.0, max(0.0, c)) for c in rgb)
    bent = (12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055 for c in clipped)
    return "#" + "".join(f"{round(255 * c):02x}" for c in bent)
