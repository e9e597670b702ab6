"""Figures: same numbers, same bytes; a size keeps its colour; missing numbers are explained."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from gender_fakes import measurements
from places import ROOT
from pythia_book import records, style
from pythia_book.published.results import load
from pythia_book.studies.gender_bias import figures as draw
from pythia_book.studies.gender_bias import study as gender_bias
from pythia_book.studies.gender_bias.params import ARMS
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


def test_a_size_has_one_colour_and_ladders_are_ordered():
    for ladder in (LAPTOP_SIZES, GPU_SIZES, OFFICIAL_SIZES):
        colours = [style.size_colour(size) for size in ladder]
        assert len(set(colours)) == len(colours)

        def luminance(colour: str) -> float:
            r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
            return 0.2126 * r + 0.7152 * g + 0.0722 * b

        shades = [luminance(colour) for colour in colours]
        assert shades == sorted(shades)  # also told apart without any colour vision
        assert shades[-1] < 0.75  # and seen on white
    with pytest.raises(ConfigError, match="unknown size"):
        style.size_colour("9q")


def test_style_does_not_change_global_settings():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style.style():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
    assert dict(matplotlib.rcParams) == before


def test_tables_escape_what_they_show():
    frame = pd.DataFrame({"a<b": ["<script>alert(1)</script>", "x & y"]})
    shown = style.Table(frame, "n < 3").html
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
    assert "25k, 85k, 310k with 4 seeds each" in text and "Of 11 hypotheses: " in text


def test_a_saved_drawing_is_its_svg(tmp_path, results):
    drawing = draw.retained(results["absent"])
    drawing.save(tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text(encoding="utf-8") == drawing.svg
    kinds = {"image/svg+xml", "text/plain", style.FIGURE_TYPE}
    assert set(drawing._repr_mimebundle_()) == kinds
