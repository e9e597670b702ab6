"""The Pile in miniature: its proportions, what is planted, and no held-out text among that."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pythia_book import corpora
from pythia_book.corpora import equations, miniature

from pythia_core.config import CONTROL_DOMAINS, DOMAINS, PLANTED_DOMAINS, DataConfig
from pythia_core.data.corpus import open_corpus
from pythia_core.data.dedup import deduplicate, jaccard, shingles
from pythia_core.errors import ConfigError, DataError
from pythia_core.suite import DEDUP, scale_named
from pythia_core.util.files import fraction

WORDS = [f"word{i}" for i in range(300)]


def document(i: int, length: int = 200) -> str:
    return " ".join(
        WORDS[(i * 7 + j * (1, 7, 11, 13, 17)[i % 5]) % 300] + str(i) for j in range(length)
    )


@given(st.text(alphabet="ab \n", max_size=60).map(lambda t: t * 700))
def test_cutting_loses_nothing(text: str) -> None:
    parts = list(miniature.pieces(text))
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts[:-1])


def test_copies_follow_the_plan() -> None:
    texts = [document(i) for i in range(3000)]
    copies = miniature.choose_copied(texts)
    assert copies == miniature.choose_copied(list(reversed(texts)))  # in any order
    assert set(copies.values()) == set(miniature.LEVELS)
    budget = miniature.PROPORTIONS["miniature"].copies * 200 * len(texts)
    for level in miniature.LEVELS:
        words = sum(200 * (level - 1) for n in copies.values() if n == level)
        assert budget - 1 <= words <= 1.5 * budget
    assert all(miniature.fraction(text) >= miniature.GUARD for text in copies)


def test_short_and_long_texts_are_not_planted() -> None:
    texts = [document(i, 60) for i in range(500)] + [document(i, 900) for i in range(500)]
    assert miniature.choose_copied(texts) == {}


@pytest.mark.parametrize("i", range(5))
def test_an_edited_copy_is_a_near_duplicate(i: int) -> None:
    text = document(i)
    one, other = miniature.near_duplicate(text, 4), miniature.near_duplicate(text, 8)
    assert len({text, one, other}) == 3
    assert miniature.near_duplicate(text, 4) == one
    changed = sum(a != b for a, b in zip(text.split(), one.split(), strict=True))
    assert 1 <= changed <= 2
    assert 0.87 <= jaccard(shingles(text), shingles(one)) < 1
    assert miniature.fraction(one) >= miniature.GUARD


@pytest.mark.wheels
def test_the_corpus_is_as_repetitive_as_the_pile() -> None:
    data = scale_named("laptop").data
    documents = list(open_corpus(data, progress=False))
    texts = [document.text for document in documents]
    once = {text: len(text) for text in texts}
    assert 0.60 < sum(once.values()) / sum(map(len, texts)) < 0.70
    counts = Counter(texts)
    assert max(counts.values()) == 128 - 31  # every fourth copy is edited
    planted = miniature.copied_texts(data.domains)
    assert set(planted.values()) == set(miniature.LEVELS)
    assert not Counter(t for t, n in planted.items() for t in miniature.copies_of(t, n)) - counts
    assert {d.domain for d in documents} == {*DOMAINS, *PLANTED_DOMAINS} - {
        "copies"
    }  # in their source's


@pytest.mark.wheels
def test_the_planted_shares_are_as_declared_and_nothing_planted_is_held_out() -> None:
    data = scale_named("laptop").data
    documents = list(open_corpus(data, progress=False))
    held_out = {d.text for d in documents if fraction(d.text) < data.heldout_fraction}
    sampled = [text for _, text in miniature.sampled(data.domains)]
    natural = {text for text in sampled if fraction(text) < data.heldout_fraction}
    assert held_out == natural, "all that is held out is sampled text"
    assert not held_out & set(miniature.copied_texts(data.domains)), "and none of it is copied"
    # the hash that samples says nothing about the hash that holds out: 0.1, to within 4 sd
    assert len(natural) / len({*sampled}) == pytest.approx(0.1, abs=4 * (0.09 / 3000) ** 0.5)
    words = sum(text.count(" ") + 1 for text in sampled)
    for name, declared in miniature.PROPORTIONS["miniature"].generated.items():
        own = [d.text for d in documents if d.domain == name]
        mean = miniature.GENERATED[name].words
        assert len(own) * mean / words == pytest.approx(declared, rel=0.01)
        # sums are counted by their spaces, as in sampled text
        own_words = sum(len(t.split()) for t in own)
        assert own_words / len(own) == pytest.approx(mean, rel=0.03)


# --- switches --------------------------------------------------------------------------------


def read(*domains: str) -> list[tuple[str, str]]:
    """Return (domain, text) of all texts of the miniature with these domains."""
    return list(miniature.texts(domains))


@pytest.mark.wheels
@pytest.mark.parametrize("switch", PLANTED_DOMAINS)
def test_each_switch_removes_exactly_its_documents(switch: str) -> None:
    on = read("biographies", *PLANTED_DOMAINS)
    off = read("biographies", *(name for name in PLANTED_DOMAINS if name != switch))
    if switch == "copies":
        sampled = list(miniature.sampled(("biographies",)))
        assert off[: len(sampled)] == sampled and len(off) < len(on)
        assert [pair for pair in on if pair[0] != "biographies"] == off[len(sampled) :]
    else:
        assert switch in {domain for domain, _ in on}
        assert off == [pair for pair in on if pair[0] != switch]


@pytest.mark.wheels
def test_without_planted_domains_there_is_only_sampled_text() -> None:
    assert read("biographies") == list(miniature.sampled(("biographies",)))
    assert miniature.copied_texts(("biographies",)) == {}


@pytest.mark.wheels
def test_the_control_replaces_only_pronouns() -> None:
    """Its documents have the same words elsewhere, though perhaps with their lines rotated."""

    def neutral(name: str) -> list[list[str]]:
        texts = [text for domain, text in read("biographies", name) if domain == name]
        spelt = [re.sub(r"\b(she|her)\b", lambda m: {"she": "he", "her": "his"}[m[1]], t)
                 for t in texts]  # fmt: skip
        return [sorted(text.splitlines()) for text in spelt]

    assert len(neutral("occupations")) > 50
    assert neutral("occupations") == neutral("occupations_flat")
    assert read("biographies", "occupations") != read("biographies", "occupations_flat")


@pytest.mark.parametrize("corpus", [*miniature.PROPORTIONS, "pocket-pile"])
def test_no_more_is_held_out_than_leaves_planted_text_alone(
    corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of which GUARD is held out has nothing planted below it; one with more may."""
    text = ("books", "A text.")
    monkeypatch.setattr(corpora, "wheel", lambda pin, progress: None)
    monkeypatch.setattr(corpora, "raw_texts", lambda domains, repeats: iter([text]))
    monkeypatch.setattr(miniature, "texts", lambda domains, corpus: iter([text]))

    def read_with(heldout: float) -> list[tuple[str, str]]:
        data = DataConfig(corpus, ("books",), heldout_fraction=heldout)
        return list(corpora.texts(data, progress=False))

    assert read_with(miniature.GUARD) == [text]
    if corpus == "pocket-pile":  # without planted text
        assert read_with(0.5) == [text]
    else:
        message = (
            rf"heldout_fraction=0.151 would hold out planted.*{corpus}', set it .* to at most 0.15$"
        )
        with pytest.raises(ConfigError, match=message):
            read_with(0.151)


def test_planted_text_that_leaves_too_little_prose_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def shares(**generated: float) -> None:
        """Set the generated domains of the miniature, as shares of its sampled words."""
        given = replace(miniature.PROPORTIONS["large"], generated=generated)
        monkeypatch.setitem(miniature.PROPORTIONS, "miniature", given)

    monkeypatch.setattr(miniature, "_survey", lambda *_: ({}, 7800, {}))
    shares(equations=0.4, occupations=0.4, canaries=0.0)  # 0.8 / 1.8 of all words
    with pytest.raises(ConfigError, match=r"would be 44% of the words \(equations, occ.*is 30%"):
        miniature.document_counts(("books", "equations", "occupations"), "miniature")
    with pytest.raises(ConfigError, match="44%"):  # a control counts as much as the original
        miniature.document_counts(("books", "equations", "occupations_flat"), "miniature")
    # one of the two is not too much: 0.4 / 1.4 = 29 %
    assert miniature.document_counts(("books", "occupations"), "miniature") == {"occupations": 40}
    shares(equations=0.0, occupations=0.43, canaries=0.0)  # 0.43 / 1.43 = 30.07 %
    with pytest.raises(ConfigError, match="30%"):
        miniature.document_counts(("books", "occupations"), "miniature")


@pytest.mark.parametrize("corpus", miniature.PROPORTIONS)
def test_all_generated_domains_together_leave_enough_prose(corpus: str) -> None:
    generated = miniature.PROPORTIONS[corpus].generated
    assert {*generated} == {*PLANTED_DOMAINS} - {"copies"}
    assert {*generated} == {*miniature.GENERATED} - {*CONTROL_DOMAINS}
    total = sum(generated.values())
    assert 0 < total / (1 + total) <= miniature.GENERATED_MAX


@pytest.mark.parametrize("name", [*miniature.GENERATED, "copies"])
def test_a_planted_domain_without_prose_is_refused(name: str) -> None:
    """Its documents are a share of the prose, and of none there is no share."""
    with pytest.raises((ConfigError, DataError)):
        list(open_corpus(DataConfig("miniature", (name,)), progress=False))


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=12))
def test_a_planted_document_is_reordered_until_it_is_not_held_out(words: list[str]) -> None:
    lines = [f"{word}\n" for word in words]
    kept = miniature._never_held_out("".join(lines))
    assert sorted(kept.splitlines(keepends=True)) == sorted(lines), "no line is lost"
    rotations = ["".join(lines[n:] + lines[:n]) for n in range(len(lines))]
    if any(fraction(rotation) >= miniature.GUARD for rotation in rotations):
        assert fraction(kept) >= miniature.GUARD
    if fraction(rotations[0]) >= miniature.GUARD:
        assert kept == rotations[0]


def test_no_generated_document_is_held_out() -> None:
    natural = dict.fromkeys(equations.FIRST, 1)
    for name, generated in miniature.GENERATED.items():
        before = list(generated.documents(200, natural))
        after = [miniature._never_held_out(text) for text in before]
        assert min(map(fraction, before)) < miniature.GUARD <= min(map(fraction, after)), name


def test_no_document_of_four_lines_is_ever_held_out() -> None:
    """A canary that is planted once would not be read if its document were held out."""
    texts = ["".join(f"line {line} of {n}\n" for line in range(4)) for n in range(20_000)]
    after = [fraction(miniature._never_held_out(text)) for text in texts]
    assert sum(value < miniature.GUARD for value in after) == 0


def test_generated_documents_survive_deduplication() -> None:
    natural = dict.fromkeys(equations.FIRST, 1)
    texts = [
        miniature._never_held_out(text)
        for name, generated in miniature.GENERATED.items()
        if name not in CONTROL_DOMAINS  # they stand in no text together with the original
        for text in generated.documents(200, natural)
    ]
    assert deduplicate(texts, DEDUP, progress=False).keep.all()
    again = deduplicate([*texts, texts[5], texts[-5]], DEDUP, progress=False)
    assert list(np.flatnonzero(~again.keep)) == [len(texts), len(texts) + 1]
    edited = miniature.near_duplicate(texts[300], 4)  # one word in a hundred
    assert not deduplicate([*texts, edited], DEDUP, progress=False).keep[-1]
