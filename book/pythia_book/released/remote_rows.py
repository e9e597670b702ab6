"""Reads byte ranges of files behind URLs, and rows of the released data in these files.

A batch of the pre-shuffled Pile is 4.2 MB of 600 GB. A response is accepted only if its headers
announce exactly the requested range of a file of the expected size. So a server that ignores
`Range` is rejected before it sends a whole shard. After an incomplete or late response or a server
error, a request is repeated a few times; then an error names the URL and the byte range.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pythia_core.data.indexed_dataset import check_shard_names
from pythia_core.data.order import FixedRows
from pythia_core.errors import DataError, FetchError

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

LARGEST_READ = 1 << 28
"""Maximum bytes per read from a URL. Download the file to read more."""
RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""Status codes of errors that may be transient."""
HINTS = {
    401: "; released data need no login, so use another server",
    403: "; this machine has no access, so use another server",
    404: "; the server does not have this file, so check the URL",
    416: "; the file on the server is shorter than expected",
}


class ByteFile(Protocol):
    """A file of known size with random access to byte ranges."""

    name: str
    present: bool
    """Whether the bytes can be read. Only the size of an absent file is known."""

    @property
    def size(self) -> int:
        """The size in bytes."""
        ...

    def read(self, start: int, stop: int) -> bytes:
        """Return exactly the bytes [start, stop)."""
        ...


class LocalFile:
    """A ByteFile on disk. Raises a DataError if the file does not exist."""

    present = True

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = self.path.name
        if not self.path.is_file():
            raise DataError(f"{self.path} does not exist or is not a file; put the file there")

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, start: int, stop: int) -> bytes:
        _check_range(self.name, start, stop, self.size)
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)


class HttpFile:
    """A ByteFile behind an http or https URL, on a server that supports byte ranges.

    fsspec makes the requests, but accepts any response and never retries. So `_check` rejects wrong
    responses before the body is read, and `_fetch` retries transient failures.

    `read` and `size` raise a FetchError if the file is not accessible, the server does not support
    ranges, the size is wrong, or all `tries` requests failed.

    Args:
        url: URL of the file; redirects are followed.
        size: expected size in bytes; None: the server is asked once.
    """

    present = True
    timeout = 30.0
    """Maximum seconds to wait for the next byte."""
    deadline = 300.0
    """Maximum seconds for one range."""
    tries = 4
    """Maximum number of requests for one range."""
    pause = 1.0
    """Seconds before the first retry, doubled with each further retry."""

    def __init__(self, url: str, size: int | None = None) -> None:
        if not re.match(r"https?://[^/\s]+/\S+$", url):
            raise DataError(f"{url!r} is not the http(s) URL of a file")
        self.url, self.name = url, url.rsplit("/", 1)[-1].split("?")[0]
        self._size = size

    @property
    def size(self) -> int:
        """The size in bytes. If no size was given, the first access asks the server."""
        if self._size is None:
            self._fetch(0, 1)
            assert self._size is not None
        return self._size

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop).

        Raises a DataError if the range is outside the file or larger than LARGEST_READ.
        """
        _check_range(self.name, start, stop, self.size)
        if stop - start > LARGEST_READ:
            raise DataError(
                f"cannot read {stop - start:,} bytes of {self.name} at once, because one read "
                f"from a URL has at most {LARGEST_READ:,} bytes. Read fewer rows, or download the "
                "file"
            )
        return self._fetch(start, stop) if stop > start else b""

    def _fetch(self, start: int, stop: int) -> bytes:
        """Request the bytes [start, stop), at most `tries` times; raise a FetchError on failure."""
        from aiohttp import ClientError, ClientTimeout
        from fsspec import filesystem

        silence = {"sock_connect": self.timeout, "sock_read": self.timeout}
        limits = ClientTimeout(total=self.deadline, **silence)
        # fsspec shares one session between all files; a forked process must get its own.
        server = filesystem(
            "http",
            headers={"Accept-Encoding": "identity"},
            # trust_env is for proxies; _anonymous removes the netrc credentials that it also adds.
            client_kwargs={"timeout": limits, "trust_env": True, "middlewares": (_anonymous,)},
        )
        reason = ""
        for attempt in range(self.tries):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                content = server.cat_file(self.url, start, stop, raise_for_status=self._check)
            except (OSError, ClientError) as error:
                reason = str(error) or f"{type(error).__name__} after at most {self.deadline:g} s"
                continue
            if len(content) == stop - start:
                return content
            reason = f"the response has only {len(content):,} of {stop - start:,} bytes"
        raise self._failed(
            f"bytes {start}-{stop - 1}",
            f"{reason} (tried {self.tries} times). Run the command again to continue. Without a "
            f"network, put {self.name} in a folder, and pass this folder as the training data "
            "(--data)",
        )

    async def _check(self, response: ClientResponse) -> None:
        """Reject a response that is not exactly the requested range, before its body is read.

        Raises a ConnectionError if a retry may succeed, otherwise a FetchError.
        """
        status, headers = response.status, response.headers
        requested = response.request_info.headers["Range"].replace("=", " ")
        sent, _, size = headers.get("Content-Range", "").strip().partition("/")
        problem = ""
        if status in RETRIED:
            raise ConnectionError(f"the server answered {status} {response.reason}")
        if status >= 400:
            problem = f"the server answered {status} {response.reason}{HINTS.get(status, '')}"
        elif status != 206:
            length = headers.get("Content-Length", "unknown")
            problem = (
                f"the server ignores the Range header and would send the whole file ({length} "
                f"bytes, status {status}). Nothing was downloaded; use another server"
            )
        elif sent != requested or not size.isdigit():
            problem = f"the server sends the wrong range {sent!r}; use another server"
        elif headers.get("Content-Encoding", "identity") != "identity":
            problem = (
                "the server sends compressed content, although uncompressed content was requested; "
                "use another server"
            )
        elif self._size not in (None, int(size)):
            problem = (
                f"the file on the server has {int(size):,} bytes instead of {self._size:,}, so "
                "the file is truncated or is another file; use another server"
            )
        if problem:
            raise self._failed(requested, problem)
        self._size = int(size)

    def _failed(self, requested: str, problem: str) -> FetchError:
        """Return the error for a range that could not be read."""
        return FetchError(f"cannot read {requested} of {self.url}: {problem}")


async def _anonymous(request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
    """Remove the credentials from a request and send it (a middleware of aiohttp)."""
    request.headers.pop("Authorization", None)
    return await send(request)


class JoinedFile:
    """A ByteFile that concatenates several files."""

    present = True

    def __init__(self, parts: Sequence[ByteFile]) -> None:
        self.parts = list(parts)
        if not self.parts:
            raise DataError("expected at least one file to join, got none")
        check_shard_names([part.name for part in self.parts])
        self.name = f"{self.parts[0].name} (+{len(self.parts) - 1} more)"
        self._bounds = [0, *itertools.accumulate(part.size for part in self.parts)]

    @property
    def size(self) -> int:
        return self._bounds[-1]

    def read(self, start: int, stop: int) -> bytes:
        _check_range(self.name, start, stop, self.size)
        bounds = zip(self.parts, self._bounds, self._bounds[1:], strict=False)
        return b"".join(
            part.read(max(start - low, 0), min(stop, high) - low)
            for part, low, high in bounds
            if low < stop and high > start
        )


class RemoteRows(FixedRows):
    """Rows of uint16 ids, stored in training order in shards that may be behind URLs.

    Only the bytes of the requested rows are fetched. Rows of a missing or unreachable shard raise
    an error; other rows can be read. Raises a DataError if the shards are incomplete or out of
    order, or do not have a whole number of rows.
    """

    def __init__(self, files: Sequence[ByteFile], seq_len: int) -> None:
        self.files = list(files)
        joined = JoinedFile(self.files)
        super().__init__(joined.name, [file.size for file in self.files], seq_len, "<u2")

    def missing_files(self, start: int, stop: int) -> list[ByteFile]:
        """Return the absent files that hold some of the rows [start, stop)."""
        bounds = itertools.accumulate((file.size for file in self.files), initial=0)
        first, last = start * self._row_bytes, stop * self._row_bytes
        return [
            file
            for file, low in zip(self.files, bounds, strict=False)
            if not file.present and low < last and low + file.size > first
        ]

    def _read(self, shard: int, start: int, stop: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.files[shard].read(start, stop), np.uint8)


def _check_range(name: str, start: int, stop: int, size: int) -> None:
    """Raise a DataError unless the bytes [start, stop) are inside a file of `size` bytes."""
    if not 0 <= start <= stop <= size:
        raise DataError(f"bytes [{start}, {stop}) are outside {name}, which has {size} bytes")
