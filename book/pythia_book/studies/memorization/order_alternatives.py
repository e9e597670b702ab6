"""Orders that do matter, to see what the tests of order_tests would find.

Each alternative draws the places of M events among N rows: a rate that changes over training, one
that differs between batches, copies right after each other, events in clumps. The power of a test
at the M and N of a run says what its silence means; its rate of rejecting the null draw ("none")
says whether its p-values can be believed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pythia_book.studies.memorization.order_tests import (
    Design,
    Null,
    random_subsets,
    statistics,
    textbook_p,
)

Draw = Callable[[Design, int, np.random.Generator], np.ndarray]
"""(design, draws, rng) -> sorted ranks int64[draws, M]."""
BATCH = 0
"""Index in `Design.windows` of one batch."""


def weighted(weights: Callable[[Design, int, np.random.Generator], np.ndarray]) -> Draw:
    """Events drawn without replacement with weights float[draws or 1, N]."""

    def draw(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        found = np.empty((draws, design.events), np.int64)
        step = max(1, (1 << 21) // design.n)
        for start in range(0, draws, step):
            k = min(step, draws - start)
            # the M smallest of exponential times with these rates
            times = rng.exponential(size=(k, design.n)) / weights(design, k, rng)
            chosen = np.argpartition(times, design.events - 1, axis=1)[:, : design.events]
            found[start : start + k] = np.sort(chosen, axis=1)
        return found

    return draw


def linear_trend(total: float) -> Draw:
    """The rate rises linearly by `total` of its mean from the first row to the last."""

    def weights(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        return (1 + total * (design.place - 0.5))[None]

    return weighted(weights)


def batch_rates(variation: float) -> Draw:
    """The rate differs from batch to batch with this coefficient of variation (gamma)."""

    def weights(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        index, sizes = design.window_of(design.windows[BATCH])
        shape = 1 / variation**2
        return rng.gamma(shape, 1 / shape, (draws, len(sizes) + 1))[:, index] + 1e-9

    return weighted(weights)


def clumps(share: float, size: int, within: int) -> Draw:
    """A share of the events come `size` at a time within `within` rows; size = within = 2:
    adjacent pairs."""

    def draw(design: Design, draws: int, rng: np.random.Generator) -> np.ndarray:
        found = np.empty((draws, design.events), np.int64)
        groups = round(share * design.events / size)
        for i in range(draws):
            starts = rng.choice(design.n // within, groups, replace=False) * within
            places = rng.permuted(np.tile(np.arange(within), (groups, 1)), axis=1)[:, :size]
            taken = np.zeros(design.n, bool)
            taken[(starts[:, None] + places).ravel()] = True
            (free,) = np.nonzero(~taken)
            taken[rng.choice(free, design.events - taken.sum(), replace=False)] = True
            found[i] = np.nonzero(taken)[0]
        return found

    return draw


ALTERNATIVES: dict[str, Draw] = {
    "none": random_subsets,
    "the rate rises by 10 % over training": linear_trend(0.1),
    "the rate rises by 30 % over training": linear_trend(0.3),
    "the rate doubles over training": linear_trend(2 / 3),
    "rates of batches vary by 30 %": batch_rates(0.3),
    "20 % of events in adjacent pairs": clumps(0.2, 2, 2),
    "20 % of events in clumps, 4 in 16 rows": clumps(0.2, 4, 16),
}


def rejections(
    null: Null, draw: Draw, draws: int, seed: int = 1, level: float = 0.05
) -> np.ndarray:
    """int64[tests]: of `draws` samples of an alternative, how many each test rejects."""
    ranks = draw(null.design, draws, np.random.default_rng(seed))
    return (null.p_values(statistics(null.design, ranks)) <= level).sum(0)


def textbook_rejections(
    design: Design, window: int, draws: int, seed: int = 1, level: float = 0.05
) -> dict[str, int]:
    """Of `draws` true nulls, how many the textbook tests reject."""
    ranks = random_subsets(design, draws, np.random.default_rng(seed))
    p = textbook_p(design, ranks, window)
    return {name: int((values <= level).sum()) for name, values in p.items()}
