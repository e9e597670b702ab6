"""The directive that shows how often kills and flipped bits were tried, and what happened.

The counts are in book/faults.json, which tests/faults/run.py writes.
"""

from __future__ import annotations

import json
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from pythia_book.site.staging import ROOT
from pythia_book.site.studies import table

FILE = ROOT / "book" / "faults.json"
OUTCOMES = {
    "refused": "Error names it",
    "repaired": "Repaired",
    "harmless": "No effect",
    "unnamed": "Traceback",
    "silent": "Unnoticed",
}
"""The headings of the columns, by the names of the outcomes in the file."""


class Faults(SphinxDirective):
    """A table of the jobs that were killed, and one of the files in which bits were flipped."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FILE))
        if not FILE.is_file():
            return [nodes.paragraph("", "Not counted yet.")]
        counts = json.loads(FILE.read_text(encoding="utf-8"))
        origin = (
            f"Counted on {counts['date']} on {counts['machine']}, commit {counts['commit'][:10]}."
        )
        return [
            table(["Job", "Kills", "Results", "Equal results"], killed(counts["kills"]), "costs"),
            table(["File", "Flips", *OUTCOMES.values()], flipped(counts["flips"]), "costs"),
            nodes.paragraph("", origin, classes=["pythia-note"]),
        ]


def killed(kills: dict[str, dict[str, int]]) -> list[list[Any]]:
    """Return a row per job, and their sum."""
    columns = ("kills", "finished", "equal")
    rows = [[job.capitalize(), *(str(row[name]) for name in columns)] for job, row in kills.items()]
    return [*rows, ["All", *(str(sum(row[name] for row in kills.values())) for name in columns)]]


def flipped(flips: dict[str, dict[str, int]]) -> list[list[Any]]:
    """Return a row per kind of file, and their sum."""
    rows = [
        [
            kind[:1].upper() + kind[1:],
            str(sum(row.values())),
            *(str(row[name]) for name in OUTCOMES),
        ]
        for kind, row in flips.items()
    ]
    sums = [sum(row[name] for row in flips.values()) for name in OUTCOMES]
    return [*rows, ["All", str(sum(sums)), *map(str, sums)]]
