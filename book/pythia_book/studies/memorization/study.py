"""Memorization, and whether the order of training decides what is memorized (paper section 3.2).

Extraction of every row that a checkpoint has read (pythia_core.evaluation.memorization), by size,
over training, on both texts, and by how often a row was read. The paper's question, does a row's
place in training matter, is asked with tests that keep their level (order_tests), with and without
rows read more than once, and with what each test could have seen. Then the memorized set of the
last checkpoint is predicted from earlier checkpoints and from smaller models. Tables only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import Arrays, measure_all
from pythia_book.published.results import find as find_published
from pythia_book.studies.memorization import tables as tables_of
from pythia_book.studies.memorization.claims import claims_table
from pythia_book.studies.memorization.params import STUDY, Params
from pythia_book.studies.memorization.tables import Rows, frame
from pythia_book.studies.registry import train_all
from pythia_book.study import StudyResult
from pythia_core.evaluation.memorization import (
    ExtractionOfRows,
    distinct_windows,
    repetition_counts,
)
from pythia_core.suite import DATA_ARMS, scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run

WINDOWS = (32, 64, 128, 512)
"""Rows of a window: one of our batches first; 512 is the paper's."""
SHARES = ("size", "arm", "step", "percent", "rows", "memorized", "value", "low", "high")
INTERVAL = ("value", "low", "high")
TESTS = ("arm", "subset", "test", "window", "rows", "events", "statistic", "null_low", "null_high",
         "p", "holm", *INTERVAL, "status")  # fmt: skip
PREDICTION = ("experiment", "size", "step", "n", "tp", "fp", "fn", "tn", "precision",
              "precision_low", "precision_high", "recall", "recall_low", "recall_high", "gap",
              "gap_low", "gap_high")  # fmt: skip

Suite = dict[tuple[str, str], "Run"]
Found = dict[tuple[str, int], Arrays]


def run(params: Params, progress: bool = True, published: Published | None = None) -> StudyResult:
    """Find or train the suite, extract, count, test, predict.

    Args:
        published: the released numbers; default: from `PYTHIA_PUBLISHED_DIR`, or none.
    """
    import pandas as pd

    published = published or find_published()
    started = time.time()
    suite = train_all(
        params, suite_configs(params.scale, params.size_list, seed=params.seed), progress
    )
    found, rows, gaps = _extract(params, suite, progress)
    tables = {
        "shares": _shares(params, suite, found, rows),
        "exposures": _exposures(params, suite, found, rows),
        **_order(params, suite, found, rows),
        "prediction": _prediction(params, suite, found, rows),
    }
    released = published.memorization if published is not None else pd.DataFrame()
    claims = claims_table(params, tables, released)
    values = _values(params, tables, found) | {"gaps": gaps}
    runs = list(suite.values())
    return StudyResult(STUDY, params, tables, values, claims, runs, started, released)


def _extract(params: Params, suite: Suite, progress: bool) -> tuple[Found, dict[str, Rows], int]:
    """Extraction by (run id, step), the rows of each arm, and the number of gaps."""
    found: Found = {}
    rows, n_gaps = {}, 0
    width = params.context + params.continuation
    for arm in DATA_ARMS:
        some = suite[params.size_list[0], arm]
        t = some.config.train
        what = ExtractionOfRows(
            some.data, t.batch_size, t.steps, params.context, params.continuation
        )
        cells = [(suite[size, arm], s) for size in params.size_list for s in params.steps(arm)]
        more, gaps = measure_all(cells, what, progress)
        found |= more
        n_gaps += len(gaps)
        read = some.data.rows.rows(0, t.steps * t.batch_size)
        rows[arm] = Rows(repetition_counts(read, width), distinct_windows(read, width)[1])
    return found, rows, n_gaps


# --- tables ----------------------------------------------------------------------------------


def _shares(params: Params, suite: Suite, found: Found, rows: dict[str, Rows]) -> pd.DataFrame:
    """Share of the rows read so far that are memorized."""
    scale, table = scale_named(params.scale), []
    for (size, arm), run in suite.items():
        for step in params.steps(arm):
            if (run.id, step) not in found:
                continue
            memorized = found[run.id, step]["memorized"]
            text = rows[arm].text[: len(memorized)]
            share = tables_of.ratio(memorized, np.ones_like(memorized), text, params.bootstrap)
            table.append({
                "size": size, "arm": arm, "step": step, "percent": 100 * step / scale.steps,
                "rows": len(memorized), "memorized": int(memorized.sum()),
                **share.interval(),
            })  # fmt: skip
    return frame(table, SHARES)


def _final(params: Params, suite: Suite, found: Found, size: str, arm: str) -> Any:
    """bool[rows] at the end of training, or None."""
    arrays = found.get((suite[size, arm].id, scale_named(params.scale).steps))
    return None if arrays is None else arrays["memorized"]


def _exposures(params: Params, suite: Suite, found: Found, rows: dict[str, Rows]) -> pd.DataFrame:
    """Share memorized at the end by how often the first tokens were read in the run."""
    table = []
    for size, arm in suite:
        memorized = _final(params, suite, found, size, arm)
        if memorized is not None:
            counted = tables_of.by_exposure(memorized, rows[arm], params.bootstrap)
            table += [{"size": size, "arm": arm, **row} for row in counted]
    return frame(table, ("size", "arm", "exposures", "n", "memorized", *INTERVAL))


def _order(
    params: Params, suite: Suite, found: Found, rows: dict[str, Rows]
) -> dict[str, pd.DataFrame]:
    """tests, rates, qq of the largest model on both texts, all rows and rows read once; power and
    levels of the tests at the number of rows and events there are on the standard text."""
    size = params.size_list[-1]
    tests, rates, qq, power, levels = [], [], [], [], []
    for arm in DATA_ARMS:
        memorized = _final(params, suite, found, size, arm)
        if memorized is None:
            continue
        every = np.ones_like(memorized)
        for subset, eligible in (("all rows", every), ("read once", rows[arm].exposure <= 1)):
            place = {"arm": arm, "subset": subset}
            of = (memorized, eligible)
            tests += [place | r for r in tables_of.tests_of(*of, WINDOWS, params.simulations)]
            counted = tables_of.rate_over_training(*of, rows[arm], params.bootstrap)
            rates += [place | row for row in counted]
            drawn = tables_of.qq_table(*of, params.window, params.simulations)
            qq += [place | row for row in drawn]
        if arm == "standard":
            events = int(memorized.sum())
            power = tables_of.power_table(every, events, WINDOWS, params.simulations)
            levels = tables_of.level_table(len(memorized), WINDOWS, params.simulations)
    return {
        "tests": frame(tests, TESTS),
        "rates": frame(rates, ("arm", "subset", "percent", "n", *INTERVAL)),
        "qq": frame(qq, ("arm", "subset", "window", "theoretical", "observed", "low", "high",
                         "windows")),
        "power": frame(power, ("alternative", "test", "window", *INTERVAL)),
        "levels": frame(levels, ("rate", "kind", "test", *INTERVAL)),
    }  # fmt: skip


def _prediction(params: Params, suite: Suite, found: Found, rows: dict[str, Rows]) -> pd.DataFrame:
    """The last checkpoint's memorized rows predicted from earlier checkpoints of the largest model
    and from smaller models at the end; rows are those that the earliest checkpoint had read."""
    largest, steps = params.size_list[-1], params.steps("standard")
    truth = _final(params, suite, found, largest, "standard")
    if truth is None:
        return frame([], PREDICTION)
    t = suite[largest, "standard"].config.train
    n = steps[0] * t.batch_size
    text = rows["standard"].text[:n]
    predictors = [("earlier checkpoint", largest, step) for step in steps[:-1]]
    predictors += [("smaller model", size, steps[-1]) for size in params.size_list[:-1]]
    table = []
    for experiment, size, step in predictors:
        arrays = found.get((suite[size, "standard"].id, step))
        if arrays is not None:
            row = tables_of.prediction_row(
                arrays["memorized"][:n], truth[:n], text, params.bootstrap
            )
            table.append({"experiment": experiment, "size": size, "step": step, **row})
    return frame(table, PREDICTION)


def _values(params: Params, tables: dict[str, pd.DataFrame], found: Found) -> dict[str, Any]:
    shares, tests = tables["shares"], tables["tests"]
    last = shares[shares.percent == 100].set_index(["size", "arm"])
    checked = np.sum([arrays["checked"] for arrays in found.values()], axis=0)
    values: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": params.size_list[-1],
        "n_rows": int(last.rows.max()) if len(last) else 0,
        "n_generated": int(checked[0]) if len(found) else 0,
        "n_disagreements": int(checked[1]) if len(found) else 0,
        "n_tests": int((tests.status == "tested").sum()),
    }
    for arm in DATA_ARMS:
        if (params.size_list[-1], arm) in last.index:
            row = last.loc[(params.size_list[-1], arm)]
            values[f"memorized_{arm}"] = int(row.memorized)
            values[f"percent_{arm}"] = {k: 100 * float(row[k]) for k in INTERVAL}
    return values
