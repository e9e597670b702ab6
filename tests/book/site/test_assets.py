"""What a page loads: scripts that it needs, and one style sheet without unused rules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pythia_book.site import assets

USED = {"a", "b", "id"}


@pytest.mark.parametrize(
    ("css", "kept"),
    [
        (".a, .x { color: red }", ".a{ color: red }"),
        (".x { color: red }", ""),
        ("#id > .a:not(.x) { top: 0 }", "#id > .a:not(.x){ top: 0 }"),
        (":is(.x, .y) p { top: 0 }", ":is(.x, .y) p{ top: 0 }"),
        ("[data-x='.x'] { top: 0 }", "[data-x='.x']{ top: 0 }"),
        ("@media print { .a { top: 0 } .x { top: 0 } }", "@media print{.a{ top: 0 }}"),
        ("@media print { .x { top: 0 } }", ""),
        ("@font-face { src: url(x.woff2) }", ""),
        ("/* .a { } */ p { content: '}' }", "p{ content: '}' }"),
        ("@charset 'utf-8'; @layer b; p { top: 0 }", "@layer b;p{ top: 0 }"),
        ("@keyframes k { 0% { top: 0 } }", "@keyframes k{ 0% { top: 0 } }"),
        (r".w\:1 { top: 0 }", r".w\:1{ top: 0 }"),
        (".-x { top: 0 }", ""),
    ],
)
def test_rules_without_elements_are_left_out(css: str, kept: str) -> None:
    assert assets.prune(css, USED) == kept


def test_classes_of_pages_and_words_of_scripts_are_used(tmp_path: Path) -> None:
    (tmp_path / "_static").mkdir()
    (tmp_path / "page.html").write_text("<p class='one two' id=\"three\"><script>x.y</script>")
    (tmp_path / "_static" / "page.js").write_text("box.className = 'four-five';")
    assert {"one", "two", "three", "y", "four-five"} <= assets.words_of(tmp_path)


def script(name: str | None, **attributes: str) -> SimpleNamespace:
    return SimpleNamespace(filename=name, attributes=attributes, priority=500)


def test_scripts_are_loaded_where_they_are_needed() -> None:
    context = {
        "body": "<p>No code.</p>",
        "css_files": [SimpleNamespace(filename="_static/a.css", priority=1)],
        "script_files": [
            script("_static/doctools.js"),
            script("_static/copybutton.js"),
            script(None, body="DOCUMENTATION_OPTIONS.pagename = 'x';"),
        ],
    }
    assets.lighten(SimpleNamespace(), "page", "page.html", context, None)
    assert [each.filename for each in context["script_files"]] == ["_static/doctools.js"]
    assert context["script_files"][0].attributes == {"defer": "defer"}
    assert context["css_files"] == [f"_static/{assets.SHEET}"]
