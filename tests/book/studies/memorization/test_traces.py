"""The tables and verdicts about traces, on synthetic losses with known effects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pythia_book import verdicts
from pythia_book.studies.memorization import figures, study, trace_claims, traces
from pythia_book.studies.memorization.panels import OTHER
from pythia_book.studies.memorization.params import Params
from pythia_book.studies.memorization.profiles import NEVER
from pythia_book.study import Measurements, Result

PARAMS = Params(seeds=4)
LAST = 572


def losses(
    rng: np.random.Generator, steps: list[int], read: np.ndarray, left: np.ndarray
) -> np.ndarray:
    """Return float64[steps, texts]: falling losses; `left`, float[steps, texts], is the trace."""
    at = np.array(steps)[:, None]
    level = rng.normal(6, 0.5, len(read)) - rng.normal(0.5, 0.05, len(read)) * np.log1p(at / 30)
    return level - np.where((read >= 0) & (at > read), left, 0) + rng.normal(0, 0.03, left.shape)


def measured(
    first: float = 0.3, kept: float = 0.5, recency: float = 0.0, canary: float = 0.2
) -> Measurements:
    """Measure runs whose rows have a trace `first` at the smallest size, and more at larger ones.

    Args:
        kept: the share of the trace left after 40 updates.
        recency: by how much the trace at the end differs over all of training, as a share.
        canary: the trace of a canary, per reading.
    """
    rng = np.random.default_rng(8)
    arrays: dict[str, np.ndarray] = {}
    cohorts = [np.repeat(np.arange(a, b), 10) for a, b in PARAMS.cohorts]
    for seed in sorted({seed for _, seed in PARAMS.members}):
        arrays[f"path_read/{seed}"] = np.append(np.concatenate(cohorts), np.full(300, NEVER))
        places = np.sort(rng.integers(PARAMS.end_steps[0], LAST, 3000))
        arrays[f"end_read/{seed}"] = np.append(places, np.full(600, NEVER))
        arrays[f"end_even/{seed}"] = np.append(rng.random(3000) < 0.7, np.ones(600, bool))
        reads = np.repeat([1, 2, 4, 0], [200, 60, 40, 300])
        arrays[f"canary_reads/{seed}"] = reads.astype(np.int16)
        once = np.where(reads == 1, rng.integers(0, LAST, 600), OTHER)
        arrays[f"canary_read/{seed}"] = np.where(reads == 0, NEVER, once)
    for i, (size, seed) in enumerate(PARAMS.members):
        trace = first * (1 + 0.1 * i if seed == PARAMS.seed else 1)
        read = arrays[f"path_read/{seed}"]
        age = np.array(PARAMS.path_steps)[:, None] - read
        path = losses(rng, PARAMS.path_steps, read, trace * np.where(age > 40, kept, 1.0))
        arrays[f"path_loss/{size}/{seed}"] = (path - path[-1]).astype(np.float16)
        read = arrays[f"end_read/{seed}"]
        left = trace * kept * (1 + recency * (read / LAST - 0.5)) * np.ones((3, 1))
        end = losses(rng, list(PARAMS.end_steps), read, left)
        arrays[f"end_loss/{size}/{seed}"] = (end - end[-1]).astype(np.float16)
        read, reads = arrays[f"canary_read/{seed}"], arrays[f"canary_reads/{seed}"]
        flat = np.full((7, 600), 5.0) + rng.normal(0, 0.1, (7, 600))
        seen = (read == OTHER) | (np.array(PARAMS.canary_steps)[:, None] > read)
        flat -= np.where(seen & (reads > 0), canary * reads, 0)
        arrays[f"canary_loss/{size}/{seed}"] = flat.astype(np.float32)
    return Measurements(arrays, {})


def judged(found: Measurements) -> dict[str, str]:
    claims = trace_claims.claims(PARAMS, traces.runs_of(PARAMS, found))
    return {row["claim"]: row["ours"]["verdict"] for row in verdicts.judge(claims)}


def verdict(rows: dict[str, str], words: str) -> str:
    (found, *_) = (value for text, value in rows.items() if words in text)
    return found


def test_planted_traces_are_estimated_and_judged() -> None:
    found = measured()
    runs = traces.runs_of(PARAMS, found)
    largest = runs["600k", 1234]
    assert largest.first.value == pytest.approx(0.3 * 1.7, abs=0.02)
    assert largest.retained.value == pytest.approx(0.5, abs=0.04)
    assert largest.residual.value == pytest.approx(0.15 * 1.7, abs=0.02)
    assert largest.canary.value == pytest.approx(0.2, abs=0.03)
    assert largest.by_dose(3, 5).value == pytest.approx(0.8, abs=0.05)
    assert largest.by_age(0, 15).low < 0.2 < largest.by_age(0, 15).high
    _, p, before = largest.pretrends
    assert p > 0.01 and abs(before.value) < 0.02
    assert traces.over_seeds(PARAMS, runs, "residual").n_items == 4
    assert traces.agreement(largest, runs["25k", 1234]) > 0.8
    rows = judged(found)
    for words in ("Soon after", "fades", "row read once is easier", "canary grows"):
        assert verdict(rows, words) == verdicts.HOLDS, words
    assert verdict(rows, "Before they are read") == verdicts.HOLDS
    assert verdict(rows, "hardly depends on when") == verdicts.REPRODUCED
    assert verdict(rows, "larger a model, the larger the trace") == verdicts.REPRODUCED
    assert verdict(rows, "larger the part of the trace") == verdicts.NOT_RESOLVED
    assert verdict(rows, "Rows read later") == verdicts.NOT_RESOLVED
    assert verdict(rows, "profiles of a smaller") == verdicts.NOT_TESTABLE


def test_recency_is_seen_where_it_is_planted() -> None:
    rows = judged(measured(recency=1.5))
    assert verdict(rows, "Rows read later") == verdicts.HOLDS
    assert verdict(rows, "hardly depends on when") == verdicts.CONTRADICTED
    assert verdict(judged(measured(recency=-1.5)), "Rows read later") == verdicts.FAILS


def test_without_a_trace_order_is_not_tested() -> None:
    rows = judged(measured(first=0.0, canary=0.0))
    assert verdict(rows, "hardly depends on when") == verdicts.NOT_TESTABLE
    assert verdict(rows, "Soon after") == verdicts.NOT_RESOLVED
    assert verdict(rows, "canary read once") == verdicts.NOT_RESOLVED


def test_tables_and_figures_of_traces() -> None:
    found = measured()
    runs = traces.runs_of(PARAMS, found)
    tables = {
        name: pd.DataFrame(lines, columns=traces.COLUMNS[name])
        for name, lines in traces.tables(PARAMS, runs).items()
    }
    assert set(tables["traces"].seed) == {1234, 1, 2, 3}
    assert set(tables["profiles"]["size"]) == set(PARAMS.size_list)
    assert (tables["places"].groupby(["size", "scope"]).n.count() == traces.PLACES).all()
    result = Result("memorization", PARAMS, tables, study.trace_values(PARAMS, runs), [], found, {},
                    0.0)  # fmt: skip
    for draw in (figures.profiles, figures.trace_sizes, figures.recency, figures.canaries):
        drawing = draw(result)
        assert drawing.svg == draw(result).svg and "nan" not in drawing.description
    assert "600k" in repr(figures.traces_table(result))


def test_a_run_with_a_gap_is_left_out() -> None:
    found = measured()
    del found.arrays["end_loss/600k/1234"]
    runs = traces.runs_of(PARAMS, found)
    assert ("600k", 1234) not in runs and ("25k", 3) in runs
    assert verdict(judged(found), "Soon after") == verdicts.NOT_TESTABLE
