"""The project outside its checkout: installed as a wheel, or on the path but not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(numpy.__file__).parents[1]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything installed here except this project."""
    folder = tmp_path_factory.mktemp("others")
    for entry in SITE.iterdir():
        if "pythia_book" not in entry.name:
            (folder / entry.name).symlink_to(entry)
    return folder


def run(
    arguments: list[str], where: Path, path: list[Path], **settings: str
) -> subprocess.CompletedProcess[str]:
    """`python -m pythia_core` in a folder, with nothing on the path but what is named."""
    where.mkdir(exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHIA_")
    }
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), **settings}
    return subprocess.run(
        [sys.executable, "-S", "-m", "pythia_core", *arguments],
        cwd=where,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", [[ROOT], [ROOT, ROOT / "book"]], ids=["top", "top-and-book"])
def test_every_command_is_there_without_installation(
    others: Path, tmp_path: Path, path: list[Path]
) -> None:
    done = run(["--help"], tmp_path / "elsewhere", [*path, others])
    assert done.returncode == 0, done.stderr
    for command in ("train", "study", "evaluate", "inspect", "continue", "bundle", "bench"):
        assert f"\n    {command} " in done.stdout, command


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a wheel installs it."""
    pytest.importorskip("hatchling")
    made, site = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", made, ROOT], check=True, stdin=subprocess.DEVNULL)
    (file,) = made.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_has_both_packages_and_the_notebooks(wheel: Path) -> None:
    for name, source in (("pythia_core", ROOT), ("pythia_book", ROOT / "book")):
        there = {p.relative_to(wheel) for p in (wheel / name).rglob("*") if p.is_file()}
        ours = {
            p.relative_to(source)
            for p in (source / name).rglob("*")
            if p.is_file() and p.suffix not in (".pyc",)
        }
        assert ours <= there
    notebooks = {p.name for p in (wheel / "pythia_book" / "_notebooks").iterdir()}
    assert notebooks == {p.name for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert {p.name.split("-")[0] for p in wheel.iterdir()} == {
        "pythia_core", "pythia_book"
    }, "nothing else is installed"  # fmt: skip


@pytest.mark.slow
def test_an_installed_book_checks_a_card(wheel: Path, others: Path, tmp_path: Path) -> None:
    words = ["gpu-check", "--dry-run", "--only", "correctness"]
    done = run(words, tmp_path / "away", [wheel, others])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed\n" in done.stdout and " failed\n" not in done.stdout
    assert (tmp_path / "away" / "results" / "gpu-check" / "correctness.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.wheels
def test_an_installed_book_runs_a_study_into_the_working_folder(
    wheel: Path, others: Path, tmp_path: Path
) -> None:
    cache = os.environ.get("PYTHIA_CACHE")
    settings = {"PYTHIA_CACHE": cache} if cache else {}
    there = tmp_path / "there"
    done = run(["study", "gender_bias", "--scale", "smoke"], there, [wheel, others], **settings)
    assert done.returncode == 0, done.stderr
    record = json.loads((there / "results/gender_bias/smoke/record.json").read_text())
    assert record["commit"] == {"id": None, "dirty": None}
    refused = run(["bundle", "out.tar"], there, [wheel, others], **settings)
    assert refused.returncode == 1 and "needs the project's checkout" in refused.stderr
