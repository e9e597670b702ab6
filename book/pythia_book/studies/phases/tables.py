"""Tables of the phases study, and the steps of milestones with their intervals.

A milestone is the checkpoint at which the mean of a measure over rows is, for example, smallest.
Its interval comes from finding it again on resampled rows. The steps of milestones are only as
precise as the spacing of checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.measurements import Arrays
from pythia_book.stats import LEVEL, estimate
from pythia_book.studies.phases.ngrams import ORDERS, Ngrams
from pythia_book.studies.phases.probes import Probe

if TYPE_CHECKING:
    import pandas as pd

TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2

Measured = dict[str, dict[int, Arrays]]
"""Size -> step (ascending) -> arrays of `probes.PhasesMeasurement`."""


# --- levels and steps ------------------------------------------------------------------------


def best_head(prefix: np.ndarray) -> np.ndarray:
    """float[n]: prefix matching of the best head, from that of all heads float[layers, heads, n].

    Picking the best of many heads is biased upwards, so each half of the sequences is scored with
    the head that is best on the other half.
    """
    flat = prefix.reshape(-1, prefix.shape[-1])
    best = np.empty(flat.shape[1])
    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        best[half] = flat[flat[:, other].mean(1).argmax(), half]
    return best


MEASURES: dict[str, Callable[[Arrays], np.ndarray]] = {
    "loss": lambda a: a["loss"],
    **{f"kl_{order}": (lambda a, i=i: a["kl"][i]) for i, order in enumerate(ORDERS)},
    "gain": lambda a: a["copies"][0] - a["copies"][1],
    "order_gain": lambda a: a["copies"][2] - a["copies"][1],
    "prefix": lambda a: best_head(a["prefix"]),
    "lens_first": lambda a: a["lens"][0],
    "lens_last": lambda a: a["lens"][-1],
    "lens_gap": lambda a: a["lens"][0] - a["lens"][-1],
}
"""Measure -> function from arrays to one value per row or per sequence.

gain: loss on a sequence the first time minus the second time. order_gain: loss on a sequence after
the same tokens in another order, minus that after the sequence itself. lens_first, lens_last: KL of
the logit lens before the first and before the last block. lens_gap: their difference.
"""


def first_below(means: np.ndarray) -> np.ndarray:
    """int[m]: first checkpoint at which means float[m, checkpoints] are below 0.

    If there is none, the number of checkpoints.
    """
    return np.where((means < 0).any(1), (means < 0).argmax(1), means.shape[1])


def resampled(values: np.ndarray, draws: int) -> np.ndarray:
    """float[1 + draws, checkpoints]: means of values float[checkpoints, n] over rows.

    Entry 0 is from the original rows, each other entry from a bootstrap resample. All checkpoints
    and measures use the same resamples.
    """
    n = values.shape[1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([values.mean(1), counts @ values.T / n])


def interval_of(indices: np.ndarray) -> tuple[int, int, int]:
    """The index from the original rows, and the ends of its interval."""
    low, high = np.quantile(indices[1:], TAILS, method="inverted_cdf")
    return int(indices[0]), int(low), int(high)


def curve(steps: dict[int, Arrays], measure: Callable[[Arrays], np.ndarray]) -> np.ndarray:
    """float[checkpoints, n]: the measure at each step."""
    return np.stack([measure(arrays) for arrays in steps.values()])


def nearest_checkpoint(steps: dict[int, Arrays], order: int, draws: int) -> np.ndarray:
    """int[1 + draws]: index of the checkpoint nearest to the n-grams of this order, in KL.

    Entry 0 is from the original rows, each other entry from a bootstrap resample.
    """
    return resampled(curve(steps, MEASURES[f"kl_{order}"]), draws).argmin(1)


# --- tables ----------------------------------------------------------------------------------


def tables(draws: int, measured: Measured, ngrams: Ngrams, probe: Probe) -> dict[str, pd.DataFrame]:
    """The tables of the study.

    ngrams: order, different (number of n-grams), strength, value, low, high, n, of held-out loss.
    levels: size, step, measure (of MEASURES), value, low, high, n.
    lens: size, step, layer (number of blocks before the lens), value, low, high, n.
    milestones: size, what, which, step, low, high. what: "nearest" (to n-grams of order `which`) or
        "beaten" (their loss); steps that were not reached are missing.
    """
    import pandas as pd

    rows: dict[str, list] = {"ngrams": [], "levels": [], "lens": [], "milestones": []}
    for i, order in enumerate(ORDERS):
        e = estimate(probe.ngram_loss[i][None], draws)
        different = np.count_nonzero(ngrams.unigrams) if order == 1 else len(ngrams.keys[order - 2])
        strength = None if order == 1 else ngrams.strengths[order - 2]
        rows["ngrams"].append((order, different, strength, e.value, e.low, e.high, e.n_items))
    for size, steps in measured.items():
        if not steps:
            continue
        for name, measure in MEASURES.items():
            bands = _bands(curve(steps, measure), draws)
            rows["levels"] += [
                (size, step, name, *band) for step, band in zip(steps, bands, strict=True)
            ]
        for layer, lens in enumerate(np.moveaxis(curve(steps, lambda a: a["lens"]), 1, 0)):
            bands = zip(steps, _bands(lens, draws), strict=True)
            rows["lens"] += [(size, step, layer, *band) for step, band in bands]
        for event, order, indices in milestones(steps, probe.ngram_loss, draws):
            step_at = [*steps, None]  # the last: not reached
            ends = (step_at[i] for i in interval_of(indices))
            rows["milestones"].append((size, event, order, *ends))
    result = ["value", "low", "high", "n"]
    columns = {
        "ngrams": ["order", "different", "strength", *result],
        "levels": ["size", "step", "measure", *result],
        "lens": ["size", "step", "layer", *result],
        "milestones": ["size", "what", "which", "step", "low", "high"],
    }
    frames = {name: pd.DataFrame(rows[name], columns=columns[name]) for name in rows}
    integers = dict.fromkeys(("step", "low", "high"), "Int64")  # which allows missing values
    return frames | {"milestones": frames["milestones"].astype(integers)}


def _bands(values: np.ndarray, draws: int) -> list[tuple[float, float, float, int]]:
    """(value, low, high, n) of every checkpoint of values float[checkpoints, n]."""
    means = resampled(values, draws)
    low, high = np.quantile(means[1:], TAILS, axis=0)
    n = values.shape[1]
    return [(*map(float, each), n) for each in zip(means[0], low, high, strict=True)]


def milestones(
    steps: dict[int, Arrays], ngram_loss: np.ndarray, draws: int
) -> list[tuple[str, int, np.ndarray]]:
    """(event, order, checkpoint indices int[1 + draws]) of all milestones of a size.

    Entry 0 is from the original rows, each other entry from a bootstrap resample.
    """
    loss = curve(steps, MEASURES["loss"])
    return [
        milestone
        for i, order in enumerate(ORDERS)
        for milestone in (
            ("nearest", order, nearest_checkpoint(steps, order, draws)),
            ("beaten", order, first_below(resampled(loss - ngram_loss[i], draws))),
        )
    ]
