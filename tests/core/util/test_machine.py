"""Settings of the whole process that hold only inside a block: deterministic kernels, TF32."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from pythia_core.util.machine import deterministic, on_device, training_numerics


def switches() -> tuple[bool, bool, bool]:
    """Whether kernels must be deterministic, torch only warns, and new memory is filled."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def switch(enabled: bool, warn_only: bool, fill: bool) -> None:
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture(params=[(False, False, True), (True, True, True), (True, False, False)])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool, bool]]:
    """The settings of the process before a block, in three combinations."""
    original = switches()
    switch(*request.param)
    yield request.param
    switch(*original)


def test_determinism_is_strict_inside_the_block_only(before: tuple[bool, bool, bool]) -> None:
    for wanted in (True, False):
        with deterministic(wanted):
            assert switches() == (wanted, False, False)
        assert switches() == before


def test_determinism_ends_after_an_error(before: tuple[bool, bool, bool]) -> None:
    with contextlib.suppress(KeyError), deterministic():
        raise KeyError("an update failed")
    assert switches() == before


def test_importing_the_package_configures_cublas() -> None:
    """cuBLAS reads the variable once per process; torch requires it for deterministic kernels."""
    code = "import os, pythia_core; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    clean = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    for given, expected in (({}, ":4096:8"), ({"CUBLAS_WORKSPACE_CONFIG": ":16:8"}, ":16:8")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=clean | given,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_tf32_is_used_inside_the_block_only(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = torch.nn.Linear(2, 2), torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(model, "to", lambda device: (device, model))
    with contextlib.suppress(KeyError), on_device(model) as placed:
        assert placed == ("cuda", model)
        assert torch.get_float32_matmul_precision() == "high"
        if fails:
            raise KeyError("a measurement failed")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("chosen", ["highest", "high"])
def test_training_never_uses_tf32(chosen: str) -> None:
    original = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(chosen)
    try:
        with training_numerics():
            assert torch.get_float32_matmul_precision() == "highest" and switches()[0]
        assert torch.get_float32_matmul_precision() == chosen and not switches()[0]
    finally:
        torch.set_float32_matmul_precision(original)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_changed() -> None:
    model, before = torch.nn.Linear(2, 2), torch.get_float32_matmul_precision()
    with on_device(model) as placed:
        assert placed is model
        assert torch.get_float32_matmul_precision() == before
