"""Reads the released evaluation results of EleutherAI/pythia from the user's copy.

The copy is a folder of CSV tables with `bias_evals.csv`, a clone of the public repository, or its
`evals` folder; or an archive of one of these. The main table has the bias and LAMBADA results of
the deduplicated models. Of the first suite (v0), it has only WinoBias, because other files of v0
mix two versions of the CrowS-Pairs metric.

CrowS-Pairs (English; 1,677 pairs, 320 about gender) is scored by total log-likelihood after one
end-of-document token, LAMBADA by greedy decoding of the last word, and WinoBias by exact match of
the generated occupation, for two prompts. Each type of WinoBias has 396 sentences with the
stereotypical pronoun ("pro") and 396 with the other ("anti"). The paper's own WinoBias metric
compares two pronouns; no raw file of it was released.
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
from pythia_book.published.means import mean_over_tasks
from pythia_book.published.tables import (
    BENCHMARKS,
    DOUBLE_BATCH,
    FORMER_NAMES,
    MODELS,
    Tables,
    benchmark_tables,
    in_order,
    memorization_table,
    read_csv,
    without_misplaced,
)
from pythia_core.errors import DataError
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

FORKED = ("70m", "410m", "1.4b", "6.9b")
"""Sizes with a released pronoun-swap model."""
ARMS = ("none", "swap_last_7pct", "swap_last_21pct")
BIASES = ("gender", "race_color", "nationality", "socioeconomic", "religion",
          "sexual_orientation", "age", "physical_appearance", "disability")  # fmt: skip
"""The nine biases of CrowS-Pairs. Eleven pairs of the English file are about other things."""
COLUMNS = ("suite", "model", "intervention", "step", "source", "task", "prompt", "metric")
COLUMNS += ("value", "stderr")

_HARNESS = re.compile(
    r"(?:^|/)pythia-v1/pythia-(?P<model>[\d.]+[mb])-deduped/"
    r"(?P<kind>baseline|intervention|zero-shot)/[^/]*?(?P<long>-long)?_step(?P<step>\d+)\.json$"
)
_WINOBIAS = re.compile(
    r"(?:^|/)(?:bias-evals|pythia-(?P<v0>v0))/winobias/(?:intervene_(?P<window>7|21)/)?"
    r"(?P<model>[\d.]+[mb])/eval_results_[^/]*\.json$",
    re.IGNORECASE,
)
_PREFERENCE = {"baseline": 0, "intervention": 0, "winobias": 0, "zero-shot": 1}


@dataclass(frozen=True)
class Published:
    """The released results: the main table, and further tables, which are read on access."""

    table: pd.DataFrame
    """The main table, with the columns COLUMNS. `intervention` is one of ARMS, and `step` counts
    updates of 2M tokens.
    """
    path: Path | None = None
    """The folder or archive with the other tables. This path is never shown."""

    @cached_property
    def _tables(self) -> Tables:
        """The tables of benchmarks, baselines and batch sizes, as released."""
        return benchmark_tables(self.path)

    @property
    def released_benchmarks(self) -> pd.DataFrame:
        """All released rows of benchmark scores, including those that `benchmarks` leaves out."""
        return self._tables[0]

    @cached_property
    def benchmarks(self) -> pd.DataFrame:
        """The scores of all sixteen models, without `misplaced` rows; columns tables.BENCHMARKS."""
        return without_misplaced(self._tables[0])

    @property
    def baselines(self) -> pd.DataFrame:
        """The zero-shot scores of OPT and BLOOM, with the columns tables.BASELINES."""
        return self._tables[1]

    @property
    def batch_size(self) -> pd.DataFrame:
        """The scores of models trained with smaller batches, with the columns tables.BATCH_SIZE."""
        return self._tables[2]

    @cached_property
    def memorization(self) -> pd.DataFrame:
        """The scores of the released predictions of memorization.

        Columns: `experiment`, `model`, `step`, the rates `tp`, `fp`, `fn` and `tn` in percent,
        `precision` and `recall`.
        """
        return memorization_table(self.path)

    def crows_gender(self) -> pd.DataFrame:
        """Return CrowS-Pairs scores for gender, of models trained with and without a pronoun swap.

        `value` is the share of pairs in which the more stereotypical sentence is the likelier one.
        Other columns: `model`, `intervention`, `step`, `stderr`.
        """
        return self._view("crows_pairs_english_gender", "pct_stereotype")

    def crows(self) -> pd.DataFrame:
        """Return the table of `crows_gender` for all BIASES, with the further column `bias`."""
        import pandas as pd

        views = [
            self._view(f"crows_pairs_english_{bias}", "pct_stereotype").assign(bias=bias)
            for bias in BIASES
        ]
        return pd.concat(views, ignore_index=True)

    def crows_by_size(self) -> pd.DataFrame:
        """Return final CrowS-Pairs scores for gender of all deduplicated models.

        The columns are `model`, `value` (a share) and `stderr`. All scores are from the evaluation
        of the full suite, so all models were scored in the same way.
        """
        rows = self._rows("crows_pairs_english_gender", "pct_stereotype")
        final = rows[(rows.source == "zero-shot") & (rows.step == OFFICIAL_STEPS)]
        return _ordered(final)[["model", "value", "stderr"]]

    def lambada(self) -> pd.DataFrame:
        """Return LAMBADA (OpenAI) scores of models trained with and without a pronoun swap.

        `value` is the accuracy, a fraction. Other columns: `model`, `intervention`, `step`,
        `stderr`, `perplexity`.
        """
        keys = ["model", "intervention", "step"]
        perplexity = self._view("lambada_openai", "ppl").rename(columns={"value": "perplexity"})
        accuracy = self._view("lambada_openai", "acc")
        return accuracy.merge(perplexity[[*keys, "perplexity"]], on=keys, how="left")

    def winobias(self) -> pd.DataFrame:
        """Return WinoBias scores of models trained with and without a pronoun swap.

        Columns:
        - `suite`, `model`, `intervention`, `prompt`
        - `side`: "pro" for the stereotypical pronoun, "anti" for the other.
        - `step`: updates of 2M tokens, in both suites.
        - `value`, `stderr`: share of exact matches, a mean over the two types of sentences, and the
          standard error of this mean.
        """
        em = self.table[self.table.metric == "em"].copy()
        em["side"] = em.task.str.rsplit("_", n=1).str[-1]
        keys = ["suite", "model", "intervention", "prompt", "side", "step"]
        return _ordered(mean_over_tasks(em, keys).sort_values(keys))

    def _view(self, task: str, metric: str) -> pd.DataFrame:
        """Return one metric of one task for the models in FORKED, in the order of `_ordered`."""
        keys = ["model", "intervention", "step"]
        rows = self._rows(task, metric).drop_duplicates(keys)  # the first is that of the twin
        return _ordered(rows[rows.model.isin(FORKED)][[*keys, "value", "stderr"]])

    def _rows(self, task: str, metric: str) -> pd.DataFrame:
        """Return the rows of the main table with this task and metric."""
        return self.table[(self.table.task == task) & (self.table.metric == metric)]


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort a table by model (smallest first), intervention (in the order of ARMS) and step."""
    return in_order(frame, ["model", "intervention", "step"], (*MODELS, *ARMS))


def find(source: str | Path | None = None) -> Published | None:
    """Load the released results from `source`, by default the path in PYTHIA_PUBLISHED_DIR.

    Return None if there is no path. Raises a DataError if the results cannot be read (see `load`).
    """
    location = source or os.environ.get(VARIABLE)
    return load(location) if location else None


def load(source: str | Path) -> Published:
    """Read the released results from a folder or archive.

    Raises:
        DataError: the path does not exist, the archive exceeds a limit, a member's name leads
            outside the archive, JSON or CSV is malformed, or `source` lacks released results.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(
            f"{str(path)!r}, where published numbers are expected, does not exist; {HOW_TO_GET}"
        )
    if has_tables(path):
        rows = _from_csv(path / "bias_evals.csv") + _sizes_from_csv(path)
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
    # A control may have been scored twice: with its twin, which comes first, and in the full suite.
    table["rank"] = table.source.map(_PREFERENCE)
    keys = ["suite", "model", "intervention", "step", "task", "prompt", "metric"]
    table = table.sort_values([*keys, "rank"], ignore_index=True)
    return Published(table.drop(columns="rank"), path)


# --- the CSV tables --------------------------------------------------------------------------


def _from_csv(path: Path) -> list[tuple]:
    """Read the rows of the main table from bias_evals.csv, as tuples with the fields COLUMNS.

    Raises a DataError if a column is missing or a value is not a number.
    """
    needed = {"suite", "model", "intervention", "step_2M_equiv", "source_folder", "task", "prompt"}
    needed |= {"metric", "value", "stderr"}
    with open(path, newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if missing := sorted(needed - set(reader.fieldnames or ())):
            raise DataError(f"{path.name} lacks the columns {', '.join(missing)}; {HOW_TO_GET}")
        rows = []
        for number, row in enumerate(reader, start=2):
            if row["model"] not in FORKED or not _wanted(row["task"], row["suite"]):
                continue
            try:
                step, value = int(row["step_2M_equiv"]), float(row["value"])
                stderr = float(row["stderr"] or "nan")
            except (TypeError, ValueError) as error:
                raise DataError(f"{path.name}, line {number}: {error}") from error
            source = row["source_folder"].rsplit("/", 1)[-1]
            measure = (row["task"], row["prompt"], row["metric"])
            arm = (row["suite"], row["model"], row["intervention"], step)
            rows.append((*arm, source, *measure, value, stderr))
    return rows


def _sizes_from_csv(folder: Path) -> list[tuple]:
    """Read CrowS-Pairs scores of deduplicated models not in FORKED, as rows of the main table."""
    table = read_csv(folder / "evals_crows_pairs_zero_shot.csv", BENCHMARKS)
    chosen = table[(table.deduped == 1) & ~table.model.isin(FORKED)]
    return [
        ("v1", r.model, "none", int(r.step), "zero-shot", r.task, "", r.metric, r.value, r.stderr)
        for r in chosen.itertuples()
        if _wanted(r.task)
    ]


def _wanted(task: str, suite: str = "v1") -> bool:
    """Whether the main table has the results of a suite ("v0" or "v1") on a task."""
    if task.startswith("wino_bias"):
        return True
    return suite == "v1" and (task == "lambada_openai" or task.startswith("crows_pairs_english"))


# --- the evals tree --------------------------------------------------------------------------


def _model(match: re.Match) -> str:
    """Return the current name of a model, from the match of a file's name."""
    name = match["model"].lower()
    return FORMER_NAMES.get(name, name)


def _harness_rows(match: re.Match, parsed: dict) -> list[tuple]:
    """Turn a harness file, whose name matched _HARNESS, into rows of the main table."""
    arm = "none"
    if match["kind"] == "intervention":
        arm = "swap_last_21pct" if match["long"] else "swap_last_7pct"
    keys = ("v1", _model(match), arm, int(match["step"]), match["kind"])
    return [
        (*keys, task, "", metric, value, stderr)
        for task, metric, value, stderr in harness_scores(parsed)
        if _wanted(task)
    ]


def _winobias_rows(match: re.Match, parsed: dict) -> list[tuple]:
    """Turn a WinoBias file (of either format) into rows of the main table."""
    suite, model = "v0" if match["v0"] else "v1", _model(match)
    arm = f"swap_last_{match['window']}pct" if match["window"] else "none"
    step = int((parsed.get("config") or parsed)["model_args"]["iteration"])
    if suite == "v0" and model in DOUBLE_BATCH:
        step *= 2
    keys = (suite, model, arm, step, "winobias")
    return [
        (*keys, e["task_name"], e["prompt_name"], "em", float(e["em"]), float(e["em_stderr"]))
        for e in parsed["table_results"].values()
    ]
