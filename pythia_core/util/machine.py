"""Describe the machine that the code runs on, and set how torch and the memory allocator behave.

The description never has the name of the host, because it is stored with results. Importing this
module does not load torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pythia_core.errors import ConfigError
from pythia_core.util.stopping import leave_quietly

if TYPE_CHECKING:
    import torch


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo; {} without this file."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def process_count() -> int:
    """Return how many processes torchrun started for one command; 1 without torchrun.

    Raises:
        ConfigError: the environment variable WORLD_SIZE is not a number above 0.
    """
    text = os.environ.get("WORLD_SIZE") or "1"
    if not (text.isdecimal() and int(text)):
        raise ConfigError(f"WORLD_SIZE must be the number of processes, got {text!r}; unset it")
    return int(text)


def require_one_process(subject: str) -> None:
    """Raise ConfigError if torchrun started several processes, which would all do the same.

    Only the first process raises the error; the others end without a word.
    """
    if process_count() == 1:
        return
    if os.environ.get("RANK", "0") != "0":
        leave_quietly()
    raise ConfigError(
        f"{subject} does not share its work under torchrun: each of the {process_count()} "
        "processes would do all of it. Only the commands `train` and `continue` share their "
        "batches. For everything else, start one worker per GPU: python -m pythia_core worker "
        "--help"
    )


def memory_bytes() -> float:
    """Return the bytes of this machine's memory; infinity if they are unknown."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf


def cpu_name() -> str:
    """Return the processor's model name, or its architecture if the name is unknown."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """Return the processor's instruction sets; empty if they cannot be read."""
    return _cpuinfo().get("flags", "")


def device_info() -> dict[str, Any]:
    """Return a description of the machine, to be stored with results.

    `device` is the name of the GPU, or of the CPU if there is no GPU. `threads` is the number of
    threads that torch uses.
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


DEVICES = "CUDA_VISIBLE_DEVICES"
"""Environment variable with the GPUs that a process may use."""
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of the drivers for NVIDIA, AMD and WSL. Without any of them, there is no GPU."""


def visible_devices() -> list[str]:
    """Return the names of the GPUs that this process may use, in the form of CUDA_VISIBLE_DEVICES.

    A process that is started with one of them in this variable sees this GPU alone.
    """
    if not any(map(os.path.exists, _DRIVERS)):
        return []  # without the seconds that importing torch takes
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [name for name in os.environ.get(DEVICES, "").split(",") if name.strip()]
    return names[:count] or [str(number) for number in range(count)]


@contextlib.contextmanager
def on_device(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Move an fp32 model to the GPU if there is one, and yield the model, which stays there.

    Inside the block, fp32 matrix products on a GPU round their factors to TF32. TF32 is several
    times as fast as fp32, and has three mantissa bits more than bf16.
    """
    import torch

    if not torch.cuda.is_available():
        yield model
        return
    with _fp32_products("high"):
        yield model.to("cuda")


@contextlib.contextmanager
def _fp32_products(precision: str) -> Iterator[None]:
    """Set, inside the block, the precision of fp32 products: "highest" (fp32) or "high" (TF32)."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def training_numerics(strict: bool = True) -> Iterator[None]:
    """Inside the block, use the settings of training, on which the bits of CUDA results depend.

    fp32 products do not use TF32. If `strict`, torch also refuses nondeterministic kernels.
    """
    with _fp32_products("highest"), deterministic(strict):
        yield


@contextlib.contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Make torch refuse nondeterministic CUDA kernels inside the block; allow them if not `wanted`.

    A refused kernel raises a RuntimeError. (With a warning only, torch's attention would still use
    a nondeterministic kernel.) The setting applies to the whole process.
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

    Otherwise, page faults take a third of the time of a small model's training step.
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
