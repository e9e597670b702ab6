"""Builds the site in a copy of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from places import ROOT
from pythia_book import records

PARTS = (
    "_config.yml", "_toc.yml", "CITATION.cff", "README.md", "book", "notebooks", "pythia_core",
)  # fmt: skip


def copy_of_the_checkout(target: Path) -> Path:
    """Copy what a build reads into `target`, without local runs; return `target`."""
    ignore = shutil.ignore_patterns("__pycache__", "_build", ".ipynb_checkpoints")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, target / part, ignore=ignore)
        else:
            shutil.copyfile(ROOT / part, target / part)
    shutil.rmtree(target / "book" / "studies", ignore_errors=True)
    for path in (target / "book" / "recorded").glob("*/*/record.json"):
        if json.loads(path.read_text(encoding="utf-8"))["schema"] < records.SCHEMA:
            shutil.rmtree(path.parent)  # until its study is run again
    return target


def build(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run `jupyter-book build book/` with further words in `root`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    script = Path(sys.executable).with_name("jupyter-book")
    return subprocess.run(
        [str(script), "build", "book/", *words],
        cwd=root,
        env={**kept, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def strict_build(root: Path, **environment: str) -> Path:
    """Build the site so that each warning is an error; return the folder of its pages."""
    done = build(root, "-W", "--keep-going", "-n", **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root / "_build" / "html"
