"""A real but tiny wheel, which pip finds in a local folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path


def write_tiny_wheel(path: Path) -> str:
    """Write the wheel of the package `tiny` 1.0 to a file; return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/a.txt", "some text")
        info = "tiny-1.0.dist-info/"
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(info + "RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()
