"""Reads the released training maps of PolyPythias: the states of ten 410M runs over training.

PolyPythias (van der Wal et al. 2025) fits a hidden Markov model to statistics of the weights, which
assigns a state to every checkpoint. A training map lists the states of a run. All maps are in one
file of EleutherAI/pythia, polypythias/data/training_maps.tsv. The code beside that file shows what
its columns mean: `state`, `score` (a standardised accuracy) and `group`. One group is seeds 3 and
4, which the authors call outliers; the other is the remaining eight seeds.

The file names neither the model size nor the tasks of the score. But its numbers show that the
scores of seed 0 are zero-shot accuracies of the standard 410M model on four tasks, standardised per
task over the checkpoints and averaged (`score_410m`). The file does not say whether one hidden
Markov model was fitted or one per group, so states are compared only within a group.
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
    """Read the training maps, with one row per seed and step.

    The columns are seed, outlier, step, state, score and score_410m. For seed 0, score_410m has the
    score computed again from the released accuracies of the standard 410M model. For other seeds,
    score_410m is NaN. The table has no rows if the source lacks the file.

    Raises:
        DataError: the file is not the released table.
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
    """Return, by step, the score of the standard 410M model computed from released accuracies.

    Zero-shot accuracy on each of SCORE_TASKS is standardised over the steps; the score is the mean
    over the tasks.
    """
    rows = published.benchmarks
    rows = rows[(rows.model == "410m") & ~rows.deduped & (rows.shots == 0)]
    rows = rows[(rows.metric == "acc") & rows.task.isin(SCORE_TASKS)]
    wide = rows.pivot(index="step", columns="task", values="value")
    return ((wide - wide.mean()) / wide.std(ddof=0)).mean(axis=1)


def _content(path: Path | None) -> bytes | None:
    """Return the contents of the file of training maps; None if there is no such file.

    Args:
        path: the archive or folder with the released numbers, or None if there are no such numbers.
    """
    if path is None:
        return None
    if path.is_file():
        found = files_of(path, lambda name: name.endswith(_FILE))
        return next((content for _, content in found), None)
    for file in (path / _FLAT, path / _FILE, path.parent / _FILE):
        if file.is_file():
            return file.read_bytes()
    return None
