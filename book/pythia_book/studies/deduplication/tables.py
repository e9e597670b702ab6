"""Compute the tables and values of the deduplication study from its measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import Estimate, estimate
from pythia_book.studies.deduplication.crossed import crossed_mean
from pythia_book.studies.memorization.tables import ratio
from pythia_core.data.dedup import RECIPES, s_curve
from pythia_core.suite import DATA_ARMS, DEDUP, scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.deduplication.params import Params
    from pythia_book.study import Measurements

PILE_TOKENS = (334e9, 207e9)
"""Tokens of the Pile before and after deduplication (paper section 2.4)."""
TEXT_ROW = ("recipe", "documents", "tokens", "identical", "similar")
FACTORS = {"loss": 1, "last_word": 100, "accuracy": 100}
"""Factors that convert table values to the page's units: shares become percentages."""


def tables(params: Params, measured: Measurements) -> dict[str, pd.DataFrame]:
    """Return all tables of the study.

    - `recipes`: `recipe`, `documents` and `tokens` left, documents removed as `identical` or
      `similar`, `percent` of tokens removed.
    - `clusters`: `recipe`, `copies` per cluster, numbers of such `clusters` and their `documents`.
    - `caught`: `recipe`, `similarity` (Jaccard), `probability` of finding two documents so similar.
    - `levels`: `size`, `arm`, `measure`, `step`, `percent` of training, and the mean over n items.
    - `effects`: the columns of `levels` except `arm`. The values are paired differences,
      deduplicated minus standard.
    - `tasks`: `size`, `task`, `shots`, and the paired difference in final accuracy. The task "mean"
      has all zero-shot items.
    - `memorized`: `size`, `arm`, and the share of training rows that the final model has memorized;
      the interval resamples distinct texts.

    From `levels` on, each table ends with `value`, `low`, `high` and `n`.
    """
    import pandas as pd

    recipes = pd.DataFrame(measured.facts["recipes"], columns=TEXT_ROW)
    recipes["percent"] = 100 * (1 - recipes.tokens / recipes.tokens.iloc[0])
    names = ["recipe", "copies", "clusters"]
    clusters = pd.DataFrame(measured.facts["clusters"], columns=names)
    clusters["documents"] = clusters.copies * clusters.clusters
    levels, effects = _over_training(params, measured)
    return {
        "recipes": recipes,
        "clusters": clusters,
        "caught": _caught(),
        "levels": levels,
        "effects": effects,
        "tasks": _tasks(params, measured),
        "memorized": _memorized(params, measured),
    }


def _caught() -> pd.DataFrame:
    """Return the table `caught`, without recipes that only remove identical documents."""
    import pandas as pd

    rows = []
    for name, recipe in RECIPES.items():
        if not recipe.buckets:
            continue
        bands = recipe.buckets, recipe.hashes_per_bucket
        for similarity in np.linspace(0, 1, 101).round(2):
            verified_away = recipe.verify and similarity < recipe.threshold
            probability = 0.0 if verified_away else float(s_curve(similarity, *bands))
            rows.append({"recipe": name, "similarity": similarity, "probability": probability})
    return pd.DataFrame(rows)


def change(measured: Measurements, measure: str, size: str, *rest: Any) -> np.ndarray | None:
    """Return deduplicated minus standard scores, float[items]; None if a model was not measured.

    Args:
        rest: the rest of the array's name, i.e. the step or the key of a task.
    """
    standard, deduplicated = (measured.get(measure, size, arm, *rest) for arm in DATA_ARMS)
    if standard is None or deduplicated is None:
        return None
    return deduplicated.astype(float) - standard


def pooled(params: Params, measured: Measurements, measure: str) -> np.ndarray | None:
    """Return the result of `change` for the final models of each size, float[sizes, items].

    The items of "accuracy" are those of all zero-shot tasks. A size without all of its scores is
    left out; the result is None if no size is left.
    """
    last = scale_named(params.scale).steps
    keys = zero_shot(measured) if measure == "accuracy" else [last]
    rows = []
    for size in params.size_list:
        parts = [change(measured, measure, size, key) for key in keys]
        known = [part for part in parts if part is not None]
        if known and len(known) == len(parts):
            rows.append(np.concatenate(known))
    return np.stack(rows) if rows else None


def zero_shot(measured: Measurements) -> list[str]:
    """Return the keys of the measured zero-shot tasks, e.g. "piqa_0"."""
    return [key for key, (_, shots) in measured.facts["tasks"].items() if shots == 0]


def _over_training(params: Params, measured: Measurements) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables `levels` (every model's scores) and `effects` (differences of twins)."""
    import pandas as pd

    last = scale_named(params.scale).steps
    levels, effects = [], []
    for size in params.size_list:
        for step in params.steps:
            for measure in ("loss", "last_word"):
                keys = {"size": size, "step": step, "percent": 100 * step / last}
                keys["measure"] = measure
                exact = measure == "last_word"
                for arm in DATA_ARMS:
                    values = measured.get(measure, size, arm, step)
                    if values is not None:
                        e = estimate(values[None], params.bootstrap, exact=exact)
                        levels.append(keys | {"arm": arm} | e.interval() | {"n": e.n_items})
                differences = change(measured, measure, size, step)
                if differences is not None:
                    e = estimate(differences[None], params.bootstrap, change=True, exact=exact)
                    effects.append(keys | e.interval() | {"n": e.n_items})
    names = ["size", "step", "percent", "arm", "measure", "value", "low", "high", "n"]
    frames = pd.DataFrame(levels, columns=names), pd.DataFrame(effects, columns=names)
    return frames[0], frames[1].drop(columns="arm")


def _tasks(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the table `tasks`: how the final twins differ in accuracy, task by task."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for size in params.size_list:
        changes = {
            key: values
            for key in measured.facts["tasks"]
            if (values := change(measured, "accuracy", size, key)) is not None
        }
        named = [(*measured.facts["tasks"][key], values) for key, values in changes.items()]
        known = [changes[key] for key in zero_shot(measured) if key in changes]
        if known:
            named.append(("mean", 0, np.concatenate(known)))
        for task, shots, values in named:
            e = estimate(values[None], params.bootstrap, change=True, exact=True)
            keys = {"size": size, "task": task, "shots": shots}
            rows.append(keys | e.interval() | {"n": e.n_items})
    return pd.DataFrame(rows, columns=["size", "task", "shots", "value", "low", "high", "n"])


def _memorized(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the table `memorized`: the share of training rows that each final model memorized."""
    import pandas as pd

    rows = []
    for arm in DATA_ARMS:
        counts = measured.get("rows", arm)
        for size in params.size_list:
            memorized = measured.get("memorized", size, arm)
            if memorized is None or counts is None:
                continue
            text = np.repeat(np.arange(len(counts)), counts)
            share = ratio(memorized[text], np.ones(len(text), bool), text, params.bootstrap)
            rows.append({"size": size, "arm": arm, **share.interval(), "n": share.n_items})
    return pd.DataFrame(rows, columns=["size", "arm", "value", "low", "high", "n"])


# --- for prose -------------------------------------------------------------------------------


def values(
    params: Params,
    measured: Measurements,
    frames: dict[str, pd.DataFrame],
    released: dict[str, Estimate | None],
) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name; None if not measured or not released.

    Changes are deduplicated minus standard, averaged over sizes, in points or nats per token.
    """
    recipes = frames["recipes"].set_index("recipe")
    before, after = PILE_TOKENS
    largest = params.size_list[-1]
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": largest,
        "tokens_before": int(recipes.tokens["none"]),
        "tokens_after": int(recipes.tokens[DEDUP]),
        "percent": float(recipes.percent[DEDUP]),
        "percent_eleutherai": float(recipes.percent["eleutherai-0.87"]),
        "percent_pile": 100 * (1 - after / before),
        "documents_identical": int(recipes.identical[DEDUP]),
        "documents_similar": int(recipes.similar[DEDUP]),
        "gaps": measured.facts["gaps"],
        **{f"released_{name}": e and e.interval() for name, e in released.items()},
    }
    for measure, factor in FACTORS.items():
        changes = pooled(params, measured, measure)
        e = None if changes is None else crossed_mean(factor * changes)
        numbers[f"{measure}_change"] = e and e.interval()
        numbers[f"n_{measure}"] = 0 if changes is None else changes.shape[1]
    for row in frames["memorized"].itertuples():
        if row.size == largest:
            share = Estimate(row.value, row.low, row.high, row.n, 1).times(100)
            numbers[f"memorized_{row.arm}_percent"] = share.interval()
    return numbers
