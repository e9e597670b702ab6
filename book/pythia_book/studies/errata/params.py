"""The parameters of the errata study, its runs, and the checkpoints it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pythia_book.studies.seeds.params import seed_values
from pythia_book.study import MeasuringCost, StudyParams, kept_at, parse_names
from pythia_core.config import RunConfig
from pythia_core.suite import suite_configs
from pythia_core.training.retention import Keep

STUDY = "errata"
AFTER = ("seeds",)
"""Studies to run first; they train runs that this study uses."""
MEASURING = MeasuringCost(heldout=8)
INDICES = (13, 33, 73, 113, 133, 143)
"""At which of the 143 checkpoints runs are compared."""


@dataclass(frozen=True)
class Switch:
    """A change of one field in the config of a run of the suite."""

    name: str
    part: str
    """The part of a RunConfig that has the field: model, data or train."""
    value: Any
    label: str
    arm: str = "standard"
    """The training text of the changed run and its control: "standard" or "deduplicated"."""

    def apply(self, config: RunConfig) -> RunConfig:
        """Return a copy of `config` with only this field changed."""
        part = replace(getattr(config, self.part), **{self.name: self.value})
        return replace(config, **{self.part: part})


SWITCHES = {
    switch.name: switch
    for switch in (
        Switch("lr_form", "train", "paper", "cosine to a tenth at the end"),
        Switch("first_update_at_lr_zero", "train", False, "no first update at rate 0"),
        Switch("init", "model", "like_6.9b", "initial weights enlarged as in 6.9B"),
        Switch("gelu", "model", "erf", "exact GELU in training"),
        Switch("epoch_policy", "data", "separate", "separate epochs", "deduplicated"),
    )
}
GELU_AFTER_TRAINING = "gelu_read"
LABELS = {name: switch.label for name, switch in SWITCHES.items()} | {
    GELU_AFTER_TRAINING: "exact GELU after training",
}
"""Maps each variant to its description."""


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the errata study."""

    switches: str = ""
    """Comma-separated names in SWITCHES; empty means all. Each changes one field of a control."""
    seeds: int = 1
    """Number of runs of every setting. A seed sets both the initial weights and the data order."""

    WHOLE: ClassVar = {"seeds": (1, 100)}
    ONE_SIZE: ClassVar = True
    DEFAULT_SIZES: ClassVar = {"smoke": "7k", "laptop": "25k", "gpu": "1.2m"}

    def check(self) -> None:
        """Raise a ConfigError if `switches` has an unknown or repeated name."""
        _ = self.switch_list

    @property
    def switch_list(self) -> tuple[Switch, ...]:
        """The selected switches, in the order of SWITCHES."""
        names = parse_names(self.switches, SWITCHES, "switch", "switches")
        return tuple(s for name, s in SWITCHES.items() if name in names or not names)


def run_configs(params: Params) -> dict[tuple[str, int], RunConfig]:
    """Map (name, seed) to the config of each run of the study.

    The names are "standard" and, if a switch needs this control, "deduplicated", then the name of
    each switch. All runs of one seed have the same seed of weights and order.
    """
    (size,) = params.size_list
    arms = tuple(dict.fromkeys(["standard", *(s.arm for s in params.switch_list)]))
    configs = {}
    for seed in seed_values(params.seeds):
        suite = suite_configs(params.scale, [size], arms, seed)
        configs |= {(arm, seed): suite[size, arm] for arm in arms}
        configs |= {(s.name, seed): s.apply(suite[size, s.arm]) for s in params.switch_list}
    return configs


def runs(params: Params) -> list[RunConfig]:
    """Return the configs of all runs that the study uses."""
    return list(run_configs(params).values())


def keep(params: Params, run: RunConfig) -> Keep:
    """Return the checkpoints that this study reads from `run`, whichever study trains it."""
    return kept_at(run, standard=INDICES, deduplicated=INDICES)


def controls(params: Params) -> dict[str, str]:
    """Map each variant (a key of LABELS) to its control's text: "standard" or "deduplicated"."""
    arms = {s.name: s.arm for s in params.switch_list}
    read = {GELU_AFTER_TRAINING: "standard"} if "gelu" in arms else {}
    return arms | read
