"""Defines the parameters of the study of the suite, and the runs that it trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pythia_book.study import MeasuringCost, StudyParams
from pythia_core.config import CONTROL_DOMAINS, RunConfig
from pythia_core.suite import DATA_ARMS, size_name, suite_configs
from pythia_core.training.retention import Keep

STUDY = "suite"
FLAT_SIZES = ("7k", "25k")
MEASURING = MeasuringCost()
EARLY_STEPS = (0, 8, 64, 512)
"""Steps at which models write, besides the last one, in runs that are longer than that."""


@dataclass(frozen=True)
class Params(StudyParams):
    """The notebook parameters of the study `suite`."""

    seed: int = 1234
    resume_steps: int = 24
    """Number of updates of the run that is interrupted in the middle and compared with one that is
    not interrupted."""
    flat_seeds: int = 0
    """Number of models (seeds) of each size in FLAT_SIZES to train on the text with flat shares, in
    which every noun has as many feminine as masculine pronouns. These models check the test of
    associations."""

    WHOLE: ClassVar = {"resume_steps": (2, 10_000), "flat_seeds": (0, 100)}

    @property
    def writing_sizes(self) -> tuple[str, str]:
        """The smallest and the largest size, whose models on the standard text write."""
        return self.size_list[0], self.size_list[-1]

    def flat_configs(self) -> dict[tuple[str, int], RunConfig]:
        """Map (size, seed) to the config of each run on the text with flat shares."""
        controls = {domain: control for control, domain in CONTROL_DOMAINS.items()}
        configs = {}
        for seed in range(1, self.flat_seeds + 1):
            standard = suite_configs(self.scale, FLAT_SIZES, DATA_ARMS[:1], seed)
            for (size, _), config in standard.items():
                domains = tuple(controls.get(domain, domain) for domain in config.data.domains)
                configs[size, seed] = replace(config, data=replace(config.data, domains=domains))
        return configs


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of the training runs that the study measures."""
    suite = suite_configs(params.scale, params.size_list, seed=params.seed)
    return [*suite.values(), *params.flat_configs().values()]


def writing_steps(steps: int) -> tuple[int, ...]:
    """Return the steps at which the model of a run of `steps` updates writes."""
    return (*(step for step in EARLY_STEPS if step < steps), steps)


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the last checkpoint and, for the two models that write, those at which they do."""
    writes = size_name(run.model) in params.writing_sizes and run.data.dedup == "none"
    return Keep(frozenset(writing_steps(run.train.steps) if writes else {run.train.steps}))
