"""Parameters of the study of the kernels, which trains nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pythia_book.study import StudyParams
from pythia_core.errors import ConfigError
from pythia_core.suite import OFFICIAL_SIZES, scale_named

STUDY = "kernels"
DEFAULT_SIZES = {"smoke": "31m"}
ONE_OF_EVERY_HEAD_DIM = "31m,160m,1b,1.4b,2.8b"


@dataclass(frozen=True)
class KernelsParams(StudyParams):
    """Parameters of the study; `rows` is a file of `bench kernels --json`, or nothing."""

    rows: str = ""

    @property
    def size_list(self) -> tuple[str, ...]:
        default = DEFAULT_SIZES.get(self.scale, ONE_OF_EVERY_HEAD_DIM)
        return scale_named(self.scale).size_list(self.sizes, default)

    def check(self) -> None:
        if other := [size for size in self.size_list if size not in OFFICIAL_SIZES]:
            raise ConfigError(
                f"sizes: kernels are measured at official sizes ({', '.join(OFFICIAL_SIZES)}), got "
                f"{', '.join(other)}"
            )


Params = KernelsParams
"""The name under which parameters are checked before the notebook runs."""
