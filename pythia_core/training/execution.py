"""Execution of a training step: settings that are not part of a run's config.

The same run can be executed operation by operation (eager), as one recorded CUDA graph per
micro-step, or through torch.compile; activations can be kept or recomputed in the backward.
Settings that change results bitwise are part of the run's identity (`Execution.backend`): a graph
replays the kernels it recorded and recomputation repeats them, so neither does; torch.compile fuses
operations, so it does. `PYTHIA_EXECUTION` sets it for all runs, e.g. "graph" or
"compile+recompute". The modes are implemented in pythia_core.training.trainer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pythia_core.errors import ConfigError, one_of

MODES = ("eager", "graph", "compile")
VARIABLE = "PYTHIA_EXECUTION"


@dataclass(frozen=True)
class Execution:
    """Execution settings of a `Trainer`; the defaults work on every device."""

    mode: str = "eager"
    """"graph": a CUDA graph of forward and backward, replayed; "compile": torch.compile."""
    recompute: bool = False
    """Keep only each block's input and recompute the block in the backward."""
    deterministic: bool = True
    """In an update, raise an error for CUDA kernels whose sums depend on the order of threads. None
    of the operations used here has such a kernel on CPUs."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"Execution: {one_of(self.mode, MODES, 'mode')}")

    def check(self, device_kind: str) -> None:
        """Raise an error for a mode that a kind of device ("cpu", "cuda") does not support.

        Raises:
            ConfigError: a graph without a CUDA device.
        """
        if self.mode == "graph" and device_kind != "cuda":
            raise ConfigError(
                f"mode 'graph' records CUDA kernels, but the device is {device_kind!r}; use "
                "'eager' or 'compile'"
            )

    def backend(self, kernels: str, device_kind: str) -> str:
        """`kernels` (e.g. "native", "triton") plus the settings that change results bitwise."""
        added = ["compiled"] if self.mode == "compile" else []
        if device_kind == "cuda" and not self.deterministic:
            added.append("nondeterministic")
        return "+".join([kernels, *added])

    @classmethod
    def parse(cls, text: str) -> Execution:
        """The execution for a mode, or a mode and "+recompute".

        Raises:
            ConfigError: any other text.
        """
        mode, plus, more = text.partition("+")
        if plus and more != "recompute":
            raise ConfigError(f"execution {text!r}: only 'recompute' may follow the +")
        return cls(mode, recompute=bool(plus))

    @classmethod
    def from_environment(cls) -> Execution:
        """The execution in the variable `PYTHIA_EXECUTION`, or the default.

        Raises:
            ConfigError: see `parse`.
        """
        return cls.parse(os.environ.get(VARIABLE) or "eager")


EAGER = Execution()
