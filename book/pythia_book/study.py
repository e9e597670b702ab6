"""Parts of every study: checked parameters, checkpoints to keep, cost of measuring, result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError, raise_all
from pythia_core.suite import scale_named
from pythia_core.training.retention import Keep
from pythia_core.training.schedule import linear_steps

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from pythia_book.verdicts import Claim
    from pythia_core.training.runs import Run


LIMITS = {"seed": (0, 2**32 - 1), "bootstrap": (100, 1_000_000), "limit": (5, 100_000)}
"""Smallest and largest accepted value of the fields that most studies have."""


@dataclass(frozen=True)
class StudyParams:
    """Parameters of a study. One error reports every bad value and what is accepted.

    A subclass adds fields: strings, and integers whose limits are in `LIMITS` or in `WHOLE`.
    """

    scale: str = "laptop"
    sizes: str = ""
    """Comma-separated list; empty: the default of the study, or all sizes of the scale."""

    WHOLE: ClassVar[dict[str, tuple[int, int]]] = {}
    """Field -> smallest and largest accepted value, for integer fields not in `LIMITS`."""
    DEFAULT_SIZES: ClassVar[dict[str, str]] = {}
    """Scale -> sizes, where the study does not take all sizes of the scale."""
    ONE_SIZE: ClassVar[bool] = False
    """Whether the study trains models of one size only."""

    def __post_init__(self) -> None:
        problems = []
        limits = LIMITS | self.WHOLE
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if name not in limits:
                if not isinstance(value, str):
                    problems.append(f"{name} must be text, got {value!r}")
                continue
            low, high = limits[name]
            if type(value) is not int or not low <= value <= high:
                problems.append(f"{name} must be a whole number in {low}..{high}, got {value!r}")
        if not problems:
            for check in (lambda: self.size_list, self.check):
                try:
                    check()
                except ConfigError as error:
                    if str(error) not in problems:
                        problems.append(str(error))
        raise_all(ConfigError, problems, "parameters")

    def check(self) -> None:
        """Reject values that only this study cannot use; subclasses override it.

        Raises:
            ConfigError: such a value.
        """

    @property
    def size_list(self) -> tuple[str, ...]:
        """The sizes as a tuple, smallest first.

        Raises:
            ConfigError: an unknown size, one named twice, or too many of them.
        """
        default = self.DEFAULT_SIZES.get(self.scale, "")
        sizes = scale_named(self.scale).size_list(self.sizes, default)
        if self.ONE_SIZE and len(sizes) != 1:
            raise ConfigError(
                f"sizes={self.sizes!r} names {len(sizes)} sizes, but this study trains only one; "
                f'give exactly one, e.g. "{sizes[0]}"'
            )
        return sizes


def split_list(text: str) -> list[str]:
    """The entries of a comma-separated list."""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def whole_numbers(text: str) -> list[int]:
    """The numbers of a comma-separated list, ascending; empty if an entry is not a number."""
    entries = split_list(text)
    whole = all(entry.isascii() and entry.isdecimal() for entry in entries)
    return sorted({int(entry) for entry in entries}) if whole else []


def shot_counts(text: str, most: int) -> list[int]:
    """Parse a list of numbers of solved examples in a prompt, ascending.

    Raises:
        ConfigError: an entry that is not a number in 0..`most`, or none at all.
    """
    counts = whole_numbers(text)
    if not counts or counts[-1] > most:
        raise ConfigError(f'shots={text!r}: give numbers in 0..{most}, e.g. "0,2"')
    return counts


@dataclass(frozen=True)
class MeasuringCost:
    """Rough cost of measuring one run, for planning (pythia_book.budget)."""

    heldout: int = 0
    """Passes over the held-out text, or over items of about as many tokens, for all checkpoints."""
    rows: float = 0.0
    """Passes over the rows that the run was trained on (only their first 32 tokens)."""


def kept_at(
    config: RunConfig,
    standard: Sequence[int] = (),
    deduplicated: Sequence[int] = (),
    repeated: Sequence[int] = (),
) -> Keep:
    """The checkpoints whose weights a study reads from a run; they depend on its training text.

    Args:
        standard, deduplicated: which of the 143 evenly spaced checkpoints of a run on that text.
        repeated: which ones of a run that repeats part of a text (study `repetition`).
    """
    indices = standard if config.data.dedup == "none" else deduplicated
    indices = repeated if config.data.epoch_policy == "rows" else indices
    return Keep(linear_steps(indices, config.train.steps))


@dataclass(frozen=True)
class Measurements:
    """What a study measured, without models: all that its analysis needs besides released numbers.

    Attributes:
        arrays: per item, row or seed, by a name such as "loss/25k/standard/572". They are recorded
            as they are; use float32 where its seven digits suffice.
        facts: further numbers and texts, in JSON's types, e.g. counts and gaps.
        runs: the training runs used; none when the input is a record.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    def get(self, *key: Any) -> np.ndarray | None:
        """The array with this name, given in parts; None for a gap."""
        return self.arrays.get(name_of(*key))

    def under(self, *key: Any) -> Iterator[tuple[list[str], np.ndarray]]:
        """(the remaining parts of the name, the array) for all names that begin with these."""
        prefix = name_of(*key) + "/"
        for name, array in self.arrays.items():
            if name.startswith(prefix):
                yield name.removeprefix(prefix).split("/"), array


def name_of(*key: Any) -> str:
    """The name of an array, "loss/25k/572" for ("loss", "25k", 572)."""
    return "/".join(map(str, key))


Tables = dict[str, "pd.DataFrame"]
Analysis = tuple[Tables, dict[str, Any], "list[Claim]"]
"""Tables, values for prose, and claims."""


@dataclass(frozen=True)
class Result:
    """The outcome of a study, ready to be drawn and recorded."""

    study: str
    params: Any
    """A dataclass, the parameters of the study's notebook; one of them is `scale`."""
    tables: dict[str, pd.DataFrame]
    """By name (a-z, 0-9, _); each is recorded as a CSV."""
    values: dict[str, Any]
    """For prose, by name: numbers, texts, and estimates as {"value", "low", "high"}."""
    claims: list[dict[str, Any]]
    """As `verdicts.judge` returns them."""
    measured: Measurements
    released: dict[str, pd.DataFrame]
    """Released numbers by name, empty tables if there are none; recorded with their source."""
    started: float
    """`time.time()` when the study began."""

    @property
    def scale(self) -> str:
        return self.params.scale

    @property
    def parameters(self) -> dict[str, Any]:
        return asdict(self.params)
