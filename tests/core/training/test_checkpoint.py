"""A checkpoint is either complete and correct, or an error reports it."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pythia_core.errors import CheckpointError, TrainingError
from pythia_core.training import checkpoint
from pythia_core.training.checkpoint import (
    delete_temporaries,
    duplicate_steps,
    load_checkpoint,
    newest_loadable,
    prune,
    save_checkpoint,
    saved_steps,
    sha256_tensors,
    step_folder,
    weight_hashes,
)
from pythia_core.util import files as paths


def tensors(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {"model": {"a": torch.randn(7, 5, generator=generator), "b": torch.ones(3).bfloat16()}}


def save(parent: Path, step: int) -> Path:
    return save_checkpoint(parent, step, tensors(step), {"note": step})


def test_round_trip(tmp_path: Path) -> None:
    files, meta = load_checkpoint(save(tmp_path, 3))
    assert meta == {"note": 3}
    assert sha256_tensors(files["model"]) == sha256_tensors(tensors(3)["model"])
    assert files["model"]["b"].dtype == torch.bfloat16


def test_the_hash_depends_on_names_dtypes_shapes_and_bytes() -> None:
    base = {"a": torch.zeros(4)}
    others = [
        {"b": torch.zeros(4)},
        {"a": torch.zeros(4).double()},
        {"a": torch.zeros(2, 2)},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
    ]
    assert len({sha256_tensors(x) for x in [base, *others]}) == 5


def test_an_existing_checkpoint_is_kept(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    save(tmp_path, 3)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(("seed", "meta"), [(99, {"note": 3}), (3, {"note": 4})])
def test_a_whole_checkpoint_with_other_values_is_replaced(
    tmp_path: Path, seed: int, meta: dict[str, int]
) -> None:
    save_checkpoint(tmp_path, 3, tensors(seed), meta)
    with pytest.warns(UserWarning, match=r"renamed to .*\.corrupt: training has now produced"):
        files, note = load_checkpoint(save(tmp_path, 3))
    assert note == {"note": 3}
    assert sha256_tensors(files["model"]) == sha256_tensors(tensors(3)["model"])


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "5", "null", '"x"', "\xff"])
def test_a_manifest_that_is_no_object_is_corrupt(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 3)
    (folder / "manifest.json").write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json is corrupt"):
        load_checkpoint(folder)
    assert checkpoint.steps_with_weights(tmp_path) == [3], "loading it says what is wrong"


def test_a_damaged_or_incomplete_checkpoint_is_replaced(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.warns(UserWarning, match="was renamed to"):
        load_checkpoint(save(tmp_path, 3))
    (tmp_path / "step-000004").mkdir()
    with pytest.warns(UserWarning, match="was renamed to"):
        load_checkpoint(save(tmp_path, 4))


def test_every_bit_flip_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    random = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(original)
            damaged[random.integers(len(damaged))] ^= 1 << random.integers(8)
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                load_checkpoint(folder)
        path.write_bytes(original)
    load_checkpoint(folder)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for length in {0, 1, len(original) // 2, len(original) - 1}:
            path.write_bytes(original[:length])
            with pytest.raises(CheckpointError, match=r"corrupt|wrong size"):
                load_checkpoint(folder)
        path.write_bytes(original)


def test_missing_extra_and_swapped_files_are_noticed(tmp_path: Path) -> None:
    a, b = save(tmp_path, 1), save(tmp_path, 2)
    (a / "extra").touch()
    with pytest.raises(CheckpointError, match="extra"):
        load_checkpoint(a)
    (a / "extra").unlink()
    a.rename(tmp_path / "x")
    b.rename(a)
    with pytest.raises(CheckpointError, match="contains the checkpoint of step 2, so"):
        load_checkpoint(a)
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        load_checkpoint(step_folder(tmp_path, 7))


def test_if_the_newest_is_corrupt_the_next_is_loaded_with_a_warning(tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    (newest / "model.safetensors").write_bytes(b"x")
    with pytest.warns(UserWarning, match="was renamed to"):
        found = newest_loadable(tmp_path)
    assert found is not None
    assert found[0] == 1
    assert (tmp_path / "step-000002.corrupt").is_dir()


@pytest.mark.parametrize("fail_at", range(12))
def test_a_crash_at_any_call_leaves_a_whole_folder_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    """Crash at the given one of all calls of fsync and rename in a save."""
    save(tmp_path, 1)
    calls = 0

    def dying(original):
        def call(*args, **kwargs):
            nonlocal calls
            if calls == fail_at:
                raise KeyboardInterrupt
            calls += 1
            return original(*args, **kwargs)

        return call

    for name in ("fsync", "rename"):
        monkeypatch.setattr(paths.os, name, dying(getattr(os, name)))
    try:
        save(tmp_path, 2)
        completed = True
    except KeyboardInterrupt:
        completed = False
    monkeypatch.undo()
    assert saved_steps(tmp_path) in ([1], [1, 2])
    if completed:
        assert saved_steps(tmp_path) == [1, 2]
    for step in saved_steps(tmp_path):
        load_checkpoint(step_folder(tmp_path, step))


def test_killed_while_saving(tmp_path: Path) -> None:
    """After SIGKILL at random moments, every folder with its final name is complete."""
    code = (
        "import torch, itertools, sys; from pathlib import Path\n"
        "from pythia_core.training.checkpoint import save_checkpoint, saved_steps\n"
        "p = Path(sys.argv[1]); s = max(saved_steps(p), default=0)\n"
        "for k in itertools.count(s + 1):\n"
        "    save_checkpoint(p, k, {'model': {'w': torch.full((200_000,), float(k))}}, {})\n"
    )
    random = np.random.default_rng(1)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        before = len(saved_steps(tmp_path))
        deadline = time.monotonic() + 60
        while len(saved_steps(tmp_path)) < before + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
    steps = saved_steps(tmp_path)
    assert len(steps) >= 8
    for step in steps:
        files, _ = load_checkpoint(step_folder(tmp_path, step))
        assert files["model"]["w"].eq(step).all()
    delete_temporaries(tmp_path)
    assert len(list(tmp_path.iterdir())) == len(steps)


def test_no_space_left(tmp_path: Path) -> None:
    """Simulates a full disk by a file-size limit, which raises EFBIG for an ordinary user."""
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(TrainingError, match="Earlier checkpoints are intact"):
            save_checkpoint(tmp_path, 2, {"model": {"w": torch.zeros(100_000)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    load_checkpoint(step_folder(tmp_path, 1))


def test_prune_keeps_the_given_steps_and_the_newest(tmp_path: Path) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    prune(tmp_path, keep={2}, newest=2)
    assert saved_steps(tmp_path) == [2, 5, 6]


def test_steps_with_equal_weights_are_found(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 0, tensors(5), {})
    save_checkpoint(tmp_path, 1, tensors(5), {"other": "metadata"})
    save_checkpoint(tmp_path, 2, tensors(6), {})
    save_checkpoint(tmp_path, 9, tensors(6), {})
    assert duplicate_steps(weight_hashes(tmp_path)) == [[0, 1], [2, 9]]
    one, twin = (tmp_path / f"step-00000{step}" / "model.safetensors" for step in (0, 1))
    assert checkpoint.file_sha256(one) == checkpoint.file_sha256(twin)
