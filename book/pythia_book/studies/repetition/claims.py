"""The claims, hypotheses and premises of the repetition study.

None of the claims is from the Pythia paper. Those of Muennighoff et al. name no model size, so we
test them at our sizes, and a note gives the size of their models. Effects are means over sizes, or
of one size where the statement says so; intervals are over seeds.

Margins and hypotheses were written before any run of this design at scale laptop. What was known:
an earlier version of the study (one size of 85k, one seed), in which four epochs raised the loss by
2.2 % and sixteen by 46 %, and the loss of sixteen epochs ended 1.4 nats above its minimum; and a
pilot at scale smoke, after which the hypothesis about the onset was tested on two arms instead of
one. What that version settled is a premise here. The claim about four epochs has no verdict,
because its margin was set when the 2.2 % was known. The claim about two epochs was added when the
results were known. The claim about sixteen epochs against eight has no verdict, because its
direction was known.

With few seeds, each claim makes the others harder to resolve (Holm), so we test few.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pythia_book.stats import Estimate, mean_over_known
from pythia_book.studies.repetition.fits import DECAY, Laws
from pythia_book.studies.repetition.losses import Losses
from pythia_book.verdicts import Claim, Test, falls, rises, untestable

PAPER = "Muennighoff et al. 2023"
NEGLIGIBLE = 1.0
"""A change in the loss by less than this, in percent of the fresh loss, is negligible. It is twice
the authors' example, a run of four epochs "with only 0.5% higher validation loss" (section 6): with
the example itself as the margin, the example would not pass. The 2.2 % of the earlier version was
known when the margin was set."""
THEIRS = "the source's models have up to 8.7 billion parameters (section 4)"
NATS = "nats per token"
ADDED = "added after the results were known"


def claims(losses: Losses, laws: Laws) -> list[Claim]:
    """Return the claims and hypotheses of the study, all tested on our runs only."""
    params = losses.params
    sizes, most = params.size_list, params.epoch_list[-1]
    second = params.epoch_list[-2]
    of_seeds = f"{params.seeds} seed{'s' * (params.seeds > 1)}"
    units = f"{of_seeds}; mean over {', '.join(sizes)}"

    def mean(of: Any) -> Estimate | None:
        """Return the mean over sizes of `of`, a function of the size, over seeds."""
        return mean_over_known(np.mean([of(size) for size in sizes], axis=0))

    def gain(size: str) -> np.ndarray:
        """Return the change in the loss when the same data are read twice as often."""
        half = most // 2
        return losses.final(size, most, most) - losses.final(size, most, half)

    def negligible(epochs: int, text: str, reason: str) -> Claim:
        """Return the claim that `epochs` epochs cost next to nothing, which has no verdict."""
        return Claim(
            f"{text} epochs change the loss negligibly, compared with as much fresh data.",
            f"{PAPER}, abstract",
            untestable(
                reason,
                mean(lambda size: losses.cost(size, epochs, percent=True)),
                "% of the loss",
                units,
                f"new seeds and sizes; the margin, {NEGLIGIBLE:g} %, is twice the source's example "
                f"of a negligible difference; {_tested_at(losses, epochs)}",
            ),
            quote="training with up to 4 epochs of repeated data yields negligible changes to loss "
            "compared to having unique data",
        )

    return [
        negligible(2, "Two", ADDED),
        negligible(
            4,
            "Four",
            f"the margin, {NEGLIGIBLE:g} %, was set when 2.2 % at 85k (one seed) was known",
        ),
        Claim(
            "Reading the same data sixteen times instead of eight still lowers the loss.",
            f"{PAPER}, section 6",
            untestable(
                "the direction was known from one run of 85k, which was best after 4 of 16 epochs "
                "and ended 1.45 nats above its best loss",
                mean(gain) if most == 16 else None,
                NATS,
                units,
                "new seeds and sizes; each number of epochs with a schedule of its own length; "
                f"{_tested_at(losses, most)}",
            ),
            quote="Meaningful gains from repeating data can be made up to around 16 epochs (R*_D) "
            "beyond which returns diminish extremely fast.",
        ),
        Claim(
            "Excess parameters lose their value faster than repeated tokens.",
            f"{PAPER}, appendix A",
            _faster(laws, of_seeds),
            quote="Since R*_D > R*_N, excess parameters decay faster",
        ),
        Claim(
            "A law in which parameters decay too predicts sizes that it has not seen better than "
            "one in which only data decay.",
            f"{PAPER}, appendix A, about the fit to all sizes",
            falls(
                laws.advantage("whole", "data"),
                "% of the loss",
                units,
                note="error of the predicted excess over fresh data, each size left out in turn",
            ),
            quote="it is important to decay both the value of excess parameters and data "
            "repetitions",
        ),
        Claim(
            "An additive penalty that grows with repetition and with parameters per token predicts "
            "sizes that it has not seen better than the law of Muennighoff et al.",
            "ours, after Lovelace et al. 2026, as given by Weng 2026",
            falls(laws.advantage("penalty", "whole"), "% of the loss", units),
            kind="hypothesis",
        ),
        Claim(
            f"In the arms of {second} and {most} epochs, the loss of the largest size begins to "
            "rise after fewer epochs than that of the smallest.",
            "ours, after Lovelace et al. 2026",
            _earlier(losses, of_seeds),
            kind="hypothesis",
        ),
        Claim(
            f"On the data of the arm of {most} epochs, the best run that is planned to stop early "
            "has a lower loss than the best checkpoint of that arm.",
            "ours: a checkpoint has not had the decay of its learning rate",
            falls(mean(lambda size: losses.planned(size, most)), NATS, units),
            kind="hypothesis",
        ),
        Claim(
            "Sixteen epochs give a higher loss than four, at equal compute.",
            f"{PAPER}, section 6; known from the earlier version of this study",
            rises(mean(lambda size: losses.cost(size, 16, base=4)), NATS, units),
            quote="models trained on less unique data (and, correspondingly, more epochs) have "
            "consistently higher loss",
            kind="premise",
        ),
        Claim(
            f"With {most} epochs, the held-out loss rises again before the end of training.",
            f'ours; the curves of {PAPER}, Figure 4, "diverge if too many epochs are used"; '
            "known from the earlier version of this study (1.45 nats at 85k)",
            rises(
                mean(lambda size: losses.rise(size, most)),
                NATS,
                units,
                note="the end minus the best earlier checkpoint, which was chosen on the other "
                "half of the held-out documents",
            ),
            kind="premise",
        ),
        Claim(
            "A law in which data decay predicts sizes that it has not seen better than one in "
            "which repeated data are as good as fresh.",
            "follows if repeating costs much",
            falls(laws.advantage("data", "none"), "% of the loss", units),
            kind="premise",
        ),
    ]


def _earlier(losses: Losses, of_seeds: str) -> Test:
    """Test whether the loss of the largest size rises after fewer epochs than that of the smallest.

    The effect is log2 of the ratio of their onsets, a mean over the two arms with the most epochs.
    A loss that does not rise counts as one that would rise at its end: if the smallest size does
    not rise, the true effect is larger.
    """
    params = losses.params
    small, large = params.size_list[0], params.size_list[-1]
    if small == large:
        return untestable("there is only one size")
    ratios, n_open = [], 0
    for r in params.epoch_list[-2:]:
        onsets = []
        for size in (small, large):
            measured, onset = np.isfinite(losses.final(size, r, r)), losses.onset(size, r)
            n_open += int((measured & np.isnan(onset)).sum())
            onsets.append(np.where(measured & np.isnan(onset), r, onset))
        ratios.append(np.log2(onsets[1] / onsets[0]))
    note = (
        f"{n_open} of {4 * params.seeds} losses do not rise and count as rising at their end"
        if n_open
        else ""
    )
    return falls(mean_over_known(np.mean(ratios, axis=0)), "doublings", of_seeds, note=note)


def _tested_at(losses: Losses, epochs: int) -> str:
    """Say how large our largest model and the data of an arm are, next to the source's models."""
    count, tokens = losses.parameters(losses.params.size_list[-1]), losses.tokens(epochs)
    return f"tested at up to {count:,} parameters, on {tokens:,} distinct tokens, while {THEIRS}"


def _faster(laws: Laws, of_seeds: str) -> Test:
    """Test whether 1 / R*_N is above 1 / R*_D, if the law determines both."""
    rates = [laws.constants[name] for name in DECAY if laws.constants]
    unit = "per repetition"
    note = (
        "1/R*_N minus 1/R*_D of the law fitted to all sizes; at each end the wider of two intervals"
    )
    if not all(rate.identified for rate in rates):
        reason = "our runs do not determine both constants"
        return untestable(reason, laws.rate_difference, unit, of_seeds, note)
    return rises(laws.rate_difference, unit, of_seeds, note=note)
