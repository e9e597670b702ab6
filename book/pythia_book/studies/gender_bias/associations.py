"""Analyze associations: slopes, what is retained of them, and what to compare that with.

If a change to the training text moves the log odds of all nouns by the same amount, the slope does
not change: the fraction retained is 1. If each noun moves by itself toward the feminine, log odds
are compressed, and the slope falls although no noun is singled out. Two references show by how
much; they are computed from the control alone:

    mixture   every probability of the feminine pronoun (against the masculine one), P, moves the
              same fraction of the way to 1, as if a text without differences were mixed in
    gradient  all log odds climb the gradient of log P for the same time, as if each of them were a
              parameter of its own

After a large shift, "mixture" retains more than "gradient": a fraction of about the mean P. So it
is the stricter reference there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.corpora.occupations import GROUPS
from pythia_book.stats import mean_over, quoted, ratio_of_means, slope
from pythia_book.studies.gender_bias.params import ARMS, CONTROL, Params, fork_step
from pythia_book.study import Measurements, name_of
from pythia_book.tasks.associations import UNSEEN
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Tables

PLANTED_FRAMES = "planted"
REFERENCES = ("mixture", "gradient")
MIXTURE, GRADIENT = REFERENCES
N_POINTS = 40
"""Number of points of a reference curve on either side of no shift."""
FORK = "fork"
"""Stands for the control at the step where an arm forks."""


def analyze_associations(params: Params, measured: Measurements) -> Tables:
    """Compute the tables of associations.

    - `associations`: one row per `model`, `seed`, `arm`, `step`, `frames` and `group` (of nouns):
      `slope`, its interval over nouns (`low`, `high`), and `prior`.
    - `retained`: one row per `model`, `arm`, `frames`, `group`: the retained association with its
      interval over seeds; empty if the interval of the control's includes 0; likewise the
      shift of the prior (`shift`, `shift_low`, `shift_high`), arm minus control; and `seeds`.
    - `contrasts`: for every arm, differences of slopes (`value`, `low`, `high`) from the control's
      at the fork (`against` "fork"), from the control's at its end and from those of the arm
      `absent_21`.
    - `curves`: `shift` and `retained` of the references by size, `frames` and `reference`, out to
      the largest shift of any arm on either side; without sizes that have no association.
    - `nouns`: by size, `arm` and `noun`, in unseen frames at the end: `read` (log odds in the rows
      that the control read) and `value` (log odds of the model), means over seeds.
    """
    import pandas as pd

    table = associations_table(params, measured)
    slopes = Slopes(params, table)
    return {
        "associations": table,
        "retained": pd.DataFrame(_retained_rows(params, slopes)),
        "contrasts": pd.DataFrame(_contrast_rows(params, slopes)),
        "curves": pd.DataFrame(_curve_rows(params, measured, slopes), columns=_CURVE),
        "nouns": pd.DataFrame(_noun_rows(params, measured)),
    }


def log_odds_read(params: Params, measured: Measurements, name: str, seed: int) -> np.ndarray:
    """Return the regressor of a model: log odds that its control read, float64[nouns].

    For a text without planted sentences or without an association, they are the intended log odds.

    Raises:
        KeyError: the text has planted sentences, but the measurements lack the log odds read.
    """
    if params.models[name].flat or scale_named(params.scale).published:
        return np.array([noun["log_odds"] for noun in measured.facts["nouns"]])
    return measured.arrays[name_of("read", seed)].astype(np.float64)


def associations_table(params: Params, measured: Measurements) -> pd.DataFrame:
    """Regress the log odds of every checkpoint; see `analyze_associations`."""
    import pandas as pd

    groups = np.array([noun["group"] for noun in measured.facts["nouns"]])
    rows = []
    for name, seed, arm in params.cells():
        read = log_odds_read(params, measured, name, seed)
        for step in params.steps(arm):
            odds = measured.arrays[name_of("log_odds", name, seed, arm, step)]
            for frames, y in zip(measured.facts["frames"], odds.astype(np.float64), strict=True):
                for group in filter(set(groups).__contains__, GROUPS):
                    chosen = groups == group
                    fit = slope(read[chosen], y[chosen])
                    assert fit is not None
                    keys = {"model": name, "seed": seed, "arm": arm, "step": step}
                    keys |= {"frames": frames, "group": group}
                    ends = {"low": fit.low, "high": fit.high, "prior": y[chosen].mean()}
                    rows.append(keys | {"slope": fit.value} | ends)
    return pd.DataFrame(rows)


class Slopes:
    """Looks up slopes and priors in the table `associations`, as float64[seeds]."""

    def __init__(self, params: Params, associations: pd.DataFrame) -> None:
        self.params = params
        keys = ["model", "arm", "step", "frames", "group"]
        self._cells = {
            key: rows.sort_values("seed")
            for key, rows in associations.groupby(keys, sort=False, observed=True)
        }
        self.frames = tuple(dict.fromkeys(associations.frames))
        self.groups = tuple(dict.fromkeys(associations.group))
        self.primary = self.groups[0]
        """The made-up nouns or, for models that never read them, the occupations."""

    def rows(
        self, name: str, arm: str, frames: str = UNSEEN, group: str = "", window: int = 0
    ) -> pd.DataFrame:
        """Return the rows of a model and arm, one per seed.

        Args:
            group: default: `primary`.
            window: a key of params.WINDOWS: the rows at the start of this last part of training;
                0: those at the end of training.
        """
        scale = self.params.scale
        step = fork_step(scale, window) if window else scale_named(scale).steps
        return self._cells[name, arm, step, frames, group or self.primary]

    def of(
        self, name: str, arm: str, frames: str = UNSEEN, group: str = "", window: int = 0
    ) -> np.ndarray:
        """Return the slopes of a model and arm, float64[seeds]; see `rows`."""
        return self.rows(name, arm, frames, group, window).slope.to_numpy()

    def shift(self, name: str, arm: str, frames: str = UNSEEN, group: str = "") -> np.ndarray:
        """Return the prior of an arm minus that of its control, float64[seeds]."""
        arms = (self.rows(name, a, frames, group).prior.to_numpy() for a in (arm, CONTROL))
        return np.subtract(*arms)

    def difference(
        self, name: str, arm: str, other: str, frames: str = UNSEEN, group: str = ""
    ) -> np.ndarray:
        """Return the slopes of an arm minus those of another arm, or of its control at FORK."""
        at_fork = other == FORK
        base = CONTROL if at_fork else other
        window = ARMS[arm].window if at_fork else 0
        return self.of(name, arm, frames, group) - self.of(name, base, frames, group, window)

    def learned(self, name: str, frames: str = UNSEEN, group: str = "") -> bool:
        """Return whether the interval of a control's association excludes 0.

        The interval is over seeds or, for a single seed, over nouns.
        """
        rows = self.rows(name, CONTROL, frames, group)
        if len(rows) == 1:
            return bool(rows.low.iloc[0] > 0)
        return mean_over(rows.slope.to_numpy()).low > 0

    def retained(
        self, name: str, arm: str, frames: str = UNSEEN, group: str = "", window: int = 0
    ) -> np.ndarray | None:
        """Return values whose mean is the retained association, float64[seeds].

        See `stats.ratio_of_means`. None if the interval of the control's association includes 0.

        Args:
            window: the step of the arm, as in `rows`; the control is always taken at its end.
        """
        if not self.learned(name, frames, group):
            return None
        return ratio_of_means(
            self.of(name, arm, frames, group, window), self.of(name, CONTROL, frames, group)
        )


def seed_mean(units: Any) -> Any:
    """Return the mean over seeds with its interval if there are several; None for None."""
    return None if units is None else quoted(mean_over(np.asarray(units)))


def _retained_rows(params: Params, slopes: Slopes) -> Iterator[dict[str, object]]:
    """Yield the rows of the table `retained`."""
    for name, model in params.models.items():
        for arm in model.arms:
            for frames in slopes.frames:
                for group in slopes.groups:
                    units = slopes.retained(name, arm, frames, group)
                    e = None if units is None else mean_over(units)
                    shift = mean_over(slopes.shift(name, arm, frames, group))
                    yield {
                        "model": name,
                        "arm": arm,
                        "frames": frames,
                        "group": group,
                        "value": e and e.value,
                        "low": e and e.low,
                        "high": e and e.high,
                        "shift": shift.value,
                        "shift_low": shift.low,
                        "shift_high": shift.high,
                        "seeds": model.seeds,
                    }


def _contrast_rows(params: Params, slopes: Slopes) -> Iterator[dict[str, object]]:
    """Yield the rows of the table `contrasts`."""
    for name, model in params.models.items():
        for arm in model.arms:
            others = [FORK, CONTROL]
            if "absent_21" in model.arms and arm != "absent_21":
                others.append("absent_21")
            for frames in slopes.frames:
                for group in slopes.groups:
                    for other in others:
                        e = mean_over(slopes.difference(name, arm, other, frames, group))
                        keys = {"model": name, "arm": arm, "frames": frames, "group": group}
                        yield {**keys, "against": other, **e.interval()}


# --- references ------------------------------------------------------------------------------


def moved(odds: np.ndarray, shift: float, reference: str) -> np.ndarray:
    """Move each log odds as a reference does, until their mean has shifted by `shift`.

    Args:
        odds: float64[...], log odds of the control.
        reference: one of REFERENCES.
    """
    from scipy.optimize import brentq
    from scipy.special import wrightomega

    sign = -1.0 if shift < 0 else 1.0
    start = sign * odds

    def at(amount: float) -> np.ndarray:
        """Return the log odds (mirrored if the shift is negative) after a movement by `amount`."""
        if reference == GRADIENT:  # the solution of dx/dt = 1 - P(x), at time e^amount - 1
            return np.log(wrightomega(np.expm1(amount) + start + np.exp(start)))
        p = 1 / (1 + np.exp(-start))
        rest = np.exp(-amount) * (1 - p)  # of 1 - P
        return np.log((1 - rest) / rest)

    if shift == 0:
        return odds
    amount = brentq(lambda a: float((at(a) - start).mean()) - abs(shift), 0, 60)
    return sign * at(amount)


def reference_slope(odds: np.ndarray, read: np.ndarray, shift: float, reference: str) -> float:
    """Return the slope of `moved` log odds, float64[frames, nouns], on the log odds `read`."""
    centered = read - read.mean()
    return float(centered @ moved(odds, shift, reference).mean(axis=0) / (centered @ centered))


def _primary_odds(
    params: Params, measured: Measurements, name: str, seed: int, frames: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the control's log odds of the primary nouns, [frames, nouns], and those it read."""
    groups = np.array([noun["group"] for noun in measured.facts["nouns"]])
    odds = measured.arrays[name_of("frames", name, seed, frames)].astype(np.float64)
    return odds, log_odds_read(params, measured, name, seed)[groups == groups[0]]


def excess_over(
    reference: str,
    params: Params,
    measured: Measurements,
    slopes: Slopes,
    name: str,
    arm: str,
    frames: str = UNSEEN,
) -> np.ndarray | None:
    """Return, as a fraction of the control's association, what an arm retains beyond a reference.

    The values are as in `Slopes.retained`: float64[seeds], or None. The reference, one of
    REFERENCES, is taken at the shift of each seed.
    """
    if not slopes.learned(name, frames):
        return None
    expected = []
    for seed, shift in enumerate(slopes.shift(name, arm, frames)):
        odds, read = _primary_odds(params, measured, name, seed, frames)
        expected.append(reference_slope(odds, read, float(shift), reference))
    above = slopes.of(name, arm, frames) - np.array(expected)
    return ratio_of_means(above, slopes.of(name, CONTROL, frames))


def _curve_rows(
    params: Params, measured: Measurements, slopes: Slopes
) -> Iterator[dict[str, object]]:
    """Yield the rows of the table `curves`."""
    for size in params.size_list:
        for frames in (UNSEEN, PLANTED_FRAMES):
            if not slopes.learned(size, frames):
                continue
            shifts = [slopes.shift(size, arm, frames).mean() for arm in params.arms]
            ends = min(-1.0, 1.1 * min(shifts)), max(1.0, 1.1 * max(shifts))
            sides = np.linspace(ends[0], 0, N_POINTS), np.linspace(0, ends[1], N_POINTS)[1:]
            controls = [
                _primary_odds(params, measured, size, seed, frames)
                for seed in range(params.models[size].seeds)
            ]
            before = [reference_slope(odds, read, 0.0, MIXTURE) for odds, read in controls]
            for reference in REFERENCES:
                for shift in np.concatenate(sides):
                    after = [
                        reference_slope(odds, read, float(shift), reference)
                        for odds, read in controls
                    ]
                    yield {
                        "size": size,
                        "frames": frames,
                        "reference": reference,
                        "shift": float(shift),
                        "retained": float(np.mean(after) / np.mean(before)),
                    }


_CURVE = ["size", "frames", "reference", "shift", "retained"]


def _noun_rows(params: Params, measured: Measurements) -> Iterator[dict[str, object]]:
    """Yield the rows of the table `nouns`."""
    end, at = scale_named(params.scale).steps, list(measured.facts["frames"]).index(UNSEEN)
    for size in params.size_list:
        seeds = range(params.models[size].seeds)
        read = np.mean([log_odds_read(params, measured, size, seed) for seed in seeds], axis=0)
        for arm in (CONTROL, *params.models[size].arms):
            odds = np.mean(
                [measured.arrays[name_of("log_odds", size, s, arm, end)][at] for s in seeds], axis=0
            )
            for noun, x, y in zip(measured.facts["nouns"], read, odds, strict=True):
                keys = {"size": size, "arm": arm, "noun": noun["noun"], "group": noun["group"]}
                yield {**keys, "read": float(x), "value": float(y)}
