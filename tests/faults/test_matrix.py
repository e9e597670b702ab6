"""Every row of the matrix of faults is shown by tests that exist and run on a build machine."""

from __future__ import annotations

import ast

import pytest
from fault_matrix import MATRIX
from places import ROOT

NOT_RUN = ("skip", "gpu", "xfail")
"""Parts of the names of marks with which a test does not show anything on a build machine."""


def problem(name: str) -> str:
    """Return why a test shows nothing; "" if it runs on a build machine."""
    path, _, function = name.partition("::")
    file = ROOT / "tests" / path
    if not file.is_file():
        return f"there is no file {path}"
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == function
    ]
    if not found:
        return f"{path} has no test {function}"
    marks = [ast.unparse(mark) for mark in found[0].decorator_list]
    for node in tree.body:
        if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0]):
            marks.append(ast.unparse(node.value))
    marks = [mark for mark in marks if "parametrize" not in mark]
    return ", ".join(mark for mark in marks if any(word in mark for word in NOT_RUN))


@pytest.mark.parametrize("fault", MATRIX)
def test_its_tests_exist_and_run(fault: str) -> None:
    names, file = [], ""
    for word in MATRIX[fault].split():
        if word.endswith(".py"):
            file = word
        else:
            names.append(f"{file}::{word}")
    assert names
    assert not {name: why for name in names if (why := problem(name))}


def test_a_missing_or_skipped_test_would_be_noticed() -> None:
    assert "no file" in problem("core/absent.py::test_x")
    assert "no test" in problem("core/training/test_metrics.py::test_absent")
    assert "gpu" in problem("core/kernels/test_triton.py::test_on_the_gpu")
