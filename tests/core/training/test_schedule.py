"""Checkpoint steps and learning rates equal GPT-NeoX's, in the official run and in short ones."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pythia_core.errors import ConfigError
from pythia_core.training.schedule import (
    checkpoint_steps,
    learning_rate,
    linear_step,
    lr_floor_step,
)

N, MAX, MIN = 143_000, 1e-3, 1e-4


def test_the_official_154_steps() -> None:
    logarithmic = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert list(checkpoint_steps(N)) == logarithmic + [1000 * i for i in range(1, 144)]


@given(st.integers(153, 5_000))
def test_154_checkpoints_for_any_length(total: int) -> None:
    steps = checkpoint_steps(total)
    assert len(set(steps)) == 154
    assert steps == tuple(sorted(steps))
    assert (steps[0], steps[-1]) == (0, total)


@pytest.mark.parametrize("total", [1, 2, 100, 152])
def test_a_shorter_run_saves_every_step(total: int) -> None:
    assert checkpoint_steps(total) == tuple(range(total + 1))


@given(st.integers(153, 5_000), st.integers(1, 143))
def test_fork_points_are_always_saved(total: int, index: int) -> None:
    assert linear_step(index, total) in checkpoint_steps(total)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (1, MAX / 1430),
        (1430, MAX),
        (13_000, MAX / 2 * (1 + math.cos(math.pi * (13_000 - 1430) / N))),
        (71_500, MAX / 2 * (1 + math.cos(math.pi * (71_500 - 1430) / N))),
        (115_139, MIN),
        (143_000, MIN),
    ],
)
def test_learning_rate_equals_the_closed_form(step: int, expected: float) -> None:
    assert learning_rate(step, N, MAX, MIN) == pytest.approx(expected, rel=1e-12, abs=0)


def test_the_minimum_is_reached_at_115139_and_stays() -> None:
    assert lr_floor_step(N) == 115_139
    assert learning_rate(115_138, N, MAX, MIN) > MIN
    assert all(learning_rate(s, N, MAX, MIN) == MIN for s in range(115_139, N, 997))


def test_the_textbook_form_reaches_the_minimum_only_at_the_end() -> None:
    assert learning_rate(N, N, MAX, MIN, form="paper") == pytest.approx(MIN)
    assert learning_rate(115_139, N, MAX, MIN, form="paper") > 1.5 * MIN
    assert learning_rate(1430, N, MAX, MIN, form="paper") == MAX


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown learning-rate form 'papper'.*Did you mean"):
        learning_rate(1, N, MAX, MIN, form="papper")
    with pytest.raises(ConfigError, match="update must be at least 0"):
        learning_rate(-1, N, MAX, MIN)
    with pytest.raises(ConfigError, match="at least 1 update"):
        checkpoint_steps(0)
