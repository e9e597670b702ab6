"""Compile native.c with the system's C compiler, and call its functions on torch tensors.

Callers use the compiled functions if `available(tensor)`, and torch operations otherwise. The
environment variable `PYTHIA_NATIVE=0` switches the functions off. They share torch's OpenMP
threads. The library is compiled once, and cached under a hash of its source code, the compiler and
its flags, and the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pythia_core.util.files import cache_dir, cached_file
from pythia_core.util.machine import cpu_flags

SOURCE = Path(__file__).with_name("native.c")
FLAGS: tuple[str, ...] = (
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
)
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS += ("-mprefer-vector-width=512",)  # compilers default to half of AVX-512's width
BLOCKS = 16
"""Number of partial sums in which C functions return the gradient of a vector; fixed, so results do
not depend on the thread count."""
_SUFFIX = {torch.float32: "f32", torch.bfloat16: "bf16"}
log = logging.getLogger(__name__)


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the compiled library; None if it is switched off or cannot be compiled."""
    if os.environ.get("PYTHIA_NATIVE") == "0":
        return None
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        log.warning(
            "no C compiler was found, so slower torch operations are used; install one, e.g. gcc"
        )
        return None
    try:
        version = subprocess.run(
            [compiler, "--version"], capture_output=True, stdin=subprocess.DEVNULL, check=True
        ).stdout
        key = hashlib.sha256(
            SOURCE.read_bytes() + version + " ".join((compiler, *FLAGS, cpu_flags())).encode()
        ).hexdigest()[:16]

        def compile_to(path: Path) -> None:
            command = [compiler, *FLAGS, "-shared", "-o", str(path), str(SOURCE), "-lm"]
            subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=True)

        path = cached_file(cache_dir() / "native" / f"kernels-{key}.so", compile_to)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", b"") or b""
        log.warning(
            "native.c could not be compiled (%s %s), so slower torch operations are used",
            error,
            detail.decode(errors="replace")[-500:],
        )
        return None


def available(tensor: Tensor) -> bool:
    """Return whether the compiled functions can take this tensor: fp32 or bf16, on the CPU.

    The answer is False while torch.compile traces, and without the library.
    """
    if tensor.device.type != "cpu" or tensor.dtype not in _SUFFIX or torch.compiler.is_compiling():
        return False
    return library() is not None


@functools.cache
def function(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """Return the compiled function `name` for a dtype. Its tensors must satisfy `available`."""
    native = getattr(library(), f"{name}_{_SUFFIX[dtype]}")
    native.restype = None

    def call(*arguments: Tensor | int | float | None) -> None:
        """Call the compiled function with these arguments, converted to C types."""
        native(*(_argument(value) for value in arguments))

    return call


def _argument(value: Tensor | int | float | None) -> ctypes._SimpleCData:
    """Convert an argument to its C type: a tensor to a pointer, None to a null pointer."""
    if value is None:
        return ctypes.c_void_p()
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int64(value)
