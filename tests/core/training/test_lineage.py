"""Steps that do not continue from step 0 are found; sound ones pass, or cannot be told."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import random_model, tiny
from tiny_training import batch_at, config

from pythia_core.training.execution import EAGER
from pythia_core.training.lineage import EXPECTED, SAME_LINEAGE, continues, distance, lineage_score
from pythia_core.training.trainer import Trainer


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
        scores = torch.tensor([lineage_score(matrices(seed), later) for seed in range(400)])
        assert abs(scores.mean()) < 0.15 and 0.9 < scores.std() < 1.1
        assert scores.abs().max() < SAME_LINEAGE


@pytest.mark.parametrize("n", [32, 64, 256])
@pytest.mark.parametrize("moved", [0.0, 1.0, 3.0, 5.0, 8.0, 12.0])
def test_descendants_are_never_said_to_be_of_another_run(moved: float, n: int) -> None:
    first, change = matrices(1, n), matrices(2, n)
    later = {name: first[name] + moved * change[name] for name in first}
    assert distance(first, later) == pytest.approx(moved * distance(change, {
        name: torch.zeros_like(t) for name, t in change.items()}), rel=1e-6)  # fmt: skip
    expected = n / math.sqrt(3 + moved**2)
    assert lineage_score(first, later) == pytest.approx(expected, abs=3)
    assert continues(first, later) is not False
    assert continues(first, later) or expected < 2 * SAME_LINEAGE
    unrelated = n / math.sqrt(1 + moved**2)  # what a descendant as long as this would score
    assert continues(matrices(3, n), later) is (False if unrelated > EXPECTED else None)


def test_norms_biases_and_other_shapes_do_not_count() -> None:
    first, other = matrices(1), matrices(2)
    score = lineage_score(first, other)
    assert score == lineage_score(first, {"a.weight": other["a.weight"]})
    assert math.isnan(lineage_score(first, {"a.weight": torch.zeros(3, 3)}))


def test_what_cannot_be_compared_cannot_be_told() -> None:
    first, other = matrices(1), matrices(2)
    renamed = {f"gpt_neox.{name}": weight for name, weight in first.items()}
    assert continues(first, renamed) is None and continues(first, {}) is None
    for weights in (first, other):
        for value in (math.nan, math.inf):
            broken = {name: weight.clone() for name, weight in weights.items()}
            broken["a.weight"][0, 0] = value
            assert continues(first, broken) is None and continues(broken, first) is None
    few = {"a.weight": torch.ones(2, 2)}
    assert continues(few, {"a.weight": -few["a.weight"]}) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_in_half_precision_are_compared(dtype: torch.dtype) -> None:
    first, other = (
        {name: weight.to(dtype) for name, weight in matrices(seed).items()} for seed in (1, 2)
    )
    assert continues(first, first) is True and continues(matrices(1), first) is True
    assert continues(first, other) is False


def test_tied_matrices_count_once() -> None:
    later = {"a.weight": matrices(-1)["a.weight"], "out.weight": matrices(-1)["a.weight"]}
    tied = [matrices(seed) for seed in range(400)]
    scores = [lineage_score(one | {"out.weight": one["a.weight"]}, later) for one in tied]
    assert scores == [lineage_score(one, later) for one in tied]
    assert 0.9 < torch.tensor(scores).std() < 1.1  # counted twice: 1.41


@pytest.mark.parametrize(("lr_max", "weight_decay"), [(1e-2, 0.1), (0.3, 0.1), (0.05, 1.0)])
def test_real_runs_at_high_rates_are_not_said_to_be_of_another_run(
    lr_max: float, weight_decay: float
) -> None:
    settings = {"steps": 70, "lr_max": lr_max, "weight_decay": weight_decay}
    initial, answers, others = {}, [], []
    other = random_model(config().model, 9).state_dict()
    trainer = Trainer(config(**settings), torch.device("cpu"), EAGER)
    for step in range(65):
        weights = {name: w.clone() for name, w in trainer.model.state_dict().items()}
        initial = initial or weights
        if step in (1, 2, 4, 8, 16, 32, 64):
            answers.append(continues(initial, weights))
            others.append(continues(other, weights))
        trainer.update(batch_at(step))
    assert False not in answers and answers[:4] == [True] * 4
    assert True not in others and False in others
    assert lr_max > 1e-2 or (None not in answers and None not in others)


def test_a_models_own_weights_are_enough_for_a_test() -> None:
    one, other = (random_model(tiny(n_layers=1), seed).state_dict() for seed in (1, 2))
    assert continues(one, one) is True and continues(one, other) is False
