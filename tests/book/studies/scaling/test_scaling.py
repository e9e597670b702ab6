"""The scaling study: parameters, claims, gaps, and a run at smoke scale."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pythia_book.studies.scaling import claims as scaling_claims
from pythia_book.studies.scaling import figures
from pythia_book.studies.scaling import study as scaling
from pythia_book.studies.scaling.study import Params
from pythia_book.tasks.benchmarks import TASKS

from pythia_core.errors import ConfigError

DRAWINGS = (figures.tasks_by_size, figures.losses, figures.optimal_sizes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tasks": "piqa,arc"}, "unknown task 'arc'; accepted: .*arc_easy"),
        ({"sizes": "7m"}, "unknown size"),
        ({"shots": "0,two"}, "shots='0,two'"),
        ({"shots": "17"}, "0..16"),
        ({"limit": 0}, "limit must be"),
        ({"bootstrap": 3}, "bootstrap must be"),
        ({"scale": 3}, "scale must be text"),
        ({"limit": 1, "seed": -1}, "2 problems"),
    ],
)
def test_bad_parameters_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Params(**given)


def test_defaults() -> None:
    params = Params()
    assert params.task_list == tuple(TASKS)
    assert params.shot_list == (0, 1)
    assert len(params.size_list) == 8
    assert Params(tasks=" sciq, piqa ,sciq", shots="5,0").task_list == ("sciq", "piqa")


# --- claims ----------------------------------------------------------------------------------

EMPTY = {
    "prediction": pd.DataFrame(columns=["size", "value", "low", "high"]),
    "optimal": pd.DataFrame(columns=["kind", "n_params", "low", "high"]),
    "agreement": pd.DataFrame(columns=["items", "differing"]),
}


def claims(finals: dict, tables: dict | None = None, words: dict | None = None) -> dict[str, dict]:
    params = Params(sizes="7k,600k", tasks="piqa", bootstrap=300)
    rows = scaling_claims.claims(params, finals, EMPTY | (tables or {}), words or {})
    return {claim["claim"]: claim for claim in rows}


def pick(found: dict[str, dict], word: str) -> dict:
    (one,) = [claim for name, claim in found.items() if word in name]
    return one


def hits(p: float, n: int = 300, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < p


def test_a_rise_counts_only_where_the_largest_beats_guessing() -> None:
    def finals(small: float, large: float) -> dict:
        return {("7k", "standard", "piqa_0"): hits(small),
                ("600k", "standard", "piqa_0"): hits(large, seed=1)}  # fmt: skip

    assert pick(claims(finals(0.5, 0.7)), "rises")["verdict"] == "reproduced"
    assert pick(claims(finals(0.75, 0.6)), "rises")["verdict"] == "not reproduced"
    chance = pick(
        claims(finals(0.3, 0.5)), "rises"
    )  # a rise to the level of guessing does not count
    assert chance["verdict"] == "not testable here"
    assert chance["low"] > 0
    able = hits(0.7)
    same = {("7k", "standard", "piqa_0"): able, ("600k", "standard", "piqa_0"): able.copy()}
    assert pick(claims(same), "rises")["verdict"] == "no effect"
    assert pick(claims({}), "rises")["ours"] is None


def test_pairing_is_refused_where_items_differ() -> None:
    finals = {
        ("7k", "standard", "piqa_0"): hits(0.5),
        ("600k", "standard", "piqa_0"): hits(0.9, 299),
    }
    assert pick(claims(finals), "rises")["verdict"] == "not testable here"


def test_examples_help_if_accuracy_rises() -> None:
    zero = hits(0.5)
    more = zero | hits(0.2, seed=2)
    finals = {("600k", "standard", "piqa_0"): zero, ("600k", "standard", "piqa_1"): more}
    found = pick(claims(finals), "Solved examples")
    assert found["verdict"] == "reproduced"
    assert found["ours"] == pytest.approx(100 * (more.mean() - zero.mean()))
    assert pick(claims({}), "Solved examples")["verdict"] == "not testable here"


def test_choosing_the_best_of_many_steps_shows_no_decline() -> None:
    rng = np.random.default_rng(0)
    drawn = sorted((rng.random(400) < 0.3 for _ in range(16)), key=np.mean)
    flat = dict(enumerate([*drawn[:7], *drawn[8:], drawn[7]]))  # the median comes last
    best = max(values.mean() for values in flat.values())
    assert flat[15].mean() - best < -0.02  # the bias that must be avoided
    assert pick(claims({}, words=flat), "late in training")["verdict"] == "no effect"
    falling = {step: hits(0.4, 400, 9) for step in range(8)}
    falling |= {step: hits(0.4, 400, 9) & hits(0.5, 400, 8) for step in range(8, 16)}
    assert pick(claims({}, words=falling), "late in training")["verdict"] == "holds"
    poor = {step: hits(0.01, 400) for step in range(4)}
    assert pick(claims({}, words=poor), "late in training")["verdict"] == "not testable here"
    nothing = {step: np.zeros(9, bool) for step in range(4)}
    assert pick(claims({}, words=nothing), "late in training")["ours"] is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-1, 1.5, "holds"), (2.5, 4, "does not hold"), (-5, -3, "does not hold"),
     (1, 3, "not testable here")],
)  # fmt: skip
def test_a_prediction_is_close_or_not(low: float, high: float, verdict: str) -> None:
    table = pd.DataFrame([("600k", (low + high) / 2, low, high)],
                         columns=["size", "value", "low", "high"])  # fmt: skip
    assert pick(claims({}, {"prediction": table}), "predicts the loss")["verdict"] == verdict


def test_one_differing_item_is_a_disagreement() -> None:
    table = pd.DataFrame([(100, 0), (100, 1)], columns=["items", "differing"])
    found = pick(claims({}, {"agreement": table}), "harness agree")
    assert (found["ours"], found["verdict"]) == ("1 of 200 differ", "does not hold")


# --- the whole -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_RESULTS", str(folder))
        patch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
        params = Params("smoke", limit=20, bootstrap=200)
        result = scaling.run(params, progress=False)
        again = scaling.run(params, progress=False)
        first = result.runs[0]  # of the smaller size, on the standard text
        shutil.rmtree(first.folder / "evaluations")
        shutil.rmtree(first.checkpoints / "step-000016")
        lost = scaling.run(params, progress=False)
    return SimpleNamespace(params=params, result=result, again=again, lost=lost)


@pytest.mark.wheels
@pytest.mark.slow
def test_tasks_that_do_not_fit_are_gaps_and_others_have_intervals(runs) -> None:
    accuracy = runs.result.tables["accuracy"]
    assert set(accuracy.task) == set(TASKS)
    gaps = accuracy[accuracy.status != "scored"]
    assert (gaps.fits < scaling.MIN_FITTING).all()
    assert gaps.value.isna().all()
    assert {"lambada_openai", "hellaswag"} <= set(gaps.task)
    scored = accuracy[accuracy.status == "scored"]
    assert {"piqa", "winogrande"} <= set(scored.task)
    assert (scored.low <= scored.value).all() and (scored.value <= scored.high).all()
    assert (accuracy.percent == 100).sum() == 2 * 2 * 7 * 2 * 2  # sizes, texts, tasks, shots, acc
    early = accuracy[accuracy.percent < 100]
    assert set(early.arm) == {"standard"} and set(early.shots) == {0}
    assert runs.result.tables["laws"].empty  # two sizes
    unset = [claim["published"] for claim in runs.result.claims[:6]]
    assert all("PYTHIA_PUBLISHED_DIR" in text for text in unset)


@pytest.mark.wheels
@pytest.mark.slow
def test_the_harness_agrees_on_every_item(runs) -> None:
    pytest.importorskip("lm_eval", reason="the evaluation harness is not installed: .[eval]")
    agreement, accuracy = (runs.result.tables[name] for name in ("agreement", "accuracy"))
    final = accuracy[(accuracy.percent == 100) & (accuracy.status == "scored")]
    cells = set(zip(final.task, final.shots, strict=True))
    assert cells <= set(zip(agreement.task, agreement.shots, strict=True))
    assert agreement.differing.sum() == 0
    assert runs.result.values["n_agreement"] == agreement["items"].sum() >= 18 * len(cells)


@pytest.mark.wheels
@pytest.mark.slow
def test_tables_and_drawings_are_reproducible(runs) -> None:
    for name, table in runs.result.tables.items():
        pd.testing.assert_frame_equal(table, runs.again.tables[name])
    for draw in DRAWINGS:
        drawn = draw(runs.result)
        assert drawn.svg == draw(runs.again).svg
        assert drawn.description
    assert "do not" in figures.tasks_by_size(runs.result).svg  # a gap is marked
    assert "<table" in figures.laws_table(runs.result)._repr_html_()


@pytest.mark.wheels
@pytest.mark.slow
def test_a_lost_checkpoint_is_a_gap_not_a_crash(runs) -> None:
    assert runs.result.values["gaps"] == 0
    assert runs.lost.values["gaps"] == 2  # one for the tasks, one for held-out text
    accuracy = runs.lost.tables["accuracy"]
    cells = accuracy[(accuracy["size"] == "7k") & (accuracy.arm == "standard")
                     & (accuracy.percent == 100)]  # fmt: skip
    assert set(cells.status) == {"lost"}
    assert (accuracy[accuracy["size"] == "25k"].status != "lost").all()
    for draw in DRAWINGS:
        assert draw(runs.lost).svg
    assert len(runs.lost.claims) == len(runs.result.claims)
