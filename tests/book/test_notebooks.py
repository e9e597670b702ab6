"""Parameters of every notebook, as people type them on a command line."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT
from pythia_book import notebooks, papermill_engine

from pythia_core.errors import ConfigError

STUDIES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PARAMETERS = {
    study: notebooks.parameters_of(notebooks.read_notebook(notebooks.notebook_path(study)))
    for study in STUDIES
}
TEXTS = [(s, name) for s in STUDIES for name, p in PARAMETERS[s].items() if p.type == "str"]


def by_study(study: str, words: list[str]) -> dict[str, Any]:
    """What the command `study` makes of words NAME=VALUE."""
    return notebooks.parse_parameters(words, PARAMETERS[study])


def by_papermill(study: str, words: list[str]) -> dict[str, Any]:
    """What papermill makes of words NAME=VALUE that are typed as `-p NAME VALUE`."""
    from papermill.cli import _resolve_type

    typed = [part for word in words for part in ("-p", *word.split("=", 1))]
    texts = {name for name, parameter in PARAMETERS[study].items() if parameter.type == "str"}
    _, options = papermill_engine.parse_arguments(papermill_engine.keep_text(typed, texts))
    numbers = {name: _resolve_type(value) for name, value in options["parameters"]}
    return numbers | dict(options["parameters_raw"])


@pytest.mark.parametrize("parse", [by_study, by_papermill])
@pytest.mark.parametrize("study", STUDIES)
def test_what_a_default_looks_like_is_accepted(study: str, parse: Any) -> None:
    notebook = notebooks.read_notebook(notebooks.notebook_path(study))
    defaults = {name: p.default for name, p in PARAMETERS[study].items()}
    parsed = parse(study, [f"{name}={value}" for name, value in defaults.items()])
    assert parsed == defaults
    assert notebooks.validate_parameters(notebook, parsed) == defaults


@pytest.mark.parametrize("parse", [by_study, by_papermill])
@pytest.mark.parametrize("study", STUDIES)
def test_what_the_comment_of_a_parameter_proposes_is_accepted(study: str, parse: Any) -> None:
    notebook = notebooks.read_notebook(notebooks.notebook_path(study))
    for name, parameter in PARAMETERS[study].items():
        for example in re.findall(r'e\.g\. "([^"]*)"', parameter.help):
            parsed = parse(study, [f"{name}={example}"])
            assert parsed == {name: example}
            notebooks.validate_parameters(notebook, parsed)


@pytest.mark.parametrize("parse", [by_study, by_papermill])
@given(st.sampled_from(TEXTS), st.from_regex(r"[0-9a-zA-Z,.\-_ =]{0,12}", fullmatch=True))
def test_text_is_never_taken_for_a_number(parse: Any, which: tuple[str, str], text: str) -> None:
    study, name = which
    assert parse(study, [f"{name}={text}"]) == {name: text}


def test_quotes_around_text_are_no_part_of_it() -> None:
    assert by_study("scaling", ["shots='0,1'", 'tasks="piqa"']) == {"shots": "0,1", "tasks": "piqa"}


HOSTILE = ["(" * 5000, "-" * 5000 + "1", "9" * 5000, "{[]: 1}", "__import__('os')", "1e999", "\\"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_values_are_values_or_refused(text: str) -> None:
    notebook = notebooks.read_notebook(notebooks.notebook_path("scaling"))
    assert by_study("scaling", [f"tasks={text}"]) == {"tasks": text}
    with pytest.raises(ConfigError, match="'limit' must be of type int"):
        notebooks.validate_parameters(notebook, by_study("scaling", [f"limit={text}"]))


def test_bytes_that_are_no_text_are_refused() -> None:
    notebook = notebooks.read_notebook(notebooks.notebook_path("scaling"))
    with pytest.raises(ConfigError, match=r"'tasks' must be UTF-8 text, got '\\udcff'"):
        notebooks.validate_parameters(notebook, {"tasks": "\udcff"})


@pytest.mark.parametrize("option", ["parameters_base64", "parameters_file", "parameters_yaml"])
@pytest.mark.parametrize(
    "document",
    ["[a, b]", "text", "{1: 2}", "a: [", "!!python/object/apply:os.system [id]", "&a [*a]", "\xff"],
)
def test_hostile_documents_are_refused(option: str, document: str, tmp_path: Path) -> None:
    raw = document.encode("latin-1")
    if option == "parameters_base64":
        document = base64.b64encode(raw).decode()
    elif option == "parameters_file":
        (tmp_path / "p.yaml").write_bytes(raw)
        document = str(tmp_path / "p.yaml")
    options = dict.fromkeys(("parameters_base64", "parameters_file", "parameters_yaml"), ())
    options |= {"parameters": (), "parameters_raw": (), option: (document,)}
    with pytest.raises(ConfigError, match=f"--{option}"):
        papermill_engine.scale_parameter(options)


BOMB = "\n".join(
    f"{name}: &{name} [{', '.join(['*' + before if before else 'x'] * 10)}]"
    for before, name in zip(["", *"abcdefgh"], "abcdefghi", strict=True)
)
"""A YAML text of a few lines whose last value has 10^9 items."""


def test_a_short_text_that_names_a_long_value_gives_a_short_message() -> None:
    notebook = str(notebooks.notebook_path("speed"))
    with pytest.raises(ConfigError, match="unknown scale") as caught:
        papermill_engine.complete_arguments([notebook, "-y", f"{BOMB}\nscale: *i"])
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError, match="unknown scale 'xx") as caught:
        papermill_engine.complete_arguments([notebook, "-p", "scale", "x" * 10_000])
    assert len(str(caught.value)) < 400
    document = "[" + BOMB.replace("\n", ", ") + ", *i]"
    options = {"parameters_base64": (), "parameters_file": (), "parameters_yaml": (document,)}
    with pytest.raises(ConfigError, match="expected names with values") as caught:
        papermill_engine.scale_parameter(options)
    assert len(str(caught.value)) < len(document) + 400


def test_base64_may_have_line_breaks_but_nothing_else() -> None:
    def scale(text: str) -> object:
        options = {"parameters_file": (), "parameters_yaml": (), "parameters_base64": (text,)}
        return papermill_engine.scale_parameter(options | {"parameters": (), "parameters_raw": ()})

    text = base64.encodebytes(b"scale: smoke\n# " + b"x" * 99).decode()
    assert text.count("\n") > 1 and scale(text) == "smoke"
    for damaged in ("!!!!", "!" + text, text[:-3]):
        with pytest.raises(ConfigError, match="--parameters_base64"):
            scale(damaged)


def test_a_missing_file_of_parameters_is_named() -> None:
    options = {"parameters_base64": (), "parameters_file": ("gone.yaml",), "parameters_yaml": ()}
    with pytest.raises(ConfigError, match=r"--parameters_file gone.yaml: .*No such file"):
        papermill_engine.scale_parameter(options)


def test_injected_parameters_are_recorded_sorted_and_without_papermills_paths() -> None:
    v = nbformat.v4
    paths = 'PAPERMILL_INPUT_PATH = "/somewhere/x.ipynb"\nPAPERMILL_OUTPUT_PATH = "y"\n'
    lines = f'# Parameters\n{paths}seeds = 2\nscale = "a"\n'
    cell = v.new_code_cell(lines, metadata={"tags": ["injected-parameters"]})
    given = {"PAPERMILL_INPUT_PATH": "/somewhere/x.ipynb", "seeds": 2}
    notebook = v.new_notebook(cells=[cell], metadata={"papermill": {"parameters": given}})
    notebooks.clean_notebook(notebook)
    assert notebook.cells[0].source == '# Parameters\nscale = "a"\nseeds = 2\n'
    assert notebook.metadata["papermill"] == {"parameters": {"seeds": 2}}


def test_without_a_folder_for_temporary_files_a_notebook_is_still_cleaned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.delenv("PYTHIA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert notebooks.without_machine_paths("a text") == "a text"
