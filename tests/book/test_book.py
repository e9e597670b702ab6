"""The site: builds without a warning, requests nothing from other hosts, and shows no leftovers.

Built in copies of the checkout: as a fresh clone has it (no local run), and with a local run whose
record is full of hostile text.
"""

from __future__ import annotations

import html.parser
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from places import ROOT
from pythia_book import notebooks, records, verdicts
from pythia_book.study import Measurements, Result, StudyParams
from site_build import build, copy_of_the_checkout, strict_build

from pythia_core.errors import DataError
from pythia_core.util.files import file_sha256

HOSTILE = "<script>alert(1)</script> {{ x }} *b* `c` $d$ [e](http://x.invalid/) | &lt;"
STUDY = "speed"  # no finding of the front page rests on it, and its text has no recorded numbers


def make_run(
    root: Path,
    scale: str,
    text: str = "Words",
    values: dict[str, Any] | None = None,
    under: str = "results",
) -> Path:
    """A whole run of the study with one claim about two kinds of models, and one check."""
    given = {"value": 0.5, "low": 0.4, "high": 0.6, "unit": "points", "units": text, "bound": 0.0}
    given |= {"form": "above", "p": 0.01, "p_value": 0.01, "df": None, "note": text}
    ours = given | {"verdict": verdicts.REPRODUCED, "reason": None}
    released = given | {"verdict": verdicts.NOT_RESOLVED, "reason": f"Why: {text}"}
    texts = {"claim": text, "source": f"section 1, {text}", "quote": text}
    claims = [
        {"kind": "claim", **texts, "released": released, "ours": ours},
        {"kind": "check", **texts, "released": None, "ours": ours | {"verdict": verdicts.HOLDS}},
    ]
    folder = root / under / STUDY / scale
    result = Result(
        STUDY,
        StudyParams(scale),
        {"levels": pd.DataFrame({"a": [1]})},
        values or {},
        claims,
        Measurements({}, {}),
        {},
        time.time(),
    )
    path = records.save_record(result, folder)
    notebook = notebooks.read_notebook(root / "notebooks" / f"{STUDY}.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code[1:]:  # after the parameters
        kinds = ("text/plain", "text/html", "text/markdown", "application/javascript")
        words = dict.fromkeys(kinds if text == HOSTILE else kinds[:1], text)
        cell["outputs"] = [nbformat.v4.new_output("display_data", data=words)]
    tags = {"tags": ["injected-parameters"]}
    injected = nbformat.v4.new_code_cell(f"note = {text!r}", metadata=tags)
    notebook.cells.insert(notebook.cells.index(code[0]) + 1, injected)
    notebook.metadata["papermill"] = {"parameters": {"note": text}}
    stamp = notebooks.make_stamp(STUDY, {}, notebook) | {"record": file_sha256(path)}
    stamp["cells"] = notebooks.cells_hash(notebook)
    notebook.metadata[notebooks.STAMP] = stamp
    notebooks.write_notebook(notebook, folder / notebooks.NOTEBOOK)
    assert records.check_whole(folder) == []
    return folder


def change_prose(root: Path, text: str) -> None:
    """Add a sentence to the study's notebook."""
    path = root / "notebooks" / f"{STUDY}.ipynb"
    notebook = notebooks.read_notebook(path)
    cell = next(c for c in notebook.cells[1:] if c.cell_type == "markdown")
    cell.source += f"\n\n{text}\n"
    notebooks.write_notebook(notebook, path)


@pytest.fixture(scope="module")
def yours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site after a local run with hostile text in its record and outputs."""
    root = copy_of_the_checkout(tmp_path_factory.mktemp("yours"))
    share = {"value": 0.7, "low": 0.6, "high": 0.8}
    make_run(root, "smoke", HOSTILE, {"evil": HOSTILE, "share": share})
    make_run(root, "laptop", HOSTILE, {"share": share}, under="book/recorded")
    change_prose(root, f"A sentence of today. {{{{ {STUDY}_value_of_tomorrow }}}}")
    with open(root / "book" / "method.md", "a", encoding="utf-8") as page:
        page.write(f"\nThe share is {{{{ {STUDY}_share }}}} and {{{{ {STUDY}_evil }}}}.\n")
    return strict_build(root)


class Page(html.parser.HTMLParser):
    """What a browser would fetch for a page, its visible text, and its ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self._hidden = 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._hidden += tag in ("script", "style")
        if tag in ("script", "img", "iframe", "source", "embed", "video", "audio", "input"):
            self.fetched += [given.get("src") or ""]
        if tag == "object":
            self.fetched += [given.get("data") or ""]
        if tag == "link" and given.get("rel") not in ("canonical", "author", "license"):
            self.fetched += [given.get("href") or ""]
        self.fetched += re.findall(r"url\(([^)]*)\)", given.get("style") or "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


def pages(site: Path) -> dict[str, Page]:
    names = (str(p.relative_to(site)) for p in sorted(site.rglob("*.html")))
    return {name: Page(site / name) for name in names if not name.startswith("_")}


@pytest.mark.commands
@pytest.mark.parametrize("which", ["fresh", "yours"])
def test_no_page_asks_another_host(which: str, request: pytest.FixtureRequest) -> None:
    site = request.getfixturevalue(which)
    seen = pages(site)
    assert {"index.html", "method.html", f"studies/{STUDY}.html"} <= seen.keys()
    for name, page in seen.items():
        away = [u for u in page.fetched if re.match(r"\s*['\"]?([a-z]+:)?//", u, re.IGNORECASE)]
        assert not away, f"{name} fetches {away}"
    for sheet in site.rglob("*.css"):
        away = re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]+", sheet.read_text())
        assert not away, f"{sheet.name} fetches {away}"


@pytest.mark.commands
def test_links_to_code_lead_to_the_shipped_copy(fresh: Path) -> None:
    """Unless the reader names a repository: never to that of the program that builds the site."""
    linked = 0
    for path in fresh.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "executablebooks" not in text, path.name
        for target in re.findall(
            r'<a class="reference download internal"[^>]*href="([^"]*)"', text
        ):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"
            linked += target.endswith(".py")
    assert linked


@pytest.mark.commands
def test_local_files_that_pages_fetch_exist(fresh: Path) -> None:
    for name, page in pages(fresh).items():
        for url in page.fetched:
            local = url.split("?")[0].split("#")[0]
            if local and not local.startswith("data:"):
                assert ((fresh / name).parent / local).exists(), f"{name} lacks {local}"


@pytest.mark.commands
@pytest.mark.parametrize("which", ["fresh", "yours"])
def test_no_page_shows_tracebacks_or_raw_markup(which: str, request: pytest.FixtureRequest) -> None:
    site = request.getfixturevalue(which)
    root = site.parent.parent
    for name, page in pages(site).items():
        assert "Traceback (most recent call last)" not in page.text, name
        text = page.text.replace("{{ x }}", "")  # that one is ours
        assert not re.search(r"\{\{ \w+ \}\}|\{(ref|doc|cite|numref)\}", text), name
        whole = (site / name).read_text(encoding="utf-8")
        assert str(root) not in whole and not notebooks.machine_traces(page.text), name


@pytest.mark.commands
def test_a_fresh_clone_shows_the_recorded_run_or_the_command_to_run_it(fresh: Path) -> None:
    text = pages(fresh)[f"studies/{STUDY}.html"].text
    recorded = fresh.parents[1] / "book" / "recorded" / STUDY / "laptop"
    shown = "Recorded run." if recorded.is_dir() else "Not run yet."
    assert shown in text and f"papermill notebooks/{STUDY}.ipynb" in text
    assert "Your run." not in text


@pytest.mark.commands
def test_your_run_is_shown_and_its_text_stays_text(yours: Path) -> None:
    seen = pages(yours)
    study, index, method = (seen[f"{n}.html"] for n in (f"studies/{STUDY}", "index", "method"))
    assert "Your run. Scale smoke" in study.text and "A sentence of today." in study.text
    assert "A sentence of today. not in this run" in study.text
    assert "your run and ours" in index.text, "where the front page leads to it"
    assert "The share is 0.70 [0.60, 0.80] and" in method.text.replace("\N{NO-BREAK SPACE}", " ")
    for page in (study, index, method):
        text = page.text.replace("`", "")  # an inline code, as any text of a record may have
        assert "<script>alert(1)</script> {{ x }} *b* c $d$ [e](http://x.invalid/)" in text
    for path in yours.rglob("*.html"):
        assert "<script>alert" not in path.read_text(encoding="utf-8"), path
        assert 'href="http://x.invalid' not in path.read_text(encoding="utf-8"), path


@pytest.mark.commands
def test_a_claim_shows_one_verdict_for_each_kind_of_models(yours: Path) -> None:
    text = (yours / "index.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    measured = "0.50 points (95 % CI 0.40 to 0.60)"
    rows = re.findall(r'<div class="matrix-row">(.*?)</div>', text, re.DOTALL)
    row = next(row for row in rows if measured in row)
    badges = re.findall(r'<span class="verdict (verdict-[a-z-]+)">(.*?)</span>', row)
    assert badges == [
        ("verdict-not-resolved", "not resolved"),
        ("verdict-reproduced", "reproduced"),
    ]
    assert row.count(measured) == 2
    assert 'aria-label="Our miniature: 1 reproduced"' in text
    assert 'href="method.html#verdicts"' in text
    assert 'id="verdicts"' in (yours / "method.html").read_text(encoding="utf-8")


@pytest.mark.commands
def test_your_run_is_compared_with_the_recorded_one(yours: Path) -> None:
    text = pages(yours)[f"studies/{STUDY}.html"].text
    assert "Your run and ours" in text and "Your run: scale smoke" in text
    assert "Recorded run: scale laptop" in text


@pytest.mark.commands
def test_only_recorded_runs_on_request_and_a_quiet_second_build(yours: Path) -> None:
    root = yours.parent.parent
    staged = root / "book" / "studies" / f"{STUDY}.ipynb"
    before = staged.stat().st_mtime_ns
    done = build(root)
    assert done.returncode == 0 and staged.stat().st_mtime_ns == before
    assert "updating environment: 0 added, 0 changed, 0 removed" in re.sub(
        r"\x1b\[[0-9;]*m", "", done.stdout
    ), "nothing changed, yet pages were read again"
    text = (ROOT / "book" / "method.md").read_text(encoding="utf-8")
    (root / "book" / "method.md").write_text(text, encoding="utf-8")
    done = build(root, PYTHIA_BOOK_RUNS="recorded")
    assert done.returncode == 0, done.stderr
    text = pages(yours)[f"studies/{STUDY}.html"].text
    assert "Your run." not in text and "Recorded run." in text and "A sentence of today." in text


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    """On the page and at the terminal for a run of the reader's; a committed one fails."""
    root = copy_of_the_checkout(tmp_path)
    mine = make_run(root, "smoke")
    recorded = make_run(root, "laptop", under="book/recorded")
    (mine / notebooks.NOTEBOOK).write_text("<<<<<<< HEAD\n{}\n=======\n[]\n>>>>>>> other\n")
    change_prose(root, f"The share is {{{{ {STUDY}_no_such_number }}}}.")
    done = build(root, "-W", "--keep-going", "-n")
    said = f"Your run in results/{STUDY}/smoke cannot be shown: notebook.ipynb is not a notebook "
    said += "(unresolved merge conflict); the recorded run is shown."
    assert f"note: {said}" in done.stderr, done.stderr
    assert "no_such_number" in done.stdout + done.stderr and done.returncode != 0
    page = pages(root / "_build" / "html")[f"studies/{STUDY}.html"]
    assert said in page.text and "Recorded run." in page.text

    record = (recorded / "record.json").read_text(encoding="utf-8")
    (recorded / "record.json").write_text(record[:100], encoding="utf-8")
    done = build(root)
    assert done.returncode != 0
    shown = " ".join((done.stdout + done.stderr).split())
    assert f"recorded/{STUDY}/laptop cannot be shown: record.json is not a record" in shown


@pytest.mark.commands
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_a_killed_build_every_page_is_built_again(tmp_path: Path, fresh: Path) -> None:
    """Killed while it writes pages, when Sphinx has already saved what it has read."""
    root = tmp_path / "clone"
    shutil.copytree(fresh.parents[1], root)
    html = root / "_build" / "html"
    pages = {p: p.stat().st_mtime_ns for p in html.rglob("*.html") if "_static" not in p.parts}
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "book/"]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    building = subprocess.Popen(command, cwd=root, env=kept, stderr=subprocess.DEVNULL, **quiet)
    while building.poll() is None:
        if sum(page.stat().st_mtime_ns > before for page, before in pages.items()) >= 2:
            building.kill()
            building.wait()
        time.sleep(0.005)
    assert building.returncode == -signal.SIGKILL
    started = time.time_ns()
    site = strict_build(root)
    assert not [page for page in pages if page.stat().st_mtime_ns < started]
    assert all(page.read_text("utf-8").rstrip().endswith("</html>") for page in pages)
    assert not (site.parent / ".doctrees" / "unfinished-build").exists()


@pytest.mark.commands
def test_committed_runs_are_whole() -> None:
    for path in sorted((ROOT / "book" / "recorded").glob("*/*")):
        try:
            records.read_record(path)
        except DataError as error:
            pytest.skip(f"to be run again: {error}")
        assert records.check_whole(path) == [], path


@pytest.mark.commands
def test_a_missing_number_of_a_study_with_a_record_fails_the_strict_build(tmp_path: Path) -> None:
    root = copy_of_the_checkout(tmp_path)
    (root / "book" / "method.md").write_text("# Method\n\nIt is {{ no_such_number }}.\n")
    done = build(root, "-W", "--keep-going", "-n")
    assert done.returncode != 0 and "no_such_number" in done.stdout + done.stderr
