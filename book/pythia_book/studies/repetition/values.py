"""The numbers and texts that the page of the repetition study quotes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pythia_book.records import number_text
from pythia_book.stats import mean_over_known, quoted
from pythia_book.studies.repetition.claims import NEGLIGIBLE
from pythia_book.studies.repetition.fits import DECAY, Laws
from pythia_book.studies.repetition.law import (
    MUENNIGHOFF,
    NAMES,
    constant_text,
    inverse,
    range_text,
)
from pythia_book.studies.repetition.losses import Losses, Worth, geometric_mean, mean_worth


def worth_shown(worth: Worth) -> Any:
    """Return a worth as records store it: a number, or a text if it is an upper bound."""
    e, bound = worth.mean()
    return f"≤ {number_text(e.value)}" if e and bound else quoted(e)


def values(losses: Losses, laws: Laws) -> dict[str, Any]:
    """Return the numbers and texts that the page quotes, by name.

    R is a number of epochs, SIZE is "smallest" or "largest". With one seed, numbers have no
    interval; None means not measured. Without SIZE, numbers are means over sizes.

    - `excess_R`, `excess_4_SIZE`: percent by which the arm's loss is above that of fresh data.
    - `worth_R`, `best_R`, `planned_R`: worth in percent at the end, at the best checkpoint, and of
      the best run that is planned to stop early; a text if it is only an upper bound.
    - `rise_R_SIZE`: rise at the end above the best earlier checkpoint, in nats.
    - `onset_16_SIZE`: epochs after which the loss is lowest, a geometric mean over seeds.
    - `best_epochs_SIZE`: best number of epochs for the smallest part of the data.
    - `best_16_largest`, `worth_16_largest`: worth for the largest size; `fitted_16_largest`: by
      the law fitted to our runs.
    - `sixteen_over_eight`: loss after 16 passes over the smallest part minus that after 8, in nats.
    - `planned`: best planned stop minus best checkpoint, in nats, arm with the most epochs.
    - `theirs_R`: worth by the data term of the source, in percent.
    - `data_constant`, `parameter_constant`: R*_D and R*_N with their profile intervals, as text;
      `data_constant_bare`: R*_D if embeddings do not count; `theirs_...`: those of the source.
    - `identified`, `not_identified`: names of constants.
    - `error_RIVAL`, `error_most_RIVAL`: error of prediction over left-out sizes, and for the most
      epochs, in percent of the loss. `misfit`, `fresh_misfit`: see `Laws`.
    """
    params = losses.params
    sizes, most = params.size_list, params.epoch_list[-1]
    roles = {"smallest": sizes[0], "largest": sizes[-1]}
    numbers: dict[str, Any] = {
        "sizes": ", ".join(sizes),
        "seeds": params.seeds,
        "epochs": ", ".join(map(str, params.epoch_list)),
        "most": most,
        "steps": params.n_steps,
        "least_steps": params.n_steps // most,
        "batch": params.batch_size,
        "rows": params.rows(),
        "tokens": losses.tokens(),
        "tokens_least": losses.tokens(most),
        "rows_least": params.rows(most),
        "n_checkpoints": len(params.checkpoints),
        "n_planned": len(params.epoch_list),
        "runs": len(list(params.cells())),
        "bare_largest": losses.parameters(sizes[-1], "non_embedding"),
        "heldout_rows": losses.measured.facts["heldout_rows"],
        "negligible": f"{NEGLIGIBLE:g}",
        "gaps": losses.measured.facts["gaps"],
    }
    for r in (2, 4, 8, 16):
        numbers[f"excess_{r}"] = quoted(
            mean_over_known(np.mean([losses.cost(s, r, percent=True) for s in sizes], axis=0))
        )
        numbers[f"worth_{r}"] = worth_shown(mean_worth([losses.worth_at_end(s, r) for s in sizes]))
    for r in (2, 4, 16):
        numbers[f"theirs_{r}"] = 100 * MUENNIGHOFF.data_share(r)
    for r in (8, 16):
        best = [losses.worth_at_best(size, r) for size in sizes]
        planned = [losses.worth_when_planned(size, r) for size in sizes]
        numbers[f"best_{r}"] = worth_shown(mean_worth(best))
        numbers[f"planned_{r}"] = worth_shown(mean_worth(planned))
    for role, size in roles.items():
        numbers[f"parameters_{role}"] = losses.parameters(size)
        numbers[f"excess_4_{role}"] = quoted(mean_over_known(losses.cost(size, 4, percent=True)))
        for r in (8, 16):
            numbers[f"rise_{r}_{role}"] = quoted(mean_over_known(losses.rise(size, r)))
        numbers[f"onset_16_{role}"] = quoted(geometric_mean(losses.onset(size, 16)))
        numbers[f"best_epochs_{role}"] = quoted(geometric_mean(losses.best_epochs(size, most)))
    largest = sizes[-1]
    numbers["best_16_largest"] = worth_shown(losses.worth_at_best(largest, 16))
    numbers["worth_16_largest"] = worth_shown(losses.worth_at_end(largest, 16))
    fitted = laws.laws.get("whole")
    share = fitted and fitted.worth(losses.parameters(largest), losses.tokens(), 16)
    numbers["fitted_16_largest"] = None if share is None else 100 * share
    gain = [losses.final(size, 16, 16) - losses.final(size, 16, 8) for size in sizes]
    numbers["sixteen_over_eight"] = quoted(mean_over_known(np.mean(gain, axis=0)))
    stop = [losses.planned(size, most) for size in sizes]
    numbers["planned"] = quoted(mean_over_known(np.mean(stop, axis=0)))
    return numbers | _law_values(laws)


def _law_values(laws: Laws) -> dict[str, Any]:
    """Return the numbers of `values` from the fitted laws; if nothing was fitted, texts say so."""
    numbers: dict[str, Any] = {
        "n_fresh": laws.n_fresh,
        "n_domain": laws.n_domain,
        "n_hurt": laws.n_hurt,
        "misfit": laws.misfit,
        "fresh_misfit": laws.fresh_misfit,
        "theirs_data_constant": inverse(MUENNIGHOFF.data_rate),
        "theirs_parameter_constant": inverse(MUENNIGHOFF.parameter_rate),
        "data_constant_bare": laws.bare and inverse(laws.bare[0]),
    }
    for name, text in zip(DECAY, ("data_constant", "parameter_constant"), strict=True):
        c = laws.constants.get(name)
        ends = c and range_text(inverse(c.high), inverse(c.low))
        numbers[text] = c and f"{constant_text(inverse(c.value))} {ends}"
    for identified, text in ((True, "identified"), (False, "not_identified")):
        names = [NAMES[n] for n, c in laws.constants.items() if c.identified == identified]
        numbers[text] = ", ".join(names) or "none"
    for rival in ("none", "data", "whole", "theirs", "penalty"):
        errors = laws.left_out_sizes(rival)
        numbers[f"error_{rival}"] = None if errors is None else quoted(mean_over_known(errors))
    for rival in ("whole", "penalty"):
        of_most = [e for (name, r), e in laws.errors.items() if r == rival and " epochs" in name]
        numbers[f"error_most_{rival}"] = quoted(mean_over_known(of_most[0])) if of_most else None
    return numbers
