"""Read the user's own text: .jsonl, .txt and .parquet files, or a Hugging Face dataset.

Each line of a .jsonl file is an object with a document under "text", and each row of a .parquet
file has one in the column "text". A .txt file is one document. Both .jsonl and .txt files may be
compressed with gzip or zstd. Files are on this machine or, as in "s3://bucket/folder" or
"hf://datasets/owner/name", anywhere that fsspec can read. A malformed line or an unreadable folder
is an error, because skipping it would silently change the data. A file next to its compressed form
is an error, too. Other files in a folder are named in a warning. Only "\\n" ends a line (JSON
strings may have other Unicode line separators).
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from pythia_core.config import stable_hash
from pythia_core.errors import DataError, FetchError, MissingDependencyError, PythiaError, one_of
from pythia_core.util.extensions import registered
from pythia_core.util.files import cache_dir, cached_file, file_sha256

_NAME = re.compile(
    r"(?P<stem>.*)\.((?P<form>jsonl|txt)(\.(gz|zst))?|(?P<table>parquet))",
    re.IGNORECASE | re.DOTALL,
)
_PACKED = re.compile(r"\.(gz|zst)$", re.IGNORECASE)
READ = ".jsonl or .txt (or these with .gz or .zst), or .parquet"
"""The names of the files that are read, in words."""
_ROWS_AT_ONCE = 256
MAX_BYTES = 1 << 28
"""Maximum size of a document or line, against decompression bombs."""


LARGE_BYTES = 1 << 24
"""Hashes of files of at least this size are kept in the cache."""
NEW_NS = 2 * 10**9
"""A file that was written this recently may be changed without a change to its time of writing."""


@dataclass(frozen=True)
class TextFile:
    """A file of a corpus."""

    path: Path | str
    """The path of a file on this machine, or the URL of another, such as "s3://bucket/a.jsonl"."""
    name: str
    """The path relative to the corpus."""
    size: int
    """Number of bytes, compressed if the file is."""
    version: str = ""
    """What the storage of a URL says about its content, such as a hash or the time of writing."""
    modified: int = 0
    """When a file on this machine was written, in ns."""


def is_dataset(corpus: str) -> bool:
    """Return whether a corpus is a Hugging Face dataset, as in "hf:NAME"."""
    return corpus.startswith("hf:") and not is_url(corpus)


def is_url(corpus: object) -> bool:
    """Return whether a corpus or file is a URL, which fsspec reads."""
    return isinstance(corpus, str) and "://" in corpus


def texts(corpus: str, files: Sequence[TextFile] | None = None) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of every document in a file, a folder or an "hf:" dataset.

    The domain of a file is its topmost subfolder. If the file is in no subfolder, the domain is the
    name of a .jsonl or .parquet file without the suffix, or "text" for a .txt file.

    Args:
        files: read only these files of the corpus.

    Raises:
        FetchError: a dataset or a URL cannot be loaded.
        DataError: a file or dataset is absent, damaged or malformed; the message says where.
        MissingDependencyError: a package is not installed: `datasets` for a dataset, pyarrow
            for .zst and .parquet files, or the package that fsspec names for a URL.
    """
    if is_dataset(corpus):
        yield from _hf_texts(corpus)
        return
    for file in list_files(corpus) if files is None else files:
        folder, _, last = file.name.rpartition("/")
        match = _NAME.fullmatch(last)
        assert match, "list_files returns no other names"
        plain = (match["form"] or "").lower() == "txt"
        domain = folder.split("/")[0] or ("text" if plain else match["stem"])
        read = _plain if plain else _parquet if match["table"] else _jsonl
        yield from ((domain, text) for text in read(file.path))


def identity(corpus: str) -> list[list[str]]:
    """Return [name, sha256] of each file; for an "hf:" dataset, [[corpus, fingerprint]].

    For a URL, what the storage says about its content takes the place of the sha256.
    """
    if is_dataset(corpus):
        return [[corpus, _hf_dataset(corpus)._fingerprint]]
    return [[file.name, file.version or _sha256(file)] for file in list_files(corpus)]


def _sha256(file: TextFile) -> str:
    """Return the sha256 of a file on this machine.

    The sha256 of a large file is kept in the cache until the file's size or time of writing
    changes, so that only one of many processes computes it.
    """
    if file.size < LARGE_BYTES or time.time_ns() - file.modified < NEW_NS:
        return file_sha256(file.path)
    key = stable_hash([os.path.abspath(file.path), file.size, file.modified])
    kept = cache_dir() / "hashes" / f"{key[:32]}.txt"
    try:
        cached_file(kept, lambda path: path.write_text(file_sha256(file.path)))
        return kept.read_text()
    except OSError:  # e.g. of a cache that is read only
        return file_sha256(file.path)


def list_files(corpus: str) -> list[TextFile]:
    """Return each visible text file of a corpus, sorted by name.

    Warn about visible files of other types, so that no part of a corpus is skipped silently.

    Raises:
        FetchError, DataError, MissingDependencyError: as in `texts`.
    """
    files = _remote_files(corpus) if is_url(corpus) else _local_files(corpus)
    files.sort(key=lambda file: file.name)
    matches = [file for file in files if _NAME.fullmatch(file.name.rpartition("/")[2])]
    _check_files(matches)
    others = [file.name for file in files if not _NAME.fullmatch(file.name.rpartition("/")[2])]
    listing = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    if not matches:
        instead = f", but it has {listing}" if others else ""
        raise DataError(f"corpus {corpus!r} has no file that ends with {READ}{instead}")
    if others:
        warnings.warn(
            f"these files of the corpus {corpus!r} are not read: {listing}. Only files that end "
            f"with {READ} are read; convert the other files, or move them elsewhere",
            stacklevel=1,  # one place, so that Python shows it once
        )
    return matches


def _local_files(corpus: str) -> list[TextFile]:
    """Return all visible files of a file or folder on this machine."""
    root = Path(os.path.expanduser(corpus))
    if root.is_dir():
        names = [(path, path.relative_to(root).as_posix()) for path in _visible(root)]
    elif os.path.lexists(root):
        names = [(root, root.name)]
    else:
        raise DataError(
            f"corpus {str(root.absolute())!r} does not exist: name an existing file or "
            "folder, a Hugging Face dataset as 'hf:NAME', or a registered corpus: "
            f"{', '.join(sorted(registered('corpora'))) or 'none'}"
        )
    files = []
    for path, name in names:
        known = os.stat(path) if path.is_file() else os.lstat(path)  # a link may be broken
        files.append(TextFile(path, name, known.st_size, modified=known.st_mtime_ns))
    return files


def _remote_files(corpus: str) -> list[TextFile]:
    """Return all visible files of a URL."""
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(corpus)
        entries = system.find(root, detail=True)
    except (ImportError, ValueError) as error:  # no package for, or no such, protocol
        raise MissingDependencyError(f"corpus {corpus!r} cannot be read: {error}") from error
    except Exception as error:  # each storage has its own
        raise _unreachable(corpus, error) from error
    root = root.rstrip("/")
    files = []
    for path, info in entries.items():
        name = path.removeprefix(root).lstrip("/") or path.rpartition("/")[2]
        if not any(part.startswith(".") for part in name.split("/")):
            version = {key: info[key] for key in _VERSION if info.get(key)} or info
            size = int(info.get("size") or 0)
            files.append(TextFile(system.unstrip_protocol(path), name, size, f"{size} {version}"))
    if not files:
        raise DataError(
            f"corpus {corpus!r} does not exist or is empty; check the name of the bucket or "
            "dataset, the folder, and whether you may read it"
        )
    return files


_VERSION = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "sha256", "mtime", "created")
"""Entries that describe the content of a file in one of the storages that fsspec knows."""


def _unreachable(name: str, error: Exception) -> FetchError:
    """Return the error for a URL that cannot be read."""
    reason = str(error).strip().splitlines()
    return FetchError(
        f"{name!r} cannot be read ({type(error).__name__}: {reason[0] if reason else ''}); check "
        "the name of the bucket or dataset, your credentials and the network"
    )


def _check_files(files: list[TextFile]) -> None:
    """Raise a DataError if one of the text files cannot be read or is there twice.

    A file is there twice if it is next to its compressed form, as after `gunzip --keep`.
    """
    names: dict[str, str] = {}
    for file in files:
        _check_file(file.path)
        other = names.setdefault(_PACKED.sub("", file.name), file.name)
        if other != file.name:
            folder = str(file.path).rpartition("/")[0]
            raise DataError(
                f"the corpus has both {other} and {file.name} in {folder}, so their text would be "
                "read twice; remove one, or rename it if its text is different"
            )


def _check_file(path: Path | str) -> None:
    """Raise a DataError if a path does not lead to a file."""
    if isinstance(path, Path) and not path.is_file():  # a pipe would wait, a broken link is empty
        raise DataError(f"{path} is not a file, or is a broken link; remove it from the corpus")


def _visible(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, except files and folders whose names start with a dot.

    Links to folders are followed. Raises DataError if a folder cannot be read or contains itself.
    """

    def unreadable(error: OSError) -> NoReturn:
        raise DataError(
            f"the folder {error.filename} cannot be read ({error.strerror}); change its "
            "permissions, or remove it from the corpus"
        ) from error

    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            inner = Path(folder, name)
            if inner.is_symlink() and Path(folder).resolve().is_relative_to(inner.resolve()):
                raise DataError(f"{inner} is a link to a folder that contains it; remove the link")
        yield from (Path(folder, name) for name in names if not name.startswith("."))


@contextlib.contextmanager
def _open(path: Path | str) -> Iterator[Any]:
    """Open a file to read its bytes, decompressed if its name ends with .gz or .zst."""
    _check_file(path)
    packed = _PACKED.search(str(path))
    with contextlib.ExitStack() as stack:
        if isinstance(path, Path):
            file: Any = stack.enter_context(open(path, "rb"))
            size = os.fstat(file.fileno()).st_size
        else:
            import fsspec

            file = stack.enter_context(fsspec.open(path, "rb"))
            size = file.size
        if packed and size == 0:
            raise EOFError("the file is empty")
        if packed and packed[1].lower() == "gz":
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif packed:
            stream = _pyarrow(path).CompressedInputStream(file, "zstd")
            file = stack.enter_context(io.BufferedReader(stream))
        yield file


def _pyarrow(path: Path | str) -> Any:
    """Return the module pyarrow; raise MissingDependencyError if it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise MissingDependencyError(
            f"{path} needs the package pyarrow: pip install pyarrow, or convert the file"
        ) from error
    return pyarrow


@contextlib.contextmanager
def _translate_errors(path: Path | str, place: Callable[[], str]) -> Iterator[None]:
    """Raise a PythiaError if a file cannot be read inside the block.

    Args:
        place: returns how far reading has got, e.g. "line 5".
    """
    try:
        yield
    except PythiaError:
        raise
    except (EOFError, zlib.error, OSError, ValueError) as error:
        if getattr(error, "errno", None) is None:  # of a decompressor, not of the system
            raise DataError(
                f"{path}: the compressed data is damaged after {place()} ({error}); get the file "
                "again"
            ) from error
        if is_url(path):
            raise _unreachable(str(path), error) from error
        raise DataError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # each storage has its own
        if is_url(path):
            raise _unreachable(str(path), error) from error
        raise


def _chunks(path: Path | str, by_line: bool) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, bytes) of each line of a file, or (1, bytes) for the whole file."""
    number = 0
    with _translate_errors(path, lambda: f"line {number}"), _open(path) as file:
        while raw := (file.readline(MAX_BYTES + 1) if by_line else file.read(MAX_BYTES + 1)):
            number += 1
            _check_length(path, number, len(raw))
            yield number, raw


def _check_length(path: Path | str, number: int, length: int) -> None:
    """Raise a DataError if a document or line is too long."""
    if length > MAX_BYTES:
        raise DataError(
            f"{path}:{number}: this document is longer than {MAX_BYTES} bytes; split the document"
        )


def _decode(path: Path | str, number: int, raw: bytes) -> str:
    """Decode UTF-8 that begins on line `number`; drop a byte-order mark on line 1."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = number + raw[: error.start].count(b"\n")
        raise DataError(
            f"{path}:{line}: this text is not UTF-8 (byte {raw[error.start]:#04x} at offset "
            f"{error.start}); convert the file to UTF-8"
        ) from error


def _plain(path: Path | str) -> Iterator[str]:
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


def json_lines(path: Path | str) -> Iterator[tuple[int, Any]]:
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


def _jsonl(path: Path | str) -> Iterator[str]:
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


def _parquet(path: Path | str) -> Iterator[str]:
    """Yield the string in the column "text" of each row of a .parquet file."""
    _pyarrow(path)
    import pyarrow.parquet

    number = 0
    with _translate_errors(path, lambda: f"row {number}"), _open(path) as file:
        if not (table := pyarrow.parquet.ParquetFile(file)).num_row_groups:
            return
        if "text" not in table.schema_arrow.names:
            raise DataError(
                f'{path} has the columns {table.schema_arrow.names}, but no "text"; rename the '
                "column that has the documents"
            )
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=["text"]):
            for text in batch.column(0).to_pylist():
                number += 1
                if not isinstance(text, str):
                    kind = type(text).__name__
                    raise DataError(f'{path}:{number}: "text" is of type {kind}, not a string')
                _check_length(path, number, len(text))
                yield text


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
