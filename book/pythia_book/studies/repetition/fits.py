"""The law of Muennighoff et al. and its rivals, fitted to our runs.

All constants of a law are fitted together, by least squares. For fresh runs, the residuals are
those of ln L. For repeated runs, they are those of the *excess*, the ln of the loss minus that of
the fresh run of the same size, length and seed. This removes most of the noise between seeds, and
errors in the law of fresh data; the source shifts its predictions to the loss of fresh data too, in
its Figure 5. Otherwise the source differs: it first fits E, A, alpha, B and beta to fresh runs, and
ties alpha to beta. At our sizes, the law also discounts parameters of fresh runs, so the two steps
do not separate.

The law says that repeating never hurts, so runs are in its *domain* only as long as they have a
lower loss than the run on the same data with the next smaller number of epochs. The source also
left out runs whose loss rises again (its appendix A). The penalty of Lovelace et al. is fitted to
all repeated runs.

Each constant gets two intervals: one over seeds, by the jackknife, and a profile interval, which
takes the misfit of the law as noise. A constant is *identified* if the ends of its profile interval
are less than a factor SPAN apart, and its interval over seeds excludes zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from pythia_book.stats import LEVEL, Estimate, mean_over
from pythia_book.studies.repetition.law import MUENNIGHOFF, Law
from pythia_book.studies.repetition.losses import Losses, seed_mean

FEWEST_SIZES = 3
SPAN = 10.0
FRESH = ("E", "size_term", "alpha", "data_term", "beta")
"""The constants of every law. The terms A / N^alpha and B / D^beta are those of the middle size and
length, because A and B themselves depend on the exponents. They are fitted as logarithms."""
DECAY = ("data_rate", "parameter_rate")
PENALTY = ("P", "delta", "kappa")
RIVALS = {"none": (), "data": DECAY[:1], "whole": DECAY, "theirs": (), "penalty": PENALTY}
"""Laws of repetition, and what each fits beside FRESH: repeated data are as good as fresh; only
data decay; data and parameters decay; the same with R*_D and R*_N of the source; an additive
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
class Runs:
    """Runs as points of a law, one per row.

    Attributes:
        n, d, u: float64[runs], parameters, tokens and different tokens.
        loss: float64[runs, seeds]. fresh: the loss of the fresh run of the same size and length.
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

    def where(self, rows: np.ndarray) -> Runs:
        """Return some of the runs, bool[runs]."""
        return Runs(*(getattr(self, f.name)[rows] for f in fields(self)))

    def of(self, seeds: np.ndarray) -> Runs:
        """Return the runs with the losses of some seeds only, bool[seeds]."""
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


def runs_of(losses: Losses, kind: str = "all") -> Runs:
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
    runs = Runs(*columns)
    return runs.where(np.isfinite(runs.loss).all(1) & np.isfinite(runs.fresh).all(1))


# --- fitting ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A rival's law, to be fitted to fresh and repeated runs.

    Attributes:
        rival: a key of RIVALS.
    """

    rival: str
    fresh: Runs
    repeated: Runs

    @property
    def names(self) -> tuple[str, ...]:
        """The constants that are fitted."""
        return (*FRESH, *RIVALS[self.rival])

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The bounds of the fitted constants."""
        return tuple(np.array([each[n] for n in self.names]) for each in (LOWEST, HIGHEST))

    def law(self, x: np.ndarray) -> Law:
        """Return the law with given constants, in the order of `names`."""
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
        """Return the residuals: those of ln L of fresh runs, then those of the excess."""
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
        rates = {"data_rate": (0.05, 0.5), "parameter_rate": (0.05, 0.5)}
        logs = {"P": (math.log(0.01),), "delta": (0.0,), "kappa": (math.log(0.3), 0.0)}
        starts = [
            np.log([floor * level, level / 20, alpha, (1 - floor) * level, beta])
            for floor, alpha, beta in ((0.1, 0.3, 0.15), (0.7, 1.0, 0.5))
        ]
        for name in RIVALS[self.rival]:
            starts = [np.append(x, value) for x in starts for value in (rates | logs)[name]]
        return starts

    def profile(self, best: np.ndarray, name: str) -> tuple[float, float]:
        """Return the profile interval of a constant, at most between its bounds.

        It has all values for which the least sum of squares over the other constants is below
        1 + t^2 / df times the overall least sum; df is the number of residuals minus that of
        constants.
        """
        from scipy.optimize import brentq, least_squares
        from scipy.special import stdtrit

        index = self.names.index(name)
        least, df = float((self.residuals(best) ** 2).sum()), len(self.residuals(best)) - len(best)
        limit = least * (1 + float(stdtrit(df, (1 + LEVEL) / 2)) ** 2 / df) if df > 0 else math.inf
        low, high = (np.delete(bound, index) for bound in self.bounds)
        inside = np.clip(np.delete(best, index), low + 1e-9, high - 1e-9)

        def above(value: float) -> float:
            """Return how far the least sum of squares for this value is above the limit."""
            fit = least_squares(lambda x: self.residuals(np.insert(x, index, value)), inside,
                                bounds=(low, high), x_scale="jac", **TOLERANCE)  # fmt: skip
            return 2 * float(fit.cost) - limit

        ends = []
        for end in (LOWEST[name], HIGHEST[name]):
            crosses = abs(end - best[index]) > 1e-6 and math.isfinite(limit) and above(end) > 0
            ends.append(float(brentq(above, best[index], end, xtol=5e-3)) if crosses else end)
        return ends[0], ends[1]


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
    """The fitted laws. If there are too few sizes or runs, `laws` is empty, as is all the rest.

    Attributes:
        laws: maps each rival to its law, fitted to all sizes.
        constants: maps names in FRESH and DECAY to the constants of the rival "whole".
        rate_difference: 1 / R*_N - 1 / R*_D with its interval over seeds; None with one seed.
        bare: 1 / R*_D and 1 / R*_N if embeddings do not count as parameters.
        errors: maps (what is left out, rival) to the errors of prediction, float64[seeds], root
            mean squares in percent of the loss. Left out is a size, or "N epochs".
        misfits: maps each rival to the root mean square residual of the excess of runs in the
            domain (of the rival "penalty": of all repeated runs), in percent.
        fresh_misfit: the root mean square residual of fresh runs by the whole law, in percent.
    """

    laws: dict[str, Law]
    constants: dict[str, Constant]
    rate_difference: Estimate | None
    bare: tuple[float, float] | None
    errors: dict[tuple[str, str], np.ndarray]
    misfits: dict[str, float]
    fresh_misfit: float | None
    n_fresh: int
    n_domain: int
    n_hurt: int

    def left_out_sizes(self, rival: str) -> np.ndarray | None:
        """Return the mean error over left-out sizes, float64[seeds]; None if there are none."""
        each = [e for (name, r), e in self.errors.items() if r == rival and " epochs" not in name]
        return np.mean(each, axis=0) if each else None

    def advantage(self, rival: str, other: str) -> Estimate | None:
        """Return the error of a rival minus that of another, over left-out sizes."""
        one, two = self.left_out_sizes(rival), self.left_out_sizes(other)
        return None if one is None or two is None else seed_mean(one - two)


def fit_laws(losses: Losses) -> Laws:
    """Fit the laws to the runs that every seed has."""
    runs = runs_of(losses)
    fresh, repeated = runs.where(runs.epochs == 1), runs.where(runs.epochs > 1)
    domain = repeated.where(repeated.domain)
    n_hurt = len(repeated.n) - len(domain.n)
    few = len(np.unique(fresh.size)) < FEWEST_SIZES
    if few or len(fresh.n) <= len(FRESH) or len(domain.n) <= len(DECAY):
        return Laws({}, {}, None, None, {}, {}, None, len(fresh.n), len(domain.n), n_hurt)
    fits = {r: Fit(r, fresh, repeated if r == "penalty" else domain) for r in RIVALS}
    best = {rival: fit.best() for rival, fit in fits.items()}
    whole = fits["whole"]
    n_seeds = fresh.loss.shape[1]
    seeds = [np.arange(n_seeds) == seed for seed in range(n_seeds)]
    without = [
        _constants(Fit("whole", fresh.of(~one), domain.of(~one)).best(best["whole"]))
        for one in (seeds if n_seeds > 1 else [])
    ]
    values = _constants(best["whole"])
    constants = {}
    for name, value in values.items():
        low, high = whole.profile(best["whole"], name)
        bounded = low > LOWEST[name] and high < HIGHEST[name]
        if name in FRESH:
            low, high = math.exp(low), math.exp(high)
        spread = _jackknife(value, [each[name] for each in without])
        constants[name] = Constant(value, spread, low, high, bounded)
    difference = _jackknife(
        values["parameter_rate"] - values["data_rate"],
        [each["parameter_rate"] - each["data_rate"] for each in without],
    )
    bare = runs_of(losses, "non_embedding")
    bare_fit = Fit(
        "whole", bare.where(bare.epochs == 1), bare.where((bare.epochs > 1) & bare.domain)
    )
    bare_rates = bare_fit.best()[len(FRESH) :]
    rest = {rival: fits[rival].residuals(x)[len(fresh.n) :] for rival, x in best.items()}
    return Laws(
        {rival: fit.law(best[rival]) for rival, fit in fits.items()},
        constants,
        difference,
        (float(bare_rates[0]), float(bare_rates[1])),
        prediction_errors(fresh, repeated, best, seeds),
        {rival: _percent(residuals) for rival, residuals in rest.items()},
        _percent(whole.residuals(best["whole"])[: len(fresh.n)]),
        len(fresh.n),
        len(domain.n),
        n_hurt,
    )


def _percent(residuals: np.ndarray) -> float:
    """Return the root mean square of residuals of ln L, in percent."""
    return 100 * float(np.sqrt((residuals**2).mean()))


def _constants(x: np.ndarray) -> dict[str, float]:
    """Return the constants of the rival "whole" by name."""
    values = [*np.exp(x[: len(FRESH)]).tolist(), *x[len(FRESH) :].tolist()]
    return dict(zip((*FRESH, *DECAY), values, strict=True))


def _jackknife(value: float, without: list[float]) -> Estimate | None:
    """Return a value with its jackknife interval, from the values without one seed each."""
    n = len(without)
    if n < 2:
        return None
    e = mean_over(n * value - (n - 1) * np.array(without))
    return replace(e, value=value, low=value + e.low - e.value, high=value + e.high - e.value)


def prediction_errors(
    fresh: Runs, repeated: Runs, best: dict[str, np.ndarray], seeds: list[np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """Return the errors of each rival where a size, or the most epochs, are left out.

    Each seed is a replication: all laws are fitted to its runs alone, and predict its runs. The
    error is that of the excess. A size is predicted for its runs in the domain, the most epochs for
    all runs with that many. The laws know all fresh runs.

    Args:
        best: maps each rival to the constants from which its search starts.
        seeds: one bool[seeds] for each seed.
    """
    most = f"{repeated.epochs.max()} epochs"
    left_out = {str(size): repeated.size == size for size in dict.fromkeys(repeated.size)}
    left_out[most] = repeated.epochs == repeated.epochs.max()
    errors = {}
    for name, rows in left_out.items():
        tested = rows if name == most else rows & repeated.domain
        if not tested.any() or (~rows & repeated.domain).sum() <= len(DECAY):
            continue
        for rival, start in best.items():
            fitted = repeated.where(~rows & (repeated.domain | (rival == "penalty")))
            per_seed = []
            for one in seeds:
                fit = Fit(rival, fresh.of(one), fitted.of(one))
                law, test = fit.law(fit.best(start)), repeated.where(tested).of(one)
                per_seed.append(_percent(law.excess(test.n, test.d, test.u) - test.excess))
            errors[name, rival] = np.array(per_seed)
    return errors
