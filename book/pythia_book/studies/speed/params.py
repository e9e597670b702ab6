"""Defines the parameters of the speed study, which trains no models."""

from __future__ import annotations

from dataclasses import dataclass

from pythia_book.study import StudyParams
from pythia_core.errors import ConfigError, one_of, raise_all
from pythia_core.suite import scale_named

STUDY = "speed"
DEFAULT_SIZES = {"smoke": "7k"}


@dataclass(frozen=True)
class Params(StudyParams):
    """Parameters of the speed study. The parameter `sizes` is for the measurements on the CPU."""

    @property
    def size_list(self) -> tuple[str, ...]:
        """The sizes to measure on the CPU, which are sizes of the scale `laptop`."""
        default = DEFAULT_SIZES.get(self.scale, "7k,600k")
        return scale_named("laptop").size_list(self.sizes, default)

    def check(self) -> None:
        """Raise a ConfigError if one of the sizes does not exist at the scale `laptop`."""
        accepted = scale_named("laptop").sizes
        unknown = [
            one_of(name, accepted, "size") for name in self.size_list if name not in accepted
        ]
        raise_all(ConfigError, unknown, "sizes")
