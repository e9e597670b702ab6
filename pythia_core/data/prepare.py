"""Turn text into tokens and rows: prepare everything that a training run reads, and cache it.

Each document is followed by the end-of-document token, as in the Pile's token files (paper section
2.2). A hash of the text decides which documents are held out, so copies of a text are always all
held out or all trained on. Rows are written in training order (pythia_core.data.order).

In the cache, a folder `tokens-KEY` has the tokenizer and the token files `train.*` and `heldout.*`.
A folder `rows-KEY` has the rows in one training order. A folder is complete or absent. Its manifest
has the sha256 of every file, and the name of the folder, so that a folder with other text is never
read by mistake.

With `staged`, text of any size is prepared in stages of many tasks (pythia_core.data.sharded), and
processes on any machines share the tasks; the result is the same. Without `staged`, the search for
duplicates needs all text in memory.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pythia_core.config import DataConfig, InterventionConfig, stable_hash
from pythia_core.data.corpus import (
    Tally,
    corpus_identity,
    is_registered,
    open_corpus,
    tally_summaries,
)
from pythia_core.data.indexed_dataset import IndexedWriter, MegatronIndexed
from pythia_core.data.interventions import Ledger, make_ledger
from pythia_core.data.manifest import (
    FORMAT,
    DomainRuns,
    all_held_out,
    check_files,
    check_unchanged,
    damaged,
    has_manifest,
    heldout_threshold,
    intact_manifest,
    list_files,
    read_manifest,
    summaries,
    tokens_entry,
    train_entry,
    without_tokens,
    write_manifest,
)
from pythia_core.data.order import PreshuffledRows, RowOrder, Rows, write_rows
from pythia_core.data.sharded import WORK, Work, link_files, run_rows, run_tokens
from pythia_core.data.sharded_dedup import run_removal
from pythia_core.data.stages import Stages
from pythia_core.data.tokenizer import (
    EOD,
    TokenizerSource,
    encode_documents,
    id_limit,
    in_batches,
    load_tokenizer,
    tokenizer_source,
)
from pythia_core.errors import DataError, TakenElsewhere, one_of
from pythia_core.util.files import FULL_DISK, atomic_dir, cache_dir, file_sha256, fraction
from pythia_core.util.leases import leased
from pythia_core.util.progress import bar as progress_bar

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_CHARACTERS = 1 << 20
"""Number of characters encoded in one call."""


class Changes(Protocol):
    """The changes that an intervention makes to the batches of the updates [start, stop)."""

    @property
    def recorded(self) -> bool:
        """Whether the changes are saved on disk, not computed anew whenever a batch is read."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    def apply(self, batch: NDArray, first_row: int) -> NDArray:
        """Return a copy of the rows first_row, first_row + 1, ... with the changes."""


class TokenizedText(Protocol):
    """A model's tokenizer, and the id of the token that ends every document."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def eod_id(self) -> int: ...


class Batches(TokenizedText, Protocol):
    """The training data of a run: rows of token ids in training order, and their tokenizer."""

    @property
    def config(self) -> DataConfig: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def tokenizer_name(self) -> str:
        """The path of a tokenizer.json, or "neox-20b"; "" if the rows have no tokenizer."""

    @property
    def rows(self) -> Rows: ...

    def batch(self, step: int, batch_size: int) -> NDArray:
        """Return the ids [batch_size, seq_len + 1] for the update from `step` to `step` + 1."""

    def identity(self, start: int, stop: int, batch_size: int, swap: str = "") -> Any:
        """Return a JSON value that identifies the rows of the updates [start, stop).

        Args:
            swap: name of the run's word swap; "" without a swap.

        Raises:
            DataError: there are too few rows, or the tokenizer does not allow the swap.
        """

    def changes(self, window: InterventionConfig, batch_size: int, folder: Path) -> Changes:
        """Return the changes that an intervention makes; `folder` may be used to save them."""

    def with_heldout(self) -> PreparedData:
        """Return a dataset with held-out text and with the same tokenizer as this dataset."""


@dataclass(frozen=True)
class PreparedData:
    """A prepared dataset on disk, made by `prepare`: tokens, and rows of tokens in training order.

    Attributes:
        folder: folder of the rows and their manifest.
        manifest: counts, hashes and settings, without absolute paths and times.
    """

    folder: Path
    config: DataConfig
    manifest: dict[str, Any]

    def __reduce__(self) -> tuple:
        """Pickle without open files, so that the dataset is cheap to send to another process."""
        return PreparedData, (self.folder, self.config, self.manifest)

    @property
    def tokens_folder(self) -> Path:
        """The folder of the tokenizer and the token files."""
        return self.folder.parent / self.manifest["tokens"]["folder"]

    @property
    def tokenizer_name(self) -> str:
        """The path of the tokenizer.json."""
        return str(self.tokens_folder / "tokenizer.json")

    def identity(self, start: int, stop: int, batch_size: int, swap: str = "") -> str:
        """Return `fingerprint`; raise DataError if there are too few rows for `stop` updates."""
        self.batch(stop - 1, batch_size)  # its error says how many rows there are
        return self.fingerprint

    @property
    def fingerprint(self) -> str:
        """The sha256 of all that determines the batches: corpus, tokenizer, tokens and order."""
        return _fingerprint(self.manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokens_folder / "tokenizer.json")

    @property
    def eod_id(self) -> int:
        """The id of the token that ends every document."""
        return self.manifest["tokens"]["eod_id"]

    @property
    def vocab_size(self) -> int:
        """The largest id plus one; a model's embedding may have more entries."""
        return self.manifest["tokens"]["vocab_size"]

    @cached_property
    def tokens(self) -> MegatronIndexed:
        """The token ids of the training documents."""
        return MegatronIndexed(self.tokens_folder / "train")

    @cached_property
    def heldout(self) -> MegatronIndexed:
        """The token ids of the held-out documents; none if `heldout_fraction` is 0."""
        return MegatronIndexed(self.tokens_folder / "heldout")

    @cached_property
    def order(self) -> RowOrder:
        """The order of training, computed again from the sizes of the training documents."""
        c = self.config
        return RowOrder(
            self.tokens.sizes, c.seq_len, c.order_seed, c.epochs, c.epoch_policy, c.unique_rows
        )

    def in_domains(self, positions: NDArray[np.int64], domains: Sequence[str]) -> NDArray[np.bool_]:
        """Return whether tokens belong to documents of some domains.

        Args:
            positions: int[...], positions of tokens in the file of training tokens.

        Raises:
            DataError: a domain has no training documents.
        """
        runs = self.manifest["tokens"]["train"]["domains"]
        names = [name for name, _ in runs]
        for domain in domains:
            if domain not in names:
                raise DataError(one_of(domain, sorted(set(names)), "domain"))
        ends = np.cumsum([n for _, n in runs])
        bounds = np.cumsum(self.tokens.sizes, dtype=np.int64)[ends - 1]
        chosen = np.array([name in domains for name in names])
        return chosen[np.searchsorted(bounds, positions, side="right")]

    @cached_property
    def rows(self) -> PreshuffledRows:
        """The training rows on disk, in training order."""
        dtype = self.tokens.dtype
        return PreshuffledRows([self.folder / "rows.bin"], self.config.seq_len, dtype)

    def batch(self, step: int, batch_size: int) -> NDArray:
        """Return the ids [batch_size, seq_len + 1] for the update from `step` to `step` + 1."""
        return self.rows.batch(step, batch_size)

    def changes(self, window: InterventionConfig, batch_size: int, folder: Path) -> Ledger:
        """Return an intervention's ledger, from `folder` or else computed and saved there.

        Raises:
            DataError: the ledger in `folder` belongs to another intervention or cannot be read, or
                there are too few rows.
        """
        path = folder / "ledger.safetensors"
        if not path.exists():
            make_ledger(self, window, batch_size).save(path)
        ledger = Ledger.load(path)
        if (ledger.intervention, ledger.batch_size) != (window, batch_size):
            raise DataError(
                f"the ledger {path} belongs to another intervention; delete the file and run again"
            )
        return ledger

    def with_heldout(self) -> PreparedData:
        """Return a dataset with held-out documents: this one, which has its own."""
        return self

    def verify(self, full: bool = True) -> None:
        """Check the files of the dataset against its manifest.

        Args:
            full: check every sha256. If False, skip those in folders larger than FULL_CHECK_BYTES.

        Raises:
            DataError: a file is absent or has changed; the message names the first such file.
        """
        for folder, part in ((self.tokens_folder, "tokens"), (self.folder, "rows")):
            check_files(folder, self.manifest[part]["files"], full)


def prepare(data: DataConfig, progress: bool = True, staged: bool = False) -> PreparedData:
    """Return the dataset that `data` describes, from the cache or else newly prepared.

    Args:
        staged: prepare it in stages (pythia_core.data.stages): memory is bounded, killed work is
            resumed, and all processes that call this share the work. The result is the same.

    Raises:
        FetchError: the corpus or the tokenizer cannot be downloaded.
        DataError: the corpus or the tokenizer cannot be used, there is too little text, no space is
            left, or the cache is damaged (the message names the folder to delete).
    """
    order, rows = _order(data), rows_folder(data)
    tokens = prepare_tokens(data, progress, staged)
    root = tokens.parent
    with _translate_errors(root):

        def make(made: Path | None, folder: Path) -> dict[str, Any]:
            """Put the rows into `folder`, those that stages have made or new ones."""
            entry = (
                link_files(made, folder) if made else _make_rows(tokens, order, folder, progress)
            )
            manifest = {"tokens": intact_manifest(tokens), "rows": {"order": order, **entry}}
            return {**manifest, "fingerprint": _fingerprint(manifest)}

        if staged and not has_manifest(rows):
            with _stages(rows, progress) as stages:
                _build(rows, partial(make, run_rows(stages, tokens, order)))
        else:
            _build(rows, partial(make, None))
        prepared = PreparedData(rows, data, read_manifest(rows))
        try:
            same = prepared.manifest["fingerprint"] == prepared.fingerprint
            same = same and prepared.manifest["rows"]["order"] == order
            same = same and prepared.manifest["tokens"] == read_manifest(tokens)
            prepared.verify(full=False)
        except (KeyError, TypeError, AttributeError) as error:
            raise damaged(rows, f"manifest.json is incomplete ({error!r})") from error
        if not same:
            raise damaged(
                rows, "entries of manifest.json contradict each other or the manifest of the tokens"
            )
        # opening the files checks their structure too
        _ = prepared.tokens, prepared.heldout, prepared.rows
    return prepared


def _order(data: DataConfig) -> dict[str, Any]:
    """Return the settings that determine the order of the rows."""
    return {
        "seq_len": data.seq_len,
        "seed": data.order_seed,
        "epochs": data.epochs,
        "policy": data.epoch_policy,
        "unique_rows": data.unique_rows,
    }


def rows_folder(data: DataConfig) -> Path:
    """Return the folder that `prepare` makes, which may be absent.

    Raises:
        FetchError, DataError: the corpus or the tokenizer cannot be found.
    """
    return cache_dir() / "data" / f"rows-{stable_hash([_settings(data), _order(data)])[:16]}"


def prepare_tokens(data: DataConfig, progress: bool = True, staged: bool = False) -> Path:
    """Return the folder with tokenizer and tokens; make it if absent. Errors: as in `prepare`."""
    root = cache_dir() / "data"
    settings = _settings(data)
    tokens = root / f"tokens-{stable_hash(settings)[:16]}"
    with _translate_errors(root):
        if has_manifest(tokens):
            return tokens
        every = replace(data, dedup="none")
        whole = root / f"tokens-{stable_hash({**settings, 'dedup': 'none'})[:16]}"
        if staged:
            with _stages(tokens, progress) as stages:
                work = Work.of(stages.folder, data)
                check_unchanged(data, _settings(data), settings)
                if not has_manifest(whole):
                    _build(whole, partial(link_files, run_tokens(work, stages)))
                if whole != tokens:
                    _build(tokens, partial(link_files, run_removal(work, stages, whole)))
            return tokens
        _build(whole, lambda folder: make_tokens(every, tokenizer_source(data), folder, progress))
        if whole != tokens:
            _build(tokens, lambda folder: remove_duplicates(data, whole, folder, progress))
    return tokens


def _stages(target: Path, progress: bool) -> contextlib.AbstractContextManager[Stages]:
    """Return a context manager for running the stages that make a folder in the cache."""
    work = target.with_name(f"{WORK}{target.name}")
    return Stages(work, partial(has_manifest, target), progress).whole_work()


def _build(folder: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Make a folder in the cache with a manifest, if it is absent; other processes wait for it.

    A folder of an older version, which does not say what it holds, is replaced.

    Args:
        make: fills a temporary folder, and returns its manifest.
    """
    while not has_manifest(folder):
        marker = cache_dir() / "locks" / f"{folder.name}.lease"
        with (
            contextlib.suppress(TakenElsewhere),  # it was stopped for long; another one goes on
            leased(marker, job=f"preparing {folder}") as lease,
            lease.explains_errors(),
        ):
            for leftover in folder.parent.glob(f".{folder.name}.tmp-*"):  # of a dead process
                shutil.rmtree(leftover, ignore_errors=True)
            if has_manifest(folder):
                return
            if folder.exists():
                shutil.rmtree(folder)
            # should two processes prepare a folder after all, one whole folder stays
            with atomic_dir(folder) as temporary:
                write_manifest(temporary, {**make(temporary), "folder": folder.name})


def _settings(data: DataConfig) -> dict[str, Any]:
    """Return all settings that determine the tokens; their hash names the folder."""
    return {
        "format": FORMAT,
        "corpus": corpus_identity(data),
        "domains": sorted(data.domains) if is_registered(data.corpus) else [],
        "tokenizer": tokenizer_source(data).identity,
        "heldout_fraction": data.heldout_fraction,
        "dedup": data.dedup,
    }


# --- rows ------------------------------------------------------------------------------------


def _make_rows(tokens: Path, order: dict[str, Any], folder: Path, progress: bool) -> dict[str, Any]:
    """Write rows.bin into `folder`, in the order RowOrder(sizes, **order); return its manifest."""
    data = MegatronIndexed(tokens / "train")
    rows = RowOrder(data.sizes, **order)
    write_rows(folder / "rows.bin", rows, data, progress)
    return {"n_rows": rows.n_rows, "files": list_files(folder)}


def _fingerprint(manifest: dict[str, Any]) -> str:
    """Return the sha256 of the parts of a manifest that determine the batches."""
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
def _translate_errors(root: Path) -> Iterator[None]:
    """Raise DataError instead of OSError if the disk becomes full inside the block."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise DataError(
            f"no space left for prepared data in {root} ({error.strerror}); incomplete files "
            "were deleted. Free about four times the size of the text, or set PYTHIA_CACHE to "
            "another folder"
        ) from error


# --- tokens ----------------------------------------------------------------------------------


def make_tokens(
    data: DataConfig, source: TokenizerSource, folder: Path, progress: bool
) -> dict[str, Any]:
    """Write tokenizer.json, train.* and heldout.* into `folder`, and return their manifest.

    Raises:
        FetchError, DataError: as in `prepare`.
    """
    first_tally: Tally = {}
    excluded, characters = choose_heldout(data, first_tally, progress)

    def training_texts() -> Iterator[str]:
        """Yield the text of each document that is not held out."""
        documents = enumerate(open_corpus(data, progress=False))
        return (document.text for i, document in documents if i not in excluded)

    (folder / "tokenizer.json").write_text(source.make(training_texts(), characters), "utf-8")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    eod, vocab_size = tokenizer.token_to_id(EOD), id_limit(tokenizer)
    assert eod is not None, "load_tokenizer refuses a tokenizer without it"

    second_tally: Tally = {}
    domains = without_tokens(tally_summaries(first_tally))
    n_bytes = sum(tally.n_bytes for tally in first_tally.values())
    with contextlib.ExitStack() as stack:
        train = stack.enter_context(IndexedWriter(folder / "train", vocab_size))
        heldout = stack.enter_context(IndexedWriter(folder / "heldout", vocab_size))
        bar = progress_bar(progress, total=n_bytes, desc="encoding text", unit="B", unit_scale=True)
        stack.enter_context(bar)
        number, train_domains = 0, DomainRuns()
        documents = open_corpus(data, progress=False, tally=second_tally)
        texts = ((document.domain, document.text) for document in documents)
        for batch in in_batches(texts, BATCH_CHARACTERS):
            encoded = encode_documents(tokenizer, [text for _, text in batch])
            for (domain, text), ids in zip(batch, encoded, strict=True):
                ids.append(eod)
                entry = domains[domain]
                out = heldout if number in excluded else train
                out.add(ids)
                if out is train:
                    train_domains.add(domain)
                entry["heldout_documents"] += out is heldout
                entry["heldout_tokens" if out is heldout else "train_tokens"] += len(ids)
                bar.update(len(text.encode("utf-8")))
                number += 1
    check_unchanged(data, *map(tally_summaries, (first_tally, second_tally)))
    sha256 = file_sha256(folder / "tokenizer.json")
    entry = tokens_entry(tokenizer, sha256, domains, train, train_domains, heldout)
    return {**entry, "files": list_files(folder)}


def remove_duplicates(
    data: DataConfig, whole: Path, folder: Path, progress: bool
) -> dict[str, Any]:
    """Copy the tokens in `whole` to `folder` without duplicates, and return their manifest.

    Raises:
        DataError: the corpus has changed since it was encoded.
    """
    manifest = intact_manifest(whole)
    first_tally: Tally = {}
    excluded, _ = choose_heldout(data, first_tally, progress)
    check_unchanged(data, tally_summaries(first_tally), summaries(manifest["corpus"]))
    dropped, report = _find_duplicates(data, excluded, progress)
    for name in ("tokenizer.json", "heldout.bin", "heldout.idx"):
        shutil.copyfile(whole / name, folder / name)
    source, position, domains = MegatronIndexed(whole / "train"), 0, DomainRuns()
    with IndexedWriter(folder / "train", manifest["vocab_size"]) as train:
        for number, document in enumerate(open_corpus(data, progress=False)):
            if number in excluded:
                continue
            ids, entry = source.document(position), manifest["corpus"][document.domain]
            position += 1
            if number in dropped:
                entry["train_tokens"] -= len(ids)
                entry["duplicate_tokens"] += len(ids)
            else:
                train.add(ids)
                domains.add(document.domain)
    manifest["train"] = train_entry(train, domains)
    return {**manifest, "dedup": report, "files": list_files(folder)}


def _find_duplicates(
    data: DataConfig, excluded: set[int], progress: bool
) -> tuple[set[int], dict[str, Any]]:
    """Return the indices of the documents to remove, and the report of `deduplicate`.

    Indices count all documents, including the held-out documents in `excluded`.
    """
    from pythia_core.data.dedup import deduplicate

    numbers, texts = [], []
    for number, document in enumerate(open_corpus(data, progress=False)):
        if number not in excluded:
            numbers.append(number)
            texts.append(document.text)
    result = deduplicate(texts, data.dedup, progress=progress)
    removed = {number for number, keep in zip(numbers, result.keep, strict=True) if not keep}
    return removed, result.report


# --- held-out documents ----------------------------------------------------------------------


def choose_heldout(data: DataConfig, tally: Tally, progress: bool) -> tuple[set[int], int]:
    """Choose the documents to hold out from training, and fill the empty dict `tally`.

    Returns:
        The indices of the held-out documents (see `heldout_threshold`), and the number of
        characters in all others.

    Raises:
        DataError: every document would be held out.
    """
    fractions: list[float] = []
    lengths: list[int] = []
    for document in open_corpus(data, progress, tally):
        fractions.append(fraction(document.text))
        lengths.append(len(document.text))
    threshold = heldout_threshold(data, np.array(fractions))
    excluded = {number for number, value in enumerate(fractions) if value < threshold}
    if len(excluded) == len(fractions):
        raise all_held_out(data, len(fractions))
    return excluded, sum(size for number, size in enumerate(lengths) if number not in excluded)
