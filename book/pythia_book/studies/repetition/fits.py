"""The law of Muennighoff et al. and its rivals, fitted to our runs.

All constants of a law are fitted together, by least squares. For fresh runs, the residuals are
those of ln L. For repeated runs, they are those of the *excess*: the ln of the loss, minus that of
the fresh run with the same size, length and seed. This removes most of the noise between seeds, and
errors in the law of fresh data; the source, too, shifts its predictions to the loss of fresh data
(in its Figure 5). Otherwise the source differs: it first fits E, A, alpha, B and beta to fresh
runs, and ties alpha to beta. We do not fit in two steps, because if models have more parameters
than the law warrants for their fresh tokens, the law discounts parameters in fresh runs, too.

The law says that repeating never hurts, so runs on the same data are in its *domain* only while
each number of epochs gives a lower loss than the next smaller number. The source also left out runs
whose loss rises again (its appendix A). All rivals are fitted to the same runs, those in the
domain, even the penalty, which lets repetition hurt.

Each constant gets two intervals: one over seeds, by the jackknife, and a profile interval, which
treats the misfit of the law as noise. A constant is *identified* if the ends of its profile
interval are less than a factor SPAN apart, and its interval over seeds excludes zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import numpy as np

from pythia_book.stats import LEVEL, Estimate, jackknife, mean_over_known
from pythia_book.studies.repetition.law import MUENNIGHOFF, Law
from pythia_book.studies.repetition.losses import Losses

FEWEST_SIZES = 3
SPAN = 10.0
FRESH = ("E", "size_term", "alpha", "data_term", "beta")
"""The constants of every law. The terms A / N^alpha and B / D^beta are those of the middle size and
length, because A and B themselves depend on the exponents. They are fitted as logarithms."""
DECAY = ("data_rate", "parameter_rate")
DIFFERENCE = "parameter_rate minus data_rate"
PENALTY = ("P", "delta", "kappa")
RIVALS = {"none": (), "data": DECAY[:1], "whole": DECAY, "theirs": (), "penalty": PENALTY}
"""Laws of repetition, and what each fits in addition to FRESH: repeated data are as good as fresh;
only data decay; data and parameters decay; the same with R*_D and R*_N of the source; an additive
penalty, whose constants are fitted as logarithms."""
LARGEST_RATE = 10.0
"""Largest rate of decay: all further passes are then worth a tenth of the first one."""
LOWEST = dict(zip((*FRESH, *DECAY, *PENALTY),
                  (*np.log([1e-2, 1e-3, 0.02, 1e-3, 0.02]), 0, 0, *np.log([1e-8, 0.05, 0.02])),
                  strict=True))  # fmt: skip
HIGHEST = dict(zip((*FRESH, *DECAY, *PENALTY),
                   (*np.log([20, 20, 5, 20, 5]), LARGEST_RATE, LARGEST_RATE, *np.log([10, 8, 8])),
                   strict=True))  # fmt: skip
"""Bounds of all constants, on the scale on which they are fitted."""
TOLERANCE = {"ftol": 1e-7, "xtol": 1e-7, "max_nfev": 200}


@dataclass(frozen=True)
class Points:
    """Runs as points of a law, one per row.

    Attributes:
        size, epochs: str[runs] and int[runs].
        n, d, u: float64[runs], parameters, tokens read and distinct tokens.
        loss, fresh: float64[runs, seeds], nats per token, of the run and of the fresh run of the
            same size and length.
        domain: bool[runs], whether repeating has not hurt yet.
    """

    size: np.ndarray
    epochs: np.ndarray
    n: np.ndarray
    d: np.ndarray
    u: np.ndarray
    loss: np.ndarray
    fresh: np.ndarray
    domain: np.ndarray

    def where(self, rows: np.ndarray) -> Points:
        """Return the runs that `rows`, bool[runs], selects."""
        return Points(*(getattr(self, f.name)[rows] for f in fields(self)))

    def of(self, seeds: np.ndarray) -> Points:
        """Return the runs with only the losses of the seeds that `seeds`, bool[seeds], selects."""
        return replace(self, loss=self.loss[:, seeds], fresh=self.fresh[:, seeds])

    @cached_property
    def level(self) -> np.ndarray:
        """The mean over seeds of ln of the loss, float64[runs]."""
        return np.log(self.loss).mean(1)

    @cached_property
    def middle(self) -> tuple[float, float]:
        """The geometric means of parameters and of tokens."""
        return float(np.exp(np.log(self.n).mean())), float(np.exp(np.log(self.d).mean()))

    @cached_property
    def excess(self) -> np.ndarray:
        """The mean over seeds of ln(loss / loss of the fresh run), float64[runs]."""
        return np.log(self.loss / self.fresh).mean(1)


def points_of(losses: Losses, kind: str = "all") -> Points:
    """Return the runs that every seed has; `kind` says which parameters count."""
    params = losses.params
    rows = []
    for size in params.size_list:
        for part in params.epoch_list:
            best, within = math.inf, True
            for p, epochs in sorted(params.pairs):
                if p != part:
                    continue
                loss = losses.final(size, part, epochs)
                within = within and bool(loss.mean() < best)
                best = loss.mean()
                d = losses.tokens(part) * epochs
                fresh = losses.final(size, part // epochs, 1)
                n, u = losses.parameters(size, kind), losses.tokens(part)
                rows.append((size, epochs, float(n), float(d), float(u), loss, fresh, within))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    points = Points(*columns)
    return points.where(np.isfinite(points.loss).all(1) & np.isfinite(points.fresh).all(1))


# --- fitting ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A rival's law, to be fitted to fresh and repeated runs.

    Attributes:
        rival: a key of RIVALS.
    """

    rival: str
    fresh: Points
    repeated: Points

    @property
    def names(self) -> tuple[str, ...]:
        """The constants that are fitted."""
        return (*FRESH, *RIVALS[self.rival])

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of the fitted constants."""
        return tuple(np.array([each[n] for n in self.names]) for each in (LOWEST, HIGHEST))

    def law(self, x: np.ndarray) -> Law:
        """Return the law with the constants float64[constants], in the order of `names`."""
        e, size_term, alpha, data_term, beta = np.exp(x[: len(FRESH)]).tolist()
        n, d = self.fresh.middle
        law = Law(e, size_term * n**alpha, alpha, data_term * d**beta, beta)
        rest = x[len(FRESH) :].tolist()
        if self.rival == "penalty":
            factor, by_repetition, by_capacity = np.exp(rest).tolist()
            return replace(law, penalty=(factor, by_repetition, by_capacity))
        if self.rival == "theirs":
            rest = [getattr(MUENNIGHOFF, name) for name in DECAY]
        return replace(law, **dict(zip(DECAY, rest, strict=False)))

    def residuals(self, x: np.ndarray) -> np.ndarray:
        """Return float64[residuals]: those of ln L of fresh runs, then those of the excess."""
        law, fresh, repeated = self.law(x), self.fresh, self.repeated
        level = np.log(law.loss(fresh.n, fresh.d, fresh.d)) - fresh.level
        rest = law.excess(repeated.n, repeated.d, repeated.u) - repeated.excess
        return np.concatenate([level, rest])

    def best(self, start: np.ndarray | None = None) -> np.ndarray:
        """Return the constants with the least sum of squares.

        Args:
            start: constants from which the search starts; None: try several.
        """
        from scipy.optimize import least_squares

        low, high = self.bounds
        starts = self._starts() if start is None else [start]
        fits = [
            least_squares(self.residuals, np.clip(x, low + 1e-9, high - 1e-9), bounds=(low, high),
                          x_scale="jac", **TOLERANCE)
            for x in starts
        ]  # fmt: skip
        return min(fits, key=lambda fit: fit.cost).x

    def _starts(self) -> list[np.ndarray]:
        """Return constants from which to search."""
        level = float(self.fresh.loss.min())
        decay = dict.fromkeys(DECAY, (0.05, 0.5)) | {
            "P": (math.log(0.01),) * 2, "delta": (0.0, 0.0), "kappa": (math.log(0.3), 0.0)
        }  # fmt: skip
        fresh = [
            np.log([floor * level, level / 20, alpha, (1 - floor) * level, beta])
            for floor, alpha, beta in ((0.1, 0.3, 0.15), (0.7, 1.0, 0.5))
        ]
        names = RIVALS[self.rival]
        rest = [[decay[name][i] for name in names] for i in range(2 if names else 1)]
        return [np.append(x, values) for values in rest for x in fresh]

    def profile(self, best: np.ndarray, name: str) -> tuple[float, float]:
        """Return the profile interval of a constant, cut off at the bounds of the constant.

        It has all values for which the least sum of squares over the other constants is below
        1 + t^2 / df times the overall least sum.

        Args:
            name: the name of the constant, or DIFFERENCE.
        """
        from scipy.optimize import brentq, least_squares
        from scipy.special import stdtrit

        df, least = self.df, float((self.residuals(best) ** 2).sum())
        limit = least * (1 + float(stdtrit(df, (1 + LEVEL) / 2)) ** 2 / df) if df > 0 else math.inf
        index = self.names.index(DECAY[1] if name == DIFFERENCE else name)
        data = self.names.index(DECAY[0]) if name == DIFFERENCE else None
        inside = np.delete(best, index)

        def above(value: float) -> float:
            """Return how far the least sum of squares for this value is above the limit."""
            low, high = (np.delete(bound, index) for bound in self.bounds)
            if data is not None:  # the other rate is within its bounds, too
                low[data], high[data] = max(0, -value), LARGEST_RATE - max(0, value)

            def residuals(x: np.ndarray) -> np.ndarray:
                held = value if data is None else x[data] + value
                return self.residuals(np.insert(x, index, held))

            fit = least_squares(residuals, np.clip(inside, low + 1e-9, high - 1e-9),
                                bounds=(low, high), x_scale="jac", **TOLERANCE)  # fmt: skip
            return 2 * float(fit.cost) - limit

        if data is None:
            middle, limits = best[index], (LOWEST[name], HIGHEST[name])
        else:
            middle, limits = best[index] - best[data], (-LARGEST_RATE + 1e-6, LARGEST_RATE - 1e-6)
        ends = []
        for end in limits:
            crosses = abs(end - middle) > 1e-6 and math.isfinite(limit) and above(end) > 0
            ends.append(float(brentq(above, middle, end, xtol=1e-3)) if crosses else end)
        return ends[0], ends[1]

    @property
    def df(self) -> int:
        """The number of residuals minus the number of constants."""
        return len(self.fresh.n) + len(self.repeated.n) - len(self.names)


# --- all fits --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """A fitted constant; 1 / R*_D and 1 / R*_N are given as rates.

    Attributes:
        seeds: the value with its interval over seeds; None with a single seed.
        low, high: the profile interval.
        bounded: whether both ends of the profile interval are within the bounds of the fit.
    """

    value: float
    seeds: Estimate | None
    low: float
    high: float
    bounded: bool

    @property
    def identified(self) -> bool:
        """Whether the profile interval is narrow enough, and that over seeds excludes 0."""
        narrow = self.bounded and self.high < SPAN * self.low
        return narrow and (self.seeds is None or not self.seeds.low <= 0 <= self.seeds.high)


@dataclass(frozen=True)
class Laws:
    """The fitted laws. If there are too few sizes or runs, nothing is fitted.

    Attributes:
        laws: maps each rival to its law, fitted to all sizes.
        constants: maps names in FRESH and DECAY to the constants of the rival "whole".
        rate_difference: 1 / R*_N - 1 / R*_D; the interval contains both that over seeds and the
            profile interval, because neither alone has all the error. None with a single seed.
        bare: 1 / R*_D and 1 / R*_N if embeddings do not count as parameters.
        errors: maps (what is left out, rival) to the errors of prediction, float64[seeds], root
            mean squares in percent of the loss. What is left out is a size, or "N epochs".
        misfit: the root mean square residual of the excess of repeated runs by the whole law, in
            percent.
        fresh_misfit: that of the loss of fresh runs.
        n_domain, n_hurt: number of repeated runs in the domain, and outside.
    """

    n_fresh: int
    n_domain: int
    n_hurt: int
    laws: dict[str, Law] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    rate_difference: Estimate | None = None
    bare: tuple[float, float] | None = None
    errors: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    misfit: float | None = None
    fresh_misfit: float | None = None

    def left_out_sizes(self, rival: str) -> np.ndarray | None:
        """Return the mean error over left-out sizes, float64[seeds]; None if there are none."""
        each = [e for (name, r), e in self.errors.items() if r == rival and " epochs" not in name]
        return np.mean(each, axis=0) if each else None

    def advantage(self, rival: str, other: str) -> Estimate | None:
        """Return the error of a rival minus that of another, over left-out sizes."""
        one, two = self.left_out_sizes(rival), self.left_out_sizes(other)
        return None if one is None or two is None else mean_over_known(one - two)


def fit_laws(losses: Losses) -> Laws:
    """Fit the laws to the runs that every seed has."""
    points = points_of(losses)
    fresh, repeated = points.where(points.epochs == 1), points.where(points.epochs > 1)
    domain = repeated.where(repeated.domain)
    counts = len(fresh.n), len(domain.n), len(repeated.n) - len(domain.n)
    few = len(np.unique(fresh.size)) < FEWEST_SIZES
    if few or len(fresh.n) <= len(FRESH) or len(domain.n) <= len(DECAY):
        return Laws(*counts)
    fits = {rival: Fit(rival, fresh, domain) for rival in RIVALS}
    best = {rival: fit.best() for rival, fit in fits.items()}
    whole, x = fits["whole"], best["whole"]
    seeds = each_seed(fresh)
    without = [
        _constants(Fit("whole", fresh.of(~one), domain.of(~one)).best(x))
        for one in (seeds if len(seeds) > 1 else [])
    ]
    values = _constants(x)
    constants = {}
    for name, value in values.items():
        low, high = whole.profile(x, name)
        bounded = low > LOWEST[name] and high < HIGHEST[name]
        if name in FRESH:
            low, high = math.exp(low), math.exp(high)
        spread = _over_seeds(value, [each[name] for each in without])
        constants[name] = Constant(value, spread, low, high, bounded)
    difference = _over_seeds(
        values["parameter_rate"] - values["data_rate"],
        [each["parameter_rate"] - each["data_rate"] for each in without],
    )
    if difference:
        low, high = whole.profile(x, DIFFERENCE)
        low, high = min(low, difference.low), max(high, difference.high)
        difference = replace(difference, low=low, high=high)
    bare = points_of(losses, "non_embedding")
    bare_fit = Fit(
        "whole", bare.where(bare.epochs == 1), bare.where((bare.epochs > 1) & bare.domain)
    )
    bare_rates = bare_fit.best()[len(FRESH) :]
    residuals = whole.residuals(x)
    return Laws(
        *counts,
        {rival: fit.law(best[rival]) for rival, fit in fits.items()},
        constants,
        difference,
        (float(bare_rates[0]), float(bare_rates[1])),
        prediction_errors(fresh, repeated),
        _percent(residuals[len(fresh.n) :]),
        _percent(residuals[: len(fresh.n)]),
    )


def each_seed(points: Points) -> list[np.ndarray]:
    """Return one bool[seeds] for each seed, which selects it."""
    return list(np.eye(points.loss.shape[1], dtype=bool))


def _percent(residuals: np.ndarray) -> float:
    """Return the root mean square of residuals of ln L, in percent."""
    return 100 * float(np.sqrt((residuals**2).mean()))


def _constants(x: np.ndarray) -> dict[str, float]:
    """Return the constants of the rival "whole" by name."""
    values = [*np.exp(x[: len(FRESH)]).tolist(), *x[len(FRESH) :].tolist()]
    return dict(zip((*FRESH, *DECAY), values, strict=True))


def _over_seeds(value: float, without: list[float]) -> Estimate | None:
    """Return a value with its interval, from values that each leave out one seed; None for []."""
    return jackknife(value, without) if without else None


def prediction_errors(
    fresh: Points, repeated: Points, rivals: Sequence[str] = tuple(RIVALS)
) -> dict[tuple[str, str], np.ndarray]:
    """Return the errors of each rival when a size, or the largest number of epochs, is left out.

    Each seed is a replication: all laws are fitted to its runs alone, and predict its runs. Errors
    are errors of the excess. Of a left-out size, all runs in the domain are predicted; of the
    largest number of epochs, all runs. The laws are fitted to all fresh runs, and to
    the repeated runs in the domain that are not left out; this fit does not start from the fit to
    all runs.
    """
    most = f"{repeated.epochs.max()} epochs"
    left_out = {str(size): repeated.size == size for size in dict.fromkeys(repeated.size)}
    left_out[most] = repeated.epochs == repeated.epochs.max()
    errors = {}
    for name, rows in left_out.items():
        tested = repeated.where(rows if name == most else rows & repeated.domain)
        fitted = repeated.where(~rows & repeated.domain)
        if not len(tested.n) or len(fitted.n) <= len(DECAY):
            continue
        for rival in rivals:
            start = Fit(rival, fresh, fitted).best()
            per_seed = []
            for one in each_seed(fresh):
                fit = Fit(rival, fresh.of(one), fitted.of(one))
                law, test = fit.law(fit.best(start)), tested.of(one)
                per_seed.append(_percent(law.excess(test.n, test.d, test.u) - test.excess))
            errors[name, rival] = np.array(per_seed)
    return errors
