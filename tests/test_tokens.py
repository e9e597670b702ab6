"""Token files: what is written is read back, and every damaged index is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from pythia_core.errors import DataError
from pythia_core.tokens import (
    DTYPES,
    HEADER,
    IndexedWriter,
    MegatronIndexed,
    file_sha256,
    index_bytes,
    token_dtype,
)


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
    with pytest.raises(DataError, match=r"no document 5; .* has 0\.\.4"):
        data.document(5)


def test_bytes_are_those_of_the_format(tmp_path: Path) -> None:
    """Written out by hand from the description of the format, not with our own constants."""
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
def test_what_is_not_a_list_of_ids_is_refused(tmp_path: Path, ids: list) -> None:
    with pytest.raises(DataError, match="flat list of integers"):
        with IndexedWriter(tmp_path / "x", 100) as out:
            out.add(ids)


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


def test_every_flipped_bit_of_the_index_is_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 40, 60)
    prefix = write(tmp_path / "x", [rng.integers(0, 999, n).tolist() for n in sizes])
    MegatronIndexed(prefix)
    index = tmp_path / "x.idx"
    good = index.read_bytes()
    for bit in rng.choice(8 * len(good), 3000, replace=False).tolist():
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        index.write_bytes(bad)
        with pytest.raises(DataError):
            MegatronIndexed(prefix)
    index.write_bytes(good)
    MegatronIndexed(prefix)


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


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    prefix = write(tmp_path / "x", [[1, 2, 3], [4]])
    index = tmp_path / "x.idx"
    good = index.read_bytes()
    for at, byte, message in [
        (0, 65, "starts with"),
        (9, 2, "version 2"),
        (17, 6, "floating point"),
        (17, 7, "floating point"),
        (17, 99, "dtype code 99"),
        (26, 9, "document table"),
        (34 + 3, 0x80, "negative size"),
        (34 + 8, 2, "running sum"),
        (34 + 24 + 8, 0, "one sequence per document"),
    ]:
        bad = bytearray(good)
        bad[at] = byte
        index.write_bytes(bad)
        with pytest.raises(DataError, match=message):
            MegatronIndexed(prefix)
    with pytest.raises(DataError, match=r"nothing\.idx does not exist"):
        MegatronIndexed(tmp_path / "nothing")


def test_beyond_four_gigabytes(tmp_path: Path) -> None:
    """A sparse file: sums and offsets past 2^31 tokens and 2^32 bytes must not wrap."""
    sizes = np.array([2**31 - 1, 5, 2**30, 7], np.int32)
    (tmp_path / "big.idx").write_bytes(index_bytes(sizes, np.dtype("<u2")))
    total = int(sizes.sum(dtype=np.int64))
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(2 * total)
        file.seek(2 * (2**31 - 1))
        file.write(np.arange(1, 6, dtype="<u2").tobytes())
        file.seek(2 * (total - 7))
        file.write(np.arange(11, 18, dtype="<u2").tobytes())
    assert (tmp_path / "big.bin").stat().st_size > 2**32
    data = MegatronIndexed(tmp_path / "big")
    assert data.n_tokens == total > 2**31
    assert data.document(1).tolist() == [1, 2, 3, 4, 5]
    assert data.document(3).tolist() == list(range(11, 18))
    assert len(data.document(0)) == 2**31 - 1


def test_header_size_and_digest(tmp_path: Path) -> None:
    assert HEADER.size == 34
    (tmp_path / "f").write_bytes(b"abc")
    assert file_sha256(tmp_path / "f").startswith("ba7816bf")
