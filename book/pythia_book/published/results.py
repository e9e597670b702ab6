"""The released evaluation results of EleutherAI/pythia, read from the user's copy.

They are shown next to our own numbers and never committed. A source is a folder of CSV tables with
a `bias_evals.csv`, or the public repository's `evals` tree itself: a clone, that folder alone, or
an archive of either (pythia_book.published.files). The main table keeps only v1 results of the
deduplicated models with an intervention twin, because the v0 files mix two versions of the
CrowS-Pairs metric. Other results are read on access (pythia_book.published.tables).

The metrics: CrowS-Pairs by total log-likelihood after one EOD (gender subset, 320 pairs); LAMBADA
(OpenAI) by greedy match; WinoBias by exact match of the generated referent, two prompt templates,
396 items each. The paper's two-pronoun WinoBias metric has no released raw file.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_book.published.files import (
    HOW_TO_GET,
    VARIABLE,
    harness_scores,
    has_tables,
    read_results,
)
from pythia_book.published.tables import (
    Tables,
    benchmark_tables,
    memorization_table,
    without_misplaced,
)
from pythia_core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

MODELS = ("70m", "410m", "1.4b", "6.9b")
"""Sizes with an intervention twin."""
ARMS = ("none", "swap_last_7pct", "swap_last_21pct")
COLUMNS = ("model", "intervention", "step", "source", "task", "prompt", "metric", "value", "stderr")

_SIZES = r"(?P<model>70m|410m|400m|1\.4b|6\.9b)"
_HARNESS = re.compile(
    rf"(?:^|/)pythia-v1/pythia-{_SIZES}-deduped/(?P<kind>baseline|intervention|zero-shot)/"
    r"[^/]*?(?P<long>-long)?_step(?P<step>\d+)\.json$"
)
_WINOBIAS = re.compile(
    rf"(?:^|/)bias-evals/winobias/(?:intervene_(?P<window>7|21)/)?{_SIZES}/eval_results_[^/]*\.json$",
    re.IGNORECASE,
)
_PREFERENCE = {"baseline": 0, "intervention": 0, "winobias": 0, "zero-shot": 1}


@dataclass(frozen=True)
class Published:
    """Released v1 numbers as a tidy table, and the parts of it that studies show."""

    table: pd.DataFrame
    """Columns `COLUMNS`; `intervention` is one of `ARMS`, `step` counts 2M-token updates."""
    path: Path | None = None
    """Source from which the other tables are read on access; never shown."""

    @cached_property
    def _tables(self) -> Tables:
        return benchmark_tables(self.path)

    @property
    def released_benchmarks(self) -> pd.DataFrame:
        """All rows as released, including those that `benchmarks` leaves out."""
        return self._tables[0]

    @cached_property
    def benchmarks(self) -> pd.DataFrame:
        """All sixteen models: model, deduped, shots, task, step, metric, value, stderr."""
        return without_misplaced(self._tables[0])[0]

    @cached_property
    def left_out(self) -> pd.DataFrame:
        """Checkpoints that `benchmarks` leaves out: model, deduped, shots, step, reason."""
        return without_misplaced(self._tables[0])[1]

    @property
    def baselines(self) -> pd.DataFrame:
        """OPT and BLOOM, zero-shot: family, model, n_params, task, metric, value, stderr."""
        return self._tables[1]

    @property
    def batch_size(self) -> pd.DataFrame:
        """Five-shot: model, batch_tokens, shots, task, step, tokens, metric, value, stderr."""
        return self._tables[2]

    @cached_property
    def memorization(self) -> pd.DataFrame:
        """Predictions: experiment, model, step, tp, fp, fn, tn (in percent), precision, recall."""
        return memorization_table(self.path)

    def crows_gender(self) -> pd.DataFrame:
        """CrowS-Pairs, English, gender: model, intervention, step, value (a share), stderr."""
        return self._view("crows_pairs_english_gender", "pct_stereotype")

    def lambada(self) -> pd.DataFrame:
        """LAMBADA (OpenAI) accuracy: model, intervention, step, value (a share), stderr."""
        return self._view("lambada_openai", "acc")

    def winobias_em(self) -> pd.DataFrame:
        """WinoBias exact match: model, intervention, step, pro, anti, net = pro - anti, stderr.

        pro and anti are means over types 1 and 2 and both templates; the standard error of net
        treats its parts as independent.
        """
        em = self.table[self.table.metric == "em"].copy()
        em["side"] = em.task.str.rsplit("_", n=1).str[-1]
        em["variance"] = em.stderr**2
        keys = ["model", "intervention", "step"]
        grouped = em.groupby([*keys, "side"], observed=True)
        means = grouped.value.mean().unstack().reindex(columns=["pro", "anti"])
        errors = (grouped.variance.sum() / grouped.variance.count() ** 2).unstack()
        means["net"] = means.pro - means.anti
        means["stderr"] = errors.sum(axis=1) ** 0.5
        return _ordered(means.reset_index())

    def _view(self, task: str, metric: str) -> pd.DataFrame:
        chosen = self.table[(self.table.task == task) & (self.table.metric == metric)]
        return _ordered(chosen[["model", "intervention", "step", "value", "stderr"]])


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    ranks = {name: i for i, name in enumerate((*MODELS, *ARMS))}
    return frame.sort_values(
        ["model", "intervention", "step"],
        key=lambda column: column.map(ranks) if column.name != "step" else column,
        ignore_index=True,
    )


def find(source: str | Path | None = None) -> Published | None:
    """The published numbers, or None if no source is given and `PYTHIA_PUBLISHED_DIR` is unset.

    Raises:
        DataError: the source cannot be read (see `load`).
    """
    return load(source) if source or os.environ.get(VARIABLE) else None


def load(source: str | Path | None = None) -> Published:
    """Read the published numbers from a folder or archive, by default `PYTHIA_PUBLISHED_DIR`.

    Raises:
        DataError: no source, a path that does not exist, an archive that breaks a limit or names
            a path outside itself, malformed JSON or CSV, or a source without these results.
    """
    location = source or os.environ.get(VARIABLE)
    if not location:
        raise DataError(f"no published numbers: {VARIABLE} is not set; {HOW_TO_GET}")
    path = Path(location).expanduser()
    if not path.exists():
        raise DataError(f"no published numbers at {str(path)!r}: it does not exist; {HOW_TO_GET}")
    if has_tables(path):
        rows = _from_csv(path / "bias_evals.csv")
    else:
        readers = {_HARNESS: _harness_rows, _WINOBIAS: _winobias_rows}
        rows = [row for rows in read_results(path, readers).values() for row in rows]
    if not rows:
        raise DataError(
            f"{str(path)!r} has neither bias_evals.csv nor files like "
            f"evals/pythia-v1/pythia-70m-deduped/baseline/…_step143000.json; {HOW_TO_GET}"
        )
    import pandas as pd

    table = pd.DataFrame(rows, columns=list(COLUMNS))
    # A control checkpoint may have been scored twice (full suite, and with its twin): keep one.
    table["rank"] = table.source.map(_PREFERENCE)
    keys = ["model", "intervention", "step", "task", "prompt", "metric"]
    table = table.sort_values([*keys, "rank"], ignore_index=True).drop_duplicates(keys)
    return Published(table.drop(columns="rank").reset_index(drop=True), path)


# --- the CSV tables --------------------------------------------------------------------------


def _from_csv(path: Path) -> list[tuple]:
    needed = {"suite", "model", "intervention", "step", "source_folder", "task", "prompt"}
    needed |= {"metric", "value", "stderr"}
    with open(path, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if missing := sorted(needed - set(reader.fieldnames or ())):
            raise DataError(f"{path.name} lacks the columns {', '.join(missing)}; {HOW_TO_GET}")
        rows = []
        for number, row in enumerate(reader, start=2):
            if row["suite"] != "v1" or row["model"] not in MODELS or not _wanted(row["task"]):
                continue
            try:
                step, value = int(row["step"]), float(row["value"])
                stderr = float(row["stderr"] or "nan")
            except (TypeError, ValueError) as error:
                raise DataError(f"{path.name}, line {number}: {error}") from error
            source = row["source_folder"].rsplit("/", 1)[-1]
            measure = (row["task"], row["prompt"], row["metric"])
            rows.append((row["model"], row["intervention"], step, source, *measure, value, stderr))
    return rows


def _wanted(task: str) -> bool:
    return task in ("crows_pairs_english_gender", "lambada_openai") or task.startswith("wino_bias")


# --- the evals tree --------------------------------------------------------------------------


def _model(match: re.Match) -> str:
    return match["model"].lower().replace("400m", "410m")


def _harness_rows(match: re.Match, parsed: dict) -> list[tuple]:
    arm = "none"
    if match["kind"] == "intervention":
        arm = "swap_last_21pct" if match["long"] else "swap_last_7pct"
    keys = (_model(match), arm, int(match["step"]), match["kind"])
    return [
        (*keys, task, "", metric, value, stderr)
        for task, metric, value, stderr in harness_scores(parsed)
        if _wanted(task)
    ]


def _winobias_rows(match: re.Match, parsed: dict) -> list[tuple]:
    """The rows of a WinoBias file; the step is in its name or in the model's config."""
    arm = f"swap_last_{match['window']}pct" if match["window"] else "none"
    if step := re.search(r"_(\d+)\.json$", match.string) if match["window"] else None:
        step = int(step[1])
    else:
        step = int(parsed["config"]["model_args"]["iteration"])
    keys = (_model(match), arm, step, "winobias")
    return [
        (*keys, e["task_name"], e["prompt_name"], "em", float(e["em"]), float(e["em_stderr"]))
        for e in parsed["table_results"].values()
    ]
