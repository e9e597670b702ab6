"""Tables of the repetition study."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import Estimate, mean_over_known
from pythia_book.studies.repetition.fits import DECAY, FRESH, Laws
from pythia_book.studies.repetition.law import MUENNIGHOFF, NAMES, inverse
from pythia_book.studies.repetition.losses import Losses, geometric_mean

if TYPE_CHECKING:
    import pandas as pd

N_POINTS = 33
"""Number of points of a law's curve."""


def tables(losses: Losses, laws: Laws) -> dict[str, pd.DataFrame]:
    """Return the study's tables by name.

    Most have the columns `size`, `epochs`, `value`, `low`, `high` and `n` (number of seeds); with
    one seed, `low` and `high` are missing. Losses are in nats per token.

    `levels`: held-out loss of each arm over training; `step`, `percent` (of training).
    `excess`: percent by which an arm's final loss exceeds that of the fresh run.
    `worth`: worth in percent; `at`: "end", "best" (checkpoint) or "planned" (the best run on the
        same data that is planned to stop early); `at_most`: the value is only an upper bound.
    `rise`: rise of an arm's loss at its end above its best earlier checkpoint.
    `onset`: number of epochs, `value`, at which the loss is lowest; `kind`: "checkpoint" (of an
        arm) or "planned" (final losses of runs on the same `rows`); `n_none`: number of seeds whose
        loss is lowest at the last checkpoint or at the most epochs, which `value` leaves out.
    `curves`: worth by a law, `law` ("ours", "theirs, data term"), in percent.
    `constants`: those of the whole law, ours and theirs; `low`, `high` over seeds, `profile_low`,
        `profile_high`, `identified`. R*_D and R*_N are inverse rates: their interval over seeds is
        that of the rate, inverted; infinite ends are missing.
    `errors`: root mean square error of a law's predictions in percent of the loss; `left_out`,
        `rival`.
    """
    import pandas as pd

    params = losses.params
    levels, excess, worth, rise, onset = [], [], [], [], []

    def add(rows: list, e: Estimate | None, /, **columns: Any) -> None:
        """Append a row with the columns and the estimate to `rows`, unless `e` is None."""
        if e is not None:
            rows.append(columns | e.interval() | {"n": e.n_items})

    for size in params.size_list:
        for r in params.epoch_list:
            cell = {"size": size, "epochs": r}
            for step, column in zip(params.checkpoints, losses.curve(size, r).T, strict=True):
                percent = 100 * step / params.n_steps
                add(levels, mean_over_known(column), **cell, step=step, percent=percent)
            if r == 1:
                continue
            add(excess, mean_over_known(losses.cost(size, r, percent=True)), **cell)
            for at, of in (
                ("end", losses.worth_at_end),
                ("best", losses.worth_at_best),
                ("planned", losses.worth_when_planned),
            ):
                e, at_most = of(size, r).mean()
                add(worth, e, **cell, at=at, at_most=at_most)
            add(rise, mean_over_known(losses.rise(size, r)), **cell)
            onsets = {"checkpoint": losses.onset, "planned": losses.best_epochs}
            for kind, onset_of in onsets.items():
                reached = onset_of(size, r)
                known = np.isfinite(losses.final(size, r, r))
                none = int((known & ~np.isfinite(reached)).sum())
                e = geometric_mean(reached)
                row = cell | {"kind": kind, "rows": params.rows(r)}
                row |= e.interval() if e else dict.fromkeys(("value", "low", "high"), math.nan)
                onset.append(row | {"n": e.n_items if e else 0, "n_none": none})
    keys, result = ["size", "epochs"], ["value", "low", "high", "n"]
    frames = {
        "levels": (levels, [*keys, "step", "percent", *result]),
        "excess": (excess, [*keys, *result]),
        "worth": (worth, [*keys, "at", *result, "at_most"]),
        "rise": (rise, [*keys, *result]),
        "onset": (onset, [*keys, "kind", "rows", *result, "n_none"]),
        "curves": (_curves(losses, laws), [*keys, "law", "value"]),
        "constants": (_constants(laws), ["constant", "value", "low", "high", "profile_low",
                                         "profile_high", "identified", "theirs"]),
        "errors": (_errors(laws), ["left_out", "rival", *result]),
    }  # fmt: skip
    return {name: pd.DataFrame(rows, columns=columns) for name, (rows, columns) in frames.items()}


def _curves(losses: Losses, laws: Laws) -> list[dict[str, Any]]:
    """Return the rows of the table `curves`; without a fitted law, those of the source."""
    rows = []
    passes = np.geomspace(1, losses.params.epoch_list[-1], N_POINTS)
    for size in losses.params.size_list:
        n, tokens = losses.parameters(size), losses.tokens()
        for r in passes.tolist():
            row = {"size": size, "epochs": r}
            rows.append(
                row | {"law": "theirs, data term", "value": 100 * MUENNIGHOFF.data_share(r)}
            )
            if "whole" in laws.laws:
                worth = 100 * laws.laws["whole"].worth(n, tokens, r)
                rows.append(row | {"law": "ours", "value": worth})
    return rows


def _constants(laws: Laws) -> list[dict[str, Any]]:
    """Return the rows of the table `constants`."""
    rows = []
    theirs = {"E": MUENNIGHOFF.E, "alpha": MUENNIGHOFF.alpha, "beta": MUENNIGHOFF.beta}
    theirs |= {name: inverse(getattr(MUENNIGHOFF, name)) for name in DECAY}
    for name in (*FRESH, *DECAY):
        constant = laws.constants.get(name)
        if constant is None:
            continue
        seeds = constant.seeds
        low, high = (seeds.low, seeds.high) if seeds else (math.nan, math.nan)
        numbers = [constant.value, low, high, constant.low, constant.high]
        if name in DECAY:
            value, low, high, below, above = numbers
            numbers = [inverse(x) for x in (value, high, low, above, below)]
        keys = ("value", "low", "high", "profile_low", "profile_high")
        row = {
            key: x if math.isfinite(x) else math.nan for key, x in zip(keys, numbers, strict=True)
        }
        rows.append({"constant": NAMES[name], **row, "identified": constant.identified,
                     "theirs": theirs.get(name, math.nan)})  # fmt: skip
    return rows


def _errors(laws: Laws) -> list[dict[str, Any]]:
    """Return the rows of the table `errors`."""
    rows = []
    for (left_out, rival), errors in laws.errors.items():
        e = mean_over_known(errors)
        if e is not None:
            rows.append({"left_out": left_out, "rival": rival, **e.interval(), "n": e.n_items})
    return rows
