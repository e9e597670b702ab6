"""How a training step is executed, which is no part of what is trained.

The same run can go operation by operation (eager), as one recorded CUDA graph a micro-step, or
through torch.compile; it can keep all activations or compute them again in the backward. None of
that is in a run's config. Whatever of it moves a bit is in the run's identity (`Execution.route`):
a graph replays the very kernels it recorded and recomputation repeats them, so neither does;
torch.compile fuses, so it does. `PYTHIA_EXECUTION` chooses for every run, e.g. "graph" or
"compile+recompute".

Not here: the modes themselves (pythia_core.training.trainer), what fits into memory
(pythia_core.training.memory).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pythia_core.errors import ConfigError, one_of

MODES = ("eager", "graph", "compile")
VARIABLE = "PYTHIA_EXECUTION"


@dataclass(frozen=True)
class Execution:
    """The way of a `Trainer`. The default is right on every device and in every identity."""

    mode: str = "eager"
    """"graph": a CUDA graph of forward and backward, replayed; "compile": torch.compile."""
    recompute: bool = False
    """Keep only each block's input and compute the block again in the backward."""
    deterministic: bool = True
    """In an update, refuse CUDA kernels whose sums depend on the order of threads, strictly and not
    with a warning. CPUs have none in use here."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"Execution: {one_of(self.mode, MODES, 'mode')}")

    def check(self, device_kind: str) -> None:
        """Refuse what a device ("cpu", "cuda") cannot do.

        Raises:
            ConfigError: a graph without a CUDA device.
        """
        if self.mode == "graph" and device_kind != "cuda":
            raise ConfigError(
                f"mode 'graph' records CUDA kernels, the device is {device_kind!r}; use 'eager' or "
                "'compile' there"
            )

    def route(self, kernels: str, device_kind: str) -> str:
        """`kernels` (e.g. "native", "triton") and what this execution adds that moves bits."""
        added = ["compiled"] if self.mode == "compile" else []
        if device_kind == "cuda" and not self.deterministic:
            added.append("nondeterministic")
        return "+".join([kernels, *added])

    @classmethod
    def named(cls, text: str) -> Execution:
        """A mode, or one and "+recompute".

        Raises:
            ConfigError: neither.
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
