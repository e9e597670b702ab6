"""Every study's notebook: its form, and that all its cells run at smoke scale (nbval)."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pytest
from places import ROOT
from pythia_book.records import RECORD_TO, read_record

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_source_notebook_is_short_clean_and_without_logic(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 30
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].cell_type == "markdown"
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    assert sum("parameters" in t for t in tags) == 1
    names = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        assert not cell.outputs
        assert cell.execution_count is None
        for word in ("def ", "class ", "for ", "while ", "lambda", "print("):
            assert word not in cell.source, f"{word!r} belongs in pythia_core: {cell.source}"
        if "parameters" in cell.metadata.get("tags", []):
            for line in cell.source.splitlines():
                assert ": " in line.split("=")[0], f"no type: {line}"
                assert "  # " in line, f"no help: {line}"
        if figure := cell.metadata.get("mystnb", {}).get("figure"):
            names.append(figure["name"])
            assert figure["caption"].endswith(".")
    assert len(set(names)) == len(names)


@pytest.mark.wheels
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_runs_at_smoke_scale(path, tmp_path):
    prepared = tmp_path / path.name
    recorded = tmp_path / "recorded"
    environment = {**os.environ, "PYTHIA_RESULTS": str(tmp_path / "results")}
    environment[RECORD_TO] = str(recorded)

    def call(*command: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done

    prepare = ("papermill", "--prepare-only", str(path), str(prepared), "-p", "scale", "smoke")
    call(*prepare)
    flags = ("--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-x", "-q")
    # The settings of this project are for its own tests, not for a folder elsewhere.
    done = call("pytest", *flags, "-c", os.devnull, "--rootdir", str(tmp_path), str(prepared))
    assert " passed" in done.stdout
    assert read_record(recorded)["study"] == path.stem
