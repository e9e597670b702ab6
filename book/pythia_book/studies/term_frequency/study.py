"""Do models know frequent terms better? (Paper section 3.3.)

Numbers and words are counted in the training data up to each checkpoint. Models are asked sums with
every first operand, and which word a definition defines. The paper compares the most with the least
frequent tenth of the operands. But small numbers are frequent, and may be easier to add. So an
experiment is planted in the corpus (pythia_book.corpora.equations): of two operands of similar
frequency, a coin flip chose one that was made more frequent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pythia_book.corpora import equations
from pythia_book.corpora.miniature import sampled
from pythia_book.measurements import measure_all
from pythia_book.published.results import find as find_published
from pythia_book.published.tables import arithmetic_table
from pythia_book.studies.registry import train_all
from pythia_book.studies.term_frequency.arithmetic import ArithmeticMeasurement
from pythia_book.studies.term_frequency.claims import claims
from pythia_book.studies.term_frequency.definitions import (
    DefinitionMeasurement,
    definition_items,
    words_and_lines,
)
from pythia_book.studies.term_frequency.params import INDICES, STUDY, Params
from pythia_book.studies.term_frequency.tables import (
    COINS,
    Measured,
    NumberScores,
    accuracy_table,
    cell,
    curves_table,
    definitions_table,
    experiment_table,
    frequency_table,
    gaps_table,
    number_terms,
    tenths,
)
from pythia_book.study import Result
from pythia_book.term_counts import SurfaceTerms, TermCounts, count_terms
from pythia_core.config import DOMAINS_OF
from pythia_core.data.prepare import prepare
from pythia_core.data.tokenizer import token_bytes
from pythia_core.errors import DataError
from pythia_core.suite import scale_named, suite_configs

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_core.training.runs import Run


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train one half of the suite, count terms, and score sums and definitions."""
    published = published or find_published()
    started = time.time()
    scale = scale_named(params.scale)
    configs = suite_configs(params.scale, params.size_list, (params.arm,), params.seed)
    config = configs[params.size_list[0], params.arm]
    data, length = prepare(config.data, progress), config.model.max_seq_len
    # before training, because the examples may not fit
    sums = {s: ArithmeticMeasurement.of(data, s, length) for s in params.shot_list}
    suite = train_all(params, configs, progress)
    runs = {size: suite[size, params.arm] for size in params.size_list}
    smallest = runs[params.size_list[0]]
    steps = sorted({scale.fork_step(index) for index in INDICES} - {0})
    words = _definitions(smallest, length, progress)
    counts = _count(smallest, words, steps, progress)
    measured, gaps = _measure(runs, steps, [*sums.values(), words], progress)

    planted_in = sampled(data.config.domains, data.config.corpus)
    natural = equations.natural_counts(text for _, text in planted_in)
    scores = NumberScores(measured, sums)
    sizes, last, draws = params.size_list, steps[-1], params.bootstrap
    frequency = frequency_table(counts, natural)
    tables = {
        "frequency": frequency,
        "accuracy": accuracy_table(scores, sizes, steps, draws),
        "curves": curves_table(scores, frequency, sizes, steps, draws),
        "gaps": gaps_table(scores, frequency, sizes, steps, draws),
        "experiment": experiment_table(scores, frequency, natural, sizes, last, draws),
        "definitions": definitions_table(measured, words, counts, sizes, steps, draws),
    }
    rows = claims(params, scores, tables, steps)
    numbers = values(params, tables, steps, words) | {"gaps": gaps}
    released = arithmetic_table(published and published.path)
    return Result(STUDY, params, tables, numbers, rows, list(runs.values()), started, released)


# --- counting and asking ---------------------------------------------------------------------


def _definitions(run: Run, length: int, progress: bool) -> DefinitionMeasurement:
    data = run.data.config
    if data.corpus in DOMAINS_OF and "dictionary" in data.domains:
        frequency, lines, training = words_and_lines(data, progress)
        try:
            items = definition_items(lines, training, frequency)
        except DataError:  # the corpus is too small, which leaves a gap in the tables
            items = []
        return DefinitionMeasurement.of(items, run.data, length)
    return DefinitionMeasurement((), (), length)


def _count(run: Run, words: DefinitionMeasurement, steps: list[int], progress: bool) -> TermCounts:
    """Count terms in the rows that the run has read; also save them as Parquet in its folder."""
    numbers, in_sums = number_terms()
    terms = [*numbers, *in_sums, *dict.fromkeys(item.words[0] for item in words.items)]
    surface = SurfaceTerms(terms, token_bytes(run.data.tokenizer), ignore_case=True)
    counts = count_terms(run.data.rows, surface, steps, run.config.train.batch_size, progress)
    counts.save(run.folder / "evaluations" / "terms.parquet")
    return counts


def _measure(
    runs: dict[str, Run], steps: list[int], measurements: list[Any], progress: bool
) -> tuple[Measured, int]:
    """All measurements of all runs, and the number of checkpoints with a gap."""
    measured: Measured = {}
    missing = set()
    sizes = {run.id: size for size, run in runs.items()}
    for measurement in measurements:
        cells = [(run, step) for run in runs.values() for step in steps]
        arrays, gaps = measure_all(cells, measurement, progress)
        missing |= {(gap.run_id, gap.step) for gap in gaps}
        measured |= {
            (sizes[run_id], step, measurement.name): scores
            for (run_id, step), scores in arrays.items()
        }
    return measured, len(missing)


def values(
    params: Params,
    tables: dict[str, pd.DataFrame],
    steps: list[int],
    words: DefinitionMeasurement,
) -> dict[str, Any]:
    """Numbers quoted in the page's text: the largest size at the end with the most examples."""
    size, step, shots = params.size_list[-1], steps[-1], params.shot_list[-1]
    last = tables["frequency"][tables["frequency"].step == step].set_index("number")
    top, bottom = tenths(tables["frequency"], step)
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": size,
        "arm": params.arm,
        "shots": shots,
        "sums_read": int(last.in_sums.sum()),
        "most_frequent_read": int(last.in_sums[top].median()),
        "least_frequent_read": int(last.in_sums[bottom].median()),
        "numbers_unread": int((last.in_sums == 0).sum()),
        "n_definitions": len(words.items),
    }
    for name, table, k, keys in (
        ("exact", "accuracy", shots, {"measure": "exact", "pairs": "held out", "step": step}),
        ("choice", "accuracy", 0, {"measure": "choice", "pairs": "held out", "step": step}),
        ("gap", "gaps", shots, {"measure": "exact", "step": step}),
        ("gap_choice", "gaps", 0, {"measure": "choice", "step": step}),
        *((coin, "experiment", shots, {"measure": "exact", "coin": coin}) for coin in COINS),
    ):
        if e := cell(tables[table], size=size, shots=k, **keys):
            numbers[name] = {"value": 100 * e.value, "low": 100 * e.low, "high": 100 * e.high}
    boost = tables["experiment"][tables["experiment"].coin == "boost"]
    if len(boost):
        numbers["boost_ratio"] = float(boost.ratio.iloc[0])
    return numbers
