"""Steps that are served under a wrong name are found, as they were on the hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import FakeHub, serving
from pythia_book.released.audit import LAST, audit
from safetensors.torch import save
from tiny_models import random_model, tiny

from pythia_core import hf
from pythia_core.__main__ import main
from pythia_core.errors import CheckpointError, FetchError
from pythia_core.training.checkpoint import save_checkpoint, sha256_tensors
from pythia_core.training.schedule import OFFICIAL_STEPS, checkpoint_steps

REPO = "EleutherAI/pythia-tiny"
STEPS = checkpoint_steps(OFFICIAL_STEPS)
SHARDS = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]


def blob(seed: int) -> bytes:
    return save({"w": torch.full((2,), float(seed))}, {"format": "pt"})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A sound model: 154 steps and main, equal weights only where they should be."""
    fake = FakeHub()
    fake.repos[REPO] = {
        f"step{step}": {"config.json": b"{}", "model.safetensors": blob(max(step, 1))}
        for step in STEPS
    }
    fake.repos[REPO]["main"] = dict(fake.repos[REPO][LAST])
    yield from serving(fake, monkeypatch, tmp_path / "cache")


def test_a_sound_model(server: FakeHub, capsys: pytest.CaptureFixture) -> None:
    found = audit(REPO, progress=False)
    assert not found.defects() and not found.missing
    assert len(found.sound) == 155
    assert main(["verify", REPO]) == 0
    shown = capsys.readouterr().out
    assert "equal weights in step0, step1 (expected, because the first update has" in shown
    assert f"equal weights in {LAST}, main (expected, because main is the last step)" in shown
    assert hashlib.sha256(blob(3000)).hexdigest() in shown
    assert not [line for line in server.requests if "/resolve/" in line], "nothing is downloaded"


def test_the_defect_of_2_8b(server: FakeHub, capsys: pytest.CaptureFixture) -> None:
    """76 branches have the weights of main, ten share another set of weights."""
    model = server.repos[REPO]
    early = [f"step{step}" for step in STEPS[2:88]]
    for name in early[:76]:
        model[name] = dict(model["main"])
    for name in early[76:]:
        model[name] = {"model.safetensors": blob(-1)}
    found = audit(REPO, progress=False)
    groups = {len(names): names for names, reason in found.duplicates() if not reason}
    assert sorted(groups) == [10, 78]
    assert set(groups[78]) == {*early[:76], LAST, "main"} and set(groups[10]) == set(early[76:])
    assert len({entry.whole for entry in found.sound}) == 154 - 86 - 1 + 1
    assert main(["verify", REPO]) == 1
    captured = capsys.readouterr()
    assert "DEFECT 78 revisions have the same weights" in captured.out
    assert "and 66 more" in captured.out
    assert "2 defects, listed above" in captured.err


def test_the_defect_of_12b(server: FakeHub) -> None:
    """The first shard of two steps is that of the last."""
    model = server.repos[REPO]
    for step in STEPS:
        model[f"step{step}"] = {
            name: blob(1000 * max(step, 1) + i) for i, name in enumerate(SHARDS)
        }
    model["main"] = dict(model[LAST])
    assert not audit(REPO, progress=False).defects()
    for name in ("step50000", "step58000"):
        model[name][SHARDS[0]] = model["main"][SHARDS[0]]
    found = audit(REPO, progress=False)
    assert found.shared_parts() == [(SHARDS[0], ["step50000", "step58000", LAST, "main"])]
    assert len(found.defects()) == 1


def test_missing_steps_and_steps_without_weights(server: FakeHub) -> None:
    model = server.repos[REPO]
    del model["step4000"], model["step512"], model["step32000"]["model.safetensors"]
    found = audit(REPO, progress=False)
    assert found.missing == [512, 4000, 32000]
    first, second = found.defects()
    assert first == "step32000: there are no files with weights"
    assert second == "3 of the 154 steps of a Pythia model are missing: 512, 4000, 32000"


def test_pickles_on_the_hub_are_compared_too(server: FakeHub) -> None:
    for name, files in server.repos[REPO].items():
        if name != "main":
            files["pytorch_model.bin"] = files.pop("model.safetensors")
    server.repos[REPO]["step9000"]["pytorch_model.bin"] = blob(8000)
    assert audit(REPO, progress=False).defects() == [
        "2 revisions have the same weights, so at least one of the revisions has the "
        "weights of another step: step8000, step9000"
    ]


def test_step_1_that_differs_from_step_0(server: FakeHub) -> None:
    server.repos[REPO]["step1"]["model.safetensors"] = blob(-5)
    assert "step0 and step1 differ" in audit(REPO, progress=False).report()


def test_unknown_repositories(server: FakeHub) -> None:
    with pytest.raises(FetchError, match="no public repository"):
        audit("EleutherAI/pythia-none")
    server.repos["a/b"] = {"v1": {}}
    with pytest.raises(CheckpointError, match="no revision named like step3000"):
        audit("a/b")


# --- folders ---------------------------------------------------------------------------------


def step_folders(root: Path, **shapes: int) -> None:
    for step in (0, 1, 2, 1000, 2000):
        hf.save(random_model(tiny(n_layers=1), max(step, 1)), root / f"step{step}", **shapes)


def test_folders_are_compared_by_their_tensors(tmp_path: Path) -> None:
    """In one file or several, under either name of the unembedding."""
    step_folders(tmp_path)
    model = random_model(tiny(n_layers=1), 2000)
    hf.save(model, tmp_path / "step4000", shard_bytes=30_000)
    found = audit(str(tmp_path), progress=False)
    assert [e.revision for e in found.entries] == [
        "step0", "step1", "step2", "step1000", "step2000", "step4000",
    ]  # fmt: skip
    assert found.duplicates() == [
        (["step0", "step1"], "expected, because the first update has the learning rate 0"),
        (["step2000", "step4000"], ""),
    ]
    assert found.entries[-1].whole == sha256_tensors(model.state_dict())
    assert len(found.missing) == 148


def test_a_shard_of_another_step(tmp_path: Path) -> None:
    step_folders(tmp_path, shard_bytes=30_000)
    shard = sorted((tmp_path / "step2000").glob("model-*"))[0].name
    (tmp_path / "step1000" / shard).write_bytes((tmp_path / "step2000" / shard).read_bytes())
    assert audit(str(tmp_path), progress=False).shared_parts() == [
        (shard, ["step1000", "step2000"])
    ]


def weight_seed(root: Path, step_0: int, start: int, order: int) -> None:
    """The steps of a run: step 0 by one seed, the others from the weights of another seed."""
    model, change = random_model(tiny(n_layers=1), start), random_model(tiny(n_layers=1), order)
    moved = zip(model.parameters(), change.parameters(), strict=True)
    hf.save(random_model(tiny(n_layers=1), step_0), root / "step0")
    for step in (1, 4, 64, 1000):
        hf.save(model, root / f"step{step}")
        with torch.no_grad():
            for weight, other in moved if step == 1 else ():
                weight.add_(other, alpha=0.5)


def test_the_defect_of_the_weight_seeds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """From step 1 on, the runs continue from weights that they share, not from their step 0."""
    for seed in (1, 2):
        weight_seed(tmp_path / f"weight-seed{seed}", seed, start=5, order=10 + seed)
        weight_seed(tmp_path / f"sound{seed}", seed, start=seed, order=10 + seed)
    for seed in (1, 2):
        sound, defective = (
            audit(str(tmp_path / f"{name}{seed}"), progress=False)
            for name in ("sound", "weight-seed")
        )
        assert not sound.unrelated
        assert "early revisions that continue from step0: step1, step4, step64" in sound.report()
        assert defective.unrelated == ["step1", "step4", "step64"]
        defects = "".join(defective.defects())
        assert "revisions that do not continue from step0: step1, step4, step64" in defects
    assert main(["verify", str(tmp_path / "weight-seed1")]) == 1
    assert "DEFECT revisions that do not continue from step0" in capsys.readouterr().out


def test_damaged_folders_pointers_and_our_checkpoints(tmp_path: Path) -> None:
    step_folders(tmp_path)
    file = tmp_path / "step2" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    digest = hashlib.sha256(b"x").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 1\n"
    (tmp_path / "step1000" / "model.safetensors").write_text(pointer)
    ours = random_model(tiny(n_layers=1), 2000)
    save_checkpoint(tmp_path, 3000, {"model": ours.state_dict()}, {})
    (tmp_path / "step7").mkdir()
    found = audit(str(tmp_path), progress=False)
    assert {e.revision: e.whole for e in found.entries}["step1000"] == digest
    assert (["step2000", "step3000"], "") in found.duplicates()
    assert "truncated or damaged" in found.defects()[0]
    assert found.defects()[1] == "step7: there are no files with weights"


def test_a_folder_without_steps(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert "pass the folder that contains the folders of the steps" in capsys.readouterr().err
