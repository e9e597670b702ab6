"""The claims on sums: whether accuracy rises abruptly, and whether the metric is the reason.

Accuracy can rise abruptly during training or between sizes. See `emergence` for what was known when
the claims were stated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pythia_book.stats import Estimate, mean_over, slope
from pythia_book.studies.scaling import released_sums
from pythia_book.studies.scaling.emergence import ABRUPT, MOST_ERROR, alike, product
from pythia_book.studies.scaling.jumps import SOUGHT
from pythia_book.studies.scaling.links import LINKS
from pythia_book.studies.scaling.released import PER_TENFOLD
from pythia_book.studies.scaling.sums import MEASURES
from pythia_book.verdicts import POWER, Claim, Test, falls, rises, untestable
from pythia_core.suite import DATA_ARMS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.studies.scaling.params import Params
    from pythia_book.study import Measurements, Tables

LEFT_OUT = "{} sizes, both runs of each predicted from the other sizes; second half of training"
BEFORE = "ours, stated when six checkpoints were known"
MIRAGE = "Schaeffer et al. 2023 (arXiv:2304.15004)"
CONTINUOUS = (
    "linear or continuous metrics produce smooth, continuous, predictable changes in model "
    "performance"
)


def emergence_claims(
    params: Params, measured: Measurements, tables: Tables, released: Tables
) -> list[Claim]:
    """Return the claim and the hypotheses on sums: abrupt or not, and through which metric."""
    statements = [released_sums.claim(released, params.bootstrap)]
    for measure, about in MEASURES.items():
        smooth = about.unit == "nats"
        statements.append(
            Claim(
                f"Over training, no run jumps in {about.name}: no step from one checkpoint to the "
                f"next accounts for {100 * ABRUPT:.0f} % of the run's rise.",
                f"{BEFORE}; after {MIRAGE}, abstract, which is about model size"
                if smooth
                else BEFORE,
                quote=CONTINUOUS if smooth else "",
                kind="hypothesis",
                ours=largest_jump(tables["jumps"], measure),
            )
        )
    statements.append(
        Claim(
            "The mean probability of the right answer, the product of the probabilities of its "
            "tokens, predicts the share of exact answers within a factor of two.",
            f"{MIRAGE}, section 2; the factor is ours",
            ours=product(params, measured),
        )
    )
    for accuracy, smooth_measure in LINKS:
        pair = (tables["links"], accuracy, smooth_measure)
        target, source = MEASURES[accuracy].name, MEASURES[smooth_measure].name
        bound = MOST_ERROR[accuracy]
        statements += [
            Claim(
                f"One curve predicts {target} from {source} at sizes left out, with a mean error "
                f"below {bound:g} {'point' if bound == 1 else 'points'}.",
                BEFORE,
                kind="hypothesis",
                ours=link_error(*pair),
            ),
            Claim(
                f"This curve, from {source} to {target}, predicts better than the accuracy of the "
                "other sizes at the same step on the same text, and than the best constant of "
                "each text.",
                f"{BEFORE}; the constant was added before scores were looked at",
                kind="hypothesis",
                ours=link_gain(*pair),
            ),
        ]
    statements.append(
        Claim(
            "Accuracy in choosing among sums rises with size.",
            "without this, nothing can emerge over our sizes",
            kind="premise",
            ours=over_size(tables["sums_end"]),
        )
    )
    return statements


def largest_jump(table: pd.DataFrame, measure: str) -> Test:
    """Test that no informative run jumps by ABRUPT of its rise; `table`: see `jumps_table`."""
    every = table[table.measure == measure]
    if every.empty:
        return untestable("no run has enough checkpoints, or the scores do not vary")
    rows = every[every.able]
    unit = MEASURES[measure].unit
    if rows.empty:
        reason = (
            f"no run rises so much over the last {SOUGHT} doublings of training that a jump of "
            f"{100 * ABRUPT:.0f} % of its rise would be seen with {100 * POWER:.0f} % power"
        )
        for seen in every[every.jump_low > 0].itertuples():
            ends = f"{seen.jump:.2g} [{seen.jump_low:.2g}, {seen.jump_high:.2g}]"
            reason += f"; yet {seen.size} {seen.arm} jumps by {ends} {unit} at step {seen.step}"
            reason += f" (not corrected for {len(MEASURES)} scores)"
        return untestable(reason)
    e = Estimate(rows.share.max(), rows.share_low.max(), rows.share_high.max(), len(rows), 1)
    top = rows.loc[rows.share.idxmax()]
    note = (
        f"the largest share is that of {top['size']} {top.arm} at step {top.step} ({top.jump:.2g} "
        f"of {top.rise:.2g} {unit}); {len(rows)} of {len(every)} runs rise enough to tell"
    )
    units = f"{len(rows)} runs; noise between checkpoints and first operands"
    return falls(e, "% of the run's rise", units, 100 * ABRUPT, note)


def link_error(links: pd.DataFrame, accuracy: str, smooth: str) -> Test:
    """Test that a link predicts sizes left out with a mean error below MOST_ERROR."""
    rows, reason = _testable(links, accuracy, smooth)
    if not len(rows):
        return untestable(reason)
    by_size = rows.groupby("size").error.mean()
    e, units = mean_over(by_size), LEFT_OUT.format(len(by_size))
    bound, constant = MOST_ERROR[accuracy], rows.constant.mean()
    if not reason and constant < bound:
        reason = (
            f"the best constant for each text errs by {constant:.2g} points, also below {bound:g}"
        )
    if reason:
        return untestable(reason, e, "points", units)
    return falls(e, "points", units, bound)


def link_gain(links: pd.DataFrame, accuracy: str, smooth: str) -> Test:
    """Test that a link predicts better than the better of two rivals: `same_step`, `constant`."""
    rows, reason = _testable(links, accuracy, smooth)
    if not len(rows):
        return untestable(reason)
    names = {"same_step": "the mean of the other sizes at the same step on the same text",
             "constant": "the best constant for each text"}  # fmt: skip
    by_size = rows.groupby("size")[["error", *names]].mean()
    rival = str(by_size[list(names)].mean().idxmin())
    e, units = mean_over(by_size[rival] - by_size.error), LEFT_OUT.format(len(by_size))
    if reason:
        return untestable(reason, e, "points", units)
    note = f"error of the better rival ({names[rival]}) minus error of the curve"
    return rises(e, "points", units, note=note)


def _testable(links: pd.DataFrame, accuracy: str, smooth: str) -> tuple[pd.DataFrame, str]:
    """Return the rows of a link, and why it is not testable; "" if it is."""
    rows = links[(links.accuracy == accuracy) & (links.smooth == smooth)]
    if rows.empty:
        return rows, "fewer than three sizes on each text were tested on sums"
    span, needed = float(np.ptp(rows.late)), 2 * MOST_ERROR[accuracy]
    return rows, alike(span) if span < needed else ""


def over_size(ends: pd.DataFrame) -> Test:
    """Test that accuracy in choosing sums rises with size at the end; `ends`: see `ends_table`."""
    texts = ends[ends.measure == "choice"].groupby("n_params").value.agg(["mean", "count"])
    rows = texts[texts["count"] == len(DATA_ARMS)]
    e = slope(np.log10(rows.index), 100 * rows["mean"]) if len(rows) else None
    if e is None:
        return untestable("fewer than three sizes were tested on sums")
    return rises(e, PER_TENFOLD, f"{len(rows)} sizes, mean of both texts")
