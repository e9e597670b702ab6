"""Measures, tests, draws and records the studies of the book.

pythia_book imports pythia_core, and pythia_core never imports pythia_book. `EXTENSIONS` registers
the commands, corpora and runs that pythia_book adds to the library. README.md ("Layout") describes
the subpackages and modules.
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
