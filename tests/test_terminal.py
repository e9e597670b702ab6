"""What a person sees of long work, and what Ctrl-C does, at real terminals and in real pipes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import pythia_book
from pythia_book import notebooks
from tiny_project import make_project, record_cell

import pythia_core

ROOT = Path(pythia_core.__file__).resolve().parents[1]
BOOK = Path(pythia_book.__file__).resolve().parents[1]
STUDY = [sys.executable, "-m", "pythia_core", "study", "tiny"]
PAPERMILL = [sys.executable, "-m", "papermill", "notebooks/tiny.ipynb"]
JOBS = """
import os, time
from pathlib import Path
from pythia_core.util import progress
from pythia_core.util.stopping import Stopped, stop_requests

def job(name):
    kept = Path(os.environ["KEPT"], name)
    begin = int(kept.read_text()) if kept.exists() else 0
    steps = int(os.environ["STEPS"])
    with stop_requests() as stop, progress.bar(
        total=steps, initial=min(begin, steps), unit="step", desc=name
    ) as bar:
        for step in range(begin, steps):
            time.sleep(0.05)
            bar.set_postfix_str("61.0k tokens/s, loss 1", refresh=False)
            bar.update()
            if stop():
                kept.write_text(str(step + 1))
                raise Stopped(f"stopped after saving step {step + 1}", stop())
    return name
"""
WORK = """
import slow_jobs
from tqdm.auto import tqdm  # as other libraries do; there are no ipywidgets
from pythia_core.util.workers import parallel_map
names = ["600k standard", "85k standard", "7k standard"]
print(parallel_map(slow_jobs.job, names, desc="training", unit="run", names=names))
"""
CELL = record_cell("scale=scale", work=WORK)


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    shown: str
    left: list[str]
    """Processes that it started and that outlive it."""


def run(
    command: list[str],
    cwd: Path,
    terminal: bool,
    signals: tuple[tuple[str, float, int], ...] = (),
    **environment: str,
) -> Ran:
    """Run a command as the leader of a group, at a terminal or with its output in a pipe.

    Args:
        signals: what to send to the whole group: (after this was shown, seconds, signal).
    """
    mark = uuid.uuid4().hex
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    if "PYTHIA_CACHE" in os.environ:
        kept["PYTHIA_CACHE"] = os.environ["PYTHIA_CACHE"]
    path = os.pathsep.join((str(cwd), str(ROOT), str(BOOK)))
    kept |= {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "MARK": mark}

    if terminal:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
    else:
        ours, theirs = os.pipe()
    process = subprocess.Popen(
        command,
        stdin=theirs if terminal else subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        cwd=cwd,
        env=kept | environment,
        start_new_session=True,
    )
    os.close(theirs)
    shown, until, waiting = b"", time.monotonic() + 120, list(signals)
    due = None
    try:
        while time.monotonic() < until:
            if waiting and due is None and waiting[0][0].encode() in shown:
                due = time.monotonic() + waiting[0][1]
            if due is not None and time.monotonic() > due:
                os.killpg(process.pid, waiting.pop(0)[2])
                due = None
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # a terminal whose other end is closed
                    break
                if not part:
                    break
                shown += part
            elif process.poll() is not None:
                break
        code = process.wait(timeout=max(0.1, until - time.monotonic()))
    finally:
        left = survivors(mark)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        os.close(ours)
    return Ran(code, shown.decode(errors="replace"), left)


def survivors(mark: str) -> list[str]:
    """Command lines of the living processes whose environment has the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            alive = "\nState:\tZ" not in (folder / "status").read_text()
            if alive and mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # gone, or somebody else's
            pass
    return found


def lines(shown: str) -> list[str]:
    """What was shown, each state of a line that is redrawn by itself."""
    plain = re.sub(r"\033\[[0-9;]*[A-Za-z]", "", shown)
    return [line.strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def assert_stopped(ran: Ran, number: int, line: str) -> None:
    """Exit code, one line, and nothing that a person did not ask for."""
    assert ran.code == 128 + number, ran.shown
    assert lines(ran.shown)[-1] == line, ran.shown
    assert ran.shown.count("stopped") == 1
    assert "Traceback" not in ran.shown and "Error" not in ran.shown, ran.shown
    assert not ran.left


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library with one notebook, `tiny`, whose three jobs take as long as they are told."""
    parameters = 'scale: str = "laptop"  # how much'
    root = make_project(tmp_path_factory.mktemp("project"), parameters, CELL)
    (root / "slow_jobs.py").write_text(JOBS)
    return root


@pytest.fixture
def project(source: Path, tmp_path: Path) -> Path:
    """A project with nothing done yet."""
    shutil.rmtree(source / "results", ignore_errors=True)
    shutil.rmtree(source / "kept", ignore_errors=True)
    (source / "kept").mkdir()
    return source


def settings(project: Path, steps: int) -> dict[str, str]:
    return {"KEPT": str(project / "kept"), "STEPS": str(steps), "PYTHIA_WORKERS": "2"}


KEPT = "stopped; what was trained and measured is kept: run {} again to continue"


@pytest.mark.parametrize(
    ("command", "number"), [(STUDY, signal.SIGINT), (PAPERMILL, signal.SIGTERM)]
)
def test_a_study_at_a_terminal(project: Path, command: list[str], number: int) -> None:
    given = settings(project, 20)
    ran = run(command, project, True, **given)
    assert ran.code == 0 and not ran.left, ran.shown
    assert "Executing:" not in ran.shown and "IProgress" not in ran.shown
    seen = lines(ran.shown)
    assert [line for line in seen if line.startswith("tiny: cell 1 of 3")]
    live = (
        r"training runs 1-2 of 3: \d+ %, [\d:?]+ left, 600k standard step \d+/20, 61.0k tokens/s; "
    )
    assert [line for line in seen if re.match(f"{live}85k standard step", line)], seen
    assert [line for line in seen if line.startswith("training run 3 of 3: ")], seen
    assert [line for line in seen if re.match(r"training 3 runs: done in 00:\d\d$", line)], seen
    path = project / "results/tiny/laptop/notebook.ipynb"
    outputs = notebooks.read_notebook(path).cells[-1].outputs
    assert [o.name for o in outputs if o.output_type == "stream"] == ["stdout"]

    before = path.read_bytes()
    again = [*command, "--force"] if command == STUDY else command
    stop = (("600k standard step", 1.0, number),)
    given = settings(project, 600) | {"PYTHIA_COMMAND": "make tiny"}
    ran = run(again, project, True, stop, **given)
    assert_stopped(ran, number, KEPT.format("`make tiny`"))
    assert path.read_bytes() == before, "an earlier result is as it was"
    assert {p.name for p in (project / "kept").iterdir()} == {"600k standard", "85k standard"}


@pytest.mark.parametrize(
    ("command", "number"), [(PAPERMILL, signal.SIGINT), (STUDY, signal.SIGTERM)]
)
def test_a_study_in_a_pipe(project: Path, command: list[str], number: int) -> None:
    stop = (("600k standard step", 0.5, number),)
    ran = run(command, project, False, stop, **settings(project, 600))
    assert_stopped(ran, number, KEPT.format("the same command"))
    assert not list(project.glob("results/**/*.ipynb*")), "there is no half a notebook"
    kept = {path.name: int(path.read_text()) for path in (project / "kept").iterdir()}
    assert set(kept) == {"600k standard", "85k standard"} and min(kept.values()) > 0

    ran = run(command, project, False, **settings(project, 10))
    assert ran.code == 0 and not ran.left, ran.shown
    assert "\r" not in ran.shown and "\033" not in ran.shown and "IProgress" not in ran.shown
    seen = lines(ran.shown)
    begin = seen.index("training 3 runs")
    assert re.fullmatch(r"training 3 runs: done in 00:\d\d", seen[begin + 1]), seen
    assert len(seen) <= 10 and "Executing:" not in ran.shown
    assert (project / "results/tiny/laptop/notebook.ipynb").is_file()


@pytest.mark.slow
def test_a_kernel_that_does_not_listen_is_ended_by_a_second_ctrl_c(project: Path) -> None:
    path = project / "notebooks" / "deaf.ipynb"
    notebook = notebooks.read_notebook(project / "notebooks" / "tiny.ipynb")
    notebook.cells[-1].source = textwrap.dedent("""
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("deaf", file=sys.stderr, flush=True)
        time.sleep(100)
    """)
    nbformat.write(notebook, path)
    twice = (("deaf\n", 0.2, signal.SIGINT), ("deaf\n", 2.0, signal.SIGINT))
    ran = run([*STUDY[:-1], "deaf"], project, False, twice, **settings(project, 1))
    path.unlink()
    assert ran.code == 130 and "Traceback" not in ran.shown and not ran.left, ran.shown
    assert lines(ran.shown)[-1] == KEPT.format("the same command")


def test_ctrl_c_before_anything_has_begun(project: Path) -> None:
    stop = (("Running tiny", 0.0, signal.SIGINT),)
    ran = run(STUDY, project, False, stop, **settings(project, 600))
    assert_stopped(ran, signal.SIGINT, KEPT.format("the same command"))


@pytest.mark.wheels
@pytest.mark.parametrize("terminal", [True, False])
def test_one_training_is_stopped_and_goes_on(tmp_path: Path, terminal: bool) -> None:
    command = [sys.executable, "-m", "pythia_core", "train", "7k", "--scale", "smoke"]
    command += ["--steps", "150"]
    given = {"PYTHIA_RESULTS": str(tmp_path / "results")}
    twice = (("training 6,592", 0.6, signal.SIGINT), ("training 6,592", 0.0, signal.SIGINT))
    ran = run(command, tmp_path, terminal, twice, **given)
    last = lines(ran.shown)[-1]
    step = re.match(r"stopped after saving step (\d+); training so far is saved", last)
    assert step, ran.shown
    assert_stopped(ran, signal.SIGINT, last)
    ran = run(command, tmp_path, terminal, **given)
    assert ran.code == 0, ran.shown
    assert not list(tmp_path.rglob("*.tmp-*"))


@pytest.mark.wheels
def test_a_benchmark_says_that_it_starts_over(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pythia_core", "bench", "generate", "--rounds", "100000"]
    given = {"PYTHIA_RESULTS": str(tmp_path / "results")}
    ran = run(command, tmp_path, False, (("", 4.0, signal.SIGTERM),), **given)
    assert_stopped(ran, signal.SIGTERM, "stopped: run the same command again to start over")


def test_a_notebook_that_a_person_opened_redraws_one_line() -> None:
    from jupyter_client.manager import start_new_kernel

    path = os.pathsep.join((str(ROOT), str(BOOK), os.environ.get("PYTHONPATH", "")))
    kept = {k: v for k, v in os.environ.items() if k != "PYTHIA_TERMINAL"}
    manager, client = start_new_kernel(env=kept | {"PYTHONPATH": path})
    said: list[tuple[str, str]] = []

    def hear(message: dict) -> None:
        if message["msg_type"] == "stream":
            said.append((message["content"]["name"], message["content"]["text"]))
        assert message["msg_type"] not in ("display_data", "error"), message

    code = """
    import time
    from pythia_core.util import progress
    from pythia_core.util.workers import parallel_map
    from tqdm.auto import tqdm

    def job(number):
        with progress.bar(total=200, unit="step") as bar:
            for _ in range(200):
                time.sleep(0.005)
                bar.update()
        return number

    names = ["600k standard", "85k standard"]
    print(parallel_map(job, [1, 2], desc="training", unit="run", names=names, in_process=True))
    """
    try:
        client.execute_interactive(textwrap.dedent(code), output_hook=hear, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert [text for name, text in said if name == "stdout"] == ["[1, 2]\n"]
    drawn = [text for name, text in said if name == "stderr"]
    assert all(text.startswith("\r") or text == "\n" for text in drawn), drawn
    assert "".join(drawn).count("\n") == 1 and len(drawn) < 30
    assert any("training run 2 of 2: " in text and "85k standard step" in text for text in drawn)
    assert "IProgress" not in "".join(drawn)
