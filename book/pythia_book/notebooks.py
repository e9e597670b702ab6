"""Notebook files as data: their parameters, their identity, cleaning what ran.

A study is one notebook, notebooks/<study>.ipynb: sources only, one cell tagged `parameters`.
Running it leaves results/<study>/<scale>/notebook.ipynb with a stamp in its metadata: parameters,
hash of the code cells, hash of the code. While the stamp fits, the run is up to date. Papermill
only warns about an unknown parameter; here it is refused before anything runs. A finished notebook
is the same on every machine and at every time: paths, host name, timings and versions are removed.
Not here: running one (pythia_book.papermill_engine), what a run found (pythia_book.records).
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pythia_core.errors import ConfigError, DataError, one_of, raise_all
from pythia_core.suite import SCALES
from pythia_core.util.files import cache_dir, project_root, results_dir

Notebook = Any
"""An nbformat NotebookNode: a dict with attribute access."""

STAMP = "pythia"
"""Key of the stamp in a finished notebook's metadata."""
KEPT = "what was trained and measured is kept"
"""What outlives a study that is stopped."""

_SCALAR_TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "None": type(None)}


@dataclass(frozen=True)
class Parameter:
    """One assignment of a notebook's parameters cell."""

    name: str
    type: str
    default: Any
    help: str

    def __str__(self) -> str:
        text = f"{self.name}: {self.type} = {self.default!r}"
        return f"{text}  ({self.help})" if self.help else text


# --- reading ---------------------------------------------------------------------------------


def notebooks_dir() -> Path:
    """The studies' notebooks: those of the checkout, or the copies in an installed package."""
    copies = Path(__file__).with_name("_notebooks")
    return copies if copies.is_dir() else project_root() / "notebooks"


def studies() -> list[str]:
    """Names of the studies: there is a notebook for each."""
    return sorted(path.stem for path in notebooks_dir().glob("*.ipynb"))


def notebook_path(study: str) -> Path:
    """The source notebook of a study.

    Raises:
        ConfigError: unknown study; lists those that exist.
    """
    if study not in (known := studies()):
        raise ConfigError(one_of(study, known or ["(no notebook found)"], "study"))
    return notebooks_dir() / f"{study}.ipynb"


def read_notebook(path: Path) -> Notebook:
    """A notebook in format 4.

    Raises:
        DataError: there is no such file, or it is not a notebook.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise DataError(f"no notebook at {path}") from error
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise DataError(f"{path} is not a notebook: {error}") from error


def write_notebook(notebook: Notebook, path: Path) -> None:
    """Write a notebook wholly or not at all; leave a file that already has these bytes alone."""
    import nbformat

    from pythia_core.util.files import atomic_file

    content = nbformat.writes(notebook) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def tagged_cells(notebook: Notebook, tag: str) -> list[Any]:
    """The cells with a tag, e.g. "parameters"."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def source_hash(notebook: Notebook) -> str:
    """sha256 of the code cells, without what papermill injects: prose may change, results hold."""
    sources = [
        cell.source.strip()
        for cell in notebook.cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def library_hash() -> str:
    """sha256 of every Python file of the library and of the book: which code made a result."""
    import pythia_core

    digest = hashlib.sha256()
    for package in (Path(pythia_core.__file__).resolve().parent, Path(__file__).resolve().parent):
        for file in sorted(package.rglob("*.py")):
            digest.update(f"{file.relative_to(package.parent).as_posix()}\0".encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


# --- parameters ------------------------------------------------------------------------------


def parameters_of(notebook: Notebook) -> dict[str, Parameter]:
    """The parameters a notebook accepts, from its cell tagged `parameters`.

    Raises:
        DataError: no such cell, more than one, or an assignment that is not a plain literal.
    """
    cells = tagged_cells(notebook, "parameters")
    if len(cells) != 1:
        raise DataError(
            f"a study's notebook has one cell tagged 'parameters', this has {len(cells)}"
        )
    lines = cells[0].source.splitlines()
    found = {}
    for node in ast.parse(cells[0].source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if not isinstance(target, ast.Name):
            continue  # a docstring or comment; imports do not belong here but do no harm
        try:
            default = ast.literal_eval(node.value)
        except ValueError as error:
            message = (
                f"the default of parameter {target.id!r} must be a literal, like 1 or 'laptop'"
            )
            raise DataError(message) from error
        annotated = isinstance(node, ast.AnnAssign)
        kind = ast.unparse(node.annotation) if annotated else type(default).__name__
        _, _, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")
        found[target.id] = Parameter(target.id, kind, default, comment.strip())
    return found


def _fits(value: Any, kind: ast.expr) -> bool:
    """Whether a value has the type that an annotation such as `tuple[str, ...] | None` says."""
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return _fits(value, kind.left) or _fits(value, kind.right)
    if isinstance(kind, ast.Subscript):
        inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        inner = [e for e in inner if not (isinstance(e, ast.Constant) and e.value is ...)]
        name = ast.unparse(kind.value)
        if name in ("list", "tuple", "Sequence"):  # papermill turns a tuple into a list
            items = isinstance(value, (list, tuple))
            return items and all(any(_fits(v, e) for e in inner) for v in value)
        return name == "dict" and isinstance(value, dict)
    name = ast.unparse(kind)
    if name in ("list", "tuple"):
        return isinstance(value, (list, tuple))
    if name == "dict":
        return isinstance(value, dict)
    if name not in _SCALAR_TYPES:
        return True  # an annotation beyond this grammar is the notebook's own business
    if isinstance(value, bool) and name in ("int", "float"):
        return False
    return isinstance(value, _SCALAR_TYPES[name])


def parse_parameters(words: list[str]) -> dict[str, Any]:
    """Parameters given as NAME=VALUE; a value that reads as a number, True, False or None is one.

    Raises:
        ConfigError: a word without "=".
    """
    given: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"a parameter is given as NAME=VALUE, got {word!r}")
        try:
            given[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            given[name] = text
    return given


def validate_parameters(study: str | Path | Notebook, given: dict[str, Any]) -> dict[str, Any]:
    """Check parameters before a run: names and types against the notebook's parameters cell.

    Args:
        study: a study's name, the path of a notebook, or a notebook already read.
        given: what the caller set.

    Returns:
        Every parameter of the notebook: the given values over the defaults.

    Raises:
        ConfigError: every unknown or ill-typed parameter and an unknown scale at once, with the
            accepted ones listed.
    """
    if isinstance(study, str) and not study.endswith(".ipynb"):
        study = notebook_path(study)
    notebook = read_notebook(Path(study)) if isinstance(study, (str, Path)) else study
    accepted = parameters_of(notebook)
    problems = []
    for name, value in given.items():
        if name not in accepted:
            problems.append(one_of(name, accepted, "parameter"))
        elif not _fits(value, ast.parse(accepted[name].type, mode="eval").body):
            kind = accepted[name].type
            hint = "; to pass it as text use -r instead of -p" if kind == "str" else ""
            problems.append(f"parameter {name!r} must be {kind}, got {value!r}{hint}")
        elif name == "scale" and value not in SCALES:
            problems.append(one_of(value, SCALES, "scale"))
    if problems:
        listing = "\n".join(f"    {parameter}" for parameter in accepted.values())
        problems[-1] += f"\n  accepted parameters:\n{listing}"
    raise_all(ConfigError, problems, "parameters")
    return {name: given.get(name, p.default) for name, p in accepted.items()}


def check_values(study: str, values: dict[str, Any]) -> None:
    """Let a study refuse values of the right type that it cannot use, before anything runs.

    `Params` in its params.py is a dataclass of the notebook's parameters that checks itself; a
    function `check` in its study.py, if there is one, checks what the parameters alone do not show.
    Notebooks without such a room check for themselves.

    Raises:
        ConfigError: as the study says.
    """
    import importlib.util

    room = f"pythia_book.studies.{study}"
    if study.isidentifier() and importlib.util.find_spec(room):
        params = importlib.import_module(f"{room}.params").Params(**values)
        check = getattr(importlib.import_module(f"{room}.study"), "check", None)
        if check is not None:
            check(params)


# --- running ---------------------------------------------------------------------------------


def make_stamp(study: str, parameters: dict[str, Any], notebook: Notebook) -> dict[str, Any]:
    """What a finished notebook depends on; while it is unchanged there is nothing to redo."""
    return {
        "study": study,
        "parameters": json.loads(json.dumps(parameters)),
        "source_hash": source_hash(notebook),
        "library_hash": library_hash(),
        "published_numbers": bool(os.environ.get("PYTHIA_PUBLISHED_DIR")),
    }


def output_path(study: str, scale: str) -> Path:
    """Where a run of a study leaves its notebook."""
    return results_dir() / study / scale / "notebook.ipynb"


def is_current(path: Path, stamp: dict[str, Any]) -> bool:
    """Whether a finished run with exactly this stamp, and its record, are at `path`."""
    if not path.is_file() or not (path.parent / "record.json").is_file():
        return False
    try:
        return read_notebook(path).metadata.get(STAMP) == stamp
    except DataError:
        return False


def has_errors(notebook: Notebook) -> bool:
    """Whether a cell of an executed notebook failed."""
    return any(
        output.output_type == "error"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def is_finished(notebook: Notebook) -> bool:
    """Whether a run went through to the end (a run in progress, or a failed one, has no stamp)."""
    return STAMP in notebook.metadata and not has_errors(notebook)


# --- cleaning --------------------------------------------------------------------------------

_MACHINE_PATH = re.compile(
    r"(?<![\w.~-])(?:/(?:home|root|Users|tmp|private|mnt|scratch|var/folders)/[\w.-]"
    r"|[A-Za-z]:\\{1,2}Users\\)"
)


def _places() -> list[tuple[str, str]]:
    """Paths of this machine and what to write instead, longest first."""
    places = {
        str(results_dir().resolve()): "results",
        str(project_root().resolve()): ".",
        str(cache_dir()): "[cache]",
        sys.prefix: "[environment]",
        sys.base_prefix: "[python]",
        str(Path.home()): "~",
        tempfile.gettempdir(): "[tmp]",
    }
    return sorted(((p, s) for p, s in places.items() if len(p) > 3), key=lambda p: -len(p[0]))


def _whole(place: str) -> str:
    """A pattern for a path, not for the middle or the beginning of another one."""
    return rf"(?<![\w.~-]){re.escape(place)}(?![\w-])"


def without_machine_paths(text: str) -> str:
    """The text with the paths of this machine made relative to what they mean."""
    for place, stand_in in _places():
        text = re.sub(_whole(place), stand_in, text)
    return text


def machine_traces(text: str) -> list[str]:
    """Absolute paths of a machine, and this machine's name, found in a text."""
    found = [text[m.start() : m.start() + 40].split()[0] for m in _MACHINE_PATH.finditer(text)]
    found += [p for p, _ in _places() if re.search(_whole(p), text)]
    host = socket.gethostname()
    if len(host) > 5 and host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
        found.append(f"host name {host}")
    return sorted(set(found))


def clean_notebook(notebook: Notebook) -> Notebook:
    """Make an executed notebook the same on every machine and at every time; works in place.

    Removes papermill's paths and timings, the error stream, widget state and version details;
    numbers the cells from 1; replaces paths of this machine in textual outputs.
    """
    kept = {
        k: notebook.metadata[k] for k in ("kernelspec", "mystnb", STAMP) if k in notebook.metadata
    }
    parameters = notebook.metadata.get("papermill", {}).get("parameters")
    notebook.metadata.clear()
    notebook.metadata.update(kept)
    notebook.metadata["language_info"] = {"name": "python"}
    if parameters:
        notebook.metadata["papermill"] = {"parameters": parameters}
    count = 0
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        if cell.cell_type != "code":
            continue
        count += 1
        cell["execution_count"] = count
        cell["outputs"] = [
            o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")
        ]
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = count
            if output.output_type == "stream":
                output["text"] = without_machine_paths(output.text)
            for kind, content in output.get("data", {}).items():
                if isinstance(content, str) and (kind.startswith("text/") or kind.endswith("xml")):
                    output["data"][kind] = without_machine_paths(content)
    return notebook
