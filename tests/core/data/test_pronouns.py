"""Swapping pronouns in tokens gives the same text as swapping them with a regular expression."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from tokenizers import Tokenizer

from pythia_core.config import PRONOUN_SWAPS
from pythia_core.data.pronouns import WORDS, WordSwap
from pythia_core.data.tokenizer import train_bpe
from pythia_core.errors import ConfigError, DataError

DIRECTIONS = PRONOUN_SWAPS
FORMS = [case(w) for w in "he she his her him hers himself herself".split()
         for case in (str.lower, str.capitalize)]  # fmt: skip
TRAPS = (
    "the then helium history shimmer whimsical heir Hershey other mother _he_ he_ _she he2 3him "
    "sheriff hé éhe ñher her-self chisel héhis hersheys THE This Him-alaya o'her"
).split()
MARKS = [" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", ".", ",", "'", "'s ", "'S", '"', "(",
         ")", " (", "—", "“", "”", "\u2019", "-", "…", "é", "ß", "東", "²", "9", "_", "\u0335",
         "'ll", "😀", "\u00a0", "<|endoftext|>"]  # fmt: skip


def sentences(n: int, seed: int, without: set[str] | None = None) -> list[str]:
    rng = random.Random(seed)
    forms = [form for form in FORMS if form not in (without or set())]
    pool = forms * 3 + TRAPS + MARKS * 2
    return ["".join(rng.choices(pool, k=rng.randrange(1, 40))) for _ in range(n)] + [
        " ".join(rng.choices(forms + TRAPS + ["said", "saw", "that"], k=20)) for _ in range(n)
    ]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """700 entries: pronouns are whole tokens, rarer characters are split into bytes."""
    plain = [f"{a} {b} said that {c}\n{a}, ({b})" for a in FORMS for b in FORMS for c in FORMS[:6]]
    return train_bpe(plain + TRAPS * 5, 700)


@pytest.fixture(params=["small", pytest.param("official", marks=pytest.mark.wheels)])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def swapped(swap: WordSwap, ids: list[int]) -> list[int]:
    window = np.array([ids])
    row, column, old, new, _ = swap.find(window, np.ones_like(window, bool), 0, 0)
    assert window[row, column].tolist() == old.tolist() and (old != new).all()
    window[row, column] = new
    return window[0].tolist()


def by_regex(text: str, direction: str) -> str:
    words = WORDS[direction]

    def target(match: re.Match[str]) -> str:
        word = words[match[0].lower()]
        return word.capitalize() if match[0][0].isupper() else word

    pattern = "|".join(f"{w}|{w.capitalize()}" for w in words)
    return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", target, text)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equals_replacing_words_in_the_text(tokenizer: Tokenizer, direction: str) -> None:
    swap = WordSwap.from_tokenizer(tokenizer, direction)
    left = {form.strip() for form in swap.unswappable}
    assert len(left) <= 6  # the texts below contain none of them
    changed = 0
    for text in sentences(700, 0, without=left):
        ids = tokenizer.encode(text).ids
        plain = tokenizer.decode(ids, skip_special_tokens=False)
        got = tokenizer.decode(swapped(swap, ids), skip_special_tokens=False)
        assert got == by_regex(plain, direction), (text, tokenizer.encode(text).tokens)
        changed += got != plain
    assert changed > 900


def test_words_that_only_look_like_pronouns(tokenizer: Tokenizer) -> None:
    swap = WordSwap.from_tokenizer(tokenizer, "masculine_to_feminine")
    for text, expected in {
        "the helium history shimmer whimsical heir": None,
        "He's (his) \"him\" 'he' himself": "She's (her) \"her\" 'she' herself",
        "he\nHe\n\this\r\nhim": "she\nShe\n\ther\r\nher",
        "he": "she",
        "héhe éhe he9 _he he_ 他he": None,
        "“he”—his…him he\u2019s": "“she”—her…her she\u2019s",
        "HIMSELF HIM": "HERSELF HER",
        "Himself, Him": "Herself, Her",
        "she her hers": None,
    }.items():
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(swapped(swap, ids)) == (text if expected is None else expected)


def test_swapping_back_does_not_restore_the_text(tokenizer: Tokenizer) -> None:
    there = WordSwap.from_tokenizer(tokenizer, "masculine_to_feminine")
    back = WordSwap.from_tokenizer(tokenizer, "feminine_to_masculine")
    ids = tokenizer.encode("He saw his friend and gave him himself. 'she said, hers").ids
    once = swapped(there, ids)
    assert tokenizer.decode(once) == "She saw her friend and gave her herself. 'she said, hers"
    assert tokenizer.decode(swapped(back, once)) == (
        "He saw his friend and gave his himself. 'he said, his"
    )


@pytest.mark.wheels
def test_official_ids(official: Tokenizer) -> None:
    """The ids of GPT-NeoX-20B's pronouns."""
    swap = WordSwap.from_tokenizer(official, "masculine_to_feminine")
    table = {tuple(ids): target for _, _, ids, target in swap.table}
    for old, new in [(344, 703), (754, 1500), (1328, 2993), (521, 617), (8701, 379), (779, 617)]:
        assert table[(old,)] == [new]
    # each is one token, but the feminine word takes more
    assert swap.unswappable == ["HE", "himself", " Himself"]
    back = WordSwap.from_tokenizer(official, "feminine_to_masculine")
    assert back.unswappable == ["HER", "HERSELF"]


def test_every_entry_spells_its_words_with_equally_many_tokens(tokenizer: Tokenizer) -> None:
    for direction in DIRECTIONS:
        swap = WordSwap.from_tokenizer(tokenizer, direction)
        for source, target, old, new in swap.table:
            assert len(old) == len(new)
            assert tokenizer.decode(old, skip_special_tokens=False) == source
            assert tokenizer.decode(new, skip_special_tokens=False) == target
            assert target.strip("' ").lower() == WORDS[direction][source.strip("' ").lower()]
        spelled = {source for source, *_ in swap.table} | set(swap.unswappable)
        for word in WORDS[direction]:
            assert {word, " " + word, word.capitalize(), " " + word.upper()} <= spelled


def test_words_without_a_target_of_equal_length_are_left_and_listed() -> None:
    """In a tokenizer of bytes, "he" has two tokens and "she" three."""
    bytes_only = train_bpe(["x"], 258)
    swap = WordSwap.from_tokenizer(bytes_only, "masculine_to_feminine")
    assert {"he", " he", "He"} <= set(swap.unswappable)
    ids = bytes_only.encode("he saw his hat and him, the chisel").ids
    assert bytes_only.decode(swapped(swap, ids)) == "he saw her hat and her, the chisel"


def test_segmentation_prefers_tokens_of_the_source() -> None:
    from pythia_core.data.pronouns import _segment

    vocabulary = {b" H": 1, b" He": 2, b"er": 3, b"r": 4, b"im": 5, b" ": 6, b"H": 7, b"e": 8}
    assert _segment(b" Her", (1, 5), vocabulary) == (1, 3)
    assert _segment(b" Her", (9, 9), vocabulary) == (2, 4)
    assert _segment(b" Her", (9, 9, 9), vocabulary) == (1, 8, 4)
    assert _segment(b" Her", (9,), vocabulary) is None
    assert _segment(b" Her", (9,) * 5, vocabulary) is None


@pytest.mark.parametrize("seq_len", [1, 2, 5, 16])
def test_row_boundaries_do_not_matter(tokenizer: Tokenizer, seq_len: int) -> None:
    swap = WordSwap.from_tokenizer(tokenizer, "feminine_to_masculine")
    stream = np.array(tokenizer.encode("".join(sentences(30, 3))).ids)
    whole = np.array(swapped(swap, stream.tolist()))
    starts = np.arange(0, len(stream), seq_len)
    at = starts[:, None] + np.arange(-swap.context, seq_len + 1 + swap.context)
    valid = (at >= 0) & (at < len(stream))
    windows = np.where(valid, stream[np.clip(at, 0, len(stream) - 1)], 0)
    row, column, old, new, _ = swap.find(windows, valid, swap.context, swap.context)
    core = windows[:, swap.context : -swap.context].copy()
    assert (core[row, column] == old).all()
    core[row, column] = new
    expected = np.where(valid, whole[np.clip(at, 0, len(stream) - 1)], 0)
    assert (core == expected[:, swap.context : -swap.context]).all()
    assert len(row) > 100
    assert (np.diff(row * 1000 + column) > 0).all()


def test_words_end_at_the_ends_of_stream_and_document(small: Tokenizer) -> None:
    swap = WordSwap.from_tokenizer(small, "masculine_to_feminine")
    he = small.encode("he").ids
    t = small.encode("t").ids
    assert len(he) == len(t) == 1
    window = np.array([t + he + t, t + he + t, [0, *he, 0]])
    valid = np.array([[True] * 3, [False, True, False], [True] * 3])
    row, column, *_ = swap.find(window, valid, 1, 1)
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == [(1, 0), (2, 0)]


def test_bad_arguments_are_refused(small: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"accepted: masculine_to_feminine"):
        WordSwap.from_tokenizer(small, "feminine")
    swap = WordSwap.from_tokenizer(small, "masculine_to_feminine")
    with pytest.raises(DataError, match=r"but the tokenizer's ids are 0\.\."):
        swap.find(np.array([[50_000]]), np.array([[True]]), 0, 0)
    with pytest.raises(DataError, match="mask of the same shape"):
        swap.find(np.array([1, 2]), np.array([True]), 0, 0)
    *none, _ = swap.find(np.zeros((0, 5), int), np.zeros((0, 5), bool), 0, 0)
    assert [len(part) for part in none] == [0, 0, 0, 0]
    assert [part.dtype.name for part in none] == ["int64", "int32", "uint32", "uint32"]


def test_the_placebo_swaps_prepositions_and_no_pronoun() -> None:
    made = train_bpe(["he sat on the mat with his hat, over and through it. "] * 30, 400)
    swap = WordSwap.from_tokenizer(made, "prepositions")
    ids = made.encode("he sat on his mat with it, upon one, without").ids
    assert made.decode(swapped(swap, ids)) == "he sat over his mat through it, upon one, without"
    pronouns = {*WORDS["masculine_to_feminine"], *WORDS["feminine_to_masculine"]}
    assert not pronouns & {*WORDS["prepositions"], *WORDS["prepositions"].values()}
