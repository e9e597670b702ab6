"""How text becomes token files: encoded once, and duplicates taken out of what was encoded.

`train.*` and `heldout.*` are Megatron's .bin/.idx pairs, `tokenizer.json` the tokenizer, and their
manifest holds counts by domain and the sha256 of every file. The tokens of a deduplicated text are
copied from those of the whole one, so that a corpus is encoded once whatever is taken out of it.
Text is streamed, but for the search for duplicates, which holds it in memory.
Not here: where the files lie, and the order of training (pythia_core.data.prepare).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_core.config import DataConfig
from pythia_core.data.corpus import Tally, open_corpus
from pythia_core.data.downloads import WHEELS, wheel_bytes
from pythia_core.data.heldout import choose_heldout
from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.tokenizer import (
    EOD,
    NEOX_20B,
    encode_documents,
    id_limit,
    load_tokenizer,
    sample,
    train_bpe,
)
from pythia_core.errors import DataError
from pythia_core.util.files import file_sha256
from pythia_core.util.progress import bar as progress_bar

FORMAT = 2
_BATCH = 1 << 20


# --- the tokenizer ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenizerSource:
    """Where a tokenizer comes from."""

    identity: list[str]
    make: Callable[[Iterator[str], int], str]
    """(texts, their number of characters) -> tokenizer.json; only "bpe-N" looks at them."""


def tokenizer_source(data: DataConfig) -> TokenizerSource:
    """What DataConfig.tokenizer names.

    Raises:
        DataError: the path of none.
    """
    if data.tokenizer.startswith("bpe-"):
        size = int(data.tokenizer.removeprefix("bpe-"))
        return TokenizerSource(
            ["bpe", str(size)],
            lambda texts, characters: train_bpe(sample(texts, characters), size).to_str(),
        )
    if data.tokenizer == "neox-20b":
        pin = WHEELS[NEOX_20B[0]]
        return TokenizerSource(
            [pin.file, pin.sha256], lambda *_: wheel_bytes(*NEOX_20B).decode("utf-8")
        )
    load_tokenizer(data.tokenizer)  # complains well if it is none
    path = Path(data.tokenizer).expanduser()
    return TokenizerSource(["file", file_sha256(path)], lambda *_: path.read_text("utf-8"))


# --- tokens ----------------------------------------------------------------------------------


def make_tokens(
    data: DataConfig, source: TokenizerSource, folder: Path, progress: bool
) -> dict[str, Any]:
    """Write tokenizer.json, train.* and heldout.* into `folder`; returns their manifest."""
    first: Tally = {}
    held, characters = choose_heldout(data, first, progress)

    def training_texts() -> Iterator[str]:
        documents = enumerate(open_corpus(data, progress=False))
        return (document.text for i, document in documents if i not in held)

    (folder / "tokenizer.json").write_text(source.make(training_texts(), characters), "utf-8")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    eod, vocab_size = tokenizer.token_to_id(EOD), id_limit(tokenizer)

    again: Tally = {}
    domains = {name: {**tally.summary(), **_NO_TOKENS} for name, tally in first.items()}
    n_bytes = sum(tally.bytes for tally in first.values())
    with contextlib.ExitStack() as stack:
        train = stack.enter_context(IndexedWriter(folder / "train", vocab_size))
        heldout = stack.enter_context(IndexedWriter(folder / "heldout", vocab_size))
        bar = progress_bar(progress, total=n_bytes, desc="encoding", unit="B", unit_scale=True)
        stack.enter_context(bar)
        number = 0
        for batch in _batches(data, again):
            encoded = encode_documents(tokenizer, [text for _, text in batch])
            for (domain, text), ids in zip(batch, encoded, strict=True):
                ids.append(eod)
                entry = domains[domain]
                out = heldout if number in held else train
                out.add(ids)
                entry["heldout_documents"] += out is heldout
                entry["heldout_tokens" if out is heldout else "train_tokens"] += len(ids)
                bar.update(len(text.encode("utf-8")))
                number += 1
    _check_unchanged(data, first, {name: tally.summary() for name, tally in again.items()})
    return {
        "format": FORMAT,
        "corpus": domains,
        "tokenizer_sha256": file_sha256(folder / "tokenizer.json"),
        "vocab_size": vocab_size,
        "eod_id": eod,
        "train": {"documents": train.n_documents, "tokens": train.n_tokens},
        "heldout": {"documents": heldout.n_documents, "tokens": heldout.n_tokens},
        "dedup": {},
        "files": list_files(folder),
    }


def take_duplicates_out(
    data: DataConfig, whole: Path, folder: Path, progress: bool
) -> dict[str, Any]:
    """The tokens in `whole` without the duplicates that `data.dedup` finds; their manifest."""
    made = read_manifest(whole)
    first: Tally = {}
    held, _ = choose_heldout(data, first, progress)
    counts = list(next(iter(first.values())).summary())
    _check_unchanged(data, first, {n: {k: d[k] for k in counts} for n, d in made["corpus"].items()})
    dropped, report = _find_duplicates(data, held, progress)
    for name in ("tokenizer.json", "heldout.bin", "heldout.idx"):
        shutil.copyfile(whole / name, folder / name)
    source, place = MegatronIndexed(whole / "train"), 0
    with IndexedWriter(folder / "train", made["vocab_size"]) as train:
        for number, document in enumerate(open_corpus(data, progress=False)):
            if number in held:
                continue
            ids, entry = source.document(place), made["corpus"][document.domain]
            place += 1
            if number in dropped:
                entry["train_tokens"] -= len(ids)
                entry["duplicate_tokens"] += len(ids)
            else:
                train.add(ids)
    made["train"] = {"documents": train.n_documents, "tokens": train.n_tokens}
    return {**made, "dedup": report, "files": list_files(folder)}


def _check_unchanged(data: DataConfig, now: Tally, before: dict[str, Any]) -> None:
    if {name: tally.summary() for name, tally in now.items()} != before:
        raise DataError(f"the corpus {data.corpus!r} changed while it was read; run again")


_NO_TOKENS = {
    "heldout_documents": 0,
    "train_tokens": 0,
    "heldout_tokens": 0,
    "duplicate_tokens": 0,
}


def _find_duplicates(
    data: DataConfig, held: set[int], progress: bool
) -> tuple[set[int], dict[str, Any]]:
    """Numbers of the training documents that `data.dedup` takes out, and its report."""
    from pythia_core.data.dedup import deduplicate

    numbers, texts = [], []
    for number, document in enumerate(open_corpus(data, progress=False)):
        if number not in held:
            numbers.append(number)
            texts.append(document.text)
    found = deduplicate(texts, data.dedup, progress=progress)
    gone = {number for number, kept in zip(numbers, found.keep, strict=True) if not kept}
    return gone, found.report


def _batches(data: DataConfig, tally: Tally) -> Iterator[list[tuple[str, str]]]:
    """(domain, text) in lists of about a million characters."""
    batch: list[tuple[str, str]] = []
    size = 0
    for document in open_corpus(data, progress=False, tally=tally):
        batch.append((document.domain, document.text))
        size += len(document.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# --- manifests -------------------------------------------------------------------------------


def list_files(folder: Path) -> dict[str, dict[str, int | str]]:
    """Bytes and sha256 of every file."""
    return {
        path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `folder`/manifest.json."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read `folder`/manifest.json.

    Raises:
        DataError: absent or not an object.
    """
    try:
        value = json.loads((folder / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(folder, f"its manifest cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise damaged(folder, "its manifest is not an object")
    return value


def damaged(folder: Path, what: str) -> DataError:
    """The error for prepared data that are not what they were."""
    return DataError(
        f"the prepared data in {folder} are damaged: {what}. Delete that folder; it will be made "
        "again from the corpus"
    )
