"""Figures: same numbers, same bytes; a size keeps its color; missing numbers are explained."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from gender_fakes import measurements
from places import ROOT
from pythia_book import palette, records, style, svg
from pythia_book.published.results import load
from pythia_book.studies.gender_bias import figures as draw
from pythia_book.studies.gender_bias import study as gender_bias
from pythia_book.studies.gender_bias.associations import PLANTED_FRAMES
from pythia_book.studies.gender_bias.params import ARMS
from pythia_book.tasks.associations import UNSEEN
from score_files import as_folder

from pythia_core.errors import ConfigError
from pythia_core.suite import GPU_SIZES, LAPTOP_SIZES, OFFICIAL_SIZES

DRAWINGS = (
    "retained",
    "slopes",
    "nouns",
    "learned",
    "scores",
    "paper_figures",
    "released_winobias",
    "crows_biases",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The study on made-up measurements, without and with released numbers."""
    params = gender_bias.Params(sizes="25k,85k,310k", seeds=4, crossed_seeds=2)
    released = load(as_folder(tmp_path_factory.mktemp("released")))
    measured = measurements(params, np.random.default_rng(0))

    def run(published):
        return gender_bias.run(params, False, published=published)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
        patch.setattr(records, "recorded_folder", lambda study: None)
        patch.setattr(gender_bias, "measure", lambda *_: measured)
        return {"absent": run(None), "released": run(released)}


@pytest.mark.parametrize("kind", ["absent", "released"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_deterministic_svg(name, kind, results):
    first = getattr(draw, name)(results[kind])
    second = getattr(draw, name)(results[kind])
    assert first.svg == second.svg
    root = ET.fromstring(first.svg)
    assert root.tag.endswith("svg")
    assert root.get("role") == "img"
    assert root.get("aria-label") == first.description
    text = " ".join(root.itertext())  # text stays text
    assert "Redraw: papermill notebooks/gender_bias.ipynb" in text
    assert "<dc:date>" not in first.svg
    assert "http://" not in first.svg.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")


def test_two_processes_draw_the_same_bytes(tmp_path):
    script = tmp_path / "draw.py"
    script.write_text(
        "import pandas as pd\n"
        "from pythia_book import style\n"
        "with style.style():\n"
        "    figure, (ax,) = style.panels(1, 2.5, 'footer')\n"
        "    frame = pd.DataFrame({'x': [1, 2], 'value': [.1, .2]})\n"
        "    frame['low'], frame['high'] = frame.value - .1, frame.value + .1\n"
        "    style.line(ax, frame, 'x', '85k', 'swap_7')\n"
        "    style.arm_legend(figure)\n"
        "print(style.Drawing(figure, 'a <test> & more').svg)\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, str(script)],
            cwd=ROOT,
            env={"PYTHONPATH": ".:book", "PYTHONHASHSEED": seed, "MPLCONFIGDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert "a &lt;test&gt; &amp; more" in outputs[0]


def test_missing_released_numbers_are_explained_in_the_figure(results):
    for name in ("paper_figures", "released_winobias", "crows_biases"):
        absent = getattr(draw, name)(results["absent"]).svg
        assert "PYTHIA_PUBLISHED_DIR" in absent
        released = getattr(draw, name)(results["released"]).svg
        assert "no released numbers" in absent
        assert "no released numbers" not in released


def test_a_size_has_one_color_and_ladders_are_ordered():
    for ladder in (LAPTOP_SIZES, GPU_SIZES, OFFICIAL_SIZES):
        colors = [style.size_color(size) for size in ladder]
        assert len(set(colors)) == len(colors)
        for on_page in (colors, [palette.dark_variant(color) for color in colors]):
            shades = [palette.luminance(color) for color in on_page]
            assert shades == sorted(shades)  # also told apart without any color vision
            assert least_distance(on_page) > 0.03
    with pytest.raises(ConfigError, match="unknown size"):
        style.size_color("9q")


SEEN_BY = {  # Machado et al. 2009, in linear light
    "all": np.eye(3),
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
}


def least_distance(colors: list[str]) -> float:
    """Return the least OKLab distance of two colors, by readers with any color vision."""
    distances = []
    for matrix in SEEN_BY.values():
        seen = [
            palette._times(palette._TO_LAB, tuple(np.cbrt(palette._times(palette._TO_CONES, rgb))))
            for rgb in (np.array(matrix) @ palette._linear(color) for color in colors)
        ]
        distances += [math.dist(a, b) for a, b in itertools.combinations(seen, 2)]
    return min(distances)


DATA = (style.BLUE, style.ORANGE, style.GREEN, palette.PINK, palette.SKY, palette.GOLD,
        palette.BROWN, style.MUTED, style.INK)  # fmt: skip


def test_colors_have_contrast_in_both_themes():
    sizes = (*LAPTOP_SIZES, *GPU_SIZES, *OFFICIAL_SIZES)
    shades = (palette.shade(i / 20) for i in range(21))
    for color in {*map(style.size_color, sizes), *shades, *DATA}:
        assert palette.contrast(color, style.WHITE) >= 3
        assert palette.contrast(palette.text_color(color), style.WHITE) >= 4.5
        assert palette.contrast(palette.dark_variant(color), palette.DARK_PAGE) >= 3
        assert palette.contrast(palette.dark_variant(color, True), palette.DARK_PAGE) >= 4.5
    pale = palette.dark_variant(palette.PALE)
    assert palette.contrast(pale, palette.DARK_PAGE) < 2  # pale areas stay areas, not data


@pytest.mark.parametrize("name", DRAWINGS)
def test_text_is_large_enough_and_panels_of_a_phone_form_one_column(name, results):
    drawing = getattr(draw, name)(results["released"])
    for each in (drawing, drawing.narrow):
        sizes = re.findall(r"font-size:([\d.]+)px", each.svg)
        assert sizes and min(map(float, sizes)) >= 0.69 * style.SMALLEST  # powers of ten
        assert sum(float(size) < style.SMALLEST for size in sizes) <= len(sizes) / 4
    lefts = {round(ax.get_position().x0, 1) for ax in drawing.narrow.figure.axes}
    tops = [ax.get_position().y1 for ax in drawing.narrow.figure.axes]
    assert len(lefts) <= 2 and tops == sorted(tops, reverse=True) and len(set(tops)) == len(tops)
    assert drawing.narrow.figure.get_figwidth() == style.NARROW < drawing.figure.get_figwidth()


def test_hover_values_are_those_of_the_table(results):
    drawing = draw.retained(results["absent"])
    table = results["absent"].tables["retained"]
    for each in (drawing, drawing.narrow):
        panels = svg.panel_values(each.figure)
        assert [panel["title"] for panel in panels] == ["unseen frames", "planted frames"]
        found = {
            (panel["title"], name): point
            for panel in panels
            for name, _, _, points in panel["series"]
            for point in points
        }
        rows = table[table.group == "invented"].dropna(subset=["value"])
        rows = rows[rows.model.isin(results["absent"].params.size_list)]
        frames = {UNSEEN: "unseen frames", PLANTED_FRAMES: "planted frames"}
        rows = rows[rows.frames.isin(frames)]
        assert len(rows) > 20
        for row in rows.itertuples():
            name = f"{row.model}, {ARMS[row.arm].label}"
            _, _, shift, *values = found[frames[row.frames], name]
            assert shift == pytest.approx(row.shift, rel=1e-3)
            assert values == pytest.approx([row.value, row.low, row.high], rel=1e-3)


def test_a_figure_names_the_tables_and_the_command_behind_it(results):
    bundle = draw.paper_figures(results["released"])._repr_mimebundle_()
    more = bundle[style.FIGURE_TYPE]
    assert more["tables"] == ["released_crows", "released_winobias", "released_lambada"]
    assert more["command"].startswith("papermill notebooks/gender_bias.ipynb")
    assert "released" in more["note"] and "Redraw" not in more["note"]
    assert ET.fromstring(more["narrow"]).tag.endswith("svg")


def test_categories_name_the_points():
    with style.style():
        figure, (ax,) = style.panels(1, 2.5, "")
        frame = pd.DataFrame({"size": ["7k", "85k"], "kind": "a", "value": [0.1, 0.2]})
        frame["low"], frame["high"] = frame.value - 0.1, frame.value + 0.1
        style.size_points(ax, frame, ["7k", "85k"], "kind", {"a": style.mark("o")})
        style.reference(ax, 15)
    drawing = style.Drawing(figure, "test")
    assert drawing.svg
    (panel,) = svg.panel_values(figure)
    assert [s[0] for s in panel["series"]] == ["7k, a", "85k, a"]
    assert [s[3][0][2:] for s in panel["series"]] == [["7k", 10, 0, 20], ["85k", 20, 10, 30]]


def test_points_beyond_the_limits_of_a_panel_are_not_found():
    with style.style():
        figure, (ax,) = style.panels(1, 2.5, "")
        ax.plot([0, 1, 2, 3], [0, 1, 50, 1], label="a")
        ax.set_xlim(0, 2.5)
        ax.set_ylim(0, 10)
    assert style.Drawing(figure, "test").svg
    (panel,) = svg.panel_values(figure)
    assert [point[2:] for point in panel["series"][0][3]] == [[0, 0], [1, 1]]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_labels_at_the_ends_of_curves_do_not_overlap(count):
    heights = sorted(np.random.default_rng(count).normal(100, 5, count).tolist())
    moved = style.spread(heights, 10)
    assert all(b - a >= 10 - 1e-9 for a, b in itertools.pairwise(moved))
    assert np.mean(moved) == pytest.approx(np.mean(heights), abs=15)
    assert style.spread([0.0, 50.0], 10) == [0.0, 50.0]


def test_style_does_not_change_global_settings():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style.style():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
    assert dict(matplotlib.rcParams) == before


def test_tables_escape_what_they_show():
    frame = pd.DataFrame({"a<b": ["<script>alert(1)</script>", "x & y"]})
    shown = style.Table(frame, "n < 3")._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "<caption>n &lt; 3</caption>" in shown
    assert "<b>" not in style.Note("<b>x</b>")._repr_html_()


def test_tables_and_summary_of_the_study(results):
    claims = style.claims_table(results["released"])
    assert len(claims.frame) == len(results["released"].claims)
    assert "410m 60.0 to 61.0" in claims._repr_html_()
    absent = style.claims_table(results["absent"])._repr_html_()
    assert "no released numbers: set PYTHIA_PUBLISHED_DIR" in absent
    assert len(draw.retained_table(results["absent"]).frame) == len(ARMS)
    for table in (draw.arms_table, draw.contrasts_table, draw.scores_table):
        assert len(table(results["absent"]).frame) == len(ARMS)
    assert len(draw.examples_table(results["absent"]).frame) == 7
    text = draw.summary(results["absent"]).data
    assert "25k, 85k, 310k with 4 seeds each" in text and "Of 9 hypotheses: " in text


def test_a_saved_drawing_is_its_svg(tmp_path, results):
    drawing = draw.retained(results["absent"])
    drawing.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text(encoding="utf-8") == drawing.svg
    kinds = {"image/svg+xml", "text/plain", style.FIGURE_TYPE}
    assert set(drawing._repr_mimebundle_()) == kinds


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("M 0 0 L 1 2 L 3.5 1.25 z", "M0 0l1 2 2.5-.75z"),
        ("M 1 1 C 1 1 2 2 3 3 L 4 4 L 5 5 z M 6 6 L 7 6", "M1 1c0 0 1 1 2 2l1 1 1 1zM6 6l1 0"),
        ("M 5 5 L 5 4 z L 6 5", "M5 5l0-1zl1 0"),
        ("M 1 1 M 6 6 L 7 6", "M1 1M6 6l1 0"),
    ],
)
def test_short_paths_draw_the_same(path: str, short: str) -> None:
    assert svg._path(path) == short


def test_a_curve_keeps_its_gaps() -> None:
    with style.style():
        figure, (ax,) = style.panels(1, 2.0, "")
        ax.plot([1, 2, 3, 4, 5, 6], [1, math.nan, 3, math.nan, 2, 4], marker="", lw=7)
    root = ET.fromstring(style.Drawing(figure, "gaps").svg)
    (curve,) = [each for each in root.iter() if "stroke-width:7" in each.get("style", "")]
    assert re.sub("[^A-Za-z]", "", curve.get("d", "")) == "MMMl"


def test_rounding_does_not_add_up_along_a_path() -> None:
    places = np.cumsum(np.full((400, 2), [0.149, -0.0501]), 0)
    path = svg._path("M 0 0 " + " ".join(f"L {x:.4f} {y:.4f}" for x, y in places))
    steps = [float(word) for word in re.findall(r"-?[\d.]+", path.removeprefix("M0 0l"))]
    drawn = np.cumsum(np.reshape(steps, (-1, 2)), 0)
    assert len(path) < 400 * 9 and np.abs(drawn - places).max() <= 0.0501
