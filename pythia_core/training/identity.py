"""What a run's bits depend on: its config, its data, and the code, machine and kernels that ran.

Two runs with the same identity are the same run. On a CUDA device the identity names the route of
the kernels, and on every device what the execution adds to it (pythia_core.training.execution).

Not here: finding runs by it (pythia_core.training.runs).
"""

from __future__ import annotations

from typing import Any

import torch

from pythia_core.config import RunConfig, config_dict
from pythia_core.kernels import native, use_triton
from pythia_core.training.execution import EAGER, Execution
from pythia_core.util.machine import device_info

TRAJECTORY_VERSION = 2
"""Part of every run's identity: raise it when a change alters what a run computes."""


def run_identity(config: RunConfig, data: str, execution: Execution = EAGER) -> dict[str, Any]:
    """All that determines a run's trajectory, as JSON; `data` is a fingerprint."""
    return {"config": config_dict(config), "data": data, "code": code_identity(execution)}


def code_identity(execution: Execution = EAGER) -> dict[str, Any]:
    """The versions that matter for a run's bits, and the route that its kernels take.

    Raises:
        ConfigError: an execution that this machine's device cannot do.
    """
    major, minor = torch.__version__.split(".")[:2]
    kind = device_info()["kind"]
    execution.check(kind)
    if kind == "cuda":
        kernels = "triton" if use_triton(torch.empty(0, device=kind)) else "torch"
    else:
        kernels = "native" if native.library() else "torch"
    return {
        "trajectory": TRAJECTORY_VERSION,
        "torch": f"{major}.{minor}",
        "device": kind,
        "kernels": execution.route(kernels, kind),
    }
