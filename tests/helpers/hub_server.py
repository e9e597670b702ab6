"""A server in the hub's layout, for tests: repositories in memory, failures on request."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def commit_of(repo: str, revision: str) -> str:
    """Return a made-up commit hash for a revision of a repository."""
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


@dataclass
class FakeHub:
    """A stand-in for the Hugging Face hub: its repositories, and what should go wrong."""

    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Maps repository -> revision -> file name to the content of the file."""
    stall: threading.Event = field(default_factory=threading.Event)
    """When set, slow requests are answered."""
    slow: set[str] = field(default_factory=set)
    """A request with one of these in its "METHOD /path" waits for `stall`, for 20 s at most."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """Maps a file name to content that is sent instead, with the length and hash of the file."""
    short: set[str] = field(default_factory=set)
    """Names of files of which only the first half is sent."""
    broken: set[str] = field(default_factory=set)
    """A request with one of these in its path gets status 500."""
    requests: list[str] = field(default_factory=list)
    """Method and path of every request."""
    url: str = ""
    """The address of the server, once it runs."""

    def add(self, repo: str, revision: str, folder: Path) -> None:
        """Add the files of `folder` as a revision of a repository."""
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
        self.repos.setdefault(repo, {})[revision] = files

    def revision(self, repo: str, name: str) -> dict[str, bytes] | None:
        """Return the files of a branch or commit, or None if the repository does not have it."""
        for branch, files in self.repos[repo].items():
            if name in (branch, commit_of(repo, branch)):
                return files
        return None


class Handler(BaseHTTPRequestHandler):
    """A handler that answers requests for the files and listings of a fake hub."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: a second one waits 40 ms

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer a HEAD request."""
        self.answer(False)

    def do_GET(self) -> None:
        """Answer a GET request."""
        self.answer(True)

    def reply(self, status: int, body: bytes, with_body: bool = True, **headers: str) -> None:
        """Send a response. In the names of headers, "_" stands for "-"."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def missing(self, what: str) -> None:
        """Send status 404, with `what` as the hub's error code, e.g. "RepoNotFound"."""
        self.reply(404, b"{}", self.command == "GET", X_Error_Code=what)

    def answer(self, with_body: bool) -> None:
        """Answer a request for a listing of branches or files, or for a file, or fail as told."""
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if any(part in self.hub.requests[-1] for part in self.hub.slow):
            self.hub.stall.wait(20)
        if any(part in path for part in self.hub.broken):
            return self.reply(500, b"{}", with_body)
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repo = "/".join(parts[:2])
        if repo not in self.hub.repos:
            return self.missing("RepoNotFound")
        if api and parts[2:] == ["refs"]:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit_of(repo, name)}
                for name in self.hub.repos[repo]
            ]
            body = {"branches": branches, "converts": [], "tags": []}
            return self.reply(200, json.dumps(body).encode())
        revision = parts[3] if len(parts) > 3 else "main"
        files = self.hub.revision(repo, revision)
        if files is None:
            return self.missing("RevisionNotFound")
        if api:
            body = {
                "id": repo,
                "sha": commit_of(repo, revision),
                "siblings": [self.sibling(name, content) for name, content in files.items()],
            }
            return self.reply(200, json.dumps(body).encode())
        name = "/".join(parts[4:])
        if name not in files:
            return self.missing("EntryNotFound")
        return self.file(repo, revision, name, files[name], with_body)

    @staticmethod
    def large(name: str) -> bool:
        """Return whether the hub would store this file with Git LFS."""
        return not name.endswith(".json")

    def sibling(self, name: str, content: bytes) -> dict:
        """Return a file's entry in the listing of a revision."""
        entry = {
            "rfilename": name,
            "size": len(content),
            "blobId": hashlib.sha1(content).hexdigest(),
        }
        if self.large(name):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def file(self, repo: str, revision: str, name: str, content: bytes, with_body: bool) -> None:
        """Send a file with its hash and commit, or, if the hub says so, less or other content.

        Args:
            revision: branch or commit.
        """
        known = revision in self.hub.repos[repo]
        commit = commit_of(repo, revision) if known else revision
        kind = hashlib.sha256 if self.large(name) else hashlib.sha1
        headers = {
            "ETag": f'"{kind(content).hexdigest()}"',
            "X_Repo_Commit": commit,
            "Content_Length": str(len(content)),
        }
        if with_body and name in self.hub.short:
            content = content[: len(content) // 2]
            headers["Content_Length"] = str(len(content))
        self.reply(200, self.hub.wrong.get(name, content), with_body, **headers)


def start(hub: FakeHub) -> ThreadingHTTPServer:
    """Start a server for `hub` in a thread, set `hub.url` to its address, and return the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def serving(hub: FakeHub, monkeypatch, cache: Path):
    """Serve `hub`, and make huggingface_hub use it, with a new cache, instead of the real hub.

    The function is a generator for fixtures. It yields `hub` once, and stops the server afterwards.

    Args:
        cache: the folder for the cache.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    server = start(hub)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.stall.set()
    server.shutdown()
    server.server_close()
