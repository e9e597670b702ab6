"""Records, notebooks as data, cleaning, and which run the book shows."""

from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import shutil
import socket
import subprocess
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from killed import killed_everywhere
from pythia_book import notebooks, papermill_engine, recording, records, redraw
from pythia_book.site import runs as site_runs
from pythia_book.stats import Estimate
from pythia_book.study import Measurements, Origin, Result
from pythia_book.verdicts import Claim, judge, rises

from pythia_core.config import InterventionConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.suite import scale_named
from pythia_core.util.files import file_sha256

TEST = judge([Claim("x", "y", rises(Estimate(0.4, 0.3, 0.5, 10, 1), "points", "10 seeds"))])[0][
    "ours"
]
CLAIM = {
    "kind": "claim",
    "claim": "The swap moves pronouns",
    "source": "section 4",
    "quote": None,
    "released": None,
    "ours": TEST,
}
PARAMETERS = (
    'scale: str = "laptop"  # how much\nseeds: int = 1\nrate: float | None = None\n'
    'sizes: tuple[str, ...] = ("7k",)  # rungs\nquick: bool = False'
)


def make_notebook() -> notebooks.Notebook:
    v = nbformat.v4
    cells = [
        v.new_markdown_cell("# Tiny\n\nA study.", id="title"),
        v.new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        v.new_code_cell("1 + 1", id="sum"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return v.new_notebook(cells=cells, metadata=metadata)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with one notebook, `tiny`; library code thinks it lives there."""
    (tmp_path / "notebooks").mkdir()
    nbformat.write(make_notebook(), tmp_path / "notebooks" / "tiny.ipynb")
    for module in (records, recording, notebooks):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    monkeypatch.setenv("PYTHIA_RESULTS", str(tmp_path / "results"))
    return tmp_path


def a_run(tmp_path: Path, swap: bool = False) -> SimpleNamespace:
    config = scale_named("smoke").run("7k")
    window = InterventionConfig("masculine_to_feminine", 8, 16) if swap else None
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"0" * 3_000_000)
    return SimpleNamespace(
        id="0123456789ab",
        folder=folder,
        config=SimpleNamespace(
            model=config.model, train=config.train, data=config.data, intervention=window
        ),
        data=SimpleNamespace(fingerprint="f" * 64),
        final_sha256="e" * 64,
        seconds=12.5,
    )


@dataclass
class Params:
    scale: str
    seeds: int


def write(project: Path, scale: str = "laptop", seeds: int = 2, **changes) -> Path:
    given = {
        "study": "tiny",
        "params": Params(scale, seeds),
        "tables": {"levels": pd.DataFrame({"size": ["7k"], "value": [1 / 3]})},
        "values": {"share": {"value": 0.7012, "low": 0.69, "high": 0.712}, "n": 1584},
        "claims": [CLAIM],
        "measured": Measurements(
            {"loss/7k": np.arange(4, dtype=np.float32)},
            {"n": 4},
            [a_run(project), a_run(project, swap=True)],
        ),
        "released": {"crows": pd.DataFrame({"model": ["70m"], "value": [0.5]})},
        "started": time.time() - 75,
    }
    folder = project / "results" / "tiny" / scale
    shutil.rmtree(folder, ignore_errors=True)  # a record is always written to an empty folder
    return records.save_record(Result(**{**given, **changes}), folder)


def finish(project: Path, scale: str = "laptop", output: str = "2") -> Path:
    """An executed notebook next to the record, as papermill with our engine writes it."""
    notebook = make_notebook()
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    stamp = notebooks.make_stamp("tiny", {"scale": scale}, notebook)
    folder = project / "results" / "tiny" / scale
    stamp["record"] = file_sha256(folder / "record.json")
    stamp["cells"] = notebooks.cells_hash(notebook)
    notebook.metadata[notebooks.STAMP] = stamp
    notebooks.write_notebook(notebook, folder / "notebook.ipynb")
    return folder / "notebook.ipynb"


# --- records ---------------------------------------------------------------------------------


def test_a_record_states_its_origin(project: Path) -> None:
    path = write(project)
    record = records.read_record(path.parent)
    assert path == project / "results" / "tiny" / "laptop" / "record.json"
    assert record["data"] == ["f" * 64] and record["training_s"] == 25.0
    assert 75 <= record["duration_s"] < 90 and record["peak_memory_mb"] > 10
    assert [r["role"] for r in record["runs"]] == ["control", "masculine_to_feminine-8-16"]
    assert {r["size"] for r in record["runs"]} == {"7k"} and record["disk_mb"] == 6
    assert record["versions"]["python"].startswith("3.") and record["device"]["cpu"]
    assert record["notebook_sha256"] == notebooks.source_hash(make_notebook())
    assert record["commit"] == {"id": None, "dirty": None}  # a temporary folder is no checkout
    table = pd.read_csv(path.parent / "levels.csv")
    assert table.value[0] == pytest.approx(1 / 3) and record["files"]["levels.csv"]["rows"] == 1
    assert set(record["files"]) == {"levels.csv", "released_crows.csv", records.MEASURED}
    assert record["released_source"] == records.RELEASED_SOURCE
    text = path.read_text(encoding="utf-8")
    assert str(project) not in text
    assert len(socket.gethostname()) < 6 or socket.gethostname() not in text


def test_the_config_hash_follows_the_parameters_only(project: Path) -> None:
    def hashed(**changes) -> str:
        return records.read_record(write(project, **changes))["config_hash"]

    first = hashed()
    assert hashed(started=time.time(), values={"n": 3}) == first
    assert hashed(seeds=3) != first


def test_what_was_measured_and_released_is_read_back(project: Path) -> None:
    folder = write(project).parent
    measured = records.read_measurements(folder, "tiny", {"scale": "laptop", "seeds": 2, "new": 1})
    assert measured.arrays["loss/7k"].tolist() == [0, 1, 2, 3]
    assert measured.arrays["loss/7k"].dtype == np.float32 and measured.facts == {"n": 4}
    assert records.read_released(folder)["crows"].value.tolist() == [0.5]
    assert records.read_released(None) == {}
    with pytest.raises(DataError, match="is from the study tiny"):
        records.read_measurements(folder, "tiny", {"scale": "laptop", "seeds": 3})
    (folder / records.MEASURED).write_bytes(b"PK")
    with pytest.raises(DataError, match=r"is not the sha256 in record\.json"):
        records.read_measurements(folder, "tiny", {"scale": "laptop", "seeds": 2})
    (folder / "released_crows.csv").write_text("model,value\n")
    with pytest.raises(DataError, match=r"is not the sha256 in record\.json"):
        records.read_released(folder)


def test_a_redraw_keeps_the_origin(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = project / "results" / "tiny" / "laptop"
    write(project)
    shutil.copytree(source, project / "copy")
    monkeypatch.setenv(records.REDRAW_FROM, str(project / "copy"))
    write(project, values={"n": 3})
    before, after = (records.read_record(folder) for folder in (project / "copy", source))
    assert {key: before[key] for key in records._ORIGIN} == {
        key: after[key] for key in records._ORIGIN
    }
    assert set(after["redrawn"]) == {"created", "commit"} and after["values"] == {"n": 3}
    assert records.provenance(before) == records.provenance(after)
    same = [(folder / records.MEASURED).read_bytes() for folder in (project / "copy", source)]
    assert same[0] == same[1]


def test_further_files_are_hashed_read_back_and_kept_by_a_redraw(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256))
    folder = write(project, measured=Measurements({}, {}, files={"extra.bin": content})).parent
    finish(project)
    entry = {"bytes": 256, "sha256": file_sha256(folder / "extra.bin")}
    assert records.read_record(folder)["files"]["extra.bin"] == entry
    measured = records.read_measurements(folder, "tiny", {"scale": "laptop", "seeds": 2})
    assert measured.files == {"extra.bin": content} and records.check_whole(folder) == []
    shutil.copytree(folder, project / "copy")
    monkeypatch.setenv(records.REDRAW_FROM, str(project / "copy"))
    write(project, measured=measured)
    assert (folder / "extra.bin").read_bytes() == content
    assert records.read_record(folder)["files"]["extra.bin"] == entry
    (folder / "extra.bin").write_bytes(b"")
    assert any("extra.bin was changed or damaged" in p for p in records.check_whole(folder))
    with pytest.raises(DataError, match=r"extra\.bin was changed or damaged"):
        records.read_measurements(folder, "tiny", {"scale": "laptop", "seeds": 2})


def test_first_and_later_analyses_read_the_same(project: Path) -> None:
    facts = {"counts": (1, 2), "by": {3: np.float64(0.1)}, "gap": float("nan")}
    assert records.facts_as_recorded(facts) == {"counts": [1, 2], "by": {"3": 0.1}, "gap": None}
    record = records.read_record(write(project, values={"third": 1 / 3, "n": 7, "sure": True}))
    assert record["values"] == {"third": 0.333333333333, "n": 7, "sure": True}


def test_a_study_states_what_the_origin_cannot_know_and_facts_change_nothing_of_it(
    project: Path,
) -> None:
    origin = Origin(["d" * 64], 3.5, {"threads": 7})
    facts = {"data": "of the study", "training_s": "long", "device": 1}
    record = records.read_record(write(project, measured=Measurements({}, facts, origin=origin)))
    assert record["data"] == ["d" * 64] and record["training_s"] == 3.5
    assert record["device"]["threads"] == 7 and record["device"]["cpu"]
    assert record["facts"] == facts


def test_not_a_number_becomes_null(project: Path) -> None:
    path = write(project, values={"a": float("nan"), "b": {"value": float("inf")}})
    values = json.loads(path.read_text(), parse_constant=pytest.fail)["values"]
    assert values == {"a": None, "b": {"value": None}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "labtop"}, "Did you mean 'laptop'"),
        ({"claims": [CLAIM | {"ours": TEST | {"verdict": "proven"}}]}, "unknown verdict 'proven'"),
        ({"claims": [CLAIM | {"kind": "guess"}]}, "unknown kind 'guess'; accepted: claim"),
        ({"claims": [{"claim": "x"}]}, "claim 'x' must be a dict with the keys kind, claim"),
        ({"tables": {"../x": pd.DataFrame()}}, "the name '../x' of a table"),
        ({"values": {"a b": 1}}, "the name 'a b' of a value"),
        ({"values": {"a": object()}}, "a record cannot store .* of type object"),
        (
            {"tables": {"released_crows": pd.DataFrame()}},
            r"two of its files would have the name released_crows\.csv",
        ),
        (
            {"measured": Measurements({}, {}, files={"levels.csv": b"", "record.json": b""})},
            r"(?s)2 problems.*the name levels\.csv.*the name record\.json",
        ),
        (
            {"measured": Measurements({}, {}, files={"../x": b""})},
            "'../x' of a file must not contain",
        ),
    ],
)
def test_invalid_records_are_refused(project: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write(project, **changes)
    assert not list((project / "results").rglob("record.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a record"),
        ("[]", "instead of a JSON object"),
        ("{}", "has schema None, but"),
        ('{"schema": 2}', "missing keys: study, scale"),
        ("<<<<<<< HEAD\n{}\n=======\n[]\n>>>>>>> other\n", "unresolved merge conflict"),
    ],
)
def test_a_broken_record_is_named(project: Path, content: str, message: str) -> None:
    path = write(project)
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        records.read_record(path.parent)
    path.unlink()
    with pytest.raises(DataError, match="no record at"):
        records.read_record(path.parent)


@pytest.mark.parametrize("files", [{}, {"../x": {"sha256": ""}}, {"x.csv": {}}, {"x.csv": 1}])
def test_a_damaged_list_of_files_is_named(project: Path, files: object) -> None:
    path = write(project)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": files}))
    with pytest.raises(DataError, match="the entry `files` must list"):
        records.read_record(path)


WRONG_TYPES = {
    "commit": ["x", {"id": 1}],
    "device": ["y", {"cpu": ["z"]}, {"threads": "2"}],
    "duration_s": ["12", float("nan"), 10**400],
    "training_s": [{}],
    "peak_memory_mb": ["big"],
    "disk_mb": [[1]],
    "created": [5, None],
    "data": [5, "x", [5]],
    "runs": [5, [5], [{"precision": 5}], [{"precision": []}]],
    "config_hash": [None, 5],
    "scale": [["a"]],
    "study": [{}],
    "versions": [3],
    "files": [[]],
    "redrawn": ["x", {"created": 5}, {"created": "x", "commit": 5}],
    "claims": [
        {},
        ["x"],
        [CLAIM | {"kind": ["claim"]}],
        [CLAIM | {"claim": 5}],
        [CLAIM | {"ours": 5}],
        [CLAIM | {"ours": TEST | {"verdict": ["x"]}}],
        [CLAIM | {"ours": TEST | {"low": "0"}}],
    ],
}


@pytest.mark.parametrize("key", WRONG_TYPES)
def test_a_wrong_type_anywhere_in_a_record_is_named(project: Path, key: str) -> None:
    path = write(project)
    record = json.loads(path.read_text())
    for value in WRONG_TYPES[key]:
        path.write_text(json.dumps(record | {key: value}))
        with pytest.raises(DataError, match=f"(?:wrong type|missing).* keys: {key}"):
            records.read_record(path)
    path.write_text(
        json.dumps({k: v for k, v in record.items() if k in records._REQUIRED} | {"schema": 2})
    )
    assert records.provenance(records.read_record(path)), "the other entries may be absent"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}"])
def test_json_that_python_does_not_read_is_named(project: Path, text: str) -> None:
    path = write(project)
    path.write_text(text)
    with pytest.raises(DataError, match="is not a record"):
        records.read_record(path)


def npy(shape: str) -> bytes:
    """The header of an array in a file, and one byte."""
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(11 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"x"


def npz(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"PK\x03\x04" + b"x" * 100, npy("(1,)"), npz(npy(f"({10**14},)")), npz(npy("(-1,)")),
        npz(npy("(" * 3000)), npz(npy("(3,)")), npz(b""),
    ],
)  # fmt: skip
def test_measurements_that_no_program_wrote_are_named(
    committed: None, project: Path, content: bytes
) -> None:
    """Their hash is right, and so is that of the record."""
    path = write(project)
    (path.parent / records.MEASURED).write_bytes(content)
    record = json.loads(path.read_text())
    record["files"][records.MEASURED]["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(record))
    finish(project)
    with pytest.raises(DataError, match=r"measured\.npz cannot be read: .+; run the study again"):
        records.read_measurements(path.parent, "tiny", {"scale": "laptop", "seeds": 2})
    with pytest.raises(DataError, match=r"measured\.npz cannot be read: .+; run the study again"):
        recording.record_run("tiny", "laptop")


def test_a_record_of_another_schema_is_refused(project: Path) -> None:
    path = write(project)
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 99'))
    with pytest.raises(
        DataError, match="schema 99, but this version of pythia_book reads only schema 2; run"
    ):
        records.read_record(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1584, "1,584"),
        (0.70123, "0.701"),
        (-0.0123, "\N{MINUS SIGN}0.0123"),
        (12345.6, "12,346"),
        (None, "n/a"),
        ("7k, 25k", "7k, 25k"),
        (0.0, "0.0"),
        (0.05, "0.05"),
        (0.0099999, "0.0100"),
        (5.0, "5"),
        ({"value": 0.7012, "low": 0.69, "high": 0.712}, "0.701 [0.690,\N{NO-BREAK SPACE}0.712]"),
        (
            {"value": -0.001, "low": -0.8, "high": 3.1},
            "0.0 [\N{MINUS SIGN}0.8,\N{NO-BREAK SPACE}3.1]",
        ),
        ({"value": 6.28, "low": 0.238, "high": 12.3}, "6.3 [0.2,\N{NO-BREAK SPACE}12.3]"),
        ({"value": 6.28, "low": 0.003, "high": 12.3}, "6 [0,\N{NO-BREAK SPACE}12]"),
        ({"value": 0.5, "low": None, "high": None}, "0.5 [n/a,\N{NO-BREAK SPACE}n/a]"),
    ],
)
def test_numbers_as_text(value: object, text: str) -> None:
    assert records.value_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (252, "4 min 12 s"), (7500, "2 h 5 min")]
)
def test_durations_as_text(seconds: float, text: str) -> None:
    assert records.duration_text(seconds) == text


def test_the_provenance_line_ends_in_the_command(project: Path) -> None:
    record = records.read_record(write(project, scale="smoke"))
    line = records.provenance(record)
    assert line.endswith("papermill notebooks/tiny.ipynb -p scale smoke -p seeds 2")
    assert record["config_hash"][:10] in line and "f" * 10 in line and "1 min 1" in line
    record["parameters"] = {"sizes": ["7k", "25k"], "seeds": 1}
    record["scale"] = "laptop"
    assert records.command(record) == (
        """papermill notebooks/tiny.ipynb -y '{"sizes": ["7k", "25k"]}'"""
    )


# --- notebooks -------------------------------------------------------------------------------


def test_parameters_are_read_from_their_cell() -> None:
    found = notebooks.parameters_of(make_notebook())
    assert str(found["scale"]) == "scale: str = 'laptop'  (how much)"
    assert found["sizes"].default == ("7k",) and found["rate"].type == "float | None"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scale": "smoke", "seeds": 3},
        {"rate": 1},
        {"rate": None},
        {"sizes": ["7k", "25k"]},
        {"quick": True},
    ],
)
def test_good_parameters_are_merged_with_the_defaults(project: Path, given: dict) -> None:
    values = notebooks.validate_parameters(make_notebook(), given)
    assert values == {
        **{"scale": "laptop", "seeds": 1, "rate": None, "sizes": ("7k",), "quick": False},
        **given,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scael": "smoke"}, "unknown parameter 'scael'.*Did you mean 'scale'"),
        ({"scale": "huge"}, "unknown scale 'huge'; accepted: smoke, laptop"),
        (
            {"scale": 3},
            "'scale' must be of type str, got 3; put quotes around text",
        ),
        ({"seeds": "x"}, "'seeds' must be of type int, got 'x'"),
        ({"seeds": True}, "'seeds' must be of type int, got True"),
        ({"rate": "fast"}, r"'rate' must be of type float \| None"),
        ({"sizes": [1]}, "'sizes' must be of type tuple"),
        ({"quick": 1}, "'quick' must be of type bool"),
    ],
)
def test_bad_parameters_are_refused_with_the_accepted_ones(
    project: Path, given: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        notebooks.validate_parameters(make_notebook(), given)
    assert "seeds: int = 1" in str(caught.value)


def test_all_bad_parameters_are_named_at_once(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*'a'.*'seeds'"):
        notebooks.validate_parameters(make_notebook(), {"a": 1, "seeds": "x"})


def test_an_unknown_study_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="unknown study 'tony'; accepted: tiny"):
        papermill_engine.run_study("tony")


def test_words_of_a_command_line_become_parameters() -> None:
    parsed = notebooks.parse_parameters(["a=1", "b=x=y", "c=0.5", "d=None", "e="], {})
    assert parsed == {"a": 1, "b": "x=y", "c": 0.5, "d": None, "e": ""}
    with pytest.raises(ConfigError, match="NAME=VALUE, got 'a'"):
        notebooks.parse_parameters(["a"], {})


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "-C", str(folder), *words], check=True, capture_output=True)


def test_the_commit_of_a_checkout_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container. Git itself calls such a checkout dubious and fails."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "a").touch()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    monkeypatch.setattr(records, "project_root", lambda: tmp_path)
    monkeypatch.setattr(records, "checkout", lambda: tmp_path)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a git hook
    found = records.commit()
    assert re.fullmatch(r"[0-9a-f]{40}", found["id"]) and found["dirty"] is False
    (tmp_path / "notebooks" / "a").write_text("changed")
    assert records.commit() == found | {"dirty": True}


def test_the_source_hash_ignores_prose_and_injected_parameters() -> None:
    notebook = make_notebook()
    first = notebooks.source_hash(notebook)
    notebook.cells[0].source = "# Other words"
    injected = nbformat.v4.new_code_cell("scale = 'x'", metadata={"tags": ["injected-parameters"]})
    notebook.cells.insert(2, injected)
    assert notebooks.source_hash(notebook) == first
    notebook.cells[-1].source = "1 + 2"
    assert notebooks.source_hash(notebook) != first


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"cells": 3, "nbformat": 4}'])
def test_an_error_names_a_file_that_is_not_a_notebook(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(content)
    with pytest.raises(DataError, match=r"x\.ipynb is not a notebook"):
        notebooks.parameters_of(notebooks.read_notebook(path))


@pytest.fixture
def whole(project: Path) -> Path:
    """The folder of a whole run."""
    write(project)
    return finish(project).parent


def test_a_run_is_current_until_anything_it_depends_on_changes(whole: Path) -> None:
    stamp = notebooks.make_stamp("tiny", {"scale": "laptop"}, make_notebook())
    assert records.check_whole(whole) == [] and records.is_current(whole, stamp)
    assert not records.is_current(whole, {**stamp, "library_hash": "other"})
    assert not records.is_current(whole.with_name("smoke"), stamp)
    (whole / "levels.csv").write_text("size\n")
    assert not records.is_current(whole, stamp)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("record.json", "{", "is not a record"),
        ("record.json", None, "no record at"),
        ("levels.csv", "size\n", "levels.csv was changed or damaged"),
        ("levels.csv", None, "levels.csv is missing"),
        (records.MEASURED, "x", "measured.npz was changed or damaged"),
        ("released_crows.csv", None, "released_crows.csv is missing"),
        ("notebook.ipynb", None, "no notebook at"),
        ("notebook.ipynb", "<<<<<<< HEAD\n{}\n>>>>>>> x\n", "unresolved merge conflict"),
        ("notebook.ipynb", "{}", "is not a notebook"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    whole: Path, file: str, content: str | None, problem: str
) -> None:
    (whole / file).unlink()
    if content is not None:
        (whole / file).write_text(content)
    assert [problem in text for text in records.check_whole(whole)] == [True]


def test_notebook_and_record_of_different_runs_are_told_apart(project: Path, whole: Path) -> None:
    notebook = (whole / "notebook.ipynb").read_bytes()
    write(project, seeds=3)
    (whole / "notebook.ipynb").write_bytes(notebook)
    said = "notebook.ipynb and record.json are from different runs"
    assert records.check_whole(whole) == [said]
    with pytest.raises(DataError, match=said):
        recording.record_run("tiny", "laptop")
    first = site_runs.select_runs(project, project / "results", "tiny")[0]
    assert first.kind == "unrun"
    assert first.damaged == (f"results/tiny/laptop cannot be shown: {said}",)


# --- cleaning --------------------------------------------------------------------------------


def test_cleaning_removes_traces_of_the_machine(project: Path) -> None:
    def executed(moment: str) -> notebooks.Notebook:
        notebook = make_notebook()
        out = nbformat.v4.new_output
        cell = notebook.cells[2]
        cell.execution_count = 17
        cell.metadata["papermill"] = {"start_time": moment}
        cell.metadata["execution"] = {"iopub.execute_input": moment}
        html = f"<b>{project}/results/x</b>"
        cell.outputs = [
            out("stream", name="stderr", text=f"took {moment}"),
            out("stream", name="stdout", text=f"at {project}/results/a and {Path.home()}/b"),
            out("execute_result", data={"text/html": html}, execution_count=17),
        ]
        injected = nbformat.v4.new_code_cell(
            "seeds = 2", metadata={"tags": ["injected-parameters"]}
        )
        notebook.cells.insert(2, injected)
        notebook.metadata["papermill"] = {"input_path": "/x", "parameters": {"seeds": 2}}
        notebook.metadata["language_info"] = {"name": "python", "version": moment}
        return notebook

    first = notebooks.clean_notebook(executed("monday"))
    text = nbformat.writes(first)
    assert nbformat.writes(notebooks.clean_notebook(executed("tuesday"))) == text
    assert "monday" not in text and str(project) not in text and str(Path.home()) not in text
    assert first.cells[-1].outputs[0].text == "at results/a and ~/b"
    assert first.metadata["papermill"] == {"parameters": {"seeds": 2}}
    assert not notebooks.machine_traces(text)
    nbformat.validate(first)


@pytest.mark.parametrize(
    "text", ["see /home/ann/x", "(/tmp/abc)", "C:\\Users\\ann", "/Users/ann", "file:///root/x"]
)
def test_paths_of_a_machine_are_detected(text: str) -> None:
    assert notebooks.machine_traces(text)


@pytest.mark.parametrize("text", ["site.org/home/x", "a/tmp/b", "results/x", "and/or", "/ 2"])
def test_other_slashes_are_not_paths_of_a_machine(text: str) -> None:
    assert not notebooks.machine_traces(text)


# --- which run is shown, recording --------------------------------------------------------------


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are made by a commit."""
    monkeypatch.setattr(records, "commit", lambda: {"id": "c" * 40, "dirty": False})


def test_your_run_comes_before_the_recorded_one(committed: None, project: Path) -> None:
    results = project / "results"
    assert site_runs.select_runs(project, results, "tiny")[0].kind == "unrun"
    write(project)
    assert site_runs.select_runs(project, results, "tiny")[0].kind == "unrun", "no notebook yet"
    finish(project)
    (project / "README.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    recording.record_run("tiny", "laptop")
    kinds = [run.kind for run in site_runs.select_runs(project, results, "tiny")]
    assert kinds == ["yours", "recorded"]
    assert [run.kind for run in site_runs.select_runs(project, None, "tiny")] == ["recorded"]
    write(project, scale="smoke")
    finish(project, scale="smoke")
    scales = [run.scale for run in site_runs.select_runs(project, results, "tiny")]
    assert scales == ["laptop", "smoke", "laptop"]


def test_a_run_of_an_older_notebook_is_shown_as_such(project: Path, whole: Path) -> None:
    notebook = make_notebook()
    notebook.cells[2].source = "1 + 3"
    nbformat.write(notebook, project / "notebooks" / "tiny.ipynb")
    assert not site_runs.select_runs(project, project / "results", "tiny")[0].current
    with pytest.raises(DataError, match="code has changed since"):
        recording.record_run("tiny", "laptop")


def test_a_failed_run_is_never_shown(project: Path, whole: Path) -> None:
    notebook = notebooks.read_notebook(whole / "notebook.ipynb")
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    ]
    nbformat.write(notebook, whole / "notebook.ipynb")
    first = site_runs.select_runs(project, project / "results", "tiny")[0]
    assert first.kind == "unrun" and "did not run to its end" in first.damaged[0]
    with pytest.raises(DataError, match="did not run to its end"):
        recording.record_run("tiny", "laptop")


@pytest.mark.parametrize("old", [True, False])
def test_a_damaged_run_of_yours_is_named_and_a_recorded_one_refused(
    committed: None, project: Path, whole: Path, old: bool
) -> None:
    (project / "README.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    recording.record_run("tiny", "laptop")
    text = (whole / "record.json").read_text()
    damaged = text.replace('"schema": 2', '"schema": 1') if old else text[: len(text) // 2]
    (whole / "record.json").write_text(damaged)
    said = "has schema 1, but this version" if old else "is not a record"
    first = site_runs.select_runs(project, project / "results", "tiny")[0]
    assert first.kind == "recorded" and len(first.damaged) == 1
    assert first.damaged[0].startswith("results/tiny/laptop cannot be shown: record.json")
    assert said in first.damaged[0] and str(project) not in first.damaged[0]
    with pytest.raises(DataError, match=said):
        recording.record_run("tiny", "laptop")
    recorded = project / "book" / "recorded" / "tiny" / "laptop"
    (recorded / "record.json").write_text(damaged)
    with pytest.raises(
        DataError, match=f"recorded/tiny/laptop cannot be shown: record.json {said}"
    ):
        site_runs.select_runs(project, project / "results", "tiny")
    with pytest.raises(DataError, match=said):
        recording.all_records(project)


def test_an_unreadable_record_keeps_its_row_in_the_costs(
    committed: None, project: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = project / "README.md"
    readme.write_text("<!-- costs -->\nold row\n<!-- /costs -->\n")
    other = project / "book" / "recorded" / "other" / "laptop"
    other.mkdir(parents=True)
    (other / "record.json").write_text('{"schema": 1}')
    assert recording.record_run("tiny", "laptop").is_dir()
    assert "old row" in readme.read_text()
    assert "not updated" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, '{"schema": 1}'])
def test_a_new_run_keeps_the_readers_own_files(
    project: Path, whole: Path, content: str | None
) -> None:
    if content:
        (whole / "record.json").write_text(content)
    (whole / "my notes.txt").write_text("mine")
    (whole / "plots").mkdir()
    (whole / "plots" / "own.svg").write_text("<svg/>")
    (whole / "clash.csv").write_text("a\n1\n")
    with records.staging(whole) as new:
        (new / "record.json").write_text("{}")
        (new / "clash.csv").write_text("a\n2\n")
        records.swap_in(new, whole)
    kept = {"my notes.txt", "plots", "record.json", "clash.csv"}
    assert {path.name for path in whole.iterdir()} == kept, "tables of the earlier run are gone"
    assert (whole / "plots" / "own.svg").read_text() == "<svg/>"
    assert (whole / "clash.csv").read_text() == "a\n2\n"


def test_prose_and_captions_come_from_the_source(project: Path, whole: Path) -> None:
    executed = notebooks.read_notebook(whole / "notebook.ipynb")
    injected = nbformat.v4.new_code_cell("seeds = 2", metadata={"tags": ["injected-parameters"]})
    executed.cells.insert(2, injected)
    source = make_notebook()
    source.cells[0].source = "# Tiny\n\nOther words."
    source.cells.insert(2, nbformat.v4.new_markdown_cell("A new paragraph."))
    source.cells[-1].metadata["mystnb"] = {"figure": {"caption": "A sum."}}
    merged = site_runs.with_prose_of(source, executed)
    last_words = [cell.source.split()[-1] for cell in merged.cells]
    assert last_words[0] == "words." and last_words[2:] == ["2", "paragraph.", "1"]
    assert merged.cells[-1].outputs[0].text == "2"
    assert merged.cells[-1].metadata["mystnb"]["figure"]["caption"] == "A sum."
    assert merged.metadata[notebooks.STAMP]["study"] == "tiny"


def test_recording_copies_the_run_and_fills_in_the_costs(committed: None, project: Path) -> None:
    write(project)
    finish(project)
    (project / "README.md").write_text("a\n<!-- costs -->\nold\n<!-- /costs -->\nb\n")
    target = recording.record_run("tiny", "laptop")
    names = {path.name for path in target.iterdir()}
    assert names == {
        "notebook.ipynb", "record.json", "levels.csv", "released_crows.csv", records.MEASURED,
    }  # fmt: skip
    assert records.check_whole(target) == []
    readme = (project / "README.md").read_text()
    assert "| tiny | laptop |" in readme and "1 min 1" in readme and "old" not in readme
    assert readme.startswith("a\n") and readme.endswith("b\n")
    assert recording.record_run("tiny", "laptop") == target, "a second time replaces the first"
    assert [path.name for path in target.parent.iterdir()] == ["laptop"]


def record_on(project: Path, monkeypatch: pytest.MonkeyPatch, *machines: str) -> None:
    """Record a run on each machine in turn, with a README that shows the costs."""
    (project / "README.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    for machine in machines:
        monkeypatch.setattr(recording, "device_text", lambda record, machine=machine: machine)
        write(project)
        finish(project)
        recording.record_run("tiny", "laptop")


def test_costs_on_another_machine_are_kept(
    committed: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_on(project, monkeypatch, "one, 1 thread", "one, 2 threads", "another | one")
    assert [row[2] for row in recording.all_costs(project)] == ["another | one", "one, 2 threads"]
    assert [row[-1] for row in recording.all_costs(project)] == ["current", "earlier"]
    readme = (project / "README.md").read_text()
    assert readme.count("| tiny |") == 2 and r"| another \| one |" in readme


@pytest.fixture
def costs(committed: None, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of costs, with rows of a recorded run, and before and after of earlier ones."""
    record_on(project, monkeypatch, "a|b, 1 thread", "z, 1 thread", "m, 1 thread")
    return project / recording.COSTS_FILE


def test_costs_cut_anywhere_or_changed_are_refused(costs: Path, project: Path) -> None:
    good = costs.read_bytes()
    rows = recording.all_costs(project)
    assert [row[2][0] for row in rows] == ["a", "m", "z"]
    for cut in range(len(good) - 1):
        costs.write_bytes(good[:cut])
        with pytest.raises(DataError, match=r"book/recorded/costs\.csv"):
            recording.all_costs(project)
    changes = {
        b"\xff\xfe" + good: "cannot be read: 'utf-8'",
        good.replace(b"study,", b"studies,"): "line 1: expected",
        good.replace(b"z, 1 thread", b"y, 1 thread"): r"(?s)README.*z, 1 thread",
        good.replace(b",earlier\n", b",earlier,x\n", 1): "line 2: expected a value for each of",
        good.replace(b"tiny", b"", 1): "line 2: expected a value for each of",
        good.replace(b'"a|b', b'x"a|b'): "line 2",
    }
    for content, message in changes.items():
        costs.write_bytes(content)
        with pytest.raises(DataError, match=message):
            recording.all_costs(project)
    costs.unlink()
    with pytest.raises(DataError, match="are only in one of them; restore both with git"):
        recording.all_costs(project)
    costs.write_bytes(good.replace(b"m, 1 thread", b"m, 9 threads"))
    assert recording.all_costs(project) == rows, "a record knows its own costs"


def test_a_damaged_file_of_costs_is_not_written_again(
    costs: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = (project / "README.md").read_text()
    costs.write_bytes(costs.read_bytes()[:150])
    before = costs.read_bytes()
    assert recording.record_run("tiny", "laptop").is_dir()
    assert "were not updated" in capsys.readouterr().err
    assert costs.read_bytes() == before and (project / "README.md").read_text() == readme


def test_a_file_of_a_record_that_is_no_text_is_named(committed: None, project: Path) -> None:
    write(project, measured=Measurements({}, {}, files={"extra.txt": b"\xff"}))
    finish(project)
    with pytest.raises(DataError, match=r"extra\.txt cannot be read: 'utf-8' codec"):
        recording.record_run("tiny", "laptop")


def test_recording_refuses_what_names_the_machine(committed: None, project: Path) -> None:
    texts = np.array([f"{project}/y"])
    write(project, measured=Measurements({"texts": texts}, {}))
    finish(project, output=f"saved in {project}/x")
    with pytest.raises(DataError, match=r"(?s)notebook\.ipynb contains.*measured\.npz contains"):
        recording.record_run("tiny", "laptop")
    assert not (project / "book" / "recorded" / "tiny" / "laptop").exists()


def test_recording_refuses_code_that_is_not_committed(
    project: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "README.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    with pytest.raises(DataError, match="measured by code whose commit is unknown"):
        recording.record_run("tiny", "laptop")
    monkeypatch.setattr(records, "commit", lambda: {"id": "c" * 40, "dirty": True})
    write(project)
    finish(project)
    (whole / "levels.csv").write_text("")
    with pytest.raises(DataError, match=r"(?s)2 problems.*levels\.csv was changed.*not committed"):
        recording.record_run("tiny", "laptop")
    write(project)
    finish(project)
    assert recording.record_run("tiny", "laptop", force=True).is_dir()


def test_substitutions_are_plain_text(project: Path) -> None:
    write(project, values={"share": {"value": 0.5, "low": 0.4, "high": 0.6}, "evil": "<b>*{{x}}"})
    finish(project)
    selected = site_runs.select_runs(project, project / "results", "tiny")[0]
    numbers = site_runs.substitutions(selected)
    assert numbers["tiny_share_low"] == "0\\.4" and numbers["tiny_scale"] == "laptop"
    assert numbers["tiny_evil"] == "\\<b\\>\\*\\{\\{x\\}\\}"
    assert site_runs.substitutions(site_runs.SelectedRun("tiny", "unrun")) == {}


def test_a_missing_block_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(DataError, match="no block <!-- costs -->"):
        recording.fill_block(tmp_path / "README.md", "costs", "x")


# --- killed, and on a full disk ----------------------------------------------------------------


def seeds_in(folder: Path) -> int:
    """The parameter of the run in a folder, after what a killed process left was tidied up."""
    records.tidy(folder)
    assert records.check_whole(folder) == []
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    return records.read_record(folder)["parameters"]["seeds"]


def a_run_of(project: Path, seeds: int) -> Path:
    write(project, seeds=seeds, measured=Measurements({}, {}, files={"x.bin": bytes(20_000)}))
    return finish(project).parent


@pytest.fixture
def recorded(project: Path, committed: None) -> Path:
    """The folder of a recorded run with `seeds=1`; in results/, there is one with `seeds=2`."""
    (project / "README.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    a_run_of(project, seeds=1)
    folder = recording.record_run("tiny", "laptop")
    a_run_of(project, seeds=2)
    return folder


def test_recording_that_is_killed_anywhere(project: Path, recorded: Path) -> None:
    found = []
    kills = killed_everywhere(
        project, lambda: recording.record_run("tiny", "laptop"),
        lambda: found.append(seeds_in(recorded)),
    )  # fmt: skip
    assert kills > 20 and found == sorted(found), "once it is there, the new record stays"
    assert {*found} == {1, 2} and "| tiny | laptop |" in (project / "README.md").read_text()


@pytest.mark.parametrize("atomic", [True, False])
def test_a_redraw_that_is_killed_anywhere(
    project: Path,
    recorded: Path,
    monkeypatch: pytest.MonkeyPatch,
    atomic: bool,
) -> None:
    def execute(folder: Path, new: Path) -> None:
        shutil.copytree(project / "results" / "tiny" / "laptop", new, dirs_exist_ok=True)

    monkeypatch.setattr(redraw, "_execute", execute)
    monkeypatch.setattr(redraw, "differences", lambda *_: ["changed"])
    if not atomic:
        monkeypatch.setattr(records, "_exchange", lambda *_: False)
    found = []
    kills = killed_everywhere(
        project, lambda: redraw.redraw_one(recorded), lambda: found.append(seeds_in(recorded))
    )
    assert kills > 20 and {*found} == {1, 2} and found == sorted(found)


def test_recording_on_a_full_disk(recorded: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # large files fail, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            recording.record_run("tiny", "laptop")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert seeds_in(recorded) == 1
    recording.record_run("tiny", "laptop")
    assert seeds_in(recorded) == 2


def test_a_damaged_record_gives_no_costs(recorded: Path) -> None:
    path = recorded / "record.json"
    path.write_text(path.read_text().replace('"training_s": 0', '"training_s": 9'))
    with pytest.raises(DataError, match=r"notebook\.ipynb and record\.json are from different"):
        recording.all_records(recorded.parents[3])
