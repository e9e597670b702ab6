"""pythia_book: measures, tests, draws and records the book's studies.

It builds on pythia_core, which never imports it; `EXTENSIONS` registers what it adds to the
library. README.md ("Layout") describes its subpackages and modules.
"""

EXTENSIONS: dict[str, dict[str, str]] = {
    "commands": {
        name: f"pythia_book.commands.{name}:add"
        for name in ("studies", "models", "data", "continuation", "planning", "bench")
    },
    "corpora": {name: "pythia_book.corpora" for name in ("pocket-pile", "miniature", "large")},
    "runs": {"continued": "pythia_book.released.continuation.run:open_continued"},
}
"""Group -> name -> module or function; read by `pythia_core.util.extensions`."""
