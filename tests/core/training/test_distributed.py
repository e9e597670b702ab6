"""Two processes train like one: same batches, same losses up to rounding, one set of files."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from continued_fakes import BATCH, SEQ, STEPS, publish
from places import ROOT
from pythia_book.released.continuation.run import Continued

from pythia_core.__main__ import main
from pythia_core.config import ModelConfig
from pythia_core.errors import ConfigError
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder
from pythia_core.training.distributed import ALONE, World, init_world
from pythia_core.training.runs import find_run


def test_a_single_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_world() as world:
        assert world is ALONE and world.is_rank_zero
    rows = torch.arange(6)
    assert ALONE.shard(rows) is not None and torch.equal(ALONE.shard(rows), rows)
    ALONE.all_reduce_(rows)
    ALONE.check_same(3, "something")
    assert (
        rows.tolist() == [0, 1, 2, 3, 4, 5] and ALONE.any_rank(True) and not ALONE.any_rank(False)
    )


def test_shards_are_contiguous_and_cover_the_batch() -> None:
    rows = torch.arange(24).view(12, 2)
    parts = [World(rank, 4).shard(rows) for rank in range(4)]
    assert torch.equal(torch.cat(parts), rows) and {len(p) for p in parts} == {3}
    with pytest.raises(ConfigError, match="12 rows cannot be split evenly over 5 processes"):
        World(0, 5).shard(rows)


def launch(arguments: list[str], results: Path, size: int) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of `size` processes, started as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(size):
        named = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
        where = {"MASTER_ADDR": "127.0.0.1", "PYTHIA_RESULTS": str(results)}
        given = os.environ | where | {name: str(value) for name, value in named.items()}
        command = [sys.executable, "-m", "pythia_core", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(command, cwd=ROOT, env=given, text=True, **pipes))
    said = [process.communicate(timeout=240) for process in running]
    return [(p.returncode, out, err) for p, (out, err) in zip(running, said, strict=True)]


def arms(results: Path, monkeypatch: pytest.MonkeyPatch) -> list[Continued]:
    """The run with the swap, and its control."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(results))
    (swapped,) = (path for path in (results / "runs").iterdir() if "masculine" in path.name)
    run = find_run(str(swapped))
    assert len(run.swaps) == 8 and len(run.steps) == len(run.scheduled_steps)
    assert not list(results.rglob("*.tmp-*"))
    return [run, run.control]


def test_two_processes_train_like_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = publish(tmp_path, monkeypatch)
    how = ["--lr", "1e-2", "--schedule-steps", str(STEPS), "--batch-size", str(BATCH)]
    where = ["--data", str(release.shards), "--seq-len", str(SEQ), "--precision", "fp32"]
    start = ["--revision", "step40", "--steps", "8", "--swap", "masculine_to_feminine"]
    arguments = ["continue", str(release.models), *start, *where, *how]
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "one"))
    assert main(arguments) == 0
    first, second = launch(arguments, tmp_path / "two", 2)
    assert first[0] == second[0] == 0, (first, second)
    assert "tokens changed" in first[1] and second[1] == "", "only the first process prints"
    alone, shared = (arms(tmp_path / name, monkeypatch) for name in ("one", "two"))
    for one, two in zip(alone, shared, strict=True):
        assert one.id == two.id, "the identity does not depend on the number of processes"
        rows, others = one.metrics(), two.metrics()
        assert [r["batch_hash"] for r in rows] == [r["batch_hash"] for r in others]
        for name in ("loss", "grad_norm", "lr"):
            expected = [row[name] for row in rows]
            np.testing.assert_allclose([row[name] for row in others], expected, rtol=1e-4)
        for name in ("exp_avg", "exp_avg_sq"):
            moments = [final_moments(run)[name] for run in (one, two)]
            torch.testing.assert_close(moments[1], moments[0], atol=1e-6, rtol=1e-4)
        weights, moved = two.model(), sum(row["lr"] for row in rows)
        for name, tensor in one.model().state_dict().items():
            got = weights.state_dict()[name]
            noise = has_zero_gradient(name, tensor, weights.config)
            torch.testing.assert_close(got[~noise], tensor[~noise], atol=1e-6, rtol=1e-4)
            assert ((got - tensor)[noise].abs() <= 2 * moved).all()


def final_moments(run: Continued) -> dict[str, torch.Tensor]:
    """Adam's moments after the last update: running means of the gradients and their squares."""
    files, _ = load_checkpoint(step_folder(run.states, saved_steps(run.states)[-1]))
    return files["optimizer"]


def has_zero_gradient(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """Mask of the entries of a parameter whose gradient is zero, except for rounding errors.

    The bias of the keys' unrotated dims adds the same to all scores of a query, which softmax
    ignores. Adam divides the rounding error in its gradient by its own size, so these entries move
    by about the learning rate, in a direction that depends on the order of summation.
    """
    if not name.endswith("attention.query_key_value.bias"):
        return torch.zeros_like(tensor, dtype=torch.bool)
    packed = torch.zeros(config.n_heads, 3, config.head_dim, dtype=torch.bool)
    packed[:, 1, config.rotary_dims :] = True
    return packed.flatten()
