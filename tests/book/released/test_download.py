"""Models come from a hub whole or not at all, and every failure says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import FakeHub, commit_of, serving
from pythia_book.released import download
from tiny_models import assert_equal

from pythia_core import hf
from pythia_core.config import ModelConfig
from pythia_core.errors import CheckpointError, FetchError
from pythia_core.model import GPTNeoX

REPO = "EleutherAI/pythia-tiny"
SHAPE = ModelConfig(n_layers=1, d_model=16, n_heads=2, vocab_size=64, max_seq_len=32)


def model(seed: int) -> GPTNeoX:
    made = GPTNeoX(SHAPE)
    made.init_weights(seed)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("repository")
    return {
        name: hf.save(model(seed), root / name, shard_bytes=5000 if name == "step3000" else 10**9)
        for name, seed in (("main", 3), ("step0", 0), ("step3000", 1))
    }


@pytest.fixture
def server(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    fake = FakeHub()
    for name, folder in folders.items():
        fake.add(REPO, name, folder)
        fake.repos[REPO][name]["modeling.py"] = b"raise SystemExit('this ran')"
        fake.repos[REPO][name]["pytorch_model.bin"] = b"not wanted"
    yield from serving(fake, monkeypatch, tmp_path / "cache")


def test_a_model_by_name_and_revision(server: FakeHub) -> None:
    loaded, info = download.load(REPO, "step3000")
    assert_equal(model(1), loaded)
    assert (info.step, info.commit) == (3000, commit_of(REPO, "step3000"))
    assert_equal(model(3), download.load(REPO)[0])
    fetched = {line.rsplit("/", 1)[1] for line in server.requests if "/resolve/" in line}
    assert all(name.endswith((".json", ".safetensors")) for name in fetched), fetched


def test_a_second_time_nothing_is_downloaded(server: FakeHub) -> None:
    download.load(REPO)
    server.requests.clear()
    download.load(REPO)
    assert not [line for line in server.requests if line.startswith("GET") and "/resolve/" in line]


def test_without_a_network_the_cache_is_used(
    server: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    download.load(REPO, "step3000")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert_equal(model(1), download.load(REPO, "step3000")[0])
    with pytest.raises(FetchError, match=r"(?s)could not be fetched.*pass this folder instead"):
        download.load(REPO, "step0")


def test_a_model_removed_from_the_hub_is_not_read_from_the_cache(server: FakeHub) -> None:
    download.load(REPO, "step3000")
    server.broken.add("/api/")
    assert_equal(model(1), download.load(REPO, "step3000")[0])
    server.broken.clear()
    del server.repos[REPO]["step3000"]
    with pytest.raises(FetchError, match="unknown revision 'step3000'"):
        download.load(REPO, "step3000")


def test_without_a_network_a_folder_is_used(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert_equal(model(1), download.load(folders["main"].parent, "step3000")[0])


def test_unknown_repository_revision_and_file(server: FakeHub) -> None:
    with pytest.raises(FetchError, match="no public repository 'EleutherAI/pythia-71m'"):
        download.fetch("EleutherAI/pythia-71m")
    with pytest.raises(FetchError, match=r"unknown revision 'step300'; accepted: .*step3000"):
        download.fetch(REPO, "step300")
    with pytest.raises(FetchError, match=r"unknown file 'vocab\.json'"):
        download.fetch(REPO, "main", ["vocab.json"])


@pytest.mark.parametrize("name", ["modeling.py", "pytorch_model.bin", "../config.json", "a/b.json"])
def test_other_kinds_of_files_are_never_fetched(server: FakeHub, name: str) -> None:
    with pytest.raises(FetchError, match=r"only .*safetensors files are downloaded"):
        download.fetch(REPO, "main", [name])
    assert not server.requests


def test_a_truncated_body_is_reported(server: FakeHub) -> None:
    server.short.add("model.safetensors")
    with pytest.raises(
        FetchError, match=r"could not be fetched .*Run the command again to continue"
    ):
        download.fetch(REPO)
    server.short.clear()
    assert_equal(model(3), download.load(REPO)[0])


def test_files_that_do_not_match_their_hash_are_deleted(server: FakeHub) -> None:
    sound = server.repos[REPO]["main"]["model.safetensors"]
    server.wrong["model.safetensors"] = sound[:-1] + bytes([sound[-1] ^ 1])
    with pytest.raises(
        FetchError, match=r"model\.safetensors has the sha256 .*the hub states .*deleted"
    ):
        download.fetch(REPO)
    server.wrong.clear()
    assert_equal(model(3), download.load(REPO)[0])


def test_a_damaged_cache_is_detected(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = download.fetch(REPO).folder / "model.safetensors"
    sound = path.read_bytes()
    damaged = sound[:-1] + bytes([sound[-1] ^ 1])
    path.resolve().write_bytes(damaged)
    with pytest.raises(FetchError, match="corrupted in transit or in the cache"):
        download.fetch(REPO)
    download.fetch(REPO).folder.joinpath("model.safetensors").resolve().write_bytes(damaged)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FetchError, match="corrupted in transit or in the cache"):
        download.fetch(REPO)


def test_a_slow_hub(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.slow.add("/api/")
    with pytest.raises(FetchError, match="could not be fetched"):
        download.fetch(REPO)


def test_a_file_that_stalls(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.slow.add("GET /EleutherAI/pythia-tiny/resolve/main/model")
    with pytest.raises(FetchError, match=r"model\.safetensors could not be fetched"):
        download.fetch(REPO)


def test_a_broken_hub(server: FakeHub) -> None:
    server.broken.add("/api/")
    with pytest.raises(FetchError, match=r"answered .*500"):
        download.fetch(REPO)


def test_a_revision_with_pickles_only(server: FakeHub) -> None:
    del server.repos[REPO]["step0"]["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"(?s)only pickled weights.*save_pretrained"):
        download.fetch(REPO, "step0")


def test_a_missing_shard_of_a_revision(server: FakeHub) -> None:
    files = server.repos[REPO]["step3000"]
    shard = sorted(name for name in files if name.startswith("model-"))[1]
    del files[shard]
    with pytest.raises(CheckpointError, match=f"{shard} is missing"):
        download.load(REPO, "step3000")


@pytest.mark.parametrize(
    ("name", "step"),
    [("step3000", 3000), ("step-000512", 512), ("main", None), ("step", None), ("step1b", None)],
)
def test_steps_by_name(name: str, step: int | None) -> None:
    assert hf.step_of(name) == step
