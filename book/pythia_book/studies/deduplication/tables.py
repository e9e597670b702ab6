"""Computes the tables and values of the deduplication study from its measurements."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.clustered import crossed_mean, ratio
from pythia_book.corpora.pile_copies import (
    EPOCHS,
    MOST,
    NEAR_EXPONENT,
    NEAR_SHARE,
    exact_shares,
)
from pythia_book.stats import Estimate, estimate, mean_over_known, negated
from pythia_book.studies.deduplication.params import KNOWN_SD, KNOWN_STEP, MARGIN
from pythia_book.study import name_of
from pythia_core.data.dedup import RECIPES, s_curve
from pythia_core.suite import DATA_ARMS, DEDUP

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.deduplication.params import Params
    from pythia_book.study import Measurements

PILE_TOKENS = (334e9, 207e9)
"""Tokens of the Pile before and after deduplication (paper section 2.4)."""
PILE_CLUSTERS = (210_607_728, 139e6, 64.6e6)
"""Documents of the Pile; documents with an identical copy; different texts among the latter
(Elazar et al. 2024, Table 2 and section 4.3.2)."""
TEXT_ROW = ("recipe", "documents", "tokens", "identical", "similar")
REPEATED = ("twice", "more")
"""The groups of documents that occur more than once in the standard text."""
GROUPS = ("once", *REPEATED)
"""The groups of documents by how often they occur; the keys of `slices.GROUPS`."""
HELDOUT, HELDOUT_STANDARD = "heldout_deduplicated", "heldout_standard"
"""The measures of loss on held-out text: in its deduplicated form, and with its copies."""
QUOTED = (
    "changes_heldout_deduplicated", "changes_heldout_deduplicated_smallest",
    "changes_heldout_deduplicated_largest", "changes_heldout_standard", "changes_unshared",
    "changes_once", "changes_twice", "changes_more",
    "memory_once", "memory_twice", "memory_more", "memory_repeated", "memory_standard_text",
)  # fmt: skip
"""The rows of the tables `changes` and `memory` that the page quotes."""
ALL = "all"
"""The name of the mean over sizes in the tables `changes` and `memory`."""


def tables(params: Params, measured: Measurements) -> dict[str, pd.DataFrame]:
    """Return all tables of the study.

    - `recipes`: `recipe`, `documents` and `tokens` left, documents removed as `identical` or
      `similar`, `percent` of tokens removed, for the text with copies as in the Pile.
    - `repetition`: how repetitive the Pile and our two texts are, by `text`: `percent` of tokens
      that deduplication removes, `copied`: percentage of documents that have a copy, `per_cluster`:
      copies per document that has any, on average, `most`: the largest such number.
    - `caught`: `recipe`, `similarity` (Jaccard), `probability` that two such documents are found.
    - `changes`: how deduplication changes a `measure` (see `changes`), by `size` or over all sizes,
      with an interval over `n` seeds.
    - `memory`: how much more of a text a deduplicated model has memorized than its twin, by `size`
      and the `group` of the text (see `memory`), with an interval over `n` seeds.
    - `effects`: deduplicated minus standard loss of the final models of the suite by `size`, with
      an interval over `n` held-out rows.
    - `memorized`: `size`, `arm`, and the share of training rows that each final model of the suite
      has memorized. The interval resamples units (see `pythia_book.corpora.planted`).

    From `changes` on, each table ends with `value`, `low`, `high` and `n`.
    """
    recipes = _recipes(measured.facts["recipes"])
    measures = (HELDOUT, HELDOUT_STANDARD, "unshared", *GROUPS, "last_word")
    memories = (*GROUPS, "repeated", "standard text")
    return {
        "recipes": recipes,
        "repetition": _repetition(measured, recipes),
        "caught": _caught(),
        "changes": _over_seeds(
            params, "measure", {m: changes(params, measured, m) for m in measures}
        ),
        "memory": _over_seeds(params, "group", {g: memory(params, measured, g) for g in memories}),
        "effects": _effects(params, measured),
        "memorized": _memorized(params, measured),
    }


def _recipes(rows: list[list[Any]]) -> pd.DataFrame:
    """Return the table `recipes` of a text."""
    import pandas as pd

    recipes = pd.DataFrame(rows, columns=TEXT_ROW)
    recipes["percent"] = 100 * (1 - recipes.tokens / recipes.tokens.iloc[0])
    return recipes


def _repetition(measured: Measurements, recipes: pd.DataFrame) -> pd.DataFrame:
    """Return the table `repetition`."""
    import pandas as pd

    documents, copied, clusters = PILE_CLUSTERS
    before, after = PILE_TOKENS
    rows: list[dict[str, Any]] = [
        {
            "text": "the Pile",
            "percent": 100 * (1 - after / before),
            "copied": 100 * copied / documents,
            "per_cluster": copied / clusters,
            "most": None,
        }
    ]
    suite = _recipes(measured.facts["suite_recipes"])
    for text, frame, counts in (
        ("copies as in the Pile", recipes, measured.facts["clusters"]),
        ("heavily repeated", suite, measured.facts["suite_clusters"]),
    ):
        sizes = _clusters(counts, DEDUP)
        copied, per_cluster = _copies(sizes)
        rows.append(
            {
                "text": text,
                "percent": float(frame.percent[frame.recipe == DEDUP].iloc[0]),
                "copied": copied,
                "per_cluster": per_cluster,
                "most": max(sizes, default=1),
            }
        )
    return pd.DataFrame(rows)


def _clusters(counts: list[list[Any]], recipe: str) -> dict[int, int]:
    """Return how many documents occur how often by a recipe; see `study.measure` for `counts`."""
    return {copies: count for name, copies, count in counts if name == recipe}


def _copies(clusters: dict[int, int]) -> tuple[float, float]:
    """Return the percentage of documents with a copy, and how often such a document occurs."""
    several = {copies: count for copies, count in clusters.items() if copies > 1}
    n = sum(copies * count for copies, count in several.items())
    documents = sum(copies * count for copies, count in clusters.items())
    return 100 * n / max(1, documents), n / max(1, sum(several.values()))


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


# --- twins on text with copies as in the Pile ------------------------------------------------


def changes(params: Params, measured: Measurements, measure: str) -> np.ndarray:
    """Return deduplicated minus standard in a final measure, float[seeds, sizes].

    A pair of twins that was not measured is NaN.

    Args:
        measure: one of
            HELDOUT: loss on held-out text in its deduplicated form.
            HELDOUT_STANDARD: loss on a held-out slice of the standard corpus (see `slices`).
            "unshared": loss on the rows of HELDOUT that share no text with the training text.
            "once", "twice", "more": loss on text by how often it occurs in the standard text.
            "last_word": held-out last words predicted, in points.
    """
    if measure == HELDOUT_STANDARD:
        names = {"unread": HELDOUT}
        parts = measured.facts["slice_shares"].items()
        return sum(s * changes(params, measured, names.get(part, part)) for part, s in parts)
    array, factor = {"unshared": (HELDOUT, 1), "last_word": ("last_word", 100)}.get(
        measure, (measure, 1)
    )
    rows = measured.arrays["unshared"] if measure == "unshared" else slice(None)
    result = np.full((params.seeds, len(params.size_list)), np.nan)
    for i, seed in enumerate(params.seed_values):
        for j, size in enumerate(params.size_list):
            standard, deduplicated = (measured.get(array, size, arm, seed) for arm in DATA_ARMS)
            if standard is not None and deduplicated is not None:
                difference = (deduplicated.astype(float) - standard)[rows]
                result[i, j] = factor * difference.mean() if len(difference) else np.nan
    return result


def memory(params: Params, measured: Measurements, group: str) -> np.ndarray:
    """Return how much more a deduplicated model has memorized than its twin, float[seeds, sizes].

    What a model has memorized of a text is its loss on held-out text (HELDOUT) minus its loss on
    this text, in nats per token. In the difference between twins, anything that makes one text
    easier than another cancels out.

    Args:
        group: "once", "twice" or "more": how often the text occurs in the standard text; "repeated"
            (more than once) or "standard text" (all of it), where every copy counts.
    """
    shares = measured.facts["shares"]
    members = {"repeated": REPEATED, "standard text": GROUPS}.get(group, (group,))
    known = {member: shares[member] for member in members if member in shares}
    if not known:
        return np.full((params.seeds, len(params.size_list)), np.nan)
    own = sum(share * changes(params, measured, member) for member, share in known.items())
    return changes(params, measured, HELDOUT) - own / sum(known.values())


def over_seeds(values: np.ndarray) -> Estimate | None:
    """Estimate the mean over sizes of float[seeds, sizes], with an interval over seeds.

    A seed sets both the initial weights and the order of the data of all its sizes, so it is one
    unit. A seed without all sizes is left out; the result is None if no seed is left.
    """
    return mean_over_known(values.mean(1))


def _over_seeds(params: Params, name: str, values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return a table of estimates for each key of `values`, which is in the column `name`.

    Each key has one estimate per size, and one over all sizes.
    """
    import pandas as pd

    rows = []
    for key, array in values.items():
        columns = dict(zip(params.size_list, array.T[..., None], strict=True))
        for size, column in {**columns, ALL: array}.items():
            e = over_seeds(column)
            if e is not None:
                rows.append({name: key, "size": size, **e.interval(), "n": e.n_seeds})
    return pd.DataFrame(rows, columns=[name, "size", "value", "low", "high", "n"])


# --- the suite's twins, on heavily repeated text ---------------------------------------------


def pooled(params: Params, measured: Measurements) -> np.ndarray | None:
    """Return deduplicated minus standard held-out loss of the suite's twins, float[sizes, rows].

    A size without both models is left out; the result is None if no size is left.
    """
    rows = [_change(measured, size) for size in params.suite_sizes]
    known = [row for row in rows if row is not None]
    return np.stack(known) if known else None


def _change(measured: Measurements, size: str) -> np.ndarray | None:
    """Return deduplicated minus standard held-out loss, float[rows]; None without both models."""
    standard, deduplicated = (measured.get("loss", size, arm) for arm in DATA_ARMS)
    if standard is None or deduplicated is None:
        return None
    return deduplicated.astype(float) - standard


def _effects(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the table `effects`: how deduplication changes the loss of the suite's twins."""
    import pandas as pd

    rows = []
    for size in params.suite_sizes:
        differences = _change(measured, size)
        if differences is not None:
            e = estimate(differences[None], params.bootstrap, change=True)
            rows.append({"size": size, **e.interval(), "n": e.n_items})
    return pd.DataFrame(rows, columns=["size", "value", "low", "high", "n"])


def _memorized(params: Params, measured: Measurements) -> pd.DataFrame:
    """Return the table `memorized`: the share of training rows that the models have memorized."""
    import pandas as pd

    rows = []
    for arm in DATA_ARMS:
        counts, unit = (measured.arrays[name_of(name, arm)] for name in ("rows", "unit"))
        unit = np.repeat(unit, counts)
        for size in params.suite_sizes:
            memorized = measured.get("memorized", size, arm)
            if memorized is None:
                continue
            read = np.repeat(memorized, counts)
            share = ratio(read, np.ones_like(read), unit, params.bootstrap)
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

    Changes are deduplicated minus standard, in points or nats per token.
    """
    before, after = PILE_TOKENS
    raw = sum(size for size, _ in EPOCHS.values())
    effective = sum(size * epochs for size, epochs in EPOCHS.values())
    smallest, largest = params.size_list[0], params.size_list[-1]
    repetition = frames["repetition"].set_index("text")
    effects = frames["effects"].set_index("size").value
    facts, unshared = measured.facts, measured.arrays["unshared"]
    heavy = pooled(params, measured)
    identical = _clusters(facts["clusters"], "exact")
    copied, per_cluster = _copies(identical) if identical else (None, None)
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "smallest": smallest,
        "largest": largest,
        "seeds": params.seeds,
        "margin": MARGIN,
        "margin_percent": 100 * MARGIN / KNOWN_STEP,
        "known_step": KNOWN_STEP,
        "known_sd": KNOWN_SD,
        "next_step_smallest": _next_step(params, measured, params.size_list[0]),
        "next_step_largest": _next_step(params, measured, params.size_list[-1]),
        "percent": float(repetition.percent["heavily repeated"]),
        "percent_as_in_the_pile": float(repetition.percent["copies as in the Pile"]),
        "percent_pile": float(repetition.percent["the Pile"]),
        **{
            f"percent_{recipe.split('-')[0]}": float(percent)
            for recipe, percent in frames["recipes"][["recipe", "percent"]].itertuples(index=False)
        },
        "pile_tokens_before": before / 1e9,
        "pile_tokens_after": after / 1e9,
        "percent_epochs": 100 * (1 - raw / effective),
        "components": len(EPOCHS),
        "components_repeated": sum(epochs > 1 for _, epochs in EPOCHS.values()),
        **{f"occur_{n}_percent": 100 * share for n, share in exact_shares().items()},
        "near_percent": 100 * NEAR_SHARE,
        "near_exponent": NEAR_EXPONENT,
        "near_most": MOST,
        "heavy_most": float(repetition.most["heavily repeated"]),
        "copied_percent_pile": float(repetition.copied["the Pile"]),
        "per_cluster_pile": float(repetition.per_cluster["the Pile"]),
        "copied_percent_identical": copied,
        "per_cluster_identical": per_cluster,
        "unshared_percent": 100 * float(unshared.mean()),
        "gaps": facts["gaps"],
        **{f"epochs_{arm}": times for arm, times in facts["epochs"].items()},
        **{
            f"slice_{group}_percent": 100 * facts["slice_shares"].get(group, 0.0)
            for group in ("unread", "once")
        },
        **{f"released_{name}": e and e.interval() for name, e in released.items()},
        "loss_change": None if heavy is None else crossed_mean(heavy).interval(),
        "loss_change_same_sizes": float(effects.reindex([*params.size_list]).mean()),
    }
    for table, key in (("changes", "measure"), ("memory", "group")):
        for row in frames[table].itertuples():
            size = {ALL: "", smallest: "_smallest", largest: "_largest"}.get(row.size, "_other")
            name = f"{table}_{getattr(row, key)}{size}".replace(" ", "_")
            if name in QUOTED:
                numbers[name] = {"value": row.value, "low": row.low, "high": row.high}
    for name, source in (
        ("lowers_heldout_deduplicated", "changes_heldout_deduplicated"),
        ("lowers_loss", "loss_change"),
    ):
        if (change := numbers.get(source)) is not None:
            numbers[name] = negated(change)
    sampled = measured.get("recited", params.size_list[0], DATA_ARMS[0], params.seed_values[0])
    numbers["recited_rows"] = None if sampled is None else len(sampled)
    recited = {arm: _recited(params, measured, arm) for arm in DATA_ARMS}
    numbers |= {f"recited_{arm}_percent": share for arm, share in recited.items()}
    for row in frames["memorized"].itertuples():
        if row.size == params.suite_sizes[-1]:
            ends = {"value": row.value, "low": row.low, "high": row.high}
            numbers[f"memorized_{row.arm}_percent"] = {k: 100 * v for k, v in ends.items()}
    return numbers


def _next_step(params: Params, measured: Measurements, size: str) -> float | None:
    """Return the loss of the suite's standard model minus that of the next size, nats per token.

    None if a model was not measured.
    """
    sizes = params.suite_sizes
    following = sizes[sizes.index(size) + 1 :] if size in sizes else ()
    pair = [measured.get("loss", each, "standard") for each in (size, *following[:1])]
    if len(pair) < 2 or any(array is None for array in pair):
        return None
    return float(np.mean(pair[0]) - np.mean(pair[1]))


def _recited(params: Params, measured: Measurements, arm: str) -> float | None:
    """Return the percentage of sampled training rows recited, over all twins of an arm."""
    cells = [(size, arm, seed) for size in params.size_list for seed in params.seed_values]
    shares = [a.mean() for cell in cells if (a := measured.get("recited", *cell)) is not None]
    return 100 * float(np.mean(shares)) if shares else None
