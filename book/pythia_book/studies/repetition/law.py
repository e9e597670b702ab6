"""The law of Muennighoff et al. (2023) for repeated data, with their own constants.

U unique tokens, read once and then repeated R times, are worth D' = U + U R_D (1 - exp(-R / R_D))
fresh tokens. Parameters beyond the optimum for U tokens also count for less. The same formula gives
their worth, and N' in total (their section 3.1). The loss is E + A / N'^alpha + B / D'^beta.

The authors fitted the constants to models of 7 million to 9 billion parameters on C4, without runs
whose loss rises again (their appendix A; code in the README of huggingface/datablations). For our
much smaller models the law is an extrapolation. At the scale "laptop", its losses are far from
measured ones, so the page mainly shows ratios of predictions.
"""

from __future__ import annotations

import math

A, B, E = math.exp(6.255414), math.exp(7.3049974), math.exp(0.6254804)
EXPONENT = 0.3526596
"""The value of alpha and of beta."""
R_DATA, R_PARAMETERS = 15.387756, 5.309743
"""The constants R*_D, for tokens, and R*_N, for parameters. After R*_D repetitions of the data, one
more repetition is worth 1/e of as many fresh tokens."""
FITTED = "models of 7 million to 9 billion parameters"


def _decayed(unique: float, repetitions: float, constant: float) -> float:
    """Return the effective number of tokens or parameters, D' or N' of the law."""
    return unique * (1 + constant * (1 - math.exp(-repetitions / constant)))


def data_share(epochs: float, constant: float = R_DATA) -> float:
    """Return the worth of `epochs` passes over the same data, by the law's data term alone.

    The result is a fraction of what an equal number of fresh tokens would be worth.
    """
    return _decayed(1, epochs - 1, constant) / epochs


def warranted(unique_tokens: float) -> float:
    """Return the number of parameters that the law calls optimal for `unique_tokens`, read once."""
    g = (A / B) ** (1 / (2 * EXPONENT))
    return unique_tokens * g * g


def loss(parameters: float, tokens: float, unique_tokens: float) -> float:
    """Return the loss that the law predicts for a trained model, in nats per token.

    `tokens` counts repeated tokens each time, `unique_tokens` only once.
    """
    base = min(parameters, warranted(unique_tokens))
    effective = _decayed(base, parameters / base - 1, R_PARAMETERS)
    data = _decayed(unique_tokens, tokens / unique_tokens - 1, R_DATA)
    return E + A / effective**EXPONENT + B / data**EXPONENT


def excess(parameters: float, tokens: float, epochs: float) -> float:
    """Return by how many percent the law's loss is higher than for equally many fresh tokens."""
    return 100 * (loss(parameters, tokens, tokens / epochs) / loss(parameters, tokens, tokens) - 1)


def whole_share(parameters: float, tokens: float, epochs: float) -> float:
    """Return how much fresh data `epochs` passes over the same data are worth, by the whole law.

    The result is a fraction f: one pass over f * `tokens` fresh tokens has the same loss. `tokens`
    counts the tokens of all passes.
    """
    target = loss(parameters, tokens, tokens / epochs)
    low, high = 1 / epochs, 1.0  # repeating never hurts by this law, nor does fresh data
    for _ in range(60):
        middle = (low * high) ** 0.5
        fewer = middle * tokens
        low, high = (middle, high) if loss(parameters, fewer, fewer) > target else (low, middle)
    return high
