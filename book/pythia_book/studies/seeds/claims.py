"""The claims of the seeds study, with intervals over seeds.

Few seeds leave many claims open. The verdict on an open claim states what the test could have
detected.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.published.tables import NO_RELEASED
from pythia_book.stats import Z_95, Estimate
from pythia_book.studies.seeds.params import BOTH
from pythia_book.studies.seeds.tables import APART, SIZE, Scores
from pythia_book.studies.seeds.variance import agreement, distance_in_sds, excess_over_item_noise
from pythia_book.verdicts import Claim, Test, passes, rises, untestable, within

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Tables

ENOUGH = Z_95 * 2**0.5
"""A distance between the losses of two sizes, in standard deviations over seeds. At this distance,
one run of each size gives the right order 97.5 % of the time."""
SIMILAR = 2.0
"""Two standard deviations are comparable if their ratio is less than this. At a ratio of 2, the
larger one accounts for four fifths of the variance of a sum of the two.

An earlier grid of 5 x 5 runs, known when the margin was set, implies a ratio near 1.2. So the
margin is not chosen for power: the interval from ten seeds of each kind reaches from half the ratio
to twice the ratio, too far to show that two spreads are comparable. With 24 seeds of each kind, a
true ratio of 1 would be found comparable with a probability of 0.8."""
FIRST_SIMILAR = 3.0
"""The bound that was declared first. With ten seeds of each kind, a true ratio of 1 would be found
comparable with a probability of almost 0.8; a note says what this bound would have found."""
MAPPED_FROM = 13_000
"""The step of the first evenly spaced checkpoint in the training maps. Of the thirteen checkpoints
before it, ten lie within the first 512 updates."""
SAME_SCORE = 0.999
"""Two series of scores count as the same if their correlation is at least this."""


def claims(
    scores: Scores, tables: dict[str, pd.DataFrame], facts: dict[str, Any], released: Tables
) -> list[Claim]:
    """Return all claims of the study with their tests, first the claims of papers.

    Args:
        facts: those of the measurements, see `study.measure`.
        released: the released tables; `training_maps` may be missing.
    """
    params = scores.params
    seeds = f"{params.seeds} seeds of {params.size}"
    both = "order and weights vary together"
    maps, shares = released.get("training_maps"), scores.items("feminine_share", BOTH)
    return [
        Claim(
            "The order of the data and the initial weights contribute comparably to the variation "
            "between runs.",
            "Dodge et al. 2020, abstract, on fine-tuning",
            quote="both contribute comparably to the variance of out-of-sample performance",
            ours=_order_and_weights(scores),
        ),
        Claim(
            "Training runs with different seeds pass through the same states.",
            "van der Wal et al. 2025, abstract",
            quote="highly consistent training dynamics across both model sizes and initial "
            "conditions",
            released=untestable(
                "the eight runs were selected by outcome, the states were fitted to these same "
                "runs, and no baseline says how well unrelated runs agree",
                map_agreement(maps),
                "% of checkpoints",
                "8 runs of 410M, without the two outliers",
                f"states from step {MAPPED_FROM:,} on",
            ),
        ),
        Claim(
            f"Another seed moves the held-out loss of {params.size} by more than that of "
            f"{params.largest_size}.",
            "ours, stated before the runs were measured",
            kind="hypothesis",
            ours=rises(
                scores.ratio(SIZE, "loss"),
                f"\N{MULTIPLICATION SIGN} the spread at {params.largest_size}",
                f"{params.seeds} and {params.largest_seeds} seeds",
                1,
                f"{both}; with so few seeds of {params.largest_size}, only a large ratio could be "
                "told from 1",
            ),
        ),
        Claim(
            "One run of each size puts neighboring sizes in the right order.",
            "appendix F.2",
            kind="premise",
            quote="to train one copy of each model",
            ours=rises(
                distance(scores, tables["single"], facts["neighbour_loss"]),
                "standard deviations over seeds",
                f"{seeds} and one run of {params.neighbor_size}; {both}",
                ENOUGH,
                "difference of held-out loss, over the spread in bands; single runs have the right "
                f"order 97.5 % of the time from {ENOUGH:.1f} on",
            ),
        ),
        Claim(
            "The feminine share of pronouns after occupations differs between seeds by more than "
            "the sampling error of the occupations.",
            "what intervals over items leave out",
            kind="check",
            ours=rises(
                excess_over_item_noise(shares) if shares is not None else None,
                "\N{MULTIPLICATION SIGN} sampling error of the items",
                f"{seeds}; {both}; occupations as items",
                1,
            ),
        ),
        Claim(
            "Steps that continue from another run's initial weights can be told from sound ones.",
            "what `verify` relies on",
            kind="check",
            ours=_decoupled(tables["pairs"], facts["descent_bound"]),
        ),
        Claim(
            "The scores of seed 0 in the training maps are those of the standard 410M model.",
            "the meaning of a released file without a description",
            kind="check",
            released=_same_scores(maps),
        ),
    ]  # fmt: skip


def _order_and_weights(scores: Scores) -> Test:
    """Test that held-out loss varies about as much with the order seed as with the weight seed."""
    unit, units = "doublings", f"{scores.params.apart_seeds} seeds of each kind"
    ratio = scores.ratio(APART, "loss")
    if ratio is None or not ratio.low > 0:
        return within(None, unit, units, math.log2(SIMILAR))
    inside = 1 / FIRST_SIMILAR < ratio.low and ratio.high < FIRST_SIMILAR
    note = (
        f"standard deviation of the held-out loss by order over that by weights: {ratio.value:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}]; comparable: neither is {SIMILAR:g} times the other. "
        "An earlier grid, with a ratio near 1.2, was known when this bound was set. Our first "
        f"bound, a factor of {FIRST_SIMILAR:g}, would {'' if inside else 'not '}have called these "
        "spreads comparable. Ten seeds of each kind can only find a large difference"
    )
    return within(ratio.mapped(math.log2, math.exp2), unit, units, math.log2(SIMILAR), note)


def distance(scores: Scores, single: pd.DataFrame, neighbor: float | None) -> Estimate | None:
    """Return how much lower the final loss of the neighboring size is, in standard deviations.

    The standard deviation is that of the bands, in the table `single`. None if fewer than two runs
    were measured, or all seeds give the same loss.
    """
    row = single[(single.measure == "loss") & (single.kind == BOTH)]
    if neighbor is None or row.empty:
        return None
    sd, n = float(row.sd.iloc[0]), int(row.n.iloc[0])
    return distance_in_sds(scores.at("loss", BOTH), neighbor, sd, n - 1)


def _decoupled(pairs: pd.DataFrame, bound: float) -> Test:
    """Check that every sound step is related to its step 0, and that no decoupled one is."""
    rows = pairs[(pairs.quantity == "descent") & (pairs.step > 0)].dropna()
    sound, decoupled = (rows[rows.pair == pair].value for pair in ("sound", "decoupled"))
    if sound.empty or decoupled.empty:
        return untestable("not measured")
    separate = sound.min() > bound and decoupled.abs().max() < bound
    note = (
        f"scores of {len(sound)} sound steps are at least {sound.min():.1f}, those of "
        f"{len(decoupled)} defective ones within \N{PLUS-MINUS SIGN}{decoupled.abs().max():.1f}; "
        f"the bound is {bound:g}"
    )
    return passes(bool(separate), note)


# --- released --------------------------------------------------------------------------------


def map_agreement(maps: pd.DataFrame | None) -> Estimate | None:
    """Return the percentage of checkpoints at which the maps of two runs show the same state.

    The percentage is a mean over all pairs of the eight stable runs, from step MAPPED_FROM on.
    Return None if there are no training maps.
    """
    if maps is None or maps.empty:
        return None
    late = maps[~maps.outlier.astype(bool) & (maps.step >= MAPPED_FROM)]
    states = late.pivot(index="seed", columns="step", values="state")
    e = agreement(states.to_numpy()).times(100)
    return replace(e, high=min(e.high, 100.0))


def _same_scores(maps: pd.DataFrame | None) -> Test:
    """Check that seed 0 in the training maps scores almost exactly like the standard 410M model."""
    known = None if maps is None else maps.dropna(subset="score_410m")
    if known is None or len(known) < 3:
        return untestable(NO_RELEASED)
    r = float(np.corrcoef(known.score.astype(float), known.score_410m.astype(float))[0, 1])
    note = (
        f"correlation {r:.5f} over {len(known)} checkpoints; runs count as the same from "
        f"{SAME_SCORE} on"
    )
    return passes(r >= SAME_SCORE, note)
