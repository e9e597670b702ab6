"""The claims of the errata study: how little each changed setting changes the final loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book.stats import Estimate
from pythia_book.studies.errata.catalog import erratum_named
from pythia_book.studies.errata.params import (
    GELU_AFTER_TRAINING,
    Params,
    controls,
)
from pythia_book.verdicts import NOT_MEASURED, Claim, Test, untestable, within
from pythia_core.errors import count_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

MARGIN = 1.0
"""A change in the loss by less than this, in percent, counts as none. This is generous: the step
from 25k to the next size is worth 0.6 %. The margin was set when one seed had been compared."""
BOUNDED = "the two forms are so close that the loss of a finished model cannot move by the margin"
INTERVAL = ["value", "low", "high"]
SUBJECTS = {
    "lr_form": ("Decaying the learning rate to a tenth only at the end", "lr-floor"),
    "first_update_at_lr_zero": ("Leaving out the first update at rate zero", "first-update"),
    "init": ("Enlarging the initial weights as in 6.9B", "initialisation"),
    "gelu": ("Training with the exact GELU", "gelu"),
    "epoch_policy": ("Reading one epoch after the other", "epoch-boundary"),
    GELU_AFTER_TRAINING: ("Running the trained model with the exact GELU", "gelu"),
}
"""Maps each variant to (subject of its claim, name of its erratum)."""


def estimate_of(row: pd.Series) -> Estimate:
    """Return the change in a row of a table, with its t-interval over `n` seeds."""
    value, low, high = (float(getattr(row, name)) for name in INTERVAL)
    return Estimate(value, low, high, int(row.n), int(row.n), int(row.n) - 1)


def claims(
    params: Params, last: pd.DataFrame, losses: dict[str, np.ndarray], memorized: pd.DataFrame
) -> list[Claim]:
    """Return, for each changed setting, the claim that it hardly affects the final held-out loss.

    Args:
        last: the rows of `study.effects_table` at the last step.
        losses: maps each text ("standard", "deduplicated") to the final losses of its control.
    """
    loss = last[last.measure == "loss"].set_index("variant")
    shares = memorized.set_index("variant")
    made = []
    for name, arm in controls(params).items():
        test: Test = untestable(NOT_MEASURED)
        if name in loss.index and arm in losses:
            row = loss.loc[name]
            control, n_seeds = float(losses[arm].mean()), int(row.n)
            percent, unit = estimate_of(row).times(100 / control), "% of the loss"
            units = count_of(n_seeds, "seed")
            note = f"control {control:.4f} nats per token"
            if name in shares.index:
                note += (
                    f"; rows memorized {shares.share[name]:.2f} % instead of "
                    f"{shares.control[name]:.2f} %"
                )
            test = within(percent, unit, units, MARGIN, note)
            if name == GELU_AFTER_TRAINING:
                test = untestable(BOUNDED, percent, unit, units, note)
        subject, erratum = SUBJECTS[name]
        source = f'assumed where the erratum "{erratum_named(erratum).title}" is ignored'
        text = f"{subject} changes the held-out loss by less than {MARGIN:g} %."
        made.append(Claim(text, source, test, kind="premise"))
    return made
