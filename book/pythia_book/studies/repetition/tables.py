"""Comparisons and tables of the repetition study, computed from the losses per row.

The worth of repeated data is the share of fresh data, read once, that gives the same loss. It is
given at the end of training and at the best checkpoint. The best checkpoint is chosen on every
other held-out row and judged on the rows in between, so that the choice does not favour it.
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
    """Compares arms row by row. A result is None if an arm that it needs was not measured."""

    params: Params
    measured: Measurements

    @property
    def steps(self) -> list[int]:
        return list(self.measured.facts["steps"])

    @property
    def last(self) -> int:
        return self.params.n_steps

    def loss(self, size: str, epochs: int, step: int | None = None) -> np.ndarray | None:
        """Return held-out losses float64[rows] in nats per token at `step`, by default the last."""
        losses = self.measured.get("loss", size, epochs, self.last if step is None else step)
        return None if losses is None else losses.astype(float)

    def estimate(self, values: np.ndarray | None, exact: bool = False) -> Estimate | None:
        """Return the mean of `values`, which has one value per row, with a bootstrap interval."""
        if values is None:
            return None
        return estimate(values[None], self.params.bootstrap, change=True, exact=exact)

    def pooled(self, each: list[np.ndarray | None], exact: bool = False) -> Estimate | None:
        """Average values per row over sizes, then estimate their mean over rows.

        Args:
            each: one array of values per row for each size; if any is None, so is the result.
        """
        present = [values for values in each if values is not None]
        if len(present) < len(each) or not each:
            return None
        return self.estimate(np.mean(present, axis=0), exact)

    def cost(
        self, size: str, epochs: int, base: int = 1, step: int | None = None, percent: bool = False
    ) -> np.ndarray | None:
        """Return the loss per row minus the loss of the arm of `base` epochs, in nats per token.

        Args:
            percent: give it in % of the mean loss of the arm of `base` epochs instead.
        """
        one, other = (self.loss(size, r, step) for r in (epochs, base))
        if one is None or other is None:
            return None
        return (one - other) * (100 / other.mean() if percent else 1)

    def best_step(self, size: str, epochs: int, before_end: bool = False) -> int | None:
        """Return the step of the checkpoint with the lowest mean loss on the rows in CHOOSE.

        Args:
            before_end: leave out the last checkpoint.
        """
        steps = [s for s in self.steps if s < self.last or not before_end]
        means = {}
        for step in steps:
            losses = self.loss(size, epochs, step)
            if losses is not None:
                means[step] = losses[CHOOSE].mean()
        return min(means, key=means.__getitem__) if means else None

    def turn(self, size: str, epochs: int) -> np.ndarray | None:
        """Return the loss at the end minus the loss at the best earlier checkpoint, per row in
        JUDGE."""
        step, end = self.best_step(size, epochs, before_end=True), self.loss(size, epochs)
        earlier = None if step is None else self.loss(size, epochs, step)
        return None if end is None or earlier is None else (end - earlier)[JUDGE]

    def gap_growth(self, epochs: int) -> Estimate | None:
        """How much larger the gap in loss between held-out rows and read rows is than in the fresh
        arm, at the end."""
        heldout = self.pooled([self.cost(size, epochs) for size in self.params.size_list])
        read = self.pooled([self._change("read_loss", s, epochs) for s in self.params.size_list])
        return None if heldout is None or read is None else difference(heldout, read)

    def memorized_change(self, epochs: int) -> Estimate | None:
        """Return the share of rows that the arm has memorized minus the share of the fresh arm."""
        each = [self._change("memorized", size, epochs) for size in self.params.size_list]
        return self.pooled(each, exact=True)

    def memorizes(self) -> bool:
        """Whether any arm has memorized a row."""
        return any(hits.any() for _, hits in self.measured.under("memorized"))

    def _change(self, measure: str, size: str, epochs: int) -> np.ndarray | None:
        one, other = (self.measured.get(measure, size, r) for r in (epochs, 1))
        return None if one is None or other is None else one.astype(float) - other

    def worth(self, size: str, epochs: int, best: bool = False) -> Estimate | None:
        """What the tokens that an arm reads are worth, in % of as much fresh data.

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
    """Return the share of an arm's number of tokens that, as fresh data, gives the arm's mean loss.

    Args:
        loss: float[rows], losses of the arm.
        single_pass: maps r to the losses of the run that read 1/r as many tokens, each once. The
            mean loss is interpolated linearly in the logarithm of the number of tokens, and never
            extrapolated.
        draws: number of bootstrap resamples of the rows.
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
    """Return the study's tables by name. `result` stands for the columns value, low, high, n.

    levels has the held-out loss. Columns: size, epochs, step, percent, result.
    effects has the held-out loss in % above the fresh arm's, paired by row. Columns: as in levels.
    read has the loss at the end on rows that all arms have read. Columns: size, epochs, result.
    worth has what the data are worth in % of as much fresh data, as measured (result), by the law's
    data term (data_term), and by both terms with parameters counted without embeddings (whole_law)
    or with them (whole_law_all). Columns: size, epochs, rows (number of different rows), at ("end"
    or "best"), step, data_term, whole_law, whole_law_all, result.
    fresh has the loss of the run that read an arm's rows once. Columns: size, epochs, rows, result.
    memorized has the share of rows that are memorized. Columns: size, epochs, result.
    """
    import pandas as pd

    params, measured = arms.params, arms.measured
    levels, effects, read, worth, fresh, memorized = [], [], [], [], [], []
    result = ["value", "low", "high", "n"]

    def add(rows: list, where: tuple, e: Estimate | None) -> None:
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
    """Return three predictions of what an arm's data are worth, in % of as much fresh data.

    They come from the law's data term alone; from both terms, with parameters counted without
    embeddings; and from both terms, with all parameters.
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
