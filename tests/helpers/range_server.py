"""A file server on this machine with byte ranges, which can be told to fail."""

from __future__ import annotations

import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """A file server that answers requests for byte ranges, and fails when told to."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        """Maps file names to contents."""
        self.faults: list[str] = []
        """What goes wrong with each of the next requests, see `answer`; "" means nothing."""
        self.ranges: list[tuple[str, str]] = []
        """File name and header "Range" of every request."""
        self.headers: list[dict[str, str]] = []
        """All headers of every request."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            """A handler that passes requests on to the server."""

            def do_GET(self) -> None:
                """Answer a GET request."""
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                """Print nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        """Stop the server."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        """Answer a GET request for a range of a file, with the next of `faults` if there is one.

        A fault is a status such as "503" or one of the phrases in the code, e.g. "drops". A name
        that begins with "moved/" is redirected to the rest of the name.
        """
        fault = self.faults.pop(0) if self.faults else ""
        name, asked = to.path.lstrip("/"), to.headers.get("Range", "")
        self.ranges.append((name, asked))
        self.headers.append(dict(to.headers))
        if name.startswith("moved/"):
            to.send_response(302)
            to.send_header("Location", f"{self.url}/{name.removeprefix('moved/')}")
            to.end_headers()
            return
        if name not in self.files or fault.isdigit():
            to.send_error(int(fault or 404))
            return
        whole = self.files[name]
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
        body = whole[first : last + 1]
        if fault == "ignores ranges":
            to.send_response(200)
            to.send_header("Content-Length", str(600_078_336_000))
            to.end_headers()
            self.write(to, whole)
            return
        if fault == "drops":
            to.connection.close()
            return
        to.send_response(206)
        shift = 1 if fault == "another range" else 0
        total = len(whole) - 1 if fault == "another size" else len(whole)
        to.send_header("Content-Range", f"bytes {first + shift}-{last + shift}/{total}")
        if fault == "compresses":
            to.send_header("Content-Encoding", "gzip")
        if fault == "no length":
            body = body[: len(body) // 2]
        else:
            to.send_header("Content-Length", str(len(body)))
        to.end_headers()
        if fault == "truncates":
            body = body[: len(body) // 2]
        if fault == "silent":
            time.sleep(1.0)
        for at in range(0, len(body), 1 if fault == "slow" else len(body)):
            if fault == "slow":
                time.sleep(0.03)
            self.write(to, body[at : at + (1 if fault == "slow" else len(body))])

    def write(self, to: BaseHTTPRequestHandler, data: bytes) -> None:
        """Send bytes. It is no error if the client has left."""
        try:
            to.wfile.write(data)
            to.wfile.flush()
        except OSError:  # the reader has left
            pass
