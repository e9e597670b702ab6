"""The book's Sphinx extension, which `jupyter-book build book/` loads.

No page makes a request to another host. _static/<page>.css, _static/<page>.js and what it uses,
_static/<page>.model.js and _static/<page>.view.js, are loaded on that page only.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

from pythia_book.site import checkpoints
from pythia_book.site.drawings import DrawingFigure, Source, Value
from pythia_book.site.staging import ROOT, choose_runs, fill_numbers, stage_notebooks
from pythia_book.site.studies import Claims, CompareRuns, Costs, RunBanner, Scales

MATHJAX = ("tex-chtml.js", "output/chtml/fonts")


def configure(app: Sphinx, config: Config) -> None:
    """Tell Sphinx to use the copied MathJax and the root's _toc.yml, not the stub book/_toc.yml."""
    config.external_toc_path = str(ROOT / "_toc.yml")
    config.mathjax_path = "mathjax/tex-chtml.js"


def copy_mathjax(app: Sphinx) -> None:
    """Copy the parts of MathJax that pages load (1.6 of 24 MB) from the installed package.

    Raises:
        ExtensionError: the package is not installed.
    """
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise ExtensionError("the site needs MathJax; run pip install sphinx-mathjax-offline")
    package = Path(spec.submodule_search_locations[0]) / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX:
        if (package / part).is_dir():
            shutil.copytree(package / part, target / part, dirs_exist_ok=True)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(package / part, target / part)


def point_at_sources(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let the buttons that open or edit a study point to notebooks/ instead of book/studies/."""
    for group in context.get("header_buttons", []):
        for button in group.get("buttons", []) or [group]:
            if "url" in button:
                button["url"] = button["url"].replace("/book/studies/", "/notebooks/")


def exclude_page_assets(app: Sphinx, config: Config) -> None:
    """Stop all pages from loading scripts and style sheets that belong to a single page."""
    pages = {path.stem for path in Path(app.srcdir).glob("*.md")}
    for files in (config.html_css_files, config.html_js_files):
        files[:] = [
            f for f in files if not (isinstance(f, str) and Path(f).name.partition(".")[0] in pages)
        ]


def load_on_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Load the scripts and the style sheet that belong to a page, if they exist."""
    static = Path(app.srcdir) / "_static"
    if (static / f"{pagename}.css").is_file():
        app.add_css_file(f"{pagename}.css")
    for kind in ("model.js", "view.js", "js"):  # later ones use what earlier ones define
        if (static / f"{pagename}.{kind}").is_file():
            app.add_js_file(f"{pagename}.{kind}", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the hooks, directives and roles of this extension with Sphinx."""
    app.add_config_value("pythia_shown", "", "env")
    # these run before priority 900, at which sphinx-external-toc reads the table of contents
    hooks = (configure, choose_runs, stage_notebooks, fill_numbers, checkpoints.fill_facts)
    hooks += (exclude_page_assets,)
    for order, hook in enumerate(hooks):
        app.connect("config-inited", hook, priority=100 + order)
    app.connect("builder-inited", copy_mathjax)
    app.connect("builder-inited", checkpoints.stage_scripts)
    app.connect("html-page-context", load_on_page)
    app.connect("html-page-context", point_at_sources, priority=900)
    for name, directive in {
        "pythia-run": RunBanner,
        "pythia-compare": CompareRuns,
        "pythia-claims": Claims,
        "pythia-costs": Costs,
        "pythia-scales": Scales,
        "pythia-checkpoints": checkpoints.PromptCheckpoints,
        "drawing": DrawingFigure,
    }.items():
        app.add_directive(name, directive)
    app.add_role("value", Value())
    app.add_role("source", Source())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
