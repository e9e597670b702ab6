"""Tables of the phases study, and the steps of milestones with their intervals.

A milestone is a checkpoint at which something happens, e.g. the checkpoint that is nearest to the
bigrams. For its interval, the milestone is found again on each resample of the held-out rows. No
step is known more precisely than the spacing of checkpoints allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.stats import LEVEL, estimate
from pythia_book.studies.phases.ngrams import ORDERS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import Arrays
    from pythia_book.study import Measurements

TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
KL = {order: f"kl_{order}" for order in ORDERS}
MEASURES = ("loss", *KL.values(), "gain", "order_gain", "prefix", "previous", "lens_first",
            "lens_last", "lens_gap")  # fmt: skip
"""The measures in `Curves`. A measure has one value per checkpoint and held-out row or sequence.

`kl_<order>`: KL of the n-grams of an order.
`gain`: loss on the first reading of a sequence minus loss on the second reading.
`order_gain`: loss on a sequence after a shuffled copy minus loss after an exact copy.
`prefix`: prefix matching of the best head.
`previous`: attention to the previous token by the best head.
`lens_first`, `lens_last`: KL of the logit lens before the first and before the last block.
`lens_gap`: `lens_first` minus `lens_last`."""


@dataclass(frozen=True)
class Curves:
    """The scores of one model at its measured checkpoints."""

    steps: list[int]
    """The steps of the checkpoints, ascending."""
    lens: np.ndarray
    """float[layers, checkpoints, rows]: KL of the logit lens before each block."""
    values: dict[str, np.ndarray]
    """Maps each of MEASURES to float[checkpoints, n], a value per row or sequence."""

    @classmethod
    def of(cls, measured: Measurements, size: str) -> Curves | None:
        """Read the scores of one size from the measurements; None if no checkpoint was measured."""
        steps = measured.get("steps", size)
        if steps is None or not len(steps):
            return None
        lens = measured.arrays[f"lens/{size}"].astype(np.float64)
        values = {
            name: measured.arrays[f"{name}/{size}"].astype(np.float64)
            for name in MEASURES
            if not name.startswith("lens")
        }
        values |= {"lens_first": lens[0], "lens_last": lens[-1], "lens_gap": lens[0] - lens[-1]}
        return cls(steps.tolist(), lens, values)

    def at(self, step: int, measure: str) -> np.ndarray | None:
        """Return a measure at a step, float[n], or None if the step was not measured."""
        return self.values[measure][self.steps.index(step)] if step in self.steps else None


def reduced(checkpoints: list[Arrays]) -> dict[str, np.ndarray]:
    """Stack the arrays of `probes.PhasesMeasurement` over checkpoints, and compute MEASURES.

    Return `lens`, float[layers, checkpoints, rows], and float[checkpoints, n] for each of MEASURES
    that is not computed from `lens`. The result is empty without checkpoints.
    """
    if not checkpoints:
        return {}

    def stack(reduce: Callable[[Arrays], np.ndarray]) -> np.ndarray:
        """Apply `reduce` to the arrays of each checkpoint, and stack the results."""
        return np.stack([reduce(arrays) for arrays in checkpoints])

    return {
        "loss": stack(lambda a: a["loss"]),
        **{name: stack(lambda a, i=i: a["kl"][i]) for i, name in enumerate(KL.values())},
        "gain": stack(lambda a: a["copies"][0] - a["copies"][1]),
        "order_gain": stack(lambda a: a["copies"][2] - a["copies"][1]),
        "prefix": stack(lambda a: best_head(a["prefix"])),
        "previous": stack(lambda a: best_head(a["previous"])),
        "lens": np.moveaxis(stack(lambda a: a["lens"]), 1, 0),
    }


# --- levels and steps ------------------------------------------------------------------------


def best_head(scores: np.ndarray) -> np.ndarray:
    """Return the score (such as prefix matching) of a model's best head, float[sequences].

    Picking the best of many heads is biased upwards, so each half of the sequences is scored with
    the head that is best on the other half. `scores` are float[layers, heads, sequences].
    """
    flat = scores.reshape(-1, scores.shape[-1])
    best = np.empty(flat.shape[1])
    halves = slice(0, None, 2), slice(1, None, 2)
    for half, other in (halves, halves[::-1]):
        best[half] = flat[flat[:, other].mean(1).argmax(), half]
    return best


def first_below(means: np.ndarray) -> np.ndarray:
    """Return the index of the first mean below 0, or the number of checkpoints if none, int[m]."""
    return np.where((means < 0).any(1), (means < 0).argmax(1), means.shape[1])


def resampled(values: np.ndarray, draws: int) -> np.ndarray:
    """Return the mean over rows at each checkpoint, float[1 + draws, checkpoints].

    The first mean is over the original rows, the others are over resamples. All checkpoints and
    measures use the same resamples. `values` are float[checkpoints, n].
    """
    n = values.shape[1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    return np.vstack([values.mean(1), counts @ values.T / n])


def interval_of(indices: np.ndarray) -> tuple[int, int, int]:
    """Return the index of a milestone's checkpoint, and the ends of its 95 % interval.

    `indices`, int[1 + draws], has the index on the original rows, then the index on each resample.
    """
    low, high = np.quantile(indices[1:], TAILS, method="inverted_cdf")
    return int(indices[0]), int(low), int(high)


def nearest_checkpoint(curves: Curves, order: int, draws: int) -> np.ndarray:
    """Return the indices of the checkpoint nearest to n-grams of `order`; see `milestones`."""
    return resampled(curves.values[KL[order]], draws).argmin(1)


# --- tables ----------------------------------------------------------------------------------


def tables(
    draws: int, models: dict[str, Curves | None], measured: Measurements
) -> dict[str, pd.DataFrame]:
    """Return the tables of the study, by name.

    Every table but `milestones` has the columns `value`, `low`, `high`, `n`. The other columns:

    `ngrams`: `order`, `different` (number of different n-grams), `strength` (of backing off).
        Values are held-out losses in nats per token.
    `levels`: `size`, `step`, `measure` (one of MEASURES).
    `lens`: `size`, `step`, `layer` (number of blocks before the lens). Values are the KL between
        the final prediction and the logit lens, in nats.
    `milestones`: `size`, `what`, `which` (an order), `step`, `low`, `high`. At `step`, the model is
        nearest to the n-grams (`what` is "nearest") or first has a lower loss ("beaten"). The step
        is missing if n-grams are never beaten.
    """
    import pandas as pd

    rows: dict[str, list] = {"ngrams": [], "levels": [], "lens": [], "milestones": []}
    ngram_loss = measured.arrays["ngram_loss"].astype(np.float64)
    for i, order in enumerate(ORDERS):
        e = estimate(ngram_loss[i][None], draws)
        counts = measured.facts["different"][i], measured.facts["strengths"][i]
        rows["ngrams"].append((order, *counts, e.value, e.low, e.high, e.n_items))
    for size, curves in models.items():
        if curves is None:
            continue
        for name, values in curves.values.items():
            bands = zip(curves.steps, _bands(values, draws), strict=True)
            rows["levels"] += [(size, step, name, *band) for step, band in bands]
        for layer, lens in enumerate(curves.lens):
            bands = zip(curves.steps, _bands(lens, draws), strict=True)
            rows["lens"] += [(size, step, layer, *band) for step, band in bands]
        for event, order, indices in milestones(curves, ngram_loss, draws):
            step_at = [*curves.steps, None]  # the last: not reached
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
    """Return (mean, low, high, n) for every checkpoint, from values float[checkpoints, n]."""
    means = resampled(values, draws)
    low, high = np.quantile(means[1:], TAILS, axis=0)
    n = values.shape[1]
    return [(*map(float, each), n) for each in zip(means[0], low, high, strict=True)]


def milestones(
    curves: Curves, ngram_loss: np.ndarray, draws: int
) -> list[tuple[str, int, np.ndarray]]:
    """Find when a model is nearest to the n-grams of each order, and first beats these n-grams.

    Return (event, order, indices) for each milestone. The event is "nearest" or "beaten". The
    indices of the checkpoint, int[1 + draws], are from the original rows and from each resample. An
    index is the number of checkpoints if n-grams are never beaten.
    """
    loss = curves.values["loss"]
    return [
        milestone
        for i, order in enumerate(ORDERS)
        for milestone in (
            ("nearest", order, nearest_checkpoint(curves, order, draws)),
            ("beaten", order, first_below(resampled(loss - ngram_loss[i], draws))),
        )
    ]
