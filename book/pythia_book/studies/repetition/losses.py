"""Computes held-out losses, what repeated data are worth, and when the loss begins to rise.

The *worth* of a run is the number of fresh tokens that would give the same loss, as a fraction of
the tokens that the run reads. That number is read off the losses of fresh runs of the same size and
seed, each trained on a schedule of its own length. A checkpoint, or a number of epochs, is chosen
on one half of the held-out documents and judged on the other, so that the choice does not favor it.

Values have one entry per seed. A missing run has the value NaN, and the estimates use the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pythia_book.stats import Estimate, mean_over_known
from pythia_book.studies.repetition.params import Params
from pythia_book.study import Measurements

CHOOSE, JUDGE = 0, 1
"""The half of the held-out documents on which the best is chosen, and the half that judges it."""
BEYOND = 2.0
"""The curve of fresh data is extended to at most this many times the longest fresh run."""


def geometric_mean(values: np.ndarray) -> Estimate | None:
    """Return the geometric mean of positive values over seeds, with its t-interval."""
    e = mean_over_known(np.log(values))
    return None if e is None else e.mapped(lambda x: float(np.exp(x)), lambda x: float(np.log(x)))


# --- estimators ------------------------------------------------------------------------------


def fresh_tokens(loss: float, tokens: np.ndarray, fresh: np.ndarray) -> tuple[float, bool]:
    """Return how many fresh tokens reach a loss, and whether this is only an upper bound.

    Between the runs, the logarithm of the tokens is a monotone cubic (PCHIP) of the loss. Beyond
    the longest run, it goes on as a line through the two longest, up to BEYOND. A loss above that
    of the shortest run gives the tokens of that run, an upper bound (True). The result is NaN
    unless some longer run has a lower loss than a shorter one.

    Args:
        tokens: float[runs], ascending.
        fresh: float[runs], the losses, NaN if missing.
    """
    from scipy.interpolate import PchipInterpolator

    x, y = [], []  # losses, rising; logarithms of tokens, falling
    for value, count in zip(fresh[::-1], np.log(tokens[::-1]), strict=True):
        if np.isfinite(value) and (not x or value > x[-1]):
            x.append(value)
            y.append(count)
    if len(x) < 2 or not np.isfinite(loss):
        return np.nan, False
    if loss < x[0]:
        further = (loss - x[0]) * (y[1] - y[0]) / (x[1] - x[0])
        return float(np.exp(y[0] + min(further, np.log(BEYOND)))), False
    return float(np.exp(PchipInterpolator(x, y)(min(loss, x[-1])))), bool(loss > x[-1])


@dataclass(frozen=True)
class Worth:
    """What runs are worth, one entry per seed.

    Attributes:
        percent: float64[seeds], of the tokens of an arm.
        at_most: bool[seeds], whether the value is only an upper bound.
    """

    percent: np.ndarray
    at_most: np.ndarray

    def mean(self) -> tuple[Estimate | None, bool]:
        """Return the mean over seeds, and whether it is an upper bound, which has no interval."""
        e, bound = mean_over_known(self.percent), bool(self.at_most.any())
        return (replace(e, low=np.nan, high=np.nan) if e and bound else e), bound


def mean_worth(each: list[Worth]) -> Worth:
    """Return the mean over sizes; a seed that lacks a size is NaN."""
    at_most = np.any([worth.at_most for worth in each], axis=0)
    return Worth(np.mean([worth.percent for worth in each], axis=0), at_most)


def lowest(at: np.ndarray, losses: np.ndarray) -> float:
    """Return where a curve is lowest: the vertex of a parabola through its minimum and neighbors.

    NaN if the least value is the last one (the curve does not rise again), or a value is missing.
    A curve whose first value is its least is lowest there.

    Args:
        at: float[n], ascending.
        losses: float[n].
    """
    if len(losses) < 2 or not np.isfinite(losses).all():
        return np.nan
    i = int(np.argmin(losses))
    if i == len(losses) - 1:
        return np.nan
    if i == 0:
        return float(at[0])
    square, linear, _ = np.polyfit(at[i - 1 : i + 2] - at[i], losses[i - 1 : i + 2], 2)
    return float(at[i] - linear / (2 * square))


# --- the runs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """The measured losses, with comparisons seed by seed."""

    params: Params
    measured: Measurements

    def array(self, size: str, part: int, epochs: int) -> np.ndarray:
        """Return a run's losses, float64[seeds, checkpoints, 2 halves], in nats per token."""
        array = self.measured.get("loss", size, part, epochs)
        if array is None:
            checkpoints = len(self.params.checkpoints) if part == epochs else 1
            array = np.full((self.params.seeds, checkpoints, 2), np.nan)
        return array

    def curve(self, size: str, epochs: int) -> np.ndarray:
        """Return an arm's loss over training, float64[seeds, checkpoints]."""
        return self.array(size, epochs, epochs).mean(2)

    def final(self, size: str, part: int, epochs: int) -> np.ndarray:
        """Return a run's loss at its end, float64[seeds]."""
        return self.array(size, part, epochs)[:, -1].mean(1)

    def tokens(self, part: int = 1) -> int:
        """Return the number of tokens in 1/`part` of all rows."""
        return self.params.rows(part) * self.measured.facts["tokens_per_row"]

    def parameters(self, size: str, kind: str = "all") -> int:
        """Return the number of parameters of a size, "all" or "non_embedding"."""
        return self.measured.facts["parameters"][size][kind]

    def cost(self, size: str, epochs: int, base: int = 1, percent: bool = False) -> np.ndarray:
        """Return an arm's final loss minus that of the arm with `base` epochs, float64[seeds].

        In nats per token or, with `percent`, in percent of the loss of the other arm.
        """
        one, other = self.final(size, epochs, epochs), self.final(size, base, base)
        return (one - other) * (100 / other if percent else 1)

    def _fresh(self, size: str, half: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens of fresh runs, ascending, and their losses, float64[seeds, runs]."""
        parts = self.params.epoch_list[::-1]
        ends = [self.array(size, part, 1)[:, -1] for part in parts]
        losses = [end.mean(1) if half is None else end[:, half] for end in ends]
        return np.array([float(self.tokens(part)) for part in parts]), np.stack(losses, axis=1)

    def _worth(self, size: str, loss: np.ndarray, half: int | None = None) -> Worth:
        """Return how many fresh tokens give `loss`, float64[seeds]."""
        tokens, fresh = self._fresh(size, half)
        counts = [fresh_tokens(x, tokens, row) for x, row in zip(loss, fresh, strict=True)]
        values, bounds = zip(*counts, strict=True)
        return Worth(100 * np.array(values) / tokens[-1], np.array(bounds))

    def worth_at_end(self, size: str, epochs: int) -> Worth:
        """Return the worth of an arm at its end."""
        return self._worth(size, self.final(size, epochs, epochs))

    def worth_at_best(self, size: str, epochs: int) -> Worth:
        """Return the worth of an arm at its best checkpoint."""
        return self._worth(size, self.best_checkpoint(size, epochs), JUDGE)

    def worth_when_planned(self, size: str, epochs: int) -> Worth:
        """Return the worth of the best run on an arm's data."""
        return self._worth(size, self.best_planned(size, epochs), JUDGE)

    def best_checkpoint(self, size: str, epochs: int, before_end: bool = False) -> np.ndarray:
        """Return the loss of an arm at its best checkpoint, float64[seeds], on the rows JUDGE."""
        array = self.array(size, epochs, epochs)
        return _judged(array[:, :-1] if before_end else array)

    def best_planned(self, size: str, part: int) -> np.ndarray:
        """Return the loss of the best run on 1/`part` of the rows, on the rows JUDGE.

        The runs read these rows for different numbers of epochs, each with a schedule of its own
        length: training that is planned to stop early.
        """
        epochs = self._epochs_of(part)
        return _judged(np.stack([self.array(size, part, e)[:, -1] for e in epochs], axis=1))

    def planned(self, size: str, epochs: int) -> np.ndarray:
        """Return the best loss of a planned stop minus that of the best checkpoint."""
        return self.best_planned(size, epochs) - self.best_checkpoint(size, epochs)

    def _epochs_of(self, part: int) -> list[int]:
        """Return for how many epochs runs read 1/`part` of the rows; [`part`] if none do."""
        return [e for p, e in sorted(self.params.pairs) if p == part] or [part]

    def rise(self, size: str, epochs: int) -> np.ndarray:
        """Return how far an arm's loss has risen at its end above the best earlier checkpoint.

        float64[seeds], in nats per token, on the rows JUDGE; the rows CHOOSE select the checkpoint.
        """
        end = self.array(size, epochs, epochs)[:, -1, JUDGE]
        return end - self.best_checkpoint(size, epochs, before_end=True)

    def onset(self, size: str, epochs: int) -> np.ndarray:
        """Return how many epochs an arm has read where its loss is lowest, float64[seeds].

        NaN if the loss is lowest at the end.
        """
        passed = np.array(self.params.checkpoints) * epochs / self.params.n_steps
        return np.array([lowest(passed, row) for row in self.curve(size, epochs)])

    def best_epochs(self, size: str, part: int) -> np.ndarray:
        """Return the number of epochs of 1/`part` of the rows with the lowest loss, float64[seeds].

        Each number of epochs has a run with a schedule of its own length; a parabola in the
        logarithm connects them. NaN if the most epochs are best: then no upper bound is known.
        """
        epochs = self._epochs_of(part)
        ends = np.stack([self.final(size, part, e) for e in epochs], axis=1)
        return np.exp(np.array([lowest(np.log(epochs), row) for row in ends]))


def _judged(array: np.ndarray) -> np.ndarray:
    """Return the losses on the rows JUDGE of the checkpoint that the rows CHOOSE find best.

    `array` is float64[seeds, checkpoints, 2]; the result, float64[seeds], is NaN where a checkpoint
    is missing.
    """
    complete = np.isfinite(array).all((1, 2))
    chosen = np.argmin(np.where(np.isfinite(array), array, np.inf)[..., CHOOSE], axis=1)
    return np.where(complete, array[np.arange(len(array)), chosen, JUDGE], np.nan)
