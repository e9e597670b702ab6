"""The claims about verbatim recitation.

Claims about order are from section 3.2 of the Pythia paper. Claims about size are from Biderman et
al. 2023b ("Emergent and Predictable Memorization", arXiv 2304.11158) and Carlini et al. 2023 (arXiv
2202.07646).

Intervals for released models are over sizes, because the released sequences contain many duplicates
and each size was trained once. Our claims about trends over sizes have intervals over sizes, too.
For a single run, they are over texts, and all rows of a repeated text count as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.tables import MODELS
from pythia_book.stats import Estimate
from pythia_book.studies.memorization.order_tests import MIN_EVENTS
from pythia_book.studies.memorization.params import TREND
from pythia_book.studies.memorization.sizes import RATES_DIFFER, confounded, size_trend
from pythia_book.studies.memorization.tables import Extracted, repetition_slope
from pythia_book.verdicts import NOT_MEASURED, Claim, Test, untestable, within
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

NO_PLACES = (
    "the released tables count memorized sequences without giving their position in training"
)
DISPERSION = 0.2
"""The variance of the counts per window is taken as binomial if it differs from the binomial
variance by less than this fraction of the binomial variance."""
PYTHIA = "section 3.2, Figure 3"
DECLINE = "Biderman et al. 2023b, section 3, Figures 1 and 2"
POINTS, ONE_RUN = "points", "one run each"
SMALLER_FAMILY = (
    "other claims lost their tests after the results were known, which alone could make this one "
    "significant; with the tests of the first record at scale laptop, the corrected p was 0.053"
)


def claims(extracted: Extracted, tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """Return the claims about order, size, repetition and smaller models, with their tests."""
    return [
        *_order(extracted, tables["tests"]),
        *_models(extracted, tables),
        _decline(extracted, tables["prediction"], tables["released"]),
    ]


# --- order -----------------------------------------------------------------------------------


def _order(extracted: Extracted, tests: pd.DataFrame) -> list[Claim]:
    """Return the claims that the order of training does not matter for memorization."""
    params = extracted.params
    poisson = "dispersion", DISPERSION, "of the binomial variance"
    others = [window for window in params.windows if window != params.window]
    return [
        Claim(
            "Whether a row is memorized does not depend on when in training it is read.",
            PYTHIA,
            _order_test(
                extracted, tests, "standard", (0,), "trend", TREND,
                "% of the rate per tenth of training",
            ),
            untestable(NO_PLACES),
            quote="memorized sequences are not spaced more densely toward the beginning or end of "
            "training",
        ),
        Claim(
            "The positions of memorized rows in training follow a Poisson process.",
            PYTHIA,
            _order_test(extracted, tests, "standard", (params.window,), *poisson),
            untestable(NO_PLACES),
            quote="a Poisson model fits the data extremely well",
        ),
        Claim(
            "In batches of other sizes, too, the positions of memorized rows in training follow a "
            "Poisson process.",
            PYTHIA,
            _order_test(extracted, tests, "standard", others, *poisson),
            untestable(NO_PLACES),
            quote="We use a batch size of 512 sequences for these plots, but we observe similar "
            "results for various batch sizes.",
        ),
        Claim(
            "With the deduplicated text, too, the positions of memorized rows in training follow a "
            "Poisson process.",
            PYTHIA,
            _order_test(extracted, tests, "deduplicated", (params.window,), *poisson),
            untestable(NO_PLACES),
            quote="rate of occurrence of memorized sequences in 12B model compared to a Poisson "
            "Point Process, with (top) and without (bottom) deduplication",
        ),
    ]  # fmt: skip


def _order_test(
    extracted: Extracted,
    tests: pd.DataFrame,
    arm: str,
    windows: Sequence[int],
    test: str,
    margin: float,
    unit: str,
) -> Test:
    """Test that memorized rows show practically no trend over training, or practically no clusters.

    The rows are those whose continuation the largest model read only once. The window size whose
    interval reaches furthest from "no effect" decides.

    Args:
        windows: rows per window; for "trend", which has no windows, only 0.
        test: "trend" or "dispersion".
        margin: an effect up to this size, in `unit`, counts as none.
    """
    size = extracted.params.size_list[-1]
    memorized, rows = extracted.memorized(size, arm), extracted.rows[arm]
    if memorized is None:
        return within(None, unit, "", margin)
    once = rows.times == 1
    events, units = int((memorized & once).sum()), f"one run; {once.sum():,} rows read once"
    lines = tests[(tests.arm == arm) & (tests.test == test) & tests.window.isin(windows)]
    if not memorized.any():
        return untestable("no row is memorized", unit=unit, units=units)
    if lines.empty:
        return untestable(
            f"{events} of {once.sum():,} rows read once are memorized, and a test needs "
            f"{MIN_EVENTS}; the other memorized rows are planted copies placed at random, so over "
            "all rows the statement would hold by design",
            unit=unit,
            units=units,
        )
    null = 1 if test == "dispersion" else 0
    row = max(lines.itertuples(), key=lambda r: max(r.high - null, null - r.low))
    e = Estimate(row.value - null, row.low - null, row.high - null, int(once.sum()), 1)
    at = f"; {row.window} rows per window" if row.window else ""
    return within(e, unit, units, margin, f"{events} memorized rows{at}")


# --- models ----------------------------------------------------------------------------------


def _models(extracted: Extracted, tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """Return the claims that larger models memorize more, and repeated text is memorized more."""
    shares, released = tables["shares"], tables["released"]
    last = shares[(shares.percent == 100) & (shares.arm == "standard")].set_index("size")
    theirs = released[(released.experiment == "smaller model") & (released.step == OFFICIAL_STEPS)]
    nothing = "" if last.value.any() else "no model has memorized anything"
    by_size = (100 * last.value).to_dict()
    return [
        Claim(
            "Larger models memorize more.",
            "Carlini et al. 2023, abstract",
            untestable(nothing) if nothing else confounded(size_trend(by_size, POINTS, ONE_RUN)),
            size_trend(dict(zip(theirs.model, theirs.share, strict=True)), POINTS, ONE_RUN),
            quote="Memorization significantly grows as we increase (1) the capacity of a model",
        ),
        Claim(
            "Text that is read more often is more often memorized.",
            "Carlini et al. 2023, abstract",
            untestable(nothing) if nothing else _repetition(extracted, tables["exposures"]),
            quote="Memorization significantly grows as we increase [...] (2) the number of times "
            "an example has been duplicated",
        ),
    ]


def _repetition(extracted: Extracted, exposures: pd.DataFrame) -> Test:
    """Show whether the largest model memorizes rows more often if it has read them more often."""
    params, rows = extracted.params, extracted.rows["standard"]
    unit = "points per doubling of the number of readings"
    size = params.size_list[-1]
    memorized = extracted.memorized(size, "standard")
    if memorized is None:
        return untestable(NOT_MEASURED)
    e, unit_of = repetition_slope(memorized, rows).times(100), rows.unit
    bins = exposures[(exposures["size"] == size) & (exposures.arm == "standard")]
    bins = bins.dropna(subset=["value"])
    by_times = ", ".join(f"{row.times}: {100 * row.value:.1f} %" for row in bins.itertuples())
    return untestable(
        SMALLER_FAMILY,
        e,
        unit,
        f"one run; {len(np.unique(unit_of)):,} texts, with memorized rows in "
        f"{len(np.unique(unit_of[memorized]))}",
        note=f"how often a text is read was planted; memorized by number of readings: {by_times}",
    )


def _decline(extracted: Extracted, prediction: pd.DataFrame, released: pd.DataFrame) -> Claim:
    """Return the claim that smaller models memorize fewer of the largest model's rows."""
    recall = prediction[prediction.experiment == "smaller model"].set_index("size").recall.dropna()
    theirs = released[(released.experiment == "smaller model") & (released.step == OFFICIAL_STEPS)]
    theirs = theirs[theirs.model != MODELS[-1]]
    correlation = "recall, although the quoted sentence is about correlation"
    return Claim(
        "The smaller a model, the fewer it memorizes of the rows that the largest memorizes.",
        DECLINE,
        confounded(
            size_trend(
                (100 * recall).to_dict(),
                POINTS,
                "which read the same texts",
                f"{correlation}; of the first {extracted.n_first:,} rows",
            ),
            f"{RATES_DIFFER}, and nearly all memorized rows are pieces of a few planted texts",
        )
        if recall.any()
        else untestable("the largest model has memorized nothing"),
        size_trend(
            dict(zip(theirs.model, 100 * theirs.recall, strict=True)),
            POINTS,
            ONE_RUN,
            f"{correlation}; the source's own numbers, not a replication",
        ),
        quote="a sharp decline in correlation between which sequences are memorized by smaller "
        "models and the 12B model as the gap between the model sizes increases",
    )
