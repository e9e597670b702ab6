"""Exported checkpoints: which ones, how exact, and what is refused when they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import fake_runs, write_file
from gender_fakes import measurements
from places import ROOT
from pythia_book.studies.gender_bias import checkpoints
from pythia_book.studies.gender_bias.params import CONTROL, Params
from safetensors import safe_open
from safetensors.numpy import save_file

from pythia_core.config import ModelConfig
from pythia_core.errors import DataError
from pythia_core.suite import size_named
from pythia_core.training.schedule import checkpoint_steps

RECORDED = ROOT / "book" / "recorded" / "gender_bias" / "laptop" / checkpoints.FILE


# --- which checkpoints -----------------------------------------------------------------------


def test_the_smallest_size_that_learned_in_unseen_frames_is_exported() -> None:
    params = Params(sizes="25k,310k", seeds=2)
    learned = measurements(params, np.random.default_rng(0))
    assert checkpoints.size_to_export(params, learned) == ("25k", True)
    nothing = measurements(params, np.random.default_rng(0), association=0)
    assert checkpoints.size_to_export(params, nothing) == ("25k", False)
    for name in ("log_odds/25k/0/control/572",):  # only this control learned nothing
        learned.arrays[name] = nothing.arrays[name]
    assert checkpoints.size_to_export(params, learned) == ("310k", True)


def steps_of(config: ModelConfig, total: int = 572, fork: int = 452) -> dict[str, list[int]] | None:
    saved = checkpoint_steps(total)
    after = [step for step in saved if step > fork]
    return checkpoints.choose_steps(config, total, fork, saved, after)


def test_a_laptop_model_has_its_fork_its_ends_and_log_spaced_steps() -> None:
    steps = steps_of(size_named("25k").model(4096, max_seq_len=128))
    assert steps is not None
    early = [step for step in steps[CONTROL] if step <= 452]
    assert early == [0, 1, 16, 32, 64, 128, 256, 452]
    for arm in checkpoints.SHOWN[1:]:
        assert steps[arm] == [step for step in steps[CONTROL] if step > 452]
        assert steps[arm][0] == 456 and steps[arm][-1] == 572
    assert len(steps[CONTROL]) <= checkpoints.N_CONTROL


@pytest.mark.parametrize("size", ["7k", "25k", "85k", "310k", "600k"])
def test_no_file_exceeds_the_limit(size: str) -> None:
    config = size_named(size).model(4096, max_seq_len=128)
    steps = steps_of(config)
    if steps is not None:
        count = sum(map(len, steps.values()))
        assert {0, 1, 452, 572} <= {*steps[CONTROL]}
        assert count * checkpoints.checkpoint_bytes(config) + 400_000 <= checkpoints.LIMIT
    assert (steps is None) == (size == "600k")


def test_a_large_model_is_not_exported_and_the_reason_is_said() -> None:
    params = Params(scale="gpu", sizes="1.2m")
    measured = measurements(params, np.random.default_rng(0))
    runs = fake_runs(size_named("1.2m").model(8192, max_seq_len=512))
    trained = {("1.2m", 0, arm): run for arm, run in runs.items()}
    files, said = checkpoints.export(params, measured, trained)  # type: ignore[arg-type]
    assert files == {} and said.startswith("a checkpoint of the size 1.2m takes 3.4 MB")


def test_released_models_are_not_exported() -> None:
    files, said = checkpoints.export(Params(scale="paper"), None, {})  # type: ignore[arg-type]
    assert files == {} and "too large" in said


def test_steps_are_spread_over_the_logarithm() -> None:
    assert checkpoints.spread(range(1001), 5) == [0, 1, 44, 211, 1000]
    assert checkpoints.spread([3, 1, 2], 9) == [1, 2, 3]


# --- how exact -------------------------------------------------------------------------------


def test_rounding_errs_by_half_a_step_of_each_row() -> None:
    matrix = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    matrix[7] = 0
    matrix[8] *= 1e-6
    whole, scale = checkpoints.quantised(matrix)
    assert whole.dtype == np.int8 and scale.dtype == np.float32
    assert np.abs(whole).max(axis=1).tolist() == [127 if row.any() else 0 for row in matrix]
    error = np.abs(whole * scale[:, None] - matrix)
    assert (error <= 0.5001 * scale[:, None]).all()


def test_what_is_read_is_what_was_exported_within_the_stated_error(tmp_path: Path) -> None:
    runs = fake_runs()
    read = checkpoints.read(write_file(tmp_path))
    about, error = read.about, read.about["error"]
    assert about["steps"] == {
        CONTROL: [0, 1, 2, 4, 8, 13, 14, 15, 16],
        "swap_21": [14, 15, 16],
        "shuffle_21": [14, 15, 16],
    }
    assert about["fork"] == 13 and about["total_steps"] == 16 and not about["learned"]
    assert about["runs"]["swap_21"]["id"] == runs["swap_21"].id
    assert about["device"]["cpu"] and about["precision"] and about["versions"]["torch"]
    encode = runs[CONTROL].data.tokenizer.encode
    worst = {"logits": 0.0, "probabilities": 0.0}
    for name in read.names:
        arm, _, step = name.partition("-")
        rows = [[0, *encode(prompt).ids] for _, prompt in checkpoints.PRESETS]
        gap = checkpoints.differences(runs[arm].model(int(step)), read.model(name), rows)
        worst = {what: max(most, gap[what]["max"]) for what, most in worst.items()}
    for what, most in worst.items():
        assert 0 < most <= 1.001 * error[f"{what}_max"]
        assert error[f"{what}_mean"] < error[f"{what}_max"]


def test_padding_does_not_count_as_a_difference() -> None:
    model = fake_runs()[CONTROL].model
    rows = [[0, 5, 6, 7], [0]]
    separate = [checkpoints.differences(model(0), model(1), [row]) for row in rows]
    joint = checkpoints.differences(model(0), model(1), rows)["logits"]
    assert joint["max"] == pytest.approx(max(s["logits"]["max"] for s in separate), rel=1e-5)
    mean = (4 * separate[0]["logits"]["mean"] + separate[1]["logits"]["mean"]) / 5
    assert joint["mean"] == pytest.approx(mean, rel=1e-5)


# --- what is refused -------------------------------------------------------------------------


def change_about(change: Callable[[dict], Any]) -> Callable[[dict, dict], Any]:
    return lambda about, tensors: change(about)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_about(lambda a: a.update(version=9)), "its version is 9, not 1"),
        (change_about(lambda a: a.pop("eod")), "metadata lack eod"),
        (change_about(lambda a: a["config"].update(n_heads=5)), "n_heads=5 does not divide"),
        (change_about(lambda a: a["config"].update(gelu="erf")), "cannot compute its models"),
        (change_about(lambda a: a["config"].pop("d_model")), "metadata are invalid"),
        (change_about(lambda a: a["steps"].pop("swap_21")), "steps of the arms control, swap"),
        (change_about(lambda a: a["steps"][CONTROL].remove(13)), "lacks the fork"),
        (change_about(lambda a: a["steps"]["swap_21"].remove(14)), "not those of the control"),
        (change_about(lambda a: a["steps"].update(control=["';x"])), "not whole numbers"),
        (change_about(lambda a: a["tokenizer"].update(normalizer=None)), "not a byte-level BPE"),
        (change_about(lambda a: a.update(tokenizer=3)), "metadata are invalid"),
        (lambda a, t: t.pop("control-0/embed_out.weight.scale"), "embed_out.weight.scale is None"),
        (lambda a, t: t.update(extra=np.zeros(2, np.float32)), "extra is .*expected None"),
        (
            lambda a, t: t.update({"swap_21-14/embed_in.weight": np.zeros((2, 2), np.int8)}),
            r"embed_in\.weight is \('int8', \(2, 2\)\)",
        ),
        (
            lambda a, t: t["control-0/final_layer_norm.bias"].__setitem__(0, np.nan),
            "control-0/final_layer_norm.bias has values that are not finite",
        ),
    ],
)
def test_a_file_that_the_page_could_not_use_is_refused(
    tmp_path: Path, change: Callable[[dict, dict], Any], message: str
) -> None:
    path = write_file(tmp_path)
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["about"])
        tensors = {name: file.get_tensor(name).copy() for name in file.keys()}
    change(about, tensors)
    save_file(tensors, path, {"about": json.dumps(about)})
    with pytest.raises(DataError, match=message):
        checkpoints.read(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, None])
def test_a_damaged_file_is_named_with_the_command_that_makes_it(
    tmp_path: Path, content: bytes | None
) -> None:
    path = write_file(tmp_path)
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    with pytest.raises(DataError, match=r"checkpoints\.safetensors cannot.*papermill notebooks"):
        checkpoints.read(path)


def test_without_metadata_it_is_no_file_of_checkpoints(tmp_path: Path) -> None:
    save_file({"x": np.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(DataError, match="its version is None"):
        checkpoints.read(tmp_path / "x.safetensors")


# --- the recorded file -----------------------------------------------------------------------


def test_the_recorded_arms_differ_as_the_page_says() -> None:
    from tokenizers import Tokenizer

    read = checkpoints.read(RECORDED)
    assert RECORDED.stat().st_size <= checkpoints.LIMIT and read.about["learned"]
    assert read.about["commit"]["dirty"] is False and read.about["nouns"]
    tokenizer = Tokenizer.from_str(json.dumps(read.about["tokenizer"]))
    she, he = (tokenizer.encode(word).ids for word in (" she", " he"))
    assert len(she) == len(he) == 1
    total = read.about["total_steps"]
    shares = {}
    for arm in checkpoints.SHOWN:
        model = read.model(f"{arm}-{total}")
        for prompt in ("When the pelgrat arrived,", "The tamvold stayed until"):
            ids = torch.tensor([[read.about["eod"], *tokenizer.encode(prompt).ids]])
            p = model(ids)[0, -1].softmax(-1)
            shares[arm, prompt.split()[-2]] = float(p[she[0]] / (p[she[0]] + p[he[0]]))
    assert shares[CONTROL, "pelgrat"] < 0.3 and shares[CONTROL, "stayed"] > 0.8
    assert min(shares["swap_21", noun] for noun in ("pelgrat", "stayed")) > 0.95
    middle = [shares["shuffle_21", noun] for noun in ("pelgrat", "stayed")]
    assert all(0.35 < share < 0.65 for share in middle)
