"""The claims of the term-frequency study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.means import signed
from pythia_book.stats import Estimate, difference, mean_over, slope, wilson
from pythia_book.studies.scaling.released import PER_TENFOLD, parameters
from pythia_book.studies.term_frequency.params import CHOICES, WORD_BINS
from pythia_book.studies.term_frequency.tables import (
    TENTH,
    NumberScores,
    cell,
    selected,
    welch,
)
from pythia_book.verdicts import POWER, Claim, Test, rises, smallest_seen, untestable, within
from pythia_core.errors import count_of
from pythia_core.suite import size_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.term_frequency.params import Params

PLACEBO_MARGINS = {"exact": 2.0, "logprob": 0.25}
"""Bounds for the effect of the placebo, a coin that changes nothing: two points of accuracy, and a
quarter of a nat (a factor of 1.3 in the probability of an answer)."""
BELOW_1B, BELOW_2_8B = ("160m", "410m"), ("160m", "410m", "1b", "1.4b")
LARGE = ("2.8b", "6.9b", "12b")
"""The largest sizes. Sizes are grouped as in the paper; 70M has no released accuracies."""
MAINLY_LARGER = "performance increase as training progresses mainly happens for larger models only"
NO_COUNTS = "how often each number occurs in the Pile was never released"
IN_SUMS = (
    "frequency is that within the planted sums, not in the text; the paper counts the whole corpus"
)
COIN_NAMES = {"boost": "made frequent", "placebo": "placebo"}
ADDED = "added after the result was known"
ONE_RUN = "each size was trained once; how much this differs between seeds was not measured"
"""Why comparisons of frequent with rare terms get no verdict. Those of the coins do: each coin is
a random choice within pairs, so their tests hold for the runs at hand."""


def claims(
    params: Params, scores: NumberScores, tables: dict[str, pd.DataFrame], operands: pd.DataFrame
) -> list[Claim]:
    """Return the claims of the term-frequency study.

    By default, a claim on our models is about the largest size at the end of training, with the
    most solved examples before each sum. `operands` is the table of `study.released`.
    """
    ours = [
        *_on_frequency(params, scores),
        *_on_coins(params, scores),
        *_on_words(params, tables["definitions"]),
    ]
    tested = [claim for claim in ours if claim.kind == "claim" and claim.ours and claim.ours.form]
    return [*_on_released(operands, 1 + len(tested)), *ours]


# --- released models -------------------------------------------------------------------------


def _on_released(operands: pd.DataFrame, n_tests: int) -> list[Claim]:
    """Return the claims on released models; `n_tests`: how many claims the study tests in all."""
    unable = released_mean(operands, BELOW_1B, 143_000)
    late = [released_change(operands, sizes, 65_000, 143_000) for sizes in (LARGE, BELOW_2_8B)]
    note = ""
    if late[0] is not None and late[1] is not None:
        note = (
            "after step 65,000 the accuracy itself changes by "
            f"{signed(late[0].mean())} points in the models from 2.8B on and by "
            f"{signed(late[1].mean())} points in the smaller ones"
        )
    return [
        Claim(
            "Models below a billion parameters are unable to do well on sums after 16 examples.",
            "section 3.3 and Figure 7",
            released=untestable(
                'the paper does not say what "well" is; its own numbers are shown',
                None if unable is None else mean_over(unable.to_numpy()),
                "% right",
                "100 first operands, averaged over the 160M and 410M models",
            ),
            quote="models at sizes below 1 billion are unable to perform well even in later "
            "stages of training",
        ),
        Claim(
            "In training, models of 2.8 billion parameters and more improve more on sums than "
            "smaller ones.",
            "section 3.3, Figures 4 and 7",
            released=_larger_improve_more(operands, n_tests),
            quote=MAINLY_LARGER,
        ),
        Claim(
            "On questions of fact (TriviaQA), mainly the larger models improve in training.",
            "section 3.3 and Figure 4",
            released=untestable("the accuracies on TriviaQA were not released"),
            quote=MAINLY_LARGER,
        ),
        Claim(
            "After 65,000 steps, the accuracy of models of 2.8 billion parameters and more begins "
            "to depend on term frequency.",
            "section 1 and Figure 4",
            released=untestable(NO_COUNTS, note=note),
            quote="a significant phase change occurs after 65,000 training steps (45% through "
            "training): the models with 2.8 billion parameters or more start to exhibit a "
            "correlation between task accuracy and occurrence of task-relevant terms",
        ),
    ]


def released_mean(operands: pd.DataFrame, models: tuple[str, ...], step: int) -> pd.Series | None:
    """Return released accuracy on sums by first operand, in percent, averaged over `models`.

    The result is None if a model is missing. See `claims` for `operands`.
    """
    at = operands[(operands.step == step) & operands.model.isin(models)]
    if set(at.model) != set(models):
        return None
    return 100 * at.groupby("number").value.mean()


def released_change(
    operands: pd.DataFrame, models: tuple[str, ...], first: int, last: int
) -> pd.Series | None:
    """Return how much `released_mean` changes from step `first` to step `last`, in points.

    The index is the first operand. The result is None if a model is missing.
    """
    before, after = (released_mean(operands, models, step) for step in (first, last))
    return None if before is None or after is None else after - before


def _larger_improve_more(operands: pd.DataFrame, n_tests: int) -> Test:
    """Test whether the models in LARGE improve more at sums than the models in BELOW_2_8B.

    There is no verdict if an effect of 100 points, the largest possible one, would be missed too
    often, as one of `n_tests` tests.
    """
    changes = {
        model: change.mean()
        for model in (*BELOW_2_8B, *LARGE)
        if (change := released_change(operands, (model,), 13_000, 143_000)) is not None
    }
    large, small = (
        np.array([changes[model] for model in models if model in changes])
        for models in (LARGE, BELOW_2_8B)
    )
    effect = welch(large, small) if len(large) and len(small) else None
    note = (
        "addition after 16 examples, from step 13,000 to step 143,000: "
        + ", ".join(f"{model} {signed(change)}" for model, change in changes.items())
        + '; the sentence is about questions of fact, which it says show "similar patterns" to sums'
    )
    test = rises(effect, "points", f"{len(large)} and {len(small)} models", note=note)
    if effect is None or not effect.low < effect.high or smallest_seen(effect, n_tests) <= 100:
        return test
    reason = (
        "the models are so few, and differ so much, that no possible effect would be detected with "
        f"{100 * POWER:.0f} % power"
    )
    return untestable(reason, effect, test.unit, test.units, note)


# --- frequency of numbers --------------------------------------------------------------------


def comparable_sizes(sizes: tuple[str, ...]) -> list[str]:
    """Return the sizes whose attention heads are as wide as the heads of the largest (last) size.

    Attention and rotary embeddings depend on the width, so other sizes are not comparable.
    """
    wide = [size_named(size).d_model // size_named(size).n_heads for size in sizes]
    return [size for size, width in zip(sizes, wide, strict=True) if width == wide[-1]]


def _on_frequency(params: Params, scores: NumberScores) -> list[Claim]:
    """Return the claims that compare sums with frequent and with rare first operands."""
    sizes, shots, steps = params.size_list, params.shot_list[-1], scores.steps
    large, first, last = sizes[-1], steps[0], steps[-1]
    units = f"20 numbers; one run of {large}"
    top, bottom = scores.boosted_in_tenths()
    confounded = (
        f"small numbers are both frequent and easy to add; the coin chose {top} of the {TENTH} "
        f"most frequent numbers and {bottom} of the {TENTH} rarest; {IN_SUMS}"
    )
    alike = untestable(NO_COUNTS)

    widening = None
    if first != last:
        widening = scores.gap_change(((large, first), (large, last)), 0, "choice")
    gaps = {size: scores.gap(size, last, 0, "choice") for size in comparable_sizes(sizes)}
    measured = {size: gap.value for size, gap in gaps.items() if gap is not None}

    return [
        *(
            Claim(
                text,
                "section 3.3, after Razeghi et al. 2022",
                untestable(ONE_RUN, _percent(scores.gap(large, last, k, measure)), "points", units,
                           confounded),
                alike,
                quote="accuracy tends to be higher for terms that are found more frequently "
                "compared to terms that are less frequent",
            )
            for measure, k, text in (
                ("exact", shots, "Sums are solved more often if their first operand is frequent, "
                 f"{shots}-shot."),
                ("choice", 0, "The right sum is picked out of four more often if its first operand "
                 "is frequent, zero-shot."),
            )
        ),
        Claim(
            "The gap between frequent and rare operands widens in training.",
            "section 3.3 and Table 4",
            untestable(ONE_RUN, _percent(widening), "points", units,
                       f"choice of four, from step {first} to step {last}; the paper's table is of "
                       f"multiplication; {confounded}"),
            alike,
            quote="We find that this performance gap widens over the course of training.",
        ),
        Claim(
            "The gap between frequent and rare operands is wider in larger models.",
            "section 3.3",
            rises(_percent(slope(np.log10(parameters(measured)), list(measured.values()))),
                  PER_TENFOLD, f"{count_of(len(measured), 'size')}; one run of each",
                  note=f"choice of four, sizes with heads as wide as those of {large}: "
                  + ", ".join(f"{size} {signed(100 * gap)}" for size, gap in measured.items())
                  + f"; {IN_SUMS}"),
            alike,
            quote="this correlation is an emergent property in larger models",
        ),
    ]  # fmt: skip


def _percent(e: Estimate | None) -> Estimate | None:
    """Convert an estimate, if there is one, from a share to percent."""
    return e and e.times(100)


# --- the experiment --------------------------------------------------------------------------


def larger_half(sizes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the larger half of the sizes, with the middle one if their number is odd.

    The coins' effects are averaged over these sizes, as was decided before any measurement.
    """
    return sizes[len(sizes) // 2 :]


def _on_coins(params: Params, scores: NumberScores) -> list[Claim]:
    """Return the claims on the coins (see `NumberScores.coins`)."""
    few, sizes = params.shot_list[-1], larger_half(params.size_list)
    units = f"matched pairs of numbers; {count_of(len(sizes), 'size')}, one run of each"
    rows = []
    for measure, shots, unit, factor, what, more in (
        ("exact", few, "points", 100, "written more often", ""),
        ("choice", 0, "points", 100, "picked out of four more often",
         "; wrong answers have the same first operand"),
        ("margin", 0, "nats", 1, "given a larger margin over wrong ones",
         "; margin: its log-probability minus the mean of three wrong answers with the same first "
         "operand; added when the result of the choice was known, and this one was not"),
        ("logprob", few, "nats", 1, "given a higher probability",
         "; wrong answers with the same first operand may gain too, see the margin"),
    ):  # fmt: skip
        effects = scores.coins(sizes, shots, measure)
        scaled = {coin: e.times(factor) for coin, e in effects.items()}
        boost, placebo = (scaled.get(coin) for coin in ("boost", "placebo"))
        each = ", ".join(f"{COIN_NAMES[coin]} {signed(e.value, 2)}" for coin, e in scaled.items())
        note = f"tested on sums, {shots}-shot, mean over {', '.join(sizes)}"
        note += f": {each}" if each else "; no coin was measured"
        pairs = f"{boost.n_items if boost else 0} {units}"
        rows.append(
            Claim(
                f"The right answer is {what} for numbers whose frequency was raised at random.",
                "section 3.3, about Elazar et al. 2022 and Kandpal et al. 2022",
                untestable(ADDED, boost, unit, pairs, f"{note}{more}")
                if measure == "choice"
                else rises(boost, unit, pairs, note=f"{note}{more}"),
                quote="These works observe a correlational and causal relationship between the "
                "ability to answer factual questions and the frequency of salient entities found "
                "in the pretraining corpus",
            )
        )
        if measure in PLACEBO_MARGINS:
            rows.append(
                Claim(
                    "Under the placebo (a coin toss that changes nothing), the right answer is not "
                    f"{what}.",
                    "validity of the randomized experiment",
                    within(placebo, unit, pairs, PLACEBO_MARGINS[measure], note),
                    kind="check",
                )
            )
    return rows


# --- words -----------------------------------------------------------------------------------


def _on_words(params: Params, table: pd.DataFrame) -> list[Claim]:
    """Return the claims that a model picks a defined word more often if the word is frequent."""
    size = params.size_list[-1]
    return [
        Claim(
            f"Given a definition {reading}, the model picks the defined word more often if the "
            "word is frequent.",
            "our counterpart of Figure 4, which is about questions of fact (TriviaQA)",
            _word_test(selected(table, size=size, read=read), size),
            kind="premise",
        )
        for read, reading in ((True, "read once"), (False, "never read"))
    ]


def word_ends(table: pd.DataFrame) -> tuple[Estimate, Estimate] | None:
    """Return how often words of the rarest and of the most frequent bin are picked, for one model.

    None if fewer than two bins of WORD_BINS have words.
    """
    groups = table[table.group >= WORD_BINS[0]].sort_values("group")
    least, most = cell(groups), cell(groups[-1:])
    return (least, most) if least and most and len(groups) > 1 else None


def _word_test(table: pd.DataFrame, size: str) -> Test:
    """Show how much more often a model picks the most frequent words than the rarest ones."""
    ends = word_ends(table)
    if ends is None:
        return untestable("no definitions in this corpus")
    least, most = ends
    units = f"{least.n_items} rare and {most.n_items} frequent words; one run of {size}"
    right = int((table.value * table.n)[table.group >= WORD_BINS[0]].round().sum())
    guess = wilson(right, int(table.n[table.group >= WORD_BINS[0]].sum()))
    reason = ONE_RUN if guess.low > 1 / CHOICES else "the model guesses"
    return untestable(reason, difference(most, least).times(100), "points", units)
