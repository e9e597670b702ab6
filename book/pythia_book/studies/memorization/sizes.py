"""Estimates slopes per doubling of the nominal model size, with an interval over sizes.

The models of a suite read the same rows in the same order. Noise that they share shifts all of them
equally and leaves the slope unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pythia_book.stats import slope
from pythia_book.verdicts import Test, rises, untestable
from pythia_core.suite import nominal_parameters

FEWEST_SIZES = 3
"""The smallest number of sizes for which a trend over sizes is tested."""
RATES_DIFFER = "smaller sizes have higher peak learning rates"


def size_trend(
    by_size: dict[str, float], unit: str, units: str, note: str = "", errors: Sequence[float] = ()
) -> Test:
    """Test that a measure rises with model size.

    Args:
        by_size: maps each size to the measure; empty or with a NaN: it was not measured.
        unit: the unit of the measure.
        units: says what was measured at the sizes, e.g. "one run each".
        errors: if the measure is less certain at some sizes, the standard error at each size.
    """
    unit, n = f"{unit} per doubling of the nominal size", len(by_size)
    if not all(map(math.isfinite, by_size.values())) or not n:
        return rises(None, unit, "")
    if n < FEWEST_SIZES:
        return untestable(f"a trend needs at least {FEWEST_SIZES} sizes, got {n}")
    doublings = [math.log2(nominal_parameters(size)) for size in by_size]
    e = slope(doublings, [*by_size.values()], errors or None)
    return rises(e, unit, f"{n} sizes, {units}", note=note)


def confounded(trend: Test, reason: str = RATES_DIFFER) -> Test:
    """Return a trend over our sizes without a verdict, since more than size differs."""
    return untestable(trend.reason or reason, trend.estimate, trend.unit, trend.units, trend.note)
