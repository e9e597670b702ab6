"""Reads a folder or archive of released results safely: sizes are limited, links not followed.

Archives (.tar.xz, .tar.gz, .tar, .zip) are read in memory and never unpacked to disk. The name and
size of each member, and the number of members, are checked before a member is read.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pythia_core.errors import DataError

VARIABLE = "PYTHIA_PUBLISHED_DIR"
HOW_TO_GET = (
    "clone the public repository EleutherAI/pythia (its folder `evals` is read) or download an "
    f"archive of it, and set {VARIABLE} to that folder or file"
)
MAX_MEMBERS = 200_000
MAX_FILE = 8 << 20
MAX_TOTAL = 4 << 30
"""Limits of an archive: number of members, bytes per file, and bytes in total."""
BRANCHES = ("pythia-v1", "pythia-v0", "bias-evals", "opt", "bloom")
"""The folders that are read in the public `evals` tree."""


def has_tables(path: Path) -> bool:
    """Whether the released results in `path` are CSV tables instead of the evals tree."""
    return (path / "bias_evals.csv").is_file()


def files_of(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each file in the evals tree for whose name `wanted` is true.

    The tree is `path` itself, or is in the folder or archive `path`. Links are not followed. Raises
    a DataError if `path` is a file but not an archive, if a limit is exceeded, or if the path of a
    member leads outside the archive.
    """
    if path.is_file():
        yield from _archive_files(path, wanted)
        return
    for top in (path, path / "evals"):
        for branch in BRANCHES:
            for folder, _, names in os.walk(top / branch, followlinks=False):
                for file in (Path(folder, name) for name in sorted(names)):
                    inner = file.relative_to(top).as_posix()
                    if wanted(inner) and file.is_file() and not file.is_symlink():
                        with open(file, "rb") as stream:
                            yield inner, _read(inner, stream)


def _archive_files(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of each wanted file in an archive; raise the errors of `files_of`."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                total = 0
                for count, member in enumerate(archive.infolist()):
                    total += member.file_size
                    _check(path, member.filename, count, total)
                    if wanted(member.filename):
                        with archive.open(member) as stream:
                            yield member.filename, _read(member.filename, stream)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                for count, member in enumerate(archive):
                    _check(path, member.name, count, member.offset_data + member.size)
                    if member.isreg() and wanted(member.name):
                        stream = archive.extractfile(member)
                        yield member.name, _read(member.name, stream)
        else:
            raise DataError(f"{path.name!r} is not a .tar.xz, .tar.gz, .tar or .zip; {HOW_TO_GET}")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise DataError(f"{path.name!r} is not readable: {error}; download it again") from error


def _check(path: Path, name: str, count: int, total: int) -> None:
    """Raise a DataError if a member's path leads outside the archive, or a limit is exceeded.

    `count` is the number of members before this member; `total` is the number of bytes up to the
    end of this member.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(
            f"{path.name!r} has a member outside the archive, {name!r}; do not trust this archive"
        )
    if count >= MAX_MEMBERS or total > MAX_TOTAL:
        raise DataError(
            f"{path.name!r} has more than {MAX_MEMBERS:,} files or {MAX_TOTAL:,} bytes; "
            "use an archive of only the `evals` folder"
        )


def _read(name: str, stream: Any) -> bytes:
    """Read a file of at most MAX_FILE bytes; raise a DataError if the file is larger."""
    content = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise DataError(f"{name!r} is larger than {MAX_FILE:,} bytes; download it again")
    return content


# --- results in JSON -------------------------------------------------------------------------

Reader = Callable[[re.Match, dict], list]
"""Turns the match of a file's name and the parsed content of the file into rows."""


def read_results(path: Path, readers: dict[re.Pattern, Reader]) -> dict[re.Pattern, list]:
    """Read the JSON files of the evals tree whose names match a pattern in `readers`.

    The result maps each pattern to the rows that its Reader made. Raises the errors of `files_of`,
    and a DataError if a Reader does not understand a file.
    """
    rows: dict[re.Pattern, list] = {pattern: [] for pattern in readers}

    def match_of(name: str) -> re.Match | None:
        """Return the match of the first pattern that matches the name; None if no pattern does."""
        return next(filter(None, (pattern.search(name) for pattern in readers)), None)

    for name, content in files_of(path, lambda name: match_of(name) is not None):
        match = match_of(name)
        assert match is not None
        try:
            rows[match.re] += readers[match.re](match, json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{name!r} is not a result of the evaluation harness: {error!r}; download it again"
            ) from error
    return rows


def harness_scores(parsed: dict) -> Iterator[tuple[str, str, float, float]]:
    """Yield (task, metric, value, standard error) from a harness result; a missing error is NaN."""
    for task, metrics in parsed["results"].items():
        for metric, value in metrics.items():
            if not metric.endswith("_stderr"):
                yield task, metric, float(value), float(metrics.get(f"{metric}_stderr", "nan"))
