"""The released training maps are read from every layout, and refused if they are something else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from pythia_book.published.training_maps import COLUMNS, SCORE_TASKS, training_maps

from pythia_core.errors import DataError

STABLE, OUTLIERS = "[0, 1, 2]", "[3]"


def write(file: Path, columns: str = "\tscore\tstate\tstep\tseed\tgroup") -> None:
    rows = [
        (score, state, step, seed, OUTLIERS if seed == 3 else STABLE)
        for seed in range(4)
        for step, state, score in ((0, 0, -1.0), (1000, 1, 1.0))
    ]
    lines = ["\t".join(map(str, (i, *row))) for i, row in enumerate(rows)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([columns, *lines]) + "\n")


def published(path: Path | None) -> SimpleNamespace:
    rows = [
        ("410m", False, 0, task, step, "acc", value)
        for task in SCORE_TASKS
        for step, value in ((0, 0.2), (1000, 0.6))
    ]
    names = ["model", "deduped", "shots", "task", "step", "metric", "value"]
    return SimpleNamespace(path=path, benchmarks=pd.DataFrame(rows, columns=names))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("polypythias_training_maps.tsv", "."),
        ("polypythias/data/training_maps.tsv", "."),
        ("polypythias/data/training_maps.tsv", "evals"),
    ],
)
def test_maps_are_found_in_a_folder_or_a_clone(tmp_path: Path, file: str, source: str) -> None:
    write(tmp_path / file)
    (tmp_path / source).mkdir(exist_ok=True)
    frame = training_maps(published(tmp_path / source))
    assert list(frame.columns) == COLUMNS and len(frame) == 8
    assert set(frame[frame.outlier].seed) == {3}
    first = frame[frame.seed == 0]
    assert first.score_410m.tolist() == pytest.approx(first.score.tolist())
    assert frame[frame.seed > 0].score_410m.isna().all()


def test_without_the_file_there_are_no_maps(tmp_path: Path) -> None:
    for path in (tmp_path, None):
        assert training_maps(published(path)).empty


def test_another_table_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "polypythias_training_maps.tsv", "\ta\tb\tc\td\te")
    with pytest.raises(DataError, match="not the released table"):
        training_maps(published(tmp_path))
