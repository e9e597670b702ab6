"""Read the user's own text: .jsonl and .txt files, or a Hugging Face dataset as "hf:NAME".

Each line of a .jsonl file is an object with a document under "text". A .txt file is one document.
Files may be gzipped. A malformed line is an error, because skipping it would silently change the
data. Only "\\n" ends a line (JSON strings may have other Unicode line separators).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pythia_core.errors import DataError, FetchError, MissingDependencyError, one_of
from pythia_core.util.extensions import registered
from pythia_core.util.files import file_sha256

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")
MAX_BYTES = 1 << 28
"""Maximum size of a document or line, against decompression bombs."""


def texts(corpus: str) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of every document in a file, a folder or an "hf:" dataset.

    The domain of a file is its topmost subfolder. If the file is in no subfolder, the domain is the
    name of a .jsonl file without the suffix, or "text" for a .txt file.

    Raises:
        FetchError: a dataset cannot be loaded.
        DataError: a file or dataset is absent, damaged or malformed; the message says where.
        MissingDependencyError: a dataset needs the package `datasets`.
    """
    if corpus.startswith("hf:"):
        yield from _hf_texts(corpus)
        return
    for path, name in _files(corpus):
        parts = Path(name).parts
        jsonl = ".jsonl" in parts[-1]
        domain = parts[0] if len(parts) > 1 else name.split(".jsonl")[0] if jsonl else "text"
        yield from ((domain, text) for text in (_jsonl(path) if jsonl else _plain(path)))


def identity(corpus: str) -> list[list[str]]:
    """Return [name, sha256] of each file; for an "hf:" dataset, [[corpus, fingerprint]]."""
    if corpus.startswith("hf:"):
        return [[corpus, _hf_dataset(corpus)._fingerprint]]
    return [[name, file_sha256(path)] for path, name in _files(corpus)]


def _files(corpus: str) -> list[tuple[Path, str]]:
    """Return (path, name relative to `corpus`) of each visible text file, sorted by name."""
    root = Path(corpus).expanduser()
    if root.is_file():
        files = [(root, root.name)]
    elif root.is_dir():
        paths = [path for path in root.rglob("*") if path.is_file()]
        files = [(path, path.relative_to(root).as_posix()) for path in paths]
        files = [(path, name) for path, name in files if "/." not in f"/{name}"]
    else:
        raise DataError(
            f"corpus {corpus!r} does not exist: name an existing file or folder, a Hugging Face "
            "dataset as 'hf:NAME', or a registered corpus (known are "
            f"{', '.join(sorted(registered('corpora'))) or 'none'})"
        )
    matches = sorted((p for p in files if p[1].endswith(SUFFIXES)), key=lambda pair: pair[1])
    if not matches:
        raise DataError(f"corpus {corpus!r} has no file that ends with {' or '.join(SUFFIXES)}")
    return matches


def _open(path: Path) -> BinaryIO:
    """Open a file to read its bytes, decompressed if its name ends with .gz."""
    return gzip.open(path) if path.name.endswith(".gz") else open(path, "rb")  # type: ignore


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
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: the gzip data is damaged after line {number} ({error}); get the file again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


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
        yield _decode(path, number, raw)


def _jsonl(path: Path) -> Iterator[str]:
    """Yield the string under "text" of each line of a .jsonl file; skip blank lines."""
    for number, raw in _chunks(path, by_line=True):
        line = _decode(path, number, raw)
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: this line is not a JSON object: {error}") from error
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
