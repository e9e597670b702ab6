"""Decides which scripts and styles a page loads: only what it needs, and from the site itself.

All pages share one style sheet, site.css. It is made at the end of the build from the style sheets
of the theme and the book, without fonts and without rules for elements that no page has. Scripts
that no part of a page needs are not loaded, and the others run after the page is drawn. A page's
own scripts and style sheet (<page>.js, <page>.model.js, <page>.view.js and <page>.css in _static)
are loaded on that page only.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

SHEET = "site.css"
THEME_SHEETS = ("basic.css", "styles/pydata-sphinx-theme.css")
"""Style sheets that the theme's template would load itself, before all others."""
NEEDED = {
    "design-tabs.js": r"sd-tab-set",
    "clipboard.min.js": r"<pre",
    "copybutton.js": r"<pre",
    "explorable.js": r'data-(?:rotary|batch|recipe)="',
    "hover.js": r'class="(?:[\w -]* )?(?:term|bibtex-citation)[" ]',
}
"""Maps a script that only some pages need to a regex for HTML of these pages."""
FIRST = "explorable.js"
"""The script that the scripts of pages use, so it is loaded before them."""
UNUSED = (
    "scripts/fontawesome.js",
    "scripts/bootstrap.js",
    "vendor",
    "locales",
    "webpack-macros.html",
)
"""What the theme copies into _static, but no page loads."""

_HEAD = "/* What this site uses of: "
_shared: dict[str, None] = {}
"""The style sheets that pages share, in the order in which pages load them."""


# --- what a page loads -----------------------------------------------------------------------


def exclude_page_assets(app: Sphinx, config: Config) -> None:
    """Stop all pages from loading scripts and style sheets that belong to a single page."""
    pages = {path.stem for path in Path(app.srcdir).glob("*.md")}
    config.html_js_files[:] = [
        (f, {"priority": 400}) if f == FIRST else f for f in config.html_js_files
    ]
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


def lighten(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Leave out the scripts that a page does not need, defer the others, and share style sheets."""
    body = context.get("body") or ""
    scripts = []
    for script in context["script_files"]:
        name = str(getattr(script, "filename", None) or script or "")
        attributes = getattr(script, "attributes", {})
        inline = attributes.get("body", "")
        if inline.startswith("DOCUMENTATION_OPTIONS."):
            continue  # for parts of the theme that the site does not have; would run too early
        needed = next((html for part, html in NEEDED.items() if part in name), "")
        if not re.search(needed, body):
            continue
        if name.startswith("_static/"):
            attributes["defer"] = "defer"
        scripts.append(script)
    context["script_files"] = scripts
    own = f"_static/{pagename}.css"
    files = sorted(context["css_files"], key=lambda file: getattr(file, "priority", 500))
    names = [str(getattr(file, "filename", file)) for file in files]
    for name in (*THEME_SHEETS, *(name for name in names if name != own)):
        _shared.setdefault(name.removeprefix("_static/"))
    alone = [file for file, name in zip(files, names, strict=True) if name == own]
    context["css_files"] = [f"_static/{SHEET}", *alone]


# --- the shared style sheet ------------------------------------------------------------------


def write_sheet(app: Sphinx, error: Exception | None) -> None:
    """Write site.css from the shared style sheets, and delete what no page loads."""
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    names = list(_shared)
    if not names and (static / SHEET).is_file():  # no page has changed: the same sheets as before
        head = (static / SHEET).read_text(encoding="utf-8").partition("*/")[0]
        names = head.removeprefix(_HEAD).split()
    used = words_of(Path(app.outdir))
    parts = [prune((static / name).read_text(encoding="utf-8"), used) for name in names]
    (static / SHEET).write_text("\n".join([f"{_HEAD}{' '.join(names)} */", *parts]), "utf-8")
    for name in UNUSED:
        path = static / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in static.rglob("*.map"):
        path.unlink()


def words_of(site: Path) -> set[str]:
    """Return every class and id in the pages of a site, and every word of its scripts."""
    words: set[str] = set()
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        for value in re.findall(r"""\b(?:class|id)\s*=\s*(?:"([^"]*)"|'([^']*)')""", text):
            words.update("".join(value).split())
        for script in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
            words.update(re.findall(r"[\w-]+", script))
    for path in (site / "_static").rglob("*.js"):
        name = path.relative_to(site / "_static").as_posix()
        if not name.startswith(UNUSED):
            words.update(re.findall(r"[\w-]+", path.read_text(encoding="utf-8")))
    return words


def prune(css: str, used: set[str]) -> str:
    """Return a style sheet without comments, fonts and rules whose classes or ids are not used.

    Args:
        used: names of classes and ids.
    """
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", " ", "".join(_kept(css, used)))


def _kept(css: str, used: set[str]) -> Iterator[str]:
    """Yield the rules that `prune` keeps."""
    for head, block in _rules(css):
        if not block:  # a statement such as @charset
            yield head if not head.startswith("@charset") else ""
        elif head.startswith("@font-face"):
            continue
        elif re.match(r"@(media|supports|layer|container)\b", head):
            if inner := "".join(_kept(block[1:-1], used)):
                yield f"{head}{{{inner}}}"
        elif head.startswith("@"):
            yield head + block
        elif selectors := [each for each in _selectors(head) if _possible(each, used)]:
            yield ",".join(selectors) + block


def _rules(css: str) -> Iterator[tuple[str, str]]:
    """Split a style sheet at its top level into pairs of a prelude and a block in braces.

    The block of a statement is "", and its prelude ends with a semicolon.
    """
    start = depth = opened = 0
    quote = ""
    position = 0
    while position < len(css):
        character = css[position]
        if character == "\\":
            position += 1
        elif quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "{":
            if depth == 0:
                opened = position
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                yield " ".join(css[start:opened].split()), css[opened : position + 1]
                start = position + 1
        elif character == ";" and depth == 0:
            yield css[start : position + 1].strip(), ""
            start = position + 1
        position += 1


def _selectors(prelude: str) -> list[str]:
    """Split a list of selectors at the commas that are not inside parentheses or brackets."""
    parts, depth = [""], 0
    for character in prelude:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _possible(selector: str, used: set[str]) -> bool:
    """Whether an element can match: all classes and ids outside parentheses and brackets exist."""
    if "\\" in selector:  # an escaped name: rare, and not worth reading
        return True
    plain = selector
    while (shorter := re.sub(r"\([^()]*\)|\[[^\]]*\]", "", plain)) != plain:
        plain = shorter
    return all(name in used for name in re.findall(r"[.#](-?[A-Za-z_][\w-]*)", plain))
