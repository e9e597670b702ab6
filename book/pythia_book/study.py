"""Defines classes that all studies share, for parameters, measurements and results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pythia_core.config import RunConfig
from pythia_core.errors import ConfigError, one_of, raise_all
from pythia_core.suite import OFFICIAL_SIZES, SCALES, scale_named
from pythia_core.training.retention import Keep
from pythia_core.training.schedule import linear_steps

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from pythia_book.verdicts import Claim
    from pythia_core.training.runs import Run


LIMITS = {"seed": (0, 2**32 - 1), "bootstrap": (100, 20_000), "limit": (5, 100_000)}
"""Maps integer fields of most studies to their smallest and largest accepted values. More
resamples would exceed a laptop's memory, after all the training."""


@dataclass(frozen=True)
class StudyParams:
    """The parameters of a study. A single ConfigError reports all bad values.

    Fields in `LIMITS` or `WHOLE` must be integers; all other fields must be strings.
    """

    scale: str = "laptop"
    sizes: str = ""
    """Comma-separated model sizes; empty: DEFAULT_SIZES or else all sizes of the scale."""

    WHOLE: ClassVar[dict[str, tuple[int, int]]] = {}
    """Maps further integer fields to their smallest and largest accepted values."""
    DEFAULT_SIZES: ClassVar[dict[str, str]] = {}
    """Maps a scale to its default sizes, if these are not all sizes."""
    ONE_SIZE: ClassVar[bool] = False
    """Whether the study trains models of one size only."""
    PUBLISHED: ClassVar[bool] = False
    """Whether the study can use released models instead of training, at the scale `paper`."""

    def __post_init__(self) -> None:
        """Raise one ConfigError for all bad values."""
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
            problems = self._scale_problems()
        if not problems:
            for prefix, check in (("sizes: ", lambda: self.size_list), ("", self.check)):
                try:
                    check()
                except ConfigError as error:
                    if not any(str(error) in problem for problem in problems):
                        problems.append(f"{prefix}{error}")
        raise_all(ConfigError, problems, "parameters")

    def _scale_problems(self) -> list[str]:
        """Return why the study does not have this scale; [] if it does."""
        if self.scale not in SCALES:
            return [one_of(self.scale, SCALES, "scale")]
        if SCALES[self.scale].published and not self.PUBLISHED:
            trained = ", ".join(name for name, scale in SCALES.items() if not scale.published)
            return [
                "this study trains its own models, so scale must be one of "
                f"{trained}; got {self.scale!r}"
            ]
        return []

    def check(self) -> None:
        """Raise ConfigError if this study cannot use the parameters; for subclasses to override."""

    @property
    def size_list(self) -> tuple[str, ...]:
        """The names of the model sizes to study, smallest first.

        Raises:
            ConfigError: a size is unknown, not released (at the scale `paper`) or named twice, or
                there are too many sizes.
        """
        scale = scale_named(self.scale)
        sizes = scale.size_list(self.sizes, scale.default_in(self.DEFAULT_SIZES, ""))
        released = dict.fromkeys((*OFFICIAL_SIZES, *scale.sizes))
        if scale.published and (unknown := [size for size in sizes if size not in released]):
            raise ConfigError(one_of(unknown[0], released, "size of a released model"))
        if self.ONE_SIZE and len(sizes) != 1:
            raise ConfigError(
                f"sizes={self.sizes!r} means {len(sizes)} sizes, but this study trains models of "
                f'only one size; pass one size, e.g. "{sizes[0]}"'
            )
        return sizes


def split_list(text: str) -> list[str]:
    """Split a text at commas; return the stripped entries that are not empty."""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def parse_names(text: str, accepted: Collection[str], kind: str, plural: str) -> tuple[str, ...]:
    """Parse a comma-separated list of names, the value of the parameter `plural`; () for "".

    Raises:
        ConfigError: a name is unknown or repeated, or there are only commas and spaces.
    """
    names = split_list(text)
    problems = [one_of(n, [*accepted], kind) for n in names if n not in accepted]
    if text and not names:
        problems = [f"there are no names in {text!r}; leave {plural} empty to use all"]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{text!r} has {', '.join(repeated)} more than once; name each once")
    raise_all(ConfigError, problems, plural)
    return tuple(names)


MOST_DIGITS = 9
"""Enough for any count, and fewer digits than `int` accepts."""


def whole_numbers(text: str) -> list[int]:
    """Parse comma-separated whole numbers, sorted; return [] if an entry is invalid or repeated."""
    entries = [entry.strip() for entry in text.split(",")]
    if not all(e.isascii() and e.isdecimal() and len(e) <= MOST_DIGITS for e in entries):
        return []
    numbers = {int(entry) for entry in entries}
    return sorted(numbers) if len(numbers) == len(entries) else []


def shot_counts(text: str, most: int) -> list[int]:
    """Parse comma-separated counts of solved examples per prompt; return the counts sorted.

    Raises:
        ConfigError: the list is empty, or an entry is repeated or not a number in 0..`most`.
    """
    counts = whole_numbers(text)
    if not counts or counts[-1] > most:
        raise ConfigError(
            f"shots must be a comma-separated list of numbers in 0..{most}, each named once, "
            f'e.g. "0,2"; got {text!r}'
        )
    return counts


@dataclass(frozen=True)
class MeasuringCost:
    """The rough cost of measuring one run, as the amount of text that its checkpoints read."""

    heldout: int = 0
    """Number of passes over the rows of the held-out loss, summed over all checkpoints. Other items
    count by the time that they take on a CPU, relative to one pass."""
    rows: float = 0.0
    """Number of passes over the first 32 tokens of each training row of the run."""


def kept_at(
    config: RunConfig,
    standard: Sequence[int] = (),
    deduplicated: Sequence[int] = (),
    repeated: Sequence[int] = (),
) -> Keep:
    """Return the checkpoints whose weights a run keeps: the list for the run's training text.

    Each list has indices among the 143 evenly spaced checkpoints of a run.

    Args:
        standard: the list for a run on the standard text.
        deduplicated: the list for a run on the deduplicated text.
        repeated: the list for a run that repeats a part of its text (study `repetition`).
    """
    indices = standard if config.data.dedup == "none" else deduplicated
    indices = repeated if config.data.epoch_policy == "rows" else indices
    return Keep(linear_steps(indices, config.train.steps))


@dataclass(frozen=True)
class Origin:
    """What a record's origin states in addition to the runs and the machine of the notebook."""

    data: Sequence[str] = ()
    """Fingerprints of texts."""
    training_s: float = 0.0
    """Seconds of training that is not in runs."""
    device: dict[str, Any] = field(default_factory=dict)
    """What differs from `records.device`."""


@dataclass(frozen=True)
class Measurements:
    """Everything about models that the analysis of a study reads.

    Attributes:
        arrays: results per item, row or seed, by name, e.g. "loss/25k/standard/572". Arrays are
            recorded in their own dtype; use float32 where seven digits suffice.
        facts: further numbers and texts, in JSON types, e.g. counts and gaps.
        runs: the training runs used; empty if the measurements were read from a record.
        files: contents of further files of the record, by name; the analysis does not read them.
        origin: what the record's origin states in addition to the runs.
    """

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    runs: list[Run] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)

    def get(self, *key: Any) -> np.ndarray | None:
        """Return the array named `name_of(*key)`, or None."""
        return self.arrays.get(name_of(*key))

    def under(self, *key: Any) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yield (rest of the name, array) for each array whose name starts with `key`.

        For ("loss", "25k"), the array "loss/25k/standard/572" comes with ["standard", "572"].
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
    """A dataclass with a field `scale`."""
    tables: dict[str, pd.DataFrame]
    """Tables by name (a-z, 0-9, _). Each table is recorded as a CSV file."""
    values: dict[str, Any]
    """Values for prose, by name: numbers, texts, and estimates as {"value", "low", "high"}."""
    claims: list[dict[str, Any]]
    """The claims with their verdicts, from `verdicts.judge`."""
    measured: Measurements
    released: dict[str, pd.DataFrame]
    """Tables of released numbers by name; empty if there are none."""
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
