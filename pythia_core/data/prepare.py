"""From text to rows: everything a training run reads, made once and cached.

Each document is encoded and followed by the end-of-document token, as in the Pile's token files
(paper section 2.2). A share of the documents, chosen by the hash of their text, is held out, so
that copies of a text are always on one side; from the others duplicates may be taken out
(pythia_core.data.dedup). The order of training is written out as rows of S+1 tokens
(pythia_core.data.order), after which a batch is a slice of a file.

Two folders in the cache, each complete or absent: `tokens-KEY` (tokenizer, token files), shared by
all orders of the same tokens, and `rows-KEY`. Each has a manifest with the sha256 of every file.
Not here: encoding (pythia_core.data.tokenize), changing tokens (intervene).
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from pythia_core.config import BUILT_IN, DataConfig, stable_hash
from pythia_core.data.corpus import corpus_identity
from pythia_core.data.indexed_dataset import MegatronIndexed
from pythia_core.data.order import PreshuffledRows, RowOrder, write_rows
from pythia_core.data.tokenize import (
    FORMAT,
    damaged,
    list_files,
    make_tokens,
    read_manifest,
    take_duplicates_out,
    tokenizer_source,
    write_manifest,
)
from pythia_core.data.tokenizer import load_tokenizer
from pythia_core.errors import DataError
from pythia_core.util.files import atomic_dir, cache_dir, file_sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FULL_CHECK_BYTES = 1 << 28
"""Up to this size the digests are checked at every opening (0.5 s at most), beyond only sizes."""


@dataclass(frozen=True)
class PreparedData:
    """Tokens in training order; made by `prepare`.

    Attributes:
        folder: of the rows and their manifest. config: what was asked for.
        manifest: counts, hashes and settings; holds no path and no time.
    """

    folder: Path
    config: DataConfig
    manifest: dict[str, Any]

    def __reduce__(self) -> tuple:
        """Pickled without what was read and mapped: cheap to send to another process."""
        return PreparedData, (self.folder, self.config, self.manifest)

    @property
    def tokens_folder(self) -> Path:
        """Folder of the tokenizer and the token files."""
        return self.folder.parent / self.manifest["tokens"]["folder"]

    @property
    def fingerprint(self) -> str:
        """sha256 that determines every batch: corpus, tokenizer, tokens, order settings."""
        return _fingerprint(self.manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokens_folder / "tokenizer.json")

    @property
    def eod_id(self) -> int:
        """Id of the token that ends every document (0)."""
        return self.manifest["tokens"]["eod_id"]

    @property
    def vocab_size(self) -> int:
        """Usable ids: 0..vocab_size-1; a model's embedding may be padded beyond."""
        return self.manifest["tokens"]["vocab_size"]

    @cached_property
    def tokens(self) -> MegatronIndexed:
        """The training documents."""
        return MegatronIndexed(self.tokens_folder / "train")

    @cached_property
    def heldout(self) -> MegatronIndexed:
        """The documents that are not trained on; none if heldout_fraction is 0."""
        return MegatronIndexed(self.tokens_folder / "heldout")

    @cached_property
    def order(self) -> RowOrder:
        c = self.config
        return RowOrder(
            self.tokens.sizes, c.seq_len, c.order_seed, c.epochs, c.epoch_policy, c.unique_rows
        )

    @cached_property
    def rows(self) -> PreshuffledRows:
        dtype = self.tokens.dtype
        return PreshuffledRows([self.folder / "rows.bin"], self.config.seq_len, dtype)

    def batch(self, step: int, batch_size: int) -> NDArray:
        """(batch_size, seq_len + 1) ids of the update from step `step` to the next."""
        return self.rows.batch(step, batch_size)

    def verify(self, full: bool = True) -> None:
        """Check the files against the manifests: sizes, and with `full` their sha256.

        Raises:
            DataError: naming the first file that is not what it was.
        """
        for folder, part in ((self.tokens_folder, "tokens"), (self.folder, "rows")):
            files = self.manifest[part]["files"]
            total = sum(entry["bytes"] for entry in files.values())
            for name, entry in files.items():
                path = folder / name
                size = path.stat().st_size if path.is_file() else None
                if size != entry["bytes"]:
                    raise damaged(folder, f"{name} has {size} bytes, not {entry['bytes']}")
                if (full or total <= FULL_CHECK_BYTES) and file_sha256(path) != entry["sha256"]:
                    raise damaged(folder, f"{name} does not have sha256 {entry['sha256']}")


def prepare(data: DataConfig, progress: bool = True) -> PreparedData:
    """Tokens and rows of `data`; from the cache if they were made before.

    Raises:
        FetchError, DataError: the corpus or the tokenizer cannot be had or used, too little text,
            no space left, or a damaged cache (the folder to delete is named).
    """
    settings = _settings(data)
    order = {
        "seq_len": data.seq_len,
        "seed": data.order_seed,
        "epochs": data.epochs,
        "policy": data.epoch_policy,
        "unique_rows": data.unique_rows,
    }
    tokens = prepare_tokens(data, progress)
    root = tokens.parent
    rows = root / f"rows-{stable_hash([settings, order])[:16]}"
    with _storage_errors(root):
        if not rows.is_dir():
            with atomic_dir(rows) as folder:
                made = {"tokens": {"folder": tokens.name, **read_manifest(tokens)}}
                made["rows"] = _make_rows(tokens, order, folder, progress)
                write_manifest(folder, {**made, "fingerprint": _fingerprint(made)})
        prepared = PreparedData(rows, data, read_manifest(rows))
        try:
            same = prepared.manifest["fingerprint"] == prepared.fingerprint
            same = same and prepared.manifest["rows"]["order"] == order
            prepared.verify(full=False)
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(rows, f"its manifest lacks {error}") from error
        if not same:
            raise damaged(rows, "its manifest contradicts itself")
        # opening them checks their structure too
        _ = prepared.tokens, prepared.heldout, prepared.rows
    return prepared


def prepare_tokens(data: DataConfig, progress: bool = True) -> Path:
    """The folder of the tokens of `data`, made if it is not there; rows are laid out from it.

    Raises:
        As `prepare`.
    """
    root = cache_dir() / "data"
    tokens = root / f"tokens-{stable_hash(_settings(data))[:16]}"
    with _storage_errors(root):
        if not tokens.is_dir():
            whole = None
            if data.dedup != "none":  # what is taken out of it need not be encoded again
                whole = prepare_tokens(replace(data, dedup="none"), progress)
            with atomic_dir(tokens) as folder:
                if whole:
                    made = take_duplicates_out(data, whole, folder, progress)
                else:
                    made = make_tokens(data, tokenizer_source(data), folder, progress)
                write_manifest(folder, made)
    return tokens


def _settings(data: DataConfig) -> dict[str, Any]:
    """All that determines the tokens."""
    return {
        "format": FORMAT,
        "corpus": corpus_identity(data),
        "domains": sorted(data.domains) if data.corpus in BUILT_IN else [],
        "tokenizer": tokenizer_source(data).identity,
        "heldout_fraction": data.heldout_fraction,
        "dedup": data.dedup,
    }


# --- rows and manifests ----------------------------------------------------------------------


def _make_rows(tokens: Path, order: dict[str, Any], folder: Path, progress: bool) -> dict[str, Any]:
    data = MegatronIndexed(tokens / "train")
    rows = RowOrder(data.sizes, **order)
    write_rows(folder / "rows.bin", rows, data, progress)
    return {"order": order, "n_rows": rows.n_rows, "files": list_files(folder)}


def _fingerprint(manifest: dict[str, Any]) -> str:
    tokens = manifest["tokens"]
    return stable_hash(
        {
            "corpus": [[d["sha256"], d["documents"]] for d in tokens["corpus"].values()],
            "tokenizer": tokens["tokenizer_sha256"],
            "files": {name: entry["sha256"] for name, entry in tokens["files"].items()},
            "order": manifest["rows"]["order"],
        }
    )


@contextlib.contextmanager
def _storage_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"no space left for prepared data in {root} ({error.strerror}); nothing half-written "
            "was kept. Free some (about four times the text), or set PYTHIA_CACHE to another folder"
        ) from error
