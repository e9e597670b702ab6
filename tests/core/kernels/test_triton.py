"""Tests of the Triton kernels: interpreted on the CPU and, if there is a GPU, compiled on it.

The tests are in triton_bodies and run in a child process, because Triton reads TRITON_INTERPRET
when it is imported. They compare with fp64, fill new memory with NaN and require repeatable bits.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from places import ROOT

BODIES = sorted(p for p in Path(__file__).with_name("triton_bodies").glob("*.py"))
BODIES = [p for p in BODIES if p.stem != "conftest"]
NO_TRITON = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed",
)


def outcomes(report: Path, workers: int = 0, **environment: str) -> dict[str, list[str]]:
    """Run all bodies in one child process, because starting is half of the time.

    Args:
        workers: number of pytest-xdist workers, if it is installed; 0: none.

    Returns:
        body -> its tests that failed or were skipped, with the reason.
    """
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_", "PYTEST_"))}
    command = ["pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if workers and importlib.util.find_spec("xdist"):
        command += ["-n", str(workers)]
    done = subprocess.run(
        [sys.executable, "-m", *command, *map(str, BODIES)],
        env={**inherited, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert report.is_file(), done.stdout[-8000:] + done.stderr[-2000:]
    problems_of: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problems = problems_of.setdefault(case.get("classname", "").split(".")[-1], [])
        for problem in case:
            if problem.tag in ("failure", "error", "skipped"):
                problems.append(f"{case.get('name')}: {problem.tag}\n{problem.text}")
    return problems_of


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return outcomes(tmp_path_factory.mktemp("interpreted") / "report.xml", TRITON_INTERPRET="1")


@pytest.fixture(scope="module")
def on_the_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Uses several processes: compiling about 240 variants takes minutes in one."""
    return outcomes(tmp_path_factory.mktemp("gpu") / "report.xml", min(12, os.cpu_count() or 1))


def test_every_kernel_is_tested() -> None:
    kernels = ROOT / "pythia_core" / "kernels"
    names = {p.stem.removesuffix("_triton") for p in kernels.glob("*_triton.py")}
    assert names | {"model"} == {p.stem for p in BODIES}


@NO_TRITON
@pytest.mark.parametrize("body", BODIES, ids=lambda p: p.stem)
def test_interpreted(body: Path, interpreted: dict[str, list[str]]) -> None:
    assert interpreted[body.stem] == [], "\n".join(interpreted[body.stem])


@pytest.mark.gpu
@NO_TRITON
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("body", BODIES, ids=lambda p: p.stem)
def test_on_the_gpu(body: Path, on_the_gpu: dict[str, list[str]]) -> None:
    assert on_the_gpu[body.stem] == [], "\n".join(on_the_gpu[body.stem])
