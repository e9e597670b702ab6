"""Memorization, and whether it depends on the order of training (paper section 3.2).

For every row that a checkpoint has read, extraction (pythia_core.evaluation.memorization) tells
whether the checkpoint has memorized it: by size, over training, on both texts, and by repetition
count. Tests of whether a row's position in training matters (order_tests), each with its power, use
either all rows or only those read once. Finally, earlier checkpoints and smaller models predict
which rows the last checkpoint has memorized.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import Arrays, measure_all
from pythia_book.published.results import find as find_published
from pythia_book.studies.memorization import tables as tables_of
from pythia_book.studies.memorization.claims import claims
from pythia_book.studies.memorization.params import STUDY, Params
from pythia_book.studies.memorization.tables import Rows
from pythia_book.studies.registry import train_all
from pythia_book.study import Result
from pythia_core.evaluation.memorization import (
    ExtractionMeasurement,
    distinct_windows,
    repetition_counts,
)
from pythia_core.suite import DATA_ARMS, scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run

WINDOWS = (32, 64, 128, 512)
"""Rows per window: 32 is one of our batches, 512 is from the paper."""
INTERVAL = ["value", "low", "high"]
COLUMNS: dict[str, list[str]] = {
    "shares": ["size", "arm", "step", "percent", "rows", "memorized", *INTERVAL],
    "exposures": ["size", "arm", "exposures", "n", "memorized", *INTERVAL],
    "tests": ["arm", "subset", "test", "window", "rows", "events", "statistic", "null_low",
              "null_high", "p", "holm", *INTERVAL, "status"],
    "rates": ["arm", "subset", "percent", "n", *INTERVAL],
    "qq": ["arm", "subset", "window", "theoretical", "observed", "low", "high", "windows"],
    "power": ["alternative", "test", "window", *INTERVAL],
    "levels": ["rate", "kind", "test", *INTERVAL],
    "prediction": ["experiment", "size", "step", "n", "tp", "fp", "fn", "tn",
                   *(f"{name}{end}" for name in ("precision", "recall", "gap")
                     for end in ("", "_low", "_high"))],
}  # fmt: skip
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Extracted:
    """For each checkpoint of a suite, which of the rows it has read are memorized."""

    params: Params
    suite: dict[tuple[str, str], Run]
    arrays: dict[tuple[str, int], Arrays]
    """(run id, step) -> arrays, without gaps."""
    rows: dict[str, Rows]
    """Arm -> its rows in the order of training."""
    gaps: int

    def memorized(self, size: str, arm: str, step: int | None = None) -> np.ndarray | None:
        """bool[rows read by `step`], by default the last step; None for a gap."""
        step = scale_named(self.params.scale).steps if step is None else step
        arrays = self.arrays.get((self.suite[size, arm].id, step))
        return None if arrays is None else arrays["memorized"]


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, extract memorized rows, test for order, predict.

    Args:
        published: the released numbers; default: from `PYTHIA_PUBLISHED_DIR`, or none.
    """
    import pandas as pd

    published = published or find_published()
    started = time.time()
    suite = train_all(
        params, suite_configs(params.scale, params.size_list, seed=params.seed), progress
    )
    extracted = _extract(params, suite, progress)
    lines = {
        "shares": _shares(extracted),
        "exposures": _by_repetition_count(extracted),
        **_order(extracted),
        "prediction": _prediction(extracted),
    }
    tables = {name: pd.DataFrame(lines[name], columns=c) for name, c in COLUMNS.items()}
    released = published.memorization if published is not None else pd.DataFrame()
    rows, numbers = claims(params, tables, released), values(extracted, tables)
    runs = list(suite.values())
    return Result(STUDY, params, tables, numbers, rows, runs, started, released)


def _extract(params: Params, suite: dict[tuple[str, str], Run], progress: bool) -> Extracted:
    arrays: dict[tuple[str, int], Arrays] = {}
    rows, n_gaps = {}, 0
    context, continuation = params.context, params.continuation
    for arm in DATA_ARMS:
        smallest = suite[params.size_list[0], arm]
        data, train = smallest.data, smallest.config.train
        extraction = ExtractionMeasurement(
            data, train.batch_size, train.steps, context, continuation
        )
        cells = [(suite[size, arm], s) for size in params.size_list for s in params.steps(arm)]
        arm_arrays, gaps = measure_all(cells, extraction, progress)
        arrays |= arm_arrays
        n_gaps += len(gaps)
        read, width = data.rows.rows(0, train.steps * train.batch_size), context + continuation
        rows[arm] = Rows(repetition_counts(read, width), distinct_windows(read, width)[1])
    return Extracted(params, suite, arrays, rows, n_gaps)


# --- tables ----------------------------------------------------------------------------------


def _shares(extracted: Extracted) -> Lines:
    """Share of the rows read so far that each checkpoint has memorized."""
    params, lines = extracted.params, []
    for size, arm in extracted.suite:
        for step in params.steps(arm):
            memorized = extracted.memorized(size, arm, step)
            if memorized is None:
                continue
            text = extracted.rows[arm].text[: len(memorized)]
            share = tables_of.ratio(memorized, np.ones_like(memorized), text, params.bootstrap)
            percent = 100 * step / scale_named(params.scale).steps
            keys = {"size": size, "arm": arm, "step": step, "percent": percent}
            counts = {"rows": len(memorized), "memorized": int(memorized.sum())}
            lines.append(keys | counts | share.interval())
    return lines


def _by_repetition_count(extracted: Extracted) -> Lines:
    """Share memorized at the end, by how often the first tokens of a row occur in the run."""
    lines = []
    for size, arm in extracted.suite:
        memorized = extracted.memorized(size, arm)
        if memorized is not None:
            draws = extracted.params.bootstrap
            for row in tables_of.by_repetition_count(memorized, extracted.rows[arm], draws):
                lines.append({"size": size, "arm": arm, **row})
    return lines


def _order(extracted: Extracted) -> dict[str, Lines]:
    """The tables about order.

    tests, rates, qq: for the largest model on both texts, on all rows and on rows read once.
    power, levels: of the tests, for as many rows and events as on the standard text.
    """
    params = extracted.params
    tests, rates, qq, power, levels = [], [], [], [], []
    for arm in DATA_ARMS:
        memorized, rows = extracted.memorized(params.size_list[-1], arm), extracted.rows[arm]
        if memorized is None:
            continue
        all_rows = np.ones_like(memorized)
        for subset, eligible in (("all rows", all_rows), ("read once", rows.repetition_count <= 1)):
            keys, both = {"arm": arm, "subset": subset}, (memorized, eligible)
            for table, lines in (
                (tests, tables_of.order_test_rows(*both, WINDOWS, params.simulations)),
                (rates, tables_of.rate_over_training(*both, rows, params.bootstrap)),
                (qq, tables_of.qq_table(*both, params.window, params.simulations)),
            ):
                table += [keys | line for line in lines]
        if arm == "standard":
            events = int(memorized.sum())
            power = tables_of.power_table(all_rows, events, WINDOWS, params.simulations)
            levels = tables_of.level_table(len(memorized), WINDOWS, params.simulations)
    return {"tests": tests, "rates": rates, "qq": qq, "power": power, "levels": levels}


def _prediction(extracted: Extracted) -> Lines:
    """How well other checkpoints predict which rows the largest model has memorized at the end.

    Predictors are earlier checkpoints of the largest model, and smaller models at the end. Only
    rows that the earliest checkpoint had read are used.
    """
    params = extracted.params
    largest, steps, lines = params.size_list[-1], params.steps("standard"), []
    truth = extracted.memorized(largest, "standard")
    if truth is None:
        return []
    n = steps[0] * extracted.suite[largest, "standard"].config.train.batch_size
    text = extracted.rows["standard"].text[:n]
    predictors = [("earlier checkpoint", largest, step) for step in steps[:-1]]
    predictors += [("smaller model", size, steps[-1]) for size in params.size_list[:-1]]
    for experiment, size, step in predictors:
        predicted = extracted.memorized(size, "standard", step)
        if predicted is not None:
            row = tables_of.prediction_row(predicted[:n], truth[:n], text, params.bootstrap)
            lines.append({"experiment": experiment, "size": size, "step": step, **row})
    return lines


def values(extracted: Extracted, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Name -> number, for prose."""
    shares, tests, largest = tables["shares"], tables["tests"], extracted.params.size_list[-1]
    last = shares[shares.percent == 100].set_index(["size", "arm"])
    checked = np.sum([arrays["checked"] for arrays in extracted.arrays.values()], axis=0)
    numbers: dict[str, Any] = {
        "sizes": ", ".join(extracted.params.size_list),
        "largest": largest,
        "n_rows": int(last.rows.max()) if len(last) else 0,
        "n_generated": int(checked[0]) if extracted.arrays else 0,
        "n_disagreements": int(checked[1]) if extracted.arrays else 0,
        "n_tests": int((tests.status == "tested").sum()),
    }
    for arm in DATA_ARMS:
        if (largest, arm) in last.index:
            row = last.loc[(largest, arm)]
            numbers[f"memorized_{arm}"] = int(row.memorized)
            numbers[f"percent_{arm}"] = {k: 100 * float(row[k]) for k in INTERVAL}
    return numbers | {"gaps": extracted.gaps}
