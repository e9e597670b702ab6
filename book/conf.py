"""Settings of Sphinx, so that `sphinx-build book _build/html` makes the site without Jupyter Book.

They are those of _config.yml, as Jupyter Book 1 reads them; it ignores this file.
"""

import sys
from pathlib import Path

import yaml

_ROOT = Path(__file__).resolve().parents[1]
_GIVEN = yaml.safe_load((_ROOT / "_config.yml").read_text(encoding="utf-8"))
sys.path += [str(_ROOT / folder) for folder in _GIVEN["sphinx"]["local_extensions"].values()]

globals().update(_GIVEN["sphinx"]["config"])
project = html_title = _GIVEN["title"]
copyright = _GIVEN["copyright"]
exclude_patterns = _GIVEN["exclude_patterns"]
bibtex_bibfiles = _GIVEN["bibtex_bibfiles"]
myst_enable_extensions = _GIVEN["parse"]["myst_enable_extensions"]
nb_execution_mode = _GIVEN["execute"]["execute_notebooks"]

# what Jupyter Book adds
extensions = [name for name in _GIVEN["sphinx"]["config"]["extensions"] if name != "jupyter_book"]
extensions += ["sphinx_multitoc_numbering"]
external_toc_path = "_toc.yml"
external_toc_exclude_missing = _GIVEN["only_build_toc_files"]
html_theme = "sphinx_book_theme"
html_theme_options = {
    "search_bar_text": "Search this book...",
    "home_page_in_toc": _GIVEN["html"]["home_page_in_navbar"],
    "path_to_docs": "book",
    **_GIVEN["sphinx"]["config"]["html_theme_options"],
    **{name: on for name, on in _GIVEN["html"].items() if name.endswith("_button")},
}
html_baseurl = _GIVEN["html"].get("baseurl", "")
html_sourcelink_suffix = ""
html_static_path = ["_static"]
pygments_style = "sphinx"
suppress_warnings = ["myst.domains"]
myst_url_schemes = ["mailto", "http", "https"]
