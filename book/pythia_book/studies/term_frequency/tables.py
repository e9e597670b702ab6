"""Tables of the term-frequency study.

Questions about the same operand are not independent. So answers are averaged by operand or pair of
operands, and intervals are t-intervals over these means. A bootstrap would be unreliable, because
some groups have only ten operands. If all answers of a group are right, or all are wrong, the exact
binomial interval for a share replaces the t-interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora import equations
from pythia_book.stats import (
    LEVEL,
    Estimate,
    difference,
    exact_share,
    mean_over,
    t_interval,
    wilson,
)
from pythia_book.studies.term_frequency.params import WORD_BINS
from pythia_book.study import Measurements

if TYPE_CHECKING:
    import pandas as pd

TENTH = len(equations.FIRST) // 10
"""Number of first operands in the most frequent tenth, and in the least frequent tenth."""
NUMBER_BINS = (0, 3, 10, 30, 100, 300, 1000, 3000)
"""Lower ends of the bins in which numbers are grouped by how often they were read in sums."""
MIN_NUMBERS = 5
"""Bins with fewer numbers are left out of the table `curves`."""
COINS = ("boost", "placebo")
MEASURES = ("exact", "choice", "logprob")


def selected(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Return the rows of a table in which each named column has the given value."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def cell(table: pd.DataFrame, **where: Any) -> Estimate | None:
    """Return the first row with the given values as an estimate; None without such a row."""
    rows = selected(table, **where)
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Estimate(float(row.value), float(row.low), float(row.high), int(row.get("n", 0)), 1)


def welch(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Return the mean of `one` minus the mean of `other`, with Welch's t-interval.

    The interval assumes independent values. It has no width if neither group varies. Its ends are
    NaN if a group has only one value.
    """
    from scipy.stats import ttest_ind

    value, n = float(one.mean() - other.mean()), len(one) + len(other)
    if min(len(one), len(other)) < 2:
        return Estimate(value, float("nan"), float("nan"), n, n, 0)
    if not (np.ptp(one) or np.ptp(other)):
        return Estimate(value, value, value, n, n, n - 2)
    test = ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    return Estimate(value, float(interval.low), float(interval.high), n, n, float(test.df))


@dataclass(frozen=True)
class NumberScores:
    """The scores of our models on sums that were never planted, grouped by first operand.

    A measure is "exact" (whether the right answer is written), "choice" (whether it is picked out
    of four), "logprob" (its log-probability in nats) or, at the last step, "margin" (this minus the
    mean log-probability of three wrong answers with the same first operand). Shots are solved
    examples. A method returns None if a checkpoint was not measured.
    """

    measured: Measurements

    @cached_property
    def first(self) -> np.ndarray:
        """The first operand of each sum, int[sums]."""
        return self.measured.arrays["first"].astype(int)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, ascending."""
        return list(self.measured.facts["steps"])

    def in_sums(self, step: int) -> np.ndarray:
        """Return how often each number was read as a first operand up to `step`, int[100]."""
        return self.measured.arrays[f"in_sums/{step}"]

    def natural(self) -> dict[int, int]:
        """Map each number to its count in the training text before sums are planted in it."""
        counts = self.measured.arrays["natural"]
        return {number: int(counts[number]) for number in equations.FIRST}

    def by_number(self, size: str, step: int, shots: int, measure: str) -> np.ndarray | None:
        """Return the mean score over the sums with each first operand, float64[100].

        A first operand without scored sums has NaN.
        """
        scores = self.measured.get(measure, size, step, shots)
        if scores is None:
            return None
        total = np.bincount(self.first, scores.astype(float), len(equations.FIRST))
        with np.errstate(invalid="ignore"):
            return total / np.bincount(self.first, minlength=len(equations.FIRST))

    def group(self, means: np.ndarray, numbers: Iterable[int]) -> Estimate | None:
        """Return the mean of `means` over the first operands in `numbers`, with an interval.

        Each operand is one unit. Intervals of shares are cut to 0..1. If all answers are right, or
        all are wrong, the interval is the exact binomial interval for the share of questions. The
        result is None if no operand has a mean. `means` is the result of `by_number`.
        """
        members = list(numbers)
        values = means[members]
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        if values.min() == values.max() and values[0] in (0.0, 1.0):
            n_questions = int(np.isin(self.first, members).sum())
            exact = exact_share(int(values[0]) * n_questions, n_questions)
            return replace(exact, n_items=len(values))
        e = mean_over(values)
        if values.min() >= 0:  # log-probabilities are negative
            e = replace(e, low=max(0.0, e.low), high=min(1.0, e.high))
        return e

    def gap(self, size: str, step: int, shots: int, measure: str) -> Estimate | None:
        """Return how much higher the mean score is on frequent than on rare first operands.

        The result is the mean over the most frequent tenth minus the mean over the least frequent
        tenth, ranked by how often operands were read in sums up to `step`.
        """
        means = self.by_number(size, step, shots, measure)
        gap = None if means is None else self._apart(means, step)
        if gap is not None and gap.low == gap.high:  # all right or all wrong, in both groups
            top, bottom = (self.group(means, numbers) for numbers in tenths(self.in_sums(step)))
            return difference(top, bottom)
        return gap

    def gap_change(
        self, cells: tuple[tuple[str, int], tuple[str, int]], shots: int, measure: str
    ) -> Estimate | None:
        """Return the `gap` of the second checkpoint minus the gap of the first.

        Both gaps use the tenths at the later step, and scores are paired by operand. `cells` are
        two checkpoints, each as (size, step).
        """
        first, second = (self.by_number(*cell, shots, measure) for cell in cells)
        if first is None or second is None:
            return None
        return self._apart(second - first, max(step for _, step in cells))

    def _apart(self, values: np.ndarray, step: int) -> Estimate | None:
        """Return how much higher `values` are on the most frequent than on the rarest operands.

        Both groups are a tenth of the first operands. `values` is float[100]. The result is None if
        a group has only NaN.
        """
        groups = [values[numbers] for numbers in tenths(self.in_sums(step))]
        top, bottom = (group[np.isfinite(group)] for group in groups)
        return welch(top, bottom) if len(top) and len(bottom) else None

    def boosted_in_tenths(self) -> tuple[int, int]:
        """Count the boosted operands in each of the two groups of `tenths` at the last step."""
        boosted = {chosen for chosen, _ in equations.pairs(self.natural())}
        top, bottom = (len(boosted & {*group}) for group in tenths(self.in_sums(self.steps[-1])))
        return top, bottom

    def coins(self, sizes: Sequence[str], shots: int, measure: str) -> dict[str, Estimate]:
        """Return the effects on the final score of making a number more frequent in planted sums.

        The numbers 0 to 99 are matched in pairs of similar frequency. The coin "boost" chose one
        number of each pair, which was made more frequent. The coin "placebo" chose one as well, but
        nothing was done to this number. An effect is the score on the chosen number minus the score
        on the other, averaged over `sizes`, with pairs as units. The result is empty if a size was
        not measured.
        """
        step = self.steps[-1]
        means = [self.by_number(size, step, shots, measure) for size in sizes]
        if not means or any(values is None for values in means):
            return {}
        pooled = np.mean(np.array(means, float), axis=0)
        pairs = {coin: np.array(equations.pairs(self.natural(), coin)) for coin in COINS}
        changes = {coin: pooled[p[:, 0]] - pooled[p[:, 1]] for coin, p in pairs.items()}
        finite = {coin: values[np.isfinite(values)] for coin, values in changes.items()}
        return {coin: mean_over(values) for coin, values in finite.items() if len(values)}


def tenths(in_sums: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the most frequent and the least frequent tenth of the first operands, as two lists.

    Of two operands that were read equally often, the smaller operand counts as more frequent.
    `in_sums` has the number of reads of each operand, int[100].
    """
    ranked = sorted(equations.FIRST, key=lambda number: (-in_sums[number], number))
    return ranked[:TENTH], ranked[-TENTH:]


def frequency_table(scores: NumberScores) -> pd.DataFrame:
    """Return the table of how often each first operand occurs, with a row per operand and step.

    `number`: the operand;
    `natural`: count of the operand in the text before sums are planted;
    `boosted`, `placebo`: whether the coin of this name chose the operand;
    `in_sums`: how often the operand was read as a first operand up to `step`.
    """
    import pandas as pd

    natural = scores.natural()
    chosen = {coin: {first for first, _ in equations.pairs(natural, coin)} for coin in COINS}
    rows = [
        {"number": number, "natural": natural[number], "boosted": number in chosen["boost"],
         "placebo": number in chosen["placebo"], "step": step,
         "in_sums": int(scores.in_sums(step)[number])}
        for step in scores.steps for number in equations.FIRST
    ]  # fmt: skip
    return pd.DataFrame(rows)


def accuracy_table(
    scores: NumberScores, sizes: Sequence[str], shots: Sequence[int]
) -> pd.DataFrame:
    """Return the table of mean scores on the sums that were never planted in the training text.

    Columns: `size`, `step`, `shots`, `measure`, `value`, `low`, `high`, `n` (number of first
    operands). Values are shares of right answers, or nats for "logprob".
    """
    import pandas as pd

    rows = []
    for size, step, k, measure in product(sizes, scores.steps, shots, MEASURES):
        means = scores.by_number(size, step, k, measure)
        e = None if means is None else scores.group(means, equations.FIRST)
        if e is not None:
            rows.append({"size": size, "step": step, "shots": k, "measure": measure,
                         **e.interval(), "n": e.n_items})  # fmt: skip
    names = ["size", "step", "shots", "measure", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


def curves_table(scores: NumberScores, sizes: Sequence[str], shots: Sequence[int]) -> pd.DataFrame:
    """Return the table of final accuracy by how often first operands were read in sums.

    `size`, `step`, `shots`, `measure`;
    `count`: geometric mean of how often the operands of a bin (NUMBER_BINS) were read in sums;
    `numbers`: how many operands are in the bin;
    `value`, `low`, `high`: share of right answers.
    """
    import pandas as pd

    rows, step = [], scores.steps[-1]
    times = scores.in_sums(step)
    groups = np.searchsorted(NUMBER_BINS, times, side="right") - 1
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for size, k, measure in product(sizes, shots, ("exact", "choice")):
        means = scores.by_number(size, step, k, measure)
        for numbers in members if means is not None else ():
            e = scores.group(means, numbers) if len(numbers) >= MIN_NUMBERS else None
            if e is not None:
                count = float(np.exp(np.log(times[numbers] + 1).mean()) - 1)
                rows.append({"size": size, "step": step, "shots": k, "measure": measure,
                             "count": count, "numbers": len(numbers), **e.interval()})  # fmt: skip
    names = ["size", "step", "shots", "measure", "count", "numbers", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def gaps_table(scores: NumberScores, sizes: Sequence[str], shots: Sequence[int]) -> pd.DataFrame:
    """Return the table of accuracy gaps between frequent and rare operands (paper's Table 4).

    Columns: `size`, `step`, `shots`, `measure`, `most` and `least` (share of right answers on the
    most and least frequent tenth), `value` (`most` minus `least`), `low`, `high`.
    """
    import pandas as pd

    rows = []
    for size, step, k, measure in product(sizes, scores.steps, shots, ("exact", "choice")):
        means, gap = scores.by_number(size, step, k, measure), scores.gap(size, step, k, measure)
        if means is not None and gap is not None:
            top, bottom = (float(np.nanmean(means[n])) for n in tenths(scores.in_sums(step)))
            rows.append({"size": size, "step": step, "shots": k, "measure": measure,
                         "most": top, "least": bottom, **gap.interval()})  # fmt: skip
    names = ["size", "step", "shots", "measure", "most", "least", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def experiment_table(
    scores: NumberScores, sizes: Sequence[str], shots: Sequence[int]
) -> pd.DataFrame:
    """Return the table of the effects that `NumberScores.coins` estimates on final scores.

    `coin`, `size`, `shots`, `measure`;
    `ratio`: readings of the chosen number in sums divided by readings of the other number of the
        pair, as a geometric mean over pairs;
    `value`, `low`, `high`: the effect, as a share of right answers or in nats;
    `n`: number of pairs.
    """
    import pandas as pd

    rows, ratio = [], {}
    times = np.log(scores.in_sums(scores.steps[-1]) + 1)
    for coin in COINS:
        pairs = np.array(equations.pairs(scores.natural(), coin))
        ratio[coin] = float(np.exp((times[pairs[:, 0]] - times[pairs[:, 1]]).mean()))
    for size, k, measure in product(sizes, shots, (*MEASURES, "margin")):
        for coin, e in scores.coins((size,), k, measure).items():
            rows.append({"coin": coin, "size": size, "shots": k, "measure": measure,
                         "ratio": ratio.get(coin), **e.interval(), "n": e.n_items})  # fmt: skip
    names = ["coin", "size", "shots", "measure", "ratio", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


def effects_table(scores: NumberScores, sizes: Sequence[str], shots: int) -> pd.DataFrame:
    """Return the table of the effects of the coins, averaged over `sizes`.

    Columns: `measure`, `shots`, `coin`, `value`, `low`, `high` (a share of right answers, or nats),
    `n` (number of pairs).
    """
    import pandas as pd

    rows = [
        {"measure": measure, "shots": k, "coin": coin, **e.interval(), "n": e.n_items}
        for measure, k in dict.fromkeys(
            (("exact", shots), ("logprob", shots), ("choice", 0), ("logprob", 0), ("margin", 0))
        )
        for coin, e in scores.coins(sizes, k, measure).items()
    ]
    names = ["measure", "shots", "coin", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


def definitions_table(measured: Measurements, sizes: Sequence[str]) -> pd.DataFrame:
    """Return the table of how often final models pick the defined word out of four.

    `size`, `step`;
    `read`: whether the definition is in the training text;
    `group`: lower end of the word's bin (WORD_BINS) by its count in training; 0: never read;
    `value`, `low`, `high`: share of right words;
    `n`: number of definitions.
    """
    import pandas as pd

    rows, step = [], measured.facts["steps"][-1]
    read = measured.arrays["definition_read"]
    group = np.searchsorted(WORD_BINS, measured.arrays[f"word_read/{step}"], side="right") - 1
    for size, kind, g in product(sizes, (True, False), range(-1, len(WORD_BINS))):
        right, mask = measured.get("definition", size, step), (read == kind) & (group == g)
        if right is not None and mask.any():
            e = wilson(int(right[mask].sum()), int(mask.sum()))
            rows.append({"size": size, "step": step, "read": kind,
                         "group": 0 if g < 0 else WORD_BINS[g], **e.interval(),
                         "n": e.n_items})  # fmt: skip
    names = ["size", "step", "read", "group", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


# --- released accuracies ---------------------------------------------------------------------


def released_table(arithmetic: pd.DataFrame | None) -> pd.DataFrame:
    """Return the mean released accuracies on sums and products, with t-intervals.

    `model`, `operation`, `shots`, `step`;
    `value`, `low`, `high`: share of right answers;
    `n`: number of first operands, the units of the interval.

    The table is empty without released accuracies. `arithmetic` is the table of `study.released`.
    """
    import pandas as pd

    keys = ["model", "operation", "shots", "step"]
    rows = []
    for row in () if arithmetic is None else arithmetic.itertuples():
        e = t_interval(row.mean, row.sd / row.n**0.5, row.n - 1, int(row.n), int(row.n))
        ends = (max(0.0, e.low), min(1.0, e.high))
        rows.append((*(getattr(row, key) for key in keys), row.mean, *ends, int(row.n)))
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n"])
