"""Choose how a training step is executed. This choice is not part of a run's config.

The mode "eager" executes one operation after another, "graph" replays a recorded CUDA graph of a
micro-batch, and "compile" uses torch.compile. In each mode, activations can be stored or recomputed
in the backward pass. Runs on a CUDA device use "graph" unless the environment variable
`PYTHIA_EXECUTION` sets another execution for all runs, e.g. "compile+recompute".

A choice that changes results bitwise is still part of a run's identity (`Execution.backend`).
"compile" changes them, because it fuses operations. "graph" and recomputation do not: graphs run
the same kernels, and recomputation adds in the same order.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pythia_core.errors import ConfigError, one_of

MODES = ("eager", "graph", "compile")
SHARDING = ("auto", "never", "always")
"""When to shard the state: if it does not fit one device, never, or always."""
VARIABLE = "PYTHIA_EXECUTION"


@dataclass(frozen=True)
class Execution:
    """How a `Trainer` executes its updates. The defaults of the fields work on every device."""

    mode: str = "eager"
    """One of MODES."""
    recompute: bool = False
    """Whether to store only each block's input and recompute the block in the backward pass."""
    deterministic: bool = True
    """Whether a CUDA kernel whose sums depend on the order of threads raises an error."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(one_of(self.mode, MODES, "execution mode"))

    def check(self, device_kind: str) -> None:
        """Check that a kind of device ("cpu" or "cuda") supports the mode.

        Raises:
            ConfigError: the mode is "graph" and the device is not a CUDA device.
        """
        if self.mode == "graph" and device_kind != "cuda":
            raise ConfigError(
                f"the execution mode 'graph' needs a CUDA device, but the device is "
                f"{device_kind!r}; choose 'eager' or 'compile'"
            )

    def backend(self, kernels: str, device_kind: str) -> str:
        """Return `kernels` plus settings that change results bitwise, e.g. "triton+compiled"."""
        added = ["compiled"] if self.mode == "compile" else []
        if device_kind == "cuda" and not self.deterministic:
            added.append("nondeterministic")
        return "+".join([kernels, *added])

    @classmethod
    def parse(cls, text: str) -> Execution:
        """Return the execution that a text names: "MODE" or "MODE+recompute", with MODE from MODES.

        Raises:
            ConfigError: the text has another form, or the mode is unknown.
        """
        mode, plus, more = text.partition("+")
        if plus and more != "recompute":
            raise ConfigError(
                f"the execution {text!r} is invalid: only 'recompute' may follow a +, as in "
                "'eager+recompute'"
            )
        return cls(mode, recompute=bool(plus))

    @classmethod
    def from_environment(cls) -> Execution:
        """Return the execution that PYTHIA_EXECUTION names.

        If the variable is not set, the mode is "graph" with a CUDA device and "eager" without.
        Small models need "graph": their kernels finish before Python has launched the next ones.

        Raises:
            ConfigError: the value of the variable is invalid (see `parse`).
        """
        if text := os.environ.get(VARIABLE):
            return cls.parse(text)
        import torch

        return cls("graph" if torch.cuda.is_available() else "eager")


EAGER = Execution()
