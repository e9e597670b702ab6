"""Tests what a model knows about a word: given a definition, does it pick the defined word?

The definitions are from WordNet, which is part of the pocket Pile. The model chooses among four
words. The score of a word is the probability of the definition after it, in the format of the
training text ("word: definition"). The probability of the word itself does not count. The three
wrong words are about as frequent as the right one, so frequency alone does not help.

Half of the definitions occur in the training text, once each. For the other half, the model must
have learned the word from other contexts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora.facts import cached_json
from pythia_book.corpora.pocket_pile import raw_texts
from pythia_book.measurements import RequestMeasurement
from pythia_book.studies.term_frequency.params import CHOICES, WORD_BINS
from pythia_core.config import CONTROL_DOMAINS, DOMAINS_OF, PLANTED_DOMAINS, DataConfig
from pythia_core.data.corpus import open_corpus
from pythia_core.data.prepare import prepare_tokens
from pythia_core.errors import DataError
from pythia_core.evaluation.scoring import (
    Request,
    Scorable,
    encoder,
    score,
)
from pythia_core.util.files import fraction

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData

PER_BIN = 150
NEIGHBORS = 40
"""Entries are ranked by frequency. The wrong words come from this many entries on either side of
the right one."""
_WORDS = re.compile(r"[a-z]+")
_ENTRY = re.compile(r"([a-z]+): ([^;]+)")


@dataclass(frozen=True)
class Definition:
    """A dictionary definition, with four words to choose from."""

    text: str
    words: tuple[str, ...]
    """The defined word, then three wrong ones."""
    read: bool
    """Whether the definition occurs in the training text."""


def entries(lines: Iterable[str]) -> dict[str, str]:
    """Map each usable line of the dictionary to the word that it defines.

    A line is usable if it defines a single lower-case word in four or more words.
    """
    return {
        line: match[1]
        for line in lines
        if (match := _ENTRY.match(line)) and match[2].strip().count(" ") >= 3
    }


PLANTED_AT_MOST = 0.1


def chosen_definitions(data: DataConfig, progress: bool = True) -> list[Definition]:
    """Return the definitions, from the cache, on which the models of a text are tested.

    There are none if the corpus has no dictionary or too small a one.
    """
    items = json.loads(definitions_file(data, progress).read_text("utf-8"))
    return [Definition(item["text"], tuple(item["words"]), item["read"]) for item in items]


def definitions_file(data: DataConfig, progress: bool = True) -> Path:
    """Return the path of the cached JSON that `chosen_definitions` reads; make it if it is absent.

    Making it takes a minute and needs all wheels of the corpus, so a bundle has this file.
    """

    def make() -> list[dict[str, Any]]:
        if data.corpus not in DOMAINS_OF or "dictionary" not in data.domains:
            return []
        frequency, lines, training = words_and_lines(data, progress)
        try:
            return [asdict(item) for item in definition_items(lines, training, frequency)]
        except DataError:  # the corpus is too small, which leaves a gap in the tables
            return []

    key = [prepare_tokens(data, progress).name, CHOICES, WORD_BINS]
    return cached_json("term_frequency", key, [__file__], make)


def words_and_lines(
    data: DataConfig, progress: bool = False
) -> tuple[Counter[str], list[str], Counter[str]]:
    """Count the words of a corpus, and read the dictionary that is part of the corpus.

    A word is left out if more than the fraction PLANTED_AT_MOST of its occurrences are in generated
    text, because generated text repeats the same few sentences again and again.

    Returns:
        The counts of lower-case words in the training text, all lines of the dictionary, and the
        counts of these lines in the training text. There are no lines if the corpus has no
        dictionary.
    """
    generated = {*PLANTED_DOMAINS, *CONTROL_DOMAINS}
    natural: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    training: Counter[str] = Counter()
    for document in open_corpus(data, progress):
        if fraction(document.text) >= data.heldout_fraction:
            counts = planted if document.domain in generated else natural
            counts.update(_WORDS.findall(document.text.lower()))
            if document.domain == "dictionary":
                training.update(document.text.split("\n"))
    frequency = Counter(
        {
            word: count + planted[word]
            for word, count in natural.items()
            if planted[word] <= PLANTED_AT_MOST * (count + planted[word])
        }
    )
    has_dictionary = data.corpus in DOMAINS_OF and "dictionary" in data.domains
    texts = (text for _, text in raw_texts(("dictionary",))) if has_dictionary else ()
    return frequency, [line for text in texts for line in text.split("\n")], training


def definition_items(
    all_lines: Sequence[str],
    training_lines: Mapping[str, int],
    frequency: Mapping[str, int],
    per_bin: int = PER_BIN,
) -> list[Definition]:
    """Choose the definitions to ask about, and three wrong words for each.

    From each bin of WORD_BINS, hashes choose up to `per_bin` definitions that are in the training
    text once, and up to `per_bin` that are not in the text. `training_lines` and
    `frequency` count the dictionary lines and the words that are in the training text.

    Raises:
        DataError: the dictionary has fewer than CHOICES words that occur in the training text.
    """
    words = entries(dict.fromkeys(all_lines))
    senses = Counter(words.values())
    ranked = sorted(
        (frequency.get(word, 0), _hash(line), line)
        for line, word in words.items()
        if senses[word] == 1 or training_lines.get(line)
    )
    ranked = [entry for entry in ranked if entry[0] >= WORD_BINS[0]]
    if len({words[line] for *_, line in ranked}) < CHOICES:
        raise DataError(
            f"only {len({words[line] for *_, line in ranked})} different words of the dictionary "
            f"occur in the training text, but at least {CHOICES} are needed; include the domain "
            "'dictionary' or more text"
        )
    groups: dict[tuple[bool, int], list[int]] = {}
    for index, (count, _, line) in enumerate(ranked):
        times = training_lines.get(line, 0)
        if times > 1:  # planted copies, which would test memorization
            continue
        rank = sum(count >= low for low in WORD_BINS)
        groups.setdefault((times == 1, rank), []).append(index)
    items = []
    for (read, _), indices in sorted(groups.items()):
        for index in sorted(indices, key=lambda i: ranked[i][1])[:per_bin]:
            line = ranked[index][2]
            wrong = _distractors(ranked, words, index)
            text = _ENTRY.match(line)[2].strip()  # type: ignore[index]
            items.append(Definition(text, (words[line], *wrong), read))
    return items


def _distractors(
    ranked: Sequence[tuple[int, str, str]], words: Mapping[str, str], index: int
) -> list[str]:
    """Choose three wrong words by hash, among words about as frequent as the right word.

    `ranked` holds one (word count, hash, line) per entry, in ascending order. The right word is at
    `index`.
    """
    own = words[ranked[index][2]]
    span = NEIGHBORS
    while True:
        around = ranked[max(0, index - span) : index + span + 1]
        ranks = {words[line]: _hash(f"{own} {line}") for *_, line in around}
        ranks.pop(own, None)
        if len(ranks) >= CHOICES - 1 or span > len(ranked):
            return sorted(ranks, key=ranks.__getitem__)[: CHOICES - 1]
        span *= 2


def _hash(text: str) -> str:
    """Return the SHA-256 of `text` in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class DefinitionMeasurement(RequestMeasurement):
    """A measurement of whether a model finds the defined word among four words.

    `choice`: bool[items], whether the definition is likeliest after the right word;
    `logprob`: float32[items], log-probability of the definition after the right word, in nats.
    """

    items: tuple[Definition, ...]
    requests: tuple[Request, ...]
    max_seq_len: int
    name: str = "definitions"

    @classmethod
    def of(
        cls, items: Sequence[Definition], data: PreparedData, max_seq_len: int
    ) -> DefinitionMeasurement:
        """Create the measurement on those items that fit into `max_seq_len` tokens."""
        encode = encoder(data.tokenizer)
        fitting, requests = [], []
        for item in items:
            tail = encode(f" {item.text}")
            heads = [(data.eod_id, *encode(f"{word}:")) for word in item.words]
            if max(map(len, heads)) + len(tail) - 1 <= max_seq_len:
                fitting.append(item)
                requests += [Request(head, tail) for head in heads]
        return cls(tuple(fitting), tuple(requests), max_seq_len)

    def __call__(self, model: Scorable, step: int) -> dict[str, np.ndarray]:
        """Measure `model`, and return the arrays that the class describes."""
        if not self.requests:
            return {"choice": np.zeros(0, bool), "logprob": np.zeros(0, np.float32)}
        logprob = score(model, self.packed).logprob.reshape(-1, CHOICES)
        return {
            "choice": logprob[:, 0] > logprob[:, 1:].max(1),
            "logprob": logprob[:, 0].astype(np.float32),
        }
