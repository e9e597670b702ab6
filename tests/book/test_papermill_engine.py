"""`papermill notebooks/<study>.ipynb` with one argument, as a user types it, wherever it runs."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import pythia_book
from pythia_book import notebooks, papermill_engine, records
from tiny_project import make_project, record_cell

from pythia_core.errors import ConfigError, PythiaError

BOOK = Path(pythia_book.__file__).resolve().parents[1]
PAPERMILL = [sys.executable, "-m", "papermill"]
SCRIPT = [str(Path(sys.executable).with_name("papermill"))]
CELL = record_cell("scale=scale, seeds=seeds", "{'seeds': seeds}", "print(scale, seeds)")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one notebook, `tiny`, that trains nothing; a space in its path."""
    parameters = 'scale: str = "laptop"  # how much\nseeds: int = 1  # how many'
    return make_project(tmp_path_factory.mktemp("a project"), parameters, CELL)


@pytest.fixture(autouse=True)
def untouched_source(project: Path):
    before = (project / "notebooks/tiny.ipynb").read_bytes()
    shutil.rmtree(project / "results", ignore_errors=True)
    yield
    assert (project / "notebooks/tiny.ipynb").read_bytes() == before, "the source was overwritten"


def environment(project: Path) -> dict[str, str]:
    """The core of the copy, which is the project, and the book of this checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    path = os.pathsep.join((str(project), str(BOOK)))
    return {**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def papermill(project: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    settings = {"stdin": subprocess.DEVNULL, "cwd": project, **options}
    return subprocess.run(
        [*PAPERMILL, *arguments],
        env=environment(project),
        capture_output=True,
        text=True,
        timeout=120,
        **settings,
    )


def in_a_terminal(project: Path, *arguments: str) -> tuple[int, str]:
    """Run papermill with a pseudo-terminal as its stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*SCRIPT, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=project,
        env=environment(project),
        start_new_session=True,
    )
    os.close(theirs)
    shown, until = b"", time.monotonic() + 120
    while time.monotonic() < until:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
        elif child.poll() is not None:
            break
    code = child.wait(timeout=10)
    os.close(ours)
    return code, shown.decode(errors="replace")


def executed(project: Path, scale: str) -> notebooks.Notebook:
    return notebooks.read_notebook(project / "results" / "tiny" / scale / "notebook.ipynb")


@pytest.mark.commands
def test_one_argument_at_a_terminal(project: Path) -> None:
    code, shown = in_a_terminal(project, "notebooks/tiny.ipynb")
    assert code == 0, shown
    notebook = executed(project, "laptop")
    assert notebook.cells[-1].outputs[0].text == "laptop 1\n"
    stamp = notebook.metadata[notebooks.STAMP]
    assert stamp["study"] == "tiny" and stamp["parameters"] == {"scale": "laptop", "seeds": 1}
    text = nbformat.writes(notebook)
    assert str(project) not in text and "start_time" not in text
    assert "results/tiny/laptop/notebook.ipynb" in shown


@pytest.mark.commands
def test_one_argument_in_a_pipe_with_a_scale(project: Path) -> None:
    done = papermill(project, "-p", "scale", "smoke", "notebooks/tiny.ipynb", "-p", "seeds", "2")
    assert done.returncode == 0, done.stderr
    assert executed(project, "smoke").cells[-1].outputs[0].text == "smoke 2\n"
    assert not (project / "results/tiny/laptop").exists()
    assert '"cells"' not in done.stdout, "the notebook went to stdout"


@pytest.mark.commands
@pytest.mark.parametrize("stdin", ["fifo", "closed"])
def test_one_argument_under_a_scheduler(project: Path, stdin: str, tmp_path: Path) -> None:
    source = project / "notebooks" / "tiny.ipynb"
    words = [str(source), "--prepare-only"]
    if stdin == "fifo":
        done = papermill(project, *words, stdin=None, input="", cwd=tmp_path)
    else:
        closing = "import os, sys; os.close(0); os.execv(sys.argv[1], sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", closing, *PAPERMILL, *words],
            env=environment(project),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    prepared = notebooks.read_notebook(project / "results/tiny/laptop-unfinished.ipynb")
    assert prepared.cells[0].source == "# Tiny" and not prepared.cells[-1].outputs
    assert not (project / "results/tiny/laptop").exists()


@pytest.mark.commands
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "sclae", "smoke"], "unknown parameter 'sclae'; accepted: scale, seeds."),
        (["-p", "seeds", "many"], "parameter 'seeds' must be of type int, got 'many'"),
        (["-p", "scale", "../../x"], "unknown scale '../../x'; accepted: smoke, laptop"),
        (["elsewhere.ipynb", "-p", "sclae", "smoke"], "unknown parameter 'sclae'"),
    ],
)
def test_bad_parameters_are_refused(project: Path, words: list[str], message: str) -> None:
    done = papermill(project, "notebooks/tiny.ipynb", *words)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(project.glob("results/tiny/*/notebook.ipynb"))
    assert not (project / "elsewhere.ipynb").exists()


@pytest.mark.commands
def test_a_mistyped_notebook_is_refused(project: Path) -> None:
    done = papermill(project, "notebooks/tinny.ipynb")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "unknown study 'tinny'; accepted: tiny. Did you mean 'tiny'?" in done.stderr


@pytest.mark.commands
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone/out.ipynb"], "the output path gone/out.ipynb is a folder, or its folder does not"),
        (["notebooks"], "the output path notebooks is a folder"),
        (["-y", "{scale: !!python/name:os.x }"], "--parameters_yaml"),
        (["-f", "notebooks/tiny.ipynb"], "unknown parameter 'cells'"),
    ],
)
def test_what_would_fail_at_the_end_fails_at_once(
    project: Path, words: list[str], message: str
) -> None:
    done = papermill(project, "notebooks/tiny.ipynb", *words)
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "Executing" not in done.stderr


@pytest.mark.commands
def test_papermills_own_paths_can_be_injected(project: Path) -> None:
    done = papermill(project, "notebooks/tiny.ipynb", "--inject-paths", "-p", "seeds", "2")
    assert done.returncode == 0, done.stderr
    notebook = executed(project, "laptop")
    assert notebook.metadata[notebooks.STAMP]["parameters"] == {"scale": "laptop", "seeds": 2}
    assert "PAPERMILL" not in nbformat.writes(notebook)


@pytest.mark.commands
def test_a_relative_folder_of_results_is_one_folder_everywhere(
    project: Path, tmp_path: Path
) -> None:
    """Of the command, the kernel, and a second call; with a space and a link in its path."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "my link").symlink_to(tmp_path / "disk")
    given = environment(project) | {"PYTHIA_RESULTS": "my link/out"}
    settings = {"cwd": tmp_path, "env": given, "text": True, "timeout": 120}
    study = [sys.executable, "-m", "pythia_core", "study", "tiny", "--scale", "smoke"]
    subprocess.run(study, check=True, stdin=subprocess.DEVNULL, **settings)
    folder = tmp_path / "disk" / "out" / "tiny" / "smoke"
    assert records.check_whole(folder) == []
    again = subprocess.run(study, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **settings)
    assert "is up to date" in again.stdout
    assert not (project / "results").exists() and not (project / "my link").exists()


@pytest.mark.commands
def test_help_names_every_parameter(project: Path) -> None:
    done = papermill(project, "--help-notebook", "notebooks/tiny.ipynb")
    assert done.returncode == 0, done.stderr
    assert 'scale: str (default "laptop")' in done.stdout and "how many" in done.stdout


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process works in the project too."""
    monkeypatch.setattr(notebooks, "project_root", lambda: project)
    monkeypatch.delenv("PYTHIA_RESULTS", raising=False)
    monkeypatch.setenv("PYTHIA_RESULTS", str(project / "results"))
    monkeypatch.chdir(project)
    return project


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["--help"],
        [],
        ["--help-notebook", "notebooks/tiny.ipynb"],
        ["results/tiny.ipynb", "-p", "scale", "smoke"],
        ["/notebooks/tiny.ipynb"],
        ["a", "b", "c"],
    ],
)
def test_other_calls_are_left_alone(here: Path, words: list[str]) -> None:
    assert papermill_engine.complete_arguments(words) == words


def test_a_second_argument_is_respected(here: Path) -> None:
    words = ["notebooks/tiny.ipynb", "out.ipynb"]
    assert papermill_engine.complete_arguments(words) == ["--engine", "pythia", *words]
    chosen = ["--engine", "nbclient", *words]
    assert papermill_engine.complete_arguments(chosen) == chosen


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        ([], "laptop"),
        (["-p", "scale", "smoke"], "smoke"),
        (["-r", "scale", "smoke", "-p", "scale", "laptop"], "smoke"),
        (["-y", "{scale: smoke}"], "smoke"),
        (["-y", "{scale: smoke}", "-p", "scale", "laptop"], "laptop"),
        (["-f", "given.yml"], "smoke"),
        (["-b", "e3NjYWxlOiBzbW9rZX0="], "smoke"),
        (["--parameters", "scale", "smoke", "--log-level=ERROR"], "smoke"),
        (["-k", "python3", "--no-progress-bar"], "laptop"),
        (["-p", "seeds", "2"], "laptop"),
    ],
)
def test_the_scale_chooses_the_folder(here: Path, words: list[str], scale: str) -> None:
    (here / "given.yml").write_text("scale: smoke\n")
    completed = papermill_engine.complete_arguments(["notebooks/tiny.ipynb", *words])
    assert completed[-1] == f"results/tiny/{scale}/notebook.ipynb"
    assert completed[:3] == ["--engine", "pythia", "notebooks/tiny.ipynb"]
    before = papermill_engine.complete_arguments([*words, "notebooks/tiny.ipynb"])
    assert before[-2:] == ["notebooks/tiny.ipynb", completed[-1]]


def test_text_is_not_converted(here: Path) -> None:
    words = ["notebooks/tiny.ipynb", "-p", "scale", "laptop", "-p", "seeds", "2"]
    completed = papermill_engine.complete_arguments(words)
    assert completed[3:9] == ["-r", "scale", "laptop", "-p", "seeds", "2"]


@pytest.mark.parametrize("scale", ["[smoke]", "{a: b}", "3", "~", "2020-01-01"])
def test_a_scale_of_another_type_is_refused(here: Path, scale: str) -> None:
    (here / "given.yml").write_text(f"scale: {scale}\n")
    words = ["notebooks/tiny.ipynb", "-f", "given.yml"]
    if scale == "~":  # null is the default
        assert papermill_engine.complete_arguments(words)
        return
    with pytest.raises(ConfigError, match="unknown scale"):
        papermill_engine.complete_arguments(words)


def test_a_place_that_cannot_be_written_to_is_refused_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "file").touch()
    monkeypatch.setenv("PYTHIA_RESULTS", str(here / "file" / "results"))
    with pytest.raises(PythiaError, match=r"file: Not a directory\); set PYTHIA_RESULTS to"):
        papermill_engine.run_study("tiny")


def test_an_unknown_scale_makes_no_folder(here: Path) -> None:
    with pytest.raises(ConfigError, match="unknown scale"):
        papermill_engine.complete_arguments(["notebooks/tiny.ipynb", "-p", "scale", "../up"])
    assert not (here / "results").exists()


def test_the_table_of_options_is_papermills_own() -> None:
    from papermill.cli import papermill as command

    options = {
        tuple(option.opts): option.nargs
        for option in command.params
        if option.param_type_name == "option" and not option.is_flag
    }
    assert options == papermill_engine.OPTIONS


def test_a_study_is_run_once(here: Path) -> None:
    """`run_study` through the engine in this process; the second call finds it up to date."""
    path, ran_now = papermill_engine.run_study("tiny", "smoke", {"seeds": 3}, progress=False)
    assert ran_now and path == here / "results/tiny/smoke/notebook.ipynb"
    assert papermill_engine.run_study("tiny", "smoke", {"seeds": 3}, progress=False) == (
        path,
        False,
    )

    def shown() -> tuple[list[str], list[str]]:  # the note of the record has the duration
        notebook = notebooks.read_notebook(path)
        outputs = [
            nbformat.from_dict(o) for cell in notebook.cells for o in cell.get("outputs", [])
        ]
        return [cell.source for cell in notebook.cells], [o.get("text") for o in outputs]

    before = shown()
    _, again = papermill_engine.run_study("tiny", "smoke", {"seeds": 3}, force=True, progress=False)
    assert again and shown() == before
    with pytest.raises(ConfigError, match="'seeds' must be of type int"):
        papermill_engine.run_study("tiny", "smoke", {"seeds": "x"}, progress=False)


def test_a_study_runs_without_a_home_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with an unknown user; Jupyter itself would not start."""
    known = os.path.expanduser
    monkeypatch.setattr("os.path.expanduser", lambda p: known(p) if "HOME" in os.environ else p)
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("PYTHIA_CACHE", str(tmp_path / "cache"))
    path, _ = papermill_engine.run_study("tiny", "smoke", progress=False)
    assert records.check_whole(path.parent) == [] and "HOME" not in os.environ
    monkeypatch.delenv("PYTHIA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(PythiaError, match="set PYTHIA_CACHE to"):
        papermill_engine.run_study("tiny", "smoke", force=True, progress=False)
