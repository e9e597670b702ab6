"""Reads and checks the notebooks of studies, and stamps and cleans executed notebooks.

notebooks/<study>.ipynb has no outputs, and one cell tagged `parameters`. A run writes an executed
notebook to results/<study>/<scale>/notebook.ipynb. The metadata of that notebook has a stamp: the
parameters, and the hashes of the code cells, of all Python files and of the record. A run is up to
date if the parameters and the hashes of the code are still the same.

This module rejects unknown parameters, because papermill only warns about them. Cleaning removes
paths, the host name, timings and versions, so that notebooks are reproducible.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
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
from pythia_core.util.files import atomic_file, cache_dir, project_root, results_dir

Notebook = Any
"""An nbformat NotebookNode: a dict with attribute access."""

NOTEBOOK = "notebook.ipynb"
"""The name of the executed notebook in the folder of a run."""
STAMP = "pythia"
"""Key of the stamp in the metadata of an executed notebook."""
STOP_NOTE = "what was trained and measured is kept"
"""The end of the message about a stopped study."""

_TYPES = {
    **{"str": str, "int": int, "float": (int, float), "bool": bool, "None": type(None)},
    "dict": dict,
}


@dataclass(frozen=True)
class Parameter:
    """An assignment in the cell tagged `parameters` of a notebook."""

    name: str
    type: str
    default: Any
    help: str

    def __str__(self) -> str:
        text = f"{self.name}: {self.type} = {self.default!r}"
        return f"{text}  ({self.help})" if self.help else text


# --- reading ---------------------------------------------------------------------------------


def notebooks_dir() -> Path:
    """Return the folder of the source notebooks: notebooks/, or a copy in an installed package."""
    copies = Path(__file__).with_name("_notebooks")
    return copies if copies.is_dir() else project_root() / "notebooks"


def notebook_path(study: str) -> Path:
    """Return the path of the source notebook of a study.

    Raises:
        ConfigError: the study is unknown.
    """
    paths = {path.stem: path for path in sorted(notebooks_dir().glob("*.ipynb"))}
    if study not in paths:
        raise ConfigError(one_of(study, paths or ["(no notebook found)"], "study"))
    return paths[study]


def read_notebook(path: Path) -> Notebook:
    """Read a notebook and convert it to format 4.

    Raises:
        DataError: the file does not exist or is not a notebook.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise DataError(f"there is no notebook at {path}") from error
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError,
    ) as error:  # fmt: skip
        raise DataError(f"{path} is not a notebook ({conflict(path) or error})") from error


def conflict(path: Path) -> str:
    """Return "unresolved merge conflict" if the file has the markers of a conflict, else ""."""
    try:
        marker = re.search(rb"^(<<<<<<<|>>>>>>>) ", path.read_bytes(), flags=re.MULTILINE)
    except OSError:
        return ""
    return "unresolved merge conflict" if marker else ""


def write_notebook(notebook: Notebook, path: Path) -> None:
    """Write a notebook atomically, unless the file already has the same content."""
    import nbformat

    content = nbformat.writes(notebook) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == content:
        return
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def source_hash(notebook: Notebook) -> str:
    """Return the sha256 of the code cells, without the cell of injected parameters."""
    sources = [
        cell.source.strip()
        for cell in notebook.cells
        if cell.cell_type == "code" and "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def cells_hash(notebook: Notebook) -> str:
    """Return the sha256 of all cells, with their metadata and outputs."""
    return hashlib.sha256(json.dumps(notebook.cells, sort_keys=True).encode()).hexdigest()


def library_hash() -> str:
    """Return one sha256 of all Python files of pythia_core and pythia_book."""
    import pythia_core

    digest = hashlib.sha256()
    for package in (Path(pythia_core.__file__).resolve().parent, Path(__file__).resolve().parent):
        for file in sorted(package.rglob("*.py")):
            digest.update(f"{file.relative_to(package.parent).as_posix()}\0".encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()


# --- parameters ------------------------------------------------------------------------------


def parameters_of(notebook: Notebook) -> dict[str, Parameter]:
    """Read the parameters from the cell tagged `parameters`, by name.

    Raises:
        DataError: there is not exactly one such cell, or a default is not a literal.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise DataError(
            "the notebook of a study must have exactly one cell with the tag 'parameters', but "
            f"{len(cells)} cells have this tag"
        )
    lines = cells[0].source.splitlines()
    parameters = {}
    for node in ast.parse(cells[0].source).body:
        annotated = isinstance(node, ast.AnnAssign)
        target = node.target if annotated else None
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target = node.targets[0]
        if not isinstance(target, ast.Name):
            continue  # a docstring; imports do not belong here but do no harm
        try:
            default = ast.literal_eval(node.value)
        except ValueError as error:
            raise DataError(
                f"in the parameters cell, the default of {target.id!r} must be a literal such as "
                f"1 or 'laptop', got {ast.unparse(node.value)}"
            ) from error
        kind = ast.unparse(node.annotation) if annotated else type(default).__name__
        _, _, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")
        parameters[target.id] = Parameter(target.id, kind, default, comment.strip())
    return parameters


def _fits(value: Any, kind: ast.expr) -> bool:
    """Return whether a value has a type like `tuple[str, ...] | None`; True for unknown types."""
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return _fits(value, kind.left) or _fits(value, kind.right)
    name = ast.unparse(kind.value if isinstance(kind, ast.Subscript) else kind)
    if name in ("list", "tuple", "Sequence"):  # papermill turns a tuple into a list
        if not isinstance(kind, ast.Subscript):
            return isinstance(value, (list, tuple))
        items = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
        items = [e for e in items if not (isinstance(e, ast.Constant) and e.value is ...)]
        return isinstance(value, (list, tuple)) and all(
            any(_fits(v, e) for e in items) for v in value
        )
    if isinstance(value, bool) and name in ("int", "float"):
        return False
    return isinstance(value, _TYPES.get(name, object))  # other annotations are not checked


def _is_utf8(text: str) -> bool:
    """Return whether a text is valid UTF-8. A word of a command line may have other bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_parameters(words: list[str], accepted: dict[str, Parameter]) -> dict[str, Any]:
    """Parse words NAME=VALUE; a value that is not a Python literal is a string.

    The value of a parameter of type `str` stays a string: "0,1" is not read as a pair of numbers.

    Args:
        accepted: the notebook's parameters (`parameters_of`).

    Raises:
        ConfigError: a word has no "=" or no name.
    """
    parameters: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"a parameter must be written NAME=VALUE, got {word!r}")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = text
        is_text = name in accepted and accepted[name].type == "str"
        parameters[name] = text if is_text and not isinstance(value, str) else value
    return parameters


def validate_parameters(notebook: Notebook, parameters: dict[str, Any]) -> dict[str, Any]:
    """Check names and types of parameters; return all parameters, including defaults.

    Raises:
        ConfigError: a parameter or the scale is unknown, or a type is wrong. The message lists all
            problems and the accepted parameters.
    """
    accepted = parameters_of(notebook)
    problems = []
    for name, value in parameters.items():
        if name not in accepted:
            problems.append(one_of(name, accepted, "parameter"))
        elif isinstance(value, str) and not _is_utf8(value):
            problems.append(f"parameter {name!r} must be UTF-8 text, got {value!r}")
        elif not _fits(value, ast.parse(accepted[name].type, mode="eval").body):
            kind = accepted[name].type
            hint = "; put quotes around text that looks like another type" if kind == "str" else ""
            problems.append(f"parameter {name!r} must be of type {kind}, got {value!r}{hint}")
        elif name == "scale" and value not in SCALES:
            problems.append(one_of(value, SCALES, "scale"))
    if problems:
        listing = "\n".join(f"    {parameter}" for parameter in accepted.values())
        problems[-1] += f"\n  accepted parameters:\n{listing}"
    raise_all(ConfigError, problems, "parameters")
    return {name: parameters.get(name, p.default) for name, p in accepted.items()}


def check_values(study: str, values: dict[str, Any]) -> None:
    """Check the values with the dataclass `Params` and the optional function `check` of a study.

    The types must have been checked. A study without a folder under studies/ accepts all values.

    Raises:
        ConfigError: the study rejects a value.
    """
    package = f"pythia_book.studies.{study}"
    if study.isidentifier() and importlib.util.find_spec(package):
        params = importlib.import_module(f"{package}.params").Params(**values)
        check = getattr(importlib.import_module(f"{package}.study"), "check", None)
        if check is not None:
            check(params)


# --- running ---------------------------------------------------------------------------------


def make_stamp(study: str, parameters: dict[str, Any], notebook: Notebook) -> dict[str, Any]:
    """Return the stamp of a run: a dict of everything that determines the result."""
    return {
        "study": study,
        "parameters": json.loads(json.dumps(parameters)),
        "source_hash": source_hash(notebook),
        "library_hash": library_hash(),
        "published_numbers": bool(os.environ.get("PYTHIA_PUBLISHED_DIR")),
    }


def output_path(study: str, scale: str) -> Path:
    """Return the path of the executed notebook of a study."""
    return results_dir() / study / scale / NOTEBOOK


def unfinished_path(output: Path) -> Path:
    """Return the path for a notebook that did not finish, next to the folder of `output`."""
    return output.parent.with_name(f"{output.parent.name}-unfinished.ipynb")


def has_errors(notebook: Notebook) -> bool:
    """Return whether a cell of an executed notebook failed."""
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return any(output.output_type == "error" for output in outputs)


def is_finished(notebook: Notebook) -> bool:
    """Return whether a notebook has a stamp and no failed cell."""
    return isinstance(notebook.metadata.get(STAMP), dict) and not has_errors(notebook)


# --- cleaning --------------------------------------------------------------------------------

_MACHINE_PATH = re.compile(
    r"(?<![\w.~-])(?:/(?:home|root|Users|tmp|private|mnt|scratch|var/folders)/[\w.-]"
    r"|[A-Za-z]:\\{1,2}Users\\)"
)


def _substitutes() -> list[tuple[str, str]]:
    """List pairs (folder of this machine, text that replaces the folder), longest folder first."""
    substitutes = {
        str(results_dir().resolve()): "results",
        str(project_root().resolve()): ".",
        sys.prefix: "[environment]",
        sys.base_prefix: "[python]",
        os.path.expanduser("~"): "~",
    }
    for find, substitute in ((cache_dir, "[cache]"), (tempfile.gettempdir, "[tmp]")):
        with contextlib.suppress(ConfigError, OSError):  # there may be none
            substitutes[str(find())] = substitute
    return sorted(
        (item for item in substitutes.items() if len(item[0]) > 3), key=lambda i: -len(i[0])
    )


def _pattern(folder: str) -> str:
    """Return a regex that matches a folder's path, but not as part of a longer name."""
    return rf"(?<![\w.~-]){re.escape(folder)}(?![\w-])"


def without_machine_paths(text: str) -> str:
    """Replace folders of this machine by neutral texts, e.g. "results" or "[cache]"."""
    for folder, substitute in _substitutes():
        text = re.sub(_pattern(folder), substitute, text)
    return text


def machine_traces(text: str) -> list[str]:
    """List the absolute paths in a text, and the host name if it occurs."""
    traces = [text[m.start() : m.start() + 40].split()[0] for m in _MACHINE_PATH.finditer(text)]
    traces += [folder for folder, _ in _substitutes() if re.search(_pattern(folder), text)]
    host = socket.gethostname()
    if len(host) > 5 and host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
        traces.append(f"host name {host}")
    return sorted(set(traces))


PATH_PARAMETERS = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")
"""Parameters that papermill adds with options such as --inject-paths. They change no result."""


def clean_notebook(notebook: Notebook) -> Notebook:
    """Make an executed notebook reproducible; change it in place and return it.

    Versions, widget states, stderr, timings and paths are removed. Code cells are numbered from 1,
    and injected parameters are sorted, as in a redraw.
    """
    metadata = notebook.metadata
    parameters = metadata.get("papermill", {}).get("parameters") or {}
    parameters = {name: parameters[name] for name in parameters if name not in PATH_PARAMETERS}
    retained = {k: metadata[k] for k in ("kernelspec", "mystnb", STAMP) if k in metadata}
    metadata.clear()
    metadata.update(retained, language_info={"name": "python"})
    if parameters:
        metadata["papermill"] = {"parameters": parameters}
    count = 0
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
            lines = cell.source.splitlines(keepends=True)
            lines = [line for line in lines if not line.startswith(PATH_PARAMETERS)]
            cell["source"] = "".join(sorted(lines, key=lambda x: (not x.startswith("#"), x)))
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
