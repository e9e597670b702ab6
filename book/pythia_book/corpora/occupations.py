"""Sentences planted in the miniature: each has a noun, and he, she, or the possessive his or her.

For each noun, the share of feminine pronouns is known. So a study can ask whether a model has
learned it, and whether an intervention removes it. The other text of the miniature is too small: it
lacks several occupations. "Her" is always a possessive, never the counterpart of "him", so that a
swap can be undone.

    invented      made-up nouns of one token, equally frequent; their shares are assigned at
                  random, so that a permutation test of one model is exact
    occupations   the 40 occupations of WinoBias with the shares of women in the United States
    definitional  nouns that state a gender, such as king and queen

Every noun occurs equally often in every frame, to within one sentence.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pythia_core.errors import ConfigError, raise_all
from pythia_core.util.files import fraction

GROUPS = {"invented": 0.45, "occupations": 0.4, "definitional": 0.15}
"""Maps each group of nouns to its share of the planted sentences."""
INVENTED = "invented"
LIMITS = (0.05, 0.95)
"""Smallest and largest share of feminine pronouns for an invented noun or an occupation."""
DEFINITIONAL = (0.02, 0.98)
"""Share of feminine pronouns for masculine definitional nouns, and for feminine ones."""
PER_DOCUMENT = 12
"""Sentences in each document, in random order, so that deduplication removes no document."""
WORDS = 6.5 * PER_DOCUMENT
"""Mean number of words in a document."""
PRONOUNS = {"he": ("he", "she"), "his": ("his", "her")}
"""Maps the name of a slot in a frame to its masculine and feminine pronoun."""
_SLOT = re.compile(r"\{(he|his)\}")


@dataclass(frozen=True)
class Noun:
    """A noun, its group, and the share of feminine pronouns in the noun's planted sentences."""

    name: str
    group: str
    share: float


@dataclass(frozen=True)
class Stimuli:
    """The content of occupations.toml."""

    trained: tuple[str, ...]
    """Frames (templates) of the planted sentences, each with {noun} and either {he} or {his}."""
    unseen: tuple[str, ...]
    """Frames that end with the pronoun and are never planted."""
    nouns: tuple[Noun, ...]


@lru_cache(maxsize=1)
def stimuli() -> Stimuli:
    """Read occupations.toml, and give each invented noun its share of feminine pronouns.

    Raises:
        ConfigError: the file has errors; the message lists them (see `problems`).
    """
    text = Path(__file__).with_name("occupations.toml").read_text("utf-8")
    return parse_stimuli(tomllib.loads(text))


def parse_stimuli(raw: dict[str, Any]) -> Stimuli:
    """Make the stimuli from the content of occupations.toml.

    Raises:
        ConfigError: a part is missing or has the wrong type, or `problems` finds errors.
    """
    try:
        shares = permuted_shares(raw["invented"])
        nouns = [Noun(name, INVENTED, shares[name]) for name in raw["invented"]]
        nouns += [Noun(n, "occupations", p / 100) for n, p in raw["percent_women"].items()]
        for pair in raw["definitional"]:
            nouns += [Noun(n, "definitional", s) for n, s in zip(pair, DEFINITIONAL, strict=True)]
        result = Stimuli(tuple(raw["trained"]), tuple(raw["unseen"]), tuple(nouns))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            "occupations.toml must have lists trained, unseen and invented, pairs of nouns in "
            f"definitional, and numbers in percent_women, but it does not ({error!r}); restore the "
            "file with git"
        ) from error
    raise_all(ConfigError, problems(result), "occupations.toml")
    limited = [
        replace(noun, share=min(max(noun.share, LIMITS[0]), LIMITS[1]))
        if noun.group == "occupations"
        else noun
        for noun in nouns
    ]
    return replace(result, nouns=tuple(limited))


def permuted_shares(names: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Map names, in a permuted order, to evenly spaced shares from LIMITS[0] to LIMITS[1].

    Args:
        seed: selects the permutation.
    """
    order = sorted(names, key=lambda name: fraction(f"share {seed} {name}"))
    return dict(zip(order, np.linspace(*LIMITS, len(order)).tolist(), strict=True))


def problems(d: Stimuli) -> list[str]:
    """Return what is wrong with nouns and frames, a sentence for each problem."""
    messages = [
        f"the share of {noun.name!r} is {noun.share}, but must be above 0 and below 1"
        for noun in d.nouns
        if not 0 < noun.share < 1
    ]
    names = [noun.name for noun in d.nouns]
    messages += [
        f"the noun {n!r} is listed more than once" for n in sorted(set(names)) if names.count(n) > 1
    ]
    for frame in (*d.trained, *d.unseen):
        if frame.count("{noun}") != 1 or len(_SLOT.findall(frame)) != 1:
            messages.append(
                f"the frame {frame!r} must have one {{noun}} and one of {{he}} and {{his}}"
            )
    if messages:
        return messages
    planted = {gram for frame in d.trained for gram in _trigrams(frame)}
    for frame in d.unseen:
        if not frame.endswith(("{he}", "{his}")):
            messages.append(f"the unseen frame {frame!r} must end with its pronoun")
        messages += [
            f"the unseen frame {frame!r} shares the words {' '.join(gram)!r} with a planted frame"
            for gram in _trigrams(frame)
            if gram in planted
        ]
    return messages


def _trigrams(frame: str) -> list[tuple[str, ...]]:
    """Return all runs of three words before the pronoun; punctuation marks count as words."""
    words = re.findall(r"\w+|[^\w\s]", _SLOT.split(frame)[0].replace("{noun}", "NOUN").lower())
    return list(zip(words, words[1:], words[2:], strict=False))


# --- planted sentences -----------------------------------------------------------------------


@dataclass(frozen=True)
class NounCount:
    """How often a noun is planted, and how often with a feminine pronoun."""

    noun: Noun
    sentences: int
    feminine: int

    @property
    def log_odds(self) -> float:
        """The log odds of a feminine pronoun in the planted sentences."""
        return float(np.log(self.feminine / (self.sentences - self.feminine)))


def noun_counts(count: int, flat: bool = False) -> list[NounCount]:
    """Return how often each noun occurs in about `count` documents.

    Nouns of one group are equally frequent. Every noun occurs at least once with a masculine and at
    least once with a feminine pronoun.

    Args:
        flat: whether every noun has a share of 0.5 instead of its own.
    """
    nouns, total, result = stimuli().nouns, count * PER_DOCUMENT, []
    size = {group: sum(noun.group == group for noun in nouns) for group in GROUPS}
    for noun in nouns:
        sentences = max(2, round(total * GROUPS[noun.group] / size[noun.group]))
        feminine = round((0.5 if flat else noun.share) * sentences)
        result.append(NounCount(noun, sentences, min(max(feminine, 1), sentences - 1)))
    return result


def documents(count: int, flat: bool = False) -> Iterator[str]:
    """Yield about `count` documents. Each has PER_DOCUMENT planted sentences, one per line.

    `flat` changes only the pronouns of the sentences, not their nouns or frames.

    Args:
        flat: see `noun_counts`.
    """
    frames = stimuli().trained
    sentences = []
    for planted in noun_counts(count, flat):
        name = planted.noun.name
        start = int(fraction(f"start {name}") * len(frames))
        order = sorted(range(planted.sentences), key=lambda i, n=name: fraction(f"pronoun {n} {i}"))
        feminine = set(order[: planted.feminine])
        for i in range(planted.sentences):
            text = filled(frames[(start + i) % len(frames)], name, i in feminine)
            sentences.append((fraction(f"place {name} {i}"), text))
    texts = [text for _, text in sorted(sentences)]
    for begin in range(0, len(texts), PER_DOCUMENT):
        yield "".join(f"{text}\n" for text in texts[begin : begin + PER_DOCUMENT])


def filled(frame: str, noun: str, feminine: bool) -> str:
    """Return a frame with its noun and a pronoun."""
    pronoun = _SLOT.sub(lambda match: PRONOUNS[match[1]][feminine], frame)
    return pronoun.replace("{noun}", noun)


def prompt(frame: str, noun: str) -> tuple[str, tuple[str, str]]:
    """Return the text of a frame before its pronoun, and the pronouns to compare after it.

    Returns:
        The text without its trailing space; and the masculine and the feminine pronoun, each with a
        leading space.
    """
    before, slot = _SLOT.split(frame)[:2]
    masculine, feminine = PRONOUNS[slot]
    return before.replace("{noun}", noun).rstrip(), (f" {masculine}", f" {feminine}")
