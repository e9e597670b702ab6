"""Byte ranges of files behind URLs, and rows of the released data read through them.

One batch of the pre-shuffled Pile is one contiguous piece of 4.2 MB; looking at it must not need
the other 600 GB. A range is asked for with HTTP's `Range` and taken only if the server says that it
sends exactly that range of a file of the expected size: a server that ignores `Range` would begin
to send the whole shard, so its answer is refused unread. Short, slow and failing answers are asked
for again a few times, then an error says which URL and which bytes.

Local files and files behind URLs have one interface, ByteFile. Not here: names and sizes of the
released files (pythia_book.released.pile).
"""

from __future__ import annotations

import http.client
import itertools
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pythia_core.data.indexed_dataset import check_shard_names
from pythia_core.data.order import FixedRows
from pythia_core.errors import DataError, FetchError

LARGEST_READ = 1 << 28
"""Bytes of one read from a URL; more is a mistake or should be downloaded."""
_BLOCK = 1 << 16
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Status codes that may be another one in a moment."""


class ByteFile(Protocol):
    """A file of known size of which any bytes can be read."""

    name: str

    @property
    def size(self) -> int: ...

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), all of them."""
        ...


class LocalFile:
    """A file on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.name = self.path.name
        if not self.path.is_file():
            raise DataError(f"{self.path} does not exist or is no file")

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, start: int, stop: int) -> bytes:
        _check_range(self.name, start, stop, self.size)
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)


class HttpFile:
    """A file behind an http or https URL whose server answers byte ranges.

    Args:
        url: of the file; redirects are followed.
        size: bytes it must have; None asks the server once.
        timeout: seconds a server may be silent. deadline: seconds that one range may take in all.
        tries: how often a range is asked for when the answer is short, late or a server's error.

    Raises (of `read` and `size`):
        FetchError: not found, not allowed, no ranges, another size, or no luck after `tries`.
    """

    def __init__(
        self,
        url: str,
        size: int | None = None,
        timeout: float = 30.0,
        deadline: float = 300.0,
        tries: int = 4,
        pause: float = 1.0,
    ) -> None:
        if not re.match(r"https?://[^/\s]+/\S+$", url):
            raise DataError(f"{url!r} is not the http(s) URL of a file")
        self.url, self.name = url, url.rsplit("/", 1)[-1].split("?")[0]
        self._size, self._timeout, self._deadline = size, timeout, deadline
        self._tries, self._pause = tries, pause

    @property
    def size(self) -> int:
        if self._size is None:
            self._retried(0, 1)
            assert self._size is not None
        return self._size

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop).

        Raises:
            DataError: outside the file, or more than LARGEST_READ.
        """
        _check_range(self.name, start, stop, self.size)
        if stop - start > LARGEST_READ:
            raise DataError(
                f"{stop - start:,} bytes of {self.name} at once; at most {LARGEST_READ:,} are read "
                "from a URL. Read fewer rows, or download the file"
            )
        return self._retried(start, stop) if stop > start else b""

    def _retried(self, start: int, stop: int) -> bytes:
        wrong = ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                return self._once(start, stop)
            except urllib.error.HTTPError as error:
                wrong = f"the server answered {error.code} {error.reason}"
                error.close()
                if error.code not in _AGAIN:
                    raise self._failed(start, stop, wrong + _hint(error.code)) from error
            except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
                wrong = str(error) or type(error).__name__
        raise self._failed(
            start,
            stop,
            f"{wrong} (tried {self._tries} times). Ask again to go on. Without a network, bring "
            f"{self.name} in a folder and give the folder in place of the name",
        )

    def _once(self, start: int, stop: int) -> bytes:
        request = urllib.request.Request(
            self.url,
            headers={"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"},
        )
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=self._timeout) as answer:
            self._check(answer, start, stop)
            parts: list[bytes] = []
            left = stop - start
            while left and (part := answer.read1(min(left, _BLOCK))):
                parts.append(part)
                left -= len(part)
                if time.monotonic() - began > self._deadline:
                    raise TimeoutError(
                        f"after {self._deadline:g} s {left:,} of {stop - start:,} bytes are missing"
                    )
        if left:
            raise ConnectionError(f"the answer ended {left:,} of {stop - start:,} bytes early")
        return b"".join(parts)

    def _check(self, answer: Any, start: int, stop: int) -> None:
        """Refuse, before its body is read, an answer that is not just the range asked for."""
        if answer.status != 206:
            length = answer.headers.get("Content-Length", "unknown")
            raise self._failed(
                start,
                stop,
                f"the server ignores Range: it answered {answer.status} and would send the whole "
                f"file ({length} bytes). Nothing was downloaded; take another mirror",
            )
        said = answer.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", said.strip())
        if not found or (int(found[1]), int(found[2])) != (start, stop - 1):
            raise self._failed(start, stop, f"the server sends another range: {said!r}")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise self._failed(start, stop, "the server compresses what it sends")
        if self._size is None:
            self._size = int(found[3])
        elif int(found[3]) != self._size:
            raise self._failed(
                start,
                stop,
                f"the file there has {int(found[3]):,} bytes, not {self._size:,}: it is truncated "
                "or another one",
            )

    def _failed(self, start: int, stop: int, what: str) -> FetchError:
        return FetchError(f"cannot read bytes {start}-{stop - 1} of {self.url}: {what}")


class JoinedFile:
    """Several files as one, in order."""

    def __init__(self, parts: Sequence[ByteFile]) -> None:
        self.parts = list(parts)
        if not self.parts:
            raise DataError("no files were given")
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
    """PreshuffledRows whose shards lie anywhere: each read asks for just the rows' bytes.

    Args:
        files: the shards in order. seq_len: S; a row is S + 1 ids. dtype: of the ids.

    Raises:
        DataError: as PreshuffledRows. FetchError: when rows are read, as HttpFile.
    """

    def __init__(
        self, files: Sequence[ByteFile], seq_len: int, dtype: str | np.dtype = "<u2"
    ) -> None:
        self.files = list(files)
        joined = JoinedFile(self.files)
        super().__init__(joined.name, [file.size for file in self.files], seq_len, dtype)

    def _read(self, shard: int, start: int, stop: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.files[shard].read(start, stop), np.uint8)


def _check_range(name: str, start: int, stop: int, size: int) -> None:
    if not 0 <= start <= stop <= size:
        raise DataError(f"bytes [{start}, {stop}) are outside {name}, which has {size}")


def _hint(code: int) -> str:
    hints = {
        401: "; it wants a login, which the released data do not need",
        403: "; it does not let this machine read it",
        404: "; there is no such file: is the name, or the mirror, right?",
        416: "; the file is shorter than it should be",
    }
    return hints.get(code, "")
