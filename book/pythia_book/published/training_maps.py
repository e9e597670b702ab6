"""Reads the released training maps of PolyPythias: the states of ten 410M runs over training.

PolyPythias (van der Wal et al. 2025) assigns a state to every checkpoint, using a hidden Markov
model of weight statistics. All are in EleutherAI/pythia, polypythias/data/training_maps.tsv. The
code next to that file explains `state`, `score` (a standardized accuracy) and `group`: the outlier
seeds 3 and 4, or the remaining eight seeds.

The file names neither model size nor tasks. But the scores of seed 0 equal the zero-shot accuracies
of the standard 410M model on four tasks, standardized and averaged (`score_410m`). One hidden
Markov model may have been fitted per group, so states are compared only within a group.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.published.files import files_of
from pythia_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published

COLUMNS = ["seed", "outlier", "step", "state", "score", "score_410m"]
SCORE_TASKS = ("arc_easy", "lambada_openai", "piqa", "sciq")
_FILE = "polypythias/data/training_maps.tsv"
_FLAT = "polypythias_training_maps.tsv"


def training_maps(published: Published) -> pd.DataFrame:
    """Read the training maps, with one row per seed and step; no rows if the source lacks the file.

    Columns: `seed`, `outlier`, `step`, `state`, `score`, and `score_410m`, the score of seed 0
    computed again from released accuracies (NaN for other seeds).

    Raises a DataError if the file is not the released table.
    """
    import pandas as pd

    content = _content(published.path)
    if content is None:
        return pd.DataFrame(columns=COLUMNS)
    try:
        frame = pd.read_csv(io.BytesIO(content), sep="\t", index_col=0)
        frame["outlier"] = frame.groupby("group").seed.transform("nunique")
        frame["outlier"] = frame.outlier < frame.outlier.max()
        frame = frame.astype({"seed": int, "step": int, "state": int, "score": float})
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{_FILE} is not the released table: {error}; download it again") from error
    again = _score_410m(published)
    first = frame.seed == 0
    frame["score_410m"] = frame.step.map(again).where(first)
    return frame[COLUMNS].sort_values(["seed", "step"], ignore_index=True)


def _score_410m(published: Published) -> pd.Series:
    """Standardize the accuracies on SCORE_TASKS over steps; return the mean over tasks by step."""
    rows = published.benchmarks
    rows = rows[(rows.model == "410m") & ~rows.deduped & (rows.shots == 0)]
    rows = rows[(rows.metric == "acc") & rows.task.isin(SCORE_TASKS)]
    wide = rows.pivot(index="step", columns="task", values="value")
    return ((wide - wide.mean()) / wide.std(ddof=0)).mean(axis=1)


def _content(path: Path | None) -> bytes | None:
    """Return the contents of the file of training maps; None if there is no such file."""
    if path is None:
        return None
    if path.is_file():
        files = files_of(path, lambda name: name.endswith(_FILE))
        return next((content for _, content in files), None)
    for file in (path / _FLAT, path / _FILE, path.parent / _FILE):
        if file.is_file():
            return file.read_bytes()
    return None
