"""What holds for the process only while it is wanted: deterministic kernels, TF32."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from pythia_core.util.machine import deterministic, on_device


def switches() -> tuple[bool, bool, bool]:
    """Deterministic, only warned of, fresh memory filled."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def switch(enabled: bool, warned: bool, filled: bool) -> None:
    torch.use_deterministic_algorithms(enabled, warn_only=warned)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture(params=[(False, False, True), (True, True, True), (True, False, False)])
def before(request: pytest.FixtureRequest) -> Iterator[tuple[bool, bool, bool]]:
    """What the process was set to, of three kinds."""
    found = switches()
    switch(*request.param)
    yield request.param
    switch(*found)


def test_determinism_is_strict_and_ends(before: tuple[bool, bool, bool]) -> None:
    for wanted in (True, False):
        with deterministic(wanted):
            assert switches() == (wanted, False, False)
        assert switches() == before


def test_determinism_ends_with_an_error(before: tuple[bool, bool, bool]) -> None:
    with contextlib.suppress(KeyError), deterministic():
        raise KeyError("an update failed")
    assert switches() == before


def test_cublas_is_told_before_its_first_product() -> None:
    """It reads the variable once in a process; torch refuses strictness without it."""
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
def test_tf32_is_for_what_is_measured(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = torch.nn.Linear(2, 2), torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(model, "to", lambda device: (device, model))
    with contextlib.suppress(KeyError), on_device(model) as placed:
        assert placed == ("cuda", model)
        assert torch.get_float32_matmul_precision() == "high"
        if fails:
            raise KeyError("a measurement failed")
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_nothing_is_changed() -> None:
    model, before = torch.nn.Linear(2, 2), torch.get_float32_matmul_precision()
    with on_device(model) as placed:
        assert placed is model
        assert torch.get_float32_matmul_precision() == before
