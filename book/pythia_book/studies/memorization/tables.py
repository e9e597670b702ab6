"""Computes the tables of the memorization study from extraction results and repetition counts.

Rows from one planted text are mostly memorized together. So intervals are over *units* instead of
rows (see `pythia_book.corpora.planted`).

Arguments: `memorized` and `eligible` (the rows to use) are bool[rows in training order]. `windows`
has the window sizes, in rows, for tests of dispersion. `simulations` is the number of random orders
from which p-values are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.clustered import over_units, ratio, share_over_units
from pythia_book.corpora.planted import units
from pythia_book.published.tables import MODELS
from pythia_book.stats import Estimate
from pythia_book.studies.memorization import order_tests
from pythia_book.studies.memorization.order_tests import Design, NullDistribution
from pythia_book.studies.memorization.params import EARLY, INTERVAL, Params
from pythia_book.study import name_of
from pythia_book.verdicts import holm
from pythia_core.suite import DATA_ARMS, nominal_parameters, scale_named
from pythia_core.training.schedule import OFFICIAL_STEPS, linear_step

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Measurements

BINS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64), (65, None))
"""The smallest and the largest repetition count of each bin."""
RATE_BINS = 20
"""The number of equal parts into which training is divided."""
MEASURES = ("precision", "recall")
COLUMNS: dict[str, list[str]] = {
    "shares": ["size", "arm", "step", "percent", "rows", "memorized", *INTERVAL],
    "exposures": ["size", "arm", "times", "n", "memorized", *INTERVAL],
    "recited": ["times", "n", *INTERVAL, "memorized", "furthest"],
    "tests": ["arm", "test", "window", "rows", "events", "statistic", "null_low", "null_high", "p",
              "holm", *INTERVAL, "status"],
    "rates": ["arm", "subset", "percent", "n", *INTERVAL],
    "qq": ["arm", "subset", "window", "theoretical", "observed", "low", "high", "windows"],
    "prediction": ["experiment", "size", "step", "texts", "tp", "fp", "fn", "tn",
                   "precision_units", "recall_units",
                   *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high"))],
}  # fmt: skip
Lines = list[dict[str, Any]]
"""The rows of a table, each a map from column (COLUMNS) to value."""


@dataclass(frozen=True)
class Rows:
    """Facts about the training rows of a run, in training order; all sizes read the same rows."""

    times: np.ndarray
    """int[n]: how often the continuation was read in the whole run."""
    text: np.ndarray
    """int[n]: a number that rows with the same continuation share."""
    beginnings: np.ndarray
    """int[n]: how often context and continuation together were read."""
    planted: np.ndarray
    """int[n]: the index of the planted text that contains the continuation, or -1."""

    @property
    def unit(self) -> np.ndarray:
        """int[n]: the unit of each row (see the module); rows of one unit share a number."""
        return units(self.text, self.planted)

    def by_times(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name of each bin of repetition counts, and which rows are in it, bool[n]."""
        for first, last in BINS:
            inside = (self.times >= first) & (self.times <= (last or self.times.max()))
            name = str(first) if first == last else f"{first}-{last}" if last else f"{first}+"
            yield name, inside

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Extracted:
    """The rows of a suite of models, and which rows each checkpoint has memorized."""

    params: Params
    measured: Measurements
    rows: dict[str, Rows]
    """Maps an arm (a training text) to the rows of its runs."""

    @classmethod
    def of(cls, params: Params, measured: Measurements) -> Extracted:
        """Collect the rows and the extraction results from the arrays of `study.measure`."""
        names = ("times", "text", "beginnings", "planted")
        rows = {
            arm: Rows(*(measured.arrays[name_of(name, arm)] for name in names)) for arm in DATA_ARMS
        }
        return cls(params, measured, rows)

    def memorized(self, size: str, arm: str, step: int | None = None) -> np.ndarray | None:
        """Return which of the rows read so far a checkpoint has memorized, bool[rows].

        By default, the step is the last. Return None if the checkpoint was not measured.
        """
        step = scale_named(self.params.scale).steps if step is None else step
        return self.measured.get("memorized", size, arm, step)

    @property
    def n_first(self) -> int:
        """The number of rows that the earliest checkpoint had read; predictions use only these."""
        return self.params.steps("standard")[0] * self.measured.facts["batch_size"]


def repetition_slope(memorized: np.ndarray, rows: Rows) -> Estimate:
    """Estimate how much the share of memorized rows rises when rows are read twice as often.

    The rise, a fraction, is the slope of the least-squares line of `memorized` (bool[n]) over
    log2(times), with an interval over units. It is NaN if all rows were read equally often.
    """
    x, y = np.log2(rows.times), memorized.astype(float)
    columns = np.stack([np.ones_like(x), x, y, x * y, x * x], 1)

    def slope(sums: np.ndarray) -> np.ndarray:
        """Return slopes float[...] from the sums of 1, x, y, xy and x^2, float[..., 5]."""
        n, sx, sy, sxy, sxx = np.moveaxis(sums, -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (n * sxy - sx * sy) / (n * sxx - sx * sx)

    return over_units(columns, rows.unit, slope)


def shares(extracted: Extracted) -> Lines:
    """Return the table `shares`: the fraction of rows read that each checkpoint has memorized."""
    params, lines = extracted.params, []
    for size in params.size_list:
        for arm in DATA_ARMS:
            for step in params.steps(arm):
                memorized = extracted.memorized(size, arm, step)
                if memorized is None:
                    continue
                unit = extracted.rows[arm].unit[: len(memorized)]
                share = ratio(memorized, np.ones_like(memorized), unit, params.bootstrap)
                percent = 100 * step / scale_named(params.scale).steps
                keys = {"size": size, "arm": arm, "step": step, "percent": percent}
                counts = {"rows": len(memorized), "memorized": int(memorized.sum())}
                lines.append(keys | counts | share.interval())
    return lines


def by_exposure(extracted: Extracted) -> Lines:
    """Return the table `exposures`: the share of rows that final models memorized, by bin."""
    params, lines = extracted.params, []
    for size in params.size_list:
        for arm in DATA_ARMS:
            memorized, rows = extracted.memorized(size, arm), extracted.rows[arm]
            if memorized is None:
                continue
            for name, inside in rows.by_times():
                share = share_over_units(memorized, inside, rows.unit)
                counts = {"n": share.n_items, "memorized": int((memorized & inside).sum())}
                keys = {"size": size, "arm": arm, "times": name}
                lines.append(keys | counts | share.interval())
    return lines


def rate_over_training(
    memorized: np.ndarray, eligible: np.ndarray, rows: Rows, draws: int
) -> list[dict[str, Any]]:
    """Return the share of eligible rows memorized in each of RATE_BINS equal parts of training.

    The keys are `percent` (the middle of the part), `n` (eligible rows), `value`, `low`, `high`.
    """
    edges = np.linspace(0, len(rows), RATE_BINS + 1).round().astype(int)
    table = []
    for start, stop in pairwise(edges):
        inside = np.zeros(len(rows), bool)
        inside[start:stop] = eligible[start:stop]
        share = ratio(memorized, inside, rows.unit, draws)
        percent = 50 * (start + stop) / len(rows)
        table.append({"percent": percent, "n": share.n_items, **share.interval()})
    return table


def recited(extracted: Extracted) -> Lines:
    """Return the table `recited`: how far the largest model recites rows before its first error.

    - `times`: how often a row was read. Of the rows read once or never ("0"), only those with
      natural text of their own count.
    - `n`, `memorized`: the number of rows, and of those recited in full.
    - `value`, `low`, `high`: the mean number of tokens recited.
    - `furthest`: the largest number of tokens recited of a row that is not recited in full.

    There are no lines in a record of an earlier version of the study.
    """
    measured, rows = extracted.measured.arrays, extracted.rows["standard"]
    if "recited" not in measured:
        return []
    read, unread = np.split(measured["recited"].astype(float), [len(rows)])
    own, own_unread = np.split(measured["own"], [len(rows)])
    groups = [("0", unread[own_unread], np.arange(own_unread.sum()))]
    for name, inside in rows.by_times():
        chosen = inside & own if name == "1" else inside
        groups.append((name, read[chosen], rows.unit[chosen]))
    lines = []
    for name, counts, unit in groups:
        if not len(counts):
            continue
        columns = np.stack([counts, np.ones_like(counts)], 1)
        mean = over_units(columns, unit, lambda sums: sums[..., 0] / sums[..., 1])
        short = counts[counts < extracted.params.continuation]
        more = {"memorized": len(counts) - len(short), "furthest": int(short.max(initial=0))}
        lines.append({"times": name, "n": len(counts)} | mean.interval() | more)
    return lines


# --- order -----------------------------------------------------------------------------------


def order(extracted: Extracted) -> dict[str, Lines]:
    """Return three tables on whether the largest model's memorization depends on order, by arm.

    - tests: the tests of `order_tests`, on the rows whose continuation was read only once.
    - rates: the share of memorized rows in each part of training, for all rows and for rows read
      once.
    - qq: the paper's Q-Q plot, for the same two sets of rows.
    """
    params = extracted.params
    tests, rates, qq = [], [], []
    for arm in DATA_ARMS:
        memorized, rows = extracted.memorized(params.size_list[-1], arm), extracted.rows[arm]
        if memorized is None:
            continue
        once = rows.times == 1
        for line in order_test_rows(memorized, once, params.windows, params.simulations):
            tests.append({"arm": arm} | line)
        for subset, eligible in (("all rows", np.ones_like(once)), ("read once", once)):
            keys = {"arm": arm, "subset": subset}
            for table, lines in (
                (rates, rate_over_training(memorized, eligible, rows, params.bootstrap)),
                (qq, qq_table(memorized, eligible, params.window, params.simulations)),
            ):
                table += [keys | line for line in lines]
    return {"tests": tests, "rates": rates, "qq": qq}


def order_test_rows(
    memorized: np.ndarray, eligible: np.ndarray, windows: Sequence[int], simulations: int
) -> list[dict[str, Any]]:
    """Return the lines of the table `tests`: one for each test of order_tests on the eligible rows.

    If too few rows are memorized, or too few are not, return a single line that says so.
    """
    design = Design(eligible, int((memorized & eligible).sum()), tuple(windows))
    counts = {"rows": design.n, "events": design.events}
    if not design.testable:
        status = "not testable: too few events"
        return [{"test": "all", "window": 0, **counts, "status": status}]
    null = NullDistribution.simulate(design, simulations)
    (ranks,) = np.nonzero(memorized[eligible])
    observed = order_tests.statistics(design, ranks[None])
    p = null.p_values(observed)[0]
    adjusted, (low, high) = holm(dict(enumerate(p))), null.range()
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


def qq_table(
    memorized: np.ndarray, eligible: np.ndarray, window: int, simulations: int
) -> list[dict[str, Any]]:
    """Return the points of the paper's Q-Q plot, with a 95 % band; [] if nothing can be tested.

    - `window`: rows per window.
    - `windows`: the number of windows at this point.
    - `theoretical`, `observed`, `low`, `high`: see `order_tests.poisson_qq`.
    """
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


@dataclass(frozen=True)
class Prediction:
    """Which texts a predictor has memorized, and which the largest model has memorized at the end.

    A text is a continuation. It is memorized if at least one row with this text is.
    """

    predicted: np.ndarray
    """bool[texts]: memorized by the predictor."""
    truth: np.ndarray
    """bool[texts]: memorized by the largest model at the end."""
    planted: np.ndarray
    """int[texts]: the index of the planted text that contains the continuation, or -1."""

    @classmethod
    def of(cls, predicted: np.ndarray, truth: np.ndarray, rows: Rows) -> Prediction:
        """Return the prediction for the first n of `rows`; `predicted` and `truth` are bool[n]."""
        n = len(truth)
        _, first, text = np.unique(rows.text[:n], return_index=True, return_inverse=True)
        p, t = (np.bincount(text, memorized) > 0 for memorized in (predicted, truth))
        return cls(p, t, rows.planted[:n][first].astype(int))

    @property
    def unit(self) -> np.ndarray:
        """int[texts]: a number that continuations from the same planted text share."""
        own = self.planted.max(initial=-1) + 1 + np.arange(len(self.planted))
        return np.where(self.planted < 0, own, self.planted)

    def share(self, measure: str) -> Estimate:
        """Return "precision" or "recall" as a fraction, with the interval over `unit`."""
        part, whole = self._sides(measure)
        return share_over_units(part, whole, self.unit)

    def count(self, measure: str) -> tuple[int, int]:
        """Return the numerator and the denominator of "precision" or "recall", in texts."""
        part, whole = self._sides(measure)
        return int((part & whole).sum()), int(whole.sum())

    def units(self, measure: str) -> int:
        """Return the number of units behind a measure."""
        _, whole = self._sides(measure)
        return len(np.unique(self.unit[whole]))

    def _sides(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
        if measure == "precision":
            return self.truth, self.predicted
        return self.predicted, self.truth


def predicted_by(extracted: Extracted, size: str, step: int) -> Prediction | None:
    """Predict that the largest model finally memorizes what `size` has memorized at `step`.

    As in Biderman et al. 2023b, only rows that the earliest checkpoint had read are used. Return
    None if either model was not measured.
    """
    n, rows = extracted.n_first, extracted.rows["standard"]
    truth = extracted.memorized(extracted.params.size_list[-1], "standard")
    predicted = extracted.memorized(size, "standard", step)
    if truth is None or predicted is None:
        return None
    return Prediction.of(predicted[:n], truth[:n], rows)


def prediction(extracted: Extracted) -> Lines:
    """Return the table `prediction`: how well the largest model's final memorization is predicted.

    There is one line per predictor: each earlier checkpoint, and each smaller model at the end.
    """
    params = extracted.params
    steps, lines = params.steps("standard"), []
    predictors = [("earlier checkpoint", params.size_list[-1], step) for step in steps[:-1]]
    predictors += [("smaller model", size, steps[-1]) for size in params.size_list[:-1]]
    for experiment, size, step in predictors:
        if predicted := predicted_by(extracted, size, step):
            keys = {"experiment": experiment, "size": size, "step": step}
            lines.append(keys | prediction_row(predicted))
    return lines


def prediction_row(texts: Prediction) -> dict[str, Any]:
    """Return a line of `prediction`: confusion counts of texts, precision and recall.

    `precision_units` and `recall_units` count the units of the intervals.
    """
    tp, n_predicted = texts.count("precision")
    fn = texts.count("recall")[1] - tp
    row: dict[str, Any] = {
        "texts": len(texts.truth),
        "tp": tp,
        "fp": n_predicted - tp,
        "fn": fn,
        "tn": len(texts.truth) - n_predicted - fn,
        "precision_units": texts.units("precision"),
        "recall_units": texts.units("recall"),
    }
    for name in MEASURES:
        e = texts.share(name)
        row |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    return row


# --- released --------------------------------------------------------------------------------

RELEASED = ["experiment", "model", "step", "percent", "compute", *MEASURES, "share", "truth"]
NAMES = {
    "early_checkpoint_predicts_last": "earlier checkpoint",
    "small_model_predicts_12b": "smaller model",
}


def released_table(confusion: pd.DataFrame | None) -> pd.DataFrame:
    """Return the table `released`: how well memorization is predicted; no rows without `confusion`.

    - `experiment`: "earlier checkpoint" (a model predicts its own last checkpoint) or "smaller
      model" (a model predicts the 12B model at the same step).
    - `model`, `step`, `percent` (of training): the predictor.
    - `compute`: parameters times tokens of the predictor, as a fraction of the whole 12B run.
    - `precision`, `recall`: fractions of 1, NaN if a checkpoint predicts itself.
    - `share`: the percentage of sequences that the predictor memorizes.
    - `truth`: the percentage of sequences that the predicted model memorizes.
    """
    import pandas as pd

    if confusion is None or confusion.empty:
        return pd.DataFrame(columns=RELEASED)
    table = confusion.assign(
        experiment=confusion.experiment.map(NAMES),
        percent=100 * confusion.step / OFFICIAL_STEPS,
        share=confusion.tp + confusion.fp,
        truth=confusion.tp + confusion.fn,
    )
    sizes = table.model.map(nominal_parameters) / nominal_parameters(MODELS[-1])
    table["compute"] = sizes * table.percent / 100
    itself = (table.fp == 0) & (table.fn == 0)
    table.loc[itself, list(MEASURES)] = math.nan
    rank = table.model.map({model: i for i, model in enumerate(MODELS)})
    table = table.assign(rank=rank).sort_values(["experiment", "rank", "step"], ignore_index=True)
    return table[RELEASED]


def equal_compute(table: pd.DataFrame) -> dict[str, Any]:
    """Compare an early 12B checkpoint and smaller models as predictors of 12B, at equal compute.

    The checkpoint is the first of EARLY, at P percent of training. `recall_12b_at_P` and
    `recall_small_at_P` are in percent. The recall of smaller models is interpolated linearly in log
    compute. `released_recall_least` and `released_recall_most` are the lowest and highest recall,
    over all models, of this checkpoint for the end of the same model. `released_precision_least`
    and `released_precision_most` are the same for precision, over all predictors in the figure.
    """
    checkpoints = table[table.experiment == "earlier checkpoint"]
    first = checkpoints[checkpoints.step == linear_step(EARLY[0], OFFICIAL_STEPS)]
    early = first[first.model == MODELS[-1]]
    small = table[(table.experiment == "smaller model") & (table.step == OFFICIAL_STEPS)]
    small = small.dropna(subset=["recall"]).sort_values("compute")
    if early.empty or small.empty:
        return {}
    row, at = early.iloc[0], f"{early.percent.iloc[0]:.0f}"
    smaller = np.interp(math.log(row.compute), np.log(small.compute), small.recall)
    precision = np.concatenate([checkpoints.precision.dropna(), small.precision])
    return {
        f"recall_12b_at_{at}": 100 * row.recall,
        f"recall_small_at_{at}": 100 * float(smaller),
        "released_recall_least": 100 * float(first.recall.min()),
        "released_recall_most": 100 * float(first.recall.max()),
        "released_precision_least": 100 * float(precision.min()),
        "released_precision_most": 100 * float(precision.max()),
    }
