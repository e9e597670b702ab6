"""The manifest of a folder of prepared data: its files with their hashes, and what they hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_core.config import DataConfig
from pythia_core.data.indexed_dataset import IndexedWriter
from pythia_core.data.tokenizer import EOD, id_limit
from pythia_core.errors import CorpusChangedError, DataError
from pythia_core.util.files import file_sha256, is_intact, json_object, write_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT = 3
"""Version of the format of prepared tokens; part of the cache key. Raise it with every change."""
FULL_CHECK_BYTES = 1 << 28
"""Folders of at most this size are hashed whenever they are opened (0.5 s). For larger ones, only
the sizes of files are checked."""


def has_manifest(folder: Path) -> bool:
    """Return whether a folder has a manifest, damaged or not, that says which folder it is for."""
    if not (folder / "manifest.json.sha256").is_file():
        return False
    try:
        return "folder" in parse_manifest(folder)
    except DataError:
        return True


def list_files(folder: Path) -> dict[str, dict[str, int | str]]:
    """Map the name of each file in `folder` to its size (`bytes`) and `sha256`."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json in `folder`, and its sha256 next to it."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    write_digest(folder / "manifest.json")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of manifest.json in `folder`.

    Raises:
        DataError: the file is damaged, or belongs to another folder, i.e. to another text or order.
    """
    value = parse_manifest(folder)
    if value.get("folder") != folder.name:
        raise damaged(
            folder, f"the manifest.json in it belongs to the folder {value.get('folder')!r}"
        )
    return value


def parse_manifest(folder: Path) -> dict[str, Any]:
    """Return the content of manifest.json in `folder`; raise DataError if it is damaged."""
    try:
        value = json_object((folder / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(folder, f"manifest.json cannot be read ({error})") from error
    if not is_intact(folder / "manifest.json"):
        raise damaged(folder, "manifest.json does not have the sha256 in manifest.json.sha256")
    return value


def intact_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder with tokens, after checking every sha256 in it.

    What is made from the tokens gets hashes of its own, which would hide any damage.
    """
    manifest = read_manifest(folder)
    try:
        check_files(folder, manifest["files"], full=True)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"manifest.json is incomplete ({error!r})") from error
    return manifest


def check_files(folder: Path, files: dict[str, Any], full: bool) -> None:
    """Check files against their entries in a manifest; arguments and errors as in `verify`."""
    total = sum(entry["bytes"] for entry in files.values())
    for name, entry in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes"
            raise damaged(folder, f"{name} {state}, expected {entry['bytes']} bytes")
        if (full or total <= FULL_CHECK_BYTES) and file_sha256(path) != entry["sha256"]:
            raise damaged(folder, f"the sha256 of {name} is not the recorded {entry['sha256']}")


def damaged(folder: Path, reason: str) -> DataError:
    """Return the error for damaged data in `folder`."""
    return DataError(
        f"the prepared data in {folder} are damaged: {reason}. Delete this folder and run again; "
        "the data will then be prepared again from the corpus"
    )


# --- what the tokens are of ------------------------------------------------------------------

NO_TOKENS = {
    "heldout_documents": 0,
    "train_tokens": 0,
    "heldout_tokens": 0,
    "duplicate_tokens": 0,
}


class DomainRuns:
    """The domains of successive documents, as lists [domain, number of consecutive documents]."""

    def __init__(self) -> None:
        self.runs: list[list[Any]] = []

    def add(self, domain: str, documents: int = 1) -> None:
        """Append documents."""
        if self.runs and self.runs[-1][0] == domain:
            self.runs[-1][1] += documents
        else:
            self.runs.append([domain, documents])


def tokens_entry(
    tokenizer: Tokenizer,
    sha256: str,
    corpus: dict[str, Any],
    train: IndexedWriter,
    domains: DomainRuns,
    heldout: IndexedWriter,
) -> dict[str, Any]:
    """Return the manifest of tokens, without the entry for their files.

    Args:
        sha256: the sha256 of the tokenizer's file.
        corpus: the entry of each domain.
        domains: the domains of the training documents.
    """
    return {
        "format": FORMAT,
        "corpus": corpus,
        "tokenizer_sha256": sha256,
        "vocab_size": id_limit(tokenizer),
        "eod_id": tokenizer.token_to_id(EOD),
        "train": train_entry(train, domains),
        "heldout": {"documents": heldout.n_documents, "tokens": heldout.n_tokens},
        "dedup": {},
    }


def train_entry(train: IndexedWriter, domains: DomainRuns) -> dict[str, Any]:
    """Return the manifest's entry for the training documents."""
    return {"documents": train.n_documents, "tokens": train.n_tokens, "domains": domains.runs}


def check_unchanged(data: DataConfig, now: object, before: object) -> None:
    """Raise CorpusChangedError if descriptions of the corpus made at two times differ."""
    if now != before:
        raise CorpusChangedError(
            f"the corpus {data.corpus!r} changed while its tokens were being prepared; run again"
        )


def without_tokens(corpus: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's entry for a corpus of which no token has been counted."""
    return {name: {**summary, **NO_TOKENS} for name, summary in corpus.items()}


def summaries(corpus: dict[str, Any]) -> dict[str, Any]:
    """Return the summaries of tallies that are in a manifest's entry for the corpus."""
    return {
        name: {key: value for key, value in entry.items() if key not in NO_TOKENS}
        for name, entry in corpus.items()
    }


def heldout_threshold(data: DataConfig, fractions: NDArray[np.float64]) -> float:
    """Return the bound for the hash of a text, scaled to [0, 1); texts below it are held out.

    If no hash is below heldout_fraction, the document with the smallest hash is held out, unless
    heldout_fraction is 0.

    Args:
        fractions: the hash of every document, or at least the smallest.
    """
    limit, smallest = data.heldout_fraction, float(fractions.min())
    return limit if limit == 0 or smallest < limit else math.nextafter(smallest, 1)


def all_held_out(data: DataConfig, documents: int) -> DataError:
    """Return the error for a corpus of which every document would be held out."""
    return DataError(
        f"heldout_fraction={data.heldout_fraction} would hold out every document of "
        f"{data.corpus!r} ({documents:,}; copies of a text are held out together); use 0, "
        "a smaller fraction or more text"
    )
