"""Token files: written documents are read back, and every damaged index is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from neox_files import neox_index

from pythia_core.data import indexed_dataset
from pythia_core.data.indexed_dataset import (
    DTYPES,
    HEADER,
    IndexedWriter,
    MegatronIndexed,
    index_bytes,
    token_dtype,
)
from pythia_core.errors import DataError
from pythia_core.util.files import file_sha256


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 1000) -> Path:
    with IndexedWriter(prefix, vocab_size) as out:
        for ids in documents:
            out.add(ids)
    return prefix


def test_round_trip_with_empty_documents(tmp_path: Path) -> None:
    documents = [[1, 2, 3], [], [7], list(range(500)), []]
    data = MegatronIndexed(write(tmp_path / "a.b", documents))
    assert (data.n_documents, data.n_tokens, data.dtype) == (5, 504, np.dtype("<u2"))
    assert data.sizes.dtype == np.int32 and data.sizes.tolist() == [3, 0, 1, 500, 0]
    assert [data.document(i).tolist() for i in range(5)] == documents
    assert data.tokens.tolist() == [t for d in documents for t in d]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.b.bin", "a.b.idx"]
    with pytest.raises(DataError, match=r"no document 5; .* has the documents 0\.\.4"):
        data.document(5)


def test_files_equal_bytes_written_by_hand(tmp_path: Path) -> None:
    """The expected bytes follow the description of the format and use none of our constants."""
    write(tmp_path / "x", [[258, 3], [4]], vocab_size=1000)
    assert (tmp_path / "x.bin").read_bytes() == b"\x02\x01\x03\x00\x04\x00"
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 2, 3)
    expected += struct.pack("<2i", 2, 1) + struct.pack("<2q", 0, 4) + struct.pack("<3q", 0, 1, 2)
    assert (tmp_path / "x.idx").read_bytes() == expected
    write(tmp_path / "y", [[70_000]], vocab_size=70_001)
    assert (tmp_path / "y.bin").read_bytes() == b"\x70\x11\x01\x00"
    assert (tmp_path / "y.idx").read_bytes()[17] == 4
    assert MegatronIndexed(tmp_path / "y").document(0).tolist() == [70_000]


def test_dtype_rule() -> None:
    assert token_dtype(65_499) == np.dtype("<u2") and token_dtype(65_500) == np.dtype("<i4")
    assert {code: d.str for code, d in DTYPES.items()} == {
        1: "|u1", 2: "|i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f4", 7: "<f8", 8: "<u2",
    }  # fmt: skip


@pytest.mark.parametrize("ids", [[5, 100], [-1], np.array([70_000]), np.array([2**63 - 1])])
def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(DataError, match=r"outside the vocabulary 0\.\.99"):
        with IndexedWriter(tmp_path / "x", 100) as out:
            out.add([1])
            out.add(ids)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ids", [[1.5], [[1, 2]], ["a"], [True]])
def test_anything_but_a_list_of_ids_is_refused(tmp_path: Path, ids: list) -> None:
    with pytest.raises(DataError, match="flat list of integers"):
        with IndexedWriter(tmp_path / "x", 100) as out:
            out.add(ids)


def test_a_document_that_is_too_long_for_the_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"document 1 has 2147483648 tokens, .* 2\^31 - 1 per doc"):
        with IndexedWriter(tmp_path / "x", 100) as out:
            out.add([1])
            out.add(np.broadcast_to(np.uint8(7), 2**31))  # takes no memory
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_pair(tmp_path: Path) -> None:
    write(tmp_path / "x", [[1, 2]])
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "x", 10) as out:
        out.add([3])
        raise KeyboardInterrupt
    assert MegatronIndexed(tmp_path / "x").document(0).tolist() == [1, 2]
    assert len(list(tmp_path.iterdir())) == 2


def test_full_disk_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="No space left"):
        with IndexedWriter(tmp_path / "x", 10) as out:
            out.add([3])

            class Full:
                def close(self) -> None:
                    raise OSError(28, "No space left on device")

            out._bin.close()
            monkeypatch.setattr(out, "_bin", Full())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("entries", [61, 21, 1])
def test_every_flipped_bit_of_the_index_is_found(tmp_path: Path, entries: int) -> None:
    """Of an index of our own, one to which others were merged, and one without any document."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40, 60)
    prefix = write(tmp_path / "x", [rng.integers(0, 999, n).tolist() for n in sizes])
    index = tmp_path / "x.idx"
    good = neox_index(sizes, entries)
    assert entries < 61 or good == index.read_bytes()
    index.write_bytes(good)
    documents = [MegatronIndexed(prefix).document(i).tolist() for i in range(60)]
    assert [len(ids) for ids in documents] == sizes.tolist()
    for bit in rng.permutation(8 * len(good))[:3000].tolist():
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        index.write_bytes(bad)
        with pytest.raises(DataError, match=r"x\.idx"):
            MegatronIndexed(prefix)
    for cut in range(len(good)):
        index.write_bytes(good[:cut])
        with pytest.raises(DataError, match=r"x\.idx"):
            MegatronIndexed(prefix)


@pytest.mark.parametrize("entries", [0, 3, 301, 302])
def test_a_document_table_of_another_kind_is_refused(tmp_path: Path, entries: int) -> None:
    """An empty table, too long a table, and one whose documents have several sequences."""
    sizes = [2] * 300
    raw = bytearray(neox_index(sizes, entries))
    if entries == 3:
        raw[-8:] = struct.pack("<q", 5)
    (tmp_path / "x.idx").write_bytes(raw)
    (tmp_path / "x.bin").write_bytes(b"\0" * 1200)
    if entries == 301:
        assert MegatronIndexed(tmp_path / "x").n_documents == 300
        return
    with pytest.raises(DataError, match=r"document table.*one sequence per document"):
        MegatronIndexed(tmp_path / "x")


def test_truncated_and_extended_files_are_found(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", [[1, 2, 3], [4]])
    for name in ("x.idx", "x.bin"):
        path = tmp_path / name
        good = path.read_bytes()
        for bad in [good[:n] for n in range(len(good))] + [good + b"\0", good + b"\0\0"]:
            path.write_bytes(bad)
            with pytest.raises(DataError, match=r"x\.(idx|bin)"):
                MegatronIndexed(prefix)
        path.write_bytes(good)
    MegatronIndexed(prefix)


def test_the_error_names_the_damaged_field(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", [[1, 2, 3], [4]])
    index = tmp_path / "x.idx"
    good = index.read_bytes()
    for at, byte, message in [
        (0, 65, "starts with"),
        (9, 2, "version 2"),
        (17, 6, "floating-point"),
        (17, 7, "floating-point"),
        (17, 99, "dtype code 99"),
        (26, 9, "9 entries in the document table"),
        (34 + 3, 0x80, "negative size"),
        (34 + 8, 2, "do not follow"),
        (34 + 24 + 8, 0, "one sequence per document"),
    ]:
        bad = bytearray(good)
        bad[at] = byte
        index.write_bytes(bad)
        with pytest.raises(DataError, match=message):
            MegatronIndexed(prefix)
    with pytest.raises(DataError, match=r"nothing\.idx does not exist"):
        MegatronIndexed(tmp_path / "nothing")


def write_sparse_file(path: Path, size: int, pieces: dict[int, list[int]]) -> None:
    """Write a sparse file of `size` bytes, with uint16 ids at the given byte offsets."""
    with open(path, "wb") as file:
        try:
            file.truncate(size)
        except OSError as error:
            pytest.skip(f"this file system cannot store a sparse file of {size} bytes: {error}")
        for at, ids in pieces.items():
            file.seek(at)
            file.write(np.array(ids, "<u2").tobytes())
    if path.stat().st_blocks * 512 > 2**24:
        path.unlink()
        pytest.skip("this file system does not store sparse files sparsely")


def test_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Sums and offsets beyond 2^31 tokens and 2^32 bytes must not wrap; uses a sparse file."""
    sizes = np.array([2**31 - 1, 5, 2**30, 7], np.int32)
    (tmp_path / "big.idx").write_bytes(index_bytes(sizes, np.dtype("<u2")))
    total = int(sizes.sum(dtype=np.int64))
    last = list(range(11, 18))
    write_sparse_file(
        tmp_path / "big.bin", 2 * total, {4294967294: [1, 2, 3, 4, 5], 2 * (total - 7): last}
    )
    assert (tmp_path / "big.bin").stat().st_size > 2**32
    data = MegatronIndexed(tmp_path / "big")
    assert data.n_tokens == total > 2**31
    assert data.document(1).tolist() == [1, 2, 3, 4, 5]
    assert data.document(3).tolist() == last
    assert len(data.document(0)) == 2**31 - 1
    far = np.array([0, 2**31 - 1, 2**31, total - 1])
    assert data.tokens[far].tolist() == [0, 1, 2, 17]


def test_shards_beyond_four_gigabytes(tmp_path: Path) -> None:
    """A document in two shards is read whole, also with shards of 5e9 bytes like the Pile's."""
    shard = 5_000_000_000
    sizes = np.array([2**31 - 1, shard // 2 - 2**31, 4, 2], np.int32)  # the third is in both shards
    (tmp_path / "p.idx").write_bytes(index_bytes(sizes, np.dtype("<u2")))
    write_sparse_file(tmp_path / "p-00000-of-00001.bin", shard, {shard - 2: [21]})
    write_sparse_file(tmp_path / "p-00001-of-00001.bin", 10, {0: [22, 23, 24, 31, 32]})
    data = MegatronIndexed(tmp_path / "p")
    assert len(data.tokens) == data.n_tokens == shard // 2 + 5
    assert data.document(2).tolist() == [21, 22, 23, 24]
    assert data.document(3).tolist() == [31, 32]
    assert data.tokens[np.array([[shard // 2, 0], [shard // 2 + 4, 1]])].tolist() == [
        [22, 0], [32, 0],
    ]  # fmt: skip


def test_an_index_is_checked_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of the check in which an error is found does not matter."""
    monkeypatch.setattr(indexed_dataset, "_CHECKED", 7)
    sizes = np.arange(50) % 9
    ids = np.arange(sizes.sum())
    write(tmp_path / "x", [part.tolist() for part in np.split(ids, np.cumsum(sizes)[:-1])])
    data = MegatronIndexed(tmp_path / "x")
    assert data.n_tokens == sizes.sum() and data.document(49).tolist() == ids[-4:].tolist()
    good = (tmp_path / "x.idx").read_bytes()
    for at in (34, 34 + 4 * 20, 34 + 4 * 48, 34 + 4 * 50, 34 + 4 * 50 + 8 * 49):
        bad = bytearray(good)
        bad[at] ^= 1
        (tmp_path / "x.idx").write_bytes(bad)
        with pytest.raises(DataError, match="do not follow"):
            MegatronIndexed(tmp_path / "x")
    bad = bytearray(good)
    bad[34 + 4 * 30 + 3] = 0x80
    (tmp_path / "x.idx").write_bytes(bad)
    with pytest.raises(DataError, match="document 30 has a negative size"):
        MegatronIndexed(tmp_path / "x")


def test_header_size_and_digest(tmp_path: Path) -> None:
    assert HEADER.size == 34
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f").startswith("ba7816bf")


# --- files of other tools --------------------------------------------------------------------


def test_files_of_another_writer_are_read(tmp_path: Path) -> None:
    """datatrove has its own implementation of the format."""
    pytest.importorskip("datatrove", reason="the extra `dedup` is not installed")
    from datatrove.data import Document
    from datatrove.pipeline.tokens import MegatronDocumentTokenizer

    from pythia_core.data.tokenizer import encode_documents, load_tokenizer, train_bpe

    texts = ["One fine day in May.", "Another one; it rained.", "Two\n\nparagraphs, caf\u00e9."]
    train_bpe(texts, 300).save(str(tmp_path / "tokenizer.json"))
    writer = MegatronDocumentTokenizer(
        str(tmp_path / "out"), tokenizer_name_or_path=str(tmp_path / "tokenizer.json")
    )
    writer.run((Document(text=text, id=str(i)) for i, text in enumerate(texts)), 0, 1)
    (index,) = (tmp_path / "out").glob("*.idx")
    data = MegatronIndexed(index.with_suffix(""))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    eod = tokenizer.token_to_id("<|endoftext|>")
    expected = [[*ids, eod] for ids in encode_documents(tokenizer, texts)]
    assert [data.document(i).tolist() for i in range(3)] == expected
    with IndexedWriter(tmp_path / "ours", 300) as ours:
        for ids in expected:
            ours.add(ids)
    for kind in (".bin", ".idx"):
        theirs = index.with_suffix(kind).read_bytes()
        assert (tmp_path / f"ours{kind}").read_bytes() == theirs


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 8])
def test_every_dtype_of_tokens_is_read_and_every_other_one_refused(
    tmp_path: Path, code: int
) -> None:
    """Every flipped bit of the dtype code is detected.

    It gives an unknown code, a float dtype, or another width: codes of equal width, 1 and 2 or 3
    and 8, differ in more than one bit. A flip from 4 to 5 could only pass in a file without tokens,
    where it changes nothing.
    """
    kind = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}[code]
    ids, prefix = np.array([1, 2, 100, 7, 0], kind), tmp_path / "x"
    (tmp_path / "x.bin").write_bytes(ids.tobytes())
    width = ids.itemsize
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, 2, 3)
    index += struct.pack("<2i2q3q", 3, 2, 0, 3 * width, 0, 1, 2)
    (tmp_path / "x.idx").write_bytes(index)
    data = MegatronIndexed(prefix)
    assert data.dtype == np.dtype(kind) and data.tokens.tolist() == ids.tolist()
    assert data.document(1).tolist() == [7, 0]
    for bit in range(8):
        changed = bytearray(index)
        changed[17] ^= 1 << bit
        (tmp_path / "x.idx").write_bytes(changed)
        with pytest.raises(DataError, match=r"dtype code|do not follow|floating"):
            MegatronIndexed(prefix)


@pytest.mark.parametrize("shard", [2, 6, 10, 1000])
def test_shards_are_read_in_place(tmp_path: Path, shard: int) -> None:
    documents = [[5, 6, 7], [], list(range(40)), [9]]
    whole = MegatronIndexed(write(tmp_path / "whole", documents))
    raw = (tmp_path / "whole.bin").read_bytes()
    (tmp_path / "a.b.idx").write_bytes((tmp_path / "whole.idx").read_bytes())
    pieces = [raw[at : at + shard] for at in range(0, len(raw), shard)]
    paths = [tmp_path / f"a.b-{i:05d}-of-{len(pieces) - 1:05d}.bin" for i in range(len(pieces))]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    data = MegatronIndexed(tmp_path / "a.b")
    assert [data.document(i).tolist() for i in range(4)] == documents
    places = np.random.default_rng(0).integers(0, data.n_tokens, (3, 50))
    np.testing.assert_array_equal(data.tokens[places], whole.tokens[places])
    assert data.tokens[places].dtype == np.dtype("<u2")
    assert data.tokens[:].tolist() == whole.tokens.tolist()
    for bad in ([-1], [data.n_tokens]):
        with pytest.raises(IndexError):
            data.tokens[np.array(bad)]
    paths[-1].write_bytes(pieces[-1][:-2])
    with pytest.raises(
        DataError, match=r"86 bytes in \d+ shards, but according to a\.b\.idx it should have 88"
    ):
        MegatronIndexed(tmp_path / "a.b")
    paths[-1].write_bytes(pieces[-1][:-1])
    with pytest.raises(DataError, match="87 bytes"):
        MegatronIndexed(tmp_path / "a.b")
    if len(paths) > 2:
        paths[1].unlink()
        with pytest.raises(DataError, match="shard 1 is missing"):
            MegatronIndexed(tmp_path / "a.b")


def test_a_shard_that_ends_inside_a_token_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x", [[1, 2, 3]])
    raw = (tmp_path / "x.bin").read_bytes()
    (tmp_path / "x.bin").unlink()
    for i, piece in enumerate((raw[:3], raw[3:])):
        (tmp_path / f"x-0000{i}-of-00001.bin").write_bytes(piece)
    with pytest.raises(DataError, match=r"x-00000-of-00001\.bin ends inside a token of 2 bytes"):
        MegatronIndexed(tmp_path / "x")
