"""CONTRIBUTING.md, "Add a study": its steps are followed exactly in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nbformat
import pytest
from pythia_book.notebooks import read_notebook
from pythia_book.records import read_record
from pythia_book.verdicts import FAILS, HOLDS, NOT_RESOLVED

from pythia_core.util.files import project_root

STUDY = "twin_loss"
FOLDER = f"book/pythia_book/studies/{STUDY}"


def blocks() -> list[str]:
    """The code blocks of the section."""
    page = (project_root() / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Add a study")[2].partition("\n## ")[0]
    found = re.findall(r"^ +```python\n(.*?)^ +```$", section, flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(block) for block in found]


def add_the_study(root: Path) -> None:
    """Write what the page shows: a folder, a notebook, and an entry in the contents.

    If somebody has followed the page in this checkout, these exist and are overwritten.
    """
    cells = [nbformat.v4.new_markdown_cell("# Twins", id="title")]
    (root / FOLDER).mkdir(exist_ok=True)
    (root / FOLDER / "__init__.py").write_text('"""The study of twins."""\n')
    for block in blocks():
        path = re.match(rf"# ({FOLDER}/\w+\.py)\n", block)
        if path:
            (root / path[1]).write_text(block[path.end() :])
        else:
            tags = {"tags": ["parameters"]} if len(cells) == 1 else {}
            cells.append(nbformat.v4.new_code_cell(block, id=f"cell-{len(cells)}", metadata=tags))
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = read_notebook(root / "notebooks" / "suite.ipynb").metadata
    nbformat.write(notebook, root / "notebooks" / f"{STUDY}.ipynb")
    contents = (root / "_toc.yml").read_text()
    line = "      - file: studies/suite\n"
    assert line in contents
    ours = line.replace("suite", STUDY)
    (root / "_toc.yml").write_text(contents.replace(ours, "").replace(line, line + ours))


@pytest.mark.slow
@pytest.mark.wheels
@pytest.mark.timeout(300)
def test_following_the_page_adds_a_study(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    for name in ("pythia_core", "book", "notebooks", "tests"):
        ignored = shutil.ignore_patterns(".*", "__pycache__", "recorded")
        shutil.copytree(project_root() / name, root / name, ignore=ignored)
    shutil.rmtree(root / "book" / "studies", ignore_errors=True)  # pages of a built site
    for name in ("pyproject.toml", "_config.yml", "_toc.yml", "README.md", "LICENSE"):
        shutil.copy(project_root() / name, root)
    add_the_study(root)
    files = sorted(path.name for path in (root / FOLDER).iterdir())
    assert files == ["__init__.py", "figures.py", "params.py", "study.py"]

    environment = os.environ | {"PYTHIA_RESULTS": str(tmp_path / "results")}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "book")])

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python("-m", "pythia_core", "study", STUDY, "--scale", "smoke")
    record = read_record(tmp_path / "results" / STUDY / "smoke")
    assert record["study"] == STUDY and len(record["runs"]) == 2
    assert record["claims"][0]["ours"]["verdict"] in (HOLDS, FAILS, NOT_RESOLVED)
    python("-m", "pythia_core", "redraw", STUDY)
    assert read_record(tmp_path / "results" / STUDY / "smoke") == record, "nothing has changed"

    planned = "from pythia_book import bundle; from pythia_core.__main__ import main; "
    planned += "print('twin_loss' in bundle.STUDIES); main(['budget']); "
    planned += "print(*(data.dedup for data in bundle.needed_data('gpu', ['twin_loss'])))"
    packed, *rows, texts = (line.split() for line in python("-c", planned).splitlines())
    studies = [row[0] for row in rows if row and row[0] in ("suite", STUDY)]
    assert studies == ["suite", STUDY], "the suite comes first: it trains the shared runs"
    assert packed == ["True"] and texts == ["none", "jaccard-0.87"]

    python("-m", "ruff", "check", ".")
    python("-m", "ruff", "format", "--check", ".")
    files = ("tests/test_layers.py", "tests/test_repository.py", "tests/book/studies")
    chosen = f"test_layers or toc or test_registry or {STUDY}"
    python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)
