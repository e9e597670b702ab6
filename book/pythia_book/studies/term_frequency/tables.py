"""Tables of the term-frequency study.

Questions about the same number are not independent, so intervals resample numbers, not questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora import equations
from pythia_book.measurements import Arrays
from pythia_book.stats import Estimate, difference, estimate
from pythia_book.studies.term_frequency.arithmetic import ArithmeticMeasurement
from pythia_book.studies.term_frequency.definitions import BINS as WORD_BINS
from pythia_book.studies.term_frequency.definitions import DefinitionMeasurement
from pythia_book.term_counts import TermCounts

if TYPE_CHECKING:
    import pandas as pd

TENTH = len(equations.FIRST) // 10
"""How many numbers are in the most or least frequent tenth."""
NUMBER_BINS = (0, 3, 10, 30, 100, 300, 1000, 3000)
"""Lower ends of the bins of how often a number is read in sums."""
MIN_NUMBERS = 3
"""Bins with fewer numbers are left out."""
COINS = ("boost", "placebo")
MEASURES = ("exact", "choice", "logprob")

Measured = dict[tuple[str, int, str], Arrays]
"""By (size, step, name of the measurement)."""


def selected(table: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """The rows in which these columns have these values."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def cell(table: pd.DataFrame, **where: Any) -> Estimate | None:
    """The first selected row as an estimate; None if there is none."""
    rows = selected(table, **where)
    if rows.empty:
        return None
    row = rows.iloc[0]
    return Estimate(float(row.value), float(row.low), float(row.high), int(row.get("n", 0)), 1)


def number_terms() -> tuple[list[str], list[str]]:
    """Terms to count: each first operand anywhere, and each as the first operand of a sum."""
    return [str(n) for n in equations.FIRST], [f"what is {n} plus" for n in equations.FIRST]


def frequency_table(counts: TermCounts, natural: Mapping[int, int]) -> pd.DataFrame:
    """Frequency of the numbers: number, natural (in the text before planting), boosted, placebo
    (whether this coin chose it), step, in_sums (times read as first operand), everywhere."""
    import pandas as pd

    numbers, in_sums = number_terms()
    at = {term: i for i, term in enumerate(counts.terms)}
    chosen = {coin: {first for first, _ in equations.pairs(natural, coin)} for coin in COINS}
    rows = []
    for step in counts.ends:
        read = counts.up_to(step)
        for number in equations.FIRST:
            rows.append({"number": number, "natural": natural[number],
                         "boosted": number in chosen["boost"],
                         "placebo": number in chosen["placebo"], "step": step,
                         "in_sums": int(read[at[in_sums[number]]]),
                         "everywhere": int(read[at[numbers[number]]])})  # fmt: skip
    return pd.DataFrame(rows)


class NumberScores:
    """Scores of the held-out pairs by first operand, for every size, step and number of shots."""

    def __init__(self, measured: Measured, sums: Mapping[int, ArithmeticMeasurement]) -> None:
        self.measured, self.sums = measured, sums
        self.held_out = {k: np.array([q.held_out for q in m.questions]) for k, m in sums.items()}
        self.first = {k: np.array([q.first for q in m.questions]) for k, m in sums.items()}

    def arrays(self, size: str, step: int, shots: int) -> Arrays:
        """The measured arrays; empty for a gap."""
        return self.measured.get((size, step, self.sums[shots].name), {})

    def by_number(self, size: str, step: int, shots: int, measure: str) -> np.ndarray | None:
        """Means float64[100], NaN for a number without a held-out pair; None for a gap."""
        arrays = self.arrays(size, step, shots)
        if measure not in arrays:
            return None
        mask = self.held_out[shots]
        first = self.first[shots][mask]
        total = np.bincount(first, arrays[measure][mask].astype(float), len(equations.FIRST))
        with np.errstate(invalid="ignore"):
            return total / np.bincount(first, minlength=len(equations.FIRST))

    def questions(self, size: str, step: int, shots: int, measure: str) -> np.ndarray | None:
        """Scores of the single held-out questions, float64[questions]; None for a gap."""
        arrays = self.arrays(size, step, shots)
        return (
            None if measure not in arrays else arrays[measure][self.held_out[shots]].astype(float)
        )

    def group(self, means: np.ndarray, numbers: Sequence[int], draws: int) -> Estimate | None:
        """Mean over these numbers; if all answers are right, or all wrong, its interval is the
        exact bound for the number of questions."""
        values = means[list(numbers)]
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        if values.min() == values.max() in (0.0, 1.0):
            n_questions = int(np.isin(self.first[0][self.held_out[0]], list(numbers)).sum())
            return estimate(np.full((1, n_questions), values[0]), draws, exact=True)
        return estimate(values[None], draws)


def tenths(frequency: pd.DataFrame, step: int) -> tuple[list[int], list[int]]:
    """The most and the least frequent tenth of the numbers, among the sums read up to a step."""
    now = frequency[frequency.step == step].sort_values(
        ["in_sums", "number"], ascending=[False, True]
    )
    ranked = now.number.tolist()
    return ranked[:TENTH], ranked[-TENTH:]


def accuracy_table(
    scores: NumberScores, sizes: Sequence[str], steps: Sequence[int], draws: int
) -> pd.DataFrame:
    """Accuracy: size, step, shots, measure, pairs ("held out", "planted"), value, low, high, n."""
    import pandas as pd

    rows = []
    for size, step, shots in product(sizes, steps, scores.sums):
        arrays = scores.arrays(size, step, shots)
        masks = (("held out", scores.held_out[shots]), ("planted", ~scores.held_out[shots]))
        for measure, (pairs, mask) in product((m for m in MEASURES if m in arrays), masks):
            if mask.any():
                values = arrays[measure][mask].astype(float)[None]
                e = estimate(values, draws, exact=measure != "logprob")
                rows.append({"size": size, "step": step, "shots": shots, "measure": measure,
                             "pairs": pairs, **e.interval(), "n": e.n_items})  # fmt: skip
    names = ["size", "step", "shots", "measure", "pairs", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


def curves_table(
    scores: NumberScores,
    frequency: pd.DataFrame,
    sizes: Sequence[str],
    steps: Sequence[int],
    draws: int,
) -> pd.DataFrame:
    """Accuracy by frequency: size, step, shots, measure, count (geometric mean of how often the
    numbers of a bin were read in sums up to that step), numbers, value, low, high."""
    import pandas as pd

    rows = []
    for step in steps:
        now = frequency[frequency.step == step].set_index("number").in_sums
        groups = np.searchsorted(NUMBER_BINS, now.to_numpy(), side="right") - 1
        members = [now.index[groups == group].tolist() for group in np.unique(groups)]
        for size, shots, measure in product(sizes, scores.sums, ("exact", "choice")):
            means = scores.by_number(size, step, shots, measure)
            for numbers in members if means is not None else ():
                e = scores.group(means, numbers, draws) if len(numbers) >= MIN_NUMBERS else None
                if e is not None:
                    count = float(np.exp(np.log(now[numbers] + 1).mean()) - 1)
                    rows.append({"size": size, "step": step, "shots": shots, "measure": measure,
                                 "count": count, "numbers": len(numbers),
                                 **e.interval()})  # fmt: skip
    names = ["size", "step", "shots", "measure", "count", "numbers", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def gaps_table(
    scores: NumberScores,
    frequency: pd.DataFrame,
    sizes: Sequence[str],
    steps: Sequence[int],
    draws: int,
) -> pd.DataFrame:
    """The paper's table 4, in shares: size, step, shots, measure, most, least (mean accuracies of
    the most and least frequent tenth), value (their difference), low, high."""
    import pandas as pd

    rows = []
    for size, step, shots in product(sizes, steps, scores.sums):
        for measure in ("exact", "choice"):
            means = scores.by_number(size, step, shots, measure)
            if means is None:
                continue
            top, bottom = (scores.group(means, n, draws) for n in tenths(frequency, step))
            if top and bottom:
                rows.append({"size": size, "step": step, "shots": shots, "measure": measure,
                             "most": top.value, "least": bottom.value,
                             **difference(top, bottom).interval()})  # fmt: skip
    names = ["size", "step", "shots", "measure", "most", "least", "value", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def gap_change(
    scores: NumberScores,
    frequency: pd.DataFrame,
    cells: tuple[tuple[str, int], tuple[str, int]],
    shots: int,
    measure: str,
    draws: int,
) -> Estimate | None:
    """How much larger the gap is in the second (size, step) than in the first; paired by number,
    with the tenths of the later step."""
    first, second = (scores.by_number(*cell, shots, measure) for cell in cells)
    if first is None or second is None:
        return None
    change = second - first
    top, bottom = tenths(frequency, max(step for _, step in cells))
    parts = []
    for numbers in (top, bottom):
        values = change[numbers]
        values = values[np.isfinite(values)]
        if not len(values):
            return None
        parts.append(estimate(values[None], draws, change=True))
    return difference(*parts)


def experiment_table(
    scores: NumberScores,
    frequency: pd.DataFrame,
    natural: Mapping[int, int],
    sizes: Sequence[str],
    step: int,
    draws: int,
) -> pd.DataFrame:
    """Chosen minus other number, in pairs of similar natural frequency: coin, size, shots, measure,
    ratio (geometric mean of chosen over other frequency), value, low, high, n (pairs)."""
    import pandas as pd

    now = frequency[frequency.step == step].set_index("number").in_sums
    rows = []
    for coin in COINS:
        pairs = np.array(equations.pairs(natural, coin))
        one, two = (np.log(now[pairs[:, side]].to_numpy() + 1) for side in (0, 1))
        ratio = float(np.exp((one - two).mean()))
        for size, shots, measure in product(sizes, scores.sums, MEASURES):
            means = scores.by_number(size, step, shots, measure)
            if means is None:
                continue
            change = means[pairs[:, 0]] - means[pairs[:, 1]]
            change = change[np.isfinite(change)]
            e = estimate(change[None], draws, change=True, exact=measure != "logprob")
            rows.append({"coin": coin, "size": size, "shots": shots, "measure": measure,
                         "ratio": ratio, **e.interval(), "n": e.n_items})  # fmt: skip
    names = ["coin", "size", "shots", "measure", "ratio", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)


def definitions_table(
    measured: Measured,
    words: DefinitionMeasurement,
    counts: TermCounts,
    sizes: Sequence[str],
    steps: Sequence[int],
    draws: int,
) -> pd.DataFrame:
    """Accuracy on definitions: size, step, read (whether the definition was), group (lower end of
    the bin of how often the word was read up to that step), value, low, high, n."""
    import pandas as pd

    at = {term: i for i, term in enumerate(counts.terms)}
    term_index = np.array([at[item.words[0]] for item in words.items], int)
    read = np.array([item.read for item in words.items], bool)
    rows = []
    for step in steps:
        times_read = counts.up_to(step)[term_index] if len(term_index) else np.zeros(0, int)
        group = np.searchsorted(WORD_BINS, times_read, side="right") - 1  # -1: not read yet
        for size in sizes:
            arrays = measured.get((size, step, words.name))
            for kind in (True, False) if arrays is not None else ():
                for g in range(-1, len(WORD_BINS)):
                    mask = (read == kind) & (group == g)
                    if mask.any():
                        e = estimate(arrays["choice"][mask].astype(float)[None], draws, exact=True)
                        rows.append({"size": size, "step": step, "read": kind,
                                     "group": 0 if g < 0 else WORD_BINS[g], **e.interval(),
                                     "n": e.n_items})  # fmt: skip
    names = ["size", "step", "read", "group", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names)
