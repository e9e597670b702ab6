"""The law of Muennighoff et al. (2023) for repeated data, with the constants of its authors.

U unique tokens repeated R times are worth D' = U + U R_D (1 - exp(-R / R_D)) fresh tokens, and
parameters beyond the number that U tokens warrant decay by the same formula (their section 3.1).
The loss is E + A / N'^alpha + B / D'^beta. The constants were fitted to models of 7 million to 9
billion parameters on C4 (their appendix A; the code is in the README of huggingface/datablations).
Runs whose loss rises again were left out of that fit, and the law cannot describe them. At the
sizes of the scale "laptop" its loss is far off: only ratios are shown, as an extrapolation.
"""

from __future__ import annotations

import math

A, B, E = math.exp(6.255414), math.exp(7.3049974), math.exp(0.6254804)
EXPONENT = 0.3526596
"""alpha = beta."""
R_DATA, R_PARAMETERS = 15.387756, 5.309743
"""R*_D and R*_N: after so many repetitions, one more is worth 1/e of a fresh token (parameter)."""
FITTED = "models of 7 million to 9 billion parameters"


def _decayed(unique: float, repetitions: float, constant: float) -> float:
    return unique * (1 + constant * (1 - math.exp(-repetitions / constant)))


def data_share(epochs: float, constant: float = R_DATA) -> float:
    """By the data term alone, the worth of `epochs` passes relative to as much fresh data."""
    return _decayed(1, epochs - 1, constant) / epochs


def warranted(unique_tokens: float) -> float:
    """The number of parameters that is optimal for so many tokens, read once."""
    g = (A / B) ** (1 / (2 * EXPONENT))
    return unique_tokens * g * g


def loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """The predicted loss of a model trained on `tokens`, of which `unique_tokens` are different."""
    base = min(parameters, warranted(unique_tokens))
    effective = _decayed(base, parameters / base - 1, R_PARAMETERS)
    data = _decayed(unique_tokens, tokens / unique_tokens - 1, R_DATA)
    return E + A / effective**EXPONENT + B / data**EXPONENT


def excess(parameters: float, tokens: float, epochs: float) -> float:
    """By how many percent the predicted loss of `epochs` passes exceeds that of fresh data."""
    return 100 * (loss(parameters, tokens, tokens / epochs) / loss(parameters, tokens, tokens) - 1)


def whole_share(parameters: float, tokens: float, epochs: float) -> float:
    """By both terms, the share of as much fresh data, read once, that gives the same loss."""
    target = loss(parameters, tokens, tokens / epochs)
    low, high = 1 / epochs, 1.0  # repeating never hurts by this law, nor does fresh data
    for _ in range(60):
        middle = (low * high) ** 0.5
        fewer = middle * tokens
        low, high = (middle, high) if loss(parameters, fewer, fewer) > target else (low, middle)
    return high
