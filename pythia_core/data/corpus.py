"""Read the documents of a corpus: files, a Hugging Face dataset, or a registered corpus.

A package registers a corpus with an entry point in the group `pythia_core.corpora`, which names a
module or object with the methods of `RegisteredCorpus`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pythia_core.config import DOMAINS_OF, DataConfig
from pythia_core.data import user_files
from pythia_core.data.user_files import TextFile
from pythia_core.errors import DataError
from pythia_core.util.extensions import registered
from pythia_core.util.progress import bar as progress_bar


@dataclass(frozen=True)
class Document:
    """A text, and its domain: the part of the corpus to which the text belongs, e.g. "news"."""

    domain: str
    text: str


@dataclass
class DomainTally:
    """The counts and the sha256 of the documents read from one domain."""

    documents: int = 0
    n_bytes: int = 0
    """Total length in UTF-8."""
    empty: int = 0
    """Number of documents of nothing but white space, which the other fields do not count."""
    digest: Any = field(default_factory=hashlib.sha256)
    """sha256 of the documents in order: for each, its number of bytes (u64), then the bytes."""

    def add(self, raw: bytes) -> None:
        """Count a document, given as UTF-8."""
        self.documents += 1
        self.n_bytes += len(raw)
        self.digest.update(len(raw).to_bytes(8, "little"))
        self.digest.update(raw)

    def summary(self) -> dict[str, int | str]:
        """Return the counts and the digest (in hex) under the names that manifests use."""
        return {
            "documents": self.documents,
            "bytes": self.n_bytes,
            "empty_dropped": self.empty,
            "sha256": self.digest.hexdigest(),
        }


Tally = dict[str, DomainTally]


def tally_summaries(tally: Tally) -> dict[str, dict[str, int | str]]:
    """Return the summary of each domain's tally."""
    return {name: count.summary() for name, count in tally.items()}


def open_corpus(
    data: DataConfig,
    progress: bool = True,
    tally: Tally | None = None,
    files: Sequence[TextFile] | None = None,
) -> Iterator[Document]:
    """Yield the documents of a corpus, in a fixed order.

    Line endings become "\\n". Documents of nothing but white space are left out.

    Args:
        data: its `corpus` is a registered name, "hf:NAME[:config][:split][:subset]", a .jsonl or
            .txt file (perhaps with .gz or .zst), a .parquet file, or a folder of such files, which
            are read in the order of their names. Files and folders may be URLs.
        progress: on a terminal, show a progress bar and pip's output during downloads.
        tally: an empty dict, filled with a DomainTally for each domain during reading.
        files: read only these of the corpus's files, which may have no documents.

    Raises:
        FetchError: a download failed.
        DataError: the corpus cannot be read, a text is malformed, or there are no documents.
    """
    counts = {} if tally is None else tally
    total = 0
    with progress_bar(progress, desc="reading text", unit="B", unit_scale=True) as bar:
        for domain, text in _source(data, progress, files):
            count = counts.setdefault(domain, DomainTally())
            if not text or text.isspace():
                count.empty += 1
                continue
            if "\r" in text:
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            try:
                raw = text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(
                    f"document {count.documents} of the domain {domain!r} has an unpaired "
                    f"surrogate at character {error.start}, which is not valid text; repair the "
                    "source"
                ) from error
            count.add(raw)
            total += 1
            bar.update(len(raw))
            yield Document(domain, text)
    if not total and files is None:
        raise no_documents(data, sum(count.empty for count in counts.values()))


def no_documents(data: DataConfig, empty: int) -> DataError:
    """Return the error for a corpus without text; `empty` documents have only white space."""
    return DataError(
        f"the corpus {data.corpus!r} has no documents"
        + (f" with text (documents with only white space: {empty})" if empty else "")
    )


def corpus_files(data: DataConfig) -> list[TextFile] | None:
    """Return the files of a corpus in the order of reading; None if it is not made of files."""
    if is_registered(data.corpus) or user_files.is_dataset(data.corpus):
        return None
    return user_files.list_files(data.corpus)


def corpus_identity(data: DataConfig) -> list[list[str]]:
    """Return names and hashes that change whenever the text of a corpus may have changed."""
    if is_registered(data.corpus):
        return _registered_corpus(data.corpus).identity(data)
    return user_files.identity(data.corpus)


def _source(
    data: DataConfig, progress: bool, files: Sequence[TextFile] | None
) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) of every document, exactly as stored."""
    if is_registered(data.corpus):
        return _registered_corpus(data.corpus).texts(data, progress)
    return user_files.texts(data.corpus, files)


class RegisteredCorpus(Protocol):
    """A corpus that another package registers under the name in `DataConfig.corpus`."""

    def identity(self, data: DataConfig) -> list[list[str]]:
        """Return, without reading the text, names and hashes that change when the text changes."""
        ...

    def texts(self, data: DataConfig, progress: bool) -> Iterator[tuple[str, str]]:
        """Yield (domain, text) of every document in the domains of `data`, in a fixed order."""
        ...


def is_registered(corpus: str) -> bool:
    """Return whether `corpus` is the name of a registered corpus.

    The names of pythia_book's corpora count even if pythia_book is not installed.
    """
    return corpus in DOMAINS_OF or corpus in registered("corpora")


def _registered_corpus(name: str) -> RegisteredCorpus:
    """Load a registered corpus; raise DataError if its package is not installed."""
    point = registered("corpora").get(name)
    if point is None:
        raise DataError(
            f"the corpus {name!r} comes with pythia_book, which is not installed; install the "
            "whole project, or name a file or folder of your own text (--corpus)"
        )
    return point.load()
