"""Turn text of any size into tokens, in stages (pythia_core.data.stages) with bounded memory.

The result is, byte for byte, what pythia_core.data.prepare makes in one process. A work folder has

    texts/GROUP/     the text and the records of the documents in a group of files, in shards
    plan/            what needs the whole text: the tokenizer, hashes, which documents are held out
    tokens/SHARD/    the token files of a shard
    merged/          the token files of all shards, in the order of the corpus

and, if duplicates are removed, the folders that pythia_core.data.sharded_dedup lists. The source is
read once. Order in the corpus is the order of (group, shard in the group, document in the shard).

A shard has at most SHARD_BYTES of text and SHARD_DOCUMENTS documents. In memory, a task holds a few
documents and the records of one shard. Only the steps that need all documents hold some bytes for
each document: 4 for the index of the tokens, and what RowOrder needs for the rows.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pythia_core.config import DataConfig
from pythia_core.data.corpus import (
    DomainTally,
    Tally,
    corpus_files,
    no_documents,
    open_corpus,
    tally_summaries,
)
from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.manifest import (
    DomainRuns,
    all_held_out,
    check_files,
    check_unchanged,
    heldout_threshold,
    list_files,
    tokens_entry,
    without_tokens,
)
from pythia_core.data.order import RowOrder, write_rows
from pythia_core.data.stages import Stage, Stages
from pythia_core.data.tokenizer import (
    EOD,
    encode_documents,
    id_limit,
    in_batches,
    load_tokenizer,
    tokenizer_source,
)
from pythia_core.data.user_files import TextFile
from pythia_core.errors import DataError
from pythia_core.util.files import atomic_dir, file_sha256, fraction, json_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WORK = "work-"
"""Beginning of the names of work folders."""
GROUPS = 32
"""Maximum number of groups of files. Each is read by one task."""
SHARD_BYTES = 1 << 31
SHARD_DOCUMENTS = 1 << 18
FIRST_SHARD_BYTES = 1 << 18
"""Size limit of a group's first four shards. It doubles every four shards, up to SHARD_BYTES, so
that short text is divided too, and long text does not need too many files."""
BATCH_CHARACTERS = 1 << 18
"""Number of characters encoded in one call; a call needs about 200 bytes for each."""
ROWS_BYTES = 1 << 28
"""Bytes of rows that one task writes."""

RECORD = np.dtype(
    [
        ("end", "<u8"),  # of the text in the shard's file, in bytes
        ("characters", "<u4"),
        ("words", "<u4"),
        ("domain", "<u4"),
        ("fraction", "<f8"),  # decides whether the document is held out
        ("digest", "<u8", 2),  # of the text, to find identical ones
    ]
)
"""What is known about a document."""


@dataclass(frozen=True)
class Work:
    """A work folder, and the data that are being prepared there."""

    folder: Path
    data: DataConfig
    groups: list[list[TextFile] | None] = field(repr=False)
    """The files of each group; [None] if the corpus is not made of files."""

    @property
    def files(self) -> list[TextFile] | None:
        """The files of the corpus in the order of reading; None if it is not made of files."""
        groups = [group for group in self.groups if group is not None]
        return [file for group in groups for file in group] or None

    @classmethod
    def of(cls, folder: Path, data: DataConfig) -> Work:
        """Divide the files of a corpus into groups of about the same size."""
        files = corpus_files(data)
        if files is None:
            return cls(folder, data, [None])
        ends = np.cumsum([file.size + 1 for file in files])
        group = (ends - 1) * min(GROUPS, len(files)) // ends[-1]
        groups = [[files[i] for i in np.flatnonzero(group == n)] for n in np.unique(group)]
        return cls(folder, data, [*groups])

    def path(self, *names: str | int) -> Path:
        """Return a path in the work folder; numbers become names of five digits."""
        return self.folder.joinpath(*(f"{n:05d}" if isinstance(n, int) else n for n in names))

    def paths(self, name: str, n: int) -> list[Path]:
        """Return the paths of the outputs of `n` tasks."""
        return [self.path(name, number) for number in range(n)]

    def plan(self) -> dict[str, Any]:
        """Return what `make_plan` found."""
        return read_entry(self.path("plan"))

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the plan."""
        return _tokenizer(self.path("plan"), self.plan()["files"]["tokenizer.json"]["sha256"])

    def shards(self) -> list[Shard]:
        """Return all shards in the order of the corpus."""
        shards = []
        for group in range(len(self.groups)):
            folder = self.path("texts", group)
            entry = read_entry(folder, check=False)
            for number in range(entry["shards"]):
                shards.append(Shard(folder / f"{number:05d}", [*entry["domains"]], entry["files"]))
        return shards


def read_entry(folder: Path, check: bool = True, full: bool = True) -> dict[str, Any]:
    """Return the description that a stage left in a folder.

    Args:
        check: whether to check the files that the description lists.
        full: whether to check each sha256, however large the files are.

    Raises:
        DataError: the description or a file is damaged.
    """
    try:
        entry = json_object((folder / "entry.json").read_bytes())
        if check:
            check_files(folder, entry["files"], full)
    except (OSError, ValueError, KeyError, DataError) as error:
        raise damaged_work(folder, str(error)) from error
    return entry


def damaged_work(path: Path, reason: str) -> DataError:
    """Return the error for a damaged file or folder in a work folder."""
    work = next((p for p in path.parents if p.name.startswith(WORK)), path.parent)
    return DataError(f"{path} is damaged ({reason}); delete the folder {work} and run again")


def check_written(path: Path, sha256: str) -> None:
    """Raise DataError unless a file of a work folder has the sha256 that was recorded."""
    if not path.is_file() or file_sha256(path) != sha256:
        raise damaged_work(path, "its content is not what was written")


@contextlib.contextmanager
def written(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Make a folder with a description, complete or not at all, in a `with` block.

    Yields:
        The path of a temporary folder to fill, and the description to fill. At the end of the
        block, `files` (sizes and hashes) are added to the description.
    """
    with atomic_dir(folder) as temporary:
        entry: dict[str, Any] = {}
        yield temporary, entry
        entry["files"] = list_files(temporary)
        # not sorted: the order of the domains is that of the corpus
        (temporary / "entry.json").write_text(json.dumps(entry) + "\n", "utf-8")


# --- text ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shard:
    """A part of the text, in the files `prefix`.txt (UTF-8) and `prefix`.records."""

    prefix: Path
    domains: Sequence[str]
    files: dict[str, Any] = field(repr=False)
    """Maps the name of each file to its entry, which has the sha256."""

    def records(self) -> NDArray[np.void]:
        """Return the RECORD of each document.

        Raises:
            DataError: the file is absent or too short.
        """
        path = self.prefix.with_suffix(".records")
        if not path.is_file() or path.stat().st_size != self.files[path.name]["bytes"]:
            raise damaged_work(path, "its content is not what was written")
        return np.fromfile(path, RECORD)

    def texts(self, chosen: NDArray[np.bool_] | None = None) -> Iterator[tuple[int, str]]:
        """Yield (number, text) of the chosen documents (default: all).

        Raises:
            DataError: the files are not those that were written.
        """
        for path in (self.prefix.with_suffix(suffix) for suffix in (".txt", ".records")):
            check_written(path, self.files[path.name]["sha256"])
        records = self.records()
        selected = np.ones(len(records), np.bool_) if chosen is None else chosen
        with open(self.prefix.with_suffix(".txt"), "rb") as file:
            for number in np.flatnonzero(selected).tolist():
                yield number, _text(file, records, number)

    def text(self, number: int, records: NDArray[np.void]) -> str:
        """Return the text of one document."""
        with open(self.prefix.with_suffix(".txt"), "rb") as file:
            return _text(file, records, number)


def _text(file: IO[bytes], records: NDArray[np.void], number: int) -> str:
    """Return the text of a document in an open file."""
    start = int(records["end"][number - 1]) if number else 0
    if file.tell() != start:
        file.seek(start)
    return file.read(int(records["end"][number]) - start).decode()


def read_texts(work: Work, group: int) -> None:
    """Write the text of a group of files as shards."""
    files = work.groups[group]
    tally: Tally = {}
    numbers: dict[str, int] = {}  # of the domains, in the order of the tally
    with written(work.path("texts", group)) as (folder, entry), contextlib.ExitStack() as stack:
        entry["shards"] = 0
        writer: _ShardWriter | None = None
        for document in open_corpus(work.data, False, tally, files):
            if writer is None or writer.full:
                if writer:
                    writer.close()
                writer = _ShardWriter(folder, entry["shards"])
                stack.callback(writer.close)
                entry["shards"] += 1
            if document.domain not in numbers:
                numbers = {name: number for number, name in enumerate(tally)}
            writer.add(document.text, numbers[document.domain])
        if writer:
            writer.close()
        entry["domains"] = {name: count.empty for name, count in tally.items()}  # empty documents
        entry["source"] = _source(files)
        check_unchanged(work.data, corpus_files(work.data), work.files)


def _source(files: Sequence[TextFile] | None) -> list[list[str | int]] | None:
    """Return what identifies the content of files without reading it."""
    if files is None:
        return None
    return [[file.name, file.size, file.modified, file.version] for file in files]


class _ShardWriter:
    """Writes the files of a shard."""

    def __init__(self, folder: Path, number: int) -> None:
        paths = [folder / f"{number:05d}{suffix}" for suffix in (".txt", ".records")]
        self._files = [open(path, "wb") for path in paths]
        self._bytes, self._documents = 0, 0
        self._limit = min(SHARD_BYTES, FIRST_SHARD_BYTES << number // 4)

    @property
    def full(self) -> bool:
        """Whether the next document belongs to the next shard."""
        return self._bytes >= self._limit or self._documents >= SHARD_DOCUMENTS

    def add(self, text: str, domain: int) -> None:
        """Append a document."""
        raw = text.encode()
        self._bytes += len(raw)
        self._documents += 1
        digest = np.frombuffer(hashlib.blake2b(raw, digest_size=16).digest(), "<u8")
        values = (self._bytes, len(text), len(text.split()), domain, fraction(text), digest)
        for part, file in zip((raw, np.array(values, RECORD).tobytes()), self._files, strict=True):
            file.write(part)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


# --- the plan --------------------------------------------------------------------------------


def make_plan(work: Work, _: int) -> None:
    """Make the tokenizer; hash each domain's documents in order; say which are held out."""
    data, parts = work.data, work.shards()
    tally: Tally = {}
    for group in range(len(work.groups)):
        entry = read_entry(work.path("texts", group), check=False)
        for name, empty in entry["domains"].items():
            tally.setdefault(name, DomainTally()).empty += empty
    if not parts:
        raise no_documents(data, sum(count.empty for count in tally.values()))
    smallest = np.array([shard.records()["fraction"].min() for shard in parts])
    threshold = heldout_threshold(data, smallest)
    documents, characters = 0, 0
    for shard in parts:
        records = shard.records()
        documents += len(records)
        characters += int(records["characters"][records["fraction"] >= threshold].sum())
    if not characters:
        raise all_held_out(data, documents)

    def training_texts() -> Iterator[str]:
        """Yield the text of each document that is not held out; count and hash all."""
        for shard in parts:
            records = shard.records()
            for number, text in shard.texts():
                tally[shard.domains[records["domain"][number]]].add(text.encode())
                if records["fraction"][number] >= threshold:
                    yield text

    with written(work.path("plan")) as (folder, plan):
        texts = training_texts()
        tokenizer = tokenizer_source(data).make(texts, characters)
        deque(texts, maxlen=0)  # a tokenizer that is not trained here has not read them
        (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
        load_tokenizer(folder / "tokenizer.json")  # checks it
        plan["threshold"], plan["documents"] = threshold, documents
        plan["corpus"] = tally_summaries(tally)


# --- tokens ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _tokenizer(folder: Path, _sha256: str) -> Tokenizer:
    """Load a tokenizer once per process, because every loaded one keeps a few megabytes in use."""
    return load_tokenizer(folder / "tokenizer.json")


def tokenize(work: Work, number: int) -> None:
    """Write the tokens of a shard, each document followed by the end-of-document token."""
    shard, plan, tokenizer = work.shards()[number], work.plan(), work.tokenizer()
    eod, vocab_size = tokenizer.token_to_id(EOD), id_limit(tokenizer)
    assert eod is not None, "load_tokenizer refuses a tokenizer without it"
    held = shard.records()["fraction"] < plan["threshold"]
    with (
        written(work.path("tokens", number)) as (folder, _entry),
        IndexedWriter(folder / "train", vocab_size) as train,
        IndexedWriter(folder / "heldout", vocab_size) as heldout,
    ):
        for batch in in_batches(shard.texts(), BATCH_CHARACTERS):
            encoded = encode_documents(tokenizer, [text for _, text in batch])
            for (document, _), ids in zip(batch, encoded, strict=True):
                (heldout if held[document] else train).add([*ids, eod])


def merge(work: Work, _: int) -> None:
    """Join the tokens of all shards, and describe them."""
    plan, tokenizer = work.plan(), work.tokenizer()
    vocab_size = id_limit(tokenizer)
    domains = without_tokens(plan["corpus"])
    with written(work.path("merged")) as (folder, entry):
        shutil.copyfile(work.path("plan") / "tokenizer.json", folder / "tokenizer.json")
        runs = DomainRuns()
        with (
            IndexedWriter(folder / "train", vocab_size) as train,
            IndexedWriter(folder / "heldout", vocab_size) as heldout,
        ):
            for number, shard in enumerate(work.shards()):
                tokens, records = work.path("tokens", number), shard.records()
                read_entry(tokens)  # checks the hashes
                held = records["fraction"] < plan["threshold"]
                for out, name, chosen in ((train, "train", ~held), (heldout, "heldout", held)):
                    sizes = MegatronIndexed(tokens / name).sizes
                    with open(tokens / f"{name}.bin", "rb") as file:
                        out.copy(file, sizes)
                    for domain, n_documents, n_tokens in sums(records["domain"][chosen], sizes):
                        counts = domains[shard.domains[domain]]
                        counts[f"{name}_tokens"] += n_tokens
                        counts["heldout_documents"] += n_documents if out is heldout else 0
                add_runs(runs, shard, records["domain"][~held])
        sha256 = file_sha256(folder / "tokenizer.json")
        entry |= tokens_entry(tokenizer, sha256, domains, train, runs, heldout)


def sums(domains: NDArray[np.integer], sizes: NDArray[np.integer]) -> list[tuple[int, int, int]]:
    """Return (domain, number of documents, sum of their sizes) of each domain that occurs."""
    totals = []
    for domain in np.unique(domains):
        of_domain = sizes[domains == domain]
        totals.append((int(domain), len(of_domain), int(of_domain.sum(dtype=np.int64))))
    return totals


def add_runs(runs: DomainRuns, shard: Shard, domains: NDArray[np.integer]) -> None:
    """Append the domains of successive documents of a shard."""
    for start, stop in runs_of(domains):
        runs.add(shard.domains[domains[start]], stop - start)


def runs_of(values: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Yield the bounds [start, stop) of each run of equal values; none if there are no values."""
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    if len(values):
        yield from itertools.pairwise([0, *changes.tolist(), len(values)])


# --- rows ------------------------------------------------------------------------------------


def write_part_of_rows(
    outputs: Sequence[Path], tokens: Path, order: dict[str, Any], part: int
) -> None:
    """Write one of several equal ranges of the rows."""
    data = MegatronIndexed(tokens / "train")
    rows = RowOrder(data.sizes, **order)
    start, stop = (rows.n_rows * number // len(outputs) for number in (part, part + 1))
    with written(outputs[part]) as (temporary, _entry):
        write_rows(temporary / "rows.bin", rows, data, rows=range(start, stop))


def join_rows(parts: Sequence[Path], output: Path, n_rows: int, _: int) -> None:
    """Join all ranges of the rows."""
    with written(output) as (temporary, entry):
        entry["n_rows"] = n_rows
        with open(temporary / "rows.bin", "wb") as out:
            for part in parts:
                read_entry(part)  # checks the hashes
                with open(part / "rows.bin", "rb") as file:
                    shutil.copyfileobj(file, out, 1 << 22)


# --- stages ----------------------------------------------------------------------------------


def run_texts(work: Work, stages: Stages) -> None:
    """Write the text as shards.

    Raises:
        CorpusChangedError: a file has changed since the work began.
    """
    outputs = work.paths("texts", len(work.groups))
    stages.run(Stage("reading text", outputs, partial(read_texts, work)))
    read = [read_entry(output, check=False)["source"] for output in outputs]
    check_unchanged(work.data, read, [_source(group) for group in work.groups])


def plan_stage(work: Work) -> Stage:
    """Return the stage that makes the plan."""
    return Stage("making the tokenizer", [work.path("plan")], partial(make_plan, work))


def run_tokens(work: Work, stages: Stages) -> Path:
    """Make the tokenizer and the token files of all documents; return their folder."""
    run_texts(work, stages)
    stages.run(plan_stage(work))
    outputs = work.paths("tokens", len(work.shards()))
    stages.run(Stage("encoding text", outputs, partial(tokenize, work)))
    stages.run(Stage("joining tokens", [work.path("merged")], partial(merge, work)))
    return work.path("merged")


def run_rows(stages: Stages, tokens: Path, order: dict[str, Any]) -> Path:
    """Write the rows; return the folder of rows.bin; its description has the number of rows.

    Raises:
        DataError: see RowOrder.
    """
    data = MegatronIndexed(tokens / "train")
    n_rows = RowOrder(data.sizes, **order).n_rows
    size = n_rows * (order["seq_len"] + 1) * data.dtype.itemsize
    # few rows are not worth dividing, but those of middling text keep 16 workers busy
    parts = max(min(16, n_rows // 1024), size // ROWS_BYTES, 1)
    outputs, merged = [stages.folder / f"{n:05d}" for n in range(parts)], stages.folder / "merged"
    write = partial(write_part_of_rows, outputs, tokens, order)
    stages.run(Stage("writing rows", outputs, write))
    stages.run(Stage("joining rows", [merged], partial(join_rows, outputs, merged, n_rows)))
    return merged


def link_files(source: Path, folder: Path) -> dict[str, Any]:
    """Link the files of a stage's folder into another; return their description."""
    entry = read_entry(source, full=False)
    for name in entry["files"]:
        try:
            os.link(source / name, folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(source / name, folder / name)
    return entry
