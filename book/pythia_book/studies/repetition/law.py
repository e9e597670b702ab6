"""The law of Muennighoff et al. (2023) for repeated data, and a rival with a penalty.

U unique tokens, read once and then repeated R times, are worth D' = U + U R*_D (1 - exp(-R / R*_D))
fresh tokens (their equation 5). Of N parameters, U_N would be optimal for U tokens read once; the
rest counts for less, by the same formula: N' = U_N + U_N R*_N (1 - exp(-R_N / R*_N)), where
R_N = N / U_N - 1 (equation 6; U_N by equation 15). The loss is E + A / N'^alpha + B / D'^beta.

By this law, repeating never hurts. Lovelace et al. (2026, arXiv:2605.01640) let it hurt, by an
additive penalty. Ours adds P R^delta (N / U)^kappa to E + A / N^alpha + B / D^beta; we take this
formula from Weng (2026, "Scaling Laws, Carefully"), not from the paper.

The code uses the rates 1 / R*_D and 1 / R*_N, so that 0 means no decay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pythia_book.records import number_text

Numbers = np.ndarray | float


def _decayed(unique: Numbers, repetitions: Numbers, rate: float) -> Numbers:
    """Return the effective number of tokens or parameters, D' or N' of the law."""
    return unique * (1 + (-np.expm1(-rate * repetitions) / rate if rate else repetitions))


@dataclass(frozen=True)
class Law:
    """The law of the loss, in nats per token.

    Attributes:
        data_rate: 1 / R*_D; repeated tokens lose this share of their value with each repetition.
        parameter_rate: 1 / R*_N, the same for parameters.
        penalty: P, delta, kappa of the additive penalty.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    data_rate: float = 0.0
    parameter_rate: float = 0.0
    penalty: tuple[float, float, float] = (0.0, 1.0, 1.0)

    def warranted(self, unique: Numbers) -> Numbers:
        """Return U_N, the parameters that are optimal for `unique` tokens, read once."""
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return (unique * g) ** (self.beta / self.alpha) * g

    def loss(self, parameters: Numbers, tokens: Numbers, unique: Numbers) -> Numbers:
        """Return the loss of a trained model.

        `tokens` counts repeated tokens each time, `unique` only once.
        """
        base = np.minimum(parameters, self.warranted(unique))
        effective = _decayed(base, parameters / base - 1, self.parameter_rate)
        repetitions = tokens / unique - 1
        data = _decayed(unique, repetitions, self.data_rate)
        factor, by_repetition, by_capacity = self.penalty
        extra = factor * repetitions**by_repetition * (parameters / unique) ** by_capacity
        return self.E + self.A / effective**self.alpha + self.B / data**self.beta + extra

    def excess(self, parameters: Numbers, tokens: Numbers, unique: Numbers) -> Numbers:
        """Return ln of the loss, minus ln of the loss for equally many fresh tokens."""
        repeated = self.loss(parameters, tokens, unique)
        return np.log(repeated / self.loss(parameters, tokens, tokens))

    def worth(self, parameters: float, tokens: float, epochs: float) -> float:
        """Return how much fresh data `epochs` passes are worth, as a fraction of `tokens`.

        One pass over that fraction of `tokens` fresh tokens has the same loss. `tokens` counts the
        tokens of all passes. The result is 0 if no amount of fresh data has so high a loss.
        """
        from scipy.optimize import brentq

        target = self.loss(parameters, tokens, tokens / epochs)

        def above(log_share: float) -> float:
            """Return the loss for this share of fresh tokens minus the target."""
            fresh = math.exp(log_share) * tokens
            return float(self.loss(parameters, fresh, fresh) - target)

        least = math.log(1e-9)
        if above(least) <= 0:
            return 0.0
        return math.exp(brentq(above, least, 0.0)) if above(0.0) < 0 else 1.0

    def data_share(self, epochs: float) -> float:
        """Return the worth of `epochs` passes by the data term alone, D' / D."""
        return float(_decayed(1.0, epochs - 1.0, self.data_rate)) / epochs


MUENNIGHOFF = Law(
    E=math.exp(0.6254804),
    A=math.exp(6.255414),
    alpha=0.3526596,
    B=math.exp(7.3049974),
    beta=0.3526596,
    data_rate=1 / 15.387756,
    parameter_rate=1 / 5.309743,
)
"""The authors' constants, for C4 (their appendices A and B, and the README of
huggingface/datablations). They were fitted to models of 7 million to 9 billion parameters; runs
whose loss rises again were left out."""

NAMES = {
    "E": "E",
    "size_term": "size term",
    "alpha": "alpha",
    "data_term": "data term",
    "beta": "beta",
    "data_rate": "R*_D",
    "parameter_rate": "R*_N",
}
"""Names of the fitted constants for readers."""


def inverse(rate: float) -> float:
    """Return R* for a rate; infinity for the rate 0 (no decay)."""
    return 1 / rate if rate > 0 else math.inf


def constant_text(value: float) -> str:
    """Format the value of a constant, or an end of its interval, which may be infinite."""
    return number_text(value) if math.isfinite(value) else "\N{INFINITY}"


def range_text(low: float, high: float) -> str:
    """Format the interval of a constant."""
    return f"[{constant_text(low)}, {constant_text(high)}]"
