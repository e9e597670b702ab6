"""The phases study on the real suite: released models and rows of their training data.

A model is a repository on the hub, or a folder with one subfolder per step. N-grams are counted on
the first batches of training. Models are tested on rows of the last update, which only the last
checkpoint has read. Rows read over the network are cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from pythia_book.released.continuation.data import TokenFileData
from pythia_book.released.pile import released_order
from pythia_book.released.resolve import PublishedModel
from pythia_book.studies.phases.probes import N_ROWS
from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError, one_of
from pythia_core.suite import SIZES, Scale
from pythia_core.util.files import cache_dir, cached_file


def released_models(source: str) -> dict[str, PublishedModel]:
    """Map the size of each released model to the model, smallest first.

    Raises:
        ConfigError: no model is named, two models have the same size, or a name does not end in a
            size.
    """
    models: dict[str, PublishedModel] = {}
    for name in filter(None, (part.strip() for part in source.split(","))):
        model = PublishedModel(name)
        if model.label not in SIZES:
            raise ConfigError(
                f"{name} does not end in a size, as EleutherAI/pythia-70m does; "
                + one_of(model.label, SIZES, "size")
            )
        if other := models.get(model.label):
            raise ConfigError(
                f"{name} and {other.source} have the same size; name only one of them per run"
            )
        models[model.label] = model
    if not models:
        raise ConfigError("source is empty; name at least one model, e.g. EleutherAI/pythia-70m")
    n_weights = {size: SIZES[size].n_layers * SIZES[size].d_model ** 2 for size in models}
    return {size: models[size] for size in sorted(models, key=n_weights.__getitem__)}


@dataclass(frozen=True)
class ReleasedText:
    """A ProbeText that reads a `.npy` file of training rows. The last rows are held out."""

    path: Path
    fingerprint: str
    n_read: int
    """Number of rows, from the start, on which n-grams are counted; the others are held out."""
    seq_len: int
    eod_id: int

    def _rows(self) -> np.ndarray:
        """Map the rows in the file into memory, int[rows, S+1]."""
        return np.load(self.path, mmap_mode="r", allow_pickle=False)

    def read(self) -> np.ndarray:
        return self._rows()[: self.n_read]

    def heldout(self, n: int) -> np.ndarray:
        return self._rows()[self.n_read :][:n]


def released_text(data: str, batches: int, scale: Scale, eod_id: int) -> ReleasedText:
    """Copy released rows to a file in the cache folder, and return them as a text.

    Training rows are those of the first `batches` updates. Held-out rows are those of the last
    update at this scale.

    Args:
        data: a name in RELEASED, a folder that has at least the needed shards, or a `.bin` file.

    Raises:
        DataError: the released data lack some of these rows. The message names a missing shard.
        FetchError: the rows cannot be read over the network.
    """
    rows = TokenFileData(data, "", scale.data.seq_len)
    n_read, last = batches * scale.batch_size, scale.steps * scale.batch_size
    wanted = [data, n_read, last, rows.seq_len]
    path = cache_dir() / "released_rows" / f"{stable_hash(wanted)[:16]}.npy"

    def write(path: Path) -> None:
        first = last - min(scale.batch_size, 2 * N_ROWS)
        heldout = rows.rows.rows(first, last)  # first, as its error names missing shards
        training = [rows.batch(step, scale.batch_size) for step in range(batches)]
        with open(path, "wb") as file:
            np.save(file, np.concatenate([*training, heldout]))

    cached_file(path, write, rewrite=released_order(data) is None)  # other files may have changed
    fingerprint = sha256(path.read_bytes()).hexdigest()
    return ReleasedText(path, fingerprint, n_read, rows.seq_len, eod_id)
