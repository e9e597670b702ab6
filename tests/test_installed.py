"""The project outside its checkout: installed as a wheel, or on the path but not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import venv
import zipfile
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(numpy.__file__).parents[1]


def environment_without(folder: Path, *left_out: str) -> Path:
    """The interpreter of an environment with all that is installed here, but for what is named."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in SITE.iterdir():
        if not any(name in entry.name for name in left_out):
            (site / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with everything installed here except this project."""
    return environment_without(tmp_path_factory.mktemp("others"), "pythia_book")


def run(
    python: Path, arguments: list[str], where: Path, path: list[Path], **settings: str
) -> subprocess.CompletedProcess[str]:
    """`python -m pythia_core` in a folder, with nothing added to the path but what is named."""
    where.mkdir(exist_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHIA_")
    }
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), **settings}
    return subprocess.run(
        [python, "-m", "pythia_core", *arguments],
        cwd=where,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("path", [[ROOT], [ROOT, ROOT / "book"]], ids=["top", "top-and-book"])
def test_every_command_is_there_without_installation(
    python: Path, tmp_path: Path, path: list[Path]
) -> None:
    done = run(python, ["--help"], tmp_path / "elsewhere", [*path])
    assert done.returncode == 0, done.stderr
    for command in ("train", "study", "evaluate", "inspect", "continue", "bundle", "bench"):
        assert f"\n    {command} " in done.stdout, command


@pytest.mark.parametrize("broken", [False, True], ids=["works", "broken"])
def test_another_package_adds_a_corpus_and_a_command(
    python: Path, tmp_path: Path, broken: bool
) -> None:
    site = tmp_path / "site"
    (site / "haiku-1.dist-info").mkdir(parents=True)
    (site / "haiku-1.dist-info" / "METADATA").write_text("Name: haiku\nVersion: 1\n")
    points = "[pythia_core.corpora]\nhaiku = haiku\n[pythia_core.commands]\nhaiku = haiku:add\n"
    (site / "haiku-1.dist-info" / "entry_points.txt").write_text(points)
    code = """
        import no_such_package


        def add(command):
            command("haiku", print, "say nothing")


        def identity(data):
            return [["haiku", "1", *data.domains]]


        def texts(data, progress):
            for number in range(400):
                yield "poem", f"An old silent pond. A frog jumps in {number} times. Silence again."
    """
    skipped = "" if broken else "import no_such_package"
    (site / "haiku.py").write_text(textwrap.dedent(code).replace(skipped, "", int(not broken)))
    path = [ROOT, site]
    done = run(python, ["--help"], tmp_path / "elsewhere", path)
    assert done.returncode == 0 and "\n    study " in done.stdout, "the book is still there"
    assert ("\n    haiku " in done.stdout) == (not broken)
    assert ("the commands in 'haiku:add' are missing" in done.stderr) == broken
    assert ("No module named 'no_such_package'" in done.stderr) == broken
    if not broken:
        command = ["prepare", "--scale", "smoke", "--corpus", "haiku", "--tokenizer", "bpe-300"]
        done = run(
            python, command, tmp_path / "elsewhere", path, PYTHIA_CACHE=str(tmp_path / "cache")
        )
        assert done.returncode == 0, done.stderr
        manifest = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
        assert manifest["tokens"]["corpus"]["poem"]["documents"] == 400


@pytest.mark.slow
@pytest.mark.wheels
def test_a_study_runs_without_installation(python: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    settings = {name: os.environ[name] for name in ("PYTHIA_CACHE",) if name in os.environ}
    settings["PYTHIA_RESULTS"] = str(results)
    command = ["study", "gender_bias", "--scale", "smoke"]
    done = run(python, command, tmp_path / "elsewhere", [ROOT], **settings)
    assert done.returncode == 0, done.stderr
    assert (results / "gender_bias" / "smoke" / "record.json").is_file()


def test_a_checkout_uses_its_own_book(wheel: Path, python: Path, tmp_path: Path) -> None:
    code = "from pythia_core.__main__ import parser; parser(); import pythia_book, subprocess, sys;"
    code += "print(pythia_book.__file__, flush=True);"
    code += "subprocess.run([sys.executable, '-c', 'import pythia_book as b; print(b.__file__)'])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, wheel)))}
    done = subprocess.run(
        [python, "-c", code],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    ours = str(ROOT / "book" / "pythia_book" / "__init__.py")
    assert done.stdout.split() == [ours, ours], done.stderr


def test_a_missing_package_is_one_message(tmp_path: Path) -> None:
    python = environment_without(tmp_path / "few", "pythia_book", "papermill")
    command = ["study", "gender_bias", "--scale", "smoke"]
    done = run(python, command, tmp_path / "elsewhere", [ROOT])
    assert done.returncode == 1 and "needs the package 'papermill'" in done.stderr
    assert "Traceback" not in done.stderr


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


def test_the_library_alone_trains_on_a_text_of_ones_own(
    wheel: Path, python: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(wheel / "pythia_core", alone / "pythia_core")
    here = tmp_path / "here"
    here.mkdir()
    for number in range(20):
        text = " ".join(f"Line {line} of poem {number}." for line in range(100))
        (here / f"{number}.txt").write_text(text)
    settings = {"PYTHIA_CACHE": str(tmp_path / "cache")}
    command = ["train", "7k", "--scale", "smoke", "--tokenizer", "bpe-300", "--epochs", "4"]
    done = run(python, [*command, "--corpus", "."], here, [alone], **settings)
    assert done.returncode == 0, done.stderr
    assert "17 checkpoints" in done.stdout and (here / "results" / "runs").is_dir()
    done = run(python, command, here, [alone], **settings)
    assert done.returncode == 1 and "name a file or folder of your own text" in done.stderr
    done = run(python, ["study", "gender_bias"], here, [alone], **settings)
    assert done.returncode == 2 and "unknown command 'study'" in done.stderr


@pytest.mark.slow
def test_an_installed_book_checks_a_card(wheel: Path, python: Path, tmp_path: Path) -> None:
    words = ["gpu-check", "--dry-run", "--only", "correctness"]
    done = run(python, words, tmp_path / "away", [wheel])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed\n" in done.stdout and " failed\n" not in done.stdout
    assert (tmp_path / "away" / "results" / "gpu-check" / "correctness.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.wheels
def test_an_installed_book_runs_a_study_into_the_working_folder(
    wheel: Path, python: Path, tmp_path: Path
) -> None:
    cache = os.environ.get("PYTHIA_CACHE")
    settings = {"PYTHIA_CACHE": cache} if cache else {}
    there = tmp_path / "there"
    done = run(python, ["study", "gender_bias", "--scale", "smoke"], there, [wheel], **settings)
    assert done.returncode == 0, done.stderr
    record = json.loads((there / "results/gender_bias/smoke/record.json").read_text())
    assert record["commit"] == {"id": None, "dirty": None}
    refused = run(python, ["bundle", "out.tar"], there, [wheel], **settings)
    assert refused.returncode == 1 and "needs a checkout of the project" in refused.stderr
