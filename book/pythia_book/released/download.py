"""Finds released models in folders, and downloads them from the Hugging Face hub.

Downloads use `huggingface_hub`, its cache, and the endpoint in HF_ENDPOINT if set. Only *.json and
*.safetensors files are fetched, never the code of a repository. If the hub has the sha256 of a
file, even a cached copy is verified before use. No token is sent, because Pythia's repositories are
public. A revision is a branch: "step3000", or "main" for the last step.
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

from huggingface_hub import (
    HfApi,
    constants,
    errors,
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id

from pythia_book.released import neox_format
from pythia_core import hf
from pythia_core.errors import CheckpointError, FetchError, one_of
from pythia_core.hf import (
    CONFIG,
    INDEX,
    PLAIN_NAME,
    SETTINGS,
    TOKENIZER,
    WEIGHTS,
    ModelFolder,
    ModelSource,
    local_folder,
    locate_folder,
    refuse_pickle,
    step_of,
)
from pythia_core.util.files import file_sha256

if TYPE_CHECKING:
    from pythia_core.model import GPTNeoX

SMALL = (*SETTINGS, TOKENIZER)
TIMEOUT = 10.0
"""Maximum seconds until the hub answers. HF_HUB_DOWNLOAD_TIMEOUT limits waits during a download."""
_FILE = re.compile(r"\.(?!v\d)[a-z]\w*$", re.IGNORECASE)
"""Finds the suffix of a file's name, but not a version such as that in pythia-1.4b."""
_CHECKPOINT = re.compile(r"(global_)?step-?\d+")
_FOLDERS = ("runs", "results", "checkpoints")
"""Names of folders that this library makes; none is read as the owner of a repository."""


def is_repository(name: str) -> bool:
    """Whether a name has the form owner/name of a repository on the hub and is not a local path.

    A name that looks like a path counts as a path, so that the hub is never asked for a mistyped
    path: ./x, ../x, ~/x, runs/x, results/x, checkpoints/x, the name of a file (x/config.json) or of
    a checkpoint (x/step3000), and x/y if there is a file or folder x.
    """
    try:
        validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return "/" in name and not _why_path(name)


def _why_path(name: str) -> str:
    """Return why a name of the form x/y is read as a path; "" if it can be a repository.

    The reason completes a sentence that begins with "this name is read as a path, because".
    """
    owner, _, last = name.partition("/")
    if os.path.lexists(owner):
        return f"{owner} exists here"
    if owner in _FOLDERS:
        return f"{owner} is the name of a folder of runs"
    if _CHECKPOINT.fullmatch(last):
        return f"{last} is the name of a checkpoint; a repository needs --revision or --step for it"
    return "it ends like the name of a file" if _FILE.search(last) else ""


def is_published(source: str) -> bool:
    """Whether `source` is a folder without a run's identity.json, or has the form owner/name.

    The hub is not asked whether the repository exists.
    """
    folder = local_folder(source)
    return not (folder / "identity.json").exists() if folder else is_repository(source)


@dataclass(frozen=True)
class RemoteFile:
    """The size and the hashes of a file in a repository, as the hub states them."""

    size: int | None
    sha256: str
    """sha256 of the content. The hub has it only for large files; empty for other files."""
    blob: str
    """The sha256 if there is one, else the git blob id."""


def locate(
    source: str | Path, revision: str = "main", files: Iterable[str] | None = None
) -> ModelFolder:
    """Return the local folder that has the files of a model, and download missing files first.

    Args:
        source: a folder with the model or a subfolder per revision, or a repository on the hub.
        revision: e.g. "step3000".
        files: as in `fetch`.

    Raises:
        CheckpointError: the source is neither a folder with a model nor the name of a repository.
        FetchError: see `fetch`.
    """
    if folder := local_folder(source):
        if not hf.has_model(folder) and neox_format.find(folder, step_of(revision)):
            raise CheckpointError(
                f"{source} has a checkpoint of GPT-NeoX; convert it first: python -m pythia_core "
                f"convert {source} NEW_FOLDER"
            )
        return locate_folder(source, revision)
    if is_repository(str(source)):
        return fetch(str(source), revision, files)
    raise not_found(str(source))


def not_found(source: str) -> CheckpointError:
    """Return the error for a name that is neither a folder nor a repository."""
    return CheckpointError(
        f"{source} is neither a folder nor the name of a repository on the hub, such as "
        f"EleutherAI/pythia-70m{why_local(source)}"
    )


def why_local(name: str) -> str:
    """Return why a name is read as a path, in brackets; "" if there is no reason."""
    if os.path.isfile(os.path.expanduser(name)):
        return " (it is a file; pass the folder of the model)"
    if "/" in name and (reason := _why_path(name)):
        return f" (this name is read as a path, because {reason}; pass an existing folder)"
    return ""


def load(
    source: str | Path, revision: str = "main", **settings: Any
) -> tuple[GPTNeoX, ModelSource]:
    """Load a model from a folder or a repository; pass `settings` to `pythia_core.hf.load`.

    Raises:
        CheckpointError: the source is not a model of this architecture, or is damaged.
        FetchError: see `fetch`.
    """
    return hf.load(source, revision, locate=locate, **settings)


def endpoint() -> str:
    """Return the address of the hub: HF_ENDPOINT if set, else the default of huggingface_hub."""
    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def revisions(repo: str, or_cached: bool = False) -> list[str]:
    """Return the names of all branches and tags of a repository on the hub.

    With `or_cached`, if the hub cannot be reached, warn and return the cached revisions, if any.

    Raises a FetchError if the repository does not exist, or the hub cannot be reached.
    """
    try:
        with translate_errors(repo, ""):
            refs = _api().list_repo_refs(repo, token=False)
            return [ref.name for ref in (*refs.branches, *refs.tags)]
    except FetchError as error:
        cached = _cached_refs(repo) if or_cached and _no_answer(error) else []
        if not cached:
            raise
        warnings.warn(
            f"{endpoint()} cannot be reached; only cached revisions of {repo} are known",
            stacklevel=2,
        )
        return cached


def listing(repo: str, revision: str = "main") -> tuple[str, dict[str, RemoteFile]]:
    """Return the commit of a revision, and a RemoteFile for each file name, as the hub states them.

    Raises a FetchError if the revision does not exist, or there is no network access.
    """
    with translate_errors(repo, revision):
        info = _api().model_info(
            repo, revision=revision, files_metadata=True, timeout=TIMEOUT, token=False
        )
    files = {}
    for entry in info.siblings or ():
        sha256 = entry.lfs.sha256 if entry.lfs else ""
        files[entry.rfilename] = RemoteFile(entry.size, sha256, sha256 or entry.blob_id or "")
    return info.sha, files


def fetch(repo: str, revision: str = "main", files: Iterable[str] | None = None) -> ModelFolder:
    """Download those `files` of a revision that are not in the cache, and verify all hashes.

    The default files are config, tokenizer and safetensors. If the hub cannot be reached, the
    cached files are used. The result has the folder in the cache, and the commit.

    Raises:
        FetchError: the revision or a file does not exist, a file is neither *.json nor
            *.safetensors, a download fails, or a file does not match the hub's hash.
        CheckpointError: the revision has weights only as pickles.
    """
    requested = None if files is None else list(files)
    if odd := [name for name in requested or () if not PLAIN_NAME.fullmatch(name)]:
        raise FetchError(
            f"cannot download {', '.join(odd)}: only *.json and *.safetensors files are downloaded"
        )
    try:
        commit, available = listing(repo, revision)
    except FetchError as error:
        cached = _cached(repo, revision, requested) if _no_answer(error) else None
        if cached is None:
            raise
        return cached
    if requested is None:
        requested = _model_files(f"{repo} ({revision})", available)
    if missing := [name for name in requested if name not in available]:
        raise FetchError(f"{repo} ({revision}): {one_of(missing[0], sorted(available), 'file')}")
    settings: dict[str, Any] = {"revision": revision, "cache_dir": constants.HF_HUB_CACHE}
    settings |= {"endpoint": endpoint(), "etag_timeout": TIMEOUT, "token": False}
    path = Path()
    for name in requested:  # by the name of the revision, so that the cache finds it offline
        with translate_errors(repo, revision, name):
            path = Path(hf_hub_download(repo, name, **settings))
        _check(path, available[name].sha256)
    return ModelFolder(path.parent, commit)


def _model_files(where: str, available: dict[str, RemoteFile]) -> list[str]:
    """Choose config, tokenizer, safetensors and their index; refuse a model without safetensors."""
    plain = [name for name in available if PLAIN_NAME.fullmatch(name)]
    weights = [name for name in plain if name.endswith(".safetensors")]
    if WEIGHTS in weights:
        weights = [WEIGHTS]
    elif INDEX in available:
        weights = [INDEX, *sorted(name for name in weights if name.startswith("model-"))]
    else:
        refuse_pickle(where, available)
    return [*(name for name in SMALL if name in available), *weights]


def _cached(repo: str, revision: str, requested: list[str] | None) -> ModelFolder | None:
    """Return the cached folder of a revision; None if a wanted file is not in the cache.

    By default, the config and the weights are wanted. Hashes are verified.
    """
    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, cache_dir=constants.HF_HUB_CACHE, local_files_only=True
            )
        )
    except errors.LocalEntryNotFoundError:
        return None
    present = {path.name for path in folder.iterdir()}
    by_default = CONFIG in present and present & {WEIGHTS, INDEX}
    if not (present >= set(requested) if requested else by_default):
        return None
    for path in folder.glob("*.safetensors"):
        blob = path.resolve().name  # large blobs are named by their sha256
        _check(path, blob if re.fullmatch("[0-9a-f]{64}", blob) else "")
    return ModelFolder(folder, folder.name)


def has_weights(repo: str, revision: str) -> bool:
    """Return whether the weights of a revision, or the index of their files, are in the cache."""
    names = (WEIGHTS, INDEX)
    return any(
        isinstance(try_to_load_from_cache(repo, name, constants.HF_HUB_CACHE, revision), str)
        for name in names
    )


def marks_folder(repo: str) -> Path:
    """Return a folder in the hub's cache for marks about cached revisions of a repository.

    Scans of the cache skip this folder.
    """
    name = repo_folder_name(repo_id=repo, repo_type="model")
    return Path(constants.HF_HUB_CACHE) / ".locks" / name


def evict(repo: str, revision: str) -> None:
    """Delete the weights of a revision from the cache, but not its config and tokenizer.

    Files that other cached revisions share are kept.
    """
    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    try:
        commit = (root / "refs" / revision).read_text().strip()
    except OSError:
        return
    for path in (root / "snapshots" / commit).glob("*.safetensors*"):  # with the index
        blob = path.resolve()
        path.unlink(missing_ok=True)
        others = (root / "snapshots").glob(f"*/{path.name}")
        if not any(other.resolve() == blob for other in others):
            blob.unlink(missing_ok=True)


def _cached_refs(repo: str) -> list[str]:
    """Return the cached revisions of a repository."""
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except errors.CacheNotFound:
        return []
    return [ref for one in repos if one.repo_id == repo for ref in one.refs]


def _check(path: Path, sha256: str) -> None:
    """Delete a file whose sha256 is not `sha256`, and raise a FetchError; "" skips the check."""
    if sha256 and (actual := file_sha256(path)) != sha256:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise FetchError(
            f"{path.name} has the sha256 {actual}, but the hub states {sha256}, so the file was "
            "corrupted in transit or in the cache. The file was deleted; run the command again"
        )


def _api() -> HfApi:
    """Return a client of the hub that sends no token."""
    return HfApi(endpoint=endpoint(), token=False)


def _no_answer(error: FetchError) -> bool:
    """Whether a fetch failed for any reason but an unknown repository or revision."""
    answers = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    return not isinstance(error.__cause__, answers)


@contextlib.contextmanager
def translate_errors(repo: str, revision: str, name: str = "") -> Iterator[None]:
    """Turn errors of huggingface_hub in a `with` block into FetchErrors that say what to do."""
    target = f"{repo}{f' ({revision})' if revision else ''}{f': {name}' if name else ''}"
    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"{endpoint()} has no public repository {repo!r}. Pythia's repositories have names "
            "like EleutherAI/pythia-70m, EleutherAI/pythia-70m-deduped, EleutherAI/pythia-70m-seed1"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(f"{repo}: {one_of(revision, _known(repo), 'revision')}") from error
    except errors.HfHubHTTPError as error:
        raise FetchError(f"cannot fetch {target}: {endpoint()} answered {error}") from error
    except (OSError, errors.HTTPError) as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise FetchError(
            f"{target} could not be fetched from {endpoint()} ({reason}). "
            "Run the command again to continue. Without a network, put the files "
            f"{CONFIG}, {TOKENIZER} and {WEIGHTS} (or {INDEX} and its shards) in a folder, and "
            f"pass this folder instead of {repo}"
        ) from error


def _known(repo: str) -> list[str]:
    """Return the revisions of a repository; an empty list if they cannot be fetched."""
    try:
        return revisions(repo)
    except FetchError:
        return []
