"""What a device reaches at best, and its clock and power while it works.

Rates of matrix products (best of many, and the mean over a long stretch, when the board is warm)
and of a copy: what speeds are shares of. Not here: predictions of them (cost_model).
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

SIDE = 8192
"""Of the square products; small ones on a CPU, where they only show that everything runs."""
COPIED = 1 << 31
"""Bytes of the copy."""
WATCHED = ("clocks.sm", "power.draw", "temperature.gpu")


def _elapsed(function: Callable[[], Any], device: torch.device, n: int) -> float:
    """Seconds a call, of n in a row, waited for at the end."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    function()
    wait()
    begun = time.perf_counter()
    for _ in range(n):
        function()
    wait()
    return (time.perf_counter() - begun) / n


def products_tflops(device: torch.device, seconds: float, best: bool = True) -> float:
    """TFLOP/s of square bf16 products over `seconds`: of the best ten in a row, or of all."""
    side = SIDE if device.type == "cuda" else 64
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    found, until = [], time.perf_counter() + seconds
    while not found or time.perf_counter() < until:
        found.append(_elapsed(lambda: torch.mm(a, b, out=out), device, 10))
    return 2 * side**3 / (min(found) if best else sum(found) / len(found)) / 1e12


def copy_tb_per_s(device: torch.device) -> float:
    """TB/s of a copy, read and written."""
    n = COPIED if device.type == "cuda" else 1 << 16
    x = torch.zeros(n, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return 2 * n / min(_elapsed(lambda: y.copy_(x), device, 5) for _ in range(3)) / 1e12


class Board:
    """Clock, power and temperature by nvidia-smi, where it is there."""

    def __init__(self, device: torch.device) -> None:
        self._command: list[str] = []
        found = shutil.which("nvidia-smi")
        if device.type == "cuda" and found:
            uuid = torch.cuda.get_device_properties(device).uuid
            self._command = [found, f"--query-gpu={','.join(WATCHED)}", "--format=csv,noheader"]
            self._command += ["-i", f"GPU-{uuid}"]

    def watch(self) -> Callable[[], dict[str, str]]:
        """Begin to look, while the device works; the function returned says what was seen."""
        if not self._command:
            return dict
        try:
            looking = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError:
            return dict

        def seen() -> dict[str, str]:
            try:
                words, _ = looking.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                looking.kill()
                looking.communicate()
                return {}
            if looking.returncode:  # it prints its errors where the numbers would be
                return {}
            return dict(zip(WATCHED, (w.strip() for w in words.split(",")), strict=False))

        return seen
