"""pythia_book: everything that measures, tests, draws and records the book's studies.

It builds on pythia_core, which imports nothing of it; what it adds to the library is registered by
name in `EXTENSIONS`.

    studies      one room per study: parameters, measurements, claims, figures; registry finds them
    corpora      the texts that models are trained on: pocket Pile, miniature, large
    tasks        benchmark tasks, their items, the evaluation harness, sweeps over checkpoints
    released     the released Pythia: its recipe; fetched, audited, streamed, trained further
    published    the released evaluation results, as tables and figures
    pages        drawings and numbers of the explanatory pages: batch, rotary, recipe, real suite
    bench        speed against named baselines, correctness on a GPU, a cost model of training
    commands     this package's part of the command line

    study, stats, measurements       what studies share
    search, term_counts              which updates saw a text, how often a term occurs
    budget, bundle                   what a scale costs on another machine, all it needs there
    records, site_runs               a study's results as files, which run a page shows
    notebooks, papermill_engine      notebook files, running them
    style, sphinx_pages              how figures and tables look, how the site is built
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
