"""How a continued run begins: where Adam's moments were zero, and by what rule the rate rises.

Not here: why (pythia_book.released.continued).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError, one_of
from pythia_core.training.execution import EAGER, Execution
from pythia_core.training.trainer import Trainer, update_lr

RULES = ("linear", "none", "constant")


@dataclass(frozen=True)
class Rewarm:
    """How the learning rate begins where the optimizer's state is lost; see the module."""

    rule: str = "linear"
    updates: int = 0
    """W of the rule "linear"; 0: 1 % of the updates to come, rounded up."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(one_of(self.rule, RULES, "rule of re-warming"))
        if self.updates < 0 or (self.updates and self.rule != "linear"):
            raise ConfigError(
                f"{self.updates} updates of re-warming with rule {self.rule!r}: accepted is a "
                "number from 0 on, and only with 'linear'"
            )


@dataclass(frozen=True)
class Continuation:
    """All that determines a continued run besides its weights, data, model and schedule."""

    start: int
    stop: int
    adam_from: int
    """Step at which Adam's moments were zero; 0 for an exact continuation of a run of ours."""
    rule: str
    rewarm_updates: int
    swap: str = ""

    def lr(self, config: RunConfig, step: int) -> float:
        """Learning rate of the update that leads from `step` to `step + 1`."""
        if self.rule == "constant":
            return update_lr(config, self.adam_from)
        lr = update_lr(config, step)
        warmed = step - self.adam_from
        return lr * warmed / self.rewarm_updates if warmed < self.rewarm_updates else lr

    def described(self) -> str:
        """The beginning, in words."""
        if self.adam_from != self.start:
            return f"optimizer state of step {self.start} kept: an exact continuation"
        rate = {
            "linear": f"re-warmed from 0 in {self.rewarm_updates} updates",
            "none": "the schedule's at once",
            "constant": f"that of step {self.start} throughout",
        }[self.rule]
        return f"weights of step {self.start} only; Adam's moments zero, learning rate {rate}"


class ContinuedTrainer(Trainer):
    """A trainer whose Adam, and whose learning rate, began at a step of their own."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        execution: Execution = EAGER,
        *,
        how: Continuation,
    ) -> None:
        super().__init__(config, device, execution)
        self.how = how

    def lr(self) -> float:
        return self.how.lr(self.config, self.updates_made)

    @property
    def moments_age(self) -> int:
        return self.updates_made - self.how.adam_from
