"""The calculator of the recipe gives what the library's formulas give."""

from __future__ import annotations

import html
import json
import random
from pathlib import Path
from typing import Any

import browser
import pytest
from places import ROOT
from pythia_book.bench.cost_model import ATTENTION_TFLOPS
from pythia_book.pages import recipe as draw
from pythia_book.pages.cluster import Layout
from pythia_book.released import recipe

from pythia_core.config import ModelConfig
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training.execution import Execution
from pythia_core.training.memory import training_bytes
from pythia_core.training.metrics import flops_per_token

STATIC = ROOT / "book" / "_static"
MODEL, SHARED, SCRIPT, STYLE = (
    STATIC / name for name in ("recipe.model.js", "explorable.js", "recipe.js", "recipe.css")
)
CONSTANTS = draw.script_data("calculator")


def settings(rng: random.Random) -> dict[str, Any]:
    """A model, a batch and GPUs, some of which no estimate covers."""
    head, heads, gpus = (
        rng.choice([32, 48, 64, 80, 128, 256]),
        rng.randint(1, 48),
        2 ** rng.randint(0, 8),
    )
    return {
        "layers": rng.randint(1, 60),
        "width": head * heads,
        "heads": heads,
        "vocabulary": rng.choice([4096, 50_304, 50_688, 128_000]),
        "seqLen": rng.choice([128, 512, 2048, 8192]),
        "rows": gpus * rng.choice([1, 3, 4, 16]),
        "gpus": gpus,
        "updates": 1000,
        "precision": rng.choice(["bf16", "bf16", "fp32"]),
    }


def test_random_settings_get_the_numbers_of_the_library() -> None:
    rng = random.Random(0)
    chosen = [settings(rng) for _ in range(400)]
    plans = browser.in_node(MODEL, "xs.map((x) => page.plan(c, x))", xs=chosen, c=CONSTANTS)
    timed = 0
    for x, plan in zip(chosen, plans, strict=True):
        model = ModelConfig(x["layers"], x["width"], x["heads"], x["vocabulary"], rotary_fraction=0)
        layout = Layout(model, x["gpus"], x["seqLen"], x["rows"], x["precision"])
        tokens = x["rows"] * x["seqLen"] * x["updates"]
        assert (plan["all"], plan["inside"]) == (model.n_params, model.n_params_non_embedding)
        assert plan["flop"] == pytest.approx(
            tokens * flops_per_token(model, x["seqLen"]), rel=1e-12
        )
        assert (plan["split"], plan["microBatch"]) == (layout.split, layout.micro_batch), x
        assert plan["parts"] == layout.memory_parts
        assert plan["memory"] == layout.memory
        if not layout.micro_batch:
            assert "Not one row fits" in plan["problem"]
        elif x["precision"] == "fp32" or model.head_dim not in ATTENTION_TFLOPS:
            assert plan["seconds"] is None and plan["problem"]
        else:
            assert plan["seconds"] == pytest.approx(layout.seconds * x["updates"], rel=1e-9), x
            timed += 1
    assert timed > 150 and any(plan["problem"].startswith("Not one row") for plan in plans)


@pytest.mark.parametrize("size", OFFICIAL_SIZES)
@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_the_parts_of_memory_add_up(size: str, gpus: int) -> None:
    layout = Layout(OFFICIAL_SIZES[size].model(), gpus)
    tokens = layout.micro_batch * recipe.SEQ_LEN
    expected = training_bytes(layout.model, tokens, Execution(), "bf16", processes=layout.split)
    assert sum(layout.memory_parts.values()) == layout.memory == expected
    assert all(part >= 0 for part in layout.memory_parts.values())


def test_released_sizes_get_the_numbers_of_the_page() -> None:
    costs = recipe.cost_table().set_index("size")
    cases = {
        size: dict(zip(("layers", "width", "heads", "vocabulary"), shape, strict=True))
        | {"rows": 1024, "seqLen": 2048, "updates": 143_000, "gpus": 8, "precision": "bf16"}
        for size, shape in CONSTANTS["sizes"].items()
    }
    for size, x in cases.items():
        plan = browser.in_node(MODEL, "page.plan(c, x)", x=x, c=CONSTANTS)
        assert plan["all"] == costs.parameters[size] and plan["tokens"] == recipe.TOKENS
        assert plan["flop"] == pytest.approx(costs.flop_exact[size])
        assert plan["rule"] == pytest.approx(costs.flop_6nt[size])
        hours = recipe.estimates().set_index("size").h100_hours[size]
        assert plan["fixed"] * 8 / 3600 == pytest.approx(hours)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"heads": 7}, "7 heads do not divide a width of 512."),
        ({"gpus": 64, "rows": 100}, "64 GPUs cannot share 100 rows evenly."),
        ({"gpus": 64, "rows": 32}, "There are more GPUs than rows per update, 32."),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, int], problem: str) -> None:
    x = {"layers": 6, "width": 512, "heads": 8, "vocabulary": 50_304, "rows": 1024, "seqLen": 2048,
         "updates": 10, "gpus": 8, "precision": "bf16"} | changes  # fmt: skip
    plan = browser.in_node(MODEL, "page.plan(c, x)", x=x, c=CONSTANTS)
    assert plan["problem"] == problem and plan["all"] == 70_426_624


def test_the_address_restores_a_choice_and_nothing_else() -> None:
    code = """(() => {
      const all = [];
      for (const values of cases) {
        const state = page.initial(c);
        page.restore(c, state, values);
        const again = page.initial(c), kept = page.kept(c, state);
        const stored = Object.entries(kept).filter(([, value]) => value !== null);
        page.restore(c, again, Object.fromEntries(stored.map(([k, v]) => [k, String(v)])));
        all.push([state, again]);
      }
      return all;
    })()"""
    cases: list[dict[str, str]] = [
        {},
        {"size": "12b", "gpus": "64", "price": "2.5"},
        {"size": "own", "layers": "20", "width": "1280", "heads": "10"},
        {
            "size": "<b>",
            "layers": "x",
            "gpus": "3",
            "precision": "int4",
            "rows": "-5",
            "width": "1e99",
        },
    ]
    states = browser.in_node(SCRIPT, code, c=CONSTANTS, cases=cases)
    assert all(first == again for first, again in states)
    large, own, odd = (first for first, _ in states[1:])
    assert (large["width"], large["gpus"], large["price"]) == (5120, 64, 2.5)
    assert (own["size"], own["layers"], own["vocabulary"]) == ("own", 20, 50_304)
    assert (odd["layers"], odd["gpus"], odd["precision"], odd["rows"]) == (6, 8, "bf16", 1)


THEN = """
  const set = (name, value) => {
    const input = document.querySelector(`[data-set="${name}"]`);
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    return document.querySelector("output").textContent;
  };
  result.first = document.querySelector("output").textContent;
  result.large = set("size", "12b");
  result.own = set("layers", "35");
  result.size = document.querySelector("[data-set=size]").value;
  result.heads = set("heads", "7");
  result.back = set("size", "70m");
  result.price = set("price", "3") && document.querySelector("table").textContent;
  result.bars = document.querySelectorAll(".picture rect").length;
"""


@pytest.mark.slow
@browser.needed
def test_in_a_browser(tmp_path: Path) -> None:
    browser.assert_self_contained(MODEL, SCRIPT, STYLE)
    body = (
        f'<figure><div class="explorable recipe" data-recipe="calculator" '
        f'data-values="{html.escape(json.dumps(CONSTANTS))}"></div>'
        '<div class="pythia-figure"></div></figure>'
    )
    seen = browser.run_page((MODEL, SHARED, SCRIPT), STYLE, body, THEN, tmp_path)
    assert seen["first"] == seen["back"] and seen["first"].startswith("70,426,624 parameters: ")
    assert seen["large"].startswith("11,846,072,320 parameters: ")
    assert seen["own"].startswith("11,531,") and seen["size"] == "own"
    assert seen["heads"] == "7 heads do not divide a width of 5120."
    assert "at 3 per GPU-hour" in seen["price"] and seen["bars"] == 12
