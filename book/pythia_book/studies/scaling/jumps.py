"""Tests whether a curve over training jumps.

*Smooth* means that a curve bends on the scale of a doubling of the tokens read, not faster: it is a
cubic spline in the logarithm of the step, with a knot at every doubling. A *jump* comes on top of
it, from one checkpoint to the next. A jump is sought at every checkpoint after the first quarter of
training: before that, no run on the deduplicated text chose right answers more often than by
chance. A jump is compared with the rise over the same part of training, since it cannot be part of
an earlier rise.

All checkpoints are scored on the same items, so only the weights vary from checkpoint to
checkpoint: an accuracy leaves its smooth curve for several checkpoints at a time. This noise is
modeled as the sum of an autoregression, which all items share, and of white noise, which is
independent for each item; restricted maximum likelihood chooses their shares. Simulating it gives
the distribution of the largest jump in a curve that has none. A short curve says little about its
noise, so we simulate the worst noise that is still compatible with the curve. The error of a jump
is the error from this noise or from the choice of items (clusters of items are the units),
whichever is larger; both include the noise that is independent for each item.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pythia_book.stats import LEVEL, Z_95, Estimate, mean_over

DOUBLINGS = 4
"""The curve is fitted over the last DOUBLINGS doublings of the step."""
SOUGHT = 2
"""Jumps are sought in the last SOUGHT doublings only."""
EDGE = 4
"""No jump is sought within EDGE checkpoints of either end."""
FEWEST = 60
"""A curve needs at least this many checkpoints in the window."""
DRAWS = 1000
NOISES = (
    (0.0, 0.0),
    *((phi, share) for phi in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95) for share in (0.25, 0.5, 0.75, 1.0)),
)
"""Kinds of noise, of which the likeliest is chosen: the autocorrelation from one checkpoint to the
next of the autoregressive part, and the share of this part in the variance."""
UNLIKELY = 2.71
"""Noise is unlikely if twice its log-likelihood is lower than that of the likeliest noise by more
than this, the 90 % quantile of chi-squared with one degree of freedom."""
SMOOTHED = 15
"""Number of checkpoints over which the variance over items is averaged."""


@dataclass(frozen=True)
class Jumps:
    """The jumps that could be in a curve, one for each place.

    Attributes:
        steps: int[places], the first step after the jump.
        heights: float64[places], the height of each jump if it is the only one.
        errors: float64[places], standard errors: checkpoints' noise and choice of items.
        smooth: float64[checkpoints of the window], the curve without jumps.
        window: int[checkpoints of the window], their steps.
        rise: the change of the smooth curve over the part of training where jumps are sought.
        noise: the kind of noise, one of NOISES.
        suprema: float64[DRAWS], the largest height in standard errors, in curves without a jump.
    """

    steps: np.ndarray
    heights: np.ndarray
    errors: np.ndarray
    smooth: np.ndarray
    window: np.ndarray
    rise: Estimate
    noise: tuple[float, float]
    suprema: np.ndarray

    @property
    def place(self) -> int:
        """The index of the jump upwards that is the largest in standard errors."""
        return int(np.argmax(self.heights / self.errors))

    def largest(self, critical: float | None = None) -> Estimate:
        """Return the jump at `place`, with an interval for the largest jump at any place.

        Args:
            critical: the number of standard errors of a simultaneous interval; None: that of this
                curve. For several curves, see `critical_over`.
        """
        critical = critical_over([self]) if critical is None else critical
        height, error = self.heights[self.place], self.errors[self.place]
        low, high = height - critical * error, (self.heights + critical * self.errors).max()
        return Estimate(float(height), float(low), float(high), len(self.steps), 1)


def critical_over(curves: list[Jumps], level: float = LEVEL) -> float:
    """Return the number of standard errors that, with probability `level`, no curve's jump exceeds.

    The curves must have been simulated independently, with seeds of their own.
    """
    return float(np.quantile(np.max([each.suprema for each in curves], axis=0), level))


def window_of(steps: np.ndarray) -> np.ndarray:
    """Return bool[checkpoints]: which are in the last DOUBLINGS doublings of the step."""
    return (steps > 0) & (steps * 2**DOUBLINGS >= steps.max(initial=0))


def find_jumps(steps: np.ndarray, curves: np.ndarray, seed: int = 0) -> Jumps | None:
    """Seek jumps in the mean of the curves of several clusters of items.

    Args:
        steps: int[checkpoints], ascending.
        curves: float[checkpoints, clusters].
        seed: the seed of the simulated curves.

    Returns:
        None if there are fewer than FEWEST checkpoints in the window, or the curves do not vary.
    """
    inside = window_of(steps)
    if inside.sum() < FEWEST or not np.ptp(curves[inside].mean(1)):
        return None
    window, values = steps[inside], np.asarray(curves[inside], np.float64)
    scale = _item_errors(values)
    relative = tuple((scale / scale.mean()).tolist())
    design = _Design(tuple(window.tolist()), relative)
    scaled = values / design.scale[:, None]
    noise = design.noise(scaled.mean(1)[None])
    n = values.shape[1]
    item = (design.jump_weights @ scaled).std(1, ddof=1) / n**0.5
    kind, worst = int(noise.kinds[0]), int(noise.worst[0])
    paths = _paths(*NOISES[worst], DRAWS, len(window), np.random.default_rng([seed, 1]))
    simulated = design.noise(paths)
    rise = mean_over(design.rise_weights @ scaled)
    item_error = (rise.high - rise.low) / 2 / rise.quantile((1 + LEVEL) / 2)
    spreads = np.sqrt(design.rise_variances)
    moved = np.abs(paths @ design.rise_weights) / (simulated.sigma * spreads[simulated.kinds])
    shaken = np.quantile(moved, LEVEL) * noise.sigma[0] * spreads[kind]
    half = float(np.hypot(Z_95 * item_error, shaken))
    return Jumps(
        steps=window[design.places],
        heights=noise.heights[0],
        errors=np.maximum(noise.errors[0], item),
        smooth=design.scale * (design.hat @ scaled.mean(1)),
        window=window,
        rise=Estimate(rise.value, rise.value - half, rise.value + half, n, 1),
        noise=NOISES[kind],
        suprema=np.abs(simulated.heights / simulated.errors).max(1),
    )


def _item_errors(values: np.ndarray) -> np.ndarray:
    """Return the standard error over clusters at each checkpoint, averaged over neighbors.

    It scales the noise, which grows as more items are answered. Its floor is a tenth of its mean.
    """
    from scipy.ndimage import uniform_filter1d

    variances = values.var(1, ddof=1) / values.shape[1]
    errors = np.sqrt(uniform_filter1d(variances, SMOOTHED, mode="nearest"))
    return np.maximum(errors, max(0.1 * errors.mean(), 1e-12))


def _paths(
    phi: float, share: float, draws: int, length: int, rng: np.random.Generator
) -> np.ndarray:
    """Return float64[draws, length]: noise of variance 1, of one kind (see NOISES)."""
    from scipy.signal import lfilter

    shocks = rng.standard_normal((draws, length))
    shocks[:, 1:] *= (1 - phi**2) ** 0.5
    white = rng.standard_normal((draws, length))
    shared = lfilter([1.0], [1.0, -phi], shocks, axis=1)
    return share**0.5 * shared + (1 - share) ** 0.5 * white


def _correlation(phi: float, share: float, length: int) -> np.ndarray:
    """Return float64[length, length], the correlations of a kind of noise."""
    lags = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    return share * phi**lags + (1 - share) * np.eye(length)


@dataclass(frozen=True)
class _Noise:
    """Jumps of several curves: heights and errors [curves, places], and each curve's noise."""

    heights: np.ndarray
    errors: np.ndarray
    kinds: np.ndarray
    """int[curves], indices of NOISES."""
    worst: np.ndarray
    """int[curves]: of the NOISES that are not unlikely, that with the largest error of jumps."""
    sigma: np.ndarray
    """float64[curves], standard deviation of the noise, in units of the scale."""


@lru_cache(maxsize=4)
def _spline(window: tuple[int, ...]) -> np.ndarray:
    """Return float64[checkpoints, columns], a cubic B-spline basis with a knot per doubling."""
    from scipy.interpolate import BSpline

    x = np.log2(window)
    inner = x[-1] - np.arange(1, DOUBLINGS)
    inner = np.sort(inner[inner > x[0] + 0.25])
    knots = np.r_[[x[0]] * 4, inner, [x[-1]] * 4]
    return BSpline.design_matrix(x, knots, 3).toarray()


class _Design:
    """The linear algebra of a window: the fits of splines and jumps, as weights of checkpoints.

    Everything is in units of `scale`, the relative size of the noise at each checkpoint.

    Attributes:
        hat: float64[checkpoints, checkpoints], maps a curve to its fitted spline.
        freedom: checkpoints minus columns of the spline basis.
        places: int[places], the index of the first checkpoint after each jump.
        jumps: float64[places, checkpoints], a jump of height 1 at each place.
        norms: float64[places], the sum of squares of what a spline cannot fit of each jump.
        jump_weights: float64[places, checkpoints], whose product with a curve is the height.
        rise_weights: float64[checkpoints], whose product with a curve is its rise.
        variances, rise_variances: for each of NOISES, of heights (float64[places]) and of the rise,
            if the noise has variance 1.
        precisions, offsets: for each of NOISES, the matrix and the constant of the restricted
            log-likelihood.
    """

    def __init__(self, window: tuple[int, ...], scale: tuple[float, ...]) -> None:
        self.scale = np.array(scale)
        basis = _spline(window) / self.scale[:, None]
        inverse = np.linalg.pinv(basis)
        self.hat = basis @ inverse
        length, columns = basis.shape
        self.freedom = length - columns
        at = np.array(window)
        early = at * 2**SOUGHT < at[-1]
        places = np.arange(max(EDGE, int(early.sum())), length - EDGE + 1)
        self.places = places
        self.jumps = (np.arange(length) >= places[:, None]) / self.scale
        bare = self.jumps - self.jumps @ self.hat  # what a spline cannot fit of each jump
        self.norms = (bare**2).sum(1)
        self.jump_weights = bare / self.norms[:, None]
        self.rise_weights = (_spline(window)[-1] - _spline(window)[places[0] - 1]) @ inverse
        self.variances, self.rise_variances, self.precisions, self.offsets = [], [], [], []
        for phi, share in NOISES:
            r = _correlation(phi, share, length)
            self.variances.append(((self.jump_weights @ r) * self.jump_weights).sum(1))
            self.rise_variances.append(float(self.rise_weights @ r @ self.rise_weights))
            full = np.linalg.inv(r)
            inner = basis.T @ full @ basis
            self.precisions.append(full - full @ basis @ np.linalg.solve(inner, basis.T @ full))
            self.offsets.append(np.linalg.slogdet(r)[1] + np.linalg.slogdet(inner)[1])

    def noise(self, curves: np.ndarray) -> _Noise:
        """Estimate jumps and noise of curves [curves, checkpoints] in units of `scale`.

        The noise is that which is left after the best jump.
        """
        heights = curves @ self.jump_weights.T
        best = np.argmax(heights**2 * self.norms, axis=1)
        chosen = np.take_along_axis(heights, best[:, None], axis=1)
        rest = curves - chosen * self.jumps[best]
        squares = np.array([((rest @ p) * rest).sum(1) for p in self.precisions])
        deviance = self.freedom * np.log(squares) + np.array(self.offsets)[:, None]
        kinds = deviance.argmin(0)
        sizes = np.sqrt(squares / (self.freedom - 1))
        sigma = sizes[kinds, np.arange(len(curves))]
        spreads = np.sqrt(self.variances)
        likely = deviance <= deviance.min(0) + UNLIKELY
        worst = np.where(likely, sizes * spreads.mean(1)[:, None], 0).argmax(0)
        return _Noise(heights, sigma[:, None] * spreads[kinds], kinds, worst, sigma)
