"""How a training step is executed, as opposed to what is trained.

The same run can go operation by operation (eager), as one recorded CUDA graph per micro-step, or
through torch.compile; it can keep all activations or recompute them in the backward. None of that
is in a run's config. Settings that move bits are in the run's identity (`Execution.backend`): a
graph replays the very kernels it recorded and recomputation repeats them, so neither moves bits;
torch.compile fuses operations, so it does. `PYTHIA_EXECUTION` sets it for every run, e.g. "graph"
or "compile+recompute". The modes are implemented in pythia_core.training.trainer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pythia_core.errors import ConfigError, one_of

MODES = ("eager", "graph", "compile")
VARIABLE = "PYTHIA_EXECUTION"


@dataclass(frozen=True)
class Execution:
    """How a `Trainer` executes a step; the default works on every device."""

    mode: str = "eager"
    """"graph": a CUDA graph of forward and backward, replayed; "compile": torch.compile."""
    recompute: bool = False
    """Keep only each block's input and recompute the block in the backward."""
    deterministic: bool = True
    """In an update, refuse CUDA kernels whose sums depend on the order of threads, with an error
    rather than a warning. None of the operations used here has such a kernel on CPUs."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"Execution: {one_of(self.mode, MODES, 'mode')}")

    def check(self, device_kind: str) -> None:
        """Refuse what a kind of device ("cpu", "cuda") cannot do.

        Raises:
            ConfigError: a graph without a CUDA device.
        """
        if self.mode == "graph" and device_kind != "cuda":
            raise ConfigError(
                f"mode 'graph' records CUDA kernels, the device is {device_kind!r}; use 'eager' or "
                "'compile' there"
            )

    def backend(self, kernels: str, device_kind: str) -> str:
        """`kernels` (e.g. "native", "triton") and the settings of this execution that move bits."""
        added = ["compiled"] if self.mode == "compile" else []
        if device_kind == "cuda" and not self.deterministic:
            added.append("nondeterministic")
        return "+".join([kernels, *added])

    @classmethod
    def named(cls, text: str) -> Execution:
        """The execution that a text names: a mode, or a mode and "+recompute".

        Raises:
            ConfigError: it is neither.
        """
        mode, plus, more = text.partition("+")
        if plus and more != "recompute":
            raise ConfigError(f"execution {text!r}: after + only 'recompute' is accepted")
        return cls(mode, recompute=bool(plus))

    @classmethod
    def chosen(cls) -> Execution:
        """What `PYTHIA_EXECUTION` names, or the default.

        Raises:
            ConfigError: as `named`.
        """
        return cls.named(os.environ.get(VARIABLE) or "eager")


EAGER = Execution()
