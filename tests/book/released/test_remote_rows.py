"""Rows over HTTP are those of the files, and no failure of a server goes unnoticed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pythia_book.released.remote_rows import (
    LARGEST_READ,
    HttpFile,
    JoinedFile,
    LocalFile,
    RemoteRows,
)
from range_server import Server

from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.order import PreshuffledRows, RowOrder, write_rows
from pythia_core.errors import DataError, FetchError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def http_file(url: str, size: int | None = None, **settings: float) -> HttpFile:
    made = HttpFile(url, size)
    for name, value in {"pause": 0.0, **settings}.items():
        setattr(made, name, value)
    return made


def file(server: Server, name: str = "f", **settings: Any) -> HttpFile:
    return http_file(f"{server.url}/{name}", **settings)


def shards(folder: Path, size: int) -> tuple[RowOrder, MegatronIndexed, list[Path]]:
    """A toy corpus written out in training order, in shards of `size` bytes."""
    rng = np.random.RandomState(5)
    with IndexedWriter(folder / "x", 60_000) as out:
        for length in rng.randint(0, 40, 30):
            out.add(rng.randint(0, 60_000, length))
    data = MegatronIndexed(folder / "x")
    order = RowOrder(data.sizes, 8)
    write_rows(folder / "all", order, data)
    raw = (folder / "all").read_bytes()
    last = (len(raw) - 1) // size
    paths = []
    for i, at in enumerate(range(0, len(raw), size)):
        paths.append(folder / f"document-{i:05d}-of-{last:05d}.bin")
        paths[-1].write_bytes(raw[at : at + size])
    return order, data, paths


@pytest.mark.parametrize("size", [100, 37, 18 * 4, 10_000])
def test_batches_are_those_of_the_order_also_where_shards_meet(
    server: Server, tmp_path: Path, size: int
) -> None:
    order, data, paths = shards(tmp_path, size)
    server.files = {path.name: path.read_bytes() for path in paths}
    files = [file(server, path.name, size=path.stat().st_size) for path in paths]
    remote, local = RemoteRows(files, 8), PreshuffledRows(paths, 8)
    assert server.ranges == [], "known sizes are not asked for"
    assert remote.n_rows == order.n_rows and remote.contiguous
    for step in range(order.n_rows // 4):
        expected, _ = order.gather(data, np.arange(4 * step, 4 * step + 4))
        np.testing.assert_array_equal(remote.batch(step, 4), expected)
        np.testing.assert_array_equal(local.batch(step, 4), expected)
    asked = [re.findall(r"\d+", words) for _, words in server.ranges]
    total = sum(int(last) - int(first) + 1 for first, last in asked)
    assert total == order.n_rows // 4 * 4 * 18, "only the bytes of the rows were asked for"
    assert remote.rows(3, 3).shape == (0, 9)
    with pytest.raises(DataError, match="the last full batch of 4"):
        remote.batch(order.n_rows // 4, 4)
    with pytest.raises(DataError, match="outside 0"):
        remote.rows(0, order.n_rows + 1)


def test_sizes_are_requested_once_and_redirects_followed(server: Server) -> None:
    server.files = {"f": bytes(range(100))}
    one = file(server, "moved/f")
    assert one.name == "f" and one.size == 100 and one.size == 100
    assert server.ranges == [("moved/f", "bytes=0-0"), ("f", "bytes=0-0")]
    assert one.read(10, 15) == bytes([10, 11, 12, 13, 14]) and one.read(7, 7) == b""
    for start, stop in ((-1, 3), (5, 4), (99, 101)):
        with pytest.raises(DataError, match=r"outside f, which has 100"):
            one.read(start, stop)


def test_no_credentials_are_sent(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login someone password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.files = {"f": bytes(100)}
    assert file(server, "moved/f").read(0, 9) == bytes(9)
    assert len(server.headers) == 4
    for headers in server.headers:
        assert "Authorization" not in headers and headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "404 .*does not have this file"),
        ("403", "403 .*has no access"),
        ("401", "401 .*login"),
        ("416", "416 .*shorter"),
        ("ignores ranges", r"ignores the Range.*whole file \(600078336000 bytes"),
        ("another range", "sends the wrong range"),
        ("another size", "has 99,999 bytes instead of 100,000"),
        ("compresses", "sends compressed content"),
    ],
)
def test_permanent_errors_fail_at_once(server: Server, fault: str, message: str) -> None:
    server.files = {"f": bytes(100_000)}
    server.faults = [fault, ""]
    with pytest.raises(FetchError, match=rf"cannot read bytes 5-99994 of http.*{message}"):
        file(server, size=100_000).read(5, 99_995)
    assert len(server.ranges) == 1, "it was not asked for again"


def test_a_server_that_ignores_ranges_is_rejected_unread(server: Server) -> None:
    server.files = {"f": bytes(50_000_000)}
    server.faults = ["ignores ranges"] * 2
    with pytest.raises(FetchError, match="Nothing was downloaded"):
        file(server, size=50_000_000).read(0, 10)
    with pytest.raises(FetchError, match="ignores the Range"):
        _ = file(server).size


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "drops", "truncates", "no length", "silent", "slow"]
)
def test_transient_errors_are_retried(server: Server, fault: str) -> None:
    server.files = {"f": bytes(range(200))}
    server.faults = [fault, fault]
    one = file(server, size=200, timeout=0.3, deadline=0.5)
    assert one.read(50, 150) == bytes(range(50, 150))
    assert len(server.ranges) == 3
    server.faults = [fault] * 9
    with pytest.raises(FetchError, match=r"cannot read bytes 50-149 of .*tried 2 times"):
        file(server, size=200, timeout=0.3, deadline=0.5, tries=2).read(50, 150)


def test_an_unreachable_server() -> None:
    with pytest.raises(FetchError, match="tried 2 times"):
        http_file("http://127.0.0.1:9/f", size=10, tries=2, timeout=1).read(0, 1)
    for url in ("ftp://x/y", "file:///etc/hosts", "http://", "x", "http://a b/c"):
        with pytest.raises(DataError, match="URL"):
            HttpFile(url)


def test_too_large_a_read_is_refused(server: Server) -> None:
    with pytest.raises(DataError, match="at most 268,435,456 bytes"):
        file(server, size=LARGEST_READ + 2).read(0, LARGEST_READ + 1)
    assert server.ranges == []


def test_local_files_join_like_remote_ones(tmp_path: Path) -> None:
    _, _, paths = shards(tmp_path, 50)
    whole = JoinedFile([LocalFile(path) for path in paths])
    raw = (tmp_path / "all").read_bytes()
    assert whole.size == len(raw) and whole.read(0, whole.size) == raw
    assert whole.read(49, 151) == raw[49:151] and whole.read(60, 60) == b""
    rows = RemoteRows([LocalFile(path) for path in paths], 8)
    np.testing.assert_array_equal(
        rows.rows(0, rows.n_rows), PreshuffledRows(paths, 8).rows(0, rows.n_rows)
    )
    with pytest.raises(DataError, match="shard 1 is missing"):
        RemoteRows([LocalFile(path) for path in (paths[0], *paths[2:])], 8)
    with pytest.raises(DataError, match="at least one file"):
        RemoteRows([], 8)
    with pytest.raises(DataError, match="whole number of rows"):
        RemoteRows([LocalFile(path) for path in paths], 7)
    with pytest.raises(DataError, match="does not exist"):
        LocalFile(tmp_path / "nothing")
