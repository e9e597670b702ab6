"""Reads the released results as tidy tables, except the results on gender bias.

A table is empty if the user's copy of the released results lacks its data. All tables use the
current names of models.

- `benchmark_tables`: the sixteen models of v1, OPT and BLOOM on the paper's tasks. In the files,
  the standard 1B model is pythia-1b-bf16. Some of its zero-shot files are named five-shot, so the
  number of shots is read from the folder's name.
- `mmlu_table`: the sixteen models on 57 subjects.
- `blimp_table`, `first_suite_table`: only the first suite (v0), now superseded, has these scores.
- `arithmetic_table` (paper section 3.3): seven deduplicated models (not 70M), per first operand,
  averaged over fifty second operands. The numbers' frequencies in the Pile were never released.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.published.files import (
    VARIABLE,
    Reader,
    files_of,
    harness_scores,
    has_tables,
    read_results,
)
from pythia_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

TITLES = {"lambada_openai": "LAMBADA", "piqa": "PIQA", "winogrande": "WinoGrande", "wsc": "WSC",
          "arc_easy": "ARC-easy", "arc_challenge": "ARC-challenge", "sciq": "SciQ",
          "logiqa": "LogiQA", "hellaswag": "HellaSwag"}  # fmt: skip
"""Maps each task to its name in texts and figures."""
TASKS = tuple(task for task in TITLES if task != "hellaswag")
"""The eight tasks of the paper."""
SEVEN = tuple(task for task in TASKS if task != "wsc")
"""The seven tasks in mean accuracies: all but WSC. In a third of the zero-shot rows and nearly all
five-shot rows, the score on WSC is exactly that of always giving the more frequent answer.
"""
SAME = 1.0
"""Accuracies that differ by less than SAME points count as equal. At the end of training, zero-shot
means over the seven tasks and both texts differ by at least 1.3 points between neighboring sizes.
For other accuracies, the limit is a convention.
"""
CONVENTION = (
    f"the margin of {SAME:g} point is a convention, chosen when the released numbers were known"
)
SAME_WHY = (
    f"the margin of {SAME:g} point is less than any step to the next size brings (1.3 points or "
    "more), and was chosen when the released numbers were known"
)
"""Use it for zero-shot means over the seven tasks at the end of training; elsewhere, CONVENTION."""
NO_RELEASED = f"no released numbers: set {VARIABLE}"
"""Why a figure or a test shows nothing without released numbers."""
CHANCE = {"piqa": 50, "winogrande": 50, "wsc": 50, "arc_easy": 25, "arc_challenge": 25, "sciq": 25,
          "logiqa": 25, "hellaswag": 25, "lambada_openai": 0}  # fmt: skip
"""Maps each task to the accuracy of guessing, in percent."""
MODELS = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
FORMER_NAMES = {"19m": "70m", "125m": "160m", "350m": "410m", "400m": "410m", "800m": "1b",
                "1.3b": "1.4b", "2.7b": "2.8b", "6.7b": "6.9b", "13b": "12b"}  # fmt: skip
"""Maps former names of models, found in some released files, to the current names."""
DOUBLE_BATCH = ("160m", "410m", "1.4b")
"""Sizes of the first suite (v0) with batches of four million tokens. Each step counts as two."""
TOKENS_PER_STEP = 1024 * 2048
BENCHMARKS = ["model", "deduped", "shots", "task", "step", "metric", "value", "stderr"]
BASELINES = ["family", "model", "n_params", "task", "metric", "value", "stderr"]
BATCH_SIZE = ["model", "batch_tokens", "shots", "task", "step", "tokens"]
BATCH_SIZE += ["metric", "value", "stderr"]
MEMORIZATION = ["experiment", "model", "step", "tp", "fp", "fn", "tn", "precision", "recall"]
ARITHMETIC = ["model", "operation", "shots", "step", "number", "value"]
MMLU = ["model", "deduped", "shots", "subject", "step", "acc"]
BLIMP = ["model", "deduped", "subtask", "step", "acc", "stderr"]
FIRST_SUITE = ["model", "deduped", "task", "step", "metric", "value", "stderr"]

_SUITE = re.compile(
    r"(?:^|/)pythia-v1/pythia-(?P<model>[\d.]+[mb])(?:-bf16)?(?P<deduped>-deduped)?/"
    r"(?P<shots>zero|five)-shot/[^/]*step(?P<step>\d+)\.json$"
)
_BATCH = re.compile(
    r"(?:^|/)pythia-v1/pythia-(?P<model>[\d.]+[mb])-(?P<millions>[\d.]+)MtokBS/"
    r"(?:(?P<shots>zero|five)-shot/)?[^/]*step(?P<step>\d+)\.json$"
)
_BASELINE = re.compile(r"(?:^|/)(?P<family>opt|bloom)/(?P<model>(?:opt|bloom)-[\w.]+?)\.json$")
_KINDS = ((_SUITE, BENCHMARKS), (_BASELINE, BASELINES), (_BATCH, BATCH_SIZE))
_SHOTS = {"zero": 0, "five": 5}
_UNITS = {"m": 1e6, "b": 1e9}

Tables = tuple["pd.DataFrame", "pd.DataFrame", "pd.DataFrame"]
"""Three tables, whose columns are BENCHMARKS, BASELINES and BATCH_SIZE, in this order."""


# --- benchmarks ------------------------------------------------------------------------------


def benchmark_tables(path: Path | None) -> Tables:
    """Read the tables of benchmarks, baselines and batch sizes from CSV tables or the evals tree.

    The tables are empty if `path` is None. Raises a DataError if JSON or CSV is malformed, or an
    archive exceeds a limit.
    """
    import pandas as pd

    if path is None:
        tables = [pd.DataFrame() for _ in _KINDS]
    else:
        tables = _from_csv(path) if has_tables(path) else _from_tree(path)
    benchmarks, baselines, batch_size = (
        table.reindex(columns=columns) for table, (_, columns) in zip(tables, _KINDS, strict=True)
    )
    order = ["model", "step", "task", "metric"]
    return benchmarks, baselines, batch_size.sort_values(order, ignore_index=True)


def in_order(frame: pd.DataFrame, by: list[str], names: tuple[str, ...] = MODELS) -> pd.DataFrame:
    """Sort a frame by the columns `by`; models and interventions are in the order of `names`."""
    rank = {name: i for i, name in enumerate(names)}
    named = ("model", "intervention")
    return frame.sort_values(
        by, key=lambda c: c.map(rank) if c.name in named else c, ignore_index=True
    )


def without_misplaced(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort the released benchmarks, and leave out the rows that `misplaced` marks."""
    if frame.empty:
        return frame
    frame = frame.assign(deduped=frame.deduped.astype(bool))
    order = ["shots", "model", "deduped", "step", "task", "metric"]
    return in_order(frame[~misplaced(frame)], order)


def misplaced(frame: pd.DataFrame) -> pd.Series:
    """Return, for each row, whether it has the scores of another model.

    Some rows of the standard 2.8B model (zero-shot at steps 2 to 1,000, five-shot at steps 13,000
    to 43,000) have the scores of the deduplicated 2.8B model.
    """
    zero = (frame.shots == 0) & frame.step.between(2, 1000)
    five = (frame.shots == 5) & frame.step.between(13_000, 43_000)
    return (frame.model == "2.8b") & ~frame.deduped & (zero | five)


def read_csv(path: Path, needed: list[str]) -> pd.DataFrame:
    """Read the CSV table at `path`; if there is no file, return a table without rows.

    Raises a DataError if the file is not a CSV table, or lacks a needed column.
    """
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame(columns=needed)
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} is not a CSV table: {error}; download it again") from error
    if missing := sorted(set(needed) - set(table.columns)):
        raise DataError(f"{path.name} lacks the columns {', '.join(missing)}; download it again")
    return table


def _from_csv(folder: Path) -> list[pd.DataFrame]:
    import pandas as pd

    names = ("evals_zero_shot.csv", "evals_five_shot.csv")
    tables = [read_csv(folder / name, BENCHMARKS) for name in names]
    benchmarks = pd.concat([table for table in tables if len(table)] or tables[:1])
    columns = [column for column in BASELINES if column != "n_params"]
    baselines = read_csv(folder / "evals_baselines_opt_bloom.csv", columns)
    benchmarks, baselines = (table[table.task.isin(TASKS)] for table in (benchmarks, baselines))
    baselines = baselines.assign(n_params=baselines.model.map(_n_params))
    return [benchmarks, baselines, read_csv(folder / "evals_batch_size_ablation.csv", BATCH_SIZE)]


def _n_params(name: str) -> float:
    """Parse the number of parameters in a model's name; "bloom-7b1" means 7.1e9."""
    match = re.fullmatch(r"\w+-(\d+(?:\.\d+)?)([mb])(\d*)", name.lower())
    if not match:
        raise DataError(
            f"the model's name {name!r} does not contain a size; expected a name like opt-1.3b"
        )
    number, unit, rest = match.groups()
    return float(number + ("." + rest if rest else "")) * _UNITS[unit]


def _from_tree(path: Path) -> list[pd.DataFrame]:
    import pandas as pd

    rows = read_results(path, dict.fromkeys((pattern for pattern, _ in _KINDS), _rows))
    return [pd.DataFrame(rows[pattern], columns=columns) for pattern, columns in _KINDS]


def _rows(match: re.Match, parsed: dict) -> list[dict]:
    keys = _keys(match)
    return [
        {**keys, "task": task, "metric": metric, "value": value, "stderr": stderr}
        for task, metric, value, stderr in harness_scores(parsed)
        if task in TASKS
    ]


def _keys(match: re.Match) -> dict:
    if match.re is _BASELINE:
        model = match["model"]
        return {"family": match["family"], "model": model, "n_params": _n_params(model)}
    keys = {
        "model": match["model"],
        "shots": _SHOTS[match["shots"] or "five"],
        "step": int(match["step"]),
    }
    if match.re is _SUITE:
        return keys | {"deduped": match["deduped"] is not None}
    batch = round(float(match["millions"]) * 2**20)
    return keys | {"batch_tokens": batch, "tokens": keys["step"] * batch}


# --- MMLU, BLiMP and the first suite --------------------------------------------------------------

_V0 = re.compile(
    r"(?:^|/)pythia-v0/pythia-(?P<model>[\d.]+[mb])(?P<deduped>-deduped)?/zero-shot/"
    r"[^/]*step(?P<step>\d+)[^/]*\.json$"
)
_MMLU_PREFIX, _BLIMP_PREFIX = "hendrycksTest-", "blimp_"


def mmlu_table(path: Path | None) -> pd.DataFrame:
    """Read the accuracy on each subject of MMLU, in the columns MMLU, without `misplaced` rows.

    Raises a DataError if JSON or CSV is malformed, or the archive exceeds a limit.
    """
    import pandas as pd

    if path is None:
        return pd.DataFrame(columns=MMLU)
    if has_tables(path):
        table = read_csv(path / "evals_mmlu.csv", MMLU)[MMLU]
    else:
        rows = read_results(path, {_SUITE: _mmlu_rows})[_SUITE]
        table = pd.DataFrame(rows, columns=MMLU)
    table = table.assign(deduped=table.deduped.astype(bool))
    return table[~misplaced(table)].reset_index(drop=True)


def _mmlu_rows(match: re.Match, parsed: dict) -> list[dict]:
    keys = _keys(match)
    return [
        {**keys, "subject": task.removeprefix(_MMLU_PREFIX), "acc": value}
        for task, metric, value, _ in harness_scores(parsed)
        if metric == "acc" and task.startswith(_MMLU_PREFIX)
    ]


def blimp_table(path: Path | None) -> pd.DataFrame:
    """Read the zero-shot accuracy of the first suite on each paradigm of BLiMP.

    The columns are BLIMP; `step` counts updates of two million tokens. Raises a DataError if JSON
    or CSV is malformed, or the archive exceeds a limit.
    """
    return _first_suite(path, BLIMP, "evals_v0_blimp.csv", _blimp_rows)


def first_suite_table(path: Path | None) -> pd.DataFrame:
    """Read the zero-shot benchmarks of the first suite (v0), in the columns FIRST_SUITE.

    `step` counts updates of two million tokens. Raises a DataError if JSON or CSV is malformed, or
    the archive exceeds a limit.
    """
    return _first_suite(path, FIRST_SUITE, "evals_v0.csv", _v0_rows, ("folder_shots",))


def _first_suite(
    path: Path | None,
    columns: list[str],
    name: str,
    reader: Reader,
    also: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Read `columns` of zero-shot results of the first suite; no rows if `path` is None.

    Args:
        path: a folder of CSV tables, where the file `name` is read; or the evals tree, whose files
            are read by `reader`.
        also: columns of the CSV file that are read only to find its zero-shot rows.
    """
    import pandas as pd

    if path is None:
        return pd.DataFrame(columns=columns)
    if has_tables(path):
        needed = ["step_2M_equiv" if column == "step" else column for column in columns]
        table = read_csv(path / name, [*needed, *also])
        if also:
            table = table[(table.folder_shots == "zero") & table.task.isin(TASKS)]
        table = table[needed].set_axis(columns, axis=1)
    else:
        table = pd.DataFrame(read_results(path, {_V0: reader})[_V0], columns=columns)
        scores = ("acc", "value", "stderr")
        table = table.drop_duplicates([c for c in columns if c not in scores])  # scored twice
    return table.assign(deduped=table.deduped.astype(bool)).reset_index(drop=True)


def _blimp_rows(match: re.Match, parsed: dict) -> list[dict]:
    keys = _v0_keys(match)
    return [
        {**keys, "subtask": task.removeprefix(_BLIMP_PREFIX), "acc": value, "stderr": error}
        for task, metric, value, error in harness_scores(parsed)
        if metric == "acc" and task.startswith(_BLIMP_PREFIX)
    ]


def _v0_rows(match: re.Match, parsed: dict) -> list[dict]:
    keys = _v0_keys(match)
    return [
        {**keys, "task": task, "metric": metric, "value": value, "stderr": stderr}
        for task, metric, value, stderr in harness_scores(parsed)
        if task in TASKS
    ]


def _v0_keys(match: re.Match) -> dict:
    step = int(match["step"]) * (2 if match["model"] in DOUBLE_BATCH else 1)
    return {"model": match["model"], "deduped": match["deduped"] is not None, "step": step}


# --- arithmetic and memorization -------------------------------------------------------------

_ARITHMETIC = re.compile(
    r"(?:^|/)csv/pythia-(?P<model>[\d.]+[mb])-deduped/term_frq?e?quency_all_shots\.csv$"
)
_TASK = re.compile(r"num_reasoning_arithmetic_(?P<operation>addition|multiplication)_(?P<x1>\d+)$")


def arithmetic_table(path: Path | None) -> pd.DataFrame:
    """Read the accuracies on arithmetic, in the columns ARITHMETIC.

    Raises a DataError if a file is not the released table.
    """
    import pandas as pd

    if path is None:
        return pd.DataFrame(columns=ARITHMETIC)
    if has_tables(path):
        names = {"x1": "number", "acc": "value"}
        needed = [*(column for column in ARITHMETIC if column not in names.values()), *names]
        table = read_csv(path / "term_frequency_arithmetic.csv", needed)
        return table.rename(columns=names)[ARITHMETIC]
    parts = [
        _model_table(match["model"], name, content)
        for name, content in files_of(path, lambda name: bool(_ARITHMETIC.search(name)))
        if (match := _ARITHMETIC.search(name))
    ]
    parts = [part for part in parts if len(part)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=ARITHMETIC)


def _model_table(model: str, name: str, content: bytes) -> pd.DataFrame:
    import pandas as pd

    try:
        raw = pd.read_csv(io.BytesIO(content))
        task = raw.task.str.extract(_TASK)
        frame = pd.DataFrame(
            {"model": FORMER_NAMES.get(model, model), "operation": task.operation,
             "shots": raw.fewshot, "step": raw.checkpoint, "number": task.x1, "value": raw.acc}
        )  # fmt: skip
        frame = frame[frame.operation.notna()]
        return frame.astype({"number": int, "step": int, "shots": int, "value": float})
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{name!r} is not the released table: {error}; download it again"
        ) from error


def memorization_table(path: Path | None) -> pd.DataFrame:
    """Read the predictions of memorization, in the columns MEMORIZATION.

    Only a folder of CSV tables has these numbers; for any other `path`, the result has no rows.
    Raises a DataError if the file is not the released table.
    """
    import pandas as pd

    if path is None or not has_tables(path):
        return pd.DataFrame(columns=MEMORIZATION)
    needed = [f"{name}_pct" if len(name) == 2 else name for name in MEMORIZATION]
    table = read_csv(path / "memorization_confusion.csv", needed)
    return table.rename(columns=lambda name: name.removesuffix("_pct"))[MEMORIZATION]
