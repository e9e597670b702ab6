"""GPT-NeoX's index maps give the rows of its order; damaged maps give an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from neox_files import neox_index, write_maps
from pythia_book.released.index_maps import NpyArray, find_maps, open_maps
from pythia_book.released.remote_rows import LocalFile

from pythia_core.errors import DataError


@pytest.mark.parametrize("kind", ["<i4", "<i8"])
@pytest.mark.parametrize(("seed", "epochs"), [(1, 1), (9, 1), (1234, 2)])
def test_rows_of_maps_are_those_of_the_order(
    tmp_path: Path, seed: int, epochs: int, kind: str
) -> None:
    stem, order, data = write_maps(tmp_path, seed, epochs=epochs, kind=kind)
    assert find_maps(tmp_path) == stem
    rows = open_maps(stem, 8)
    expected, _ = order.gather(data, np.arange(order.n_rows))
    assert rows.n_rows == order.n_rows and rows.rows(2, 2).shape == (0, 9)
    np.testing.assert_array_equal(rows.rows(0, rows.n_rows), expected)
    np.testing.assert_array_equal(rows.batch(2, 5), expected[10:15])
    assert rows.rows(0, 1).dtype == np.dtype("<u2")
    with pytest.raises(DataError, match="the last full batch of 5"):
        rows.batch(rows.n_rows, 5)


def test_documents_may_be_in_shards_one_folder_up(tmp_path: Path) -> None:
    stem, order, data = write_maps(tmp_path)
    expected, _ = order.gather(data, np.arange(order.n_rows))
    (tmp_path / "seed3").mkdir()
    for path in tmp_path.glob("*.npy"):
        path.rename(tmp_path / "seed3" / path.name)
    raw = (tmp_path / "toy_document.bin").read_bytes()
    (tmp_path / "toy_document.bin").unlink()
    for i, part in enumerate((raw[:101], raw[101:])):  # a token, too, may be cut
        (tmp_path / f"toy_document-0000{i}-of-00001.bin").write_bytes(part)
    rows = open_maps(tmp_path / "seed3" / stem.name, 8)
    np.testing.assert_array_equal(rows.rows(0, rows.n_rows), expected)
    (tmp_path / "toy_document.idx").unlink()
    both = r"seed3 lacks toy_document\.idx and toy_document\.bin"
    with pytest.raises(DataError, match=both + r", and .* lacks toy_document\.idx; put"):
        open_maps(tmp_path / "seed3" / stem.name, 8)


def test_missing_and_ambiguous_maps(tmp_path: Path) -> None:
    assert find_maps(tmp_path) is None
    stem, *_ = write_maps(tmp_path)
    with pytest.raises(DataError, match="seq_len=8, not for seq_len=16"):
        open_maps(stem, 16)
    np.save(tmp_path / "other_doc_idx.npy", [1])
    with pytest.raises(DataError, match="one set per folder"):
        find_maps(tmp_path)
    (tmp_path / "other_doc_idx.npy").unlink()
    Path(f"{stem}_shuffle_idx.npy").unlink()
    with pytest.raises(DataError, match=r"lacks toy.*_shuffle_idx\.npy"):
        find_maps(tmp_path)


def test_every_flipped_byte_gives_the_row_or_an_error(tmp_path: Path) -> None:
    """A flip may name another existing row or position; it never gives a row of another length."""
    stem, order, _ = write_maps(tmp_path)
    rng = np.random.default_rng(0)
    refused = 0
    for part in ("doc_idx", "sample_idx", "shuffle_idx"):
        path = Path(f"{stem}_{part}.npy")
        good = path.read_bytes()
        for bit in rng.choice(8 * len(good), 150, replace=False).tolist():
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            try:
                shape = open_maps(stem, 8).rows(0, order.n_rows).shape
            except DataError:
                refused += 1
            else:
                assert shape == (order.n_rows, 9)
        path.write_bytes(good)
    assert refused > 200


def test_invalid_maps_are_refused(tmp_path: Path) -> None:
    stem, order, _ = write_maps(tmp_path)
    shuffle = Path(f"{stem}_shuffle_idx.npy")
    good = shuffle.read_bytes()
    for wrong, message in (
        (order.shuffle[:-1], "use the maps of one set"),
        (order.shuffle.astype(float), "expected an array of integers"),
        (order.shuffle[:, None], "expected an array of integers"),
        (np.full_like(order.shuffle, order.n_rows), "cannot be read"),
    ):
        np.save(shuffle, wrong)
        with pytest.raises(DataError, match=message):
            open_maps(stem, 8).rows(0, 1)
    for raw in (b"", b"\x93NUMPY", good[:-1], good + b"\0", b"x" * 200):
        shuffle.write_bytes(raw)
        with pytest.raises(DataError, match=r"not a readable \.npy file|copy the file again"):
            open_maps(stem, 8)
    objects = np.array([{"a": 1}], dtype=object)
    np.save(shuffle, objects)
    with pytest.raises(DataError, match="expected an array of integers"):
        NpyArray(LocalFile(shuffle), 1)
    shuffle.write_bytes(good)
    index = tmp_path / "toy_document.idx"
    for raw, message in (
        (index.read_bytes()[:-1], "need exactly 882"),
        (index.read_bytes()[:20], "the header alone needs 34"),
        (b"X" + index.read_bytes()[1:], "starts with b'XMIDIDX"),
    ):
        kept = index.read_bytes()
        index.write_bytes(raw)
        with pytest.raises(DataError, match=message):
            open_maps(stem, 8)
        index.write_bytes(kept)


@pytest.mark.parametrize("entries", [43, 11, 1])
def test_every_flip_and_cut_of_the_index_gives_the_same_rows_or_an_error(
    tmp_path: Path, entries: int
) -> None:
    """Only the used parts of the index are read, as that of the Pile is large and remote."""
    stem, order, data = write_maps(tmp_path)
    expected, _ = order.gather(data, np.arange(order.n_rows))
    index = tmp_path / "toy_document.idx"
    good = neox_index(data.sizes, entries)
    index.write_bytes(good)
    np.testing.assert_array_equal(open_maps(stem, 8).rows(0, order.n_rows), expected)
    rng = np.random.default_rng(entries)
    refused = 0
    for change in rng.permutation(8 * len(good))[:1000].tolist():
        bad = bytearray(good)
        bad[change // 8] ^= 1 << change % 8
        index.write_bytes(bad if change % 2 else good[: change // 8])
        try:
            rows = open_maps(stem, 8).rows(0, order.n_rows)
        except DataError as error:
            refused += "toy_document.idx" in str(error)
        else:
            np.testing.assert_array_equal(rows, expected)
    assert refused > 600  # the document table, and documents without tokens, are not read


def test_documents_beyond_four_gigabytes(tmp_path: Path) -> None:
    """Rows in documents beyond 2^31 tokens and 2^32 bytes; a sparse file."""
    sizes = np.array([2**31 - 1, 5, 2**30, 7])
    (tmp_path / "big.idx").write_bytes(neox_index(sizes, 1))
    with open(tmp_path / "big.bin", "wb") as file:
        for at, ids in ((4294967294, [1, 2, 3, 4, 5]), (2 * (sizes.sum() - 7), range(11, 18))):
            file.seek(at)
            file.write(np.array(ids, "<u2").tobytes())
    stem = tmp_path / "big_indexmap_2ns_4sl_1s"
    np.save(f"{stem}_doc_idx.npy", np.array([3, 1, 2, 0], np.int32))
    samples = np.array([[0, 1], [0, 5], [1, 2]], np.int64)
    np.save(f"{stem}_sample_idx.npy", samples)
    np.save(f"{stem}_shuffle_idx.npy", np.array([1, 0], np.uint32))
    assert open_maps(stem, 4).rows(0, 2).tolist() == [[16, 17, 1, 2, 3], [12, 13, 14, 15, 16]]


def npy(header: str | bytes, version: int = 1, length: int | None = None) -> bytes:
    """Return a `.npy` file with any header, of any announced length, and 80 bytes of content."""
    raw = header.encode() if isinstance(header, str) else header
    announced = len(raw) if length is None else length
    width = 2 if version == 1 else 4
    return (
        b"\x93NUMPY" + bytes([version, 0]) + announced.to_bytes(width, "little") + raw + bytes(80)
    )


def header(shape: str = "(20,)", kind: str = "'<i4'") -> str:
    return f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize("ndim", [1, 2])
def test_hostile_headers_of_npy_files_give_an_error(tmp_path: Path, ndim: int) -> None:
    shapes = [
        "(-20,)",
        "(True,)",
        "(20.0,)",
        "20",
        "()",
        "('a',)",
        "(None,)",
        "(2**3,)",
        "(10, -2)",
    ]
    shapes += [f"(20, {2**64})", f"({10**30},)", f"(0, {10**30})", f"({10**30}, 0)"]
    kinds = [
        "'O'",
        "'<f8'",
        "'<U4'",
        "'V4'",
        "'<i3'",
        "'i4,i4'",
        "[('a', '<i4')]",
        "'<M8[s]'",
        "'?'",
    ]
    files = [npy(header(shape)) for shape in shapes] + [npy(header(kind=kind)) for kind in kinds]
    files += [npy("(" * 3000), npy("-" * 3000 + "1"), npy("[" * 900 + "]" * 900), npy("\0" * 20)]
    files += [
        npy(b"{'descr': '\xff'}"),
        npy("{'descr': '<i4'}"),
        npy("[1]"),
        npy("{1: {2}, [3]: 4}"),
    ]
    files += [npy(header(), 2, 2**32 - 1), npy(header(), 3), npy(header(), 9), npy(header(), 1, 7)]
    for raw in files:
        (tmp_path / "x.npy").write_bytes(raw)
        with pytest.raises(DataError, match=r"x\.npy"):
            NpyArray(LocalFile(tmp_path / "x.npy"), ndim)
    (tmp_path / "x.npy").write_bytes(npy(header("(20,)" if ndim == 1 else "(4, 5)")))
    assert len(NpyArray(LocalFile(tmp_path / "x.npy"), ndim)) in (20, 4)
