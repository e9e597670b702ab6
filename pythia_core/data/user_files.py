"""Read the user's own text: .jsonl and .txt files, or a Hugging Face dataset as "hf:NAME".

Each line of a .jsonl file is an object with a document under "text". A .txt file is one document.
Files may be compressed with gzip, or with zstd if pyarrow is installed. A malformed line or an
unreadable folder is an error, because skipping it would silently change the data, and so is a file
next to its compressed form. Other files in a folder are named in a warning. Only "\\n" ends a line
(JSON strings may have other Unicode line separators).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pythia_core.errors import DataError, FetchError, MissingDependencyError, one_of
from pythia_core.util.extensions import registered
from pythia_core.util.files import file_sha256

_NAME = re.compile(r"(?P<stem>.*)\.(?P<form>jsonl|txt)(\.(gz|zst))?", re.IGNORECASE | re.DOTALL)
_PACKED = re.compile(r"\.(gz|zst)$", re.IGNORECASE)
READ = ".jsonl or .txt (or these with .gz or .zst)"
"""The names of the files that are read, in words."""
MAX_BYTES = 1 << 28
"""Maximum size of a document or line, against decompression bombs."""


def texts(corpus: str) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of every document in a file, a folder or an "hf:" dataset.

    The domain of a file is its topmost subfolder. If the file is in no subfolder, the domain is the
    name of a .jsonl file without the suffix, or "text" for a .txt file.

    Raises:
        FetchError: a dataset cannot be loaded.
        DataError: a file or dataset is absent, damaged or malformed; the message says where.
        MissingDependencyError: a dataset needs the package `datasets`, or a .zst file pyarrow.
    """
    if corpus.startswith("hf:"):
        yield from _hf_texts(corpus)
        return
    for path, name in _files(corpus):
        folder, _, last = name.rpartition("/")
        match = _NAME.fullmatch(last)
        assert match, "_files returns no other names"
        jsonl = match["form"].lower() == "jsonl"
        domain = folder.split("/")[0] or (match["stem"] if jsonl else "text")
        yield from ((domain, text) for text in (_jsonl(path) if jsonl else _plain(path)))


def identity(corpus: str) -> list[list[str]]:
    """Return [name, sha256] of each file; for an "hf:" dataset, [[corpus, fingerprint]]."""
    if corpus.startswith("hf:"):
        return [[corpus, _hf_dataset(corpus)._fingerprint]]
    return [[name, file_sha256(path)] for path, name in _files(corpus)]


def _files(corpus: str) -> list[tuple[Path, str]]:
    """Return (path, name relative to `corpus`) of each visible text file, sorted by name.

    Warn about visible files of other types, so that no part of a corpus is skipped silently.
    """
    root = Path(os.path.expanduser(corpus))
    if root.is_dir():
        files = [(path, path.relative_to(root).as_posix()) for path in _visible(root)]
    elif os.path.lexists(root):
        files = [(root, root.name)]
    else:
        raise DataError(
            f"corpus {str(root.absolute())!r} does not exist: name an existing file or "
            "folder, a Hugging Face dataset as 'hf:NAME', or a registered corpus (known are "
            f"{', '.join(sorted(registered('corpora'))) or 'none'})"
        )
    files.sort(key=lambda pair: pair[1])
    matches = [pair for pair in files if _NAME.fullmatch(pair[0].name)]
    _check_files(matches)
    others = [name for path, name in files if not _NAME.fullmatch(path.name)]
    listing = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    if not matches:
        found = f", but it has {listing}" if others else ""
        raise DataError(f"corpus {corpus!r} has no file that ends with {READ}{found}")
    if others:
        warnings.warn(
            f"these files of the corpus {corpus!r} are not read: {listing}. Only files that end "
            f"with {READ} are read; convert other text, or move it away",
            stacklevel=1,  # one place, so that Python shows it once
        )
    return matches


def _check_files(files: list[tuple[Path, str]]) -> None:
    """Raise a DataError if one of the text files, (path, name), cannot be read or is there twice.

    Its name is there twice if it is next to its compressed form, as after `gunzip --keep`.
    """
    names: dict[str, str] = {}
    for path, name in files:
        _check_file(path)
        other = names.setdefault(_PACKED.sub("", name), name)
        if other != name:
            raise DataError(
                f"the corpus has both {other} and {name} in {path.parent}, so their text would be "
                "read twice; remove one, or rename it if its text is another"
            )


def _check_file(path: Path) -> None:
    """Raise a DataError if a path is not that of a file."""
    if not path.is_file():  # a pipe would wait, a broken link has no content
        raise DataError(f"{path} is not a file, or is a broken link; remove it from the corpus")


def _visible(root: Path) -> Iterator[Path]:
    """Yield the files in a folder and its subfolders, whose names do not start with a dot.

    Links to folders are followed. Raises DataError if a folder cannot be read or contains itself.
    """

    def unreadable(error: OSError) -> NoReturn:
        raise DataError(f"the folder {error.filename} cannot be read: {error.strerror}") from error

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            inner = Path(folder, name)
            if inner.is_symlink() and Path(folder).resolve().is_relative_to(inner.resolve()):
                raise DataError(f"{inner} is a link to a folder that contains it; remove the link")
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _open(path: Path) -> BinaryIO:
    """Open a file to read its bytes, decompressed if its name ends with .gz or .zst."""
    _check_file(path)
    packed = path.suffix.lower()
    if packed in (".gz", ".zst") and not path.stat().st_size:
        raise EOFError("the file is empty")
    if packed == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if packed == ".zst":
        try:
            import pyarrow
        except ImportError as error:
            raise MissingDependencyError(
                f"{path} needs the package pyarrow: pip install pyarrow, or decompress the file"
            ) from error
        return io.BufferedReader(pyarrow.CompressedInputStream(str(path), "zstd"))
    return open(path, "rb")


def _chunks(path: Path, by_line: bool) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, bytes) of each line of a file, or (1, bytes) for the whole file."""
    number = 0
    try:
        with _open(path) as file:
            while raw := (file.readline(MAX_BYTES + 1) if by_line else file.read(MAX_BYTES + 1)):
                number += 1
                if len(raw) > MAX_BYTES:
                    raise DataError(
                        f"{path}:{number}: this document is longer than {MAX_BYTES} bytes; split "
                        "the document"
                    )
                yield number, raw
    except (EOFError, zlib.error, OSError) as error:
        if getattr(error, "errno", None) is not None:  # from the system, not a decompressor
            raise DataError(f"{path} cannot be read: {error}") from error
        raise DataError(
            f"{path}: the compressed data is damaged after line {number} ({error}); get the file "
            "again"
        ) from error


def _decode(path: Path, number: int, raw: bytes) -> str:
    """Decode UTF-8 that begins on line `number`; drop a byte-order mark on line 1."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = number + raw[: error.start].count(b"\n")
        raise DataError(
            f"{path}:{line}: this text is not UTF-8 (byte {raw[error.start]:#04x} at offset "
            f"{error.start}); convert the file to UTF-8"
        ) from error


def _plain(path: Path) -> Iterator[str]:
    """Yield the text of a .txt file, or nothing if it is empty."""
    for number, raw in _chunks(path, by_line=False):
        text = _decode(path, number, raw)
        if (place := raw.find(0)) >= 0:  # a crash of the machine can fill a file with them
            line = 1 + raw[:place].count(b"\n")
            raise DataError(
                f"{path}:{line}: this text has a NUL byte at offset {place}, so it is damaged or "
                "is not text; get the file again"
            )
        yield text


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) of each line of a .jsonl file; skip blank lines.

    Raises:
        DataError: the file cannot be read, or a line is not UTF-8 or JSON, or repeats a key.
    """
    for number, raw in _chunks(path, by_line=True):
        line = _decode(path, number, raw)
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: this line is not a JSON object: {error}") from error
        yield number, value


def _jsonl(path: Path) -> Iterator[str]:
    """Yield the string under "text" of each line of a .jsonl file."""
    for number, value in json_lines(path):
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            content = f"keys {sorted(value)}" if isinstance(value, dict) else type(value).__name__
            if isinstance(value, dict) and "text" in value:
                content = f'"text" of type {type(value["text"]).__name__}'
            raise DataError(
                f'{path}:{number}: each line needs an object with a string under "text", '
                f"got {content}"
            )
        try:
            value["text"].encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{path}:{number}: the text has an unpaired surrogate at character {error.start}, "
                "which is not valid text; repair the source"
            ) from error
        yield value["text"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict; raise ValueError if a key is repeated."""
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} appears twice")
    return value


FORM = "hf:NAME[:config][:split][:subset]"
"""The form of an "hf:" name. The subset is a value of meta.pile_set_name, as in the Pile."""


def _hf_parts(corpus: str) -> list[str]:
    """Split "hf:NAME:..." into [name, config, split, subset]; "" stands for an omitted part."""
    parts = corpus.removeprefix("hf:").split(":")
    if not parts[0] or len(parts) > 4:
        raise DataError(f"corpus {corpus!r} does not have the form {FORM}")
    return [*parts, "", "", ""][:4]


def _hf_dataset(corpus: str) -> Any:
    """Load the Hugging Face dataset of an "hf:" name, with all of its subsets."""
    name, config, split, subset = _hf_parts(corpus)
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"corpus {corpus!r} needs the `datasets` package: pip install datasets"
        ) from error
    try:
        data = datasets.load_dataset(name, config or None, split=split or "train")
    except Exception as error:
        raise FetchError(
            f"corpus {corpus!r} cannot be loaded ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else ''}); check the name, "
            "the config, the split and the network, or pass a local folder"
        ) from error
    for column in ["text"] + ["meta"] * bool(subset):
        if column not in data.column_names:
            raise DataError(
                f'corpus {corpus!r} has the columns {data.column_names}, but no "{column}"; '
                "choose a dataset that has this column"
            )
    return data


def _hf_texts(corpus: str) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of every document of an "hf:" dataset, or of its named subset.

    The domain is meta.pile_set_name or, if there is none, the dataset's name.
    """
    name, _, _, subset = _hf_parts(corpus)
    data, default = _hf_dataset(corpus), name.rstrip("/").rsplit("/", 1)[-1]
    columns = [column for column in ("text", "meta") if column in data.column_names]
    domains: set[str] = set()
    for number, row in enumerate(data.select_columns(columns)):
        if not isinstance(row["text"], str):
            kind = type(row["text"]).__name__
            raise DataError(
                f'corpus {corpus!r}, row {number}: "text" is of type {kind}, not a string'
            )
        meta = row.get("meta")
        domain = (meta.get("pile_set_name") if isinstance(meta, dict) else None) or default
        domains.add(domain)
        if subset in ("", domain):
            yield domain, row["text"]
    if subset and subset not in domains:
        raise DataError(f"corpus {corpus!r}: {one_of(subset, sorted(domains), 'subset')}")
