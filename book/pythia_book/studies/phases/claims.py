"""Claims of other papers about early training, and the numbers that the page quotes.

Claims about models in general have intervals over our model sizes, with one run each. The time
between two events of training is measured in doublings of the step number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.records import number_text
from pythia_book.stats import Estimate, estimate, mean_over
from pythia_book.studies.phases import transitions
from pythia_book.studies.phases.ngrams import ORDERS
from pythia_book.studies.phases.tables import (
    KL,
    Curves,
    interval_of,
    milestones,
)
from pythia_book.studies.phases.transitions import BELROSE, INCREASING, OLSSON, Model, knock_outs
from pythia_book.verdicts import Claim, Test, rises
from pythia_core.errors import count_of
from pythia_core.suite import scale_named
from pythia_core.training.schedule import linear_step

if TYPE_CHECKING:
    from pythia_book.studies.phases.params import Params
    from pythia_book.study import Measurements

NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}
EIGHTH = 18
"""Index of the evenly spaced checkpoint, out of 143, at an eighth of training."""
Models = dict[str, "Curves | None"]
"""Maps a size to the scores of its model; None if no checkpoint could be measured."""
COPYING = (
    "any heads that empirically increase the likelihood of [B] given [A][B]...[A] when shown a "
    "repeated sequence of completely random tokens"
)
MATCHING = (
    "The head attends back to previous tokens that were followed by the current and/or recent "
    "tokens."
)
EMBEDDING = "no trained model could fail: before the first block there is only the embedding"


def claims(
    params: Params, models: Models, facts: dict[str, Any], of_laboratory: list[Model]
) -> list[Claim]:
    """Return the claims of other work about early training, with their tests.

    Induction is tested on the models of the laboratory, and on released models. Our models of prose
    read a thousandth of the text after which Olsson et al. saw induction heads form.
    """
    n, chance = facts["n_sequences"], facts["prefix_chance"]
    heads = facts.get("laboratory_heads", 0)
    gaps = [at_the_end(params, models, size, "lens_gap") for size in params.size_list]

    def induction(text: str, measure: str, unit: str, quote: str, bound: float = 0) -> Claim:
        """Return the claim that `measure` of the largest model is above `bound` after training."""
        e = at_the_end(params, models, params.size_list[-1], measure)
        units = f"one run, {params.size_list[-1]}; {n} sequences"
        note = f"uniform attention would give {number_text(bound)}" if bound else ""
        test = rises(e, unit, units, bound, note)
        return Claim(text, f"{OLSSON}, Induction Heads", test, quote=quote)

    of_induction = [
        induction(
            "A random sequence is predicted better on its second occurrence in the context.",
            "gain", "nats per token", COPYING,
        ),
        induction(
            "A random sequence is predicted better after an exact copy than after a shuffled one.",
            "order_gain", "nats per token", COPYING,
        ),
        induction(
            "At least one head attends more than uniform attention would to the token that "
            "followed an earlier occurrence of the current token.",
            "prefix", "of attention mass", MATCHING, chance,
        ),
    ]  # fmt: skip
    return [
        *(
            Claim(
                f"The model's predictions come closest to {NAMES[early]} statistics earlier in "
                f"training than to {NAMES[late]} statistics.",
                BELROSE,
                _over_sizes(
                    [doublings(models[size], early, late) for size in params.size_list],
                    "doublings of training",
                ),
                quote=INCREASING,
            )
            for early, late in ((1, 2), (2, 3))
        ),
        *(of_induction if params.released else transitions.claims(of_laboratory, heads)),
        Claim(
            "The logit lens is nearer to the final prediction before the last block than before "
            "the first.",
            "Belrose et al. 2023, abstract",
            replace(_over_sizes([e and e.value for e in gaps], "nats"), form="", reason=EMBEDDING),
            quote="seeking to understand how model predictions are refined layer by layer",
        ),
    ]  # fmt: skip


def _over_sizes(values: list[float | None], unit: str) -> Test:
    """Test that the mean of an effect over the measured model sizes is positive."""
    found = [value for value in values if value is not None]
    e = mean_over(found) if found else None
    return rises(e, unit, f"{count_of(len(found), 'size')}, one run each")


def doublings(curves: Curves | None, early: int, late: int) -> float | None:
    """Return how many times the step number doubles between two milestones of a model.

    A milestone is the step at which the model is nearest, in KL, to the n-grams of order `early` or
    `late`. Step 0 counts as step 1. The result is negative if the milestone of `late` comes first.
    """
    if curves is None:
        return None
    first, second = (
        max(1, curves.steps[curves.values[KL[order]].mean(1).argmin()]) for order in (early, late)
    )
    return float(np.log2(second / first))


def at_the_end(params: Params, models: Models, size: str, measure: str) -> Estimate | None:
    """Estimate a measure (one of MEASURES) at the last step; None if it was not measured."""
    curves = models[size]
    last = curves and curves.at(scale_named(params.scale).steps, measure)
    return None if last is None else estimate(last[None], params.bootstrap, change=True)


def after_an_eighth(params: Params, models: Models, size: str, measure: str) -> Estimate | None:
    """Estimate a measure (one of MEASURES) after an eighth of training; None if not measured."""
    curves = models[size]
    early = curves and curves.at(linear_step(EIGHTH, scale_named(params.scale).steps), measure)
    return None if early is None else estimate(early[None], params.bootstrap, change=True)


def values(
    params: Params, models: Models, measured: Measurements, of_laboratory: list[Model]
) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name."""
    smallest, largest = params.size_list[0], params.size_list[-1]
    facts = measured.facts
    numbers: dict[str, Any] = {
        "sizes": ", ".join(params.size_list), "smallest": smallest, "largest": largest
    }  # fmt: skip
    numbers |= {
        name: facts[name]
        for name in (
            "gaps", "n_checkpoints", "n_rows", "n_places", "n_sequences", "copy_length",
            "prefix_chance", "tokens_read", "tokens_trained",
        )
    }  # fmt: skip
    ngram_loss = measured.arrays["ngram_loss"].astype(np.float64)
    for i, order in enumerate(ORDERS):
        loss = estimate(ngram_loss[i][None], params.bootstrap)
        numbers[f"ngram_loss_{order}"] = loss.interval()
        numbers[f"strength_{order}"] = facts["strengths"][i]
    for role, size in (("smallest", smallest), ("largest", largest)):
        for measure in ("loss", "gain", "order_gain", "prefix", "lens_first", "lens_last"):
            e = at_the_end(params, models, size, measure)
            numbers[f"{measure}_{role}"] = e and e.interval()
        if curves := models[size]:
            for event, order, indices in milestones(curves, ngram_loss, params.bootstrap):
                numbers[f"{event}_{order}_{role}"] = _step_or_words([*curves.steps, None], indices)
            for order in ORDERS:
                numbers[f"kl_{order}_{role}"] = float(curves.values[KL[order]].mean(1).min())
    heads = measured.get("heads", largest)
    kinds = {} if heads is None else knock_outs(heads)
    for kind in ("induction", "previous-token"):
        numbers[f"{kind.replace('-', '_')}_heads"] = kinds[kind].heads if kinds else None
    e = after_an_eighth(params, models, largest, "lens_last")
    numbers["lens_eighth_largest"] = e and e.interval()
    if curves := models[largest]:
        prefix = curves.values["prefix"]
        most = int(prefix.mean(1).argmax())
        numbers["prefix_most"] = estimate(prefix[most][None], params.bootstrap).interval()
        numbers["prefix_most_step"] = curves.steps[most]
    return numbers | transitions.values(of_laboratory, facts)


def _step_or_words(steps: list[int | None], indices: np.ndarray) -> dict[str, Any] | str:
    """Return the step of a milestone with its interval, or the text "not reached".

    `indices` are positions in `steps`, one for each resample. An end of the interval is None if
    it means "not reached".
    """
    value, low, high = (steps[i] for i in interval_of(indices))
    return "not reached" if value is None else {"value": value, "low": low, "high": high}
