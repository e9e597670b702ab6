"""pythia_book: everything that measures, tests, draws and records the book's studies.

It builds on pythia_core and is never imported by it; what it adds to the library is registered by
name in `EXTENSIONS` (and, the same, as entry points in pyproject.toml).

    studies      one room a study: parameters, measurements, claims, figures
    corpora      the texts that models are trained on: pocket Pile, miniature, large
    tasks        benchmark tasks, their items, the evaluation harness, sweeps over checkpoints
    released     the released Pythia: fetched, audited, its data streamed, its training continued
    published    the released evaluation results, as tables and figures
    pages        drawings and numbers of the pages that explain: batch, rotary, recipe, real suite
    bench        speed against named peers, and what a step should cost
    commands     this package's part of the command line

    study, stats, measurements       what studies share
    budget, bundle                   what a scale takes on another machine, and all it needs there
    records, shown, notebooks        what a run left, which run is shown, running and checking
    style, papermill_engine, sphinx  how it looks, how papermill runs it, how the site is built
"""

EXTENSIONS: dict[str, dict[str, str]] = {
    "commands": {
        name: f"pythia_book.commands.{name}:add"
        for name in ("studies", "models", "data", "continued", "scales", "bench")
    },
    "corpora": {name: "pythia_book.corpora" for name in ("pocket-pile", "miniature", "large")},
    "runs": {"continued": "pythia_book.released.continued:open_continued"},
}
"""Group -> name -> where it is: what `pythia_core.util.extensions` finds in a checkout."""
