"""Which tensors take the Triton kernels, and the checks that all of them share.

An operation with a kernel lives in two files: `x.py` holds the plain reference, the registered
torch operation and the entry that the model calls; `x_triton.py` holds the Triton code, and is
imported by the first call that needs it. Triton comes with torch's CUDA
builds. Without it, or with `PYTHIA_TRITON=0`, every entry takes its torch path.

With Triton's own `TRITON_INTERPRET=1` the kernels run on CPU tensors, slowly: that is how they are
tested on machines without a GPU. None of their speeds has been measured yet.
"""

from __future__ import annotations

import importlib.util
import logging
import os

import torch
from torch import Tensor

from pythia_core.errors import ConfigError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIM_MAX = 256
TRITON_FOUND = importlib.util.find_spec("triton") is not None
_said: set[str] = set()
log = logging.getLogger(__name__)


def use_triton(tensor: Tensor) -> bool:
    """Whether operations on tensors like this one run as Triton kernels."""
    if os.environ.get("PYTHIA_TRITON") == "0":
        return False
    if tensor.device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1" and TRITON_FOUND
    if tensor.device.type != "cuda":
        return False
    if not TRITON_FOUND:
        say_once("Triton is not installed: the slower torch operations are used")
    return TRITON_FOUND


def say_once(message: str) -> None:
    """Log a warning the first time; torch.compile, which cannot trace logging, passes by."""
    if not torch.compiler.is_compiling() and message not in _said:
        _said.add(message)
        log.warning(message)


def check(operation: str, dtypes: dict[str, torch.dtype], problems: tuple[str, ...] = ()) -> None:
    """Refuse what a kernel cannot compute.

    Args:
        dtypes: by argument name; each must be one of `DTYPES`.
        problems: sentences about anything else that is wrong; empty ones are ignored.

    Raises:
        ConfigError: with every problem found.
    """
    accepted = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
    found = [
        f"{name} is {str(dtype).removeprefix('torch.')}, the kernel takes {accepted}"
        for name, dtype in dtypes.items()
        if dtype not in DTYPES
    ]
    found += filter(None, problems)
    if found:
        raise ConfigError(
            f"{operation}: {'; '.join(found)}. PYTHIA_TRITON=0 computes it in plain torch"
        )
