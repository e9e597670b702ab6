"""Flip one bit at a time in every kind of file that the project writes, and see who notices.

A `Kind` has files and a function that reads them as the project does. After each flip, the outcome
is one of OUTCOMES. Files are restored before the next flip.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from continued_fakes import publish
from pythia_book import bundle, measurements, notebooks, records
from pythia_book.corpora.facts import cached_json
from pythia_book.measurements import measure_all
from pythia_book.released.continuation.run import find_or_continue
from pythia_book.released.convert import convert
from pythia_book.released.convert import read as read_model
from tiny_runs import control
from tiny_study import arrays_hash, save_study
from tiny_training import batch_at, config
from tiny_wheel import write_tiny_wheel

from pythia_core.config import RunConfig, config_dict
from pythia_core.data.downloads import Wheel, wheel_bytes
from pythia_core.data.prepare import prepare
from pythia_core.errors import PythiaError
from pythia_core.training import precision
from pythia_core.training.checkpoint import (
    load_checkpoint,
    saved_steps,
    sha256_tensors,
    step_folder,
)
from pythia_core.training.metrics import read_metrics
from pythia_core.training.runs import Run, find_or_train, find_run, verify
from pythia_core.training.train import train

OUTCOMES = ("refused", "repaired", "harmless", "unnamed", "traceback", "silent")
"""What can follow a flip: an error that names the file; the file is made anew, or the run goes back
to an older state, with the right result; all values that are read are the same; an error that does
not name the file; a traceback instead of a message; another result without a word."""
BAD = OUTCOMES[3:]
"""Those that must not occur."""


class Unnoticed(Exception):
    """One reader found the damage, but another that should find it, too, did not."""


@dataclass(frozen=True)
class Kind:
    """Files of one kind, and how the project reads them.

    Attributes:
        read: returns all that the project gets from the files, and whether it repaired something.
        named: errors that say what is wrong in a program that is not ours, e.g. tar.
    """

    name: str
    files: list[Path]
    read: Callable[[], tuple[Any, bool]]
    named: tuple[type[Exception], ...] = ()


def flip(path: Path, random: np.random.Generator) -> str:
    """Flip one random bit of a file; return where."""
    content = bytearray(path.read_bytes())
    position, bit = int(random.integers(len(content))), int(random.integers(8))
    content[position] ^= 1 << bit
    path.write_bytes(content)
    return f"{path}, byte {position}, bit {bit}"


def count(kind: Kind, flips: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Flip bits in files of a kind.

    Returns:
        The number of flips by outcome, and a description of each that is unnamed or silent.
    """
    random = np.random.default_rng([seed, *kind.name.encode()])
    expected, outcomes, bad = kind.read()[0], Counter[str](), []
    files = [file for file in kind.files if file.stat().st_size]
    for _ in range(flips):
        file = files[random.integers(len(files))]
        with _Kept(file.parent) as restore:
            place = flip(file, random)
            outcome, detail = _outcome(kind, file, expected)
            restore()
        outcomes[outcome] += 1
        if outcome in BAD:
            bad.append(f"{kind.name}: {outcome}: {place}: {detail}")
    return outcomes, bad


class _Kept:
    """Keeps a copy of a folder, to restore it after a flip and whatever the flip led to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copy = folder.with_name(f".{folder.name}.copy")

    def __enter__(self) -> Callable[[], None]:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._folder, self._copy)
        return self._restore

    def _restore(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        for aside in self._folder.parent.glob(f"{self._folder.name}.corrupt"):
            shutil.rmtree(aside)
        self._copy.rename(self._folder)

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)


def _outcome(kind: Kind, file: Path, expected: Any) -> tuple[str, str]:
    """Read the files of a kind, and return the outcome with a detail for the report.

    Args:
        file: the one that is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found, repaired = kind.read()
        except (PythiaError, *kind.named) as error:
            return "refused" if _names(str(error), file, kind) else "unnamed", str(error)
        except Unnoticed as error:
            return "silent", str(error)
        except Exception as error:
            return "traceback", f"{type(error).__name__}: {error}"
    if found != expected:
        return "silent", "another value was read"
    return ("repaired" if repaired else "harmless"), ""


def _names(message: str, file: Path, kind: Kind) -> bool:
    """Return whether a message names a file, and its folder if another has the same name."""
    alike = [other for other in kind.files if other.name == file.name]
    return file.name in message and (len(alike) == 1 or file.parent.name in message)


# --- the kinds -------------------------------------------------------------------------------


def all_kinds(root: Path, patch: pytest.MonkeyPatch) -> list[Kind]:
    """Make files of every kind in an empty folder. `patch` sets the places of results and cache."""
    patch.setenv("PYTHIA_RESULTS", str(root / "results"))
    patch.setenv("PYTHIA_CACHE", str(root / "cache"))
    fork = control(root).fork("masculine_to_feminine", 12, 17)
    run = find_or_train(fork, progress=False)
    return [
        *finished_run(run),
        *unfinished_run(root / "unfinished"),
        *prepared_text(fork),
        measured(run, patch),
        other_caches(),
        chosen_precision(root / "cache", patch),
        *record(root / "record"),
        downloaded(root / "cache"),
        packed(root / "bundle"),
        *continued(root / "continued"),
        converted(root / "converted", run),
    ]


def finished_run(run: Run) -> list[Kind]:
    """The files of a finished run, read as studies do and, on its own, as `verify` does."""

    def states(folder: Path) -> dict[str, str]:
        return {name: sha256_tensors(t) for name, t in load_checkpoint(folder)[0].items()}

    def studied() -> Any:
        found = find_run(str(run.folder))
        ledger = found.ledger
        assert ledger is not None
        return [
            found.final_sha256,
            found.metrics(),
            ledger.summary(),
            arrays_hash(ledger.row, ledger.column, ledger.old, ledger.new),
            config_dict(found.config),
            [sha256_tensors(found.model(step).state_dict()) for step in found.steps],
            [states(step_folder(found.states, step)) for step in saved_steps(found.states)],
        ]

    def read() -> tuple[Any, bool]:
        try:
            verify(find_run(str(run.folder)))
            clean = True
        except PythiaError:
            clean = False
        try:
            return studied(), False
        except PythiaError:
            if clean:
                raise Unnoticed("verify reports a clean run") from None
            raise

    names = {
        "weights": "checkpoints/*/model.safetensors",
        "training states": "states/*/*.safetensors",
        "manifests of checkpoints": "*/step-*/manifest.json",
        "identity of a run": "identity.json",
        "end of a run (done.json)": "done.json",
        "log of a run": "metrics.jsonl",
        "ledger of an intervention": "ledger.safetensors",
    }
    return [Kind(name, sorted(run.folder.glob(names[name])), read) for name in names]


def unfinished_run(folder: Path) -> list[Kind]:
    """The newest state and the log of a run that was stopped, and then is trained to its end."""
    train(config(), batch_at, folder, stop_at=5, progress=False)
    train(config(), batch_at, folder, stop_at=9, progress=False)

    def read() -> tuple[Any, bool]:
        copy = folder.with_name("resumed")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".*.copy"))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            final = train(config(), batch_at, copy, progress=False)
        rows = [{**row, "tokens_per_s": 0} for row in read_metrics(copy / "metrics.jsonl")]
        return [final, rows], any("was renamed" in str(each.message) for each in seen)

    states = sorted(folder.glob("states/step-000009/*"))
    return [
        Kind("state of an unfinished run", states, read),
        Kind("log of an unfinished run", [folder / "metrics.jsonl"], read),
    ]


def prepared_text(run: RunConfig) -> list[Kind]:
    """Tokens and rows, read for their own order, and for one that is made from the tokens."""
    data = prepare(run.data, progress=False)
    other = replace(run.data, order_seed=77)

    def read() -> tuple[Any, bool]:
        values = []
        for wanted in (run.data, other):
            made = prepare(wanted, progress=False)
            values += [
                made.fingerprint,
                {k: v for k, v in made.manifest.items() if k != "fingerprint"},
                arrays_hash(made.rows.rows(0, made.rows.n_rows)),
                arrays_hash(made.heldout.tokens[:], made.tokens.tokens[:]),
                made.tokenizer.to_str(),
            ]
            if wanted is other:
                shutil.rmtree(made.folder)
        return values, False

    def files(*endings: str) -> list[Path]:
        both = [*data.tokens_folder.iterdir(), *data.folder.iterdir()]
        return sorted(file for file in both if file.name.endswith(endings))

    return [
        Kind("tokens (.bin)", files(".bin"), read),
        Kind("tokens (.idx)", files(".idx"), read),
        Kind("tokenizer and manifests of tokens", files(".json", ".sha256"), read),
    ]


@dataclass(frozen=True)
class Norm:
    """The norm of a weight."""

    name: str = "norm"
    digest: str = "a"

    def __call__(self, model: Any, step: int) -> dict[str, np.ndarray]:
        return {"norm": np.array([model.embed_in.weight.norm().item(), step])}


def measured(run: Run, patch: pytest.MonkeyPatch) -> Kind:
    """Cached measurements of checkpoints; a damaged one is measured again."""
    patch.setattr(measurements, "_kept", {})
    checkpoints = [(run, step) for step in run.steps[-3:]]

    def read() -> tuple[Any, bool]:
        files = sorted((run.folder / "evaluations").glob("*"))
        before = [file.read_bytes() for file in files]
        found, gaps = measure_all(checkpoints, Norm(), progress=False)
        after = [file.read_bytes() for file in files]
        norms = {str(key): values["norm"].tolist() for key, values in found.items()}
        return [gaps, norms], before != after

    read()
    return Kind("cached measurements", sorted((run.folder / "evaluations").glob("*")), read)


def other_caches() -> Kind:
    """Facts about a text, cached as JSON with a hash; damaged ones are made again."""
    facts = {"counts": {f"word{i}": i * i for i in range(50)}}
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return facts

    def read() -> tuple[Any, bool]:
        made.clear()
        path = cached_json("faults", "facts", [__file__], make)
        return json.loads(path.read_text()), bool(made)

    path = cached_json("faults", "facts", [__file__], make)
    return Kind("cached facts about a text", [path, path.with_name(path.name + ".sha256")], read)


def chosen_precision(cache: Path, patch: pytest.MonkeyPatch) -> Kind:
    """The stored choice of precision; a damaged one is measured again."""
    patch.setattr(precision, "measure", lambda: {"fp32": 100.0, "bf16": 200.0})
    patch.setattr(precision, "print_line", lambda text: None)
    folder = cache / "precision"

    def read() -> tuple[Any, bool]:
        before = [file.read_bytes() for file in folder.glob("*.json")]
        choice = precision._cpu_precision("2.x")
        return choice, before != [file.read_bytes() for file in folder.glob("*.json")]

    read()
    return Kind("choice of precision", sorted(folder.glob("*.json")), read)


def record(folder: Path) -> list[Kind]:
    """The record and the notebook of a study, as the site and `redraw` read them."""
    save_study(folder)

    def read() -> tuple[Any, bool]:
        if problems := records.check_whole(folder, named=False):
            raise PythiaError("; ".join(problems))
        found = records.read_record(folder)
        arrays = records.read_measurements(folder, "tiny", found["parameters"]).arrays
        shown = {**found, "files": None}
        cells = notebooks.read_notebook(folder / "notebook.ipynb").cells
        page = [[cell.source, cell.get("outputs")] for cell in cells]
        tables = [records.read_table(folder, "levels"), *records.read_released(folder).values()]
        return [shown, arrays_hash(*arrays.values()), page, [t.to_csv() for t in tables]], False

    return [
        Kind("records (record.json)", [folder / "record.json"], read),
        Kind("tables and measurements", [*folder.glob("*.csv"), *folder.glob("*.npz")], read),
        Kind("executed notebooks", [folder / "notebook.ipynb"], read),
    ]


def downloaded(cache: Path) -> Kind:
    """A downloaded archive, pinned by its hash."""
    path = cache / "wheels" / "tiny-1.0-py3-none-any.whl"
    pin = Wheel("tiny", "1.0", write_tiny_wheel(path))
    return Kind(
        "downloaded archives", [path], lambda: (wheel_bytes(pin, "tiny/a.txt").decode(), False)
    )


def packed(folder: Path) -> Kind:
    """A bundle, unpacked with tar and checked with sha256sum as its run.sh does."""
    folder.mkdir()
    random = np.random.default_rng(3)
    parts: dict[str, bundle.Part] = {f"cache/{i}.bin": random.bytes(999) for i in range(5)}
    sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in parts.items()]
    parts["SHA256SUMS"] = "".join(sums).encode()
    archive = folder / "out.tar.xz"
    bundle._write(archive, parts, True, False)

    def read() -> tuple[Any, bool]:
        unpacked = folder.with_name("unpacked")
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
        subprocess.run(["tar", "xf", archive, "-C", unpacked], **quiet)
        top = unpacked / bundle.TOP
        subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=top, **quiet)
        return {p.name: p.read_bytes() for p in sorted(top.rglob("*")) if p.is_file()}, False

    return Kind("bundles", [archive], read, (subprocess.CalledProcessError, OSError))


def continued(root: Path) -> list[Kind]:
    """What a run continued from a released checkpoint has in addition to other runs."""
    root.mkdir()
    release = publish(root, SimpleNamespace(setenv=lambda *_: None))  # the places are set already
    swap = "masculine_to_feminine"
    run = find_or_continue(
        release.models, 40, 4, release.rows, swap, train_config=release.train, progress=False
    )

    def read() -> tuple[Any, bool]:
        found = find_run(str(run.folder))
        return [found.place, found.swaps, found.control.id, config_dict(found.config)], False

    names = {"sources of a continued run": "place.json", "log of a swap": "swaps.jsonl"}
    return [Kind(name, [run.folder / file], read) for name, file in names.items()]


def converted(folder: Path, run: Run) -> Kind:
    """A model that `convert` wrote for transformers, with its settings and tokenizer."""
    convert(str(run.folder), folder)

    def read() -> tuple[Any, bool]:
        found = read_model(str(folder))
        assert found.tokenizer is not None
        weights, shape = sha256_tensors(found.model.state_dict()), config_dict(found.model.config)
        return [weights, shape, found.settings, found.tokenizer.to_str()], False

    return Kind("models for transformers", sorted(folder.iterdir()), read)
