"""Where files go, whatever the variables, the folder, the user and the permissions are."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from pythia_core.errors import ConfigError
from pythia_core.util import files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder; the working folder is `work` in it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (files.RESULTS, files.CACHE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("out", "work/out"),
        ("../a folder", "a folder"),
        ("~/out", "out"),
        ("./x/../out/", "work/out"),
        ("é", "work/é"),
    ],
)
def test_a_path_in_a_variable_has_one_meaning(
    home: Path, value: str, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(files.RESULTS, value)
    monkeypatch.setenv(files.CACHE, value)
    assert files.results_dir() == files.cache_dir() == home / folder


def test_a_child_in_another_folder_has_the_same_folders(home: Path) -> None:
    code = (
        "import os, subprocess, sys; from pythia_core.util import files; os.chdir('/');"
        "child = 'from pythia_core.util import files; print(files.results_dir())';"
        "subprocess.run([sys.executable, '-c', child], check=True);"
        "print(files.results_dir())"
    )
    settings = {**os.environ, files.RESULTS: "my results"}
    shown = subprocess.check_output([sys.executable, "-c", code], env=settings, text=True)
    assert shown.splitlines() == [str(home / "work" / "my results")] * 2


def test_the_cache_without_its_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.cache_dir() == home / ".cache" / "pythia-book"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    assert files.cache_dir() == home / "xdg" / "pythia-book"


def test_without_a_home_the_variable_to_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # HOME unset, unknown uid
    with pytest.raises(ConfigError, match="no home folder; set PYTHIA_CACHE"):
        files.cache_dir()
    monkeypatch.setenv(files.RESULTS, "~/out")
    with pytest.raises(ConfigError, match="set PYTHIA_RESULTS to an absolute path"):
        files.results_dir()
    monkeypatch.setenv(files.CACHE, "/somewhere")
    assert files.cache_dir() == Path("/somewhere")


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_new_files_have_the_permissions_that_the_user_wants(
    home: Path, umask: int, file: int, folder: int
) -> None:
    before = os.umask(umask)
    try:
        files.write_json(home / "a.json", {})
        with files.atomic_dir(home / "b") as temporary:
            (temporary / "c").touch()
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((home / name).stat().st_mode) for name in ("a.json", "b", "b/c")]
    assert modes == [file, folder, file]


def test_a_link_to_a_file_stays_a_link(home: Path) -> None:
    (home / "disk").mkdir()
    (home / "a.json").symlink_to(home / "disk" / "a.json")
    files.write_json(home / "a.json", 1)
    files.write_json(home / "a.json", 2)
    assert (home / "a.json").is_symlink() and (home / "disk" / "a.json").read_text() == "2\n"
    assert [path.name for path in (home / "disk").iterdir()] == ["a.json"]


def test_a_device_is_written_to_and_not_replaced() -> None:
    with files.atomic_file(Path(os.devnull)) as target:
        assert target == Path(os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_long_names_have_temporary_names(home: Path) -> None:
    name = "é" * 120  # 240 bytes, of the 255 that most file systems accept
    files.write_json(home / name, 1)
    assert (home / name).is_file()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_leaves_no_cached_file_without_its_digest(
    home: Path, monkeypatch: pytest.MonkeyPatch, renames: int, old: bool
) -> None:
    """Later damage to such a file could not be found."""
    path, done = home / "a", []
    if old:
        files.cached_file(path, lambda temporary: temporary.write_text("old"))
    replace = os.replace

    def killed(*names: Path) -> None:
        """Rename as often as the process does before it is killed."""
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(names)
        replace(*names)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.cached_file(path, lambda temporary: temporary.write_text("new"), rewrite=True)
    monkeypatch.setattr(os, "replace", replace)
    files.cached_file(path, lambda temporary: temporary.write_text("again"))
    assert files.is_intact(path)
    assert path.read_text() == ("old" if old and not renames else "again")


def test_a_cached_file_that_was_copied_without_its_digest_is_used(home: Path) -> None:
    """As the text of a bundle is, on a machine that cannot make it."""
    (home / "a").write_text("copied")
    assert files.cached_file(home / "a", lambda _: pytest.fail("made")).read_text() == "copied"
    assert not files.is_intact(home / "a"), "nothing else is believed without a digest"


def test_old_leftovers_are_deleted_when_a_cached_file_is_made(home: Path) -> None:
    cache = home / "cache"
    cache.mkdir()
    names = (".b.so.tmp-01234567", ".a.so.tmp-89abcdef", "a.so.tmp-0")
    for name in names:
        (cache / name).touch()
    for name in names[1:]:
        os.utime(cache / name, (0, 0))
    files.cached_file(cache / "a.so", lambda temporary: temporary.write_text("x"))
    left = {path.name for path in cache.iterdir()}
    assert left == {"a.so", "a.so.sha256", names[0], names[2]}, "another process writes names[0]"


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "", "{", "[" * 100_000, b"\xff"])
def test_what_is_no_json_object_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        files.json_object(text)
    assert files.json_object(b'{"a": [1]}') == {"a": [1]}


def test_safetensors_on_a_full_disk_are_an_error_of_the_system(home: Path) -> None:
    from safetensors.numpy import save_file

    tensors, path = {"a": np.zeros(1000)}, home / "a.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # fails as on a full disk
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            files.save_safetensors(save_file, tensors, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
    assert caught.value.errno in files.FULL_DISK and caught.value.filename == str(path)
    with pytest.raises(OSError, match="absent"):
        files.save_safetensors(save_file, tensors, home / "absent" / "a")


def test_a_folder_that_cannot_be_written_to_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.check_writable(home / "a" / "b", "advice")
    assert not (home / "a").exists(), "only looks"
    (home / "file").touch()
    (home / "lost").symlink_to(home / "gone")
    for place in ("file", "lost"):
        with pytest.raises(ConfigError, match=rf"b \(.*{place}: .*\); advice"):
            files.check_writable(home / place / "b", "advice")

    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"write to .* \(Read-only file system\); advice"):
        files.check_writable(home, "advice")
