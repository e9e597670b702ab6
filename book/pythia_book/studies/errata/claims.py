"""The claims of the errata study: how little each changed setting changes the final loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pythia_book.stats import Estimate
from pythia_book.studies.errata.catalogue import erratum_named
from pythia_book.studies.errata.params import (
    GELU_AFTER_TRAINING,
    OTHER_SEED,
    Params,
    controls,
)
from pythia_book.verdicts import NOT_MEASURED, Claim, Test, untestable, within

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 1.0
"""A change of the loss by less than this, in percent, counts as none. The losses of most
neighbouring sizes differ by more, so such a change would not reorder sizes."""
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


def claims(
    params: Params, last: pd.DataFrame, losses: dict[str, float], memorized: pd.DataFrame
) -> list[Claim]:
    """Return, for each changed setting, the claim that it hardly affects the final held-out loss.

    Args:
        last: the rows of `study.effects_table` at the last step.
        losses: maps each text ("standard", "deduplicated") to the final loss of its control.
    """
    loss = last[last.measure == "loss"].set_index("variant")
    shares = memorized.set_index("variant")
    rest = f"changes this run's held-out loss by less than {MARGIN:g} %."
    made = []
    for name, arm in controls(params).items():
        test: Test = untestable(NOT_MEASURED)
        if name in loss.index and arm in losses:
            row = loss.loc[name]
            change = Estimate(*row[INTERVAL].astype(float), int(row.n), 1)
            note = f"control {losses[arm]:.4f} nats per token"
            if name in shares.index:
                note += (
                    f"; rows memorized {shares.share[name]:.2f} % instead of "
                    f"{shares.control[name]:.2f} %"
                )
            runs = "one model" if name == GELU_AFTER_TRAINING else "one run each"
            units = f"{runs}; {int(row.n):,} held-out rows"
            test = within(change.times(100 / losses[arm]), "% of the loss", units, MARGIN, note)
        if name == OTHER_SEED:
            source = "the margin is wider than the difference between two seeds"
            made.append(Claim(f"Another seed {rest}", source, test, kind="check"))
        else:
            subject, erratum = SUBJECTS[name]
            source = f'assumed where the erratum "{erratum_named(erratum).title}" is ignored'
            made.append(Claim(f"{subject} {rest}", source, test, kind="premise"))
    return made
