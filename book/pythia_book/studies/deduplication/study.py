"""What deduplication removes and what it changes (paper sections 2.2, 2.4 and 2.6).

Twins are two models of one size, trained on the standard and on the deduplicated text, from the
same initial weights and for the same number of updates. Ours are trained with several seeds on text
whose documents are repeated as in the Pile. The twins of the suite were trained on other text, in
which a few hundred passages are repeated up to 128 times; they are compared too. For the released
twins, only accuracies and standard errors are known.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.published.deduplication import twin_differences
from pythia_book.studies.deduplication.claims import claims, released_effects
from pythia_book.studies.deduplication.params import (
    CONTEXT,
    STUDY,
    Cell,
    Params,
    texts,
)
from pythia_book.studies.deduplication.tables import HELDOUT, TEXT_ROW, tables, values
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of
from pythia_core.suite import DATA_ARMS, DEDUP, SUITE_SEED, suite_configs

if TYPE_CHECKING:
    from pythia_book.published.results import Published
    from pythia_core.config import DataConfig
    from pythia_core.training.runs import Run

Suite = dict[tuple[str, str], "Run"]
"""Maps (size, arm) to a run."""


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train all twins, deduplicate the text by every recipe, and compare the twins.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """
    measuring, analyzing = partial(measure, params, progress), partial(analyze, params)
    return conduct(STUDY, params, measuring, analyzing, released, published)


def released(published: Published) -> Tables:
    """Return the table `twins`: deduplicated minus standard accuracy over training, in points."""
    return {"twins": twin_differences(published)}


def analyze(params: Params, measured: Measurements, released: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers."""
    frames, effects = tables(params, measured), released_effects(released)
    numbers = values(params, measured, frames, effects)
    return frames, numbers, claims(params, measured, frames, effects)


# --- measuring -------------------------------------------------------------------------------


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the twins and measure the final models.

    Arrays of the twins on text with copies as in the Pile, e.g. of size 25k and seed 1234:

    - "heldout_deduplicated/25k/standard/1234": float32[rows], loss on held-out text in its
      deduplicated form, in nats per token.
    - "once/...", "twice/...", "more/...": float32[rows], loss on text by how often it occurs in the
      standard training text (see `slices`).
    - "last_word/...": bool[words], whether greedy decoding gives the last words of held-out text.
    - "recited/...": bool[rows], whether 32 tokens of a row are recited, for the rows of all groups.
    - "unshared": bool[rows], which rows of held-out text share no text with the training text.

    Arrays of the twins of the suite, whose text has some heavily repeated documents:

    - "loss/25k/standard": float32[rows], loss on held-out text in nats per token.
    - "memorized/25k/standard": bool[texts], whether the model has memorized a text. A text is the
      first 64 tokens of a training row; equal texts are listed once.
    - "rows/standard": int[texts], the number of training rows that begin with each text.
    - "unit/standard": int[texts], the unit of these rows (see `pythia_book.corpora.planted`).

    Facts:

    - "recipes": the rows of the table with this name, for the text with copies as in the Pile.
    - "clusters": [recipe, how often a document occurs, number of such documents], for this text.
    - "suite_recipes", "suite_clusters": the same for the text of the suite.
    - "shares", "slice_shares": see `slices.Slices`.
    - "epochs": how often each arm reads its text.
    - "gaps": the number of unmeasured checkpoints, summed over the measurements.
    """
    from pythia_book.studies.registry import train_all

    twins = train_all(params, params.configs(), progress)
    suite = train_all(params, suite_configs(params.scale, params.suite_sizes), progress)
    recipes, clusters = _texts(texts(params), progress)
    heavy = suite[params.suite_sizes[0], "standard"].config.data
    suite_texts = [replace(heavy, epochs=1, dedup=recipe) for recipe in ("none", DEDUP)]
    suite_recipes, suite_clusters = _texts(suite_texts, progress)
    facts = {
        "recipes": recipes,
        "clusters": clusters,
        "suite_recipes": suite_recipes,
        "suite_clusters": suite_clusters,
    }
    measured = Measurements({}, facts, [*twins.values(), *suite.values()])
    gaps = _twins(params, twins, measured, progress)
    gaps += _suite_loss(suite, measured, progress)
    gaps += _memorized(params, suite, measured, progress)
    measured.facts["gaps"] = gaps
    return measured


def _texts(configs: list[DataConfig], progress: bool) -> tuple[list[list[Any]], list[list[Any]]]:
    """Prepare texts with several recipes; return the facts "recipes" and "clusters"."""
    from pythia_core.data.prepare import prepare

    rows: list[list[Any]] = []
    clusters: list[list[Any]] = []
    for text in configs:
        data = prepare(text, progress)
        report = data.manifest["tokens"]["dedup"]
        removed = report.get("removed", {})
        row = {"recipe": text.dedup, **data.manifest["tokens"]["train"]}
        row |= {"identical": removed.get("exact", 0), "similar": removed.get("near", 0)}
        rows.append([row[name] for name in TEXT_ROW])
        for copies, count in sorted(report.get("clusters", {}).items(), key=lambda c: int(c[0])):
            clusters.append([text.dedup, int(copies), count])
    return rows, clusters


def _twins(params: Params, twins: dict[Cell, Run], measured: Measurements, progress: bool) -> int:
    """Measure the twins on text with copies as in the Pile; return the number of gaps.

    Held-out documents and other text are the same for all twins; only the order of training and the
    initial weights depend on the seed.
    """
    from pythia_book.measurements import measure_each
    from pythia_book.studies.deduplication.slices import (
        GROUPS,
        CopiesMeasurement,
        heldout_once,
        read_slices,
        unshared,
    )

    standard, deduplicated = (twins[params.size_list[0], arm, SUITE_SEED] for arm in DATA_ARMS)
    language = heldout_once(standard.data)
    slices = read_slices(standard.data, deduplicated.data)
    groups = [group for group in GROUPS if group in slices.rows]
    copies = CopiesMeasurement(np.concatenate([slices.rows[g] for g in groups]), CONTEXT)
    ends = np.cumsum([len(slices.rows[g]) for g in groups])[:-1]
    measured.arrays["unshared"] = unshared(language.rows, standard.data)
    measured.facts["shares"] = slices.shares
    measured.facts["slice_shares"] = slices.slice_shares
    train = standard.config.train
    measured.facts["epochs"] = {
        arm: train.steps * train.batch_size / run.data.rows.n_rows * run.config.data.epochs
        for arm, run in (("standard", standard), ("deduplicated", deduplicated))
    }
    cells = [(run, run.config.train.steps) for run in twins.values()]
    results, gaps = measure_each(cells, [language, copies], "twins", progress)
    for (size, arm, seed), run in twins.items():
        if (run.id, run.config.train.steps) not in results:
            continue
        text, repeated = results[run.id, run.config.train.steps]
        losses = {HELDOUT: text["loss"]}
        losses |= dict(zip(groups, np.split(repeated["loss"], ends), strict=True))
        for group, loss in losses.items():
            measured.arrays[name_of(group, size, arm, seed)] = loss.astype(np.float32)
        measured.arrays[name_of("last_word", size, arm, seed)] = text["last_word"].astype(bool)
        measured.arrays[name_of("recited", size, arm, seed)] = repeated["recited"].astype(bool)
    return len(gaps)


def _suite_loss(suite: Suite, measured: Measurements, progress: bool) -> int:
    """Add the held-out loss of the suite's final models; return the number of gaps."""
    from pythia_book.measurements import LanguageMeasurement, measure_all

    language = LanguageMeasurement.of(next(iter(suite.values())).data)
    cells = [(run, run.config.train.steps) for run in suite.values()]
    arrays_at, gaps = measure_all(cells, language, progress)
    for ((size, arm), run), cell in zip(suite.items(), cells, strict=True):
        if (run.id, cell[1]) in arrays_at:
            loss = arrays_at[run.id, cell[1]]["loss"]
            measured.arrays[name_of("loss", size, arm)] = loss.astype(np.float32)
    return len(gaps)


def _memorized(params: Params, suite: Suite, measured: Measurements, progress: bool) -> int:
    """Measure which rows each model of the suite has memorized; return the number of gaps.

    Rows whose first 64 tokens (32 of context, 32 to generate) are equal share one array entry.
    """
    from pythia_book.corpora.planted import planted_ids, units
    from pythia_book.measurements import measure_all
    from pythia_core.evaluation.memorization import ExtractionMeasurement, distinct_windows

    n_gaps = 0
    for arm in DATA_ARMS:
        runs = {size: suite[size, arm] for size in params.suite_sizes}
        first = next(iter(runs.values()))
        data, batch, last = first.data, first.config.train.batch_size, first.config.train.steps
        extraction = ExtractionMeasurement(data, batch, last, CONTEXT, CONTEXT)
        beginnings, text = distinct_windows(data.rows.rows(0, batch * last), 2 * CONTEXT)
        _, example, counts = np.unique(text, return_index=True, return_counts=True)
        continuations = beginnings[:, CONTEXT:]
        unit = units(
            distinct_windows(continuations, CONTEXT)[1], planted_ids(data, continuations)[0]
        )
        for name, numbers in (("rows", counts), ("unit", unit)):
            kind = np.min_scalar_type(int(numbers.max()))
            measured.arrays[name_of(name, arm)] = numbers.astype(kind)
        arrays_at, gaps = measure_all([(run, last) for run in runs.values()], extraction, progress)
        n_gaps += len(gaps)
        for size, run in runs.items():
            if (run.id, last) in arrays_at:
                rows = np.asarray(arrays_at[run.id, last]["memorized"], bool)
                measured.arrays[name_of("memorized", size, arm)] = rows[example]
    return n_gaps
