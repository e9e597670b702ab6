"""Say where files are stored, write files and folders atomically, and hash files.

There are two places. The folder `results/` of a checkout holds runs and the outputs of studies. The
user's cache holds what can be downloaded or computed again, such as wheels and token files. The
environment variables PYTHIA_RESULTS and PYTHIA_CACHE set other folders for the two.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError


def checkout() -> Path | None:
    """Return the root folder of the checkout with this package; None without a checkout."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "notebooks").is_dir() else None


def require_checkout(feature: str) -> Path:
    """Return the root folder of the checkout that this package runs from.

    Args:
        feature: what needs the checkout; the error message begins with it.

    Raises:
        ConfigError: the package runs from a wheel.
    """
    root = checkout()
    if root is None:
        raise ConfigError(
            f"{feature} needs a checkout of the project, but the package was installed without "
            "one; clone the repository and run the command there"
        )
    return root


def project_root() -> Path:
    """Return the root folder of the checkout, or the working folder if there is no checkout."""
    return checkout() or Path.cwd()


def results_dir() -> Path:
    """Return the folder of runs and of the outputs of studies.

    The environment variable PYTHIA_RESULTS sets the folder. If the variable is not set, the folder
    is results/ in `project_root`.
    """
    return Path(os.environ.get("PYTHIA_RESULTS") or project_root() / "results")


def cache_dir() -> Path:
    """Return the user's cache folder.

    The environment variable PYTHIA_CACHE sets the folder. Its default is pythia-book/ in
    XDG_CACHE_HOME or, if that variable is not set, in ~/.cache.
    """
    if explicit := os.environ.get("PYTHIA_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pythia-book"


def fsync_dir(folder: Path) -> None:
    """Sync the entries of `folder` to disk, so that a rename survives a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write the file `target` atomically, in a `with` block.

    Yields:
        The path of a temporary file, which the caller writes. When the block ends without an
        exception, the file is synced to disk and renamed to `target`; otherwise it is deleted.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.tmp-", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp creates private files
        os.replace(temporary, target)
        fsync_dir(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Create the folder `target` atomically, in a `with` block.

    If `target` exists when the block ends, e.g. because another process has created it, the
    existing folder is kept, unless it is empty.

    Yields:
        The path of a temporary folder, which the caller fills. If the block ends without an
        exception, the files in the folder are synced to disk and the folder is renamed to `target`.
        If the block raises an exception, the temporary folder is deleted.
    """
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        temporary.chmod(0o755)
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
    """Return the sha256 of a file's bytes, in hex. The file need not fit in memory."""
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
