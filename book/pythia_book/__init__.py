"""Runs the studies of the book: trains, measures, tests claims, draws, records and builds the site.

pythia_book imports pythia_core, and pythia_core never imports pythia_book. `EXTENSIONS` registers
what pythia_book adds to pythia_core: commands, corpora, and continued runs of released models.
README.md ("Layout") describes the subpackages and modules.
"""

EXTENSIONS: dict[str, dict[str, str]] = {
    "commands": {
        name: f"pythia_book.commands.{name}:add"
        for name in ("studies", "models", "data", "continuation", "planning", "bench")
    },
    "corpora": {name: "pythia_book.corpora" for name in ("pocket-pile", "miniature", "large")},
    "runs": {"continued": "pythia_book.released.continuation.run:open_continued"},
}
"""Maps each group and name to a module or function; `pythia_core.util.extensions` reads it."""
