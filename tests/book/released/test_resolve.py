"""A name on the command line is a run or a published model, which is swept like a run."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
from hub_server import FakeHub, serving
from pythia_book.released import download
from pythia_book.released.audit import audit
from pythia_book.released.convert import convert
from pythia_book.released.resolve import LAST, PublishedModel, find_model
from pythia_book.tasks.sweep import steps_of, sweep
from task_items import fake_items

from pythia_core import hf
from pythia_core.config import ModelConfig
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import CheckpointError
from pythia_core.model import GPTNeoX
from pythia_core.training.checkpoint import MANIFEST


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the hub's format with a subfolder per step."""
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("PYTHIA_WORKERS", "1")  # workers of an earlier test know its folder only
    folder = tmp_path / "pythia-70m-deduped"
    tokenizer = train_bpe((str(item) for item in fake_items("piqa", 40)), 384)
    for step in (0, 3000):
        model = GPTNeoX(ModelConfig(1, 16, 2, 384, max_seq_len=64))
        model.init_weights(step)
        hf.save(model, folder / f"step{step}", tokenizer=tokenizer)
    (tmp_path / "piqa.jsonl").write_text(
        "".join(json.dumps(item) + "\n" for item in fake_items("piqa", 24))
    )
    return folder


def test_a_published_model_is_swept_like_a_run(published: Path, tmp_path: Path) -> None:
    model = find_model(str(published))
    assert isinstance(model, PublishedModel)
    assert steps_of(model, "all") == [0, 3000]
    table = sweep(model, ["piqa"], [0, 3000], 0, 5, str(tmp_path), progress=False)
    assert set(table.model) == {"70m"} and table.deduped.all()
    assert table.value.notna().all() and len(table) == 4
    assert len(list((model.folder / "evaluations").iterdir())) == 2
    again = sweep(model, ["piqa"], [0], 0, 5, str(tmp_path), progress=False)
    assert again.equals(table[table.step == 0].reset_index(drop=True))


def test_a_damaged_step_is_reported_in_its_row(published: Path, tmp_path: Path) -> None:
    (published / "step0" / "model.safetensors").write_bytes(b"damaged")
    model = find_model(str(published))
    table = sweep(model, ["piqa"], [0, 3000], 0, 5, str(tmp_path), progress=False)
    assert table[table.step == 0].value.isna().all() and table[table.step == 0].note.item()
    assert table[table.step == 3000].value.notna().all()


def test_cached_results_depend_on_the_files(published: Path) -> None:
    before = PublishedModel(str(published)).id
    assert before.startswith("70m-") and PublishedModel(str(published)).id == before
    (published / "step0" / "model.safetensors").write_bytes(b"other weights")
    assert PublishedModel(str(published)).id != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", hf.INDEX])
def test_cached_results_depend_on_what_the_small_files_say(published: Path, name: str) -> None:
    """Whenever and by what they were written, even if they have the same size and time."""
    path = published / "step0" / name
    path.touch()
    times, before = path.stat(), PublishedModel(str(published)).id
    path.write_text(path.read_text().replace("1", "2", 1) or "{}")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert PublishedModel(str(published)).id != before


def test_cached_results_of_a_converted_model_depend_on_its_manifest_and_tokenizer(
    published: Path, tmp_path: Path
) -> None:
    one = convert(str(published), tmp_path / "ours", revision="step3000")
    for path in (one / MANIFEST, tmp_path / "ours" / "tokenizer.json"):
        before = PublishedModel(str(one)).id
        path.write_text(path.read_text().replace("1", "2", 1))
        assert PublishedModel(str(one)).id != before


def test_a_folder_of_one_step_and_a_copy(published: Path) -> None:
    one = PublishedModel(str(published / "step3000"))
    assert one.steps == [3000] and one.label == "70m" and one.deduped
    single = published.rename(published.parent / "mine") / "step0"
    assert PublishedModel(str(single.rename(single.parent / "final"))).steps == [LAST]
    model = PublishedModel(str(single.parent))
    assert copy.copy(model) == model  # as it goes to a worker process
    assert model.model().config == model.config.model
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint of step 7; the nearest steps with a checkpoint are 3000",
    ):
        model.model(7)


def test_a_repository_is_swept_and_only_the_requested_steps_are_fetched(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, name = FakeHub(), "EleutherAI/pythia-70m-deduped"
    for step in ("step0", "step3000"):
        hub.add(name, step, published / step)
    server = serving(hub, monkeypatch, tmp_path / "cache")
    next(server)
    found = sweep(find_model(name), ["piqa"], [0], 0, 5, str(tmp_path), progress=False, keep=None)
    local = sweep(find_model(str(published)), ["piqa"], [0], 0, 5, str(tmp_path), progress=False)
    assert found.equals(local)
    weights = {line for line in hub.requests if line.startswith("GET") and "safetensors" in line}
    assert len(weights) == 1 and "step0" in weights.pop()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    offline = find_model(name)
    with pytest.warns(UserWarning, match="only cached revisions"):
        assert offline.steps == [0, 3000]
    assert offline.data.eod_id == 0
    assert offline.model(0).config == offline.config.model
    with pytest.raises(CheckpointError, match="pass this folder instead of"):
        offline.model(3000)
    server.close()


@pytest.mark.parametrize(
    "name",
    [
        "./typo/x", "../x", "./x", "mine/config.json", "mine/nothing", "x/config.json",
        "x/model.safetensors", "/nowhere/x", "~/nowhere/x", "a/b/c", "x/", "/", ".", "-x/y",
        "file.txt/x", "mine/file.txt", "a/b.ckpt", "a/b.tar", "a/b.yml", "a/b.npy", "a/b.Parquet",
        "a/b.model", "foo/model.safetensors.index", "typo/step3000", "typo/step-10",
        "typo/global_step143000", "runs/typo", "results/x", "checkpoints/pythia-70m",
    ],
)  # fmt: skip
def test_what_looks_like_a_path_is_not_asked_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    (tmp_path / "mine").mkdir()
    for file in ("mine/config.json", "mine/file.txt", "file.txt"):
        (tmp_path / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    hub = FakeHub()
    server = serving(hub, monkeypatch, tmp_path / "cache")
    next(server)
    for use in (lambda: find_model(name).model(), lambda: download.load(name), lambda: audit(name)):
        with pytest.raises(CheckpointError):
            use()
    assert not hub.requests
    with pytest.raises(CheckpointError):
        find_model("EleutherAI/pythia-70m").model()  # a name is asked
    assert hub.requests
    server.close()


@pytest.mark.parametrize(
    "name", ["EleutherAI/pythia-1.4b", "EleutherAI/pythia-6.9b-deduped", "x/gpt-v2.1", "x/gpt.v2"]
)
def test_versions_are_no_endings_of_files(name: str) -> None:
    assert download.is_repository(name)


def test_a_path_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").touch()
    for find in (find_model, download.load):
        with pytest.raises(CheckpointError, match="it is a file; pass the folder of the model"):
            find("mine/config.json")
        with pytest.raises(CheckpointError, match="is read as a path, because mine exists here"):
            find("mine/pythia")
        with pytest.raises(CheckpointError, match="because step3000 is the name of a checkpoint"):
            find("typo/step3000")
        with pytest.raises(CheckpointError, match="because runs is the name of a folder of runs"):
            find("runs/typo")


def test_other_names(published: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run matches 'pythia-70m'"):
        find_model("pythia-70m")
    assert find_model("EleutherAI/pythia-70m").label == "70m"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="not a model folder"):
        find_model(str(empty)).model()
