"""The tables and verdicts about traces, on synthetic losses with known effects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pythia_book import verdicts
from pythia_book.stats import slope
from pythia_book.studies.memorization import figures, study, trace_claims, traces
from pythia_book.studies.memorization.panel import NEVER, trend
from pythia_book.studies.memorization.params import Params
from pythia_book.studies.memorization.samples import CUT, OTHER
from pythia_book.studies.memorization.sizes import size_trend
from pythia_book.study import Measurements, Result

from pythia_core.training.schedule import learning_rate

PARAMS = Params(seeds=4)
LAST = 572


def losses(
    rng: np.random.Generator, steps: list[int], read: np.ndarray, left: np.ndarray, onset: float
) -> np.ndarray:
    """Return float64[steps, texts]: falling losses; `left`, float[steps, texts], is the trace.

    The trace grows to its full size within `onset` updates.
    """
    at = np.array(steps)[:, None]
    level = rng.normal(6, 0.5, len(read)) - rng.normal(0.5, 0.05, len(read)) * np.log1p(at / 30)
    grown = np.clip((at - read) / onset, 0, 1)
    return level - np.where(read >= 0, left * grown, 0) + rng.normal(0, 0.03, left.shape)


def measured(
    first: float = 0.3,
    kept: float = 0.5,
    recency: float = 0.0,
    dose: float = 0.2,
    floor: float = 0.0,
    onset: float = 1.0,
) -> Measurements:
    """Measure runs whose rows have a trace `first` at the smallest size, and more at larger ones.

    Args:
        kept: the share of the trace left after 40 updates.
        recency: by how much the trace at the end differs over all of training, as a share.
        dose: the trace of a canary read once, and what each doubling adds.
        floor: how much larger the trace of a canary is per tenth of training.
        onset: updates within which traces grow to their full size.
    """
    rng = np.random.default_rng(8)
    arrays: dict[str, np.ndarray] = {}
    cohorts = [np.repeat(np.arange(a, b), 10) for a, b in PARAMS.cohorts]
    for seed in sorted({seed for _, seed in PARAMS.members}):
        arrays[f"cohort_read/{seed}"] = np.append(np.concatenate(cohorts), np.full(300, NEVER))
        positions = np.sort(rng.integers(PARAMS.final_steps[0], LAST, 3000))
        arrays[f"final_read/{seed}"] = np.append(positions, np.full(600, NEVER))
        arrays[f"final_even/{seed}"] = np.append(rng.random(3000) < 0.7, np.ones(600, bool))
        reads = np.repeat([1, 2, 4, CUT, 0], [200, 60, 40, 50, 300])
        arrays[f"canary_reads/{seed}"] = reads.astype(np.int16)
        once = np.where(reads == 1, rng.integers(0, LAST, len(reads)), OTHER)
        arrays[f"canary_read/{seed}"] = np.where(reads == 0, NEVER, once)
    for i, (size, seed) in enumerate(PARAMS.members):
        trace = first * (1 + 0.1 * i if seed == PARAMS.seed else 1)
        read = arrays[f"cohort_read/{seed}"]
        age = np.array(PARAMS.cohort_steps)[:, None] - read
        left = trace * np.where(age > 40, kept, 1.0)
        cohort = losses(rng, PARAMS.cohort_steps, read, left, onset)
        arrays[f"cohort_loss/{size}/{seed}"] = (cohort - cohort[-1]).astype(np.float16)
        read = arrays[f"final_read/{seed}"]
        left = trace * kept * (1 + recency * (read / LAST - 0.5)) * np.ones((3, 1))
        final = losses(rng, list(PARAMS.final_steps), read, left, onset)
        arrays[f"final_loss/{size}/{seed}"] = (final - final[-1]).astype(np.float16)
        read, reads = arrays[f"canary_read/{seed}"], arrays[f"canary_reads/{seed}"]
        age = np.array(PARAMS.canary_steps)[:, None] - read
        left = dose * (1 + np.log2(np.maximum(1, reads))) + floor * 10 * np.maximum(read, 0) / LAST
        left = np.where((read == OTHER) | (age > 0), np.clip(age / onset, 0, 1) * left, 0)
        left = np.where(reads == CUT, 1.0, left) * (reads != 0)  # pieces teach, too
        flat = 5 + rng.normal(0, 0.1, (7, len(reads))) - left
        arrays[f"canary_loss/{size}/{seed}"] = flat.astype(np.float32)
    return Measurements(arrays, {})


def judged(sample: Measurements) -> dict[str, str]:
    claims = trace_claims.claims(PARAMS, traces.runs_of(PARAMS, sample))
    return {row["claim"]: row["ours"]["verdict"] for row in verdicts.judge(claims)}


def verdict(rows: dict[str, str], words: str) -> str:
    (one,) = (value for text, value in rows.items() if words in text)
    return one


ORDER = {"known": "leaves in 600k", "seeds": "when 25k read it", "floor": "when 600k read them"}
"""Words of the hypotheses that the trace at the end hardly depends on order."""


def test_planted_traces_are_estimated_and_judged() -> None:
    sample = measured()
    runs = traces.runs_of(PARAMS, sample)
    largest = runs["600k", 1234]
    assert largest.first.value == pytest.approx(0.3 * 1.7, abs=0.02)
    assert largest.retained.value == pytest.approx(0.5, abs=0.04)
    assert largest.residual.value == pytest.approx(0.15 * 1.7, abs=0.02)
    assert largest.canary.value == pytest.approx(0.2, abs=0.03)
    assert largest.canary_dose.low < 0.2 < largest.canary_dose.high
    assert largest.by_dose(*traces.DOSES["3+"]).value == pytest.approx(0.6, abs=0.05)
    assert largest.by_dose(1, 1).n_items == largest.canary.n_items < 200  # none read too late
    assert largest.by_age(0, 15).low < 0.2 < largest.by_age(0, 15).high
    before = largest.canary_before
    assert before.low < 0 < before.high < 0.05
    assert abs(traces.over_seeds(PARAMS, runs, "canary_before").value) < 0.05
    _, p, before = largest.pretrends
    assert p > 0.01 and abs(before.value) < 0.02
    assert traces.over_seeds(PARAMS, runs, "residual").n_items == 3  # without the default seed
    assert traces.agreement(largest, runs["25k", 1234]) > 0.8
    rows = judged(sample)
    for words in ("Soon after reading a row", "has lost part", "Over seeds, 25k", "canary grows"):
        assert verdict(rows, words) == verdicts.HOLDS, words
    assert verdict(rows, "rows that will be read change") == verdicts.HOLDS
    for words in ("At the end of training, 600k", "In 600k, rows read later", ORDER["known"]):
        assert verdict(rows, words) == verdicts.NOT_TESTABLE, words
    assert verdict(rows, ORDER["seeds"]) == verdicts.HOLDS
    assert verdict(rows, "larger a model, the larger the trace") == verdicts.NOT_TESTABLE
    assert verdict(rows, "larger the part of the trace") == verdicts.NOT_TESTABLE
    assert verdict(rows, "too, later rows leave") == verdicts.NOT_RESOLVED
    assert verdict(rows, "profiles of a smaller") == verdicts.NOT_TESTABLE
    assert verdict(rows, "higher the learning rate") == verdicts.NOT_TESTABLE


def test_recency_is_seen_where_it_is_planted() -> None:
    sample = measured(recency=1.5, floor=0.3)
    rows = judged(sample)
    assert verdict(rows, "too, later rows leave") == verdicts.HOLDS
    assert verdict(rows, ORDER["seeds"]) == verdicts.FAILS
    run = traces.runs_of(PARAMS, sample)["600k", 1234]
    assert run.canary_floor.low < 0.3 < run.canary_floor.high
    assert run.canary_floor.low > 0
    assert verdict(judged(measured(recency=-1.5)), "too, later rows leave") == verdicts.FAILS
    assert verdict(rows, ORDER["floor"]) == verdicts.NOT_TESTABLE
    assert run.order("floor").low > 0


@pytest.mark.parametrize(("up", "down"), [(0.0, 0.0), (0.04, 0.02)])
def test_each_half_of_training_has_its_own_slope(up: float, down: float) -> None:
    """The trace rises by `up` per tenth over the first half, and falls by `down` from there."""
    sample = measured()
    for size, seed in PARAMS.members:
        tenths = np.maximum(10 * sample.arrays[f"final_read/{seed}"] / LAST, 0)
        shape = up * np.minimum(tenths, 5) - down * np.maximum(tenths - 5, 0)
        name = f"final_loss/{size}/{seed}"
        sample.arrays[name] = sample.arrays[name].astype(float) + [[1], [1], [0]] * shape
    runs = traces.runs_of(PARAMS, sample)
    for measure, slope_there in (("first_half", up), ("second_half", -down)):
        estimates = [getattr(run, measure) for run in runs.values()]
        assert sum(e.low <= slope_there <= e.high for e in estimates) >= len(estimates) - 2
        assert all(e.high - e.low < 0.02 for e in estimates)
        mean = traces.over_seeds(PARAMS, runs, measure)
        assert mean.low < slope_there < mean.high


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_a_difference_before_reading_is_seen(drift: float) -> None:
    """Rows read at the minimum learning rate fall by `drift` more before they are read."""
    sample = measured()
    for size, seed in PARAMS.members:
        late = sample.arrays[f"final_read/{seed}"] >= PARAMS.final_steps[1]
        sample.arrays[f"final_loss/{size}/{seed}"][0, late] += drift
    runs = traces.runs_of(PARAMS, sample)
    estimates = [run.placebo for run in runs.values()]
    assert sum(e.low <= drift <= e.high for e in estimates) >= len(estimates) - 2
    assert not drift or all(e.low > 0 for e in estimates)
    mean = traces.over_seeds(PARAMS, runs, "placebo")
    assert mean.low < drift < mean.high


def test_a_trace_that_is_still_growing_is_no_effect_of_order() -> None:
    """Adam's momentum delays traces by up to FIRST_LOOK checkpoints."""
    sample = measured(onset=38)
    run = traces.runs_of(PARAMS, sample)["600k", 1234]
    for e in (run.trend, run.floor_trend, run.canary_floor):
        assert e.low < 0 < e.high
    assert verdict(judged(sample), ORDER["seeds"]) == verdicts.HOLDS
    largest = PARAMS.final_steps[1]
    late = run.final.read_in(largest, LAST)
    tenths = 10 * (run.final.read[late] + 0.5) / LAST
    with_late = trend(run.final, late, run.final.fall(largest, LAST, len(late)), tenths)
    assert with_late.high < 0  # what it would be with rows read in the last updates


def test_the_learning_rate_at_reading_is_recovered() -> None:
    """With the trace in proportion to the rate, its slope is the factor; without, it is zero."""
    for factor in (0.0, 0.4):
        sample = measured(first=0.0)
        read = sample.arrays["cohort_read/1234"]
        rate = np.array([learning_rate(max(0, int(u)), LAST, 1.0, 0.1) for u in read])
        seen = (np.array(PARAMS.cohort_steps)[:, None] > read) & (read >= 0)
        loss = sample.arrays["cohort_loss/600k/1234"].astype(float) - factor * rate * seen
        sample.arrays["cohort_loss/600k/1234"] = loss
        e = traces.runs_of(PARAMS, sample)["600k", 1234].rate_slope
        assert e.low < factor < e.high and e.high - e.low < 0.2


def test_without_a_trace_order_is_not_tested() -> None:
    sample = measured(first=0.0, dose=0.0)
    rows = judged(sample)
    for words in ORDER.values():
        assert verdict(rows, words) == verdicts.NOT_TESTABLE
    run = traces.runs_of(PARAMS, sample)["600k", 1234]
    assert run.order("training") is None and run.order("floor") is None
    assert verdict(rows, "Soon after reading a row") == verdicts.NOT_RESOLVED
    assert verdict(rows, "predicts canaries read once") == verdicts.NOT_RESOLVED


def test_a_trend_over_sizes_has_the_right_level_if_sizes_share_rows() -> None:
    """The noise of the rows is common to all sizes; small sizes have the least certain ratios."""
    rng, sizes, rises = np.random.default_rng(9), PARAMS.size_list, 0
    errors = np.linspace(0.12, 0.03, len(sizes))
    for _ in range(400):
        values = 0.4 + rng.normal(0, 0.1) + errors * rng.normal(size=len(sizes))
        e = slope(range(len(sizes)), values, errors)
        rises += e.p_value(0) < 0.05
        exact = slope(range(len(sizes)), 0.4 + 0.05 * np.arange(len(sizes)), errors)
        assert exact.value == pytest.approx(0.05)
    assert 8 <= rises <= 34
    planted = 0.4 + 0.05 * np.arange(len(sizes)) + errors * rng.normal(size=len(sizes))
    test = size_trend(dict(zip(sizes, planted, strict=True)), "nats", "", errors=list(errors))
    assert test.estimate.low > 0
    assert (
        size_trend({"7k": 1.0, "13k": 2.0}, "nats", "").reason
        == "a trend needs at least 3 sizes, got 2"
    )


def test_tables_and_figures_of_traces() -> None:
    sample = measured()
    runs = traces.runs_of(PARAMS, sample)
    tables = {
        name: pd.DataFrame(lines, columns=traces.COLUMNS[name])
        for name, lines in traces.tables(PARAMS, runs).items()
    }
    assert set(tables["traces"].seed) == {1234, 1, 2, 3}
    assert set(tables["profiles"]["size"]) == set(PARAMS.size_list)
    assert (tables["positions"].groupby(["size", "scope"]).n.count() == traces.POSITIONS).all()
    values = study.trace_values(PARAMS, runs)
    result = Result("memorization", PARAMS, tables, values, [], sample, {}, 0.0)
    assert set(tables["canaries"].group) == {*traces.AGES, *traces.DOSES}
    for draw in (figures.profiles, figures.trace_sizes, figures.recency, figures.canaries):
        drawing = draw(result)
        assert drawing.svg == draw(result).svg and "nan" not in drawing.description
    assert "600k" in repr(figures.traces_table(result))


def test_a_run_with_a_gap_is_left_out() -> None:
    sample = measured()
    del sample.arrays["final_loss/600k/1234"]
    runs = traces.runs_of(PARAMS, sample)
    assert ("600k", 1234) not in runs and ("25k", 3) in runs
    assert verdict(judged(sample), "Soon after reading a row") == verdicts.NOT_TESTABLE
