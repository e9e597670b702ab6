"""The released numbers that the study shows, and what they say about the swap.

Each model has two arms, the control and the swap. Scores have standard errors over items, but
answers to single items were not released. So the effect of the swap is a mean over models, with a
t-interval. The value of a model is its mean over those checkpoints, from step 134,000 on, that have
scores of both arms. All checkpoints are scored on the same items, so this mean does not reduce the
error from the choice of items.

For a single model, the interval comes from the standard errors, as if the arms were independent.
They were scored on the same items, so this interval is too wide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pythia_book.published.files import harness_scores, has_tables, read_results
from pythia_book.published.means import mean_over_pairs
from pythia_book.published.tables import BENCHMARKS, MODELS, read_csv
from pythia_book.stats import Z_95, Estimate, slope
from pythia_core.errors import count_of
from pythia_core.suite import nominal_parameters
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.published.results import Published
    from pythia_book.study import Tables

NO_NUMBERS = "no released numbers: set PYTHIA_PUBLISHED_DIR"
ARM_NAMES = {"none": "control", "swap_last_7pct": "swap_7", "swap_last_21pct": "swap_21"}
LAST_WINDOW = 134_000
"""The first checkpoint after the short swap began. The end of training starts here."""
PROMPTS = ("What does p stand for", "refers_to")
"""The two prompts of the released WinoBias answers."""
COMPARABLE = PROMPTS[0]
"""The prompt to use. With the other one, scores of both kinds of sentences jump at the swap."""
_STANDARD = re.compile(
    r"(?:^|/)pythia-v1/pythia-(?P<model>[\d.]+[mb])(?:-bf16)?/zero-shot/[^/]*"
    rf"_step{OFFICIAL_STEPS}\.json$"
)
"""Matches the files that have the final scores of the current suite's standard models."""
SENTENCES = ("pro", "anti")
"""Values of the column `side`: stereotypical and anti-stereotypical sentences."""
PAIRS = {
    "gender": 320, "race_color": 508, "nationality": 216, "socioeconomic": 190, "religion": 111,
    "sexual_orientation": 93, "age": 91, "physical_appearance": 72, "disability": 65,
}  # fmt: skip
"""Maps a bias to its number of English CrowS-Pairs, computed from the released standard errors."""


def select(published: Published) -> Tables:
    """Return the tables of released numbers that the study shows; shares are fractions of 1.

    - `crows`: `size`, `arm`, `step`, `value`, `stderr`. CrowS-Pairs for gender, over training.
    - `crows_biases`: `bias` and the columns of `crows`. CrowS-Pairs from LAST_WINDOW on.
    - `crows_sizes`: `size`, `value`, `stderr`. Final CrowS-Pairs for gender, all deduplicated
      models.
    - `crows_standard`: the same for all standard models.
    - `winobias`: `suite`, `prompt`, `side` and the columns of `crows`. The rows of each model begin
      at the first step with scores of a swapped arm.
    - `lambada`: `perplexity` and the columns of `crows`, over training.
    """

    def named(table: pd.DataFrame) -> pd.DataFrame:
        """Rename columns and arms as in this study."""
        table = table.rename(columns={"model": "size", "intervention": "arm"})
        return table.assign(arm=table.arm.map(ARM_NAMES))

    winobias, crows = published.winobias(), published.crows()
    swapped = winobias[winobias.intervention != "none"]
    first = swapped.groupby(["suite", "model"]).step.min().rename("first").reset_index()
    winobias = winobias.merge(first, on=["suite", "model"])
    return {
        "crows": named(published.crows_gender()),
        "crows_biases": named(crows[crows.step >= LAST_WINDOW]),
        "crows_sizes": published.crows_by_size().rename(columns={"model": "size"}),
        "crows_standard": crows_standard(published.path),
        "winobias": named(winobias[winobias.step >= winobias["first"]].drop(columns="first")),
        "lambada": named(published.lambada()),
    }


def crows_standard(path: Path | None) -> pd.DataFrame:
    """Read the final CrowS-Pairs scores for gender of all standard models, smallest first.

    Columns: `size`, `value` (a fraction of 1), `stderr`. `path` is as in `published.results.load`.
    """
    import pandas as pd

    task, metric = "crows_pairs_english_gender", "pct_stereotype"

    def scores(match: re.Match, parsed: dict) -> list[tuple]:
        """Turn a file of the evaluation harness into rows (model, task, metric, value, stderr)."""
        return [(match["model"], *score) for score in harness_scores(parsed)]

    if path is not None and has_tables(path):
        table = read_csv(path / "evals_crows_pairs_zero_shot.csv", BENCHMARKS)
        table = table[(table.deduped == 0) & (table.step == OFFICIAL_STEPS)]
    else:
        rows = [] if path is None else read_results(path, {_STANDARD: scores})[_STANDARD]
        table = pd.DataFrame(rows, columns=["model", "task", "metric", "value", "stderr"])
    chosen = table[(table.task == task) & (table.metric == metric)]
    chosen = chosen.drop_duplicates("model").set_index("model")
    chosen = chosen.reindex([model for model in MODELS if model in chosen.index])
    return chosen.rename_axis("size").reset_index()[["size", "value", "stderr"]]


def at_end(table: pd.DataFrame, arm: str, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Average the control and one swapped arm over the last checkpoints that both arms have.

    - the columns `by`, e.g. ("bias",), then `size`, in the order of `table`.
    - `control`, `swapped`, `change` (swapped minus control), in percent.
    - `stderr`: the standard error of the change, over items.
    - `checkpoints`: the number of checkpoints averaged.

    Args:
        table: fractions of 1, with the columns `size`, `arm`, `step`, `value`, `stderr`.
    """
    import pandas as pd

    keys, arms = [*by, "size"], ["control", arm]
    late = table[(table.step >= LAST_WINDOW) & table.arm.isin(arms)]
    late = late.assign(value=100 * late.value, variance=1e4 * late.stderr**2)
    wide = late.pivot(index=[*keys, "step"], columns="arm", values=["value", "variance"])
    columns = pd.MultiIndex.from_product([["value", "variance"], arms])
    wide = wide.reindex(columns=columns).dropna(subset=[("value", name) for name in arms])
    groups = wide.groupby(level=keys)
    means = groups.mean()
    control, swapped = (means["value", name] for name in arms)
    frame = pd.DataFrame(
        {
            "control": control,
            "swapped": swapped,
            "change": swapped - control,
            "stderr": (means["variance", "control"] + means["variance", arm]) ** 0.5,
            "checkpoints": groups.size(),
        }
    ).reset_index()
    ranks = {size: rank for rank, size in enumerate(dict.fromkeys(table["size"]))}
    return frame.sort_values("size", key=lambda c: c.map(ranks), kind="stable", ignore_index=True)


def leads(winobias: pd.DataFrame, suite: str, prompts: tuple[str, ...]) -> pd.DataFrame:
    """Compute how much better stereotypical sentences are answered than anti-stereotypical ones.

    - `size`, `arm`, `step`
    - `value`: the lead, a fraction of 1.
    - `stderr`: its standard error, as if the two kinds of sentences were independent.

    Args:
        suite: "v1" for the current suite, "v0" for the first suite.
        prompts: the prompts to average over, a subset of PROMPTS.
    """
    chosen = winobias[(winobias.suite == suite) & winobias.prompt.isin(prompts)]
    chosen = chosen.assign(variance=chosen.stderr**2)
    keys = ["size", "arm", "step"]
    by_side = chosen.groupby([*keys, "side"], sort=False)
    means = by_side.value.mean().unstack()
    variance = (by_side.variance.sum() / by_side.variance.count() ** 2).unstack()
    if means.empty:
        return chosen[[*keys, "value", "stderr"]]
    frame = (means["pro"] - means["anti"]).rename("value").reset_index()
    return frame.assign(stderr=np.sqrt(variance.sum(axis=1).to_numpy()))


def first_swapped(winobias: pd.DataFrame, prompt: str) -> list[str]:
    """Describe exact matches of control and swap at the swap's first checkpoint, in percent.

    The result has one text per model of the current suite (v1) and length of the swap, such as
    "410m 2.2 to 19.3". The mark "(last 21 %)" stands for the long swap.
    """
    rows = winobias[(winobias.suite == "v1") & (winobias.prompt == prompt)]
    means = 100 * rows.groupby(["size", "arm", "step"]).value.mean()
    texts = []
    for arm, suffix in (("swap_7", ""), ("swap_21", " (last 21 %)")):
        for size in dict.fromkeys(rows["size"]):
            steps = rows[(rows["size"] == size) & (rows.arm == arm)].step
            if len(steps) and (size, "control", steps.min()) in means.index:
                control, swapped = (means[size, a, steps.min()] for a in ("control", arm))
                texts.append(f"{size}{suffix} {control:.1f} to {swapped:.1f}")
    return texts


def other_biases(table: pd.DataFrame) -> pd.DataFrame:
    """Average, for each size, the change in CrowS-Pairs scores over all biases except gender.

    Biases are weighted by their number of pairs. `table` is the result of `at_end` with
    `by=("bias",)`. The result has the columns `change` and `stderr`.
    """
    others = table[table.bias != "gender"]
    pairs, size = others.bias.map(PAIRS).astype(float), others["size"]
    change = (others.change * pairs).groupby(size).sum() / pairs.groupby(size).sum()
    variance = ((others.stderr * pairs) ** 2).groupby(size).sum() / pairs.groupby(size).sum() ** 2
    return change.to_frame("change").assign(stderr=variance**0.5)


# --- estimates -------------------------------------------------------------------------------


def mean_of_models(frame: pd.DataFrame) -> Estimate | None:
    """Return the mean of the column `change` over the models in `frame`; None without models.

    `frame` has one row per model, e.g. from `at_end`. The interval is from `mean_over_pairs` or,
    with only one model, over the model's items.
    """
    if frame.empty:
        return None
    if len(frame) > 1:
        return mean_over_pairs(frame.change.to_numpy(), frame.stderr.to_numpy())
    value, error = float(frame.change.iloc[0]), float(frame.stderr.iloc[0])
    return Estimate(value, value - Z_95 * error, value + Z_95 * error, 1, 1)


def units_of_models(frame: pd.DataFrame, items: str) -> str:
    """Say how many models, checkpoints and items `mean_of_models` averages over."""
    few, many = (frame.checkpoints.min(), frame.checkpoints.max()) if len(frame) else (0, 0)
    count = count_of(many, "checkpoint") if few == many else f"{few} to {many} checkpoints"
    models = count_of(len(frame), "model")
    return f"{models} ({count} each); {items}, both arms as if independent"


def per_tenfold(sizes: Iterable[str], values: Sequence[float]) -> Estimate | None:
    """Fit the change per tenfold nominal size, with a t-interval; None for fewer than 3 models."""
    return slope([math.log10(nominal_parameters(size)) for size in sizes], values)
