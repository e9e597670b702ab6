"""Scaling laws of the suite's losses, and the best model sizes that follow from them.

    L(N) = E + A / N^alpha                     at the end of training
    L(N, D) = E + A / N^alpha + B / D^beta     over checkpoints (Hoffmann et al. 2022)

L is the held-out loss, in nats, of models trained on the standard text. N is the number of
parameters without embeddings, D the number of tokens read. Intervals come from resampling the
held-out rows, the same ones for every model. The second law overstates the benefit of long
training, because the learning rate has not decayed in the middle of a run. We do not
count the operations of the unembedding, although they are the majority at our sizes. For the
released sizes, we use a published law, whose N includes the embeddings.
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
    """A scaling law, L(N, D) = E + A / N^alpha + B / D^beta, in nats per token.

    With the default B = 0, the law depends on N alone.
    """

    E: float
    A: float
    alpha: float
    B: float = 0.0
    beta: float = 1.0

    def loss(self, n: np.ndarray | float, d: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the loss of a model of `n` parameters after `d` tokens, in nats per token."""
        n, d = np.asarray(n, np.float64), np.asarray(d, np.float64)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def tokens_for(self, target: float, n: np.ndarray | float) -> np.ndarray:
        """Return how many training tokens `n` parameters need for the loss `target`, or inf."""
        data_term = target - self.E - self.A * np.asarray(n, np.float64) ** -self.alpha
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(data_term > 0, (self.B / data_term) ** (1 / self.beta), np.inf)

    def compute_optimal(self, flops: float) -> tuple[float, float]:
        """Return the parameters N and tokens D with the lowest loss for a budget of 6 N D FLOP."""
        n = np.geomspace(1e2, 1e12, 4001)
        best = n[np.argmin(self.loss(n, flops / (6 * n)))]
        return float(best), float(flops / (6 * best))

    def inference_optimal(self, target: float, generated: float) -> tuple[float, float]:
        """Return the parameters N and training tokens D that reach a loss at the lowest total cost.

        The cost is 6 N D FLOP for training plus 2 N FLOP for each generated token.

        Raises:
            DataError: no size reaches the loss `target`.
        """
        n = np.geomspace(1e2, 1e12, 8001)
        d = self.tokens_for(target, n)
        cost = 6 * n * d + 2 * n * generated
        if not np.isfinite(cost).any():
            raise DataError(
                f"no size reaches a loss of {target}, because this law has no loss below {self.E}; "
                "choose a higher loss"
            )
        best = int(np.nanargmin(np.where(np.isfinite(cost), cost, np.nan)))
        return float(n[best]), float(d[best])

    def optimal_tokens(self, n: float) -> float:
        """Return the number of training tokens for which `n` parameters are compute-optimal."""
        return float((self._loss_elasticity(n) / (self.beta * self.B)) ** (-1 / self.beta))

    def break_even_inference_tokens(self, n: float, d: float) -> float:
        """Return for how many generated tokens a model is the cheapest model with its loss.

        The model has `n` parameters and `d` training tokens. The cost is 6 N D FLOP for training
        plus 2 N FLOP per generated token. The result is negative if a smaller model with more
        training tokens costs less even when no tokens are generated.
        """
        return float(3 * d * (self._loss_elasticity(n) / (self.beta * self.B * d**-self.beta) - 1))

    def _loss_elasticity(self, n: float) -> float:
        """Return the decrease of the loss, in nats per unit of ln N, at N = `n` parameters."""
        return self.alpha * self.A * n**-self.alpha


BESIROGLU = Law(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
"""The law that Besiroglu et al. (2024, arXiv:2404.10102) fitted to the runs of Hoffmann et al. Here
N counts all parameters."""


def fit_law(
    n: np.ndarray, loss: np.ndarray, d: np.ndarray | None = None, start: Law | None = None
) -> Law:
    """Fit a scaling law to measured losses L, by least squares with a Huber loss on ln L.

    Args:
        n: float[m], number of parameters of each of m checkpoints.
        loss: float[m], in nats per token.
        d: float[m], tokens read by each checkpoint; None fits a law of size alone.
        start: a law from which the fit starts; None: try several starts and keep the best fit.

    Raises:
        DataError: there are fewer points than the law has parameters, or fewer than three different
            sizes or numbers of tokens.
    """
    from scipy.optimize import least_squares

    names = NAMES[1 if d is None else 2]
    sizes, lengths = len(np.unique(n)), 3 if d is None else len(np.unique(d))
    if len(loss) < len(names) or min(sizes, lengths) < 3:
        tokens = "" if d is None else f" and {lengths} different numbers of tokens"
        needed = "" if d is None else " and three different numbers of tokens"
        raise DataError(
            f"{len(loss)} points with {sizes} different sizes{tokens} cannot determine the "
            f"parameters {', '.join(names)}; give at least as many points as parameters, with at "
            f"least three different sizes{needed}"
        )
    logs = np.log(loss)

    def residual(p: np.ndarray) -> np.ndarray:
        """Return ln(predicted loss) - ln(measured loss), float[m], for parameters exp(p)."""
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
    """Fit a scaling law to mean losses, and one to each of `draws` resamples of the rows.

    `rows` has the loss of each checkpoint on each held-out row, float[m, rows]. See `fit_law` for
    `n` and `d`.
    """
    law = fit_law(n, rows.mean(1), d)
    return law, [fit_law(n, loss, d, start=law) for loss in resampled(rows, draws)]


def resampled(rows: np.ndarray, draws: int) -> Iterator[np.ndarray]:
    """Yield mean losses on `draws` resamples of the held-out rows, float[m].

    All checkpoints get the same resample. `rows` has losses, float[m, rows].
    """
    rng = np.random.default_rng(0)
    for _ in range(draws):
        yield rows[:, rng.integers(rows.shape[1], size=rows.shape[1])].mean(1)


def interval(value: float, draws: list[float]) -> tuple[float, float, float]:
    """Return (value, low, high), with low and high the 2.5 % and 97.5 % quantiles of `draws`."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(value), float(low), float(high)


# --- tables ----------------------------------------------------------------------------------

DRAWS = 100
"""Number of resamples of the held-out rows to which laws are fitted."""
USES = (0.0, 1.0, 10.0, 100.0, 1000.0)
"""Numbers of tokens generated with a model, as multiples of its training tokens."""
OFFICIAL_TOKENS = OFFICIAL_STEPS * 1024 * 2048
RULES = ("law", "power", "line", "same")
"""Rules that predict the loss of the next larger size: a power law with a floor, a power law
without one, a straight line in log N, and the loss of the largest size so far."""
RowLosses = dict[tuple[str, int], np.ndarray]
"""Maps (size, step) to the loss on every held-out row, float[rows]."""


def laws_tables(losses: pd.DataFrame, rows: RowLosses) -> dict[str, pd.DataFrame]:
    """Return tables of fitted laws, the best sizes by these laws, predictions, and released sizes.

    `laws`: `law` ("size" for a law of N alone, "both" for a law of N and D), `parameter` ("E", "A",
        ...), `value`, `low`, `high`. A law without enough points is missing.
    `optimal`: the size `n_params` with its interval `low`, `high`, `tokens` (to train on),
        `tokens_per_parameter`, and `kind`. A size of kind "compute" has the lowest loss for a
        training budget `flops`. A size of kind "inference" has the lowest total cost `flops` for a
        fixed loss, if `uses` (one of USES) times the training tokens are generated.
    `prediction`: `size`, `n_params`, `rule` (one of RULES), `predicted` (loss, from all smaller
        sizes), `error` (by how many percent the measured loss exceeds `predicted`).
    `official_sizes`: `size`, `n_params`, `n_non_embedding`, `tokens_per_parameter`,
        `tokens_per_non_embedding`, `optimal_tokens` (see Law.optimal_tokens), `cheapest_at` (see
        Law.break_even_inference_tokens).

    Args:
        losses: the study's table `losses`, with the mean held-out loss of each checkpoint.
        rows: the losses on single held-out rows.
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
    """Predict the final loss of each size from all smaller sizes, by each of RULES.

    A size with fewer than four smaller sizes is left out. `last` has the last step of `losses`.
    """
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
    """Return the rows of the table `optimal`, from a law of N and D and its refits to resamples."""
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
    """Return the table `official_sizes` of `laws_tables`."""
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
