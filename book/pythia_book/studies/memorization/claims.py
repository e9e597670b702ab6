"""The claims of the memorization study.

Claims about order are from section 3.2 of the Pythia paper. Claims about size and prediction are
from Biderman et al. 2023b ("Emergent and Predictable Memorization", arXiv 2304.11158) and Carlini
et al. 2022 (arXiv 2202.07646).

Intervals for released models are over sizes, because the released sequences contain many duplicates
and each size was trained once. Our claims about trends over sizes have intervals over sizes, too.
For a single run, they are over texts, and all rows of a repeated text count as one.

Biderman et al. 2023b give no bound for their high precision and low recall. So their numbers get no
verdict, and ours are compared with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.tables import MODELS
from pythia_book.stats import Estimate, mean_over, slope
from pythia_book.studies.memorization.order_tests import MIN_EVENTS
from pythia_book.studies.memorization.params import EARLY
from pythia_book.studies.memorization.tables import (
    Extracted,
    Prediction,
    predicted_by,
    repetition_slope,
)
from pythia_book.verdicts import NOT_MEASURED, Claim, Test, falls, rises, untestable, within
from pythia_core.suite import nominal_parameters
from pythia_core.training.schedule import OFFICIAL_STEPS, linear_step

if TYPE_CHECKING:
    import pandas as pd

NO_BOUND = "the source gives no bound; its own numbers are shown"
THEIRS = "the source's own numbers, no replication"
"""The note on tests that use the numbers released by Biderman et al. 2023b."""
NO_PLACES = (
    "the released tables count memorized sequences without giving their position in training"
)
PLANTED = "nearly all are planted copies"
CORRELATION = "recall, where the sentence is about correlation"
TREND = 5.0
"""The smallest change of the rate of memorized rows that counts as a trend, in % of the mean rate
per 10 % of training. Over all of training, a smaller change is less than half of the mean rate."""
DISPERSION = 0.2
"""The variance of the counts per window is taken as binomial if it differs from the binomial
variance by less than this fraction of the binomial variance."""
CHECKPOINT_PRECISION, SMALLER_PRECISION = 91.0, 88.4
"""The lowest precision, in percent, that Biderman et al. 2023b call high: first for checkpoints
(Table 2), then for smaller models (Figure 2). Our precision is high if it is above the bound."""
SMALLER_RECALL = 55.4
"""The recall, in percent, of 1.4B as a predictor of what 12B has memorized. Biderman et al. 2023b
call this recall low. Our recall is low if it is below this bound."""
TENTH = ("70m", "160m", "410m", "1b", "1.4b")
"""The models at least an order of magnitude smaller than 12B."""
EARLY_RECALL = {
    23: (
        51.3,
        "the earliest intermediate checkpoints we test do not exhibit the high recall that is "
        "desirable",
    ),
    63: (
        65.8,
        "recall is low for all predictors that use significantly less compute than the final "
        "model's cost",
    ),
}
"""Maps each checkpoint in EARLY to a recall, in percent, and to the words with which the source
calls this recall low. The recall is the higher one of the two models in Table 2. Our recall is low
if it is below this bound."""
FEWEST_SIZES = 3
"""The smallest number of sizes for which a trend over sizes is tested."""
FEWEST_TEXTS = 10
"""Number of independent texts that a verdict on precision or recall needs. With fewer texts, the
result mostly shows how many texts were planted at each level of repetition."""

PYTHIA = "section 3.2, Figure 3"
PREDICTION = "Biderman et al. 2023b, section 4 and Table 2"
SMALLER = "Biderman et al. 2023b, section 3 and Figure 2"
DECLINE = "Biderman et al. 2023b, section 3, Figures 1 and 2"


def claims(extracted: Extracted, tables: dict[str, pd.DataFrame]) -> list[Claim]:
    """Return the claims about order, size, repetition and prediction, with their tests."""
    return [
        *_order(extracted, tables["tests"]),
        *_models(extracted, tables),
        *_predictions(extracted, tables["prediction"], tables["released"]),
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
    found = tests[(tests.arm == arm) & (tests.test == test) & tests.window.isin(windows)]
    if not memorized.any():
        return untestable("no row is memorized", unit=unit, units=units)
    if found.empty:
        return untestable(
            f"{events} of {once.sum():,} rows read once are memorized, and a test needs "
            f"{MIN_EVENTS}; the other memorized rows are planted copies placed at random, so over "
            "all rows the statement would hold by design",
            unit=unit,
            units=units,
        )
    null = 1 if test == "dispersion" else 0
    row = max(found.itertuples(), key=lambda r: max(r.high - null, null - r.low))
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
    return [
        Claim(
            "Larger models memorize more.",
            "Carlini et al. 2022, abstract",
            _size_trend((100 * last.value).to_dict(), nothing),
            _size_trend(dict(zip(theirs.model, theirs.share, strict=True))),
            quote="Memorization significantly grows as we increase (1) the capacity of a model",
        ),
        Claim(
            "Text that is read more often is more often memorized.",
            "Carlini et al. 2022, abstract",
            untestable(nothing) if nothing else _repetition(extracted, tables["exposures"]),
            quote="Memorization significantly grows as we increase [...] (2) the number of times "
            "an example has been duplicated",
        ),
    ]


def _repetition(extracted: Extracted, exposures: pd.DataFrame) -> Test:
    """Test whether the largest model memorizes rows more often if it has read them more often."""
    params, rows = extracted.params, extracted.rows["standard"]
    unit = "points per doubling of the number of readings"
    size = params.size_list[-1]
    memorized = extracted.memorized(size, "standard")
    if memorized is None:
        return rises(None, unit, "")
    e, unit_of = repetition_slope(memorized, rows).times(100), rows.unit
    bins = exposures[(exposures["size"] == size) & (exposures.arm == "standard")]
    bins = bins.dropna(subset=["value"])
    by_times = ", ".join(f"{row.times}: {100 * row.value:.1f} %" for row in bins.itertuples())
    return rises(
        e,
        unit,
        f"one run; {len(np.unique(unit_of)):,} texts, with memorized rows in "
        f"{len(np.unique(unit_of[memorized]))}",
        note=f"how often a text is read was planted; memorized by number of readings: {by_times}",
    )


def _size_trend(by_size: dict[str, float], nothing: str = "", note: str = "") -> Test:
    """Test that a measure in percent rises with model size. The slope is per doubling of size."""
    unit, n = "points per doubling of the nominal size", len(by_size)
    if nothing:
        return untestable(nothing)
    if not by_size:
        return rises(None, unit, "")
    if n < FEWEST_SIZES:
        return untestable(f"a trend needs {FEWEST_SIZES} sizes, not {n}")
    sizes = [math.log2(nominal_parameters(size)) for size in by_size]
    return rises(slope(sizes, list(by_size.values())), unit, _models_text(n), note=note)


def _models_text(n: int) -> str:
    return f"{n} sizes, one run each"


# --- prediction ------------------------------------------------------------------------------


def _predictions(
    extracted: Extracted, prediction: pd.DataFrame, released: pd.DataFrame
) -> list[Claim]:
    """Return the claims that earlier checkpoints and smaller models predict memorization."""
    params, rows = extracted.params, []
    first = f"the first {extracted.n_first:,} rows"
    theirs = released[released.experiment == "earlier checkpoint"]
    for index, percent, step in zip(EARLY, params.early_percent, params.early_steps, strict=True):
        ours = predicted_by(extracted, params.size_list[-1], step)
        numbers = theirs[theirs.step == linear_step(index, OFFICIAL_STEPS)]
        nothing = f"nothing is memorized after {percent} %"
        silent = ours is not None and not ours.predicted.any()
        few = _few_readings(extracted, step) if silent else ""
        note = f"{PLANTED}, whose reading goes on"
        low, quote = EARLY_RECALL[index]
        missing = "nothing is memorized at the end"
        design = _too_few_readings(extracted, ours, step, percent, low)
        rows += [
            Claim(
                f"Nearly all rows memorized after {percent} % of training are memorized at the "
                "end.",
                PREDICTION,
                _share(
                    ours, "precision", rises, CHECKPOINT_PRECISION, first, f"{nothing}{few}", note
                ),
                _over_models(numbers, "precision"),
                quote="We observe consistently high precision",
            ),
            Claim(
                f"Many of the rows memorized at the end are not yet memorized after {percent} % of "
                "training.",
                PREDICTION,
                untestable(f"{nothing}{few}")
                if few
                else _share(ours, "recall", falls, low, first, missing, note, design),
                _over_models(numbers, "recall"),
                quote=quote,
            ),
        ]
    small = prediction[prediction.experiment == "smaller model"].set_index("size")
    theirs = released[(released.experiment == "smaller model") & (released.step == OFFICIAL_STEPS)]
    theirs = theirs[theirs.model != MODELS[-1]]
    largest = params.size_list[-1]
    last = params.steps("standard")[-1]
    tenth = predicted_by(extracted, params.tenth, last) if params.tenth != largest else None
    times = nominal_parameters(largest) / nominal_parameters(params.tenth)
    note = f"{params.tenth} predicts {largest}, {times:.0f} times its size; {PLANTED}"
    missed = "the largest model has memorized nothing"
    recall = small.recall.dropna()
    return [
        *rows,
        Claim(
            "The largest model memorizes nearly all rows that a smaller one memorizes.",
            SMALLER,
            _share(
                tenth, "precision", rises, SMALLER_PRECISION, first,
                "the smaller model has memorized nothing", note,
            ),
            _over_models(theirs, "precision"),
            quote="the precision is high for all models",
        ),
        Claim(
            "A model much smaller than the largest misses many of the rows that the largest "
            "memorizes.",
            SMALLER,
            _share(tenth, "recall", falls, SMALLER_RECALL, first, missed, note),
            _over_models(theirs[theirs.model.isin(TENTH)], "recall"),
            quote="The recall is incredibly low across the board, with even the 1.4B parameter "
            "model only achieving a recall of 0.554 when trying to forecast the behavior of a "
            "model an order of magnitude larger.",
        ),
        Claim(
            "The smaller a model, the fewer it memorizes of the rows that the largest memorizes.",
            DECLINE,
            _size_trend(
                (100 * recall).to_dict(),
                "" if recall.any() else missed,
                f"{CORRELATION}; of {first}; {PLANTED}; all sizes read the same texts",
            ),
            _size_trend(
                dict(zip(theirs.model, 100 * theirs.recall, strict=True)),
                note=f"{CORRELATION}; {THEIRS}",
            ),
            quote="a sharp decline in correlation between which sequences are memorized by smaller "
            "models and the 12B model as the gap between the model sizes increases",
        ),
    ]  # fmt: skip


def _fewest_readings(extracted: Extracted, step: int) -> int:
    """Return the smallest number of readings after which the largest model has memorized a row.

    For a row memorized at `step`, readings up to `step` count. For a row memorized at the end, all
    readings count. Return 0 if no row was memorized.
    """
    size, n = extracted.params.size_list[-1], extracted.n_first
    readings = [np.zeros(0, int)]
    for at, times in (
        (step, extracted.measured.arrays[f"read/{step}"]),
        (None, extracted.rows["standard"].times[:n]),
    ):
        memorized = extracted.memorized(size, "standard", at)
        if memorized is not None:
            readings.append(times[memorized[:n]])
    return int(min(np.concatenate(readings), default=0))


def _few_readings(extracted: Extracted, step: int) -> str:
    """Return a note if by `step` no text has been read often enough to be memorized; else ""."""
    most = int(extracted.measured.arrays[f"read/{step}"].max())
    fewest = _fewest_readings(extracted, step)
    if most >= fewest:
        return ""
    return (
        f"; of the tested rows, none had been read more than {most} times by then, and those that "
        f"are memorized at the end are read at least {fewest} times"
    )


def _too_few_readings(
    extracted: Extracted, ours: Prediction | None, step: int, percent: int, bound: float
) -> str:
    """Say that too few texts have been read often enough by `step` for a recall above `bound` %.

    Return "" if a recall above `bound` is possible, or if recall cannot be computed.
    """
    if ours is None or not ours.truth.any():
        return ""
    fewest = _fewest_readings(extracted, step)
    often = extracted.measured.arrays[f"read/{step}"] >= fewest
    possible, n = Prediction.of(often, often, extracted.rows["standard"]), int(ours.truth.sum())
    k = int((possible.predicted & ours.truth).sum())
    if 100 * k >= bound * n:
        return ""
    return (
        f"after {percent} % too few texts have been read often enough, by the design of the "
        f"planted copies: of the tested rows, none that was read less than {fewest} times is "
        f"memorized, and only {k} of the {n} continuations memorized at the end have been read so "
        f"often by then, which leaves a recall of at most {100 * k / n:.0f} %, below the bound"
    )


def _share(
    ours: Prediction | None,
    measure: str,
    test: Callable[..., Test],
    bound: float,
    first: str,
    nothing: str,
    note: str,
    design: str = "",
) -> Test:
    """Test whether a predictor's precision or recall is above or below a bound.

    Args:
        test: `rises` for above, `falls` for below.
        bound: in percent, what the source calls a high precision or a low recall.
        first: says which rows are predicted, e.g. "the first 5,000 rows".
        nothing: why the claim is untestable if there are no texts to count.
        design: why the result is certain by design, so that there is no test; else "".
    """
    if ours is None:
        return test(None, "%", "", bound)
    (k, n), (n_texts, planted) = ours.count(measure), ours.units(measure)
    if not n:
        return untestable(nothing, unit="%")
    e = ours.share(measure).times(100)
    named = "high" if measure == "precision" else "low"
    bounded = f"the bound, {bound:g} %, is a {measure} that the source calls {named}"
    texts = f"{n_texts} planted texts" if planted else f"{n_texts} texts"
    units = f"one run; {texts} among {first}"
    note = f"{k} of {n} distinct continuations; {note}; {bounded}"
    if n_texts < FEWEST_TEXTS:
        design = design or f"no independent units: {texts}"
    return untestable(design, e, "%", units, note) if design else test(e, "%", units, bound, note)


def _over_models(rows: pd.DataFrame, measure: str) -> Test:
    """Return the precision or recall of each released model, and the mean, without a verdict."""
    rows = rows.dropna(subset=[measure])
    if rows.empty:
        return untestable(NOT_MEASURED, unit="%")
    units = 100 * rows[measure]
    by_size = ", ".join(f"{m} {u:.0f}" for m, u in zip(rows.model, units, strict=True))
    return untestable(NO_BOUND, mean_over(units), "%", _models_text(len(units)), f"{by_size} %")
