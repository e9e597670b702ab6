"""Runs the studies of the book: trains, measures, tests claims, draws, records and builds the site.

`EXTENSIONS` lists what pythia_book adds to pythia_core: commands, corpora and a kind of run.
pythia_core never imports pythia_book. README.md ("Layout") describes the modules.
"""

EXTENSIONS: dict[str, dict[str, str]] = {
    "commands": {
        name: f"pythia_book.commands.{name}:add"
        for name in ("studies", "models", "data", "continuation", "planning", "bench")
    },
    "corpora": {
        name: "pythia_book.corpora" for name in ("pocket-pile", "miniature", "large", "laboratory")
    },
    "runs": {"continued": "pythia_book.released.continuation.run:open_continued"},
}
"""Modules or functions, by group and name; `pythia_core.util.extensions` reads this table."""
