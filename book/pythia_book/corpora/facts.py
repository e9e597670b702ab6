"""Keeps facts about a text in a cache file, with which a machine need not read the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pythia_core.config import stable_hash
from pythia_core.util.files import cache_dir, cached_file, file_sha256, write_json


def cached_json(folder: str, key: Any, sources: Iterable[str], make: Callable[[], Any]) -> Path:
    """Return the path of a JSON file with the result of `make`; call `make` if there is no file.

    Args:
        folder: the file's folder in the cache.
        key: identifies the text and the settings; JSON can represent it.
        sources: files with the code that `make` runs. If one changes, `make` is called again.
    """
    name = stable_hash([key, [file_sha256(source) for source in sources]])
    path = cache_dir() / folder / f"{name[:16]}.json"
    return cached_file(path, lambda temporary: write_json(temporary, make()))
