"""The deduplication study: twins are compared item by item; claims come out both ways."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pythia_book import records
from pythia_book.published import results
from pythia_book.published.tables import MODELS
from pythia_book.studies.deduplication import figures
from pythia_book.studies.deduplication import study as deduplication
from pythia_book.studies.deduplication.claims import released_effects
from pythia_book.studies.deduplication.params import Params
from pythia_book.study import Measurements, name_of
from pythia_book.verdicts import judge

from pythia_core.errors import ConfigError
from pythia_core.suite import DATA_ARMS, scale_named

FOLDER = os.environ.get(results.VARIABLE, "")
SIZES = ("25k", "85k", "150k", "600k")
RECIPES = [[name, 100, tokens, 3, 2] for name, tokens in (
    ("none", 1000), ("exact", 700), ("jaccard-0.87", 620), ("eleutherai-0.87", 640))]  # fmt: skip

END, EPOCH, LOSS, WORDS, BETTER, LESS = "end", "epoch", "loss", "words", "better", "less"
CLAIMS = {END: "no clear benefit", EPOCH: "second epoch", LOSS: "higher held-out loss",
          WORDS: "last word", BETTER: "score higher", LESS: "memorize less"}  # fmt: skip
"""Name -> words of a claim; the first of several counts."""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sizes": "7m"}, "unknown size"),
        ({"bootstrap": 3}, "bootstrap must be"),
        ({"seed": "1"}, "seed must be"),
        ({"scale": 3}, "scale must be text"),
    ],
)
def test_bad_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Params(**params)


def measured(
    change: float = 0.0,
    skill: float = 0.0,
    words: float = 0.0,
    forgotten: int = 0,
    n: int = 400,
    standard_words: float = 0.08,
) -> Measurements:
    """Twins of four sizes at the end of training with planted effects of deduplication.

    `change` is of the loss. `skill` above guessing, `words` above `standard_words`, and the latter
    are shares. `forgotten` of 40 memorized texts are not memorized by the deduplicated models.
    """
    rng = np.random.default_rng(2)
    last, arrays = scale_named("laptop").steps, {}
    difficulty = rng.normal(5, 1, n)
    for size in SIZES:
        own = rng.normal(0, 0.01)
        for arm in DATA_ARMS:
            deduplicated = arm == "deduplicated"
            noise = rng.normal(0, 0.05, n)
            loss = difficulty + noise + deduplicated * (change + own)
            arrays[name_of("loss", size, arm, last)] = loss.astype(np.float32)
            right = rng.random(80 * n) < standard_words + deduplicated * words
            arrays[name_of("last_word", size, arm, last)] = right
            arrays[name_of("accuracy", size, arm, "piqa_0")] = rng.random(5 * n) < 0.5 + skill
            memorized = np.arange(100) < 40 - deduplicated * forgotten * (
                1 - SIZES.index(size) / 10
            )
            arrays[name_of("memorized", size, arm)] = memorized
    arrays |= {name_of("rows", arm): np.full(100, 3) for arm in DATA_ARMS}
    facts = {"recipes": RECIPES, "clusters": [["exact", 2, 3]], "tasks": {"piqa_0": ["piqa", 0]}}
    return Measurements(arrays, facts | {"gaps": 0})


def verdicts(found: Measurements, released: dict | None = None) -> dict[str, tuple]:
    """Name of a claim -> (verdict on released numbers, on ours)."""
    params = Params(sizes=",".join(SIZES), bootstrap=200)
    _, values, claims = deduplication.analyse(params, found, released or {})
    assert values["percent"] == pytest.approx(38)
    rows = {}
    for row in judge(claims):
        sides = (row[side] and row[side]["verdict"] for side in ("released", "ours"))
        (name,) = (name for name, words in CLAIMS.items() if words in row["claim"])
        rows.setdefault(name, tuple(sides))
    return rows


def test_our_claims_come_out_both_ways() -> None:
    harm = verdicts(measured(change=-0.2, forgotten=30))
    assert harm[LOSS] == (None, "reproduced")
    assert harm[WORDS] == (None, "reproduced")
    assert harm[LESS] == (None, "reproduced")
    assert verdicts(measured(change=0.2))[LOSS] == (None, "contradicted")
    assert verdicts(measured(words=0.03))[WORDS] == (None, "contradicted")
    few = measured(standard_words=0.02)
    assert verdicts(few)[WORDS] == (None, "not testable here")  # equal, but there is little to lose
    none = verdicts(measured())
    assert none[LOSS] == (None, "not resolved")
    assert none[LESS] == (None, "not testable here")  # no size differs


def test_models_that_guess_have_no_verdict_on_benchmarks() -> None:
    assert verdicts(measured())[BETTER] == ("not testable here", "not testable here")
    assert verdicts(measured(skill=0.2))[BETTER] == ("not testable here", "not resolved")


def test_one_size_and_none_have_no_verdict() -> None:
    found = measured(change=-0.2, forgotten=30)
    one = {k: v for k, v in found.arrays.items() if "25k" in k or k.startswith("rows")}
    for arrays in (one, {k: v for k, v in one.items() if k.startswith("rows")}):
        rows = verdicts(Measurements(arrays, found.facts))
        assert {verdict for sides in rows.values() for verdict in sides if verdict} == {
            "not testable here"
        }


def twins(benefit: float, later: float = 0.0, spread: float = 0.3) -> dict[str, pd.DataFrame]:
    """Released twins with a benefit in points, and another one from step 103,000 on."""
    rng = np.random.default_rng(0)
    rows = []
    for model in range(8):
        own = rng.normal(0, spread)
        for shots in (0, 5):
            for step in range(13_000, 143_001, 10_000):
                value = benefit + own + (later if step > 98_700 else 0) + rng.normal(0, 0.05)
                rows.append((MODELS[model], shots, step, value, 0.64))
    return {"twins": pd.DataFrame(rows, columns=["model", "shots", "step", "value", "stderr"])}


def test_released_claims_come_out_both_ways() -> None:
    none, small, large = (verdicts(measured(), twins(b)) for b in (-0.1, 0.5, 3.0))
    assert none[END][0] == "confirmed on released numbers"
    assert none[BETTER][0] == "not resolved"
    worse = verdicts(measured(), twins(-3.0))
    assert worse[END][0] == "confirmed on released numbers"  # worse models are no benefit either
    assert small[END][0] == "not resolved"  # the interval of items reaches beyond the margin
    little = verdicts(measured(), twins(0.3, spread=0.05))
    assert little[BETTER][0] == "not resolved"  # the errors of the items are too large
    assert verdicts(measured(), twins(1.2))[BETTER][0] == "confirmed on released numbers"
    assert large[BETTER][0] == "confirmed on released numbers"
    assert large[END][0] == "contradicted by released numbers"
    assert small[EPOCH][0] == "not testable here"


def test_notes_tell_the_interval_over_models_alone() -> None:
    params = Params(sizes=",".join(SIZES), bootstrap=200)

    for row in judge(deduplication.analyse(params, measured(), twins(0.5))[2])[:4]:
        note = row["released"]["note"]
        assert "chosen when the released numbers were known" in note
        assert "the interval over the models alone, for these items, is [0." in note
    nothing = judge(deduplication.analyse(params, measured(), {})[2])[0]["released"]["note"]
    assert "models alone" not in nothing


def test_effects_of_released_twins_by_hand() -> None:
    effects = released_effects(twins(0.5, 0.25, spread=0))
    assert effects["zero_end"].value == pytest.approx(0.75, abs=0.05)
    half = 2.364624 * 0.64 / 8**0.5  # of items: pairs differ by less
    assert effects["zero_end"].high - effects["zero_end"].value == pytest.approx(half)
    assert effects["second_epoch"].value == pytest.approx(-0.25, abs=0.03)
    average, alone = effects["average"], effects["average_models"]
    assert average.value == alone.value == pytest.approx(0.5 + 0.25 * 5 / 14, abs=0.03)
    assert average.high - average.value == pytest.approx(half)  # no item is averaged out
    values = twins(0.5, 0.25, spread=0)["twins"].groupby("model").value.mean()
    half = 2.364624 * values.std(ddof=1) / 8**0.5
    assert alone.high - alone.value == pytest.approx(half, rel=1e-5)
    assert set(released_effects({}).values()) == {None}


@pytest.mark.skipif(
    not (Path(FOLDER) / "evals_zero_shot.csv").is_file(),
    reason=f"{results.VARIABLE} names no folder with the tables",
)
def test_the_released_effects() -> None:
    released = deduplication.released(results.load(FOLDER))
    effects = {name: e.interval() for name, e in released_effects(released).items()}
    for name, expected in (
        ("zero_before", (0.70, 0.16, 1.23)), ("zero_end", (0.32, -0.21, 0.86)),
        ("average", (0.38, -0.15, 0.92)), ("average_models", (0.38, 0.17, 0.60)),
        ("zero_before_models", (0.70, 0.33, 1.06)), ("five_before_models", (0.50, 0.16, 0.84)),
        ("second_epoch", (0.12, -0.07, 0.30)),
    ):  # fmt: skip
        assert tuple(effects[name].values()) == pytest.approx(expected, abs=0.01)


@pytest.mark.wheels
def test_twins_are_compared_on_the_same_items(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    monkeypatch.setattr(records, "recorded_folder", lambda study: None)
    params = Params("smoke", bootstrap=200)
    result = deduplication.run(params, progress=False)
    recipes = result.tables["recipes"].set_index("recipe")
    assert recipes.tokens["none"] > recipes.tokens["exact"] > recipes.tokens["jaccard-0.87"]
    assert recipes.similar["exact"] == 0 < recipes.similar["jaccard-0.87"]
    clusters = result.tables["clusters"].groupby("recipe").documents.sum()
    assert set(clusters) == {recipes.documents["none"]}
    levels = result.tables["levels"].set_index(["size", "arm", "measure", "step"]).value
    for row in result.tables["effects"].itertuples(index=False):
        deduplicated, standard = (
            levels[row[0], arm, row.measure, row.step] for arm in ("deduplicated", "standard")
        )
        assert row.value == pytest.approx(deduplicated - standard, abs=1e-6)
    assert result.values["gaps"] == 0
    tasks = result.tables["tasks"].set_index(["size", "task", "shots"])
    zero_shot = [t for _, t, shots in tasks.index if shots == 0 and t != "mean"]
    assert zero_shot
    for size in params.size_list:
        of_size = tasks.loc[size].loc[[(t, 0) for t in dict.fromkeys(zero_shot)]]
        mean = (of_size.value * of_size.n).sum() / of_size.n.sum()
        assert tasks.value[size, "mean", 0] == pytest.approx(mean)
    for draw in (figures.released, figures.released_over_training):
        assert "no released numbers" in draw(result).svg
        assert "<svg" in draw(replace(result, released=twins(0.5))).svg
    for draw in (figures.over_training, figures.tasks, figures.remembered, figures.taken_away):
        assert "<svg" in draw(result).svg

    run = result.measured.runs[0]  # losing a checkpoint leaves the other results as they were
    shutil.rmtree(run.folder / "evaluations")
    shutil.rmtree(run.checkpoints / "step-000016")
    again = deduplication.run(params, progress=False)
    assert again.values["gaps"] == 3  # of language, of extraction, of the tasks
    lost = again.tables["effects"]
    assert set(lost[lost["size"] == "7k"].step) == set(lost[lost["size"] == "25k"].step) - {16}
    assert len(again.tables["memorized"]) == 3
