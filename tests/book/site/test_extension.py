"""The site is built from book/, whichever way and from wherever a build is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock, Timeout
from places import ROOT
from pythia_book.site import extension
from site_build import copy_of_the_checkout
from sphinx.errors import ExtensionError

BOOK = ROOT / "book"
OWN = sorted(path.name for path in (BOOK / "_static").glob("*.css"))


def located(source: Path, contents: str, place: Path, *sheets: str) -> SimpleNamespace:
    """What a build that was started in the folder `source` uses as its settings."""
    config = SimpleNamespace(
        html_static_path=["_static"] if sheets else [],
        html_css_files=list(sheets),
        html_js_files=[],
        external_toc_path=contents,
    )
    app = SimpleNamespace(srcdir=source, confdir=source, doctreedir=place, config=config)
    extension.locate_sources(app, config)
    assert app.srcdir == app.confdir
    return app


@pytest.mark.parametrize("source", [ROOT, BOOK])
def test_every_way_to_start_a_build_uses_the_same_sources(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jupyter Book lists the style sheets itself if it is started in book/, in any order."""
    sheets = ["theirs.css", *reversed(OWN)] if source == BOOK else []
    for folder, contents in ((source, "_toc.yml"), (tmp_path, str(source / "_toc.yml"))):
        monkeypatch.chdir(folder)
        app = located(source, contents, tmp_path, *sheets)
        assert app.srcdir == BOOK and app.config.html_static_path == ["_static"]
        assert [s for s in app.config.html_css_files if s != "theirs.css"] == OWN
        assert "figures.js" in app.config.html_js_files
        assert Path(app.config.external_toc_path).samefile(ROOT / "_toc.yml")


def test_another_table_of_contents_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.yml").touch()
    monkeypatch.chdir(tmp_path)
    for contents in ("other.yml", str(tmp_path / "other.yml")):
        app = located(BOOK, contents, tmp_path)
        assert app.config.external_toc_path == str(tmp_path / "other.yml")


def test_a_book_that_cannot_be_written_to_is_linked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "is_writable", lambda _: False)
    for _ in range(2):
        folder = located(BOOK, "_toc.yml", tmp_path).srcdir
        assert folder == tmp_path / "source" / "book" and not (folder / "studies").exists()
        (folder / "studies").mkdir()
        assert (folder / "index.md").read_text() == (BOOK / "index.md").read_text()
        assert (folder / ".." / "pythia_core" / "model.py").is_file()


def test_a_build_leaves_another_that_is_running_alone(tmp_path: Path) -> None:
    """Its mark, and the environment that it has saved."""
    app: Any = SimpleNamespace(doctreedir=tmp_path / "doctrees")
    mark, environment, lock = (
        app.doctreedir / name
        for name in (extension.UNFINISHED, "environment.pickle", extension.LOCK)
    )

    def is_locked() -> bool:
        try:
            with FileLock(lock, timeout=0):
                return False
        except Timeout:
            return True

    extension.mark_unfinished(app, app)
    assert mark.exists() and is_locked()
    extension.mark_finished(app, None)
    assert not mark.exists() and not is_locked()
    environment.touch()
    with FileLock(lock):
        mark.touch()
        with pytest.raises(
            ExtensionError, match=r"another build of this book is running.*doctrees"
        ):
            extension.mark_unfinished(app, app)
        assert mark.exists() and environment.exists()
    extension.mark_unfinished(app, app)
    assert not environment.exists(), "the other one did not finish"
    extension.mark_finished(app, ValueError())
    assert mark.exists() and not is_locked()


@pytest.mark.slow
@pytest.mark.commands
def test_sphinx_alone_builds_the_same_site(fresh: Path, tmp_path: Path) -> None:
    """`sphinx-build` needs no Jupyter Book, which is at the end of its first life."""
    (tmp_path / "a checkout").mkdir()
    root = copy_of_the_checkout(tmp_path / "a checkout")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    (tmp_path / "jupyter_book.py").write_text("raise ImportError('not here')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), kept.get("PYTHONPATH")]))
    sphinx = Path(sys.executable).with_name("sphinx-build")
    done = subprocess.run(
        [sphinx, "-W", "--keep-going", "-n", "-q", "book", "_build/html"],
        cwd=root,
        env=kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    html = root / "_build" / "html"
    names = {path.relative_to(fresh) for path in fresh.rglob("*.html")}
    assert names == {path.relative_to(html) for path in html.rglob("*.html")}
    different = [name for name in names if (fresh / name).read_text() != (html / name).read_text()]
    assert different == []
