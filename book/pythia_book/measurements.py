"""Measures checkpoints in parallel, and caches the results in the folder of the run.

A measurement is a picklable callable that returns arrays. Its digest covers everything that
determines the arrays, except the weights. A damaged cached file is measured again. A checkpoint
that cannot be loaded becomes a gap in the tables. Most studies use `LanguageMeasurement`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pythia_core.config import stable_hash
from pythia_core.errors import CheckpointError, TakenElsewhere
from pythia_core.evaluation import scoring
from pythia_core.suite import size_name
from pythia_core.training.checkpoint import saved_steps
from pythia_core.training.gpu_sharing import limit_memory
from pythia_core.training.memory import inference_bytes
from pythia_core.training.runs import SHORT, Run, arm_label, run_flops
from pythia_core.util.files import atomic_file, is_writable, results_dir
from pythia_core.util.leases import is_free, leased, marker_of
from pythia_core.util.machine import on_device
from pythia_core.util.progress import bar
from pythia_core.util.workers import parallel_map

if TYPE_CHECKING:
    from pythia_core.data.prepare import PreparedData
    from pythia_core.model import GPTNeoX

Arrays = dict[str, np.ndarray]
CheckpointKey = tuple[str, int]
"""(run id, step)."""
Available = Callable[[Any, int], contextlib.AbstractContextManager[None]]
"""See `measure_each`."""


class Measurement(Protocol):
    """A picklable callable that measures a model and returns arrays."""

    name: str
    """Letters a-z and _; the beginning of the names of cached files."""
    digest: str
    """Stable hash of the items, settings and method, but not of the weights or the step."""

    def __call__(self, model: GPTNeoX, step: int) -> Arrays: ...


MeasureJob = tuple[Run, int, list[Measurement], Available | None]


class RequestMeasurement:
    """Base class of the measurements that score requests. Subclasses are dataclasses."""

    requests: Sequence[scoring.Request]
    max_seq_len: int

    @cached_property
    def digest(self) -> str:
        """A hash of the requests and the method of scoring."""
        texts = [(r.context, r.continuation) for r in self.requests]
        return stable_hash([scoring.VERSION, self.max_seq_len, texts])

    @cached_property
    def packed(self) -> scoring.PackedRequests:
        """The requests, packed once for all checkpoints."""
        return scoring.pack(self.requests, self.max_seq_len)


@dataclass(frozen=True)
class Gap:
    """A checkpoint that could not be measured, with the reason."""

    run_id: str
    step: int
    reason: str


def measure_all(
    checkpoints: Sequence[tuple[Run, int]], measurement: Measurement, progress: bool = True
) -> tuple[dict[CheckpointKey, Arrays], list[Gap]]:
    """Apply one measurement to many checkpoints in parallel, reusing cached results.

    Returns:
        The arrays of each measured (run id, step), and a Gap for each missing or corrupt
        checkpoint.
    """
    measured, gaps = measure_each(checkpoints, [measurement], measurement.name, progress)
    return {key: arrays for key, (arrays,) in measured.items()}, gaps


def measure_each(
    checkpoints: Sequence[tuple[Run, int]],
    measurements: Sequence[Measurement],
    title: str,
    progress: bool = True,
    available: Available | None = None,
) -> tuple[dict[CheckpointKey, list[Arrays]], list[Gap]]:
    """Apply several measurements to many checkpoints in parallel, reusing cached results.

    Each checkpoint is loaded at most once. Processes that share the folder of results, even from
    other machines, divide the work; each returns when all is measured. `title` names the
    measurements in the progress bar.

    Args:
        available: a picklable function that returns a context in which a checkpoint may be loaded
            and measured, e.g. to delete its files afterwards.

    Returns:
        The arrays of each measured (run id, step), in the order of `checkpoints` and of
        `measurements`, and a Gap for each missing or corrupt checkpoint.
    """
    measured: dict[CheckpointKey, list[Any]] = {}
    jobs: list[MeasureJob] = []
    for run, step in {(run.id, step): (run, step) for run, step in checkpoints}.values():
        cached = [_cached(run, step, m) for m in measurements]
        measured[run.id, step] = cached
        missing = [m for m, arrays in zip(measurements, cached, strict=True) if arrays is None]
        if missing:
            jobs.append((run, step, missing, available))
    jobs.sort(key=lambda job: -job[0].config.model.n_params)
    results = parallel_map(
        _measure_checkpoint,
        jobs,
        progress=progress,
        desc=f"measuring {title.replace('_', ' ')},",
        unit="checkpoint",
        names=[f"{size_name(r.config.model)} {arm_label(r.config)}, step {s}" for r, s, *_ in jobs],
        in_process=sum(run_flops(r.config) for r in {r.id: r for r, *_ in jobs}.values()) < SHORT,
        may_retry=_may_measure,
    )
    gaps = []
    for (run, step, *_), result in zip(jobs, results, strict=True):
        key = run.id, step
        if isinstance(result, str):
            gaps.append(Gap(*key, result))
            del measured[key]
        else:
            new = iter(result)
            measured[key] = [next(new) if arrays is None else arrays for arrays in measured[key]]
    return measured, gaps


_kept: dict[tuple[str, str], Measurement] = {}
"""The first copy of each measurement in this process, by name and digest. Every job brings a new
copy, but the first copy is used, because its requests are already packed."""


def _measure_checkpoint(job: MeasureJob) -> list[Arrays] | str:
    """Measure a checkpoint and cache the arrays; return the error as text if loading fails.

    Raises:
        TakenElsewhere: another process is making a measurement; the others are made first.
    """
    run, step, measurements, available = job
    results: list[Arrays] = []
    taken: TakenElsewhere | None = None
    with contextlib.ExitStack() as stack:
        model = None  # loaded for the first measurement that is not made elsewhere
        for measurement in bar(iterable=measurements, desc="measuring", unit="measurement"):
            try:
                with leased(_lease_of(run, step, measurement), wait=False):
                    arrays = _cached(run, step, measurement)  # another process may have made it
                    if arrays is None:
                        if model is None:
                            if available is not None:
                                stack.enter_context(available(run, step))
                            try:
                                model = run.model(step)
                            except CheckpointError as error:
                                return str(error)
                            stack.enter_context(limit_memory(inference_bytes(run.config.model)))
                            model = stack.enter_context(on_device(model))
                        arrays = _measure(model, run, step, measurement)
                    results.append(arrays)
            except TakenElsewhere as error:
                taken = error
    if taken is not None:
        raise taken
    return results


def _measure(model: GPTNeoX, run: Run, step: int, measurement: Measurement) -> Arrays:
    """Make a measurement and cache its arrays."""
    kept = _kept.setdefault((measurement.name, measurement.digest), measurement)
    arrays = {name: np.asarray(array) for name, array in sorted(kept(model, step).items())}
    if not _may_be_replaced(run, step):
        save_cached(_new_file(run, step, measurement), _key(run, step, measurement), arrays)
    return arrays


def _may_be_replaced(run: Run, step: int) -> bool:
    """Return whether training may still give a step other weights.

    Training resumes from the newest state. With a different number of processes or on another
    machine, the checkpoints after that state get other bits.
    """
    if not isinstance(run, Run) or run.finished:
        return False
    return step > max(saved_steps(run.states), default=-1)


def _lease_of(run: Run, step: int, measurement: Measurement) -> Path:
    """Return the marker of the process that is making a measurement (pythia_core.util.leases)."""
    return marker_of(_new_file(run, step, measurement))


def _may_measure(job: MeasureJob) -> bool:
    """Return whether the other processes have stopped making these measurements."""
    run, step, measurements, _ = job
    return all(is_free(_lease_of(run, step, measurement)) for measurement in measurements)


# --- cached results --------------------------------------------------------------------------


def _key(run: Run, step: int, measurement: Measurement) -> dict[str, Any]:
    """Return what identifies a cached result: run, step, and the measurement's name and digest."""
    identity = {"what": measurement.name, "digest": measurement.digest}
    return {"run": run.id, "step": step, **identity}


def _files(run: Run, step: int, measurement: Measurement) -> list[Path]:
    """Return the paths that the cached result of a measurement on one checkpoint can have."""
    short = stable_hash(_key(run, step, measurement))[:12]
    name = f"{measurement.name}-{step:06d}-{short}.safetensors"
    return [folder / name for folder in _folders(run)]


def _folders(run: Run) -> tuple[Path, Path]:
    """Return the folder of cached results in the run's folder, and the one to use if it is not
    writable, e.g. because another user trained the run."""
    return run.folder / "evaluations", results_dir() / "evaluations" / run.id


def is_measured(run: Run, step: int, measurements: Sequence[Measurement]) -> bool:
    """Return whether there are cached results of all measurements on one checkpoint."""
    return all(_cached(run, step, measurement) is not None for measurement in measurements)


def _cached(run: Run, step: int, measurement: Measurement) -> Arrays | None:
    """Read the cached result of a measurement on one checkpoint; None if there is none."""
    key = _key(run, step, measurement)
    cached = (load_cached(file, key) for file in _files(run, step, measurement))
    return next((arrays for arrays in cached if arrays is not None), None)


def _new_file(run: Run, step: int, measurement: Measurement) -> Path:
    """Return the path to which a new result is written."""
    in_run, in_results = _files(run, step, measurement)
    return in_run if is_writable(in_run.parent) else in_results


def _sha256(arrays: Arrays) -> str:
    """Hash the names, dtypes, shapes and contents of arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_cached(path: Path, key: dict[str, Any], arrays: Arrays) -> None:
    """Write arrays atomically, with their hash and the JSON-compatible `key`."""
    from safetensors.numpy import save

    metadata = {"key": json.dumps(key, sort_keys=True), "sha256": _sha256(arrays)}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_file(path) as target:
        target.write_bytes(save(contiguous, metadata))


def load_cached(path: Path, key: dict[str, Any]) -> Arrays | None:
    """Read arrays by name; None if the file is missing, damaged or saved with another key."""
    arrays, saved_key = _read_cached(path)
    return arrays if saved_key == json.dumps(key, sort_keys=True) else None


def damaged_caches(run: Run) -> list[Path]:
    """Return the cached results of a run that are damaged, and so will be measured again."""

    def is_damaged(file: Path) -> bool:
        arrays, key = _read_cached(file)
        try:
            return arrays is None or not file.stem.endswith(stable_hash(json.loads(key))[:12])
        except ValueError:
            return True

    files = [file for folder in _folders(run) for file in folder.glob("*.safetensors")]
    return sorted(filter(is_damaged, files))


def _read_cached(path: Path) -> tuple[Arrays | None, str]:
    """Return the arrays in a file and its key as JSON; (None, "") if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None, ""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError, ValueError):
        return None, ""
    same = metadata.get("sha256") == _sha256(arrays)
    return (arrays, metadata.get("key", "")) if same else (None, "")


# --- held-out text ---------------------------------------------------------------------------

N_ROWS = 400
"""Number of held-out rows, spread evenly over the held-out stream."""


@dataclass(frozen=True)
class LanguageMeasurement:
    """A measurement of how well a checkpoint models held-out text.

    All runs of a scale, even on deduplicated text, use the same held-out documents. Arrays:
    `loss`: float64[rows], mean loss of each row in nats per token
    `last_word`: bool[words], whether greedy decoding gives each sentence's last word
    """

    rows: np.ndarray
    """int64[n, S + 1], token ids."""
    words: np.ndarray
    """int64[n, 3]: see `scoring.last_words`."""
    name: str = "language"

    @classmethod
    def of(cls, data: PreparedData) -> LanguageMeasurement:
        """Create the measurement on held-out documents."""
        rows = scoring.sample_windows(data.heldout.tokens, data.config.seq_len, N_ROWS)
        return cls(rows, scoring.last_words(rows, data.tokenizer, data.eod_id))

    @cached_property
    def digest(self) -> str:
        """A hash of the held-out rows, the words and the method."""
        return stable_hash([scoring.VERSION, self.rows.tolist(), self.words.tolist()])

    def __call__(self, model: scoring.Scorable, step: int) -> Arrays:
        """Return `loss` and `last_word` of a model. The step is not used."""
        scores = scoring.score_rows(model, self.rows)
        return {"loss": scores.losses, "last_word": scores.of_words(self.words).greedy}
