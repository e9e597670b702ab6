"""Claims of earlier work about early training, and numbers for prose.

None of them is from the Pythia paper, whose checkpoints made such work possible. The time between
two milestones is measured in doublings of training, because early checkpoints are spaced that way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import Estimate, claim_row, directional_verdict, estimate, premise_verdict
from pythia_book.studies.phases.ngrams import ORDERS
from pythia_book.studies.phases.probes import Probe, prefix_chance
from pythia_book.studies.phases.tables import (
    MEASURES,
    TAILS,
    Measured,
    curve,
    interval_of,
    milestones,
    nearest_checkpoint,
)
from pythia_core.suite import scale_named
from pythia_core.training.schedule import linear_step

if TYPE_CHECKING:
    from pythia_book.studies.phases.params import Params

NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}
EIGHTH = 18
"""Which of the 143 evenly spaced checkpoints is an eighth into training."""


def doublings(params: Params, measured: Measured, early: int, late: int) -> Estimate | None:
    """Doublings of training between the steps nearest to n-grams of orders `early` and `late`.

    A mean over sizes; None if one of them was not measured. Step 0 counts as 1.
    """
    ratios, n = [], 0
    for size in params.size_list:
        steps = measured.get(size)
        if not steps:
            return None
        updates = np.maximum([*steps], 1)
        first, second = (
            nearest_checkpoint(steps, order, params.bootstrap) for order in (early, late)
        )
        ratios.append(np.log2(updates[second] / updates[first]))
        n = len(next(iter(steps.values()))["loss"])
    mean = np.mean(ratios, axis=0)
    low, high = np.quantile(mean[1:], TAILS)
    return Estimate(float(mean[0]), float(low), float(high), n, 1)


def at_the_end(
    params: Params, measured: Measured, size: str, measure: str, minus: float = 0
) -> Estimate | None:
    """A measure at the last step of training, minus a constant; None for a gap."""
    last = measured.get(size, {}).get(scale_named(params.scale).steps)
    if last is None:
        return None
    return estimate(MEASURES[measure](last)[None] - minus, params.bootstrap, change=True)


def late_decrease(params: Params, measured: Measured, size: str, measure: str) -> Estimate | None:
    """How much a measure decreases from an eighth of training to the end; None for a gap."""
    end = scale_named(params.scale).steps
    checkpoints = [measured.get(size, {}).get(step) for step in (linear_step(EIGHTH, end), end)]
    if None in checkpoints:
        return None
    early, late = map(MEASURES[measure], checkpoints)
    return estimate((early - late)[None], params.bootstrap, change=True)


def claims(params: Params, measured: Measured, chance: float) -> list[dict[str, Any]]:
    """Claims of earlier work about early training, one dict per claim."""
    largest = params.size_list[-1]
    row = partial(claim_row, verdict=partial(directional_verdict, direction=1))
    return [
        *(
            row(f"Predictions are nearest to {NAMES[early]}s before they are nearest to "
                f"{NAMES[late]}s (doublings of training from one to the other; "
                f"{', '.join(params.size_list)})",
                "Belrose et al. 2024: statistics of increasing order",
                doublings(params, measured, early, late))
            for early, late in ((1, 2), (2, 3))
        ),
        row(f"A random sequence is predicted better when it is read again (loss the first time "
            f"minus the second, nats per token; {largest}, end of training)",
            "Olsson et al. 2022: in-context learning appears early in training",
            at_the_end(params, measured, largest, "gain")),
        row(f"It is predicted better for its order (loss after the same tokens in another order "
            f"minus after the sequence itself; {largest}, end of training)",
            "Olsson et al. 2022: induction heads continue what was read",
            at_the_end(params, measured, largest, "order_gain")),
        row(f"A head attends to the token after an earlier occurrence (prefix matching of the best "
            f"head minus that of uniform attention; {largest}, end of training)",
            "Olsson et al. 2022: induction heads form early in training",
            at_the_end(params, measured, largest, "prefix", chance)),
        row(f"The logit lens is nearer to the final prediction before the last block than before "
            f"the first (KL, nats; {largest}, end of training)",
            "Belrose et al. 2023: predictions are refined from layer to layer",
            at_the_end(params, measured, largest, "lens_gap")),
        row(f"Before the last block it comes nearer still (KL an eighth into training minus at its "
            f"end, nats; {largest})",
            "expected since earlier work",
            late_decrease(params, measured, largest, "lens_last"),
            verdict=partial(premise_verdict, direction=1)),
    ]  # fmt: skip


def values(params: Params, measured: Measured, probe: Probe) -> dict[str, Any]:
    """Name -> number, for prose; many are for the smallest and the largest size."""
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "smallest": params.size_list[0],
        "largest": params.size_list[-1],
        "n_rows": len(probe.rows),
        "n_places": probe.rows.shape[0] * len(probe.positions),
        "n_sequences": len(probe.copies),
        "copy_length": probe.copies.shape[1] // 2,
        "prefix_chance": prefix_chance(probe.copies.shape[1] // 2),
    }
    for i, order in enumerate(ORDERS):
        numbers[f"ngram_loss_{order}"] = estimate(
            probe.ngram_loss[i][None], params.bootstrap
        ).interval()
    for role, size in (("smallest", params.size_list[0]), ("largest", params.size_list[-1])):
        for measure in ("loss", "gain", "order_gain", "prefix", "lens_first", "lens_last"):
            e = at_the_end(params, measured, size, measure)
            numbers[f"{measure}_{role}"] = e and e.interval()
        if steps := measured[size]:
            for event, order, indices in milestones(steps, probe.ngram_loss, params.bootstrap):
                numbers[f"{event}_{order}_{role}"] = _step_or_words([*steps, None], indices)
            for order in ORDERS:
                means = curve(steps, MEASURES[f"kl_{order}"]).mean(1)
                numbers[f"kl_{order}_{role}"] = float(means.min())
    e = late_decrease(params, measured, params.size_list[-1], "lens_last")
    numbers["lens_approach"] = e and e.interval()
    if steps := measured[params.size_list[-1]]:
        prefix = curve(steps, MEASURES["prefix"])
        most = int(prefix.mean(1).argmax())
        numbers["prefix_most"] = estimate(prefix[most][None], params.bootstrap).interval()
        numbers["prefix_most_step"] = list(steps)[most]
    return numbers


def _step_or_words(steps: list[int | None], indices: np.ndarray) -> dict[str, Any] | str:
    """The step of a milestone with its interval, or "not reached"."""
    value, low, high = (steps[i] for i in interval_of(indices))
    return "not reached" if value is None else {"value": value, "low": low, "high": high}
