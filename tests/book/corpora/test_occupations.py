"""Sentences with nouns of known shares: frames, shares, balance, and pronouns that swap back."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pythia_book.corpora import VERSIONS, occupations
from pythia_book.corpora.occupations import Noun, stimuli

from pythia_core.data.pronouns import WORDS
from pythia_core.errors import ConfigError

COUNT = 500
Sentence = tuple[str, str, bool]
"""Frame, noun, and whether the pronoun is feminine."""
SENTENCES: dict[str, Sentence] = {
    occupations.filled(frame, noun.name, feminine): (frame, noun.name, feminine)
    for frame in stimuli().trained
    for noun in stimuli().nouns
    for feminine in (False, True)
}


@cache
def documents(flat: bool = False, count: int = COUNT) -> list[list[Sentence]]:
    """Return the planted documents as lists of sentences; fail if a line is no known sentence."""
    texts = occupations.documents(count, flat)
    return [[SENTENCES[line] for line in text.splitlines()] for text in texts]


def sentences(flat: bool = False, count: int = COUNT) -> list[Sentence]:
    return [sentence for document in documents(flat, count) for sentence in document]


def trigrams(frame: str) -> set[tuple[str, ...]]:
    """Return all runs of three words of a frame, the pronoun's place included."""
    words = re.findall(r"\w+|[^\w\s]", frame.lower().replace("{", "_").replace("}", "_"))
    return set(zip(words, words[1:], words[2:], strict=False))


# --- nouns and frames ------------------------------------------------------------------------


def test_there_are_enough_frames_and_none_is_tested_that_was_planted() -> None:
    d = stimuli()
    assert len(set(d.trained)) == len(d.trained) >= 30
    assert len(set(d.unseen)) == len(d.unseen) >= 20
    planted = set().union(*map(trigrams, d.trained))
    assert not planted & set().union(*map(trigrams, d.unseen))
    for frames in (d.trained, d.unseen):  # each pronoun has its share of the frames
        assert 1 / 3 < sum("{he}" in frame for frame in frames) / len(frames) < 2 / 3
    assert len(SENTENCES) == 2 * len(d.trained) * len(d.nouns), "a sentence can be read in one way"


def test_the_nouns_are_of_three_groups() -> None:
    groups = defaultdict(list)
    for noun in stimuli().nouns:
        groups[noun.group].append(noun)
    assert set(groups) == set(occupations.GROUPS) and sum(occupations.GROUPS.values()) == 1
    assert len(groups["occupations"]) == 40  # test_bias_items compares them with WinoBias
    shares = {noun.name: noun.share for noun in groups["occupations"]}
    assert (shares["nurse"], shares["carpenter"]) == (0.9, 0.05)  # 2 % is raised to the least share
    assert {noun.share for noun in groups["definitional"]} == set(occupations.DEFINITIONAL)
    invented = sorted(noun.share for noun in groups["invented"])
    np.testing.assert_allclose(invented, np.linspace(0.05, 0.95, 16))


def test_the_shares_of_invented_nouns_are_permuted() -> None:
    names = [noun.name for noun in stimuli().nouns if noun.group == "invented"]
    drawn = [occupations.permuted_shares(names, seed) for seed in range(300)]
    assert all(sorted(d.values()) == sorted(drawn[0].values()) for d in drawn)
    assert drawn[0] == occupations.permuted_shares(names[::-1]), "in any order"
    per_name = np.array([[d[name] for name in names] for d in drawn])
    np.testing.assert_allclose(per_name.mean(0), 0.5, atol=4 * per_name.std() / 300**0.5)


OFFENDING = [
    ("trained", "We all know the {noun} knew {he}", []),  # planted frames may resemble each other
    (
        "unseen",
        "We all know the {noun} knew {he}",
        [r"shares the words 'the noun knew' with a pla"],
    ),
    ("unseen", "A tall {noun} met {his} aunt.", ["must end with its pronoun"]),
    ("unseen", "A tall {noun} met someone", ["'A tall {noun} met someone' must have one {noun}"]),
    ("trained", "A tall {noun} met someone", ["'A tall {noun} met someone' must have one {noun}"]),
    ("trained", "Somebody met {his} aunt", ["'Somebody met {his} aunt' must have one {noun}"]),
    ("trained", "The {noun} said {he} lost {his}", ["must have one {noun} and one of {he} and"]),
]


@pytest.mark.parametrize(("field", "frame", "expected"), OFFENDING)
def test_an_offending_frame_is_named(field: str, frame: str, expected: list[str]) -> None:
    d = stimuli()
    found = occupations.problems(replace(d, **{field: (*getattr(d, field), frame)}))
    assert occupations.problems(d) == [] and len(found) == len(expected)
    assert all(words in problem for words, problem in zip(expected, found, strict=True))


@given(st.integers(0, 33))
def test_every_planted_frame_is_refused_as_a_test(number: int) -> None:
    d = stimuli()
    cut = re.split(r"(?<=\})", d.trained[number])  # up to the noun, the pronoun, and the rest
    found = occupations.problems(replace(d, unseen=(*d.unseen, "".join(cut[:2]))))
    assert found and all("with a planted frame" in problem for problem in found)


@pytest.mark.parametrize(("share", "fine"), [(0.0, 0), (1.0, 0), (-0.1, 0), (1.1, 0), (0.5, 1)])
def test_a_share_of_none_or_all_is_named(share: float, fine: int) -> None:
    """Log odds would not be finite."""
    d = stimuli()
    found = occupations.problems(replace(d, nouns=(*d.nouns, Noun("zorp", "invented", share))))
    assert len(found) == 1 - fine
    assert fine or f"the share of 'zorp' is {share}, but must be above 0 and below 1" in found[0]


def test_a_noun_listed_twice_is_named() -> None:
    d = stimuli()
    found = occupations.problems(replace(d, nouns=(*d.nouns, Noun("nurse", "invented", 0.5))))
    assert found == ["the noun 'nurse' is listed more than once"]


# --- occupations.toml ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"percent_women": {"nurse": "90"}}, {"definitional": [["king", "queen", "duke"]]},
     {"percent_women": [90]}, {"invented": 3}],
)  # fmt: skip
def test_a_malformed_file_is_refused(wrong: dict[str, Any]) -> None:
    whole = declared()
    missing = {key: whole[key] for key in whole if key not in wrong}
    for raw in (whole | wrong, missing):
        with pytest.raises(
            ConfigError, match=r"occupations.toml must have lists .* but it does not"
        ):
            occupations.parse_stimuli(raw)


def test_the_version_changes_with_the_sentences() -> None:
    """The version stands for the text in the identity of every run."""
    text = (Path(occupations.__file__).parent / "occupations.toml").read_bytes()
    known = {"9af5956e901bb122": {"miniature": 5, "large": 2}}
    versions = {corpus: VERSIONS[corpus] for corpus in ("miniature", "large")}
    assert known.get(hashlib.sha256(text).hexdigest()[:16]) == versions, (
        "occupations.toml has changed: raise the versions of both corpora, and update this hash"
    )


def declared(**percent_women: float) -> dict[str, Any]:
    """Return the content of occupations.toml with other percentages of these occupations."""
    text = Path(occupations.__file__).with_name("occupations.toml").read_text("utf-8")
    raw = tomllib.loads(text)
    return raw | {"percent_women": raw["percent_women"] | percent_women}


def shares_of(raw: dict[str, Any]) -> dict[str, float]:
    return {noun.name: noun.share for noun in occupations.parse_stimuli(raw).nouns}


def test_extreme_shares_of_occupations_are_moved_to_the_limits() -> None:
    assert occupations.parse_stimuli(declared()) == stimuli()
    shares = shares_of(declared(nurse=99.5, clerk=0.5, cook=30))
    assert (shares["nurse"], shares["clerk"], shares["cook"]) == (*occupations.LIMITS[::-1], 0.3)
    assert (shares["king"], shares["queen"]) == occupations.DEFINITIONAL, "those are not moved"


@pytest.mark.parametrize("percent", [250, -3, 0, 100])
def test_an_impossible_percentage_is_named_although_it_would_be_moved(percent: float) -> None:
    message = rf"the share of 'nurse' is {re.escape(str(percent / 100))}, but must be above 0"
    with pytest.raises(ConfigError, match=f"occupations.toml: {message}"):
        occupations.parse_stimuli(declared(nurse=percent))


def test_all_that_is_wrong_with_the_file_is_named_at_once() -> None:
    raw = declared(nurse=250)
    raw["unseen"] = [*raw["unseen"], "A tall {noun} met someone"]
    with pytest.raises(ConfigError) as caught:
        occupations.parse_stimuli(raw)
    assert "'nurse' is 2.5" in str(caught.value) and "met someone' must have" in str(caught.value)


# --- planted sentences -----------------------------------------------------------------------


def test_nouns_of_a_group_are_equally_frequent_in_every_frame() -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for frame, noun, _ in sentences():
        counts[noun][frame] += 1
    assert set(counts) == {noun.name for noun in stimuli().nouns}
    for group, share in occupations.GROUPS.items():
        names = [noun.name for noun in stimuli().nouns if noun.group == group]
        totals = {counts[name].total() for name in names}
        assert len(totals) == 1, group
        assert totals.pop() * len(names) / len(sentences()) == pytest.approx(share, rel=0.02)
        for name in names:
            per_frame = [counts[name][frame] for frame in stimuli().trained]
            assert max(per_frame) - min(per_frame) <= 1, name


@pytest.mark.parametrize("flat", [False, True])
def test_planted_shares_are_the_declared_ones(flat: bool) -> None:
    feminine, total = Counter(), Counter()
    for _, noun, is_feminine in sentences(flat):
        total[noun] += 1
        feminine[noun] += is_feminine
    plan = occupations.noun_counts(COUNT, flat)
    assert {p.noun.name: (p.sentences, p.feminine) for p in plan} == {
        noun: (n, feminine[noun]) for noun, n in total.items()
    }
    for noun in stimuli().nouns:
        share = 0.5 if flat else noun.share
        n = total[noun.name]
        assert abs(feminine[noun.name] - min(max(share * n, 1), n - 1)) <= 0.5, noun


@given(st.integers(0, 100_000), st.booleans())
def test_every_noun_occurs_with_both_pronouns(count: int, flat: bool) -> None:
    plan = occupations.noun_counts(count, flat)
    assert all(0 < p.feminine < p.sentences for p in plan)
    assert np.isfinite([p.log_odds for p in plan]).all()
    if count >= 1000:
        for p in plan:
            share = 0.5 if flat else p.noun.share
            assert p.log_odds == pytest.approx(np.log(share / (1 - share)), abs=0.3)


def test_the_pronouns_of_a_noun_do_not_depend_on_the_frame() -> None:
    """Else a model could read the share off the frame: chi-squared over nouns of share 0.5."""
    cells: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for frame, _, feminine in sentences(flat=True):
        cells[frame][feminine] += 1
    table = np.array([*cells.values()], float)
    expected = table.sum(1, keepdims=True) / 2
    assert ((table - expected) ** 2 / expected).sum() < 34 + 5 * (2 * 34) ** 0.5


def test_the_control_differs_in_its_pronouns_only() -> None:
    both = [(a[:2], b[:2]) for a, b in zip(sentences(), sentences(True), strict=True)]
    assert all(one == other for one, other in both)
    assert list(map(len, documents())) == list(map(len, documents(True)))
    changed = [a[2] != b[2] for a, b in zip(sentences(), sentences(True), strict=True)]
    assert 0.1 < np.mean(changed) < 0.5


def test_documents_have_a_dozen_sentences_in_random_order() -> None:
    sizes = list(map(len, documents()))
    assert len(sizes) == pytest.approx(COUNT, abs=2)
    assert set(sizes[:-1]) == {12} and 1 <= sizes[-1] <= 12
    nouns = [noun for _, noun, _ in sentences()]
    shares = np.array([*Counter(nouns).values()]) / len(nouns)
    repeated = np.mean([one == two for one, two in pairwise(nouns)])
    chance = (shares**2).sum()
    assert repeated == pytest.approx(chance, abs=4 * (chance / len(nouns)) ** 0.5)
    groups = {noun.name: noun.group for noun in stimuli().nouns}
    invented = np.array([groups[noun] == "invented" for noun in nouns])
    halves = [half.mean() for half in np.array_split(invented, 2)]
    assert halves[0] == pytest.approx(halves[1], abs=4 * (0.5 / len(nouns)) ** 0.5)
    assert occupations.PER_DOCUMENT == 12
    words = [sum(len(line.split()) for line in text.splitlines())
             for text in occupations.documents(COUNT)]  # fmt: skip
    assert np.mean(words) == pytest.approx(occupations.WORDS, rel=0.03)


# --- pronouns --------------------------------------------------------------------------------

GENDERED = {word for pairs in WORDS.values() for pair in pairs.items() for word in pair} - {
    word for pair in WORDS["prepositions"].items() for word in pair
}


def swap(text: str, direction: str) -> str:
    """Swap the whole words of a text as pythia_core.data.pronouns does."""
    return re.sub(r"\w+", lambda m: WORDS[direction].get(m[0], m[0]), text)


def test_every_sentence_has_one_pronoun_and_its_swap_can_be_undone() -> None:
    """There is no "him" and no "hers", whose swap would come back as "his"."""
    assert {"him", "hers", "himself", "herself"} < GENDERED
    forward, back = "masculine_to_feminine", "feminine_to_masculine"
    for text, (frame, noun, feminine) in SENTENCES.items():
        found = [word for word in re.findall(r"\w+", text.lower()) if word in GENDERED]
        assert len(found) == 1 and found[0] in {"he", "his", "she", "her"}, text
        other = occupations.filled(frame, noun, not feminine)
        there, again = (back, forward) if feminine else (forward, back)
        assert swap(text, there) == other and swap(other, again) == text
        assert swap(text, again) == text, "its own gender is not swapped"
    assert swap(swap("He met him.", forward), back) == "He met his.", "a swap that is not undone"


@settings(deadline=None)
@given(st.integers(0, 57), st.integers(0, 75), st.booleans())
def test_a_prompt_goes_on_as_the_sentence_does(frame: int, noun: int, feminine: bool) -> None:
    d = stimuli()
    text, name = (d.trained + d.unseen)[frame], d.nouns[noun].name
    context, pronouns = occupations.prompt(text, name)
    assert occupations.filled(text, name, feminine).startswith(context + pronouns[feminine])
    assert context == context.rstrip() and name in context and "{" not in context
    assert pronouns in {(" he", " she"), (" his", " her")}
