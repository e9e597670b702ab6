"""Describe the machine that the code runs on, and set how torch and the memory allocator behave.

The description has the processor and the GPU. It never has the name of the host, because it is
stored with results. The functions that need torch import it themselves, so that importing this
module does not load torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """Map each field of the first processor in /proc/cpuinfo to its value; {} without this file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_name() -> str:
    """Return the processor's model name, or its architecture if the name is unknown."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """Return the processor's instruction sets as one string; empty if they cannot be read."""
    return _cpuinfo().get("flags", "")


def device_info() -> dict[str, Any]:
    """Return a description of the machine, to be stored with results.

    Keys: `device` (name of the GPU, or of the CPU if there is no GPU), `kind` ("cuda" or "cpu"),
    `cores` (of the CPU), `threads` (how many threads torch uses), `python` and `torch` (versions).
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "kind": "cuda" if cuda else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@contextlib.contextmanager
def on_device(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Move an fp32 model to the GPU if there is one, and yield the model.

    On a GPU, fp32 matrix products inside the block round their factors to TF32, which is several
    times as fast as fp32 and has three mantissa bits more than bf16, the precision of training.
    After the block, the model stays on the GPU.
    """
    import torch

    if not torch.cuda.is_available():
        yield model
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield model.to("cuda")
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Make torch refuse nondeterministic CUDA kernels inside the block, or allow them.

    Such kernels add numbers in an order that depends on the scheduling of threads. The setting
    applies to the whole process; the previous setting is restored on exit. A refused kernel raises
    a RuntimeError. A warning would not suffice, because torch's attention would then still use a
    nondeterministic kernel.

    Args:
        wanted: True refuses nondeterministic kernels, False allows them.
    """
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted)
    settings.fill_uninitialized_memory = False  # it costs a pass over every new tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        settings.fill_uninitialized_memory = fill


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory in this process instead of returning it to the system.

    If glibc returns the memory, page faults take a third of the time of a small model's training
    step. This function does nothing if the system does not use glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # from malloc.h
    mallopt(mmap_threshold, 32 << 20)
    mallopt(trim_threshold, 1 << 30)
    mallopt(top_pad, 64 << 20)
