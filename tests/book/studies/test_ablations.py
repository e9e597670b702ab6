"""The ablations study: arms differ in one respect, planted effects are found, jobs are reused."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pythia_book.studies.ablations import claims, training
from pythia_book.studies.ablations import figures as draw
from pythia_book.studies.ablations import study as ablations
from pythia_book.studies.ablations.params import ARMS, BASELINE, MEAN, Params
from pythia_book.study import Measurements, name_of

from pythia_core.config import RunConfig, config_dict, config_differences
from pythia_core.data.prepare import prepare
from pythia_core.errors import ConfigError
from pythia_core.evaluation.scoring import score_rows
from pythia_core.kernels import FAST, rotary_tables
from pythia_core.model import GPTNeoX
from pythia_core.training.trainer import Trainer
from pythia_core.util.files import project_root

SMOKE = Params("smoke", arms="tied", seeds=2)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own folder of results."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path))
    return tmp_path


def job(arm: str, seed: int = 0) -> training.Job:
    config = SMOKE.config("7k", arm, seed)
    return training.Job(arm, config, SMOKE.checkpoints, prepare(config.data, False))


@functools.cache
def rows(n: int = 4) -> torch.Tensor:
    config = SMOKE.config("7k", BASELINE, 0)
    return torch.from_numpy(prepare(config.data, False).batch(0, n).astype(np.int64))


def model(arm: str, size: str = "25k") -> GPTNeoX:
    config = Params("smoke", "25k").config(size, arm, 0)
    made = training.make_model(arm, config.model)
    made.init_weights(config.train.weight_seed)
    return made


# --- parameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"arms": "swiglu"}, "unknown arm 'swiglu'"),
        ({"arms": "pythia"}, "unknown arm 'pythia'"),
        ({"seeds": 0}, "seeds must be"),
        ({"sizes": "7m"}, "unknown size"),
        ({"scale": "paper"}, "scale must be one of smoke, laptop"),
    ],
)
def test_bad_parameters_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Params(**given)


def test_arms_differ_from_pythia_in_the_named_fields_only() -> None:
    params = Params()
    assert params.arm_list[0] == BASELINE and {*params.arm_list} == {*ARMS}
    assert Params(arms="window, tied").arm_list == (BASELINE, "tied", "window")
    base = config_dict(params.config("85k", BASELINE, 1))
    for arm in params.arm_list:
        lines = config_differences(base, config_dict(params.config("85k", arm, 1)))
        changed = {line.split(":")[0].removeprefix("model.") for line in lines}
        assert changed == set(ARMS[arm].model), arm
    assert params.checkpoints[-1] == params.n_steps and len(params.checkpoints) == 8


def test_the_margin_follows_from_recorded_losses() -> None:
    losses = pd.read_csv(project_root() / "book/recorded/scaling/laptop/losses.csv")
    for size, known in claims.SUITE.items():
        last = losses[losses["size"] == size].iloc[-1]
        assert (last.n_params, round(last.value, 3)) == (known.n_params_non_embedding, known.loss)
        assert Params().config(size, BASELINE, 0).model.n_params == known.n_params
    ratio = claims.SUITE["85k"].n_params_non_embedding / claims.SUITE["25k"].n_params_non_embedding
    assert claims.worth(ratio) == pytest.approx(0.162) and claims.MARGIN == 0.013


# --- models ----------------------------------------------------------------------------------


def test_initial_weights_are_equal_wherever_both_have_them() -> None:
    base = dict(model(BASELINE).named_parameters())
    for arm in ARMS:
        other = dict(model(arm).named_parameters())
        assert base.keys() - other.keys() == ({"embed_out.weight"} if arm == "tied" else set())
        for name, weights in other.items():
            ratio = 1.0
            if arm == "default_init" and weights.std() > 0:  # the same draws, scaled
                ratio = float((weights.std() / base[name].std()).detach())
                factors = training.init_factors(SMOKE.config("25k", arm, 0).model)
                output = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
                assert 1 / ratio == pytest.approx(factors[output], rel=1e-5), name
            torch.testing.assert_close(weights, ratio * base[name], msg=f"{arm}, {name}")


def test_scores_are_those_of_the_trained_model() -> None:
    seen = set()
    for arm in ARMS:
        made = model(arm)
        with torch.no_grad():
            loss = float(made.loss(rows()))
        assert score_rows(made, rows().numpy()).losses.mean() == pytest.approx(loss, abs=1e-5), arm
        seen.add(round(loss, 6))
    assert len(seen) == len(ARMS), "every arm computes something else"


def test_pythia_is_the_model_of_the_suite() -> None:
    config = Params("smoke", "25k").config("25k", BASELINE, 0)
    usual = GPTNeoX(config.model, FAST)
    usual.init_weights(config.train.weight_seed)
    with torch.no_grad():
        torch.testing.assert_close(model(BASELINE).loss(rows()), usual.loss(rows()))


def test_windowed_attention_by_hand() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 9, 2, 3, 8)
    cos, sin = rotary_tables(9, 0, 10_000.0)
    out = training.windowed_attention(qkv, cos, sin, 3).view(2, 9, 2, 8)
    for row in range(2):
        for head in range(2):
            q, k, v = qkv[row, :, head].unbind(1)
            for t in range(9):
                near = slice(max(0, t - 2), t + 1)
                p = (k[near] @ q[t] / 8**0.5).softmax(0)
                torch.testing.assert_close(out[row, t, head], p @ v[near])


def test_a_window_as_long_as_the_row_is_plain_attention() -> None:
    torch.manual_seed(0)
    qkv, tables = torch.randn(2, 9, 2, 3, 8), rotary_tables(9, 4, 10_000.0)
    whole = training.windowed_attention(qkv, *tables, 9)
    torch.testing.assert_close(whole, training.OPS.attention(qkv, *tables))


def test_a_token_beyond_all_windows_changes_nothing() -> None:
    made, ids = model("window"), rows()[:, :-1].clone()
    reach = 2 * (SMOKE.window - 1)  # two layers
    with torch.no_grad():
        before = made(ids)
        ids[:, 0] = (ids[:, 0] + 1) % 100
        after = made(ids)
    assert torch.equal(before[:, reach + 1 :], after[:, reach + 1 :])
    assert not torch.equal(before[:, reach], after[:, reach])


def test_tied_weights_stay_tied_and_count_once() -> None:
    tied = job("tied")
    trainer = training._trainer("tied", tied.config)
    start = trainer.model.embed_in.weight.detach().clone()
    for step in range(3):
        trainer.update(tied.data.batch(step, tied.config.train.batch_size))
    weight = trainer.model.embed_in.weight
    assert weight is trainer.model.embed_out.weight and not torch.equal(weight, start)
    total = tied.config.model.n_params
    assert training.n_parameters(BASELINE, tied.config.model) == total
    assert training.n_parameters("tied", tied.config.model) == total - weight.numel()
    assert trainer.flat.flat.numel() == total - weight.numel()


def test_the_tied_gradient_is_the_sum_of_both() -> None:
    config = SMOKE.config("7k", "tied", 0)
    trainer = training._trainer("tied", config)
    untied = training.make_model(BASELINE, config.model)
    untied.load_state_dict(trainer.model.state_dict())
    untied.loss(rows()).backward()
    trainer.model.loss(rows()).backward()
    both = untied.embed_in.weight.grad + untied.embed_out.weight.grad
    torch.testing.assert_close(trainer.model.embed_in.weight.grad, both)


# --- jobs ------------------------------------------------------------------------------------


def test_the_same_job_gives_the_same_bits() -> None:
    first = training.train(job("window"))["loss"]
    assert first.shape == (len(SMOKE.checkpoints), 94) and np.isfinite(first).all()
    assert np.array_equal(training.train(job("window"))["loss"], first)
    assert training.train(job("window", seed=1))["loss"].mean() != first.mean()


def test_the_measured_loss_is_that_of_the_trained_weights() -> None:
    one = job("sequential")
    loss = training.train(one)["loss"]
    trainer = training._trainer("sequential", one.config)
    for step in range(one.config.train.steps):
        trainer.update(one.data.batch(step, one.config.train.batch_size))
    held = torch.from_numpy(training.heldout_rows(one.data).astype(np.int64))
    with torch.no_grad():
        assert float(trainer.model.loss(held)) == pytest.approx(loss[-1].mean(), abs=1e-5)
    assert loss[-1].mean() < loss[0].mean()


def test_arms_read_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    read: dict[str, list[bytes]] = {}
    update = Trainer.update
    for arm in (BASELINE, "tied", "window"):

        def noted(self: Trainer, batch: np.ndarray, arm: str = arm) -> tuple:
            read.setdefault(arm, []).append(batch.tobytes())
            return update(self, batch)

        monkeypatch.setattr(Trainer, "update", noted)
        training.train(job(arm))
    assert read[BASELINE] == read["tied"] == read["window"]
    assert len(read[BASELINE]) == SMOKE.n_steps


def test_a_stopped_study_repeats_only_what_was_not_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = ablations.measure(SMOKE, progress=False).arrays
    files = sorted(Path(training.results_dir()).rglob("*.safetensors"))
    assert len(files) == 4
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-1])  # damaged
    train, made = training.train, []
    monkeypatch.setattr(training, "train", lambda one: (made.append(one), train(one))[1])
    again = ablations.measure(SMOKE, progress=False).arrays
    assert sorted(one.file for one in made) == files[:2]
    for name in (name for name in whole if name.startswith("loss/")):
        assert np.array_equal(whole[name], again[name]), name


def test_whatever_determines_a_result_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    one = job("tied")
    others = [
        job("window"),
        job("tied", seed=1),
        replace(one, steps=one.steps[:-1]),
        replace(one, config=replace(one.config, train=replace(one.config.train, lr_max=1e-3))),
    ]
    assert len({one.file, *(other.file for other in others)}) == 5
    before = one.file
    monkeypatch.setattr(training, "VERSION", training.VERSION + 1)
    assert one.file != before


def test_times_are_taken_in_turn() -> None:
    ticks = iter(range(1000))
    seconds = training.seconds_per_update(
        [job(BASELINE), job("tied")], progress=False, clock=lambda: float(next(ticks))
    )
    assert seconds.shape == (2, training.ROUNDS)
    assert (seconds == 1 / training.UPDATES).all()


# --- analysis --------------------------------------------------------------------------------


def planted(
    params: Params, shifts: dict[str, float], noise: float = 0.003, speed: float = 1.0
) -> Measurements:
    """Make measurements in which arms differ from Pythia's by `shifts` at the end of training."""
    rng = np.random.default_rng(0)
    arrays, parameters = {}, {}
    for size in params.size_list:
        base = rng.normal(4, 0.05, (params.seeds, 1)) + np.linspace(3, 0, len(params.checkpoints))
        for arm in params.arm_list:
            own = noise * rng.standard_normal(base.shape) * (arm != BASELINE)
            arrays[name_of("loss", size, arm)] = base + own + shifts.get(arm, 0)
            seconds = np.full(5, 0.1) / (1 if arm == BASELINE else speed)
            arrays[name_of("seconds", size, arm)] = seconds
            parameters[name_of(size, arm)] = 1000
    facts = {"parameters": parameters, "heldout_rows": 400}
    return Measurements(arrays, facts | {"init_factors": dict.fromkeys(params.size_list, (5, 17))})


def verdicts(shifts: dict[str, float], params: Params | None = None) -> list[str]:
    params = params or Params(sizes="25k,85k", seeds=6)
    measured = planted(params, shifts)
    result = ablations.conduct(
        "ablations", params, lambda: measured, functools.partial(ablations.analyze, params)
    )
    draw.differences(result), draw.over_training(result), draw.arms_table(result)
    return [row["ours"]["verdict"] for row in result.claims]


def test_equal_arms_are_found_equal() -> None:
    assert verdicts({}) == [
        "not testable here",
        "not testable here",
        "holds",
        "does not hold",
        "holds",
        "holds",
    ]


def test_every_verdict_can_come_out_otherwise() -> None:
    better = verdicts(dict.fromkeys(ARMS, -0.1) | {BASELINE: 0.0, "no_rotary": 0.1})
    assert better[2:] == ["does not hold", "holds", "does not hold", "does not hold"]
    assert verdicts({"no_rotary": -0.1})[3] == "does not hold"


def test_with_one_seed_or_without_an_arm_there_is_no_verdict() -> None:
    assert set(verdicts({}, Params(seeds=1))) == {"not testable here"}
    found = verdicts({}, Params(sizes="25k,85k", arms="tied", seeds=6))
    assert found.count("not testable here") == 5


def test_tables_and_values_have_the_planted_numbers() -> None:
    params = Params(sizes="25k,85k", seeds=6)
    shifts = {"tied": 0.05, "window": -0.02}
    measured = planted(params, shifts, noise=0.001, speed=0.8)
    tables, values, _ = ablations.analyze(params, measured, {})
    for arm, shift in shifts.items():
        assert values[f"change_{arm}"]["value"] == pytest.approx(shift, abs=0.002)
    last = tables["differences"].query("step == 286 and arm == 'tied'")
    assert set(last["size"]) == {"25k", "85k", MEAN}
    assert last.value.tolist() == pytest.approx([0.05] * 3, abs=0.002)
    assert values["speed_tied_smallest"] == "0.80"


def test_a_worse_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, not simulated: an arm with another name is equal, one that is broken is worse."""

    config = Params.config

    def altered(params: Params, size: str, arm: str, seed: int) -> RunConfig:
        base = config(params, size, BASELINE, seed)
        rate = 1e-4 if arm == "sequential" else base.train.lr_max
        return replace(base, train=replace(base.train, lr_max=rate))

    params = Params("smoke", arms="sequential,full_rotary", seeds=2)
    with monkeypatch.context() as patched:
        patched.setattr(Params, "config", altered)
        arrays = ablations.measure(params, progress=False).arrays
    loss = {arm: arrays[name_of("loss", "7k", arm)] for arm in params.arm_list}
    assert np.array_equal(loss["full_rotary"], loss[BASELINE]), "the same model, another name"
    assert (loss["sequential"][:, -1] > loss[BASELINE][:, -1] + 0.3).all()
