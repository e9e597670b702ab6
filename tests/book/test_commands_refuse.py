"""Commands reject arguments that cannot work at once, before any work."""

from __future__ import annotations

import importlib.util
import pkgutil
from pathlib import Path

import pytest
import pythia_book
from pythia_book.commands import utf8_text

from pythia_core.__main__ import main
from pythia_core.util import files

WORK = (
    "pythia_core.data.prepare.prepare",
    "pythia_core.training.runs.find_run",
    "pythia_book.released.resolve.find_model",
    "pythia_book.released.continuation.start.find_source",
    "pythia_book.bundle.prepare_tokens",
    "pythia_book.bench.kernels.peak_rates",
)
"""The functions with which the commands below start to work."""


@pytest.fixture(scope="module", autouse=True)
def import_everything() -> None:
    """A module first imported during `no_work` would keep its replaced functions in other tests."""
    for module in pkgutil.walk_packages(pythia_book.__path__, "pythia_book."):
        if ".studies." not in module.name and "papermill" not in module.name:
            importlib.import_module(module.name)


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    for name in WORK:
        monkeypatch.setattr(name, fail)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("bench train --sizes 9k", "unknown size '9k'"),
        ("bench train --rounds 0", "rounds must be at least 1, got 0"),
        (
            "bench train --json folder.csv",
            "--json must name a file, but folder.csv is a folder",
        ),
        ("bench terms --json folder.csv", "--json must name a file"),
        ("terms RUN word --parquet folder.csv", "--parquet must name a file"),
        ("evaluate RUN --out folder.csv", "--out must name a file"),
        ("terms RUN word --parquet file/x.parquet", "choose another file for --parquet"),
        ("evaluate RUN --out file/x.csv", "choose another file for --out"),
        ("bench generate --json file/x", "choose another file for --json"),
        ("bundle file/x.tar", "choose another file for OUT"),
        ("convert RUN file/x", "choose another DST"),
        ("gpu-check --out file", "name another folder with --out"),
        ("continue RUN --step 1 --steps 1 --measure", "pass --swap too"),
        ("terms RUN word --parquet x.csv", "--parquet: the file name must end in .parquet"),
        ("evaluate RUN --out x.xls", "--out: the file name must end in .csv or .parquet"),
        ("record ../../etc --scale smoke", "unknown study '../../etc'"),
        ("record suite --scale ../..", "unknown scale '../..'"),
        ("bundle x.tar --scale paper", "do not fit in a bundle"),
        ("bundle x.zip", "must end with .tar or .tar.xz"),
        ("bundle --wheels 312 x.tar", "a version of Python like 3.12, got '312'"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    words: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(words.split()) == 1
    assert message in capsys.readouterr().err


def test_training_needs_a_place_for_its_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("PYTHIA_RESULTS", "file")
    assert main(["train", "7k", "--precision", "fp32"]) == 1
    assert "set PYTHIA_RESULTS to a folder that you may write to" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "RUN", "--prompt", "\udcff"],
        ["generate", "RUN", "--prompt", "x", "--until", "\udcff"],
        ["find", "RUN", "\udcff"],
        ["terms", "RUN", "word", "\udcff"],
        ["terms", "RUN", "word", "--parquet", "\udcff"],
        ["study", "scaling", "-p", "tasks=\udcff"],
    ],
)
def test_bytes_that_are_no_text_are_refused(
    words: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(words) == 1
    assert r"\udcff' is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["convert", "~nobody.here/x", "y"], ["bundle", "~nobody.here/x"]]
)
def test_a_home_folder_that_is_not_there_is_an_error_with_a_message(
    words: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert main(words) == 1
    assert "begins with ~ and a name that no user has" in capsys.readouterr().err


def test_text_is_utf8_in_every_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsencode", lambda word: word.encode("ascii", "surrogateescape"))
    assert utf8_text("Garc\udcc3\udcada") == "García"


@pytest.mark.parametrize("word", ["-1", "1.5", "", "1e3", "²", "9" * 400, "x"])
def test_counts_are_whole_numbers(word: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["inspect", "RUN", f"--step={word}"])
    assert "expected a whole number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "-5", "0", "inf", "1e999", "", "x"])
@pytest.mark.parametrize(
    "words", ["bundle x.tar --max-size", "train 7k --lr", "bench train --seconds"]
)
def test_sizes_and_rates_are_positive_numbers(
    words: str, value: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(f"{words}={value}".split(" "))
    assert f"expected a positive number such as 0.5, got {value!r}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["evaluate RUN --tasks ,", "budget --studies ,", "bundle x.tar --studies ,,"]
)
def test_a_list_without_names_is_not_the_list_of_all(
    words: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert "a comma-separated list of names, got '" in capsys.readouterr().err


def test_generating_cannot_stop_before_nothing(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "RUN", "--prompt", "x", "--until", ""])
    assert "expected text, got ''" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["study gender_bias", "study gender_bias suite", "redraw gender_bias"]
)
def test_an_empty_scale_is_not_the_default(words: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*words.split(), "--scale", ""]) == 1
    assert "unknown scale ''" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["bench train", "bench learning-rates"])
def test_a_table_is_not_replaced_by_a_part(words: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*words.split(), "--write", "--sizes", "7k"]) == 1
    assert "omit --sizes or --write" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["bench train --device cpu", "bench learning-rates"])
def test_writing_a_table_needs_a_checkout(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(files, "checkout", lambda: None)
    assert main([*words.split(), "--write"]) == 1
    assert "--write needs a checkout of the project" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["terms RUN word --parquet x.parquet", "evaluate RUN --out x.parquet"]
)
def test_parquet_needs_pyarrow(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pyarrow" else find(n))
    assert main(words.split()) == 1
    assert "pip install pyarrow" in capsys.readouterr().err
