"""Compares the reader's run of a study with the recorded one: verdicts, numbers, machines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pythia_book import records
from pythia_book.verdicts import SIDES

Test = dict[str, Any]
"""A test of a claim as a record stores it (pythia_book.verdicts.judge)."""


@dataclass(frozen=True)
class Row:
    """A statement with the tests of both runs on their own models; None: a run has no such test."""

    claim: str
    yours: Test | None
    recorded: Test | None

    @property
    def agree(self) -> bool | None:
        """Whether both runs have the same verdict; None if a run has no test."""
        if self.yours is None or self.recorded is None:
            return None
        return self.yours["verdict"] == self.recorded["verdict"]

    @property
    def distance(self) -> float | None:
        """|difference| of the values, in units of the half-width that a 95 % interval of the
        difference would have; None without two values with intervals.

        Above 1, the runs differ by more than both intervals allow.
        """
        halves = []
        for test in (self.yours, self.recorded):
            if test is None or any(test[key] is None for key in ("value", "low", "high")):
                return None
            halves.append((test["high"] - test["low"]) / 2)
        error = math.hypot(*halves)
        assert self.yours and self.recorded
        return abs(self.yours["value"] - self.recorded["value"]) / error if error else None


@dataclass(frozen=True)
class Report:
    """The comparison of two runs of one study."""

    rows: list[Row]
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
    def compared(self) -> list[Row]:
        """The rows that both runs have."""
        return [row for row in self.rows if row.agree is not None]

    @property
    def differing(self) -> list[Row]:
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
        distances = [row.distance for row in self.compared if row.distance is not None]
        if distances:
            far = sum(distance > 1 for distance in distances)
            texts.append(
                f"Values with an interval in both runs: {len(distances)}, of which {far} "
                f"{'differs' if far == 1 else 'differ'} by more than the two intervals together "
                "allow."
            )
        elif self.compared:
            texts.append(
                "No value has an interval in both runs (one seed gives none), so it is unknown how "
                "far values may differ by chance."
            )
        return texts


def _shown(value: Any) -> str:
    return "default" if value == "" else str(value)


def compare(yours: dict[str, Any], recorded: dict[str, Any]) -> Report:
    """Compare two records of one study."""

    def tests(record: dict[str, Any], side: str) -> dict[str, Test]:
        return {claim["claim"]: claim[side] for claim in record["claims"] if claim[side]}

    mine, theirs = (tests(record, SIDES[1]) for record in (yours, recorded))
    names = dict.fromkeys([*theirs, *mine])
    rows = [Row(name, mine.get(name), theirs.get(name)) for name in names]
    old, new = (tests(record, SIDES[0]) for record in (recorded, yours))
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
