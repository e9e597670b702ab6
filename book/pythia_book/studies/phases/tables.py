"""Tables of the phases study, and the steps of milestones with their intervals.

A step is picked by the mean of a measure over rows, e.g. the smallest one; its interval comes from
picking again on resampled rows. Steps are only as precise as the spacing of checkpoints.
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

Kept = dict[str, dict[int, Arrays]]
"""Arrays of `phases.PhasesMeasurement` by size and step, ascending."""


# --- levels and steps ------------------------------------------------------------------------


def best_head(prefix: np.ndarray) -> np.ndarray:
    """float[n]: prefix matching of the best head, from float[layers, heads, n]. Each half of the
    sequences is scored with the head that is best on the other half, since picking the best of many
    is biased upwards."""
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
"""By row or by sequence. gain: loss the first time minus the second; order_gain: after the same
tokens in another order minus after the sequence itself; lens_first and lens_last: KL before the
first and before the last block; lens_gap: their difference."""


def first_below(means: np.ndarray) -> np.ndarray:
    """int[m]: index of the first checkpoint with a negative mean; the number of them if none."""
    return np.where((means < 0).any(1), (means < 0).argmax(1), means.shape[1])


def resampled(values: np.ndarray, draws: int) -> np.ndarray:
    """float[1 + draws, checkpoints]: means of values float[checkpoints, n], and those of resampled
    rows; every checkpoint and every measure uses the same draws."""
    n = values.shape[1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([values.mean(1), counts @ values.T / n])


def interval_of(picked: np.ndarray) -> tuple[int, int, int]:
    """The picked index and the ends of its interval."""
    low, high = np.quantile(picked[1:], TAILS, method="inverted_cdf")
    return int(picked[0]), int(low), int(high)


def curve(kept: dict[int, Arrays], measure: Callable[[Arrays], np.ndarray]) -> np.ndarray:
    """float[checkpoints, n]."""
    return np.stack([measure(arrays) for arrays in kept.values()])


def when_nearest(kept: dict[int, Arrays], order: int, draws: int) -> np.ndarray:
    """int[1 + draws]: index of the checkpoint nearest to an order of n-grams, by the means and by
    those of resampled rows."""
    return resampled(curve(kept, MEASURES[f"kl_{order}"]), draws).argmin(1)


# --- tables ----------------------------------------------------------------------------------


def tables(draws: int, kept: Kept, ngrams: Ngrams, probe: Probe) -> dict[str, pd.DataFrame]:
    """ngrams: order, different, strength, value, low, high, n: held-out loss. levels: size, step,
    measure (MEASURES), value, low, high, n. lens: the same by layer, i.e. blocks before it.
    milestones: size, what, which, step, low, high, without steps that were not reached; what:
    nearest (to order `which`), beaten (its loss)."""
    import pandas as pd

    rows: dict[str, list] = {"ngrams": [], "levels": [], "lens": [], "milestones": []}
    for i, order in enumerate(ORDERS):
        e = estimate(probe.ngram_loss[i][None], draws)
        different = np.count_nonzero(ngrams.unigrams) if order == 1 else len(ngrams.keys[order - 2])
        strength = None if order == 1 else ngrams.strengths[order - 2]
        rows["ngrams"].append((order, different, strength, e.value, e.low, e.high, e.n_items))
    for size, steps in kept.items():
        if not steps:
            continue
        for name, measure in MEASURES.items():
            band = _band(curve(steps, measure), draws)
            rows["levels"] += [
                (size, step, name, *at) for step, at in zip(steps, band, strict=True)
            ]
        for layer, lens in enumerate(np.moveaxis(curve(steps, lambda a: a["lens"]), 1, 0)):
            place = zip(steps, _band(lens, draws), strict=True)
            rows["lens"] += [(size, step, layer, *at) for step, at in place]
        for event, order, picked in milestones(steps, probe.ngram_loss, draws):
            at = [*steps, None]
            rows["milestones"].append((size, event, order, *(at[i] for i in interval_of(picked))))
    result = ["value", "low", "high", "n"]
    columns = {
        "ngrams": ["order", "different", "strength", *result],
        "levels": ["size", "step", "measure", *result],
        "lens": ["size", "step", "layer", *result],
        "milestones": ["size", "what", "which", "step", "low", "high"],
    }
    frames = {name: pd.DataFrame(rows[name], columns=columns[name]) for name in rows}
    whole = dict.fromkeys(("step", "low", "high"), "Int64")  # with missing ones
    return frames | {"milestones": frames["milestones"].astype(whole)}


def _band(values: np.ndarray, draws: int) -> list[tuple[float, float, float, int]]:
    """(value, low, high, n) of every checkpoint of values float[checkpoints, n]."""
    means = resampled(values, draws)
    low, high = np.quantile(means[1:], TAILS, axis=0)
    n = values.shape[1]
    return [(*map(float, each), n) for each in zip(means[0], low, high, strict=True)]


def milestones(
    steps: dict[int, Arrays], ngram_loss: np.ndarray, draws: int
) -> list[tuple[str, int, np.ndarray]]:
    """(event, order, picked checkpoints) of all milestones of a size."""
    loss = curve(steps, MEASURES["loss"])
    return [
        milestone
        for i, order in enumerate(ORDERS)
        for milestone in (
            ("nearest", order, when_nearest(steps, order, draws)),
            ("beaten", order, first_below(resampled(loss - ngram_loss[i], draws))),
        )
    ]
