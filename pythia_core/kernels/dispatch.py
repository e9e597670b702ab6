"""Decide whether an operation runs as a Triton kernel or in torch.

An operation with a kernel has two files: `x.py` with the reference and the function that the model
calls, and `x_triton.py` with the Triton code, imported on first use. Every operation runs in torch
if Triton is missing (torch's CUDA builds include it) or if `PYTHIA_TRITON=0` is set.

On a GPU, `is_supported` tries each kernel once per dtype and width. If the kernel fails, e.g.
because of the version of Triton, a warning is logged and the operation runs in torch. Inside
`no_fallback`, the failure is an error.

With Triton's own variable `TRITON_INTERPRET=1`, kernels run on CPU tensors. This is slow, and meant
for tests. The kernels' speed on a GPU has not been measured yet.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from pythia_core.errors import ConfigError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIM_MAX = 256
TRITON_FOUND = importlib.util.find_spec("triton") is not None
Probe = Callable[[torch.device, torch.dtype, int], object]
_probes: dict[str, Probe] = {}
_supported: dict[tuple[str, torch.device, torch.dtype, int], bool] = {}
_warned: set[str] = set()
_strict = False
log = logging.getLogger(__name__)


def use_triton(tensor: Tensor) -> bool:
    """Return whether operations on this tensor should run as Triton kernels."""
    if os.environ.get("PYTHIA_TRITON") == "0":
        return False
    if tensor.device.type == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1" and TRITON_FOUND
    if tensor.device.type != "cuda":
        return False
    if not TRITON_FOUND:
        warn_once("Triton is not installed, so slower torch operations are used")
    return TRITON_FOUND


def warn_once(message: str) -> None:
    """Log a warning once per message, and never under torch.compile, which cannot trace logging."""
    if not torch.compiler.is_compiling() and message not in _warned:
        _warned.add(message)
        log.warning(message)


@contextlib.contextmanager
def no_fallback() -> Iterator[None]:
    """Raise an error, inside the block, if a kernel or attention backend does not work.

    Without the block, a benchmark would time the slower torch operation by mistake.
    """
    global _strict
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before


def strict() -> bool:
    """Return whether a `no_fallback` block is active."""
    return _strict


def version_problem() -> str:
    """Return why torch and Triton are incompatible and what to do, or "" if no problem is known."""
    try:
        required = [
            match[1]
            for line in importlib.metadata.requires("torch") or ()
            if (match := re.match(r"triton\s*==\s*([\w.]+)", line))
        ]
        installed = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ""
    if not required or installed in required:
        return ""
    return (
        f"torch {torch.__version__} was built for Triton {required[0]}, but Triton {installed} is "
        f"installed; run `pip install triton=={required[0]}`"
    )


def probe(operation: str) -> Callable[[Probe], Probe]:
    """Register the decorated function, which tries an operation's kernels on a few rows."""

    def register(function: Probe) -> Probe:
        _probes[operation] = function
        return function

    return register


@torch.compiler.assume_constant_result
def is_supported(operation: str, device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Return whether an operation's Triton kernels work on the device.

    On a GPU, the kernels are tried once for each dtype and width. On other devices, where Triton
    interprets the kernels, the answer is always True.

    Args:
        width: the size that the kernels are compiled for, e.g. the head dim of attention.

    Raises:
        ConfigError: the kernels fail while a `no_fallback` block is active.
        torch.OutOfMemoryError: the device has no memory left to try the kernels.
    """
    key = (operation, device, dtype, width)
    if device.type != "cuda":
        return True  # Triton interprets the kernels here
    if key not in _supported or (strict() and not _supported[key]):
        try:
            with torch.no_grad():
                _probes[operation](device, dtype, width)
            _supported[key] = True
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of Triton, ptxas, the driver or a C compiler
            _supported[key] = False
            lines = str(error).strip().splitlines() or [""]
            reason = f"the Triton kernel of {operation} fails on this GPU at width {width} with "
            reason += f"{type(error).__name__}: {lines[-1][:200]}"
            if advice := version_problem():
                reason += f" ({advice})"
            if strict():
                raise ConfigError(reason) from error
            warn_once(f"{reason}. Slower torch operations are used instead")
    return _supported[key]


def check(operation: str, dtypes: dict[str, torch.dtype], problems: Sequence[str] = ()) -> None:
    """Check that a kernel can take its arguments.

    Args:
        dtypes: maps argument names to dtypes, which must be in DTYPES.
        problems: other problems that the caller has found, a sentence for each.

    Raises:
        ConfigError: the kernel cannot take its arguments; the message lists all problems.
    """
    accepted = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
    wrong_types = [
        f"{name} is {str(dtype).removeprefix('torch.')}, but the kernel takes only {accepted}"
        for name, dtype in dtypes.items()
        if dtype not in DTYPES
    ]
    problems = [*wrong_types, *problems]
    if problems:
        raise ConfigError(
            f"the Triton kernel of {operation} cannot take these inputs: {'; '.join(problems)}. "
            "Set the environment variable PYTHIA_TRITON=0 to use torch operations instead"
        )
