"""Measures how fast `SurfaceTerms` counts terms in rows of token ids.

The terms are the most frequent words and word pairs in the training data of the scale `laptop`. The
baseline decodes every row and splits it into words. Both use one thread, take turns in the same
process, and must agree on every count.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from pythia_book.bench.generate import time_alternately
from pythia_book.term_counts import CHUNK, SurfaceTerms
from pythia_core.data.tokenizer import token_bytes
from pythia_core.errors import ConfigError, DataError
from pythia_core.suite import scale_named
from pythia_core.util.machine import device_info
from pythia_core.util.progress import bar as progress_bar


def bench_terms(n_terms: int = 1000, rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Measure how fast SurfaceTerms and the baseline count terms, in alternating rounds.

    Returns:
        `machine`
        `terms`, `tokens`, `rounds`: numbers of terms, of tokens and of rounds
        `tokens_per_s`: maps the name of each implementation to its speed
        `ratio`: speed of SurfaceTerms divided by the speed of the baseline

    Raises:
        ConfigError: fewer than 10 terms or 1 round.
        DataError: SurfaceTerms and the baseline give different counts.
    """
    from pythia_core.data.prepare import prepare

    if n_terms < 10 or rounds < 1:
        raise ConfigError(
            f"there must be at least 10 terms and 1 round, got {n_terms} terms and {rounds} rounds"
        )
    data = prepare(scale_named("laptop").data, progress)
    rows = data.rows.rows(0, min(data.rows.n_rows, 4096))[:, :-1]
    pieces = token_bytes(data.tokenizer)
    characters = map(chr, range(sys.maxunicode + 1))
    marks = "".join(c for c in characters if unicodedata.category(c)[0] == "M")
    pattern = re.compile(rf"(?:[^\W_]|[{marks}])+")

    def words(row: np.ndarray) -> list[str]:
        raw = b"".join(pieces[i] or b"\n" for i in row.tolist())
        return pattern.findall(raw.decode("utf-8", "replace"))

    frequent: Counter[tuple[str, ...]] = Counter()
    for row in rows[:1024]:
        split = words(row)
        frequent.update((word,) for word in split)
        frequent.update(pairwise(split))
    candidates = [key for key, _ in frequent.most_common() if all(word.isascii() for word in key)]
    keys = candidates[:n_terms]
    terms = [" ".join(key) for key in keys]
    surface = SurfaceTerms(terms, pieces)

    parts = np.split(rows, range(CHUNK // rows.shape[1], len(rows), CHUNK // rows.shape[1]))

    def count_by_splitting() -> list[int]:
        counts: Counter[tuple[str, ...]] = Counter()
        for row in rows:
            split = words(row)
            counts.update((word,) for word in split)
            counts.update(pairwise(split))
        return [counts[key] for key in keys]

    implementations: dict[str, Callable[[], Any]] = {
        "surface terms": lambda: sum(map(surface.count, parts)),
        "decode, split, count": count_by_splitting,
    }
    if surface.count(rows).tolist() != count_by_splitting():
        raise DataError("SurfaceTerms and the baseline give different counts; this is a bug")
    bar = progress_bar(progress, iterable=range(rounds), desc="counting")
    speed = {name: rows.size / s for name, s in time_alternately(implementations, bar).items()}
    return {
        "machine": device_info(),
        "terms": len(terms),
        "tokens": int(rows.size),
        "rounds": rounds,
        "tokens_per_s": {name: round(value) for name, value in speed.items()},
        "ratio": round(speed["surface terms"] / speed["decode, split, count"], 1),
    }


def markdown(result: dict[str, Any]) -> str:
    """Format the result of `bench_terms` as a Markdown table."""
    lines = [
        f"{result['machine']['device']}, one thread; {result['terms']:,} terms in "
        f"{result['tokens']:,} tokens, median of {result['rounds']} rounds.",
        "",
        "| implementation | tokens/s |",
        "|---|--:|",
        *(f"| {name} | {value:,} |" for name, value in result["tokens_per_s"].items()),
    ]
    return "\n".join(lines)
