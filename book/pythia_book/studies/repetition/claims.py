"""The claims and hypotheses of the repetition study, and the numbers that the page quotes.

None of the claims is from the Pythia paper. Those of Muennighoff et al. name no model size, so we
test them at our sizes, and a note gives the size of their models. Effects are means over sizes, or
of one size where the statement says so; intervals are over seeds.

Margins and hypotheses were written before any run at scale laptop. What was known: the numbers of
an earlier version of the study (one size of 85k, one seed), and a pilot at scale smoke, after which
the hypothesis on the onset was put to two arms instead of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pythia_book.stats import Estimate
from pythia_book.studies.repetition.fits import Laws
from pythia_book.studies.repetition.law import MUENNIGHOFF
from pythia_book.studies.repetition.losses import Losses, geometric_mean, seed_mean
from pythia_book.verdicts import Claim, Test, falls, rises, untestable, within

PAPER = "Muennighoff et al. 2023"
NEGLIGIBLE = 0.5
"""A change of the loss by less than this, in percent of the fresh loss, is negligible. The authors'
example is a run of four epochs "with only 0.5% higher validation loss" (section 6)."""
THEIRS = "the source's models have up to 8.7 billion parameters (section 4)"
NATS = "nats per token"


def claims(losses: Losses, laws: Laws) -> list[Claim]:
    """Return the claims and hypotheses of the study, all tested on our runs only."""
    params = losses.params
    sizes, most = params.size_list, params.epoch_list[-1]
    second = params.epoch_list[-2]
    of_seeds = f"{params.seeds} seed{'s' * (params.seeds > 1)}"
    units = f"{of_seeds}; mean over {', '.join(sizes)}"

    def mean(of: Any) -> Estimate | None:
        """Return the mean over sizes of `of`, a function of the size, over seeds."""
        return seed_mean(losses.over_sizes([of(size) for size in sizes]))

    def gain(size: str) -> np.ndarray:
        """Return the change of the loss when the same data are read twice as often."""
        half = most // 2
        return losses.final(size, most, most) - losses.final(size, most, half)

    def stopped(size: str) -> np.ndarray:
        """Return the best loss of a planned stop minus that of the best checkpoint."""
        return losses.best_stopped(size, most) - losses.best_checkpoint(size, most)

    return [
        Claim(
            "Four epochs change the loss negligibly, compared with as much fresh data.",
            f"{PAPER}, abstract",
            within(
                mean(lambda size: losses.cost(size, 4, percent=True)),
                "% of the loss",
                units,
                NEGLIGIBLE,
                "the margin is the source's example of a negligible difference; "
                f"{_tested_at(losses)}",
            ),
            quote="training with up to 4 epochs of repeated data yields negligible changes to loss "
            "compared to having unique data",
        ),
        Claim(
            "Sixteen epochs give a higher loss than four, at equal compute.",
            f"{PAPER}, section 6",
            rises(mean(lambda size: losses.cost(size, 16, base=4)), NATS, units),
            quote="models trained on less unique data (and, correspondingly, more epochs) have "
            "consistently higher loss",
        ),
        Claim(
            "Reading the same data sixteen times instead of eight still lowers the loss.",
            f"{PAPER}, section 6",
            falls(
                mean(gain) if most == 16 else None,
                NATS,
                units,
                note="each number of epochs with a schedule of its own length",
            ),
            quote="Meaningful gains from repeating data can be made up to around 16 epochs",
        ),
        Claim(
            f"With {most} epochs, the held-out loss rises again before the end of training.",
            f"{PAPER}, Figure 4, of up to 44 epochs",
            rises(
                mean(lambda size: losses.turn(size, most)),
                NATS,
                units,
                note="the end minus the best earlier checkpoint, which was chosen on the other "
                "half of the held-out rows",
            ),
            quote="Models trained on data that is repeated for multiple epochs have consistently "
            "worse loss and diverge if too many epochs are used.",
        ),
        Claim(
            "Excess parameters lose their value faster than repeated tokens.",
            f"{PAPER}, appendix A",
            _faster(laws, units),
            quote="Since R*_D > R*_N, excess parameters decay faster",
        ),
        Claim(
            "A law in which parameters decay too predicts sizes that it has not seen better than "
            "one in which only data decay.",
            f"{PAPER}, appendix A, of the fit to all sizes",
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
            "A law in which data decay predicts sizes that it has not seen better than one in "
            "which repeated data are as good as fresh.",
            "ours",
            falls(laws.advantage("data", "none"), "% of the loss", units),
            kind="hypothesis",
        ),
        Claim(
            "An additive penalty that grows with repetition and with parameters per token predicts "
            "sizes that it has not seen better than the law of Muennighoff et al.",
            "ours, after Lovelace et al. 2026",
            falls(laws.advantage("penalty", "whole"), "% of the loss", units),
            kind="hypothesis",
        ),
        Claim(
            f"In the arms of {second} and {most} epochs, the loss of the largest size begins to "
            "rise after fewer epochs than that of the smallest.",
            "ours, after Lovelace et al. 2026",
            falls(seed_mean(_earlier(losses)), "doublings", of_seeds)
            if len(sizes) > 1
            else untestable("there is only one size"),
            kind="hypothesis",
        ),
        Claim(
            f"On the data of the arm of {most} epochs, the best run that is planned to stop early "
            "has a lower loss than the best checkpoint of that arm.",
            "ours: a checkpoint has not had the decay of its learning rate",
            falls(mean(stopped), NATS, units),
            kind="hypothesis",
        ),
    ]


def _earlier(losses: Losses) -> np.ndarray:
    """Return log2 of the onset of the largest size over that of the smallest, float64[seeds].

    The mean over the two arms with the most epochs; an arm in which a loss does not rise is left
    out.
    """
    params = losses.params
    small, large = params.size_list[0], params.size_list[-1]
    ratios = [
        np.log2(losses.onset(large, r) / losses.onset(small, r)) for r in params.epoch_list[-2:]
    ]
    known = np.isfinite(ratios)
    with np.errstate(invalid="ignore"):
        return np.where(known, ratios, 0).sum(0) / known.sum(0)


def _tested_at(losses: Losses) -> str:
    """Say how large our largest model is and how much it reads, next to the source's models."""
    count, tokens = losses.parameters(losses.params.size_list[-1]), losses.tokens() / 1e6
    return f"tested at up to {count:,} parameters and {tokens:.1f} million tokens, while {THEIRS}"


def _faster(laws: Laws, units: str) -> Test:
    """Test whether 1 / R*_N is above 1 / R*_D, if the law fits both."""
    rates = [laws.constants[name] for name in ("data_rate", "parameter_rate") if laws.constants]
    note = "1/R*_N minus 1/R*_D of the law fitted to all sizes"
    if rates and not all(rate.bounded for rate in rates):
        return untestable(
            "our runs do not determine both constants: a profile interval reaches the bounds of "
            "the fit", laws.rate_difference, "per repetition", units, note,
        )  # fmt: skip
    return rises(laws.rate_difference, "per repetition", units, note=note)


# --- numbers for the page --------------------------------------------------------------------


def shown(e: Estimate | None) -> Any:
    """Return an estimate as a record has it: without interval if the values do not vary."""
    if e is None:
        return None
    return e.interval() if e.low < e.high else e.value


def values(losses: Losses, laws: Laws) -> dict[str, Any]:
    """Return the numbers and texts that the page quotes, by name.

    R is a number of epochs, SIZE is "smallest" or "largest". With one seed, numbers have no
    interval; None: not measured. Without SIZE, numbers are means over sizes.

    - `excess_R`, `excess_R_SIZE`: percent by which the arm's loss is above that of fresh data.
    - `worth_R`, `best_R`, `stopped_R`, also with `_SIZE`: worth in percent at the end, at the best
      checkpoint, and of the best run that is planned to stop early.
    - `turn_R_SIZE`: rise at the end above the best earlier checkpoint, in nats.
    - `onset_R_SIZE`: epochs after which the loss is lowest, a geometric mean over seeds.
    - `best_epochs_SIZE`: best number of epochs for the smallest part of the data.
    - `planned`: best planned stop minus best checkpoint, in nats, arm with the most epochs.
    - `data_constant`, `parameter_constant`: R*_D and R*_N with their profile intervals, as texts;
      `data_constant_bare`: R*_D if embeddings do not count; `theirs_...`: those of the source.
    - `identified`, `not_identified`: names of constants.
    - `error_RIVAL`, `error_most_RIVAL`: error of prediction over left-out sizes, and for the most
      epochs, in percent of the loss; `misfit_RIVAL`: see `Laws.misfits`.
    - `theirs_4`, `theirs_16`: worth by the data term of the source, in percent.
    """
    params = losses.params
    sizes, most = params.size_list, params.epoch_list[-1]
    roles = {"smallest": sizes[0], "largest": sizes[-1]}
    numbers: dict[str, Any] = {
        "sizes": ", ".join(sizes),
        **roles,
        "seeds": params.seeds,
        "epochs": ", ".join(map(str, params.epoch_list)),
        "most": most,
        "steps": params.n_steps,
        "least_steps": params.n_steps // most,
        "batch": params.batch_size,
        "rows": params.rows(),
        "rows_least": params.rows(most),
        "tokens": losses.tokens(),
        "tokens_least": losses.tokens(most),
        "runs": len(list(params.cells())),
        "parameters_smallest": losses.parameters(sizes[0]),
        "parameters_largest": losses.parameters(sizes[-1]),
        "bare_largest": losses.parameters(sizes[-1], "non_embedding"),
        "heldout_rows": losses.measured.facts["heldout_rows"],
        "negligible": f"{NEGLIGIBLE:g}",
        "gaps": losses.measured.facts["gaps"],
    }
    measures = {
        "excess": lambda size, r: losses.cost(size, r, percent=True),
        "worth": losses.worth_at_end,
        "best": losses.worth_at_best,
        "stopped": losses.worth_when_stopped,
    }
    for r in (2, 4, 8, 16):
        for name, of in measures.items():
            each = [of(size, r) for size in sizes]
            numbers[f"{name}_{r}"] = shown(seed_mean(losses.over_sizes(each)))
            for role, size in roles.items():
                numbers[f"{name}_{r}_{role}"] = shown(seed_mean(of(size, r)))
        for role, size in roles.items():
            numbers[f"turn_{r}_{role}"] = shown(seed_mean(losses.turn(size, r)))
            numbers[f"onset_{r}_{role}"] = shown(geometric_mean(losses.onset(size, r)))
        numbers[f"theirs_{r}"] = 100 * MUENNIGHOFF.data_share(r)
    for role, size in roles.items():
        numbers[f"best_epochs_{role}"] = shown(geometric_mean(losses.best_epochs(size, most)))
    planned = [losses.best_stopped(s, most) - losses.best_checkpoint(s, most) for s in sizes]
    numbers["planned"] = shown(seed_mean(losses.over_sizes(planned)))
    return numbers | _law_values(laws)


CONSTANTS = {
    "E": "E",
    "size_term": "size term",
    "alpha": "alpha",
    "data_term": "data term",
    "beta": "beta",
    "data_rate": "R*_D",
    "parameter_rate": "R*_N",
}
"""Names of the fitted constants for readers."""


def inverse(rate: float) -> float:
    """Return R* for a rate; no decay is infinity."""
    return 1 / rate if rate > 0 else float("inf")


def range_text(low: float, high: float) -> str:
    """Format an interval of R*, which may be open towards infinity."""
    return f"[{low:.1f}, {'∞' if np.isinf(high) else f'{high:.1f}'}]"


def _law_values(laws: Laws) -> dict[str, Any]:
    """Return the numbers of `values` that come from the fitted laws; none fits: texts say so."""
    numbers: dict[str, Any] = {
        "n_fresh": laws.n_fresh,
        "n_domain": laws.n_domain,
        "n_hurt": laws.n_hurt,
        "fresh_misfit": laws.fresh_misfit,
        "theirs_data_constant": inverse(MUENNIGHOFF.data_rate),
        "theirs_parameter_constant": inverse(MUENNIGHOFF.parameter_rate),
    }
    for name, text in (("data_rate", "data_constant"), ("parameter_rate", "parameter_constant")):
        constant = laws.constants.get(name)
        numbers[text] = constant and (
            f"{inverse(constant.value):.1f} "
            f"{range_text(inverse(constant.high), inverse(constant.low))}"
        )
    numbers["data_constant_bare"] = laws.bare and inverse(laws.bare[0])
    for identified, text in ((True, "identified"), (False, "not_identified")):
        names = [CONSTANTS[n] for n, c in laws.constants.items() if c.identified == identified]
        numbers[text] = ", ".join(names) or "none"
    for rival in ("none", "data", "whole", "theirs", "penalty"):
        errors = laws.left_out_sizes(rival)
        numbers[f"error_{rival}"] = None if errors is None else shown(seed_mean(errors))
        numbers[f"misfit_{rival}"] = laws.misfits.get(rival)
        of_most = [e for (name, r), e in laws.errors.items() if r == rival and " epochs" in name]
        numbers[f"error_most_{rival}"] = shown(seed_mean(of_most[0])) if of_most else None
    return numbers
