"""The recipe's numbers agree with the released facts, the drawing of a layer with its module."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from places import ROOT
from pythia_book import style
from pythia_book.pages import recipe as draw
from pythia_book.released import recipe
from torch import nn

from pythia_core import model
from pythia_core.config import ModelConfig
from pythia_core.kernels import Ops
from pythia_core.suite import OFFICIAL_SIZES

PAGE = (ROOT / "book" / "recipe.md").read_text(encoding="utf-8")
DRAWN = re.findall(r"^```\{drawing\} (\w+)\.(\w+)$", PAGE, flags=re.MULTILINE)
SMALL = ModelConfig(n_layers=2, d_model=96, n_heads=3, vocab_size=512)

FACTS = [
    # size, parameters, 6NT, share of 312 TFLOP/s by it, by the products (both in percent)
    ("14m", 14_067_712, 2.53e19, None, None),
    ("31m", 30_494_720, 5.49e19, None, None),
    ("70m", 70_426_624, 1.27e20, 22, 16.0),
    ("160m", 162_322_944, 2.92e20, 25, 22.2),
    ("410m", 405_334_016, 7.29e20, 26, 25.5),
    ("1b", 1_011_781_632, 1.82e21, 34, 32.4),
    ("1.4b", 1_414_647_808, 2.55e21, 32, 31.8),
    ("2.8b", 2_775_208_960, 4.99e21, 31, 31.6),
    ("6.9b", 6_857_302_016, 1.23e22, 33, 33.1),
    ("12b", 11_846_072_320, 2.13e22, 26, 26.5),
]


def text_of(drawing: style.Drawing) -> str:
    """The text of a drawing, with plain letters for special signs."""
    text = " ".join(ET.fromstring(drawing.svg).itertext())
    return text.replace("\N{MULTIPLICATION SIGN}", "x").replace("\N{PRIME}", "'")


@pytest.mark.parametrize(("size", "parameters", "flop", "by_rule", "by_products"), FACTS)
def test_costs_agree_with_the_facts(
    size: str, parameters: int, flop: float, by_rule: int | None, by_products: float | None
) -> None:
    row = recipe.cost_table().set_index("size").loc[size]
    assert row.parameters == parameters
    assert row.flop_6nt == pytest.approx(flop, rel=5e-3)
    if by_rule is None:
        assert row.isna()[["gpu_hours", "utilization_6nt", "utilization_exact"]].all()
    else:
        assert round(100 * row.utilization_6nt) == by_rule
        assert 100 * row.utilization_exact == pytest.approx(by_products, abs=0.06)


def test_gpu_hours_sum_to_the_total_that_the_paper_states() -> None:
    hours = [h.gpu_hours or 0 for h in recipe.HARDWARE.values()]
    assert 4 * sum(hours) == 544_280  # the two halves of the suite, each trained twice
    assert "544,280" in PAGE


def test_every_layout_makes_the_same_batch() -> None:
    frame = recipe.layout_table()
    assert list(frame["size"]) == list(OFFICIAL_SIZES)
    assert set(frame.rows) == {recipe.BATCH_ROWS}
    assert recipe.TOKENS == 299_892_736_000
    for name, hardware in recipe.HARDWARE.items():  # rows are padded to 128 * tensor parallel
        assert OFFICIAL_SIZES[name].model().vocab_size % (128 * hardware.tensor_parallel) == 0


def test_estimates_follow_their_formula() -> None:
    row = recipe.estimates().set_index("size").loc["70m"]
    assert row.energy_mwh == pytest.approx(510 * 400 * 1.1 / 1e6)
    assert row.h100_hours == pytest.approx(
        305.5e6 * recipe.TOKENS / (0.4 * 989e12) / 3600, rel=1e-3
    )
    assert "Our estimates" in draw.estimates().caption


def test_gpt3s_batches_give_the_table_of_the_paper() -> None:
    frame = recipe.gpt3_table().set_index("size")
    assert frame.gpus_allowed[["70m", "160m", "410m", "1b"]].tolist() == [4, 8, 8, 16]
    assert frame.speed_up[["70m", "160m", "410m", "1b"]].tolist() == [8, 4, 4, 4]
    assert (frame.gpus == frame.gpus_allowed * frame.speed_up).all()


def test_the_schedule_reaches_its_floor() -> None:
    frame, floor = recipe.schedules()
    assert floor == 115_139
    assert (frame.neox[frame.step >= floor] == 0.1).all()
    assert (frame.neox[(frame.step < floor) & (frame.step > 1430)] > 0.1).all()
    assert (
        frame.paper.iloc[-1] == pytest.approx(0.1)
        and frame.paper[frame.step < 140_000].iloc[-1] > 0.1
    )
    assert f"{floor:,}" in text_of(draw.schedule())


@pytest.mark.parametrize("size", ["14m", "1b", "12b"])
def test_a_layer_read_from_the_module_has_the_parameters_of_the_formula(size: str) -> None:
    config = OFFICIAL_SIZES[size].model()
    d = config.d_model
    parts = recipe.block_parts(config).set_index("part")
    assert parts.parameters.sum() == 12 * d * d + 13 * d
    assert parts.d_out["attention.query_key_value"] == 3 * d
    assert parts.d_in["mlp.dense_4h_to_h"] == config.d_ff


def test_the_connections_are_those_of_the_module() -> None:
    parallel = recipe.block_parts(SMALL).set_index("part").reads
    assert parallel["input_layernorm"] == parallel["post_attention_layernorm"] == "x"
    sequential = recipe.block_parts(replace(SMALL, parallel_residual=False))
    assert sequential.set_index("part").reads["post_attention_layernorm"] == ""


def test_the_drawing_of_a_layer_shows_the_module() -> None:
    text = text_of(draw.block(SMALL))
    for words in (
        "288 x 96 + bias = 27,936",
        "384 x 96 + bias",
        "T x 384",
        "first 8 of 32 dims",
        "3 heads of 32",
        "tanh form",
        "111,840 parameters per layer",
        "out = x + attention(LN x) + MLP",
    ):
        assert words in text
    assert "out = x' + MLP" in text_of(draw.block(replace(SMALL, parallel_residual=False)))
    assert "erf form" in text_of(draw.block(replace(SMALL, gelu="erf")))
    assert "1,536 x 512 + bias" in text_of(draw.block())


def test_a_changed_module_changes_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = draw.block(SMALL)

    class Wider(model.MLP):
        def __init__(self, config: ModelConfig, ops: Ops) -> None:
            nn.Module.__init__(self)
            self.ops = ops
            self.gelu_form = config.gelu
            self.dense_h_to_4h = model.Linear(config.d_model, 6 * config.d_model, ops)
            self.dense_4h_to_h = model.Linear(6 * config.d_model, config.d_model, ops)

    monkeypatch.setattr(model, "MLP", Wider)
    after = draw.block(SMALL)
    assert "T x 576" in text_of(after) and "T x 576" not in text_of(before)
    assert after.description != before.description


def test_every_drawing_of_the_page_exists_and_is_accessible() -> None:
    assert len(DRAWN) >= 7
    for page, name in DRAWN:
        made = getattr(importlib.import_module(f"pythia_book.pages.{page}"), name)()
        if isinstance(made, style.Table):
            assert made.caption and not made.frame.empty
            assert not made.frame.isin(["nan", "None"]).any().any()
        else:
            root = ET.fromstring(made.svg)
            assert root.get("role") == "img" and root.get("aria-label") == made.description


def test_what_the_page_cites_is_in_the_bibliography() -> None:
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book/references.bib").read_text(), re.M))
    cited = {
        k for group in re.findall(r"\{cite(?::t)?\}`([\w,]+)`", PAGE) for k in group.split(",")
    }
    assert cited and cited <= keys


def test_two_processes_draw_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "from pythia_book.pages import recipe as f;"
        "print(f.block().svg, f.schedule().svg, f.cost().svg)"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONPATH": ".:book", "PYTHONHASHSEED": seed, "MPLCONFIGDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and outputs[0].count(b"<svg") == 3
