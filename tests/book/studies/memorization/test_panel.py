"""Traces: the level is right where there is no effect, and planted effects are recovered."""

from __future__ import annotations

import numpy as np
import pytest
from pythia_book.studies.memorization import params as of_params
from pythia_book.studies.memorization.panel import (
    NEVER,
    Panel,
    joint_test,
    mean_trace,
    ratio_of_traces,
    relative_trend,
    trend,
)
from pythia_book.studies.memorization.params import FLOOR, Params
from pythia_book.studies.memorization.samples import (
    PASSAGE,
    canary_reads,
    evenly,
    read_by,
    shared_passages,
)

from pythia_core.errors import DataError
from pythia_core.suite import scale_named
from pythia_core.training.schedule import OFFICIAL_STEPS, linear_step, lr_floor_step

STEPS = (0, 10, 20, 30, 40)
COHORTS = (10, 20, 30)
"""Cohorts are read in the updates from one of these steps to the next step."""
N, NEVER_READ = 40, 120


def drawn(
    rng: np.random.Generator,
    first: float = 0.0,
    kept: float = 0.5,
    recency: float = 0.0,
    drift: float = 0.0,
) -> Panel:
    """Draw rows of three cohorts, and rows never read, whose losses fall together.

    Args:
        first: how much a row's loss falls by when it is read; `kept`: the part that is left at the
            next checkpoint, and from then on.
        recency: how much larger the last trace of a row is per 10 updates that it is read later.
        drift: how much faster the losses of rows to be read fall, per checkpoint, before they are.
    """
    read = np.append(np.repeat(COHORTS, N) + rng.integers(0, 10, 3 * N), [NEVER] * NEVER_READ)
    level = rng.normal(5, 0.5, len(read))
    slope = rng.normal(0.5, 0.1, len(read))  # rows differ in how fast they are learned
    steps = np.array(STEPS)[:, None]
    loss = level - slope * np.log1p(steps / 10) + rng.normal(0, 0.05, (len(STEPS), len(read)))
    after = (read != NEVER) & (steps > read)
    old = after & (steps > read + 10)
    loss -= first * np.where(old, kept, after)
    loss[-1] -= np.where(read == NEVER, 0, recency * read / 10)
    return Panel(
        STEPS, loss - drift * np.where(read == NEVER, 0, np.minimum(steps, read) / 10), read
    )


def cohort(panel: Panel, start: int) -> np.ndarray:
    return panel.read_in(start, start + 10)


def pooled(panel: Panel, ahead: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the first two cohorts, and weights for the fall to `ahead` checkpoints on."""
    rows = [cohort(panel, start) for start in COHORTS[:2]]
    weights = [
        panel.fall(start, start + 10 * ahead, len(r))
        for start, r in zip(COHORTS[:2], rows, strict=True)
    ]
    return np.concatenate(rows), np.concatenate(weights, axis=1)


def placebo(panel: Panel) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The last two cohorts, and weights over the time before they are read."""
    rows = [cohort(panel, start) for start in COHORTS[1:]]
    return rows, [panel.fall(0, s, len(r)) for s, r in zip(COHORTS[1:], rows, strict=True)]


def covered(estimates: list, truth: float) -> float:
    return float(np.mean([e.low <= truth <= e.high for e in estimates]))


def test_a_trace_by_hand() -> None:
    read = np.array([0, 0, 1, NEVER, NEVER, NEVER])
    loss = np.array([[5.0, 6, 7, 5, 5, 5], [4.0, 4, 5, 4.5, 4.5, 4.5]])
    panel = Panel((0, 2), loss, read)
    chosen = panel.read_in(0, 2)
    e = mean_trace(panel, chosen, panel.fall(0, 2, 3))
    assert e.value == pytest.approx((1 + 2 + 2) / 3 - 0.5)
    assert e.high - e.value == pytest.approx(4.303 / 3, abs=0.001)  # t with 2 df, sd 1/sqrt(3)
    assert mean_trace(panel, chosen, panel.fall(None, 2, 3)).value == pytest.approx(4.5 - 13 / 3)
    assert np.isnan(mean_trace(panel, chosen[:2], panel.fall(0, 2, 2)).value)  # too few
    with pytest.raises(DataError, match="2 checkpoints and 5 texts"):
        Panel((0, 2), loss, read[:5])


def test_rows_never_read_have_no_trace() -> None:
    """With some of them in the role of rows that were read, 5 % of the intervals exclude zero."""
    rng, means, trends, relative, joint = np.random.default_rng(1), [], [], [], []
    for _ in range(400):
        panel = drawn(rng)
        rows, weights = pooled(panel, 2)
        means.append(mean_trace(panel, rows, weights))
        trends.append(trend(panel, rows, weights, panel.read[rows].astype(float)))
        joint.append(joint_test(panel, *placebo(panel))[1])
        panel.loss[-2:, panel.read != NEVER] -= 0.3  # a trace that does not depend on order
        relative.append(relative_trend(panel, rows, weights, panel.read[rows].astype(float)))
    assert 0.92 <= covered(means, 0) <= 0.98
    assert 0.92 <= covered(trends, 0) <= 0.98
    assert 0.92 <= covered(relative, 0) <= 0.98
    assert 0.02 <= np.mean(np.array(joint) < 0.05) <= 0.08


def test_a_planted_trace_is_recovered_with_its_decay() -> None:
    rng, first, later, kept, order = np.random.default_rng(2), [], [], [], []
    for _ in range(300):
        panel = drawn(rng, first=0.3, kept=0.4, recency=0.1)
        panel.loss[-1] += np.where(panel.read == NEVER, 0, 0.1 * panel.read / 10)  # not here
        first.append(mean_trace(panel, *pooled(panel, 1)))
        rows, weights = pooled(panel, 2)
        later.append(mean_trace(panel, rows, weights))
        kept.append(ratio_of_traces(panel, rows, weights, pooled(panel, 1)[1]))
        panel = drawn(rng, recency=0.1)
        rows = panel.read_in(10, 40)
        weights, x = panel.fall(10, 40, len(rows)), panel.read[rows] / 10
        order.append((trend(panel, rows, weights, x), relative_trend(panel, rows, weights, x)))
    assert np.mean([e.value for e in first]) == pytest.approx(0.3, abs=0.01)
    for estimates, truth in ((first, 0.3), (later, 0.12), (kept, 0.4)):
        assert 0.91 <= covered(estimates, truth) <= 0.985
    slopes, relative = ([pair[k] for pair in order] for k in (0, 1))
    assert 0.91 <= covered(slopes, 0.1) <= 0.985
    mean = 0.1 * (20 + 4.5) / 10  # of the trace, at the mean place
    assert 0.91 <= covered(relative, 0.1 / mean) <= 0.985


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_a_slope_is_robust_to_unequal_variances(slope: float) -> None:
    """Few texts are read often, and their traces scatter most."""
    rng, estimates = np.random.default_rng(5), []
    reads = np.repeat([1, 2, 4, 8, 16], [60, 12, 6, 4, 4])
    x = np.log2(reads)
    for _ in range(400):
        never = rng.normal(5, 0.3, 200)
        loss = np.append(5 - slope * x + rng.normal(0, 0.3 + 0.2 * x), never)
        panel = Panel((9,), loss[None], np.append(np.zeros(len(x), int), np.full(200, NEVER)))
        chosen = panel.read_in(0, 1)
        estimates.append(trend(panel, chosen, panel.fall(None, 9, len(x)), x))
    assert 0.91 <= covered(estimates, slope) <= 0.985
    if slope:
        assert np.mean([e.low > 0 for e in estimates]) > 0.9


def test_diverging_trends_before_reading_are_seen() -> None:
    rng, seen = np.random.default_rng(3), 0
    for _ in range(100):
        means, p = joint_test(*((panel := drawn(rng, drift=0.05)), *placebo(panel)))
        seen += p < 0.05
    assert seen > 90
    assert means[0].value == pytest.approx(0.1, abs=0.05)


# --- rows and canaries -----------------------------------------------------------------------


def test_rows_that_share_passages_are_found() -> None:
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 5000, (6, 65))
    rows[1, :20] = rows[0, 40:60]  # 5 passages of 16 tokens at another place
    rows[2, :15] = rows[3, :15]  # too short to share a passage
    rows[4, :32] = np.tile(rows[4, :1], 32)  # repeats itself, which counts as its own
    shares = shared_passages(rows)
    n = rows.shape[1] - PASSAGE + 1
    assert shares.tolist() == [5 / n, 5 / n, 0, 0, 0, 0]


def test_canaries_are_found_whole_and_cut() -> None:
    """Rows are stretches of the file; each begins with the last token of the preceding one."""
    canaries = [(7, 8, 9), (7, 8, 5, 6), (1, 1), (2, 3, 4)]
    file = np.array([0, 7, 8, 9, 0, 7, 8, 5, 6, 0, 7, 8, 9, 0, 2, 3, 4, 0, 7, 8, 9, 0, 0, 2, 3, 4])
    starts = np.array([15, 0, 5, 20, 10])  # in training order
    positions = starts[:, None] + np.arange(6)
    rows = file[positions]
    of_canaries = np.where(rows > 0, positions, -1)
    whole, cut = canary_reads(rows, of_canaries, np.array([0, 0, 3, NEVER, 8]), canaries)
    assert whole == [
        [0, 0, 8],
        [3],
        [],
        [],
    ]  # the last token of (7, 8, 9) at 18 begins a row unread
    assert cut.tolist() == [True, True, False, True]


def test_rows_are_read_in_order_until_training_ends() -> None:
    assert read_by(np.array([0, 31, 32, 64, 100]), 32, 2).tolist() == [0, 0, 1, NEVER, NEVER]
    assert evenly(np.arange(10), 3).tolist() == [0, 4, 9]


@pytest.mark.parametrize("scale", ["smoke", "laptop", "gpu"])
def test_cohorts_and_the_floor_fit_the_scale(scale: str) -> None:
    params, last = Params(scale), scale_named(scale).steps
    for (start, stop), (following, _) in zip(params.cohorts[:-1], params.cohorts[1:], strict=True):
        assert 0 < start < stop <= following < last
    assert {step for window in params.cohorts for step in window} <= set(params.cohort_steps)
    assert all(params.first_look(k) in params.cohort_steps for k in range(len(params.cohorts)))
    assert params.final_steps[1] >= lr_floor_step(last)
    assert params.final_steps[1] < params.too_late < last
    assert linear_step(FLOOR - 1, OFFICIAL_STEPS) < lr_floor_step(OFFICIAL_STEPS)
    kept = of_params.keep(params, of_params.configs(params)[params.size_list[0], "standard", 1234])
    if scale != "smoke":
        assert {*params.cohort_steps, *params.final_steps, *params.canary_steps} <= kept.weights
