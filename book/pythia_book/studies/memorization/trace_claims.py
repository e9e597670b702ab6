"""The claims and hypotheses about traces, with their margins.

Claims are from section 3.2 of the Pythia paper, which measures verbatim memorization where we
measure loss, and from the abstract of Lesci et al. 2024 ("Causal Estimation of Memorisation
Profiles", arXiv 2406.04327). Hypotheses and margins were written before the recorded runs were
measured. Intervals about one run are over its rows or canaries, which training orders at random;
those about size are over sizes, and those about training again over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pythia_book.stats import Estimate, slope
from pythia_book.studies.memorization.params import Params
from pythia_book.studies.memorization.traces import Run, agreement, over_seeds
from pythia_book.verdicts import Claim, Test, falls, rises, untestable, within
from pythia_core.suite import nominal_parameters

PYTHIA = "section 3.2"
LESCI = "Lesci et al. 2024, abstract"
OURS = "ours, stated before the recorded runs were measured"
NATS = "nats per token"
TREND = 5.0
"""The smallest trend of the traces at the end that counts as an effect of order, in % of the mean
trace per tenth of training. Over all of training, a smaller trend is less than half of the mean
trace. The margin is that of the verbatim test (claims.TREND)."""
PRETREND = 0.03
"""The largest mean trace before reading that counts as none, in nats per token. It is less than a
third of the trace at the end that a first look at one run of the largest size had found (0.105)."""
FEWEST_SIZES = 3
LOSS = "loss on the row, where the paper counts verbatim recitations"


def claims(params: Params, runs: dict[tuple[str, int], Run]) -> list[Claim]:
    """Return all claims, hypotheses and premises about traces."""
    run = runs.get((params.size_list[-1], params.seed))
    return [*_hypotheses(params, runs, run), *_of_papers(params, runs, run), *_premises(run)]


def _hypotheses(params: Params, runs: dict[tuple[str, int], Run], run: Run | None) -> list[Claim]:
    size, seeded = params.size_list[-1], params.seeded_size
    per_tenth = f"{NATS} per tenth of training"

    def of_run(text: str, measure: str, unit: str = NATS, texts: str = "rows") -> Claim:
        return Claim(text, OURS, _of_run(run, measure, rises, unit, texts), kind="hypothesis")

    def of_seeds(text: str, measure: str, unit: str = NATS) -> Claim:
        e = over_seeds(params, runs, measure)
        n = sum(s == seeded for s, _ in runs)
        return Claim(text, OURS, rises(e, unit, f"{n} seeds of {seeded}"), kind="hypothesis")

    return [
        of_run(f"Soon after it is read once, a row is easier for {size}.", "first"),
        Claim(
            f"The trace fades: a quarter of training later, {size} has lost part of it.",
            OURS,
            _of_run(run, "retained", falls, "of the first trace", "rows", bound=1.0),
            kind="hypothesis",
        ),
        of_run(f"At the end of training, a row read once is easier for {size}.", "residual"),
        of_seeds(f"If training is repeated, so it is for {seeded}.", "residual"),
        of_run("Rows read later leave a larger trace at the end.", "trend", per_tenth),
        of_run(
            "So they do among rows read at the same, lowest learning rate.",
            "floor_trend",
            per_tenth,
        ),
        of_seeds(
            "Among rows read at the lowest learning rate they do so if training is repeated, too.",
            "floor_trend",
            per_tenth,
        ),
        of_run(f"At the end, a canary read once is easier for {size}.", "canary", NATS, "canaries"),
        of_run(
            "The trace of a canary grows with the number of times it is read.",
            "canary_dose",
            f"{NATS} per doubling",
            "canaries",
        ),
        of_run(
            "Of canaries read once at the lowest learning rate, later ones leave a larger trace.",
            "canary_floor",
            per_tenth,
            "canaries",
        ),
    ]


def _of_papers(params: Params, runs: dict[tuple[str, int], Run], run: Run | None) -> list[Claim]:
    by_size = {size: run for (size, seed), run in runs.items() if seed == params.seed}
    order = "% of the mean trace per tenth of training"

    def ordered(scope: str) -> Test:
        if run is None:
            return within(None, order, "", TREND)
        e, trace = run.relative_trend(scope), run.residual if scope == "training" else None
        weak = trace is not None and not trace.low > 0
        if weak:
            return untestable("no trace is seen at the end", unit=order)
        return within(e, order, _units(run, e), TREND, LOSS)

    seeded = [run for (size, _), run in runs.items() if size == params.seeded_size]
    rate = run and run.rate_slope
    largest, tenth = by_size.get(params.size_list[-1]), by_size.get(params.tenth)
    both = largest is not None and tenth is not None and largest is not tenth
    r = agreement(largest, tenth) if both else math.nan  # type: ignore[arg-type]
    return [
        Claim(
            "How much a model remembers of a row at the end hardly depends on when it was read.",
            PYTHIA,
            ordered("training"),
            quote="training order has little impact on memorization",
        ),
        Claim(
            "If training is repeated, too, it hardly depends on when a row was read.",
            PYTHIA,
            within(
                over_seeds(params, runs, "order"),
                order,
                f"{len(seeded)} seeds of {params.seeded_size}",
                TREND,
                LOSS,
            ),
            quote="training order has little impact on memorization",
        ),
        Claim(
            "Nor does it among rows that are read at the same, lowest learning rate.",
            PYTHIA,
            ordered("floor"),
            quote="training order has little impact on memorization",
        ),
        Claim(
            "The larger a model, the larger the trace soon after reading.",
            LESCI,
            _over_sizes(by_size, "first", NATS),
            quote="memorisation (i) is stronger and more persistent in larger models",
        ),
        Claim(
            "The larger a model, the larger the part of the trace that is left a quarter of "
            "training later.",
            LESCI,
            _over_sizes(by_size, "retained", "of the first trace"),
            quote="memorisation (i) is stronger and more persistent in larger models",
        ),
        Claim(
            "The higher the learning rate, the larger the trace soon after reading.",
            LESCI,
            rises(
                rate,
                f"{NATS}, from a rate of zero to the largest",
                _units(run, rate) if run and rate else "",
                note="the rate falls during training, so this is also an effect of time",
            ),
            quote="memorisation [...] (ii) is determined by data order and learning rate",
        ),
        Claim(
            "The profiles of a smaller and a larger model agree.",
            LESCI,
            untestable(
                "the source's abstract gives no bound",
                Estimate(r, math.nan, math.nan, 0, 1) if both else None,
                "correlation",
                f"cohorts and checkpoints of {params.tenth} and {params.size_list[-1]}",
            ),
            quote="memorisation [...] (iii) has stable trends across model sizes, thus making "
            "memorisation in larger models predictable from smaller ones",
        ),
    ]


def _premises(run: Run | None) -> list[Claim]:
    text = "Before they are read, rows that will be read change like rows that never are."
    if run is None:
        return [Claim(text, OURS, within(None, NATS, "", PRETREND), kind="premise")]
    _, p, e = run.pretrends
    note = f"parallel trends; joint test of all cohorts: p = {p:.2f}"
    return [Claim(text, OURS, within(e, NATS, _units(run, e), PRETREND, note), kind="premise")]


def _of_run(
    run: Run | None,
    measure: str,
    test: Callable[..., Test],
    unit: str,
    texts: str,
    bound: float = 0.0,
) -> Test:
    """Test an estimate of one run."""
    e = run and getattr(run, measure)
    return test(e, unit, _units(run, e, texts) if run and e else "", bound)


def _units(run: Run, e: Estimate, texts: str = "rows") -> str:
    return f"one run of {run.size}; {e.n_items:,} {texts}"


def _over_sizes(by_size: dict[str, Any], measure: str, unit: str) -> Test:
    """Test that an estimate rises with model size; the slope is per doubling of size."""
    values = {size: getattr(run, measure).value for size, run in by_size.items()}
    n, unit = len(values), f"{unit} per doubling of the nominal size"
    if n < FEWEST_SIZES:
        return untestable(f"a trend needs {FEWEST_SIZES} sizes, not {n}")
    if not all(map(math.isfinite, values.values())):
        return rises(None, unit, "")
    doublings = [math.log2(nominal_parameters(size)) for size in values]
    return rises(slope(doublings, list(values.values())), unit, f"{n} sizes, one run each")
