"""The Triton kernels are right: interpreted on the CPU, and the same tests compiled on a card.

Each file of tests/triton_bodies runs in a child process, because Triton reads TRITON_INTERPRET
when it is imported; its tests compare with fp64, poison fresh memory and repeat every bit.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BODIES = sorted(p for p in Path(__file__).with_name("triton_bodies").glob("*.py"))
BODIES = [p for p in BODIES if p.stem not in ("conftest", "compare")]
NO_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install -e '.[kernels-test]'",
)


def run(body: Path, **environment: str) -> None:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(body)],
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout


def test_every_kernel_has_a_body() -> None:
    kernels = Path(__file__).parents[1] / "pythia_core" / "kernels"
    names = {p.stem.removesuffix("_triton") for p in kernels.glob("*_triton.py")}
    assert names == {p.stem for p in BODIES}


@NO_TRITON
@pytest.mark.parametrize("body", BODIES, ids=lambda p: p.stem)
def test_interpreted(body: Path) -> None:
    run(body, TRITON_INTERPRET="1")


@pytest.mark.gpu
@NO_TRITON
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("body", BODIES, ids=lambda p: p.stem)
def test_on_a_card(body: Path) -> None:
    run(body)
