"""Common misstatements about Pythia: the errata of catalogue.toml with their evidence.

Where the evidence can be computed, its numbers are computed when the erratum is displayed
(errata.evidence); otherwise the text cites a source. For errata that name a config field in
`measured`, errata.study measures how much that field changes our models.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.studies.errata.evidence import COMPUTED, NO_SCORES, RELEASED, Evidence
from pythia_core.errors import ConfigError, one_of

if TYPE_CHECKING:
    from pythia_book.published.results import Published


@dataclass(frozen=True)
class Erratum:
    """A common misstatement; catalogue.toml explains the fields."""

    name: str
    title: str
    claim: str
    source: str
    certainty: str
    evidence: str
    matters: str
    switch: str
    released: str = ""
    measured: str = ""

    def compute(self, released: Published | None = None) -> Evidence:
        """Compute the evidence, including that from released scores if they are given."""
        values = COMPUTED[self.name]() if self.name in COMPUTED else {}
        text = self.evidence.format(**values)
        if not self.released:
            return Evidence(text, values)
        scores = RELEASED[self.name](released) if released is not None else None
        return Evidence(text, values, self.released.format(**scores) if scores else NO_SCORES)

    def sections(self, evidence: Evidence, effect: str = "") -> dict[str, str]:
        """Heading -> text, for the page and the command line.

        Args:
            effect: the measured effect of the erratum's switch, as text.
        """
        if self.measured and not effect:
            effect = "What it costs is measured by: python -m pythia_core study errata"
        return {
            "Claim": self.claim,
            "Evidence, computed now" if self.name in COMPUTED else "Evidence": evidence.text,
            **({"Released scores": evidence.released} if evidence.released else {}),
            "Certainty": f"{self.certainty}: {self.source}",
            "Why it matters": f"{self.matters} {effect}".strip(),
            "Switch": self.switch,
        }


def _read() -> tuple[Erratum, ...]:
    entries = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))["errata"]
    one_line = ({key: " ".join(text.split()) for key, text in entry.items()} for entry in entries)
    return tuple(Erratum(**entry) for entry in one_line)


ERRATA = _read()


def erratum_named(name: str) -> Erratum:
    """The erratum with this name.

    Raises:
        ConfigError: unknown name; lists the known ones.
    """
    by_name = {erratum.name: erratum for erratum in ERRATA}
    if name not in by_name:
        raise ConfigError(one_of(name, by_name, "erratum"))
    return by_name[name]


def listing() -> str:
    """Names, certainties and titles, one line each."""
    return "\n".join(f"{e.name:22} {e.certainty:11} {e.title}" for e in ERRATA)


def erratum_text(erratum: Erratum, released: Published | None = None) -> str:
    """An erratum with its evidence, as plain text."""
    lines = [erratum.title]
    for heading, text in erratum.sections(erratum.compute(released)).items():
        lines.append(f"\n{heading}: {text}")
    return "\n".join(lines)
