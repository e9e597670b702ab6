"""The repository itself: its layout, its notebooks, and what must not be in it."""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from places import ROOT
from pythia_book import notebooks, recording, records
from pythia_book.studies.gender_bias import checkpoints

from pythia_core import __version__
from pythia_core.__main__ import parser

TOP = {
    *("book", "pythia_core", "notebooks", "tests", "_config.yml", "_toc.yml", "requirements.txt"),
    *("README.md", "pyproject.toml", "Makefile", "LICENSE", "CITATION.cff", "CONTRIBUTING.md"),
    *("LOG.md", "CHANGELOG.md", "requirements.lock", "requirements-gpu.txt"),
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIDES = re.compile(
    r"\b[Ll]eft panel|\b[Rr]ight panel|\b(?:Left|Right):|[Ff]rom left to right"
    r"|\b[Oo]n the (?:left|right)\b|\((?:left|right)\)|numref\}`[^`]*`,? (?:left|right)\b"
)
"""Words that say where a panel of a figure is."""
OUTPUTS = {"results", "_build", "__pycache__", "pythia_book.egg-info"}


def repository_files() -> list[Path]:
    """Tracked files and new ones that are not ignored; without git, everything but outputs."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "-c", "-o", "--exclude-standard"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        files = [ROOT / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        found = (Path(folder) / n for folder, _, names in os.walk(ROOT) for n in names)
        parts = ((f, f.relative_to(ROOT).parts) for f in found)
        files = [f for f, p in parts if not OUTPUTS & set(p) and not p[0].startswith(".")]
        files = [f for f in files if f.parent != ROOT / "book" / "studies"]
    own = ROOT / "results"  # a fork may commit its runs, to publish them
    return [f for f in files if (f.is_symlink() or f.is_file()) and own not in f.parents]


def text_of(path: Path) -> str:
    binary = path.suffix in (".png", ".woff2", ".npz", ".safetensors")
    return "" if binary else path.read_text(encoding="utf-8")


def test_the_top_level_is_what_the_design_says() -> None:
    names = {f.relative_to(ROOT).parts[0] for f in repository_files()}
    assert {n for n in names if not n.startswith(".")} == TOP


def documented_commands() -> list[tuple[str, str]]:
    """Return (file, words) of every command of ours in README, CONTRIBUTING and the pages."""
    found = list[tuple[str, str]]()
    pages = sorted((ROOT / "book").glob("*.md"))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *pages):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        found += [(path.name, words) for words in re.findall(r"-m pythia_core ([^\n`]+)", text)]
    return found


def test_commands_in_the_documentation_are_accepted() -> None:
    commands = documented_commands()
    assert len(commands) > 40
    refused = []
    for name, command in commands:
        command = re.split(r"\s#|\s{4,}|\s[;&|]|\)", command)[0]
        words = [word.replace("<study>", "suite").strip("…") for word in shlex.split(command)]
        if len(words) == 1:  # only mentioned
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                parser().parse_args(words)
        except SystemExit as end:
            if end.code and "the following arguments are required" not in said.getvalue():
                refused.append(f"{name}: {command}: {said.getvalue().splitlines()[-1]}")
    assert not refused


def test_there_are_no_symbolic_links() -> None:
    assert not [f for f in repository_files() if f.is_symlink()]


def test_nothing_large_is_committed() -> None:
    large = {f.name: f.stat().st_size for f in repository_files() if f.stat().st_size > 2_500_000}
    assert large.keys() <= {checkpoints.FILE} and sum(large.values()) <= checkpoints.LIMIT


def test_no_file_names_a_machine() -> None:
    allowed = {
        "tests/book/test_records.py",
        "book/pythia_book/notebooks.py",
    }  # these are about such paths
    for path in repository_files():
        name = path.relative_to(ROOT).as_posix()
        if name not in allowed:
            traces = [t for t in notebooks.machine_traces(text_of(path)) if t != "."]
            assert not traces, f"{name} names {traces}"


def test_the_toc_in_the_book_is_a_stub() -> None:
    stub = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    assert stub == {"format": "jb-book", "root": "index"}
    real = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [c["file"] for part in real["parts"] for c in part["chapters"]]
    for chapter in chapters:
        study = chapter.removeprefix("studies/")
        source = f"notebooks/{study}.ipynb" if study != chapter else f"book/{chapter}.md"
        assert (ROOT / source).is_file(), f"_toc.yml names {chapter}; there is no {source}"
    assert {f"studies/{p.stem}" for p in NOTEBOOKS} <= set(chapters), "a study is not in the toc"


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_sources(path: Path) -> None:
    notebook = notebooks.read_notebook(path)
    assert len(notebook.cells) <= 30
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    parameters = notebooks.parameters_of(notebook)
    assert parameters["scale"].default == "laptop"
    assert all(p.help for p in parameters.values()), "every parameter has a comment"
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            tree = ast.parse(cell.source)
            logic = (ast.For, ast.While, ast.FunctionDef, ast.ClassDef, ast.Try)
            assert not [n for n in ast.walk(tree) if isinstance(n, logic)], "no logic in notebooks"


def test_recorded_runs_belong_to_their_notebooks() -> None:
    for record in recording.all_records(ROOT):
        folder = ROOT / "book" / "recorded" / record["study"] / record["scale"]
        assert records.check_whole(folder) == []
        executed = notebooks.read_notebook(folder / "notebook.ipynb")
        source = notebooks.read_notebook(ROOT / "notebooks" / f"{record['study']}.ipynb")
        assert notebooks.source_hash(executed) == notebooks.source_hash(source), (
            f"the code of {record['study']} has changed since its run at scale {record['scale']} "
            "was recorded: run it again and record it"
        )


def test_the_readme_has_its_blocks_and_names_real_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in ("costs", "bench"):
        assert f"<!-- {block} -->\n" in text and f"<!-- /{block} -->" in text
    recorded = recording.all_records(ROOT)
    if len(recorded) == len(list(ROOT.glob("book/recorded/*/*"))):  # else they must run again
        assert recording.costs_table(recording.all_costs(ROOT)) in text, "run refresh_costs()"
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).is_file(), f"README links to {link}"


def test_the_layout_in_the_readme_is_the_checkouts() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## Layout$(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)[1]
    entries = re.findall(r"^    ( *)(\S+?)/? +\S", block, flags=re.MULTILINE)
    above: list[str] = []
    for indent, name in entries:
        if len(indent) > 8:  # the rest of a sentence
            continue
        above[len(indent) // 2 :] = [name.replace("<study>", "memorization")]
        path = ROOT.joinpath(*above)
        assert path.exists() or name == "results", f"README's layout names {path}"
    named = {path.split("/")[-1] for path in re.findall(r"[\w/]+\.py", block)}
    known = {path.name for path in repository_files()}
    assert named <= known and len(named) > 15
    rooms = [p for p in (ROOT / "pythia_core").iterdir() if p.is_dir() or p.suffix == ".py"]
    ours = {p.stem for p in rooms if not p.name.startswith("_")}
    assert {p.removesuffix(".py") for indent, p in entries if len(indent) == 2} >= ours - {"errors"}


def test_requirements_agree_with_each_other() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in wanted and "-e ." in wanted and "xxhash<4" in wanted
    assert "jupyter-book>=1.0.4.post1,<2" in wanted
    assert not [line for line in wanted if "flash" in line], "it cannot be installed without CUDA"
    lock = (ROOT / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", lock, flags=re.MULTILINE))
    names = {re.split(r"[<>=!\[]", line)[0].lower() for line in wanted} - {"torch", "-e ."}
    assert names <= pinned, f"not locked: {names - pinned}"
    assert "torch" not in pinned and not re.search(r"https?:|index-url|file:", lock)
    entries = re.split(r"\n(?=[a-z0-9])", lock)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry.split("\n")[0])


def test_the_project_file_is_consistent() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == "pythia-book"
    engine = project["project"]["entry-points"]["papermill.engine"]
    assert engine == {"pythia": "pythia_book.papermill_engine:PythiaEngine"}
    for house in (ROOT / "pythia_core", ROOT / "book" / "pythia_book"):
        folders = {path.parent for path in house.rglob("*.py")}
        assert all((folder / "__init__.py").is_file() for folder in folders)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


def test_unsafe_loading_is_nowhere() -> None:
    bad = {"pickle", "dill", "marshal", "shelve", "joblib", "cloudpickle"}
    for path in repository_files():
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not bad & {a.name.split(".")[0] for a in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in bad, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "yaml.load"), f"{path}: {called}"
                if called == "torch.load":
                    words = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                    assert words.get("weights_only") is True, f"{path}: {called} may run code"
                for word in node.keywords:
                    unsafe = word.arg == "allow_pickle" and getattr(word.value, "value", 1)
                    assert not unsafe, f"{path}: allow_pickle"


@pytest.mark.parametrize(
    "path", sorted([*NOTEBOOKS, *(ROOT / "book").rglob("*.md")]), ids=lambda p: p.name
)
def test_text_numbers_panels_and_does_not_place_them(path: Path) -> None:
    """Panels are side by side on a wide screen and stacked on a phone."""
    assert SIDES.findall(text_of(path)) == []


def test_labels_of_certainty_are_explained_where_they_are_used() -> None:
    for path in (ROOT / "book").rglob("*.md"):
        labels = set(re.findall(r"\]\{\.sure \.(\w+)\}", text_of(path)))
        explained = text_of(path).partition("**How sure we are.**")[2].partition("\n\n")[0]
        assert all(f"{{.sure .{label}}}" in explained for label in labels), path
