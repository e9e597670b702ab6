"""Measures how closely a swapped model follows its control from checkpoint to checkpoint.

A fork reads the batches of its control, so it may repeat the control's chance moves in a score:
fork and control are *coupled*. We compare the released swapped models with our own forks, which
have swapped pronouns or, as a placebo, swapped prepositions. A fork without any change would be
bit-identical to its control, with correlation 1.

The statistic is the correlation r of the changes from one checkpoint to the next, so linear trends
do not matter. Intervals use Fisher's z, and `INFLATION` widens them for autocorrelation. Coupling
is the mean of z over the scores in `TESTED`. Coupling tighter than that of real swaps is evidence
that nothing was swapped. Loose coupling shows nothing, because other hardware loosens it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import Z_95, Estimate, difference, mean_over
from pythia_book.studies.gender_bias.evidence import share_changed
from pythia_book.studies.gender_bias.params import ARMS, CONTROL, WINDOWS, Cell
from pythia_book.studies.gender_bias.released_numbers import COMPARABLE
from pythia_book.study import Measurements, name_of
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.measurements import Arrays
    from pythia_book.published.results import Published
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems
    from pythia_book.studies.gender_bias.params import Params
    from pythia_book.study import Tables
    from pythia_core.evaluation import scoring
    from pythia_core.training.runs import Run

LAST = 143
"""The last of the evenly spaced checkpoints."""
KINDS = {"swap": "pronouns", "placebo": "prepositions"}
"""Maps the kinds of our forks to what they swap."""
KIND_OF = {"swap_7": "swap", "swap_21": "swap", "placebo_21": "placebo"}
"""Maps an arm to its kind."""

MEASURES = ("last_words", "crows", "winobias", "last_word_accuracy")
"""The scores.

`last_words`: log-perplexity of last words (released: of LAMBADA).
`crows`: mean absolute difference in log-likelihood within the gender pairs of CrowS-Pairs.
`winobias`: score of pro- minus score of anti-stereotypical sentences of WinoBias. We score by
log-likelihood; the released score is exact match, on the prompt that is scored alike in both arms.
`last_word_accuracy`: accuracy on last words.
"""
TESTED = ("last_words", "crows", "winobias")
"""The tested scores. Accuracy on last words is only shown: our small models get too few right."""
TESTED_WINDOW = 7
"""The length of the swap, in percent of training, that every released swapped model has."""
PLACEBO_WINDOW = 21
"""The length of the placebo."""
MIN_DIFFERENCES = 8
INFLATION = 1.5
"""Factor on the variance of Fisher's z, for changes with a lag-1 autocorrelation of -1/2:
1 + 2 (1/2)^2. Scores that scatter independently about a trend have such changes."""
LARGEST_R = 1 - 1e-6
UNCOUPLED = "70m"
"""The only released swapped model that does not follow its control. Means leave it out."""


def steps(scale: str, window: int) -> list[int]:
    """Return the steps, ascending, at which forks of the last `window` % of training are scored."""
    step = scale_named(scale).fork_step
    first = WINDOWS[window]
    return sorted({step(i) for i in range(first + 1, LAST + 1)} - {step(first)})


# --- measuring -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CouplingMeasurement:
    """A measurement for `measure_all` that maps each of MEASURES to its score, a float64[1]."""

    items: TokenizedItems
    name: str = "gender_coupling"

    @property
    def digest(self) -> str:
        return self.items.digest

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        from pythia_core.evaluation import scoring

        language = self.items.language
        words = scoring.score_words(model, language.rows, language.words)
        crows, winobias = (
            scoring.score(model, pairs).logprob.reshape(-1, 2)
            for pairs in (self.items.crows, self.items.winobias)
        )
        means = {
            "last_words": -words.logprob.mean(),
            "crows": np.abs(crows[:, 0] - crows[:, 1]).mean(),  # as the released evaluation does
            "winobias": (winobias[:, 0] - winobias[:, 1]).mean(),
            "last_word_accuracy": words.greedy.mean(),
        }
        return {name: np.array([mean]) for name, mean in means.items()}


def measure(
    params: Params, runs: dict[Cell, Run], progress: bool = True, items: Items | None = None
) -> tuple[Arrays, dict[str, Any]]:
    """Score the runs of `Params.coupled_cells` at each of `steps`; without runs, return ({}, {}).

    - array "coupling/MEASURE/SIZE/SEED/ARM": float32[steps], NaN for an unreadable checkpoint. A
      control is scored at the steps of the longest window.
    - fact "coupling_shares": maps each kind of fork to the mean fraction of tokens changed in the
      window.
    - fact "coupling_gaps": the number of unreadable checkpoints.
    """
    from pythia_book.measurements import measure_all
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems

    cells = params.coupled_cells()
    if not cells:
        return {}, {}
    items = items or Items.load()
    made: dict[Any, CouplingMeasurement] = {}  # by text
    scores: dict[tuple[str, int], Arrays] = {}
    gaps = []
    steps_of = {cell: steps(params.scale, _window(cell[2])) for cell in cells}
    for cell in cells:
        run = runs[cell]
        text = run.data.with_heldout()
        if text.tokens_folder not in made:
            tokenized = TokenizedItems(items, text, run.config.model.max_seq_len)
            made[text.tokens_folder] = CouplingMeasurement(tokenized)
    for folder, measurement in made.items():
        checkpoints = [
            (runs[cell], step)
            for cell in cells
            if runs[cell].data.with_heldout().tokens_folder == folder
            for step in steps_of[cell]
        ]
        measured, missing = measure_all(checkpoints, measurement, progress)
        scores |= measured
        gaps += missing
    arrays: Arrays = {}
    for cell in cells:
        for name in MEASURES:
            series = [
                scores[runs[cell].id, step][name].item()
                if (runs[cell].id, step) in scores
                else math.nan
                for step in steps_of[cell]
            ]
            arrays[name_of("coupling", name, *cell)] = np.array(series, np.float32)
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for cell in cells:
        if cell[2] != CONTROL:
            shares[KIND_OF[cell[2]]].append(share_changed(runs[cell]))
    return arrays, {
        "coupling_shares": {kind: float(np.mean(share)) for kind, share in shares.items()},
        "coupling_gaps": len(gaps),
    }


def _window(arm: str) -> int:
    """Return the length of an arm's change in percent of training; for a control, the longest."""
    return max(WINDOWS) if arm == CONTROL else ARMS[arm].window


# --- released numbers ------------------------------------------------------------------------

_RELEASED = {
    "last_words": ("lambada_openai", "ppl"),
    "last_word_accuracy": ("lambada_openai", "acc"),
    "crows": ("crows_pairs_english_gender", "likelihood_difference"),
}


def released(published: Published) -> Tables:
    """Return the table `coupling_released`: scores of released swapped models and their controls.

    - `model`, `measure`, `step`
    - `window`: the length of the swap in percent of training.
    - `control`, `swap`: the scores, for "last_words" the log-perplexity.

    Steps without both scores are left out.
    """
    import pandas as pd

    from pythia_book.published.results import FORKED

    table = published.table[published.table.model.isin(FORKED)]
    if "suite" in table:
        table = table[table.suite == "v1"]
    scored = ["model", "intervention", "step", "task", "prompt", "metric"]
    table = table.drop_duplicates(scored)  # the first is that of the evaluation of both arms
    parts = []
    for measure, (task, metric) in _RELEASED.items():
        rows = table[(table.task == task) & (table.metric == metric)]
        value = np.log(rows.value) if metric == "ppl" else rows.value
        parts.append(rows.assign(measure=measure, value=value))
    comparable = table[(table.metric == "em") & (table.prompt == COMPARABLE)]
    sign = np.where(comparable.task.str.endswith("_pro"), 0.5, -0.5)  # the mean over types 1 and 2
    net = comparable.assign(value=comparable.value * sign, measure="winobias")
    parts.append(net)
    keys = ["model", "measure", "step", "intervention"]
    counted = pd.concat(parts).groupby(keys).value.agg(["sum", "count"])
    complete = counted["count"] == np.where(
        counted.index.get_level_values("measure") == "winobias", 4, 1
    )
    wide = counted["sum"][complete].unstack()
    frames = []
    for window in WINDOWS:
        columns = {"none": "control", f"swap_last_{window}pct": "swap"}
        pairs = wide.reindex(columns=list(columns)).rename(columns=columns).dropna()
        frames.append(pairs.reset_index().assign(window=window))
    chosen = pd.concat(frames)[["model", "window", "measure", "step", "control", "swap"]]
    by_size = {"key": lambda models: models.map(FORKED.index), "kind": "stable"}
    return {"coupling_released": chosen.sort_values("model", ignore_index=True, **by_size)}


# --- analysis --------------------------------------------------------------------------------


def correlation(control: np.ndarray, fork: np.ndarray) -> Estimate | None:
    """Correlate the changes in two series of scores, float[steps], with Fisher's interval.

    Return None with fewer than MIN_DIFFERENCES changes, or if all changes of a series are equal.
    """
    differences = np.diff(np.stack([control, fork]).astype(np.float64))
    n = differences.shape[1]
    if n < MIN_DIFFERENCES or not differences.std(axis=1).all():
        return None
    r = float(np.corrcoef(differences)[0, 1])
    z = fisher_z(r)
    half = Z_95 / (n / INFLATION - 3) ** 0.5
    return Estimate(r, math.tanh(z - half), math.tanh(z + half), n, 1)


def fisher_z(r: float) -> float:
    """Return Fisher's z, atanh(r); the limit LARGEST_R keeps it finite."""
    return math.atanh(min(max(r, -LARGEST_R), LARGEST_R))


def autocorrelation(control: np.ndarray, fork: np.ndarray) -> float:
    """Return the lag-1 autocorrelation of step-to-step changes, averaged over the two series."""
    d = np.diff(np.stack([control, fork]).astype(np.float64))
    d -= d.mean(axis=1, keepdims=True)
    return float(np.mean((d[:, 1:] * d[:, :-1]).sum(1) / (d**2).sum(1)))


@dataclass(frozen=True)
class _Pair:
    """A fork and its control, with their scores on one measure at the steps that have both.

    Attributes:
        source: "released" or "ours".
        kind: one of KINDS.
        window: the length of the fork in percent of training.
        control, fork: the scores, float[steps].
    """

    source: str
    model: str
    seed: int
    kind: str
    window: int
    measure: str
    control: np.ndarray
    fork: np.ndarray


def _pairs(params: Params, arrays: Arrays, released: Tables) -> Iterator[_Pair]:
    """Yield one `_Pair` per fork and measure, released models first."""
    table = released.get("coupling_released")
    if table is not None:
        keys = ["model", "window", "measure"]
        for (model, window, measure), rows in table.groupby(keys, sort=False):
            rows = rows.sort_values("step")
            scores = rows.control.to_numpy(), rows.swap.to_numpy()
            yield _Pair("released", str(model), 0, "swap", int(window), str(measure), *scores)
    longest = steps(params.scale, 21)
    for (measure, size, seed, arm), fork in Measurements(arrays, {}).under("coupling"):
        if arm == CONTROL:
            continue
        kind, window = KIND_OF[arm], _window(arm)
        compared = [longest.index(step) for step in steps(params.scale, window)]
        control = arrays[name_of("coupling", measure, size, seed, CONTROL)][compared]
        both = np.isfinite(control) & np.isfinite(fork)
        yield _Pair("ours", size, int(seed), kind, window, measure, control[both], fork[both])


def analyze(
    params: Params, arrays: Arrays, facts: dict[str, Any], released: Tables
) -> tuple[Tables, dict[str, Any]]:
    """Compute the table `coupling`, with one row per `_Pair`, and the numbers that the page quotes.

    - `source`, `model`, `seed`, `kind`, `window`, `measure`: as in `_Pair`.
    - `n`: the number of step-to-step changes.
    - `r`, `low`, `high`: the correlation of the fork's changes with the control's, with its
      interval.
    - `z`: Fisher's z of r.
    - `autocorrelation`: the result of the function `autocorrelation`.
    - `shift`: mean score of the fork minus that of the control, in standard deviations of the
      control's changes.

    Pairs for which the function `correlation` returns None are left out.
    """
    import pandas as pd

    columns = ["source", "model", "seed", "kind", "window", "measure"]
    columns += ["n", "r", "low", "high", "z", "autocorrelation", "shift"]
    rows = []
    for pair in _pairs(params, arrays, released):
        e = correlation(pair.control, pair.fork)
        if e is None:
            continue
        noise = np.diff(pair.control).std(ddof=1)
        keys = (pair.source, pair.model, pair.seed, pair.kind, pair.window, pair.measure)
        numbers = (e.n_items, e.value, e.low, e.high, fisher_z(e.value))
        shift = (pair.fork - pair.control).mean() / noise
        rows.append((*keys, *numbers, autocorrelation(pair.control, pair.fork), shift))
    table = pd.DataFrame(rows, columns=columns)
    return {"coupling": table}, _values(table, facts)


def unit_z(
    table: pd.DataFrame,
    source: str,
    kind: str,
    windows: tuple[int, ...],
    measures: tuple[str, ...] = TESTED,
    left_out: str = UNCOUPLED,
) -> pd.Series:
    """Return how tightly forks are coupled: the mean Fisher's z for each (model, seed).

    The arguments select rows of the table `coupling`; `left_out` is a model, or "" for none.
    """
    chosen = table[
        (table.source == source)
        & (table.kind == kind)
        & table.window.isin(windows)
        & table.measure.isin(measures)
        & (table.model != left_out)
    ]
    return chosen.groupby(["model", "seed"]).z.mean()


def compared_z(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return `unit_z` of all released swapped models and of our swaps, in the tested window."""
    window = (TESTED_WINDOW,)
    theirs, ours = (unit_z(table, s, "swap", window, left_out="") for s in ("released", "ours"))
    return theirs, ours


def _values(table: pd.DataFrame, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that the page quotes, by name; None if nothing was measured.

    X is "released", "swap" (our pronoun swaps) or "placebo". A mean correlation comes from the mean
    of Fisher's z, without the model UNCOUPLED.

    - coupling_X: mean correlation over the scores TESTED, in the last 7 % of training (for the
      placebo, 21 %); coupling_X_crows: that of CrowS-Pairs alone.
    - coupling_X_shift: the largest absolute shift in the score of CrowS-Pairs in the same window,
      over all models.
    - coupling_released_all: coupling_released with the model UNCOUPLED.
    - coupling_excess: Fisher's z of all released models minus that of our swaps, with its interval.
    - coupling_X_share: mean percentage of tokens that our forks change in their windows.
    """
    theirs, ours = compared_z(table)
    values: dict[str, Any] = {
        "coupling_released_all": math.tanh(theirs.mean()) if len(theirs) else None,
        "coupling_excess": difference(mean_over(theirs), mean_over(ours)).interval()
        if len(theirs) and len(ours)
        else None,
    }
    for name, source, kind, window in (
        ("released", "released", "swap", TESTED_WINDOW),
        ("swap", "ours", "swap", TESTED_WINDOW),
        ("placebo", "ours", "placebo", PLACEBO_WINDOW),
    ):
        for part, measures in (("", TESTED), ("_crows", ("crows",))):
            z = unit_z(table, source, kind, (window,), measures)
            values[f"coupling_{name}{part}"] = math.tanh(z.mean()) if len(z) else None
        chosen = table[(table.source == source) & (table.kind == kind) & (table.window == window)]
        shifts = chosen[chosen.measure == "crows"]["shift"].abs()
        values[f"coupling_{name}_shift"] = float(shifts.max()) if len(shifts) else None
    shares = facts.get("coupling_shares", {})
    for kind in KINDS:
        values[f"coupling_{kind}_share"] = 100 * shares[kind] if kind in shares else None
    return values
