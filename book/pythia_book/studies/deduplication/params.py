"""The parameters of the deduplication study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams, kept_at
from pythia_core.config import DataConfig, RunConfig
from pythia_core.data.dedup import RECIPES
from pythia_core.suite import DATA_ARMS, SUITE_SEED, scale_named, suite_configs
from pythia_core.training.precision import best_precision
from pythia_core.training.retention import Keep

STUDY = "deduplication"
AFTER = ("suite",)
"""Studies to run first; they train runs that this study uses."""
MEASURING = MeasuringCost(heldout=4, rows=1.0)
CONTEXT = 32
"""Length of the prompt in tokens, and of the memorized continuation (paper section 3.2)."""

MARGIN = 0.05
"""Losses that differ by less than MARGIN nats per token count as equal. When it was set, KNOWN_STEP
and KNOWN_SD were known, both from the text of the suite. So the margin is less than the mean step
to the next size (though not less than every step), and can be tested with six seeds."""
KNOWN_STEP = 0.066
"""What the step to the next size is worth, nats per token: mean from 25k to 600k."""
KNOWN_SD = 0.025
"""The standard deviation of the change in loss over five seeds of 25k."""

Cell = tuple[str, str, int]
"""(size, data arm, seed): a run on text with copies as in the Pile."""


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the deduplication study."""

    seeds: int = 1
    """Number of pairs of twins of each size on the text with copies as in the Pile."""
    bootstrap: int = 2000

    WHOLE: ClassVar = {"seeds": (1, 100)}
    DEFAULT_SIZES: ClassVar = {"smoke": "7k,25k", "laptop": "25k,85k", "gpu": "1.2m"}

    def configs(self) -> dict[Cell, RunConfig]:
        """Map (size, data arm, seed) to the config of each run on text with copies as in the Pile.

        The text is that of the suite, except for its copies.
        """
        scale, precision = scale_named(self.scale), best_precision()
        made = {}
        for size in self.size_list:
            for seed in self.seed_values:
                for arm in DATA_ARMS:
                    deduplicated = arm == "deduplicated"
                    run = scale.run(size, seed, seed, deduplicated, precision=precision)
                    made[size, arm, seed] = replace(run, data=as_in_the_pile(run.data))
        return made

    @property
    def seed_values(self) -> range:
        """The seed of each pair, for both weights and order; the first one is the suite's."""
        return range(SUITE_SEED, SUITE_SEED + self.seeds)

    @property
    def suite_sizes(self) -> tuple[str, ...]:
        """The sizes of the suite's twins, on heavily repeated text: all, unless sizes are named."""
        return self.size_list if self.sizes else scale_named(self.scale).sizes


def as_in_the_pile(data: DataConfig) -> DataConfig:
    """Return the config of a text whose documents are repeated as in the Pile."""
    domains = tuple("copies_pile" if name == "copies" else name for name in data.domains)
    return replace(data, domains=domains)


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses."""
    suite = suite_configs(params.scale, params.suite_sizes)
    return [*params.configs().values(), *suite.values()]


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the last checkpoint, the only one whose weights this study reads."""
    return kept_at(run, standard=(143,), deduplicated=(143,))


def texts(params: Params) -> list[DataConfig]:
    """Return the configs of the standard text and of the text after each recipe.

    The copies are as in the Pile.
    """
    data = as_in_the_pile(scale_named(params.scale).data)
    return [replace(data, dedup=recipe) for recipe in ("none", *RECIPES)]
