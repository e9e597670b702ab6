"""What the pages of all studies show alike: the small print of a figure, the table of claims."""

from __future__ import annotations

from typing import Any, Protocol

from pythia_core import records
from pythia_core.figures import Table

VERDICTS = (
    "Verdicts by rule: the interval excludes 0 on the claimed side, reproduced (of premises that "
    "the paper did not measure: holds); on the other side, not reproduced; it includes 0, no "
    "effect seen; what would be needed is not there, not testable here."
)


class Study(Protocol):
    """What a study returns, as far as pages need it."""

    study: str
    params: Any
    claims: list[dict[str, Any]]

    @property
    def parameters(self) -> dict[str, Any]: ...


def footer(result: Study, *notes: str) -> str:
    """The small print of a figure: what it shows, and the command that draws it again."""
    record = {"study": result.study, "scale": result.params.scale, "parameters": result.parameters}
    return (
        "; ".join(note for note in notes if note)
        + ("\n" if any(notes) else "")
        + (f"drawn again by: {records.command(record)}")
    )


def claims_table(result: Study, note: str = "") -> Table:
    """What the paper says, what was released, what we measured, and the verdict."""
    import pandas as pd

    rows = [
        {
            "claim": claim["claim"],
            "the paper": claim["paper"],
            "released numbers": "\N{EN DASH}" if claim["published"] is None else claim["published"],
            "ours [95 %]": interval(claim["ours"], claim["low"], claim["high"]),
            "verdict": claim["verdict"],
        }
        for claim in result.claims
    ]
    return Table(pd.DataFrame(rows), f"{note} {VERDICTS}".strip())


def interval(value: Any, low: float | None, high: float | None) -> str:
    """A measured value with its interval where it has one."""
    if value is None:
        return "not measured"
    if low is None:
        return records.number_text(value)
    return records.value_text({"value": value, "low": low, "high": high})
