"""Limits the disk space of checkpoints that are fetched from the hub to be measured.

While a checkpoint is measured, the next one is fetched. A checkpoint that was fetched for a
measurement is deleted afterwards. A crash-proof mark in the hub's cache says that the
checkpoint was not there before. (The mark is in the cache, because machines that share the results
folder may have caches of their own.) Nothing else is deleted. Processes that share cache and
results do not delete what another one is reading.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pythia_book.released import download
from pythia_book.released.resolve import PublishedModel
from pythia_core.errors import CheckpointError, FetchError
from pythia_core.hf import local_folder
from pythia_core.util.leases import is_free, leased, marker_of

MARK = ".fetched"
"""The suffix of the marks."""
WAIT_SECONDS = 0.5
"""Seconds between two checks for room for the next checkpoint."""


@dataclass(frozen=True)
class DiskBudget:
    """Fetches checkpoints for measurements, and deletes them when they have been measured."""

    ahead: int | None = 1
    """How many fetched checkpoints may wait on disk to be measured; None: all."""

    @contextmanager
    def available(self, model: PublishedModel, step: int) -> Iterator[None]:
        """Let the checkpoint of a step be loaded and measured inside the block; then delete it.

        Raises:
            TakenElsewhere: another process is measuring this checkpoint.
        """
        if not self._applies(model):
            yield
            return
        revision = model.revision(step)
        with leased(_lease(model, revision), wait=False):
            _note(model, revision)
            try:
                yield
            finally:
                _delete(model, revision)

    def _applies(self, model: object) -> bool:
        """Return whether a model's checkpoints are fetched, and are not all to be kept."""
        return (
            self.ahead is not None
            and isinstance(model, PublishedModel)
            and local_folder(model.source) is None
        )

    @contextmanager
    def fetching(
        self, model: object, steps: Sequence[int], is_measured: Callable[[int], bool]
    ) -> Iterator[None]:
        """Inside the block, fetch checkpoints that are not measured yet, in the order of `steps`.

        At the end, checkpoints that were fetched but not measured are deleted.
        """
        if not self._applies(model):
            yield
            return
        assert isinstance(model, PublishedModel) and self.ahead is not None
        ended, ahead = threading.Event(), self.ahead

        def fetch() -> None:
            for step in steps:
                revision = model.revision(step)
                while len(_waiting(model)) >= ahead:
                    if ended.wait(WAIT_SECONDS):
                        return
                busy = _lease(model, revision).exists()
                if ended.is_set() or busy or is_measured(step):
                    continue
                if download.has_weights(model.source, revision):
                    continue
                _note(model, revision)
                try:
                    download.fetch(model.source, revision)
                except (FetchError, CheckpointError, OSError):
                    return  # the measurement will raise it
                # a measurement that was faster may have deleted the first files, and the mark
                if (ended.is_set() or is_measured(step)) and is_free(_lease(model, revision)):
                    _mark(model, revision).touch()
                    _delete(model, revision)

        thread = threading.Thread(target=fetch, daemon=True)
        if ahead:
            thread.start()
        try:
            yield
        finally:
            ended.set()  # a download that is under way is of no use, and ends with the process
            for revision in _waiting(model):
                if is_free(_lease(model, revision)):
                    _delete(model, revision)


def _lease(model: PublishedModel, revision: str) -> Path:
    return marker_of(model.folder / revision)


def _mark(model: PublishedModel, revision: str) -> Path:
    return download.marks_folder(model.source) / f"{revision}{MARK}"


def _waiting(model: PublishedModel) -> list[str]:
    """Return the revisions that were fetched and are not being measured."""
    marks = download.marks_folder(model.source).glob(f"*{MARK}")
    revisions = sorted(path.name.removesuffix(MARK) for path in marks)
    return [revision for revision in revisions if not _lease(model, revision).exists()]


def _note(model: PublishedModel, revision: str) -> None:
    """Record that a revision is fetched for measurements, unless its weights are in the cache."""
    if not download.has_weights(model.source, revision):
        mark = _mark(model, revision)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _delete(model: PublishedModel, revision: str) -> None:
    """Delete the weights of a revision if they were fetched for measurements."""
    if _mark(model, revision).exists():
        download.evict(model.source, revision)
        _mark(model, revision).unlink(missing_ok=True)
