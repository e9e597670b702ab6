"""Sharded states: any number of processes reads what any other has saved, and trains like one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from together import config, together, train_tiny

from pythia_core.errors import CheckpointError
from pythia_core.model import GPTNeoX
from pythia_core.training.checkpoint import (
    load_checkpoint,
    read_manifest,
    saved_steps,
    sha256_tensors,
    step_folder,
)
from pythia_core.training.metrics import read_metrics
from pythia_core.training.sharding import (
    KINDS,
    MOMENTS,
    Files,
    SavedState,
    shard_rows,
    shard_stem,
    unsharded,
)
from pythia_core.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """A trainer whose weights and moments are all different."""
    trainer = Trainer(config(), CPU)
    for tensor in (trainer.flat.flat, *(getattr(trainer.optimizer, kind) for kind in MOMENTS)):
        tensor.normal_(generator=torch.Generator().manual_seed(len(tensor)))
    return trainer


def shapes(trainer: Trainer) -> Mapping[str, torch.Size]:
    return {name: p.shape for name, p in trainer.model.named_parameters()}


def split(state: Files, trainer: Trainer, count: int) -> Files:
    """The shards in which `count` processes would save a state."""
    saved, files = SavedState(state, shapes(trainer)), {}
    for index in range(count):
        files[shard_stem(index, count)] = {
            f"{kind}/{name}": saved.rows(kind, name, *shard_rows(shape[0], index, count))
            for kind in KINDS
            for name, shape in shapes(trainer).items()
        }
    return files


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_shards_are_those_of_torch_and_make_the_whole_state(trainer: Trainer, count: int) -> None:
    """40 processes: more than rows, so that the last ones have none."""
    for rows in (1, 2, 31, 32, 97):
        parts = torch.arange(rows).chunk(count)
        ours = [torch.arange(*shard_rows(rows, index, count)) for index in range(count)]
        assert torch.equal(torch.cat(ours), torch.arange(rows))
        assert all(torch.equal(a, b) for a, b in zip(ours, parts, strict=False))
    state = {stem: {n: t.clone() for n, t in of.items()} for stem, of in trainer.state().items()}
    files = split(state, trainer, count)
    whole = unsharded(files, config().model)
    assert {s: sha256_tensors(t) for s, t in whole.items()} == {
        s: sha256_tensors(t) for s, t in state.items()
    }
    again = split(files, trainer, 7)
    assert sha256_tensors(unsharded(again, config().model)["optimizer"]) == sha256_tensors(
        state["optimizer"]
    )
    other = Trainer(config(weight_seed=2), CPU)
    other.load_state(5, files)
    assert other.step == 5
    assert sha256_tensors(other.state()["optimizer"]) == sha256_tensors(state["optimizer"])


def test_a_missing_shard_or_another_architecture_is_refused(trainer: Trainer) -> None:
    files = split(trainer.state(), trainer, 3)
    with pytest.raises(CheckpointError, match="should have 3 shards, but has 2"):
        SavedState({s: t for s, t in files.items() if "00001-of" not in s}, shapes(trainer))
    wide = {name: torch.Size([2 * shape[0], *shape[1:]]) for name, shape in shapes(trainer).items()}
    with pytest.raises(CheckpointError, match="has a different architecture from the config"):
        SavedState(files, wide)


def log(folder: Path) -> dict[str, np.ndarray]:
    """The columns of a log."""
    rows = read_metrics(folder / "metrics.jsonl")
    return {
        key: np.array([row[key] for row in rows]) for key in ("step", "loss", "grad_norm", "lr")
    }


def hashes(folder: Path) -> list[str]:
    return [row["batch_hash"] for row in read_metrics(folder / "metrics.jsonl")]


def assert_like_one(folder: Path, one: Path, tolerance: float) -> None:
    """Assert that the log of a run is that of one process, but for rounding errors."""
    expected, got = log(one), log(folder)
    assert hashes(folder) == hashes(one)[: len(got["step"])]
    for name, column in got.items():
        np.testing.assert_allclose(column, expected[name][: len(column)], rtol=tolerance)


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The saved weights of a step, without biases whose gradient is only rounding errors."""
    saved = load_checkpoint(step_folder(folder / "checkpoints", step))[0]["model"]
    return {n: t for n, t in saved.items() if not n.endswith("query_key_value.bias")}


@pytest.mark.slow
def test_two_processes_train_like_one_whether_sharded_or_not(tmp_path: Path) -> None:
    ((code, said),) = together("both", tmp_path)
    assert code == 0, said
    one = tmp_path / "one"
    train_tiny(one)
    for name in ("flat", "sharded"):
        assert_like_one(tmp_path / name, one, 1e-5)
        for step in (0, 12):  # the first is the same, bit for bit
            for parameter, tensor in weights(tmp_path / name, step).items():
                atol = 1e-5 * bool(step)
                expected = weights(one, step)[parameter]
                torch.testing.assert_close(tensor, expected, atol=atol, rtol=0)
        rows = read_metrics(tmp_path / name / "metrics.jsonl")
        assert {row["processes"] for row in rows} == {2}
    state = step_folder(tmp_path / "sharded" / "states", 12)
    assert [*read_manifest(state)["files"]] == [f"{shard_stem(i, 2)}.safetensors" for i in (0, 1)]
    assert not list(tmp_path.rglob("*.tmp-*"))
    for precision in ("bf16", "fp16"):
        flat, sharded = (tmp_path / f"{name}-{precision}" for name in ("flat", "sharded"))
        assert_like_one(sharded, flat, 2e-2)
        dtypes = [{n: t.dtype for n, t in weights(f, 4).items()} for f in (flat, sharded)]
        assert dtypes[0] == dtypes[1] and len({*dtypes[0].values()}) == 2
        first = [sha256_tensors(weights(f, 0)) for f in (flat, sharded)]
        assert first[0] == first[1]
    scaler = [load_checkpoint(step_folder(f / "states", 4))[0]["scaler"] for f in (flat, sharded)]
    assert scaler[0] == scaler[1] and scaler[0]["scale"] == 4096


@pytest.mark.slow
def test_two_then_four_on_two_nodes_then_one_resume_from_each_other(tmp_path: Path) -> None:
    folder, one = tmp_path / "run", tmp_path / "one"
    train_tiny(one)
    assert together("start", folder)[0][0] == 0
    for code, said in together("part", folder, size=4, nodes=2):  # each node has a whole state
        assert code == 0, said
    newest = step_folder(folder / "states", 8)
    assert [*read_manifest(newest)["files"]] == [f"{shard_stem(i, 2)}.safetensors" for i in (0, 1)]
    older = saved_steps(folder / "states")[-2]
    shard = newest / f"{shard_stem(1, 2)}.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content)
    with pytest.warns(UserWarning) as warned:
        train_tiny(folder)
    said = " ".join(str(each.message) for each in warned)
    assert "step-000008 was renamed to step-000008.corrupt" in said
    assert "with a different number of processes" in said
    assert_like_one(folder, one, 1e-5)
    rows = read_metrics(folder / "metrics.jsonl")
    stretches = [2] * 4 + [4] * (older - 4) + [None] * (12 - older)
    assert [row.get("processes") for row in rows] == stretches
    assert saved_steps(folder / "checkpoints") == saved_steps(one / "checkpoints")
    for name, tensor in weights(folder, 12).items():
        torch.testing.assert_close(tensor, weights(one, 12)[name], atol=1e-5, rtol=0)


def test_initial_weights_of_shards_need_no_other_generator() -> None:
    """Each process draws whole tensors in the model's order, as `init_weights` does."""
    model = GPTNeoX(config().model)
    model.init_weights(7)
    generator = torch.Generator().manual_seed(7)
    for name, p in model.named_parameters():
        whole = torch.empty(p.shape)
        model.init(name, whole, generator)
        assert torch.equal(whole, p)
