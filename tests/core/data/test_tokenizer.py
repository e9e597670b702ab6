"""Tokenizers: deterministic training, text that looks like special tokens, ids of split texts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from pythia_core.data import tokenizer as tok
from pythia_core.errors import DataError

TEXTS = [
    f"The nurse number {i} said that she would see the engineer, but he was late.\nNever mind {i}!"
    for i in range(300)
] + ["Crème brûlée — “naïve” façade, 東京 and Ω.\n\n  Two spaces.\tTab."]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return tok.train_bpe(TEXTS, 400)


def test_training_is_deterministic(small: Tokenizer) -> None:
    assert tok.train_bpe(iter(TEXTS), 400).to_str() == small.to_str()
    assert tok.train_bpe(TEXTS[:150], 400).to_str() != small.to_str()


def test_properties_of_the_small_tokenizer(small: Tokenizer) -> None:
    assert (small.token_to_id(tok.EOD), small.token_to_id(tok.PADDING)) == (0, 1)
    assert tok.id_limit(small) == small.get_vocab_size() == 400
    for text in TEXTS[-3:]:
        assert small.decode(small.encode(text).ids) == text
    every_byte = "".join(map(chr, range(1, 400)))  # any text can be encoded
    import unicodedata

    assert small.decode(small.encode(every_byte).ids) == unicodedata.normalize("NFC", every_byte)
    assert small.encode("e\u0301").ids == small.encode("é").ids  # NFC


def test_text_never_becomes_a_special_token(small: Tokenizer, tmp_path: Path) -> None:
    small.save(str(tmp_path / "t.json"))
    for tokenizer in (small, tok.load_tokenizer(tmp_path / "t.json")):
        for name in (tok.EOD, tok.PADDING):
            ids = tok.encode_documents(tokenizer, [f"a {name} b"])[0]
            assert min(ids) > 1
            assert tokenizer.decode(ids, skip_special_tokens=False) == f"a {name} b"


def test_sample_is_spread_and_capped() -> None:
    texts = ["a" * 40_960, "b" * 40_960, "c" * 4096 * 5]
    whole = "".join(tok.sample(texts, sum(map(len, texts))))
    assert whole == "".join(texts)
    some = "".join(tok.sample(texts, sum(map(len, texts)), limit=4096 * 5))
    assert {c: some.count(c) // 4096 for c in "abc"} == {"a": 2, "b": 2, "c": 1}


def test_cutting_long_texts_does_not_change_the_ids(
    small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tok, "_PIECE", 20)
    rng = random.Random(0)
    parts = ["he", "She", "'s", " ", "  ", "\n", "\n\n", ".", ",", "é", "e\u0301", "“", "9", "\t"]
    cuts = 0
    for _ in range(300):
        text = "".join(rng.choices(parts, k=200))
        cuts += len(list(tok._pieces(text))) - 1
        assert "".join(tok._pieces(text)) == text
        assert tok.encode_documents(small, [text, ""]) == [small.encode(text).ids, []]
    assert cuts > 100


@pytest.mark.wheels
def test_cutting_is_exact_for_the_official_tokenizer(
    official: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tok, "_PIECE", 50)
    assert tok._splits_at_newlines(official)
    text = "\n".join(TEXTS) + "\n    indented\n        more\n"
    assert len(list(tok._pieces(text))) > 100
    assert tok.encode_documents(official, [text]) == [official.encode(text).ids]


@pytest.mark.wheels
def test_official_tokenizer(official: Tokenizer) -> None:
    assert tok.id_limit(official) == 50_277
    ids = [12092, 1533, 13, 253, 15339, 753, 703, 369, 11870, 15]
    assert official.encode("Hello world, the nurse said she was tired.").ids == ids
    assert min(tok.encode_documents(official, [f"a{tok.EOD}b"])[0]) > 1
    table = tok.token_bytes(official)
    assert table[0] is None and table[703] == b" she" and table[50_276] == b"  "
    assert b"".join(table[i] or b"" for i in ids).decode().endswith("she was tired.")


def test_token_bytes_spell_the_text(small: Tokenizer) -> None:
    table = tok.token_bytes(small)
    assert len(table) == 400 and table[0] is None and table[1] is None
    for text in TEXTS[-2:]:
        joined = b"".join(table[i] or b"?" for i in small.encode(text).ids)
        assert joined == text.encode()


def test_token_bytes_need_a_byte_level_tokenizer() -> None:
    from tokenizers import models

    words = Tokenizer(models.WordLevel({"a b": 0, tok.EOD: 1}, unk_token=tok.EOD))
    with pytest.raises(DataError, match="token 0 is 'a b', which is not byte-level"):
        tok.token_bytes(words)


def test_the_tokenizer_in_a_folder_is_named(small: Tokenizer, tmp_path: Path) -> None:
    small.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=f"there is one at {tmp_path}/tokenizer.json"):
        tok.load_tokenizer(tmp_path)


def test_files_that_are_not_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="accepted: 'bpe-N'"):
        tok.load_tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match=r"bad\.json is not a tokenizer\.json"):
        tok.load_tokenizer(tmp_path / "bad.json")
    from tokenizers import models

    Tokenizer(models.BPE()).save(str(tmp_path / "bare.json"))
    with pytest.raises(DataError, match=r"has no token '<\|endoftext\|>'"):
        tok.load_tokenizer(tmp_path / "bare.json")
