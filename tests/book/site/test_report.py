"""The comparison of the reader's run with the recorded one."""

from __future__ import annotations

from typing import Any

import numpy as np
from pythia_book.site.report import Comparison, compare
from scipy import stats


def a_test(value: float | None, half: float | None, verdict: str, seeds: int = 0) -> dict[str, Any]:
    known = value is not None and half is not None
    low, high = (value - half, value + half) if known else (None, None)
    test = {"value": value, "low": low, "high": high, "verdict": verdict}
    return test | {"units": f"{seeds} seeds" if seeds else "items", "df": seeds - 1 if seeds else 9}


def a_record(*claims: tuple[str, Any, Any], **more: Any) -> dict[str, Any]:
    rows = [{"claim": name, "ours": ours, "released": released} for name, ours, released in claims]
    base = {"scale": "laptop", "parameters": {"seeds": 1}, "created": "2026-01-01", "claims": rows}
    return base | {"device": {"cpu": "A", "threads": 1}, "runs": []} | more


def test_verdicts_and_values_are_compared_claim_by_claim() -> None:
    yours = a_record(
        ("same", a_test(1.0, 0.3, "holds"), None),
        ("other", a_test(2.0, 0.3, "holds"), a_test(0.0, 1.0, "not resolved")),
        ("only here", a_test(1.0, 0.1, "holds"), None),
    )
    recorded = a_record(
        ("same", a_test(1.2, 0.4, "holds"), None),
        ("other", a_test(1.0, 0.4, "not resolved"), a_test(0.0, 1.0, "not resolved")),
        parameters={"seeds": 8},
        device={"cpu": "B", "threads": 1},
    )
    found = compare(yours, recorded)
    assert [row.claim for row in found.compared] == ["same", "other"]
    assert [row.claim for row in found.differing] == ["other"]
    near, far = (row.distance for row in found.compared)
    assert near is not None and abs(near - 0.2 / 0.5) < 1e-12
    assert far is not None and abs(far - 1.0 / 0.5) < 1e-12
    text = " ".join(found.sentences())
    assert "Equal verdicts on our models: 1 of 2." in text
    assert "Equal verdicts on released numbers: 1 of 1." in text
    assert "seeds 1 (recorded: 8)" in text and "A, 1 thread" in text and "B, 1 thread" in text
    assert "Of 2 values that can be compared, 1 differs by more" in text


def test_a_claim_that_one_run_cannot_test_is_no_disagreement() -> None:
    yours = a_record(("a", a_test(1.0, None, "not testable here"), None))
    found = compare(yours, a_record(("a", a_test(1.0, 0.1, "holds"), None)))
    assert found.compared == found.differing == [] and found.rows[0].distance is None
    text = " ".join(found.sentences())
    assert "without a verdict in one of the runs, e.g. for lack of seeds: 1." in text
    assert "No value can be compared" in text
    nothing = compare(a_record(), a_record())
    assert "share no test" in " ".join(nothing.sentences())


def test_one_seed_is_compared_with_the_spread_over_recorded_seeds() -> None:
    """A new seed lies in the mean +- its interval's half-width * sqrt(n + 1) in 95 % of cases."""
    rng, n, trials = np.random.default_rng(5), 8, 4000
    draws = rng.normal(0, 1, (trials, n + 1))
    half = stats.t.ppf(0.975, n - 1) * draws[:, :n].std(axis=1, ddof=1) / n**0.5
    far = 0
    for mean, width, new in zip(draws[:, :n].mean(axis=1), half, draws[:, n], strict=True):
        row = Comparison(
            "a", a_test(new, None, "not testable here"), a_test(mean, width, "holds", n)
        )
        assert row.distance is not None
        far += row.distance > 1
    assert abs(far / trials - 0.05) < 0.012


def test_a_run_agrees_with_itself() -> None:
    record = a_record(
        ("a", a_test(1.0, 0.1, "holds"), None), ("b", a_test(2.0, 0.1, "holds"), None)
    )
    found = compare(record, record)
    assert not found.differing and not found.parameters
    assert all(row.distance == 0 for row in found.compared)
