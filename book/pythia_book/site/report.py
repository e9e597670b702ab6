"""Compares the reader's run of a study with the recorded one: verdicts, numbers, machines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pythia_book import records
from pythia_book.verdicts import NOT_TESTABLE, OURS, RELEASED

Judged = dict[str, Any]
"""A test of a claim as a record stores it (pythia_book.verdicts.judge)."""


@dataclass(frozen=True)
class Comparison:
    """A statement with the tests of both runs on their own models; None: a run has no such test."""

    claim: str
    yours: Judged | None
    recorded: Judged | None

    @property
    def agree(self) -> bool | None:
        """Whether both runs have the same verdict; None if one of them could not test the claim."""
        tests = (self.yours, self.recorded)
        if any(test is None or test["verdict"] == NOT_TESTABLE for test in tests):
            return None
        assert self.yours and self.recorded
        return self.yours["verdict"] == self.recorded["verdict"]

    @property
    def distance(self) -> float | None:
        """The absolute difference of the values, divided by the half-width of its 95 % interval.

        Above 1, the runs differ by more than chance allows. A value of one seed, which has no
        interval, is compared with the interval in which one more seed of the recorded run would
        lie. None if that is not known.
        """
        yours, recorded = self.yours, self.recorded
        if not yours or not recorded or yours["value"] is None or recorded["value"] is None:
            return None
        half = _half(recorded)
        if half is None:
            return None
        own = _half(yours)
        if own is not None:
            error = math.hypot(own, half)
        elif "seed" in recorded["units"] and recorded["df"]:
            error = half * math.sqrt(recorded["df"] + 2)  # of n + 1 seeds, where df is n - 1
        else:
            return None
        return abs(yours["value"] - recorded["value"]) / error if error else None


@dataclass(frozen=True)
class Report:
    """The comparison of two runs of one study."""

    rows: list[Comparison]
    released_agree: int
    """How many verdicts on released numbers are equal in both runs."""
    released: int
    """How many verdicts on released numbers both runs have."""
    parameters: dict[str, tuple[Any, Any]]
    """The parameters that differ, by name: (yours, recorded)."""
    yours: str
    recorded: str
    """Scale, machine and date of each run."""

    @property
    def compared(self) -> list[Comparison]:
        """The rows that both runs have tested."""
        return [row for row in self.rows if row.agree is not None]

    @property
    def differing(self) -> list[Comparison]:
        """The rows with different verdicts."""
        return [row for row in self.rows if row.agree is False]

    def sentences(self) -> list[str]:
        """Say in words how the two runs compare."""
        texts = [f"Your run: {self.yours}.", f"Recorded run: {self.recorded}."]
        if self.parameters:
            changed = ", ".join(
                f"{name} {_shown(ours)} (recorded: {_shown(theirs)})"
                for name, (ours, theirs) in self.parameters.items()
            )
            texts.append(f"Parameters that differ: {changed}.")
        same = len(self.compared) - len(self.differing)
        texts.append(
            f"Equal verdicts on our models: {same} of {len(self.compared)}."
            if self.compared
            else "The two runs share no test on our models."
        )
        if self.released:
            texts.append(
                f"Equal verdicts on released numbers: {self.released_agree} of {self.released}."
            )
        shared = [row for row in self.rows if row.yours and row.recorded]
        if untested := len(shared) - len(self.compared):
            texts.append(
                f"Claims without a verdict in one of the runs, e.g. for lack of seeds: {untested}."
            )
        distances = [row.distance for row in shared if row.distance is not None]
        if distances:
            far = sum(distance > 1 for distance in distances)
            texts.append(
                f"Of {len(distances)} values that can be compared, {far} "
                f"{'differs' if far == 1 else 'differ'} by more than chance allows."
            )
        elif shared:
            texts.append("No value can be compared: the runs give no interval for any.")
        return texts


def _half(test: Judged) -> float | None:
    """Return the half-width of a test's interval, if it has one."""
    if test["low"] is None or test["high"] is None or not test["low"] < test["high"]:
        return None
    return (test["high"] - test["low"]) / 2


def _shown(value: Any) -> str:
    return "default" if value == "" else str(value)


def compare(yours: dict[str, Any], recorded: dict[str, Any]) -> Report:
    """Compare two records of one study."""

    def tests(record: dict[str, Any], side: str) -> dict[str, Judged]:
        return {claim["claim"]: claim[side] for claim in record["claims"] if claim[side]}

    mine, theirs = (tests(record, OURS) for record in (yours, recorded))
    names = dict.fromkeys([*theirs, *mine])
    rows = [Comparison(name, mine.get(name), theirs.get(name)) for name in names]
    old, new = (tests(record, RELEASED) for record in (recorded, yours))
    shared = [name for name in old if name in new]
    parameters = {
        name: (yours["parameters"].get(name), recorded["parameters"].get(name))
        for name in {**recorded["parameters"], **yours["parameters"]}
        if yours["parameters"].get(name) != recorded["parameters"].get(name)
    }
    return Report(
        rows,
        sum(old[name]["verdict"] == new[name]["verdict"] for name in shared),
        len(shared),
        parameters,
        _origin(yours),
        _origin(recorded),
    )


def _origin(record: dict[str, Any]) -> str:
    return f"scale {record['scale']}, {records.device_text(record)}, {record['created']}"
