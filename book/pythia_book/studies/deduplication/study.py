"""Deduplication (paper sections 2.1 and 2.6): the text it removes, and twin models compared.

The suite trains two models of every size, one on the standard and one on the deduplicated text,
from the same initial weights and for the same number of updates. These twins are measured on the
same held-out rows and items, so their differences are paired.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.measurements import LanguageMeasurement, measure_all
from pythia_book.published.results import find as find_published
from pythia_book.published.scaling import published_deduplication
from pythia_book.stats import (
    NOT_TESTABLE,
    Estimate,
    claim_row,
    difference,
    estimate,
    premise_verdict,
)
from pythia_book.studies.deduplication.params import (
    CONTEXT,
    INDICES,
    STUDY,
    Params,
    texts,
)
from pythia_book.studies.memorization.tables import ratio
from pythia_book.studies.registry import train_all
from pythia_book.study import Result
from pythia_book.tasks.benchmarks import TASKS
from pythia_book.tasks.metrics import build_tasks, fitting_tasks, measure_tasks
from pythia_core.data.dedup import RECIPES, s_curve
from pythia_core.data.prepare import prepare
from pythia_core.evaluation.memorization import ExtractionMeasurement, distinct_windows
from pythia_core.suite import DATA_ARMS, DEDUP, scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run

PILE = {"documents": (210_607_728, 134_318_121), "tokens": (334e9, 207e9)}
"""Size of the Pile before and after deduplication (issues of the release; paper section 2)."""

MEASURES = {
    "loss": ("held-out loss, deduplicated minus standard (nats per token", 1, -1),
    "last_word": ("last words of held-out sentences, deduplicated minus standard (points", 100, 1),
    "accuracy": ("benchmark tasks, zero-shot, deduplicated minus standard (points", 100, 1),
}
"""Measure -> description, factor that converts to its unit, and the sign of an improvement."""

Suite = dict[tuple[str, str], "Run"]


# --- the text --------------------------------------------------------------------------------


def recipes_table(params: Params, progress: bool) -> dict[str, pd.DataFrame]:
    """Three tables on the text under every recipe.

    recipes: recipe, documents, tokens, identical and similar (documents removed as such), percent
        (of tokens removed).
    clusters: recipe, copies (cluster size), clusters, documents.
    caught: recipe, similarity, probability that a pair of this similarity is found.
    """
    import pandas as pd

    rows, clusters, caught = [], [], []
    for text in texts(params):
        recipe, data = text.dedup, prepare(text, progress)
        report = data.manifest["tokens"]["dedup"]
        row = {"recipe": recipe, **data.manifest["tokens"]["train"]}
        removed = report.get("removed", {})
        row |= {"identical": removed.get("exact", 0), "similar": removed.get("near", 0)}
        rows.append(row | {"percent": 100 * (1 - row["tokens"] / rows[0]["tokens"]) if rows else 0})
        for copies, count in sorted(report.get("clusters", {}).items(), key=lambda c: int(c[0])):
            size = int(copies)
            clusters.append({"recipe": recipe, "copies": size, "clusters": count,
                             "documents": size * count})  # fmt: skip
        if recipe in RECIPES and RECIPES[recipe].buckets:
            bands = RECIPES[recipe].buckets, RECIPES[recipe].hashes_per_bucket
            for similarity in np.linspace(0, 1, 101).round(2):
                verified_away = RECIPES[recipe].verify and similarity < RECIPES[recipe].threshold
                probability = 0.0 if verified_away else float(s_curve(similarity, *bands))
                caught.append(
                    {"recipe": recipe, "similarity": similarity, "probability": probability}
                )
    return {
        "recipes": pd.DataFrame(rows),
        "clusters": pd.DataFrame(clusters, columns=["recipe", "copies", "clusters", "documents"]),
        "caught": pd.DataFrame(caught),
    }


# --- the models ------------------------------------------------------------------------------


def twins_tables(
    params: Params, suite: Suite, progress: bool
) -> tuple[dict[str, pd.DataFrame], dict[tuple[str, str], np.ndarray], int]:
    """Two tables, the paired differences at the end by (measure, size), and the number of gaps.

    levels: size, arm, measure, step, percent, value, low, high, n.
    effects: the same without arm; values are deduplicated minus standard, paired.
    """
    import pandas as pd

    scale = scale_named(params.scale)
    steps = sorted({scale.fork_step(index) for index in INDICES} - {0})
    first = next(iter(suite.values()))
    language = LanguageMeasurement.of(first.data, first.config.model.max_seq_len)
    cells = [(run, step) for run in suite.values() for step in steps]
    arrays_at, gaps = measure_all(cells, language, progress)
    levels, effects = [], []
    final: dict[tuple[str, str], np.ndarray] = {}
    for size in params.size_list:
        for step in steps:
            keys = {"size": size, "step": step, "percent": 100 * step / scale.steps}
            both = [arrays_at.get((suite[size, arm].id, step)) for arm in DATA_ARMS]
            for arm, arrays in zip(DATA_ARMS, both, strict=True):
                for measure, values in (arrays or {}).items():
                    e = estimate(values[None], params.bootstrap, exact=measure == "last_word")
                    level_keys = {**keys, "arm": arm, "measure": measure}
                    levels.append(level_keys | e.interval() | {"n": e.n_items})
            if None in both:
                continue
            for measure in both[0]:
                change = both[1][measure].astype(float) - both[0][measure]
                exact = measure == "last_word"
                e = estimate(change[None], params.bootstrap, change=True, exact=exact)
                effects.append({**keys, "measure": measure, **e.interval(), "n": e.n_items})
                if step == scale.steps:
                    final[measure, size] = change
    names = ["size", "step", "percent", "arm", "measure", "value", "low", "high", "n"]
    tables = {
        "levels": pd.DataFrame(levels, columns=names),
        "effects": pd.DataFrame(effects, columns=[n for n in names if n != "arm"]),
    }
    return tables, final, len(gaps)


def memorized_table(params: Params, suite: Suite, progress: bool) -> tuple[pd.DataFrame, int]:
    """Share of its training rows that each final model has memorized, and the number of gaps.

    Columns: size, arm, value, low, high, n. Memorized: given 32 tokens, the model generates the
    next 32 exactly (pythia_core.evaluation.memorization). Intervals resample distinct texts.
    """
    import pandas as pd

    rows, n_gaps = [], 0
    for arm in DATA_ARMS:
        runs = {size: suite[size, arm] for size in params.size_list}
        first = next(iter(runs.values()))
        data, batch, last = first.data, first.config.train.batch_size, first.config.train.steps
        extraction = ExtractionMeasurement(data, batch, last, CONTEXT, CONTEXT)
        _, text = distinct_windows(data.rows.rows(0, batch * last), 2 * CONTEXT)
        arrays_at, gaps = measure_all([(run, last) for run in runs.values()], extraction, progress)
        n_gaps += len(gaps)
        for size, run in runs.items():
            if (run.id, last) not in arrays_at:
                continue
            memorized = arrays_at[run.id, last]["memorized"]
            share = ratio(memorized, np.ones(len(memorized), bool), text, params.bootstrap)
            rows.append({"size": size, "arm": arm, **share.interval(), "n": share.n_items})
    return pd.DataFrame(rows, columns=["size", "arm", "value", "low", "high", "n"]), n_gaps


def tasks_table(
    params: Params, suite: Suite, progress: bool
) -> tuple[pd.DataFrame, dict[str, np.ndarray], int]:
    """Accuracy of the final twins on benchmarks, deduplicated minus standard.

    Returns:
        A table (size, task, shots, value, low, high, n; task "mean": all zero-shot items), the
        zero-shot differences of all tasks by size, and the number of gaps.
    """
    import pandas as pd

    first = next(iter(suite.values()))
    tasks = fitting_tasks(build_tasks(first, list(TASKS), limit=params.limit))
    last = scale_named(params.scale).steps
    scored, gaps = measure_tasks([(run, last) for run in suite.values()], tasks, progress)
    rows: list[dict[str, Any]] = []
    pooled = {}
    for size in params.size_list:
        both = [scored.get((suite[size, arm].id, last)) for arm in DATA_ARMS]
        if None in both:
            continue
        zero_shot = []
        for task in tasks:
            standard, deduplicated = (metrics[task.key]["acc"].astype(float) for metrics in both)
            change = deduplicated - standard
            e = estimate(change[None], params.bootstrap, change=True, exact=True)
            keys = {"size": size, "task": task.name, "shots": task.shots}
            rows.append(keys | e.interval() | {"n": e.n_items})
            if task.shots == 0:
                zero_shot.append(change)
        if zero_shot:
            pooled[size] = np.concatenate(zero_shot)
            e = estimate(pooled[size][None], params.bootstrap, change=True, exact=True)
            keys = {"size": size, "task": "mean", "shots": 0}
            rows.append(keys | e.interval() | {"n": e.n_items})
    names = ["size", "task", "shots", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=names), pooled, len(gaps)


# --- the study -------------------------------------------------------------------------------


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite, deduplicate the text by every recipe, compare the twins.

    Args:
        published: the released numbers; default: from `PYTHIA_PUBLISHED_DIR`, or none.
    """
    published = published or find_published()
    started = time.time()
    suite = train_all(
        params, suite_configs(params.scale, params.size_list, seed=params.seed), progress
    )
    tables = recipes_table(params, progress)
    twins, final, gaps = twins_tables(params, suite, progress)
    memorized, more_gaps = memorized_table(params, suite, progress)
    tasks, accuracy, task_gaps = tasks_table(params, suite, progress)
    final |= {("accuracy", size): change for size, change in accuracy.items()}
    tables |= twins | {"tasks": tasks, "memorized": memorized}
    released = published_deduplication(published)
    pooled = {
        measure: np.mean([final[measure, s] for m, s in final if m == measure], axis=0)
        for measure in dict.fromkeys(measure for measure, _ in final)
    }
    rows = claims(params, pooled, memorized, released)
    numbers = values(params, suite, tables, pooled) | {"gaps": gaps + more_gaps + task_gaps}
    runs = list(suite.values())
    return Result(STUDY, params, tables, numbers, rows, runs, started, released)


def claims(
    params: Params,
    pooled: dict[str, np.ndarray],
    memorized: pd.DataFrame,
    released: pd.DataFrame,
) -> list[dict[str, Any]]:
    """The claims and their verdicts, one dict each.

    The paper finds no clear benefit; an interval entirely on the better side contradicts that.
    """
    rows = []
    for measure, (words, factor, better) in MEASURES.items():
        e, verdict = None, NOT_TESTABLE
        if measure in pooled:
            e = estimate(pooled[measure][None] * factor, params.bootstrap, change=True)
            benefit = e.high < 0 if better < 0 else e.low > 0
            verdict = "not reproduced" if benefit else "reproduced"
        claim = f"Deduplication brings no clear benefit: {words}; mean of "
        claim += f"{', '.join(params.size_list)})"
        paper = "no clear benefit on any task"
        rows.append(claim_row(claim, paper, e, verdict, published_means(released)))
    claim = "Deduplication lowers the share of training rows that are memorized"
    change = None
    largest = memorized[memorized["size"] == params.size_list[-1]].set_index("arm")
    if len(largest) == len(DATA_ARMS):
        standard, deduplicated = (
            Estimate(*largest.loc[arm, ["value", "low", "high"]], 0, 1).times(100)
            for arm in DATA_ARMS
        )
        change = difference(deduplicated, standard)
        claim += f" ({params.size_list[-1]}, points)"
    paper = "not measured; expected since earlier work"
    return [*rows, claim_row(claim, paper, change, partial(premise_verdict, direction=-1))]


def published_means(released: pd.DataFrame) -> str | None:
    """The released differences, averaged over sizes for each number of shots and step, as text."""
    if released.empty:
        return None
    means = released.groupby(["shots", "step"]).value.mean()
    return "accuracy, points: " + ", ".join(
        f"{shots}-shot at step {step:,} {value:+.2f}" for (shots, step), value in means.items()
    )


def values(
    params: Params,
    suite: Suite,
    tables: dict[str, pd.DataFrame],
    pooled: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Name -> number, for prose."""
    recipes = tables["recipes"].set_index("recipe")
    before, after = PILE["tokens"]
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": params.size_list[-1],
        "tokens_before": int(recipes.tokens["none"]),
        "tokens_after": int(recipes.tokens[DEDUP]),
        "percent": float(recipes.percent[DEDUP]),
        "percent_eleutherai": float(recipes.percent["eleutherai-0.87"]),
        "percent_pile": 100 * (1 - after / before),
        "documents_identical": int(recipes.identical[DEDUP]),
        "documents_similar": int(recipes.similar[DEDUP]),
    }
    for measure, change in pooled.items():
        e = estimate(change[None], params.bootstrap, change=True)
        numbers[f"{measure}_change"] = e.interval()
        numbers[f"n_{measure}"] = len(change)
    for row in tables["memorized"].itertuples():
        if row.size == params.size_list[-1]:
            share = Estimate(row.value, row.low, row.high, row.n, 1).times(100)
            numbers[f"memorized_{row.arm}_percent"] = share.interval()
    return numbers
