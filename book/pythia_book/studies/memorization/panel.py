"""Estimates how much reading a text once improves a model's prediction of that text.

Training reads rows in random order, and never reaches some of them. So rows that are read during
certain updates are a random sample, and rows that are never read are a control group. As in Lesci
et al. 2024 (arXiv 2406.04327), the *trace* of reading is a difference in differences,

    trace = (fall of the loss of the rows that were read, from a checkpoint before they were read to
             a later one) - (fall of the loss of rows never read, between the same checkpoints),

in nats per token; it is positive if reading helps. Every estimate here is linear in the losses, so
its standard error follows from the rows of the two groups, which are independent samples. An
interval therefore covers *this run* only, not runs with other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pythia_book.stats import Estimate, t_interval
from pythia_core.errors import DataError

NEVER = -1
"""Stands in for the update that reads a text, if the text is never read."""
FEWEST = 3
"""Without this many texts in either group, an estimate is NaN."""

Steps = int | np.ndarray
"""One checkpoint for all texts, or one for each, int[texts]."""


@dataclass(frozen=True)
class Panel:
    """The losses of texts (rows or canaries) at several checkpoints of a run."""

    steps: tuple[int, ...]
    """The checkpoints, ascending."""
    loss: np.ndarray
    """float64[checkpoints, texts], nats per token; for differences between checkpoints, a constant
    may be subtracted from each text."""
    read: np.ndarray
    """int64[texts]: the update that reads the text, or NEVER. Step `read` + 1 is the first after
    it."""

    def __post_init__(self) -> None:
        if self.loss.shape != (len(self.steps), len(self.read)):
            raise DataError(
                f"expected losses of {len(self.steps)} checkpoints and {len(self.read)} texts, got "
                f"the shape {self.loss.shape}"
            )

    @property
    def never(self) -> np.ndarray:
        """float64[checkpoints, texts never read]: their losses."""
        return self.loss[:, self.read == NEVER]

    def read_in(self, start: int, stop: int) -> np.ndarray:
        """Return the indices of the texts that the updates [start, stop) read, int64[n]."""
        return np.flatnonzero((self.read >= start) & (self.read < stop))

    def fall(self, before: Steps | None, after: Steps, n: int) -> np.ndarray:
        """Return weights with which the losses of each of `n` texts add up to its fall in loss.

        Args:
            before, after: checkpoints of the panel; if `before` is None, the sum is minus the loss
                at `after`, for texts that are exchangeable even without their earlier losses.

        Returns:
            float64[checkpoints, n].
        """
        weights = np.zeros((len(self.steps), n))
        columns = np.arange(n)
        for steps, sign in ((before, 1.0), (after, -1.0)):
            if steps is not None:
                weights[np.searchsorted(self.steps, np.broadcast_to(steps, n)), columns] += sign
        return weights


def mean_trace(panel: Panel, chosen: np.ndarray, weights: np.ndarray) -> Estimate:
    """Estimate the mean trace of the texts `chosen`, int64[n].

    `weights`, float64[checkpoints, n], say which losses of each text are compared (`Panel.fall`).
    """
    n = len(chosen)
    if _too_few(panel, n):
        return _nothing(n)
    traces = single_traces(panel, chosen, weights)
    rest = (traces - traces.mean()) * (n / (n - 1)) ** 0.5
    return _linear(panel, weights, np.full(n, 1 / n), rest, traces.mean(), 1)


def trend(panel: Panel, chosen: np.ndarray, weights: np.ndarray, x: np.ndarray) -> Estimate:
    """Estimate the slope of the least-squares line of the traces of `chosen` over `x`, float[n]."""
    n = len(chosen)
    if _too_few(panel, n) or np.ptp(x) == 0:
        return _nothing(n)
    slope, _, coefficients, rest = _line(single_traces(panel, chosen, weights), x)
    return _linear(panel, weights, coefficients, rest, slope, 2)


def relative_trend(
    panel: Panel, chosen: np.ndarray, weights: np.ndarray, x: np.ndarray
) -> Estimate:
    """Estimate the slope of `trend` as a fraction of the mean trace (delta method)."""
    n = len(chosen)
    if _too_few(panel, n) or np.ptp(x) == 0:
        return _nothing(n)
    slope, middle, coefficients, rest = _line(single_traces(panel, chosen, weights), x)
    ratio = slope / middle
    return _linear(panel, weights, (coefficients - ratio / n) / middle, rest, ratio, 2)


def ratio_of_traces(
    panel: Panel, chosen: np.ndarray, numerator: np.ndarray, denominator: np.ndarray
) -> Estimate:
    """Estimate the ratio of two mean traces of the same texts (delta method).

    `numerator` and `denominator` are weights as in `mean_trace`.
    """
    above, below = (mean_trace(panel, chosen, w) for w in (numerator, denominator))
    if not np.isfinite(below.value):
        return _nothing(len(chosen))
    ratio = above.value / below.value
    rest = mean_trace(panel, chosen, (numerator - ratio * denominator) / abs(below.value))
    half = (rest.high - rest.low) / 2
    return replace(rest, value=ratio, low=ratio - half, high=ratio + half)


def single_traces(panel: Panel, chosen: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the trace of each text in `chosen` against the mean of the texts never read."""
    against = panel.loss[:, chosen] - panel.never.mean(1, keepdims=True)
    return (weights * against).sum(0)


def joint_test(
    panel: Panel, groups: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> tuple[list[Estimate], float]:
    """Test that the mean traces of several groups of texts are all zero.

    The groups share the texts never read, which the covariance takes into account. Hotelling's
    statistic over the number of groups is compared with an F distribution, whose second number of
    degrees of freedom is that of the smallest group.

    Returns:
        The mean trace of each group, and the p-value; NaN if a group is too small.
    """
    from scipy.stats import f

    means = [mean_trace(panel, g, w) for g, w in zip(groups, weights, strict=True)]
    values = np.array([e.value for e in means])
    if not len(values) or not np.isfinite(values).all():
        return means, float("nan")
    shared = np.stack([w.mean(1) @ panel.never for w in weights])
    covariance = np.atleast_2d(np.cov(shared)) / shared.shape[1]
    own = [
        np.var(single_traces(panel, g, w), ddof=1) / len(g)
        for g, w in zip(groups, weights, strict=True)
    ]
    statistic = values @ np.linalg.pinv(covariance + np.diag(own)) @ values / len(values)
    smallest = min(*(len(g) for g in groups), shared.shape[1]) - 1
    return means, float(f.sf(statistic, len(values), smallest))


# --- linear statistics -----------------------------------------------------------------------


def _too_few(panel: Panel, n: int) -> bool:
    return min(n, int((panel.read == NEVER).sum())) < FEWEST


def _nothing(n: int) -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), n, 1)


def _line(traces: np.ndarray, x: np.ndarray) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Return the slope of a least-squares line, the mean, the slope's coefficients, and residuals.

    The slope is the sum of `traces`, float[n], times the coefficients, float[n]. Each residual is
    divided by one minus its leverage, so that its square is a robust estimate (HC3) of the variance
    of its trace: traces of texts that are read early or often vary more or less than others.
    """
    centered = x - x.mean()
    coefficients = centered / (centered @ centered)
    slope, middle = float(coefficients @ traces), float(traces.mean())
    leverage = 1 / len(x) + coefficients * centered
    return slope, middle, coefficients, (traces - middle - slope * centered) / (1 - leverage)


def _linear(
    panel: Panel,
    weights: np.ndarray,
    coefficients: np.ndarray,
    rest: np.ndarray,
    value: float,
    fitted: int,
) -> Estimate:
    """Return `value`, the sum of traces times `coefficients`, with Welch's t-interval.

    Args:
        coefficients: float[n], one per text that was read.
        rest: float[n], whose squares estimate the variance of each trace about its fitted value.
        fitted: the number of parameters of the fit.
    """
    n, never = len(rest), panel.never
    read = float((coefficients**2 * rest**2).sum())
    unread = float(np.var((weights @ coefficients) @ never, ddof=1)) / never.shape[1]
    df = (read + unread) ** 2 / (
        read**2 / max(1, n - fitted) + unread**2 / (never.shape[1] - 1) + 1e-300
    )
    return t_interval(float(value), (read + unread) ** 0.5, max(1.0, float(df)), n, 1)
