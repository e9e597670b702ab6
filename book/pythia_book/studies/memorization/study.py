"""Memorization, and whether it depends on the order of training (paper section 3.2).

The *continuation* of a row is the tokens after its first tokens. A checkpoint has memorized a row
if it generates the exact continuation from the first tokens (pythia_core.evaluation.memorization).
All rows that the checkpoint has read are tested. Memorized rows are counted by model size, by
checkpoint, by text, and by how often the continuation was read.

Order is tested only on rows whose continuation was read once (order_tests). Other rows may have
been learned at any of several positions. As in Biderman et al. 2023b, earlier checkpoints and
smaller models predict what the last checkpoint has memorized.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.stats import Estimate, difference
from pythia_book.studies.memorization import samples, trace_claims, traces
from pythia_book.studies.memorization import tables as tables_of
from pythia_book.studies.memorization.claims import claims
from pythia_book.studies.memorization.order_tests import MIN_EVENTS
from pythia_book.studies.memorization.panel import NEVER
from pythia_book.studies.memorization.params import (
    INTERVAL,
    PERSISTENT_AFTER,
    STUDY,
    TREND,
    Params,
    configs,
)
from pythia_book.studies.memorization.tables import Extracted, Rows
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.suite import DATA_ARMS, scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, extract memorized rows, test their order, and predict memorization.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """
    return conduct(
        STUDY, params, partial(measure, params, progress), partial(analyze, params), released,
        published, seed_bands=True,
    )  # fmt: skip


def measure(params: Params, progress: bool = True) -> Measurements:
    """Measure which rows every checkpoint has memorized, and how often each row's text was read.

    Arrays with one entry per row, in training order:

    - memorized/SIZE/ARM/STEP: whether the row is memorized; only for rows read by STEP.
    - times/ARM: how often the continuation occurs in the whole run.
    - beginnings/ARM: how often context and continuation together occur.
    - text/ARM: an index that rows with the same continuation share.
    - planted/ARM: the index of the planted text that contains the continuation, or -1.

    The largest size at the end, on the standard text (see `recital`):

    - recited: how many tokens it recites of each row read, then of each row never read.
    - own: whether each of these rows is natural text of its own (see `samples.own_text`).

    The array "copies" has the number of occurrences of each planted text in the corpus.

    For traces (see `samples` and `panel`), in the order of the chosen rows and canaries:

    - cohort_read/SEED, final_read/SEED, canary_read/SEED: the update that reads each, or NEVER.
    - final_even/SEED, canary_reads/SEED: see `samples.ChosenRows` and `samples.ChosenCanaries`.
    - cohort_loss/SIZE/SEED, final_loss/SIZE/SEED, canary_loss/SIZE/SEED: one row per checkpoint.

    Facts:

    - batch_size
    - gaps: the number of unmeasured checkpoints.
    - generated: how many results were checked by actual generation.
    - disagreements: how many of the checked results were wrong.
    - examples: see `recital.examples`.
    """
    import pandas as pd

    from pythia_book.corpora.planted import planted_ids
    from pythia_book.measurements import measure_all
    from pythia_book.studies.registry import train_all
    from pythia_core.evaluation.memorization import (
        ExtractionMeasurement,
        distinct_windows,
        repetition_counts,
    )

    trained = train_all(params, configs(params), progress)
    suite = {(size, arm): run for (size, arm, seed), run in trained.items() if seed == params.seed}
    context, continuation = params.context, params.continuation
    arrays: dict[str, np.ndarray] = {}
    n_gaps, checked = 0, np.zeros(2, int)
    for arm in DATA_ARMS:
        smallest = suite[params.size_list[0], arm]
        data, train = smallest.data, smallest.config.train
        extraction = ExtractionMeasurement(
            data, train.batch_size, train.steps, context, continuation
        )
        cells = [(suite[size, arm], s) for size in params.size_list for s in params.steps(arm)]
        measured, gaps = measure_all(cells, extraction, progress)
        n_gaps += len(gaps)
        for size in params.size_list:
            for step in params.steps(arm):
                if extracted := measured.get((suite[size, arm].id, step)):
                    arrays[name_of("memorized", size, arm, step)] = extracted["memorized"]
                    checked += extracted["checked"]
        rows = data.rows.rows(0, train.steps * train.batch_size)
        windows = rows[:, context : context + continuation]
        times = repetition_counts(rows, windows)
        arrays[name_of("times", arm)] = times.astype(np.int32)
        beginnings = repetition_counts(rows, rows[:, : context + continuation])
        arrays[name_of("beginnings", arm)] = beginnings.astype(np.int32)
        _, text = distinct_windows(windows, windows.shape[1])
        arrays[name_of("text", arm)] = pd.factorize(text)[0].astype(np.int32)
        arrays[name_of("planted", arm)], arrays["copies"] = planted_ids(data, windows)
    largest = suite[params.size_list[-1], "standard"]
    shown, gap = _measure_recital(params, largest, arrays, progress)
    n_gaps += gap
    traced = {(size, seed): trained[size, "standard", seed] for size, seed in params.members}
    n_gaps += _measure_traces(params, traced, arrays, progress)
    facts = {
        "batch_size": suite[params.size_list[0], "standard"].config.train.batch_size,
        "gaps": n_gaps,
        "generated": int(checked[0]),
        "disagreements": int(checked[1]),
        "examples": shown,
    }
    return Measurements(arrays, facts, list(trained.values()))


def _measure_recital(
    params: Params, run: Run, arrays: dict[str, np.ndarray], progress: bool
) -> tuple[list[dict[str, Any]], int]:
    """Add to `arrays` how far a run's rows are recited at its end; return examples and the gaps."""
    from pythia_book.measurements import measure_all
    from pythia_book.studies.memorization.recital import RecitalMeasurement, examples
    from pythia_book.studies.memorization.samples import own_text
    from pythia_core.evaluation.memorization import repetition_counts

    train, stop = run.config.train, params.context + params.continuation
    rows = run.data.rows.rows(0, run.data.rows.n_rows)
    n_read = train.steps * train.batch_size
    unread = repetition_counts(rows[:n_read], rows[n_read:, params.context : stop])
    times = np.append(arrays[name_of("times", "standard")], unread)
    arrays["own"] = own_text(run.data, rows)
    recital = RecitalMeasurement(
        rows[:, :stop], times, arrays["own"], params.context, params.continuation
    )
    measured, gaps = measure_all([(run, train.steps)], recital, progress)
    if gaps:
        return [], len(gaps)
    ((_, result),) = measured.items()
    arrays["recited"] = result["recited"]
    return examples(recital, result, run.data), 0


def _measure_traces(
    params: Params,
    runs: dict[tuple[str, int], Run],
    arrays: dict[str, np.ndarray],
    progress: bool,
) -> int:
    """Add to `arrays` the losses of rows and canaries, and when they are read; return the gaps.

    A run with a gap gets no losses. Losses of rows are relative to their last one, float16, because
    only their differences are used.
    """
    from pythia_book.measurements import measure_all
    from pythia_book.studies.memorization.samples import (
        CanaryLoss,
        ChosenCanaries,
        ChosenRows,
        RowLoss,
        read_by,
    )

    n_gaps = 0
    for seed in dict.fromkeys(seed for _, seed in runs):  # it determines the rows read
        members = {size: run for (size, s), run in runs.items() if s == seed}
        data, train = (first := next(iter(members.values()))).data, first.config.train
        rows = ChosenRows.of(params, data, train.batch_size, train.steps)
        canaries = ChosenCanaries.of(data, train.batch_size, train.steps)
        everything = data.rows.rows(0, data.rows.n_rows).astype(np.int64)
        arrays |= {
            name_of("cohort_read", seed): read_by(rows.cohorts, train.batch_size, train.steps),
            name_of("final_read", seed): read_by(rows.final, train.batch_size, train.steps),
            name_of("final_even", seed): rows.even,
            name_of("canary_read", seed): canaries.read,
            name_of("canary_reads", seed): canaries.reads,
        }
        length = first.config.model.max_seq_len
        for kind, measurement, steps in (
            ("cohort", RowLoss(everything[rows.cohorts]), params.cohort_steps),
            ("final", RowLoss(everything[rows.final]), params.final_steps),
            ("canary", CanaryLoss.of(canaries, data, length), params.canary_steps),
        ):
            cells = [(run, step) for run in members.values() for step in steps]
            measured, gaps = measure_all(cells, measurement, progress)
            n_gaps += len(gaps)
            for size, run in members.items():
                losses = [measured.get((run.id, step)) for step in steps]
                if all(losses):
                    loss = np.stack([at["loss"] for at in losses])
                    if kind != "canary":
                        loss = (loss - loss[-1]).astype(np.float16)
                    arrays[name_of(f"{kind}_loss", size, seed)] = loss
    return n_gaps


def released(published: Published) -> Tables:
    """Return the table `memorization` of released confusion counts (see `published.tables`)."""
    return {"memorization": published.memorization}


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from memorized rows and the released confusion tables."""
    import pandas as pd

    extracted = Extracted.of(params, measured)
    lines = {
        "shares": tables_of.shares(extracted),
        "exposures": tables_of.by_exposure(extracted),
        "recited": tables_of.recited(extracted),
        **tables_of.order(extracted),
        "prediction": tables_of.prediction(extracted),
    }
    columns = tables_of.COLUMNS
    tables = {name: pd.DataFrame(lines[name], columns=columns[name]) for name in columns}
    tables["released"] = tables_of.released_table(released.get("memorization"))
    runs = traces.runs_of(params, measured)
    for name, rows in traces.tables(params, runs).items():
        tables[name] = pd.DataFrame(rows, columns=traces.COLUMNS[name])
    numbers = values(extracted, tables) | trace_values(params, runs)
    judged = [*trace_claims.claims(params, runs), *claims(extracted, tables)]
    return tables, numbers, judged


def trace_values(params: Params, runs: dict[tuple[str, int], traces.Traces]) -> dict[str, Any]:
    """Return the numbers about traces that the page quotes, by name; `retained` is in percent.

    Names without a suffix are for the largest size, those that end in `_smallest` for the smallest,
    and those that end in `_seeds` are means over the further seeds of the seeded size.
    """
    largest, smallest = params.size_list[-1], params.size_list[0]
    first, last = params.cohorts[0]
    numbers: dict[str, Any] = {
        "seeded": params.seeded_size,
        "seeds": len(traces.further(params, runs)),
        "cohorts": len(params.cohorts),
        "cohort_updates": last - first,
        "first_updates": params.first_look(0) - last,
        "margin": TREND,
        "passage": samples.PASSAGE,
        "most_shared": 100 * samples.MOST_SHARED,
        "fewest_events": MIN_EVENTS,
    }
    for measure in (
        "residual", "trend", "first_half", "second_half", "floor_trend", "order", "placebo",
        "canary", "canary_before", "canary_dose",
    ):  # fmt: skip
        if e := traces.over_seeds(params, runs, measure):
            numbers[f"{measure}_seeds"] = e.interval()
    if run := runs.get((smallest, params.seed)):
        numbers["first_smallest"] = run.first.interval()
        numbers["retained_smallest"] = run.retained.times(100).interval()
    run = runs.get((largest, params.seed))
    if not run:
        return numbers
    _, p, pooled = run.pretrends
    estimates = {
        "first": run.first,
        "first_early": run.first_early,
        "retained": run.retained.times(100),
        "residual": run.residual,
        "trend": run.trend,
        "first_half": run.first_half,
        "second_half": run.second_half,
        "floor_trend": run.floor_trend,
        "order_training": run.order("training"),
        "order_floor": run.order("floor"),
        "rate_slope": run.rate_slope,
        "canary": run.canary,
        "canary_before": run.canary_before,
        "canary_dose": run.canary_dose,
        "dose_most": run.by_dose(*[*traces.DOSES.values()][-1]),
        "pretrend": pooled,
        "placebo": run.placebo,
    }
    numbers |= {name: e.interval() for name, e in estimates.items() if e}
    numbers |= {
        "pretrend_p": p,
        "n_canaries": run.canary.n_items,
        "never_planted": run.canaries.never.shape[1],
        "n_never": int((run.final.read == NEVER).sum()),
        "n_final": run.residual.n_items,
        "n_floor": run.floor_trend.n_items,
        "n_cohorts": run.first.n_items,
        "n_early_cohorts": len(params.cohorts) - PERSISTENT_AFTER,
        "n_dose_most": estimates["dose_most"].n_items,
    }
    if tenth := runs.get((params.tenth, params.seed)):
        numbers["agreement"] = traces.agreement(run, tenth)
    return numbers


def values(extracted: Extracted, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the numbers about recitation that the page quotes, by name; shares are in percent."""
    params = extracted.params
    largest, end = params.size_list[-1], scale_named(params.scale).steps
    numbers: dict[str, Any] = {
        "largest": largest,
        "tenth": params.tenth,
        "n_rows": len(extracted.rows["standard"]),
        **_recited(extracted),
    }
    recited = tables["recited"].set_index("times")
    for name, times in (("never", "0"), ("once", "1")):
        if times in recited.index:
            line = recited.loc[times]
            numbers[f"recited_{name}"] = {key: float(line[key]) for key in INTERVAL}
            numbers[f"recited_{name}_furthest"] = int(line.furthest)
            numbers[f"recited_{name}_rows"] = int(line.n)
    if {"0", "1"} <= set(recited.index):
        once, never = (
            Estimate(*(float(recited.loc[times][key]) for key in INTERVAL), 0, 1)
            for times in ("1", "0")
        )
        numbers["recited_more"] = difference(once, never).interval()
    lines = tables["prediction"].set_index(["experiment", "size", "step"])
    predictors = [
        (f"at_{percent}", ("earlier checkpoint", largest, step))
        for percent, step in zip(params.early_percent, params.early_steps, strict=True)
    ]
    for name, predictor in [*predictors, ("tenth", ("smaller model", params.tenth, end))]:
        if predictor in lines.index:
            numbers |= _predicted(lines.loc[predictor], name)
            numbers["recall_texts"] = int(lines.loc[predictor].recall_units)
    return numbers | tables_of.equal_compute(tables["released"])


def _recited(extracted: Extracted) -> dict[str, Any]:
    """Count the rows that the largest model memorized.

    - `memorized_ARM`: memorized rows of each arm.
    - `once_standard`, `once_memorized_standard`: rows whose continuation was read once, and how
      many of these are memorized.
    - `beginning_once_memorized_standard`: memorized rows whose context and continuation together
      were read once; `beginning_once_read_more_standard`: how many of them have a continuation that
      was read more than once; `beginning_once_repeated_standard`: the same in words, "12 of these"
      or "all of these".
    - `planted_rows`, `planted_texts`: memorized rows whose continuation is in a planted text, and
      the number of these texts; `planted_copies`: how often these were planted, e.g. "3 planted
      128 times".
    - `fewest_readings`: the fewest readings of a memorized row.
    """
    size = extracted.params.size_list[-1]
    numbers: dict[str, Any] = {}
    for arm in DATA_ARMS:
        if (memorized := extracted.memorized(size, arm)) is not None:
            numbers[f"memorized_{arm}"] = int(memorized.sum())
    rows: Rows = extracted.rows["standard"]
    memorized, once = extracted.memorized(size, "standard"), rows.times == 1
    numbers["once_standard"] = int(once.sum())
    if memorized is None:
        return numbers
    seeming = memorized & (rows.beginnings == 1)
    planted = rows.planted[memorized]
    texts = np.unique(planted[planted >= 0])
    levels, counts = np.unique(extracted.measured.arrays["copies"][texts], return_counts=True)
    repeated = int((seeming & ~once).sum())
    by_level = [f"{n} planted {k} times" for k, n in zip(levels, counts, strict=True)][::-1]
    if memorized.any():
        numbers["fewest_readings"] = int(rows.times[memorized].min())
    return numbers | {
        "once_memorized_standard": int((memorized & once).sum()),
        "beginning_once_memorized_standard": int(seeming.sum()),
        "beginning_once_read_more_standard": repeated,
        "beginning_once_repeated_standard": (
            "all of these" if repeated == seeming.sum() else f"{repeated:,} of these"
        ),
        "planted_rows": int((planted >= 0).sum()),
        "planted_texts": len(texts),
        "planted_copies": ", ".join(by_level) or "none",
    }


def _predicted(row: pd.Series, name: str) -> dict[str, Any]:
    """Return numbers from a row of `prediction`.

    - `precision_NAME`, `recall_NAME`: in percent.
    - `precision_texts_NAME`: the number of texts that the precision rests on.
    """
    ends = (("value", ""), ("low", "_low"), ("high", "_high"))
    numbers: dict[str, Any] = {
        f"{measure}_{name}": {end: 100 * float(row[f"{measure}{suffix}"]) for end, suffix in ends}
        for measure in ("precision", "recall")
    }
    return numbers | {f"precision_texts_{name}": int(row.precision_units)}
