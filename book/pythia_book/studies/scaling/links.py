"""Predicts accuracy from a smooth measure, through the way in which the accuracy is scored.

Schaeffer et al. (2023, section 2) argue that an ability looks sudden where a metric "nonlinearly or
discontinuously" scales a smooth one. If that is all, one curve, the *link*, leads from the smooth
measure to the accuracy in all models at all times. A link is therefore fitted to all sizes but one
and predicts the one left out, at every checkpoint.

    choice from margin    The right answer of several is chosen if it is the likeliest. Let the
                          log-probabilities scatter normally with equal variance, and that of the
                          right answer be larger by `margin` on average. Signal detection theory
                          then gives the chance of a right choice: one parameter, the scatter.
    choice from logprob   A logistic curve above guessing: two parameters.
    exact from logprob    A power of the probability of the right answer: two parameters. Schaeffer
                          et al. use no parameter: the chance that all tokens are right is the
                          product of their probabilities, exp(logprob).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from pythia_book.corpora.equations import CHOICES
from pythia_core.suite import Cell

Link = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps parameters and smooth measure, float64[n], to accuracy, float64[n] from 0 to 1."""


@cache
def _hermite() -> tuple[np.ndarray, np.ndarray]:
    """Return quadrature points and weights for means over a standard normal variable."""
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    return points, weights / weights.sum()


def chance_of_choice(distance: np.ndarray, choices: int = CHOICES) -> np.ndarray:
    """Return the chance that a normal variable with mean `distance` is the largest of `choices`.

    The others have mean 0, and all have variance 1. At distance 0, this is 1 / `choices`.
    """
    from scipy.special import ndtr

    points, weights = _hermite()
    return ndtr(np.asarray(distance)[..., None] + points) ** (choices - 1) @ weights


def _choice_from_margin(parameters: np.ndarray, margin: np.ndarray) -> np.ndarray:
    return chance_of_choice(margin * np.exp(-parameters[0]))


def _choice_from_logprob(parameters: np.ndarray, logprob: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    guess = 1 / CHOICES
    return guess + (1 - guess) * expit(parameters[0] + np.exp(parameters[1]) * (logprob + 5))


def _exact_from_logprob(parameters: np.ndarray, logprob: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(parameters[0] + np.exp(parameters[1]) * (logprob + 5), 0))


LINKS: dict[tuple[str, str], tuple[Link, tuple[float, ...]]] = {
    ("choice", "margin"): (_choice_from_margin, (0.0,)),
    ("choice", "logprob"): (_choice_from_logprob, (-2.0, 0.0)),
    ("exact", "logprob"): (_exact_from_logprob, (-4.0, 0.0)),
}
"""Maps an accuracy and a smooth measure to the link and where its fit begins."""


def fit_link(link: Link, start: tuple[float, ...], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the parameters that minimize the squared errors of accuracies `y`, both float[n]."""
    from scipy.optimize import least_squares

    bounds = (np.array(start) - 8, np.array(start) + 8)
    fit = least_squares(lambda p: 100 * (link(p, x) - y), start, bounds=bounds)
    return fit.x


@dataclass(frozen=True)
class Curves:
    """The curves of one run: float64[checkpoints] each, at the steps in int[checkpoints]."""

    steps: np.ndarray
    accuracy: np.ndarray
    smooth: np.ndarray


def left_out(
    link: Link, start: tuple[float, ...], runs: Mapping[Cell, Curves]
) -> dict[Cell, tuple[np.ndarray, np.ndarray]]:
    """Predict each run's accuracy from the runs of all other sizes, in two ways.

    Returns:
        For each run, two predictions, float64[checkpoints] each: that of the link fitted to the
        other sizes on all texts, and the mean accuracy of the other sizes at the same step on the
        same text.
    """
    predictions = {}
    for (size, arm), own in runs.items():
        others = [each for (other, _), each in runs.items() if other != size]
        x, y = (np.concatenate([getattr(o, k) for o in others]) for k in ("smooth", "accuracy"))
        parameters = fit_link(link, start, x, y)
        same_text = [each for (other, text), each in runs.items() if other != size and text == arm]
        same_step = np.mean([np.interp(own.steps, o.steps, o.accuracy) for o in same_text], axis=0)
        predictions[size, arm] = (link(parameters, own.smooth), same_step)
    return predictions
