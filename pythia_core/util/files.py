"""Say where files are stored, write files and folders atomically, and hash files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError


def checkout() -> Path | None:
    """Return the root folder of the checkout with this package; None without a checkout."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "notebooks").is_dir() else None


def require_checkout(feature: str) -> Path:
    """Return the root folder of the checkout; without one, raise ConfigError about `feature`."""
    root = checkout()
    if root is None:
        raise ConfigError(
            f"{feature} needs a checkout of the project, but the package was installed without "
            "one; clone the repository and run the command there"
        )
    return root


def project_root() -> Path:
    """Return the root folder of the checkout, or else the working folder."""
    return checkout() or Path.cwd()


RESULTS, CACHE = "PYTHIA_RESULTS", "PYTHIA_CACHE"
"""Environment variables with the folders of `results_dir` and `cache_dir`."""


def folder_in(variable: str) -> Path | None:
    """Return the absolute path in an environment variable; None if the variable is not set.

    A relative path is relative to the working folder; "~" is the home folder.

    Raises:
        ConfigError: the path begins with a home folder that is unknown.
    """
    value = os.environ.get(variable)
    return _absolute(value, variable) if value else None


def _absolute(text: str, variable: str) -> Path:
    """Return `text` as an absolute path; errors tell the user to set `variable`."""
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ConfigError(
            f"cannot expand {text}: this user has no home folder; set {variable} to an absolute "
            "path"
        )
    return Path(os.path.abspath(path))


def results_dir() -> Path:
    """Return the folder of runs and outputs: PYTHIA_RESULTS, or else results/ in `project_root`."""
    return folder_in(RESULTS) or project_root() / "results"


def cache_dir() -> Path:
    """Return the user's cache, for what can be downloaded or computed again.

    This is PYTHIA_CACHE or, if it is not set, pythia-book/ in XDG_CACHE_HOME (default: ~/.cache).

    Raises:
        ConfigError: neither variable is set, and the user has no home folder.
    """
    if explicit := folder_in(CACHE):
        return explicit
    return (folder_in("XDG_CACHE_HOME") or _absolute("~/.cache", CACHE)) / "pythia-book"


for _variable in (RESULTS, CACHE):  # a child may run in another folder, as a step of gpu-check does
    with contextlib.suppress(ConfigError):  # raised again when the folder is needed
        if _folder := folder_in(_variable):
            os.environ[_variable] = str(_folder)


def check_writable(folder: Path, advice: str) -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Raises:
        ConfigError: they cannot; the message ends with `advice`.
    """
    place = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        problem = error.strerror if place == folder else f"{place}: {error.strerror}"
        raise ConfigError(f"cannot write to {folder} ({problem}); {advice}") from error


def is_writable(folder: Path) -> bool:
    """Return whether files can be written to a folder, which need not exist yet."""
    try:
        check_writable(folder, "")
    except ConfigError:
        return False
    return True


def check_results(folder: Path) -> None:
    """Check that files can be written to a folder in `results_dir`, or to `results_dir` itself.

    Raises:
        ConfigError: they cannot.
    """
    check_writable(folder, f"set {RESULTS} to a folder that you may write to")


def check_cache() -> None:
    """Check that `cache_dir` is a folder, which need not be writable, or can be made.

    Raises:
        ConfigError: it is not.
    """
    if not (folder := cache_dir()).is_dir():
        check_writable(folder, f"set {CACHE} to a folder that you may write to")


FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of the errors that a full disk or quota causes."""


def full_disk_advice(place: str | None = None) -> str:
    """Return what to do if the disk of `place` (default: the results or the cache) is full."""
    return (
        f"there is no space left in {place or f'{results_dir()} or {cache_dir()}'}. What is "
        "finished is kept. Free some space, or move the folder to a larger disk and set "
        "PYTHIA_RESULTS or PYTHIA_CACHE to its new path; then run the same command again to resume"
    )


def fsync_dir(folder: Path) -> None:
    """Sync the entries of `folder` to disk, so that a rename survives a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _temporary_path(target: Path) -> Path:
    """Return the path of a new temporary file or folder in the folder of `target`.

    (`tempfile` is not used, because its files are private to the user, whatever the umask.)
    """
    return target.with_name(f".{target.name[:50]}.tmp-{secrets.token_hex(4)}")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write the file `target` atomically, in a `with` block.

    Yields:
        The path of a temporary file to write. When the block ends, the file is synced to disk and
        renamed to `target`; after an exception, it is deleted. If `target` is a device or a pipe,
        such as /dev/stdout, its own path.
    """
    if target.exists() and not target.is_file():
        yield target
        return
    target = target.resolve()  # a link stays, and the file that it names is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(target)
    try:
        temporary.touch(exist_ok=False)  # with the permissions of the user's umask
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
        fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Create the folder `target` atomically, in a `with` block.

    If another process creates `target` meanwhile, that folder is kept, unless it is empty.

    Yields:
        The path of a temporary folder to fill. When the block ends, the files are synced to disk
        and the folder is renamed to `target`; after an exception, it is deleted.
    """
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(target)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        fsync_dir(temporary)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
        fsync_dir(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_sha256(path: Path | str) -> str:
    """Return the sha256 of a file, in hex. The file need not fit in memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fraction(text: str, salt: bytes = b"") -> float:
    """Return a pseudo-random number in [0, 1) that depends only on `salt` and `text`."""
    digest = hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to the file `path`, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def json_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text.

    Raises:
        ValueError: the text is not JSON, is nested too deeply, or is another JSON value.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


def save_safetensors(
    save_file: Callable[..., None],
    tensors: Mapping[str, Any],
    path: Path,
    metadata: dict[str, str] | None = None,
) -> None:
    """Call `save_file` of safetensors.torch or safetensors.numpy.

    Raises:
        OSError: the file cannot be written; safetensors has an error of its own for this, which
            names the cause only in its message.
    """
    from safetensors import SafetensorError

    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        number = re.search(r"(?:os error|code:) (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


LEFTOVER_SECONDS = 24 * 3600
"""A temporary file in a cache that was not written to for this long is from a killed process."""


def cached_file(path: Path, write: Callable[[Path], object], rewrite: bool = False) -> Path:
    """Return `path`; first call `write`, with a path to write to, if the file is not intact.

    With `rewrite`, `write` is always called. A file without a digest counts as intact: it was
    copied here, e.g. to a machine without network access, or is from an older version. Whenever the
    file is written, leftovers of killed processes in its folder are deleted.
    """
    intact = is_intact(path) if _digest_of(path).exists() else path.is_file()
    if rewrite or not intact:
        for leftover in path.parent.glob(".*.tmp-*"):
            with contextlib.suppress(OSError):  # another process may delete it, too
                if leftover.is_file() and time.time() - leftover.stat().st_mtime > LEFTOVER_SECONDS:
                    leftover.unlink()
        with atomic_file(path) as temporary:
            write(temporary)
            write_digest(path, temporary)  # first, or a kill in between would leave none
    return path


def write_digest(path: Path, content: Path | None = None) -> None:
    """Write the sha256 of the file `path` into the file `<name>.sha256` next to it.

    Args:
        content: a file that will be renamed to `path`, and whose sha256 is written instead.
    """
    sha256 = file_sha256(content or path)
    with atomic_file(_digest_of(path)) as temporary:
        temporary.write_text(sha256 + "\n")


def is_intact(path: Path) -> bool:
    """Return whether the file `path` exists and is as it was when `write_digest` was called.

    Unlike in `cached_file`, a file without a digest counts as not intact: damage to it would not be
    detected.
    """
    digest = _digest_of(path)
    if not (path.is_file() and digest.is_file()):
        return False
    return digest.read_bytes() == f"{file_sha256(path)}\n".encode()


def _digest_of(path: Path) -> Path:
    """Return the path of the file with the sha256 of `path`."""
    return path.with_name(path.name + ".sha256")
