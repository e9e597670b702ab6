"""The directive that shows how often jobs were killed and bits flipped in tests, and what happened.

The counts are in book/faults.json, which tests/faults/run.py writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from pythia_book.site.staging import ROOT
from pythia_book.site.studies import table

FILE = ROOT / "book" / "faults.json"
KILLS = {"kills": "Kills", "finished": "Results", "equal": "Equal results"}
OUTCOMES = {
    "refused": "Error names it",
    "repaired": "Repaired",
    "harmless": "No effect",
    "unnamed": "Other error",
    "traceback": "Traceback",
    "silent": "Unnoticed",
}
"""The headings of columns, by their names in the file."""


class Faults(SphinxDirective):
    """A table of the jobs that were killed, and one of the files in which bits were flipped."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FILE))
        try:
            return self._tables()
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ExtensionError(
                f"{FILE} is damaged ({error!r}); restore it with git, or count again with "
                "tests/faults/run.py"
            ) from error

    @staticmethod
    def _tables() -> list[nodes.Node]:
        """Return the tables, and a paragraph that says when and where they were counted."""
        counts = json.loads(FILE.read_text(encoding="utf-8"))
        flips = {kind: {**row, "flips": sum(row.values())} for kind, row in counts["flips"].items()}
        origin = (
            f"Counted on {counts['date']} on {counts['machine']}, commit {counts['commit'][:10]}."
        )
        return [
            table(["Job", *KILLS.values()], rows(counts["kills"], KILLS), "costs"),
            table(
                ["File", "Flips", *OUTCOMES.values()], rows(flips, ["flips", *OUTCOMES]), "costs"
            ),
            nodes.paragraph("", origin, classes=["pythia-note"]),
        ]


def rows(counts: dict[str, dict[str, int]], columns: Iterable[str]) -> list[list[Any]]:
    """Return a row for each job or kind of file, and a row of totals; a missing count is 0."""
    numbers = {name: [row.get(column, 0) for column in columns] for name, row in counts.items()}
    numbers["all"] = [sum(column) for column in zip(*numbers.values(), strict=True)]
    return [[name[:1].upper() + name[1:], *map(str, row)] for name, row in numbers.items()]
