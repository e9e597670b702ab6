"""The book's Sphinx extension, which `jupyter-book build book/` loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

from pythia_book.site import (
    assets,
    card,
    checkpoints,
    head,
    markup,
    mathematics,
    reference,
    terms,
)
from pythia_book.site.drawings import DrawingFigure, Source, Value
from pythia_book.site.faults import Faults
from pythia_book.site.figures import write_files
from pythia_book.site.front import Cite, Finding, Outcome, PaperClaims
from pythia_book.site.staging import ROOT, RUNS, choose_runs, fill_numbers, stage_notebooks
from pythia_book.site.studies import (
    Code,
    Costs,
    ReproductionReport,
    RunBanner,
    Scales,
    StudyTable,
)
from pythia_core.util.files import is_writable

UNFINISHED = "unfinished-build"
"""A file next to Sphinx's environment that exists while a build runs, and after one was stopped."""
LOCK = "build.lock"
"""A file next to Sphinx's environment that a running build locks."""
_LOCKS: dict[Path, FileLock] = {}
"""The locks of this process, by their files; a second build in one process takes the same lock."""


def locate_sources(app: Sphinx, config: Config) -> None:
    """Always build from book/, whatever folder the build was started in.

    `jupyter-book build .` and `sphinx-build` may name other folders. If book/ is not writable, the
    build uses a folder of links to its files.
    """
    book = ROOT / "book"
    static = book / "_static"
    if "_static" not in config.html_static_path:
        config.html_static_path.append("_static")
    # Jupyter Book adds these if it finds _static, in an order that depends on the file system
    for files, suffix in ((config.html_css_files, "css"), (config.html_js_files, "js")):
        own = sorted(path.relative_to(static).as_posix() for path in static.rglob(f"*.{suffix}"))
        files[:] = [name for name in files if name not in own] + own
    contents = Path(config.external_toc_path)
    contents = contents.absolute() if contents.exists() else Path(app.srcdir) / contents
    is_stub = contents.resolve() == book / "_toc.yml"
    config.external_toc_path = str(ROOT / "_toc.yml" if is_stub else contents)
    if not is_writable(book):
        book = linked(book, Path(app.doctreedir) / "source")
    app.srcdir = app.confdir = type(app.srcdir)(book)  # Sphinx has its own class of paths


def linked(book: Path, place: Path) -> Path:
    """Make a folder in `place` whose entries link to those of `book`, and return it.

    Staged notebooks go to its subfolder studies/.
    """
    shutil.rmtree(place, ignore_errors=True)
    folder = place / book.name
    folder.mkdir(parents=True)
    for entry in book.iterdir():
        if entry.name != "studies":
            (folder / entry.name).symlink_to(entry)
    (place / "pythia_core").symlink_to(book.parent / "pythia_core")  # pages quote code from there
    return folder


def mark_unfinished(app: Sphinx, config: Config) -> None:
    """After an interrupted build, drop Sphinx's environment, so that every page is written again.

    Sphinx saves its environment before it writes the pages, so it would consider unwritten pages up
    to date.

    Raises:
        ExtensionError: another build is running, whose environment and pages this one would change.
    """
    folder = Path(app.doctreedir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lock = _LOCKS.setdefault(folder / LOCK, FileLock(folder / LOCK, timeout=1))
    try:
        lock.acquire()
    except Timeout as error:
        raise ExtensionError(
            f"another build of this book is running, with its files in {folder}; wait until it has "
            "ended, then build again"
        ) from error
    mark = folder / UNFINISHED
    if mark.exists():
        (folder / "environment.pickle").unlink(missing_ok=True)
    mark.touch()


def mark_finished(app: Sphinx, error: Exception | None) -> None:
    """Record that the build finished, if it had no error, and let others build."""
    folder = Path(app.doctreedir).absolute()
    if error is None:
        (folder / UNFINISHED).unlink(missing_ok=True)
    _LOCKS[folder / LOCK].release(force=True)


def configure(app: Sphinx, config: Config) -> None:
    """Tell Sphinx where the templates are, and how to show formulas."""
    config.html_math_renderer = mathematics.NAME
    config.templates_path.insert(0, str(ROOT / "book" / "_templates"))


def write_figure_files(app: Sphinx) -> None:
    """Write the figures and tables of the shown runs as files that pages link to."""
    if app.builder.format == "html":
        shown = (runs[0] for runs in RUNS.values())
        write_files(shown, Path(app.outdir) / "_static")


def point_at_sources(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Make the buttons that open or edit a study point to notebooks/ instead of book/studies/."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []) or [group]:
            if "url" in button:
                button["url"] = button["url"].replace("/book/studies/", "/notebooks/")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks, directives and roles of this extension with Sphinx."""
    app.add_config_value("pythia_shown", "", "env")
    # these run before priority 900, at which sphinx-external-toc reads the table of contents
    hooks = (
        mark_unfinished,
        locate_sources,
        configure,
        head.identify,
        choose_runs,
        stage_notebooks,
        fill_numbers,
        checkpoints.fill_facts,
        assets.exclude_page_assets,
    )
    for order, hook in enumerate(hooks):
        app.connect("config-inited", hook, priority=100 + order)
    app.connect("builder-inited", write_figure_files)
    app.connect("builder-inited", checkpoints.stage_scripts)
    mathematics.register(app)
    app.connect("doctree-read", terms.note_glossary)
    app.connect("doctree-resolved", terms.mark_terms)
    app.connect("html-page-context", terms.add_definitions)
    app.connect("html-page-context", assets.load_on_page)
    app.connect("html-page-context", point_at_sources, priority=900)
    app.connect("html-page-context", head.add_head, priority=900)
    app.connect("html-page-context", markup.mend, priority=900)
    app.connect("html-page-context", assets.lighten, priority=910)
    app.connect("build-finished", card.draw)
    app.connect("build-finished", assets.write_sheet, priority=910)  # after the theme's own
    app.connect("build-finished", mark_finished, priority=990)
    for name, directive in {
        "pythia-run": RunBanner,
        "pythia-report": ReproductionReport,
        "pythia-table": StudyTable,
        "pythia-code": Code,
        "pythia-finding": Finding,
        "pythia-outcome": Outcome,
        "pythia-claims": PaperClaims,
        "pythia-cite": Cite,
        "pythia-costs": Costs,
        "pythia-faults": Faults,
        "pythia-scales": Scales,
        "pythia-checkpoints": checkpoints.PromptCheckpoints,
        "drawing": DrawingFigure,
    }.items():
        app.add_directive(name, directive)
    reference.register(app)
    app.add_role("value", Value())
    app.add_role("source", Source())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
