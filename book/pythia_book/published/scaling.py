"""Selects the released benchmark results that the study `scaling` draws and tests.

Every value is the share of items answered correctly, with the harness's standard error, if any. The
authors of the Pythia paper scored OPT and BLOOM with the same harness. Means over tasks leave out
WSC (see tables.SEVEN).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.means import mean_over_tasks
from pythia_book.published.tables import (
    SEVEN,
    TASKS,
    TOKENS_PER_STEP,
    arithmetic_table,
    blimp_table,
    in_order,
    mmlu_table,
)
from pythia_book.stats import mean_over
from pythia_core.suite import OFFICIAL_SIZES, size_named
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published

MIDDLE_STEPS, LAST_STEPS = (63_000, 73_000, 83_000), (123_000, 133_000, 143_000)
"""Three evaluated checkpoints around the middle of training, and the last three."""
COLUMNS = {
    "curves": ["model", "deduped", "step", *TASKS],
    "lambada": ["model", "deduped", "step", "value", "stderr", "nats"],
    "final": ["name", "family", "n_params", "task", "value", "stderr"],
    "batch": ["model", "batch_tokens", "tokens", "task", "value", "stderr"],
    "mmlu": ["model", "shots", "step", "value", "low", "high"],
    "blimp": ["phenomenon", "model", "step", "value", "stderr"],
    "paradigms": ["phenomenon", "paradigm", "value"],
    "sums": ["model", "operation", "shots", "step", "value"],
    "operands": ["model", "number", "value"],
}
"""Maps each released table of the study to its columns:

    curves      zero-shot accuracy over training, a column per task
    lambada     LAMBADA over training, from step 1,000; `nats`: minus the mean log-probability of
                the last word, the logarithm of the released perplexity
    final       zero-shot accuracy at the end, with OPT and BLOOM; LogiQA also by acc_norm
    batch       five-shot accuracy with small and full batches after equal numbers of tokens,
                standard text
    mmlu        mean over 57 subjects and both texts, t-interval over subjects; the model "small" is
                the mean of SMALL
    blimp       first suite, zero-shot: mean over both texts and over the paradigms of a phenomenon
    paradigms   first suite at the end: mean over all models and both texts
    sums        sums and products answered right, mean over first operands
    operands    sums answered right after SUM_SHOTS examples at the end, by first operand
"""
SUM_SHOTS = 16
"""The number of solved examples before a sum in the paper's figure 7."""
NORMALIZED = "logiqa_acc_norm"
SMALL = ("70m", "160m", "410m")
"""Models below one billion parameters."""
PHENOMENA = {
    "anaphor agreement": ("anaphor_",),
    "determiner-noun agreement": ("determiner_noun_",),
    "subject-verb agreement": ("distractor_agreement", "irregular_plural", "regular_plural"),
    "irregular forms": ("irregular_past",),
    "argument structure": ("animate_subject", "causative", "drop_argument", "inchoative",
                           "intransitive", "passive_", "transitive"),
    "binding": ("principle_A",),
    "control and raising": ("existential_there_object", "existential_there_subject",
                            "expletive_it", "tough_vs_raising"),
    "ellipsis": ("ellipsis",),
    "filler-gap": ("wh_questions", "wh_vs_that"),
    "island effects": ("adjunct_island", "complex_NP_island", "coordinate_structure",
                       "left_branch", "sentential_subject", "wh_island"),
    "NPI licensing": ("matrix_question_npi", "npi_present", "only_npi", "sentential_negation_npi"),
    "quantifiers": ("existential_there_quantifiers", "superlative_quantifiers"),
}  # fmt: skip
"""Maps each of the twelve phenomena of BLiMP to prefixes of its paradigms' names. The source is the
field `linguistics_term` in github.com/alexwarstadt/blimp.
"""


def released_tables(published: Published) -> dict[str, pd.DataFrame]:
    """Return the tables of the study `scaling` by name, as listed in COLUMNS.

    A table is empty if `published` has no results for it.
    """
    rows = published.benchmarks
    acc = rows[rows.metric == "acc"] if len(rows) else rows
    curves = acc[(acc.shots == 0) & (acc.step > 0)] if len(acc) else acc
    lambada = _lambada(rows) if len(rows) else rows
    arithmetic = arithmetic_table(published.path)
    mmlu = mmlu_table(published.path)
    paradigms = _phenomena(blimp_table(published.path))
    tables = {
        "curves": _wide(curves),
        "lambada": lambada,
        "final": _final(published, rows),
        "batch": _batch(published, acc),
        "mmlu": _mmlu(mmlu),
        "blimp": _blimp(paradigms),
        "paradigms": _paradigms(paradigms),
        "sums": _sums(arithmetic),
        "operands": _operands(arithmetic),
    }
    return {
        name: table.reindex(columns=COLUMNS[name]).reset_index(drop=True).rename_axis(columns=None)
        for name, table in tables.items()
    }


def _wide(curves: pd.DataFrame) -> pd.DataFrame:
    """Reshape scores to one row per checkpoint and one column per task. Missing scores are NaN."""
    keys = ["model", "deduped", "step"]
    if curves.empty:
        return curves
    return in_order(curves.pivot(index=keys, columns="task", values="value").reset_index(), keys)


def _lambada(rows: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy and mean log-probability on LAMBADA over training, zero-shot."""
    keys = ["model", "deduped", "step"]
    rows = rows[(rows.task == "lambada_openai") & (rows.step >= 1000) & (rows.shots == 0)]
    nats = rows[rows.metric == "ppl"].set_index(keys).value
    table = rows[rows.metric == "acc"].set_index(keys)
    return in_order(table.assign(nats=np.log(nats)).reset_index(), keys)


def _sums(arithmetic: pd.DataFrame) -> pd.DataFrame:
    """Average the accuracies on sums and products over first operands."""
    keys = ["model", "operation", "shots", "step"]
    return in_order(arithmetic.groupby(keys).value.mean().reset_index(), keys)


def _operands(arithmetic: pd.DataFrame) -> pd.DataFrame:
    """Return the final accuracies on sums after SUM_SHOTS examples, by first operand."""
    chosen = (arithmetic.operation == "addition") & (arithmetic.shots == SUM_SHOTS)
    last = arithmetic[chosen & (arithmetic.step == OFFICIAL_STEPS)]
    return in_order(last, ["model", "number"])


def _final(published: Published, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the final zero-shot scores of Pythia (from `rows`), OPT and BLOOM."""
    import pandas as pd

    if rows.empty:
        return rows
    normalized = (rows.task == "logiqa") & (rows.metric == "acc_norm")
    ours = rows[
        ((rows.metric == "acc") | normalized) & (rows.shots == 0) & (rows.step == OFFICIAL_STEPS)
    ]
    ours = ours.assign(
        name=ours.model + np.where(ours.deduped, "-deduped", ""),
        family=np.where(ours.deduped, "pythia-deduped", "pythia"),
        n_params=ours.model.map({m: size_named(m).model().n_params for m in OFFICIAL_SIZES}),
        task=ours.task.mask(ours.metric == "acc_norm", NORMALIZED),
    )
    others = published.baselines
    others = others[others.metric == "acc"].rename(columns={"model": "name"})
    both = pd.concat([ours, others]) if len(others) else ours
    return both.sort_values(["family", "n_params", "task"])


def _batch(published: Published, acc: pd.DataFrame) -> pd.DataFrame:
    """Return five-shot accuracies of models with small batches and of their twins in `acc`.

    If there are no small batches, or `acc` is empty, return `published.batch_size` as it is.
    """
    import pandas as pd

    small = published.batch_size
    if small.empty or acc.empty:
        return small
    small = small[(small.metric == "acc") & (small.shots == 5)]
    full = acc[(acc.shots == 5) & ~acc.deduped & acc.model.isin(small.model.unique())]
    full = full.assign(batch_tokens=TOKENS_PER_STEP, tokens=full.step * TOKENS_PER_STEP)
    rows = pd.concat([small, full])
    return in_order(rows[rows.task.isin(SEVEN)], ["model", "batch_tokens", "tokens", "task"])


def _mmlu(rows: pd.DataFrame) -> pd.DataFrame:
    """Average MMLU accuracy over subjects and over standard and deduplicated models.

    Rows with the model "small" are means over the sizes SMALL. Subjects are the independent units
    of the t-intervals.
    """
    import pandas as pd

    rows = rows[rows.step > 0]
    groups = pd.concat([rows, rows[rows.model.isin(SMALL)].assign(model="small")])
    keys = ["model", "shots", "step"]
    means = groups.groupby([*keys, "subject"]).acc.mean()
    table = [
        (*key, *mean_over(values.to_numpy()).interval().values())
        for key, values in means.groupby(level=keys)
    ]
    return in_order(pd.DataFrame(table, columns=COLUMNS["mmlu"]), ["shots", "model", "step"])


def _phenomena(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the column `phenomenon`, which groups the paradigms (subtasks) of BLiMP."""
    names = {
        paradigm: phenomenon
        for paradigm in rows.subtask.unique()
        for phenomenon, starts in PHENOMENA.items()
        if paradigm.startswith(starts)
    }
    return rows.assign(phenomenon=rows.subtask.map(names))


def _blimp(rows: pd.DataFrame) -> pd.DataFrame:
    """Average BLiMP accuracy over the paradigms of each phenomenon and the two models of a size.

    The added phenomenon "all" has all paradigms. Paradigms are independent. Both models were scored
    on the same items, so their mean is taken to have the standard error of a single model.
    """
    import pandas as pd

    keys = ["phenomenon", "model", "step"]
    both = pd.concat([rows, rows.assign(phenomenon="all")])
    mean = both.groupby([*keys, "subtask"])[["acc", "stderr"]].mean().reset_index()
    return in_order(mean_over_tasks(mean.rename(columns={"acc": "value"}), keys), keys)


def _paradigms(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the final accuracy over all models, for each paradigm of BLiMP."""
    last = rows[rows.step == OFFICIAL_STEPS].rename(columns={"subtask": "paradigm"})
    return last.groupby(["phenomenon", "paradigm"]).acc.mean().rename("value").reset_index()
