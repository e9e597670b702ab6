"""The deduplication study: twins are compared item by item; lost checkpoints become gaps."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pythia_book.stats import estimate
from pythia_book.studies.deduplication import study as deduplication
from pythia_book.studies.deduplication.study import Params
from pythia_book.studies.deduplication.study import claims as study_claims

from pythia_core.errors import ConfigError


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


def memorized(standard: float, deduplicated: float) -> pd.DataFrame:
    rows = [("600k", arm, p, p - 0.01, p + 0.01, 1000)
            for arm, p in (("standard", standard), ("deduplicated", deduplicated))]  # fmt: skip
    return pd.DataFrame(rows, columns=["size", "arm", "value", "low", "high", "n"])


@pytest.mark.parametrize(
    ("shift", "verdict"), [(-0.2, "not reproduced"), (0.2, "reproduced"), (0.0, "reproduced")]
)
def test_only_a_benefit_contradicts_the_paper(shift: float, verdict: str) -> None:
    """A rise of the loss agrees with the paper too: it is no benefit."""
    change = np.random.default_rng(0).normal(shift, 0.3, 300)
    claims = study_claims(
        Params(sizes="600k"), {"loss": change}, memorized(0.05, 0.01), pd.DataFrame()
    )
    assert claims[0]["verdict"] == verdict
    assert claims[0]["ours"] == pytest.approx(change.mean())
    assert claims[1]["verdict"] == "not testable here"  # no last words were measured
    assert claims[2]["verdict"] == "not testable here"  # nor were tasks
    assert claims[3]["verdict"] == "holds"
    assert claims[3]["ours"] == pytest.approx(-4)
    assert claims[3]["low"] == pytest.approx(-4 - 2**0.5)


def test_without_final_models_nothing_is_claimed() -> None:
    empty = memorized(0, 0).iloc[:0]
    claims = study_claims(Params(), {}, empty, pd.DataFrame())
    assert {claim["verdict"] for claim in claims} == {"not testable here"}
    assert {claim["ours"] for claim in claims} == {None}


@pytest.mark.wheels
def test_twins_are_compared_on_the_same_items(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
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
        assert row.value == pytest.approx(deduplicated - standard)
    assert result.values["gaps"] == 0
    tasks = result.tables["tasks"].set_index(["size", "task", "shots"])
    zero_shot = [t for _, t, shots in tasks.index if shots == 0 and t != "mean"]
    assert zero_shot
    for size in params.size_list:
        of_size = tasks.loc[size].loc[[(t, 0) for t in dict.fromkeys(zero_shot)]]
        mean = (of_size.value * of_size.n).sum() / of_size.n.sum()
        assert tasks.value[size, "mean", 0] == pytest.approx(mean)

    run = result.runs[0]  # losing a checkpoint leaves the other results as they were
    shutil.rmtree(run.folder / "evaluations")
    shutil.rmtree(run.checkpoints / "step-000016")
    again = deduplication.run(params, progress=False)
    assert again.values["gaps"] == 3  # of language, of extraction, of the tasks
    lost = again.tables["effects"]
    assert set(lost[lost["size"] == "7k"].step) == set(lost[lost["size"] == "25k"].step) - {16}
    assert len(again.tables["memorized"]) == 3


def test_intervals_are_paired() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(5, 2, 400)
    twins = SimpleNamespace(a=base, b=base - 0.05 + rng.normal(0, 0.05, 400))
    paired = estimate((twins.b - twins.a)[None], 500, change=True)
    assert paired.high < 0 < paired.high - paired.low < 0.02
