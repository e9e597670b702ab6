"""Comparisons and tables of the repetition study, computed from the losses per row.

The worth of repeated data is the number of fresh tokens that give the same loss, in percent of all
tokens read. The worth is computed at the end of training and at the checkpoint with the lowest
held-out loss. One half of the held-out rows chooses this checkpoint and the other half judges it,
so that the choice does not favour it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.stats import LEVEL, Estimate, difference, estimate, wilson
from pythia_book.studies.repetition import law
from pythia_book.studies.repetition.params import Params
from pythia_book.study import Measurements

if TYPE_CHECKING:
    import pandas as pd

CHOOSE, JUDGE = slice(0, None, 2), slice(1, None, 2)
"""Held-out rows on which the best checkpoint is chosen, and those on which it is judged."""


@dataclass(frozen=True)
class Arms:
    """The measurements of the study, with comparisons of arms row by row.

    An arm is a run that passes over the same rows one or more times; each pass is an epoch. The
    fresh arm has one epoch. All arms read equally many tokens. A method returns None if a run that
    it needs was not measured.
    """

    params: Params
    measured: Measurements

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, ascending."""
        return list(self.measured.facts["steps"])

    @property
    def last(self) -> int:
        """The last step of every arm."""
        return self.params.n_steps

    def loss(self, size: str, epochs: int, step: int | None = None) -> np.ndarray | None:
        """Return an arm's held-out loss, nats per token, at `step` or at the end, float64[rows]."""
        losses = self.measured.get("loss", size, epochs, self.last if step is None else step)
        return None if losses is None else losses.astype(float)

    def estimate(self, values: np.ndarray | None, exact: bool = False) -> Estimate | None:
        """Return the mean of `values`, float[rows], with a bootstrap interval over rows.

        Args:
            exact: whether values are 0 or 1, or differences of such values; see `stats.estimate`.
        """
        if values is None:
            return None
        return estimate(values[None], self.params.bootstrap, change=True, exact=exact)

    def pooled(self, each: list[np.ndarray | None], exact: bool = False) -> Estimate | None:
        """Average `each`, a float[rows] per size, over sizes; return `estimate` of the average."""
        present = [values for values in each if values is not None]
        if len(present) < len(each) or not each:
            return None
        return self.estimate(np.mean(present, axis=0), exact)

    def cost(
        self, size: str, epochs: int, base: int = 1, step: int | None = None, percent: bool = False
    ) -> np.ndarray | None:
        """Return an arm's held-out loss minus the loss of the arm with `base` epochs, float[rows].

        The unit is nats per token or, with `percent`, percent of the mean loss of the arm with
        `base` epochs.
        """
        one, other = (self.loss(size, r, step) for r in (epochs, base))
        if one is None or other is None:
            return None
        return (one - other) * (100 / other.mean() if percent else 1)

    def best_step(self, size: str, epochs: int, before_end: bool = False) -> int | None:
        """Return the step at which an arm has the lowest mean loss on the rows CHOOSE."""
        steps = [s for s in self.steps if s < self.last or not before_end]
        means = {}
        for step in steps:
            losses = self.loss(size, epochs, step)
            if losses is not None:
                means[step] = losses[CHOOSE].mean()
        return min(means, key=means.__getitem__) if means else None

    def turn(self, size: str, epochs: int) -> np.ndarray | None:
        """Return how much an arm's held-out loss has risen again at the end, in nats per token.

        The rise, float[rows], is the loss on the rows JUDGE at the end, minus the loss at the best
        earlier checkpoint. The rows CHOOSE select this checkpoint.
        """
        step, end = self.best_step(size, epochs, before_end=True), self.loss(size, epochs)
        earlier = None if step is None else self.loss(size, epochs, step)
        return None if end is None or earlier is None else (end - earlier)[JUDGE]

    def gap_growth(self, epochs: int) -> Estimate | None:
        """Return how much more an arm overfits than the fresh arm does, in nats per token.

        Overfitting is the loss on held-out rows minus the loss on rows that all arms have read, at
        the end of training and averaged over sizes.
        """
        heldout = self.pooled([self.cost(size, epochs) for size in self.params.size_list])
        read = self.pooled([self._change("read_loss", s, epochs) for s in self.params.size_list])
        return None if heldout is None or read is None else difference(heldout, read)

    def memorized_change(self, epochs: int) -> Estimate | None:
        """Return the share of rows that an arm has memorized, minus the fresh arm's share.

        A share is a fraction of the rows that all arms have read, averaged over sizes.
        """
        each = [self._change("memorized", size, epochs) for size in self.params.size_list]
        return self.pooled(each, exact=True)

    def memorizes(self) -> bool:
        """Return whether any arm of any size has memorized a row."""
        return any(hits.any() for _, hits in self.measured.under("memorized"))

    def _change(self, measure: str, size: str, epochs: int) -> np.ndarray | None:
        """Return `read_loss` or `memorized` of an arm minus that of the fresh arm, float[rows]."""
        one, other = (self.measured.get(measure, size, r) for r in (epochs, 1))
        return None if one is None or other is None else one.astype(float) - other

    def worth(self, size: str, epochs: int, best: bool = False) -> Estimate | None:
        """Return how many fresh tokens give an arm's loss, in percent of the tokens the arm reads.

        Args:
            best: judge the arm at its best checkpoint instead of at the end.
        """
        params = self.params
        step = self.best_step(size, epochs) if best else self.last
        loss = None if step is None else self.loss(size, epochs, step)
        once = {r: self.measured.get("once", size, r) for r in params.epoch_list}
        curve = {r: losses.astype(float) for r, losses in once.items() if losses is not None}
        if loss is None or len(curve) < len(once):
            return None
        if best:
            loss, curve = loss[JUDGE], {r: losses[JUDGE] for r, losses in curve.items()}
        return measured_share(loss, curve, params.bootstrap).times(100)


def measured_share(loss: np.ndarray, single_pass: dict[int, np.ndarray], draws: int) -> Estimate:
    """Return how many fresh tokens give an arm's mean loss, as a fraction of the arm's tokens.

    Between the single-pass runs, the mean loss is interpolated linearly in the logarithm of the
    number of tokens. The loss is never extrapolated.

    Args:
        loss: float[rows], losses of the arm.
        single_pass: maps r to float[rows], losses of a run that read 1/r as many tokens as the arm,
            but no token twice.
    """
    passes = sorted(single_pass)  # most data first, so losses rise
    losses = np.stack([*(single_pass[r] for r in passes), loss])
    n = losses.shape[1]
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=draws)
    means = np.vstack([losses.mean(1), counts @ losses.T / n])
    curves = np.maximum.accumulate(means[:, :-1], axis=1)
    logs = [np.interp(m, c, np.log(passes)) for m, c in zip(means[:, -1], curves, strict=True)]
    shares = np.exp(-np.array(logs))
    low, high = np.quantile(shares[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(shares[0]), float(low), float(high), n, 1)


def tables(arms: Arms) -> dict[str, pd.DataFrame]:
    """Return the study's tables by name.

    Every table has the columns `size`, `epochs`, `value`, `low`, `high` and `n` (number of rows).
    Losses are in nats per token. The values, and further columns:

    `levels`: held-out loss of each arm; `step`, `percent` (of training).
    `effects`: percent by which the held-out loss exceeds the loss of the fresh arm; `step`,
        `percent`.
    `read`: final loss of each arm on rows that all arms have read.
    `worth`: see `Arms.worth`; `rows` (number of different rows), `at` ("end" or "best"), `step`,
        and the law's `predictions`: `data_term`, `whole_law`, `whole_law_all`.
    `fresh`: held-out loss of each single-pass run; `rows` (number of rows read).
    `memorized`: share of memorized rows, among the rows that all arms have read.
    """
    import pandas as pd

    params, measured = arms.params, arms.measured
    levels, effects, read, worth, fresh, memorized = [], [], [], [], [], []
    result = ["value", "low", "high", "n"]

    def add(rows: list, where: tuple, e: Estimate | None) -> None:
        """Append a row with the values `where` and the estimate to `rows`, unless `e` is None."""
        if e is not None:
            rows.append((*where, e.value, e.low, e.high, e.n_items))

    for size in params.size_list:
        for r in params.epoch_list:
            for step in arms.steps:
                where = (size, r, step, 100 * step / params.n_steps)
                add(levels, where, arms.estimate(arms.loss(size, r, step)))
                if r > 1:
                    excess = arms.cost(size, r, step=step, percent=True)
                    add(effects, where, arms.estimate(excess))
            add(read, (size, r), arms.estimate(measured.get("read_loss", size, r)))
            add(fresh, (size, r, params.rows(r)), arms.estimate(measured.get("once", size, r)))
            if (hits := measured.get("memorized", size, r)) is not None:
                share = wilson(int(hits.sum()), len(hits))
                memorized.append((size, r, *share.interval().values(), len(hits)))
            if r > 1:
                predicted = predictions(arms, size, r)
                for at, step in (("end", arms.last), ("best", arms.best_step(size, r))):
                    e = arms.worth(size, r, at == "best")
                    add(worth, (size, r, params.rows(r), at, step, *predicted), e)
    cell, law_columns = ["size", "epochs"], ["data_term", "whole_law", "whole_law_all"]
    return {
        "levels": pd.DataFrame(levels, columns=[*cell, "step", "percent", *result]),
        "effects": pd.DataFrame(effects, columns=[*cell, "step", "percent", *result]),
        "read": pd.DataFrame(read, columns=[*cell, *result]),
        "worth": pd.DataFrame(worth, columns=[*cell, "rows", "at", "step", *law_columns, *result]),
        "fresh": pd.DataFrame(fresh, columns=[*cell, "rows", *result]),
        "memorized": pd.DataFrame(memorized, columns=[*cell, *result]),
    }


def predictions(arms: Arms, size: str, epochs: float) -> tuple[float, float, float]:
    """Predict the worth of an arm, in percent of the tokens that the arm reads.

    The three predictions are by the law's data term alone, by the whole law for the number of
    non-embedding parameters, and by the whole law for the number of all parameters.
    """
    tokens = tokens_read(arms)
    counts = arms.measured.facts["parameters"][size]
    whole = (
        100 * law.whole_share(counts[kind], tokens, epochs) for kind in ("non_embedding", "all")
    )
    return (100 * law.data_share(epochs), *whole)


def tokens_read(arms: Arms) -> int:
    """Return the number of tokens that every arm reads, counting repeated tokens each time."""
    return arms.params.rows() * arms.measured.facts["tokens_per_row"]
