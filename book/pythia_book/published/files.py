"""Files of a folder or archive of released results, read safely: bounded, in memory, no links.

Archives (.tar.xz, .tar.gz, .tar, .zip) are never unpacked; their members' names, number and sizes
are checked before anything is read. What the files mean is pythia_book.published.results's
business.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pythia_core.errors import DataError

MAX_MEMBERS = 200_000
MAX_FILE = 8 << 20
MAX_TOTAL = 4 << 30
"""Limits of an archive: members, bytes of one file read, bytes of all members."""
BRANCHES = ("pythia-v1", "bias-evals", "opt", "bloom")
"""Folders of the public `evals` tree that hold what is used."""

Wanted = Callable[[str], bool]


def files_of(path: Path, wanted: Wanted, how_to_get: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the wanted files of a folder that is, or holds, the evals tree, or of an
    archive of either.

    Raises:
        DataError: no archive, one that breaks a limit or names a path outside itself.
    """
    yield from (
        _archive_files(path, wanted, how_to_get) if path.is_file() else _folder_files(path, wanted)
    )


def _folder_files(root: Path, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
    """Files of interest below a folder that is, or holds, the evals tree; no link is followed."""
    for top in (root, root / "evals"):
        for branch in BRANCHES:
            for folder, _, names in os.walk(top / branch, followlinks=False):
                for name in sorted(names):
                    file = Path(folder, name)
                    inner = file.relative_to(top).as_posix()
                    if wanted(inner) and file.is_file() and not file.is_symlink():
                        if file.stat().st_size > MAX_FILE:
                            raise DataError(f"{inner!r} is larger than {MAX_FILE:,} bytes")
                        yield inner, file.read_bytes()


def _archive_files(path: Path, wanted: Wanted, how_to_get: str) -> Iterator[tuple[str, bytes]]:
    """Files of interest in an archive, one by one, in memory."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                total = 0
                for count, member in enumerate(archive.infolist()):
                    total += member.file_size
                    _check(path, member.filename, count, total)
                    if wanted(member.filename):
                        with archive.open(member) as stream:
                            yield member.filename, _read(path, member.filename, stream)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                for count, member in enumerate(archive):
                    _check(path, member.name, count, member.offset_data + member.size)
                    if member.isreg() and wanted(member.name):
                        stream = archive.extractfile(member)
                        yield member.name, _read(path, member.name, stream)
        else:
            raise DataError(f"{path.name!r} is no .tar.xz, .tar.gz, .tar or .zip; {how_to_get}")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise DataError(f"{path.name!r} cannot be read: {error}; fetch it again") from error


def _check(path: Path, name: str, count: int, total: int) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{path.name!r} names a file outside itself, {name!r}; do not trust it")
    if count >= MAX_MEMBERS or total > MAX_TOTAL:
        raise DataError(
            f"{path.name!r} holds more than {MAX_MEMBERS:,} files or {MAX_TOTAL:,} bytes; "
            "give an archive of the `evals` folder only"
        )


def _read(path: Path, name: str, stream: Any) -> bytes:
    content = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise DataError(f"{name!r} in {path.name!r} is larger than {MAX_FILE:,} bytes")
    return content
