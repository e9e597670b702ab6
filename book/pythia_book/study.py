"""Defines classes that all studies share, for parameters, measurements and results.

Each study subclasses `StudyParams`. A study measures models, and the measurements are stored as
`Measurements`. The outcome of a study is a `Result`, which is drawn and recorded. `MeasuringCost`
says how much text is read to measure a run. `kept_at` selects the checkpoints that a run keeps.
"""

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
"""Maps integer fields that most studies have to their smallest and largest accepted values."""


@dataclass(frozen=True)
class StudyParams:
    """The parameters of a study. A single ConfigError reports all bad values.

    A subclass adds fields. A field whose limits are in `LIMITS` or `WHOLE` must be an integer; any
    other field must be a string.
    """

    scale: str = "laptop"
    sizes: str = ""
    """Comma-separated list of model sizes. If it is empty, the study's DEFAULT_SIZES or else all
    sizes of the scale are used."""

    WHOLE: ClassVar[dict[str, tuple[int, int]]] = {}
    """Maps integer fields that are not in `LIMITS` to their smallest and largest accepted values.
    """
    DEFAULT_SIZES: ClassVar[dict[str, str]] = {}
    """Maps a scale to the default sizes, for scales at which the default is not all sizes."""
    ONE_SIZE: ClassVar[bool] = False
    """Whether the study trains models of one size only."""

    def __post_init__(self) -> None:
        """Raise one ConfigError that reports every bad value."""
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
        """Raise if this study cannot use the parameters. Subclasses override this method.

        Raises:
            ConfigError: the study cannot use a value.
        """

    @property
    def size_list(self) -> tuple[str, ...]:
        """The names of the model sizes to study, as a tuple, smallest first.

        Raises:
            ConfigError: a size is unknown or named twice, or there are too many sizes.
        """
        default = self.DEFAULT_SIZES.get(self.scale, "")
        sizes = scale_named(self.scale).size_list(self.sizes, default)
        if self.ONE_SIZE and len(sizes) != 1:
            raise ConfigError(
                f"sizes={self.sizes!r} means {len(sizes)} sizes, but this study trains models of "
                f'only one size; pass one size, e.g. "{sizes[0]}"'
            )
        return sizes


def split_list(text: str) -> list[str]:
    """Split a text at commas; return the entries without outer spaces, and no empty entries."""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def whole_numbers(text: str) -> list[int]:
    """Parse a comma-separated list of whole numbers; return them sorted, without duplicates.

    If an entry is not a whole number, return an empty list.
    """
    entries = split_list(text)
    whole = all(entry.isascii() and entry.isdecimal() for entry in entries)
    return sorted({int(entry) for entry in entries}) if whole else []


def shot_counts(text: str, most: int) -> list[int]:
    """Parse a comma-separated list of shot counts (solved examples per prompt); return them sorted.

    Raises:
        ConfigError: the list is empty, or an entry is not a number in 0..`most`.
    """
    counts = whole_numbers(text)
    if not counts or counts[-1] > most:
        raise ConfigError(
            f'shots must be a comma-separated list of numbers in 0..{most}, e.g. "0,2"; '
            f"got {text!r}"
        )
    return counts


@dataclass(frozen=True)
class MeasuringCost:
    """The rough cost of measuring one run, as the amount of text that the models read."""

    heldout: int = 0
    """Passes over the held-out text, or over items with about as many tokens, summed over all
    checkpoints."""
    rows: float = 0.0
    """Passes over the first 32 tokens of each row that the run was trained on."""


def kept_at(
    config: RunConfig,
    standard: Sequence[int] = (),
    deduplicated: Sequence[int] = (),
    repeated: Sequence[int] = (),
) -> Keep:
    """Return the checkpoints whose weights a run keeps, depending on the text it is trained on.

    All lists are indices among the 143 evenly spaced checkpoints of a run.

    Args:
        standard: the checkpoints that a run on the standard text keeps.
        deduplicated: the checkpoints that a run on the deduplicated text keeps.
        repeated: the checkpoints that a run keeps if it repeats a part of its text (study
            `repetition`).
    """
    indices = standard if config.data.dedup == "none" else deduplicated
    indices = repeated if config.data.epoch_policy == "rows" else indices
    return Keep(linear_steps(indices, config.train.steps))


@dataclass(frozen=True)
class Measurements:
    """The measurements of a study.

    The analysis of the study reads only its measurements and released numbers, not the models.

    Attributes:
        arrays: results per item, row or seed, by name, e.g. "loss/25k/standard/572". Arrays are
            recorded in their own dtype; use float32 where seven digits suffice.
        facts: further numbers and texts, in JSON types, e.g. counts and gaps.
        runs: the training runs used; empty if the measurements were read from a record.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    def get(self, *key: Any) -> np.ndarray | None:
        """Return the array with the name `name_of(*key)`; None if there is no such array."""
        return self.arrays.get(name_of(*key))

    def under(self, *key: Any) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (rest of the name, array) for each array that has a name starting with `key`.

        For the key ("loss", "25k"), the array "loss/25k/standard/572" comes with ["standard",
        "572"].
        """
        prefix = name_of(*key) + "/"
        for name, array in self.arrays.items():
            if name.startswith(prefix):
                yield name.removeprefix(prefix).split("/"), array


def name_of(*key: Any) -> str:
    """Join the parts of an array's name, e.g. ("loss", "25k", 572) to "loss/25k/572"."""
    return "/".join(map(str, key))


Tables = dict[str, "pd.DataFrame"]
Analysis = tuple[Tables, dict[str, Any], "list[Claim]"]
"""The result of an analysis: tables, values for prose, and claims."""


@dataclass(frozen=True)
class Result:
    """The outcome of a study, ready to be drawn and recorded."""

    study: str
    params: Any
    """The parameters of the study's notebook, as a dataclass with a field `scale`."""
    tables: dict[str, pd.DataFrame]
    """Tables by name (a-z, 0-9, _). Each table is recorded as a CSV file."""
    values: dict[str, Any]
    """Values for prose, by name: numbers, texts, and estimates as {"value", "low", "high"}."""
    claims: list[dict[str, Any]]
    """The claims with their verdicts, as `verdicts.judge` returns them."""
    measured: Measurements
    released: dict[str, pd.DataFrame]
    """Tables of released numbers by name; empty if there are none. Recorded with their source."""
    started: float
    """`time.time()` when the study began."""

    @property
    def scale(self) -> str:
        """The scale at which the study was run, e.g. "laptop"."""
        return self.params.scale

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the study, by name."""
        return asdict(self.params)
