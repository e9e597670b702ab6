"""Scaling laws of the suite's losses, and the best model sizes that follow from them.

Two forms are fitted to held-out loss in nats on the standard half: L(N) = E + A / N^alpha at the
end of training, and L(N, D) = E + A / N^alpha + B / D^beta over checkpoints (Hoffmann et al. 2022),
by least squares with a Huber loss on log L. N counts parameters without embeddings, D tokens read.
Intervals resample held-out rows, the same for every model. A checkpoint in the middle of a run is
*not* a run of that length: its learning rate has not decayed, so the second form overstates the
benefit of long training.

"Compute-optimal" is the size with the lowest loss for a budget of training FLOP (6 N D);
"inference-optimal" is the size that reaches a given loss at the lowest total cost if D_inf tokens
are generated afterwards, for another 2 N D_inf. N excludes the embeddings, which are most of a
model at our sizes; in particular, it excludes the vocabulary matrix, which takes most of the FLOP
per token. The released sizes are compared with a published law whose N counts all parameters, and
their tokens per parameter are given under both conventions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pythia_core.errors import DataError
from pythia_core.suite import OFFICIAL_SIZES, size_named
from pythia_core.training.schedule import OFFICIAL_STEPS

if TYPE_CHECKING:
    import pandas as pd


# --- fitting ---------------------------------------------------------------------------------

NAMES = {1: ("E", "A", "alpha"), 2: ("E", "A", "alpha", "B", "beta")}


@dataclass(frozen=True)
class Law:
    """The law L(N, D) = E + A / N^alpha + B / D^beta; with the default B and beta, a law of N
    alone."""

    E: float
    A: float
    alpha: float
    B: float = 0.0
    beta: float = 1.0

    def loss(self, n: np.ndarray | float, d: np.ndarray | float = 1.0) -> np.ndarray:
        n, d = np.asarray(n, np.float64), np.asarray(d, np.float64)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def tokens_for(self, target: float, n: np.ndarray | float) -> np.ndarray:
        """Return after how many tokens size n reaches the target loss, or infinity if never."""
        data_term = target - self.E - self.A * np.asarray(n, np.float64) ** -self.alpha
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(data_term > 0, (self.B / data_term) ** (1 / self.beta), np.inf)

    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """Return the pair (N, D) with the lowest loss among those with 6 N D = flops."""
        n = np.geomspace(1e2, 1e12, 4001)
        best = n[np.argmin(self.loss(n, flops / (6 * n)))]
        return float(best), float(flops / (6 * best))

    def inference_optimal(self, target: float, generated: float) -> tuple[float, float]:
        """Return the pair (N, D) that reaches the target loss at the lowest cost.

        The cost in FLOP is 6 N D + 2 N `generated`, for training and for later generation.

        Raises:
            DataError: no size reaches the target.
        """
        n = np.geomspace(1e2, 1e12, 8001)
        d = self.tokens_for(target, n)
        cost = 6 * n * d + 2 * n * generated
        if not np.isfinite(cost).any():
            raise DataError(f"no size reaches a loss of {target}; this law's minimum is {self.E}")
        best = int(np.nanargmin(np.where(np.isfinite(cost), cost, np.nan)))
        return float(n[best]), float(d[best])

    def optimal_tokens(self, n: float) -> float:
        """Return the number of training tokens for which size n is compute-optimal.

        At that number, raising either the size or the tokens by the same small factor lowers the
        loss by the same amount.
        """
        return float((self._loss_elasticity(n) / (self.beta * self.B)) ** (-1 / self.beta))

    def break_even_inference_tokens(self, n: float, d: float) -> float:
        """How many tokens must be generated so that (n, d) is the cheapest way to its loss.

        Minimizing 6 N D + 2 N D_inf at constant loss gives D_inf = 3 D (r - 1), where r is the
        elasticity of the loss to size over the elasticity of the loss to tokens. The result is
        negative if more training tokens would pay off even without inference.
        """
        return float(3 * d * (self._loss_elasticity(n) / (self.beta * self.B * d**-self.beta) - 1))

    def _loss_elasticity(self, n: float) -> float:
        """Return the decrease of the loss per unit of log size."""
        return self.alpha * self.A * n**-self.alpha


BESIROGLU = Law(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
"""A refit of Hoffmann et al.'s runs by Besiroglu et al. (2024, arXiv:2404.10102); N counts all
parameters."""


def fit_law(
    n: np.ndarray, loss: np.ndarray, d: np.ndarray | None = None, start: Law | None = None
) -> Law:
    """Fit a law by least squares with a Huber loss on log L.

    Args:
        n: float[m], parameters of each model.
        loss: float[m], in nats.
        d: float[m], training tokens; None fits a law of size alone.
        start: where to start the fit; by default, several starts are tried and the best is kept.

    Raises:
        DataError: there are fewer points than the law has parameters, or fewer than three different
            sizes or numbers of tokens.
    """
    from scipy.optimize import least_squares

    names = NAMES[1 if d is None else 2]
    sizes, lengths = len(np.unique(n)), 3 if d is None else len(np.unique(d))
    if len(loss) < len(names) or min(sizes, lengths) < 3:
        raise DataError(
            f"{len(loss)} points of {sizes} sizes cannot determine the parameters "
            f"{', '.join(names)}; give at least as many points as parameters, "
            f"and three different sizes{'' if d is None else ' and numbers of tokens'}"
        )
    logs = np.log(loss)

    def residual(p: np.ndarray) -> np.ndarray:
        # p holds logarithms, so every factor and exponent is positive
        parts = [p[0], p[1] - np.exp(p[2]) * np.log(n)]
        if d is not None:
            parts.append(p[3] - np.exp(p[4]) * np.log(d))
        return np.logaddexp.reduce([np.broadcast_to(part, logs.shape) for part in parts]) - logs

    if start is not None:
        values = [max(getattr(start, name), 1e-9) for name in names]
        starts = [np.log(values)]
    else:
        floor = np.log(loss.min())
        starts = [
            np.array([floor - e, a, np.log(x)] + ([b, np.log(y)] if d is not None else []))
            for e in (0.1, 0.7)
            for a in (2.0, 4.0)
            for x in (0.2, 0.5)
            for b, y in (((3.0, 0.3), (6.0, 0.6)) if d is not None else ((0.0, 1.0),))
        ]
    fits = [least_squares(residual, p, loss="huber", f_scale=1e-3, max_nfev=2000) for p in starts]
    best = min(fits, key=lambda fit: fit.cost)
    return Law(**dict(zip(names, np.exp(best.x).tolist(), strict=True)))


def bootstrap_laws(
    n: np.ndarray, rows: np.ndarray, d: np.ndarray | None, draws: int
) -> tuple[Law, list[Law]]:
    """Fit a law to mean losses, and one law to the mean losses of each resample of the rows.

    Args:
        n: float[m], parameters.
        rows: float[m, rows], losses.
        d: float[m], tokens; None fits laws of size alone.
        draws: number of resamples.
    """
    law = fit_law(n, rows.mean(1), d)
    return law, [fit_law(n, loss, d, start=law) for loss in resampled(rows, draws)]


def resampled(rows: np.ndarray, draws: int) -> Iterator[np.ndarray]:
    """Yield mean losses float[m] of resampled held-out rows, the same rows for all m points."""
    rng = np.random.default_rng(0)
    for _ in range(draws):
        yield rows[:, rng.integers(rows.shape[1], size=rows.shape[1])].mean(1)


def interval(value: float, draws: list[float]) -> tuple[float, float, float]:
    """Return (value, low, high), with the ends of the 95 % interval of `draws`."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(value), float(low), float(high)


# --- tables ----------------------------------------------------------------------------------

DRAWS = 100
"""Number of resamples of the held-out rows. A law is fitted to each of them."""
USES = (0.0, 1.0, 10.0, 100.0, 1000.0)
"""Tokens generated with a model, as multiples of the suite's training tokens."""
OFFICIAL_TOKENS = OFFICIAL_STEPS * 1024 * 2048
RULES = ("law", "power", "line", "same")
"""Rules that predict the loss of the next larger size: a power law with a floor, a power law
without one, a straight line in log N, and the loss of the largest size so far."""
RowLosses = dict[tuple[str, int], np.ndarray]
"""(size, step) -> float[rows], the loss of every held-out row."""


def laws_tables(losses: pd.DataFrame, rows: RowLosses) -> dict[str, pd.DataFrame]:
    """The fitted laws, the optima that follow from them, and the released sizes.

    laws: law ("size" of N alone, "both" of N and D), parameter, value, low, high. It is empty if
    there are too few points.
    optimal: kind ("compute" or "inference"), flops, uses (only for inference), n_params, low, high,
    tokens, tokens_per_parameter.
    prediction: size, n_params, rule (one of RULES), predicted, error (by how many percent the loss
    exceeds the prediction from all smaller sizes). It is empty if there are too few smaller sizes.
    official_sizes: size, n_params, n_non_embedding, tokens_per_parameter,
    tokens_per_non_embedding, optimal_tokens, cheapest_at (the result of
    Law.break_even_inference_tokens).

    Args:
        losses: the study's table of mean losses.
        rows: the losses per held-out row that these means were computed from.
    """
    import pandas as pd

    last = losses[losses.step == losses.step.max()]
    late = losses[losses.step >= 0.1 * losses.step.max()]
    laws, optimal = [], []
    for name, points, with_tokens in (("size", last, False), ("both", late, True)):
        stacked = np.array([rows[p.size, p.step] for p in points.itertuples()])
        d = points.tokens.to_numpy(float) if with_tokens else None
        try:
            law, draws = bootstrap_laws(points.n_params.to_numpy(float), stacked, d, DRAWS)
        except DataError:  # one or two sizes determine no law
            continue
        for parameter in NAMES[2 if with_tokens else 1]:
            value = interval(getattr(law, parameter), [getattr(x, parameter) for x in draws])
            laws.append((name, parameter, *value))
        if with_tokens:
            optimal = _optimal(law, draws, last)
    columns = ["kind", "flops", "uses", "n_params", "low", "high", "tokens", "tokens_per_parameter"]
    return {
        "laws": pd.DataFrame(laws, columns=["law", "parameter", "value", "low", "high"]),
        "optimal": pd.DataFrame(optimal, columns=columns),
        "prediction": predictions(last),
        "official_sizes": _official(),
    }


def predictions(last: pd.DataFrame) -> pd.DataFrame:
    """Predict the loss of every size that has at least four smaller sizes, from all of these."""
    import pandas as pd

    last = last.sort_values("n_params")
    n, loss = last.n_params.to_numpy(float), last.value.to_numpy(float)
    rows = []
    for i in range(len(NAMES[1]) + 1, len(n)):
        logs, at = np.log(n[:i]), np.log(n[i])
        predicted = {
            "law": float(fit_law(n[:i], loss[:i]).loss(n[i])),
            "power": float(np.exp(np.polyval(np.polyfit(logs, np.log(loss[:i]), 1), at))),
            "line": float(np.polyval(np.polyfit(logs, loss[:i], 1), at)),
            "same": float(loss[i - 1]),
        }
        size = last["size"].iloc[i]
        rows += [(size, n[i], k, p, 100 * (loss[i] / p - 1)) for k, p in predicted.items()]
    return pd.DataFrame(rows, columns=["size", "n_params", "rule", "predicted", "error"])


def _optimal(law: Law, draws: list[Law], last: pd.DataFrame) -> list[tuple]:
    rows = []
    for flops in np.geomspace(last.flops.min(), last.flops.max(), 7):
        n, d = law.compute_optimal(flops)
        _, low, high = interval(n, [x.compute_optimal(flops)[0] for x in draws])
        rows.append(("compute", float(flops), None, n, low, high, d, d / n))
    target = float(np.median(last.value))
    trained = float(last.tokens.iloc[0])
    for uses in USES:
        try:
            n, d = law.inference_optimal(target, uses * trained)
            sizes = [x.inference_optimal(target, uses * trained)[0] for x in draws]
        except DataError:
            continue
        _, low, high = interval(n, sizes)
        cost = 6 * n * d + 2 * n * uses * trained
        rows.append(("inference", cost, uses, n, low, high, d, d / n))
    return rows


def _official() -> pd.DataFrame:
    """Return the table official_sizes of laws_tables, on the tokens of each released size."""
    import pandas as pd

    rows = []
    for name in OFFICIAL_SIZES:
        model = size_named(name).model()
        n, bare = model.n_params, model.n_params_non_embedding
        rows.append((name, n, bare, OFFICIAL_TOKENS / n, OFFICIAL_TOKENS / bare,
                     BESIROGLU.optimal_tokens(n),
                     BESIROGLU.break_even_inference_tokens(n, OFFICIAL_TOKENS)))  # fmt: skip
    return pd.DataFrame(
        rows,
        columns=["size", "n_params", "n_non_embedding", "tokens_per_parameter",
                 "tokens_per_non_embedding", "optimal_tokens", "cheapest_at"],
    )  # fmt: skip
