"""Reads from the raw text what the study needs of it, and caches it.

A pass over the raw text takes a minute and all wheels of the corpus. The file in the cache has the
result, so a machine that gets this file in a bundle needs neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pythia_book.corpora import equations
from pythia_book.corpora.miniature import natural_counts
from pythia_book.studies.term_frequency import CHOICES, WORD_BINS, definitions
from pythia_book.studies.term_frequency.definitions import (
    Definition,
    definition_items,
    words_and_lines,
)
from pythia_core.config import DOMAINS_OF, DataConfig, stable_hash
from pythia_core.data.prepare import prepare_tokens
from pythia_core.errors import DataError
from pythia_core.util.files import cache_dir, file_sha256, write_json


def text_facts(
    data: DataConfig, progress: bool = True
) -> tuple[Mapping[int, int], list[Definition]]:
    """Return how often each number occurs before sums are planted, and the definitions to ask.

    There are no definitions if the corpus has no dictionary or too small a one.
    """
    facts = json.loads(facts_file(data, progress).read_text("utf-8"))
    items = [
        Definition(item["text"], tuple(item["words"]), item["read"])
        for item in facts["definitions"]
    ]
    return dict(zip(equations.FIRST, facts["natural"], strict=True)), items


def facts_file(data: DataConfig, progress: bool = True) -> Path:
    """Return the path in the cache of the JSON that `text_facts` reads, made if absent.

    Its name depends on the text and on the code that reads it.
    """
    sources = [file_sha256(str(module.__file__)) for module in (definitions, equations)]
    key = stable_hash([prepare_tokens(data, progress).name, CHOICES, WORD_BINS, *sources])
    path = cache_dir() / "term_frequency" / f"{key[:16]}.json"
    if not path.is_file():
        natural = natural_counts(data.domains, data.corpus)
        counts = [natural[number] for number in equations.FIRST]
        items = [asdict(item) for item in _definitions(data, progress)]
        write_json(path, {"natural": counts, "definitions": items})
    return path


def _definitions(data: DataConfig, progress: bool) -> list[Definition]:
    """Choose the definitions to ask; none if the corpus has too few."""
    if data.corpus not in DOMAINS_OF or "dictionary" not in data.domains:
        return []
    frequency, lines, training = words_and_lines(data, progress)
    try:
        return definition_items(lines, training, frequency)
    except DataError:  # the corpus is too small, which leaves a gap in the tables
        return []
