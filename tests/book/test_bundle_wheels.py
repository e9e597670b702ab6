"""The wheels for a bare machine are those that the lock file pins; pip fetches them once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pythia_book import bundle_wheels
from pythia_book.bundle_wheels import PACKAGES, notebook_wheels, pinned
from tiny_wheel import write_tiny_wheel

from pythia_core.errors import ConfigError, DataError, FetchError
from pythia_core.util.files import project_root

WHEEL = "tiny-1.0-py3-none-any.whl"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a lock file that pins a tiny wheel, which pip finds in a local folder."""
    digest = write_tiny_wheel(tmp_path / "links" / WHEEL)
    other = "0" * 64
    lock = f"# a comment\nbig==2.0 \\\n    --hash=sha256:{other}\n"
    lock += f"Tiny==1.0 ; python_version > '3' \\\n    --hash=sha256:{digest}\n"
    (tmp_path / "requirements.lock").write_text(lock)
    monkeypatch.setattr(bundle_wheels, "PACKAGES", ("tiny",))
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    return tmp_path


def test_the_lock_file_pins_every_package_by_hash() -> None:
    lines = pinned(project_root() / "requirements.lock").splitlines()
    starts = [line for line in lines if not line.startswith(" ")]
    assert len(starts) == len(PACKAGES) > 30
    assert all("==" in line and line.endswith("\\") for line in starts)
    hashes = [line for line in lines if line.startswith(" ")]
    assert len(hashes) >= len(starts) and all("--hash=sha256:" in line for line in hashes)


def test_wheels_are_fetched_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = notebook_wheels(root, "3.12")
    assert path.name == WHEEL and path.is_relative_to(root / "cache")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("fetched again"))
    assert notebook_wheels(root, "3.12") == [path]


def test_another_file_than_the_pinned_one_is_refused(root: Path) -> None:
    write_tiny_wheel(root / "links" / WHEEL)
    with open(root / "links" / WHEEL, "ab") as file:
        file.write(b"more")
    with pytest.raises(FetchError, match=r"pip could not fetch the wheels for Python 3\.12"):
        notebook_wheels(root, "3.12")
    assert not list((root / "cache").rglob("*.whl"))


def test_bad_versions_and_incomplete_lock_files_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"like 3\.12, got '312'"):
        notebook_wheels(root, "312")
    monkeypatch.setattr(bundle_wheels, "PACKAGES", ("tiny", "absent"))
    with pytest.raises(DataError, match="does not pin absent; run `make lock`"):
        notebook_wheels(root, "3.12")
    with pytest.raises(DataError, match=r"other.*does not exist"):
        pinned(root / "other")
