"""What studies have alike: parameters that are checked, and what a study returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from pythia_core.errors import ConfigError, raise_all
from pythia_core.suite import scale_named

if TYPE_CHECKING:
    import pandas as pd

    from pythia_core.training.runs import Run


@dataclass(frozen=True)
class StudyParams:
    """Parameters of a study; bad ones are refused, all at once, with what is accepted.

    A subclass adds fields: texts, and whole numbers whose limits are in `WHOLE`.
    """

    scale: str = "laptop"
    sizes: str = ""
    """Comma list; empty: the default of the study, or the whole ladder of the scale."""

    WHOLE: ClassVar[dict[str, tuple[int, int]]] = {}
    """Field -> smallest and largest accepted number."""

    def __post_init__(self) -> None:
        problems = []
        for name in (f.name for f in fields(self) if f.name not in self.WHOLE):
            if not isinstance(getattr(self, name), str):
                problems.append(f"{name} must be text, got {getattr(self, name)!r}")
        for name, (low, high) in self.WHOLE.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                problems.append(f"{name} must be a whole number in {low}..{high}, got {value!r}")
        if not problems:
            for check in (lambda: self.size_list, self.check):
                try:
                    check()
                except ConfigError as error:
                    if str(error) not in problems:
                        problems.append(str(error))
        raise_all(ConfigError, problems, type(self).__name__)

    def check(self) -> None:
        """Refuse what only this study cannot use.

        Raises:
            ConfigError: as the study says.
        """

    @property
    def size_list(self) -> tuple[str, ...]:
        """The sizes as a tuple, smallest first."""
        return scale_named(self.scale).size_list(self.sizes)


@dataclass(frozen=True)
class StudyResult:
    """What a study found, ready to be drawn and recorded."""

    study: str
    params: Any
    tables: dict[str, pd.DataFrame]
    values: dict[str, Any]
    """For prose: numbers, names, and estimates as {"value", "low", "high"}."""
    claims: list[dict[str, Any]]
    runs: list[Run]
    started: float
    released: Any = None
    """Released numbers beside ours: drawn, and never recorded as a table."""

    @property
    def parameters(self) -> dict[str, Any]:
        return asdict(self.params)
