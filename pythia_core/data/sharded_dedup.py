"""Remove duplicates from text of any size, in stages with bounded memory.

The result is, byte for byte, that of pythia_core.data.dedup. Besides the folders of
pythia_core.data.sharded, a work folder then has

    exact/PART/           the identical texts among those whose hashes lie in one part of the range
    signatures/SHARD/     datatrove's MinHash signatures of a shard, a file per bucket
    pairs/BUCKET/         the candidate pairs that datatrove finds in a bucket
    groups/, linked/      documents that candidate pairs connect; the pairs that reach the threshold
    kept/                 the tokens without duplicates

The id of a document is shard << 32 | its number in the shard, so ids are in the order of
the corpus. Nothing that pythia_core.data.dedup defines needs all text at once:

- *Identical texts* have equal hashes, so each part of their range can be searched on its own.
- *Candidate pairs* are neighbors among the documents with the same band, listed in the order of the
  corpus. datatrove merges the sorted signatures of the shards in this order. Copies of a text do
  not take part: only the one that is kept has a signature.
- *Verification* compares documents only within a group that candidate pairs connect.
- *Clusters* are the connected components of the pairs that were found; of each cluster, the first
  or last document is kept.

Memory: a search for identical texts needs 50 bytes per document, and takes about EXACT_DOCUMENTS at
a time. A bucket reads some signatures of every shard at a time. Connecting candidates needs 16
bytes per pair, and 300 per document that has a duplicate or is a candidate (`UnionFind`;
datatrove's own cluster stage needs as much). A verification holds the n-grams of one group, and the
records of RECORDS_KEPT shards.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from pythia_core.data.dedup import (
    RECIPES,
    Recipe,
    Totals,
    linked_pairs,
    make_report,
    minhash_step,
)
from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.manifest import (
    DomainRuns,
    check_unchanged,
    intact_manifest,
    summaries,
    train_entry,
)
from pythia_core.data.sharded import (
    Shard,
    Work,
    add_runs,
    check_written,
    plan_stage,
    read_entry,
    run_texts,
    runs_of,
    sums,
    written,
)
from pythia_core.data.stages import Stage, Stages
from pythia_core.errors import DataError

T = TypeVar("T", int, NDArray[np.int64])
EXACT_DOCUMENTS = 1 << 21
"""Approximate number of documents in one search for identical texts."""
GROUP_DOCUMENTS = 1 << 14
"""Approximate number of documents that one task compares with others of their groups."""
RECORDS_KEPT = 8
"""Number of shards whose records are in memory during verification."""
_SIGNATURES = 256
"""Number of signatures of each shard that a bucket reads at a time."""


def _ids(shard: int, documents: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the ids of some documents of a shard."""
    return (shard << 32) | documents.astype(np.int64)


def _shard_and_document(ids: T) -> tuple[T, T]:
    """Return a document's shard and its number within that shard; `ids` may be an array."""
    return ids >> 32, ids & 0xFFFFFFFF


def _recipe(work: Work) -> Recipe:
    """Return the recipe for the removal of duplicates."""
    return RECIPES[work.data.dedup]


def _load(folder: Path, width: int = 2) -> NDArray[np.int64]:
    """Return the array int64[n, width] in a folder of a stage."""
    read_entry(folder)
    return np.fromfile(folder / "array", "<i8").reshape(-1, width)


def _save(folder: Path, array: NDArray[np.int64], **facts: int) -> None:
    """Write an array and further facts as the folder of a stage."""
    with written(folder) as (temporary, entry):
        _write_array(temporary, array)
        entry |= facts


def _write_array(folder: Path, array: NDArray[np.int64]) -> None:
    """Write the array of a stage's folder."""
    np.ascontiguousarray(array, "<i8").tofile(folder / "array")


# --- identical texts -------------------------------------------------------------------------


def find_exact(work: Work, parts: int, part: int) -> None:
    """Find identical training texts, as pairs of a document and the copy that is kept."""
    threshold = work.plan()["threshold"]
    chosen_ids, digests = [], []
    for number, shard in enumerate(work.shards()):
        records = shard.records()
        chosen = records["digest"][:, 0] % np.uint64(parts) == part
        chosen &= records["fraction"] >= threshold
        chosen_ids.append(_ids(number, np.flatnonzero(chosen)))
        digests.append(records["digest"][chosen])
    ids, digest = np.concatenate(chosen_ids), np.concatenate(digests)
    order = np.lexsort((ids, digest[:, 1], digest[:, 0]))
    ids, digest = ids[order], digest[order]
    first = np.ones(len(ids), np.bool_)
    first[1:] = (digest[1:] != digest[:-1]).any(axis=1)
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(ids))[: len(starts)] - 1
    kept = ids[starts if _recipe(work).keep == "first" else ends]
    same_as = kept[np.cumsum(first) - 1]
    _save(work.path("exact", part), np.stack([ids, same_as], axis=1)[ids != same_as])


def _exact(work: Work) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs of each search for identical texts."""
    for folder in sorted(work.path("exact").glob("[0-9]*")):
        yield _load(folder)


# --- candidate pairs -------------------------------------------------------------------------


def sign(work: Work, n_shards: int, number: int) -> None:
    """Write the signatures of a shard, with datatrove: a file for each bucket."""
    with written(work.path("signatures", number)) as (folder, _entry):
        step = minhash_step(_recipe(work), str(folder / "made"))
        step(_documents(work, number), number, n_shards)
        for bucket in range(step.config.num_buckets):
            made = folder / "made" / f"bucket_{bucket:03d}" / f"{number:05d}.minhash.sig"
            made.rename(folder / _bucket_file(bucket))
        shutil.rmtree(folder / "made")


def _bucket_file(bucket: int) -> str:
    """Return the name of the file with a shard's signatures of a bucket."""
    return f"{bucket:03d}.sig"


def _documents(work: Work, number: int) -> Iterator[Any]:
    """Yield all documents of a shard; those that take no part in the search have no text."""
    from datatrove.data import Document

    shard = work.shards()[number]
    searched = shard.records()["fraction"] >= work.plan()["threshold"]
    for pairs in _exact(work):
        shards, documents = _shard_and_document(pairs[:, 0])
        searched[documents[shards == number]] = False
    done = 0
    for document, text in shard.texts(searched):
        for empty in range(done, document):
            yield Document("", str(empty))
        yield Document(text, str(document))
        done = document + 1


def pair(work: Work, n_shards: int, bucket: int) -> None:
    """Write the candidate pairs of a bucket, which datatrove finds, as pairs of ids."""
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets

    _allow_open_files(n_shards)
    config = minhash_step(_recipe(work)).config
    with written(work.path("pairs", bucket)) as (folder, _entry):
        made = folder / "made"
        signatures = made / "signatures" / f"bucket_{bucket:03d}"
        signatures.mkdir(parents=True)
        for shard in range(n_shards):
            source = work.path("signatures", shard)
            name = _bucket_file(bucket)
            check_written(source / name, read_entry(source, check=False)["files"][name]["sha256"])
            (signatures / f"{shard:05d}.minhash.sig").symlink_to((source / name).resolve())
        step = MinhashDedupBuckets(
            str(made / "signatures"), str(made), config=config, lines_to_buffer=_SIGNATURES
        )
        step(None, bucket, config.num_buckets)
        pairs = np.fromfile(made / f"{bucket:05d}_00.dups", "<u4").reshape(-1, 2, 2)
        pairs = pairs.astype(np.int64)
        shutil.rmtree(made)
        _write_array(folder, pairs[:, :, 0] << 32 | pairs[:, :, 1])


def _allow_open_files(n: int) -> None:
    """Let this process open `n` files at a time, in addition to a few others.

    Raises:
        DataError: the system does not allow that many.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if (needed := n + 64) > hard != resource.RLIM_INFINITY:
        raise DataError(
            f"the search for near-duplicates opens {needed} files at a time, but this process may "
            f"open only {hard}; raise the limit (ulimit -Hn) and run again"
        )
    if soft < needed and soft != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


# --- groups, and their verification ----------------------------------------------------------


def connect(work: Work, _: int) -> None:
    """Find the groups of documents that candidate pairs connect, and divide them into tasks.

    Without verification, write the candidate pairs as the linked pairs.
    """
    recipe, per_bucket = _recipe(work), [np.zeros((0, 2), np.int64)]
    for bucket in range(recipe.buckets):
        per_bucket.append(_load(work.path("pairs", bucket)))
    pairs = np.unique(np.concatenate(per_bucket), axis=0)
    if not recipe.verify:
        _save(work.path("linked", 0), pairs, compared=0)
    groups = _components(pairs) if recipe.verify else []
    rows: list[tuple[int, int]] = []
    tasks = 0
    for number, group in enumerate(groups):
        rows += [(number, document) for document in group]
        if len(rows) >= GROUP_DOCUMENTS or number == len(groups) - 1:
            _save(work.path("groups", tasks), np.array(rows, np.int64))
            rows, tasks = [], tasks + 1
    with written(work.path("connected")) as (_folder, entry):
        entry |= {"candidates": len(pairs), "tasks": tasks}


def _components(pairs: NDArray[np.int64]) -> list[list[int]]:
    """Return the connected components of pairs of documents, each in the order of the corpus."""
    from networkx.utils import UnionFind

    links = UnionFind()
    for start in range(0, len(pairs), 1 << 16):
        for one, two in pairs[start : start + (1 << 16)].tolist():
            links.union(one, two)
    return sorted(sorted(group) for group in links.to_sets())


def verify(work: Work, task: int) -> None:
    """Compare the documents of some groups; write the pairs that reach the threshold."""
    shards = work.shards()
    records = functools.lru_cache(RECORDS_KEPT)(lambda number: shards[number].records())
    members: dict[int, list[int]] = defaultdict(list)
    for group_number, document_id in _load(work.path("groups", task)).tolist():
        members[group_number].append(document_id)

    def text(document_id: int) -> str:
        """Return the text of a document."""
        number, document = _shard_and_document(document_id)
        return shards[number].text(document, records(number))

    linked: list[tuple[int, int]] = []
    compared = 0
    for group in members.values():
        pairs, n = linked_pairs(group, text, _recipe(work))
        linked += pairs
        compared += n
    array = np.array(linked, np.int64).reshape(-1, 2)
    _save(work.path("linked", task), array, compared=compared)


# --- removal ---------------------------------------------------------------------------------


def remove(work: Work, whole: Path, _: int) -> None:
    """Copy the tokens in the folder `whole` without those of duplicates."""
    recipe, manifest, plan = _recipe(work), intact_manifest(whole), work.plan()
    check_unchanged(work.data, plan["corpus"], summaries(manifest["corpus"]))
    folders = sorted(work.path("linked").glob("[0-9]*"))
    connected = read_entry(work.path("connected"))["candidates"] if recipe.buckets else 0
    pairs = {
        "candidates": connected,
        "compared": sum(read_entry(folder)["compared"] for folder in folders),
    }
    near = np.concatenate([np.zeros((0, 2), np.int64), *map(_load, folders)])
    pairs["linked"] = sum(len(group) - 1 for group in _components(near))
    exact = np.concatenate([np.zeros((0, 2), np.int64), *_exact(work)])
    copies = set(exact[:, 0].tolist())
    dropped: dict[int, list[int]] = defaultdict(list)
    sizes: Counter[int] = Counter()
    n_exact = 0
    for group in _components(np.concatenate([near, exact])):
        sizes[len(group)] += 1
        for document_id in group[1:] if recipe.keep == "first" else group[:-1]:
            number, document = _shard_and_document(document_id)
            dropped[number].append(document)
            n_exact += document_id in copies
    del copies, near, exact
    with written(work.path("kept")) as (folder, entry):
        for file_name in ("tokenizer.json", "heldout.bin", "heldout.idx"):
            shutil.copyfile(whole / file_name, folder / file_name)
        before, after, too_short = Totals(), Totals(), 0
        tokens, runs, position = MegatronIndexed(whole / "train").sizes, DomainRuns(), 0
        with (
            IndexedWriter(folder / "train", manifest["vocab_size"]) as train,
            open(whole / "train.bin", "rb") as file,
        ):
            for number, shard in enumerate(work.shards()):
                records = shard.records()
                training = records["fraction"] >= plan["threshold"]
                keep = training.copy()
                keep[dropped.pop(number, [])] = False
                before += _totals(records, training)
                after += _totals(records, keep)
                too_short += int((records["words"][training] < recipe.ngram).sum())
                kept, domains = keep[training], records["domain"][training]
                part = tokens[position : position + len(kept)]
                position += len(kept)
                _copy_kept(train, file, part, kept)
                add_runs(runs, shard, domains[kept])
                _count(manifest, shard, domains[~kept], part[~kept])
        sizes[1] += before.documents - sum(size * n for size, n in sizes.items())
        sizes = +sizes
        report = make_report(
            recipe,
            before=before,
            after=after,
            exact=n_exact,
            too_short=too_short,
            sizes=sizes,
            pairs=pairs,
        )
        entry |= {key: value for key, value in manifest.items() if key not in ("folder", "files")}
        entry |= {"train": train_entry(train, runs), "dedup": report}


def _totals(records: NDArray[np.void], chosen: NDArray[np.bool_]) -> Totals:
    """Return the totals of some documents of a shard."""
    sizes = np.diff(records["end"].astype(np.int64), prepend=0)
    words = records["words"][chosen].sum(dtype=np.int64)
    return Totals(int(chosen.sum()), int(words), int(sizes[chosen].sum()))


def _copy_kept(
    train: IndexedWriter, file: BinaryIO, sizes: NDArray[np.int32], kept: NDArray[np.bool_]
) -> None:
    """Of the next documents in an open `.bin` file, append those that are kept; skip the others."""
    for start, stop in runs_of(kept):
        part = sizes[start:stop]
        if kept[start]:
            train.copy(file, part)
        else:
            file.seek(int(part.sum(dtype=np.int64)) * train.dtype.itemsize, os.SEEK_CUR)


def _count(
    manifest: dict[str, Any],
    shard: Shard,
    domains: NDArray[np.integer],
    sizes: NDArray[np.int32],
) -> None:
    """Move the tokens of removed documents, in the manifest, from training to duplicate tokens."""
    for domain, _, tokens in sums(domains, sizes):
        entry = manifest["corpus"][shard.domains[domain]]
        entry["train_tokens"] -= tokens
        entry["duplicate_tokens"] += tokens


def run_removal(work: Work, stages: Stages, whole: Path) -> Path:
    """Write the tokens in `whole`, without duplicates, to new files; return their folder."""
    run_texts(work, stages)
    stages.run(plan_stage(work))
    plan, buckets, n = work.plan(), _recipe(work).buckets, len(work.shards())
    parts, tasks = work.paths("exact", 1 + plan["documents"] // EXACT_DOCUMENTS), 0
    stages.run(Stage("finding identical texts", parts, partial(find_exact, work, len(parts))))
    if buckets:
        signatures, pairs = work.paths("signatures", n), work.paths("pairs", buckets)
        stages.run(Stage("computing signatures", signatures, partial(sign, work, n)))
        stages.run(Stage("finding candidates", pairs, partial(pair, work, n)))
        connected = work.path("connected")
        stages.run(Stage("connecting candidates", [connected], partial(connect, work)))
        tasks = read_entry(connected)["tasks"]
    linked = work.paths("linked", tasks)
    stages.run(Stage("comparing candidates", linked, partial(verify, work)))
    stages.run(Stage("removing duplicates", [work.path("kept")], partial(remove, work, whole)))
    return work.path("kept")
