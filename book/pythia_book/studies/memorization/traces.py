"""Computes the tables of traces: what one reading of a row or canary leaves in the loss.

All values are in nats per token, and positive if reading helps (see `panel`). Ages are in
updates since a text was read. The tables of a single run have intervals over its texts; the table
`seeds` has intervals over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pythia_book.stats import Estimate, mean_over, ratio_of_means
from pythia_book.studies.memorization.panel import (
    NEVER,
    Panel,
    joint_test,
    mean_trace,
    ratio_of_traces,
    relative_trend,
    trend,
)
from pythia_book.studies.memorization.params import INTERVAL, PERSISTENT_AFTER, Params
from pythia_book.study import Measurements, name_of
from pythia_core.suite import scale_named
from pythia_core.training.schedule import learning_rate

AGES = {
    "before": (-math.inf, -1),
    "0\N{EN DASH}15": (0, 15),
    "16\N{EN DASH}79": (16, 79),
    "80\N{EN DASH}239": (80, 239),
    "240+": (240, math.inf),
}
"""Maps each group of canaries to its lowest and highest age in updates; "before" is a placebo."""
DOSES = {"1": (1, 1), "2": (2, 2), "3+": (3, math.inf)}
"""Maps each group of canaries to its lowest and highest number of readings. Canaries that are read
more often are too few, because most of them are cut in some reading."""
POSITIONS = 6
"""The number of equal parts of training, or of its part at the minimum rate, to average rows in."""
FOLLOWED = 4
"""How many cohorts, the earliest ones, are followed over several ages."""
MEASURES = ("first", "first_early", "persistent", "retained", "residual", "trend", "first_half",
            "second_half", "floor_trend", "placebo", "canary_before", "canary", "canary_dose",
            "canary_floor")  # fmt: skip
"""What is estimated for every run (see `Traces`)."""
COLUMNS: dict[str, list[str]] = {
    "profiles": ["size", "cohort", "step", "percent", "age", "n", *INTERVAL],
    "ages": ["size", "age", "n", *INTERVAL],
    "cohorts": ["size", "cohort", "percent", "rate", "n", *INTERVAL],
    "positions": ["size", "scope", "percent", "n", *INTERVAL],
    "traces": ["size", "seed", "measure", "n", *INTERVAL],
    "seeds": ["size", "measure", "n", *INTERVAL],
    "canaries": ["size", "kind", "group", "n", *INTERVAL],
}
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Traces:
    """The panels of one run, and the estimates of MEASURES, each a property.

    - first: the mean trace of all cohorts at the first look at them, FIRST_LOOK checkpoints on.
      Adam's momentum spreads the effect of a batch over some ten updates, so it is not all there at
      once.
    - first_early: the same, of the cohorts in `persistent`: all but the last PERSISTENT_AFTER.
    - persistent: the mean trace of each cohort when the cohort PERSISTENT_AFTER places later
      begins.
    - retained: `persistent` as a share of `first_early`.
    - residual: the mean trace at the end of rows from all of training.
    - trend, first_half, second_half, floor_trend: how residual traces change per tenth of training
      with the position of the row: over all of training, over each half of it, and over the part at
      the minimum learning rate.
    - placebo: the fall of the loss of rows read at the minimum learning rate, before they are read,
      minus that of rows never read.
    - canary_before: `canary` at all checkpoints before the reading, where there is no trace yet.
      All seeds plant the same canaries, and leave out the same others to compare them with: how
      hard these strings happen to be is in the mean over seeds, but not in its interval.
    - canary: the mean trace at the end of canaries read once.
    - canary_dose: how the trace of canaries changes per doubling of the readings. Canaries that are
      read more often were also read more recently, so dose and recency go together.
    - canary_floor: `floor_trend` for canaries read once.

    Rows and canaries read once, after Params.too_late, are left out at the end: their traces are
    still growing, which would look like an effect of order.
    """

    params: Params
    size: str
    seed: int
    cohorts: Panel
    """The rows of the cohorts."""
    final: Panel
    """The rows of the final sample."""
    even: np.ndarray
    """bool[rows in `final`]: see `samples.ChosenRows`."""
    canaries: Panel
    reads: np.ndarray
    """int64[canaries]: how often each canary is read, see `samples.ChosenCanaries`."""

    @property
    def last(self) -> int:
        """The last step of the run."""
        return scale_named(self.params.scale).steps

    def rate(self, update: int) -> float:
        """Return the learning rate of an update, in units of the largest."""
        return learning_rate(update, self.last, 1.0, 0.1)

    # --- rows

    def cohort(self, number: int) -> np.ndarray:
        """Return the indices, in `cohorts`, of the rows of a cohort."""
        return self.cohorts.read_in(*self.params.cohorts[number])

    def fall(self, number: int, after: int, before: int | None = None) -> np.ndarray:
        """Return weights for the fall of a cohort's loss from `before` to `after`.

        By default, `before` is the last checkpoint before the cohort is read.
        """
        before = self.params.cohorts[number][0] if before is None else before
        return self.cohorts.fall(before, after, len(self.cohort(number)))

    def pooled(self, numbers: range, after: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of several cohorts, and weights for the fall to a checkpoint of each."""
        rows = [self.cohort(k) for k in numbers]
        weights = [self.fall(k, step) for k, step in zip(numbers, after, strict=True)]
        return np.concatenate(rows), np.concatenate(weights, axis=1)

    @property
    def first(self) -> Estimate:
        return mean_trace(self.cohorts, *self._looks(len(self.params.cohorts)))

    def _looks(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the first `n` cohorts, and weights for the fall to each first look."""
        return self.pooled(range(n), [self.params.first_look(k) for k in range(n)])

    def _kept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, and weights for the fall to a later cohort's start and to the first look."""
        starts = [start for start, _ in self.params.cohorts[PERSISTENT_AFTER:]]
        rows, later = self.pooled(range(len(starts)), starts)
        return rows, later, self._looks(len(starts))[1]

    @property
    def first_early(self) -> Estimate:
        rows, _, first = self._kept()
        return mean_trace(self.cohorts, rows, first)

    @property
    def persistent(self) -> Estimate:
        rows, later, _ = self._kept()
        return mean_trace(self.cohorts, rows, later)

    @property
    def retained(self) -> Estimate:
        return ratio_of_traces(self.cohorts, *self._kept())

    def after(self, cohorts_later: int) -> Estimate:
        """Return the mean trace of the first FOLLOWED cohorts when a later cohort begins."""
        numbers, cohorts = range(FOLLOWED), self.params.cohorts
        return mean_trace(
            self.cohorts, *self.pooled(numbers, [cohorts[k + cohorts_later][0] for k in numbers])
        )

    @property
    def pretrends(self) -> tuple[list[Estimate], float, Estimate]:
        """The traces before reading: from the beginning of one cohort to that of the next.

        Returns:
            The estimate for each cohort but the first; the p-value of the joint test that all are
            zero; and their mean over all rows.
        """
        cohorts, numbers = self.params.cohorts, range(1, len(self.params.cohorts))
        rows = [self.cohort(k) for k in numbers]
        weights = [self.fall(k, cohorts[k][0], cohorts[k - 1][0]) for k in numbers]
        means, p = joint_test(self.cohorts, rows, weights)
        pooled = mean_trace(self.cohorts, np.concatenate(rows), np.concatenate(weights, axis=1))
        return means, p, pooled

    @property
    def rate_slope(self) -> Estimate:
        """How the first trace changes with the learning rate, over all cohorts.

        The unit of the learning rate is its maximum.
        """
        rows, weights = self._looks(len(self.params.cohorts))
        rates = [self.rate(int(update)) for update in self.cohorts.read[rows]]
        return trend(self.cohorts, rows, weights, np.array(rates))

    # --- the end of training

    def at_end(self, scope: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, weights for the fall up to the end, and positions in tenths of training.

        Args:
            scope: "training", the even sample of all rows; "first half" or "second half", the part
                of this sample that is read in that half of training; or "floor", all rows read at
                the minimum learning rate, with the fall counted from its first step.
        """
        base, floor, last = self.params.final_steps
        start, stop = {
            "training": (base, self.params.too_late),
            "first half": (base, last // 2),
            "second half": (last // 2, self.params.too_late),
            "floor": (floor, self.params.too_late),
        }[scope]
        rows = self.final.read_in(start, stop)
        rows = rows[self.even[rows]] if scope != "floor" else rows
        weights = self.final.fall(floor if scope == "floor" else base, last, len(rows))
        return rows, weights, 10 * (self.final.read[rows] + 0.5) / last

    def mean_at_end(self, scope: str) -> Estimate:
        """Return the mean trace at the end of the rows of a scope."""
        return mean_trace(self.final, *self.at_end(scope)[:2])

    @property
    def residual(self) -> Estimate:
        return self.mean_at_end("training")

    @property
    def trend(self) -> Estimate:
        return trend(self.final, *self.at_end("training"))

    @property
    def first_half(self) -> Estimate:
        return trend(self.final, *self.at_end("first half"))

    @property
    def second_half(self) -> Estimate:
        return trend(self.final, *self.at_end("second half"))

    @property
    def floor_trend(self) -> Estimate:
        return trend(self.final, *self.at_end("floor"))

    @property
    def placebo(self) -> Estimate:
        base, floor, last = self.params.final_steps
        rows = self.final.read_in(floor, last)
        return mean_trace(self.final, rows, self.final.fall(base, floor, len(rows)))

    def order(self, scope: str) -> Estimate | None:
        """Return the trend as a percentage of the mean trace in the same scope.

        None if this mean is not clearly positive: there is nothing to depend on order then.
        """
        if not self.mean_at_end(scope).low > 0:
            return None
        return relative_trend(self.final, *self.at_end(scope)).times(100)

    def positions(self, scope: str) -> Iterator[dict[str, Any]]:
        """Yield the mean trace, at the end of training, of rows in each of POSITIONS parts of
        `scope`."""
        rows, weights, position = self.at_end(scope)
        base, floor, _ = self.params.final_steps
        start, stop = base if scope == "training" else floor, self.params.too_late
        edges = 10 * np.linspace(start, stop, POSITIONS + 1) / self.last
        for low, high in pairwise(edges):
            inside = (position >= low) & (position < high)
            e = mean_trace(self.final, rows[inside], weights[:, inside])
            yield {"scope": scope, "percent": 5 * (low + high), "n": e.n_items, **e.interval()}

    # --- canaries

    @property
    def _once(self) -> np.ndarray:
        return self.canaries.read_in(0, self.params.too_late)

    def _at_end(self, chosen: np.ndarray) -> np.ndarray:
        """Return weights whose sum with the losses is minus the loss at the end of training."""
        return self.canaries.fall(None, self.last, len(chosen))

    @property
    def canary_before(self) -> Estimate:
        return self.by_age(*AGES["before"])

    @property
    def canary(self) -> Estimate:
        return mean_trace(self.canaries, self._once, self._at_end(self._once))

    @property
    def canary_floor(self) -> Estimate:
        chosen = self.canaries.read_in(self.params.final_steps[1], self.params.too_late)
        tenths = 10 * self.canaries.read[chosen] / self.last
        return trend(self.canaries, chosen, self._at_end(chosen), tenths)

    def _dosed(self, low: float, high: float) -> np.ndarray:
        """Return the canaries read `low` to `high` times, except those read once and too late."""
        late = self.canaries.read >= self.params.too_late
        planted = (self.canaries.read != NEVER) & ~late
        return np.flatnonzero(planted & (self.reads >= low) & (self.reads <= high))

    @property
    def canary_dose(self) -> Estimate:
        chosen = self._dosed(1, math.inf)
        return trend(self.canaries, chosen, self._at_end(chosen), np.log2(self.reads[chosen]))

    def by_dose(self, low: float, high: float) -> Estimate:
        """Return the mean trace at the end of canaries read `low` to `high` times."""
        chosen = self._dosed(low, high)
        return mean_trace(self.canaries, chosen, self._at_end(chosen))

    def by_age(self, low: float, high: float) -> Estimate:
        """Return the mean trace of canaries read once, at checkpoints of this age.

        Each canary counts once, with its mean over these checkpoints. A negative age is before the
        canary is read.
        """
        once = self.canaries.read_in(0, self.last)
        age = np.array(self.canaries.steps)[:, None] - 1 - self.canaries.read[None, once]
        inside = (age >= low) & (age <= high)
        any_inside = inside.any(0)
        weights = -1.0 * inside[:, any_inside] / inside[:, any_inside].sum(0)
        return mean_trace(self.canaries, once[any_inside], weights)


def runs_of(params: Params, measured: Measurements) -> dict[tuple[str, int], Traces]:
    """Map (size, seed) to the traces of each run that was measured without a gap."""
    runs = {}
    steps = {
        "cohort": params.cohort_steps, "final": params.final_steps, "canary": params.canary_steps
    }  # fmt: skip
    for size, seed in params.members:
        losses = {kind: measured.get(f"{kind}_loss", size, seed) for kind in steps}
        if any(loss is None for loss in losses.values()):
            continue
        panels = [
            Panel(
                tuple(steps[kind]),
                np.asarray(loss, np.float64),
                measured.arrays[name_of(f"{kind}_read", seed)].astype(np.int64),
            )
            for kind, loss in losses.items()
        ]
        cohorts, final, canaries = panels
        even = measured.arrays[name_of("final_even", seed)]
        reads = measured.arrays[name_of("canary_reads", seed)].astype(np.int64)
        runs[size, seed] = Traces(params, size, seed, cohorts, final, even, canaries, reads)
    return runs


# --- tables ----------------------------------------------------------------------------------


def tables(params: Params, runs: dict[tuple[str, int], Traces]) -> dict[str, Lines]:
    """Return all tables of COLUMNS. All but "traces" and "seeds" cover only `params.seed`."""
    suite = {size: run for (size, seed), run in runs.items() if seed == params.seed}
    return {
        "profiles": [line for run in suite.values() for line in _profile(run)],
        "ages": [line for run in suite.values() for line in _ages(run)],
        "cohorts": [line for run in suite.values() for line in _cohorts(run)],
        "positions": [
            {"size": size} | line
            for size, run in suite.items()
            for scope in ("training", "floor")
            for line in run.positions(scope)
        ],
        "traces": [
            {"size": size, "seed": seed, "measure": m, "n": e.n_items, **e.interval()}
            for (size, seed), run in runs.items()
            for m in MEASURES
            for e in [getattr(run, m)]
        ],
        "seeds": [
            {"size": params.seeded_size, "measure": m, "n": e.n_items, **e.interval()}
            for m in MEASURES
            if (e := over_seeds(params, runs, m)) is not None
        ],
        "canaries": [line for run in suite.values() for line in _canaries(run)],
    }


def over_seeds(
    params: Params, runs: dict[tuple[str, int], Traces], measure: str
) -> Estimate | None:
    """Return the mean of an estimate over the further seeds of the seeded size.

    The seed `seed` is not among them: the hypotheses were written after a first look at a run with
    its order (see `trace_claims`).

    Args:
        measure: one of MEASURES, or "order": the mean trend as a percentage of the mean residual.

    Returns:
        None if there are no further seeds, if a value is NaN, or if the mean residual that "order"
        is a percentage of is not clearly positive.
    """
    seeded = further(params, runs)
    if not seeded:
        return None

    def units(name: str) -> np.ndarray:
        return np.array([getattr(run, name).value for run in seeded])

    if measure != "order":
        values = units(measure)
    elif np.isfinite(residual := units("residual")).all() and mean_over(residual).low > 0:
        values = 100 * ratio_of_means(units("trend"), residual)
    else:
        return None
    return mean_over(values) if np.isfinite(values).all() else None


def further(params: Params, runs: dict[tuple[str, int], Traces]) -> list[Traces]:
    """Return the runs of the seeded size with seeds other than `seed`."""
    return [run for (size, seed), run in runs.items()
            if size == params.seeded_size and seed != params.seed]  # fmt: skip


def agreement(one: Traces, other: Traces) -> float:
    """Return the correlation, over cohorts and checkpoints, of the profiles of two runs."""
    a, b = (
        np.array([line["value"] for line in _profile(run) if line["age"] >= 0])
        for run in (one, other)
    )
    return float(np.corrcoef(a, b)[0, 1]) if np.isfinite(a + b).all() else float("nan")


def _profile(run: Traces) -> Iterator[dict[str, Any]]:
    """Yield the trace of each cohort when the preceding one begins, and after its rows are read."""
    cohorts = run.params.cohorts
    for number, (_, stop) in enumerate(cohorts):
        before = [cohorts[number - 1][0]] if number else []
        for step in [*before, *(step for step in run.cohorts.steps if step >= stop)]:
            e = mean_trace(run.cohorts, run.cohort(number), run.fall(number, step))
            keys = {"size": run.size, "cohort": number + 1, "step": step}
            keys |= {"percent": 100 * step / run.last, "age": step - stop}
            yield keys | {"n": e.n_items, **e.interval()}


def _ages(run: Traces) -> Iterator[dict[str, Any]]:
    """Yield the mean trace of the first cohorts by age."""
    cohorts, numbers = run.params.cohorts, range(FOLLOWED)
    early = [run.pooled(numbers, [cohorts[k][1] for k in numbers]),
             run.pooled(numbers, [run.params.first_look(k) for k in numbers])]  # fmt: skip
    ages = [0, run.params.first_look(0) - cohorts[0][1]]
    estimates = [mean_trace(run.cohorts, *group) for group in early]
    for ahead in range(1, len(cohorts) - FOLLOWED + 1):
        ages.append(cohorts[ahead][0] - cohorts[0][1])
        estimates.append(run.after(ahead))
    for age, e in zip(ages, estimates, strict=True):
        yield {"size": run.size, "age": age, "n": e.n_items, **e.interval()}


def _cohorts(run: Traces) -> Iterator[dict[str, Any]]:
    """Yield the first trace of each cohort, and the learning rate at which it was read."""
    for number, (start, _) in enumerate(run.params.cohorts):
        look = run.fall(number, run.params.first_look(number))
        e = mean_trace(run.cohorts, run.cohort(number), look)
        yield {
            "size": run.size,
            "cohort": number + 1,
            "percent": 100 * start / run.last,
            "rate": run.rate(start),
            "n": e.n_items,
            **e.interval(),
        }


def _canaries(run: Traces) -> Iterator[dict[str, Any]]:
    for kind, groups, estimate in (("age", AGES, run.by_age), ("dose", DOSES, run.by_dose)):
        for group, ends in groups.items():
            e = estimate(*ends)
            keys = {"size": run.size, "kind": kind, "group": group}
            yield keys | {"n": e.n_items, **e.interval()}
