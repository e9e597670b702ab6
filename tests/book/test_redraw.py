"""Redrawing: what is measured stays, what follows from it is made anew, else no byte changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import pythia_book
from pythia_book import notebooks, records, redraw
from pythia_book.conduct import conduct
from pythia_book.study import Analysis, Measurements, StudyParams, Tables
from tiny_project import make_project, record_cell

from pythia_core.errors import DataError

BOOK = Path(pythia_book.__file__).resolve().parents[1]
WORK = """
with open("measured.txt", "a") as log:
    log.write(f"{scale}\\n")
"""
CLAIM = "[verdicts.Claim('It rises', 'section 1', ours=verdicts.rises(e, 'points', '5 rows', 0.5))]"
CLAIMS = f"[c for e in [stats.estimate(numbers[None], 500)] for c in {CLAIM}]"
FIGURE = """
figure, axes = style.panels(1, 2.0, "footer")
axes[0].plot([0, 1], [0, 1])
style.Drawing(figure, "A line.")
"""


def start(project: Path, *command: str) -> tuple[int, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    kept |= {"PYTHONPATH": os.pathsep.join((str(project), str(BOOK)))}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env=kept | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout


def redraw_all(project: Path, *words: str) -> tuple[int, str]:
    return start(project, "pythia_core", "redraw", *words)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with an own run and a recorded one."""
    parameters = 'scale: str = "laptop"  # how much\nseeds: int = 1  # how many'
    cell = record_cell("scale=scale, seeds=seeds", "{'seeds': seeds}", WORK, CLAIMS)
    root = make_project(tmp_path_factory.mktemp("project"), parameters, cell)
    (root / "README.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    for words in ((), ("-p", "scale", "smoke", "-p", "seeds", "2")):
        code, shown = start(root, "papermill", "notebooks/tiny.ipynb", *words)
        assert code == 0, shown
    recorded = root / "book" / "recorded" / "tiny" / "laptop"
    recorded.parent.mkdir(parents=True)
    (root / "results" / "tiny" / "laptop").rename(recorded)
    return root


@pytest.fixture
def project(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "project")
    return tmp_path / "project"


def everything(project: Path) -> dict[Path, tuple[bytes, int]]:
    files = [p for part in ("book", "results") for p in (project / part).rglob("*")]
    files = [path for path in [*files, project / "README.md"] if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def change_cell(project: Path, before: str, after: str) -> None:
    path = project / "notebooks" / "tiny.ipynb"
    notebook = notebooks.read_notebook(path)
    cell = notebook.cells[-1]
    assert before in cell.source
    cell.source = cell.source.replace(before, after)
    notebooks.write_notebook(notebook, path)


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_if_nothing_has_changed_no_byte_does(project: Path) -> None:
    before = everything(project)
    for _ in range(2):
        code, shown = redraw_all(project)
        assert code == 0, shown
        assert "recorded/tiny/laptop: nothing has changed\n" in shown
        assert "results/tiny/smoke: nothing has changed\n" in shown
        assert everything(project) == before
    assert (project / "measured.txt").read_text() == "laptop\nsmoke\n", "it never measures"
    code, shown = redraw_all(project, "--scale", "smoke")
    assert code == 0 and "laptop" not in shown


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_a_changed_verdict_is_named_and_the_run_replaced_as_a_whole(project: Path) -> None:
    folder = project / "book" / "recorded" / "tiny" / "laptop"
    origin = records.read_record(folder)
    measured = (folder / records.MEASURED).read_bytes()
    change_cell(project, "'5 rows', 0.5)", "'5 rows', 9)")
    change_cell(project, '{"n": numbers}', '{"n": 2 * numbers}')
    code, shown = redraw_all(project, "tiny")
    assert code == 0, shown
    lines = shown.splitlines()
    at = lines.index("recorded/tiny/laptop: redrawn")
    assert lines[at + 1 : at + 4] == [
        "  It rises [ours]: reproduced -> contradicted",
        "  1 table changed: numbers.csv",
        "  1 code cell changed",
    ]
    assert (project / "measured.txt").read_text() == "laptop\nsmoke\n"
    assert records.check_whole(folder) == []
    assert (folder / records.MEASURED).read_bytes() == measured
    record = records.read_record(folder)
    assert {k: record[k] for k in records._ORIGIN} == {k: origin[k] for k in records._ORIGIN}
    assert "redrawn" not in origin and set(record["redrawn"]) == {"created", "commit"}
    assert records.read_record(project / "results/tiny/smoke")["parameters"]["seeds"] == 2
    after = everything(project)
    code, shown = redraw_all(project)
    assert code == 0 and everything(project) == after, shown


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_what_cannot_be_redrawn_is_named_and_kept(project: Path) -> None:
    recorded = project / "book" / "recorded" / "tiny" / "laptop" / "record.json"
    record = json.loads(recorded.read_text())
    recorded.write_text(json.dumps(record | {"schema": 1}))
    own = project / "results" / "tiny" / "smoke"
    (own / records.MEASURED).write_bytes(b"damaged")
    before = everything(project)
    code, shown = redraw_all(project)
    assert code == 1 and "Traceback" not in shown, shown
    assert "recorded/tiny/laptop: record.json has schema 1, but" in shown
    assert "run the study again" in shown
    assert "measured.npz was changed or damaged" in shown
    assert everything(project) == before

    shutil.rmtree(recorded.parent)
    shutil.rmtree(own)
    code, shown = redraw_all(project)
    assert code == 1 and "there is no run to redraw" in shown
    code, shown = redraw_all(project, "tony", "--scale", "lab")
    assert code == 1 and "unknown study 'tony'" in shown and "unknown scale 'lab'" in shown


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_a_failing_cell_changes_nothing(project: Path) -> None:
    change_cell(project, "def analyze", "1 / 0\n\ndef analyze")
    before = everything(project)
    code, shown = redraw_all(project, "tiny", "--scale", "smoke")
    assert code == 1 and "a cell of tiny.ipynb failed with ZeroDivisionError" in shown, shown
    assert everything(project) == before


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_a_record_without_what_is_analysed_now_is_named_and_kept(project: Path) -> None:
    change_cell(project, 'measured.arrays["numbers"]', 'measured.facts["late"] + numbers')
    before = everything(project)
    code, shown = redraw_all(project, "tiny", "--scale", "smoke")
    assert code == 1 and "Traceback" not in shown, shown
    assert "the record of tiny at scale smoke has no 'late'" in shown, shown
    assert "run the study again" in shown
    assert everything(project) == before


def tiny(error: Exception) -> None:
    """Conduct a study whose analysis raises this error."""

    def analyze(measured: Measurements, released: Tables) -> Analysis:
        raise error

    conduct("tiny", StudyParams("smoke"), lambda: Measurements({}, {}), analyze)


def test_only_in_a_redraw_a_missing_key_is_the_fault_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(records.REDRAW_FROM, raising=False)
    with pytest.raises(KeyError, match="late"):  # the analysis and the measurements are of one age
        tiny(KeyError("late"))
    monkeypatch.setenv(records.REDRAW_FROM, str(tmp_path))
    monkeypatch.setattr(records, "read_measurements", lambda *_: Measurements({}, {}))
    message = r"the record of tiny at scale smoke has no 'late': an older .*; run the study again$"
    with pytest.raises(DataError, match=message) as caught:
        tiny(KeyError("late"))
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ZeroDivisionError):
        tiny(ZeroDivisionError())


def a_test(verdict: str, **changes: object) -> dict:
    return {"value": 1.0, "verdict": verdict} | changes


def a_claim(name: str, ours: dict | None = None, released: dict | None = None) -> dict:
    words = {"kind": "claim", "claim": name, "source": "section 1", "quote": None}
    return words | {"ours": ours, "released": released}


def test_changes_of_claims_in_words() -> None:
    before = [a_claim("a", a_test("holds")), a_claim("b", a_test("holds"), a_test("holds"))]
    assert redraw.verdict_changes(before, before) == []
    after = [
        a_claim("b", a_test("holds", value=2.0), a_test("does not hold")),
        a_claim("c", a_test("holds")),
    ]
    assert redraw.verdict_changes(before, after) == [
        "a [ours]: holds -> (no such claim)",
        "b [released]: holds -> does not hold",
        "c [ours]: (no such claim) -> holds",
        "1 test changed",
    ]
    cited = [before[0] | {"quote": "words"}, before[1]]
    assert redraw.verdict_changes(before, cited) == ["1 claim description changed"]
    assert redraw.verdict_changes(before, before[::-1]) == ["claims changed, but no verdict"]
