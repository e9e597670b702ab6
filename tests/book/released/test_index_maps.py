"""GPT-NeoX's index maps give the rows of its order; damaged maps give an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from neox_files import write_maps
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
        (index.read_bytes()[:-1], "copy the file again"),
        (index.read_bytes()[:20], "fewer than the"),
        (b"X" + index.read_bytes()[1:], "is not an index"),
    ):
        kept = index.read_bytes()
        index.write_bytes(raw)
        with pytest.raises(DataError, match=message):
            open_maps(stem, 8)
        index.write_bytes(kept)
