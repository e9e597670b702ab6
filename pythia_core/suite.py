"""The suite: every size of a scale's ladder, on the standard and on the deduplicated text.

Pythia's sixteen models are eight sizes twice. All that differs between two of them is what the
names say: models of one size start from the same weights, models on one text read the same batches
in the same order. Not here: training one of them (pythia_core.runs), comparing them (studies).
"""

from __future__ import annotations

from collections.abc import Sequence

from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError, one_of, raise_all
from pythia_core.metrics import best_precision
from pythia_core.runs import Run, find_or_train_all
from pythia_core.scales import scale_named

DATA_ARMS = ("standard", "deduplicated")

Cell = tuple[str, str]
"""(size, arm)."""


def suite_configs(
    scale: str, sizes: Sequence[str], arms: Sequence[str] = DATA_ARMS, seed: int = 1234
) -> dict[Cell, RunConfig]:
    """The runs of a suite; one seed sets both initial weights and order, as in Pythia.

    Raises:
        ConfigError: unknown scale, size or arm.
    """
    unknown = [one_of(arm, DATA_ARMS, "arm") for arm in arms if arm not in DATA_ARMS]
    raise_all(ConfigError, unknown, "suite")
    precision = best_precision()
    return {
        (size, arm): scale_named(scale).run(
            size, seed, seed, deduplicated=arm == "deduplicated", precision=precision
        )
        for size in sizes
        for arm in arms
    }


def find_or_train_suite(
    scale: str,
    sizes: Sequence[str],
    arms: Sequence[str] = DATA_ARMS,
    seed: int = 1234,
    progress: bool = True,
) -> dict[Cell, Run]:
    """The runs of a suite, trained where they are not there yet."""
    return find_or_train_all(suite_configs(scale, sizes, arms, seed), progress)
