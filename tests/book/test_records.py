"""Records, notebooks as data, cleaning, and which run the book shows."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from pythia_book import notebooks, papermill_engine, records, site_runs
from pythia_book.study import Result

from pythia_core.config import InterventionConfig
from pythia_core.errors import ConfigError, DataError
from pythia_core.suite import scale_named

CLAIM = {
    "claim": "the swap moves pronouns",
    "paper": "it does",
    "published": None,
    "ours": 0.4,
    "low": 0.3,
    "high": 0.5,
    "verdict": "reproduced",
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
    for module in (records, site_runs, notebooks):
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
        "runs": [a_run(project), a_run(project, swap=True)],
        "started": time.time() - 75,
    }
    return records.save_record(Result(**{**given, **changes}))


def finish(project: Path, scale: str = "laptop", output: str = "2") -> Path:
    """An executed notebook next to the record, as papermill with our engine writes it."""
    notebook = make_notebook()
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", name="stdout", text=output)]
    stamp = notebooks.make_stamp("tiny", {"scale": scale}, notebook)
    notebook.metadata[notebooks.STAMP] = stamp
    path = project / "results" / "tiny" / scale / "notebook.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write_notebook(notebook, path)
    return path


# --- records ---------------------------------------------------------------------------------


def test_a_record_states_its_origin(project: Path) -> None:
    path = write(project)
    record = records.read_record(path.parent)
    assert path == project / "results" / "tiny" / "laptop" / "record.json"
    assert record["data"] == ["f" * 64] and record["training_s"] == 25.0
    assert 75 <= record["duration_s"] < 90 and record["peak_memory_mb"] > 10
    assert [r["role"] for r in record["runs"]] == ["control", "masculine_to_feminine from step 8"]
    assert {r["size"] for r in record["runs"]} == {"7k"} and record["disk_mb"] == 6
    assert record["versions"]["python"].startswith("3.") and record["device"]["cpu"]
    assert record["notebook_sha256"] == notebooks.source_hash(make_notebook())
    assert record["commit"] == {"id": None, "dirty": None}  # a temporary folder is no checkout
    table = pd.read_csv(path.parent / "levels.csv")
    assert table.value[0] == pytest.approx(1 / 3) and record["tables"]["levels.csv"]["rows"] == 1
    text = path.read_text(encoding="utf-8")
    assert str(project) not in text
    assert len(socket.gethostname()) < 6 or socket.gethostname() not in text


def test_the_config_hash_follows_the_parameters_only(project: Path) -> None:
    def hashed(**changes) -> str:
        return records.read_record(write(project, **changes))["config_hash"]

    first = hashed()
    assert hashed(started=time.time(), values={"n": 3}) == first
    assert hashed(seeds=3) != first


def test_a_rewritten_record_drops_tables_it_no_longer_has(project: Path) -> None:
    folder = write(project).parent
    write(project, tables={"other": pd.DataFrame({"a": [1]})})
    assert {p.name for p in folder.iterdir()} == {"record.json", "other.csv"}


def test_not_a_number_becomes_null(project: Path) -> None:
    path = write(project, values={"a": float("nan"), "b": {"value": float("inf")}})
    values = json.loads(path.read_text(), parse_constant=pytest.fail)["values"]
    assert values == {"a": None, "b": {"value": None}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "labtop"}, "Did you mean 'laptop'"),
        ({"claims": [{**CLAIM, "verdict": "proven"}]}, "unknown verdict 'proven'; accepted: repro"),
        ({"claims": [{"claim": "x"}]}, "claim 'x' must have the keys claim, paper"),
        ({"tables": {"../x": pd.DataFrame()}}, "table name '../x'"),
        ({"values": {"a b": 1}}, "value name 'a b'"),
        ({"values": {"a": object()}}, "a record has only numbers and text, got object"),
    ],
)
def test_invalid_records_are_refused(project: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        write(project, **changes)
    assert not list((project / "results").rglob("record.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not a record"), ("[]", "no JSON object"), ("{}", "it lacks schema, study")],
)
def test_a_broken_record_is_named(project: Path, content: str, message: str) -> None:
    path = write(project)
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        records.read_record(path.parent)
    path.unlink()
    with pytest.raises(DataError, match="no record at"):
        records.read_record(path.parent)


def test_a_record_of_another_schema_is_refused(project: Path) -> None:
    path = write(project)
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(DataError, match="schema 99; this version reads schema 1"):
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
        ({"value": 0.7012, "low": 0.69, "high": 0.712}, "0.701 [0.690,\N{NO-BREAK SPACE}0.712]"),
        (
            {"value": -0.001, "low": -0.8, "high": 3.1},
            "0.0 [\N{MINUS SIGN}0.8,\N{NO-BREAK SPACE}3.1]",
        ),
        ({"value": 0.5, "low": None, "high": None}, "0.500 [n/a,\N{NO-BREAK SPACE}n/a]"),
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
        ({"scale": 3}, "'scale' must be str, got 3; to pass it as a string, use -r"),
        ({"seeds": "x"}, "'seeds' must be int, got 'x'"),
        ({"seeds": True}, "'seeds' must be int, got True"),
        ({"rate": "fast"}, r"'rate' must be float \| None"),
        ({"sizes": [1]}, "'sizes' must be tuple"),
        ({"quick": 1}, "'quick' must be bool"),
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
    parsed = notebooks.parse_parameters(["a=1", "b=x=y", "c=0.5", "d=None", "e="])
    assert parsed == {"a": 1, "b": "x=y", "c": 0.5, "d": None, "e": ""}
    with pytest.raises(ConfigError, match="NAME=VALUE, got 'a'"):
        notebooks.parse_parameters(["a"])


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


def test_a_run_is_current_until_anything_it_depends_on_changes(project: Path) -> None:
    path = finish(project)
    stamp = notebooks.make_stamp("tiny", {"scale": "laptop"}, make_notebook())
    assert not notebooks.is_current(path, stamp), "no record yet"
    write(project)
    assert notebooks.is_current(path, stamp)
    assert not notebooks.is_current(path, {**stamp, "library_hash": "other"})
    path.write_text("{}")
    assert not notebooks.is_current(path, stamp)


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


def test_your_run_comes_before_the_recorded_one(project: Path) -> None:
    results = project / "results"
    assert site_runs.select_runs(project, results, "tiny")[0].kind == "unrun"
    write(project)
    assert site_runs.select_runs(project, results, "tiny")[0].kind == "unrun", "no notebook yet"
    finish(project)
    (project / "README.md").write_text("<!-- costs -->\n<!-- /costs -->\n")
    site_runs.record_run("tiny", "laptop")
    kinds = [run.kind for run in site_runs.select_runs(project, results, "tiny")]
    assert kinds == ["yours", "recorded"]
    assert [run.kind for run in site_runs.select_runs(project, None, "tiny")] == ["recorded"]
    write(project, scale="smoke")
    finish(project, scale="smoke")
    scales = [run.scale for run in site_runs.select_runs(project, results, "tiny")]
    assert scales == ["laptop", "smoke", "laptop"]


def test_a_run_of_an_older_notebook_is_shown_as_such(project: Path) -> None:
    write(project)
    finish(project)
    notebook = make_notebook()
    notebook.cells[2].source = "1 + 3"
    nbformat.write(notebook, project / "notebooks" / "tiny.ipynb")
    assert not site_runs.select_runs(project, project / "results", "tiny")[0].current
    with pytest.raises(DataError, match="code has changed since"):
        site_runs.record_run("tiny", "laptop")


def test_a_failed_run_is_never_shown(project: Path) -> None:
    write(project)
    path = finish(project)
    notebook = notebooks.read_notebook(path)
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    ]
    nbformat.write(notebook, path)
    assert site_runs.select_runs(project, project / "results", "tiny")[0].kind == "unrun"
    with pytest.raises(DataError, match="did not run to the end"):
        site_runs.record_run("tiny", "laptop")


def test_recording_copies_the_run_and_fills_in_the_costs(project: Path) -> None:
    write(project)
    finish(project)
    (project / "README.md").write_text("a\n<!-- costs -->\nold\n<!-- /costs -->\nb\n")
    target = site_runs.record_run("tiny", "laptop")
    assert {p.name for p in target.iterdir()} == {"notebook.ipynb", "record.json", "levels.csv"}
    readme = (project / "README.md").read_text()
    assert "| tiny | laptop |" in readme and "1 min 1" in readme and "old" not in readme
    assert readme.startswith("a\n") and readme.endswith("b\n")
    assert site_runs.record_run("tiny", "laptop") == target, "a second time replaces the first"


def test_recording_refuses_what_names_the_machine(project: Path) -> None:
    write(project)
    finish(project, output=f"saved in {project}/x")
    with pytest.raises(DataError, match=r"notebook\.ipynb names"):
        site_runs.record_run("tiny", "laptop")
    assert not (project / "book" / "recorded" / "tiny" / "laptop").exists()


def test_recording_refuses_tables_of_another_run(project: Path) -> None:
    folder = write(project).parent
    finish(project)
    (folder / "levels.csv").write_text("size,value\n7k,9\n")
    with pytest.raises(DataError, match=r"levels\.csv does not match the hash"):
        site_runs.record_run("tiny", "laptop")


def test_substitutions_are_plain_text(project: Path) -> None:
    write(project, values={"share": {"value": 0.5, "low": 0.4, "high": 0.6}, "evil": "<b>*{{x}}"})
    finish(project)
    selected = site_runs.select_runs(project, project / "results", "tiny")[0]
    numbers = site_runs.substitutions(selected)
    assert numbers["tiny_share_low"] == "0\\.400" and numbers["tiny_scale"] == "laptop"
    assert numbers["tiny_evil"] == "\\<b\\>\\*\\{\\{x\\}\\}"
    assert site_runs.substitutions(site_runs.SelectedRun("tiny", "unrun")) == {}


def test_a_missing_block_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(DataError, match="no block <!-- costs -->"):
        site_runs.fill_block(tmp_path / "README.md", "costs", "x")
