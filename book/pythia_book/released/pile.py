"""Opens the released training data of Pythia by name, on disk or on the hub.

- `pile-standard`, `pile-deduped`: pre-shuffled, 146,432,000 rows of 2,049 uint16 ids in training
  order, in 21 files (shards). Batch k (1,024 rows) is at bytes 4,196,352 k to 4,196,352 (k + 1) of
  the joined shards.
- `pile-seed0`: the documents of the standard Pile in Pythia's own order, given by GPT-NeoX's index
  maps.
- `pile-seed1` ... `pile-seed9`: the same documents in the orders of PolyPythias.

Every read checks the size of the file. Hashes cannot be checked, because none were released for the
pre-shuffled shards.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_book.released.index_maps import PARTS, MappedRows, find_maps, open_maps
from pythia_book.released.recipe import BATCH_ROWS, SEQ_LEN
from pythia_book.released.remote_rows import ByteFile, HttpFile, JoinedFile, LocalFile, RemoteRows
from pythia_core.data.indexed_dataset import MegatronIndexed, find_shards
from pythia_core.data.order import (
    OrderedRows,
    PreshuffledRows,
    RowOrder,
    Rows,
    batch_hash,
    epochs_needed,
    samples_requested,
)
from pythia_core.errors import DataError, count_of, one_of
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SEED = 1234
"""Pythia's order seed."""
N_ROWS = OFFICIAL_STEPS * BATCH_ROWS
HUB = "https://huggingface.co"
"""The server of the data, unless HF_ENDPOINT names another."""
_DOCUMENTS = "pile_20B_tokenizer_text_document"


@dataclass(frozen=True)
class Shards:
    """A file in a dataset repository that is split by bytes into `count` shards."""

    repository: str
    name: str
    """The beginning of all shard names."""
    count: int
    bytes_each: int
    """Size of every shard but the last."""
    total: int
    """Size of all shards together."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the shards in bytes, in order."""
        full = self.count - 1
        return (*(self.bytes_each,) * full, self.total - full * self.bytes_each)

    @property
    def names(self) -> tuple[str, ...]:
        """The file names of the shards, in order."""
        return tuple(f"{self.name}-{i:05d}-of-{self.count - 1:05d}.bin" for i in range(self.count))

    def files(self) -> list[HttpFile]:
        """Return the shards as files behind URLs. Nothing is fetched yet."""
        pairs = zip(self.names, self.sizes, strict=True)
        return [HttpFile(url_of(self.repository, name), size) for name, size in pairs]


@dataclass(frozen=True)
class ReleasedOrder:
    """A released training order: pre-shuffled rows, or documents with the index maps of a seed."""

    name: str
    description: str
    shards: Shards
    """The pre-shuffled rows, or the documents."""
    seed: int = SEED
    maps: str = ""
    """Repository of the index maps; empty if the rows are pre-shuffled."""

    @property
    def sentence(self) -> str:
        """A phrase that describes the rows, for messages."""
        return f"{self.name}: {self.description}, read over the network"

    def open(self) -> Rows:
        """Return the training rows, which are read over HTTP on access."""
        if not self.maps:
            return RemoteRows(self.shards.files(), SEQ_LEN)
        n_rows = samples_requested(OFFICIAL_STEPS, BATCH_ROWS)
        stem = f"{_DOCUMENTS}_train_0_indexmap_{n_rows}ns_{SEQ_LEN}sl_{self.seed}s"
        folder = f"seed{0 if self.seed == SEED else self.seed}"
        maps = [HttpFile(url_of(self.maps, f"{folder}/{stem}_{part}.npy")) for part in PARTS]
        index = HttpFile(url_of(self.shards.repository, f"{_DOCUMENTS}.idx"))
        return MappedRows(maps, index, JoinedFile(self.shards.files()), SEQ_LEN, True)


def url_of(repository: str, name: str) -> str:
    """Return the URL of a file in a dataset repository on the hub."""
    server = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    return f"{server}/datasets/{repository}/resolve/main/{name}"


def _preshuffled(text: str) -> Shards:
    """Return the shards of the pre-shuffled "standard" or "deduped" Pile."""
    repository = f"EleutherAI/pile-{text}-pythia-preshuffled"
    return Shards(repository, "document", 21, 30_000_000_000, N_ROWS * (SEQ_LEN + 1) * 2)


_RAW = Shards("EleutherAI/pythia_pile_idxmaps", _DOCUMENTS, 133, 5_000_000_000, 664_230_651_068)
RELEASED = {
    released.name: released
    for released in (
        ReleasedOrder("pile-standard", "the Pile in Pythia's order", _preshuffled("standard")),
        ReleasedOrder(
            "pile-deduped", "the deduplicated Pile in Pythia's order", _preshuffled("deduped")
        ),
        *(
            ReleasedOrder(
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


def released_order(where: str) -> ReleasedOrder | None:
    """Return the released order of this name; None for other names and for existing paths."""
    return None if Path(where).expanduser().exists() else RELEASED.get(where)


def open_rows(
    where: str,
    seq_len: int = SEQ_LEN,
    seed: int = SEED,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = BATCH_ROWS,
    dtype: str = "<u2",
) -> tuple[Rows, str]:
    """Open training rows, and return them with a sentence that describes them.

    A folder may have pre-shuffled rows (one `.bin`, its shards, or some shards of a released set),
    index maps, or one pair of `.bin` and `.idx`. If all items of an `.idx` have seq_len + 1 tokens,
    the items are pre-shuffled rows. Otherwise they are documents, put in GPT-NeoX's order.
    Reading rows of a missing shard raises a DataError.

    Args:
        where: a folder, a `.bin` or `.idx` file, the PREFIX of both files, or a name in RELEASED.
        seq_len: tokens per row; a row has one more id, the last label.
        seed: seed of GPT-NeoX's order of the documents.
        epochs: repetitions of the documents; default: enough for `steps` * `batch_size` rows.
        dtype: type of the ids in a `.bin` without an `.idx`.

    Raises:
        DataError: files do not exist, or are truncated or contradictory.
    """
    if released := released_order(where):
        return released.open(), released.sentence
    path = Path(where).expanduser()
    if path.is_dir():
        if seq_len == SEQ_LEN and (partial := partial_shards(path)):
            present = sum(file.present for file in partial.files)
            return partial, f"{path}: {present} of the {len(partial.files)} released shards"
        stem = find_maps(path)
        if stem is not None:
            return open_maps(stem, seq_len), f"{path}: documents in the order of {stem.name}_*"
        path = _only_prefix(path)
    if path.suffix in (".bin", ".idx") and path.is_file():
        path = path.with_suffix("")
    shards = find_shards(path)
    whole, index = (path.with_name(path.name + kind) for kind in (".bin", ".idx"))
    if not shards and not whole.is_file():
        raise DataError(
            f"{one_of(where, RELEASED, 'training data')} Or pass a folder with the pre-shuffled "
            "shards, or the PREFIX of a .bin/.idx pair"
        )
    data = MegatronIndexed(path) if index.is_file() else None
    if data is None or (data.n_documents and (data.sizes == seq_len + 1).all()):
        rows = PreshuffledRows(shards or [whole], seq_len, data.dtype if data else dtype)
        by_index = " by its index" if data else ""
        files = count_of(len(rows.paths), "file")
        return rows, f"{path}: rows in training order{by_index}, {files}"
    if epochs is None:
        epochs = epochs_needed(data.n_tokens, seq_len, samples_requested(steps or 0, batch_size))
    return (
        OrderedRows(data, RowOrder(data.sizes, seq_len, seed, epochs)),
        f"{path}: {count_of(data.n_documents, 'document')} in the order of seed {seed}, "
        f"{count_of(epochs, 'epoch')}",
    )


def _only_prefix(folder: Path) -> Path:
    """Return the PREFIX of a folder's only token file; raise a DataError for none or several."""
    prefixes = {re.sub(r"(-\d{5}-of-\d{5})?\.bin$", "", p.name) for p in folder.glob("*.bin")}
    if len(prefixes) != 1:
        several = f"several token files ({', '.join(sorted(prefixes))})"
        raise DataError(
            f"{folder} has {several if prefixes else 'no token file'}; pass a folder with one "
            "token file (a .bin, or all shards of a .bin), or the PREFIX of one token file"
        )
    return folder / prefixes.pop()


class MissingShard:
    """A placeholder for a missing shard of a released set."""

    present = False

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def read(self, start: int, stop: int) -> bytes:
        """Raise a DataError that names the shard."""
        raise DataError(
            f"the requested rows are in the shard {self.name} ({self.size / 1e9:.1f} GB), which is "
            "missing; put this shard into the folder of the other shards"
        )


def partial_shards(folder: Path) -> RemoteRows | None:
    """Open a folder with some, but not all, shards of a released set; None for any other folder.

    Raises a DataError if a shard has the wrong size. Reading a row of a missing shard
    raises a DataError, too.
    """
    names = {path.name for path in folder.glob("*.bin")}
    preshuffled = [released.shards for released in RELEASED.values() if not released.maps]
    shards = next((shards for shards in preshuffled if names < set(shards.names)), None)
    if not names or shards is None:
        return None
    files: list[ByteFile] = []
    for name, size in zip(shards.names, shards.sizes, strict=True):
        files.append(LocalFile(folder / name) if name in names else MissingShard(name, size))
        if files[-1].size != size:
            raise DataError(
                f"{folder / name} has {files[-1].size:,} bytes, but the released shard has "
                f"{size:,} bytes; download the shard again"
            )
    return RemoteRows(files, SEQ_LEN)


# --- inspection ------------------------------------------------------------------------------


def tokenizer_at(name: str) -> Tokenizer:
    """Load a tokenizer: "neox-20b" (downloaded once), or the path of a tokenizer.json."""
    from pythia_core.data.tokenizer import disable_special_tokens, load_tokenizer, neox_20b_json

    if name != "neox-20b":
        return load_tokenizer(name)
    from tokenizers import Tokenizer

    return disable_special_tokens(Tokenizer.from_str(neox_20b_json()))


def describe_batch(
    rows: Rows, step: int, batch_size: int, n_shown: int = 4, tokenizer: Any = None, eod_id: int = 0
) -> str:
    """Describe the batch of the update after `step` as text: row indices, hash, ids, first rows.

    If every row must be read separately (`Rows.contiguous` is False), only the shown rows are read,
    and there is no hash. Raises a DataError if the data do not have this batch.

    Args:
        n_shown: number of rows to show.
        tokenizer: decodes the rows; if None, ids are shown.
    """
    from pythia_core.data.tokenizer import id_limit

    first = step * batch_size
    if rows.contiguous:
        batch = rows.batch(step, batch_size)
        read = f"hash {batch_hash(batch)}"
    else:
        batch = rows.rows(first, first + max(1, min(n_shown, batch_size)))
        read = f"of which the first {len(batch)} were read"
    ends = (batch[:, :-1] == eod_id).sum(1)
    lines = [
        f"batch of the update from step {step} to {step + 1}",
        f"rows {first}..{first + batch_size - 1}, {batch.shape[1] - 1} tokens each (+1 as the last "
        f"label), {read}",
        f"ids {batch.min()}..{batch.max()}; {ends.sum()} document ends (id {eod_id}), "
        f"at most {ends.max()} per row",
    ]
    if not ends.any():
        lines.append(
            f"no row of this batch has the token that ends a document (id {eod_id}); such tokens "
            "may have been lost when the file was made"
        )
    if tokenizer is not None and batch.max() >= id_limit(tokenizer):
        lines.append(
            f"WRONG TOKENIZER: the batch has the id {batch.max()}, but the tokenizer has only ids "
            f"below {id_limit(tokenizer)}"
        )
    for number, row in enumerate(batch[:n_shown].tolist()):
        text = " ".join(map(str, row))
        if tokenizer is not None:
            text = tokenizer.decode(row, skip_special_tokens=False)
        lines.append(f"\n--- row {number} ---\n{text}")
    return "\n".join(lines)
