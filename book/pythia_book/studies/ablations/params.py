"""Defines the parameters of the ablations study, its arms, and the config of each training job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from pythia_book.study import StudyParams, parse_names
from pythia_core.config import DataConfig, RunConfig
from pythia_core.suite import SUITE_SEED, scale_named

STUDY = "ablations"
SHORTER = 2
"""Training is shorter than that of the suite by this factor, to pay for more seeds."""
FIRST, N_CHECKPOINTS = 4, 8
"""First step at which the loss is measured, and the number of such steps (at most)."""
WINDOWS = 4
"""The window of the arm `window` is a row's length divided by this number."""


@dataclass(frozen=True)
class Arm:
    """A choice of architecture that differs from Pythia's in one respect."""

    title: str
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig that differ from Pythia's."""
    tied: bool = False
    """Whether embedding and unembedding share their weights."""
    first_parallel: bool = False
    """Whether the first layer is parallel, whatever the others are."""
    windowed: bool = False
    """Whether a token attends only to itself and the tokens shortly before it, in every layer."""


BASELINE = "pythia"
MEAN = "mean"
"""The name of the mean over sizes in tables, where other rows have a size."""
ARMS = {
    BASELINE: Arm("Pythia"),
    "sequential": Arm("sequential blocks", {"parallel_residual": False}),
    "later_sequential": Arm(
        "sequential after the first layer", {"parallel_residual": False}, first_parallel=True
    ),
    "default_init": Arm("GPT-NeoX's default initialization", {"init": "normal_scaled"}),
    "full_rotary": Arm("rotary on whole heads", {"rotary_fraction": 1.0}),
    "no_rotary": Arm("no rotary embedding", {"rotary_fraction": 0.0}),
    "tied": Arm("tied embeddings", tied=True),
    "window": Arm("attention window", windowed=True),
}
"""The arms by name; the first is Pythia's architecture, with which the others are compared."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The notebook parameters of the study `ablations`."""

    arms: str = ""
    """Comma-separated arms to compare with Pythia's; empty: all."""
    seeds: int = 1
    """Number of seeds, each with its own weights and data order, which all arms share."""

    WHOLE: ClassVar = {"seeds": (1, 100)}
    DEFAULT_SIZES: ClassVar = {"smoke": "7k", "laptop": "25k", "gpu": "1.2m,4.7m"}

    def check(self) -> None:
        """Raise ConfigError if an arm is unknown or repeated."""
        _ = self.arm_list

    @property
    def arm_list(self) -> tuple[str, ...]:
        """The names of the arms in the order of ARMS; Pythia's comes first."""
        accepted = [name for name in ARMS if name != BASELINE]
        chosen = parse_names(self.arms, accepted, "arm", "arms") or accepted
        return (BASELINE, *(name for name in accepted if name in chosen))

    @property
    def n_steps(self) -> int:
        """The number of updates of a model."""
        return scale_named(self.scale).steps // SHORTER

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps at which the loss is measured: log-spaced, ascending, with the last step."""
        steps = np.geomspace(min(FIRST, self.n_steps), self.n_steps, N_CHECKPOINTS)
        return tuple(sorted(set(steps.round().astype(int).tolist())))

    @property
    def window(self) -> int:
        """The number of tokens to which a token attends in the arm `window`, itself included."""
        return scale_named(self.scale).data.seq_len // WINDOWS

    def config(self, size: str, arm: str, seed: int) -> RunConfig:
        """Return the config of a job, in fp32; arms differ only in fields of the model."""
        at = SUITE_SEED + seed
        base = scale_named(self.scale).run(size, at, at, steps=self.n_steps, precision="fp32")
        return replace(base, model=replace(base.model, **ARMS[arm].model))


def models(params: Params) -> list[RunConfig]:
    """Return the configs of the models that the study itself trains, for estimates of the time."""
    return [
        params.config(size, arm, seed)
        for seed in range(params.seeds)
        for size in params.size_list
        for arm in params.arm_list
    ]


def texts(params: Params) -> list[DataConfig]:
    """Return the config of the text on which all models are trained; seeds only reorder it."""
    return [params.config(params.size_list[0], BASELINE, 0).data]
