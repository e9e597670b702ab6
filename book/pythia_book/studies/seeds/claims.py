"""The claims of the seeds study, with intervals over seeds.

Only one size is trained with several seeds. Most intervals are wide, so many claims stay open. The
verdict on an open claim states the smallest effect that the test would have detected.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.tables import NO_RELEASED
from pythia_book.stats import Z_95, Estimate, mean_over
from pythia_book.studies.deduplication.claims import (
    BETTER,
    COPIES_HARM,
    EQUAL_WORDS,
    HARMS,
    HERNANDEZ,
    LEE,
    LESS_MEMORIZED,
    NO_BENEFIT,
    SIX_TEXTS,
    equal_words,
)
from pythia_book.studies.seeds.tables import MEASURES, Measured, stacked
from pythia_book.studies.seeds.variance import (
    agreement,
    distance_in_sds,
    excess_over_item_noise,
    order_to_weights,
)
from pythia_book.verdicts import Claim, Test, falls, passes, rises, untestable, within
from pythia_core.suite import DATA_ARMS, scale_named, size_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.seeds.params import Cell, Params
    from pythia_book.study import Tables

ENOUGH = Z_95 * 2**0.5
"""A distance between the losses of two sizes, in standard deviations over seeds. At this distance,
one run of each size gives the right order 97.5 % of the time."""
SIMILAR = 3.0
"""Two standard deviations are comparable if their ratio is less than this."""
MAPPED_FROM = 13_000
"""The step of the first evenly spaced checkpoint in the training maps. Of the thirteen checkpoints
before it, ten lie within the first 512 updates."""
TIMES_ITEMS = "\N{MULTIPLICATION SIGN} sampling error of the items"
SAME_SCORE = 0.999
"""Two series of scores count as the same if their correlation is at least this."""


def claims(
    params: Params,
    measured: Measured,
    tables: dict[str, pd.DataFrame],
    neighbour: float | None,
    released: Tables,
) -> list[Claim]:
    """Return all claims of the study with their tests, first the claims of papers.

    Args:
        neighbour: the final held-out loss of the neighbouring size; None if it was not measured.
        released: the released tables; `training_maps` may be missing.
    """
    last = scale_named(params.scale).steps
    seeds = f"{params.seeds} seeds of {params.size}"
    pairs = f"{params.seeds} pairs of twins of {params.size}, a seed each"
    both = "order and weights vary together"
    maps = released.get("training_maps")
    return [
        Claim(
            COPIES_HARM,
            HERNANDEZ,
            quote=HARMS,
            ours=falls(
                effect(tables, "loss"),
                "nats per token",
                pairs,
                note="held-out loss, deduplicated minus standard; the copies are planted",
            ),
        ),
        Claim(
            EQUAL_WORDS,
            "section 2.6",
            quote=NO_BENEFIT,
            ours=equal_words(
                effect(tables, "last_word"),
                pairs,
                [measured[key] for key in measured if key[1:] == (last, "last_word")],
            ),
        ),
        Claim(
            "The order of the data and the initial weights contribute comparably to the variation "
            "between runs.",
            "Dodge et al. 2020, abstract, on fine-tuning",
            quote="both contribute comparably to the variance of out-of-sample performance",
            ours=_order_and_weights(params, measured),
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
            "One run of each size puts neighbouring sizes in the right order.",
            "appendix F.2",
            kind="premise",
            quote="to train one copy of each model",
            ours=rises(
                _distance(params, tables["levels"], neighbour),
                "standard deviations over seeds",
                f"{seeds} and one run of {params.neighbour_size}; {both}",
                ENOUGH,
                f"difference of held-out loss; single runs have the right order 97.5 % of the time "
                f"from {ENOUGH:.1f} on{_head_widths(params)}",
            ),
        ),
        Claim(
            LESS_MEMORIZED,
            LEE,
            quote=BETTER,
            ours=falls(
                effect(tables, "memorized"),
                "percentage points",
                pairs,
                note=f"{_by_seed(tables, 'memorized')}; {SIX_TEXTS}",
            ),
        ),
        Claim(
            "The effect of deduplication on held-out loss differs between seeds by more than the "
            "sampling error of the items.",
            "what intervals over items leave out",
            kind="check",
            ours=rises(
                _excess(_changes(params, measured, "loss")),
                TIMES_ITEMS,
                f"{pairs}; held-out rows as items",
                1,
            ),
        ),
        Claim(
            "The feminine share of pronouns after occupations differs between seeds by more than "
            "the sampling error of the items.",
            "what intervals over items leave out",
            kind="check",
            ours=rises(
                _excess(_final(params, measured, params.members("both"), "feminine_share")),
                TIMES_ITEMS,
                f"{seeds}; {both}; occupations as items",
                1,
            ),
        ),
        Claim(
            "The scores of seed 0 in the training maps are those of the standard 410M model.",
            "the meaning of a released file without a description",
            kind="check",
            released=_same_scores(maps),
        ),
    ]


def effect(tables: dict[str, pd.DataFrame], measure: str) -> Estimate | None:
    """Return how deduplication changes a measure at the end, with an interval over seeds.

    The change is deduplicated minus standard, in points or nats per token. Return None if no pair
    of twins (runs with the same seeds on the two texts) was measured.
    """
    changes = _by_pair(tables, measure)
    return mean_over(MEASURES[measure] * changes) if len(changes) else None


def _by_pair(tables: dict[str, pd.DataFrame], measure: str) -> np.ndarray:
    """Return each pair's difference in final score, deduplicated minus standard, float[pairs]."""
    effects = tables["effects"]
    final = effects[(effects.measure == measure) & (effects.percent == 100)]
    return final[final.seed != "mean"].value.dropna().to_numpy(float)


def _by_seed(tables: dict[str, pd.DataFrame], measure: str) -> str:
    """List the twins' final values, e.g. "standard 0.98, 0.92 %; deduplicated 0.71, 0.69 %"."""
    levels = tables["levels"]
    final = levels[(levels.measure == measure) & (levels.percent == 100)]
    final = final[final.order_seed == final.weight_seed]
    parts = []
    for arm in DATA_ARMS:
        shares = MEASURES[measure] * final[final.arm == arm].value
        parts.append(f"{arm} {', '.join(f'{share:.2f}' for share in shares)} %")
    return "; ".join(parts)


def _final(
    params: Params, measured: Measured, cells: list[Cell], measure: str
) -> np.ndarray | None:
    """Return the final values of the runs `cells`, float[runs, items]; None if one is missing."""
    return stacked(measured, cells, scale_named(params.scale).steps, measure)


def _changes(params: Params, measured: Measured, measure: str) -> np.ndarray | None:
    """Return the final deduplicated minus standard values of all twins, float[seeds, items]."""
    arms = [
        _final(params, measured, [(s, s, arm) for s in params.seed_values], measure)
        for arm in DATA_ARMS
    ]
    standard, deduplicated = arms
    return None if standard is None or deduplicated is None else deduplicated - standard


def _excess(values: np.ndarray | None) -> Estimate | None:
    """Return `excess_over_item_noise(values)`; None if `values` is None."""
    return None if values is None else excess_over_item_noise(values)


def _order_and_weights(params: Params, measured: Measured) -> Test:
    """Test that held-out loss varies about as much with the order seed as with the weight seed."""
    unit, units = "(log ratio)", f"{params.seeds} \N{MULTIPLICATION SIGN} {params.seeds} runs"
    grid = _final(params, measured, params.cells[: params.seeds**2], "loss")
    square = None if grid is None else grid.mean(1).reshape(params.seeds, params.seeds)
    ratio = None if square is None else order_to_weights(square)
    if ratio is None or not ratio.low > 0:
        return within(None, unit, units, math.log(SIMILAR))
    note = (
        f"standard deviation of the held-out loss by order over that by weights: {ratio.value:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}]; comparable: neither is {SIMILAR:g} times the other"
    )
    return within(ratio.mapped(math.log, math.exp), unit, units, math.log(SIMILAR), note)


def _distance(params: Params, levels: pd.DataFrame, neighbour: float | None) -> Estimate | None:
    """Return the loss of the smaller size minus the loss of the larger, in standard deviations.

    The losses are final. The standard deviation is over the seeds of `params.size`. Return None if
    a run was not measured, or if all seeds give the same loss.
    """
    diagonal = levels[
        (levels.measure == "loss")
        & (levels.percent == 100)
        & (levels.arm == "standard")
        & (levels.order_seed == levels.weight_seed)
    ]
    values = diagonal.value.to_numpy()
    if neighbour is None or len(values) < 2 or np.isnan(values).any():
        return None
    sign = 1 if params.size_is_smaller else -1
    return distance_in_sds(sign * values, sign * neighbour)


def _head_widths(params: Params) -> str:
    """Return the end of a note on the head widths of the two sizes; "" if the widths are equal."""
    sizes = (params.size, params.neighbour_size)
    one, other = (size_named(size).d_model // size_named(size).n_heads for size in sizes)
    if one == other:
        return ""
    return (
        f"; the two sizes also differ in the width of their heads: {one} in {sizes[0]}, {other} in "
        f"{sizes[1]}"
    )


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
    note = f"correlation {r:.5f} over {len(known)} checkpoints; at least {SAME_SCORE} counts"
    return passes(r >= SAME_SCORE, note)
