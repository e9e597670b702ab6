"""Inline figures: harmless whatever the file says, unique ids, colors of both themes, values."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import browser
import nbformat
import pandas as pd
import pytest
from places import ROOT
from pythia_book import palette, style
from pythia_book.site import figures
from pythia_book.site.runs import SelectedRun

from pythia_core.errors import DataError

SCRIPT = ROOT / "book" / "_static" / "figures.js"
CSS = ROOT / "book" / "_static" / "figures.css"
in_node = partial(browser.in_node, SCRIPT)

HOSTILE = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
  viewBox="0 0 100 60" onload="alert(1)" data-foot="10">
  <script>alert(2)</script><style>* { background: url(http://evil.example) }</style>
  <foreignObject><body onclick="alert(3)">x</body></foreignObject>
  <a href="javascript:alert(4)"><text>link</text></a>
  <image href="http://evil.example/x.png"/><animate attributeName="href" to="javascript:alert(5)"/>
  <use xlink:href="http://evil.example/x.svg#a"/><use href="#mark" x="3" y="4"/>
  <g id="footer"><text>Redraw: papermill</text></g>
  <path id="mark" d="M0 0L1 1" onclick="alert(6)" clip-path="url(http://evil.example#c)"
    style="fill: #0072b2; stroke: url(#x); background: url(http://evil.example/y); opacity: 0.5"/>
  <path d="M0 0L2 2" clip-path="url(#clip)" fill="expression(alert(7))"/>
  <text x="1" y="2" style="font-size: 8.5px; fill: #d55e00">a &lt;b&gt; &amp; c</text>
  <g class="panel evil" data-values='{"series":[["&lt;b&gt;","#0072b2",0,[]]]}'/>
</svg>"""


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    """The outputs of a small figure."""

    @style.figure
    def drawn() -> style.Drawing:
        with style.style():
            figure, axes = style.panels(2, 2.5, "a note\nRedraw: papermill x.ipynb")
            frame = pd.DataFrame({"x": [1, 2, 3], "value": [0.1, 0.2, 0.4]})
            frame["low"], frame["high"] = frame.value - 0.05, frame.value + 0.05
            for ax, size in zip(axes, ("25k", "600k"), strict=True):
                style.line(ax, frame, "x", size, "swap_7", 1)
                ax.set(title=size, xlabel="step", ylabel="score")
            style.size_legend(figure, ["25k", "600k"])
        return style.Drawing(figure, 'A "test" of <figures>')

    return drawn()._repr_mimebundle_()


def test_only_harmless_parts_of_a_drawing_are_kept() -> None:
    shown = figures.inline_figure({"image/svg+xml": HOSTILE, "text/plain": 'x" onload="y'}, "p")
    for word in ("alert", "evil", "script", "onload=\"", "onclick", "foreignObject", "<a ", "image",
                 "animate", "Redraw", "url(http", "background", "expression"):  # fmt: skip
        assert word not in shown, word
    assert 'href="#p-w-mark"' in shown and 'clip-path="url(#p-w-clip)"' in shown
    assert "a &lt;b&gt; &amp; c" in shown  # text stays text
    assert 'viewBox="0 0 100 50"' in shown  # without its small print
    assert 'aria-label="x&quot; onload=&quot;y"' in shown
    assert "one-layout" in shown and 'tabindex="0"' in shown
    ET.fromstring(shown)


@pytest.mark.parametrize(
    "text",
    [
        "not XML",
        "<html/>",
        '<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg xmlns="http://www.w3.org/2000/svg">&a;</svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"/>',
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 a b"/>',
    ],
)
def test_a_damaged_figure_becomes_its_description(text: str) -> None:
    with pytest.raises(DataError):
        figures.sanitized(text, "p", {})
    shown = figures.inline_figure({"image/svg+xml": text, "text/plain": "What <it> shows"}, "p")
    assert "What &lt;it&gt; shows" in shown and "<svg" not in shown


def test_a_damaged_layout_leaves_the_other_to_all_screens(bundle: dict[str, Any]) -> None:
    more = bundle[style.FIGURE_TYPE]
    for damaged in ("not XML", 5, ["<svg", 5]):
        shown = figures.inline_figure({**bundle, "image/svg+xml": damaged}, "p")
        (drawing,) = ET.fromstring(shown).iter("svg")
        assert drawing.get("class") == "wide" and "one-layout" in shown
        shown = figures.inline_figure(
            {**bundle, style.FIGURE_TYPE: {**more, "narrow": damaged}}, "p"
        )
        assert [svg.get("class") for svg in ET.fromstring(shown).iter("svg")] == ["wide"]
    for tables in (None, 5, [5, ["a"]]):
        figures.tools(
            {**bundle, style.FIGURE_TYPE: {**more, "tables": tables}}, "suite", "c", set()
        )


@pytest.mark.parametrize("inside", ["<g>" * 3000 + "</g>" * 3000, "[" * 9000])
def test_deep_nesting_never_stops_a_build(inside: str) -> None:
    values = f"<g class='panel' data-values='{inside}'/>" if inside[0] == "[" else inside
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{values}</svg>'
    shown = figures.inline_figure({"image/svg+xml": drawing, "text/plain": "deep"}, "p")
    assert ("damaged" in shown) == (inside[0] == "<")


def test_ids_of_two_figures_differ_and_all_references_resolve(bundle: dict[str, Any]) -> None:
    page = "".join(figures.inline_figure(bundle, name) for name in ("one", "two"))
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert ids and len(set(ids)) == len(ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', page)
    assert used and set(used) <= set(ids)


def test_a_figure_has_two_layouts_a_name_and_the_same_bytes(bundle: dict[str, Any]) -> None:
    shown = figures.inline_figure(bundle, "p")
    assert shown == figures.inline_figure(bundle, "p")
    root = ET.fromstring(shown)
    assert [svg.get("class") for svg in root.iter("svg")] == ["wide", "narrow"]
    (drawing,) = root
    assert drawing.get("role") == "img" and drawing.get("aria-label") == 'A "test" of <figures>'
    assert "Redraw" not in "".join(root.itertext())
    assert "Redraw" in bundle["image/svg+xml"]  # JupyterLab shows it


def test_colors_follow_the_theme_with_enough_contrast(bundle: dict[str, Any]) -> None:
    shown = figures.inline_figure(bundle, "p")
    light = dict(re.findall(r"var\(--([ct][0-9a-f]{6}), (#[0-9a-f]{6})\)", shown))
    dark = dict(re.findall(r"--([ct][0-9a-f]{6}):(#[0-9a-f]{6})", shown))
    assert light and set(light) == set(dark)
    for key, color in light.items():
        least = palette.TEXT if key[0] == "t" else palette.GRAPHIC
        assert palette.contrast(color, palette.WHITE) >= least
        assert palette.contrast(dark[key], palette.DARK_PAGE) >= least
    assert not re.search(r'(fill|stroke)="(#|black|white)', shown)
    assert "var(--pst-color-text-base, #222222)" in shown and "var(--figure-grid" in shown
    assert "@media screen" in shown  # paper is light


def test_the_page_has_the_tools_of_a_figure(bundle: dict[str, Any], tmp_path: Path) -> None:
    bundle = {**bundle, style.FIGURE_TYPE: {**bundle[style.FIGURE_TYPE], "tables": ["a", "gone"]}}
    shown = figures.tools(bundle, "suite", "cell-03", {"a", "b"})
    assert (
        'href="#code-cell-03"' in shown and 'href="../_static/figures/suite/cell-03.svg"' in shown
    )
    assert 'href="../_static/data/suite/a.csv"' in shown
    assert "gone" not in shown and "b.csv" not in shown
    assert 'data-command="papermill x.ipynb"' in shown and "A note" in shown
    assert shown.count("<a ") == shown.count("aria-label=")
    old = figures.tools({"image/svg+xml": "x"}, "suite", "cell-03", set())
    assert "Command" not in old and "SVG" in old


def test_figures_of_a_notebook_become_html_and_files(
    bundle: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "a.csv").write_text("x\n1\n")
    output = nbformat.v4.new_output("display_data", data=bundle)
    cell = nbformat.v4.new_code_cell("draw()", id="fig", outputs=[output])
    cell.metadata["mystnb"] = {"figure": {"caption": "A caption", "name": "fig-a"}}
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(notebook, run / "notebook.ipynb")
    record = {"files": {"a.csv": {}, "measured.npz": {}}}
    selected = SelectedRun("suite", "yours", "smoke", run, record)
    shown = figures.with_inline_figures(notebook, selected)
    figures.write_files([selected], tmp_path / "static")
    assert "pythia-figure" in shown.cells[0].outputs[0].data["text/html"]
    assert shown.cells[0].metadata["mystnb"]["figure"]["name"] == "fig-a"
    assert "figure-tools" in shown.cells[1].source and len(shown.cells) == 2
    nbformat.validate(shown)
    saved = (tmp_path / "static" / "figures" / "suite" / "fig.svg").read_text(encoding="utf-8")
    assert saved == bundle["image/svg+xml"]
    assert (tmp_path / "static" / "data" / "suite" / "a.csv").read_text() == "x\n1\n"


# --- the script ------------------------------------------------------------------------------

PANEL = {
    "title": "first",
    "x": "step",
    "y": "score",
    "series": [
        [
            "25k",
            "#000000",
            0,
            [[100, 800], [500, -100], [1, 2], [0.1, 0.25], [None, 0.2], [None, 0.3]],
        ],
        ["600k", "#ffffff", 0, [[100, 800], [200, -100], [1, 2], [0.7, -12345.5]]],
    ],
}


def test_the_script_finds_the_nearest_point_and_walks_along_series() -> None:
    found = in_node(
        """(() => {
          const points = page.pointsOf([panel]), go = (from, key) =>
            page.neighbor(points, from, key);
          const near = page.nearest(points, 88, 42, 28), first = go(null, "ArrowRight");
          const all = [near, page.nearest(points, 50, 95, 28), first, go(first, "ArrowRight"),
            go(near, "ArrowDown"), go(first, "ArrowLeft"), go(first, "End")];
          return all.map((point) => point && [point.name, point.along]);
        })()""",
        panel=PANEL,
    )
    assert found == [
        ["25k", 2], None, ["25k", 1], ["25k", 2], ["600k", 2], ["25k", 1], ["600k", 2],
    ]  # fmt: skip


def test_the_series_of_a_point_is_found_in_every_panel() -> None:
    count = in_node(
        """(() => {
          const points = page.pointsOf([panel, panel]);
          const found = page.seriesOf(points, points[0]);
          return [points.length, found.length, new Set(found.map(({ p }) => p)).size,
            page.seriesOf(points, { ...points[0], name: "" }).length];
        })()""",
        panel=PANEL,
    )
    assert count == [8, 4, 2, 0]


def test_a_label_that_is_drawn_once_counts_for_all_panels() -> None:
    shared = in_node(
        "[[['x', ''], ['', 'y']], [['a', 'y'], ['b', '']]].map((panels) =>"
        " page.shareLabels(panels.map(([x, y]) => ({ x, y }))).map(({ x, y }) => [x, y]))"
    )
    assert shared == [[["x", "y"], ["x", "y"]], [["a", "y"], ["b", "y"]]]


def test_the_script_says_what_a_point_shows() -> None:
    lines = in_node("page.pointsOf([panel]).map(page.linesOf)", panel=PANEL)
    assert lines[1] == {"title": "25k", "along": "step: 2", "value": "score: 0.25 [0.2, 0.3]"}
    assert lines[3]["value"] == "score: \u221212,345.5"
    flat = {**PANEL, "series": [["", "#000000", 1, [[1], [2], ["swap"], [3]]]]}
    assert in_node("page.pointsOf([panel]).map(page.linesOf)", panel=flat) == [
        {"title": "first", "along": "swap", "value": "step: 3"}
    ]
    assert in_node("[0, 1234, 12345, 2.5e13, 1.2e-7, -0.5].map(page.numberText)") == [
        "0", "1234", "12,345", "2.5 \u00d7 10^13", "1.2 \u00d7 10^\u22127", "\u22120.5",
    ]  # fmt: skip


def test_the_script_loads_nothing_and_sets_text_only() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|eval|fetch|XMLHttp|import\(|Math\.random", text)
    assert not re.search(r"url\((?!\"data:image/svg)", CSS.read_text(encoding="utf-8"))


@browser.needed
@pytest.mark.parametrize(("width", "shown"), [(720, "wide"), (358, "narrow")])
def test_in_a_browser(width: int, shown: str, bundle: dict[str, Any], tmp_path: Path) -> None:
    body = figures.inline_figure(bundle, "p")
    then = """
      const figure = document.querySelector(".pythia-figure"), drawing = figure.firstChild;
      const seen = [...figure.querySelectorAll("svg")].filter((svg) => svg.getClientRects().length);
      const key = (name) =>
        drawing.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
      drawing.focus();
      key("ArrowRight");
      key("ArrowRight");
      const tip = figure.querySelector(".value-tip");
      const result = { seen: seen.map((svg) => svg.getAttribute("class")), tip: tip.textContent,
        said: figure.querySelector("[role=status]").textContent, open: !tip.hidden,
        wide: figure.scrollWidth - figure.clientWidth, focus: drawing.tabIndex };
      key("Escape");
      result.closed = tip.hidden;
      return result;
    """
    found = browser.evaluate(SCRIPT, CSS, body, then, tmp_path, width)
    assert found["seen"] == [shown] and found["open"] and found["closed"]
    assert found["tip"].startswith("25k, swap in the last 7 %step: 2score: 0.2 [0.15, 0.25]")
    assert found["said"].startswith("25k; 25k, swap") and found["focus"] == 0
    assert found["wide"] <= 0


def test_dark_pages_are_as_dark_as_the_theme_says() -> None:
    import sphinx_book_theme

    folder = Path(sphinx_book_theme.__file__).parent / "theme" / "sphinx_book_theme" / "static"
    styles = "".join(path.read_text() for path in folder.rglob("*.css"))
    assert f"--pst-color-background:{palette.DARK_PAGE}" in styles


def test_values_survive_the_way_into_the_page(bundle: dict[str, Any]) -> None:
    root = ET.fromstring(figures.inline_figure(bundle, "p"))
    layouts = [
        [json.loads(panel.get("data-values", "")) for panel in svg.iterfind(".//g[@class='panel']")]
        for svg in root.iter("svg")
    ]
    assert [panel["title"] for panels in layouts for panel in panels] == ["25k", "600k"] * 2
    assert ["series" in panel for panels in layouts for panel in panels] == [True] * 2 + [False] * 2
    for panels, file in zip(
        layouts, (bundle["image/svg+xml"], bundle[style.FIGURE_TYPE]["narrow"]), strict=True
    ):
        points = in_node("page.pointsOf(panels, whole)", panels=panels, whole=layouts[0])
        drawn = ET.fromstring(file).iterfind(".//{*}g[@class='panel']")
        rows = [row for panel in drawn
                for series in json.loads(panel.get("data-values", ""))["series"]
                for row in series[3]]  # fmt: skip
        assert len(rows) == len(points) == 6
        for point, row in zip(points, rows, strict=True):
            assert [point["x"], point["y"]] == pytest.approx(row[:2], abs=0.25)
            assert [point[name] for name in ("along", "value", "low", "high")] == row[2:]
            assert point["color"].startswith("var(--c")


def test_a_panel_that_differs_between_layouts_keeps_its_values() -> None:
    points = "[[1,1,1,5],[2,%s,2,6],[3,3,3,7]]"
    panel = f"""<g class="panel" data-values='{{"series":[["a","#0072b2",0,{points}]]}}'/>"""
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{panel}</svg>'
    for place, shared in ((2, True), (2.2, True), (8, False)):
        more = {style.FIGURE_TYPE: {"narrow": drawing % place}}
        root = ET.fromstring(figures.inline_figure({"image/svg+xml": drawing % 2, **more}, "p"))
        narrow = list(root.iter("g"))[1].get("data-values", "")
        assert ("moved" in narrow, "series" in narrow) == (shared, not shared)


@pytest.mark.parametrize(
    "series",
    [
        *(f'["a", "#0072b2", 0, {points}]'
          for points in ("[]", "[[1, 2]]", "[[Infinity, 2, 3, 4]]", '[["<b>", 2, 3, 4]]', "[1]",
                         "null", "[[1e300, 2, 3, 4]]", "[[NaN, 2, 3, 4]]")),
        '["a", "#0072b2", 0]', '["a", "#0072b2", 0, [[1, 2, 3, 4]], 5]', "7",
    ],
)  # fmt: skip
def test_damaged_values_are_left_out(series: str) -> None:
    panels = "".join(
        f"<g class='panel' data-values={quoteattr(values)}/>"
        for values in (f'{{"series":[{series}]}}', '{"series":[]}')
    )
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{panels}</svg>'
    more = {style.FIGURE_TYPE: {"narrow": drawing}}
    shown = figures.inline_figure({"image/svg+xml": drawing, **more}, "p")
    assert [g.get("data-values") for g in ET.fromstring(shown).iter("g")] == [
        "",
        '{"series":[]}',
    ] * 2


def test_marks_become_markers_at_the_same_places() -> None:
    def shown(*places: str) -> ET.Element:
        uses = "".join(f'<use href="#m" x="{x}" y="2.04"/>' for x in places)
        group = f'<g fill="#0072b2" id="g" transform="scale(2)" clip-path="url(#c)">{uses}</g>'
        drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">{group}</svg>'
        return ET.fromstring(figures.inline_figure({"image/svg+xml": drawing}, "p"))

    page = shown("1", "2.5", "1.96")
    (group,) = page.iter("g")
    marker, line = group
    assert set(group.attrib) == {"clip-path", "id", "transform"} and "0072b2" in marker.get(
        "fill", ""
    )
    assert line.get("d") == "M1 2l1.5 0l-0.5 0"
    assert line.get("style") == f"marker:url(#{marker.get('id')})"
    assert [use.get("href") for use in page.iter("use")] == ["#p-w-m"]
    for places in (("1", "2"), ("1", "2", "abc"), ("1", "2", "nan"), ("1", "2", "1e999")):
        assert len(list(shown(*places).iter("use"))) == len(places), places
