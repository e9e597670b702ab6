"""The page on rotary embeddings: its drawings, its script and its links agree with the library."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import pytest
import torch
import yaml
from places import ROOT
from pythia_book.pages import rotary as draw

from pythia_core.kernels.rotary import rotary_reference, rotary_tables

PAGE = (ROOT / "book" / "rotary.md").read_text(encoding="utf-8")
STATIC = ROOT / "book" / "_static"
MODEL, SHARED, SCRIPT, STYLE = (
    STATIC / name for name in ("rotary.model.js", "explorable.js", "rotary.js", "rotary.css")
)
DRAWINGS = ("turning", "quarter", "frequencies", "precision")
HEAD_DIMS = (32, 64, 80, 128, 256)
in_node = partial(browser.in_node, MODEL)


# --- drawings and numbers --------------------------------------------------------------------


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_deterministic_svg(name: str) -> None:
    first, second = getattr(draw, name)(), getattr(draw, name)()
    assert first.svg == second.svg
    root = ET.fromstring(first.svg)
    assert root.get("role") == "img" and root.get("aria-label") == first.description
    assert "rotary.py" in " ".join(root.itertext())


def test_the_head_dims_are_the_official_ones() -> None:
    assert tuple(draw.head_dims()) == HEAD_DIMS
    assert [c.rotary_dims for c in draw.head_dims().values()] == [8, 16, 20, 32, 64]
    assert draw.models_of(64) == ["70M", "160M", "410M"]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_frequencies_are_a_geometric_series(head_dim: int) -> None:
    dims = head_dim // 4
    expected = 10_000.0 ** (-2 * np.arange(dims // 2) / dims)
    np.testing.assert_allclose(draw.inverse_frequencies(head_dim), expected, rtol=2e-6)


def test_the_score_depends_on_the_distance_only() -> None:
    table = draw.scores(64)
    for distance in range(-127, 128):
        # rows are queries: entry (m, n) lies on the diagonal n - m
        along = table.diagonal(-distance)
        expected = np.cos(distance * draw.inverse_frequencies(64).astype(float)).mean()
        np.testing.assert_allclose(along, expected, atol=3e-5)


def test_errors_of_half_precision() -> None:
    bf16, fp16 = (draw.table_errors(64, way) for way in ("bf16", "fp16"))
    rounding = {"bf16": 2.0**-9, "fp16": 2.0**-12}
    # pair 0 turns by one radian a position: exact while the type still has every whole number
    assert bf16[:257, 0].max() <= rounding["bf16"] < 0.5 < bf16[257, 0]
    assert fp16[:, 0].max() <= rounding["fp16"]
    assert bf16.max() > 1.9 and 0.3 < fp16.max() < 0.4
    for kind, step in rounding.items():  # angle in fp32: its own rounding and the last one's
        assert draw.table_errors(64, f"fp32, {kind}").max() <= step + 2047 * 2.0**-23


# --- the script ------------------------------------------------------------------------------


def test_the_script_knows_the_official_shapes() -> None:
    for head_dim, config in draw.head_dims().items():
        assert in_node(f"page.rotaryDims({head_dim})") == config.rotary_dims
    models = {str(d): ", ".join(draw.models_of(d)) for d in HEAD_DIMS}
    assert in_node("page.MODELS") == models


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_script_rotates_like_the_model(head_dim: int) -> None:
    dims = draw.head_dims()[head_dim].rotary_dims
    vector = torch.randn(head_dim, generator=torch.Generator().manual_seed(0))
    expected = rotary_reference(vector.expand(200, -1), *rotary_tables(200, dims, 10_000.0))
    numbers = json.dumps(vector.tolist())
    turned = in_node(f"[0, 1, 17, 199].map((m) => page.rotate({numbers}, m))")
    np.testing.assert_allclose(turned, expected[[0, 1, 17, 199]], atol=1e-4)
    np.testing.assert_allclose(
        in_node(f"page.inverseFrequencies({head_dim})"),
        draw.inverse_frequencies(head_dim),
        rtol=2e-6,
    )
    pairs = [(20, 12), (120, 112), (3, 90)]
    table = draw.scores(head_dim)
    shown = in_node(f"{json.dumps(pairs)}.map(([m, n]) => page.score(m - n, {head_dim}))")
    np.testing.assert_allclose(shown, [table[m, n] for m, n in pairs], atol=3e-5)


def test_what_a_pair_has_learned_moves_its_share_only() -> None:
    before, after = in_node(
        "[{}, { 1: [90, 50] }].map((l) => [0, 5, 9].map((d) => page.score(d, 64, l)))"
    )
    turn = draw.inverse_frequencies(64)[1] * np.array([0, 5, 9])
    change = 0.5 * np.cos(np.pi / 2 + turn) - np.cos(turn)
    np.testing.assert_allclose(np.subtract(after, before), change / 8, atol=1e-6)


def test_the_script_rounds_like_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    some = torch.randn(400, generator=generator, dtype=torch.float64)
    some = some * 10.0 ** torch.randint(-7, 4, (400,), generator=generator)
    ties = torch.tensor([0.0, 1.0, 257, 259, -257, 2047, 2049, 2051, 2**-24, 1.5 * 2**-24])
    numbers = torch.cat([some, ties.double()]).float()  # torch rounds to bf16 by way of fp32
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    for name, kind in kinds.items():
        ours = in_node(f"{json.dumps(numbers.tolist())}.map((x) => page.round(x, '{name}'))")
        assert ours == numbers.to(kind).double().tolist(), name


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_scripts_error_curves_are_those_of_the_figure(head_dim: int) -> None:
    for way in draw.PRECISIONS:
        expected = draw.table_errors(head_dim, way).max(axis=1).reshape(-1, draw.STRETCH).max(1)
        # cos of fp32 and of fp64 may round to neighbors
        near = 2.0**-8 if "bf16" in way else 2.0**-11
        np.testing.assert_allclose(
            in_node(f"page.errorCurve({head_dim}, {way!r})"), expected, atol=near, err_msg=way
        )


def test_the_script_and_the_style_make_no_requests() -> None:
    browser.assert_self_contained(MODEL, SHARED, SCRIPT, STYLE)


THEN = """
  const says = () => [...document.querySelectorAll(".rotary output")].map((o) => o.textContent);
  const set = (name, value) => {
    const input = document.querySelector(`[data-set="${name}"]`);
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    return says();
  };
  result.first = says();
  result.both = set("both", 40);
  result.masked = set("n", 127);
  result.pair = set("pair", 5);
  result.large = set("headDim", 256);
  result.pair = set("pair", 31);
  result.small = set("headDim", 32);
  result.dials = document.querySelectorAll("[data-rotary=turning] .dial").length;
  result.live = [...document.querySelectorAll("output")].map((o) => o.getAttribute("aria-live"));
"""


@pytest.mark.slow
@browser.needed
def test_in_a_browser(tmp_path: Path) -> None:
    figures = [
        f'<figure><div class="explorable rotary" data-rotary="{name}"></div>'
        '<div class="pythia-figure"></div>'
        "<figcaption>c</figcaption></figure>"
        for name in DRAWINGS
    ]
    scripts = (MODEL, SHARED, SCRIPT)
    seen = browser.run_page(scripts, STYLE, "".join(figures), THEN, tmp_path)
    score = f"{draw.scores(64)[20, 12]:.3f}"
    assert seen["first"][0].startswith(f"m = 20, n = 12: distance 8, score {score}. Pair 2: ")
    assert seen["both"][0].startswith(f"m = 48, n = 40: distance 8, score {score}. Pair 2: ")
    assert "masks" in seen["masked"][0]
    assert "the first 64 rotate. Pair 5 is dim 5 with dim 37" in seen["large"][1]
    # pair 31 is not there in a head of 32 dims: the last one is
    assert "the first 8 rotate. Pair 3 is dim 3 with dim 7" in seen["small"][1]
    assert seen["dials"] == 4 + 1, "one for each pair, and the chosen one large"
    assert seen["live"].count("polite") == 1, "one figure speaks at a time"


# --- the page --------------------------------------------------------------------------------


def test_every_drawing_and_value_exists() -> None:
    drawn = re.findall(r"^:::\{drawing\} rotary\.(\w+)$", PAGE, flags=re.MULTILINE)
    assert tuple(drawn) == DRAWINGS
    names = set(re.findall(r"\{value\}`rotary\.(\w+)`", PAGE))
    assert names and names <= draw.values().keys()


def test_the_links_to_the_source_resolve() -> None:
    links = re.findall(r"\{source\}`([^`#]+)#([^`]+)`", PAGE)
    assert len(links) == 2
    for name, words in links:
        assert words in (ROOT / name).read_text(encoding="utf-8"), f"{name} lacks {words!r}"


def test_the_quoted_code_is_the_models() -> None:
    blocks = re.findall(
        r"\{literalinclude\} \.\./(\S+)\n:language: python\n:start-at: (.+)\n:end-at: (.+)\n", PAGE
    )
    assert len(blocks) == 2
    shown = []
    for name, first, last in blocks:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        starts = [k for k, line in enumerate(lines) if first in line]
        ends = [k for k, line in enumerate(lines) if last in line]
        assert len(starts) == len(ends) == 1, f"{first!r} or {last!r} is not one line of {name}"
        shown.append(lines[starts[0] : ends[0] + 1])
    assert [len(block) for block in shown] == [5, 4]
    assert "torch.outer" in shown[0][3] and "second * cos + first * sin, rest" in shown[1][-1]


def test_the_page_is_in_the_book() -> None:
    parts = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    assert {"file": "rotary"} in [c for part in parts for c in part["chapters"]]


def test_its_script_and_style_are_loaded_on_that_page_only() -> None:
    pytest.importorskip("sphinx", reason="the extra `book` is not installed")
    from pythia_book.site import assets

    loaded: list[str] = []
    app = SimpleNamespace(
        srcdir=ROOT / "book",
        add_css_file=loaded.append,
        add_js_file=lambda name, loading_method: loaded.append(f"{name} {loading_method}"),
    )
    config = SimpleNamespace(
        html_css_files=["paper.css", "rotary.css"],
        html_js_files=["explorable.js", "rotary.js", "rotary.model.js"],
    )
    assets.exclude_page_assets(app, config)
    assert config.html_css_files == ["paper.css"]
    assert config.html_js_files == [("explorable.js", {"priority": 400})], "before the others"
    assets.load_on_page(app, "method", "", {}, None)
    assert loaded == []
    assets.load_on_page(app, "rotary", "", {}, None)
    assert loaded == ["rotary.css", "rotary.model.js defer", "rotary.js defer"]
