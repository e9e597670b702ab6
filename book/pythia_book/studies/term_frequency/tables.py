"""Tables of the term-frequency study.

Questions about the same number are not independent, so numbers are the units: intervals are
Student's t over the means of numbers (or of pairs of numbers), because ten numbers are too few for
a bootstrap. If all answers of a group are right, or all are wrong, an exact bound for a share
replaces the t interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora import equations
from pythia_book.stats import LEVEL, Estimate, exact_share, mean_over, wilson
from pythia_book.studies.term_frequency.params import WORD_BINS
from pythia_book.study import Measurements

if TYPE_CHECKING:
    import pandas as pd

TENTH = len(equations.FIRST) // 10
"""How many numbers are in the most frequent tenth, and in the least frequent tenth."""
NUMBER_BINS = (0, 3, 10, 30, 100, 300, 1000, 3000)
"""Lower ends of the bins by which numbers are grouped: how often a number was read in sums."""
MIN_NUMBERS = 5
"""Smallest number of numbers in a bin; smaller bins are left out of the table `curves`."""
COINS = ("boost", "placebo")
DIFFERENCE = "boost minus placebo"
MEASURES = ("exact", "choice", "logprob")


def selected(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Return the rows of a table in which each named column has the given value."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def cell(table: pd.DataFrame, **where: Any) -> Estimate | None:
    """Return the first selected row as an estimate, or None if no row is selected."""
    rows = selected(table, **where)
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Estimate(float(row.value), float(row.low), float(row.high), int(row.get("n", 0)), 1)


def welch(one: np.ndarray, other: np.ndarray) -> Estimate:
    """Return the mean of `one` minus the mean of `other`, with Welch's t-interval.

    The values are independent units. If both groups have no variation, the interval has no width.
    If a group has only one unit, the ends of the interval are NaN.
    """
    value, n = float(one.mean() - other.mean()), len(one) + len(other)
    if min(len(one), len(other)) < 2:
        return Estimate(value, float("nan"), float("nan"), n, n, 0)
    squares = np.array([group.var(ddof=1) / len(group) for group in (one, other)])
    e = Estimate(value, value, value, n, n, n - 2)
    if not squares.sum():
        return e
    degrees = squares.sum() ** 2 / (squares**2 / [len(one) - 1, len(other) - 1]).sum()
    e = replace(e, df=float(degrees))
    half = e.quantile((1 + LEVEL) / 2) * float(squares.sum()) ** 0.5
    return replace(e, low=value - half, high=value + half)


@dataclass(frozen=True)
class NumberScores:
    """Scores of the held-out sums by first operand, for every size, step and number of shots."""

    measured: Measurements

    @cached_property
    def first(self) -> np.ndarray:
        """The first operand of each held-out question, int[questions]."""
        return self.measured.arrays["first"].astype(int)

    @property
    def steps(self) -> list[int]:
        return list(self.measured.facts["steps"])

    def in_sums(self, step: int) -> np.ndarray:
        """How often each number was read as the first operand of a sum, int[100]."""
        return self.measured.arrays[f"in_sums/{step}"]

    def natural(self) -> dict[int, int]:
        """How often each number occurs in the text before sums are planted."""
        counts = self.measured.arrays["natural"]
        return {number: int(counts[number]) for number in equations.FIRST}

    def by_number(self, size: str, step: int, shots: int, measure: str) -> np.ndarray | None:
        """Return the mean score by first operand, float64[100].

        It is NaN for a number without held-out sums. None is returned if the checkpoint was not
        measured.
        """
        scores = self.measured.get(measure, size, step, shots)
        if scores is None:
            return None
        total = np.bincount(self.first, scores.astype(float), len(equations.FIRST))
        with np.errstate(invalid="ignore"):
            return total / np.bincount(self.first, minlength=len(equations.FIRST))

    def group(self, means: np.ndarray, numbers: Iterable[int]) -> Estimate | None:
        """Return the mean of `means` over some numbers. The interval of a share is kept within
        0..1."""
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
        """Return the mean score on the most frequent tenth of first operands minus that on the
        least frequent tenth."""
        means = self.by_number(size, step, shots, measure)
        return None if means is None else self._apart(means, step)

    def gap_change(
        self, cells: tuple[tuple[str, int], tuple[str, int]], shots: int, measure: str
    ) -> Estimate | None:
        """Return how much larger the gap is in the second (size, step) of `cells` than in the
        first.

        The scores are paired by number. The tenths in the gap are those of the later step.
        """
        first, second = (self.by_number(*cell, shots, measure) for cell in cells)
        if first is None or second is None:
            return None
        return self._apart(second - first, max(step for _, step in cells))

    def _apart(self, values: np.ndarray, step: int) -> Estimate | None:
        groups = [values[numbers] for numbers in tenths(self.in_sums(step))]
        top, bottom = (group[np.isfinite(group)] for group in groups)
        return welch(top, bottom) if len(top) and len(bottom) else None

    def coins(self, sizes: Sequence[str], shots: int, measure: str) -> dict[str, Estimate]:
        """Return the effect of each coin, and the difference of the two effects (boost minus
        placebo).

        The effect of a coin is the score at the end on the number that it chose minus the score on
        the other number of the couple, averaged over sizes, with couples as units. The result is
        empty if a size was not measured.

        Both coins choose from the same couples of numbers of similar frequency. For a couple on
        which they agree, the difference is zero by construction. So only couples on which they
        differ are units of the difference.
        """
        step = self.steps[-1]
        means = [self.by_number(size, step, shots, measure) for size in sizes]
        if not means or any(values is None for values in means):
            return {}
        pooled = np.mean(np.array(means, float), axis=0)
        pairs = {coin: np.array(equations.pairs(self.natural(), coin)) for coin in COINS}
        changes = {coin: pooled[p[:, 0]] - pooled[p[:, 1]] for coin, p in pairs.items()}
        differ = pairs["boost"][:, 0] != pairs["placebo"][:, 0]
        changes[DIFFERENCE] = changes["boost"][differ]
        finite = {coin: values[np.isfinite(values)] for coin, values in changes.items()}
        return {coin: mean_over(values) for coin, values in finite.items() if len(values)}


def tenths(in_sums: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the most and the least frequent tenth of the numbers.

    Of two numbers that were read equally often, the smaller one counts as more frequent.
    """
    ranked = sorted(equations.FIRST, key=lambda number: (-in_sums[number], number))
    return ranked[:TENTH], ranked[-TENTH:]


def frequency_table(scores: NumberScores) -> pd.DataFrame:
    """Return the table of how often each number occurs.

    Columns: number; natural (occurrences in the text before sums are planted); boosted and placebo
    (whether the coin of this name chose the number); step; in_sums (how often the number was read
    as the first operand of a sum up to this step).
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
    """Return the table of scores on held-out sums.

    Columns: size, step, shots, measure, value, low, high, n (count of first operands).
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
    """Return the table of accuracy at the end, by how often numbers were read in sums.

    Columns: size, step, shots, measure, count (geometric mean of how often the numbers of a bin
    were read in sums), numbers (how many are in the bin), value, low, high.
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
    """Return our counterpart of the paper's Table 4, with accuracies as shares.

    Columns: size, step, shots, measure, most and least (mean accuracies on the most and the least
    frequent tenth of first operands), value (most minus least), low, high.
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
    """Return the table of the coins' effects at the end.

    An effect is the score on the chosen number minus the score on the other number of a couple of
    similar natural frequency. Columns: coin ("boost", "placebo" or "boost minus placebo"), size,
    shots, measure, ratio (geometric mean of the chosen number's frequency over the other's; none
    for the difference), value, low, high, n (couples).
    """
    import pandas as pd

    rows, ratio = [], {}
    times = np.log(scores.in_sums(scores.steps[-1]) + 1)
    for coin in COINS:
        pairs = np.array(equations.pairs(scores.natural(), coin))
        ratio[coin] = float(np.exp((times[pairs[:, 0]] - times[pairs[:, 1]]).mean()))
    for size, k, measure in product(sizes, shots, MEASURES):
        for coin, e in scores.coins((size,), k, measure).items():
            rows.append({"coin": coin, "size": size, "shots": k, "measure": measure,
                         "ratio": ratio.get(coin), **e.interval(), "n": e.n_items})  # fmt: skip
    names = ["coin", "size", "shots", "measure", "ratio", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


def definitions_table(measured: Measurements, sizes: Sequence[str]) -> pd.DataFrame:
    """Return the table of accuracy on definitions at the end.

    Columns: size, step, read (whether the definition is in the training text), group (lower end of
    the bin of how often the word was read; 0 if it was not read), value, low, high, n.
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
    """Return the released accuracies with t-intervals over first operands.

    Columns: model, operation, shots, step, value, low, high, n. Without released accuracies, the
    table is empty.

    Args:
        arithmetic: mean, sd and n (count of first operands) by model, operation, shots and step;
            None without released accuracies.
    """
    import pandas as pd

    keys = ["model", "operation", "shots", "step"]
    rows = []
    for row in () if arithmetic is None else arithmetic.itertuples():
        e = Estimate(row.mean, row.mean, row.mean, int(row.n), int(row.n), row.n - 1)
        half = e.quantile((1 + LEVEL) / 2) * row.sd / row.n**0.5
        ends = (max(0.0, row.mean - half), min(1.0, row.mean + half))
        rows.append((*(getattr(row, key) for key in keys), row.mean, *ends, int(row.n)))
    return pd.DataFrame(rows, columns=[*keys, "value", "low", "high", "n"])
