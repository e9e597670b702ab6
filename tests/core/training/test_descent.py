"""Steps that do not continue from step 0 are found; sound ones pass, however far they moved."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import random_model, tiny

from pythia_core.training.descent import DESCENDS, continues, descent, distance


def matrices(seed: int, n: int = 64) -> dict[str, torch.Tensor]:
    """Random weights of one matrix, and a LayerNorm of ones as every model has it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": 0.02 * torch.randn(n, n, generator=generator),
        "norm.weight": torch.ones(n),
        "a.bias": torch.zeros(n),
    }


def test_independent_weights_reach_the_bound_about_as_often_as_a_normal_variable() -> None:
    """The null: whatever the later weights are, even all of one sign."""
    one_sided = {"a.weight": torch.rand(64, 64) + 1}
    for later in (one_sided, matrices(-1), {"a.weight": 50 * matrices(-2)["a.weight"]}):
        scores = torch.tensor([descent(matrices(seed), later) for seed in range(400)])
        assert abs(scores.mean()) < 0.15 and 0.9 < scores.std() < 1.1
        assert scores.abs().max() < DESCENDS


@pytest.mark.parametrize("moved", [0.0, 1.0, 3.0])
def test_descendants_are_recognized_however_far_they_moved(moved: float) -> None:
    first, change = matrices(1), matrices(2)
    later = {name: first[name] + moved * change[name] for name in first}
    assert distance(first, later) == pytest.approx(moved * distance(change, {
        name: torch.zeros_like(t) for name, t in change.items()}), rel=1e-6)  # fmt: skip
    assert descent(first, later) > DESCENDS and continues(first, later)
    assert not continues(change, {"a.weight": first["a.weight"]})


def test_norms_biases_and_other_shapes_do_not_count() -> None:
    first, other = matrices(1), matrices(2)
    score = descent(first, other)
    assert score == descent(first, {"a.weight": other["a.weight"]})
    assert math.isnan(descent(first, {"a.weight": torch.zeros(3, 3)}))
    assert not continues(first, {})
    few = {"a.weight": torch.ones(2, 2)}
    assert continues(few, {"a.weight": -few["a.weight"]})  # too few weights for a test


def test_a_models_own_weights_are_enough_for_a_test() -> None:
    one, other = (random_model(tiny(n_layers=1), seed).state_dict() for seed in (1, 2))
    assert continues(one, one) and not continues(one, other)
