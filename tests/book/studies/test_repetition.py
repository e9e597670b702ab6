"""The repetition study: arms differ only in their rows, claims can fail, gaps are shown."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from pythia_book import records
from pythia_book.studies.repetition import figures as draw
from pythia_book.studies.repetition import law
from pythia_book.studies.repetition import study as repetition
from pythia_book.studies.repetition.study import Params, repetition_configs
from pythia_book.studies.repetition.tables import Arms, measured_share
from pythia_book.study import Measurements
from pythia_book.verdicts import judge

from pythia_core.config import config_dict, config_differences
from pythia_core.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"sizes": "7m"}, "unknown size"),
        ({"scale": "huge"}, "unknown scale"),
        ({"epochs": "2,4"}, "a comma-separated list with 1 and"),
        ({"epochs": "1"}, "a comma-separated list with 1 and"),
        ({"epochs": "1,two"}, "got '1,two'"),
        ({"epochs": "0,1,2"}, "a comma-separated list with 1 and"),
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
    for words in (
        "number of steps, 100",
        "but 8, 16 cannot",
        "multiple of 16",
        "e.g. 96",
        "1, 2, 4, 5",
    ):
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
    assert law.data_share(1) == 1
    assert law.data_share(4) == pytest.approx(0.931, abs=1e-3)
    # the limit for many passes
    assert law.data_share(1e6) * 1e6 == pytest.approx(1 + 15.387756)
    assert law.data_share(8, 1e9) == pytest.approx(1)  # no decay: as good as fresh data
    assert law.data_share(8, 1e-9) == pytest.approx(1 / 8)  # only the first pass counts


def test_the_whole_law_gives_the_numbers_of_its_authors() -> None:
    """The README of huggingface/datablations prints these two."""
    assert law.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert law.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-12)
    # about 0.051 parameters a token (their equation 17)
    assert law.warranted(1e9) == pytest.approx(0.051e9, rel=0.01)


def test_the_whole_law_as_a_share_of_fresh_data() -> None:
    share = law.whole_share(8.7e9, 178e9, 4)
    assert law.loss(8.7e9, share * 178e9, share * 178e9) == pytest.approx(
        law.loss(8.7e9, 178e9, 178e9 / 4)
    )
    assert law.whole_share(1e6, 1e12, 4) == pytest.approx(law.data_share(4))  # no excess parameters
    assert law.whole_share(1e9, 1e9, 4) < law.data_share(4)
    assert law.excess(8.7e9, 178e9, 1) == 0


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


# --- claims ----------------------------------------------------------------------------------

PARAMS = Params(sizes="85k", bootstrap=300)
STEPS = [96, 192, 288, 384]
FACTS = {"steps": STEPS, "tokens_per_row": 128, "gaps": 0,
         "parameters": {"85k": {"non_embedding": 85_000, "all": 478_000}}}  # fmt: skip


def planted(
    costs: dict[int, float],
    learned: float = 0.05,
    noise: float = 0.02,
    turns: float = 0.0,
    seed: int = 0,
) -> Measurements:
    """Losses where r epochs end `costs[r]` % above a loss of 4, which fell all the time; those of
    the most epochs rise by `turns` nats after half of training."""
    rng = np.random.default_rng(seed)
    base, read = rng.normal(4, 0.5, 320), rng.normal(4, 0.5, 300)
    base += 4 - base.mean()
    arrays = {}
    for r in PARAMS.epoch_list:
        sd = noise if r > 1 else 0
        for step in STEPS:
            fall = 0.3 * (STEPS[-1] - step) / STEPS[-1]
            if turns and r == PARAMS.epoch_list[-1] and step > 192:
                fall = 0.15 + turns * (step - 192) / 192
            arrays[f"loss/85k/{r}/{step}"] = base + 0.04 * costs[r] + fall + rng.normal(0, sd, 320)
        arrays[f"read_loss/85k/{r}"] = read - learned * np.log2(r) + rng.normal(0, sd, 300)
        arrays[f"memorized/85k/{r}"] = rng.random(300) < 0.3 + learned * np.log2(r)
        arrays[f"once/85k/{r}"] = base + 0.4 * np.log2(r) + rng.normal(0, sd, 320)
    return Measurements(arrays, FACTS)


def judged(measured: Measurements) -> list[dict]:
    return judge(repetition.analyse(PARAMS, measured, {})[2])


def verdicts(rows: list[dict]) -> list[str]:
    return [row["ours"]["verdict"] for row in rows]


def test_true_statements_are_found_true() -> None:
    costs = {1: 0, 2: 0.1, 4: 0.3, 8: 2, 16: 8}
    found = judged(planted(costs, turns=0.5))
    assert verdicts(found) == [
        "reproduced", "reproduced", "not testable here", *["reproduced"] * 3,
    ]  # fmt: skip
    assert found[0]["ours"]["value"] == pytest.approx(0.3, abs=0.1)
    assert found[1]["ours"]["low"] > 0
    for row in found[:2]:
        assert "tested at 478,000 parameters" in row["ours"]["note"]
    assert {row["kind"] for row in found} == {"claim"}  # all are quoted from other papers
    assert "fitted to models of 7 million" in found[2]["ours"]["reason"]
    assert not any(row["released"] for row in found)


def test_false_statements_are_found_false() -> None:
    """Four epochs cost much, sixteen nothing, and nothing is overfitted."""
    costs = {1: 0, 2: 8, 4: 20, 8: 9, 16: -2}
    assert verdicts(judged(planted(costs, learned=-0.05))) == [
        "contradicted", "contradicted", "not testable here", *["contradicted"] * 3,
    ]  # fmt: skip


def test_wide_intervals_resolve_nothing() -> None:
    costs = dict.fromkeys(PARAMS.epoch_list, 0.3)
    found = verdicts(judged(planted(costs, learned=0, noise=5)))
    assert found == [
        *["not resolved"] * 2, "not testable here", *["not resolved"] * 3,
    ]  # fmt: skip


def test_nothing_memorized_is_not_testable() -> None:
    measured = planted(dict.fromkeys(PARAMS.epoch_list, 0.2))
    for r in PARAMS.epoch_list:
        measured.arrays[f"memorized/85k/{r}"][:] = False
    last = judged(measured)[-1]["ours"]
    assert last["verdict"] == "not testable here" and last["reason"].startswith("no arm has")


def test_the_choice_of_the_best_checkpoint_does_not_favour_it() -> None:
    """Where all checkpoints are equally good, the best one seems better only on its own rows."""
    own, others = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        arrays = {f"loss/85k/16/{step}": rng.normal(4, 1, 320) for step in STEPS}
        arms = Arms(PARAMS, Measurements(arrays, FACTS))
        step = arms.best_step("85k", 16, before_end=True)
        change = arms.loss("85k", 16) - arms.loss("85k", 16, step)
        own.append(change[::2].mean())
        others.append(arms.turn("85k", 16).mean())
    assert np.mean(own) > 0.04
    assert abs(np.mean(others)) < 3 * np.std(others) / 60**0.5


def test_an_overfitted_arm_is_worth_more_at_its_best_checkpoint() -> None:
    costs = {1: 0, 2: 0.2, 4: 0.5, 8: 2, 16: 10}
    arms = Arms(PARAMS, planted(costs, turns=0.5))
    assert arms.best_step("85k", 16) == 192 and arms.best_step("85k", 4) == 384
    assert arms.worth("85k", 16, best=True).low > arms.worth("85k", 16).high
    table = repetition.tables(arms)["worth"]
    assert table[table["at"] == "best"].n.unique().tolist() == [160]


def test_missing_arms_are_not_testable() -> None:
    measured = planted(dict.fromkeys(PARAMS.epoch_list, 0.2))
    for step in STEPS:
        del measured.arrays[f"loss/85k/4/{step}"]
    assert verdicts(judged(measured))[:3] == ["not testable here"] * 3
    values = repetition.analyse(PARAMS, measured, {})[1]
    assert values["excess_4"] is None
    assert values["excess_16"]["low"] < values["excess_16"]["high"]
    del measured.arrays["once/85k/2"]
    assert repetition.analyse(PARAMS, measured, {})[1]["worth_16"] is None
    tables, values, claims = repetition.analyse(PARAMS, Measurements({}, FACTS), {})
    assert set(verdicts(judge(claims))) == {"not testable here"}
    assert all(frame.empty for frame in tables.values())


# --- end to end ------------------------------------------------------------------------------


@pytest.mark.wheels
def test_arms_share_weights_and_rows_and_gaps_are_shown(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    params = Params("smoke", epochs="1,2", bootstrap=200)
    result = repetition.run(params, progress=False)
    fresh, twice, once = result.measured.runs
    tokens = [run.config.train.steps * 8 * run.config.data.seq_len for run in (fresh, twice, once)]
    assert tokens == [16 * 8 * 64, 16 * 8 * 64, 8 * 8 * 64]
    assert result.values["tokens"] == tokens[0]
    rows = [np.concatenate([run.batch(step) for step in range(16)]) for run in (fresh, twice)]
    np.testing.assert_array_equal(rows[0][:64], rows[1][:64])
    assert {row.tobytes() for row in rows[1][64:]} == {row.tobytes() for row in rows[0][:64]}
    assert (rows[1][64:] != rows[1][:64]).any()
    for step in (0, 8):  # the same until the first pass ends
        one, two = (dict(run.model(step).named_parameters()) for run in (fresh, twice))
        assert all(one[name].equal(two[name]) for name in one)
    assert fresh.final_sha256 != twice.final_sha256

    effects = result.tables["effects"].set_index("step").value
    levels = result.tables["levels"].set_index(["step", "epochs"]).value
    assert (effects[:4] == 0).all()
    change = levels[16, 2] - levels[16, 1]
    assert change != 0
    assert effects[16] == pytest.approx(100 * change / levels[16, 1])
    assert result.values["excess_2"]["value"] == pytest.approx(effects[16])
    read = result.tables["read"].value
    gap = change - (read[1] - read[0])
    assert result.values["gap_growth"]["value"] == pytest.approx(gap)
    assert result.tables["fresh"].rows.tolist() == [128, 64]
    assert 50 <= result.tables["worth"].value[0] <= 100
    assert result.values["gaps"] == 0
    assert result.claims[0]["ours"]["value"] is None  # no arm of four epochs

    records.save_record(result, tmp_path / "record")
    with monkeypatch.context() as patch:
        patch.setenv(records.REDRAW_FROM, str(tmp_path / "record"))
        again = repetition.run(params, progress=False)
    assert again.claims == result.claims and not again.measured.runs
    for name, frame in result.tables.items():
        assert frame.to_csv() == again.tables[name].to_csv()
    for figure in FIGURES:
        assert figure(again).svg == figure(result).svg

    shutil.rmtree(twice.folder / "evaluations")
    shutil.rmtree(twice.checkpoints / "step-000016")
    lost = repetition.run(params, progress=False)
    assert lost.values["gaps"] == 3  # held-out rows, read rows, extraction
    assert lost.tables["effects"].step.max() == 14
    assert lost.values["excess_2"] is None
    assert set(verdicts(lost.claims)) == {"not testable here"}
    for figure in FIGURES:
        assert "<svg" in figure(lost).svg
    assert "not measured" in repr(draw.arms_table(lost))
    assert once.steps[-1] == 8


FIGURES = (draw.cost_and_worth, draw.over_training, draw.read_rows)


@pytest.mark.wheels
def test_too_many_rows_are_refused_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    with pytest.raises(DataError, match="need 8000 different rows") as caught:
        repetition.run(Params("smoke", epochs="1,8", steps=1000), progress=False)
    assert "use steps=152 or fewer" in str(caught.value)
    assert not list(tmp_path.glob("runs/*"))
