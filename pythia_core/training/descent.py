"""Tests whether checkpoints continue from the initial weights that were published with them.

In a sound run, step 0 has the weights from which training starts. If step 0 is from another run,
later steps are independent of it. The signs of random initial weights are independent of each other
and equally likely + or -. So let w be the initial weights of all matrices, and v the weights of any
step that does not depend on them. Then the sum of w v, divided by the root of the sum of (w v)^2,
exceeds t with a probability of at most exp(-t^2 / 2) (Hoeffding's inequality), whatever v is. In a
true descendant, the initial weights are still there, and the score is far above every such bound,
however far the weights have moved: in the suite at scale laptop it is 100 or more at step 64, and
25 or more at the end, where weights lie 1.3 to 3 times their initial length from where they began.

Long training does erase initial weights: weight decay multiplies them by exp(-0.1 S), where S is
the sum of the learning rates, to about 6e-4 by the end of the released 70M. So only early steps are
tested. Up to step 64, S is below 0.002 in every released run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

TESTED_UP_TO = 64
"""The last step that is tested."""
DESCENDS = 6.0
"""Least `descent` of a step that continues from step 0. Independent weights reach it with a
probability below 2e-8."""


def descent(initial: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> float:
    """Return how far the weights of a step are from independent of initial weights, in sd.

    Only weight matrices count: biases and LayerNorms do not start at random values. The result is
    NaN if the two have no weight matrix of the same name and shape.
    """
    products, squares = 0.0, 0.0
    for name, weight in initial.items():
        other = later.get(name)
        if not name.endswith("weight") or weight.ndim != 2:
            continue
        if other is not None and other.shape == weight.shape:
            both = weight.to(torch.float64) * other.to(torch.float64)
            products += float(both.sum())
            squares += float((both * both).sum())
    return products / math.sqrt(squares) if squares else math.nan


def continues(initial: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> bool:
    """Return whether weights continue from initial ones; True if there are too few to tell."""
    return not descent(initial, initial) > DESCENDS or descent(initial, later) > DESCENDS


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the Euclidean distance between the weights of two models of the same shape."""
    squares = [float((one[name].double() - other[name].double()).square().sum()) for name in one]
    return math.sqrt(sum(squares))
