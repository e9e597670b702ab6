"""Parameters of the study of throughput, which trains nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pythia_book.bench import cost_model
from pythia_book.study import StudyParams
from pythia_core.errors import ConfigError, one_of, raise_all

STUDY = "throughput"
SIZES = tuple(cost_model.TARGETS)
"""What one H100 holds without help: 14M to 2.8B."""


@dataclass(frozen=True)
class ThroughputParams(StudyParams):
    """Parameters of the study."""

    def check(self) -> None:
        names = [name.strip() for name in self.sizes.split(",") if name.strip()]
        unknown = [one_of(name, SIZES, "size") for name in names if name not in SIZES]
        raise_all(ConfigError, unknown, "sizes")

    @property
    def size_list(self) -> tuple[str, ...]:
        given = [name.strip() for name in self.sizes.split(",") if name.strip()]
        return tuple(size for size in SIZES if size in given or not given)


Params = ThroughputParams
"""The name under which parameters are checked before the notebook runs."""
