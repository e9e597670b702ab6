"""Estimates how much a measure varies between seeds, to draw bands around curves of single runs.

The study of seeds trains two sizes several times. Its table `spreads` has the standard deviation of
each measure over these seeds during training. Other studies take the spread of single runs
(`of_single_runs`) from the record of that study (`find`), keep it in their own record, and
interpolate to their sizes and steps (`spread_at`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pythia_book import records
from pythia_core.errors import DataError
from pythia_core.suite import nominal_parameters
from pythia_core.util.files import project_root, results_dir

if TYPE_CHECKING:
    import pandas as pd

TABLE = "seed_spread"
"""The name of the table in the record of a study that draws bands."""
POOLED = "pooled"
"""In the table `spreads`: the spread of all groups of the smaller size, pooled."""
COLUMNS = ["measure", "size", "step", "percent", "sd", "n"]
SHARES = ("last_word", "memorized", "feminine_share", "sums_choice", "sums_exact")
"""The measures that are fractions of 1, so that a band ends at 0 and 1."""


def find(scale: str, redrawn: Path | None = None) -> pd.DataFrame:
    """Return the spread over seeds at a scale, with COLUMNS; `sd` in the unit of the measure.

    The table is from the recorded run of the study of seeds or, if this scale is not recorded, from
    your run. Without either, the table comes from the record that is being redrawn, if any;
    otherwise it is empty.

    Args:
        redrawn: the folder of the record that is being redrawn, if any.
    """
    import pandas as pd

    roots = (project_root() / "book" / "recorded", results_dir())
    for folder in [root / "seeds" / scale for root in roots]:
        spreads = _read(folder, "spreads")
        if spreads is not None:
            return of_single_runs(spreads)
    own = None if redrawn is None else _read(redrawn, TABLE)
    return pd.DataFrame(columns=COLUMNS) if own is None else own


def of_single_runs(spreads: pd.DataFrame) -> pd.DataFrame:
    """Return, with COLUMNS, how much single runs of each size vary if both of their seeds vary.

    On average, a change of both seeds moves a result at least as far as a change of one. So if the
    runs in which both vary have a smaller spread than all groups pooled, this is chance, and the
    pooled spread is used. Where the other groups were not measured, it is taken to exceed
    that of these runs by the same factor as at the end. `spreads`: the study's table of that name.
    """
    import pandas as pd

    curves = []
    for _, rows in spreads.dropna(subset=["sd"]).groupby(["measure", "size"], sort=False):
        pooled = rows[rows.kind == POOLED].set_index("step")[["sd", "n"]]
        curve = rows[rows.kind.isin(("both", "largest"))].sort_values("step")
        curve = curve.join(pooled.add_suffix("_pooled"), on="step")
        if len(pooled) and len(curve):
            last = curve.iloc[-1]
            factor = last.sd_pooled / last.sd if last.sd else 1.0
            curve = curve.fillna({"sd_pooled": factor * curve.sd, "n_pooled": last.n_pooled})
            wider = curve.sd_pooled > curve.sd
            curve["n"] = curve.n.mask(wider, curve.n_pooled).astype(int)
            curve["sd"] = curve.sd.mask(wider, curve.sd_pooled)
        curves.append(curve[COLUMNS])
    return pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=COLUMNS)


def _read(folder: Path, name: str) -> pd.DataFrame | None:
    """Read a table of a record; None if the record is absent, damaged, or has no such table."""
    try:
        return records.read_table(folder, name)
    except DataError:
        return None


def spread_at(
    table: pd.DataFrame, measure: str, size: str, percent: np.ndarray | list[float]
) -> np.ndarray:
    """Return the standard deviation of a measure over seeds, float64[points].

    Between measured checkpoints, the standard deviation is interpolated linearly in the percentage
    of training; between the two measured sizes, its logarithm is interpolated linearly in the
    logarithm of the number of parameters (if a size has 0, the standard deviation is interpolated
    instead). A smaller or larger size has the spread of the nearest measured one.

    Args:
        table: the result of `find`.
        percent: how much of training is done at each point, in percent. Outside the measured range,
            the result is NaN; step 0, which has the weights of step 1, also has its value.
    """
    rows = table[table.measure == measure]
    percent = np.asarray(percent, np.float64)
    curves = {}
    for measured, curve in rows.groupby("size"):
        curve = curve.sort_values("percent")
        at = np.maximum(percent, curve.percent.min()) if curve.step.min() <= 1 else percent
        values = np.interp(at, curve.percent, curve.sd, left=np.nan, right=np.nan)
        curves[nominal_parameters(str(measured))] = values
    if not curves:
        return np.full(percent.shape, np.nan)
    small, large = min(curves), max(curves)
    low, high = curves[small], curves[large]
    if small == large:
        return low
    share = np.log(nominal_parameters(size) / small) / np.log(large / small)
    share = min(max(share, 0.0), 1.0)
    straight = (1 - share) * low + share * high
    with np.errstate(divide="ignore", invalid="ignore"):
        bent = np.exp((1 - share) * np.log(low) + share * np.log(high))
    return np.where((low > 0) & (high > 0), bent, straight)


def source_text(table: pd.DataFrame, measure: str, sizes: Iterable[str] = ()) -> str:
    """Say which seeds the spread of a measure is from, e.g. "10 of 25k"; "" if it is unknown.

    Args:
        sizes: sizes drawn with this spread. Those that are smaller or larger than the measured ones
            are named, with the size whose spread they have (see `spread_at`).
    """
    rows = table[table.measure == measure]
    counts = rows.groupby("size").n.max()
    measured = sorted(counts.index, key=nominal_parameters)
    if not measured:
        return ""
    texts = [" and ".join(f"{int(counts[size])} of {size}" for size in measured)]
    for size in sorted(set(sizes), key=nominal_parameters):
        if nominal_parameters(size) < nominal_parameters(measured[0]):
            texts.append(f"{size} is drawn with the spread of {measured[0]}")
        elif nominal_parameters(size) > nominal_parameters(measured[-1]):
            texts.append(f"{size} is drawn with the spread of {measured[-1]}")
    return "; ".join(texts)
