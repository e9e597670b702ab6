"""Define when checkpoints are saved, and the learning rate, as pure functions of the step.

The sources are `learning_rates.py` of GPT-NeoX v1.0 and Pythia's configs. The released models did
*not* use the textbook cosine, which ends at the minimum learning rate. Their cosine falls toward
zero, but the learning rate stays at the minimum from update 115,139 of 143,000 on. Updates are
counted from 0. Update 0 has learning rate 0, so the weights of steps 0 and 1 are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

from pythia_core.config import LR_FORMS
from pythia_core.errors import ConfigError, one_of

OFFICIAL_STEPS = 143_000
N_CHECKPOINTS = 154
N_LINEAR = 143
LOG_STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PAPER_FORKS = (113, 133)
"""Indices (`linear_step`) of the checkpoints at which the paper's interventions branch off, 21 %
and 7 % before the end. Every run keeps its full state at these steps."""


def checkpoint_steps(total_steps: int) -> tuple[int, ...]:
    """Return the 154 steps at which a run of `total_steps` updates saves its weights.

    As in the paper, these are 0, the powers of two to 512, and 143 evenly spaced steps up to the
    last step. In a short run, where some of these are equal, the widest gaps are halved, earliest
    first, until there are 154 steps. A run of fewer than 154 updates saves every step.

    Raises:
        ConfigError: `total_steps` is not positive.
    """
    if total_steps < 1:
        raise ConfigError(f"a run needs at least 1 update, got total_steps={total_steps}")
    if total_steps < N_CHECKPOINTS:
        return tuple(range(total_steps + 1))
    steps = {s for s in LOG_STEPS if s < total_steps}
    steps |= {round(i * total_steps / N_LINEAR) for i in range(1, N_LINEAR + 1)}
    while len(steps) < N_CHECKPOINTS:
        ordered = sorted(steps)
        gap, left = max((b - a, -a) for a, b in pairwise(ordered))
        steps.add(-left + gap // 2)
    return tuple(sorted(steps))


def linear_step(index: int, total_steps: int) -> int:
    """Return the step of the `index`-th of the 143 evenly spaced checkpoints.

    In the released models' training, this is 1000 * index.

    Raises:
        ConfigError: `index` is not in 0..143.

    >>> linear_step(133, 572)  # where the paper's 7 % intervention starts, in a run of 572 updates
    532
    """
    if not 0 <= index <= N_LINEAR:
        raise ConfigError(f"the index of a checkpoint must be in 0..{N_LINEAR}, got {index}")
    return round(index * total_steps / N_LINEAR)


def linear_steps(indices: Iterable[int], total_steps: int) -> frozenset[int]:
    """Return the steps that `linear_step` gives for several indices."""
    return frozenset(linear_step(index, total_steps) for index in indices)


def learning_rate(
    update: int,
    total_steps: int,
    lr_max: float,
    lr_min: float,
    warmup_fraction: float = 0.01,
    form: str = "neox",
) -> float:
    """Return the learning rate of the update from step `update` to the next.

    Args:
        total_steps: number of updates N of the run.
        warmup_fraction: the linear warm-up has w = warmup_fraction * N updates.
        form: the form of the decay after the warm-up.
            "neox", as in the released models: max(lr_min, lr_max/2 * (1 + cos(pi n / N))), with
            n = min(update, N - w) - w.
            "paper", as usually described: the cosine from lr_max at the end of the warm-up to
            lr_min at the end of the run.

    Raises:
        ConfigError: the form is unknown, or `update` is negative.
    """
    if form not in LR_FORMS:
        raise ConfigError(one_of(form, LR_FORMS, "learning-rate form"))
    if update < 0:
        raise ConfigError(f"update must be at least 0, got {update}")
    warmup = warmup_fraction * total_steps
    if update <= warmup and warmup > 0:
        return lr_max * update / warmup
    if form == "neox":
        n = min(update, total_steps - warmup) - warmup
        return max(lr_min, lr_max / 2 * (1 + math.cos(math.pi * n / total_steps)))
    progress = min(1.0, (update - warmup) / (total_steps - warmup))
    return lr_min + (lr_max - lr_min) / 2 * (1 + math.cos(math.pi * progress))


def lr_floor_step(
    total_steps: int, lr_min_ratio: float = 0.1, warmup_fraction: float = 0.01
) -> int:
    """Return the first update at the minimum learning rate, in form "neox" (Pythia: 115,139)."""
    n = math.acos(2 * lr_min_ratio - 1) * total_steps / math.pi
    return math.ceil(n + warmup_fraction * total_steps)
