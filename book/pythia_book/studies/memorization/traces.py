"""Compute the tables of traces: what reading a text once leaves in the loss, for rows and canaries.

All values are in nats per token, and positive if reading helps (see `profiles`). Ages are in
updates since a text was read. The tables of a single run have intervals over its texts; the table
`seeds` has intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pythia_book.stats import Estimate, mean_over, ratio_of_means
from pythia_book.studies.memorization.params import AHEAD, Params
from pythia_book.studies.memorization.profiles import (
    NEVER,
    Panel,
    joint_test,
    mean_trace,
    ratio_of_traces,
    relative_trend,
    trend,
)
from pythia_book.study import Measurements, name_of
from pythia_core.suite import scale_named
from pythia_core.training.schedule import learning_rate

INTERVAL = ["value", "low", "high"]
AGES = ((0, 15), (16, 79), (80, 239), (240, None))
"""The lowest and the highest age, in updates, of each group of canaries."""
DOSES = ((1, 1), (2, 2), (3, 5), (6, None))
"""The lowest and the highest number of readings of each group of canaries."""
PLACES = 6
"""The number of equal parts of training, and of the floor, in which rows are averaged."""
FOLLOWED = 4
"""How many cohorts, the earliest ones, are followed over several ages."""
MEASURES = ("first", "persistent", "retained", "residual", "trend", "floor_trend",
            "canary", "canary_dose", "canary_floor")  # fmt: skip
"""What is estimated for every run (see `Run`)."""
COLUMNS: dict[str, list[str]] = {
    "profiles": ["size", "cohort", "step", "percent", "age", "n", *INTERVAL],
    "ages": ["size", "age", "n", *INTERVAL],
    "cohorts": ["size", "cohort", "percent", "rate", "n", *INTERVAL],
    "places": ["size", "scope", "percent", "n", *INTERVAL],
    "traces": ["size", "seed", "measure", "n", *INTERVAL],
    "seeds": ["size", "measure", "n", *INTERVAL],
    "pretrends": ["size", "cohort", "n", *INTERVAL, "joint_p"],
    "canaries": ["size", "kind", "low_end", "high_end", "n", *INTERVAL],
}
Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """The panels of one run, and the estimates of MEASURES, each a property.

    - first: the mean trace of all cohorts at the first look at them, FIRST checkpoints on. Adam's
      momentum spreads the effect of a batch over some ten updates, so it is not all there at once.
    - persistent: that of all cohorts but the last AHEAD when the cohort AHEAD of them begins.
    - retained: `persistent` as a share of what the same cohorts had at the first look.
    - residual: the mean trace at the end of rows from all of training.
    - trend, floor_trend: how residual traces change per tenth of training with the place of the
      row: over all of training, and over the part at the minimum learning rate.
    - canary: the mean trace at the end of canaries read once.
    - canary_dose: how the trace of canaries changes per doubling of the readings.
    - canary_floor: `floor_trend` for canaries read once.
    """

    params: Params
    size: str
    seed: int
    paths: Panel
    ends: Panel
    even: np.ndarray
    """bool[rows in the ends]: see `panels.ChosenRows`."""
    canaries: Panel
    reads: np.ndarray
    """int64[canaries]: how often each canary is read."""

    @property
    def last(self) -> int:
        """The last step of the run."""
        return scale_named(self.params.scale).steps

    # --- rows

    def cohort(self, number: int) -> np.ndarray:
        """Return the indices, in the paths, of the rows of a cohort."""
        return self.paths.read_in(*self.params.cohorts[number])

    def path(self, number: int, after: int, before: int | None = None) -> np.ndarray:
        """Return weights for the fall of a cohort's loss from `before` to `after`.

        By default, `before` is the last checkpoint before the cohort is read.
        """
        before = self.params.cohorts[number][0] if before is None else before
        return self.paths.fall(before, after, len(self.cohort(number)))

    def pooled(self, numbers: range, after: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of several cohorts, and weights up to one checkpoint per cohort."""
        rows = [self.cohort(k) for k in numbers]
        weights = [self.path(k, step) for k, step in zip(numbers, after, strict=True)]
        return np.concatenate(rows), np.concatenate(weights, axis=1)

    @property
    def first(self) -> Estimate:
        return mean_trace(self.paths, *self._looks(len(self.params.cohorts)))

    def _looks(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the first `n` cohorts, and weights up to the first look at each."""
        return self.pooled(range(n), [self.params.first_look(k) for k in range(n)])

    def _kept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, weights up to the start of a later cohort, and up to the first look."""
        starts = [start for start, _ in self.params.cohorts[AHEAD:]]
        rows, later = self.pooled(range(len(starts)), starts)
        return rows, later, self._looks(len(starts))[1]

    @property
    def persistent(self) -> Estimate:
        rows, later, _ = self._kept()
        return mean_trace(self.paths, rows, later)

    @property
    def retained(self) -> Estimate:
        return ratio_of_traces(self.paths, *self._kept())

    def after(self, cohorts_later: int) -> Estimate:
        """Return the mean trace of the first FOLLOWED cohorts when a later cohort begins."""
        numbers, cohorts = range(FOLLOWED), self.params.cohorts
        return mean_trace(
            self.paths, *self.pooled(numbers, [cohorts[k + cohorts_later][0] for k in numbers])
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
        weights = [self.path(k, cohorts[k][0], cohorts[k - 1][0]) for k in numbers]
        means, p = joint_test(self.paths, rows, weights)
        pooled = mean_trace(self.paths, np.concatenate(rows), np.concatenate(weights, axis=1))
        return means, p, pooled

    @property
    def rate_slope(self) -> Estimate:
        """How the first trace changes with the learning rate, over all cohorts.

        The unit of the learning rate is its maximum.
        """
        rows, weights = self._looks(len(self.params.cohorts))
        rates = [learning_rate(int(u), self.last, 1.0, 0.1) for u in self.paths.read[rows]]
        return trend(self.paths, rows, weights, np.array(rates))

    # --- the end of training

    def ended(self, scope: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, weights up to the end, and the places of the rows in tenths of training.

        Args:
            scope: "training", the even sample of all rows; or "floor", all rows read at the minimum
                learning rate, whose fall begins with it.
        """
        base, floor, last = self.params.end_steps
        rows = self.ends.read_in(base if scope == "training" else floor, last)
        rows = rows[self.even[rows]] if scope == "training" else rows
        start = base if scope == "training" else floor
        weights = self.ends.fall(start, last, len(rows))
        return rows, weights, 10 * (self.ends.read[rows] + 0.5) / last

    @property
    def residual(self) -> Estimate:
        return mean_trace(self.ends, *self.ended("training")[:2])

    @property
    def trend(self) -> Estimate:
        return trend(self.ends, *self.ended("training"))

    @property
    def floor_trend(self) -> Estimate:
        return trend(self.ends, *self.ended("floor"))

    def relative_trend(self, scope: str) -> Estimate:
        """Return the trend as a percentage of the mean trace in the same scope."""
        return relative_trend(self.ends, *self.ended(scope)).times(100)

    def places(self, scope: str) -> Iterator[dict[str, Any]]:
        """Yield the mean trace at the end for each of PLACES parts of training or of the floor."""
        rows, weights, places = self.ended(scope)
        base, floor, last = self.params.end_steps
        start = base if scope == "training" else floor
        edges = 10 * np.linspace(start, last, PLACES + 1) / last
        for low, high in pairwise(edges):
            inside = (places >= low) & (places < high)
            e = mean_trace(self.ends, rows[inside], weights[:, inside])
            yield {"scope": scope, "percent": 5 * (low + high), "n": e.n_items, **e.interval()}

    # --- canaries

    @property
    def _once(self) -> np.ndarray:
        return self.canaries.read_in(0, self.last)

    @property
    def canary(self) -> Estimate:
        return mean_trace(
            self.canaries, self._once, self.canaries.fall(None, self.last, len(self._once))
        )

    @property
    def canary_floor(self) -> Estimate:
        chosen = self.canaries.read_in(self.params.end_steps[1], self.last)
        weights = self.canaries.fall(None, self.last, len(chosen))
        return trend(self.canaries, chosen, weights, 10 * self.canaries.read[chosen] / self.last)

    @property
    def canary_dose(self) -> Estimate:
        chosen = np.flatnonzero((self.canaries.read != NEVER) & (self.reads > 0))
        weights = self.canaries.fall(None, self.last, len(chosen))
        return trend(self.canaries, chosen, weights, np.log2(self.reads[chosen]))

    def by_dose(self, low: int, high: int | None) -> Estimate:
        """Return the mean trace at the end of canaries read `low` to `high` times."""
        most = np.inf if high is None else high
        read = self.canaries.read != NEVER
        chosen = np.flatnonzero(read & (self.reads >= low) & (self.reads <= most))
        return mean_trace(self.canaries, chosen, self.canaries.fall(None, self.last, len(chosen)))

    def by_age(self, low: int, high: int | None) -> Estimate:
        """Return the mean trace of canaries read once, at checkpoints of this age.

        Each canary counts once, with its mean over these checkpoints.
        """
        steps = np.array(self.canaries.steps)[:, None]
        age = steps - 1 - self.canaries.read[None, self._once]
        inside = (age >= low) & (age <= (np.inf if high is None else high))
        any_inside = inside.any(0)
        weights = -1.0 * inside[:, any_inside] / inside[:, any_inside].sum(0)
        return mean_trace(self.canaries, self._once[any_inside], weights)


def runs_of(params: Params, measured: Measurements) -> dict[tuple[str, int], Run]:
    """Map (size, seed) to each run that was measured without a gap."""
    runs = {}
    for size, seed in params.members:
        losses = [measured.get(f"{kind}_loss", size, seed) for kind in ("path", "end", "canary")]
        if any(loss is None for loss in losses):
            continue
        read = [measured.arrays[name_of(f"{k}_read", seed)] for k in ("path", "end", "canary")]
        steps = params.path_steps, params.end_steps, params.canary_steps
        panels = [
            Panel(tuple(s), np.asarray(loss, np.float64), r.astype(np.int64))
            for s, loss, r in zip(steps, losses, read, strict=True)
        ]
        paths, ends, canary = panels
        even = measured.arrays[name_of("end_even", seed)]
        reads = measured.arrays[name_of("canary_reads", seed)].astype(np.int64)
        runs[size, seed] = Run(params, size, seed, paths, ends, even, canary, reads)
    return runs


# --- tables ----------------------------------------------------------------------------------


def tables(params: Params, runs: dict[tuple[str, int], Run]) -> dict[str, Lines]:
    """Return all tables of COLUMNS. Those of single runs have the runs with the seed `seed`."""
    suite = {size: run for (size, seed), run in runs.items() if seed == params.seed}
    return {
        "profiles": [line for run in suite.values() for line in _profile(run)],
        "ages": [line for run in suite.values() for line in _ages(run)],
        "cohorts": [line for run in suite.values() for line in _cohorts(run)],
        "places": [
            {"size": size} | line
            for size, run in suite.items()
            for scope in ("training", "floor")
            for line in run.places(scope)
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
        "pretrends": [line for run in suite.values() for line in _pretrends(run)],
        "canaries": [line for run in suite.values() for line in _canaries(run)],
    }


def over_seeds(params: Params, runs: dict[tuple[str, int], Run], measure: str) -> Estimate | None:
    """Return the mean of an estimate over the seeds of the seeded size; None if one is NaN.

    `measure` is one of MEASURES, or "order": the mean trend as a percentage of the mean residual.
    """
    seeded = [run for (size, _), run in runs.items() if size == params.seeded_size]

    if not seeded:
        return None

    def values(name: str) -> np.ndarray:
        return np.array([getattr(run, name).value for run in seeded])

    if measure == "order":
        found = 100 * ratio_of_means(values("trend"), values("residual"))
    else:
        found = values(measure)
    return mean_over(found) if np.isfinite(found).all() else None


def agreement(one: Run, other: Run) -> float:
    """Return the correlation, over cohorts and checkpoints, of the profiles of two runs."""
    a, b = (np.array([line["value"] for line in _profile(run)]) for run in (one, other))
    return float(np.corrcoef(a, b)[0, 1]) if np.isfinite(a + b).all() else float("nan")


def _profile(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the trace of each cohort at each checkpoint after it was read."""
    for number, (_, stop) in enumerate(run.params.cohorts):
        for step in run.paths.steps:
            if step >= stop:
                e = mean_trace(run.paths, run.cohort(number), run.path(number, step))
                keys = {"size": run.size, "cohort": number + 1, "step": step}
                keys |= {"percent": 100 * step / run.last, "age": step - stop}
                yield keys | {"n": e.n_items, **e.interval()}


def _ages(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the mean trace of the first cohorts by age."""
    cohorts, numbers = run.params.cohorts, range(FOLLOWED)
    early = [run.pooled(numbers, [cohorts[k][1] for k in numbers]),
             run.pooled(numbers, [run.params.first_look(k) for k in numbers])]  # fmt: skip
    ages = [0, run.params.first_look(0) - cohorts[0][1]]
    found = [mean_trace(run.paths, *group) for group in early]
    for ahead in range(1, len(cohorts) - FOLLOWED + 1):
        ages.append(cohorts[ahead][0] - cohorts[0][1])
        found.append(run.after(ahead))
    for age, e in zip(ages, found, strict=True):
        yield {"size": run.size, "age": age, "n": e.n_items, **e.interval()}


def _cohorts(run: Run) -> Iterator[dict[str, Any]]:
    """Yield the first trace of each cohort, and the learning rate at which it was read."""
    for number, (start, _) in enumerate(run.params.cohorts):
        look = run.path(number, run.params.first_look(number))
        e = mean_trace(run.paths, run.cohort(number), look)
        yield {
            "size": run.size,
            "cohort": number + 1,
            "percent": 100 * start / run.last,
            "rate": learning_rate(start, run.last, 1.0, 0.1),
            "n": e.n_items,
            **e.interval(),
        }


def _pretrends(run: Run) -> Iterator[dict[str, Any]]:
    means, p, pooled = run.pretrends
    for number, e in [*enumerate(means, 2), (0, pooled)]:
        line = {"size": run.size, "cohort": number, "n": e.n_items, **e.interval()}
        yield line | {"joint_p": p}


def _canaries(run: Run) -> Iterator[dict[str, Any]]:
    for kind, groups, estimate in (("age", AGES, run.by_age), ("dose", DOSES, run.by_dose)):
        for low, high in groups:
            e = estimate(low, high)
            keys = {"size": run.size, "kind": kind, "low_end": low, "high_end": high}
            yield keys | {"n": e.n_items, **e.interval()}
