"""A separate small project: a copy of the library and one notebook, `tiny`."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat

import pythia_core


def make_project(root: Path, parameters: str, work: str) -> Path:
    """Write the copy and the notebook with these two code cells; returns `root`."""
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
