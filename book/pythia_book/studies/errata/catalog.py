"""Reads the errata, common misstatements about Pythia, from catalog.toml.

Every erratum links to its sources. errata.evidence calculates what follows from these sources, and
compares released scores. If an erratum names a config field in `measured`, errata.study measures
how much the field changes our models.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.studies.errata.evidence import (
    COMPUTED,
    NO_SCORES,
    RELEASED,
    Evidence,
    Values,
    released_tables,
)
from pythia_core.errors import ConfigError, one_of

if TYPE_CHECKING:
    from pythia_book.published.results import Published
    from pythia_book.study import Tables

STATUSES = {
    "checked": "read at the links",
    "inferred": "follows from what the links say, but the authors have not confirmed it",
    "reported": "others published the evidence; we did not check it",
}
"""Maps each status to its meaning, for the page. The status says how certain an erratum is."""


@dataclass(frozen=True)
class Erratum:
    """A common misstatement about Pythia, and what is true; catalog.toml explains the fields."""

    name: str
    title: str
    claim: str
    source: str
    links: tuple[str, ...]
    status: str
    evidence: str
    matters: str
    switch: str
    released: str = ""
    measured: str = ""

    def compute(self, released: Published | None = None) -> Evidence:
        """Compute the evidence; with `released`, also say what the released scores show."""
        values = COMPUTED[self.name]() if self.name in COMPUTED else {}
        return self.from_values(values, released_tables(released) if released else {})

    def from_values(self, values: Values, released: Tables) -> Evidence:
        """Return the evidence from values computed earlier and the result of `released_tables`.

        If `released` is empty, the evidence says how to get the scores.
        """
        text = self.evidence.format(**values)
        if not self.released:
            return Evidence(text, values)
        scores = RELEASED[self.name](released) if released else None
        return Evidence(text, values, self.released.format(**scores) if scores else NO_SCORES)

    def sections(self, evidence: Evidence, effect: str = "") -> dict[str, str]:
        """Map headings ("Claim", "Source" and so on) to texts.

        `effect` says how much the misstated setting changes our models; "" if not measured.
        """
        if self.measured and not effect:
            effect = "What it changes is measured by: python -m pythia_core study errata"
        return {
            "Claim": self.claim,
            "Evidence": evidence.text,
            **({"Released scores": evidence.released} if evidence.released else {}),
            "Source": f"{self.status}: {self.source}",
            "Why it matters": f"{self.matters} {effect}".strip(),
            "Switch": self.switch,
        }


def _read() -> tuple[tuple[Erratum, ...], str]:
    """Return the errata in catalog.toml, and the day when the sources of the errata were read."""
    content = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
    one_line = (
        {
            key: tuple(value) if key == "links" else " ".join(value.split())
            for key, value in entry.items()
        }
        for entry in content["errata"]
    )
    return tuple(Erratum(**entry) for entry in one_line), content["read"]


ERRATA, READ = _read()
"""All errata, and the day on which their sources were read."""


def erratum_named(name: str) -> Erratum:
    """Return the erratum with this name.

    Raises:
        ConfigError: the name is unknown; the message lists the known names.
    """
    by_name = {erratum.name: erratum for erratum in ERRATA}
    if name not in by_name:
        raise ConfigError(one_of(name, by_name, "erratum"))
    return by_name[name]


def listing() -> str:
    """Return one line per erratum: name, status and title."""
    return "\n".join(f"{e.name:22} {e.status:9} {e.title}" for e in ERRATA)


def erratum_text(erratum: Erratum, released: Published | None = None) -> str:
    """Return an erratum as plain text."""
    lines = [erratum.title]
    for heading, text in erratum.sections(erratum.compute(released)).items():
        lines.append(f"\n{heading}: {text}")
        if heading == "Source":
            lines += [*erratum.links, f"(read on {READ})"]
    return "\n".join(lines)
