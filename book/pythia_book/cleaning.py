"""Make an executed notebook the same on every machine and at every time it was run.

What a notebook says about the machine it ran on (paths, host name, timings, versions) is noise in a
comparison and does not belong in a repository. Used when a run ends and before one is recorded.
"""

from __future__ import annotations

import re
import socket
import sys
import tempfile
from pathlib import Path

from pythia_book.notebooks import STAMP, Notebook
from pythia_core.util.files import cache_dir, project_root, results_dir

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
