"""A made-up study as files, and one hash of the arrays that are read from files."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
from pythia_book import notebooks, records
from pythia_book.papermill_engine import finish
from pythia_book.study import Measurements, Result


def arrays_hash(*arrays: Any) -> str:
    """Return one sha256 of some arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{np.asarray(array).dtype} {np.shape(array)}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass
class Params:
    """The parameters of a made-up study."""

    scale: str = "smoke"
    seeds: int = 2


def save_study(folder: Path, seed: int = 0) -> Path:
    """Write the record and the executed notebook of a made-up study into a folder; return it."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame({"size": ["7k", "13k"], "value": random.normal(size=2)})
    values = {"share": {"value": 0.7012, "low": 0.69, "high": 0.712}, "n": 1584}
    arrays = {"loss/7k": random.normal(size=400).astype(np.float32)}
    done = Measurements(arrays, {"n": 4})
    released = {"crows": pd.DataFrame({"model": ["70m"], "value": [0.5]})}
    records.save_record(
        Result("tiny", Params(), {"levels": table}, values, [], done, released, time.time()), folder
    )
    v4 = nbformat.v4
    parameters = v4.new_code_cell("seeds: int = 2", metadata={"tags": ["parameters"]}, id="p")
    injected = v4.new_code_cell("seeds = 2", metadata={"tags": ["injected-parameters"]}, id="i")
    output = v4.new_output("stream", name="stdout", text=str(values))
    shown = v4.new_code_cell("print(values)", outputs=[output], id="shown")
    cells = [v4.new_markdown_cell("# Tiny\n\nA study.", id="title"), parameters, injected, shown]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    stamp = notebooks.make_stamp("tiny", {"scale": "smoke", "seeds": 2}, notebook)
    finish(notebook, stamp, folder)
    return folder
