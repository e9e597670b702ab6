"""Do models know frequent terms better? (Paper section 3.3.)

Numbers and words are counted in the training data up to each checkpoint. Models are tested on sums,
and on choosing the word that fits a definition. The paper compares sums by the frequency of the
first operand. But small numbers are frequent, and may be easier to add. So an experiment is planted
in the corpus (pythia_book.corpora.equations): numbers of similar frequency are paired, and a coin
flip decides which number of each pair is made more frequent.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.conduct import conduct
from pythia_book.corpora import equations
from pythia_book.corpora.miniature import number_counts
from pythia_book.published.tables import arithmetic_table
from pythia_book.stats import Estimate, difference
from pythia_book.studies.term_frequency import claims as c
from pythia_book.studies.term_frequency.examples import (
    AnswerMeasurement,
    answers_table,
    examples_table,
)
from pythia_book.studies.term_frequency.params import INDICES, STUDY, Params
from pythia_book.studies.term_frequency.tables import (
    NumberScores,
    accuracy_table,
    cell,
    curves_table,
    definitions_table,
    effects_table,
    experiment_table,
    frequency_table,
    gaps_table,
    released_table,
    selected,
    tenths,
)
from pythia_book.study import Analysis, Measurements, Result, Tables, name_of

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.studies.term_frequency.definitions import DefinitionMeasurement
    from pythia_book.tasks.arithmetic import ArithmeticMeasurement
    from pythia_book.term_counts import TermCounts
    from pythia_core.training.runs import Run

RELEASED_SHOTS = 16
"""The number of solved examples before a sum in the paper's Figure 7."""


def run(params: Params, progress: bool = True, published: Published | None = None) -> Result:
    """Find or train the suite on one text, count terms in it, and score sums and definitions.

    Without `published`, released numbers are from `PYTHIA_PUBLISHED_DIR` or a record of the study.
    """
    return conduct(
        STUDY,
        params,
        partial(measure, params, progress),
        partial(analyze, params),
        released,
        published,
        seed_bands=True,
    )


def analyze(params: Params, measured: Measurements, published: Tables) -> Analysis:
    """Compute tables, values and claims from the measurements and the released numbers."""
    scores = NumberScores(measured)
    sizes, shots = params.size_list, params.shot_list
    tables = {
        "frequency": frequency_table(scores),
        "accuracy": accuracy_table(scores, sizes, shots),
        "curves": curves_table(scores, sizes, shots),
        "gaps": gaps_table(scores, sizes, shots),
        "experiment": experiment_table(scores, sizes, shots),
        "effects": effects_table(scores, c.larger_half(sizes), shots[-1]),
        "definitions": definitions_table(measured, sizes),
        "examples": examples_table(scores, sizes[-1], shots[-1]),
        "answers": answers_table(scores, sizes[-1], shots[-1]),
        "arithmetic": released_table(published.get("arithmetic")),
    }
    operands = published.get("operands")
    operands = arithmetic_table(None) if operands is None else operands
    numbers = values(params, scores, tables) | released_values(operands)
    arithmetic = selected(tables["arithmetic"], operation="addition", step=143_000)
    large = arithmetic[arithmetic.model.isin(c.LARGE)].groupby("shots").value.mean()
    for shots in (0, 2):
        numbers[f"released_large_{shots}"] = 100 * float(large[shots]) if shots in large else None
    products = selected(tables["arithmetic"], operation="multiplication", step=143_000)
    products = products[(products.shots == RELEASED_SHOTS) & products.model.isin(c.LARGE)].value
    whole = len(products) == len(c.LARGE)
    numbers["released_products"] = 100 * float(products.mean()) if whole else None
    return tables, numbers, c.claims(params, scores, tables, operands)


def released(published: Published) -> Tables:
    """Return two tables of released accuracies (0 to 1); no tables if none were released.

    `arithmetic`: `model`, `operation`, `shots`, `step`, and the `mean`, `sd` and `n` of the
        accuracies over first operands.
    `operands`: `model`, `step`, `number` (the first operand) and `value` (accuracy on sums after 16
        examples), at steps 13,000, 65,000 and 143,000.
    """
    table = arithmetic_table(published.path)
    if table.empty:
        return {}
    keys = ["model", "operation", "shots", "step"]
    means = table.groupby(keys).value.agg(mean="mean", sd="std", n="size").reset_index()
    chosen = (table.operation == "addition") & (table.shots == RELEASED_SHOTS)
    steps = table.step.isin((13_000, 65_000, 143_000))
    operands = table[chosen & steps][["model", "step", "number", "value"]]
    return {"arithmetic": means, "operands": operands.reset_index(drop=True)}


# --- counting and asking ---------------------------------------------------------------------


def measure(params: Params, progress: bool = True) -> Measurements:
    """Find or train the models, count what they read, and test them on sums and definitions.

    Arrays on the numbers 0 to 99:
    `natural`: int32[numbers], their counts in the text before sums are planted;
    `in_sums/STEP`: int32[numbers], how often each number was read as a first operand up to STEP.

    Arrays on the sums that were never planted:
    `first`, `second`: int8[sums], the operands;
    `answer/SIZE/STEP/SHOTS`: int16[sums], the number that the largest model writes, or NO_NUMBER;
        only at the last step, after the most examples;
    `exact/SIZE/STEP/SHOTS`: bool[sums], whether the model writes the right answer;
    `choice/SIZE/STEP/0`: bool[sums], whether the right answer is likelier than three wrong ones;
    `logprob/SIZE/STEP/SHOTS`: float32[sums], log-probability of the right answer in nats; after
        examples, only at the last step;
    `margin/SIZE/STEP/0`: float32[sums], this minus the mean log-probability of the three wrong
    answers, in nats; only at the last step.

    Arrays on definitions, where STEP is the last step:
    `definition_read`: bool[items], whether the definition is in the training text;
    `word_read/STEP`: int32[items], how often models have read the defined word;
    `definition/SIZE/STEP`: bool[items], whether the model picks the defined word out of four.

    Facts: `steps` (of the checkpoints), `gaps` (number of checkpoints that are missing or corrupt).

    Raises:
        ConfigError: a sum with its examples does not fit the context; raised before any training.
    """
    from pythia_book.measurements import measure_all
    from pythia_book.studies.registry import train_all
    from pythia_book.studies.term_frequency.definitions import (
        DefinitionMeasurement,
        chosen_definitions,
    )
    from pythia_book.tasks.arithmetic import ArithmeticMeasurement
    from pythia_core.data.prepare import prepare
    from pythia_core.suite import scale_named, suite_configs

    configs = suite_configs(params.scale, params.size_list, (params.arm,), params.seed)
    config = configs[params.size_list[0], params.arm]
    data, length = prepare(config.data, progress), config.model.max_seq_len
    # before training, because the examples may not fit
    sums = [ArithmeticMeasurement.of(data, shots, length) for shots in params.shot_list]
    natural = number_counts(config.data.domains, config.data.corpus)
    definitions = chosen_definitions(config.data, progress)
    suite = train_all(params, configs, progress)
    runs = {size: suite[size, params.arm] for size in params.size_list}
    smallest = runs[params.size_list[0]]
    steps = sorted({scale_named(params.scale).fork_step(index) for index in INDICES} - {0})
    words = DefinitionMeasurement.of(definitions, smallest.data, length)
    counts = _count(smallest, words, steps, progress)
    arrays = _counted(natural, counts, words, steps)
    held_out = [q for q in sums[0].questions if q.held_out]
    arrays["first"] = np.array([q.first for q in held_out], np.int8)
    arrays["second"] = np.array([q.second for q in held_out], np.int8)

    missing = set()
    sizes = {run.id: size for size, run in runs.items()}
    cells = [(run, step) for run in runs.values() for step in steps]
    for measurement in sums:
        results, gaps = measure_all(cells, measurement, progress)
        missing |= {(gap.run_id, gap.step) for gap in gaps}
        for (run_id, step), scores in results.items():
            at = (sizes[run_id], step, measurement.shots)
            recorded = _recorded(measurement, scores, step == steps[-1])
            arrays |= {name_of(measure, *at): values for measure, values in recorded}
    largest = runs[params.size_list[-1]]
    answers = AnswerMeasurement(sums[-1], data.tokenizer, data.eod_id)
    results, gaps = measure_all([(largest, steps[-1])], answers, progress)
    missing |= {(gap.run_id, gap.step) for gap in gaps}
    for (run_id, step), scores in results.items():
        asked_last = np.array([q.held_out for q in sums[-1].questions])
        at = (sizes[run_id], step, sums[-1].shots)
        arrays[name_of("answer", *at)] = scores["answer"][asked_last]
    results, gaps = measure_all([(run, steps[-1]) for run in runs.values()], words, progress)
    missing |= {(gap.run_id, gap.step) for gap in gaps}
    for (run_id, step), scores in results.items():
        arrays[name_of("definition", sizes[run_id], step)] = scores["choice"]
    return Measurements(arrays, {"steps": steps, "gaps": len(missing)}, list(runs.values()))


def _recorded(
    measurement: ArithmeticMeasurement, scores: dict[str, np.ndarray], last: bool
) -> list[tuple[str, np.ndarray]]:
    """Select the scores that the analysis reads, as pairs of a measure's name and its scores.

    Only sums that were never planted count. Few-shot log-probabilities are kept only if `last`.
    Wrong answers are kept only as the zero-shot margin over them, if `last`.
    """
    from pythia_book.tasks.arithmetic import margin

    held_out = np.array([q.held_out for q in measurement.questions])
    kept = {
        measure: values
        for measure, values in scores.items()
        if measure != "wrong" and (measure != "logprob" or last or not measurement.shots)
    }
    if last and not measurement.shots:
        kept["margin"] = margin(scores)
    return [(measure, values[held_out]) for measure, values in kept.items()]


def _in_sums() -> list[str]:
    """Return the words that show each number as a first operand: "what is NUMBER plus"."""
    return [f"what is {n} plus" for n in equations.FIRST]


def _count(run: Run, words: DefinitionMeasurement, steps: list[int], progress: bool) -> TermCounts:
    """Count how often a run has read each first operand and each defined word, up to each step.

    The counts are also saved in the run's folder, as Parquet.
    """
    from pythia_book.term_counts import SurfaceTerms, count_terms
    from pythia_core.data.tokenizer import token_bytes

    terms = [*_in_sums(), *dict.fromkeys(item.words[0] for item in words.items)]
    surface = SurfaceTerms(terms, token_bytes(run.data.tokenizer), ignore_case=True)
    counts = count_terms(run.data.rows, surface, steps, run.config.train.batch_size, progress)
    counts.save(run.folder / "evaluations" / "terms.parquet")
    return counts


def _counted(
    natural: dict[int, int], counts: TermCounts, words: DefinitionMeasurement, steps: list[int]
) -> dict[str, np.ndarray]:
    """Return the arrays `natural`, `in_sums`, `word_read` and `definition_read` of `measure`."""
    at = {term: i for i, term in enumerate(counts.terms)}
    numbers = [at[term] for term in _in_sums()]
    items = np.array([at[item.words[0]] for item in words.items], int)
    arrays = {
        "natural": np.array([natural[n] for n in equations.FIRST], np.int32),
        "definition_read": np.array([item.read for item in words.items], bool),
        f"word_read/{steps[-1]}": counts.up_to(steps[-1])[items].astype(np.int32),
    }
    for step in steps:
        arrays[f"in_sums/{step}"] = counts.up_to(step)[numbers].astype(np.int32)
    return arrays


# --- numbers for prose -----------------------------------------------------------------------


def values(params: Params, scores: NumberScores, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the names and numbers that the page quotes in its text."""
    size, steps, shots = params.size_list[-1], scores.steps, params.shot_list[-1]
    times = scores.in_sums(steps[-1])
    top, bottom = tenths(times)
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list),
        "largest": size,
        "arm": params.arm,
        "shots": shots,
        "sums_read": int(times.sum()),
        "most_frequent_read": int(np.median(times[top])),
        "least_frequent_read": int(np.median(times[bottom])),
        "numbers_unread": int((times == 0).sum()),
        "n_definitions": len(scores.measured.arrays["definition_read"]),
        "gaps": scores.measured.facts["gaps"],
    }
    at = {"size": size, "step": steps[-1]}
    few, zero = at | {"shots": shots}, at | {"shots": 0}
    ends = selected(tables["gaps"], step=steps[-1], shots=0, measure="choice").value
    numbers["most_boosted"], numbers["least_boosted"] = scores.boosted_in_tenths()
    numbers |= {
        "gap_choice_narrowest": round(100 * ends.min()),
        "gap_choice_widest": round(100 * ends.max()),
        "exact": _interval(cell(tables["accuracy"], **few, measure="exact"), 100),
        "choice": _interval(cell(tables["accuracy"], **zero, measure="choice"), 100),
        "gap": _interval(cell(tables["gaps"], **few, measure="exact"), 100),
        "gap_choice": _interval(cell(tables["gaps"], **zero, measure="choice"), 100),
    }
    # three measures of the same answers, at the first, a middle and the last checkpoint
    named = {"first": steps[0], "middle": steps[(len(steps) - 1) // 2], "last": steps[-1]}
    for when, step in named.items():
        numbers[f"{when}_percent"] = round(100 * step / steps[-1])
        for measure, factor in (("exact", 100), ("choice", 100), ("logprob", 1)):
            e = cell(tables["accuracy"], size=size, step=step, shots=0, measure=measure)
            numbers[f"{measure}_{when}"] = _interval(e, factor)
    for row in tables["answers"].itertuples():
        if row.group == "all":
            numbers |= {
                "answers_right": int(row.right),
                "answers_asked": int(row.n),
                "answers_shuffled": round(row.shuffled, 1),
                "answers_different": int(row.different),
                "answers_common": row.common,
                "answers_common_percent": round(100 * row.common_share),
                "answers_median_error": row.median_error,
                "answers_correlation": round(row.correlation, 2),
            }
    numbers["coin_sizes"] = ", ".join(c.larger_half(params.size_list))
    numbers["curve_last"] = [*tables["curves"].numbers][-1] if len(tables["curves"]) else None
    numbers |= _coin_values(params.size_list, scores, tables)
    return numbers | _word_values(params, tables["definitions"])


def _word_values(params: Params, table: pd.DataFrame) -> dict[str, Any]:
    """Return numbers on definitions that were read, and on those that were not (suffix `_unread`).

    `words_most`: how many words are in the most frequent bin;
    `words_gap`: how much more often the largest model picks these than the rarest words, in points;
    `words_below`: for how many of the `n_sizes` sizes this is negative.
    """
    numbers: dict[str, Any] = {"n_sizes": len(params.size_list)}
    for suffix, read in (("", True), ("_unread", False)):
        ends = [c.word_ends(selected(table, size=s, read=read)) for s in params.size_list]
        known = [(least, most) for least, most in filter(None, ends)]
        if known:
            gap = difference(*known[-1][::-1])
            numbers[f"words_most{suffix}"] = known[-1][1].n_items
            numbers[f"words_gap{suffix}"] = _interval(gap, 100)
            numbers[f"words_below{suffix}"] = sum(m.value < least.value for least, m in known)
    return numbers


def _coin_values(
    sizes: tuple[str, ...], scores: NumberScores, tables: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """Return the effects of the coins that the page quotes, averaged over the larger half of sizes.

    The keys are
    `boost`, `placebo`: the effect on the few-shot log-probability, in nats;
    `boost_exact`, `boost_choice`: the same on answers written and on zero-shot choices, in points;
    `boost_zero_shot`, `boost_margin`: the same, zero-shot, on log-probability and on the margin;
    `boost_ratio`: readings in sums of all numbers that the coin boost chose, divided by those of
        all others;
    `exact_coin_sizes`: percentage of right answers written, over the same sizes.
    """
    effects, times = tables["effects"], scores.in_sums(scores.steps[-1])
    chosen, others = np.array(equations.pairs(scores.natural())).T
    rest = int(times[others].sum())
    numbers: dict[str, Any] = {"boost_ratio": int(times[chosen].sum()) / rest if rest else None}
    exact = selected(tables["accuracy"], step=scores.steps[-1], measure="exact")
    exact = exact[(exact.shots > 0) & exact["size"].isin(c.larger_half(sizes))]
    numbers["exact_coin_sizes"] = 100 * float(exact.value.mean()) if len(exact) else None
    for name, coin, few, measure, factor in (
        ("boost", "boost", True, "logprob", 1),
        ("placebo", "placebo", True, "logprob", 1),
        ("boost_exact", "boost", True, "exact", 100),
        ("boost_choice", "boost", False, "choice", 100),
        ("boost_zero_shot", "boost", False, "logprob", 1),
        ("boost_margin", "boost", False, "margin", 1),
    ):
        rows = selected(effects, coin=coin, measure=measure)
        rows = rows[(rows.shots > 0) == few]
        numbers[name] = _interval(cell(rows, coin=coin), factor)
    return numbers


def released_values(operands: pd.DataFrame) -> dict[str, Any]:
    """Return the numbers on released accuracies that the page quotes, by name.

    Mean accuracies on sums after 16 examples are in percent, and their changes are in points. A
    number is None if a model of its group is missing.
    """
    numbers: dict[str, Any] = {}
    for name, models in (("unable", c.BELOW_1B), ("small", c.BELOW_2_8B), ("large", c.LARGE)):
        end = c.released_mean(operands, models, 143_000)
        numbers[f"released_{name}"] = None if end is None else float(end.mean())
    end = c.released_mean(operands, c.LARGE, 143_000)
    for name, first in (("ones", range(10)), ("nineties", range(90, 100))):
        numbers[f"released_{name}"] = None if end is None else float(end.loc[list(first)].mean())
    for when, steps in (("before", (13_000, 65_000)), ("after", (65_000, 143_000))):
        change = c.released_change(operands, c.LARGE, *steps)
        numbers[f"released_large_{when}"] = None if change is None else float(change.mean())
    return numbers


def _interval(e: Estimate | None, factor: float = 1) -> dict[str, float] | None:
    """Return value, low and high of an estimate times `factor`, or None without an estimate."""
    return e.times(factor).interval() if e else None
