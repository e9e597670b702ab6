"""Find a released model: a folder, or a repository and revision on the Hugging Face hub.

Uses `huggingface_hub` with its own cache, and the endpoint in HF_ENDPOINT. Only *.json and
*.safetensors are ever fetched, never a repository's code; every file that the hub stores by sha256
is checked against it before use, even in the cache. Pythia's repositories are public, so no token
is sent. A revision is a branch: "step3000", or "main" for the last step.

Not here: what is in the files (pythia_core.hf).
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_core.errors import CheckpointError, FetchError, MissingDependencyError, one_of
from pythia_core.hf import (
    CONFIG,
    INDEX,
    PLAIN_NAME,
    TOKENIZER,
    WEIGHTS,
    Loaded,
    ModelFolder,
    locate_folder,
    refuse_pickle,
)
from pythia_core.util.files import file_sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from pythia_core.model import GPTNeoX


SMALL = (
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
)


TIMEOUT = 10.0
"""Seconds the hub has to answer a request; HF_HUB_DOWNLOAD_TIMEOUT limits the wait for a file's
next bytes."""
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str) -> bool:
    """Whether a name has the form of a hub repository: owner/name."""
    return _REPOSITORY.fullmatch(name) is not None


def is_published(source: str) -> bool:
    """Whether a name is a published model, a folder or a repository, and not a run of ours."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return not (folder / "identity.json").exists()
    return is_repository(source)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at a revision."""

    size: int | None
    sha256: str
    """Of the content, if the hub stores it by that (large files); otherwise empty."""
    blob: str
    """What identifies the content in any case: the sha256, or git's id."""


def locate(source: str | Path, revision: str = "main") -> ModelFolder:
    """The folder of a model: yours, its subfolder named after the revision, or a fetched one.

    Raises:
        CheckpointError: neither a folder with a model nor the name of a repository.
        FetchError: see `fetch`.
    """
    if Path(source).expanduser().is_dir():
        return locate_folder(source, revision)
    if is_repository(str(source)):
        return fetch(str(source), revision)
    raise CheckpointError(
        f"{source} is neither a folder nor a repository of the hub such as EleutherAI/pythia-70m"
    )


def load(source: str | Path, revision: str = "main", **how: Any) -> tuple[GPTNeoX, Loaded]:
    """`pythia_core.hf.load`, also of a repository on the hub, e.g. "EleutherAI/pythia-70m".

    Raises:
        CheckpointError: not such a model, or damaged. FetchError: see `fetch`.
    """
    from pythia_core import hf

    return hf.load(source, revision, find=locate, **how)


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else the library's default."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def revisions(repo: str, or_cached: bool = False) -> list[str]:
    """Branches and tags of a repository.

    Args:
        or_cached: without a network, those that the cache has files of.

    Raises:
        FetchError: no such repository, or no network.
    """
    try:
        with _translated_errors(repo, ""):
            refs = _api().list_repo_refs(repo, token=False)
            return [ref.name for ref in (*refs.branches, *refs.tags)]
    except FetchError as error:
        cached = _cached_refs(repo) if or_cached and _unanswered(error) else []
        if not cached:
            raise
        warnings.warn(
            f"{endpoint()} cannot be reached: {repo} as far as the cache has it", stacklevel=2
        )
        return cached


def listing(
    repo: str, revision: str = "main", timeout: float = TIMEOUT
) -> tuple[str, dict[str, RemoteFile]]:
    """Commit and files of a revision, with sizes and hashes: nothing is downloaded.

    Raises:
        FetchError: no such repository or revision, or no network.
    """
    with _translated_errors(repo, revision):
        info = _api().model_info(
            repo, revision=revision, files_metadata=True, timeout=timeout, token=False
        )
    files = {}
    for entry in info.siblings or ():
        sha256 = entry.lfs.sha256 if entry.lfs else ""
        files[entry.rfilename] = RemoteFile(entry.size, sha256, sha256 or entry.blob_id or "")
    return info.sha, files


def fetch(
    repo: str,
    revision: str = "main",
    files: Iterable[str] | None = None,
    timeout: float = TIMEOUT,
) -> ModelFolder:
    """Download a revision into the hub's cache, or find it there, and check its hashes.

    Args:
        files: names; None: config, tokenizer and the safetensors weights.
        timeout: seconds that the hub has to answer.

    Raises:
        FetchError: no such repository, revision or file; no network, too slow, cut short, or other
            bytes than the hub's hash says.
        CheckpointError: the revision has pickled weights only.
    """
    wanted = None if files is None else list(files)
    if odd := [name for name in wanted or () if not PLAIN_NAME.fullmatch(name)]:
        raise FetchError(f"{odd} may not be fetched: only *.json and *.safetensors are")
    try:
        commit, there = listing(repo, revision, timeout)
    except FetchError as error:
        cached = _cached(repo, revision, wanted) if _unanswered(error) else None
        if cached is None:
            raise
        return cached
    if wanted is None:
        wanted = _model_files(f"{repo} ({revision})", there)
    if missing := [name for name in wanted if name not in there]:
        raise FetchError(f"{repo} ({revision}): {one_of(missing[0], sorted(there), 'file')}")
    from huggingface_hub import hf_hub_download

    path = Path()
    for name in wanted:
        with _translated_errors(repo, revision, name):
            path = Path(
                hf_hub_download(
                    repo,
                    name,
                    revision=revision,  # by name, so that the cache finds it offline
                    endpoint=endpoint(),
                    etag_timeout=timeout,
                    cache_dir=_cache(),
                    token=False,
                )
            )
        _check(path, there[name].sha256)
    return ModelFolder(path.parent, commit)


def _model_files(where: str, there: dict[str, RemoteFile]) -> list[str]:
    weights = [name for name in there if PLAIN_NAME.fullmatch(name) and name.endswith("tensors")]
    if WEIGHTS in weights:
        weights = [WEIGHTS]
    elif INDEX in there:
        weights = [INDEX, *sorted(n for n in weights if n.startswith("model-"))]
    else:
        refuse_pickle(where, there)
    return [*(name for name in SMALL if name in there), *weights]


def _cached(repo: str, revision: str, wanted: list[str] | None) -> ModelFolder | None:
    """The wanted files of a revision from the cache, for use without a network; None: not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(
            snapshot_download(repo, revision=revision, cache_dir=_cache(), local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None
    there = {path.name for path in folder.iterdir()}
    if not (there >= set(wanted) if wanted else CONFIG in there and there & {WEIGHTS, INDEX}):
        return None
    for path in folder.glob("*.safetensors"):
        named = path.resolve().name  # large blobs are named by their sha256
        _check(path, named if re.fullmatch("[0-9a-f]{64}", named) else "")
    return ModelFolder(folder, folder.name)


def _cached_refs(repo: str) -> list[str]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(_cache()).repos
    except CacheNotFound:
        return []
    return [ref for one in repos if one.repo_id == repo for ref in one.refs]


def _check(path: Path, sha256: str) -> None:
    if sha256 and (actual := file_sha256(path)) != sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise FetchError(
            f"{path.name} has sha256 {actual}, the hub says {sha256}: damaged on the way or in the "
            "cache. It was deleted; ask again"
        )


def _api() -> HfApi:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingDependencyError(
            "huggingface_hub is needed to reach the hub (pip install huggingface_hub); a folder "
            "with the files works without"
        ) from error
    return HfApi(endpoint=endpoint(), token=False)


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _unanswered(error: FetchError) -> bool:
    """Whether the hub gave no answer, rather than answering that there is no such thing."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    return not isinstance(error.__cause__, RepositoryNotFoundError | RevisionNotFoundError)


@contextlib.contextmanager
def _translated_errors(repo: str, revision: str, name: str = "") -> Iterator[None]:
    """Turn the library's errors into ours, which say what to do."""
    from huggingface_hub import errors

    what = f"{repo}{f' ({revision})' if revision else ''}{f': {name}' if name else ''}"
    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"{endpoint()} has no public repository {repo!r}. Pythia's are named like "
            "EleutherAI/pythia-70m, -70m-deduped, -70m-seed1"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(f"{repo}: {one_of(revision, _known(repo), 'revision')}") from error
    except errors.HfHubHTTPError as error:
        raise FetchError(f"{what}: {endpoint()} answered {error}") from error
    except (OSError, errors.HTTPError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise FetchError(
            f"{what} could not be fetched from {endpoint()} ({reason}). "
            "Ask again to go on. Without a network, bring the files "
            f"{CONFIG}, {TOKENIZER} and {WEIGHTS} (or {INDEX} and its shards) in a folder and "
            "give the folder in place of the name"
        ) from error


def _known(repo: str) -> list[str]:
    try:
        return revisions(repo)
    except FetchError:
        return []
