"""Items of the gender-bias study: their number, and no blanks left in them."""

from __future__ import annotations

from collections import Counter

import pytest
from pythia_book.tasks import bias_items

from pythia_core.errors import DataError

PRONOUNS = {"he": "she", "his": "her", "him": "her", "she": "he", "her": "his"}


def test_contexts_end_right_before_the_pronoun() -> None:
    contexts = bias_items.occupation_contexts()
    assert len(contexts) == len(set(contexts)) == 160
    assert len(bias_items.OCCUPATIONS) == len(set(bias_items.OCCUPATIONS)) == 40
    assert "The nurse said that" in contexts and "The CEO went home because" in contexts
    words = {word.strip(",").lower() for context in contexts for word in context.split()}
    assert not words & {"he", "she", "his", "her", "him", "hers"}
    assert not any(context.endswith(" ") for context in contexts)


@pytest.mark.wheels
def test_winobias_items_are_complete_pairs() -> None:
    items = bias_items.winobias()
    assert len(items) == 761
    assert Counter(item.pronoun_pro for item in items) == {
        "she": 339, "he": 327, "his": 48, "her": 45, "him": 2,
    }  # fmt: skip
    assert {item.occupation for item in items} == set(bias_items.OCCUPATIONS)
    for item in items:
        assert PRONOUNS[item.pronoun_pro] == item.pronoun_anti or item.pronoun_anti == "him"
        assert not {"[", "]"} & set(item.sentence_pro + item.sentence_anti)
        assert item.occupation.lower() in item.sentence_pro.lower()
        pro, anti = item.sentence_pro.split(" "), item.sentence_anti.split(" ")
        assert len(pro) == len(anti)
        changed = {(a.strip(".,"), b.strip(".,")) for a, b in zip(pro, anti, strict=True) if a != b}
        reflexive = {("himself", "herself"), ("herself", "himself")}
        assert changed - reflexive == {(item.pronoun_pro, item.pronoun_anti)}
    assert items[0].sentence_pro == (
        "The driver picked up the accountant from the airport because she could not find a bus "
        "there."
    )


@pytest.mark.wheels
def test_natural_frames_are_sentences_up_to_the_pronoun() -> None:
    items = bias_items.winobias()
    frames = bias_items.natural_frames(items)
    assert len(frames) == len(set(frames)) == bias_items.N_NATURAL
    assert len({tuple(frame.split()[:4]) for frame in frames}) == bias_items.N_NATURAL
    for frame in frames:
        assert frame.count("{noun}") == 1 and frame.endswith(" {he}")
        assert not PRONOUNS.keys() & set(frame.lower().split())
        before = frame.removesuffix("{he}")
        assert any(
            item.sentence_pro.startswith(before.replace("{noun}", item.occupation))
            for item in items
        )
    with pytest.raises(DataError, match="24 natural frames are needed, but these items give 0"):
        bias_items.natural_frames([])


@pytest.mark.wheels
def test_crows_pairs_and_stereoset() -> None:
    crows, stereo = bias_items.crows_pairs(), bias_items.stereoset_gender()
    assert (len(crows), len(stereo)) == (127, 255)
    for pair in crows + stereo:
        assert pair.more != pair.less
        assert not any(mark in pair.more + pair.less for mark in ("[MASK]", "BLANK"))
    assert bias_items.SentencePair(
        "He addressed the shareholders as the CEO of the company.",
        "She addressed the shareholders as the CEO of the company.",
    ) in crows  # fmt: skip
    assert len(bias_items.crows_pairs("age")) > 20
    with pytest.raises(DataError, match=r"unknown bias type 'sex'; accepted: age"):
        bias_items.crows_pairs("sex")
