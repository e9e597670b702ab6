"""Several processes share a run: its batches, files and errors, and which run it is."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import nbformat
import numpy as np
import pytest
import torch
from command_line import TRAIN, refusal
from continued_fakes import BATCH, SEQ, STEPS, publish
from pythia_book.papermill_engine import PythiaEngine
from pythia_book.plan import Finished
from pythia_book.released.continuation.run import Continued
from tiny_runs import control
from together import __file__ as TOGETHER
from together import config, together, torchrun, train_tiny

from pythia_core.__main__ import main
from pythia_core.config import ModelConfig, RunConfig
from pythia_core.errors import ConfigError, TrainingError
from pythia_core.suite import OFFICIAL_SIZES
from pythia_core.training import distributed, runs
from pythia_core.training.checkpoint import load_checkpoint, saved_steps, step_folder
from pythia_core.training.distributed import ALONE, World, check_memory, init_world, plan_state
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.runs import Run, find_or_train, find_run, locate, verify

TWO = World(0, 2, 2)


def test_a_single_process_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with init_world() as world:
        assert world is ALONE and world.is_rank_zero and world.identity == {}
    with (
        pytest.raises(ConfigError, match="one process cannot shard its state"),
        init_world("always"),
    ):
        pass
    rows = torch.arange(6)
    assert torch.equal(ALONE.share_of(rows), rows)
    ALONE.all_reduce_(rows)
    ALONE.check_same(3, "something", "")
    ALONE.check_shared(Path("nowhere"))
    with ALONE.rank_zero_first():
        assert ALONE.gather(3) == [3] and ALONE.any_of(True, False) == (True, False)
        assert ALONE.any_rank(True) and not ALONE.any_rank(False)
    assert rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_shares_are_contiguous_and_cover_the_batch() -> None:
    rows = torch.arange(24).view(12, 2)
    parts = [World(rank, 4).share_of(rows) for rank in range(4)]
    assert torch.equal(torch.cat(parts), rows) and {len(p) for p in parts} == {3}
    with pytest.raises(ConfigError, match="12 rows cannot be split evenly over 5 processes"):
        World(0, 5).share_of(rows)


# --- where the state fits --------------------------------------------------------------------


def official(size: str) -> RunConfig:
    """The run of an official size, with batches of 1,024 rows of 2,048 tokens in bf16."""
    run = config(batch_size=1024, precision="bf16")
    return replace(run, model=OFFICIAL_SIZES[size].model(), data=replace(run.data, seq_len=2048))


@pytest.mark.parametrize(
    ("size", "world", "shards"),
    [
        ("2.8b", World(0, 16, 8), 1),  # the state fits one GPU
        ("12b", World(0, 16, 8), 8),  # or one node
        ("12b", World(0, 4, 2), 4),  # or only both nodes
        ("12b", World(0, 8, 8), 8),
        ("12b", World(0, 4, 4, "never"), 1),
        ("2.8b", World(0, 16, 8, "always"), 8),
        ("12b", World(0, 2, 2), 2),  # not even then
    ],
)
def test_the_state_is_sharded_over_as_few_processes_as_fit(
    size: str, world: World, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "device_bytes", lambda: 80e9)
    planned = plan_state(world, official(size), EAGER)
    assert planned.shards == shards and planned.size == world.size
    sharded = {"sharded": shards} if shards > 1 else {}
    assert planned.identity == {"processes": world.size, **sharded}
    assert [replace(planned, rank=r).shard_index for r in range(4)] == [
        r % shards for r in range(4)
    ]


def test_a_run_that_fits_no_process_is_refused_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "device_bytes", lambda: 80e9)
    large = official("12b")
    for world in (ALONE, World(0, 2, 2)):
        with pytest.raises(TrainingError, match=r"Shared by 4 processes.*\+recompute"):
            check_memory(plan_state(world, large, EAGER), large, EAGER)
    check_memory(plan_state(World(0, 4, 4), large, EAGER), large, EAGER)
    never = plan_state(World(0, 4, 4, "never"), large, EAGER)
    with pytest.raises(TrainingError, match="without --shard never"):
        check_memory(never, large, EAGER)
    monkeypatch.setattr(distributed, "device_bytes", lambda: 1e9)
    with pytest.raises(TrainingError, match="use a smaller model"):
        check_memory(ALONE, large, EAGER)
    monkeypatch.setattr(distributed, "device_bytes", lambda: None)
    monkeypatch.setattr(distributed, "memory_bytes", lambda: 1e4)  # of a machine without a GPU
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TrainingError, match="does not fit in memory"):
        find_or_train(control(tmp_path), progress=False)


def test_a_sharded_state_cannot_be_compiled() -> None:
    with pytest.raises(ConfigError, match="the execution mode 'compile'"):
        plan_state(replace(TWO, sharding="always"), config(), Execution("compile"))


# --- which run it is -------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """The config of a tiny run, in folders of its own."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    return control(tmp_path)


def place(tiny: RunConfig, world: World) -> Run:
    return locate(tiny, progress=False, world=plan_state(world, tiny, EAGER))


def finish(run: Run) -> None:
    """Make a run look finished, as an older version did it."""
    (run.folder / "done.json").write_text('{"final_sha256": "0", "machine": {}}')


def test_a_run_of_other_processes_is_found(tiny: RunConfig) -> None:
    two, four = place(tiny, TWO), place(tiny, replace(TWO, size=4, sharding="always"))
    assert "-control-x2-" in two.folder.name and two.folder.name.endswith(two.id)
    assert "-control-x4-" in four.folder.name
    code = runs.read_identity(four.folder)["code"]
    assert (code["processes"], code["sharded"]) == (4, 2)
    one = place(tiny, ALONE)
    assert "-x" not in one.folder.name, "none was started, so none is found"
    (step_folder(two.states, 8)).mkdir(parents=True)
    (step_folder(two.states, 8) / "manifest.json").touch()
    for world in (ALONE, replace(TWO, size=4)):
        assert place(tiny, world).folder == two.folder, "unfinished, but started"
    finish(four)
    assert place(tiny, ALONE).folder == four.folder, "finished"
    assert place(tiny, TWO).folder == two.folder, "exactly this one"
    (four.folder / "identity.json").write_text("{")
    assert place(tiny, ALONE).folder == two.folder, "damaged, so not found"


def test_a_finished_run_of_two_processes_is_that_of_a_study(tiny: RunConfig) -> None:
    two = place(tiny, TWO)
    finish(two)
    assert Finished.find().has(tiny)


def test_a_fork_is_that_of_its_control(tiny: RunConfig) -> None:
    fork = tiny.fork("masculine_to_feminine", 12)
    alone = place(fork, ALONE)
    assert "control" not in runs.read_identity(alone.folder)["code"]
    two = place(tiny, TWO)
    finish(two)
    other = place(fork, ALONE)
    assert runs.read_identity(other.folder)["code"]["control"] == two.id
    shared = place(fork, TWO)
    assert shared.id != other.id != alone.id
    finish(shared)
    assert place(fork, ALONE).folder == shared.folder


# --- commands --------------------------------------------------------------------------------


def test_other_commands_refuse_several_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["study", "suite"], ["evaluate", "RUN"], ["verify", "RUN"], ["prepare"]):
        said = refusal(words, capsys)
        assert f"the command `{words[0]}` does not share its work under torchrun" in said
        assert "one worker per GPU: python -m pythia_core worker" in said
    with pytest.raises(click.ClickException, match="a notebook does not share its work"):
        PythiaEngine.execute_notebook(nbformat.v4.new_notebook(), "python3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("pythia_core.util.stopping.LAST_WORDS", 0.0)
    with pytest.raises(SystemExit) as end:
        main(["verify", "RUN"])
    assert end.value.code == 1 and capsys.readouterr().err == ""
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert "WORLD_SIZE must be the number of processes, got 'two'" in refusal(TRAIN, capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set" in refusal(TRAIN, capsys)


@pytest.mark.slow
def test_train_and_continue_share_their_batches_and_are_found_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    fork = [*TRAIN, "--swap", "masculine_to_feminine", "--start-step", "8"]
    (started,) = torchrun(["-m", "pythia_core", *fork, "--shard", "always"], 2)
    out, err = started.communicate(timeout=500)
    assert started.returncode == 0, err
    assert out.count("weights sha256") == 1, "only the first process prints"
    made = sorted(path.name for path in (tmp_path / "results" / "runs").iterdir())
    assert len(made) == 2 and all("-x2-" in name for name in made)
    capfd.readouterr()
    assert main(fork) == 0 and capfd.readouterr().out == out
    for name in made:
        run = find_run(name)
        assert run.model().config == run.config.model and verify(run)
        assert json.loads((run.folder / "done.json").read_text())["processes"] == 2
        assert run.state(12)["optimizer"]["exp_avg"].ndim == 1, "as one process saves it"
    assert sorted(path.name for path in (tmp_path / "results" / "runs").iterdir()) == made


def arms(results: Path, monkeypatch: pytest.MonkeyPatch) -> list[Continued]:
    """The run with the swap, and its control."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(results))
    (swapped,) = (path for path in (results / "runs").iterdir() if "masculine" in path.name)
    run = find_run(str(swapped))
    assert len(run.swaps) == 8 and len(run.steps) == len(run.scheduled_steps)
    assert not list(results.rglob("*.tmp-*"))
    return [run, run.control]


@pytest.mark.slow
def test_two_processes_continue_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    release = publish(tmp_path, monkeypatch)
    how = ["--lr", "1e-2", "--schedule-steps", str(STEPS), "--batch-size", str(BATCH)]
    where = ["--data", str(release.shards), "--seq-len", str(SEQ), "--precision", "fp32"]
    start = ["--revision", "step40", "--steps", "8", "--swap", "masculine_to_feminine"]
    arguments = ["continue", str(release.models), *start, *where, *how]
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "one"))
    assert main(arguments) == 0
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "two"))
    (started,) = torchrun(["-m", "pythia_core", *arguments], 2)
    out, err = started.communicate(timeout=500)
    assert started.returncode == 0, err
    assert out.count("tokens changed") == 1, "only the first process prints"
    alone, shared = (arms(tmp_path / name, monkeypatch) for name in ("one", "two"))
    capfd.readouterr()
    assert main(arguments) == 0 and capfd.readouterr().out == out, "found by one process"
    for one, two in zip(alone, shared, strict=True):
        assert one.id != two.id and "-x2-" in two.folder.name
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


# --- faults ----------------------------------------------------------------------------------


def errors(said: str) -> list[str]:
    """The lines of the processes about their end, without those of torchrun."""
    return [line for line in said.splitlines() if line.startswith(("error: ", "stopped: "))]


@pytest.mark.slow
def test_one_process_with_another_folder_or_a_full_disk_is_an_error_of_all(tmp_path: Path) -> None:
    ((code, said),) = together("apart", tmp_path / "apart")
    assert code and len(errors(said)) == 1, said
    assert "do not share a results folder" in said and "Set PYTHIA_RESULTS" in said
    folder = tmp_path / "full"
    ((code, said),) = together("full", folder)
    assert code and len(errors(said)) == 1, said
    assert "error: process 1: could not save step" in said and "no space left" in said
    assert not list(folder.rglob("*.tmp-*"))
    train_tiny(folder, stop_at=4)
    assert saved_steps(folder / "states")[-1] == 4


def kill_one(pids: list[int], agent: int) -> None:
    """End one process as the system does when memory runs out."""
    os.kill(pids[1], signal.SIGKILL)


def stop_all(pids: list[int], agent: int) -> None:
    """Ask torchrun to stop, as a scheduler does."""
    os.kill(agent, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "line"),
    [
        (kill_one, "error: one of the 2 processes that train together died"),
        (stop_all, "stopped: stopped after saving step"),
    ],
)
def test_a_killed_process_or_a_stop_ends_all_and_training_resumes(
    tmp_path: Path, how: Callable[[list[int], int], None], line: str
) -> None:
    (agent,) = torchrun([TOGETHER, "long", str(tmp_path)], 2)
    try:
        deadline = time.monotonic() + 300
        while not saved_steps(tmp_path / "states") and time.monotonic() < deadline:
            time.sleep(0.1)
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        how([int(pid) for pid in children], agent.pid)
        _, said = agent.communicate(timeout=200)
    finally:
        agent.kill()
        agent.communicate()
    assert agent.returncode and len(errors(said)) == 1, said
    assert errors(said)[0].startswith(line)
    before = saved_steps(tmp_path / "states")[-1]
    with pytest.warns(UserWarning, match=f"training resumes from step {before}, which was saved"):
        train_tiny(tmp_path, stop_at=before + 2, steps=100_000)
    assert saved_steps(tmp_path / "states")[-1] == before + 2
