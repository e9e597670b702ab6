"""The released arithmetic accuracies (paper section 3.3): by model, shots, step and first operand.

Seven deduplicated models (no 70M), addition and multiplication, accuracy over fifty second
operands. How often a number stands in the Pile was never released, so that these can be drawn
over size and training only. Models are named as before their renaming; here by today's names.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.published.files import files_of
from pythia_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published

COLUMNS = ["model", "operation", "shots", "step", "number", "value"]
_TABLE = "term_frequency_arithmetic.csv"
_FILE = re.compile(
    r"(?:^|/)csv/pythia-(?P<model>[\d.]+[mb])-deduped/term_frq?e?quency_all_shots\.csv$"
)
_TASK = re.compile(r"num_reasoning_arithmetic_(?P<operation>addition|multiplication)_(?P<x1>\d+)$")
_NAMES = {"125m": "160m", "350m": "410m", "800m": "1b", "1.3b": "1.4b", "2.7b": "2.8b",
          "6.7b": "6.9b", "13b": "12b"}  # fmt: skip


def arithmetic_table(published: Published | None) -> pd.DataFrame:
    """Columns COLUMNS; empty where the source has none of it.

    Raises:
        DataError: a file that is not the table it should be.
    """
    import pandas as pd

    path = published.path if published else None
    if path is None:
        return pd.DataFrame(columns=COLUMNS)
    if (path / "bias_evals.csv").is_file():
        return _table(path / _TABLE)
    parts = [
        _model_table(match["model"], name, content)
        for name, content in files_of(path, _FILE.search, "take it from the public repository")
        if (match := _FILE.search(name))
    ]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True)[COLUMNS] if parts else pd.DataFrame(columns=COLUMNS)


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame(columns=COLUMNS)
    try:
        table = pd.read_csv(path).rename(columns={"x1": "number", "acc": "value"})
        return table[COLUMNS]
    except (ValueError, KeyError, OSError) as error:
        raise DataError(
            f"{path.name} is not the released table: {error}; fetch it again"
        ) from error


def _model_table(model: str, name: str, content: bytes) -> pd.DataFrame:
    import pandas as pd

    try:
        raw = pd.read_csv(io.BytesIO(content))
        task = raw.task.str.extract(_TASK)
        frame = pd.DataFrame(
            {"model": _NAMES.get(model, model), "operation": task.operation, "shots": raw.fewshot,
             "step": raw.checkpoint, "number": task.x1, "value": raw.acc}
        )  # fmt: skip
        frame = frame[frame.operation.notna()]
        return frame.astype({"number": int, "step": int, "shots": int, "value": float})
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{name!r} is not the released table: {error}; fetch it again") from error
