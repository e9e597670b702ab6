"""Every row of the matrix of faults is shown by tests that exist and run on a build machine."""

from __future__ import annotations

import ast

import pytest
from fault_matrix import MATRIX, Fault
from places import ROOT

NOT_RUN = ("skip", "gpu", "xfail")
"""Parts of the names of marks with which a test does not show anything on a build machine."""


def test_the_matrix_has_all_rows() -> None:
    assert [fault.number for fault in MATRIX] == list(range(1, 33))
    assert all(fault.tests for fault in MATRIX)


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


@pytest.mark.parametrize("fault", MATRIX, ids=lambda fault: str(fault.number))
def test_its_tests_exist_and_run(fault: Fault) -> None:
    problems = {name: problem(name) for name in fault.tests}
    assert not {name: why for name, why in problems.items() if why}


def test_a_missing_or_skipped_test_would_be_noticed() -> None:
    assert "no file" in problem("core/absent.py::test_x")
    assert "no test" in problem("core/training/test_metrics.py::test_absent")
    assert "gpu" in problem("core/kernels/test_triton.py::test_on_the_gpu")
