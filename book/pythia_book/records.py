"""Writes and reads records, and formats the numbers in them. A record holds the results of a study.

A record is a folder with record.json, one CSV file per table, the measurements (measured.npz), the
released numbers (released_*.csv), any further files of the study (`Measurements.files`) and the
executed notebook. record.json has the hashes of the data files, and the notebook has the hash of
record.json; `check_whole` verifies both. A new record is written to a temporary folder (`staging`),
which then replaces the old record (`swap_in`). A record states its origin, but never contains a
path or a host name.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_book.notebooks import (
    NOTEBOOK,
    STAMP,
    cells_hash,
    conflict,
    is_finished,
    notebook_path,
    notebooks_dir,
    parameters_of,
    read_notebook,
    source_hash,
)
from pythia_book.study import Measurements
from pythia_book.verdicts import KINDS, SIDES, TEST_KEYS, VERDICTS
from pythia_core import __version__
from pythia_core.config import stable_hash
from pythia_core.errors import ConfigError, DataError, count_of, one_of, raise_all
from pythia_core.suite import SCALES, size_name
from pythia_core.util.files import atomic_file, checkout, file_sha256, fsync_dir, project_root
from pythia_core.util.machine import cpu_name
from pythia_core.util.workers import workers_peak_mb

if TYPE_CHECKING:
    import pandas as pd

    from pythia_book.study import Result, Tables

SCHEMA = 2
RECORD_TO = "PYTHIA_RECORD_TO"
"""Environment variable with the folder into which a notebook writes its record."""
REDRAW_FROM = "PYTHIA_REDRAW_FROM"
"""Environment variable with the folder of a record. If it is set, a notebook reads that record's
measurements instead of measuring."""
MEASURED = "measured.npz"
RELEASED = "released_{}.csv"
RELEASED_SOURCE = "EleutherAI/pythia at commit a19eecb, https://github.com/EleutherAI/pythia"
"""The source of the released numbers."""
CLAIM_KEYS = ("kind", "claim", "source", "quote", *SIDES)
_PACKAGES = ("torch", "numpy", "tokenizers", "transformers", "pandas", "papermill")
_REQUIRED = ("study", "scale", "parameters", "config_hash", "created", "values", "claims", "facts")
_REQUIRED += ("files",)
_COMMIT = {"id": str, "dirty": bool}
_TEST = {
    **dict.fromkeys(("value", "low", "high", "bound", "df", "p_value", "p"), float),
    **dict.fromkeys(("unit", "units", "form", "note", "verdict", "reason"), str),
}
_CLAIM = {**dict.fromkeys(CLAIM_KEYS, str), **dict.fromkeys(SIDES, _TEST)}
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("study", "scale", "config_hash", "created"), str),
    **dict.fromkeys(("notebook_sha256", "released_source"), str),
    **dict.fromkeys(("parameters", "values", "facts", "files", "versions"), dict),
    **dict.fromkeys(("duration_s", "training_s", "peak_memory_mb", "disk_mb"), float),
    "claims": [_CLAIM],
    "data": [str],
    "runs": [dict.fromkeys(("id", "size", "role", "precision"), str)],
    "device": {"cpu": str, "cores": int, "threads": int, "gpu": str, "system": str},
    "commit": _COMMIT,
    "redrawn": {"created": str, "commit": _COMMIT},
}
"""The types of a record's entries. A list has the type of its items, and a dict the types of its
entries. A float may be an int. Any entry may be null, except for those in _REQUIRED."""
_NAME = re.compile(r"[a-z][a-z0-9_]*")


# --- writing ---------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Convert a value to JSON types; NaN and infinities become None.

    Raises:
        ConfigError: the value contains something other than numbers, text, lists and dicts.
    """
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ConfigError(
        f"a record cannot store {value!r} of type {type(value).__name__}; use numbers and text, or "
        "lists and dicts of numbers and text"
    )


def _rounded(value: Any) -> Any:
    """Round floats to twelve significant digits; further digits differ between processors."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _wrong_types(value: Any, expected: Any, name: str) -> Iterator[str]:
    """Yield the names of entries in `value` whose type is not that in `expected` (see _TYPES)."""
    if expected is float:
        if not isinstance(value, (int, float)) or not abs(value) < 1e300:  # it may be NaN
            yield name
    elif not isinstance(value, expected if isinstance(expected, type) else type(expected)):
        yield name
    elif isinstance(expected, list):
        for i, item in enumerate(value):
            yield from _wrong_types(item, expected[0], f"{name}.{i}")
    elif isinstance(expected, dict):
        for key, kind in expected.items():
            if value.get(key) is not None:
                yield from _wrong_types(value[key], kind, f"{name}.{key}".removeprefix("."))


def _claim_problems(claims: list[dict[str, Any]]) -> list[str]:
    problems = []
    for claim in claims:
        name = claim.get("claim", "?") if isinstance(claim, dict) else "?"
        if not isinstance(claim, dict) or set(claim) != set(CLAIM_KEYS):
            got = f"the keys {', '.join(claim)}" if isinstance(claim, dict) else repr(claim)
            problems.append(
                f"claim {name!r} must be a dict with the keys {', '.join(CLAIM_KEYS)}; got {got}"
            )
            continue
        if not all(claim[s] is None or TEST_KEYS <= set(claim[s]) for s in SIDES):
            problems.append(
                f"claim {name!r}: each of {' and '.join(SIDES)} must be None or a dict with at "
                f"least the keys {', '.join(sorted(TEST_KEYS))}"
            )
            continue
        if claim["kind"] not in KINDS:
            problems.append(f"claim {name!r}: " + one_of(claim["kind"], KINDS, "kind"))
        for verdict in (claim[side]["verdict"] for side in SIDES if claim[side]):
            if verdict not in VERDICTS:
                problems.append(f"claim {name!r}: " + one_of(verdict, VERDICTS, "verdict"))
    return problems


COMMIT_VARIABLE = "PYTHIA_COMMIT"
"""Environment variable with a bundle's commit, plus "-modified" if packed code was changed."""


def _git(*arguments: str) -> str | None:
    """Return the output of a git command in this checkout, or None if git fails.

    The checkout may belong to another user, as it may in a container.
    """
    root = str(project_root())
    command = ["git", "-c", f"safe.directory={root}", "-C", root, *arguments]
    hook = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # a git hook sets these
    others = {name: value for name, value in os.environ.items() if name not in hook}
    try:
        return subprocess.check_output(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=others,
            encoding="utf-8", timeout=30,
        ).strip()  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def commit() -> dict[str, Any]:
    """Return the commit ("id") and whether the checkout differs from the commit ("dirty").

    Only changes to code, notebooks and pinned versions count. In a bundle, COMMIT_VARIABLE gives
    both values. Unknown values are None.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or checkout() is None or Path(top).resolve() != checkout():
        # a bundle has no git folder
        packed, _, mark = os.environ.get(COMMIT_VARIABLE, "").partition("-")
        return {"id": packed or None, "dirty": bool(mark) if packed else None}
    code = ("pythia_core", "book/pythia_book", "notebooks", "requirements.lock")
    changed = _git("status", "--porcelain", "--", *code)
    return {"id": _git("rev-parse", "--verify", "-q", "HEAD"), "dirty": bool(changed)}


def device() -> dict[str, Any]:
    """Return the processor, threads and GPU of this process, without the host name."""
    torch = sys.modules.get("torch")  # not loaded for a study that never used it
    cuda = torch is not None and torch.cuda.is_available()
    linux = hasattr(os, "sched_getaffinity")
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if linux else os.cpu_count(),
        "threads": torch.get_num_threads() if torch is not None else 1,
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of this book and of the main packages, by name."""
    versions = {"python": platform.python_version(), "pythia-book": __version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _peak_memory_mb() -> int | None:
    """Return the peak memory of this run in MB, including its workers; None on Windows."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    largest = max(resource.getrusage(each).ru_maxrss for each in processes) * unit / 1e6
    return round(largest + workers_peak_mb())


def _run_entry(run: Any) -> dict[str, Any]:
    """Return a record's entry for a pythia_core.training.runs.Run."""
    from pythia_core.training.runs import arm_label

    role, size = arm_label(run.config), size_name(run.config.model)
    seeds = {"weight_seed": run.config.train.weight_seed, "order_seed": run.config.data.order_seed}
    entry = {"id": run.id, "size": size, "role": role, **seeds}
    return entry | {"precision": run.config.train.precision, "final_sha256": run.final_sha256}


def _disk_mb(runs: list[Any]) -> int:
    files = [f for run in runs for f in Path(run.folder).rglob("*") if f.is_file()]
    return round(sum(f.stat().st_size for f in files) / 1e6)


def record_folder() -> Path | None:
    """Return the folder for this notebook's record; None if the run is not recorded."""
    folder = os.environ.get(RECORD_TO)
    return Path(folder) if folder else None


def redraw_source() -> Path | None:
    """Return the folder of the record to redraw; None if the study is to be measured."""
    folder = os.environ.get(REDRAW_FROM)
    return Path(folder) if folder else None


def recorded_folder(study: str) -> Path | None:
    """Return the folder of a study's largest-scale run in book/recorded; None without a run."""
    folders = [project_root() / "book" / "recorded" / study / scale for scale in reversed(SCALES)]
    return next((folder for folder in folders if (folder / "record.json").is_file()), None)


def _write_csv(table: pd.DataFrame, path: Path | io.StringIO) -> None:
    table.to_csv(path, index=False, float_format="%.8g", lineterminator="\n")


def _read_csv(source: Path | io.StringIO) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(source, keep_default_na=False, na_values=[""])


def facts_as_recorded(facts: dict[str, Any]) -> dict[str, Any]:
    """Convert facts as a record does: tuples become lists, and keys become strings."""
    return json.loads(json.dumps(_plain(facts)))


def as_recorded(tables: Tables) -> Tables:
    """Convert tables to CSV and back, so that a later redraw reads exactly the same tables."""
    copies = {}
    for name, table in tables.items():
        stream = io.StringIO()
        _write_csv(table, stream)
        stream.seek(0)
        copies[name] = _read_csv(stream)
    return copies


def save_record(result: Result, folder: Path) -> Path:
    """Save the result of a study to a folder, record.json last; return the path of record.json.

    Raises:
        ConfigError: the scale, names or claims are invalid; the message lists all problems.
    """
    study, scale, parameters = result.study, result.scale, result.parameters
    problems = [] if scale in SCALES else [one_of(scale, SCALES, "scale")]
    for kind, names in (
        ("table", result.tables), ("released table", result.released), ("value", result.values)
    ):  # fmt: skip
        problems += [
            f"the name {n!r} of a {kind} must start with a-z and have only a-z, 0-9 and _"
            for n in names
            if not _NAME.fullmatch(n)
        ]
    names = [
        *(f"{name}.csv" for name in result.tables),
        *map(RELEASED.format, result.released),
        *result.measured.files,
        *(MEASURED, NOTEBOOK, "record.json"),
    ]
    problems += [
        f"two of its files would have the name {name}"
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    problems += [
        f"the name {name!r} of a file must not contain a folder; use the bare file name"
        for name in result.measured.files
        if name != Path(name).name
    ]
    raise_all(ConfigError, problems + _claim_problems(result.claims), "record")
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.csv": table for name, table in sorted(result.tables.items())}
    files |= {RELEASED.format(name): table for name, table in sorted(result.released.items())}
    listed = {}
    for name, table in files.items():
        with atomic_file(folder / name) as temporary:
            _write_csv(table, temporary)
        listed[name] = {"rows": len(table), "sha256": file_sha256(folder / name)}
    redrawn = redraw_source()
    with atomic_file(folder / MEASURED) as temporary, open(temporary, "wb") as file:
        if redrawn:
            file.write((redrawn / MEASURED).read_bytes())
        else:
            np.savez_compressed(file, allow_pickle=False, **result.measured.arrays)
    listed[MEASURED] = {
        "rows": len(result.measured.arrays),
        "sha256": file_sha256(folder / MEASURED),
    }
    for name, content in result.measured.files.items():
        with atomic_file(folder / name) as temporary:
            temporary.write_bytes(content)
        listed[name] = {"bytes": len(content), "sha256": file_sha256(folder / name)}
    source = notebooks_dir() / f"{study}.ipynb"
    record = {
        "schema": SCHEMA,
        "study": study,
        "scale": scale,
        "parameters": parameters,
        "config_hash": stable_hash(_plain({"study": study, "scale": scale, **parameters})),
        **(_origin_of(redrawn) if redrawn else _origin(result)),
        "notebook_sha256": source_hash(read_notebook(source)) if source.is_file() else None,
        "values": _rounded(_plain(result.values)),
        "claims": _rounded(_plain(result.claims)),
        "facts": result.measured.facts,
        "released_source": RELEASED_SOURCE if result.released else None,
        "files": listed,
    }
    target = folder / "record.json"
    with atomic_file(target) as temporary:
        content = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(content + "\n", encoding="utf-8")
    return target


_ORIGIN = ("data", "commit", "device", "versions", "created", "duration_s", "training_s")
_ORIGIN += ("peak_memory_mb", "disk_mb", "runs")


def _origin(result: Result) -> dict[str, Any]:
    """Return the origin of a new record: data, commit, device, versions, cost and runs."""
    runs, stated = result.measured.runs, result.measured.origin
    return {
        "data": sorted({*(run.data.fingerprint for run in runs), *stated.data}),
        "commit": commit(),
        "device": device() | stated.device,
        "versions": versions(),
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "duration_s": round(time.time() - result.started, 1),
        "training_s": round(sum(run.seconds for run in runs) + stated.training_s, 1),
        "peak_memory_mb": _peak_memory_mb(),
        "disk_mb": _disk_mb(runs),
        "runs": [_run_entry(run) for run in runs],
    }


def _origin_of(folder: Path) -> dict[str, Any]:
    """Return the origin of an old record, plus today's date and the current commit as `redrawn`."""
    record = read_record(folder)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    redrawn = {"created": today, "commit": commit()}
    return {key: record.get(key) for key in _ORIGIN} | {"redrawn": redrawn}


# --- reading ---------------------------------------------------------------------------------


def read_measurements(folder: Path, study: str, parameters: dict[str, Any]) -> Measurements:
    """Read the measurements of the record in `folder`.

    Raises:
        DataError: the record is damaged, or has another study or other parameters.
    """
    record = read_record(folder)
    stated = {name: parameters.get(name) for name in record["parameters"]}
    if record["study"] != study or stated != record["parameters"]:
        raise DataError(
            f"the record in {folder} is from the study {record['study']} with the parameters "
            f"{record['parameters']}; expected {study} with {stated}; run the study again"
        )
    path = folder / MEASURED
    try:
        if file_sha256(path) != record["files"][MEASURED]["sha256"]:
            raise DataError(f"{_differs(path)}; run the study again")
        files = {
            name: (folder / name).read_bytes()
            for name in record["files"]
            if name != MEASURED and not name.endswith(".csv")
        }
        for name, content in files.items():
            if hashlib.sha256(content).hexdigest() != record["files"][name]["sha256"]:
                raise DataError(f"{_differs(folder / name)}; run the study again")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; run the study again") from error
    return Measurements(read_arrays(path), record["facts"], files=files)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an .npz file; raise DataError if that is impossible."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as arrays:
            loaded = dict(arrays)
        if others := [name for name, array in loaded.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{others[0]} is not an array")
        return loaded
    except Exception as error:  # zipfile, zlib, numpy and Python's parser each have their own
        raise DataError(f"{path} cannot be read: {error}; run the study again") from error


def _differs(name: object) -> str:
    """Return the message about a file whose hash is not the recorded hash."""
    return f"{name} was changed or damaged: its sha256 is not the sha256 in record.json"


def read_released(folder: Path | None) -> Tables:
    """Read the released numbers of the record in `folder`; no tables if `folder` is None.

    Raises:
        DataError: the record is damaged.
    """
    if folder is None:
        return {}
    prefix, suffix = RELEASED.split("{}")
    record = read_record(folder)
    names = [n for n in record["files"] if n.startswith(prefix) and n.endswith(suffix)]
    for name in names:
        if file_sha256(folder / name) != record["files"][name]["sha256"]:
            raise DataError(f"{_differs(folder / name)}; run the study again")
    return {n.removeprefix(prefix).removesuffix(suffix): _read_csv(folder / n) for n in names}


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """Read the table `name` of the record in `folder`.

    Raises:
        DataError: the record is absent or damaged, or has no such table.
    """
    path = folder / f"{name}.csv"
    entry = read_record(folder)["files"].get(path.name)
    if entry is None:
        raise DataError(f"the record in {folder} has no table {name}; run the study again")
    if not path.is_file() or file_sha256(path) != entry["sha256"]:
        raise DataError(f"{_differs(path)}; run the study again")
    return _read_csv(path)


def check_whole(folder: Path, named: bool = True) -> list[str]:
    """List problems in a record's folder: files missing, edited, unreadable or from another run.

    Args:
        named: check also that the path ends with the record's <study>/<scale>.
    """
    problems = []
    try:
        record = read_record(folder)
    except DataError as error:
        return [str(error)]
    owner = record["study"], record["scale"]
    if named and folder.absolute().parts[-2:] != owner:
        place = "/".join(folder.absolute().parts[-2:])
        problems.append(
            f"record.json is from the study {owner[0]} at scale {owner[1]}, but is in a folder "
            f"{place}"
        )
    for name, entry in record["files"].items():
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif file_sha256(folder / name) != entry["sha256"]:
            problems.append(_differs(name))
    try:
        notebook = read_notebook(folder / NOTEBOOK)
    except DataError as error:
        return [*problems, str(error)]
    if not is_finished(notebook):
        problems.append(f"{NOTEBOOK} did not run to its end, or a cell in it failed")
    elif notebook.metadata[STAMP].get("record") != file_sha256(folder / "record.json"):
        problems.append(f"{NOTEBOOK} and record.json are from different runs")
    elif notebook.metadata[STAMP].get("cells") != cells_hash(notebook):
        problems.append(f"{NOTEBOOK} was edited after the run")
    return problems


def is_current(folder: Path, stamp: dict[str, Any]) -> bool:
    """Return whether a folder has a complete record whose notebook has this stamp."""
    if not folder.is_dir() or check_whole(folder):
        return False
    full_stamp = read_notebook(folder / NOTEBOOK).metadata[STAMP]
    later = ("record", "cells")  # added to the stamp when the run has ended
    return {k: value for k, value in full_stamp.items() if k not in later} == stamp


def read_record(path: Path) -> dict[str, Any]:
    """Read record.json, given its path or its folder.

    Raises:
        DataError: the file does not exist or is not a valid record.
    """
    path = path / "record.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no record at {path}; run the study first") from error
    except (OSError, ValueError, RecursionError) as error:
        reason = conflict(path) or str(error)
        raise DataError(f"{path} is not a record ({reason}); run the study again") from error
    if not isinstance(record, dict):
        raise DataError(
            f"{path} is not a record (it has a JSON {type(record).__name__} instead of a JSON "
            "object); run the study again"
        )
    if record.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {record.get('schema')}, but this version of pythia_book reads only "
            f"schema {SCHEMA}; run the study again"
        )
    if missing := [key for key in _REQUIRED if record.get(key) is None]:
        raise DataError(
            f"{path} is not a record (missing keys: {', '.join(missing)}); run the study again"
        )
    if wrong := [*_wrong_types(record, _TYPES, "")]:
        raise DataError(
            f"{path} is not a record (values of the wrong type under the keys: "
            f"{', '.join(wrong)}); run the study again"
        )
    files = record["files"]
    if MEASURED not in files or not all(
        name == Path(name).name and isinstance(entry, dict) and "sha256" in entry
        for name, entry in files.items()
    ):
        raise DataError(
            f"{path} is not a record (the entry `files` must list {MEASURED}, must name only files "
            "in the same folder, and must have a sha256 for each); run the study again"
        )
    raise_all(DataError, _claim_problems(record["claims"]), str(path))
    return record


# --- replacing a run as a whole --------------------------------------------------------------


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield an empty temporary folder for a new version of `target`, to be moved with `swap_in`.

    The folder is removed at the end of the block. Leftovers of killed processes are removed first.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    tidy(target)
    prefix = f".{target.name}.run-{os.getpid()}@{socket.gethostname()}-"
    place = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    (place / "new").mkdir()
    try:
        yield place / "new"
    finally:
        _settle(place, target)


def swap_in(new: Path, target: Path) -> None:
    """Replace `target` by the folder `new` from `staging`, keeping files that no run has written.

    The exchange is atomic if the system supports that. Otherwise two renames are made, and `tidy`
    restores the old folder if the process was killed between the renames. Of two processes that
    swap at the same time, the last one wins.
    """
    _keep_foreign_files(target, new)
    for file in new.rglob("*"):
        if not file.is_file():
            continue
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    fsync_dir(new)
    if not _exchange(new, target):
        aside = new.with_name("old")
        while new.exists():
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, aside)
            try:
                os.rename(new, target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
    fsync_dir(target.parent)


def _keep_foreign_files(old: Path, new: Path) -> None:
    """Copy to `new` the entries of `old` that do not come from a run, without overwriting."""
    written = {NOTEBOOK, "record.json"}
    with contextlib.suppress(FileNotFoundError):  # another process may be swapping `old`
        entries = list(old.iterdir())
        try:
            written |= set(read_record(old)["files"])
        except DataError:  # of an older schema, or damaged
            written |= {entry.name for entry in entries if entry.suffix in (".csv", ".npz")}
        for entry in entries:
            if entry.name in written or (new / entry.name).exists():
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.copytree(entry, new / entry.name, symlinks=True)
            else:
                shutil.copy2(entry, new / entry.name, follow_symlinks=False)


def tidy(target: Path) -> None:
    """Clean up after processes on this machine that were killed in `staging` or `swap_in`.

    Temporary folders are removed. If `target` is missing, the old version is restored.
    """
    pattern = re.compile(r"\.run-(\d+)@(.*)-[^-]*")
    for place in target.parent.glob(f".{target.name}.run-*"):
        made_by = pattern.search(place.name)
        if made_by and made_by[2] == socket.gethostname() and not _is_alive(int(made_by[1])):
            _settle(place, target)


def _settle(place: Path, target: Path) -> None:
    if not target.exists():
        with contextlib.suppress(OSError):
            os.rename(place / "old", target)
    shutil.rmtree(place, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders atomically with renameat2 (Linux); return whether it succeeded."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


# --- as text ---------------------------------------------------------------------------------


def duration_text(seconds: float) -> str:
    """Format a duration, e.g. "12 s", "4 min 12 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def number_text(value: Any, decimals: int | None = None) -> str:
    """Format a value for prose, with thousands separators; None is "n/a".

    By default, a float has three significant digits, or fewer if two already represent it
    exactly, e.g. 0.05.
    """
    if value is None:
        return "n/a"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    exact = decimals is None and value != 0 and float(f"{value:.2g}") == value
    if decimals is None:
        decimals = 0 if isinstance(value, int) else decimals_of(value)
    text = f"{value:,.{decimals}f}"
    if exact and "." in text:
        text = text.rstrip("0").rstrip(".")
    if not text.strip("-0.,"):
        text = text.lstrip("-")  # a rounded zero has no sign
    return text.replace("-", "\N{MINUS SIGN}")


def decimals_of(value: float) -> int:
    """Return the number of decimals, at most six, that shows three significant digits."""
    if not value or not math.isfinite(value):
        return 1
    value = float(f"{value:.3g}")  # 0.009999 has the decimals of 0.0100
    return min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


def value_text(value: Any) -> str:
    """Format a value of a record for prose, with its interval if it has one."""
    if not isinstance(value, dict):
        return number_text(value)
    middle, low, high = _interval_texts(*(value.get(k) for k in ("value", "low", "high")))
    return f"{middle} [{low},\N{NO-BREAK SPACE}{high}]"


def _interval_texts(*numbers: Any) -> list[str]:
    """Format a value and the ends of its interval; a narrower interval gets more decimals.

    If an end would be rounded to 0, one more decimal is added if that shows its sign.
    """
    _, low, high = numbers
    if not all(isinstance(n, (int, float)) for n in numbers) or not low < high:
        return [number_text(number) for number in numbers]
    decimals = min(6, max(0, 1 - math.floor(math.log10(high - low))))
    decimals += any(round(end, decimals) == 0 != round(end, decimals + 1) for end in (low, high))
    return [number_text(float(number), decimals) for number in numbers]


def measured_text(test: dict[str, Any] | None) -> str:
    """Format a claim's measurement, e.g. "1.2 points (95 % CI 0.4 to 2.0)"; a dash for none."""
    if test is None or test["value"] is None:
        return "\N{EN DASH}"
    value, low, high = (test[key] for key in ("value", "low", "high"))
    gap = "\N{NO-BREAK SPACE}"
    unit = f"{gap}{test['unit']}" if test["unit"] else ""
    if low is None or high is None or not low < high:
        return number_text(value) + unit
    middle, low, high = _interval_texts(value, low, high)
    return f"{middle}{unit} (95{gap}% CI{gap}{low} to{gap}{high})"


def device_text(record: dict[str, Any], trained: bool = False) -> str:
    """Name the GPU (else the CPU and its threads), and any recorded precisions of the runs.

    With `trained`, the threads are not named, because they are those of the notebook, not of
    training.
    """
    machine = record.get("device") or {}
    cpu = machine.get("cpu", "unknown processor")
    if not trained:
        threads = machine.get("threads")
        cpu += f", {count_of(threads, 'thread') if threads else '? threads'}"
    precisions = {run["precision"] for run in record.get("runs") or () if "precision" in run}
    return ", ".join([str(machine.get("gpu") or cpu), *sorted(precisions)])


def command(record: dict[str, Any]) -> str:
    """Return the command that repeats the run of a record."""
    study = record["study"]
    words = ["papermill", f"notebooks/{study}.ipynb"]
    try:
        accepted = parameters_of(read_notebook(notebook_path(study)))
        defaults = {name: parameter.default for name, parameter in accepted.items()}
    except (ConfigError, DataError):
        defaults = {"scale": "laptop"}
    for name, value in {**record["parameters"], "scale": record["scale"]}.items():
        default = defaults.get(name)
        if value == (list(default) if isinstance(default, tuple) else default):
            continue
        if isinstance(value, (list, tuple, dict)):
            words += ["-y", json.dumps({name: value})]
        else:  # -p converts a string that looks like a number, -r does not
            number = isinstance(value, str) and re.fullmatch(r"[-+\d.e]+|True|False|None", value)
            words += ["-r" if number else "-p", name, str(value)]
    return shlex.join(words)


def provenance(record: dict[str, Any]) -> str:
    """Return one line with the origin of a record and the command that repeats the run."""
    state = record.get("commit") or {}
    code = (state.get("id") or "")[:10] or "uncommitted"
    hashes = [each[:10] for each in record.get("data", [])]
    more = f" and {len(hashes) - 3} more" if len(hashes) > 3 else ""
    data = ", ".join(hashes[:3]) + more or "none"
    parts = [
        f"config {record['config_hash'][:10]}",
        f"data {data}",
        f"commit {code}{' (modified)' if state.get('dirty') and state.get('id') else ''}",
        device_text(record),
        duration_text(record.get("duration_s") or 0),
        record["created"],
        command(record),
    ]
    return " · ".join(parts)
