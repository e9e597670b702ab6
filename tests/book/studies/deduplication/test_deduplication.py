"""The deduplication study: twins are compared over seeds; claims come out both ways."""

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
from pythia_book.studies.deduplication.claims import least_equal, released_effects
from pythia_book.studies.deduplication.params import MARGIN, Params
from pythia_book.studies.deduplication.tables import (
    HELDOUT,
    HELDOUT_STANDARD,
    QUOTED,
    changes,
    memory,
    over_seeds,
)
from pythia_book.study import Measurements, name_of
from pythia_book.verdicts import judge, within

from pythia_core.errors import ConfigError
from pythia_core.suite import DATA_ARMS, SCALES, SUITE_SEED, scale_named

FOLDER = os.environ.get(results.VARIABLE, "")
SIZES = ("25k", "85k")
SEEDS = 6
PARAMS = Params(seeds=SEEDS, bootstrap=200)
RECIPES = [[name, 100, tokens, 3, 2] for name, tokens in (
    ("none", 1000), ("exact", 700), ("jaccard-0.87", 620), ("eleutherai-0.87", 640))]  # fmt: skip
SHARES = {"once": 0.3, "twice": 0.6, "more": 0.1}
SLICE = {"unread": 0.3, "once": 0.6, "twice": 0.06, "more": 0.04}

END, EPOCH, SAME, RAW, WORDS = "end", "epoch", "same", "raw", "words"
LESS, ONCE, HARM, BETTER, RECITE = "less", "once", "harm", "better", "recite"
CLAIMS = {END: "no clear benefit", EPOCH: "second epoch", SAME: "text of the deduplicated corpus",
          RAW: "slice of the standard corpus", WORDS: "last word", LESS: "occurs more than once",
          ONCE: "text that occurs once", HARM: "higher held-out loss",
          BETTER: "score higher", RECITE: "memorize less of it"}  # fmt: skip
"""Name -> words of a claim; the first of several counts."""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sizes": "7m"}, "unknown size"),
        ({"bootstrap": 3}, "bootstrap must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"scale": 3}, "scale must be text"),
    ],
)
def test_bad_parameters_are_refused(params: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Params(**params)


def test_the_twins_differ_from_the_suite_only_in_their_copies() -> None:
    for scale in ("smoke", "laptop", "gpu", "gpu-short"):
        params = Params(scale)
        suite = SCALES[scale].data.domains
        for (size, arm, seed), run in params.configs().items():
            assert size in params.size_list and run.train.weight_seed == seed
            assert {*run.data.domains} ^ {*suite} == {"copies", "copies_pile"}
            assert (run.data.epochs, run.train.steps) == (
                (2 if arm == "deduplicated" else 1),
                SCALES[scale].steps,
            )
        assert params.suite_sizes == SCALES[scale].sizes
    assert Params(sizes="7k").suite_sizes == ("7k",)


def measured(
    change: float = 0.0,
    remembered: dict[str, float] | None = None,
    heavy: float = 0.0,
    words: float = 0.0,
    opposite: float = 0.0,
    forgotten: int = 0,
    seed_sd: float = 0.01,
    seed: int = 0,
    n: int = 300,
) -> Measurements:
    """Twins with planted effects of deduplication.

    Args:
        change: of the loss on unread text.
        remembered: for each group, how much more of it deduplicated models have memorized.
        heavy: change of the suite's loss.
        words: change of the share of last words predicted.
        opposite: further change of the loss on unread text, of one sign at each of two sizes.
        forgotten: of 40 memorized texts, how many deduplicated models of the suite have not.
        seed_sd: standard deviation, over pairs of twins, of the change.
    """
    rng = np.random.default_rng([seed, 2])
    arrays: dict[str, np.ndarray] = {"unshared": np.arange(n) % 10 > 0}
    groups = {HELDOUT: 0.0, **dict.fromkeys(SHARES, 0.0), **(remembered or {})}
    difficulty = {group: rng.normal(5, 1, n) for group in groups}
    for size in SIZES:
        for one in range(SUITE_SEED, SUITE_SEED + SEEDS):
            own = change + (opposite if size == SIZES[0] else -opposite) + rng.normal(0, seed_sd)
            ease = rng.random(20 * n)
            for arm in DATA_ARMS:
                deduplicated = arm == "deduplicated"
                for group, more in groups.items():
                    loss = difficulty[group] + rng.normal(0, 0.02, n) + deduplicated * (own - more)
                    arrays[name_of(group, size, arm, one)] = loss.astype(np.float32)
                ease = np.where(rng.random(20 * n) < 0.1, rng.random(20 * n), ease)
                right = ease < 0.08 + deduplicated * words
                arrays[name_of("last_word", size, arm, one)] = right
                arrays[name_of("recited", size, arm, one)] = np.zeros(n, bool)
    for number, size in enumerate(SCALES["laptop"].sizes):
        own = rng.normal(0, 0.005)
        for arm in DATA_ARMS:
            deduplicated = arm == "deduplicated"
            loss = difficulty[HELDOUT] + rng.normal(0, 0.05, n) + deduplicated * (heavy + own)
            arrays[name_of("loss", size, arm)] = loss.astype(np.float32)
            known = np.arange(100) < 40 - deduplicated * forgotten * (1 - number / 10)
            arrays[name_of("memorized", size, arm)] = known
    for arm in DATA_ARMS:
        arrays[name_of("rows", arm)], arrays[name_of("unit", arm)] = np.full(100, 3), np.arange(100)
    clusters = [["jaccard-0.87", 1, 50], ["jaccard-0.87", 2, 25]]
    facts = {"recipes": RECIPES, "clusters": clusters, "suite_recipes": RECIPES,
             "suite_clusters": clusters, "shares": SHARES, "slice_shares": SLICE,
             "epochs": {"standard": 0.9, "deduplicated": 1.5}, "gaps": 0}  # fmt: skip
    return Measurements(arrays, facts)


def verdicts(
    found: Measurements, released: dict | None = None, params: Params = PARAMS
) -> dict[str, tuple]:
    """Name of a claim -> (verdict on released numbers, on ours)."""
    _, values, claims = deduplication.analyze(params, found, released or {})
    assert values["percent"] == values["percent_as_in_the_pile"] == pytest.approx(38)
    rows = {}
    for row in judge(claims):
        sides = (row[side] and row[side]["verdict"] for side in ("released", "ours"))
        (name,) = (name for name, words in CLAIMS.items() if words in row["claim"])
        rows.setdefault(name, tuple(sides))
    assert set(rows) == set(CLAIMS)
    return rows


# --- estimators ------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [0.0, 0.03])
def test_changes_over_seeds_are_recovered_with_their_intervals(truth: float) -> None:
    inside = [
        e.low <= truth <= e.high
        for seed in range(200)
        if (e := over_seeds(changes(PARAMS, measured(truth, seed=seed, n=40), HELDOUT)))
    ]
    assert len(inside) == 200 and 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize(
    ("change", "opposite", "verdict", "low", "high"),
    [
        (0.0, 0.0, "reproduced", 0.95, 1.0),
        (MARGIN, 0.0, "reproduced", 0.0, 0.06),
        (0.0, MARGIN, "reproduced", 0.0, 0.06),  # the mean over sizes is 0
        (0.0, MARGIN, "contradicted", 0.0, 0.06),
        (MARGIN, 0.0, "contradicted", 0.0, 0.06),
        (0.0, 0.12, "contradicted", 0.95, 1.0),
        (0.06, 0.06, "contradicted", 0.95, 1.0),  # one of two sizes
    ],
)
def test_equivalence_holds_at_every_size_or_not_at_all(
    change: float, opposite: float, verdict: str, low: float, high: float
) -> None:
    """Without an effect nearly always; with the margin at one size at most in 1 of 20 cases."""
    verdicts = []
    for seed in range(200):
        found = changes(PARAMS, measured(change, opposite=opposite, seed=seed, n=40), HELDOUT)
        worst = least_equal(found, MARGIN)
        assert worst is not None
        (row,) = judge([_claim(within(worst[1], "nats", "seeds", MARGIN))])
        verdicts.append(row["ours"]["verdict"])
    assert low <= np.mean([v == verdict for v in verdicts]) <= high


def test_the_least_equal_size_is_shown_with_the_mean_beside_it() -> None:
    claims = judge(deduplication.analyze(PARAMS, measured(0.01, opposite=0.02), {})[2])
    (row,) = (row["ours"] for row in claims if CLAIMS[SAME] in row["claim"])
    assert row["value"] == pytest.approx(0.03, abs=0.015) and row["units"] == "6 seeds, 25k"
    assert "the mean over sizes is 0.0" in row["note"] and "smallest margin" in row["note"]
    assert least_equal(np.full((2, 2), np.nan), MARGIN) is None


def _claim(test):
    from pythia_book.verdicts import Claim

    return Claim("Twins are equal.", "nowhere", ours=test)


def test_a_held_out_slice_of_the_standard_text_weighs_what_was_read() -> None:
    found = measured(0.01, {"once": 0.04, "twice": -0.03, "more": -0.2}, seed_sd=0)
    raw = over_seeds(changes(PARAMS, found, HELDOUT_STANDARD))
    expected = 0.01 - (0.6 * 0.04 - 0.06 * 0.03 - 0.04 * 0.2)
    assert raw is not None and raw.value == pytest.approx(expected, abs=0.002)
    same = over_seeds(changes(PARAMS, measured(0.01, seed_sd=0), HELDOUT_STANDARD))
    assert same is not None and same.value == pytest.approx(0.01, abs=0.002), "read or not"
    part = over_seeds(changes(PARAMS, found, "unshared"))
    assert part is not None and part.value == pytest.approx(0.01, abs=0.002)


def test_what_is_memorized_does_not_depend_on_how_easy_the_text_is() -> None:
    found = measured(0.02, {"twice": -0.03, "more": -0.2}, seed_sd=0.05)
    planted = {"once": 0.0, "twice": -0.03, "more": -0.2, "repeated": -0.0543}
    planted["standard text"] = -0.038
    for group, truth in planted.items():
        e = over_seeds(memory(PARAMS, found, group))
        assert e is not None and e.low <= truth <= e.high
        assert e.high - e.low < 0.01, "what a pair has in common cancels"
    covered = [
        e.low <= 0 <= e.high
        for seed in range(200)
        if (e := over_seeds(memory(PARAMS, measured(seed=seed, n=40), "repeated")))
    ]
    assert 0.90 <= np.mean(covered) <= 0.99


def test_a_seed_with_a_missing_size_is_left_out() -> None:
    values = np.array([[0.1, 0.3], [0.2, np.nan], [0.3, 0.5]])
    e = over_seeds(values)
    assert e is not None and e.n_seeds == 2 and e.value == pytest.approx(0.3)
    assert over_seeds(np.full((2, 2), np.nan)) is None


# --- claims ----------------------------------------------------------------------------------


def test_our_claims_come_out_both_ways() -> None:
    null = verdicts(measured())
    assert null[SAME] == null[WORDS] == (None, "reproduced")
    assert null[LESS] == null[ONCE] == (None, "not resolved")
    assert null[RAW] == null[RECITE] == null[HARM] == (None, "not testable here")
    found = measured(-0.2, {"once": 0.05, "twice": -0.05, "more": -0.2}, -0.2, 0.03, 30)
    effect = verdicts(found)
    assert effect[SAME] == effect[WORDS] == (None, "contradicted")
    assert effect[RAW] == effect[RECITE] == effect[HARM] == (None, "not testable here")
    assert effect[LESS] == effect[ONCE] == (None, "holds")
    other = verdicts(measured(0.2, {"once": -0.05, "twice": 0.05}, 0.2))
    assert other[LESS] == other[ONCE] == (None, "does not hold")


def test_one_seed_has_no_verdict() -> None:
    rows = verdicts(measured(-0.2), params=Params(seeds=1, bootstrap=200))
    assert {rows[name][1] for name in (SAME, RAW, WORDS, LESS, ONCE)} == {"not testable here"}


def test_without_twins_nothing_has_a_verdict() -> None:
    found = measured()
    kept = ("rows", "unit", "unshared")
    arrays = {k: v for k, v in found.arrays.items() if k.startswith(kept)}
    rows = verdicts(Measurements(arrays, found.facts))
    assert {v for sides in rows.values() for v in sides if v} == {"not testable here"}


def test_rows_of_one_planted_text_are_one_unit() -> None:
    """If ten planted texts have all memorized rows, the interval is that of ten texts."""
    shares = {}
    for n_planted in (0, 10):
        found = measured()
        unit = np.where(np.arange(100) < 40, np.arange(100) % (n_planted or 100), np.arange(100))
        found.arrays[name_of("unit", "standard")] = unit
        _, values, _ = deduplication.analyze(PARAMS, found, {})
        shares[n_planted] = values["memorized_standard_percent"]
    assert shares[0]["value"] == shares[10]["value"] == 40
    rows, texts = (each["high"] - each["low"] for each in shares.values())
    assert texts > 1.5 * rows
    none = np.zeros(100, bool)
    found.arrays[name_of("memorized", PARAMS.suite_sizes[-1], "standard")] = none
    _, values, _ = deduplication.analyze(PARAMS, found, {})
    share = values["memorized_standard_percent"]
    assert (share["value"], share["low"]) == (0, 0)
    assert share["high"] == pytest.approx(100 * (1 - 0.025 ** (1 / 70)))  # 10 planted, 60 others


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
    for row in judge(deduplication.analyze(PARAMS, measured(), twins(0.5))[2])[:4]:
        note = row["released"]["note"]
        assert "chosen when the released numbers were known" in note
        assert "the interval over the models alone, for these items, is [0." in note
    nothing = judge(deduplication.analyze(PARAMS, measured(), {})[2])[0]["released"]["note"]
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
def test_twins_are_compared_on_the_same_rows(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    monkeypatch.setattr(records, "recorded_folder", lambda study: None)
    params = Params("smoke", seeds=2, bootstrap=200)
    result = deduplication.run(params, progress=False)
    recipes = result.tables["recipes"].set_index("recipe")
    assert recipes.tokens["none"] > recipes.tokens["exact"] >= recipes.tokens["jaccard-0.87"]
    repetition = result.tables["repetition"].set_index("text")
    assert repetition.most["heavily repeated"] == 128
    assert repetition.per_cluster["copies as in the Pile"] < 2.5
    copied = repetition.copied["copies as in the Pile"]
    assert 0 < result.values["copied_percent_identical"] <= copied, "near-duplicates add to them"
    n = {(row.measure, row.size): row.n for row in result.tables["changes"].itertuples()}
    assert n[HELDOUT, "all"] == n[HELDOUT_STANDARD, "25k"] == params.seeds
    assert sum(result.measured.facts["slice_shares"].values()) == pytest.approx(1)
    for row in result.tables["effects"].itertuples():
        standard, deduplicated = (result.measured.get("loss", row.size, arm) for arm in DATA_ARMS)
        expected = deduplicated.mean(dtype=float) - standard.mean(dtype=float)
        assert row.value == pytest.approx(expected, abs=1e-6)
    assert set(QUOTED) - set(result.values) <= {"changes_more", "memory_more"}, "no such text here"
    assert result.values["gaps"] == 0
    for draw in (figures.released, figures.released_over_training):
        assert "no released numbers" in draw(result).svg
        assert "<svg" in draw(replace(result, released=twins(0.5))).svg
    for draw in (figures.answer, figures.memory, figures.remembered, figures.taken_away):
        assert "<svg" in draw(result).svg
    assert "128" in str(figures.repetition_table(result).frame)
    rows, unit = (result.measured.get(name, "standard") for name in ("rows", "unit"))
    assert len(np.unique(unit)) < len(unit) == len(rows), "planted texts have several rows"

    run = result.measured.runs[0]  # losing a checkpoint leaves the other results as they were
    shutil.rmtree(run.folder / "evaluations")
    shutil.rmtree(run.checkpoints / f"step-{scale_named('smoke').steps:06d}")
    again = deduplication.run(params, progress=False)
    assert again.values["gaps"] == 1
    lost = again.tables["changes"].set_index(["measure", "size"]).n
    assert lost[HELDOUT, "7k"] == lost[HELDOUT, "all"] == 1 < lost[HELDOUT, "25k"] == 2
