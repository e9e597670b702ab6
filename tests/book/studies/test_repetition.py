"""The repetition study: runs differ only in their rows, planted laws are found, gaps are shown."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pythia_book import records
from pythia_book.stats import mean_over_known
from pythia_book.studies.repetition import claims
from pythia_book.studies.repetition import figures as draw
from pythia_book.studies.repetition import study as repetition
from pythia_book.studies.repetition.fits import (
    DIFFERENCE,
    Fit,
    Laws,
    fit_laws,
    points_of,
    prediction_errors,
)
from pythia_book.studies.repetition.law import MUENNIGHOFF, Law
from pythia_book.studies.repetition.losses import Losses, fresh_tokens, lowest
from pythia_book.studies.repetition.params import Params
from pythia_book.study import Measurements, Result, name_of
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
        ({"seeds": 0}, "seeds must be"),
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
    assert Params("smoke", epochs="1,5", steps=100).rows(5) == 20 * 2


def test_every_run_has_a_fresh_run_of_its_length() -> None:
    params = Params()
    assert len(params.pairs) == 15 and len(list(params.cells())) == 45
    assert params.size_list == ("13k", "38k", "150k")
    for part, epochs in params.pairs:
        assert (part // epochs, 1) in params.pairs and part % epochs == 0
    assert set(Params(epochs=" 12,4 , 1", steps=48).pairs) == {
        *((1, 1), (4, 4), (12, 12), (4, 1), (12, 1))
    }  # no run is a third as long, so none reads a twelfth of the rows four times
    assert params.checkpoints[-1] == params.n_steps and len(params.checkpoints) == 16


def test_arms_differ_in_their_rows_only() -> None:
    params = Params("smoke", epochs="1,2,4")
    fresh, arm = (config_dict(params.config("7k", 0, part, part)) for part in (1, 4))
    changed = {line.split(":")[0] for line in config_differences(fresh, arm)}
    assert changed == {"data.epochs", "data.unique_rows"}
    short = params.config("7k", 0, 4, 2)
    assert short.data.unique_rows == arm["data"]["unique_rows"] == 8
    assert (short.train.steps, short.data.epochs) == (8, 2)
    lines = config_differences(config_dict(short), config_dict(params.config("7k", 1, 4, 2)))
    assert {line.split(":")[0] for line in lines} == {"data.order_seed", "train.weight_seed"}


# --- the law ---------------------------------------------------------------------------------


def test_the_law_by_hand() -> None:
    assert MUENNIGHOFF.data_share(1) == 1
    assert MUENNIGHOFF.data_share(4) == pytest.approx(0.931, abs=1e-3)
    # the limit for many passes
    assert MUENNIGHOFF.data_share(1e6) * 1e6 == pytest.approx(1 + 15.387756)
    assert replace(MUENNIGHOFF, data_rate=0).data_share(8) == 1  # no decay: as good as fresh data
    assert replace(MUENNIGHOFF, data_rate=1e9).data_share(8) == pytest.approx(1 / 8)
    # the source's example, in its appendix A: five epochs at R*_D = 3 are worth 3.21 units
    assert 5 * replace(MUENNIGHOFF, data_rate=1 / 3).data_share(5) == pytest.approx(3.21, abs=0.005)


def test_the_whole_law_gives_the_numbers_of_its_authors() -> None:
    """The README of huggingface/datablations prints these two."""
    law = MUENNIGHOFF
    assert law.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert law.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-12)
    # about 0.051 parameters a token (their equation 17)
    assert law.warranted(1e9) == pytest.approx(0.051e9, rel=0.01)


def test_the_whole_law_as_a_share_of_fresh_data() -> None:
    law = MUENNIGHOFF
    share = law.worth(8.7e9, 178e9, 4)
    fresh = share * 178e9
    assert law.loss(8.7e9, fresh, fresh) == pytest.approx(law.loss(8.7e9, 178e9, 178e9 / 4))
    assert law.worth(1e6, 1e12, 4) == pytest.approx(law.data_share(4))  # no excess parameters
    assert law.worth(1e9, 1e9, 4) < law.data_share(4)
    assert law.excess(8.7e9, 178e9, 178e9) == 0
    hurt = Law(1, 1, 0.3, 1, 0.3, penalty=(1e3, 1.0, 1.0))
    assert hurt.worth(1e6, 1e6, 16) == pytest.approx(0, abs=1e-8), "no fresh data are as bad"


# --- estimators ------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.05, 1.0, 0.8, 0.3, 0.07])
def test_the_worth_is_read_off_the_curve_of_fresh_data(share: float) -> None:
    tokens = 1e6 / np.array([16.0, 8, 4, 2, 1])
    fresh = 3 + 300 * tokens**-0.4
    count, bound = fresh_tokens(3 + 300 * (share * 1e6) ** -0.4, tokens, fresh)
    assert count / 1e6 == pytest.approx(share, rel=0.015) and not bound


def test_worth_beyond_the_fresh_runs() -> None:
    tokens, fresh = np.array([1.0, 2, 4]), np.array([3.05, 3.1, 3.0])
    assert fresh_tokens(9.0, tokens, fresh) == (2, True), "of the worst fresh run: an upper bound"
    assert fresh_tokens(-9.0, tokens, fresh)[0] == pytest.approx(8), "extended, at most twofold"
    assert fresh_tokens(3.05, tokens, np.array([np.nan, 3.1, 3.0]))[0] == pytest.approx(8**0.5)
    assert np.isnan(fresh_tokens(3.0, tokens, np.array([np.nan, np.nan, 3.0]))[0])
    assert np.isnan(fresh_tokens(np.nan, tokens, fresh)[0])


def test_where_a_curve_is_lowest() -> None:
    at = np.arange(1.0, 9)
    assert lowest(at, (at - 3.3) ** 2) == pytest.approx(3.3)
    assert np.isnan(lowest(at, -at)), "it does not rise again"
    assert lowest(at, at) == 1
    assert np.isnan(lowest(at, np.where(at == 2, np.nan, at)))


# --- planted laws ----------------------------------------------------------------------------

SIZES = {"13k": 144_000, "38k": 300_000, "150k": 674_000}
PARAMS = Params(seeds=3)
DECAYING = Law(3.0, 40, 0.3, 300, 0.4, data_rate=1 / 6, parameter_rate=1 / 4)
HURTING = Law(3.0, 40, 0.3, 300, 0.4, penalty=(0.02, 1.5, 0.5))
ALMOST = Law(3.0, 40, 0.3, 300, 0.4, penalty=(0.008, 1.5, 0.5))
"""By this law, some losses of eight epochs do not rise."""
AS_FRESH = Law(3.0, 40, 0.3, 300, 0.4)


def planted(
    law: Law,
    noise: float = 0.003,
    seed: int = 0,
    params: Params = PARAMS,
    sizes: dict[str, int] = SIZES,
) -> Measurements:
    """Losses that follow a law at every checkpoint, with noise that the runs of a seed and size
    share, and with `noise` of each run and of each checkpoint and half of the rows."""
    rng = np.random.default_rng(seed)
    counts = {size: {"all": n, "non_embedding": n // 4} for size, n in sizes.items()}
    facts = {"tokens_per_row": 128, "heldout_rows": 400, "gaps": 0, "parameters": counts}
    arrays = {}
    for size in params.size_list:
        shared = rng.normal(0, 0.01, (params.seeds, 1, 1))
        for part, epochs in params.pairs:
            length = params.n_steps * epochs // part
            steps = np.array(params.checkpoints if part == epochs else [length])
            tokens, unique = steps * params.batch_size * 128.0, params.rows(part) * 128.0
            loss = law.loss(sizes[size], tokens, np.minimum(tokens, unique))
            own = rng.normal(0, noise, (params.seeds, 1, 1))
            spread = rng.normal(0, noise, (params.seeds, len(steps), 2))
            arrays[name_of("loss", size, part, epochs)] = loss[:, None] + shared + own + spread
    return Measurements(arrays, facts)


def test_data_as_good_as_fresh_are_worth_100_percent_and_never_hurt() -> None:
    """Intervals over seeds include the truth about as often as they should."""
    covered, rises, onsets = [], [], []
    for seed in range(40):
        losses = Losses(PARAMS, planted(AS_FRESH, 0.01, seed))
        for of in (losses.worth_at_end, losses.worth_at_best, losses.worth_when_planned):
            e, _ = of("38k", 8).mean()
            covered.append(e.low <= 100 <= e.high)
        rises.append(mean_over_known(losses.rise("38k", 16)).low > 0)
        onsets += np.isfinite(losses.onset("38k", 4)).tolist()
    assert 0.88 <= np.mean(covered) <= 1
    assert np.mean(rises) <= 0.1
    assert not any(onsets)


@pytest.mark.parametrize(("epochs", "law"), [(4, DECAYING), (16, DECAYING), (4, HURTING)])
def test_a_planted_worth_is_recovered(epochs: int, law: Law) -> None:
    truth = 100 * law.worth(SIZES["38k"], PARAMS.rows() * 128, epochs)
    covered, values = [], []
    for seed in range(40):
        e, _ = Losses(PARAMS, planted(law, seed=seed)).worth_at_end("38k", epochs).mean()
        covered.append(e.low - 0.02 * truth <= truth <= e.high + 0.02 * truth)
        values.append(e.value)
    assert np.mean(values) == pytest.approx(truth, rel=0.02), "the curve is interpolated"
    assert np.mean(covered) >= 0.88


def test_a_planted_onset_is_recovered() -> None:
    losses = Losses(PARAMS, planted(HURTING))
    passed = np.linspace(0.2, 16, 4000)
    unique = losses.tokens(16)
    for size in ("13k", "150k"):
        curve = HURTING.loss(SIZES[size], passed * unique, np.minimum(passed, 1) * unique)
        truth = passed[np.argmin(curve)]
        assert losses.onset(size, 16).mean() == pytest.approx(truth, rel=0.12)
        assert losses.best_epochs(size, 16).mean() == pytest.approx(truth, rel=0.12)
        assert mean_over_known(losses.rise(size, 16)).low > 0
    assert losses.onset("150k", 16).mean() < losses.onset("13k", 16).mean()


def test_the_choice_of_the_best_checkpoint_does_not_favor_it() -> None:
    """Where all checkpoints are equally good, the best one seems better only on its own rows."""
    params = Params(sizes="38k", seeds=100)
    array = np.random.default_rng(0).normal(4, 0.1, (100, 16, 2))
    losses = Losses(params, Measurements({"loss/38k/16/16": array}, {}))
    assert np.mean(array[:, -1, 0] - array[..., 0].min(1)) > 0.1
    assert abs(losses.rise("38k", 16).mean()) < 3 * 0.1 * 2**0.5 / 10


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_a_planned_stop_gains_what_is_planted(gain: float) -> None:
    """There are more checkpoints than planned stops, which gives them no advantage."""
    params, rng = Params(sizes="38k", seeds=100), np.random.default_rng(0)
    arrays = {
        name_of("loss", "38k", 16, epochs): rng.normal(4 - gain, 0.1, (100, 1, 2))
        for epochs in (1, 2, 4, 8)
    } | {name_of("loss", "38k", 16, 16): rng.normal(4, 0.1, (100, 16, 2))}
    change = Losses(params, Measurements(arrays, {})).planned("38k", 16)
    assert abs(change.mean() + gain) < 3 * 0.1 * 2**0.5 / 10


def test_a_planted_law_is_recovered_and_predicts_best() -> None:
    laws = fitted(DECAYING)
    for name, truth in (("data_rate", 1 / 6), ("alpha", 0.3), ("beta", 0.4), ("E", 3.0)):
        constant = laws.constants[name]
        assert constant.seeds.low - 0.05 * truth <= truth <= constant.seeds.high + 0.05 * truth
    assert laws.constants["data_rate"].low < 1 / 6 < laws.constants["data_rate"].high
    assert laws.constants["data_rate"].identified
    assert laws.rate_difference.low < 1 / 4 - 1 / 6 < laws.rate_difference.high
    assert laws.constants["data_rate"].value == pytest.approx(1 / 6, rel=0.05)
    assert (laws.n_fresh, laws.n_domain, laws.n_hurt) == (15, 30, 0)
    for rival in ("none", "data", "theirs"):
        assert laws.advantage("whole", rival).high < 0, rival
    assert laws.errors["16 epochs", "whole"].mean() < laws.errors["16 epochs", "data"].mean()
    other = fitted(HURTING)
    assert other.n_hurt > 0 and other.advantage("penalty", "whole").high < 0


def test_decay_that_is_not_there_is_not_identified() -> None:
    runs = points_of(Losses(PARAMS, planted(AS_FRESH, 0.001)))
    fresh, repeated = runs.where(runs.epochs == 1), runs.where(runs.epochs > 1)
    fit = Fit("data", fresh, repeated)
    best = fit.best()
    low, high = fit.profile(best, "data_rate")
    assert low == 0 and high < 0.01


def test_parameters_that_do_not_decay_gain_nothing_from_a_law_in_which_they_do() -> None:
    """Neither in prediction, nor in the interval of the difference of the rates."""
    law = replace(DECAYING, parameter_rate=0.0)
    better = 0
    for seed in range(5):
        points = points_of(Losses(PARAMS, planted(law, seed=seed)))
        fresh, repeated = points.where(points.epochs == 1), points.where(points.epochs > 1)
        laws = Laws(0, 0, 0, errors=prediction_errors(fresh, repeated, ("data", "whole")))
        better += laws.advantage("whole", "data").high < 0
    assert better <= 1
    fit = Fit("whole", fresh, repeated)
    low, high = fit.profile(fit.best(), DIFFERENCE)
    assert low - 0.01 < -1 / 6 < high + 0.01 < 0.5


def test_a_size_that_is_left_out_does_not_leak() -> None:
    """Losses of the left-out size change its own error only by what is predicted."""
    points = points_of(Losses(PARAMS, planted(DECAYING)))
    fresh, repeated = points.where(points.epochs == 1), points.where(points.epochs > 1)
    changed = replace(repeated, loss=repeated.loss.copy())
    changed.loss[repeated.size == "38k"] *= 1.01
    one, two = (prediction_errors(fresh, each, ("data",)) for each in (repeated, changed))
    assert (abs(two["38k", "data"] - one["38k", "data"]) > 0.1).all()
    shift = two["38k", "data"] - one["38k", "data"]
    assert (shift <= 100 * np.log(1.01) + 1e-6).all(), "the prediction is the same"


def test_onsets_that_are_equal_give_no_effect_even_if_some_are_open() -> None:
    """Of three sizes with the same curve, none begins to rise earlier."""
    sizes = dict.fromkeys(SIZES, SIZES["38k"])
    wrong, n_open = 0, 0
    for seed in range(60):
        losses = Losses(PARAMS, planted(ALMOST, 0.01, seed, sizes=sizes))
        test = claims._earlier(losses, "3 seeds")
        wrong += test.estimate.high < 0 or test.estimate.low > 0
        n_open += "do not rise" in test.note
    assert n_open > 10
    assert wrong <= 0.1 * 60


def test_a_worth_that_is_only_bounded_is_shown_as_a_bound() -> None:
    params = Params(sizes="38k,150k", seeds=3)
    measured = planted(replace(HURTING, penalty=(0.3, 1.5, 0.5)), params=params)
    tables, values, rows = repetition.analyze(params, measured, {})
    bounded = tables["worth"].set_index(["size", "epochs", "at"]).loc["150k", 16, "end"]
    assert bounded.at_most and np.isnan(bounded.low) and bounded.value == pytest.approx(6.25)
    assert values["worth_16"] == "≤ 6.25"
    result = Result("repetition", params, tables, values, judge(rows), measured, {}, 0.0)
    assert "≤ 6.25" in repr(draw.arms_table(result))
    assert "at most 6 %" in draw.worth(result).svg


def test_halves_of_the_heldout_rows_share_no_document() -> None:
    half = repetition.halves(np.array([300, 40, 200, 10, 251]), 100, 8)
    # rows begin in documents 0, 0, 0, 1, 2, 2, 4, 4
    assert half.tolist() == [0, 0, 0, 1, 0, 0, 1, 1]
    assert repetition.halves(np.array([801]), 100, 8).tolist() == [0, 1] * 4


def test_two_sizes_determine_no_law() -> None:
    params = Params(sizes="13k,38k", seeds=2)
    measured = planted(DECAYING, params=params)
    laws = fit_laws(Losses(params, measured))
    assert not laws.laws and not laws.constants and laws.advantage("data", "none") is None
    tables, values, _ = repetition.analyze(params, measured, {})
    assert tables["constants"].empty and tables["errors"].empty
    assert values["data_constant"] is None and values["error_whole"] is None


# --- claims ----------------------------------------------------------------------------------


@functools.cache
def fitted(law: Law) -> Laws:
    """The laws, fitted to losses that follow a law."""
    return fit_laws(Losses(PARAMS, planted(law)))


def judged(law: Law) -> list[dict]:
    return judge(claims.claims(Losses(PARAMS, planted(law)), fitted(law)))


def verdicts(rows: list[dict]) -> list[str]:
    return [row["ours"]["verdict"] for row in rows]


def test_claims_can_hold_and_fail() -> None:
    rows = judged(HURTING)
    assert [row["kind"] for row in rows] == (["claim"] * 5 + ["hypothesis"] * 3 + ["premise"] * 3)
    found = verdicts(rows)
    assert found[:3] == ["not testable here"] * 3
    assert rows[0]["claim"].startswith("Two") and 0 < rows[0]["ours"]["value"]
    assert rows[0]["ours"]["value"] < rows[1]["ours"]["value"], "four epochs cost more than two"
    assert "was set when 2.2 % at 85k (one seed) was known" in rows[1]["ours"]["reason"]
    assert rows[2]["ours"]["value"] > 0 and "direction was known" in rows[2]["ours"]["reason"]
    assert found[5:7] == ["holds"] * 2, "the penalty, and the larger size first"
    assert found[8:] == ["holds"] * 3
    for row, tokens in zip(rows, ("262,144", "131,072", "32,768"), strict=False):
        words = f"tested at up to 674,000 parameters, on {tokens} distinct tokens"
        assert words in row["ours"]["note"]
    found = verdicts(judged(AS_FRESH))
    assert found[:4] == ["not testable here"] * 4, "the law does not decay"
    assert found[9] in ("not resolved", "does not hold"), "the rise"
    assert found[8] != "holds"
    decaying = verdicts(judged(DECAYING))
    assert decaying[4] == "reproduced" and decaying[10] == "holds"


@pytest.mark.parametrize(("gain", "verdict"), [(0.2, "holds"), (-0.2, "does not hold")])
def test_planned_stops_can_be_better_or_worse(gain: float, verdict: str) -> None:
    measured = planted(HURTING)
    for size in SIZES:
        for epochs in (1, 2, 4, 8):
            measured.arrays[name_of("loss", size, 16, epochs)] -= gain
    rows = judge(claims.claims(Losses(PARAMS, measured), Laws(0, 0, 0)))
    assert "planned to stop early" in rows[7]["claim"] and verdicts(rows)[7] == verdict


def test_one_seed_has_no_intervals_and_missing_runs_are_gaps() -> None:
    one = Params(sizes="38k,150k", seeds=1)
    tables, values, rows = repetition.analyze(one, planted(HURTING, params=one), {})
    assert set(verdicts(judge(rows))) == {"not testable here"}
    assert isinstance(values["worth_4"], float) and tables["worth"].low.isna().all()
    params = Params(sizes="38k,150k", seeds=3)
    measured = planted(HURTING, params=params)
    measured.arrays["loss/38k/4/4"][1] = np.nan
    del measured.arrays["loss/150k/8/8"]
    tables, values, _ = repetition.analyze(params, measured, {})
    worth = tables["worth"].set_index(["size", "epochs", "at"]).n
    assert worth["38k", 4, "end"] == 2 and ("150k", 8, "end") not in worth.index
    assert values["excess_8"] is None and values["excess_4_smallest"]["low"] > 0
    assert len(points_of(Losses(params, measured)).n) == 30 - 2
    tables, values, rows = repetition.analyze(params, Measurements({}, measured.facts), {})
    assert set(verdicts(judge(rows))) == {"not testable here"}
    result = Result("repetition", params, tables, values, judge(rows), measured, {}, 0.0)
    for figure in FIGURES:
        assert "<svg" in figure(result).svg
    assert "not measured" in repr(draw.arms_table(result))
    assert draw.constants_table(result).frame.empty


# --- end to end ------------------------------------------------------------------------------

FIGURES = (draw.over_training, draw.worth, draw.onset, draw.errors)


@pytest.mark.wheels
def test_runs_share_weights_and_rows_and_gaps_are_shown(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    params = Params("smoke", sizes="7k", epochs="1,2", seeds=2)
    result = repetition.run(params, progress=False)
    fresh, twice, once = result.measured.runs[:3]
    tokens = [run.config.train.steps * 2 * run.config.data.seq_len for run in (fresh, twice, once)]
    assert tokens == [16 * 2 * 64, 16 * 2 * 64, 8 * 2 * 64]
    assert result.values["tokens"] == tokens[0] and result.values["tokens_least"] == tokens[2]
    rows = [np.concatenate([run.batch(step) for step in range(16)]) for run in (fresh, twice)]
    np.testing.assert_array_equal(rows[0][:16], rows[1][:16])
    np.testing.assert_array_equal(rows[0][:16], np.concatenate([once.batch(i) for i in range(8)]))
    assert {row.tobytes() for row in rows[1][16:]} == {row.tobytes() for row in rows[0][:16]}
    assert (rows[1][16:] != rows[1][:16]).any()
    for step in (0, 8):  # the same until the first pass ends
        one, two = (dict(run.model(step).named_parameters()) for run in (fresh, twice))
        assert all(one[name].equal(two[name]) for name in one)
    assert fresh.final_sha256 != twice.final_sha256

    losses = Losses(params, result.measured)
    change = losses.cost("7k", 2, percent=True)
    assert result.values["excess_2"]["value"] == pytest.approx(change.mean())
    assert (losses.curve("7k", 2)[:, :8] == losses.curve("7k", 1)[:, :8]).all()
    assert result.values["gaps"] == 0 and result.values["runs"] == 6
    assert result.claims[1]["ours"]["value"] is None  # no arm of four epochs

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
    assert lost.values["gaps"] == 1
    assert lost.tables["excess"].n.tolist() == [1]
    for figure in FIGURES:
        assert "<svg" in figure(lost).svg


@pytest.mark.wheels
def test_too_many_rows_are_refused_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    with pytest.raises(DataError, match="need 20000 different rows") as caught:
        repetition.run(Params("smoke", epochs="1,8", steps=10_000), progress=False)
    assert "use steps=" in str(caught.value)
    assert not list(tmp_path.glob("runs/*"))
