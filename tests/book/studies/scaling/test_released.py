"""Tests on released numbers: estimators without and with a planted effect, and verdicts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pythia_book.published import results
from pythia_book.published.means import mean_over_pairs
from pythia_book.published.scaling import COLUMNS, SMALL, released_tables
from pythia_book.published.tables import CHANCE, MODELS, SEVEN, TASKS, TOKENS_PER_STEP
from pythia_book.stats import mean_over, slope
from pythia_book.studies.scaling import released
from pythia_book.verdicts import judge

from pythia_core.suite import size_named

FOLDER = os.environ.get(results.VARIABLE, "")
N = [size_named(model).model().n_params_non_embedding for model in MODELS]
STEPS = (1000, 63_000, 73_000, 83_000, 123_000, 133_000, 143_000)


# --- estimators ------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_a_slope_is_seen_only_if_there_is_one(effect: float) -> None:
    rng = np.random.default_rng(1)
    x, seen = np.log10(N), 0
    for _ in range(300):
        e = slope(x, effect * x + rng.normal(0, 0.5, 8))
        seen += not e.low <= 0 <= e.high
    assert seen / 300 < 0.09 if not effect else seen / 300 > 0.95


@pytest.mark.parametrize(("effect", "shared"), [(0.0, 0.0), (0.0, 1.0), (5.0, 1.0)])
def test_pairs_that_share_items_give_no_false_effects(effect: float, shared: float) -> None:
    """The same luck with the items in every pair narrows a t-interval; ours has a floor."""
    rng = np.random.default_rng(2)
    seen = alone = 0
    for _ in range(400):
        luck = rng.normal(0, 1) * (0.2 * shared) ** 0.5
        noise = rng.normal(0, 1, 5) * (1 - 0.2 * shared) ** 0.5
        values = effect + (luck + noise * (0.3 if shared else 1))
        e = mean_over_pairs(values, np.ones(5))
        seen += not e.low <= 0 <= e.high
        t = mean_over(values)
        alone += not t.low <= 0 <= t.high
    assert seen <= alone
    assert seen / 400 < 0.08 if not effect else seen / 400 > 0.95


# --- made numbers ----------------------------------------------------------------------------


def made(**changes: Any) -> dict[str, pd.DataFrame]:
    """Released tables in which nothing differs but what is planted.

    slope: gain of accuracy per size. narrow, wide: late change of the models with fewer and more
    than 1,000 hidden dimensions. opt, bloom: lead of these models, the same on all tasks. batch:
    full minus small batches at the end, for the smallest of five sizes, shrinking to 0 at the
    largest. early, late: full minus small batches at all sizes before and after step 100,000. mmlu,
    mmlu_small: lead over guessing of the largest model and of the small ones. agreement: lead of
    agreement paradigms.
    """
    plant = dict.fromkeys(
        ("slope", "narrow", "wide", "opt", "bloom", "batch", "early", "late", "mmlu", "mmlu_small",
         "agreement"), 0.0
    ) | {"start": 0.5} | changes  # fmt: skip
    rng = np.random.default_rng(0)
    noise = lambda: rng.normal(0, 0.001)  # noqa: E731
    curves, final, batch = [], [], []
    for i, model in enumerate(MODELS):
        late = plant["narrow"] if model in released.NARROW else plant["wide"]
        for deduped in (False, True):
            for step in STEPS:
                level = plant["start"] + plant["slope"] * i + late * (step > 100_000)
                curves.append((model, deduped, step, *(level + noise() for _ in TASKS)))
            name = model + "-deduped" * deduped
            family = "pythia" + "-deduped" * deduped
            for task in TASKS:
                final.append((name, family, 1e9, task, plant["start"] + noise(), 0.005))
    for family, pairs in (("opt", released.OPT_PAIRS), ("bloom", released.BLOOM_PAIRS)):
        for twin in pairs.values():
            for task in TASKS:
                value = plant["start"] + plant[family] + noise()
                final.append((twin, family, 1e9, task, value, 0.005))
    for i, model in enumerate(MODELS[:5]):
        for step in STEPS:
            loss = plant["early"]
            if step > 100_000:
                loss = plant["late"] + plant["batch"] * (1 - i / 4)
            for tokens, value in ((2**19, 0.5), (TOKENS_PER_STEP, 0.5 + loss)):
                batch += [
                    (model, tokens, step * TOKENS_PER_STEP, task, value + noise(), 0.005)
                    for task in SEVEN
                ]
    levels = dict.fromkeys(MODELS, 0.25)
    levels |= {"12b": 0.25 + plant["mmlu"], "small": 0.25 + plant["mmlu_small"]}
    mmlu = [(model, 5, 143_000, x, x - 0.005, x + 0.005) for model, x in levels.items()]
    names = (*released.AGREEMENT, *released.SUBTLE)
    paradigms = [
        (name, f"{name} {k}", 0.7 + rng.normal(0, 0.05) + plant["agreement"] * (j < 3))
        for j, name in enumerate(names)
        for k in range(6)
    ]
    rows = {"curves": curves, "final": final, "batch": batch, "mmlu": mmlu, "paradigms": paradigms}
    return {name: pd.DataFrame(each, columns=COLUMNS[name]) for name, each in rows.items()}


def judged(tables: dict[str, pd.DataFrame]) -> dict[str, dict]:
    """The tests on released numbers by the text of their claim."""
    empty = {name: pd.DataFrame(columns=columns) for name, columns in COLUMNS.items()}
    given = empty | tables
    pairs, batch = released.pairs_table(given["final"]), released.batch_table(given["batch"])
    found = released.estimates(tables, pairs, batch)
    return {row["claim"]: row["released"] for row in judge(released.claims(found, pairs))}


def pick(rows: dict[str, dict], words: str) -> dict:
    """The only claim with these words."""
    found = {claim: row for claim, row in rows.items() if words in claim}
    assert len(found) == 1, (words, list(found))
    return next(iter(found.values()))


@pytest.mark.parametrize(
    ("words", "planted", "expected", "otherwise"),
    [
        ("fewer than 1,000", {"narrow": -0.05}, "confirmed on released numbers", {"narrow": 0.05}),
        ("at least 1,000", {"wide": 0.05}, "holds", {"wide": -0.05}),
        ("par with OPT at equal size.", {"opt": 0.002}, "confirmed on released numbers",
         {"opt": 0.05}),
        ("leaving out", {"opt": -0.005}, "holds", {"opt": -0.05}),
        ("similarly to Pythia.", {"bloom": 0.0}, "confirmed on released numbers", {"bloom": -0.05}),
        ("not call it worse", {"bloom": 0.0}, "confirmed on released numbers", {"bloom": -0.05}),
        ("BLOOM is worse than Pythia on LAMBADA", {"bloom": -0.05},
         "confirmed on released numbers", {"bloom": 0.05}),
        ("at most 1 point worse than Pythia on SciQ", {"bloom": 0.02},
         "confirmed on released numbers", {"bloom": -0.05}),
        ("In the first half", {}, "holds", {"early": -0.05}),
        ("At the end of training, runs", {}, "holds", {"late": -0.05}),
        ("The larger the", {"batch": -0.05}, "confirmed on released numbers", {"batch": 0.05}),
        ("at chance on MMLU", {}, "holds", {"mmlu_small": 0.05}),
        ("above chance on MMLU", {"mmlu": 0.05}, "holds", {"mmlu": -0.05}),
        ("higher on agreement", {"agreement": 0.2}, "confirmed on released numbers",
         {"agreement": -0.2}),
    ],
)  # fmt: skip
def test_a_planted_effect_decides(
    words: str, planted: dict, expected: str, otherwise: dict
) -> None:
    assert pick(judged(made(**planted)), words)["verdict"] == expected
    opposite = {"holds": "does not hold"}.get(expected, "contradicted by released numbers")
    assert pick(judged(made(**otherwise)), words)["verdict"] == opposite


def test_without_effects_nothing_is_claimed() -> None:
    rows = judged(made())
    for words in ("fewer than 1,000", "at least 1,000", "The larger the", "higher on agreement",
                  "BLOOM is worse than Pythia on LAMBADA", "above chance"):  # fmt: skip
        assert pick(rows, words)["verdict"] == "not resolved"
    assert pick(rows, "Parallel attention")["verdict"] == "not testable here"
    assert pick(rows, "With smaller batches")["verdict"] == "not testable here"
    assert pick(rows, "With smaller batches")["value"] is not None


def test_the_least_able_run_is_shown_but_does_not_decide_on_convergence() -> None:
    tables = made()
    final = tables["final"]
    diverged = final.name == f"{SMALL[1]}-deduped"
    final.loc[diverged, "value"] = final[diverged].task.map(CHANCE) / 100 - 0.02
    row = pick(judged(tables), "converge")
    assert row["verdict"] == "not testable here"
    assert row["value"] == pytest.approx(-2)


def test_what_lambada_decides_is_said() -> None:
    tables = made()
    final = tables["final"]
    lambada = final.family.eq("bloom") & final.task.eq("lambada_openai")
    final.loc[lambada, "value"] -= 0.35
    rows = judged(tables)
    row = pick(rows, "similarly to Pythia.")
    assert row["verdict"] == "contradicted by released numbers"
    assert "\N{MINUS SIGN}35.1 on LAMBADA" in row["note"]
    assert pick(rows, "not call it worse")["verdict"] == "confirmed on released numbers"


def test_opt_350m_can_decide_and_is_shown_apart() -> None:
    tables = made()
    final = tables["final"]
    final.loc[final.name == "opt-350m", "value"] -= 0.15
    rows = judged(tables)
    assert pick(rows, "par with OPT at equal size.")["verdict"] == "not resolved"
    assert pick(rows, "leaving out opt-350m")["verdict"] == "holds"
    assert "opt-350m +15.0" in pick(rows, "par with OPT at equal size.")["note"]


def test_missing_tables_are_said_to_be_missing() -> None:
    for tables in ({}, {"curves": made()["curves"]}):
        rows = judged(tables)
        for claim, row in rows.items():
            if tables and ("fewer" in claim or "at least 1,000" in claim):
                continue
            assert row["verdict"] == "not testable here"
            never = ("Parallel", "in parallel", "GPT-Neo")
            assert any(words in claim for words in never) != (
                "PYTHIA_PUBLISHED_DIR" in row["reason"]
            )
        assert len(rows) == 25


def test_incomplete_tables_are_no_crash() -> None:
    tables = made()
    batch, paradigms = tables["batch"], tables["paradigms"]
    tables["batch"] = batch[batch.task != "piqa"]
    tables["paradigms"] = paradigms[paradigms.phenomenon.isin(released.SUBTLE)]
    rows = judged(tables)
    for words in ("In the first half", "The larger the", "higher on agreement"):
        assert pick(rows, words)["verdict"] == "not testable here"
    assert pick(rows, "similarly to Pythia.")["units"] == "5 pairs of models"


def test_a_mean_needs_all_tasks() -> None:
    tables = made()
    final, batch = tables["final"], tables["batch"]
    final = final[~((final.name == "opt-1.3b") & (final.task == "piqa"))]
    pairs = released.pairs_table(final)
    assert "opt-1.3b" not in set(pairs[pairs.task == "mean"].twin)
    batch = batch[~((batch.model == "1b") & (batch.task == "piqa") & (batch.batch_tokens < 2**20))]
    table = released.batch_table(batch)
    assert "1b" not in set(table[table.task == "mean"].model)
    assert "1b" in set(table[table.task == "sciq"].model)


@pytest.mark.skipif(
    not (Path(FOLDER) / "evals_zero_shot.csv").is_file(),
    reason=f"{results.VARIABLE} names no folder with the tables",
)
def test_the_released_numbers() -> None:
    """Values checked by hand on the public files, and the verdicts that follow."""
    tables = released_tables(results.load(FOLDER))
    pairs, batch = released.pairs_table(tables["final"]), released.batch_table(tables["batch"])
    found = released.estimates(tables, pairs, batch)
    expected = {
        "narrow": -2.03,
        "wide": 1.52,
        "opt": 1.00,
        "opt_alike": 0.46,
        "bloom": -3.62,
        "bloom_five": -1.57,
        "bloom_arc_easy": -4.62,
        "bloom_wsc": -3.27,
        "batch_start": -2.23,
        "batch_first": -0.53,
        "batch_end": -1.31,
        "batch_late": -2.62,
        "batch_late_small": 0.80,
        "mmlu_large": 4.81,
        "blimp": 23.5,
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=0.05), name
    rows = judged(tables)
    lambada, piqa = (pick(rows, f"worse than Pythia on {task}") for task in ("LAMBADA", "PIQA"))
    assert lambada["verdict"] == "confirmed on released numbers"
    assert piqa["verdict"] == "not resolved" and "an effect of" in piqa["reason"]
    wsc = pick(rows, "worse than Pythia on WSC")
    assert wsc["verdict"] == "not resolved" and "an effect of 23 points" in wsc["reason"]
    assert pick(rows, "similarly to Pythia.")["verdict"] == "contradicted by released numbers"
    assert pick(rows, "not call it worse")["verdict"] == "not resolved"
    numbers = released.values(found, tables)
    assert (numbers["logiqa_acc_above"], numbers["logiqa_acc_norm_above"]) == (0, 6)
    assert [numbers[f"wsc_{name}"] for name in ("constant", "right", "items")] == [8, 38, 104]
    checkpoints = [numbers[f"released_{end}_checkpoints"] for end in ("fewest", "most")]
    assert checkpoints == [16, 26]
    assert numbers["mmlu_untrained"] == pytest.approx(22.3, abs=0.05)
