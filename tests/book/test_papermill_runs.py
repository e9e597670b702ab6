"""A run is one thing: whatever fails or is killed, its folder has one whole run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pythia_book
from pythia_book import notebooks, records
from tiny_project import make_project, record_cell

import pythia_core

ROOT = Path(pythia_core.__file__).resolve().parents[1]
BOOK = Path(pythia_book.__file__).resolve().parents[1]
PAPERMILL = [sys.executable, "-m", "papermill", "notebooks/tiny.ipynb"]
STUDY = [sys.executable, "-m", "pythia_core", "study", "tiny"]
WORK = """
import os, signal, time
if os.environ.get("FAIL") == "error":
    raise ValueError("no luck")
if os.environ.get("FAIL") == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if "SECONDS_OF_WORK" in os.environ:
    open("working", "w").close()
    time.sleep(float(os.environ["SECONDS_OF_WORK"]))
print(f"seeds: {seeds}")
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parameters = 'scale: str = "laptop"  # how much\nseeds: int = 1  # how many'
    cell = record_cell("scale=scale, seeds=seeds", "{'seeds': seeds}", WORK)
    return make_project(tmp_path_factory.mktemp("project"), parameters, cell)


@pytest.fixture
def project(source: Path) -> Path:
    shutil.rmtree(source / "results", ignore_errors=True)
    return source


def start(project: Path, *command: str, **environment: str) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    kept |= {"PYTHONPATH": os.pathsep.join((str(project), str(BOOK)))}
    return subprocess.Popen(
        command,
        cwd=project,
        env=kept | {"PYTHONDONTWRITEBYTECODE": "1"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(project: Path, *command: str, **environment: str) -> tuple[int, str]:
    process = start(project, *command, **environment)
    shown, _ = process.communicate(timeout=120)
    return process.returncode, shown


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def seeds_of(folder: Path) -> int:
    """The parameter of the run in a folder, of which all parts agree."""
    assert records.check_whole(folder) == []
    notebook = notebooks.read_notebook(folder / "notebook.ipynb")
    seeds = records.read_record(folder)["parameters"]["seeds"]
    assert notebook.metadata[notebooks.STAMP]["parameters"]["seeds"] == seeds
    assert notebook.cells[-1].outputs[0].text == f"seeds: {seeds}\n"
    return seeds


@pytest.fixture
def finished(project: Path) -> Path:
    """The folder of a finished run."""
    code, shown = run(project, *PAPERMILL, "-p", "scale", "smoke")
    assert code == 0, shown
    folder = project / "results" / "tiny" / "smoke"
    assert seeds_of(folder) == 1
    assert set(contents(folder)) == {
        "notebook.ipynb", "record.json", "numbers.csv", records.MEASURED,
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["smoke"]
    return folder


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_a_finished_run_survives_whatever_fails_or_only_looks(
    project: Path, finished: Path
) -> None:
    before = contents(finished)
    smoke = (*PAPERMILL, "-p", "scale", "smoke")
    study = (*STUDY, "--scale", "smoke", "--force")
    kept = "results/tiny/smoke-unfinished.ipynb"
    for command, environment, code, said in (
        ((*smoke, "--prepare-only"), {}, 0, f"not run to its end; the notebook is in {kept}"),
        (smoke, {"FAIL": "error"}, 1, f"did not finish; the notebook is in {kept}"),
        (study, {"FAIL": "error"}, 1, kept),
        (smoke, {"FAIL": "kill"}, 138, "Kernel died"),
        (study, {"FAIL": "kill"}, 1, "tiny.ipynb died, perhaps for lack of memory. Checkpoints"),
        (study, {"FAIL": "kill"}, 1, "set PYTHIA_WORKERS=1 or choose smaller sizes"),
        ((*smoke, "-p", "seeds", "many"), {}, 1, "must be of type int"),
        ((*smoke, "--cwd", "no/such/folder"), {}, 1, ""),
    ):
        (project / kept).unlink(missing_ok=True)
        found, shown = run(project, *command, **environment)
        assert found == code and said in shown, shown
        assert contents(finished) == before, command
        assert not list(finished.parent.glob(".*")), command
    stopped = start(project, *smoke, SECONDS_OF_WORK="60")
    until = time.monotonic() + 60
    while not (project / "working").exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(stopped.pid, signal.SIGINT)
    shown, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and "kept" in shown, shown
    assert contents(finished) == before and not list(finished.parent.glob(".*"))
    assert run(project, *study)[0] == 0
    assert not (project / kept).exists(), "a finished run leaves no unfinished one beside it"


@pytest.mark.commands
def test_with_another_output_path_nothing_is_recorded(project: Path, finished: Path) -> None:
    before = contents(finished)
    words = (*PAPERMILL, "out.ipynb", "-p", "scale", "smoke", "-p", "seeds", "2")
    code, shown = run(project, *words)
    assert code == 0, shown
    outputs = notebooks.read_notebook(project / "out.ipynb").cells[-1].outputs
    said = "This run was not recorded. To record it: papermill notebooks/tiny.ipynb -p scale smoke"
    assert outputs[-1].data["text/plain"] == f"{said} -p seeds 2"
    assert contents(finished) == before
    code, shown = run(project, *PAPERMILL, str(finished / "notebook.ipynb"), "-p", "seeds", "3")
    assert code == 0 and contents(finished) == before, "a run of another scale"
    assert "smoke-unfinished.ipynb" in shown
    code, shown = run(project, *PAPERMILL, str(finished / "notebook.ipynb"), *words[-6:])
    assert code == 0 and seeds_of(finished) == 2, "the same place, written differently"


@pytest.mark.commands
@pytest.mark.parametrize(
    ("notebook", "options", "target", "said"),
    [
        ("notebooks/tiny.ipynb", ("--engine", "nbclient"), "results/tiny/smoke", "omit --engine"),
        ("out.ipynb", (), "results/tiny/smoke", "recorded run of tiny"),
        ("notebooks/tiny.ipynb", (), "results/other/smoke", "recorded run of other"),
        ("notebooks/tiny.ipynb", ("--prepare-only",), "book/recorded/tiny/laptop", "of tiny"),
    ],
)
def test_no_call_overwrites_a_run_that_is_not_its_own(
    project: Path, notebook: str, options: tuple[str, ...], target: str, said: str
) -> None:
    shutil.copy(project / "notebooks" / "tiny.ipynb", project / "out.ipynb")
    written = project / target / "notebook.ipynb"
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text("a run")
    command = [sys.executable, "-m", "papermill", notebook, f"{target}/notebook.ipynb", *options]
    code, shown = run(project, *command, "-p", "scale", "smoke")
    try:
        assert code == 2 and said in shown and "Traceback" not in shown, shown
        assert written.read_text() == "a run"
    finally:
        shutil.rmtree(project / written.relative_to(project).parts[0])


@pytest.mark.commands
def test_a_notebook_without_a_record_is_no_run(project: Path, finished: Path) -> None:
    before = contents(finished)
    path = project / "notebooks" / "tiny.ipynb"
    original = path.read_text(encoding="utf-8")
    notebook = notebooks.read_notebook(path)
    notebook.cells[-1].source = "1 + 1"
    notebooks.write_notebook(notebook, path)
    try:
        for command in ([*PAPERMILL, "-p", "scale", "smoke"], [*STUDY, "--scale", "smoke"]):
            code, shown = run(project, *command)
            assert code == 1 and "the notebook wrote no record" in shown, shown
            assert "Traceback" not in shown and contents(finished) == before
    finally:
        path.write_text(original, encoding="utf-8")


@pytest.mark.commands
def test_a_study_is_run_again_if_its_parts_do_not_belong_together(
    project: Path, finished: Path
) -> None:
    study = (*STUDY, "--scale", "smoke")
    code, shown = run(project, *study)
    assert code == 0 and "is up to date" in shown, shown
    record = (finished / "record.json").read_text(encoding="utf-8")
    (finished / "record.json").write_text(record.replace('"seeds": 1', '"seeds": 2'))
    code, shown = run(project, *study)
    why = "will be replaced: notebook.ipynb and record.json are from different runs"
    assert code == 0 and why in shown, shown
    assert seeds_of(finished) == 1 and "is up to date" in run(project, *study)[1]
    code, shown = run(project, *study[:3], "record", "tiny", "--scale", "smoke")
    assert code == 1 and "measured by code whose commit is unknown" in shown, shown
    assert not (project / "book").exists()


@pytest.mark.commands
def test_two_runs_at_once_are_kept_apart(project: Path) -> None:
    both = [
        start(project, *PAPERMILL, "-p", "scale", "smoke", "-p", "seeds", str(seeds))
        for seeds in (2, 3)
    ]
    for process in both:
        shown, _ = process.communicate(timeout=120)
        assert process.returncode == 0, shown
    assert seeds_of(project / "results/tiny/smoke") in (2, 3)
    assert [path.name for path in (project / "results/tiny").iterdir()] == ["smoke"]


@pytest.mark.slow
@pytest.mark.commands
@pytest.mark.timeout(300)
def test_killed_at_random_moments_there_is_one_whole_run(project: Path, finished: Path) -> None:
    moments = random.Random(0)
    started = time.monotonic()
    assert run(project, *PAPERMILL, "-p", "scale", "smoke", "-p", "seeds", "2")[0] == 0
    whole = time.monotonic() - started
    for seeds in range(3, 11):
        process = start(project, *PAPERMILL, "-p", "scale", "smoke", "-p", "seeds", str(seeds))
        time.sleep(whole * moments.uniform(0.3, 1.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert seeds_of(finished) in range(2, seeds + 1)
    assert run(project, *PAPERMILL, "-p", "scale", "smoke")[0] == 0
    assert [path.name for path in finished.parent.iterdir()] == ["smoke"]


SWAPPING = """
import itertools, sys
from pathlib import Path
from pythia_book import records

if sys.argv[2] == "renames":
    records._exchange = lambda one, other: False
target = Path(sys.argv[1])
for number in itertools.count():
    with records.staging(target) as new:
        for name in "abc":
            (new / name).write_text(str(number))
        records.swap_in(new, target)
    if number == 0:
        print("begun", flush=True)
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, way: str) -> None:
    target, moments = tmp_path / "run", random.Random(1)
    for _ in range(6):
        command = [sys.executable, "-c", SWAPPING, str(target), way]
        swapping = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert swapping.stdout is not None
        swapping.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.1))
        swapping.kill()
        swapping.communicate()
        if way == "exchange" and sys.platform == "linux":
            assert target.is_dir(), "there is a run at every moment"
        records.tidy(target)
        found = {path.name: path.read_text() for path in target.iterdir()}
        assert set(found) == set("abc") and len(set(found.values())) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_many_swap_at_once(tmp_path: Path, way: str) -> None:
    command = [sys.executable, "-c", SWAPPING, str(tmp_path / "run"), way]
    swapping = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    for process in swapping:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    time.sleep(1)
    assert [process.poll() for process in swapping] == [None] * 3, "none has failed"
    for process in swapping:
        process.kill()
        process.communicate()
    records.tidy(tmp_path / "run")
    found = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert set(found) == set("abc") and len(set(found.values())) == 1


def test_what_others_are_making_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "run"
    host = socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = [f".run.run-{gone.pid}@elsewhere-abc", f".run.run-{os.getpid()}@{host}-abc"]
    for name in [*names, f".run.run-{gone.pid}@{host}-abc"]:
        (tmp_path / name / "new").mkdir(parents=True)
    records.tidy(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
