"""Released benchmark results of all sixteen models, of OPT and BLOOM, as tidy tables.

Only the v1 suite, only the tasks of the paper. Left out, because they are not what they say: rows
of the standard 2.8B model that are the deduplicated one's (zero-shot steps 2 to 1,000, five-shot
13,000 to 43,000). The standard 1B model is stored as pythia-1b-bf16, and some of its zero-shot
files are named five-shot: the folder counts. A missing part is an empty table.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.published.files import files_of
from pythia_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

TASKS = (
    "lambada_openai",
    "piqa",
    "winogrande",
    "wsc",
    "arc_easy",
    "arc_challenge",
    "sciq",
    "logiqa",
)
"""The eight of the paper."""
MODELS = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
TOKENS_PER_STEP = 1024 * 2048
BENCHMARKS = ["model", "deduped", "shots", "task", "step", "metric", "value", "stderr"]
BASELINES = ["family", "model", "n_params", "task", "metric", "value", "stderr"]
BATCH_SIZE = [
    "model",
    "batch_tokens",
    "shots",
    "task",
    "step",
    "tokens",
    "metric",
    "value",
    "stderr",
]
LEFT_OUT = ["model", "deduped", "shots", "step", "reason"]
MEMORIZATION = ["experiment", "model", "step", "tp", "fp", "fn", "tn", "precision", "recall"]

_SUITE = re.compile(
    r"(?:^|/)pythia-v1/pythia-(?P<model>[\d.]+[mb])(?:-bf16)?(?P<deduped>-deduped)?/"
    r"(?P<shots>zero|five)-shot/[^/]*step(?P<step>\d+)\.json$"
)
_BATCH = re.compile(
    r"(?:^|/)pythia-v1/pythia-(?P<model>[\d.]+[mb])-(?P<millions>[\d.]+)MtokBS/"
    r"(?:(?P<shots>zero|five)-shot/)?[^/]*step(?P<step>\d+)\.json$"
)
_BASELINE = re.compile(r"(?:^|/)(?P<family>opt|bloom)/(?P<model>(?:opt|bloom)-[\w.]+?)\.json$")
_SHOTS = {"zero": 0, "five": 5}
_UNITS = {"m": 1e6, "b": 1e9}


@dataclass(frozen=True)
class MoreTables:
    """Columns as in BENCHMARKS, BASELINES, BATCH_SIZE, MEMORIZATION."""

    benchmarks: pd.DataFrame
    baselines: pd.DataFrame
    batch_size: pd.DataFrame
    memorization: pd.DataFrame
    left_out: pd.DataFrame
    """Checkpoints dropped from `benchmarks`, columns as in LEFT_OUT."""


def read_more(path: Path | None) -> MoreTables:
    """Every table that a source has: a folder of CSV tables, the public tree or an archive of it.

    Raises:
        DataError: malformed JSON or CSV, or an archive that breaks a limit.
    """
    import pandas as pd

    csv = path is not None and (path / "bias_evals.csv").is_file()
    if path is None:
        tables = [pd.DataFrame(columns=names) for names in (BENCHMARKS, BASELINES, BATCH_SIZE)]
    else:
        tables = [*(_from_csv(path) if csv else _from_tree(path))]
    memorization = pd.DataFrame()
    if csv:
        needed = {f"{name}_pct" if len(name) == 2 else name for name in MEMORIZATION}
        memorization = _csv(path / "memorization_confusion.csv", needed)
        memorization = memorization.rename(columns=lambda name: name.removesuffix("_pct"))
    benchmarks, baselines, batch_size = tables
    benchmarks, left_out = _clean(benchmarks)
    return MoreTables(
        benchmarks,
        baselines.reindex(columns=BASELINES),
        batch_size.reindex(columns=BATCH_SIZE).sort_values(
            ["model", "step", "task", "metric"], ignore_index=True
        ),
        memorization.reindex(columns=MEMORIZATION),
        left_out,
    )


def released_benchmarks(path: Path | None) -> pd.DataFrame:
    """Benchmark scores as released, columns BENCHMARKS, nothing left out; empty without path."""
    import pandas as pd

    if path is None:
        return pd.DataFrame(columns=BENCHMARKS)
    read = _from_csv if (path / "bias_evals.csv").is_file() else _from_tree
    return read(path)[0].reindex(columns=BENCHMARKS)


def _clean(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Without the rows of 2.8B that are another model's, in a fixed order; and which these were."""
    frame = frame.reindex(columns=BENCHMARKS)
    if frame.empty:
        return frame, frame.reindex(columns=LEFT_OUT)
    frame["deduped"] = frame.deduped.astype(bool)
    zero = (frame.shots == 0) & frame.step.between(2, 1000)
    five = (frame.shots == 5) & frame.step.between(13_000, 43_000)
    wrong = (frame.model == "2.8b") & ~frame.deduped & (zero | five)
    order = ["shots", "model", "deduped", "step", "task", "metric"]
    rank = {name: i for i, name in enumerate(MODELS)}
    kept = frame[~wrong].sort_values(
        order, key=lambda c: c.map(rank) if c.name == "model" else c, ignore_index=True
    )
    left_out = frame[wrong].assign(reason="stored with the scores of the deduplicated model")
    left_out = left_out[LEFT_OUT].drop_duplicates().sort_values(["shots", "step"])
    return kept, left_out.reset_index(drop=True)


# --- CSV tables ------------------------------------------------------------------------------


def _csv(path: Path, needed: set[str]) -> pd.DataFrame:
    """The table at `path`, empty where there is none."""
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame()
    try:
        table = pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} is not a CSV table: {error}; fetch it again") from error
    if missing := sorted(needed - set(table.columns)):
        raise DataError(f"{path.name} lacks the columns {', '.join(missing)}; fetch it again")
    return table


def _from_csv(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    names = ("evals_zero_shot.csv", "evals_five_shot.csv")
    tables = [_csv(folder / name, set(BENCHMARKS)) for name in names]
    parts = [table for table in tables if not table.empty]
    benchmarks = pd.concat(parts) if parts else pd.DataFrame(columns=BENCHMARKS)
    benchmarks = benchmarks[benchmarks.task.isin(TASKS)]
    needed = set(BASELINES) - {"n_params"}
    baselines = _csv(folder / "evals_baselines_opt_bloom.csv", needed)
    if not baselines.empty:
        baselines = baselines[baselines.task.isin(TASKS)]
        baselines = baselines.assign(n_params=baselines.model.map(_n_params))
    return benchmarks, baselines, _csv(folder / "evals_batch_size_ablation.csv", set(BATCH_SIZE))


def _n_params(name: str) -> float:
    """560e6 of "bloom-560m", 7.1e9 of "bloom-7b1", as the models are named."""
    found = re.fullmatch(r"\w+-(\d+(?:\.\d+)?)([mb])(\d*)", name.lower())
    if not found:
        raise DataError(f"no size in the model's name {name!r}; accepted is e.g. opt-1.3b")
    number, unit, rest = found.groups()
    return float(number + ("." + rest if rest else "")) * _UNITS[unit]


# --- the public tree -------------------------------------------------------------------------


def _from_tree(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    import pandas as pd

    patterns = (_SUITE, _BASELINE, _BATCH)
    rows: dict[re.Pattern, list[dict]] = {pattern: [] for pattern in patterns}

    def wanted(name: str) -> bool:
        return any(pattern.search(name) for pattern in patterns)

    for name, content in files_of(path, wanted, "take it from the public repository"):
        pattern = next(p for p in patterns if p.search(name))
        try:
            results = json.loads(content)["results"]
            place = _place(pattern, pattern.search(name))
            rows[pattern] += [
                {**place, "task": task, "metric": metric, "value": float(value),
                 "stderr": float(found.get(f"{metric}_stderr", "nan"))}
                for task, found in results.items()
                if task in TASKS
                for metric, value in found.items()
                if not metric.endswith("_stderr")
            ]  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{name!r} is not a result of the evaluation harness: {error!r}"
            ) from error
    names = (BENCHMARKS, BASELINES, BATCH_SIZE)
    return tuple(pd.DataFrame(rows[p], columns=n) for p, n in zip(patterns, names, strict=True))


def _place(pattern: re.Pattern, match: re.Match) -> dict:
    if pattern is _BASELINE:
        model = match["model"]
        return {"family": match["family"], "model": model, "n_params": _n_params(model)}
    place = {
        "model": match["model"],
        "shots": _SHOTS[match["shots"] or "five"],
        "step": int(match["step"]),
    }
    if pattern is _SUITE:
        return place | {"deduped": match["deduped"] is not None}
    batch = round(float(match["millions"]) * 2**20)
    return place | {"batch_tokens": batch, "tokens": place["step"] * batch}
