"""Files: where they are stored, atomic writes, and hashes.

`results/` belongs to a checkout and holds runs and study outputs. The cache belongs to a user and
holds files that can be downloaded or recomputed from pinned inputs: wheels, tokenizers, token
files. An environment variable moves either.
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
    """The checkout that this package runs from; None if it was installed as a wheel."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "notebooks").is_dir() else None


def require_checkout(feature: str) -> Path:
    """The checkout, for a feature that needs its files.

    Raises:
        ConfigError: the package was installed without a checkout.
    """
    root = checkout()
    if root is None:
        raise ConfigError(
            f"{feature} needs the project's checkout, but this is an installed package; clone the "
            "repository and run the command there"
        )
    return root


def project_root() -> Path:
    """The checkout, or the working folder if the package was installed."""
    return checkout() or Path.cwd()


def results_dir() -> Path:
    """Folder of runs and study outputs: `PYTHIA_RESULTS`, else `results/` of the project root."""
    return Path(os.environ.get("PYTHIA_RESULTS") or project_root() / "results")


def cache_dir() -> Path:
    """The user's cache: `PYTHIA_CACHE`, else pythia-book/ in `$XDG_CACHE_HOME` or ~/.cache."""
    if explicit := os.environ.get("PYTHIA_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pythia-book"


def fsync_dir(folder: Path) -> None:
    """Sync the entries of `folder`, so that a rename survives a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Write `target` atomically: yields a temporary path and renames it at the end."""
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
    """Create the folder `target` atomically: yields a temporary folder next to it.

    Every file in it is synced before the rename. If another process creates `target` in the
    meantime, that folder is kept.
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
    """sha256 of a file's bytes, in hex; reads the file in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fraction(text: str, salt: bytes = b"") -> float:
    """A reproducible pseudo-random number in [0, 1): the first 8 bytes of the text's sha256."""
    digest = hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
