"""Choose how a training step is executed, with settings that are not part of a run's config.

There are three modes. "eager" executes one operation after another. "graph" records the operations
of a micro-batch as a CUDA graph and replays it. "compile" uses torch.compile. In each mode,
activations can either be stored or be recomputed in the backward pass.

The environment variable `PYTHIA_EXECUTION` sets the execution of all runs, e.g. "graph" or
"compile+recompute". pythia_core.training.trainer implements the modes.

A setting that changes results bitwise is part of a run's identity (`Execution.backend`). The mode
"compile" is such a setting, because it fuses operations. The mode "graph" and recomputation are
not, because they run the same kernels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pythia_core.errors import ConfigError, one_of

MODES = ("eager", "graph", "compile")
VARIABLE = "PYTHIA_EXECUTION"


@dataclass(frozen=True)
class Execution:
    """The settings for how a `Trainer` executes its updates. The defaults work on every device."""

    mode: str = "eager"
    """"eager": one operation after another; "graph": a recorded CUDA graph of forward and backward,
    which is replayed; "compile": torch.compile."""
    recompute: bool = False
    """Whether to store only each block's input and recompute the block in the backward pass."""
    deterministic: bool = True
    """Whether to raise an error if an update calls a CUDA kernel whose sums depend on the order of
    threads. On CPUs, no operation used here has such a kernel."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(one_of(self.mode, MODES, "mode of execution"))

    def check(self, device_kind: str) -> None:
        """Raise an error if a kind of device ("cpu", "cuda") does not support the mode.

        Raises:
            ConfigError: the mode is "graph" and the device is not a CUDA device.
        """
        if self.mode == "graph" and device_kind != "cuda":
            raise ConfigError(
                f"the execution mode 'graph' needs a CUDA device, but the device is "
                f"{device_kind!r}; choose 'eager' or 'compile'"
            )

    def backend(self, kernels: str, device_kind: str) -> str:
        """Return a label that extends `kernels` by the settings that change results bitwise.

        Args:
            kernels: a label of the kernels, e.g. "native" or "triton".
            device_kind: "cpu" or "cuda".

        Returns:
            The label, e.g. "triton+compiled+nondeterministic".
        """
        added = ["compiled"] if self.mode == "compile" else []
        if device_kind == "cuda" and not self.deterministic:
            added.append("nondeterministic")
        return "+".join([kernels, *added])

    @classmethod
    def parse(cls, text: str) -> Execution:
        """Return the execution that a text names.

        The text is "MODE" or "MODE+recompute", where MODE is in MODES.

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
        """Return the execution that the environment variable PYTHIA_EXECUTION names.

        If the variable is not set, return the default execution.

        Raises:
            ConfigError: the value of the variable is invalid (see `parse`).
        """
        return cls.parse(os.environ.get(VARIABLE) or "eager")


EAGER = Execution()
