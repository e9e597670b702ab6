"""The repetition study: arms differ only in their rows, claims can fail, gaps are shown."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from pythia_book.stats import equivalence_verdict
from pythia_book.studies.repetition import study as repetition
from pythia_book.studies.repetition.claims import (
    claims as study_claims,
)
from pythia_book.studies.repetition.claims import (
    law_share,
    measured_share,
)
from pythia_book.studies.repetition.claims import (
    tables as study_tables,
)
from pythia_book.studies.repetition.claims import (
    values as study_values,
)
from pythia_book.studies.repetition.study import Params, repetition_configs

from pythia_core.config import config_dict, config_differences
from pythia_core.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sizes": "7m"}, "unknown size"),
        ({"scale": "huge"}, "unknown scale"),
        ({"epochs": "2,4"}, "give 1, the fresh arm"),
        ({"epochs": "1"}, "give 1, the fresh arm"),
        ({"epochs": "1,two"}, "epochs='1,two'"),
        ({"epochs": "0,1,2"}, "give 1, the fresh arm"),
        ({"epochs": "1,1000"}, "up to 256"),
        ({"epochs": 4}, "epochs must be text"),
        ({"steps": -8}, "steps must be"),
        ({"bootstrap": 3}, "bootstrap must be"),
    ],
)
def test_bad_parameters_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Params(**given)


def test_steps_that_passes_do_not_divide_are_refused_with_the_accepted_values() -> None:
    with pytest.raises(ConfigError) as caught:
        Params(epochs="1,2,8,16", steps=100)
    for words in ("steps=100", "by epochs 8, 16", "multiple of 16", "e.g. 96", "1, 2, 4, 5"):
        assert words in str(caught.value)
    assert Params(epochs="1,5", steps=100).rows(5) == 20 * 32


def test_epochs_are_sorted_and_sizes_have_a_default() -> None:
    params = Params(epochs=" 4,1 , 2,4")
    assert params.epoch_list == (1, 2, 4)
    assert params.size_list == ("85k",)
    assert Params(sizes="85k,7k").size_list == ("7k", "85k")


def test_arms_differ_in_their_rows_only() -> None:
    params = Params("smoke", epochs="1,4")
    arms, once = repetition_configs(params)
    fresh = config_dict(arms["7k", 1])
    changed = {line.split(":")[0] for line in config_differences(fresh, config_dict(arms["7k", 4]))}
    assert changed == {"data.epochs", "data.unique_rows"}
    data = arms["7k", 4].data
    assert data.epochs * data.unique_rows == arms["7k", 1].data.unique_rows == 16 * 8
    assert once["7k", 1] == arms["7k", 1]
    lines = config_differences(fresh, config_dict(once["7k", 4]))
    assert [line.split(":")[0] for line in lines] == ["train.steps"]
    assert once["7k", 4].train.steps * 8 == data.unique_rows


# --- the law and its measurement -------------------------------------------------------------


def test_the_law_by_hand() -> None:
    assert law_share(1) == 1
    assert law_share(4) == pytest.approx(0.931, abs=1e-3)
    assert law_share(1e6) * 1e6 == pytest.approx(1 + 15.387756)  # the limit for many passes
    assert law_share(8, r_star=1e9) == pytest.approx(1)  # no decay: as good as fresh data
    assert law_share(8, r_star=1e-9) == pytest.approx(
        1 / 8
    )  # immediate decay: only the first pass counts


@pytest.mark.parametrize("share", [1.0, 0.8, 0.3, 1 / 16])
def test_a_planted_worth_of_repeated_data_is_recovered(share: float) -> None:
    """With losses that are linear in the logarithm of the data size."""
    rows = np.random.default_rng(0).normal(4, 1, 200)
    noise = np.random.default_rng(1).normal(0, 0.01, (6, 200))
    once = {r: rows + 0.2 * np.log(r) + e for r, e in zip((1, 2, 4, 8, 16), noise, strict=False)}
    found = measured_share(rows - 0.2 * np.log(share) + noise[5], once, 500)
    assert found.low - 1e-9 <= share <= found.high + 1e-9 or abs(found.value - share) < 0.01
    assert found.value == pytest.approx(share, rel=0.03)
    assert found.high - found.low < 0.05


def test_worth_is_never_extrapolated() -> None:
    once = {1: np.full(9, 3.0), 2: np.full(9, 3.1), 4: np.full(9, 3.05)}  # not monotonic
    assert measured_share(np.full(9, 2.0), once, 100).value == 1
    assert measured_share(np.full(9, 9.0), once, 100).value == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (90, 95, "reproduced"),
        (60, 70, "not reproduced"),
        (104, 110, "not reproduced"),
        (78, 95, "not testable here"),
    ],
)
def test_a_worth_is_close_to_the_law_or_not(low: float, high: float, verdict: str) -> None:
    assert equivalence_verdict(low, high, 93, 10) == verdict


# --- claims ----------------------------------------------------------------------------------

PARAMS = Params(sizes="85k", bootstrap=300)


def planted(costs: dict[int, float], learned: float = 0.05, noise: float = 0.02) -> tuple:
    """Final arrays and single-pass losses where loss is 4 and r epochs raise it by `costs[r]` %."""
    rng = np.random.default_rng(0)
    base, read = rng.normal(4, 0.5, 320), rng.normal(4, 0.5, 300)
    base += 4 - base.mean()
    finals, once = {}, {}
    for r in PARAMS.epoch_list:
        sd = noise if r > 1 else 0
        finals["85k", r] = {
            "loss": base + 0.04 * costs[r] + rng.normal(0, sd, 320),
            "read_loss": read - learned * np.log2(r) + rng.normal(0, sd, 300),
            "memorized": rng.random(300) < 0.2 + learned * np.log2(r),
        }
        once["85k", r] = base + 0.4 * np.log2(r) + rng.normal(0, sd, 320)
    return finals, once


def verdicts(finals: dict, once: dict) -> list[str]:
    return [claim["verdict"] for claim in study_claims(PARAMS, finals, once)]


def test_published_costs_are_reproduced() -> None:
    """Costs that follow the law if halving the data raises the loss by 10 %."""
    costs = {r: -10 * np.log2(law_share(r)) for r in PARAMS.epoch_list}
    costs |= {2: 0.2, 4: 0.6}
    found = study_claims(PARAMS, *planted(costs))
    assert found[0]["ours"] == pytest.approx(0.6, abs=0.1)
    assert [claim["verdict"] for claim in found] == [
        *("reproduced", "holds", "reproduced", "reproduced", "reproduced", "holds", "holds")
    ]


def test_false_claims_are_not_reproduced() -> None:
    """Two epochs are already costly, sixteen are better than four, and nothing is overfitted."""
    costs = {1: 0, 2: 8, 4: 20, 8: 9, 16: -2}
    assert verdicts(*planted(costs, learned=-0.05)) == [
        *("not reproduced", "does not hold", "not reproduced", "not reproduced", "not reproduced"),
        *("does not hold", "does not hold"),
    ]


def test_wide_intervals_are_not_testable() -> None:
    found = verdicts(*planted(dict.fromkeys(PARAMS.epoch_list, 1.0), learned=0, noise=3))
    assert found[:3] == ["not testable here", "not testable here", "no effect"]


def test_missing_arms_are_not_testable() -> None:
    finals, once = planted(dict.fromkeys(PARAMS.epoch_list, 0.2))
    del finals["85k", 4]
    found = study_claims(PARAMS, finals, once)
    assert [c["verdict"] == "not testable here" for c in found] == [
        *(True, False, True, True, False, False, False)
    ]
    assert found[0]["ours"] is None
    values = study_values(PARAMS, finals, once)
    assert values["excess_4"] is None
    assert values["excess_16"]["low"] < values["excess_16"]["high"]
    del once["85k", 2]
    assert {c["ours"] for c in study_claims(PARAMS, finals, once)[3:5]} == {None}
    assert {c["verdict"] for c in study_claims(PARAMS, {}, {})} == {"not testable here"}
    assert all(frame.empty for frame in study_tables(PARAMS, {}, {}, {}).values())


# --- end to end ------------------------------------------------------------------------------


@pytest.mark.wheels
def test_arms_share_weights_and_rows_and_gaps_are_shown(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    params = Params("smoke", epochs="1,2", bootstrap=200)
    result = repetition.run(params, progress=False)
    fresh, twice, once = result.runs
    tokens = [run.config.train.steps * 8 * run.config.data.seq_len for run in result.runs]
    assert tokens == [16 * 8 * 64, 16 * 8 * 64, 8 * 8 * 64]
    rows = [np.concatenate([run.batch(step) for step in range(16)]) for run in (fresh, twice)]
    np.testing.assert_array_equal(rows[0][:64], rows[1][:64])
    assert {row.tobytes() for row in rows[1][64:]} == {row.tobytes() for row in rows[0][:64]}
    assert (rows[1][64:] != rows[1][:64]).any()
    for step in (0, 8):  # the same until the first pass ends
        one, two = (dict(run.model(step).named_parameters()) for run in (fresh, twice))
        assert all(one[name].equal(two[name]) for name in one)
    assert fresh.final_sha256 != twice.final_sha256

    effects = result.tables["effects"].set_index(["measure", "step"])
    levels = result.tables["levels"].set_index(["measure", "step", "epochs"]).value
    assert (effects.loc["loss"].value[:4] == 0).all()
    change = levels["loss", 16, 2] - levels["loss", 16, 1]
    assert effects.loc["loss", 16].value == pytest.approx(change)
    assert change != 0
    percent = 100 * effects.loc["loss", 16].value / levels["loss", 16, 1]
    assert result.values["excess_2"]["value"] == pytest.approx(percent)
    gap = effects.loc["loss", 16].value - effects.loc["read_loss", 16].value
    assert effects.loc["gap", 16].value == pytest.approx(gap)
    assert result.tables["fresh"].rows.tolist() == [128, 64]
    assert 50 <= result.tables["law"].value[0] <= 100
    assert result.values["gaps"] == 0
    assert result.claims[0]["verdict"] == "not testable here"  # no arm of four epochs
    again = repetition.run(params, progress=False)
    for name, frame in result.tables.items():
        assert frame.to_csv() == again.tables[name].to_csv()

    shutil.rmtree(twice.folder / "evaluations")
    shutil.rmtree(twice.checkpoints / "step-000016")
    lost = repetition.run(params, progress=False)
    assert lost.values["gaps"] == 3  # held-out rows, read rows, extraction
    assert lost.tables["effects"].step.max() == 14
    assert lost.values["excess_2"] is None
    assert {claim["verdict"] for claim in lost.claims} == {"not testable here"}
    from pythia_book.studies.repetition import figures as draw

    for figure in (draw.cost_and_worth, draw.over_training, draw.read_rows):
        assert figure(lost).svg == figure(lost).svg
    assert "not measured" in repr(draw.arms_table(lost))
    assert once.steps[-1] == 8


@pytest.mark.wheels
def test_too_many_rows_are_refused_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    with pytest.raises(DataError, match="need 8000 different rows") as caught:
        repetition.run(Params("smoke", epochs="1,8", steps=1000), progress=False)
    assert "use steps=208 or fewer" in str(caught.value)
    assert not list(tmp_path.glob("runs/*"))
