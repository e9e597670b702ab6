"""The released token files of the real Pythia by name, on disk or behind the hub's URLs.

`pile-standard` and `pile-deduped` are the pre-shuffled sets: 146,432,000 rows of 2,049 uint16 ids
in training order, 21 shards that are a byte split of one file, so that batch k of 1,024 rows is the
bytes [4,196,352 k, 4,196,352 (k+1)). `pile-seed1` ... `pile-seed9` are PolyPythias' orders of the
same documents: GPT-NeoX's index maps (pythia_book.released.index_maps), with `pile-seed0` that of
Pythia. Sizes are those of the released files and are checked at every read, so that a shorter or
another file is an error. There is no digest of the pre-shuffled shards to check against.

Folders and PREFIX.bin/.idx pairs are accepted in place; `open_rows` says how each is understood.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.released.index_maps import PARTS, MappedRows, find_maps, open_maps
from pythia_book.released.remote_rows import ByteFile, HttpFile, JoinedFile, LocalFile, RemoteRows
from pythia_core.data.indexed_dataset import MegatronIndexed, find_shards
from pythia_core.data.order import (
    OrderedRows,
    PreshuffledRows,
    RowOrder,
    Rows,
    batch_hash,
    epochs_needed,
    rows_asked_for,
)
from pythia_core.errors import DataError, one_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STEPS, BATCH, SEQ_LEN, SEED = 143_000, 1024, 2048, 1234
"""Pythia's updates, rows a batch, tokens a row, and seed of the order."""
N_ROWS = STEPS * BATCH
HUB = "https://huggingface.co"
"""Where the data lie, unless the environment names another server in HF_ENDPOINT."""
_DOCUMENTS = "pile_20B_tokenizer_text_document"


@dataclass(frozen=True)
class Shards:
    """Files that are a byte split of one: how they are called, and their bytes."""

    repository: str
    name: str
    count: int
    bytes_each: int
    total: int

    @property
    def sizes(self) -> tuple[int, ...]:
        full = self.count - 1
        return (*(self.bytes_each,) * full, self.total - full * self.bytes_each)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{self.name}-{i:05d}-of-{self.count - 1:05d}.bin" for i in range(self.count))

    def files(self) -> list[HttpFile]:
        pairs = zip(self.names, self.sizes, strict=True)
        return [HttpFile(url_of(self.repository, name), size) for name, size in pairs]


@dataclass(frozen=True)
class Released:
    """A released order of training: pre-shuffled rows, or documents with the maps of a seed."""

    name: str
    what: str
    shards: Shards
    seed: int = SEED
    maps: str = ""
    """Repository of the index maps; none if the rows are pre-shuffled."""

    def open(self) -> Rows:
        """Its rows, read over HTTP as they are asked for."""
        if not self.maps:
            return RemoteRows(self.shards.files(), SEQ_LEN)
        asked = rows_asked_for(STEPS, BATCH)
        stem = f"{_DOCUMENTS}_train_0_indexmap_{asked}ns_{SEQ_LEN}sl_{self.seed}s"
        folder = f"seed{0 if self.seed == SEED else self.seed}"
        maps = [HttpFile(url_of(self.maps, f"{folder}/{stem}_{part}.npy")) for part in PARTS]
        index = HttpFile(url_of(self.shards.repository, f"{_DOCUMENTS}.idx"))
        return MappedRows(tuple(maps), index, JoinedFile(self.shards.files()), SEQ_LEN, True)


def url_of(repository: str, name: str) -> str:
    """The URL of a file of a data set on the hub."""
    server = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    return f"{server}/datasets/{repository}/resolve/main/{name}"


def _preshuffled(which: str) -> Shards:
    repository = f"EleutherAI/pile-{which}-pythia-preshuffled"
    return Shards(repository, "document", 21, 30_000_000_000, N_ROWS * (SEQ_LEN + 1) * 2)


_RAW = Shards("EleutherAI/pythia_pile_idxmaps", _DOCUMENTS, 133, 5_000_000_000, 664_230_651_068)
RELEASED = {
    released.name: released
    for released in (
        Released("pile-standard", "the Pile, rows in Pythia's order", _preshuffled("standard")),
        Released("pile-deduped", "the same of the deduplicated Pile", _preshuffled("deduped")),
        *(
            Released(
                f"pile-seed{number}",
                f"the Pile in the order of PolyPythias' seed {number}",
                _RAW,
                number or SEED,
                "EleutherAI/pile-preshuffled-seeds",
            )
            for number in range(10)
        ),
    )
}


# --- opening ---------------------------------------------------------------------------------


def open_rows(
    where: str,
    seq_len: int = SEQ_LEN,
    seed: int = SEED,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = BATCH,
    dtype: str = "<u2",
) -> tuple[Rows, str]:
    """Rows of a name of RELEASED, a folder, a `.bin` of rows or a PREFIX of documents.

    A folder holds pre-shuffled rows (one `.bin`, all shards of one, or of the released ones those
    that are needed: rows of another are an error that names it), index maps, or one `.bin`/`.idx`
    pair of documents. Documents are put in GPT-NeoX's order of `seed` with so many
    `epochs`, or with as many as `steps` updates of `batch_size` rows need, else with one. An `.idx`
    whose items all have seq_len + 1 tokens is one of pre-shuffled rows: not shuffled again.

    Returns:
        The rows, and a sentence that says what they are.

    Raises:
        DataError: no such name or path, or files that are missing, truncated or contradictory.
    """
    if where in RELEASED:
        released = RELEASED[where]
        return released.open(), f"{where}: {released.what}, read over the network"
    path = Path(where).expanduser()
    if path.is_dir():
        if seq_len == SEQ_LEN and (some := some_shards(path)):
            here = sum(not isinstance(file, Absent) for file in some.files)
            return some, f"{path}: {here} of the {len(some.files)} released shards"
        stem = find_maps(path)
        if stem is not None:
            return open_maps(stem, seq_len), f"{path}: documents in the order of {stem.name}_*"
        path = _one_set(path)
    if path.suffix in (".bin", ".idx") and path.is_file():
        path = path.with_suffix("")
    shards = find_shards(path)
    whole, index = (path.with_name(path.name + kind) for kind in (".bin", ".idx"))
    if not shards and not whole.is_file():
        raise DataError(
            f"{one_of(where, RELEASED, 'data')} Or give a folder with the pre-shuffled shards, or "
            "the PREFIX of a .bin/.idx pair"
        )
    if not index.is_file():
        rows = PreshuffledRows(shards or [whole], seq_len, dtype)
        return rows, f"{path}: rows in training order, {len(rows.paths)} file(s)"
    data = MegatronIndexed(path)
    if data.n_documents and (data.sizes == seq_len + 1).all():
        rows = PreshuffledRows(shards or [whole], seq_len, data.dtype)
        return rows, f"{path}: rows in training order by its index, {len(rows.paths)} file(s)"
    if epochs is None:
        asked = rows_asked_for(steps or 0, batch_size)
        epochs = epochs_needed(data.n_tokens, seq_len, asked)
    order = RowOrder(data.sizes, seq_len, seed, epochs)
    said = f"{path}: {data.n_documents} documents in the order of seed {seed}, {epochs} epoch(s)"
    return OrderedRows(data, order), said


def _one_set(folder: Path) -> Path:
    """The prefix of the only token file in a folder, whole or in shards."""
    prefixes = {re.sub(r"(-\d{5}-of-\d{5})?\.bin$", "", p.name) for p in folder.glob("*.bin")}
    if len(prefixes) != 1:
        found = f"several ({', '.join(sorted(prefixes))})" if prefixes else "none"
        raise DataError(f"{folder} must hold one token file, whole or in shards; it has {found}")
    return folder / prefixes.pop()


class Absent:
    """A released shard that is not in the folder: its size is known, its bytes are not."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def read(self, start: int, stop: int) -> bytes:
        raise DataError(
            f"{self.name} ({self.size / 1e9:.1f} GB) is needed for these rows and is not in the "
            "folder; bring it there"
        )


def some_shards(folder: Path) -> RemoteRows | None:
    """Rows of a folder with some of the shards of a released set; None if it is another folder.

    Raises:
        DataError: a shard has another size than the released one.
    """
    names = {path.name for path in folder.glob("*.bin")}
    shards: Shards | None = next(
        (r.shards for r in RELEASED.values() if not r.maps and names < set(r.shards.names)), None
    )
    if not names or shards is None:
        return None
    files: list[ByteFile] = []
    for name, size in zip(shards.names, shards.sizes, strict=True):
        here = name in names
        files.append(LocalFile(folder / name) if here else Absent(name, size))
        if files[-1].size != size:
            raise DataError(
                f"{folder / name} has {files[-1].size:,} bytes, the released shard {size:,}: it "
                "was cut short; fetch it again"
            )
    return RemoteRows(files, SEQ_LEN)


# --- looking ---------------------------------------------------------------------------------


def tokenizer_at(name: str) -> Tokenizer:
    """`neox-20b`, the tokenizer of the released data (fetched once), or a tokenizer.json."""
    from pythia_core.data.tokenizer import load_tokenizer, neox_20b_json, plain

    if name != "neox-20b":
        return load_tokenizer(name)
    from tokenizers import Tokenizer

    return plain(Tokenizer.from_str(neox_20b_json()))


def describe_batch(
    rows: Rows, step: int, batch_size: int, shown: int = 4, tokenizer: Any = None, eod_id: int = 0
) -> str:
    """A batch as text: which rows, their hash, what ids they hold, the first of them decoded.

    Where rows are no contiguous piece of a file, only those shown are read. Without a tokenizer
    the ids are shown.

    Raises:
        DataError: no such batch, or no such rows.
    """
    first = step * batch_size
    if rows.contiguous:
        batch = rows.batch(step, batch_size)
        what = f"hash {batch_hash(batch)}"
    else:
        batch = rows.rows(first, first + max(1, min(shown, batch_size)))
        what = f"of which the first {len(batch)} were read"
    ends = (batch[:, :-1] == eod_id).sum(1)
    lines = [
        f"batch of the update from step {step} to {step + 1}",
        f"rows {first}..{first + batch_size - 1}, {batch.shape[1] - 1} tokens each (+1 as the last "
        f"label), {what}",
        f"ids {batch.min()}..{batch.max()}; {ends.sum()} ends of documents (id {eod_id}), "
        f"at most {ends.max()} in a row",
    ]
    if not ends.any():
        lines.append("no end of a document in it: they may have been lost when it was made")
    if tokenizer is not None:
        lines += _not_its(batch, tokenizer)
    for number, row in enumerate(batch[:shown]):
        text = _ids(row) if tokenizer is None else _decoded(row, tokenizer)
        lines.append(f"\n--- row {number} ---\n{text}")
    return "\n".join(lines)


def _not_its(batch: np.ndarray, tokenizer: Any) -> list[str]:
    from pythia_core.data.tokenizer import id_limit

    if batch.max() < id_limit(tokenizer):
        return []
    return [f"NOT OF THIS TOKENIZER: it has ids below {id_limit(tokenizer)} only"]


def _decoded(row: Sequence[int] | np.ndarray, tokenizer: Any) -> str:
    return tokenizer.decode([int(i) for i in row], skip_special_tokens=False)


def _ids(row: np.ndarray) -> str:
    return " ".join(map(str, row.tolist()))
