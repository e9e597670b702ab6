"""A separate small project: a copy of the library and one notebook, `tiny`."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import nbformat

import pythia_core


def record_cell(parameters: str, values: str = "{}", work: str = "", claims: str = "[]") -> str:
    """Return the code of a notebook cell that conducts the study "tiny" and records it.

    The study is defined in the cell, so it needs no folder under studies/.

    Args:
        parameters: arguments for the study's parameters as code, e.g. "scale=scale, seeds=seeds".
        values: the values for prose as code, a dict. It can use the array `numbers` (0 to 4), which
            the study pretends to measure.
        work: statements that run when the study measures. A redraw skips them.
        claims: the claims as code, a list.
    """
    measuring = textwrap.indent(work.strip() or "pass", "    ")
    return f"""
from dataclasses import make_dataclass
import numpy as np
import pandas as pd
from pythia_book import stats, style, verdicts
from pythia_book.conduct import conduct
from pythia_book.study import Measurements

given = dict({parameters})

def measure():
{measuring}
    return Measurements({{"numbers": np.arange(5.0)}}, {{"n": 5}})

def analyze(measured, released):
    numbers = measured.arrays["numbers"]
    return {{"numbers": pd.DataFrame({{"n": numbers}})}}, {values}, {claims}

params = make_dataclass("Params", list(given))(**given)
style.write_record(conduct("tiny", params, measure, analyze))
"""


def make_project(root: Path, parameters: str, work: str) -> Path:
    """Write a copy of pythia_core and the notebook "tiny" into `root`, and return `root`.

    Args:
        parameters: code of the cell with the tag "parameters".
        work: code of the cell after it.
    """
    shutil.copytree(
        Path(pythia_core.__file__).parent,
        root / "pythia_core",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    v = nbformat.v4
    cells = [
        v.new_markdown_cell("# Tiny", id="title"),
        v.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}),
        v.new_code_cell(work, id="work"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    (root / "notebooks").mkdir()
    nbformat.write(v.new_notebook(cells=cells, metadata=metadata), root / "notebooks/tiny.ipynb")
    return root
