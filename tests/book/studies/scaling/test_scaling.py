"""The scaling study: parameters, verdicts on our models, gaps, redraw, and a run at smoke."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pythia_book import records
from pythia_book.published.scaling import COLUMNS
from pythia_book.studies.scaling import claims as scaling_claims
from pythia_book.studies.scaling import figures, released
from pythia_book.studies.scaling import laws as scaling_laws
from pythia_book.studies.scaling import study as scaling
from pythia_book.studies.scaling.study import Params
from pythia_book.study import Measurements
from pythia_book.tasks.arithmetic import questions
from pythia_book.tasks.benchmarks import TASKS
from pythia_book.tasks.metrics import MIN_FITTING
from pythia_book.verdicts import judge

from pythia_core.errors import ConfigError
from pythia_core.training.schedule import checkpoint_steps

DRAWINGS = (
    figures.tasks_by_size,
    figures.over_training,
    figures.losses,
    figures.optimal_sizes,
    figures.sums_over_training,
    figures.through_the_metric,
    figures.released_sums,
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tasks": "piqa,arc"}, "unknown task 'arc'; accepted: .*arc_easy"),
        ({"sizes": "7m"}, "unknown size"),
        ({"shots": "0,two"}, "shots must be a comma-separated list of numbers in 0..16.*'0,two'"),
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
    assert Params(tasks=" sciq, piqa ", shots="5,0").task_list == ("sciq", "piqa")


# --- claims ----------------------------------------------------------------------------------

SIZES = ("7k", "13k", "25k", "38k", "85k", "150k", "310k", "600k")
N = [6_592, 13_152, 25_472, 38_176, 84_912, 150_080, 311_520, 608_160]


def measured(accuracy: list[float], tasks: tuple[str, ...] = ("piqa", "sciq")) -> Measurements:
    """Made-up final answers of eight sizes on both texts, zero-shot."""
    rng = np.random.default_rng(0)
    arrays = {
        f"hits/{size}/{arm}/572/{task}/0": rng.random(300) < p
        for size, p in zip(SIZES, accuracy, strict=True)
        for arm in ("standard", "deduplicated")
        for task in tasks
    }
    return Measurements(arrays, {"steps": 572, "n_params": dict(zip(SIZES, N, strict=True))})


def predictions(floor: float, noise: float = 0.0) -> pd.DataFrame:
    """The rules' predictions of losses made by a power law with this floor."""
    rng = np.random.default_rng(1)
    loss = floor + 40 * np.array(N) ** -0.35 + rng.normal(0, noise, 8)
    frame = {"size": SIZES, "n_params": N, "value": loss}
    return scaling_laws.predictions(pd.DataFrame(frame))


def judged(
    given: Measurements, prediction: pd.DataFrame | None = None, agreement: tuple = ()
) -> dict[str, dict]:
    params = Params(tasks="piqa,sciq", bootstrap=300)
    tables = {
        "prediction": predictions(4.0) if prediction is None else prediction,
        "agreement": pd.DataFrame(agreement, columns=["items", "differing"]),
    }
    found = dict.fromkeys((*released.estimates({}, *EMPTY), "size"))
    made = scaling_claims.claims(params, given, tables, found, EMPTY[0])
    return {row["claim"]: row for row in judge(made)}


EMPTY = (
    released.pairs_table(pd.DataFrame(columns=COLUMNS["final"])),
    released.batch_table(pd.DataFrame(columns=COLUMNS["batch"])),
)
LEVEL = [0.5] * 8


def test_a_rise_counts_only_where_the_largest_beats_guessing() -> None:
    def rise(accuracy: list[float]) -> dict:
        return judged(measured(accuracy))["Accuracy rises with size."]["ours"]

    assert rise(list(np.linspace(0.5, 0.8, 8)))["verdict"] == "reproduced"
    assert rise(list(np.linspace(0.9, 0.6, 8)))["verdict"] == "contradicted"
    assert rise([0.7, 0.72, 0.68, 0.7, 0.71, 0.69, 0.7, 0.7])["verdict"] == "not resolved"
    chance = rise(list(np.linspace(0.1, 0.375, 8)))  # a rise to guessing is none: 50 and 25 %
    assert chance["verdict"] == "not testable here"
    assert "the largest model guesses" in chance["reason"]


def test_a_size_without_scores_leaves_too_few() -> None:
    given = measured(LEVEL)
    for size in SIZES[2:]:
        del given.arrays[f"hits/{size}/standard/572/piqa/0"]
        del given.arrays[f"hits/{size}/deduplicated/572/piqa/0"]
    rise = judged(given)["Accuracy rises with size."]["ours"]
    assert rise["reason"] == "fewer than three sizes were scored on every task"


def pick(rows: dict[str, dict], words: str) -> dict:
    (one,) = [row["ours"] for claim, row in rows.items() if words in claim]
    return one


def test_the_law_must_beat_simpler_rules() -> None:
    found = pick(judged(measured(LEVEL), predictions(4.0)), "power law with a floor")
    assert found["verdict"] == "holds"
    assert found["low"] > 0.5
    # without a floor the simpler law is as good, and the law follows noise
    found = pick(judged(measured(LEVEL), predictions(0.0, noise=0.02)), "power law with a floor")
    assert found["verdict"] != "holds"
    none = scaling_laws.predictions(pd.DataFrame({"size": [], "n_params": [], "value": []}))
    found = pick(judged(measured(LEVEL), none), "power law with a floor")
    assert found["verdict"] == "not testable here"


def test_one_differing_item_is_a_disagreement() -> None:
    found = pick(judged(measured(LEVEL), agreement=((100, 0), (100, 1))), "agree on every item")
    assert (found["note"], found["verdict"]) == ("1 of 200 items differ", "does not hold")
    found = pick(judged(measured(LEVEL), agreement=((100, 0),)), "agree on every item")
    assert found["verdict"] == "holds"


# --- a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHIA_RESULTS", str(folder))
        patch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
        patch.setattr(records, "recorded_folder", lambda study: None)
        params = Params("smoke", limit=20, bootstrap=200)
        result = scaling.run(params, progress=False)
        again = scaling.run(params, progress=False)
        patch.setenv(records.REDRAW_FROM, str(records.save_record(result, folder / "one").parent))
        redrawn = scaling.run(params, progress=False)
        patch.delenv(records.REDRAW_FROM)
        first = result.measured.runs[0]  # of the smaller size, on the standard text
        shutil.rmtree(first.folder / "evaluations")
        shutil.rmtree(first.checkpoints / "step-000016")
        lost = scaling.run(params, progress=False)
    return SimpleNamespace(result=result, again=again, redrawn=redrawn, lost=lost)


@pytest.mark.wheels
@pytest.mark.slow
def test_tasks_that_do_not_fit_are_gaps_and_others_have_intervals(runs) -> None:
    accuracy = runs.result.tables["accuracy"]
    assert set(accuracy.task) == set(TASKS)
    gaps = accuracy[accuracy.status != "scored"]
    assert (gaps.fits < MIN_FITTING).all()
    assert gaps.value.isna().all()
    assert {"lambada_openai", "hellaswag"} <= set(gaps.task)
    scored = accuracy[accuracy.status == "scored"]
    assert {"piqa", "winogrande"} <= set(scored.task)
    assert (scored.low <= scored.value).all() and (scored.value <= scored.high).all()
    assert (accuracy.percent == 100).sum() == 2 * 2 * 7 * 2  # sizes, texts, tasks, shots
    early = accuracy[accuracy.percent < 100]
    assert set(early.arm) == {"standard"} and set(early.shots) == {0}
    assert runs.result.tables["laws"].empty  # two sizes
    unset = [row["released"] for row in runs.result.claims if row["released"]]
    assert {row["verdict"] for row in unset} == {"not testable here"}
    assert "PYTHIA_PUBLISHED_DIR" in unset[0]["reason"]


@pytest.mark.wheels
@pytest.mark.slow
def test_the_harness_agrees_on_every_item(runs) -> None:
    pytest.importorskip("lm_eval", reason="the evaluation harness is not installed: .[eval]")
    agreement, accuracy = (runs.result.tables[name] for name in ("agreement", "accuracy"))
    final = accuracy[(accuracy.percent == 100) & (accuracy.status == "scored")]
    cells = set(zip(final.task, final.shots, strict=True))
    assert cells <= set(zip(agreement.task, agreement.shots, strict=True))
    assert agreement.differing.sum() == 0
    assert agreement["items"].sum() >= 18 * len(cells)


@pytest.mark.wheels
@pytest.mark.slow
def test_tables_and_drawings_are_reproducible(runs) -> None:
    for name, table in runs.result.tables.items():
        pd.testing.assert_frame_equal(table, runs.again.tables[name])
        pd.testing.assert_frame_equal(table, runs.redrawn.tables[name])
    assert runs.result.claims == runs.again.claims == runs.redrawn.claims
    assert runs.result.values == runs.redrawn.values
    assert not runs.redrawn.measured.runs
    for draw in DRAWINGS:
        drawn = draw(runs.result)
        assert drawn.svg == draw(runs.again).svg
        assert drawn.description
    assert "do not" in figures.tasks_by_size(runs.result).svg  # a gap is marked
    assert "<table" in figures.sums_table(runs.result)._repr_html_()


@pytest.mark.wheels
@pytest.mark.slow
def test_every_checkpoint_is_asked_the_sums_that_were_never_planted(runs) -> None:
    arrays, asked = runs.result.measured.arrays, [q for q in questions() if q.held_out]
    assert runs.result.values["sums_asked"] == len(asked)
    for size in ("7k", "25k"):
        steps = arrays[f"sums/steps/{size}/standard"]
        assert list(steps) == list(checkpoint_steps(16))
        assert list(arrays[f"sums/steps/{size}/deduplicated"]) == list(steps)
        for measure in ("choice", "exact"):
            right = arrays[f"sums/{measure}/{size}/standard"]
            assert right.shape == (17, 100) and (right <= arrays["sums/count"]).all()
        assert (arrays[f"sums/logprob/{size}/standard"] < 0).all()
        expected = arrays[f"sums/product/{size}/standard"]
        assert expected.shape == (17, 100) and (expected <= 1).all()
    sums = runs.result.tables["sums"]
    untrained = sums[sums.step == 0]
    assert untrained.choice.between(0.15, 0.35).all() and (untrained.exact == 0).all()
    assert (untrained.logprob < sums[sums.step == 16].logprob.to_numpy()).all()
    lost = runs.lost.measured.arrays["sums/steps/7k/standard"]
    assert list(lost) == list(range(16))


@pytest.mark.wheels
@pytest.mark.slow
def test_a_lost_checkpoint_is_a_gap_not_a_crash(runs) -> None:
    assert runs.result.values["gaps"] == 0
    assert runs.lost.values["gaps"] == 3  # tasks, held-out text and sums
    accuracy = runs.lost.tables["accuracy"]
    cells = accuracy[(accuracy["size"] == "7k") & (accuracy.arm == "standard")
                     & (accuracy.percent == 100)]  # fmt: skip
    assert set(cells[cells.fits >= MIN_FITTING].status) == {"lost"}
    assert cells.value.isna().all()
    assert (accuracy[accuracy["size"] == "25k"].status != "lost").all()
    for draw in DRAWINGS:
        assert draw(runs.lost).svg
    assert len(runs.lost.claims) == len(runs.result.claims)
