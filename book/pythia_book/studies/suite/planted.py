"""Lists what is planted in the text of the suite, and how much of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora import miniature, occupations
from pythia_core.config import PLANTED_DOMAINS, DataConfig
from pythia_core.data.tokenizer import encode_documents

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData


def planted_facts(texts: dict[str, PreparedData]) -> list[dict[str, Any]]:
    """Return how much of each training text belongs to each planted domain.

    The keys of each row are domain, arm, tokens, and share (of the text's tokens). The first
    occurrence of a copied passage is not counted.

    Args:
        texts: maps "standard" and "deduplicated" to the prepared texts.
    """
    rows = []
    for arm, text in texts.items():
        counts = {"copies": _copied_tokens(text)}
        tokens_of = text.manifest["tokens"]["corpus"]
        counts |= {
            name: tokens_of[name]["train_tokens"] for name in PLANTED_DOMAINS if name in tokens_of
        }
        total = text.tokens.n_tokens
        rows += [
            {"domain": name, "arm": arm, "tokens": tokens, "share": tokens / total}
            for name, tokens in counts.items()
        ]
    return rows


def _copied_tokens(text: PreparedData) -> int:
    """Return how many tokens of a text are planted copies, edited or not, of earlier documents."""
    source: dict[bytes, int] = {}
    copied = miniature.copied_texts(text.config.domains, text.config.corpus)
    for number, (passage, times) in enumerate(copied.items()):
        versions = list(dict.fromkeys(miniature.copies_of(passage, times)))
        for ids in encode_documents(text.tokenizer, versions):
            source[np.array([*ids, text.eod_id], text.tokens.dtype).tobytes()] = number
    seen: set[int] = set()
    tokens = 0
    for number in range(text.tokens.n_documents):
        ids = text.tokens.document(number)
        origin = source.get(ids.tobytes())
        if origin is not None:
            tokens += len(ids) if origin in seen else 0
            seen.add(origin)
    return tokens


def noun_facts(data: DataConfig) -> list[dict[str, Any]]:
    """Return the nouns of the planted sentences, in the order of the measurement.

    The keys of each row are noun, group, sentences (number of sentences), feminine (number of
    sentences with a feminine pronoun) and log_odds (of a feminine pronoun). The list is empty if
    the text has no planted sentences.
    """
    counts = miniature.document_counts(data.domains, data.corpus)
    if "occupations" not in counts:
        return []
    return [
        {"noun": n.noun.name, "group": n.noun.group, "sentences": n.sentences,
         "feminine": n.feminine, "log_odds": n.log_odds}
        for n in occupations.noun_counts(counts["occupations"])
    ]  # fmt: skip
