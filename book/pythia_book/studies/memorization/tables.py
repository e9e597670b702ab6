"""Compute the tables of the memorization study from extraction results and repetition counts.

Rows with the same first tokens ("texts") are memorized together or not at all, so intervals come
from resampling texts, each with all its rows (`resampled`). Copies that start at another offset or
differ in one token count as different texts, which makes intervals slightly too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pythia_book.stats import Estimate, wilson
from pythia_book.studies.memorization import order_tests
from pythia_book.studies.memorization.order_tests import Design, NullDistribution

BINS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, None))
"""Smallest and largest repetition count of each bin."""
RATE_BINS = 20
"""Equal parts of training."""
RATES = (0.01, 0.05, 0.2)
"""Event rates at which the level of every test is reported."""
REPEATS = 400
"""Simulated runs per estimate of power or level."""


@dataclass(frozen=True)
class Rows:
    """The rows of one run, in the order of training."""

    repetition_count: np.ndarray
    """int64[n]: how often the row's first tokens occur in the whole run."""
    text: np.ndarray
    """int64[n]: the same number for rows with the same first tokens."""

    def __len__(self) -> int:
        return len(self.repetition_count)


def resampled(columns: np.ndarray, text: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums int[k] of columns int[n, k], and sums int[draws, k] of resampled texts.

    Texts with equal sums are drawn as one multinomial group: the same distribution, but faster.
    """
    _, text = np.unique(text, return_inverse=True)
    n_texts = int(text.max()) + 1 if len(text) else 0
    sums = np.stack([np.bincount(text, c, minlength=n_texts) for c in columns.T], 1)
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    rng = np.random.default_rng(0)
    times = rng.multinomial(n_texts, counts / n_texts, size=draws)
    return columns.sum(0), times @ kinds


def ratio(part: np.ndarray, whole: np.ndarray, text: np.ndarray, draws: int) -> Estimate:
    """Share of the rows in `whole` (bool[n]) that are in `part`; NaN if `whole` is empty.

    For shares of 0 and 1 the interval is the exact binomial bound over texts.
    """
    part = part & whole
    n = int(whole.sum())
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0, 1)
    total, drawn = resampled(np.stack([part, whole], 1)[whole].astype(int), text[whole], draws)
    value = total[0] / total[1]
    if value in (0.0, 1.0):
        bound = 0.025 ** (1 / len(np.unique(text[whole])))
        low, high = (0.0, 1 - bound) if value == 0 else (bound, 1.0)
    else:
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), n, 1)


def by_repetition_count(memorized: np.ndarray, rows: Rows, draws: int) -> list[dict[str, Any]]:
    """Share memorized, by how often the first tokens of a row occur in the run."""
    table, times = [], rows.repetition_count
    for first, last in BINS:
        inside = (times >= first) & (times <= (last or times.max()))
        name = str(first) if first == last else f"{first}-{last}" if last else f"{first}+"
        share = ratio(memorized, inside, rows.text, draws)
        counts = {"n": share.n_items, "memorized": int((memorized & inside).sum())}
        table.append({"exposures": name, **counts, **share.interval()})
    return table


def rate_over_training(
    memorized: np.ndarray, eligible: np.ndarray, rows: Rows, draws: int
) -> list[dict[str, Any]]:
    """Share memorized in each of RATE_BINS equal parts of training."""
    edges = np.linspace(0, len(rows), RATE_BINS + 1).round().astype(int)
    table = []
    for start, stop in pairwise(edges):
        inside = np.zeros(len(rows), bool)
        inside[start:stop] = eligible[start:stop]
        share = ratio(memorized, inside, rows.text, draws)
        percent = 50 * (start + stop) / len(rows)
        table.append({"percent": percent, "n": share.n_items, **share.interval()})
    return table


# --- order -----------------------------------------------------------------------------------


def order_test_rows(
    memorized: np.ndarray, eligible: np.ndarray, windows: Sequence[int], simulations: int
) -> list[dict[str, Any]]:
    """One row for each test of order_tests on the eligible rows; a single row if not testable."""
    design = Design(eligible, int((memorized & eligible).sum()), tuple(windows))
    counts = {"rows": design.n, "events": design.events}
    if not design.testable:
        status = "not testable: too few events"
        return [{"test": "all", "window": 0, **counts, "status": status}]
    null = NullDistribution.simulate(design, simulations)
    (ranks,) = np.nonzero(memorized[eligible])
    observed = order_tests.statistics(design, ranks[None])
    p = null.p_values(observed)[0]
    adjusted, (low, high) = order_tests.holm(p), null.range()
    table = []
    for t, (name, window) in enumerate(design.test_columns):
        effect = Estimate(math.nan, math.nan, math.nan, design.n, 1)
        if name == "trend":
            effect = order_tests.trend_effect(design, ranks)
        elif name == "dispersion":
            # scaled by the quantiles of the simulated nulls, whose mean is 1
            value = observed[0, t]
            effect = Estimate(value, value / high[t], value / low[t], design.n, 1)
        table.append(
            {
                "test": name,
                "window": window,
                **counts,
                "statistic": float(observed[0, t]),
                "null_low": float(low[t]),
                "null_high": float(high[t]),
                "p": float(p[t]),
                "holm": float(adjusted[t]),
                **effect.interval(),
                "status": "tested",
            }
        )
    return table


def power_table(
    eligible: np.ndarray, events: int, windows: Sequence[int], simulations: int
) -> list[dict[str, Any]]:
    """How often each test rejects each alternative at 5 %, with this many rows and events."""
    design = Design(eligible, events, tuple(windows))
    if not design.testable:
        return []
    null = NullDistribution.simulate(design, simulations)
    table = []
    for name, draw in order_tests.ALTERNATIVES.items():
        rejected = order_tests.rejections(null, draw, REPEATS)
        for (test, window), k in zip(design.test_columns, rejected, strict=True):
            share = wilson(int(k), REPEATS)
            row = {"alternative": name, "test": test, "window": window}
            table.append(row | share.interval())
    return table


def level_table(n: int, windows: Sequence[int], simulations: int) -> list[dict[str, Any]]:
    """How often our tests and the textbook tests reject true nulls at 5 %."""
    table = []
    for rate in RATES:
        design = Design(np.ones(n, bool), round(rate * n), tuple(windows))
        if not design.testable or not design.testable_windows:
            continue
        null = NullDistribution.simulate(design, simulations)
        window = min(design.testable_windows)
        ours = order_tests.rejections(null, order_tests.random_subsets, REPEATS)
        rejected = {
            test if not w else f"{test}, {w} rows": int(k)
            for (test, w), k in zip(design.test_columns, ours, strict=True)
        }
        textbook = order_tests.textbook_rejections(design, window, REPEATS)
        for kind, counts in (("ours", rejected), ("textbook", textbook)):
            for test, k in counts.items():
                row = {"rate": rate, "kind": kind, "test": test}
                table.append(row | wilson(k, REPEATS).interval())
    return table


def qq_table(
    memorized: np.ndarray, eligible: np.ndarray, window: int, simulations: int
) -> list[dict[str, Any]]:
    """Points of the paper's Q-Q plot, with a 95 % band and the number of windows at each point."""
    design = Design(eligible, int((memorized & eligible).sum()), (window,))
    if not (design.testable and design.testable_windows):
        return []
    (ranks,) = np.nonzero(memorized[eligible])
    points = order_tests.poisson_qq(design, ranks, window, simulations)
    names = list(points)
    rows, counts = np.unique(np.stack(list(points.values()), 1), axis=0, return_counts=True)
    return [
        {"window": window, **dict(zip(names, row.tolist(), strict=True)), "windows": int(count)}
        for row, count in zip(rows, counts, strict=True)
    ]


# --- prediction ------------------------------------------------------------------------------


def prediction_row(
    predicted: np.ndarray, truth: np.ndarray, text: np.ndarray, draws: int
) -> dict[str, Any]:
    """Confusion counts, precision, recall and their difference, for a predicted set of rows."""
    parts = np.stack(
        [predicted & truth, predicted & ~truth, ~predicted & truth, ~predicted & ~truth], 1
    ).astype(int)
    (tp, fp, fn, tn), drawn = resampled(parts, text, draws)
    row = {"n": len(truth), "tp": int(tp), "fp": int(fp), "fn": int(fn), "tn": int(tn)}
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = drawn[:, 0] / (drawn[:, 0] + drawn[:, 1])
        recall = drawn[:, 0] / (drawn[:, 0] + drawn[:, 2])
        exact = [np.divide(tp, tp + fp), np.divide(tp, tp + fn)]
        exact.append(exact[0] - exact[1])
    for name, value, values in zip(
        ("precision", "recall", "gap"), exact, (precision, recall, precision - recall), strict=True
    ):
        finite = values[np.isfinite(values)]
        low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
        row |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return row
