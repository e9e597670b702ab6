"""The claims of the deduplication study.

Twins are a standard and a deduplicated model of one size. The paper sees "no clear benefit on
language modeling performance" from deduplication, on eight benchmarks. We test on the released
twins whether the benefit is below a margin, and on our twins whether the held-out loss is equal
within MARGIN. The text of our twins is repeated as in the Pile, so that the losses could differ.

No model has read the held-out text in its deduplicated form. The loss on held-out text drawn like
the standard corpus, copies included, is a sum of changes that can have either sign, so it has no
verdict.

In the suite's own text, a few hundred passages occur up to 128 times. Hernandez et al. 2022
study such a case, so we test their claim on it; the outcome was known from an earlier record.

Margins, and hypotheses about text repeated as in the Pile, were written before the twins were
trained at scale "laptop". The results of three seeds of size 85k were known before six seeds were
recorded.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.clustered import crossed_mean
from pythia_book.published.deduplication import BEFORE, EPOCH_STEP
from pythia_book.published.means import mean_over_pairs
from pythia_book.published.tables import CONVENTION, SAME, SAME_WHY
from pythia_book.records import number_text, value_text
from pythia_book.stats import Estimate, mean_over, quoted
from pythia_book.studies.deduplication.params import KNOWN_SD, MARGIN
from pythia_book.studies.deduplication.tables import (
    HELDOUT,
    HELDOUT_STANDARD,
    changes,
    memory,
    over_seeds,
    pooled,
)
from pythia_book.verdicts import (
    NOT_MEASURED,
    Claim,
    Test,
    falls,
    p_value,
    rises,
    smallest_margin,
    untestable,
    within,
)
from pythia_core.errors import count_of
from pythia_core.suite import DATA_ARMS
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.deduplication.params import Params
    from pythia_book.study import Measurements, Tables

WORDS = 0.5
"""The margin for last words, in points."""
FEWEST_WORDS = 10 * WORDS
"""Percentage of last words that models must predict before equality within WORDS says anything."""
EPOCHS = ((53_000, BEFORE), (103_000, OFFICIAL_STEPS))
"""Two equally long windows, one before and one after EPOCH_STEP: first and last step of each."""
ITEMS = "the items' standard errors as released, as if no model shared items"
LEE = "section 2.2, after Lee et al. 2022"
BETTER = "LLMs trained on deduplicated data are better and memorize less of their data"
NO_BENEFIT = "no clear benefit on language modeling performance"
FEW_TEXTS = (
    "nearly all memorized rows are pieces of a few planted texts, the same for all models; "
    "deduplication keeps one copy of each, so models trained after it could not recite them"
)
WHERE = {
    "unread": "is read nowhere",
    "once": "occurs once in the standard text",
    "twice": "twice",
    "more": "more often",
}
"""Maps the parts of a held-out slice of the standard text to what they are."""
HERNANDEZ = "Hernandez et al. 2022, abstract"
HARMS = (
    "repeating a relatively small fraction of data in large language models could lead to "
    "disproportionately large harms to performance"
)


def claims(
    params: Params,
    measured: Measurements,
    frames: dict[str, pd.DataFrame],
    released: dict[str, Estimate | None],
) -> list[Claim]:
    """Return all claims with their tests; `released` is the result of `released_effects`."""
    return [*_no_clear_benefit(released), *_others(params, measured, frames, released)]


def _no_clear_benefit(released: dict[str, Estimate | None]) -> list[Claim]:
    """Return the four claims that deduplication brings the released models no clear benefit."""
    rows = []
    for effect, when, tables in (
        ("zero_end", "at the end of training, zero-shot", "7 and 8"),
        ("five_end", "at the end of training, five-shot", "11 and 12"),
        ("zero_before", "at step 93,000 of 143,000, zero-shot", "9 and 10"),
        ("five_before", "at step 93,000 of 143,000, five-shot", "13 and 14"),
    ):
        units = _pairs(released[effect], ITEMS)
        why = SAME_WHY if effect == "zero_end" else CONVENTION
        note = f"mean over seven of the eight tasks, as WSC scores say nothing; {why}"
        note += _models_alone(released[f"{effect}_models"])
        rows.append(
            Claim(
                f"Deduplication brings no clear benefit (less than {SAME:g} point) on benchmarks "
                f"{when}.",
                f"section 2.6; appendix G, Tables {tables}",
                quote=NO_BENEFIT,
                released=falls(released[effect], "points", units, SAME, note),
            )
        )
    return rows


def _others(
    params: Params,
    measured: Measurements,
    frames: dict[str, pd.DataFrame],
    released: dict[str, Estimate | None],
) -> list[Claim]:
    """Return the claims of the study except those of `_no_clear_benefit`."""
    units = _seeds(params)
    suite, n_suite = _suite_change(params, measured)
    read = measured.facts["epochs"]
    more = ", ".join(f"{n * read['standard']:.1f}" for n in (2, 3))
    return [
        Claim(
            f"The second epoch of the deduplicated models, from step {EPOCH_STEP:,} (207 billion "
            "tokens) on, does not lower their scores.",
            "section 2.4",
            quote="no evidence that the second epoch negatively impacts evaluation scores",
            released=untestable(
                "by the released code both epochs are shuffled together, so no step separates them",
                released["second_epoch"],
                "points",
                _pairs(released["second_epoch"], "these items"),
                "lead of the deduplicated models at steps 53,000 to 93,000 minus their lead at "
                "steps 103,000 to 143,000, zero- and five-shot",
            ),
        ),
        Claim(
            "If documents are repeated as in the Pile, deduplication changes the loss on held-out "
            f"text of the deduplicated corpus by less than {MARGIN:g} nats per token.",
            "section 2.6",
            quote=NO_BENEFIT,
            ours=_every_size(
                params,
                changes(params, measured, HELDOUT),
                "nats per token",
                MARGIN,
                "the margin was set when the standard deviation of this change over seeds of 25k "
                f"on the text of the suite, {KNOWN_SD:g}, was known",
            ),
        ),
        Claim(
            "If documents are repeated as in the Pile, deduplication changes the loss on a "
            f"held-out slice of the standard corpus by less than {MARGIN:g} nats per token.",
            "section 2.6",
            quote=NO_BENEFIT,
            ours=_slice(params, measured, units),
        ),
        Claim(
            "Deduplicated and standard models predict the last word of held-out sentences equally "
            "often.",
            "section 2.6",
            quote=NO_BENEFIT,
            ours=_equal_words(params, measured),
        ),
        Claim(
            "If documents are repeated as in the Pile, deduplicated models memorize less of the "
            "text that occurs more than once.",
            LEE + ", and as it must be if training is equally long",
            quote=BETTER,
            ours=falls(
                over_seeds(memory(params, measured, "repeated")),
                "nats per token",
                units,
                note="memorized: loss on held-out text minus loss on the text; deduplicated minus "
                f"standard; deduplicated models read it {read['deduplicated']:.1f} times, standard "
                f"models {more} or more times",
            ),
            kind="premise",
        ),
        Claim(
            "If documents are repeated as in the Pile, deduplicated models memorize more of the "
            "text that occurs once.",
            "follows from Lee et al. 2022 if training is equally long",
            ours=rises(
                over_seeds(memory(params, measured, "once")),
                "nats per token",
                units,
                note=f"they read it {read['deduplicated']:.1f} times, standard models "
                f"{read['standard']:.1f} times",
            ),
            kind="premise",
        ),
        Claim(
            "Models trained on text with heavily repeated documents have a higher held-out loss.",
            HERNANDEZ,
            quote=HARMS,
            ours=untestable(
                "known when this was written: an earlier record of these runs gave \u22120.158",
                suite,
                "nats per token",
                n_suite,
                "deduplicated minus standard; a few hundred texts are planted up to 128 times, and "
                'deduplication removes more than "a relatively small fraction"',
            ),
        ),
        Claim(
            "Models trained on deduplicated text score higher on benchmarks.",
            LEE,
            quote=BETTER,
            released=rises(
                released["average"],
                "points",
                _pairs(released["average"], ITEMS),
                note="mean over the checkpoints from step 13,000 on, zero- and five-shot; the "
                "items are the same throughout, so more checkpoints do not lower their error"
                + _models_alone(released["average_models"]),
            ),
        ),
        Claim(
            "Models trained on deduplicated text memorize less of it.",
            LEE,
            quote=BETTER,
            ours=_memorized(frames["memorized"]),
        ),
    ]


def _pairs(e: Estimate | None, items: str) -> str:
    """Return a text with the number of model pairs behind `e`, then `items`; "" if `e` is None."""
    return f"{e.n_seeds} pairs of models, one training each; {items}" if e else ""


def _models_alone(e: Estimate | None) -> str:
    """Return the end of a note: the interval of `e`, over models only; "" if it has none."""
    if e is None or not e.low < e.high:
        return ""
    interval = value_text(quoted(e)).partition(" ")[2]
    return f"; the interval over the models alone, for these items, is {interval}"


# --- released --------------------------------------------------------------------------------


def released_effects(released: Tables) -> dict[str, Estimate | None]:
    """Return the effects of deduplication on the released twins, in points; None without scores.

    A lead is the accuracy of the deduplicated model minus that of the standard model.

    - `zero_end`, `five_end`: mean zero-shot or five-shot lead at the last step.
    - `zero_before`, `five_before`: mean zero-shot or five-shot lead at step BEFORE.
    - `average`: mean lead over all checkpoints. All checkpoints are scored on the same items, so a
      pair's standard error is the mean of the errors at all checkpoints, an upper bound.
    - `second_epoch`: mean lead in the first window of EPOCHS minus that in the second.

    Intervals cover models and items, but the intervals of `second_epoch` and of further keys that
    end in `_models` cover models only.
    """
    names = ("zero_end", "five_end", "zero_before", "five_before", "average")
    both = [*names, *(f"{name}_models" for name in names)]
    effects: dict[str, Estimate | None] = dict.fromkeys([*both, "second_epoch"])
    twins = released.get("twins")
    if twins is None or twins.empty:
        return effects
    for name, shots in (("zero", 0), ("five", 5)):
        for place, step in (("end", OFFICIAL_STEPS), ("before", BEFORE)):
            rows = twins[(twins.shots == shots) & (twins.step == step)]
            if len(rows):
                effects |= _with_and_without_items(f"{name}_{place}", rows)
    pairs = twins.groupby("model")[["value", "stderr"]].mean()
    effects |= _with_and_without_items("average", pairs)
    windows = [twins[twins.step.between(*window)] for window in EPOCHS]
    before, after = (rows.groupby("model").value.mean() for rows in windows)
    if len(lost := (before - after).dropna()):
        effects["second_epoch"] = mean_over(lost.to_numpy())
    return effects


def _with_and_without_items(name: str, pairs: pd.DataFrame) -> dict[str, Estimate | None]:
    """Estimate the mean lead, in points, of the pairs of models in `pairs`, with two intervals.

    `pairs` has the columns `value` and `stderr`. The estimate with the key `name` has an interval
    over models and items; the estimate with the key NAME_models, over models only.
    """
    values = pairs.value.to_numpy()
    return {
        name: mean_over_pairs(values, pairs.stderr.to_numpy()),
        f"{name}_models": mean_over(values),
    }


# --- ours ------------------------------------------------------------------------------------


def _seeds(params: Params) -> str:
    """Return text that says what the claims on text repeated as in the Pile are averaged over."""
    return f"{count_of(params.seeds, 'seed')}, mean over {' and '.join(params.size_list)}"


def _suite_change(params: Params, measured: Measurements) -> tuple[Estimate | None, str]:
    """Return how deduplication changes the suite's held-out loss, and what was averaged.

    The change is deduplicated minus standard, in nats per token. Without a measured pair of models,
    return (None, "").
    """
    rows = pooled(params, measured)
    if rows is None:
        return None, ""
    models, n = rows.shape
    units = (
        f"{count_of(models, 'size')}, one pair of models each, all with one seed of weights and "
        f"order, and {n:,} held-out rows"
    )
    return crossed_mean(rows), units


def least_equal(values: np.ndarray, margin: float) -> tuple[int, Estimate] | None:
    """Return the column of float[seeds, sizes] that is least likely to be within `margin` of zero.

    If this size is within the margin, so are all, and the largest p-value needs no correction. If
    it is outside, it was chosen from all sizes, so its p-value is multiplied by their number.

    Returns:
        The number of the size, and its estimate over seeds; None without a seed that has all sizes.
    """
    whole = values[np.isfinite(values).all(1)]
    if not len(whole):
        return None
    estimates = [mean_over(column) for column in whole.T]

    def against(e: Estimate) -> float:
        p = p_value(Test(e, form="within", bound=margin))
        return p if abs(e.value) < margin else 2 - p

    j = max(range(len(estimates)), key=lambda j: against(estimates[j]))
    e = estimates[j]
    if abs(e.value) < margin or not math.isfinite(e.low):
        return j, e
    return j, replace(e, exact_p=lambda null: min(1.0, len(estimates) * e.p_value(null)))


def _every_size(params: Params, values: np.ndarray, unit: str, margin: float, why: str) -> Test:
    """Test whether a change, float[seeds, sizes], is within `margin` of zero at every size.

    `why` says where the margin is from.
    """
    worst = least_equal(values, margin)
    if worst is None:
        return within(None, unit, "", margin)
    j, e = worst
    note = f"{why}; of all sizes, the one with the largest p-value is shown"
    if (mean := over_seeds(values)) and len(params.size_list) > 1:
        note += f"; the mean over sizes is {value_text(quoted(mean))}"
    if e.low < e.high:
        shown = number_text(smallest_margin(e))
        note += f"; with this spread, the smallest margin that could be shown is ±{shown} {unit}"
    return within(e, unit, f"{count_of(params.seeds, 'seed')}, {params.size_list[j]}", margin, note)


def _equal_words(params: Params, measured: Measurements) -> Test:
    """Test whether the change in last words predicted, in points, is 0 within WORDS at every size.

    There is a verdict only if the models predict at least FEWEST_WORDS percent of the words.
    """
    values = changes(params, measured, "last_word")
    why = f"the margin is a tenth of the {FEWEST_WORDS:g} % that models must predict for a verdict"
    test = _every_size(params, values, "points", WORDS, why)
    right = _words(params, measured)
    percent = 100 * np.mean(right) if right else 0.0
    if test.estimate is None or percent >= FEWEST_WORDS:
        return test
    return untestable(
        f"the models predict only {percent:.1f} % of the last words, so equality within "
        f"{WORDS:g} points would say little; a verdict needs {FEWEST_WORDS:g} %",
        over_seeds(values),
        "points",
        _seeds(params),
    )


def _slice(params: Params, measured: Measurements, units: str) -> Test:
    """Return the change on held-out text drawn like the standard corpus, without a verdict."""
    shares = measured.facts["slice_shares"]
    estimates = {
        name: over_seeds(changes(params, measured, {"unread": HELDOUT}.get(name, name)))
        for name in shares
    }
    note = "; ".join(
        f"{100 * shares[name]:.0f} % {WHERE[name]}: {value_text(quoted(e))}"
        for name, e in estimates.items()
        if e
    )
    return untestable(
        "a weighted sum of changes that can have either sign; the weights are those of our copies",
        over_seeds(changes(params, measured, HELDOUT_STANDARD)),
        "nats per token",
        units,
        note,
    )


def _words(params: Params, measured: Measurements) -> list[np.ndarray]:
    """Return which last words each final model predicts, bool[words] each."""
    cells = [
        (size, arm, seed)
        for size in params.size_list
        for arm in DATA_ARMS
        for seed in params.seed_values
    ]
    arrays = (measured.get("last_word", *cell) for cell in cells)
    return [array for array in arrays if array is not None]


def _memorized(frame: pd.DataFrame) -> Test:
    """Return the change in the share of memorized rows, averaged over sizes, without a verdict."""
    shares = frame.pivot(index="size", columns="arm", values="value").reindex(columns=DATA_ARMS)
    shares = 100 * shares.dropna()
    if shares.empty:
        return untestable(NOT_MEASURED)
    standard, deduplicated = (shares[arm].to_numpy() for arm in DATA_ARMS)
    units = f"{len(shares)} sizes, one pair of models each"
    note = f"from {standard.mean():.2f} to {deduplicated.mean():.2f} % of the rows"
    change = mean_over(deduplicated - standard)
    return untestable(FEW_TEXTS, change, "percentage points", units, note)
