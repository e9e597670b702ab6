"""Tests of claims on the released benchmark results (paper sections 2.4 to 2.6, appendix G).

Unless a task is named, accuracies are means over the paper's tasks without WSC, seven in all. No
results of single items were released, so two scores on the same items are compared as if their
errors were independent.

Claims about a kind of model have t-intervals over sizes or over pairs of models. For intervals over
sizes, the models of both texts are averaged first. Intervals over pairs do not cover the choice of
items, so `mean_over_pairs` never returns an interval narrower than the error from this choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.published.means import mean_over_pairs, mean_over_tasks, signed
from pythia_book.published.scaling import LAST_STEPS, MIDDLE_STEPS, NORMALIZED, SMALL
from pythia_book.published.tables import (
    CHANCE,
    CONVENTION,
    NO_RELEASED,
    SAME,
    SAME_WHY,
    SEVEN,
    TASKS,
    TITLES,
    TOKENS_PER_STEP,
)
from pythia_book.stats import LEVEL, Z_95, Estimate, difference, mean_over, slope
from pythia_book.verdicts import Claim, Test, falls, holm, rises, untestable, within
from pythia_core.suite import size_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Tables

NARROW = ("70m", "160m")
"""Sizes with fewer than 1,000 hidden dimensions."""
OPT_PAIRS = {"160m": "opt-125m", "410m": "opt-350m", "1.4b": "opt-1.3b", "2.8b": "opt-2.7b",
             "6.9b": "opt-6.7b", "12b": "opt-13b"}  # fmt: skip
"""Maps Pythia sizes to the OPT model with about as many parameters."""
BLOOM_PAIRS = {"410m": "bloom-560m", "1b": "bloom-1b1", "1.4b": "bloom-1b7", "2.8b": "bloom-3b",
               "6.9b": "bloom-7b1"}  # fmt: skip
"""Maps Pythia sizes to the evaluated BLOOM models with about as many parameters."""
UNLIKE = "opt-350m"
UNLIKE_WHY = (
    "opt-350m differs from all other OPT models: it normalizes after each sublayer "
    "(huggingface/transformers, modeling_opt.py; facebookresearch/metaseq issue 388)"
)
WORSE = ("lambada_openai", "piqa", "wsc")
NOT_WORSE = ("winogrande", "arc_easy", "arc_challenge", "sciq", "logiqa")
SIMILAR = "Pythia and Pythia (Deduplicated) perform very similarly to OPT and BLOOM models"
AGREEMENT = ("anaphor agreement", "determiner-noun agreement", "subject-verb agreement")
SUBTLE = ("NPI licensing", "island effects")
POINTS = "points"
ABOVE_GUESSING = f"{POINTS} above guessing"
PER_TENFOLD = f"{POINTS} per tenfold increase in non-embedding parameters"
ONE_RUN = (
    "one run per size and batch size; the number of updates and the sum of their learning rates "
    "change with the batch size and cannot be separated from it"
)
NO_LOSSES = (
    "no losses of the released runs were read; final accuracy only shows that none ended at "
    "guessing"
)
TOGETHER = "batch size, number of updates and learning rates move together; one run each"
"""Note on claims that compare runs with full and with small batches."""


# --- tables ----------------------------------------------------------------------------------


def _means(curves: pd.DataFrame) -> pd.DataFrame:
    """Return the mean zero-shot accuracy, in percent, of each released checkpoint.

    Columns: `model`, `deduped`, `step`, `value`. Checkpoints that lack a task are left out.
    """
    mean = 100 * curves[list(SEVEN)].mean(axis=1, skipna=False)
    return curves[["model", "deduped", "step"]].assign(value=mean).dropna()


def _changes(means: pd.DataFrame) -> pd.Series:
    """Return how much the accuracy of each released size changes late in training, in points.

    The change is the mean over the last three evaluated checkpoints minus the mean over three
    checkpoints around the middle of training, averaged over both texts. Sizes with missing
    checkpoints are left out. `means` is the result of `_means`.
    """
    late, middle = (
        means[means.step.isin(steps)].groupby(["model", "deduped"]).value.agg(["mean", "size"])
        for steps in (LAST_STEPS, MIDDLE_STEPS)
    )
    whole = (late["size"] == 3) & (middle["size"].reindex(late.index) == 3)
    changes = (late["mean"] - middle["mean"])[whole].groupby(level="model", sort=False)
    return changes.mean()[changes.size() == 2]


def pairs_table(final: pd.DataFrame) -> pd.DataFrame:
    """Compare the final accuracy of OPT and BLOOM models with Pythia models of similar size.

    The accuracy of a Pythia size is the mean over both texts. The models of both texts were scored
    on the same items, so the error of the mean is taken to be the mean of the two errors.

    Columns:
    `family`: "opt" or "bloom";
    `model`: the Pythia size;
    `twin`: the OPT or BLOOM model;
    `task`: a task, or "mean" for the mean over the seven tasks;
    `value`, `error`: the twin's accuracy minus Pythia's, in points, and its standard error.
    """
    import pandas as pd

    scores = final.set_index(["name", "task"])[["value", "stderr"]]
    rows = []
    for family, pairs in (("opt", OPT_PAIRS), ("bloom", BLOOM_PAIRS)):
        for model, twin in pairs.items():
            for task in TASKS:
                keys = [(name, task) for name in (model, f"{model}-deduped", twin)]
                if not all(key in scores.index for key in keys):
                    continue
                a, b, other = (scores.loc[key] for key in keys)
                value = 100 * (other.value - (a.value + b.value) / 2)
                error = 100 * np.hypot(other.stderr, (a.stderr + b.stderr) / 2)
                rows.append((family, model, twin, task, float(value), float(error)))
    table = pd.DataFrame(rows, columns=["family", "model", "twin", "task", "value", "error"])
    seven = table[table.task.isin(SEVEN)]
    mean = mean_over_tasks(seven, ["family", "model", "twin"], len(SEVEN), "error")
    return pd.concat([table, mean.assign(task="mean")], ignore_index=True) if len(mean) else table


def batch_table(batch: pd.DataFrame) -> pd.DataFrame:
    """Compare released runs with full batches (two million tokens) and runs with small batches.

    Columns:
    `model`, `tokens`: the size, and the tokens read by both runs;
    `task`: a task, or "mean" if all seven tasks were scored;
    `value`, `error`: accuracy with full minus small batches, in points, and its standard error;
    `low`, `high`: the interval of `value`.
    """
    import pandas as pd

    keys = ["model", "tokens", "task"]
    if batch.empty:
        return batch.reindex(columns=[*keys, "value", "error", "low", "high"])
    full = batch.batch_tokens == batch.batch_tokens.max()
    both = batch[full].merge(batch[~full], on=keys, suffixes=("", "_small"))
    both = both.assign(
        value=100 * (both.value - both.value_small),
        error=100 * np.hypot(both.stderr, both.stderr_small),
    )[[*keys, "value", "error"]]
    mean = mean_over_tasks(both, keys[:2], len(SEVEN), "error").assign(task="mean")
    both = pd.concat([both, mean], ignore_index=True)
    return both.assign(low=both.value - Z_95 * both.error, high=both.value + Z_95 * both.error)


# --- claims ----------------------------------------------------------------------------------

Estimates = dict[str, Estimate | None]


def estimates(released: Tables, pairs: pd.DataFrame, batch: pd.DataFrame) -> Estimates:
    """Return the estimates that the claims on released models test, by name.

    An estimate is None if the released numbers that it needs are missing.
    """
    effects: Estimates = dict.fromkeys(
        ("size", "narrow", "wide", "converges", "opt", "opt_alike", "bloom", "bloom_five",
         "batch_start", "batch_first", "batch_end", "batch_size", "batch_late",
         "batch_late_small", "mmlu_small", "mmlu_large", "blimp")
    )  # fmt: skip
    effects |= {f"bloom_{task}": None for task in TASKS}
    curves, mmlu, paradigms = (released.get(k) for k in ("curves", "mmlu", "paradigms"))
    if curves is not None and len(curves):
        effects |= _over_training(_means(curves))
    effects |= _against_others(pairs)
    if (final := released.get("final")) is not None and len(final):
        effects["converges"] = _least_above_chance(final)
    if len(batch):
        effects |= _batches(batch)
        effects["batch_late_small"] = _late(_small_batches(released["batch"]))
    if mmlu is not None and len(mmlu):
        effects |= _mmlu(mmlu)
    if paradigms is not None and len(paradigms):
        a, b = (
            paradigms[paradigms.phenomenon.isin(names)].value.to_numpy()
            for names in (AGREEMENT, SUBTLE)
        )
        if len(a) and len(b):
            effects["blimp"] = difference(mean_over(100 * a), mean_over(100 * b))
    return effects


def parameters(sizes: Iterable[str]) -> list[int]:
    """Return the number of parameters of each size, not counting the embeddings."""
    return [size_named(size).model(vocab_size=1024).n_params_non_embedding for size in sizes]


def _over_training(means: pd.DataFrame) -> Estimates:
    """Return the estimates on mean zero-shot accuracy over training, in points.

    `size` is the change of final accuracy per tenfold size. `narrow` and `wide` are the mean late
    changes (see `_changes`) of models with fewer and with at least 1,000 hidden dimensions.
    """
    effects: Estimates = {}
    end = means[means.step == means.step.max()].groupby("model", sort=False).value.mean()
    effects["size"] = slope(np.log10(parameters(end.index)), end.to_numpy())
    changes = _changes(means)
    narrow = changes.index.isin(NARROW)
    effects["narrow"], effects["wide"] = _mean(changes[narrow]), _mean(changes[~narrow])
    return effects


def _mean(values: pd.Series) -> Estimate | None:
    """Return the mean of the values that are not NaN, with its t-interval; None if all are NaN."""
    values = values.dropna()
    return mean_over(values.to_numpy()) if len(values) else None


def _least_above_chance(final: pd.DataFrame) -> Estimate | None:
    """Return by how many points the least accurate Pythia model below 1B beats guessing.

    Accuracy is the mean over the seven tasks at the end of training. The interval covers the choice
    of items. The result is None if no such model has scores on all tasks.
    """
    rows = final[final.task.isin(SEVEN) & final.family.str.startswith("pythia")]
    rows = rows[rows.name.str.removesuffix("-deduped").isin(SMALL)]
    above = 100 * rows.value - rows.task.map(CHANCE)
    runs = mean_over_tasks(rows.assign(value=above, stderr=100 * rows.stderr), ["name"], len(SEVEN))
    if runs.empty:
        return None
    least = runs.loc[runs.value.idxmin()]
    value, half = float(least.value), float(Z_95 * least.stderr)
    return Estimate(value, value - half, value + half, len(SEVEN), 1)


def _against_others(pairs: pd.DataFrame) -> Estimates:
    """Return the estimates that compare Pythia with OPT and BLOOM, in points of accuracy.

    Each estimate is a mean over pairs of models of similar size, or None without pairs.

    `opt`: Pythia minus OPT, averaged over the seven tasks;
    `opt_alike`: `opt` without the OPT model UNLIKE;
    `bloom`: BLOOM minus Pythia, averaged over the seven tasks;
    `bloom_five`: BLOOM minus Pythia, averaged over the five tasks in NOT_WORSE;
    `bloom_TASK`: BLOOM minus Pythia on one task.
    """

    def over(rows: pd.DataFrame, sign: int) -> Estimate | None:
        """Return `sign` times the mean of the differences in `rows`; None without rows."""
        values, errors = rows.value.to_numpy(), rows.error.to_numpy()
        return mean_over_pairs(sign * values, errors) if len(rows) else None

    opt = pairs[(pairs.family == "opt") & (pairs.task == "mean")]
    bloom = pairs[pairs.family == "bloom"]
    effects = {"opt": over(opt, -1), "opt_alike": over(opt[opt.twin != UNLIKE], -1)}
    effects["bloom"] = over(bloom[bloom.task == "mean"], 1)
    five = bloom[bloom.task.isin(NOT_WORSE)]
    effects["bloom_five"] = over(mean_over_tasks(five, ["model"], len(NOT_WORSE), "error"), 1)
    return effects | {f"bloom_{task}": over(bloom[bloom.task == task], 1) for task in TASKS}


def _batches(batch: pd.DataFrame) -> Estimates:
    """Return the estimates of accuracy with full minus small batches, in points.

    `batch_start`: at the first common checkpoint;
    `batch_first`: averaged over the first half of training;
    `batch_end`: at the end;
    `batch_size`: the change of `batch_end` per tenfold parameters;
    `batch_late`: see `_late`.
    """
    means = batch[batch.task == "mean"]
    if means.empty:
        return {}
    half = means.tokens.max() / 2
    effects: Estimates = {}
    for name, rows in (
        ("batch_start", means[means.tokens == means.tokens.min()]),
        ("batch_first", means[means.tokens < half]),
        ("batch_end", means[means.tokens == means.tokens.max()]),
    ):
        pairs = rows.groupby("model", sort=False)[["value", "error"]].mean().dropna()
        effects[name] = mean_over_pairs(pairs.value.to_numpy(), pairs.error.to_numpy())
    ends = pairs.value
    effects["batch_size"] = slope(np.log10(parameters(ends.index)), ends.to_numpy())
    return effects | {"batch_late": _late(batch)}


def _late(batch: pd.DataFrame) -> Estimate | None:
    """Return the late change of `value`, a mean over the models in NARROW, in points.

    With the result of `batch_table`, it is the change with full batches minus that with small ones.
    The result is None if a middle checkpoint is missing. See `_changes` for the late change. The
    interval covers only the choice of items.
    """
    values, variance = [], 0.0
    middle = [step * TOKENS_PER_STEP for step in MIDDLE_STEPS]
    for model in NARROW:
        rows = batch[(batch.model == model) & (batch.task == "mean")].sort_values("tokens")
        mid, late = rows[rows.tokens.isin(middle)], rows.tail(3)
        if len(mid) < 3:
            return None
        values.append(late.value.mean() - mid.value.mean())
        variance += late.error.mean() ** 2 + mid.error.mean() ** 2
    value, half = float(np.mean(values)), Z_95 * variance**0.5 / len(values)
    return Estimate(value, value - half, value + half, len(values), 1)


def _small_batches(batch: pd.DataFrame) -> pd.DataFrame:
    """Return the mean accuracy of the runs with small batches, in the columns of `batch_table`."""
    small = batch[batch.batch_tokens < batch.batch_tokens.max()]
    small = small.assign(value=100 * small.value, error=100 * small.stderr)
    return mean_over_tasks(small, ["model", "tokens"], len(SEVEN), "error").assign(task="mean")


def _mmlu(mmlu: pd.DataFrame) -> Estimates:
    """Return the final five-shot accuracy on MMLU above guessing, in points.

    `mmlu_small` is the mean of the models below a billion parameters, `mmlu_large` is for 12B. The
    intervals are over the 57 subjects.
    """
    end = mmlu[(mmlu.shots == 5) & (mmlu.step == LAST_STEPS[-1])].set_index("model")
    effects: Estimates = {}
    for name, model in (("mmlu_small", "small"), ("mmlu_large", "12b")):
        if model in end.index:
            row = 100 * (end.loc[model, ["value", "low", "high"]].astype(float) - 0.25)
            effects[name] = Estimate(*row, 57, 1, df=56)
    return effects


def claims(effects: Estimates, pairs: pd.DataFrame) -> list[Claim]:
    """Return the claims that only the released numbers test."""

    def test(make: Any, name: str, units: str, unit: str = POINTS, **options: Any) -> Test:
        """Test the estimate `name` with the function `make`; see `_test`."""
        return _test(make, effects[name], units, unit, **options)

    five = "{n} sizes, one run per batch size"
    opt, opt_alike = (_each(pairs, "opt", leave) for leave in ("", UNLIKE))
    statements = [
        Claim(
            "Models with fewer than 1,000 hidden dimensions lose accuracy late in training.",
            "Godey et al. 2024, abstract (arXiv:2404.07647)",
            quote="models based on less than 1000 hidden dimensions tend to adopt degenerate "
            "latent representations in late pretraining, which leads to reduced evaluation "
            "performance",
            released=test(
                falls, "narrow", "{n} sizes (70M and 160M), mean of both texts",
                note="last three evaluated checkpoints minus three around the middle of training, "
                "mean over seven tasks, zero-shot; Godey et al. studied these same models, so this "
                "is not a replication",
            ),
        ),
        Claim(
            "Models with at least 1,000 hidden dimensions still gain accuracy late in training.",
            "Godey et al. 2024, the contrast",
            kind="premise",
            released=test(rises, "wide", "{n} sizes (the others), mean of both texts"),
        ),
        Claim(
            "Models below a billion parameters converge with batches of two million tokens.",
            "section 2.4",
            quote="we find no convergence issues with using batch sizes 4x to 8x what is "
            "considered standard for models with less than 1 billion parameters",
            released=untestable(
                NO_LOSSES, effects["converges"], ABOVE_GUESSING,
                "items, for the lowest-scoring of 6 runs (3 sizes \N{MULTIPLICATION SIGN} 2 texts)",
                note="final zero-shot accuracy, mean over seven tasks",
            ) if effects["converges"] else untestable(NO_RELEASED),
        ),
        Claim(
            "Pythia performs on par with OPT at equal size.",
            "sections 2.4 to 2.6",
            quote="we achieve (equi-token and equi-parameter) performance on-par with OPT",
            released=test(
                within, "opt", "{n} pairs of models", margin=SAME,
                note=f"Pythia minus OPT, mean over seven tasks: {opt}; {SAME_WHY}",
            ),
        ),
        Claim(
            f"Pythia performs on par with OPT at equal size, leaving out {UNLIKE}.",
            "sections 2.4 to 2.6, without one pair",
            kind="premise",
            released=test(
                within, "opt_alike", "{n} pairs of models", margin=SAME,
                note=f"{UNLIKE_WHY}. Pythia minus OPT: {opt_alike}; {SAME_WHY}",
            ),
        ),
        Claim(
            "Pythia performs on par with GPT-Neo at equal size.",
            "section 2.4",
            quote="our models still perform on par with widely used models of the same size like "
            "GPT-Neo (Black et al., 2021) or OPT",
            released=untestable("the release has no scores of GPT-Neo models"),
        ),
        Claim(
            "Parallel attention costs nothing below six billion parameters.",
            "section 2.6",
            quote="we achieve (equi-token and equi-parameter) performance on-par with OPT despite "
            "the use of parallel attention + MLP sublayers at all model scales",
            released=untestable(
                "the two families also differ in training text, tokenizer and position embeddings, "
                "so their difference does not isolate the parallel layers"
            ),
        ),
        Claim(
            "Computing attention and feedforward in parallel makes training more efficient.",
            "section 2.3",
            quote="they improve training efficiency and do not harm performance",
            released=untestable("every released model has parallel layers, and no speed of a model "
                                "without them was released"),
        ),
        Claim(
            "BLOOM performs very similarly to Pythia.",
            "section 2.5",
            quote=SIMILAR,
            released=test(
                within, "bloom", "{n} pairs of models", margin=SAME,
                note=_bloom_note(effects, pairs),
            ),
        ),
        Claim(
            "BLOOM performs very similarly to Pythia on the tasks on which the paper does not call "
            "it worse.",
            "sections 2.5 and 2.6",
            quote=SIMILAR,
            released=test(
                within, "bloom_five", "{n} pairs of models", margin=SAME,
                note="BLOOM minus Pythia, mean over five tasks: "
                f"{', '.join(TITLES[task] for task in NOT_WORSE)}; {CONVENTION}",
            ),
        ),
    ]  # fmt: skip
    statements += [_bloom(task, effects[f"bloom_{task}"], pairs) for task in (*WORSE, *NOT_WORSE)]
    statements += [
        Claim(
            "In the first half of training, runs with batches of two million tokens are within one "
            "point of runs with smaller ones.",
            "what a reader of section 2.4 may take for granted",
            kind="premise",
            released=test(
                within, "batch_first", five, margin=SAME,
                note="full minus small batches at equal tokens, five-shot, mean over seven tasks; "
                f"{CONVENTION}; {TOGETHER}",
            ),
        ),
        Claim(
            "At the end of training, runs with batches of two million tokens are within one point "
            "of runs with smaller ones.",
            "what a reader of section 2.4 may take for granted",
            kind="premise",
            released=test(within, "batch_end", five, margin=SAME, note=f"{CONVENTION}; {TOGETHER}"),
        ),
        Claim(
            "The larger the model, the less the large batch is behind the small one at the end.",
            "section 2.4, about the literature that the paper contradicts",
            quote="smaller LLMs require smaller batch sizes to avoid convergence issues",
            released=test(
                rises, "batch_size", five, PER_TENFOLD,
                note=f"accuracy stands for convergence here; {TOGETHER}",
            ),
        ),
        Claim(
            "With smaller batches, the two smallest models would not lose accuracy late in "
            "training.",
            "a reading of the released ablation; not a claim of the paper",
            kind="premise",
            released=untestable(
                ONE_RUN, effects["batch_late"], POINTS, "70M and 160M, one run each",
                note="late change with full batches minus late change with small ones, five-shot; "
                "the interval covers the items only",
            ) if effects["batch_late"] else untestable(NO_RELEASED),
        ),
        Claim(
            "The released 70M, 160M and 410M models, taken together, are at chance on MMLU.",
            "what the figure takes for granted",
            kind="premise",
            released=test(
                within, "mmlu_small", "57 subjects, averaged over these six models", margin=SAME,
                note=f"five-shot accuracy minus 25 %; {CONVENTION}",
            ),
        ),
        Claim(
            "The released 12B models score above chance on MMLU.",
            "what the figure takes for granted",
            kind="premise",
            released=test(rises, "mmlu_large", "57 subjects, averaged over these two models"),
        ),
        Claim(
            "The released models score higher on agreement than on negative polarity items and "
            "island effects.",
            "Warstadt et al. 2020, abstract (arXiv:1912.00582)",
            quote="identify morphological contrasts related to agreement reliably, but they "
            "struggle with some subtle semantic and syntactic phenomena, such as negative polarity "
            "items and extraction islands",
            released=test(
                rises, "blimp", "16 and 15 paradigms, averaged over these 16 models",
                note="the released evaluation on BLiMP is of the first, superseded suite (v0)",
            ),
        ),
    ]  # fmt: skip
    return statements


def _test(make: Any, e: Estimate | None, units: str, unit: str = POINTS, **options: Any) -> Test:
    """Test an estimate with the function `make`, e.g. `verdicts.rises`; untestable without one.

    In `units`, {n} is replaced by the count of units.
    """
    return make(e, unit, units.format(n=e.n_items), **options) if e else untestable(NO_RELEASED)


def _bloom(task: str, e: Estimate | None, pairs: pd.DataFrame) -> Claim:
    """Return the claim that BLOOM is worse (if the task is in WORSE) or not worse than Pythia."""
    worse = task in WORSE
    note = f"BLOOM minus Pythia: {_each(pairs, 'bloom', task=task)}"
    if task == "wsc":
        note += "; several of these models score as if they gave one answer to all 104 items"
    if not worse:
        note += f"; {CONVENTION}"
    return Claim(
        f"BLOOM is {'worse' if worse else f'at most {SAME:g} point worse'} than Pythia on "
        f"{TITLES[task]}.",
        "section 2.6",
        quote="BLOOM certainly underperforms other models on LAMBADA, PIQA, and WSC"
        if worse
        else "it does not appear to do so on WinoGrande, ARC-easy, ARC-challenge, SciQ, and LogiQA",
        released=_test(
            falls if worse else rises, e, "{n} pairs of models", bound=0.0 if worse else -SAME,
            note=note,
        ),
    )  # fmt: skip


def _bloom_note(effects: Estimates, pairs: pd.DataFrame) -> str:
    """Return a note with BLOOM minus Pythia, in points: for each pair, and for single tasks."""
    note = "BLOOM minus Pythia, mean over seven tasks: " + _each(pairs, "bloom")
    lambada, piqa = effects["bloom_lambada_openai"], effects["bloom_piqa"]
    five = effects["bloom_five"]
    if lambada and piqa and five:
        note += (
            f"; {signed(lambada.value)} on LAMBADA and {signed(piqa.value)} on PIQA, where section "
            f"2.6 says that BLOOM underperforms, and {signed(five.value)} in the mean of the other "
            "five"
        )
    return f"{note}; {SAME_WHY}"


def _each(pairs: pd.DataFrame, family: str, leave_out: str = "", task: str = "mean") -> str:
    """List the difference of each pair in points, e.g. "opt-125m +0.5, opt-350m +3.1".

    A difference is Pythia minus OPT, or BLOOM minus Pythia.
    """
    sign = -1 if family == "opt" else 1
    rows = pairs[(pairs.family == family) & (pairs.task == task) & (pairs.twin != leave_out)]
    return ", ".join(f"{row.twin} {signed(sign * row.value)}" for row in rows.itertuples())


def values(effects: Estimates, released: Tables) -> dict[str, Any]:
    """Return the numbers from released results that the page quotes, by name.

    `released_NAME`: the estimates;
    `logiqa_METRIC_above`, `logiqa_METRIC_above_holm`: see `_above_guessing`; METRIC is "acc" or
        "acc_norm";
    `released_fewest_checkpoints`, `released_most_checkpoints`: of any model, scored zero-shot;
    `wsc_constant`: the number of models with the most frequent WSC score, which is that of always
        giving the rarer answer; `wsc_right`, `wsc_items`: items right with this score, and in all;
    `mmlu_untrained`: mean zero-shot accuracy on MMLU of the untrained models, in percent;
    `blimp_agreement_least`, in percent and rounded down: the lowest accuracy of any size on anaphor
        or determiner-noun agreement; `blimp_first_step`: the first checkpoint scored on BLiMP.
    """
    numbers: dict[str, Any] = {
        f"released_{name}": e.interval() if e else None for name, e in effects.items()
    }
    curves = released.get("curves")
    fewest = most = None
    if curves is not None and len(curves):
        counts = curves.groupby(["model", "deduped"]).size()
        fewest, most = int(counts.min()), int(counts.max())
    numbers |= {"released_fewest_checkpoints": fewest, "released_most_checkpoints": most}
    final = released.get("final")
    for metric, task in (("acc", "logiqa"), ("acc_norm", NORMALIZED)):
        alone, corrected = _above_guessing(final, task) if final is not None else (None, None)
        numbers |= {f"logiqa_{metric}_above": alone, f"logiqa_{metric}_above_holm": corrected}
    numbers |= _wsc(final)
    mmlu = released.get("mmlu")
    untrained = None  # the first update has a learning rate of 0
    if mmlu is not None and len(mmlu):
        first = mmlu[(mmlu.shots == 0) & (mmlu.step == 1) & (mmlu.model != "small")]
        untrained = 100 * float(first.value.mean()) if len(first) else None
    return numbers | {"mmlu_untrained": untrained} | _agreement(released.get("blimp"))


def _agreement(blimp: pd.DataFrame | None) -> dict[str, float | int | None]:
    """Return the values on agreement in BLiMP (see `values`)."""
    if blimp is None or blimp.empty:
        return {"blimp_agreement_least": None, "blimp_first_step": None}
    rows = blimp[blimp.phenomenon.isin(("anaphor agreement", "determiner-noun agreement"))]
    return {
        "blimp_agreement_least": math.floor(1000 * rows.value.min()) / 10,
        "blimp_first_step": int(blimp.step.min()),
    }


def _wsc(final: pd.DataFrame | None) -> dict[str, int | None]:
    """Return the values on WSC (see `values`). The number of items follows from standard errors."""
    names = ("wsc_constant", "wsc_right", "wsc_items")
    if final is None:
        return dict.fromkeys(names)
    wsc = final[(final.task == "wsc") & final.family.str.startswith("pythia")]
    if wsc.empty:
        return dict.fromkeys(names)
    score = wsc.value.mode()[0]
    same = wsc[wsc.value == score]
    items = round(score * (1 - score) / same.stderr.iloc[0] ** 2) + 1
    return dict(zip(names, (len(same), round(score * items), items), strict=True))


def _above_guessing(final: pd.DataFrame, task: str) -> tuple[int, int] | tuple[None, None]:
    """Count the final Pythia models whose accuracy on a task is significantly above 25 %.

    The first count is without a correction, the second with Holm's correction for several tests.
    Both counts are None if no model was scored.
    """
    rows = final[(final.task == task) & final.family.str.startswith("pythia")]
    if rows.empty:
        return None, None
    p = {}
    for row in rows.itertuples():
        half = Z_95 * row.stderr
        e = Estimate(row.value, row.value - half, row.value + half, 1, 1)
        p[row.name] = e.p_value(0.25) if e.value > 0.25 else 1.0
    alone, corrected = (sum(x < 1 - LEVEL for x in each.values()) for each in (p, holm(p)))
    return alone, corrected
