"""Turns a measurement into a verdict, by the same rule for every study.

A *claim* is a statement of a paper. A *hypothesis* is a statement of this book, written down before
the runs that test it. A *premise* is an assumption, or was settled before it was tested. A *check*
verifies our own code and data. A test compares the 95 % interval of an effect with a bound, or with
a margin around zero. It is made on our runs, on the released models, or on both:

    reproduced         the interval is on the claimed side of the bound, or inside the margin
    contradicted       the interval is on the other side, or outside the margin
    not resolved       neither; the reason states what the test could have detected
    not testable here  the test cannot fail, lacks a measurement, or has no interval

CONFIRMED, REFUTED, HOLDS and FAILS are other words for the first two. Per study, Holm's procedure
limits the probability of any wrong verdict to 5 % among claims, among hypotheses, and among
premises and checks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pythia_book.stats import LEVEL, Estimate
from pythia_core.errors import ConfigError, one_of

REPRODUCED, CONTRADICTED = "reproduced", "contradicted"
CONFIRMED, REFUTED = "confirmed on released numbers", "contradicted by released numbers"
HOLDS, FAILS = "holds", "does not hold"
NOT_RESOLVED, NOT_TESTABLE = "not resolved", "not testable here"
VERDICTS = (
    REPRODUCED, CONFIRMED, CONTRADICTED, REFUTED, NOT_RESOLVED, NOT_TESTABLE, HOLDS, FAILS,
)  # fmt: skip
KINDS = ("claim", "hypothesis", "premise", "check")
SIDES = RELEASED, OURS = ("released", "ours")
ALPHA = 1 - LEVEL
POWER = 0.8
"""The probability of detection that `smallest_seen` and `smallest_margin` require."""


@dataclass(frozen=True)
class Test:
    """A test of a measured effect, or an exact check. Functions such as `rises` create tests.

    Attributes:
        estimate: the effect with its 95 % interval; None if it was not measured.
        unit: unit of the effect, e.g. "points" or "nats per token".
        units: the independent units of the sample, e.g. "5 seeds" or "40 occupations".
        form: whether the effect is tested to be "above" or "below" `bound`, or "within" `bound` of
            zero. For a check that passed or failed, "exact". If there is no test, "".
        bound: the value that the effect is compared with, in the unit of the effect.
        reason: why there is no test; the verdict is then "not testable here".
        note: a remark for readers, e.g. the two values whose difference is the effect.
    """

    __test__ = False  # not a test case for pytest

    estimate: Estimate | None = None
    unit: str = ""
    units: str = ""
    form: str = ""
    bound: float = 0.0
    reason: str = ""
    note: str = ""
    passed: bool | None = None
    """The outcome of an exact check, e.g. whether hashes are equal."""

    def __post_init__(self) -> None:
        if self.form not in ("above", "below", "within", "exact", ""):
            raise ConfigError(one_of(self.form, ("above", "below", "within", "exact"), "form"))
        if self.form == "within" and not self.bound > 0:
            raise ConfigError(f"an equivalence margin must be positive, got {self.bound}")
        if not self.form and not self.reason:
            raise ConfigError("a test without a form must give the reason why it has none")


def rises(e: Estimate | None, unit: str, units: str, bound: float = 0.0, note: str = "") -> Test:
    """Return the test that an effect is above `bound`.

    Args:
        e: the effect; None: it was not measured, and the verdict is "not testable here".
        unit: unit of the effect, e.g. "points".
        units: the independent units of the sample, e.g. "5 seeds".
    """
    return Test(e, unit, units, "above", bound, "" if e else NOT_MEASURED, note)


def falls(e: Estimate | None, unit: str, units: str, bound: float = 0.0, note: str = "") -> Test:
    """Return the test that an effect is below `bound`, with the arguments of `rises`."""
    return Test(e, unit, units, "below", bound, "" if e else NOT_MEASURED, note)


def within(e: Estimate | None, unit: str, units: str, margin: float, note: str = "") -> Test:
    """Return the test that an effect is practically zero: its absolute value is below `margin`."""
    return Test(e, unit, units, "within", margin, "" if e else NOT_MEASURED, note)


def passes(passed: bool, note: str = "") -> Test:
    """Return the test of an exact check, e.g. of equal hashes, which has passed or failed."""
    return Test(form="exact", passed=passed, note=note)


def untestable(
    reason: str, e: Estimate | None = None, unit: str = "", units: str = "", note: str = ""
) -> Test:
    """Return a test with the verdict "not testable here"; an estimate `e` is still shown."""
    return Test(e, unit, units, reason=reason, note=note)


NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Claim:
    """A statement with its source, and with a test on our runs, on the released models, or on both.

    Attributes:
        text: the statement, as a sentence.
        source: a section or figure of the Pythia paper, or of another paper, which is then named.
            For a hypothesis, where it is from; for a check, what the check guarantees.
        quote: the paper's own words, where a paraphrase could be disputed.
        kind: one of KINDS.
    """

    text: str
    source: str
    ours: Test | None = None
    released: Test | None = None
    quote: str = ""
    kind: str = "claim"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(one_of(self.kind, KINDS, "kind of claim"))
        if self.ours is None and self.released is None:
            raise ConfigError(f"the claim {self.text!r} has no test")
        if not self.source:
            raise ConfigError(f"the claim {self.text!r} names no source")


# --- the rule --------------------------------------------------------------------------------


def judge(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Return the claims of a study with their verdicts, in the format of a record."""
    p_values: dict[tuple[int, str], float] = {}
    for i, claim in enumerate(claims):
        for side in SIDES:
            test: Test | None = getattr(claim, side)
            if test and not _untestable_reason(test) and test.form != "exact":
                p_values[i, side] = p_value(test)
    adjusted: dict[tuple[int, str], float] = {}
    n_tests: dict[str, int] = {}
    for family in (("claim",), ("hypothesis",), ("premise", "check")):
        members = {key: p for key, p in p_values.items() if claims[key[0]].kind in family}
        adjusted |= holm(members)
        n_tests |= dict.fromkeys(family, len(members))
    rows = []
    for i, claim in enumerate(claims):
        row: dict[str, Any] = {
            "kind": claim.kind,
            "claim": claim.text,
            "source": claim.source,
            "quote": claim.quote or None,
        }
        for side in SIDES:
            test = getattr(claim, side)
            p = adjusted.get((i, side))
            row[side] = test and _judged(test, claim.kind, side, p, n_tests[claim.kind])
        rows.append(row)
    return rows


def holm(p_values: dict[Any, float]) -> dict[Any, float]:
    """Map each test to its p-value after Holm's correction for all tests in `p_values`."""
    adjusted, largest = {}, 0.0
    for rank, (key, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[key] = largest
    return adjusted


def p_value(test: Test) -> float:
    """Return the two-sided p-value of the test: 0.05 if the 95 % interval ends at the bound.

    An estimate inside the margin of `within` is tested against both ends of the margin. An estimate
    outside is tested against the nearer end.
    """
    e = test.estimate
    assert e is not None
    if test.form != "within":
        return e.p_value(test.bound)
    inside = abs(e.value) < test.bound
    against = [e.p_value(bound) for bound in (-test.bound, test.bound)]
    return max(against) if inside else e.p_value(math.copysign(test.bound, e.value))


def smallest_seen(e: Estimate, n_tests: int = 1) -> float:
    """Return the smallest true effect that a test would detect with the probability POWER.

    The effect is a distance from the bound, in the unit of the estimate. The level of the test is
    ALPHA / n_tests: in Holm's procedure for `n_tests` tests, the first test has this level.
    """
    from scipy.optimize import brentq
    from scipy.special import nctdtr

    critical = e.quantile(1 - ALPHA / 2 / n_tests)
    effect = critical + e.quantile(POWER)  # in standard errors; exact for a known error
    if math.isfinite(e.df):
        effect = brentq(lambda nc: nctdtr(e.df, nc, critical) - (1 - POWER), 0, 4 * effect)
    return _standard_error(e) * effect


def smallest_margin(e: Estimate, n_tests: int = 1) -> float:
    """Return the smallest margin for which `within` has the power POWER if the true effect is zero.

    The interval is assumed to be as wide as the interval of `e`; `n_tests`: see `smallest_seen`.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import chdtri, ndtr

    critical = e.quantile(1 - ALPHA / 2 / n_tests)
    errors = np.ones(
        1
    )  # the estimated standard error as a multiple of the true one, 1000 quantiles
    if math.isfinite(e.df):
        errors = np.sqrt(chdtri(e.df, (np.arange(1000) + 0.5) / 1000) / e.df)

    def shown(margin: float) -> float:
        return float(np.mean(2 * ndtr(np.maximum(margin - critical * errors, 0)) - 1))

    largest = critical * float(errors.max()) + 9
    return _standard_error(e) * brentq(lambda margin: shown(margin) - POWER, 0, largest)


def _standard_error(e: Estimate) -> float:
    """Return the standard error that follows from the width of the interval."""
    return (e.high - e.low) / 2 / e.quantile(1 - ALPHA / 2)


def _untestable_reason(test: Test) -> str:
    """Return why a test is not testable; "" if it is testable."""
    e = test.estimate
    if test.reason or test.form == "exact":
        return test.reason
    if e is None:
        return NOT_MEASURED
    if e.df < 1:
        return "a single unit has no interval"
    if not all(map(math.isfinite, (e.value, e.low, e.high))):
        return "the interval cannot be computed"
    if not e.low < e.high:
        return "the interval has no width: the values do not vary"
    if not e.low <= e.value <= e.high:
        return "the estimate lies outside its own interval"
    return ""


TEST_KEYS = frozenset(
    "value low high unit units bound form df p_value p note verdict reason".split()
)
"""The keys of a test in a record."""


def _judged(test: Test, kind: str, side: str, p: float | None, n_tests: int) -> dict[str, Any]:
    """Return the record's entry for a test and its verdict; `p` is the Holm-corrected p-value."""
    e, reason = test.estimate, _untestable_reason(test)
    row: dict[str, Any] = {
        **(e.interval() if e else dict.fromkeys(("value", "low", "high"))),
        "unit": test.unit,
        "units": test.units,
        "bound": None if test.form in ("", "exact") else test.bound,
        "form": test.form or None,
        "df": e.df if e and math.isfinite(e.df) else None,
        "p_value": None if p is None else p_value(test),
        "p": p,
        "note": test.note or None,
    }
    if reason:
        return row | {"verdict": NOT_TESTABLE, "reason": reason}
    if test.form == "exact":
        agrees = bool(test.passed)
    else:
        assert e is not None and p is not None
        if p > ALPHA:
            return row | {"verdict": NOT_RESOLVED, "reason": _why_open(test, e, n_tests)}
        agrees = {
            "above": e.value > test.bound,
            "below": e.value < test.bound,
            "within": abs(e.value) < test.bound,
        }[test.form]
    yes, no = (HOLDS, FAILS) if kind != "claim" else (REPRODUCED, CONTRADICTED)
    if side == "released" and kind == "claim":
        yes, no = CONFIRMED, REFUTED
    return row | {"verdict": yes if agrees else no, "reason": None}


def _why_open(test: Test, e: Estimate, n_tests: int) -> str:
    """Return why a test, one of `n_tests` in Holm's procedure, has the verdict "not resolved"."""
    power = f"with {100 * POWER:.0f} % power"
    reason = f"the interval includes {_amount(test.bound, test.unit, 4) if test.bound else 0}"
    if test.form == "within":
        reason = f"the interval extends beyond ±{_amount(test.bound, test.unit, 4)}"
    if e.exact_p:
        needed = "what would be detected is computed only for intervals from Student's t"
    elif test.form == "within":
        margin = _amount(smallest_margin(e, n_tests), test.unit)
        needed = f"{power}, equivalence could be shown only within ±{margin}"
    else:
        relative = test.unit.startswith("% of") and not test.bound  # a share of that quantity
        percent = test.unit.startswith("%") and not relative
        distance = test.unit.replace("%", "points", 1) if percent else test.unit
        effect = smallest_seen(e, n_tests)
        away = f" away from {_amount(test.bound, '', 4)}" if test.bound else ""
        needed = f"an effect of {_amount(effect, distance)}{away} would be detected {power}"
        if distance.startswith("point") and effect > 100:
            needed = f"no possible effect would be detected {power}"
    if p_value(test) <= ALPHA:
        against = test.form != "within" and (e.value > test.bound) != (test.form == "above")
        alone = "alone, it points against the statement" if against else "significant alone"
        reason = f"{alone}, but not after Holm's correction"
    return f"{reason}; {needed}"


def _amount(value: float, unit: str, digits: int = 2) -> str:
    """Format a value to `digits` significant digits, with its unit, e.g. "1 point"."""
    number = f"{float(f'{value:.{digits}g}'):g}"
    if number in ("1", "-1"):
        unit = unit.replace("points", "point", 1).replace("doublings", "doubling", 1)
    return f"{number} {unit}".strip().replace("-", "\N{MINUS SIGN}", number.startswith("-"))


def verdicts_of(row: dict[str, Any]) -> list[str]:
    """Return the verdicts of a recorded claim: first on released numbers, then on our runs."""
    return [row[side]["verdict"] for side in SIDES if row[side]]
