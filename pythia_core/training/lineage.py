"""Test whether checkpoints continue from the initial weights that were published with them.

In a sound run, step 0 has the weights from which training starts. If step 0 is from another run,
later steps are independent of it. The signs of random initial weights are independent of each other
and equally likely + or -. Let w be the initial weights of all matrices, and v the weights of any
step that does not depend on them. Then the score, the sum of w v divided by the square root of the
sum of (w v)^2, exceeds t with a probability of at most exp(-t^2 / 2), whatever v is (Hoeffding's
inequality).

In a true descendant the initial weights are still there. If the change v - w does not depend on
the signs of w, the score is about the sum of w^2 divided by the same root. This expected score
falls as weights move away, and rises as the square root of their number. A low score suggests
another run only if the expected score is high; otherwise the test cannot tell.

Long training does erase initial weights: weight decay multiplies them by exp(-0.1 S), where
S is the sum of the learning rates. This factor is about 6e-4 at the end of the released 70M. So
only early steps are tested. Up to step 64, S is below 0.002 in every released run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

TESTED_UP_TO = 64
"""The last step that is tested."""
SAME_LINEAGE = 6.0
"""A step with a score above this continues from step 0. Independent weights exceed it with a
probability of at most exp(-18), below 2e-8."""
EXPECTED = 24.0
"""A lower score is evidence of another run if the expected score is at least this. A step that
kept only half of its initial weights would still have a score of about 12."""


def lineage_score(initial: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> float:
    """Return a step's score, which has standard deviation 1 if the step is unrelated to `initial`.

    Only weight matrices count: biases and LayerNorms do not start at random values. The result is
    NaN if the two have no weight matrix of the same name and shape, or a weight is not finite.
    """
    products, root, _ = _sums(initial, later)
    return products / root if root else math.nan


def continues(initial: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> bool | None:
    """Return whether weights continue from initial ones; None if the test cannot tell.

    The result is None if few weights have the same name and shape, if a weight is not finite, or if
    weights have moved so far that even a true descendant would have a low score.
    """
    products, root, own = _sums(initial, later)
    if products > SAME_LINEAGE * root:
        return True
    return False if root and math.inf > own >= EXPECTED * root else None


def _sums(initial: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> tuple[float, float, float]:
    """Return the sum of w v, the square root of the sum of (w v)^2, and the sum of w^2.

    A matrix that is tied to another (equal to it in `initial`) counts once, since its signs are not
    independent.
    """
    products, squares, own = 0.0, 0.0, 0.0
    counted = set()
    for name, weight in initial.items():
        other = later.get(name)
        if not name.endswith("weight") or weight.ndim != 2:
            continue
        if other is None or other.shape != weight.shape:
            continue
        w = weight.to(torch.float64)
        square = float(w.square().sum())
        if (w.shape, square) in counted:  # no two random matrices have the same sum
            continue
        counted.add((w.shape, square))
        both = w * other.to(torch.float64)
        products += float(both.sum())
        squares += float(both.square().sum())
        own += square
    return products, math.sqrt(squares), own


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance between the weights of two models of the same shape."""
    squares = [float((one[name].double() - other[name].double()).square().sum()) for name in one]
    return math.sqrt(sum(squares))
